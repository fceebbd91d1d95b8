//! Kafka as a test sees it: past the code under test.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::{ClientConfig, FromClientConfig};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, Headers, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

use super::block_on;

const TIMEOUT: Duration = Duration::from_secs(20);

/// A record to be written.
#[derive(Clone, Debug, Default)]
pub struct Message {
    pub partition: Option<i32>,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    pub timestamp_ms: Option<i64>,
}

/// A record with a value and no key.
pub fn value(value: impl AsRef<[u8]>) -> Message {
    Message { value: Some(value.as_ref().to_vec()), ..Message::default() }
}

impl Message {
    pub fn key(self, key: impl AsRef<[u8]>) -> Message {
        Message { key: Some(key.as_ref().to_vec()), ..self }
    }

    pub fn to(self, partition: i32) -> Message {
        Message { partition: Some(partition), ..self }
    }

    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Message {
        self.headers.push((name.to_owned(), Some(value.as_ref().to_vec())));
        self
    }
}

/// A record as it lies in a topic; what is not UTF-8 is escaped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    pub key: Option<String>,
    pub value: Option<String>,
    pub headers: Vec<(String, String)>,
    pub timestamp_ms: i64,
}

impl Record {
    /// As `kcat -K'|'` shows it.
    pub fn line(&self) -> String {
        format!("{}|{}", self.key.as_deref().unwrap_or_default(), self.value.as_deref().unwrap_or("NULL"))
    }
}

/// A broker, and what tests do with it.
#[derive(Clone)]
pub struct Kafka {
    bootstrap: String,
    settings: Vec<(&'static str, &'static str)>,
}

impl Kafka {
    pub fn at(bootstrap: &str) -> Kafka {
        Kafka { bootstrap: bootstrap.to_owned(), settings: vec![] }
    }

    /// The same broker, by clients with this setting of librdkafka.
    pub fn with(&self, name: &'static str, value: &'static str) -> Kafka {
        let mut kafka = self.clone();
        kafka.settings.push((name, value));
        kafka
    }

