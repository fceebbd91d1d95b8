//! Handlers: shell scripts that keep a journal of what they were given, and gates that hold them up.

use std::fmt;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// What each handler does first. A batch of which a part is missing is not worked on.
const BEGIN: &str = r#"#!/bin/sh
set -e
run="$runs/$KSYNC_BATCH_ID"
cat > "$run"
[ "$(wc -l < "$run")" -eq "$KSYNC_BATCH_COUNT" ] || exit 75
await() { while [ ! -e "$1" ]; do sleep 0.02; done; }
note() {
    echo "$1 $KSYNC_BATCH_ID $KSYNC_BATCH_TOPIC $KSYNC_BATCH_PARTITION $KSYNC_BATCH_NAME $KSYNC_BATCH_COUNT" \
        "$KSYNC_BATCH_FIRST_OFFSET $KSYNC_BATCH_LAST_OFFSET $KSYNC_BATCH_ATTEMPT $KSYNC_BATCH_TERM" >> "$runs/journal"
}
note begun
"#;

/// A script that can be a handler; shown, it is its path.
pub struct Handler {
    script: PathBuf,
    runs: PathBuf,
}

/// One run of a handler, by what it was told in its environment and on its stdin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub id: String,
    pub topic: String,
    pub partition: i32,
    pub name: String,
    pub count: usize,
    pub first: i64,
    pub last: i64,
    pub attempt: u32,
    pub term: u64,
    /// The line of the journal by which it began, and the one by which it came to its own end, with exit status 0.
    pub begun: usize,
    pub done: Option<usize>,
    pub lines: Vec<String>,
}

impl Handler {
    /// `body` is what it does after it has noted its batch: `exit 1`, `await GATE`, or nothing.
    pub(super) fn new(dir: &Path, body: &str) -> Handler {
        let runs = dir.join("runs");
        fs::create_dir_all(&runs).unwrap();
        let begin = BEGIN.replacen("\n", &format!("\nruns='{}'\n", runs.display()), 1);
        let script = dir.join("handler");
        write_script(&script, &format!("{begin}{body}\nnote done\n"));
        Handler { script, runs }
    }

    /// All runs that have begun, in that order.
    pub fn runs(&self) -> Vec<Run> {
        let journal = fs::read_to_string(self.runs.join("journal")).unwrap_or_default();
        // The last line may be there by half.
        let journal = journal.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let mut runs: Vec<Run> = vec![];
        for (number, line) in journal.lines().enumerate() {
            let words: Vec<&str> = line.split(' ').collect();
            let [what, id, topic, partition, name, count, first, last, attempt, term] = words[..] else {
                panic!("not a line of a journal: {line}")
            };
            if what == "done" {
                runs.iter_mut().find(|run| run.id == id).unwrap().done = Some(number);
                continue;
            }
            let lines = fs::read_to_string(self.runs.join(id)).unwrap();
            runs.push(Run {
                id: id.to_owned(),
                topic: topic.to_owned(),
                partition: partition.parse().unwrap(),
                name: name.to_owned(),
                count: count.parse().unwrap(),
                first: first.parse().unwrap(),
                last: last.parse().unwrap(),
                attempt: attempt.parse().unwrap(),
                term: term.parse().unwrap(),
                begun: number,
                done: None,
                lines: lines.lines().map(str::to_owned).collect(),
            });
        }
        runs
    }

    /// The payloads of all runs that came to their end, as they were written.
    pub fn payloads(&self) -> Vec<String> {
        let runs = self.runs();
        let lines = runs.iter().filter(|run| run.done.is_some()).flat_map(|run| &run.lines);
        lines.map(|line| payload(line)).collect()
    }
}

impl Run {
    pub fn offsets(&self) -> Vec<i64> {
        let offset = |line: &String| serde_json::from_str::<Value>(line).unwrap()["offset"].as_i64().unwrap();
        self.lines.iter().map(offset).collect()
    }
}

/// The payload in a handler's line, byte for byte: it is the last member.
pub fn payload(line: &str) -> String {
    let (_, payload) = line.split_once("\"payload\":").unwrap();
    payload.strip_suffix('}').unwrap().to_owned()
}

impl fmt::Display for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.script.display().fmt(f)
    }
}

/// A file that a script waits for; shown, it is its path.
pub struct Gate(pub(super) PathBuf);

impl Gate {
    pub fn open(&self) {
        fs::write(&self.0, "").unwrap();
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

pub(super) fn write_script(path: &Path, text: &str) {
    // No descriptor of ours is open for writing: what another test starts just then would have it, too, until it is another
    // program, and the script could not be run meanwhile ("Text file busy").
    let write = ["-c", r#"cat > "$0"; chmod 755 "$0""#];
    let mut shell = Command::new("sh").args(write).arg(path).stdin(Stdio::piped()).spawn().unwrap();
    shell.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(shell.wait().unwrap().success());
}
