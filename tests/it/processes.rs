//! That nothing of a handler stays: neither what has left its group, nor when ksync itself is killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::Rng;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rustix::process::{Pid, Signal, kill_process};

use crate::consume::ids;
use crate::support::{End, Process, World, is_full};

/// How long a handler may outlive a ksync that was killed.
pub const SOON: Duration = Duration::from_millis(100);

/// A descendant of a shell script that has left its group, its session and its parent; its number is a line of `pids`.
fn daemon(pids: &Path) -> String {
    // The shell in the middle ends at once.
    format!("sh -c 'setsid sh -c \"echo \\$\\$ >> {}; exec sleep 600\" &'", pids.display())
}

/// The numbers in the file, once there are so many.
fn numbers(world: &World, pids: &Path, count: usize) -> Vec<i32> {
    let read = || -> Vec<i32> {
        let text = fs::read_to_string(pids).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    };
    world.eventually("they all run", || read().len() == count);
    read()
}

/// Whether there is such a process, be it one that only waits to be reaped.
fn exists(pid: i32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

pub fn runs(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|state| !state.is_empty() && !state.starts_with(['Z', 'X']))
}

pub fn children(process: &Process) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.pid)).unwrap();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("children")).ok());
    lists.collect::<String>().split_ascii_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

pub fn warden(process: &Process) -> Option<i32> {
    let name = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    children(process).into_iter().find(|pid| name(pid) == "ksync-warden\n" && runs(*pid))
}

/// A world with a topic of so many records.
fn world(test: &str, records: u32) -> (World, String) {
    let world = World::new(test);
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=records));
    (world, products)
}

/// By then all is gone that is to go at all.
const GONE: Duration = Duration::from_secs(5);

/// What is left is gone within `SOON`. A busy machine makes that longer, but not each time.
fn soon(left: impl Fn() -> Duration) {
    let mut times: Vec<Duration> = vec![];
    while times.iter().all(|time| *time >= SOON) {
        assert!(times.len() < 5, "{times:?}");
        times.push(left());
    }
}

#[test]
fn descendants_that_left_the_group_are_killed_and_reaped_at_the_end_of_each_run() {
    let (world, products) = world("daemons", 20);
    let pids = world.file("pids");
    // The last one is in the group, but orphaned.
    let script = world.script(&format!(
        "cat >/dev/null; {0}; {0}; sleep 600 & echo $! >> {1}\n\
         while [ $(wc -l < {1}) -lt $(($KSYNC_BATCH_LAST_OFFSET * 3 + 3)) ]; do sleep 0.01; done",
        daemon(&pids),
        pids.display()
    ));
    let consumer = world.consume(&format!("-t {products} -n indexer --batch-size 1 -- {script}"));
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("all is done", || seat.offset() == Some(20));
    let pids = numbers(&world, &pids, 60);
    assert_eq!(pids.into_iter().filter(|pid| exists(*pid)).collect::<Vec<_>>(), Vec::<i32>::new());
    assert_eq!(children(&consumer), [warden(&consumer).unwrap()]);
}

#[test]
fn descendants_that_left_the_group_die_with_the_handler_at_its_timeout() {
    let (world, products) = world("daemons-timeout", 1);
    let (pids, termed) = (world.file("pids"), world.file("termed"));
    let script = world.script(&format!(
        "cat >/dev/null; {}\n\
         setsid sh -c 'trap \"echo TERM >> {}\" TERM; echo $$ >> {}; while :; do sleep 0.01; done' &\n\
         echo $$ >> {}; wait",
        daemon(&pids),
        termed.display(),
        pids.display(),
        pids.display()
    ));
    let consumer = world.consume(&format!("-t {products} -n indexer --timeout 6s -- {script}"));
    let pids = numbers(&world, &pids, 3);
    world.eventually("the timeout is told", || consumer.says(&["no end after 6s (--timeout)"]));
    assert_eq!(pids.into_iter().filter(|pid| exists(*pid)).collect::<Vec<_>>(), Vec::<i32>::new());
    // Those that left the group are asked, too, and once.
    assert_eq!(fs::read_to_string(&termed).unwrap(), "TERM\n");
}

