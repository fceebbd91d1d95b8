//! The ids of topics, asked for as often as batches are committed, by as few requests as possible.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow};
use log::{info, warn};
use rdkafka::error::KafkaError;
use tokio::sync::{mpsc, oneshot};

use super::thread;
use crate::sys;
use crate::topic::{Topic, TopicId};

const TIMEOUT: Duration = Duration::from_secs(5);
/// How long no broker may tell a topic's id before that is told.
const SILENCE: Duration = Duration::from_secs(10);

/// Asks for topics' ids. All who ask while a request is under way share the next one.
///
/// librdkafka goes on reading in a topic that was deleted and made again, without a word: only its id tells.
#[derive(Clone, Debug)]
pub struct TopicIds {
    questions: mpsc::Sender<Question>,
}

#[derive(Debug)]
struct Question {
    topic: Topic,
    answer: oneshot::Sender<Result<Option<TopicId>>>,
}

impl TopicIds {
    /// Since when there are ids, for where brokers tell none.
    pub const SINCE: &str = "Kafka tells ids since 2.8, where inter.broker.protocol.version is at least that, too";

    /// `ask` sends one request for some topics and blocks until it is answered.
    pub(super) fn new(
        ask: impl Fn(&[Topic], Duration) -> Result<sys::TopicIds, KafkaError> + Send + 'static,
    ) -> Result<TopicIds> {
        let (questions, mut asked) = mpsc::channel::<Question>(64);
        let (has_warned, silent) = Default::default();
        let mut answers = Answers { ask, has_warned, silent };
        thread("ids", move || {
            while let Some(first) = asked.blocking_recv() {
                let mut waiting = vec![first];
                while let Ok(another) = asked.try_recv() {
                    waiting.push(another);
                }
                answers.give(waiting);
            }
        })?;
        Ok(TopicIds { questions })
    }

    /// The topic's id by a request that is sent after this call; `None` where the topic does not exist.
    ///
    /// Fails where no broker answers within 5 s.
    pub async fn ask(&self, topic: &Topic) -> Result<Option<TopicId>> {
        let (answer, answered) = oneshot::channel();
        let gone = || anyhow!("the thread that asks for topic ids has ended");
        self.questions.send(Question { topic: topic.clone(), answer }).await.ok().with_context(gone)?;
        answered.await.ok().with_context(gone)?
    }
}

/// Answers questions, and tells of topics whose id is not to be had.
struct Answers<A> {
    ask: A,
    /// That brokers have no ids.
    has_warned: bool,
    silent: BTreeMap<Topic, Silence>,
}

/// That no broker tells a topic's id.
#[derive(Clone, Copy)]
struct Silence {
    since: Instant,
    /// When it was asked last.
    asked: Instant,
    is_told: bool,
}

impl<A: Fn(&[Topic], Duration) -> Result<sys::TopicIds, KafkaError>> Answers<A> {
    fn give(&mut self, waiting: Vec<Question>) {
        let mut topics: Vec<_> = waiting.iter().map(|question| question.topic.clone()).collect();
        topics.sort();
        topics.dedup();
        let asked = Instant::now();
        let ids = (self.ask)(&topics, TIMEOUT);
        for Question { topic, answer } in waiting {
            // Who asked may have gone in the meantime.
            drop(answer.send(id_among(&ids, &topic)));
        }
        for topic in topics {
            match id_among(&ids, &topic) {
                Ok(id) => self.note_answer(&topic, id),
                Err(error) => self.note_silence(topic, asked, &error),
            }
        }
    }

    fn note_answer(&mut self, topic: &Topic, id: Option<TopicId>) {
        if let Some(Silence { since, is_told: true, .. }) = self.silent.remove(topic) {
            info!("topic {topic}: Kafka answers for its id again after {:.1?}", since.elapsed());
        }
        if id.is_some_and(|id| !id.is_known()) && !std::mem::replace(&mut self.has_warned, true) {
            warn!(
                "topic {topic}: the brokers tell no id of it; {}: without one it is seen only where the topic is led anew, by \
                 the last record that was read, that it was made again",
                TopicIds::SINCE
            );
        }
    }

    fn note_silence(&mut self, topic: Topic, asked: Instant, error: &Error) {
        let begins = Silence { since: asked, asked, is_told: false };
        let silence = self.silent.entry(topic).or_insert(begins);
        // What nobody asked for meanwhile may have been told all the time.
        if asked.duration_since(silence.asked) > SILENCE {
            *silence = begins;
        }
        silence.asked = asked;
        if !silence.is_told && silence.since.elapsed() >= SILENCE {
            silence.is_told = true;
            warn!("nothing can be committed: {error:#}; trying again");
        }
    }
}

/// The topic's id in an answer; `None` where the topic does not exist.
fn id_among(ids: &Result<sys::TopicIds, KafkaError>, topic: &Topic) -> Result<Option<TopicId>> {
    let id = match ids {
        Err(error) => Err(anyhow!(error.clone())),
        Ok(ids) => match ids.get(topic.as_str()) {
            Some(Ok(id)) => Ok(Some(*id)),
            Some(Err(error)) if is_missing(error) => Ok(None),
            Some(Err(error)) => Err(anyhow!(error.clone())),
            None => Err(anyhow!("the broker says nothing of it")),
        },
    };
    id.with_context(|| format!("cannot read the id of topic {topic}"))
}

fn is_missing(error: &KafkaError) -> bool {
    use rdkafka::error::RDKafkaErrorCode::{UnknownTopic, UnknownTopicOrPartition};
    matches!(error, KafkaError::AdminOp(UnknownTopicOrPartition | UnknownTopic))
}
