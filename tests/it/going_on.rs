//! ksync-stream that goes on where another run has ended: what it reads and counts again, and what it takes for the same job.

use std::fs;
use std::path::Path;

use ksync::database::Dialect;
use rustix::process::Signal;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use crate::support::{End, Primary, World, block_on, primaries};

const STREAM: &str = env!("CARGO_BIN_EXE_ksync-stream");
const UPDATE: &str = "--sql 'UPDATE items SET n = n + 1 WHERE id IN (:keys)'";

/// `items` with ids from 1, none of which is changed yet.
fn items_of(primary: &Primary, rows: u32) {
    block_on(primary.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)"));
    let rows: Vec<String> = (1..=rows).map(|id| format!("({id}, 0)")).collect();
    block_on(primary.execute(&format!("INSERT INTO items VALUES {}", rows.join(", "))));
}

fn source(world: &World, primary: &Primary) -> String {
    let topic = world.topic_with_delay(&format!("items-{:06x}", rand::random::<u32>()), 1);
    format!("-t {topic} --database {} --table items --checkpoint {}", primary.url, world.file("checkpoint").display())
}

/// Runs it until so many rows are changed, and ends it then: its first chunk has just as many.
fn run_a_part(world: &World, command: &str, primary: &Primary, rows: usize) {
    let mut part = world.stream(&format!("{command} --chunk-size {rows} --pause 1h"));
    let changed = || block_on(primary.texts("SELECT id FROM items WHERE n > 0")).len();
    world.eventually("a chunk is done", || changed() == rows);
    part.signal(Signal::TERM);
    assert_eq!((part.wait(), changed()), (End::Status(75), rows), "{:?}", part.log());
}

#[test]
fn a_run_that_goes_on_does_not_look_at_the_rows_again_that_are_done() {
    let world = World::new("not-again");
    let [primary, ..] = block_on(primaries("going_on_reads"));
    items_of(&primary, 30);
    // Each row at which the database looks takes a number.
    block_on(primary.execute("CREATE SEQUENCE looks"));
    let looks = || block_on(primary.texts("SELECT last_value::text FROM looks"))[0].parse::<u32>().unwrap();
    let condition = "--where \"CASE WHEN nextval('looks') > 0 THEN n END = 0\"";
    let command = format!("{} {condition} {UPDATE}", source(&world, &primary));
    run_a_part(&world, &command, &primary, 20);
    // Nor where it finds none behind them.
    block_on(primary.execute("UPDATE items SET n = 1 WHERE id > 20"));
    let before = looks();
    let mut plan = world.stream(&format!("{command} --dry-run"));
    assert_eq!((plan.wait(), looks() - before), (End::Status(0), 10), "{:?}", plan.log());
    block_on(primary.execute("UPDATE items SET n = 0 WHERE id > 20"));
    let before = looks();
    let mut rest = world.stream(&command);
    assert_eq!((rest.wait(), looks() - before), (End::Status(0), 10), "{:?}", rest.log());
    assert_eq!(block_on(primary.texts("SELECT DISTINCT n FROM items")), ["1"]);
}

#[test]
fn the_rows_that_are_left_are_counted_and_those_that_left_the_selection_are_not_taken_off_twice() {
    let world = World::new("count-rest");
    for primary in block_on(primaries("going_on_count")) {
        items_of(&primary, 25);
        let command = format!("{} --where 'n = 0' --count {UPDATE}", source(&world, &primary));
        run_a_part(&world, &command, &primary, 10);
        let printed = world.file("plan");
        let plan = format!("-c \"{STREAM} {command} --chunk-size 10 --dry-run > {}\"", printed.display());
        let mut plan = world.start("sh", &plan, &[]);
        assert_eq!(plan.wait(), End::Status(0), "{primary:?}: {:?}", plan.log());
        let plan = fs::read_to_string(&printed).unwrap();
        assert!(plan.contains(": about 15 rows by id, from 11 to 25\nabout 2 chunks of at most 10"), "{plan}");
        let mut rest = world.stream(&format!("{command} --progress json"));
        assert_eq!(rest.wait(), End::Status(0), "{primary:?}: {:?}", rest.log());
        let figures = rest.log().into_iter().find(|line| line.contains("\"finished\":true")).unwrap();
        let figures: Value = serde_json::from_str(&figures).unwrap();
        assert_eq!((&figures["total"], &figures["done"]), (&json!(15), &json!(15)), "{primary:?}");
    }
}

