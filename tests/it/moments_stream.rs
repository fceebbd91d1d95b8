//! Deaths of ksync-stream at any system call by which it writes, sends or keeps how far it is, and the run that goes on.

use std::fs;
use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Call, common_calls, kill_at_each, most_calls, traced};
use crate::support::{End, Primary, Process, Record, World, block_on, is_full, primaries};

const STREAM: &str = env!("CARGO_BIN_EXE_ksync-stream");
const ROWS: u32 = 6;
const CHUNK: u32 = 3;

/// What the action does to a row. The statement is not at its end before that time.
const CHANGE: &str = "n = n + 1, changed_ms = CAST(FLOOR(EXTRACT(EPOCH FROM clock_timestamp()) * 1000) AS BIGINT)";

/// Where it dies in the plain form, in hundredths of the calls of a whole run: it writes to Kafka by sendmsg, to the database
/// by sendto, and its checkpoint by fsync and rename. The first half of those is for its start.
const AIMED: [(&str, usize); 6] =
    [("sendmsg", 60), ("sendmsg", 90), ("sendto", 60), ("sendto", 85), ("fsync", 60), ("rename", 50)];

#[derive(Clone, Copy, Debug)]
enum Action {
    Statement,
    Command,
}

/// A table, partitions of the topic and a checkpoint of its own. The keys of each chunk lie in both partitions, and to each
/// of these it writes by itself.
struct Job<'a> {
    world: &'a World,
    primary: &'a Primary,
    topic: &'a str,
    partitions: [i32; 2],
    table: String,
    checkpoint: PathBuf,
    /// The end of its command line.
    action: String,
    moment: String,
}

/// A row, as it is in the database.
pub struct Row {
    pub id: u32,
    pub times: u32,
    pub changed_ms: i64,
}

impl Row {
    /// Those that are selected, each as one text: `7 1 1700000000000`.
    pub fn all(primary: &Primary, select: &str) -> Vec<Row> {
        let row = |text: &String| {
            let [id, times, changed_ms] = text.split(' ').collect::<Vec<_>>()[..] else { panic!("{text}") };
            let [id, times] = [id, times].map(|number| number.parse().unwrap());
            Row { id, times, changed_ms: changed_ms.parse().unwrap() }
        };
        block_on(primary.texts(select)).iter().map(row).collect()
    }
}

impl<'a> Job<'a> {
    fn new(
        (world, primary): (&'a World, &'a Primary),
        (topic, number): (&'a str, i32),
        action: Action,
        moment: String,
    ) -> Job<'a> {
        let checkpoint = world.file("checkpoint");
        let table = format!("items_{:08x}", rand::random::<u32>());
        let columns = "id INTEGER PRIMARY KEY, n INTEGER NOT NULL DEFAULT 0, changed_ms BIGINT NOT NULL DEFAULT 0";
        let insert = format!("INSERT INTO {table} SELECT id FROM generate_series(1, {ROWS}) AS id");
        block_on(primary.execute(&format!("CREATE TABLE {table} ({columns}); {insert}")));
        let action = match action {
            Action::Statement => format!("--sql 'UPDATE {table} SET {CHANGE} WHERE id IN (:keys)'"),
            Action::Command => {
                let update = format!("UPDATE {table} SET {CHANGE} WHERE id IN ($ids)");
                let psql = format!("exec psql -Xq -v ON_ERROR_STOP=1 '{}' -c \"{update}\"", primary.url);
                format!("-- {}", world.script(&format!("ids=$(tr -dc '0-9\\n' | paste -sd, -)\n{psql}")))
            }
        };
        let partitions = [2 * number, 2 * number + 1];
        Job { world, primary, topic, partitions, table, checkpoint, action, moment }
    }

    fn options(&self) -> String {
        let Job { topic, partitions: [first, second], table, action, .. } = self;
        let source = format!("-t {topic} -p {first},{second} --database {} --table {table}", self.primary.url);
        // However long the action takes, the next chunk has as many rows.
        let chunks = format!("--chunk-size {CHUNK} --chunk-time 1h");
        format!("{source} {chunks} --checkpoint {} {action}", self.checkpoint.display())
    }

    /// Under strace with these options; as the others it does not look for delayers.
    fn start_traced(&self, options: &str) -> Process {
        traced(self.world, &format!("-E KSYNC_ZOOKEEPER {options}"), &format!("{STREAM} {}", self.options()))
    }

