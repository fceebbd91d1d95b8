//! The handlers in examples/handlers that do the same small job in seven languages, each with its real interpreter.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{End, Message, World, value};

/// What the name of each language's files ends with. A shell makes no worker.
const LANGUAGES: [&str; 7] = ["js", "php", "pl", "py", "rb", "rs", "sh"];
pub const WORKERS: [&str; 6] = ["js", "php", "pl", "py", "rb", "rs"];

/// A change, a deletion, a change with what is cut or taken for something else by a careless reader, a deletion.
const LINES: &str = concat!(
    r#"{"topic":"products","partition":0,"offset":42,"ts":1700000000000,"key":"7","headers":[],"payload":{"id":7}}"#,
    "\n",
    r#"{"topic":"products","partition":0,"offset":43,"ts":null,"key":"8","headers":[["a,\"payload\":","\n"]],"payload":null}"#,
    "\n",
    r#"{"topic":"products","partition":0,"offset":44,"ts":0,"key":null,"headers":[],"payload":{ "id": 9, "name": "x"#,
    "\u{2028}",
    r#"é", "payload": {"id": 0} }}"#,
    "\n",
    r#"{"topic":"products","partition":0,"offset":45,"ts":0,"key":"é","headers":[],"payload":null}"#,
    "\n",
);
const WITHOUT_ID: &str =
    r#"{"topic":"products","partition":0,"offset":46,"ts":0,"key":"10","headers":[],"payload":{"no":10}}"#;

fn handlers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/handlers")
}

/// The command that runs an example.
pub fn example(name: &str, language: &str) -> PathBuf {
    if language == "rs" { built().join(name) } else { handlers().join(format!("{name}.{language}")) }
}

/// Where cargo puts the examples in Rust, which it does not build for a test of its own accord.
pub fn built() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let release = Path::new(env!("CARGO_BIN_EXE_ksync-consume")).parent().unwrap();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args([
            "build",
            "--locked",
            "--quiet",
            "--example",
            "ids",
            "--example",
            "ids_worker",
            "--example",
            "rust-shop",
        ]);
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        let output = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        release.join("examples")
    })
}

/// An example as a daemon would start it, without a locale.
fn command(name: &str, language: &str) -> Command {
    let mut command = Command::new(example(name, language));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("LC_ALL", "C");
    command
}

/// Runs a one-shot example on a file with this text.
fn run(test: &str, language: &str, lines: &str, stdout: Stdio) -> Output {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}.{language}"));
    fs::write(&file, lines).unwrap();
    let mut command = command("ids", language);
    command.stdin(File::open(&file).unwrap()).stdout(stdout).stderr(Stdio::piped());
    command.spawn().unwrap().wait_with_output().unwrap()
}