fn checkpoint(file: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
}

#[test]
fn a_checkpoint_holds_for_the_kafka_cluster_that_it_was_written_for() {
    let world = World::new("cluster");
    let [.., sqlite] = block_on(primaries("going_on_cluster"));
    items_of(&sqlite, 3);
    let command = format!("{} {UPDATE}", source(&world, &sqlite));
    assert_eq!(world.stream(&command).wait(), End::Status(0));
    let file = Path::new(command.split_once("--checkpoint ").unwrap().1.split_once(' ').unwrap().0);
    let kept = checkpoint(file);
    let cluster = kept["job"]["cluster"].as_str().expect("it is noted");
    let with = |there: Option<&str>| {
        let mut kept = kept.clone();
        let job = kept["job"].as_object_mut().unwrap();
        job.remove("cluster");
        job.extend(there.map(|cluster| ("cluster".to_owned(), json!(cluster))));
        fs::write(file, kept.to_string()).unwrap();
        let mut stream = world.stream(&command);
        (stream.wait(), stream.log())
    };
    let (end, log) = with(Some("another"));
    let told = format!("is of another job: cluster: another there, {cluster} here; ");
    assert!(end == End::Status(78) && log.iter().any(|line| line.contains(&told)), "{end:?}: {log:?}");
    // As a release before this one has left it.
    let (end, log) = with(None);
    assert!(end == End::Status(0) && log.iter().any(|line| line.contains("was finished at ")), "{end:?}: {log:?}");
    assert_eq!(block_on(sqlite.texts("SELECT DISTINCT n FROM items")), ["1"]);
}

#[test]
fn a_checkpoint_whose_key_is_a_timestamp_holds_for_the_time_zone_in_which_it_was_read() {
    let world = World::new("time-zone");
    let [_, mariadb, _] = block_on(primaries("going_on_zone"));
    block_on(mariadb.execute("CREATE TABLE items (at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP PRIMARY KEY)"));
    let hours = (0..4).map(|hour| format!("('2024-01-01 0{hour}:00:00')")).collect::<Vec<_>>().join(", ");
    block_on(mariadb.execute(&format!("SET time_zone = '+00:00'; INSERT INTO items VALUES {hours}")));
    let command = source(&world, &mariadb);
    let topic = command.split(' ').nth(1).unwrap();
    let run = |zone: &str, options: &str| {
        world.stream(&format!("{command} --session-sql \"SET time_zone = '{zone}'\" --chunk-size 2 {options}"))
    };
    let mut part = run("+00:00", "--pause 1h");
    world.eventually("a chunk is done", || world.kafka.count(topic) == 2);
    part.signal(Signal::TERM);
    assert_eq!(part.wait(), End::Status(75), "{:?}", part.log());
    // There the last key means another time, and rows behind it would be passed over.
    let mut refused = run("-02:00", "");
    assert_eq!(refused.wait(), End::Status(78), "{:?}", refused.log());
    assert!(refused.says(&[" here; time zone: +00:00 there, -02:00 here; "]), "{:?}", refused.log());
    assert_eq!((run("+00:00", "").wait(), world.kafka.count(topic)), (End::Status(0), 4));
}

