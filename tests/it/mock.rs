//! librdkafka's own mock of a broker, and a leader that works on its records.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ksync::election::{Election, ZooKeeper};
use ksync::kafka::{Admin, Cluster, Event, Partition, Reader};
use ksync::lead::{Board, Done, End, Held, Leading, Work};
use ksync::shutdown::Shutdown;
use ksync::topic::Topic;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::RDKafkaApiKey::{Fetch, Metadata};
use rdkafka::types::RDKafkaRespErr;
use tokio::sync::{OnceCell, watch};

use crate::support::{Kafka, Message, World, value};

/// A broker that gives the errors that it is told to give, with a topic of one partition.
pub struct Mock {
    pub broker: MockCluster<'static, DefaultProducerContext>,
    pub kafka: Kafka,
    pub cluster: Cluster,
    pub topic: Topic,
}

impl Mock {
    pub fn new(topic: &str) -> Mock {
        Mock::of(MockCluster::new(1).unwrap(), topic)
    }

    /// As Kafka 2.7 has it, which knows no ids of topics.
    pub fn without_ids(topic: &str) -> Mock {
        let broker = MockCluster::new(1).unwrap();
        broker.apiversion(Metadata, Some(0), Some(9)).unwrap();
        broker.apiversion(Fetch, Some(0), Some(12)).unwrap();
        Mock::of(broker, topic)
    }

    fn of(broker: MockCluster<'static, DefaultProducerContext>, topic: &str) -> Mock {
        broker.create_topic(topic, 1, 1).unwrap();
        let bootstrap = broker.bootstrap_servers();
        let kafka = Kafka::at(&bootstrap);
        Mock { broker, kafka, cluster: Cluster { bootstrap, properties: vec![] }, topic: topic.parse().unwrap() }
    }

    pub fn produce(&self, text: &str) {
        self.write([value(text)]);
    }

    pub fn write(&self, messages: impl IntoIterator<Item = Message>) {
        self.kafka.produce(self.topic.as_str(), messages);
    }

    /// Has it answer so whoever asks for the topic's metadata, until it is told otherwise: in these answers the mock has no errors
    /// of single requests.
    pub fn topic_fails(&self, error: Option<RDKafkaRespErr>) {
        let error = error.unwrap_or(RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR);
        self.broker.topic_error(self.topic.as_str(), error).unwrap();
    }

    pub fn reader(&self, admin: &Admin) -> Reader {
        Reader::open(&self.cluster, admin, "ksync.test", 1, 1).unwrap()
    }
}

/// Commits each record as soon as it has it; behind one that says `half` as where only a part of a batch is done, of which the last
/// record is not told.
pub struct Take(pub Arc<Mutex<Vec<String>>>);

impl Work for Take {
    async fn work(&self, records: &mut Partition, held: &mut Held<'_>, shutdown: &Shutdown) -> End {
        loop {
            let done = match records.poll() {
                Some(Event::Record(message)) => {
                    self.0.lock().unwrap().push(String::from_utf8(message.value().unwrap().to_vec()).unwrap());
                    let done = Done::after(&message.record());
                    Some(if message.value() == Some(b"half") { Done { last: None, ..done } } else { done })
                }
                Some(Event::OutOfLog) => return End::OutOfLog,
                Some(_) => continue,
                None => None,
            };
            let Some(done) = done else {
                tokio::select! {
                    () = records.readable() => {}
                    () = shutdown.requested() => return End::Shutdown,
                }
                // While nothing comes, too; it is looked once a second.
                match held.check_topic().await {
                    Ok(_) => continue,
                    Err(end) => return end,
                }
            };
            let checked = match held.check_topic().await {
                Ok(checked) => checked,
                Err(end) => return end,
            };
            match held.commit(held.standing, checked, done).await {
                Ok(standing) => held.standing = standing,
                Err(end) => return end,
            }
        }
    }
}

pub async fn leading(world: &World, mock: &Mock) -> Leading {
    let admin = Admin::new(&mock.cluster).unwrap();
    let zookeeper = ZooKeeper::connect(&world.zookeeper().parse().unwrap(), Duration::from_secs(30));
    Leading {
        reader: mock.reader(&admin),
        mirror: None,
        admin,
        election: Election::ZooKeeper(zookeeper),
        claimed: OnceCell::new(),
        name: "indexer".parse().unwrap(),
        topics: BTreeMap::from([(mock.topic.clone(), BTreeSet::from([0]))]),
        grows: false,
        first_start: None,
        accept_loss: vec![],
        bounded: None,
        spread: None,
        handed: watch::Sender::default(),
        commit_interval: Duration::ZERO,
        board: Board::default(),
        lookout: None,
    }
}
