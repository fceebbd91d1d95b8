//! ksync-stream that ends early or is killed, and the next run that goes on: checkpoints, locks, time windows.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use ksync::database::Dialect;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::stream::delayed;
use crate::support::{End, Primary, Process, World, block_on, is_full, payload, primaries};

/// `items` with ids from 1, none of which is changed yet.
fn items_of(primary: &Primary, rows: u32) {
    block_on(primary.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)"));
    let rows: Vec<String> = (1..=rows).map(|id| format!("({id}, 0)")).collect();
    block_on(primary.execute(&format!("INSERT INTO items VALUES {}", rows.join(", "))));
}

const UPDATE: &str = "--sql 'UPDATE items SET n = n + 1 WHERE id IN (:keys)'";

fn topic(world: &World) -> String {
    world.topic_with_delay(&format!("items-{:06x}", rand::random::<u32>()), 1)
}

fn source(topic: &str, primary: &Primary) -> String {
    format!("-t {topic} --database {} --table items", primary.url)
}

fn checkpoint(file: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
}

/// Payloads of the items with these ids.
fn payloads(ids: impl IntoIterator<Item = u32>) -> Vec<String> {
    ids.into_iter().map(|id| format!("{{\"id\":{id}}}")).collect()
}

fn instant(world: &World, topic: &str) -> Vec<String> {
    world.kafka.records(topic).into_iter().map(|record| record.value.unwrap()).collect()
}

/// The payloads of the rows that were changed.
fn changed(primary: &Primary) -> BTreeSet<String> {
    let ids = block_on(primary.texts("SELECT id FROM items WHERE n > 0"));
    payloads(ids.iter().map(|id| id.parse().unwrap())).into_iter().collect()
}

const ROWS: u32 = 300;
const CHUNK: usize = 5;
/// Of the moments of the plain form.
const SEED: u64 = 6;

/// One job that is killed at random until it is through.
struct Job<'a> {
    world: &'a World,
    primary: &'a Primary,
    topic: String,
    command: String,
    kills: usize,
}