#[test]
fn descendants_that_left_the_group_die_with_the_lease_and_with_an_impatient_end() {
    soon(|| {
        let (world, products) = world("daemons-lease", 1);
        let pids = world.file("pids");
        let script = world.script(&format!("cat >/dev/null; {}; sleep 600", daemon(&pids)));
        let mut consumer = world.consume(&format!("-t {products} -n indexer -- {script}"));
        let first = numbers(&world, &pids, 1);
        let seat = world.seat(&products, 0, "indexer");
        seat.delete(&format!("leader/{}", seat.candidates()[0]));
        let both = numbers(&world, &pids, 2);
        assert!(!exists(first[0]), "it is gone before the next handler is there");
        consumer.signal(Signal::TERM);
        world.eventually("it is asked to end", || consumer.says(&["asked to end"]));
        // One that comes sooner belongs to the first.
        world.for_a_while(Duration::from_secs(1), "it waits for the handler", || consumer.is_running());
        consumer.signal(Signal::TERM);
        assert_eq!(consumer.wait(), End::By(Signal::TERM));
        assert_eq!(consumer.log_of("error"), Vec::<String>::new(), "not by the end of its grace");
        world.within(GONE, "the other is gone, too", || !runs(both[1]))
    });
}

#[test]
fn a_run_that_ends_takes_its_own_descendants_with_it_and_no_others() {
    let world = World::new("daemons-of-others");
    let products = world.topic("products", 2);
    let (pids, gate) = (world.file("pids"), world.gate());
    let of_partition = |partition: &str| PathBuf::from(format!("{}-{partition}", pids.display()));
    let script = world.script(&format!(
        "cat >/dev/null; touch {0}; {1}\n\
         while [ $(wc -l < {0}) -le $KSYNC_BATCH_LAST_OFFSET ]; do sleep 0.01; done\n\
         [ $KSYNC_BATCH_PARTITION = 1 ] || await {gate}",
        of_partition("$KSYNC_BATCH_PARTITION").display(),
        daemon(&of_partition("$KSYNC_BATCH_PARTITION")),
    ));
    let consumer = world.consume(&format!("-t {products} -n indexer -j 2 -- {script}"));
    world.kafka.produce(&products, ids(1..=1).map(|message| message.to(0)));
    let [long] = numbers(&world, &of_partition("0"), 1)[..] else { panic!("one is waited for") };
    for done in 1..=5 {
        world.kafka.produce(&products, ids(1..=1).map(|message| message.to(1)));
        world.eventually("the other partition goes on", || world.seat(&products, 1, "indexer").offset() == Some(done));
        assert!(numbers(&world, &of_partition("1"), done as usize).iter().all(|pid| !exists(*pid)));
        assert!(runs(long));
    }
    gate.open();
    world.eventually("the long run is done", || world.seat(&products, 0, "indexer").offset() == Some(1));
    assert!(!exists(long));
    assert!(warden(&consumer).is_some());
}

#[test]
fn a_sigkill_of_ksync_leaves_no_handler_and_no_descendant() {
    soon(|| {
        let (world, products) = world("killed-ksync", 5);
        let pids = world.file("pids");
        // One that has another environment is in the group still.
        let script = world.script(&format!(
            "cat >/dev/null; {}\nenv -i sleep 600 & echo $! >> {}; echo $$ >> {}; wait",
            daemon(&pids),
            pids.display(),
            pids.display()
        ));
        let mut consumer = world.consume(&format!("-t {products} -n indexer -- {script}"));
        let pids = numbers(&world, &pids, 3);
        let warden = warden(&consumer).unwrap();
        consumer.kill();
        let left = world.within(GONE, "all of them are gone", || !pids.iter().any(|pid| runs(*pid)));
        world.eventually("the warden, too", || !runs(warden));
        left
    });
}

/// It could commit later than its delay messages are sent on, with nobody left to send them again.
#[test]
fn a_sigkill_of_ksync_stream_leaves_no_action() {
    soon(|| {
        let world = World::new("killed-stream");
        let products = world.topic_with_delay("products", 1);
        let pids = world.file("pids");
        let action =
            world.script(&format!("cat >/dev/null; sleep 600 & echo $! >> {0}; echo $$ >> {0}; wait", pids.display()));
        let mut stream = world.stream_lines(&format!("- -t {products} -- {action}"), "{\"id\":1}\n");
        let pids = numbers(&world, &pids, 2);
        stream.kill();
        world.within(GONE, "the action is gone", || !pids.iter().any(|pid| runs(*pid)))
    });
}

