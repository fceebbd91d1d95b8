//! What the user's command is given besides its lines: environment, arguments, descriptors, signals, a process group.

use std::env;
use std::fs;
use std::future;

use ksync::handler::{Batch, Input};
use ksync::topic::{Offset, Topic};

use crate::handler::{command, directory, end_of, go, input, text};

/// Where a test needs an environment of its own: runs it again, alone, in that one. True in that second run.
pub fn in_an_environment_of_its_own(test: &str, variables: &[(&str, &str)]) -> bool {
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
