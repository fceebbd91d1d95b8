//! The user's command as a real process: what it gets, what its end means, and that nothing of it stays.

use std::env;
use std::fs;
use std::future;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use ksync::handler::{Batch, Command, Environment, Input, Outcome, Terms};
use ksync::topic::{Offset, Topic};

use crate::support::{log_lines, pass};

const MINUTE: Duration = Duration::from_secs(60);

/// A directory for what one test's handler leaves behind.
fn directory(test: &str) -> PathBuf {
    let directory = env::temp_dir().join(format!("ksync-handler-{}-{test}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    directory
}

fn command(argv: &[&str]) -> Command {
    within(MINUTE, argv).unwrap()
}

fn within(timeout: Duration, argv: &[&str]) -> anyhow::Result<Command> {
    let terms = Terms { timeout, allows_unread: false };
    Command::check(argv.iter().map(ToString::to_string).collect(), terms, &Environment::Ours)
}

fn sh(script: &str) -> Command {
    command(&["sh", "-c", script])
}

fn python(script: &str) -> Command {
    command(&["python3", "-c", script])
}

fn input(lines: &[u8]) -> Input<'_> {
    Input { label: "products/0", lines, environment: &[], told: None }
}

/// The leave to begin.
fn go() -> future::Ready<bool> {
    future::ready(true)
}

/// Runs it to its own end.
async fn end_of(command: &Command, lines: &[u8]) -> String {
    text(command.run(input(lines), go(), future::pending()).await)
}

fn text(outcome: Outcome) -> String {
    match outcome {
        Outcome::Done(_) => "done".to_owned(),
        Outcome::Failed(failed) => failed.failure.to_string(),
        Outcome::Stopped => "stopped".to_owned(),
    }
}

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
async fn exit_status_0_is_done_and_the_handler_got_each_byte_and_the_end() {
    let got = directory("bytes").join("got");
    let lines = "{\"offset\":42,\"payload\":{\"id\":7}}\n".repeat(100_000);
    let copy = sh(&format!("cat > '{}'", got.display()));
    assert_eq!(end_of(&copy, lines.as_bytes()).await, "done");
    assert!(fs::read_to_string(&got).unwrap() == lines);
    assert_eq!(end_of(&copy, b"").await, "done");
    assert_eq!(fs::read_to_string(&got).unwrap(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_other_exit_status_is_a_failure_that_tells_it() {
    assert_eq!(end_of(&sh("cat >/dev/null; exit 3"), b"{}\n").await, "exit status 3");
    assert_eq!(end_of(&sh("exit 255"), b"{}\n").await, "exit status 255");
}

#[tokio::test(flavor = "multi_thread")]
async fn death_by_a_signal_is_a_failure_that_names_it() {
    assert_eq!(end_of(&sh("kill -9 $$"), b"{}\n").await, "signal 9 (SIGKILL)");
    assert_eq!(end_of(&sh("kill -SEGV $$"), b"{}\n").await, "signal 11 (SIGSEGV)");
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
async fn a_hundred_megabytes_of_output_before_the_input_is_read_lock_nothing() {
    let loud = "import sys\n\
        for _ in range(100): sys.stdout.write('x' * (1 << 20)); sys.stderr.write('y\\n' * (1 << 10))\n\
        sys.exit(0 if len(sys.stdin.read()) == 4000000 else 1)";
    assert_eq!(end_of(&python(loud), &b"abc\n".repeat(1_000_000)).await, "done");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_input_that_is_not_read_to_its_end_is_a_failure_unless_that_is_allowed() {
    let large = b"{}\n".repeat(1_000_000);
    let lines = b"{}\n{}\n";
    let unread =
        |bytes: usize| format!("exit status 0 with {bytes} bytes of its input unread (--allow-unread lets that pass)");
    assert_eq!(end_of(&sh("exit 0"), lines).await, unread(6));
    assert_eq!(end_of(&sh("exec <&-; sleep 0.2; exit 0"), &large).await, unread(large.len()));
    assert_eq!(end_of(&sh("read a"), lines).await, unread(3));
    assert!(end_of(&sh("head -n 5 >/dev/null"), &large).await.starts_with("exit status 0 with "));
    assert_eq!(end_of(&sh("exec <&-; sleep 0.2; exit 4"), &large).await, "exit status 4");

    let terms = Terms { timeout: MINUTE, allows_unread: true };
    let argv = ["sh", "-c", "head -n 5 >/dev/null"].map(ToString::to_string).to_vec();
    assert_eq!(end_of(&Command::check(argv, terms, &Environment::Ours).unwrap(), &large).await, "done");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_closes_all_its_pipes_is_waited_for() {
    assert_eq!(end_of(&sh("exec <&- >&- 2>&-; sleep 0.5; exit 6"), &b"{}\n".repeat(1_000_000)).await, "exit status 6");
}

#[test]
fn a_command_that_cannot_be_executed_is_refused_with_what_to_look_at() {
    let script = directory("refused").join("index.py");
    let script = script.to_str().unwrap();
    fs::write(script, "#!/bin/sh\n").unwrap();
    let refused = |name: &str| format!("{:#}", within(MINUTE, &[name]).unwrap_err());
    assert_eq!(refused(script), format!("cannot start '{script}': Permission denied (os error 13); is it executable?"));
    assert_eq!(
        refused("./no-such-file"),
        "cannot start './no-such-file': No such file or directory (os error 2); is the path right?"
    );
    assert_eq!(
        refused("no-such-program"),
        "cannot start 'no-such-program': No such file or directory (os error 2); is it on the PATH?"
    );
    assert_eq!(refused("/tmp"), "cannot start '/tmp': is a directory");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_goes_away_later_is_a_failed_run() {
    let script = directory("goes-away").join("index.sh");
    // By a process of its own, so that none of ours has it open while it is started.
    assert!(std::process::Command::new("cp").arg("/bin/true").arg(&script).status().unwrap().success());
    let name = script.to_str().unwrap();
    let goes_away = command(&[name]);
    assert_eq!(end_of(&goes_away, b"").await, "done");
    fs::remove_file(&script).unwrap();
    let failure = format!("cannot start '{name}': No such file or directory (os error 2)");
    assert_eq!(end_of(&goes_away, b"").await, failure);
}

/// Where a test needs an environment of its own: runs it again, alone, in that one. True in that second run.
fn in_an_environment_of_its_own(test: &str, variables: &[(&str, &str)]) -> bool {
    if env::var_os(variables[0].0).is_some() {
        return true;
    }
    let again = std::process::Command::new(env::current_exe().unwrap())
        .args([test, "--nocapture"])
        .env_clear()
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    assert!(
        again.status.success(),
        "{}{}",
        String::from_utf8_lossy(&again.stdout),
        String::from_utf8_lossy(&again.stderr)
    );
    assert!(String::from_utf8_lossy(&again.stdout).contains("1 passed"));
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_is_ours_without_our_secrets_and_with_the_batch() {
    let variables = [("KSYNC_PASSWORD", "s3cret"), ("KSYNC_BATCH_TERM", "0"), ("LANG", "C"), ("PATH", "/bin:/usr/bin")];
    if !in_an_environment_of_its_own("the_environment_is_ours_without_our_secrets_and_with_the_batch", &variables) {
        return;
    }
    let got = directory("environment").join("got");
    let source = "products".parse::<Topic>().unwrap().partition(3);
    let name = "indexer".parse().unwrap();
    let (first, last) = (Offset(42), Offset(48));
    let batch = Batch { source: &source, name: &name, count: 5, first, last, attempt: 2, term: 77, id: "b7" };
    let copy = command(&["cp", "/proc/self/environ", got.to_str().unwrap()]);
    let input = Input { environment: &batch.environment(), ..input(b"") };
    assert_eq!(text(copy.run(input, go(), future::pending()).await), "done");
    let got = fs::read_to_string(&got).unwrap();
    let mut got: Vec<_> = got.split_terminator('\0').collect();
    got.sort_unstable();
    assert_eq!(
        got,
        [
            "KSYNC_BATCH_ATTEMPT=2",
            "KSYNC_BATCH_COUNT=5",
            "KSYNC_BATCH_FIRST_OFFSET=42",
            "KSYNC_BATCH_ID=b7",
            "KSYNC_BATCH_LAST_OFFSET=48",
            "KSYNC_BATCH_NAME=indexer",
            "KSYNC_BATCH_PARTITION=3",
            "KSYNC_BATCH_TERM=77",
            "KSYNC_BATCH_TOPIC=products",
            "KSYNC_RESULT_FD=3",
            "LANG=C",
            "PATH=/bin:/usr/bin",
            "PYTHONUNBUFFERED=1",
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn arguments_are_passed_as_they_are_and_no_shell_sees_them() {
    let got = directory("arguments").join("got");
    let script = "import sys; open(sys.argv[1], 'w').write('\\n'.join(sys.argv[2:]))";
    let arguments = command(&["python3", "-c", script, got.to_str().unwrap(), "$(id)", "a b", "", "; rm -rf x"]);
    assert_eq!(end_of(&arguments, b"").await, "done");
    assert_eq!(fs::read_to_string(&got).unwrap(), "$(id)\na b\n\n; rm -rf x");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_descriptor_is_open_in_the_handler_but_the_three_and_that_of_its_report() {
    let got = directory("descriptors").join("got");
    // As librdkafka does: without close-on-exec.
    let leaked = rustix::io::dup(std::io::stderr()).unwrap();
    let script = "import os, sys\n\
        is_open = lambda fd: os.path.exists('/proc/self/fd/%d' % fd)\n\
        fds = [fd for fd in range(1024) if is_open(fd)]\n\
        kinds = [os.readlink('/proc/self/fd/%d' % fd).split(':')[0] for fd in fds]\n\
        open(sys.argv[1], 'w').write('%s %s' % (fds, kinds))";
    assert_eq!(end_of(&command(&["python3", "-c", script, got.to_str().unwrap()]), b"").await, "done");
    assert_eq!(fs::read_to_string(&got).unwrap(), "[0, 1, 2, 3] ['pipe', 'pipe', 'pipe', 'pipe']");
    drop(leaked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_pipe_ends_the_handler_as_from_a_shell_and_no_signal_is_blocked() {
    let status = directory("signals").join("status");
    let copy = command(&["cp", "/proc/self/status", status.to_str().unwrap()]);
    assert_eq!(end_of(&copy, b"").await, "done");
    let status = fs::read_to_string(&status).unwrap();
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    assert_eq!(mask("SigBlk:"), 0);
    // Rust ignores SIGPIPE (13). What else is ignored is inherited by us, as HUP is under nohup.
    assert_eq!(mask("SigIgn:") & 1 << 12, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_handler_leads_a_process_group_of_its_own() {
    let stat = directory("group").join("stat");
    let copy = command(&["cp", "/proc/self/stat", stat.to_str().unwrap()]);
    assert_eq!(end_of(&copy, b"").await, "done");
    let stat = fs::read_to_string(&stat).unwrap();
    let fields: Vec<_> = stat.split(' ').collect();
    assert_eq!(fields[0], fields[4]);
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

/// The lines that were logged with this label.
async fn logged(label: &str, script: &str) -> Vec<String> {
    assert_eq!(log_lines(label), [""; 0]);
    let input = Input { label, lines: b"", environment: &[], told: None };
    assert_eq!(text(sh(script).run(input, go(), future::pending()).await), "done");
    log_lines(label)
}

#[tokio::test(flavor = "multi_thread")]
async fn both_outputs_are_logged_line_by_line_to_the_last_one() {
    let lines = logged("logged/0", "echo one; printf 'two\\n\\033[31mthree\\n'; printf 'no line break'").await;
    let expected = ["one", "two", "\\u{1b}[31mthree", "no line break"];
    assert_eq!(lines, expected.map(|line| format!("INFO logged/0: {line}")));
    assert_eq!(logged("logged/1", "echo oops >&2").await, ["INFO logged/1: oops"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_without_end_is_logged_once_and_cut() {
    let script = "head -c 1000000 /dev/zero | tr '\\0' x; echo; echo next";
    let cut = format!("INFO logged/2: {} ... (cut)", "x".repeat(8192));
    assert_eq!(logged("logged/2", script).await, [cut.as_str(), "INFO logged/2: next"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_flood_a_thousand_lines_are_logged_and_the_amount_of_the_rest() {
    let lines = logged("logged/3", "seq 5000; echo oops >&2; printf 'no line break'").await;
    let stdout: Vec<_> = lines.iter().filter(|line| !line.contains("oops")).collect();
    assert_eq!(stdout.len(), 1001);
    assert_eq!((stdout[0].as_str(), stdout[999].as_str()), ("INFO logged/3: 1", "INFO logged/3: 1000"));
    // 4,000 numbers of four digits, and what has no line break.
    assert_eq!(stdout[1000], "INFO logged/3: 4001 more lines of stdout, 20013 bytes, are not logged");
    assert!(lines.contains(&"INFO logged/3: oops".to_owned()), "the flood of one output hides nothing of the other");
}
