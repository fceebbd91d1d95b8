//! What is shown beside the examples that run: what programs print, a handler, a statement, the units of systemd.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{PROJECT, Reader, STREAM, blocks, document, printed, section, sql_of, thousand_products};
use crate::replay::{fails_at, lines, sh};
use crate::support::{World, block_on, primaries};

/// A plan of docs/stream.md, but for the place of the database, and what a run says at its end, but for its speed.
pub(super) fn a_plan_and_an_end(reader: &Reader) {
    thousand_products(&reader.postgres);
    let text = section("docs/stream.md", "See it first");
    let [example] = blocks(&text, "sh run")[..] else { panic!("{text}") };
    let shown = printed(&text);
    let (end, plan) = shown.split_last().unwrap();
    let file = reader.world.file("plan");
    reader.run(&format!("{example} > {}", file.display()));
    let told = fs::read_to_string(&file).unwrap();
    let told: Vec<_> = told.lines().map(without_place).collect();
    assert_eq!(told, plan.iter().map(|line| without_place(line)).collect::<Vec<_>>());

    let run = reader.run(&example.replace(" --count --dry-run", ""));
    let ends: Vec<_> = run.log_of("info").iter().filter_map(|line| without_speed(line)).collect();
    assert_eq!(ends, [without_speed(end).unwrap()], "{:?}", run.log());
}

/// `table products in postgres at HOST, ..: about 9 rows` -> `table products in ..: about 9 rows`
fn without_place(line: &str) -> String {
    match line.split_once(" in postgres at ") {
        Some((what, rest)) => format!("{what} in ..: {}", rest.rsplit_once(": ").unwrap().1),
        None => line.to_owned(),
    }
}

/// `9 rows in 0.1 s, 90 a second; 9 messages` -> `9 rows; 9 messages`
fn without_speed(line: &str) -> Option<String> {
    let (rows, rest) = line.split_once(" rows in ")?;
    let (_, end) = rest.split_once(" a second; ")?;
    Some(format!("{rows} rows; {end}"))
}

#[test]
fn a_replay_prints_what_is_shown_of_it() {
    let world = World::new("readme-replay");
    let handler = world.handler(&fails_at(&[47], 1));
    let command = format!("ksync-consume --replay - --dead-letter -- {handler}");
    let tried = sh(&world, &command, &lines("products", 0, 42..58));
    let text = section("docs/handlers.md", "Trying it out");
    let shown: Vec<_> = printed(&text).into_iter().take(6).collect();
    let [first, "..", last @ ..] = &shown[..] else { panic!("{shown:?}") };
    let (run, _) = first.split_once("would wait ").unwrap();
    let others = tried.printed.len() - last.len();
    assert_eq!((&*tried.printed[0], tried.status), (&*format!("{run}would wait .."), Some(3)), "{}", tried.said);
    assert_eq!(tried.printed[others..], *last);
}

#[test]
fn the_exam_of_a_worker_prints_what_is_shown_of_it() {
    let world = World::new("readme-exam");
    let text = section("docs/handlers.md", "Workers");
    let [example] = blocks(&text, "sh run")[..] else { panic!("{text}") };
    let tried = sh(&world, &format!("cd {PROJECT}\n{example}"), "");
    let shown: Vec<_> = printed(&text).into_iter().filter(|line| line.starts_with("ok ")).map(without_time).collect();
    let told: Vec<_> = tried.printed.iter().map(|line| without_time(line)).collect();
    assert_eq!((told, tried.status), (shown, Some(0)), "{}", tried.said);
}

/// `ended after 0.1 s` -> `ended`
fn without_time(line: &str) -> &str {
    match line.rsplit_once(" after ") {
        Some((step, time)) if time.ends_with(" s") => step,
        _ => line,
    }
}

/// Takes one request of HTTP, and answers it like this; gives its body.
fn answer(listener: &TcpListener, status: &str) -> String {
    let mut request = BufReader::new(listener.accept().unwrap().0);
    let (mut head, mut length) = (String::new(), 0);
    while request.read_line(&mut head).unwrap() > 2 {
        let line = head.lines().last().unwrap().to_lowercase();
        length = line.strip_prefix("content-length:").map_or(length, |number| number.trim().parse().unwrap());
    }
    let mut body = vec![0; length];
    request.read_exact(&mut body).unwrap();
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    request.get_mut().write_all(answer.as_bytes()).unwrap();
    String::from_utf8(body).unwrap()
}