    fn client<T: FromClientConfig>(&self) -> T {
        self.config().create().unwrap()
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.bootstrap)
            .set("group.id", "tests")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", "10")
            .set("message.max.bytes", "200000000")
            .set("partitioner", "murmur2_random");
        for (name, value) in &self.settings {
            config.set(*name, *value);
        }
        config
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.client()
    }

    pub fn create(&self, topic: &str, partitions: i32, settings: &[(&str, &str)]) {
        self.create_replicated(topic, (partitions, 1), settings);
    }

    pub fn create_replicated(&self, topic: &str, (partitions, replicas): (i32, i32), settings: &[(&str, &str)]) {
        self.create_new(topic, partitions, TopicReplication::Fixed(replicas), settings);
    }

    /// On these brokers each partition, the first of which leads.
    pub fn create_on(&self, topic: &str, brokers: &[&[i32]], settings: &[(&str, &str)]) {
        self.create_new(topic, brokers.len() as i32, TopicReplication::Variable(brokers), settings);
    }

    fn create_new(&self, topic: &str, partitions: i32, replicas: TopicReplication<'_>, settings: &[(&str, &str)]) {
        // Some tests write records with times long past, which the broker would delete at its next look.
        let new = NewTopic::new(topic, partitions, replicas).set("retention.ms", "-1");
        let new = settings.iter().fold(new, |new, (name, value)| new.set(name, value));
        let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
        let (begun, mut is_again) = (Instant::now(), false);
        loop {
            // By a new client each time: one that is told of no brokers forgets all that it knows (src/kafka/lost.rs).
            let made = block_on(self.admin().create_topics([&new], &options));
            match made.as_deref() {
                Ok([Ok(_)]) => break,
                Ok([Err((_, RDKafkaErrorCode::TopicAlreadyExists))]) if is_again => break,
                // A broker that stood still counts as dead for a while.
                Ok([Err((_, RDKafkaErrorCode::InvalidReplicationFactor))])
                | Err(KafkaError::AdminOp(RDKafkaErrorCode::OperationTimedOut))
                    if begun.elapsed() < Duration::from_secs(120) => {}
                _ => panic!("cannot make topic {topic}: {made:?}"),
            }
            is_again = true;
            super::pause();
        }
        // Each broker hears of it by itself, and whoever is started next may ask any of them.
        for broker in self.bootstrap.split(',') {
            while Kafka::at(broker).partitions(topic) < partitions as usize {
                super::pause();
            }
        }
    }

    pub fn delete(&self, topic: &str) {
        let deleted = block_on(self.admin().delete_topics(&[topic], &AdminOptions::new())).unwrap();
        assert_eq!(deleted, [Ok(topic.to_owned())]);
        while self.partitions(topic) > 0 {
            super::pause();
        }
    }

    pub fn add_partitions(&self, topic: &str, partitions: usize) {
        let new = NewPartitions::new(topic, partitions);
        let added = block_on(self.admin().create_partitions([&new], &AdminOptions::new())).unwrap();
        assert_eq!(added, [Ok(topic.to_owned())]);
    }

    /// Deletes the records before `offset`.
    pub fn delete_records(&self, topic: &str, partition: i32, offset: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(offset)).unwrap();
        block_on(self.admin().delete_records(&list, &AdminOptions::new())).unwrap();
    }

    /// Sets this of the topic, and nothing else: what was set before is gone.
    pub fn set(&self, topic: &str, settings: &[(&str, &str)]) {
        let new = AlterConfig::new(ResourceSpecifier::Topic(topic));
        let new = settings.iter().fold(new, |new, (name, value)| new.set(name, value));
        let set = block_on(self.admin().alter_configs([&new], &AdminOptions::new())).unwrap();
        assert!(set.iter().all(Result::is_ok), "{set:?}");
        // A broker hears of it by itself, after the controller has answered.
        let (topic, begun) = (ResourceSpecifier::Topic(topic), Instant::now());
        loop {
            let described = block_on(self.admin().describe_configs([&topic], &AdminOptions::new()));
            if let Ok([Ok(told)]) = described.as_deref() {
                let value_of = |name: &str| told.get(name).and_then(|entry| entry.value.as_deref());
                if settings.iter().all(|(name, value)| value_of(name) == Some(*value)) {
                    return;
                }
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "no broker has heard of {settings:?}");
            super::pause();
        }
    }

    /// The leader of a partition, and the replicas that are in sync.
    pub fn leader(&self, topic: &str, partition: usize) -> (i32, Vec<i32>) {
        let metadata = self.admin().inner().fetch_metadata(Some(topic), TIMEOUT).unwrap();
        let found = &metadata.topics()[0].partitions()[partition];
        (found.leader(), found.isr().to_vec())
    }

    /// How many brokers a broker tells a new client of; `None` while none answers.
    pub fn brokers(&self, topic: &str) -> Option<usize> {
        let metadata = self.admin().inner().fetch_metadata(Some(topic), Duration::from_secs(1));
        metadata.ok().map(|metadata| metadata.brokers().len())
    }

    /// Where the log of a partition begins and ends.
    pub fn log(&self, topic: &str, partition: i32) -> (i64, i64) {
        self.watermarks(&self.client(), topic, partition)
    }

    pub fn partitions(&self, topic: &str) -> usize {
        self.admin().inner().fetch_metadata(Some(topic), TIMEOUT).unwrap().topics()[0].partitions().len()
    }

    /// Returns when all are acknowledged; a topic's records lie in the order given.
    pub fn produce(&self, topic: &str, messages: impl IntoIterator<Item = Message>) {
        send(&self.client(), topic, messages);
    }

    /// Begins a transaction with these messages, which are in the log when this returns.
    pub fn transaction(&self, topic: &str, messages: impl IntoIterator<Item = Message>) -> Transaction {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mut config = self.config();
        config.set("transactional.id", format!("{topic}-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        let producer = ready(&config);
        producer.begin_transaction().unwrap();
        send(&producer, topic, messages);
        Transaction { producer, config }
    }

    /// Produces the messages in the background, spread over about `time`.
    pub fn flow(&self, topic: &str, messages: Vec<Message>, time: Duration) -> JoinHandle<()> {
        const SLICE: usize = 100;
        let (kafka, topic) = (self.clone(), topic.to_owned());
        std::thread::spawn(move || {
            let (begun, slices) = (Instant::now(), messages.len().div_ceil(SLICE) as u32);
            for (slice, number) in messages.chunks(SLICE).zip(1..) {
                kafka.produce(&topic, slice.iter().cloned());
                std::thread::sleep((time * number / slices).saturating_sub(begun.elapsed()));
            }
        })
    }

    /// All records that are in the topic now, by partition and offset.
    pub fn records(&self, topic: &str) -> Vec<Record> {
        let begun = Instant::now();
        loop {
            // By a new client each time: one that is told of no brokers forgets all that it knows (src/kafka/lost.rs).
            if let Some(records) = self.records_now(topic) {
                return records;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "no broker gives what it has");
        }
    }

    /// The same; `None` where the client is given nothing.
    fn records_now(&self, topic: &str) -> Option<Vec<Record>> {
        let consumer: BaseConsumer = self.client();
        let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT).ok()?;
        let (mut list, mut open) = (TopicPartitionList::new(), BTreeSet::new());
        for partition in metadata.topics()[0].partitions() {
            let (low, high) = self.watermarks(&consumer, topic, partition.id());
            if low < high {
                list.add_partition_offset(topic, partition.id(), Offset::Offset(low)).unwrap();
                open.insert(partition.id());
            }
        }
        consumer.assign(&list).unwrap();
        let mut records = vec![];
        while !open.is_empty() {
            match consumer.poll(TIMEOUT)? {
                Ok(message) => records.push(Record {
                    partition: message.partition(),
                    offset: message.offset(),
                    key: message.key().map(text),
                    value: message.payload().map(text),
                    headers: message.headers().map_or_else(Vec::new, |headers| {
                        let pair = |header: Header<'_, &[u8]>| {
                            (header.key.to_owned(), header.value.map(text).unwrap_or_default())
                        };
                        headers.iter().map(pair).collect()
                    }),
                    timestamp_ms: message.timestamp().to_millis().unwrap_or(-1),
                }),
                Err(KafkaError::PartitionEOF(partition)) => drop(open.remove(&partition)),
                // One of several brokers is away; the others have what there is.
                Err(KafkaError::MessageConsumption(
                    RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::AllBrokersDown,
                )) => {}
                Err(error) => panic!("cannot read {topic}: {error}"),
            }
        }
        records.sort_by_key(|record| (record.partition, record.offset));
        Some(records)
    }

    /// How many records were ever written to the topic.
    pub fn count(&self, topic: &str) -> i64 {
        let consumer: BaseConsumer = self.client();
        let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT).unwrap();
        let partitions = metadata.topics()[0].partitions();
        partitions.iter().map(|p| self.watermarks(&consumer, topic, p.id()).1).sum()
    }

    /// Where the log begins and ends. A broker that goes away may take the question with it, and a client that is told of no
    /// brokers forgets all that it knows (src/kafka/lost.rs); then it is asked again, by another client.
    fn watermarks(&self, consumer: &BaseConsumer, topic: &str, partition: i32) -> (i64, i64) {
        let begun = Instant::now();
        let mut asked = consumer.fetch_watermarks(topic, partition, TIMEOUT);
        loop {
            match asked {
                Ok(watermarks) => return watermarks,
                // One that stood still counts as dead for a while, and leads nothing.
                Err(error) => assert!(begun.elapsed() < Duration::from_secs(60), "no broker tells them: {error}"),
            }
            super::pause();
            asked = self.client::<BaseConsumer>().fetch_watermarks(topic, partition, TIMEOUT);
        }
    }
}

