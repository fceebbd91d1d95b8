//! Deaths of a delayer at chosen moments: between any two steps of what it does with a message, at any system call.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

use crate::brokers::delay_message;
use crate::support::{Call, TOGETHER, common_calls, kill_at_each, traced};
use crate::support::{End, Mode, Passage, Process, Proxy, Seat, Way, World, block_on, is_full, value};

const DELAYER: &str = env!("CARGO_BIN_EXE_ksync-delayer");
const DELAY: Duration = Duration::from_secs(1);
/// How many messages come first, and how many there are once those have been sent on, or their delayer is dead.
const BATCH: usize = 3;
const ALL: usize = 2 * BATCH;
/// What each commit has in it, the one among them that is made before it says that it leads.
const COMMIT: &str = "\"offset\":";
/// More than it takes to commit what is acknowledged.
const COMMITTED: Duration = Duration::from_millis(500);

/// Where a delayer dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// It has read the messages, and waits until they are due.
    Waiting,
    /// They are in the log, but nothing has told it so.
    Unacknowledged,
    /// They are acknowledged, and its commit is on its way.
    Committing,
    /// The commit is carried out, but nothing has told it so.
    Unanswered,
    /// It knows that, and waits for more.
    Committed,
}

const MOMENTS: [Moment; 5] =
    [Moment::Waiting, Moment::Unacknowledged, Moment::Committing, Moment::Unanswered, Moment::Committed];

/// A delayer of one partition that will be killed, with ways to the servers that only it takes.
struct Victim {
    moment: Moment,
    process: Process,
    to_kafka: Way,
    to_zookeeper: Proxy,
    seat: Seat,
}

impl Victim {
    fn start(world: &World, topic: &str, (partition, moment): (i32, Moment)) -> Victim {
        let to_kafka = Way::to(world.services.get("KSYNC_BOOTSTRAP_SERVER"));
        let to_zookeeper = block_on(Proxy::to(world.services.get("KSYNC_ZOOKEEPER")));
        let delay = if moment == Moment::Waiting { "1h" } else { "1s" };
        // No lease ends while the others come to their moments.
        let options = format!("-t {topic} -p {partition} --delay {delay} --session-timeout 30s");
        let zookeeper = format!("{}/{}", to_zookeeper.address, world.id);
        let environment =
            [("KSYNC_BOOTSTRAP_SERVER", to_kafka.bootstrap.as_str()), ("KSYNC_ZOOKEEPER", zookeeper.as_str())];
        let process = world.start(DELAYER, &options, &environment);
        let seat = seat(world, topic, partition);
        Victim { moment, process, to_kafka, to_zookeeper, seat }
    }

    /// Disturbs its ways, such that it comes to its moment and no further.
    fn disturb(&self) {
        match self.moment {
            Moment::Waiting | Moment::Committed => {}
            Moment::Unacknowledged => self.to_kafka.set(1, Passage::Unacknowledged),
            Moment::Committing => self.to_zookeeper.set(Mode::FrozenAt(COMMIT)),
            Moment::Unanswered => self.to_zookeeper.set(Mode::DeafAfter(COMMIT, 0)),
        }
    }

    /// Whether it is at its moment, where so many of its messages are in the log.
    fn is_there(&self, sent: usize) -> bool {
        self.process.ask();
        match self.moment {
            Moment::Waiting => self.process.says(&["offset 0; the message at offset 0 is due in "]),
            Moment::Unacknowledged => sent == BATCH,
            Moment::Committing => self.to_zookeeper.is(Mode::Frozen) && sent == BATCH,
            Moment::Unanswered => self.to_zookeeper.is(Mode::Deaf) && self.seat.offset() > Some(0) && sent == BATCH,
            Moment::Committed => self.process.says(&[&format!("offset {BATCH}; waits for records")]),
        }
    }
}

fn seat(world: &World, topic: &str, partition: i32) -> Seat {
    world.seat(&format!("{topic}-delay"), partition, "delayer")
}