#[test]
fn each_example_prints_the_ids_of_its_batch_under_ksync_consume() {
    let world = World::new("examples");
    let products = world.topic("products", 1);
    let deletion = Message { key: Some(b"8".to_vec()), ..Message::default() };
    let odd = "{\"id\": 9, \"name\": \"x\u{2028}\",\n\"payload\": {\"id\": 0}}";
    world.kafka.produce(&products, [value(r#"{"id":7}"#).key("7"), deletion, value(odd)]);
    let start = |language| {
        let handler = example("ids", language);
        world.consume(&format!("-t {products} -n {language} -e -- {}", handler.display()))
    };
    let consumers = LANGUAGES.map(|language| (language, start(language)));
    for (language, mut consumer) in consumers {
        assert_eq!(consumer.wait(), End::Status(0), "{language}");
        let printed = format!("{products}/0: {products}/0: 7 8 9");
        let infos = consumer.log_of("info");
        assert_eq!(infos.iter().filter(|line| **line == printed).count(), 1, "{language}: {infos:?}");
        assert_eq!(world.seat(&products, 0, language).offset(), Some(3), "{language}");
    }
}

#[test]
fn each_example_prints_the_ids_of_a_file_of_record_lines() {
    for language in LANGUAGES {
        let output = run("ids-of-a-file", language, LINES, Stdio::piped());
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let seen = (output.status.code(), &*stdout, &*stderr);
        assert_eq!(seen, (Some(0), "products/0: 7 8 9 é\n", ""), "{language}");
    }
}

#[test]
fn each_example_calls_a_record_without_an_id_permanent() {
    for language in LANGUAGES {
        let output = run("without-id", language, &format!("{LINES}{WITHOUT_ID}\n"), Stdio::piped());
        assert_eq!((output.status.code(), output.stdout), (Some(65), vec![]), "{language}");
    }
}

#[test]
fn each_example_takes_a_store_that_is_away_for_temporary() {
    for language in LANGUAGES {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = run("store-away", language, LINES, full.into());
        let stderr = String::from_utf8_lossy(&output.stderr).to_lowercase();
        // A shell's own message says less.
        let seen = (output.status.code(), stderr.contains("no space left on device"));
        assert_eq!(seen, (Some(75), language != "sh"), "{language}: {stderr}");
    }
}

#[test]
fn no_example_calls_a_batch_done_whose_last_line_is_cut_off() {
    for language in LANGUAGES {
        let output = run("cut-off", language, &format!("{LINES}{}", &WITHOUT_ID[..20]), Stdio::piped());
        // That of the language's own error, where it has one for what is no JSON.
        let expected = match language {
            "sh" => 65,
            "php" => 255,
            _ => 1,
        };
        assert_eq!((output.status.code(), output.stdout), (Some(expected), vec![]), "{language}");
    }
}

#[test]
fn the_examples_are_there_in_each_language_and_have_at_most_40_lines() {
    let mut files: Vec<PathBuf> = fs::read_dir(handlers()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.file_name().unwrap().to_str().unwrap().starts_with("ids"));
    files.sort();
    let handlers = LANGUAGES.map(|language| handlers().join(format!("ids.{language}")));
    let workers = WORKERS.map(|language| self::handlers().join(format!("ids_worker.{language}")));
    assert_eq!(files, [&handlers[..], &workers[..]].concat());
    for file in files {
        let lines = fs::read_to_string(&file).unwrap().lines().count();
        assert!(lines <= 40, "{} has {lines} lines", file.display());
    }
}

/// A running worker, spoken to as `ksync-consume --worker` does.
struct Worker {
    process: Child,
    stdin: Option<ChildStdin>,
    answers: Receiver<String>,
}

impl Worker {
    /// Starts it, and says hello.
    fn start(language: &str, stderr: Stdio) -> Worker {
        let mut command = command("ids_worker", language);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
        let mut process = command.spawn().unwrap();
        let (teller, answers) = channel();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        // Ends with the worker's output, or with the test.
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| teller.send(line)));
        let mut worker = Worker { stdin: process.stdin.take(), process, answers };
        worker.tell(&json!({"type": "hello", "ksync": 1, "name": "indexer"}).to_string());
        assert_eq!(worker.answer(), Some(json!({"type": "ready"})), "{language}");
        worker
    }

    fn tell(&mut self, lines: &str) {
        writeln!(self.stdin.as_ref().unwrap(), "{}", lines.trim_end()).unwrap();
    }

    fn begin(&mut self, id: &str, lines: &str) {
        let count = lines.lines().count();
        let source = r#""topic":"products","partition":0,"term":12"#;
        self.tell(&format!(r#"{{"type":"batch","id":"{id}",{source},"count":{count},"attempt":1}}"#));
        self.tell(lines);
    }

    /// A whole batch, and the answer to it.
    fn batch(&mut self, id: &str, lines: &str) -> Option<Value> {
        self.begin(id, lines);
        self.tell(&json!({"type": "end", "id": id}).to_string());
        self.answer()
    }

    /// `None` where it has ended.
    fn answer(&self) -> Option<Value> {
        match self.answers.recv_timeout(Duration::from_secs(20)) {
            Ok(line) => Some(serde_json::from_str(&line).unwrap()),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("no answer"),
        }
    }

    /// Waits for its own end, without another answer; gives its exit status and what it has printed.
    fn end(mut self) -> (Option<i32>, String) {
        assert_eq!(self.answer(), None);
        let mut printed = String::new();
        if let Some(mut stderr) = self.process.stderr.take() {
            stderr.read_to_string(&mut printed).unwrap();
        }
        (self.process.wait().unwrap().code(), printed)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It has ended by itself unless the test has failed.
        self.process.kill().unwrap_or_default();
        self.process.wait().unwrap();
    }
}

fn done(id: &str) -> Option<Value> {
    Some(json!({"type": "done", "id": id, "failed": []}))
}

#[test]
fn each_worker_answers_each_batch_once_and_forgets_a_cancelled_one() {
    for language in WORKERS {
        let mut worker = Worker::start(language, Stdio::piped());
        assert_eq!(worker.batch("b1", LINES), done("b1"), "{language}");
        worker.tell(r#"{"type":"cancel","id":"b1"}"#);
        worker.begin("b2", &LINES.replace("\"id\":7", "\"id\":70"));
        worker.tell(r#"{"type":"cancel","id":"b2"}"#);
        let third = LINES.lines().next().unwrap().replace("\"id\":7", "\"id\":71");
        assert_eq!(worker.batch("b3", &third), done("b3"), "{language}");
        worker.tell(r#"{"type":"shutdown"}"#);
        let printed = "products/0: 7 8 9 é\nproducts/0: 71\n".to_owned();
        assert_eq!(worker.end(), (Some(0), printed), "{language}");
    }
}

#[test]
fn each_worker_names_a_record_without_an_id_and_does_the_others() {
    for language in WORKERS {
        let mut worker = Worker::start(language, Stdio::piped());
        let answer = worker.batch("b1", &format!("{WITHOUT_ID}\n{LINES}"));
        let failed = json!([{"offset": 46, "error": "no id", "permanent": true}]);
        assert_eq!(answer, Some(json!({"type": "done", "id": "b1", "failed": failed})), "{language}");
        assert_eq!(worker.batch("b2", LINES), done("b2"), "{language}");
        worker.tell(r#"{"type":"shutdown"}"#);
        assert_eq!(worker.end(), (Some(0), "products/0: 7 8 9 é\n".repeat(2)), "{language}");
    }
}

#[test]
fn each_worker_asks_for_a_pause_when_its_store_is_away() {
    for language in WORKERS {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut worker = Worker::start(language, full.into());
        let pause = |id: &str| Some(json!({"type": "backoff", "id": id, "ms": 5000}));
        assert_eq!(worker.batch("b1", LINES), pause("b1"), "{language}");
        assert_eq!(worker.batch("b2", LINES), pause("b2"), "{language}");
    }
}

#[test]
fn each_worker_ends_with_its_input() {
    for language in WORKERS {
        let mut worker = Worker::start(language, Stdio::piped());
        worker.begin("b1", LINES);
        drop(worker.stdin.take());
        assert_eq!(worker.end(), (Some(0), String::new()), "{language}");
    }
}

#[test]
fn each_worker_passes_over_what_a_later_ksync_may_say() {
    for language in WORKERS {
        let mut worker = Worker::start(language, Stdio::piped());
        worker.tell(r#"{"type":"weather","is":"fine"}"#);
        assert_eq!(worker.batch("b1", LINES), done("b1"), "{language}");
    }
}
