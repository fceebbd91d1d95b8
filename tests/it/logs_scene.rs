//! Partitions whose logs change, and those who read them: brought to their moments before, and judged after it.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;

use crate::consume_offsets::printed_option;
use crate::support::{End, Gate, Handler, Message, Process, World, value};

/// The sequence of cases is always the same.
const SEED: u64 = 11;
/// Long enough that librdkafka does not hold all of a log.
const PAD: usize = 16_000;

/// What the reader of a partition is at when its log changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    Away,
    Reading,
    Handling,
}

/// A partition whose log changes.
pub struct Case {
    pub topic: String,
    partition: i32,
    pub moment: Moment,
    /// What was in its log before, by the offsets.
    pub before: Vec<String>,
    written: usize,
}

impl Case {
    /// Writes so many records, each with a value that no other has.
    pub fn write(&mut self, world: &World, count: usize, age: Option<i64>) {
        let numbers = self.written..self.written + count;
        let pad = "x".repeat(PAD);
        let values: Vec<_> = numbers
            .map(|number| format!(r#"{{"id":"{}/{}/{number}","pad":"{pad}"}}"#, self.topic, self.partition))
            .collect();
        let message = |text: &String| Message { timestamp_ms: age, ..value(text).to(self.partition) };
        world.kafka.produce(&self.topic, values.iter().map(message));
        self.written += count;
        self.before.extend(values);
    }

    fn name(&self) -> String {
        format!("{}/{}", self.topic, self.partition)
    }

    pub fn offset(&self, world: &World) -> i64 {
        world.seat(&self.topic, self.partition, "indexer").offset().unwrap_or(0)
    }

    fn is_halted(&self, process: &Process) -> bool {
        process.says(&["error: ", &format!("{} as indexer: halted", self.name()), "--accept-loss"])
    }
}

/// Partitions and those who read them: some are away, some read, some are held up in a handler.
pub struct Scene<'a> {
    world: &'a World,
    pub rng: StdRng,
    pub cases: Vec<Case>,
    handler: Handler,
    gate: Gate,
    readers: Vec<Process>,
}

impl<'a> Scene<'a> {
    /// With each moment in turn.
    pub fn new(world: &'a World, partitions: impl Iterator<Item = (String, i32)>, round: u64) -> Scene<'a> {
        let moments = [Moment::Away, Moment::Reading, Moment::Handling].into_iter().cycle();
        let cases = partitions.zip(moments).map(|((topic, partition), moment)| Case {
            topic,
            partition,
            moment,
            before: vec![],
            written: 0,
        });
        let gate = world.gate();
        // Held up from the offset that stands in the partition's file, if it has one.
        let held = format!("held='{}'/$KSYNC_BATCH_TOPIC-$KSYNC_BATCH_PARTITION", world.dir.display());
        let body = format!(
            "{held}; [ ! -e $held ] || [ $KSYNC_BATCH_LAST_OFFSET -lt $(cat $held) ] || {{ touch $held.here; await {gate}; }}"
        );
        let handler = world.handler(&body);
        let rng = StdRng::seed_from_u64(SEED + round);
        Scene { world, rng, cases: cases.collect(), handler, gate, readers: vec![] }
    }

    /// Writes to each log.
    pub fn write(&mut self, count: std::ops::Range<usize>, age: Option<i64>) {
        for case in &mut self.cases {
            case.write(self.world, self.rng.random_range(count.clone()), age);
        }
    }

    fn consume(&self, cases: impl Fn(&Case) -> bool, options: &str) -> Process {
        let chosen = || self.cases.iter().filter(|case| cases(case));
        let topics: BTreeSet<_> = chosen().map(|case| case.topic.clone()).collect();
        let partitions: BTreeSet<_> = chosen().map(|case| case.partition.to_string()).collect();
        let (topics, partitions) = (Vec::from_iter(topics).join(","), Vec::from_iter(partitions).join(","));
        self.world.consume(&format!(
            "-t {topics} -p {partitions} -n indexer --batch-size 7 -j 64 {options} -- {}",
            self.handler
        ))
    }

    /// Has all be read: to the end by those who are away afterwards, by the others to random offsets.
    pub fn read(&mut self) {
        assert_eq!(self.consume(|case| case.moment == Moment::Away, "-e").wait(), End::Status(0));
        let mut until = vec![];
        for case in &self.cases {
            let offset = self.rng.random_range(1..case.before.len());
            until.push(offset as i64);
            if case.moment == Moment::Handling {
                std::fs::write(self.held(case), offset.to_string()).unwrap();
            }
        }
        for moment in [Moment::Reading, Moment::Handling] {
            self.readers.push(self.consume(|case| case.moment == moment, ""));
        }
        for (case, until) in self.cases.iter().zip(until) {
            let held = self.held(case).with_extension("here");
            self.world.eventually("it is at that offset", || match case.moment {
                Moment::Handling => held.exists(),
                _ => case.offset(self.world) >= until,
            });
        }
    }

    fn held(&self, case: &Case) -> std::path::PathBuf {
        self.world.dir.join(format!("{}-{}", case.topic, case.partition))
    }

    /// Has all go on after their logs have changed, until each is halted or at its end.
    pub fn go_on(&mut self) {
        self.readers.push(self.consume(|case| case.moment == Moment::Away, ""));
        self.gate.open();
        for case in &self.cases {
            self.world.eventually("it is halted or at its end", || {
                let end = self.world.kafka.log(&case.topic, case.partition).1;
                case.offset(self.world) == end || self.readers.iter().any(|reader| case.is_halted(reader))
            });
        }
        for mut reader in self.readers.drain(..) {
            reader.signal(Signal::TERM);
            assert_eq!(reader.wait(), End::Status(0));
        }
    }

    /// Halted is what lost records, with the reason that `why` gives for the offset, until that very loss is accepted; the
    /// moments of those.
    pub fn judge(self, why: impl Fn(&Case, i64) -> String) -> Vec<Moment> {
        let done = BTreeSet::from_iter(self.handler.payloads());
        let mut first = self.consume(|_| true, "-e");
        let end = first.wait();
        let errors = first.log_of("error");
        let (mut options, mut others, mut halts) = (String::new(), String::new(), vec![]);
        for case in &self.cases {
            let offset = case.offset(self.world);
            let (begin, log_end) = self.world.kafka.log(&case.topic, case.partition);
            let halted = format!("{} as indexer: halted", case.name());
            let Some(error) = errors.iter().find(|error| error.starts_with(&halted)) else {
                assert_eq!(offset, log_end, "{}", case.name());
                continue;
            };
            halts.push(case.moment);
            let (option, why) = (printed_option(std::slice::from_ref(error)), why(case, offset));
            assert!(option.starts_with(&format!("{}:{offset}-{begin}@", case.name())), "{error}");
            assert!(error.contains(&why), "not for the reason '{why}': {error}");
            let undone = case.before[..offset as usize].iter().find(|value| !done.contains(*value));
            assert_eq!(undone, None, "committed, but not done");
            write!(options, " --accept-loss {option}").unwrap();
            write!(others, " --accept-loss {}", option.replace(&format!(":{offset}-"), &format!(":{}-", offset + 1)))
                .unwrap();
        }
        if errors.is_empty() {
            assert_eq!(end, End::Status(0));
        } else {
            let mut other = self.consume(|_| true, &format!("-e {others}"));
            assert_eq!((other.wait(), other.log_of("error").len()), (End::Status(1), errors.len()));
            let mut accepted = self.consume(|_| true, &format!("-e {options}"));
            assert_eq!((accepted.wait(), accepted.log_of("error")), (End::Status(0), vec![]));
        }
        self.nothing_is_left();
        halts
    }

    /// Each record that is there was given to the handler, and the offset is at its end.
    fn nothing_is_left(&self) {
        let done = BTreeSet::from_iter(self.handler.payloads());
        for case in &self.cases {
            assert_eq!(case.offset(self.world), self.world.kafka.log(&case.topic, case.partition).1, "{}", case.name());
        }
        for topic in BTreeSet::from_iter(self.cases.iter().map(|case| &case.topic)) {
            let skipped = self
                .world
                .kafka
                .records(topic)
                .into_iter()
                .find(|record| !done.contains(record.value.as_ref().unwrap()));
            assert_eq!(skipped.map(|record| (record.partition, record.offset)), None, "skipped in silence: {topic}");
        }
    }
}