/// Writes delay messages to a partition, whose payloads are their offsets.
fn write(world: &World, topic: &str, partition: i32, offsets: std::ops::Range<usize>) {
    let messages = offsets.map(|offset| value(delay_message(&offset.to_string())).to(partition));
    world.kafka.produce(&format!("{topic}-delay"), messages);
}

/// Has another delayer do the rest of all partitions, whose delayers are dead. Gives for each from where it led and how many
/// messages the dead one had sent on: these, and then all from there, are what is in the topic, none before it was due.
fn followed(world: &World, topic: &str, partitions: i32) -> Vec<(usize, usize)> {
    let seats: Vec<_> = (0..partitions).map(|partition| seat(world, topic, partition)).collect();
    for seat in &seats {
        // Nobody has to wait for the end of the session.
        seat.candidates().iter().for_each(|candidate| seat.delete(&format!("leader/{candidate}")));
    }
    let mut next = world.delayer(&format!("-t {topic} --delay {}s", DELAY.as_secs()));
    world.eventually("all is done", || seats.iter().all(|seat| seat.offset() == Some(ALL as i64)));
    next.signal(Signal::TERM);
    assert_eq!(next.wait(), End::Status(0), "{:?}", next.log());
    let (made, sent) = (world.kafka.records(&format!("{topic}-delay")), world.kafka.records(topic));
    let outcome = |partition: i32| {
        let led = format!("{topic}-delay/{partition} as delayer: leading from offset ");
        let lines = next.log_of("info");
        let from = lines.iter().find_map(|line| line.strip_prefix(led.as_str())?.split(',').next()?.parse().ok());
        let from: usize = from.expect("it says from where it leads");
        let made: Vec<_> = made.iter().filter(|record| record.partition == partition).collect();
        let sent: Vec<_> = sent.iter().filter(|record| record.partition == partition).collect();
        let ids: Vec<usize> = sent.iter().map(|record| record.value.as_ref().unwrap().parse().unwrap()).collect();
        let before = (ids.len() + from).saturating_sub(ALL);
        assert_eq!(ids, (0..before).chain(from..ALL).collect::<Vec<_>>(), "{topic}/{partition} from {from}");
        assert!(
            (from..=from + BATCH).contains(&before),
            "{topic}/{partition}: {before} were sent on, then from {from}"
        );
        for (id, record) in ids.iter().zip(&sent) {
            let held = record.timestamp_ms - made[*id].timestamp_ms;
            assert!(held >= DELAY.as_millis() as i64, "held back for {held} ms: {record:?}");
        }
        (from, before)
    };
    (0..partitions).map(outcome).collect()
}

#[test]
fn a_delayer_killed_between_any_two_steps_is_followed_by_one_that_does_exactly_the_rest() {
    let world = World::new("delayer-steps");
    let partitions = MOMENTS.len() as i32;
    let products = world.topic_with_delay("products", partitions);
    let mut victims: Vec<_> = (0..).zip(MOMENTS).map(|moment| Victim::start(&world, &products, moment)).collect();
    world.eventually("all lead", || victims.iter().all(|victim| victim.process.says(&["leading from offset 0"])));
    victims.iter().for_each(Victim::disturb);
    (0..partitions).for_each(|partition| write(&world, &products, partition, 0..BATCH));
    for (partition, victim) in (0..).zip(&victims) {
        let sent = || world.kafka.log(&products, partition).1 as usize;
        world.eventually(&format!("it is there: {:?}", victim.moment), || victim.is_there(sent()));
    }
    let offsets = || victims.iter().map(|victim| victim.seat.offset()).collect::<Vec<_>>();
    let before = offsets();
    world.for_a_while(COMMITTED, "nothing more is committed", || offsets() == before);
    victims.iter_mut().for_each(|victim| victim.process.kill());
    // With the ways goes what is held on them.
    drop(victims);
    (0..partitions).for_each(|partition| write(&world, &products, partition, BATCH..ALL));
    for (moment, (from, sent)) in MOMENTS.into_iter().zip(followed(&world, &products, partitions)) {
        match moment {
            Moment::Waiting => assert_eq!((from, sent), (0, 0)),
            Moment::Unacknowledged | Moment::Committing => assert_eq!((from, sent), (0, BATCH), "{moment:?}"),
            // A commit counts what is acknowledged by then.
            Moment::Unanswered => assert!(from > 0 && sent == BATCH, "from {from}, {sent} were sent on"),
            Moment::Committed => assert_eq!((from, sent), (BATCH, BATCH)),
        }
    }
}

