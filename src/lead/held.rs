//! A partition that this process leads: what its work may ask of it and commit to it.

use std::future::Future;
use std::time::Duration;

use anyhow::{Result, anyhow};
use log::debug;
use tokio::time::{Instant, sleep};

use super::{End, Post, RETRY, Waiting};
use crate::election::{Lease, Position, Seat};
use crate::fit::Standing;
use crate::kafka::{self, Mirror};
use crate::mutants::Mutant;
use crate::record::{LastRecord, Record};
use crate::topic::{Offset, Topic, TopicId, TopicPartition};

/// How long no broker may know a topic before it is taken for deleted: one that starts again may know none for some seconds.
const GONE: Duration = Duration::from_secs(30);

/// A partition that this process leads, and how far it is done.
pub struct Held<'a> {
    pub seat: Seat,
    pub lease: &'a Lease,
    pub standing: Standing,
    /// Where a bounded run ends.
    pub until: Option<Offset>,
    pub(super) topic_id: TopicId,
    pub(super) ids: kafka::TopicIds,
    pub(super) mirror: Option<Mirror>,
    pub(super) commit_interval: Duration,
    pub(super) post: &'a Post,
}

impl Held<'_> {
    /// How often it is looked whether an idle partition's topic is still the same.
    pub const LOOK: Duration = Duration::from_secs(5);

    pub fn partition(&self) -> &TopicPartition {
        &self.seat.partition
    }

    /// Whether the records that were read belong to the topic that there is now: to be asked after they were read, and
    /// before they are committed.
    ///
    /// While no broker answers it goes on asking. Fails with what has to end the work.
    pub async fn check_topic(&self) -> Result<Checked, End> {
        let topic = &self.seat.partition.topic;
        match self.topic_id_now().await {
            Some(id) if id == self.topic_id || Mutant::IgnoresTopicId.is_on() => Ok(Checked(id)),
            Some(id) if id.differs_from(self.topic_id) => {
                Err(End::Again(anyhow!("topic {topic} was deleted and made again (id {id})")))
            }
            Some(id) if id.is_known() => {
                Err(End::Again(anyhow!("the brokers tell the id of topic {topic} now ({id})")))
            }
            Some(_) => {
                Err(End::Again(anyhow!("not all brokers tell the id of topic {topic}; {}", kafka::TopicIds::SINCE)))
            }
            None => Err(End::Halted(anyhow!("topic {topic} does not exist any more"))),
        }
    }

    /// `None` where it does not exist any more. Goes on asking until it is answered.
    async fn topic_id_now(&self) -> Option<TopicId> {
        loop {
            match self.during(Waiting::Kafka, topic_id(&self.ids, &self.seat.partition.topic)).await {
                Ok(id) => return id,
                Err(error) => debug!("{}: {error:#}", self.seat),
            }
            sleep(RETRY).await;
        }
    }

    /// Returns, with what has to end the work, when the topic is not the one that was read. For while nothing comes: a
    /// topic that was made again may stay without new records for long.
    pub async fn topic_changed(&self) -> End {
        loop {
            sleep(Self::LOOK).await;
            if let Err(end) = self.check_topic().await {
                return end;
            }
        }
    }

    /// Moves the offset from where the partition stands, and says where it stands then. After an error nothing more can be
    /// committed under this lease.
    pub async fn commit(&self, from: Standing, checked: Checked, done: Done) -> Result<Standing, End> {
        let Done { offset, leader_epoch, last, skipped } = done;
        let offset = match offset {
            Offset(number) if Mutant::CommitsLast.is_on() => Offset(number - 1),
            Offset(number) if Mutant::CommitsPastNext.is_on() => Offset(number + 1),
            offset => offset,
        };
        // Past what no consumer is given there is no epoch: then the one before still tells whether the log was cut off.
        let (leader_epoch, last) = if leader_epoch.is_some() || last.is_some() {
            // Without ids the log is recognised by it alone.
            (leader_epoch, last.or(from.last.filter(|_| !checked.0.is_known())))
        } else {
            (from.leader_epoch, from.last)
        };
        let skipped = skipped.or(from.skipped);
        let topic_id = from.id_with(checked.0);
        let position = Position { offset, topic_id, leader_epoch, last, skipped };
        let committed = self.lease.commit_within(position, self.commit_interval);
        self.during(Waiting::ZooKeeper, committed).await.map_err(End::Lost)?;
        self.post.moves(offset);
        if let Some(mirror) = &self.mirror {
            mirror.note(&self.seat.partition, offset);
        }
        debug!("{}: committed offset {offset}", self.seat);
        Ok(Standing { offset, topic_id: Some(topic_id), leader_epoch, last, skipped })
    }

    /// Awaits `something`, and lets those who ask see so long that it is waited for.
    pub async fn during<T>(&self, what: Waiting, something: impl Future<Output = T>) -> T {
        self.post.during(what, something).await
    }

    pub fn is_done(&self) -> bool {
        self.until.is_some_and(|until| self.standing.offset >= until)
    }
}

/// The topic's id, as it was after the records to be committed had been read.
#[derive(Clone, Copy)]
pub struct Checked(TopicId);

/// How far the records are done.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    pub offset: Offset,
    pub leader_epoch: Option<i32>,
    pub last: Option<LastRecord>,
    /// The last record among them that the operator had passed.
    pub skipped: Option<Offset>,
}

impl Done {
    /// All up to this record.
    pub fn after(record: &Record<'_>) -> Done {
        let (offset, leader_epoch) = (record.offset.next(), record.leader_epoch);
        Done { offset, leader_epoch, last: Some(LastRecord::of(record)), skipped: None }
    }

    /// All before this offset, where there was no further record.
    pub fn before(offset: Offset) -> Done {
        Done { offset, leader_epoch: None, last: None, skipped: None }
    }
}

/// The topic's id as it is now; `None` where no broker has known it for so long that it has to be deleted.
pub(super) async fn topic_id(ids: &kafka::TopicIds, topic: &Topic) -> Result<Option<TopicId>> {
    let begun = Instant::now();
    loop {
        match ids.ask(topic).await? {
            None if begun.elapsed() < GONE => sleep(RETRY).await,
            answer => return Ok(answer),
        }
    }
}