    /// How many rows are done by the checkpoint, which is whole, and whether these are all.
    fn done(&self) -> (u32, bool) {
        let Ok(text) = fs::read_to_string(&self.checkpoint) else { return (0, false) };
        let kept: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}: {text}", self.moment));
        (kept["rows"].as_u64().unwrap() as u32, kept["finished"].as_bool().unwrap())
    }

    fn rows(&self) -> Vec<Row> {
        let select = format!("SELECT id || ' ' || n || ' ' || changed_ms FROM {} ORDER BY id", self.table);
        Row::all(self.primary, &select)
    }

    /// When the messages of a row were written that are among these.
    fn written_ms(&self, id: u32, records: &[Record]) -> Vec<i64> {
        let payload = format!("{{\"id\":{id}}}");
        let is_its = |record: &&Record| {
            self.partitions.contains(&record.partition) && record.value.as_ref().unwrap().contains(&payload)
        };
        records.iter().filter(is_its).map(|record| record.timestamp_ms).collect()
    }

    /// Whether of the last chunk that is announced some records are not.
    fn is_half_announced(&self, instant: &[Record]) -> bool {
        let announced = (1..=ROWS).filter(|id| !self.written_ms(*id, instant).is_empty()).count();
        !announced.is_multiple_of(CHUNK as usize)
    }

    /// Each change of a row has a delay message from before and another message from after it, and the checkpoint passes no row
    /// that is not changed.
    fn check(&self, [told, delayed]: &[Vec<Record>; 2]) {
        let (done, _) = self.done();
        for Row { id, times, changed_ms } in self.rows() {
            let about = format!("{}: row {id}, changed {times} times, the last time at {changed_ms}", self.moment);
            assert!(times > 0 || id > done, "{about}: passed by the checkpoint");
            if times > 0 {
                let [told, delayed] = [told, delayed].map(|records| self.written_ms(id, records));
                assert!(delayed.iter().any(|written| *written <= changed_ms), "{about}: not covered: {delayed:?}");
                assert!(told.iter().any(|written| *written >= changed_ms), "{about}: not told: {told:?}");
            }
        }
    }
}

/// The records of the topic and of its delay topic.
fn records(world: &World, topic: &str) -> [Vec<Record>; 2] {
    [topic.to_owned(), format!("{topic}-delay")].map(|topic| world.kafka.records(&topic))
}

/// Has a delayer send on all that is in the delay topic.
fn send_on(world: &World, topic: &str, partitions: i32) {
    let delay_topic = format!("{topic}-delay");
    let mut delayer = world.delayer(&format!("-t {topic} --delay 100ms"));
    world.eventually("all delay messages are sent on", || {
        (0..partitions).all(|partition| {
            let (_, end) = world.kafka.log(&delay_topic, partition);
            world.seat(&delay_topic, partition, "delayer").offset() == Some(end)
        })
    });
    delayer.signal(Signal::TERM);
    assert_eq!(delayer.wait(), End::Status(0), "{:?}", delayer.log());
}