#[test]
fn a_sigkill_at_any_moment_leaves_no_process() {
    let (world, products) = world("killed-at-random", 3000);
    let script = world.script("cat >/dev/null; setsid sleep 0.01 & setsid sleep 600 & exit 0");
    let mut rng = StdRng::seed_from_u64(4);
    let mut left = vec![];
    for number in 0..if is_full() { 50 } else { 8 } {
        let options = format!("-t {products} -n indexer-{number} --batch-size 1");
        let mut consumer = world.consume(&format!("{options} -- {script}"));
        let seat = world.seat(&products, 0, &format!("indexer-{number}"));
        world.eventually("it works", || seat.offset() > Some(0));
        world.for_a_while(Duration::from_micros(rng.random_range(0..50_000)), "", || true);
        consumer.kill();
        left.push(world.within(Duration::from_secs(5), "nothing is left", || world.processes() == 0));
    }
    // To look takes its time, too, the most of it while the machine has other things to do.
    left.sort_unstable();
    assert!(left[left.len() / 4] < SOON, "{left:?}");
}

#[test]
fn a_warden_that_is_killed_is_replaced_and_told_of_what_runs() {
    soon(|| {
        let world = World::new("killed-warden");
        let products = world.topic("products", 2);
        world.kafka.produce(&products, ids(1..=1).map(|message| message.to(0)));
        let pids = world.file("pids");
        let script = world.script(&format!(
            "cat >/dev/null; [ $KSYNC_BATCH_PARTITION = 1 ] || {{ {}; echo $$ >> {}; sleep 600; }}",
            daemon(&pids),
            pids.display()
        ));
        let mut consumer = world.consume(&format!("-t {products} -n indexer -j 2 -- {script}"));
        let pids = numbers(&world, &pids, 2);
        let first = warden(&consumer).unwrap();
        kill_process(Pid::from_raw(first).unwrap(), Signal::KILL).unwrap();
        world.eventually("it is dead", || !runs(first));
        world.kafka.produce(&products, ids(1..=1).map(|message| message.to(1)));
        world.eventually("the other partition is done", || world.seat(&products, 1, "indexer").offset() == Some(1));
        let told = ["the warden did not listen (Broken pipe (os error 32)); there is a new one"];
        world.eventually("it is told", || consumer.says(&told));
        assert!(warden(&consumer).is_some_and(|second| second != first));
        assert!(pids.iter().all(|pid| runs(*pid)));
        consumer.kill();
        world.within(GONE, "all of them are gone", || !pids.iter().any(|pid| runs(*pid)))
    });
}

#[test]
fn the_warden_holds_nothing_heeds_no_signal_and_ends_with_ksync() {
    let (world, products) = world("warden", 1);
    let handler = world.handler("");
    let mut consumer = world.consume(&format!("-t {products} -n indexer -- {handler}"));
    world.eventually("it works", || world.seat(&products, 0, "indexer").offset() == Some(1));
    let warden = warden(&consumer).unwrap();
    let proc = PathBuf::from(format!("/proc/{warden}"));
    let open = |fd: &str| fs::read_link(proc.join("fd").join(fd)).unwrap().display().to_string();
    let mut fds: Vec<_> =
        fs::read_dir(proc.join("fd")).unwrap().map(|fd| fd.unwrap().file_name().into_string().unwrap()).collect();
    fds.sort();
    assert_eq!(fds, ["0", "1", "2"]);
    assert!(open("0").starts_with("pipe:"));
    assert_eq!([open("1"), open("2")], ["/dev/null", "/dev/null"]);
    assert_eq!(fs::read(proc.join("environ")).unwrap(), b"");
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT, Signal::PIPE, Signal::USR1] {
        kill_process(Pid::from_raw(warden).unwrap(), signal).unwrap();
    }
    world.for_a_while(SOON, "it runs on", || runs(warden));
    consumer.signal(Signal::TERM);
    assert_eq!(consumer.wait(), End::Status(0));
    world.eventually("it ends", || !runs(warden));
}