#[test]
fn other_settings_of_the_session_are_refused_to_a_job_in_a_table_and_no_row_is_changed_twice() {
    let world = World::new("session-kept");
    for primary in block_on(primaries("going_on_session")) {
        items_of(&primary, 3);
        let set = match primary.dialect {
            Dialect::Postgres => "SET lock_timeout = 7000",
            Dialect::MySql => "SET lock_wait_timeout = 7",
            Dialect::Sqlite => "PRAGMA busy_timeout = 7000",
        };
        let topic = world.topic_with_delay(&format!("items-{:06x}", rand::random::<u32>()), 1);
        let run = |keep: &str| {
            let mut stream =
                world.stream(&format!("-t {topic} --database {} --table items {keep} {UPDATE}", primary.url));
            (stream.wait(), stream.log_of("error"), block_on(primary.texts("SELECT DISTINCT n FROM items")))
        };
        let changed = |times: &str| (End::Status(0), vec![], vec![times.to_owned()]);
        assert_eq!(run("--checkpoint-table"), changed("1"), "{primary:?}");
        let told = format!(
            "the checkpoint in table ksync_checkpoints is of another job: session sql: none there, {set} here; name another one, \
             or begin this job anew with --restart"
        );
        let refused = (End::Status(78), vec![told], vec!["1".to_owned()]);
        assert_eq!(run(&format!("--checkpoint-table --session-sql '{set}'")), refused, "{primary:?}");
        assert_eq!(run(&format!("--checkpoint-table=others --session-sql '{set}'")), changed("2"), "{primary:?}");
    }
}

#[test]
fn a_run_that_is_refused_takes_nothing_from_the_one_at_work_though_the_lock_does_not_hold() {
    let world = World::new("taken-row");
    let [postgres, ..] = block_on(primaries("going_on_taken"));
    items_of(&postgres, 6);
    // Whoever finds it before that of the server gets each lock, as all do behind a pooler.
    let lock = "CREATE FUNCTION pg_try_advisory_lock(bigint) RETURNS boolean LANGUAGE sql AS 'SELECT true'";
    block_on(postgres.execute(lock));
    let set = "SET search_path = ksync_going_on_taken, pg_catalog";
    let topic = world.topic_with_delay(&format!("items-{:06x}", rand::random::<u32>()), 1);
    let command = format!("-t {topic} --database '{}' --table items --checkpoint-table {UPDATE}", postgres.url);
    let seen = world.file("terminal");
    let on_a_terminal = format!("-qfec \"{STREAM} {command} --session-sql '{set}'\" {}", seen.display());
    let mut refused = world.start("script", &on_a_terminal, &[]);
    let shown = || fs::read_to_string(&seen).unwrap_or_default();
    world.eventually("it has found nothing, and asks", || shown().contains("begin? [y/N]"));

    let mut other = block_on(PgConnection::connect(&postgres.url)).unwrap();
    let hold = "BEGIN; SELECT FROM items WHERE id = 3 FOR UPDATE";
    block_on(sqlx::raw_sql(hold).execute(&mut other)).unwrap();
    let mut first = world.stream(&format!("{command} --chunk-size 2"));
    let changed = || block_on(postgres.texts("SELECT id FROM items WHERE n > 0")).len();
    world.eventually("a chunk is done", || changed() == 2);

    refused.tell("yes\n");
    assert_eq!(refused.wait(), End::Status(78), "{}", shown());
    let told = format!("is of another job: session sql: none there, {set} here; ");
    assert!(shown().contains(&told), "{}", shown());
    block_on(other.close()).unwrap();
    assert_eq!(first.wait(), End::Status(0), "{:?}", first.log());
    assert_eq!(block_on(postgres.texts("SELECT DISTINCT n FROM items")), ["1"]);
}

