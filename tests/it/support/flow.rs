//! Messages that flow through a delayer and a consumer, while a test does something to their brokers.

use std::fs;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::json;

use super::{Handler, Process, World, value};

/// So many messages are written in so long, again and again.
const SLICE: i32 = 100;
const PACE: Duration = Duration::from_millis(400);

/// How long it may stand still, or take to its end.
const LIMIT: Duration = Duration::from_secs(60);

pub struct Flow<'a> {
    world: &'a World,
    /// The topic of two partitions, and its delay topic, to which the messages are written.
    pub topics: [String; 2],
    handler: Handler,
    /// They are written as long as this is there.
    open: Arc<()>,
    writer: JoinHandle<i32>,
    processes: [Process; 2],
}

impl<'a> Flow<'a> {
    /// With these brokers for each partition, the first of which leads.
    pub fn start(world: &'a World, brokers: &[&[i32]; 2]) -> Flow<'a> {
        let topic = format!("products-{}", world.id);
        let topics = [topic.clone(), format!("{topic}-delay")];
        for topic in &topics {
            let settings = [("min.insync.replicas", "2"), ("message.timestamp.type", "LogAppendTime")];
            world.kafka.create_on(topic, brokers, &settings);
        }
        let handler = world.handler("");
        // A lease that a busy machine costs would have messages sent twice.
        let patient = "--session-timeout 10s";
        let delayer = world.delayer(&format!("-t {topic} --delay 100ms {patient}"));
        let consumer = world.consume(&format!("-t {topic} -n indexer {patient} -- {handler}"));
        let (open, delay_topic) = (Arc::new(()), topics[1].clone());
        let (is_open, kafka) = (Arc::downgrade(&open), world.kafka.with("enable.idempotence", "true"));
        let writer = thread::spawn(move || {
            let mut written = 0;
            while is_open.strong_count() > 0 {
                let delayed = |id: i32| value(format!(r#"{{"payload": {id}, "created_at": 1700000000.000}}"#));
                let messages = (written..written + SLICE).map(|id| delayed(id).to(id % 2));
                kafka.flow(&delay_topic, messages.collect(), PACE).join().unwrap();
                written += SLICE;
            }
            written
        });
        Flow { world, topics, handler, open, writer, processes: [delayer, consumer] }
    }

    /// Waits until more of both partitions is handled.
    pub fn goes_on(&self) {
        let handled = || handled(self.world, &self.topics[0]);
        let before = handled();
        self.world
            .within(LIMIT, "both partitions go on", || handled().iter().zip(&before).all(|(now, then)| now > then));
    }

    /// Gives the partitions of both topics to these brokers, the first of which is to lead.
    pub fn move_to(&self, brokers: &[&[i32]; 2]) {
        let mut partitions = vec![];
        for topic in &self.topics {
            for (partition, replicas) in brokers.iter().enumerate() {
                partitions.push(json!({"topic": topic, "partition": partition, "replicas": replicas}));
            }
        }
        let plan = self.world.file("plan");
        fs::write(&plan, json!({"version": 1, "partitions": partitions}).to_string()).unwrap();
        let server = self.world.services.get("KSYNC_BOOTSTRAP_SERVER");
        let tool = format!("kafka-reassign-partitions.sh --bootstrap-server {server}");
        self.world.shell(&format!("{tool} --reassignment-json-file {} --execute", plan.display()));
        for topic in &self.topics {
            for (partition, replicas) in brokers.iter().enumerate() {
                let mut in_sync = replicas.to_vec();
                in_sync.sort_unstable();
                self.world.leads(topic, partition, (replicas[0], &in_sync));
            }
        }
    }

    /// Ends the writing and waits for the rest. Each message has to be sent on once and in order, and handled once.
    pub fn end(self) {
        let Flow { world, topics: [topic, _], handler, open, writer, processes } = self;
        drop(open);
        let written = writer.join().unwrap();
        let all = i64::from(written / 2);
        world.within(LIMIT, "all are handled", || handled(world, &topic) == [all, all]);
        let records = world.kafka.records(&topic);
        for partition in 0..2 {
            let sent = records.iter().filter(|record| record.partition == partition);
            let sent: Vec<_> = sent.filter_map(|record| record.value.clone()).collect();
            let expected: Vec<_> = (0..written).filter(|id| id % 2 == partition).map(|id| id.to_string()).collect();
            assert_eq!(sent, expected);
        }
        assert_eq!(handler.payloads().len(), written as usize);
        drop(processes);
    }
}

/// The offset of the consumer in both partitions.
fn handled(world: &World, topic: &str) -> [i64; 2] {
    [0, 1].map(|partition| world.seat(topic, partition, "indexer").offset().unwrap_or(0))
}