#[test]
fn a_handler_killed_for_its_memory_fails_its_batch_which_comes_again() {
    let world = World::new("out-of-memory");
    // The kernel kills the process that holds the most: the handler's own, or one that it has started.
    for (hit, told) in [("self", "signal 9 (SIGKILL)"), ("child", "exit status 137")] {
        let products = world.topic(&format!("products-{hit}"), 1);
        world.kafka.produce(&products, ids(1..=5));
        let (pid, gate) = (world.file("pid"), world.gate());
        let hog = world.script(&format!(
            "held=$(head -c 33554432 /dev/zero | tr '\\0' x); echo $$ > {0}.part; mv {0}.part {0}; sleep 600",
            pid.display()
        ));
        let hog = if hit == "self" { format!("exec {hog}") } else { hog };
        let handler =
            world.handler(&format!("if [ $KSYNC_BATCH_ATTEMPT -eq 1 ]; then {hog}; exit $?; fi; await {gate}"));
        let mut consumer = world.consume(&format!("-t {products} -n indexer --retry-pause 10ms -- {handler}"));
        world.eventually("it holds much memory", || pid.exists());
        let pid = fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
        assert!(memory(pid) >= 32 << 10, "{} KiB", memory(pid));
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        let failed = format!("the handler failed at offsets 0 to 4, attempt 1: {told}; trying again in ");
        world.eventually("the failure is named", || consumer.says(&["warn: ", &failed]));
        world.eventually("the batch comes again", || handler.runs().len() == 2);
        let seat = world.seat(&products, 0, "indexer");
        assert_eq!((seat.offset(), consumer.is_running()), (Some(0), true));

        gate.open();
        world.eventually("it is done", || seat.offset() == Some(5));
        let runs = handler.runs();
        let ended: Vec<_> = runs.iter().map(|run| (run.attempt, run.done.is_some())).collect();
        assert_eq!((ended, &runs[0].lines), (vec![(1, false), (2, true)], &runs[1].lines));
        consumer.signal(Signal::TERM);
        assert_eq!(consumer.wait(), End::Status(0));
        world.eventually("nothing is left", || world.processes() == 0);
    }
}

/// How much a process holds now, in KiB.
fn memory(pid: i32) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let held = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().trim();
    held.strip_suffix(" kB").unwrap().parse().unwrap()
}

#[test]
fn a_gigabyte_of_output_takes_neither_memory_nor_log() {
    let (world, products) = world("flood", 1);
    let script = world.script("cat >/dev/null; yes a line of flood | head -c 1000000000; echo oops >&2; exit 3");
    let quiet = world.script("cat >/dev/null; exit 3");
    let most = |script: &str, name: &str| {
        let consumer =
            world.consume(&format!("-t {products} -n {name} --retry-pause 1h --retry-pause-max 1h -- {script}"));
        world.within(Duration::from_secs(60), "the failure is told", || consumer.says(&["exit status 3"]));
        (consumer.most_memory() >> 10, consumer.log())
    };
    let (plain, _) = most(&quiet, "quiet");
    let (flooded, log) = most(&script, "flooded");
    assert!(flooded < plain + (8 << 10), "{flooded} KiB, not {plain}");
    let of_handler = |text: &str| log.iter().filter(|line| line.ends_with(text)).count();
    assert_eq!(of_handler("a line of flood"), 1000);
    assert_eq!(of_handler("oops"), 1);
    // 16 bytes a line: 62,500,000 lines.
    assert_eq!(of_handler("62499000 more lines of stdout, 999984000 bytes, are not logged"), 1);
}

#[test]
fn a_handler_that_is_stopped_is_killed_at_its_timeout_and_the_batch_comes_again() {
    let (world, products) = world("stopped", 1);
    let handler = world.handler("[ -e stopped ] || { touch stopped; kill -STOP $$; }");
    let consumer = world.consume(&format!("-t {products} -n indexer --timeout 6s -- {handler}"));
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("it is stopped", || world.dir.join("stopped").exists());
    let queue = seat.candidates();
    world.eventually("another run has done it", || seat.offset().is_some_and(|offset| offset > 0));
    assert!(consumer.says(&["warn: ", "attempt 1: no end after 6s (--timeout)"]), "{:?}", consumer.log());
    assert_eq!((seat.candidates(), consumer.log_of("warn").len()), (queue, 1));
}