#[test]
fn the_smallest_handler_tells_what_may_be_the_fault_of_records_from_what_passes_by_itself() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let text = section("README.md", "Writing a handler");
    let script = blocks(&text, "sh")[0].replace("localhost:8080", &address);
    let batch = lines("products", 0, 42..44);
    let run = |served: Option<(&TcpListener, &str)>| {
        let mut command = Command::new("sh");
        command.args(["-c", &script]).env("no_proxy", "*").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut handler = command.spawn().unwrap();
        handler.stdin.take().unwrap().write_all(batch.as_bytes()).unwrap();
        if let Some((listener, status)) = served {
            assert_eq!(answer(listener, status), batch);
        }
        let output = handler.wait_with_output().unwrap();
        assert_eq!(output.stdout, b"");
        output.status.code()
    };
    for (answer, status) in [
        ("200 OK", 0),
        ("202 Accepted", 0),
        ("400 Bad Request", 1),
        ("422 Unprocessable Content", 1),
        ("429 Too Many Requests", 75),
        ("500 Internal Server Error", 75),
        ("503 Service Unavailable", 75),
    ] {
        assert_eq!(run(Some((&listener, answer))), Some(status), "{answer}");
    }
    drop(listener);
    assert_eq!(run(None), Some(75), "nobody listens");
}

#[test]
fn the_fence_of_terms_lets_no_earlier_leader_write() {
    let [postgres, ..] = block_on(primaries("readme_terms"));
    let sql = sql_of("docs/handlers.md", "Two at once");
    let (table, fence) = sql.split_once("-- first in the transaction that writes the batch\n").unwrap();
    block_on(postgres.execute(table));
    let touches = |name: &str, term: u64| {
        let fence = fence.trim_end_matches(';').replace(":topic", "'products'").replace(":partition", "0");
        let fence = fence.replace(":name", &format!("'{name}'")).replace(":term", &term.to_string());
        let counted = format!("WITH fence AS ({fence} RETURNING term) SELECT count(*)::text FROM fence");
        block_on(postgres.texts(&counted)) == ["1"]
    };
    for (name, term, passes) in [
        ("indexer", 5, true),
        ("indexer", 4, false),
        ("indexer", 5, true),
        ("cacher", 4, true),
        // That of --replay, which leaves the others as they are.
        ("indexer", 0, true),
        ("indexer", 4, false),
        ("indexer", 6, true),
        ("indexer", 5, false),
    ] {
        assert_eq!(touches(name, term), passes, "{name} {term}");
    }
}

/// Whether it is written as systemd's settings are, and not as a variable is.
fn is_of_systemd(name: &str) -> bool {
    name.starts_with(char::is_uppercase) && name.contains(char::is_lowercase)
}

/// The value of a setting in a unit.
fn setting<'a>(unit: &'a str, name: &str) -> &'a str {
    let value = unit.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("{name} is not in the unit: {unit}"))
}

#[test]
fn the_units_and_their_file_are_as_it_is_said_of_them() {
    let text = section("README.md", "In production");
    let of_systemd = |file: &str| document(&format!("examples/systemd/{file}"));
    let units = ["ksync-consume@.service", "ksync-delayer.service", "ksync-stream.service"].map(of_systemd);
    // In backquotes, as systemd writes them: `Type=notify`.
    let said = text.split('`').skip(1).step_by(2).filter_map(|code| code.split_once('='));
    let said: Vec<_> = said.filter(|(name, value)| is_of_systemd(name) && !value.is_empty()).collect();
    assert_eq!(said.len(), 5, "{said:?}");
    for unit in &units {
        for (name, value) in &said {
            assert_eq!(setting(unit, name), *value, "{name}");
        }
        // Longer than --grace.
        assert!(setting(unit, "TimeoutStopSec").parse::<u32>().unwrap() > 25, "{unit}");
        assert!(!setting(unit, "WatchdogSec").is_empty());
        let command = setting(unit, "ExecStart").replace("%i", "indexer");
        let (options, _) = command.split_once(" -- ").unwrap_or((command.as_str(), ""));
        let mut words = options.strip_prefix("/usr/local/bin/").unwrap().split(' ');
        let program = Path::new(STREAM).with_file_name(words.next().unwrap());
        let help = Command::new(program).args(words).arg("--help").output().unwrap();
        assert!(help.status.success(), "{command}: {}", String::from_utf8_lossy(&help.stderr));
    }

    let shown = printed(&text);
    let at = shown.iter().position(|line| *line == "# /etc/ksync.conf").unwrap();
    let lines: Vec<_> = shown[at + 1..].iter().copied().take_while(|line| !line.starts_with('#')).collect();
    let file = of_systemd("ksync.conf");
    assert_eq!(lines, file.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>());
    let of_name = units[0].lines().any(|line| line == "EnvironmentFile=-/etc/ksync-%i.conf");
    assert!(of_name && shown.contains(&"# /etc/ksync-indexer.conf"));
}