/// A broker that was started again loads first what it knows of transactions.
const TRANSACTION: Duration = Duration::from_secs(60);

/// A transaction that is open.
pub struct Transaction {
    producer: BaseProducer,
    config: ClientConfig,
}

impl Transaction {
    /// Returns when its markers are in the log, which the broker writes after it has answered.
    pub fn commit(self) {
        self.producer.commit_transaction(TRANSACTION).unwrap();
        ready(&self.config);
    }

    /// As [`Transaction::commit`].
    pub fn abort(self) {
        self.producer.abort_transaction(TRANSACTION).unwrap();
        ready(&self.config);
    }
}

/// A producer whose id has no transaction under way any more.
fn ready(config: &ClientConfig) -> BaseProducer {
    let producer: BaseProducer = config.create().unwrap();
    producer.init_transactions(TRANSACTION).unwrap();
    producer
}

/// Returns when all are acknowledged.
fn send(producer: &BaseProducer, topic: &str, messages: impl IntoIterator<Item = Message>) {
    for message in messages {
        let headers = message.headers.iter().fold(OwnedHeaders::new(), |headers, (name, value)| {
            headers.insert(Header { key: name, value: value.as_ref() })
        });
        let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic);
        record.partition = message.partition;
        record.key = message.key.as_deref();
        record.payload = message.value.as_deref();
        record.timestamp = message.timestamp_ms;
        record.headers = (!message.headers.is_empty()).then_some(headers);
        while let Err((error, again)) = producer.send(record) {
            assert_eq!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::QueueFull));
            producer.poll(Duration::from_millis(10));
            record = again;
        }
    }
    // The leader may have been killed, and the controller with it.
    producer.flush(Duration::from_secs(60)).unwrap();
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap_or_else(|_| bytes.escape_ascii().to_string())
}
