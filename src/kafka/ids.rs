//! The ids of topics, asked for as often as batches are committed, by as few requests as possible.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use log::warn;
use rdkafka::error::KafkaError;
use tokio::sync::{mpsc, oneshot};

use crate::sys;
use crate::topic::{Topic, TopicId};

const TIMEOUT: Duration = Duration::from_secs(5);

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
    /// `ask` sends one request for some topics and blocks until it is answered.
    pub(super) fn new(
        ask: impl Fn(&[Topic], Duration) -> Result<sys::TopicIds, KafkaError> + Send + 'static,
    ) -> TopicIds {
        let (questions, mut asked) = mpsc::channel::<Question>(64);
        std::thread::spawn(move || {
            let mut has_warned = false;
            while let Some(first) = asked.blocking_recv() {
                let mut waiting = vec![first];
                while let Ok(another) = asked.try_recv() {
                    waiting.push(another);
                }
                if let Some(topic) = answer(waiting, &ask).filter(|_| !has_warned) {
                    has_warned = true;
                    warn!(
                        "topic {topic}: the brokers tell no id of it; Kafka tells ids since 2.8, where \
                         inter.broker.protocol.version is at least that, too: without one it is seen only where the topic is \
                         led anew, by the last record that was read, that it was made again"
                    );
                }
            }
        });
        TopicIds { questions }
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

/// Answers all questions, and gives a topic of which the brokers tell no id.
fn answer(
    waiting: Vec<Question>,
    ask: &impl Fn(&[Topic], Duration) -> Result<sys::TopicIds, KafkaError>,
) -> Option<Topic> {
    let mut topics: Vec<_> = waiting.iter().map(|question| question.topic.clone()).collect();
    topics.sort();
    topics.dedup();
    let ids = ask(&topics, TIMEOUT);
    for Question { topic, answer } in waiting {
        let id = match &ids {
            Err(error) => Err(anyhow!(error.clone())),
            Ok(ids) => match ids.get(topic.as_str()) {
                Some(Ok(id)) => Ok(Some(*id)),
                Some(Err(error)) if is_missing(error) => Ok(None),
                Some(Err(error)) => Err(anyhow!(error.clone())),
                None => Err(anyhow!("the broker says nothing of it")),
            },
        };
        // Who asked may have gone in the meantime.
        drop(answer.send(id.with_context(|| format!("cannot read the id of topic {topic}"))));
    }
    let ids = ids.ok()?;
    topics.into_iter().find(|topic| matches!(ids.get(topic.as_str()), Some(Ok(id)) if !id.is_known()))
}

fn is_missing(error: &KafkaError) -> bool {
    use rdkafka::error::RDKafkaErrorCode::{UnknownTopic, UnknownTopicOrPartition};
    matches!(error, KafkaError::AdminOp(UnknownTopicOrPartition | UnknownTopic))
}
