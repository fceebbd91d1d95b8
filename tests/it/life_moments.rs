//! Ends that are asked for at random moments of each phase of a process's work.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;
use serde_json::Value;

use crate::brokers::delay_message;
use crate::support::{End, Mode, Process, Proxy, Seat, World, block_on, is_full, value};

/// Of the moments of the plain form.
const SEED: u64 = 13;
/// Who is ahead for ever.
const STRANGER: &str = "0123456789abcdef0123456789abcdef_0000000000";
/// More than it takes to come through a phase.
const LONGEST: Duration = Duration::from_millis(300);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Behind a candidate that stays.
    Queueing,
    /// A record has come, or is about to.
    Polling,
    /// To a handler that does not read yet.
    Writing,
    Handling,
    /// On a line that takes its time.
    Committing,
    /// Before the next attempt, or in it.
    Pausing,
    /// Of a delayer: a message is not due yet, or on its way.
    Delaying,
    /// Or at work already.
    Connecting,
}

/// The last one is over soon: it is started last, and comes first.
const PHASES: [Phase; 8] = [
    Phase::Queueing,
    Phase::Polling,
    Phase::Writing,
    Phase::Handling,
    Phase::Committing,
    Phase::Pausing,
    Phase::Delaying,
    Phase::Connecting,
];

/// Processes, one after the other, that are told to end in a phase.
struct Case<'a> {
    world: &'a World,
    phase: Phase,
    topic: String,
    seat: Seat,
    way: Proxy,
    handler: String,
    /// Where the handler notes that it has begun, and which records it has done.
    begun: PathBuf,
    done: PathBuf,
    written: usize,
}

