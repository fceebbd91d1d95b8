//! The user's command as a real process: what it reads and writes, and what its end means.

use std::env;
use std::fs;
use std::future;
use std::path::PathBuf;
use std::time::Duration;

use ksync::handler::{Command, Environment, Input, Outcome, Terms};

use crate::support::log_lines;

pub const MINUTE: Duration = Duration::from_secs(60);

/// A directory for what one test's handler leaves behind.
pub fn directory(test: &str) -> PathBuf {
    let directory = env::temp_dir().join(format!("ksync-handler-{}-{test}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    directory
}

pub fn command(argv: &[&str]) -> Command {
    within(MINUTE, argv).unwrap()
}

pub fn within(timeout: Duration, argv: &[&str]) -> anyhow::Result<Command> {
    let terms = Terms { timeout, allows_unread: false };
    Command::check(argv.iter().map(ToString::to_string).collect(), terms, &Environment::Ours)
}

pub fn sh(script: &str) -> Command {
    command(&["sh", "-c", script])
}

fn python(script: &str) -> Command {
    command(&["python3", "-c", script])
}

pub fn input(lines: &[u8]) -> Input<'_> {
    Input { label: "products/0", lines, environment: &[], told: None }
}

/// The leave to begin.
pub fn go() -> future::Ready<bool> {
    future::ready(true)
}

/// Runs it to its own end.
pub async fn end_of(command: &Command, lines: &[u8]) -> String {
    text(command.run(input(lines), go(), future::pending()).await)
}

pub fn text(outcome: Outcome) -> String {
    match outcome {
        Outcome::Done(_) => "done".to_owned(),
        Outcome::Failed(failed) => failed.failure.to_string(),
        Outcome::Stopped => "stopped".to_owned(),
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
