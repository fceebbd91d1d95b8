//! The lines for cron run as cron runs them, and the commands that compare find no difference where there is none.

use std::fs;

use super::{STREAM, document, section, thousand_products};
use crate::support::{End, World, block_on, primaries};

/// The commands of lines for cron: five fields, the user, the command.
fn cron_commands(text: &str) -> Vec<&str> {
    let is_field = |field: &&str| field.bytes().all(|byte| byte.is_ascii_digit() || byte == b'*');
    let is_line = |line: &&str| line.split_whitespace().take_while(is_field).count() == 5;
    text.lines().filter(is_line).map(|line| line.split_once(" ksync ").unwrap().1.trim()).collect()
}

#[test]
fn the_lines_for_cron_run_as_cron_runs_them() {
    let world = World::alone("readme-cron");
    let [postgres, ..] = block_on(primaries("readme_cron"));
    thousand_products(&postgres);
    world.kafka.create("products", 1, &[]);
    world.kafka.create("products-delay", 1, &[("message.timestamp.type", "LogAppendTime")]);
    // The files of an installation.
    let at = world.dir.display();
    let config = world.file("ksync.conf");
    let servers = format!("KSYNC_BOOTSTRAP_SERVER={}\n", world.services.get("KSYNC_BOOTSTRAP_SERVER"));
    fs::write(&config, format!("{servers}KSYNC_DATABASE={}\n", postgres.url)).unwrap();
    fs::write(world.dir.join("night.sql"), "UPDATE products SET name = upper(name) WHERE id IN (:keys)").unwrap();
    fs::write(world.dir.join("database-url"), &postgres.url).unwrap();
    let holds = holds(&world);
    let cron = "-i PATH=/usr/bin:/bin SHELL=/bin/sh HOME=/";
    let run = |command: &str| {
        assert!(!command.contains('%'), "that is a line break to cron: {command}");
        let command = command
            .replace("/usr/local/bin/ksync-stream", STREAM)
            .replace("/usr/local/lib/ksync/index-holds", &holds)
            .replace("/var/lib/ksync", &at.to_string())
            .replace("/etc/ksync", &at.to_string());
        let command = format!("{cron} KSYNC_CONFIG={} /bin/sh -c '{command}'", config.display());
        let mut process = world.start("env", &command, &[]);
        // With -q cron has nothing to send.
        assert_eq!((process.wait(), process.log()), (End::Status(0), vec![]), "{command}");
    };
    let texts = ["README.md", "docs/stream.md", "examples/systemd/ksync.cron"].map(document);
    let [of_readme, of_stream, of_example] = texts.each_ref().map(|text| cron_commands(text));
    let [reindex, night] = of_readme[..] else { panic!("{of_readme:?}") };
    let [sunday] = of_stream[..] else { panic!("{of_stream:?}") };
    let [nightly] = of_example[..] else { panic!("{of_example:?}") };
    for count in [1000, 2000] {
        run(reindex);
        assert_eq!(world.kafka.count("products"), count);
    }
    for _ in 0..2 {
        run(night);
        assert_eq!((world.kafka.count("products"), world.kafka.count("products-delay")), (3000, 1000));
    }
    assert_eq!(block_on(postgres.texts("SELECT DISTINCT name FROM products")), ["X"]);
    run(sunday);
    assert_eq!(world.kafka.count("products"), 3000);
    run(nightly);
    assert_eq!(world.kafka.count("products"), 4000);
}

/// A store that holds all that it is asked for.
fn holds(world: &World) -> String {
    let rows = r#"sed 's/"payload":{[^}]*},//'"#;
    world.script(&format!(r#"if [ "$1" = --list ]; then seq 1000 | sed 's/.*/{{"key":"&"}}/'; else {rows}; fi"#))
}

#[test]
fn the_comparisons_find_no_difference_where_there_is_none() {
    let world = World::alone("readme-verify");
    let [postgres, ..] = block_on(primaries("readme_verify"));
    thousand_products(&postgres);
    block_on(postgres.execute("ALTER TABLE products ADD updated_at TIMESTAMPTZ DEFAULT now()"));
    world.kafka.create("products", 1, &[]);
    let holds = holds(&world);
    let text = section("docs/stream.md", "Find what differs").replace("\\\n", "");
    let commands: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("    ksync-stream ")).collect();
    assert_eq!(commands.len(), 3, "{commands:?}");
    for command in commands {
        let command = command.replace("/usr/local/lib/ksync/index-holds", &holds);
        let script = world.script(&format!("exec {STREAM} {command}"));
        let mut run = world.start(&script, "", &[("DATABASE_URL", postgres.url.as_str())]);
        assert_eq!(run.wait(), End::Status(0), "{command}");
        assert!(run.says(&["no difference"]), "{command}: {:?}", run.log());
    }
}