/// Starts all of them anew, and waits for their ends.
fn go_on(world: &World, jobs: &[Job<'_>]) {
    let mut streams: Vec<_> = jobs.iter().map(|job| world.stream(&job.options())).collect();
    for (job, stream) in jobs.iter().zip(&mut streams) {
        world.eventually("the run that goes on has ended", || match stream.wait() {
            // The session of the one that was killed is not at its end.
            End::Status(4) => {
                *stream = world.stream(&job.options());
                false
            }
            end => {
                assert_eq!(end, End::Status(0), "{}: {:?}", job.moment, stream.log());
                true
            }
        });
    }
}

/// Kills a run at each of these calls, all at the same time, and has another one go on. Gives those at which none was
/// killed, and how many have died in the middle of their instant messages.
fn killed_at(world: &World, primary: &Primary, (action, calls): (Action, &[Call])) -> (Vec<Call>, usize) {
    let partitions = 2 * calls.len() as i32;
    let topic = world.topic_with_delay(&format!("items-{:06x}", rand::random::<u32>()), partitions);
    let job = |(job, (call, number)): (i32, &Call)| {
        Job::new((world, primary), (&topic, job), action, format!("{action:?} at {call} {number}"))
    };
    let jobs: Vec<_> = (0..).zip(calls).map(job).collect();
    let start = |(job, (call, number)): (&Job<'_>, &Call)| {
        job.start_traced(&format!("-o /dev/null -e inject={call}:signal=KILL:when={number}"))
    };
    let victims: Vec<_> = jobs.iter().zip(calls).map(start).collect();
    let mut missed = vec![];
    for ((job, call), mut victim) in jobs.iter().zip(calls).zip(victims) {
        let end = victim.wait();
        if end != End::By(Signal::KILL) {
            assert_eq!(end, End::Status(0), "{}: {:?}", job.moment, victim.log());
            missed.push(call.clone());
        }
    }
    world.eventually("no process is left", || world.processes() == 0);
    // Of these the checkpoint says so when their instant messages are acknowledged.
    let [instant, _] = records(world, &topic);
    let done: Vec<_> = jobs.iter().map(|job| job.done().0).collect();
    for (job, done) in jobs.iter().zip(&done) {
        let is_there = |id| !job.written_ms(id, &instant).is_empty();
        assert!((1..=*done).all(is_there), "{}: not announced, and done up to {done}", job.moment);
    }
    let half_announced = jobs.iter().filter(|job| job.is_half_announced(&instant)).count();

    send_on(world, &topic, partitions);
    let messages = records(world, &topic);
    jobs.iter().for_each(|job| job.check(&messages));

    go_on(world, &jobs);
    let messages = records(world, &topic);
    for (job, done) in jobs.iter().zip(done) {
        job.check(&messages);
        let times: Vec<_> = job.rows().iter().map(|row| row.times).collect();
        assert_eq!(job.done(), (ROWS, true), "{}", job.moment);
        assert!(times[..done as usize].iter().all(|times| *times == 1), "{}: {times:?} from {done}", job.moment);
        assert!(times.iter().sum::<u32>() <= ROWS + CHUNK, "{}: more than a chunk twice: {times:?}", job.moment);
    }
    (missed, half_announced)
}

/// The calls that runs have in common which nothing disturbs, or some of one run.
fn calls(world: &World, primary: &Primary, action: Action) -> Vec<Call> {
    let topic = world.topic_with_delay(&format!("whole-{action:?}"), 2);
    let whole = || {
        let job = Job::new((world, primary), (&topic, 0), action, "a whole run".to_owned());
        let file = world.file("calls");
        let mut whole = job.start_traced(&format!("-o {}", file.display()));
        assert_eq!(whole.wait(), End::Status(0), "{:?}", whole.log());
        file
    };
    if is_full() {
        return common_calls(&[whole(), whole(), whole()]);
    }
    let calls = most_calls(&whole());
    let aimed = |(call, hundredths): (&str, usize)| (call.to_owned(), (calls[call] * hundredths).div_ceil(100));
    AIMED.map(aimed).to_vec()
}

#[test]
fn a_stream_killed_at_any_system_call_leaves_no_change_untold_and_the_next_run_does_the_rest() {
    let world = World::new("stream-calls");
    let [primary, ..] = block_on(primaries("moments_stream"));
    for action in [Action::Statement, Action::Command] {
        let mut half_announced = 0;
        kill_at_each(calls(&world, &primary, action), |calls| {
            let (missed, half) = killed_at(&world, &primary, (action, calls));
            half_announced += half;
            missed
        });
        assert!(half_announced > 0 || !is_full(), "none died in the middle of its instant messages");
    }
}

#[test]
fn a_checkpoint_is_on_disk_before_it_gets_its_name_and_so_is_the_name_before_the_next_one() {
    let world = World::new("stream-disk");
    let [primary, ..] = block_on(primaries("moments_disk"));
    let topic = world.topic_with_delay("items", 2);
    let job = Job::new((&world, &primary), (&topic, 0), Action::Statement, "a whole run".to_owned());
    let file = world.file("calls");
    // With the files in the place of their numbers; of two lists of calls the last one holds.
    let mut stream = job.start_traced(&format!("-y -e trace=write,fsync,fdatasync,rename -o {}", file.display()));
    assert_eq!(stream.wait(), End::Status(0), "{:?}", stream.log());

    let traced = fs::read_to_string(&file).unwrap();
    let (name, folder) = (job.checkpoint.file_name().unwrap(), world.dir.file_name().unwrap());
    let (new, folder) = (format!("/{}.new", name.display()), format!("/{}>", folder.display()));
    let mut steps: Vec<_> = traced.lines().filter_map(|line| step(line, &new, &folder)).collect();
    // It may be written in several parts.
    steps.dedup();
    let once = ["written", "written to disk", "renamed", "folder written to disk"];
    // As the run begins, after each chunk, and in the end.
    let all = once.repeat((1 + ROWS / CHUNK + 1) as usize);
    assert_eq!(steps, all, "{traced}");
}

/// What a call does to a checkpoint that is not in its place yet, or to its folder. Of a call that is shown in two parts the
/// first one says so.
fn step(line: &str, new: &str, folder: &str) -> Option<&'static str> {
    let (_, call) = line.split_once(' ')?;
    let (name, rest) = call.trim_start().split_once('(')?;
    match name {
        "write" if rest.contains(&format!("{new}>")) => Some("written"),
        "fsync" | "fdatasync" if rest.contains(&format!("{new}>")) => Some("written to disk"),
        "fsync" if rest.contains(folder) => Some("folder written to disk"),
        "rename" if rest.contains(&format!("{new}\", ")) => Some("renamed"),
        _ => None,
    }
}
