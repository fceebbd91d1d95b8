//! Workers for `--worker`: Python scripts that keep a journal of what they are given and of what they do.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::handler::write_script;

/// What each worker does: `on` is called for each message, and a record's kind is `record`. It takes no more of its
/// stdin than it has come to.
const SCRIPT: &str = r#"#!/usr/bin/env python3
import fcntl, json, os, signal, struct, subprocess, termios, time
stdin, journal = open(0, "rb", buffering=0), open(JOURNAL, "ab", buffering=0)
batch, offsets, number = {}, [], 0  # what it has now, and its how many-th batch that is

def note(kind, **more):
    journal.write(json.dumps({**more, "type": kind, "pid": os.getpid(), "at": time.monotonic()}).encode() + b"\n")

def line(**message):
    return json.dumps(message) + "\n"

def say(**message):
    os.write(1, line(**message).encode())

def done(**more):
    note("done", offsets=offsets)
    say(type="done", id=batch["id"], **more)

def is_open(gate):
    return os.path.exists(gate)

def pause(seconds):
    time.sleep(seconds)

def wait(gate):
    while not is_open(gate): pause(0.01)

def unread():
    return struct.unpack("i", fcntl.ioctl(0, termios.FIONREAD, b"0000"))[0]

def wait_for_more():
    while not unread(): pause(0.01)

def ignore_term():
    signal.signal(signal.SIGTERM, lambda *_: note("TERM"))

def descend():  # a session of its own, and deaf to TERM
    child = subprocess.Popen(["sh", "-c", "trap '' TERM; exec sleep 600"], start_new_session=True)
    note("child", child=child.pid)

def on(kind):
    BODY
    if kind == "hello": say(type="ready")
    if kind == "end": done()

for text in stdin:
    message = json.loads(text)
    kind = message.get("type", "record")
    if kind == "batch": batch, offsets, number = message, [], number + 1
    if kind == "record": message = {"offset": message["offset"]}
    if kind == "record": offsets.append(message["offset"])
    note(kind, **{name: value for name, value in message.items() if name != "type"})
    on(kind)
    if kind == "shutdown": break
note("ended")
"#;

/// A script that can be a worker; shown, it is its path.
pub struct Worker {
    script: PathBuf,
    journal: PathBuf,
}

/// What one of its processes was given, or did.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    pub pid: i32,
    /// In seconds.
    pub at: f64,
    pub kind: String,
    /// As it was given.
    pub message: Value,
}

/// A batch that was begun.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    pub pid: i32,
    pub at: f64,
    pub message: Value,
    pub offsets: Vec<i64>,
    /// Whether it came to its end.
    pub is_given: bool,
}

impl Worker {
    /// `body` is what it does with a message of this `kind`, one statement a line. Where that does not return, it is
    /// ready after `hello`, and has done a batch at its `end`.
    pub(super) fn new(dir: &Path, body: &str) -> Worker {
        let (script, journal) = (dir.join("worker"), dir.join("journal"));
        let name = format!("{:?}", journal.display().to_string());
        let body = format!("pass\n{body}").replace('\n', "\n    ");
        write_script(&script, &SCRIPT.replace("JOURNAL", &name).replace("BODY", &body));
        Worker { script, journal }
    }

    pub fn notes(&self) -> Vec<Note> {
        let journal = fs::read_to_string(&self.journal).unwrap_or_default();
        // The last line may be there by half.
        let journal = journal.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let note = |line| {
            let mut message: Value = serde_json::from_str(line).unwrap();
            let members = message.as_object_mut().unwrap();
            let pid = members.remove("pid").unwrap().as_i64().unwrap() as i32;
            let at = members.remove("at").unwrap().as_f64().unwrap();
            Note { pid, at, kind: message["type"].as_str().unwrap().to_owned(), message }
        };
        journal.lines().map(note).collect()
    }

    /// Those notes of this kind.
    pub fn noted(&self, kind: &str) -> Vec<Note> {
        self.notes().into_iter().filter(|note| note.kind == kind).collect()
    }

    /// Its processes, in the order of their starts.
    pub fn pids(&self) -> Vec<i32> {
        self.noted("hello").iter().map(|note| note.pid).collect()
    }

    /// What each of them was given and did, in short: `hello batch record record end done`.
    pub fn stories(&self) -> Vec<String> {
        let notes = self.notes();
        let of = |pid| notes.iter().filter(move |note| note.pid == pid).map(|note| note.kind.as_str());
        self.pids().into_iter().map(|pid| of(pid).collect::<Vec<_>>().join(" ")).collect()
    }

    pub fn batches(&self) -> Vec<Batch> {
        let mut batches: Vec<Batch> = vec![];
        for Note { pid, at, kind, message } in self.notes() {
            let current = batches.iter_mut().rfind(|batch| batch.pid == pid);
            match (kind.as_str(), current) {
                ("batch", _) => batches.push(Batch { pid, at, message, offsets: vec![], is_given: false }),
                ("record", Some(batch)) => batch.offsets.push(message["offset"].as_i64().unwrap()),
                ("end", Some(batch)) => batch.is_given = true,
                _ => {}
            }
        }
        batches
    }

    /// How many batches came to their end.
    pub fn given(&self) -> usize {
        self.batches().iter().filter(|batch| batch.is_given).count()
    }

    /// The offsets of the batches that it called done, in the order of that.
    pub fn done(&self) -> Vec<i64> {
        let notes = self.noted("done");
        let offsets = notes.iter().flat_map(|note| note.message["offsets"].as_array().unwrap());
        offsets.map(|offset| offset.as_i64().unwrap()).collect()
    }
}

impl Batch {
    pub fn attempt(&self) -> u64 {
        self.message["attempt"].as_u64().unwrap()
    }

    pub fn term(&self) -> u64 {
        self.message["term"].as_u64().unwrap()
    }
}

impl fmt::Display for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.script.display().fmt(f)
    }
}
