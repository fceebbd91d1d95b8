//! The clients in examples/ for applications in Ruby, Python and Node: their own tests, with their real frameworks and Postgres,
//! and their workers.

use std::path::Path;

use crate::support::{End, World, block_on, primaries};

const PROJECT: &str = env!("CARGO_MANIFEST_DIR");

/// The frameworks of a language: what `scripts/services install frameworks` has fetched of them.
pub fn environment(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), Path::new(PROJECT).join("target/servers").join(value).display().to_string())
}

#[test]
fn the_clients_pass_their_own_tests() {
    let world = World::new("clients-own");
    let [postgres, ..] = block_on(primaries("clients_own"));
    for (program, arguments, found) in [
        ("ruby", "examples/ruby/test_ksync.rb", None),
        ("python3", "examples/python/test_ksync.py", Some(environment("PYTHONPATH", "python"))),
        ("node", "--test examples/node/test_ksync.js", Some(environment("NODE_PATH", "node/node_modules"))),
    ] {
        let mut command = std::process::Command::new(program);
        command.args(arguments.split(' ')).current_dir(PROJECT).envs(found).env("DATABASE_URL", &postgres.url);
        let output = command.output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{arguments}: {said}");
        // As minitest, unittest and Node say it.
        let is_skipping = |line: &str| line.contains(" skips") && !line.contains(" 0 skips");
        let has_skipped = said.lines().any(is_skipping) || said.contains("skipped=") || said.contains("# SKIP");
        assert!(!has_skipped, "{arguments}: {said}");
    }
    drop(world);
}

#[test]
fn the_clients_are_one_file_each_and_short() {
    // That of Python has two frameworks to plug into.
    for (client, most) in [("ruby/ksync.rb", 200), ("node/ksync.js", 200), ("python/ksync.py", 265)] {
        let text = std::fs::read_to_string(Path::new(PROJECT).join("examples").join(client)).unwrap();
        assert!(text.lines().count() <= most, "{client} has {} lines", text.lines().count());
    }
}

/// Each client's worker side is put through the protocol of ksync-consume.
#[test]
fn the_workers_of_the_clients_pass_the_exam() {
    let world = World::new("clients-workers");
    let rb = "require './examples/ruby/ksync'; Ksync.work { |records| puts records.size }";
    let py = "import sys; sys.path.insert(0, 'examples/python'); import ksync; ksync.work(lambda records: print(len(records)))";
    let js = "require('./examples/node/ksync').work(async (records) => { console.log(records.length) })";
    for (program, flag, script) in [("ruby", "-e", rb), ("python3", "-c", py), ("node", "-e", js)] {
        let worker = world.script(&format!("cd {PROJECT}\nexec {program} {flag} \"{script}\""));
        let mut consumer = world.consume(&format!("--check-worker -- {worker}"));
        assert_eq!(consumer.wait(), End::Status(0), "{program}: {:?}", consumer.log());
    }
}