impl<'a> Case<'a> {
    fn new(world: &'a World, phase: Phase) -> Case<'a> {
        let topic = world.topic_with_delay(&format!("{phase:?}").to_lowercase(), 1);
        let seat = match phase {
            Phase::Delaying => world.seat(&format!("{topic}-delay"), 0, "delayer"),
            _ => world.seat(&topic, 0, "indexer"),
        };
        let way = block_on(Proxy::to(world.services.get("KSYNC_ZOOKEEPER")));
        let (begun, done) = (world.file("begun"), world.file("done"));
        let (before, after) = match phase {
            Phase::Writing => ("sleep 0.2", ""),
            Phase::Handling => ("", "sleep 0.2"),
            Phase::Pausing => ("", "exit 75"),
            _ => ("", ""),
        };
        let (begins, ends) = (format!("echo >> {}", begun.display()), format!("cat batch.$$ >> {}", done.display()));
        let handler = world.script(&format!("{begins}\n{before}\ncat > batch.$$\n{after}\n{ends}\nrm batch.$$"));
        let mut case = Case { world, phase, topic, seat, way, handler, begun, done, written: 0 };
        match phase {
            Phase::Queueing => case.seat.write(&format!("leader/{STRANGER}"), "web1\n"),
            Phase::Committing => case.way.set(Mode::Slow(Duration::from_millis(50))),
            Phase::Pausing => case.write(),
            _ => {}
        }
        case
    }

    /// Writes one more record.
    fn write(&mut self) {
        let id = self.written;
        self.written += 1;
        let (topic, text) = match self.phase {
            Phase::Delaying => (format!("{}-delay", self.topic), delay_message(&format!("{{\"id\":{id}}}"))),
            // More than a pipe holds.
            Phase::Writing => (self.topic.clone(), format!("{{\"id\":{id},\"text\":\"{}\"}}", "x".repeat(200_000))),
            _ => (self.topic.clone(), format!("{{\"id\":{id}}}")),
        };
        self.world.kafka.produce(&topic, [value(text)]);
    }

    fn start(&mut self) -> Process {
        if self.phase == Phase::Connecting {
            self.write();
        }
        let Case { world, phase, topic, way, handler, .. } = self;
        let common = format!("-t {topic} --zookeeper {}/{}", way.address, world.id);
        let pauses = if *phase == Phase::Pausing { "--retry-pause 100ms --retry-pause-max 100ms" } else { "" };
        match phase {
            Phase::Delaying => world.delayer(&format!("{common} --delay 200ms")),
            _ => world.consume(&format!("{common} -n indexer {pauses} -- {handler}")),
        }
    }

    /// Brings it to its phase.
    fn begin(&mut self, process: &Process) {
        let world = self.world;
        match self.phase {
            Phase::Connecting => return world.eventually("it listens to signals", || listens(process)),
            Phase::Queueing => return world.eventually("it queues", || self.seat.candidates().len() == 2),
            _ => world.eventually("it leads", || process.says(&["leading from offset"])),
        }
        let before = self.progress();
        if self.phase != Phase::Pausing {
            self.write();
        }
        if !matches!(self.phase, Phase::Polling | Phase::Delaying) {
            world.eventually("it is there", || self.progress() > before);
        }
    }

    /// Grows when its phase begins: its handlers begin, or are done.
    fn progress(&self) -> usize {
        let notes = if self.phase == Phase::Committing { &self.done } else { &self.begun };
        fs::read_to_string(notes).unwrap_or_default().lines().count()
    }

    /// The ids of what is done, or sent on, in that order.
    fn done(&self) -> Vec<usize> {
        let id = |payload: &Value| payload["id"].as_u64().unwrap() as usize;
        if self.phase == Phase::Delaying {
            let sent = self.world.kafka.records(&self.topic);
            return sent.iter().map(|record| id(&parsed(record.value.as_ref().unwrap()))).collect();
        }
        let lines = fs::read_to_string(&self.done).unwrap_or_default();
        lines.lines().map(|line| id(&parsed(line)["payload"])).collect()
    }

    /// It has ended well, others lead at once, and what it has finished is committed, and nothing else.
    fn check_end(&self, process: &mut Process) {
        let phase = self.phase;
        assert_eq!(process.wait(), End::Status(0), "{phase:?}: {:?}", process.log());
        let left = if phase == Phase::Queueing { vec![STRANGER.to_owned()] } else { vec![] };
        // Sooner than with its session, however busy the machine is.
        let soon = Duration::from_secs(if is_full() { 1 } else { 8 });
        self.world.within(soon, "its candidate is gone", || self.seat.candidates() == left);
        let done = self.done();
        assert_eq!(self.seat.offset().unwrap_or(0), done.len() as i64, "{phase:?}");
        assert_eq!(done, (0..done.len()).collect::<Vec<_>>(), "{phase:?}");
    }

    /// Has the rest done, if that can be.
    fn finish(&self) {
        let (world, seat, all) = (self.world, &self.seat, self.written);
        let options = format!("-t {}", self.topic);
        match self.phase {
            Phase::Queueing | Phase::Pausing => {}
            Phase::Delaying => {
                let mut delayer = world.delayer(&format!("{options} --delay 200ms"));
                world.eventually("all are sent on", || delayer.says(&["leading"]) && seat.offset() == Some(all as i64));
                delayer.signal(Signal::TERM);
                assert_eq!(delayer.wait(), End::Status(0));
            }
            _ => {
                let mut consumer = world.consume(&format!("{options} -n indexer -e -- {}", self.handler));
                assert_eq!(consumer.wait(), End::Status(0), "{:?}: {:?}", self.phase, consumer.log());
            }
        }
        let all = if matches!(self.phase, Phase::Queueing | Phase::Pausing) { 0 } else { all };
        assert_eq!(self.done(), (0..all).collect::<Vec<_>>(), "{:?}", self.phase);
    }
}

/// Whether it would not just die of SIGTERM.
fn listens(process: &Process) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t")).unwrap();
    u64::from_str_radix(caught, 16).unwrap() & 1 << (Signal::TERM.as_raw() - 1) != 0
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn sigterm_at_random_moments_of_each_phase_commits_what_was_finished_and_brings_nothing_twice() {
    let world = World::new("random-ends");
    let (seed, times) = if is_full() { (rand::random(), 100) } else { (SEED, 2) };
    // Shown where it fails.
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut cases = PHASES.map(|phase| Case::new(&world, phase));
    for _ in 0..times {
        let mut processes: Vec<_> = cases.iter_mut().map(Case::start).collect();
        for (case, process) in cases.iter_mut().zip(&mut processes).rev() {
            case.begin(process);
            let moment = LONGEST.mul_f64(random.random());
            world.for_a_while(moment, "", || true);
            process.signal(Signal::TERM);
            case.check_end(process);
        }
    }
    cases.iter().for_each(Case::finish);
}