#[test]
fn a_checkpoint_holds_for_the_user_for_whom_row_security_has_chosen_its_rows() {
    let world = World::new("row-security");
    let [postgres, ..] = block_on(primaries("going_on_user"));
    block_on(postgres.execute(
        "CREATE TABLE items (id INTEGER PRIMARY KEY);
         CREATE TABLE hidden (id INTEGER PRIMARY KEY);
         CREATE TABLE parts (id INTEGER PRIMARY KEY) PARTITION BY HASH (id);
         CREATE TABLE one_part PARTITION OF parts FOR VALUES WITH (MODULUS 1, REMAINDER 0);
         CREATE VIEW shown AS SELECT id FROM hidden;
         INSERT INTO items VALUES (1); INSERT INTO hidden VALUES (1); INSERT INTO parts VALUES (1);
         ALTER TABLE hidden ENABLE ROW LEVEL SECURITY; CREATE POLICY all_rows ON hidden USING (true);
         ALTER TABLE parts ENABLE ROW LEVEL SECURITY; CREATE POLICY all_rows ON parts USING (true)",
    ));
    for user in ["ksync_alice", "ksync_bob"] {
        block_on(postgres.execute(&format!(
            "DROP ROLE IF EXISTS {user}; CREATE ROLE {user} LOGIN; GRANT USAGE ON SCHEMA ksync_going_on_user TO {user};
             GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA ksync_going_on_user TO {user}"
        )));
    }
    for (source, is_of_user) in [
        // What is hidden in another table is all the same.
        ("--table items", false),
        ("--table hidden", true),
        ("--table parts", true),
        ("--table shown --key id", true),
        ("--query 'SELECT id FROM hidden' --key id", true),
        ("--table items --where 'id IN (SELECT id FROM hidden)'", true),
        ("--table items --sql 'UPDATE hidden SET id = id WHERE id IN (:keys)'", true),
    ] {
        let topic = world.topic_with_delay(&format!("items-{:06x}", rand::random::<u32>()), 1);
        let file = world.file("checkpoint");
        let run = |user: &str| {
            let url = postgres.url.replace("//ksync@", &format!("//{user}@"));
            let mut stream =
                world.stream(&format!("-t {topic} --database {url} {source} --checkpoint {}", file.display()));
            (stream.wait(), stream.log())
        };
        let (end, log) = run("ksync_alice");
        assert_eq!(end, End::Status(0), "{source}: {log:?}");
        // The second one is not subject to any policy.
        for user in ["ksync_bob", "ksync"] {
            let (end, log) = run(user);
            let by = if user == "ksync_bob" { " (row security)" } else { "" };
            let told = format!("is of another job: user: ksync_alice (row security) there, {user}{by} here; ");
            let is_told = log.iter().any(|line| line.contains(&told));
            let status = if is_of_user { 78 } else { 0 };
            assert_eq!((end, is_told), (End::Status(status), is_of_user), "{source} {user}: {log:?}");
        }
    }
}

#[test]
fn a_checkpoint_holds_though_row_security_was_turned_on_meanwhile_for_another_table() {
    let world = World::new("row-security-on");
    let [postgres, ..] = block_on(primaries("going_on_same_user"));
    block_on(postgres.execute(
        "CREATE TABLE items (id INTEGER PRIMARY KEY); CREATE TABLE others (id INTEGER PRIMARY KEY);
         INSERT INTO items SELECT generate_series(1, 9); INSERT INTO others VALUES (1);
         DROP ROLE IF EXISTS ksync_carol; CREATE ROLE ksync_carol LOGIN;
         GRANT USAGE ON SCHEMA ksync_going_on_same_user TO ksync_carol;
         GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA ksync_going_on_same_user TO ksync_carol",
    ));
    let url = postgres.url.replace("//ksync@", "//ksync_carol@");
    for what in ["--where 'id > 0'", "--sql 'UPDATE items SET id = id WHERE id IN (:keys)'"] {
        let topic = world.topic_with_delay(&format!("items-{:06x}", rand::random::<u32>()), 1);
        let file = world.file("checkpoint");
        for turn in ["DISABLE", "ENABLE"] {
            block_on(postgres.execute(&format!("ALTER TABLE others {turn} ROW LEVEL SECURITY")));
            let source = format!("--table items --checkpoint {} {what}", file.display());
            let mut stream = world.stream(&format!("-t {topic} --database {url} {source}"));
            assert_eq!(stream.wait(), End::Status(0), "{what}, {turn}: {:?}", stream.log());
        }
    }
}