impl Job<'_> {
    /// Kills it at most so often.
    fn run(&mut self, kills: usize, random: &mut StdRng) {
        loop {
            let mut stream = self.world.stream(&self.command);
            if self.kills < kills {
                let mut latest = 400;
                if random.random() {
                    // Where most of the moments are that matter.
                    let before = changed(self.primary);
                    self.world.eventually("it is at work", || changed(self.primary) != before || !stream.is_running());
                    latest = 50;
                }
                let moment = Instant::now() + Duration::from_millis(random.random_range(0..latest));
                self.world.eventually("the moment comes", || Instant::now() >= moment || !stream.is_running());
            }
            if self.kills < kills && stream.is_running() {
                stream.signal(Signal::KILL);
            }
            match stream.wait() {
                End::By(Signal::KILL) => {
                    self.kills += 1;
                    let (changed, delayed) = (changed(self.primary), delayed(self.world, &self.topic));
                    assert!(changed.is_subset(&delayed.into_iter().collect()), "changed, and not covered");
                }
                // It was done a moment before.
                End::Status(0) => return,
                // The session of the one that was killed is not at its end.
                End::Status(4) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn check(&self, keep: &str) {
        let (all, repeated) = (payloads(1..=ROWS).into_iter().collect::<BTreeSet<_>>(), self.kills * CHUNK);
        let about = format!("{:?} {keep}", self.primary);
        assert_eq!(changed(self.primary), all, "{about}");
        let counts = block_on(self.primary.texts("SELECT n FROM items"));
        let times: usize = counts.iter().map(|n| n.parse::<usize>().unwrap()).sum();
        let missing = all.difference(&instant(self.world, &self.topic).into_iter().collect()).count();
        if keep == "table" {
            assert_eq!(times, ROWS as usize, "{about}: a row was changed twice");
            assert!(missing <= repeated, "{about}: {missing} without an instant message");
        } else {
            assert!(times <= ROWS as usize + repeated, "{about}: more than a chunk was done again");
            assert_eq!(missing, 0, "{about}");
        }
    }
}

#[test]
fn streams_killed_at_random_change_all_rows_each_covered_and_with_a_table_each_once() {
    let world = World::new("killed");
    let seed = if is_full() { rand::random() } else { SEED };
    // Shown where it fails.
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let kills = if is_full() { 50 } else { 2 };
    let (mut topics, mut killed) = (vec![], 0);
    for primary in block_on(primaries("resume_killed")) {
        items_of(&primary, ROWS);
        for keep in ["file", "table"] {
            let mut left = kills;
            while left > 0 {
                block_on(primary.execute("UPDATE items SET n = 0"));
                let topic = topic(&world);
                let option = match keep {
                    "file" => format!("--checkpoint {}", world.file("checkpoint").display()),
                    _ => "--checkpoint-table".to_owned(),
                };
                let command = format!("{} --delay 1s --chunk-size {CHUNK} {option} {UPDATE}", source(&topic, &primary));
                let mut job = Job { world: &world, primary: &primary, topic, command, kills: 0 };
                job.run(left, &mut random);
                job.check(keep);
                (left, killed) = (left - job.kills, killed + job.kills);
                topics.push(job.topic);
            }
        }
    }
    assert_eq!(killed, 6 * kills);
    // What lacks its instant message has its delay message.
    let handler = world.handler("");
    let list = topics.join(",");
    let _delayer = world.delayer(&format!("-t {list} --delay 1s"));
    let _consumer = world.consume(&format!("-t {list} -n indexer -- {handler}"));
    let all: BTreeSet<_> = payloads(1..=ROWS).into_iter().collect();
    let limit = Duration::from_secs(if is_full() { 300 } else { 120 });
    world.within(limit, "the handler gets each row of each topic", || {
        let runs = handler.runs();
        topics.iter().all(|topic| {
            let lines = runs.iter().filter(|run| run.topic == *topic).flat_map(|run| &run.lines);
            lines.map(|line| payload(line)).collect::<BTreeSet<_>>() == all
        })
    });
}

#[test]
fn sigterm_leaves_a_checkpoint_that_the_next_run_goes_on_from() {
    let world = World::new("resume-term");
    for primary in block_on(primaries("resume_term")) {
        block_on(primary.execute("CREATE TABLE parts (a INTEGER, b VARCHAR(9), PRIMARY KEY (a, b))"));
        block_on(primary.execute("INSERT INTO parts VALUES (1, 'x'), (1, 'y\"'), (2, 'x'), (3, 'x')"));
        let (topic, file, gate, got) = (topic(&world), world.file("checkpoint"), world.gate(), world.file("got"));
        let action = world.script(&format!("cat >> {}; await {gate}", got.display()));
        let command = format!(
            "-t {topic} --database {} --table parts --chunk-size 2 --checkpoint {} -- {action}",
            primary.url,
            file.display()
        );
        let mut stream = world.stream(&command);
        world.eventually("the action runs", || fs::read_to_string(&got).is_ok_and(|text| text.lines().count() == 2));
        stream.signal(Signal::TERM);
        world.eventually("the end was asked for", || stream.says(&["asked to end"]));
        gate.open();
        assert_eq!(stream.wait(), End::Status(75), "{primary:?}");
        let text = r#"asked to end before the end of the source; run it again to go on behind key 1, y""#;
        assert!(stream.says(&["info: ", text]), "{primary:?}");
        let mut kept = checkpoint(&file);
        let job = kept["job"].as_object_mut().unwrap();
        assert_eq!((job["table"].as_str(), job["key"].as_str()), (Some("parts"), Some("a, b")));
        assert_eq!(
            (kept["last"].take(), kept["rows"].take(), kept["messages"].take(), kept["finished"].take()),
            (json!([{"integer": 1}, {"text": "y\""}]), json!(2), json!(4), json!(false))
        );
        let mut stream = world.stream(&command);
        assert_eq!(stream.wait(), End::Status(0), "{primary:?}");
        assert!(stream.says(&[r#"info: going on behind key 1, y": 2 rows were done by 20"#]), "{primary:?}");
        let expected = [r#"{"a":1,"b":"x"}"#, r#"{"a":1,"b":"y\""}"#, r#"{"a":2,"b":"x"}"#, r#"{"a":3,"b":"x"}"#];
        assert_eq!(fs::read_to_string(&got).unwrap().lines().collect::<Vec<_>>(), expected, "{primary:?}");
        assert_eq!(instant(&world, &topic), expected, "{primary:?}");
        // The second chunk was read, and covered, while the action of the first was at work.
        let covered = [&expected[..], &expected[2..]].concat();
        assert_eq!(delayed(&world, &topic), covered, "{primary:?}");
        assert_eq!(checkpoint(&file)["finished"], json!(true));
    }
}

#[test]
fn a_reindex_keeps_how_far_it_is_and_begins_anew_once_it_was_finished() {
    let world = World::new("resume-reindex");
    let [_, _, sqlite] = block_on(primaries("resume_reindex"));
    items_of(&sqlite, 10);
    let (topic, file) = (topic(&world), world.file("checkpoint"));
    let command = format!("{} --chunk-size 3 --checkpoint {}", source(&topic, &sqlite), file.display());
    assert_eq!(world.stream(&command).wait(), End::Status(0));
    // As it was after the second chunk.
    let mut kept = checkpoint(&file);
    (kept["last"], kept["rows"], kept["finished"]) = (json!([{"integer": 6}]), json!(6), json!(false));
    fs::write(&file, kept.to_string()).unwrap();
    let mut stream = world.stream(&command);
    assert_eq!(stream.wait(), End::Status(0));
    assert!(stream.says(&["info: going on behind key 6: 6 rows were done by "]));
    assert_eq!((checkpoint(&file)["rows"].clone(), instant(&world, &topic).len()), (json!(10), 14));
    let mut stream = world.stream(&command);
    assert_eq!(stream.wait(), End::Status(0));
    assert!(stream.says(&["info: ", "says that this job was finished at ", ", with 10 rows: beginning anew"]));
    assert_eq!(instant(&world, &topic)[14..], payloads(1..=10));
}

#[test]
fn a_finished_action_is_not_done_again_unless_the_job_is_begun_anew() {
    let world = World::new("finished");
    for primary in block_on(primaries("resume_finished")) {
        items_of(&primary, 10);
        for (keep, label) in [
            (format!("--checkpoint {0}/finished-{primary:?}", world.dir.display()), "finished-"),
            ("--checkpoint-table=\"progress\"".to_owned(), "the checkpoint in table progress"),
        ] {
            block_on(primary.execute("UPDATE items SET n = 0"));
            let topic = topic(&world);
            let command = format!("{} --chunk-size 4 {keep} {UPDATE}", source(&topic, &primary));
            for (restart, told, n) in [("", false, "1"), ("", true, "1"), ("--restart", false, "2")] {
                // A table is that of the database under any of its addresses.
                let address = if told && keep.contains("table") { "localhost" } else { "127.0.0.1" };
                let mut stream = world.stream(&format!("{command} {restart}").replace("127.0.0.1", address));
                assert_eq!(stream.wait(), End::Status(0), "{primary:?} {keep}");
                let text = "says that this job was finished at ";
                let says = stream.says(&["info: ", label, text, ", with 10 rows; --restart begins it anew"]);
                assert_eq!(says, told, "{primary:?} {keep}");
                assert_eq!(block_on(primary.texts("SELECT DISTINCT n FROM items")), [n], "{primary:?} {keep}");
            }
            assert_eq!(instant(&world, &topic).len(), 20, "{primary:?} {keep}");
        }
    }
}

#[test]
fn a_checkpoint_of_another_job_is_refused_difference_by_difference() {
    let world = World::new("other-job");
    let [postgres, mariadb, _] = block_on(primaries("resume_other"));
    for primary in [&postgres, &mariadb] {
        items_of(primary, 3);
        block_on(primary.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, n INTEGER)"));
    }
    let (topic, other, file) = (topic(&world), topic(&world), world.file("checkpoint"));
    let keep = format!("--checkpoint {}", file.display());
    assert_eq!(world.stream(&format!("{} {keep} {UPDATE}", source(&topic, &postgres))).wait(), End::Status(0));
    let sql = "UPDATE items SET n = n + 1 WHERE id IN (:keys)";
    let place = |primary: &Primary| {
        let (_, address) = primary.url.split_once('@').unwrap();
        address.split_once('/').unwrap().0.to_owned()
    };
    let cases = [
        (format!("{} {UPDATE}", source(&other, &postgres)), format!("topic: {topic} there, {other} here")),
        (
            format!("{} --where 'n < 9' -p 0 --only delay -- cat", source(&topic, &postgres).replace("items", "orders")),
            format!(
                "command: none there, [\"cat\"] here; messages: delay and instant there, delay here; partitions: none \
                 there, 0 here; sql: {sql} there, none here; table: items there, orders here; where: none there, n < 9 here"
            )
            .replace("topic: items", "topic: orders"),
        ),
        (
            format!("{} {UPDATE} --session-sql 'SET lock_timeout = 1000'", source(&topic, &postgres)),
            "session sql: none there, SET lock_timeout = 1000 here".to_owned(),
        ),
        (
            format!("{} {UPDATE}", source(&topic, &mariadb)),
            format!(
                "database: {}, schema ksync_resume_other there, ksync_resume_other here; server: postgres at {} there, \
                 mysql at {} here",
                postgres.url.split_once('?').unwrap().0.rsplit_once('/').unwrap().1,
                place(&postgres),
                place(&mariadb)
            ),
        ),
    ];
    let before = fs::read(&file).unwrap();
    for (arguments, differences) in cases {
        let (arguments, keep) = match arguments.split_once(" -- ") {
            Some((options, words)) => (format!("{options} {keep} -- {words}"), String::new()),
            None => (arguments, keep.clone()),
        };
        let arguments = arguments.replace("-t orders-", "-t items-");
        let mut stream = world.stream(&format!("{arguments} {keep}"));
        assert_eq!(stream.wait(), End::Status(78), "{arguments}");
        let text = format!(
            "the checkpoint {} is of another job: {differences}; name another one, or begin this job anew with --restart",
            file.display()
        );
        assert_eq!(stream.log_of("error"), [text]);
    }
    assert_eq!(fs::read(&file).unwrap(), before);
    assert_eq!((world.kafka.count(&topic), world.kafka.count(&format!("{other}-delay"))), (3, 0));
    let mut stream = world.stream(&format!("{} {keep} --restart {UPDATE}", source(&other, &postgres)));
    assert_eq!((stream.wait(), world.kafka.count(&other)), (End::Status(0), 3));
}

#[test]
fn a_checkpoint_that_cannot_be_used_is_told_before_anything_is_sent() {
    let world = World::new("unusable");
    let [_, _, sqlite] = block_on(primaries("resume_unusable"));
    items_of(&sqlite, 3);
    let topic = topic(&world);
    let (cut, later, folder) = (world.file("cut"), world.file("later"), world.file("folder"));
    fs::write(&cut, "{\"v\": 1, \"job\": {\"topic\"").unwrap();
    fs::write(&later, "{\"v\": 2, \"jobs\": []}").unwrap();
    fs::create_dir(&folder).unwrap();
    let missing = world.dir.join("missing/checkpoint");
    let retyped = world.file("retyped");
    assert_eq!(
        world.stream(&format!("{} --checkpoint {} {UPDATE}", source(&topic, &sqlite), retyped.display())).wait(),
        End::Status(0)
    );
    let mut kept = checkpoint(&retyped);
    (kept["last"], kept["finished"]) = (json!([{"integer": 6}, {"text": "x"}]), json!(false));
    fs::write(&retyped, kept.to_string()).unwrap();
    for (file, text) in [
        (&cut, format!("cannot use the checkpoint {}: it is no checkpoint, or only a part of one: EOF", cut.display())),
        (
            &later,
            format!(
                "cannot use the checkpoint {}: it has version 2, of a later ksync-stream; this one knows 1",
                later.display()
            ),
        ),
        (&folder, format!("cannot read the checkpoint {}: Is a directory", folder.display())),
        (
            &missing,
            format!(
                "cannot make {0}.lock, the lock of the checkpoint {0}; its folder has to be there and ours to write \
                 to: No such file or directory",
                missing.display()
            ),
        ),
        (&retyped, "table items cannot be read on behind '6, x': its id is now of another type".to_owned()),
    ] {
        let mut stream = world.stream(&format!("{} --checkpoint {} {UPDATE}", source(&topic, &sqlite), file.display()));
        assert_eq!(stream.wait(), End::Status(78), "{text}");
        let errors = stream.log_of("error");
        assert!(errors.len() == 1 && errors[0].starts_with(&text), "{errors:?}, not {text}");
    }
    // Where nothing is left to be read, its key is all the same.
    kept["finished"] = json!(true);
    fs::write(&retyped, kept.to_string()).unwrap();
    let mut over = world.stream(&format!("{} --checkpoint {} {UPDATE}", source(&topic, &sqlite), retyped.display()));
    assert_eq!(over.wait(), End::Status(0), "{:?}", over.log());
    assert!(over.says(&["says that this job was finished at "]), "{:?}", over.log());
    assert_eq!(world.kafka.count(&format!("{topic}-delay")), 3);
}

#[test]
fn options_of_resuming_that_do_not_fit_are_refused_by_name() {
    let world = World::new("resume-usage");
    let table = "-t products --database sqlite:products.db --table products";
    for (arguments, text) in [
        (
            "- -t products --checkpoint FILE",
            "--checkpoint is of no use with lines of stdin, which cannot be read again; name --table or --query",
        ),
        (
            &format!("{table} --checkpoint-table"),
            "--checkpoint-table is written in the transactions of --sql; without it use --checkpoint",
        ),
        (
            &format!("{table} --checkpoint-table --only instant --sql 'DELETE FROM t WHERE id IN (:keys)'"),
            "--checkpoint-table needs the delay messages, which cover a crash behind a commit; leave out --only instant",
        ),
        (
            &format!("{table} --checkpoint FILE --checkpoint-table"),
            "--checkpoint and --checkpoint-table keep the same; name one of them",
        ),
        (&format!("{table} --restart"), "--restart needs --checkpoint or --checkpoint-table"),
    ] {
        let mut stream = world.stream(arguments);
        assert_eq!(stream.wait(), End::Status(2), "{arguments}");
        assert_eq!(stream.log_of("error"), [text], "{arguments}");
    }
}

#[test]
fn a_second_run_of_the_same_job_ends_at_once_with_status_4_and_another_job_runs_beside_it() {
    let world = World::new("twice");
    for primary in block_on(primaries("resume_twice")) {
        items_of(&primary, 4);
        let (topic, gate, file) = (topic(&world), world.gate(), world.file("checkpoint"));
        let action = world.script(&format!("cat > /dev/null; await {gate}"));
        let begun = world.file("begun");
        let slow = world.script(&format!("cat > {}; await {gate}", begun.display()));
        let run =
            |options: &str, action: &str| world.stream(&format!("{} {options} -- {action}", source(&topic, &primary)));
        let with_file = format!("--checkpoint {}", file.display());
        let mut first = run(&with_file, &slow);
        world.eventually("the first is at work", || begun.exists());

        let mut second = run(&with_file, &slow);
        assert_eq!(second.wait(), End::Status(4), "{primary:?}");
        let holder = format!("another run uses the checkpoint {}: process {} on ", file.display(), first.pid);
        let told = second.log_of("error");
        assert!(told.len() == 1 && told[0].starts_with(&holder) && told[0].contains(" since 20"), "{told:?}");

        let mut second = run("", &slow);
        assert_eq!(second.wait(), End::Status(4), "{primary:?}");
        let holder = match primary.dialect {
            Dialect::Postgres => " from 127.0.0.1 since 20",
            Dialect::MySql => " from 127.0.0.1",
            Dialect::Sqlite => "",
        };
        let told = second.log_of("error");
        let text = format!(
            "cannot begin (topic {topic}, table items): a session of the database is at the same job already{holder}"
        );
        assert!(told.len() == 1 && told[0].starts_with(&text), "{primary:?}: {told:?}");

        // By another statement, or with another condition, it is another job.
        let mut beside = run("--where 'id < 3'", "cat");
        assert_eq!(beside.wait(), End::Status(0), "{primary:?}");
        // Without an action nothing can be done twice that must not.
        let mut beside = world.stream(&source(&topic, &primary));
        assert_eq!(beside.wait(), End::Status(0), "{primary:?}");
        gate.open();
        assert_eq!(first.wait(), End::Status(0), "{primary:?}");
        assert_eq!(run("", &action).wait(), End::Status(0), "{primary:?}");
    }
}

#[test]
fn a_run_ends_with_its_time_and_the_next_one_goes_on() {
    let world = World::new("window");
    let [_, _, sqlite] = block_on(primaries("resume_window"));
    items_of(&sqlite, 6);
    let (topic, file, got) = (topic(&world), world.file("checkpoint"), world.file("got"));
    let (first, begun) = (world.gate(), world.file("begun"));
    let slow = world.script(&format!("cat >> {}; touch {}; await {first}", got.display(), begun.display()));
    let run = |options: &str| -> Process {
        let keep = format!("--chunk-size 2 --checkpoint {}", file.display());
        world.stream(&format!("{} {keep} {options} -- {slow}", source(&topic, &sqlite)))
    };
    let over = |stream: &Process, option: &str| {
        stream.says(&["info: the time is over (", option, "): finishing what is under way"])
    };

    let mut stream = run("--until 2020-01-01T00:00Z");
    assert_eq!(stream.wait(), End::Status(75));
    assert!(over(&stream, "--until 2020-01-01T00:00:00Z") && !begun.exists());

    let mut stream = run("--max-time 15s");
    world.eventually("a chunk is under way", || begun.exists());
    world.eventually("its time is over", || over(&stream, "--max-time 15s"));
    assert!(stream.is_running());
    first.open();
    assert_eq!(stream.wait(), End::Status(75));
    assert!(stream.says(&["asked to end before the end of the source; run it again to go on behind key 2"]));
    assert_eq!(fs::read_to_string(&got).unwrap().lines().collect::<Vec<_>>(), payloads(1..=2));

    assert_eq!(run("--max-time 1h").wait(), End::Status(0));
    assert_eq!(fs::read_to_string(&got).unwrap().lines().collect::<Vec<_>>(), payloads(1..=6));
}

#[test]
fn a_missing_right_to_the_checkpoint_table_is_told_with_what_mends_it() {
    let world = World::new("rights");
    let [postgres, mariadb, _] = block_on(primaries("resume_rights"));
    let poor = |primary: &Primary| {
        let (scheme, rest) = primary.url.split_once("://").unwrap();
        let url = format!("{scheme}://ksync_poor@{}", rest.rsplit_once('@').unwrap().1);
        Primary { dialect: primary.dialect, url }
    };
    for primary in [&postgres, &mariadb] {
        items_of(primary, 3);
    }
    block_on(postgres.execute(
        "DROP ROLE IF EXISTS ksync_poor; CREATE ROLE ksync_poor LOGIN; GRANT USAGE ON SCHEMA ksync_resume_rights TO ksync_poor;
         GRANT SELECT, UPDATE ON items TO ksync_poor",
    ));
    block_on(mariadb.execute(
        "CREATE OR REPLACE USER ksync_poor@'127.0.0.1'; GRANT SELECT, UPDATE ON items TO ksync_poor@'127.0.0.1'",
    ));
    for (primary, who) in [(&postgres, "ksync_poor"), (&mariadb, "'ksync_poor'@'127.0.0.1'")] {
        let topic = topic(&world);
        let command = format!("{} --checkpoint-table {UPDATE}", source(&topic, &poor(primary)));
        let mut stream = world.stream(&command);
        assert_eq!(stream.wait(), End::Status(78), "{primary:?}");
        let told = stream.log_of("error");
        assert!(
            told[0].starts_with("cannot use table ksync_checkpoints (let its owner run: CREATE TABLE "),
            "{told:?}"
        );
        assert_eq!(world.kafka.count(&format!("{topic}-delay")), 0);
        // What it says is done.
        let sql = told[0].split_once("run: ").unwrap().1.split_once(";)").unwrap().0;
        assert!(sql.ends_with(&format!(" TO {who}")), "{told:?}");
        block_on(primary.execute(sql));
        assert_eq!(world.stream(&command).wait(), End::Status(0), "{primary:?}");
        assert_eq!(block_on(primary.texts("SELECT DISTINCT n FROM items")), ["1"]);
    }
}
