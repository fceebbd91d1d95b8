//! Messages that flow through a delayer and a consumer, while a test does something to their brokers.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use serde_json::json;

use super::{Handler, Process, Run, Seat, World, all_reigns, is_full, value};

/// So many messages are written in so long, again and again.
const SLICE: i32 = 100;
const PACE: Duration = Duration::from_millis(400);

/// How long a test waits for it to go on, or for its end.
const LIMIT: Duration = Duration::from_secs(60);

/// How long it may stand still while a partition gets another leader.
pub const STALL: Duration = Duration::from_secs(10);
/// After so long without a sign of life a broker counts as dead: Kafka's own `broker.session.timeout.ms`.
pub const MISSED: Duration = Duration::from_secs(9);

pub struct Flow<'a> {
    world: &'a World,
    /// The topic of two partitions, and its delay topic, to which the messages are written.
    pub topics: [String; 2],
    since: SystemTime,
    handler: Handler,
    /// In which the handler notes when it begins, and at which partition.
    begun: PathBuf,
    /// They are written as long as this is there.
    open: Arc<()>,
    writer: JoinHandle<i32>,
    processes: [Process; 2],
}

impl<'a> Flow<'a> {
    /// With these brokers for each partition, the first of which leads.
    pub fn start(world: &'a World, brokers: &[&[i32]; 2]) -> Flow<'a> {
        let (topic, since) = (format!("products-{}", world.id), SystemTime::now());
        let topics = [topic.clone(), format!("{topic}-delay")];
        for topic in &topics {
            let settings = [("min.insync.replicas", "2"), ("message.timestamp.type", "LogAppendTime")];
            world.kafka.create_on(topic, brokers, &settings);
        }
        let begun = world.file("begun");
        let note = format!("read -r now idle < /proc/uptime; echo $KSYNC_BATCH_PARTITION $now >> {}", begun.display());
        let handler = world.handler(&note);
        // A lease that a busy machine costs would have messages sent twice.
        let patient = "--session-timeout 30s";
        let delayer = world.delayer(&format!("-t {topic} --delay 100ms {patient}"));
        let consumer = world.consume(&format!("-t {topic} -n indexer {patient} -- {handler}"));
        let (open, delay_topic) = (Arc::new(()), topics[1].clone());
        // Nor does the writer wait for long where a broker does not answer.
        let impatient = world.kafka.with("request.timeout.ms", "3000").with("api.version.request.timeout.ms", "2000");
        let (is_open, kafka) = (Arc::downgrade(&open), impatient.with("enable.idempotence", "true"));
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
        Flow { world, topics, since, handler, begun, open, writer, processes: [delayer, consumer] }
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

    /// Ends the writing and waits for the rest. Each message has to be sent on and handled once and in order, each offset to be
    /// written by who leads, and meanwhile no partition may have stood still for longer than `stall`; in the short form, which
    /// shares its machine with other brokers, for longer than Kafka has let the writer wait, and `STALL`.
    pub fn end(self, stall: Duration) {
        let Flow { world, topics: [topic, delay_topic], since, handler, begun, open, writer, processes } = self;
        drop(open);
        let written = writer.join().unwrap();
        let all = i64::from(written / 2);
        world.within(LIMIT, "all are handled", || handled(world, &topic) == [all, all]);
        let names = [(&topic, "indexer"), (&delay_topic, "delayer")];
        let seats: Vec<Seat> =
            names.iter().flat_map(|(topic, name)| [0, 1].map(|partition| world.seat(topic, partition, name))).collect();
        world.within(LIMIT, "all is committed", || seats.iter().all(|seat| seat.offset() == Some(all)));
        let [records, written_ones] = [&topic, &delay_topic].map(|topic| world.kafka.records(topic));
        let written_at = |partition| {
            let records = written_ones.iter().filter(|record| record.partition == partition);
            records.map(|record| record.timestamp_ms).collect::<Vec<_>>()
        };
        let waited = [0, 1].map(|partition| longest_pause(&written_at(partition))).into_iter().max().unwrap();
        let stall = if is_full() { stall } else { stall.max(waited + STALL) };
        for partition in 0..2 {
            let records: Vec<_> = records.iter().filter(|record| record.partition == partition).collect();
            let sent: Vec<_> = records.iter().filter_map(|record| record.value.clone()).collect();
            let expected: Vec<_> = (0..written).filter(|id| id % 2 == partition).map(|id| id.to_string()).collect();
            assert_eq!(sent, expected);
            let sent_at: Vec<_> = records.iter().map(|record| record.timestamp_ms).collect();
            let pauses = [longest_pause(&sent_at), longest_pause(&begun_at(&begun, partition))];
            assert!(
                pauses.iter().all(|pause| *pause <= stall),
                "partition {partition} stood still for {pauses:?}, the writer for {waited:?}"
            );
        }
        let runs = handler.runs();
        for partition in 0..2 {
            let done = runs.iter().filter(|run| run.partition == partition && run.done.is_some());
            let offsets: Vec<_> = done.flat_map(Run::offsets).collect();
            assert!(offsets.iter().copied().eq(0..all), "partition {partition}, not once and in order: {offsets:?}");
        }
        for (seat, reigns) in seats.iter().zip(all_reigns(&world.services, since, &seats)) {
            assert_eq!(reigns.last().and_then(|reign| reign.offsets.last().copied()), Some(all), "{}", seat.path);
            // Another leader of Kafka's costs ours no lease; a busy machine may.
            assert!(!is_full() || reigns.len() == 1, "{}: {} leaders", seat.path, reigns.len());
        }
        drop(processes);
    }
}

/// The offset of the consumer in both partitions.
fn handled(world: &World, topic: &str) -> [i64; 2] {
    [0, 1].map(|partition| world.seat(topic, partition, "indexer").offset().unwrap_or(0))
}

/// When the handler began with batches of this partition, in milliseconds.
fn begun_at(file: &Path, partition: i32) -> Vec<i64> {
    let (noted, prefix) = (fs::read_to_string(file).unwrap(), format!("{partition} "));
    let times = noted.lines().filter_map(|line| line.strip_prefix(&prefix));
    times.map(|seconds| (1000.0 * seconds.parse::<f64>().unwrap()) as i64).collect()
}

fn longest_pause(times_ms: &[i64]) -> Duration {
    let longest = times_ms.windows(2).map(|pair| pair[1] - pair[0]).max();
    Duration::from_millis(longest.unwrap().max(0) as u64)
}
