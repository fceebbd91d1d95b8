//! What all command lines share: help, versions, and where a value comes from.

use std::process::Command;

use crate::support::{End, World};

const STREAM: &str = env!("CARGO_BIN_EXE_ksync-stream");
const TOOLS: [&str; 3] = [env!("CARGO_BIN_EXE_ksync-consume"), env!("CARGO_BIN_EXE_ksync-delayer"), STREAM];

#[test]
fn each_tool_tells_its_version_and_explains_each_of_its_options() {
    for tool in TOOLS {
        let name = tool.rsplit('/').next().unwrap();
        let version = Command::new(tool).arg("--version").output().unwrap();
        let expected = format!("{name} {}\n", env!("CARGO_PKG_VERSION"));
        assert_eq!((version.status.code(), String::from_utf8(version.stdout).unwrap()), (Some(0), expected));
        let help = Command::new(tool).arg("-h").output().unwrap();
        let text = String::from_utf8(help.stdout).unwrap();
        assert_eq!(help.status.code(), Some(0));
        // In a wide short help an option and its sentence stand on one line or on two.
        let lines: Vec<&str> = text.lines().collect();
        for (line, next) in lines.iter().zip(lines.iter().skip(1)) {
            let option = line.trim_start();
            if option.starts_with('-') {
                let own = option.split_once("  ").is_some_and(|(_, sentence)| !sentence.trim().is_empty());
                assert!(own || next.trim_start().starts_with(char::is_uppercase), "{name}: no help: {line}");
            }
        }
    }
}

#[test]
fn no_mistake_that_is_made_on_purpose_is_in_a_tool_of_use() {
    for tool in TOOLS {
        let bytes = std::fs::read(tool).unwrap();
        let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        assert_eq!((has("KSYNC_CONFIG"), has("KSYNC_MUTANT")), (true, false), "{tool}");
    }
}

#[test]
fn an_option_beats_the_environment_which_beats_the_file() {
    let world = World::new("precedence");
    let file = world.file("conf");
    std::fs::write(&file, "# for a test\n\nKSYNC_TOPIC=\"of-the-file\"\n").unwrap();
    let config = format!("--config {} - ", file.display());
    let stream = env!("CARGO_BIN_EXE_ksync-stream");
    for (arguments, environment, topic) in [
        (config.clone(), vec![], "of-the-file"),
        (config.clone(), vec![("KSYNC_TOPIC", "of-the-environment")], "of-the-environment"),
        (format!("{config} -t of-the-option"), vec![("KSYNC_TOPIC", "of-the-environment")], "of-the-option"),
        ("-".to_owned(), vec![("KSYNC_CONFIG", file.to_str().unwrap())], "of-the-file"),
    ] {
        let mut process = world.start(stream, &arguments, &environment);
        assert_eq!(process.wait(), End::Status(78), "{arguments}");
        let text = format!("topic {topic} does not exist; make it, or let --create-topics do it");
        assert_eq!(process.log_of("error"), [text], "{arguments}");
    }
}

#[test]
fn a_variable_that_seems_to_name_the_configuration_file_and_does_not_is_refused() {
    for tool in TOOLS {
        let output = Command::new(tool).env("KSYNC_CONFIG_FILE", "/etc/ksync.conf").output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        let text = "KSYNC_CONFIG_FILE counts for nothing; the configuration file is named by KSYNC_CONFIG, or --config";
        assert!(output.status.code() == Some(2) && told.contains(text), "{tool}: {told}");
    }
}

#[test]
fn a_secret_comes_from_a_file_that_the_environment_names() {
    let world = World::new("secret");
    let topic = world.topic("products", 1);
    let file = world.file("url");
    std::fs::write(&file, "postgres://me:Canary@127.0.0.1:9/shop\n").unwrap();
    let (conf, other) = (world.file("conf"), world.file("other"));
    std::fs::write(&conf, format!("KSYNC_DATABASE_FILE={}\n", file.display())).unwrap();
    std::fs::write(
        &other,
        format!("KSYNC_DATABASE=postgres://127.0.0.1:8/shop\nKSYNC_DATABASE_FILE={}\n", file.display()),
    )
    .unwrap();
    let arguments = format!("-t {topic} --table products");
    for (arguments, environment) in [
        (arguments.clone(), vec![("KSYNC_DATABASE_FILE", file.to_str().unwrap())]),
        (format!("{arguments} --config {}", conf.display()), vec![]),
        // Of two lines the last one counts.
        (format!("{arguments} --config {}", other.display()), vec![("DATABASE_URL", "postgres://127.0.0.1:7/shop")]),
    ] {
        let mut process = world.start(env!("CARGO_BIN_EXE_ksync-stream"), &arguments, &environment);
        assert_eq!(process.wait(), End::Status(75), "{arguments}");
        let told = "error: cannot connect to Postgres at 127.0.0.1:9: Connection refused";
        assert!(process.says(&[told]), "{arguments}: {:?}", process.log());
        assert!(!process.says(&["Canary"]), "{arguments}");
    }
}

#[test]
fn help_shows_no_secret_wherever_it_comes_from() {
    let world = World::new("help");
    let (conf, url) = (world.file("conf"), "postgres://me:Canary@127.0.0.1:9/shop");
    let lines =
        ["KSYNC_DATABASE", "KSYNC_ACTION_DATABASE", "KSYNC_THROTTLE_DATABASE"].map(|name| format!("{name}={url}\n"));
    std::fs::write(&conf, lines.concat() + "KSYNC_X=sasl.password=Canary\n").unwrap();
    let conf = conf.to_str().unwrap();
    for environment in [
        vec![("KSYNC_CONFIG", conf)],
        vec![("DATABASE_URL", url), ("KSYNC_ACTION_DATABASE", url), ("KSYNC_THROTTLE_DATABASE", url)],
        vec![("KSYNC_DATABASE", url), ("KSYNC_X", "sasl.password=Canary")],
    ] {
        for tool in TOOLS {
            let help = Command::new(tool).arg("--help").envs(environment.clone()).output().unwrap();
            let help = String::from_utf8(help.stdout).unwrap();
            assert!(help.contains("[env: KSYNC_X") && !help.contains("Canary"), "{help}");
        }
    }
}

