//! The user's command as it is ended: at its time, at a stop, or with its run, and that nothing of it stays.

use std::fs;
use std::future;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::handler::{MINUTE, command, directory, end_of, go, input, sh, text, within};
use crate::handler_given::in_an_environment_of_its_own;
use crate::support::pass;

/// The file's text, once the handler has written a line to it.
async fn written(file: &Path) -> String {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match fs::read_to_string(file) {
            Ok(text) if text.ends_with('\n') => return text,
            _ => assert!(Instant::now() < deadline, "{} was not written", file.display()),
        }
        pass(Duration::from_millis(5)).await;
    }
}

/// Waits until no process of these (numbers, one a line) runs any more; a zombie of somebody else's counts as gone.
async fn eventually_gone(pids: &str) {
    let runs = |pid: &str| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|state| !state.is_empty() && !state.starts_with('Z'))
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while pids.lines().any(runs) {
        assert!(Instant::now() < deadline, "one of these processes still runs: {pids}");
        pass(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_ends_the_whole_group() {
    let pids = directory("timeout").join("pids");
    let script = format!("sleep 600 & echo \"$$\n$!\" > '{}'; wait", pids.display());
    let hangs = within(Duration::from_secs(5), &["sh", "-c", &script]).unwrap();
    let start = Instant::now();
    // It reads nothing, and the pipe is full.
    let lines = b"{}\n".repeat(1_000_000);
    assert_eq!(end_of(&hangs, &lines).await, "no end after 5s (--timeout)");
    assert!(start.elapsed() < Duration::from_secs(10), "TERM was enough, but it took {:?}", start.elapsed());
    eventually_gone(&written(&pids).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_ignores_term_is_killed_at_the_deadline_of_the_stop() {
    let pids = directory("stop").join("pids");
    let stubborn = sh(&format!("trap '' TERM; sleep 600 & echo \"$$\n$!\" > '{}'; wait; sleep 600", pids.display()));
    let start = Instant::now();
    let stop = async {
        written(&pids).await;
        tokio::time::Instant::now() + Duration::from_millis(300)
    };
    assert_eq!(text(stubborn.run(input(b"{}\n"), go(), stop).await), "stopped");
    assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    eventually_gone(&written(&pids).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_handler_has_its_time_to_end_well_and_still_is_not_done() {
    let directory = directory("ends-well");
    let (ready, ended) = (directory.join("ready"), directory.join("ended"));
    // The shell dies of TERM at once; what it started takes its time.
    let script = format!(
        "python3 -c 'import signal, sys, time\n\
         def end(*_): time.sleep(0.5); open(\"{}\", \"w\").write(\"well\\n\"); sys.exit(0)\n\
         signal.signal(signal.SIGTERM, end)\n\
         open(\"{}\", \"w\").write(\"ready\\n\")\n\
         time.sleep(600)'; exit 0",
        ended.display(),
        ready.display()
    );
    let stop = async {
        written(&ready).await;
        tokio::time::Instant::now() + MINUTE
    };
    let start = Instant::now();
    assert_eq!(text(sh(&script).run(input(b"{}\n"), go(), stop).await), "stopped");
    assert_eq!(fs::read_to_string(&ended).unwrap(), "well\n");
    assert!(start.elapsed() < MINUTE / 2, "it was over, but the run took {:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_shortens_the_time_after_a_timeout() {
    let termed = directory("shortens").join("termed");
    let script = format!("trap 'echo TERM > \"{}\"' TERM; while :; do sleep 0.1; done", termed.display());
    let stubborn = within(Duration::from_secs(5), &["sh", "-c", &script]).unwrap();
    let stopped = Mutex::new(None);
    let stop = async {
        written(&termed).await;
        *stopped.lock().unwrap() = Some(Instant::now());
        tokio::time::Instant::now()
    };
    assert_eq!(text(stubborn.run(input(b"{}\n"), go(), stop).await), "no end after 5s (--timeout)");
    let took = stopped.lock().unwrap().expect("the stop was looked at").elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_started_after_the_stop() {
    let started = directory("no-start").join("started");
    let touch = command(&["touch", started.to_str().unwrap()]);
    let stop = future::ready(tokio::time::Instant::now() + MINUTE);
    assert_eq!(text(touch.run(input(b"{}\n"), go(), stop).await), "stopped");
    assert!(!started.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_must_not_begin_is_given_nothing_and_killed() {
    let got = directory("no-leave").join("got");
    let reads = sh(&format!("cat > '{}'; sleep 600", got.display()));
    let outcome = reads.run(input(b"{}\n"), future::ready(false), future::pending()).await;
    assert_eq!(text(outcome), "stopped");
    assert_eq!(fs::read_to_string(&got).unwrap_or_default(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_descendant_that_keeps_the_outputs_open_does_not_hold_the_run_and_is_killed() {
    let pids = directory("descendant").join("pids");
    let leaves_one = sh(&format!("sleep 600 & echo $! > '{}'; exit 0", pids.display()));
    let start = Instant::now();
    assert_eq!(end_of(&leaves_one, b"").await, "done");
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    eventually_gone(&written(&pids).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_descendant_with_a_group_of_its_own_does_not_hold_the_run() {
    let pids = directory("setsid").join("pids");
    // It ends once that one is out of its group.
    let leaves_one = sh(&format!(
        "setsid sh -c 'echo $$ > \"{0}\"; yes' & while [ ! -s \"{0}\" ]; do sleep 0.01; done; exit 0",
        pids.display()
    ));
    let start = Instant::now();
    assert_eq!(end_of(&leaves_one, b"").await, "done");
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    // `yes` has nobody left who reads it.
    eventually_gone(&written(&pids).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_run_leaves_no_process() {
    let pids = directory("dropped").join("pids");
    let hangs = sh(&format!("trap '' TERM; sleep 600 & echo \"$$\n$!\" > '{}'; wait", pids.display()));
    let running = tokio::spawn(async move { text(hangs.run(input(b"{}\n"), go(), future::pending()).await) });
    let pids = written(&pids).await;
    running.abort();
    eventually_gone(&pids).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    let handler = Path::new("/proc").join(pids.lines().next().unwrap());
    while handler.exists() {
        assert!(Instant::now() < deadline, "it was not reaped: {}", handler.display());
        pass(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_runs_at_once_do_not_disturb_each_other_and_leave_nothing_open() {
    // With open descriptors counted: alone in its process.
    if !in_an_environment_of_its_own(
        "many_runs_at_once_do_not_disturb_each_other_and_leave_nothing_open",
        &[("ALONE", "1"), ("PATH", "/bin:/usr/bin")],
    ) {
        return;
    }
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    assert_eq!(end_of(&sh("exit 0"), b"").await, "done");
    let before = open();
    let runs =
        (0..100).map(|i| tokio::spawn(async move { end_of(&sh(&format!("cat >/dev/null; exit {i}")), b"{}\n").await }));
    for (i, run) in runs.collect::<Vec<_>>().into_iter().enumerate() {
        let expected = if i == 0 { "done".to_owned() } else { format!("exit status {i}") };
        assert_eq!(run.await.unwrap(), expected);
    }
    assert_eq!(open(), before);
    let children = fs::read_to_string(format!("/proc/self/task/{}/children", std::process::id())).unwrap_or_default();
    assert_eq!(children, "");
}
