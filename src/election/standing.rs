//! How far the consumers of a topic are, for those who only want to see them.

use std::collections::BTreeMap;

use anyhow::Result;
use futures_util::future::try_join_all;
use zookeeper::Error;

use super::delay::{children, partitions};
use super::offsets::StoredOffset;
use super::sequence::sequence;
use super::zookeeper::{Session, ZooKeeper};
use super::{Seat, Standing};
use crate::topic::{Name, Topic, TopicPartition};

impl ZooKeeper {
    pub(super) async fn standings(&self, topic: &Topic) -> Result<BTreeMap<Name, Standing>> {
        let seats = self.ask(|session| async move {
            let partitions = partitions(&session, topic).await?;
            // All at once: a topic with many partitions would take seconds one by one.
            try_join_all(partitions.into_iter().map(|partition| of(&session, topic.partition(partition)))).await
        });
        let mut standings = BTreeMap::<Name, Standing>::new();
        for (seat, queue, offset) in seats.await?.into_iter().flatten() {
            let standing = standings.entry(seat.name).or_default();
            standing.candidates += queue;
            if let StoredOffset::At(offset) = offset {
                standing.offsets.insert(seat.partition.partition, offset);
            }
        }
        Ok(standings)
    }
}

/// The seats of one partition, each with the number of its candidates and its offset.
async fn of(session: &Session, partition: TopicPartition) -> Result<Vec<(Seat, usize, StoredOffset)>, Error> {
    let names = children(session, &format!("{}/{}", session.topic(&partition.topic), partition.partition)).await?;
    let mut seats = Vec::new();
    for name in names.iter().filter_map(|name| name.parse().ok()) {
        let seat = Seat { partition: partition.clone(), name };
        let queue = children(session, &session.path(&seat, "leader")).await?;
        let offset = match session.client.get_data(&session.path(&seat, "offset")).await {
            Ok((data, _)) => StoredOffset::parse(&data),
            Err(Error::NoNode) => StoredOffset::None,
            Err(error) => return Err(error),
        };
        seats.push((seat, queue.iter().filter(|name| sequence(name).is_some()).count(), offset));
    }
    Ok(seats)
}