#[test]
fn a_file_that_cannot_be_read_matters_only_where_nothing_else_gives_its_value() {
    let world = World::new("unread");
    let conf = world.file("conf");
    std::fs::write(&conf, "KSYNC_DATABASE_FILE=/no/such/url\n").unwrap();
    let run = |arguments: &str, environment: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ksync-stream"));
        let options =
            format!("--config {} -t products --table products --bootstrap-server 127.0.0.1:9", conf.display());
        command.args(options.split(' ')).args(["--sql", "DELETE FROM products WHERE id IN (:keys)"]);
        command.args(arguments.split_whitespace()).envs(environment.iter().copied());
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (status, told) = run("", &[]);
    assert!(status == Some(2) && told.contains("cannot read /no/such/url: No such file"), "{status:?}: {told}");
    assert_eq!(run("--help", &[]), (Some(0), String::new()));
    for (arguments, environment) in [("--database other:x", &[][..]), ("", &[("KSYNC_DATABASE", "other:x")][..])] {
        let (status, told) = run(arguments, environment);
        assert!(status == Some(2) && told.contains("a database URL begins with postgres://"), "{status:?}: {told}");
    }
}

#[test]
fn database_url_counts_where_nothing_else_names_a_database() {
    let world = World::new("database-url");
    let topic = world.topic("products", 1);
    let (both, one) = (world.file("both"), world.file("one"));
    std::fs::write(&both, "DATABASE_URL=postgres://127.0.0.1:7/shop\nKSYNC_DATABASE=postgres://127.0.0.1:8/shop\n")
        .unwrap();
    std::fs::write(&one, "DATABASE_URL='postgres://127.0.0.1:9/shop'\n").unwrap();
    let (secret, by_file) = (world.file("url"), world.file("by-file"));
    std::fs::write(&secret, "postgres://127.0.0.1:4/shop\n").unwrap();
    std::fs::write(&by_file, format!("DATABASE_URL_FILE={}\n", secret.display())).unwrap();
    let secret = secret.to_str().unwrap();
    for (file, environment, port) in [
        (&both, vec![], 8),
        (&both, vec![("DATABASE_URL", "postgres://127.0.0.1:6/shop")], 8),
        (&one, vec![], 9),
        (&one, vec![("DATABASE_URL", "postgres://127.0.0.1:6/shop")], 6),
        (&one, vec![("KSYNC_DATABASE", "postgres://127.0.0.1:5/shop")], 5),
        (&by_file, vec![], 4),
        (&one, vec![("DATABASE_URL_FILE", secret)], 4),
        (&one, vec![("DATABASE_URL_FILE", "/no/such/url"), ("DATABASE_URL", "postgres://127.0.0.1:6/shop")], 6),
        (&both, vec![("DATABASE_URL_FILE", "/no/such/url")], 8),
    ] {
        let arguments = format!("-t {topic} --table products --config {}", file.display());
        let mut process = world.start(STREAM, &arguments, &environment);
        assert_eq!(process.wait(), End::Status(75), "{port}");
        let told = format!("error: cannot connect to Postgres at 127.0.0.1:{port}: ");
        assert!(process.says(&[&told]), "{port}: {:?}", process.log());
    }

    // It may be another program's, and is told of where a database is needed.
    let unread = [("DATABASE_URL_FILE", "/no/such/url")];
    let mut lines = world.start(STREAM, &format!("-t {topic} --only instant -"), &unread);
    lines.tell("{\"id\":1}\n");
    assert_eq!((lines.wait(), world.kafka.count(&topic)), (End::Status(0), 1));
    let mut table = world.start(STREAM, &format!("-t {topic} --table products"), &unread);
    assert_eq!(table.wait(), End::Status(2));
    let told = "no database is named: set DATABASE_URL, or KSYNC_DATABASE, or --database; /no/such/url of DATABASE_URL_FILE cannot \
                be read";
    assert!(table.says(&["error: ", told]), "{:?}", table.log());
}

#[test]
fn a_quiet_success_says_nothing() {
    let world = World::new("quiet");
    let products = world.topic("products", 1);
    let mut stream = world.stream_lines(&format!("- -t {products} -q"), "{\"id\":1}\n");
    assert_eq!(stream.wait(), End::Status(0));
    let handler = world.handler("");
    let mut consumer = world.consume(&format!("-t {products} -n indexer -e -q -- {handler}"));
    assert_eq!(consumer.wait(), End::Status(0));
    assert_eq!((stream.log(), consumer.log()), (vec![], vec![]));
}

#[test]
fn log_lines_can_be_json_objects() {
    let world = World::new("json-log");
    let missing = format!("missing-{}", world.id);
    let mut stream = world.stream(&format!("- -t {missing} --log-format json"));
    assert_eq!(stream.wait(), End::Status(78));
    let lines = stream.log();
    let line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!(line["level"], "error");
    assert_eq!(line["program"], "ksync-stream");
    let text = format!("topic {missing} does not exist; make it, or let --create-topics do it");
    assert_eq!(line["message"], text);
}