/// The calls at which it dies in the plain form, on its way to the end of all messages: it writes to Kafka by sendmsg, to
/// ZooKeeper by writev, and wakes up its threads by write.
const AIMED: [(&str, usize); TOGETHER] = [
    ("sendmsg", 2),
    ("sendmsg", 10),
    ("sendmsg", 20),
    ("sendmsg", 35),
    ("writev", 3),
    ("writev", 8),
    ("writev", 13),
    ("write", 20),
];

/// A delayer under strace.
struct Traced {
    strace: Process,
    seat: Seat,
    has_all: bool,
    is_told: bool,
}

/// Has each partition of the topic done by a delayer of its own, under strace with these options: first some messages, then
/// the others, then they are told to end. How they ended, which may be anywhere on that way.
fn run_traced(world: &World, topic: &str, options: &[String]) -> Vec<End> {
    let start = |(partition, options): (i32, &String)| {
        write(world, topic, partition, 0..BATCH);
        let command = format!("{DELAYER} -t {topic} -p {partition} --delay 1s --session-timeout 30s");
        let (strace, seat) = (traced(world, options, &command), seat(world, topic, partition));
        Traced { strace, seat, has_all: false, is_told: false }
    };
    let mut all: Vec<_> = (0..).zip(options).map(start).collect();
    world.eventually("all have ended", || {
        let mut are_over = true;
        for (partition, traced) in (0..).zip(&mut all) {
            let (is_over, offset) = (!traced.strace.is_running(), traced.seat.offset());
            are_over &= is_over;
            if !traced.has_all && (is_over || offset == Some(BATCH as i64)) {
                traced.has_all = true;
                write(world, topic, partition, BATCH..ALL);
            } else if !traced.is_told && !is_over && offset == Some(ALL as i64) {
                traced.is_told = true;
                // strace itself is deaf to it.
                kill_process_group(Pid::from_raw(traced.strace.pid).unwrap(), Signal::TERM).unwrap();
            }
        }
        are_over
    });
    all.iter_mut().map(|traced| traced.strace.wait()).collect()
}

/// The calls that runs have in common which nothing disturbs.
fn all_calls(world: &World) -> Vec<Call> {
    let files = [1, 2, 3].map(|_| world.file("calls"));
    let topic = world.topic_with_delay("whole", files.len() as i32);
    let options = files.each_ref().map(|file| format!("-o {}", file.display()));
    assert_eq!(run_traced(world, &topic, &options), [End::Status(0); 3]);
    common_calls(&files)
}

#[test]
fn a_delayer_killed_at_any_system_call_is_followed_by_one_that_does_exactly_the_rest() {
    let world = World::new("delayer-calls");
    let calls = match is_full() {
        true => all_calls(&world),
        false => AIMED.map(|(call, number)| (call.to_owned(), number)).to_vec(),
    };
    let mut rounds = 0;
    kill_at_each(calls, |calls| {
        rounds += 1;
        let inject = |(call, number): &Call| format!("-o /dev/null -e inject={call}:signal=KILL:when={number}");
        let options: Vec<_> = calls.iter().map(inject).collect();
        let topic = world.topic_with_delay(&format!("round-{rounds}"), calls.len() as i32);
        let mut missed = vec![];
        for (end, call) in run_traced(&world, &topic, &options).into_iter().zip(calls) {
            if end != End::By(Signal::KILL) {
                assert_eq!(end, End::Status(0), "{call:?}");
                missed.push(call.clone());
            }
        }
        followed(&world, &topic, calls.len() as i32);
        missed
    });
}
