//! What tools tell each other through ZooKeeper: the delay that a delayer waits, and who queues for what.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use log::debug;
use serde::{Deserialize, Serialize};
use zookeeper::Error;

use super::candidate::is_refusal;
use super::sequence::{in_order, sequence};
use super::zookeeper::{Backoff, PERSISTENT, Session, ZooKeeper};
use super::{Process, Seat};
use crate::topic::{Name, Topic};

/// The content of a delayer's node `delay`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Declared {
    delay_ms: u64,
    host: String,
}

/// What becomes of a declaration.
enum Answer {
    /// With the server's time of that.
    Written(SystemTime),
    /// Another delayer that is alive has declared this.
    Other(Declared),
}

impl ZooKeeper {
    pub(super) async fn declare_delay(&self, seat: &Seat, delay: Duration) -> Result<SystemTime> {
        let delay_ms = u64::try_from(delay.as_millis())?;
        let declared = &Declared { delay_ms, host: self.card.host.clone() };
        let answer = self.ask(|session| async move { self.declare(&session, seat, declared).await });
        let other = match answer.await? {
            Answer::Written(at) => return Ok(at),
            Answer::Other(other) => other,
        };
        bail!(
            "cannot delay {} by {delay:?} on {}: a delayer is at work on {} that delays it by {:?}; \
             give both the same --delay",
            seat.partition,
            declared.host,
            other.host,
            Duration::from_millis(other.delay_ms)
        )
    }

    async fn declare(&self, session: &Session, seat: &Seat, own: &Declared) -> Result<Answer, Error> {
        let path = session.path(seat, "delay");
        let json = serde_json::to_vec(own).expect("a number and a text can be written as JSON");
        loop {
            let written = match session.client.get_data(&path).await {
                Ok((data, stat)) => {
                    let found = serde_json::from_slice::<Declared>(&data).ok();
                    if let Some(other) = found.filter(|found| found.delay_ms != own.delay_ms)
                        && self.has_rival(session, seat).await?
                    {
                        return Ok(Answer::Other(other));
                    }
                    session.client.set_data(&path, &json, Some(stat.version)).await
                }
                Err(Error::NoNode) => {
                    session.client.mkdir(&session.path(seat, "leader"), &PERSISTENT).await?;
                    session.client.create(&path, &json, &PERSISTENT).await.map(|(stat, _)| stat)
                }
                Err(err) => Err(err),
            };
            match written {
                // Another delayer wrote at the same time: whose value stands is to be read.
                Err(Error::BadVersion | Error::NodeExists | Error::NoNode) => {}
                written => {
                    let millis = u64::try_from(written?.mtime).unwrap_or_default();
                    return Ok(Answer::Written(SystemTime::UNIX_EPOCH + Duration::from_millis(millis)));
                }
            }
        }
    }

    /// Whether a candidate of another process queues for the seat.
    async fn has_rival(&self, session: &Session, seat: &Seat) -> Result<bool, Error> {
        let names = children(session, &session.path(seat, "leader")).await?;
        Ok(names.iter().any(|name| sequence(name).is_some() && !name.starts_with(&*self.process)))
    }

    pub(super) async fn delay_of(&self, delay_topic: &Topic) -> Result<Option<Duration>> {
        let declared = self.ask(|session| async move {
            let mut shortest = None;
            for partition in partitions(&session, delay_topic).await? {
                let seat = Seat { partition: delay_topic.partition(partition), name: Name::delayer() };
                match session.client.get_data(&session.path(&seat, "delay")).await {
                    Ok((data, _)) => {
                        let declared = serde_json::from_slice::<Declared>(&data).ok();
                        shortest = shortest.into_iter().chain(declared.map(|declared| declared.delay_ms)).min();
                    }
                    Err(Error::NoNode) => {}
                    Err(err) => return Err(err),
                }
            }
            Ok(shortest)
        });
        Ok(declared.await?.map(Duration::from_millis))
    }

    pub(super) async fn candidates(&self, topic: &Topic) -> Result<Vec<(Seat, usize)>> {
        self.ask(|session| async move {
            let mut seats = Vec::new();
            for partition in partitions(&session, topic).await? {
                let partition = topic.partition(partition);
                let names = children(&session, &format!("{}/{}", session.topic(topic), partition.partition)).await?;
                for name in names.iter().filter_map(|name| name.parse().ok()) {
                    let seat = Seat { partition: partition.clone(), name };
                    let queue = children(&session, &session.path(&seat, "leader")).await?;
                    let waiting = queue.iter().filter(|name| sequence(name).is_some()).count();
                    if waiting > 0 {
                        seats.push((seat, waiting));
                    }
                }
            }
            seats.sort();
            Ok(seats)
        })
        .await
    }

    /// Who queues for the seats of `topic` that `name` has, in the order in which they lead; seats without a queue are left
    /// out.
    ///
    /// Fails where it has no answer at once.
    pub(super) async fn queues(&self, topic: &Topic, name: &Name) -> Result<BTreeMap<Seat, Vec<Process>>> {
        let session = self.session_now().context("there is no session")?;
        let mut queues = BTreeMap::new();
        for partition in partitions(&session, topic).await? {
            let seat = Seat { partition: topic.partition(partition), name: name.clone() };
            let names = children(&session, &session.path(&seat, "leader")).await?;
            // What stands before the number is the process's own.
            let process = |name: &str| name.rsplit_once('_').map(|(process, _)| Process(process.into()));
            let queue: Vec<_> = in_order(&names).into_iter().filter_map(process).collect();
            if !queue.is_empty() {
                queues.insert(seat, queue);
            }
        }
        Ok(queues)
    }

    /// Asks the servers until they answer; an error is their no. Everything asked so may be done twice.
    pub(super) async fn ask<T, F>(&self, question: impl Fn(Session) -> F) -> Result<T>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut backoff = Backoff::default();
        loop {
            let Some(session) = self.session().await else { bail!("the election is closed") };
            match question(session).await {
                Ok(answer) => return Ok(answer),
                Err(err) if is_refusal(&err) => return Err(anyhow!(err).context("ZooKeeper refuses the request")),
                Err(err) => debug!("{err}; asking again"),
            }
            backoff.wait().await;
        }
    }
}

/// The partitions of which somebody reads or has read.
pub(super) async fn partitions(session: &Session, topic: &Topic) -> Result<Vec<i32>, Error> {
    let names = children(session, &session.topic(topic)).await?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}

/// The children of a node, none where it does not exist.
pub(super) async fn children(session: &Session, path: &str) -> Result<Vec<String>, Error> {
    match session.client.list_children(path).await {
        Err(Error::NoNode) => Ok(Vec::new()),
        children => children,
    }
}
