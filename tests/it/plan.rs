//! What ksync-stream tells of a run before it begins, and how it fits its chunks to what they cost.

use std::fs;

use ksync::database::Dialect;
use rustix::process::Signal;

use crate::stream::delayed;
use crate::support::{End, Primary, World, block_on, primaries};

const STREAM: &str = env!("CARGO_BIN_EXE_ksync-stream");

/// `products` with so many rows, and no index but that of the primary key.
pub fn products_of(primary: &Primary, rows: usize) {
    block_on(primary.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, code INTEGER NOT NULL, price INTEGER)"));
    for ids in (1..=rows).collect::<Vec<_>>().chunks(5000) {
        let rows: Vec<_> = ids.iter().map(|id| format!("({id}, {}, 0)", 100_000 - id)).collect();
        block_on(primary.execute(&format!("INSERT INTO products VALUES {}", rows.join(", "))));
    }
    let analyze = if primary.dialect == Dialect::MySql { "ANALYZE TABLE products" } else { "ANALYZE products" };
    block_on(primary.execute(analyze));
}

pub fn changed(primary: &Primary) -> usize {
    block_on(primary.texts("SELECT id FROM products WHERE price = 1")).len()
}

/// In the words of the plan.
fn place(primary: &Primary) -> String {
    let (server, rest) = primary.url.rsplit_once('/').unwrap();
    let (_, server) = server.rsplit_once('@').unwrap_or_default();
    match primary.dialect {
        Dialect::Postgres => format!("postgres at {server}, ksync, schema {}", rest.rsplit_once("%3D").unwrap().1),
        Dialect::MySql => format!("mysql at {server}, {rest}"),
        Dialect::Sqlite => fs::canonicalize(primary.url.replace("sqlite:", "")).unwrap().display().to_string(),
    }
}

#[test]
fn a_dry_run_tells_what_the_checkpoint_leaves_to_be_done() {
    let world = World::new("dry-resume");
    for (primary, other) in block_on(primaries("plan_resume")).into_iter().zip(block_on(primaries("plan_action"))) {
        products_of(&primary, 25);
        products_of(&other, 25);
        let topic = world.topic_with_delay(&format!("products-{:06x}", rand::random::<u32>()), 1);
        let sql = "--sql 'UPDATE products SET price = 1 WHERE id IN (:keys)'";
        let kept = [
            (format!("--checkpoint {}", world.file("checkpoint").display()), &primary, 78),
            (format!("--checkpoint-table --action-database {}", other.url), &other, 0),
        ];
        for (keep, database, of_another_job) in kept {
            let source = format!("-t {topic} --database {} --table products --chunk-size 10 {keep} {sql}", primary.url);
            let plan = |options: &str| {
                let printed = world.file("plan");
                let command = format!("{STREAM} {source} --count --dry-run {options} > {}", printed.display());
                let mut stream = world.start("sh", &format!("-c \"{command}\""), &[]);
                assert_eq!(stream.wait(), End::Status(0), "{options}: {:?}", stream.log());
                fs::read_to_string(&printed).unwrap()
            };
            let whole = plan("");
            assert!(
                whole.contains(&format!(" in {}: about 25 rows by id, from 1 to 25\n", place(&primary))),
                "{whole}"
            );
            assert_eq!(whole.contains(&format!("\n    in {}\n", place(&other))), database.url == other.url, "{whole}");
            let mut part = world.stream(&format!("{source} --pause 1h"));
            world.eventually("a chunk is done", || changed(database) == 10);
            part.signal(Signal::TERM);
            assert_eq!(part.wait(), End::Status(75));

            let rest = plan("");
            assert!(rest.starts_with("going on behind key 10: 10 rows were done by 20"), "{rest}");
            assert!(rest.contains(": about 15 rows by id, from 11 to 25\nabout 2 chunks of at most 10"), "{rest}");
            assert!(rest.contains("(the keys from 11 on)"), "{rest}");
            assert_eq!(plan("--restart"), whole);
            assert_eq!(world.stream(&source).wait(), End::Status(0));
            let over = plan("");
            assert!(over.contains("says that this job was finished at ") && over.lines().count() == 1, "{over}");
            let mut another = world.stream(&format!("{source} --dry-run --where 'id > 3'"));
            assert_eq!(another.wait(), End::Status(of_another_job), "{:?}", another.log());
        }
        assert_eq!(block_on(other.texts("SELECT job FROM ksync_checkpoints")).len(), 1);
    }
}

#[test]
fn a_dry_run_prints_the_plan_and_does_nothing() {
    let world = World::new("dry-run");
    for primary in block_on(primaries("plan_dry")) {
        products_of(&primary, 25);
        let topic = world.topic_with_delay(&format!("products-{:06x}", rand::random::<u32>()), 2);
        let printed = world.file("plan");
        let run = |options: &str| {
            let source = format!("--database '{}' --table products --chunk-size 10", primary.url);
            let command = format!("{STREAM} -t {topic} {source} --dry-run {options} > {}", printed.display());
            let mut stream = world.start("sh", &format!("-c \"{command}\""), &[]);
            assert_eq!(stream.wait(), End::Status(0), "{options}: {:?}", stream.log());
            fs::read_to_string(&printed).unwrap()
        };
        let place = place(&primary);
        let harm = "which does no harm to SET a = 1, but to SET a = a + 1; --checkpoint-table avoids that";
        let guarded = run("--count --rate 5 --sql 'UPDATE products  SET price = 1 WHERE id IN (:keys)'");
        let expected = format!(
            "table products in {place}: about 25 rows by id, from 1 to 25\n\
             about 3 chunks of at most 10 rows, the first of them has 10, up to id 10\n\
             for each chunk:\n  \
             delay messages to {topic}-delay (2 partitions), acknowledged; they are held for 5m\n  \
             UPDATE products  SET price = 1 WHERE id IN (the keys from 1 on)\n  \
             instant messages to {topic} (2 partitions), acknowledged\n\
             each consumer of {topic} gets about 50 records\n\
             it takes at least 5s by --rate and --pause\n\
             should it die, the next run does all again, {harm}\n"
        );
        assert_eq!(guarded, expected, "{primary:?}");
        let reindex = run("--where 'id > 20'");
        let expected = format!(
            "table products in {place}: an unknown number of rows by id, from 21 to 25\n\
             chunks of at most 10 rows, the first of them has 5, up to id 25\n\
             for each chunk:\n  \
             instant messages to {topic} (2 partitions), acknowledged\n"
        );
        assert_eq!(reindex, expected, "{primary:?}");
        // The first chunks are smaller, so that nobody knows how many there will be.
        let large = run("--count --payload row --rate 5");
        assert!(large.contains("\nchunks of at most 10 rows, the first of them has 10, up to id 10\n"), "{large}");
        assert!(large.contains("\nit takes at least 5s by --rate and --pause\n"), "{large}");
        assert_eq!(run("--where 'id > 30'"), "table products has no rows left: nothing would be done\n", "{primary:?}");
        let file = world.file("checkpoint");
        let resumed = run(&format!("--checkpoint {} --only delay -- wc -l", file.display()));
        assert!(resumed.contains("\n  wc -l, with the payloads on stdin\n"), "{resumed}");
        assert!(resumed.contains("may do one chunk twice, which has to do no harm\n"), "{resumed}");
        assert!(!resumed.contains("instant") && !resumed.contains("--checkpoint-table"), "{resumed}");
        assert_eq!((changed(&primary), world.kafka.count(&topic), delayed(&world, &topic).len()), (0, 0, 0));
        assert!(!file.exists());
    }
    let mut refused = world.stream("- -t products --dry-run");
    assert_eq!(refused.wait(), End::Status(2));
    assert!(refused.says(&["--dry-run needs rows of a database"]), "{:?}", refused.log());
}

#[test]
fn a_dry_run_shows_the_statement_as_it_is_and_no_terminal_obeys_a_key() {
    let world = World::new("dry-text");
    let [.., sqlite] = block_on(primaries("plan_text"));
    block_on(sqlite.execute("CREATE TABLE notes (name TEXT PRIMARY KEY, body TEXT)"));
    block_on(sqlite.execute("INSERT INTO notes VALUES ('a' || char(27) || '[31m' || char(10) || 'b', '')"));
    let (file, printed) = (world.file("sql"), world.file("plan"));
    let sql = "UPDATE notes -- of :keys,\n\tSET body = '  :keys'\nWHERE name IN (:keys);\n";
    fs::write(&file, sql).unwrap();
    let topic = world.topic_with_delay("notes", 1);
    let source = format!("-t {topic} --database {} --table notes", sqlite.url);
    let command = format!("{STREAM} {source} --dry-run --sql @{} > {}", file.display(), printed.display());
    let mut stream = world.start("sh", &format!("-c \"{command}\""), &[]);
    assert_eq!(stream.wait(), End::Status(0), "{:?}", stream.log());
    let plan = fs::read_to_string(&printed).unwrap();
    let key = r"a\u{1b}[31m\nb";
    let shown = format!(
        "\n  UPDATE notes -- of :keys,\n      SET body = '  :keys'\n  WHERE name IN (the keys from {key} on)\n"
    );
    assert!(plan.contains(&shown) && plan.contains(&format!(" by name, from {key} to {key}\n")), "{plan}");
    assert!(!plan.contains('\u{1b}'), "{plan}");
}

#[test]
fn a_dry_run_shows_by_which_condition_the_database_finds_keys_of_several_columns() {
    let world = World::new("dry-columns");
    for primary in block_on(primaries("plan_columns")) {
        block_on(primary.execute("CREATE TABLE parts (a INTEGER, b VARCHAR(9), n INTEGER, PRIMARY KEY (a, b))"));
        block_on(primary.execute("INSERT INTO parts VALUES (1, 'x', 0)"));
        let topic = world.topic_with_delay(&format!("parts-{:06x}", rand::random::<u32>()), 1);
        let (source, printed) = (format!("--database '{}' --table parts", primary.url), world.file("plan"));
        let sql = "--sql 'UPDATE parts SET n = 1 WHERE (a, b) IN (:keys)'";
        let command = format!("{STREAM} -t {topic} {source} --dry-run {sql} > {}", printed.display());
        let mut stream = world.start("sh", &format!("-c \"{command}\""), &[]);
        assert_eq!(stream.wait(), End::Status(0), "{primary:?}: {:?}", stream.log());
        let plan = fs::read_to_string(&printed).unwrap();
        let condition = match primary.dialect {
            Dialect::MySql => "((a = .. AND b = ..) OR .. for the keys from 1, x on)",
            Dialect::Postgres | Dialect::Sqlite => "(a, b) IN (the keys from 1, x on)",
        };
        assert!(plan.contains(&format!("\n  UPDATE parts SET n = 1 WHERE {condition}\n")), "{primary:?}: {plan}");
    }
}

#[test]
fn a_key_without_an_index_is_told_with_the_words_of_the_database() {
    let world = World::new("no-index");
    for primary in block_on(primaries("plan_index")) {
        products_of(&primary, 20_000);
        let topic = world.topic(&format!("products-{:06x}", rand::random::<u32>()), 1);
        let run = |options: &str| {
            let mut stream = world.stream(&format!("-t {topic} --database {} --table products {options}", primary.url));
            assert_eq!(stream.wait(), End::Status(0), "{options}: {:?}", stream.log());
            stream.log_of("warn")
        };
        let told = run("--key code --chunk-size 1000").join("");
        let words = match primary.dialect {
            Dialect::Postgres => "Sort, Seq Scan on products of about ",
            Dialect::MySql => "full scan on products of about ",
            Dialect::Sqlite => "SCAN products, USE TEMP B-TREE FOR ORDER BY of about 20000 rows",
        };
        let begin = "no index of table products has the order of its key code: each chunk takes a ";
        assert!(told.starts_with(begin) && told.contains(words), "{primary:?}: {told}");
        assert_eq!(run("--chunk-size 1000"), Vec::<String>::new(), "{primary:?}");
        block_on(primary.execute("CREATE UNIQUE INDEX codes ON products (code)"));
        assert_eq!(run("--key code --chunk-size 1000"), Vec::<String>::new(), "{primary:?}");
    }
}

#[test]
fn a_key_that_rows_may_share_is_told_and_looked_for_first_where_they_are_counted() {
    let world = World::new("shared-key");
    for primary in block_on(primaries("plan_shared")) {
        products_of(&primary, 30);
        let topic = world.topic_with_delay(&format!("products-{:06x}", rand::random::<u32>()), 1);
        let run = |options: &str| {
            let mut stream = world.stream(&format!("-t {topic} --database {} --table products {options}", primary.url));
            let (end, mut told) = (stream.wait(), stream.log_of("warn"));
            told.retain(|line| line.contains(" unique index "));
            (end, [told, stream.log_of("error")].concat())
        };
        let quiet = (End::Status(0), vec![]);
        let warned = vec![
            "no unique index of table products covers its key code: should rows have the same one, the run ends at them, behind \
             the chunks before; --count looks for them first"
                .to_owned(),
        ];
        for options in ["--key code", "--key code,id --payload row", "--key code --payload row --count"] {
            assert_eq!(run(options), quiet, "{primary:?}: {options}");
        }
        let update = "--key code --sql 'UPDATE products SET price = 1 WHERE code IN (:keys)'";
        for options in ["--key code --payload row", update] {
            assert_eq!(run(options), (End::Status(0), warned.clone()), "{primary:?}: {options}");
        }
        block_on(primary.execute("UPDATE products SET code = 0 WHERE id IN (7, 19)"));
        let sent = world.kafka.count(&topic);
        let refused = "table products has several rows with the same code; name a --key that tells them apart";
        assert_eq!(run(&format!("--count {update}")), (End::Status(78), vec![refused.to_owned()]), "{primary:?}");
        assert_eq!(world.kafka.count(&topic), sent);
        block_on(primary.execute("UPDATE products SET code = id"));
        block_on(primary.execute("CREATE UNIQUE INDEX codes ON products (code)"));
        assert_eq!(run(update), quiet, "{primary:?}");
        if primary.dialect == Dialect::Postgres {
            // An index says nothing of the tables that inherit from its own.
            block_on(
                primary.execute("CREATE TABLE old () INHERITS (products); INSERT INTO old SELECT * FROM products"),
            );
            assert_eq!(run(&format!("--count {update}")), (End::Status(78), vec![refused.to_owned()]));
        }
    }
}

#[test]
fn rows_that_share_a_key_end_a_run_that_has_not_looked_for_them_behind_whole_chunks() {
    let world = World::new("shared-met");
    for primary in block_on(primaries("plan_met")) {
        products_of(&primary, 30);
        // By their codes the last row comes first. Those that share one are in the third chunk, or on both sides of the
        // first one's end.
        for (one, other, done, touched) in [(19, 18, 10, "5 rows for 4 keys"), (26, 25, 0, "6 rows for 5 keys")] {
            block_on(primary.execute("UPDATE products SET code = 100000 - id, price = 0"));
            block_on(primary.execute(&format!("UPDATE products SET code = {} WHERE id = {other}", 100_000 - one)));
            let source = format!("--database {} --table products --key code --chunk-size 5", primary.url);
            let update = "--chunk-time 1h --sql 'UPDATE products SET price = 1 WHERE code IN (:keys)'";
            let refused = format!("the statement touched {touched} and was rolled back; ");
            let repeated = "table products has several rows with the same code, and a payload that tells them apart; ";
            for (options, status, told, rows) in
                [(update, 1, refused.as_str(), done), ("--payload row", 78, repeated, 0)]
            {
                let topic = world.topic_with_delay(&format!("products-{:06x}", rand::random::<u32>()), 1);
                block_on(primary.execute("UPDATE products SET price = 0"));
                let mut stream = world.stream(&format!("-t {topic} {source} {options}"));
                assert_eq!(stream.wait(), End::Status(status), "{primary:?} {options}: {:?}", stream.log());
                assert!(stream.says(&["error: ", told]), "{primary:?} {options}: {:?}", stream.log());
                let counts = (changed(&primary), world.kafka.count(&topic));
                assert_eq!(counts, (rows, done as i64), "{primary:?} {options}: {one}, {other}");
            }
        }
    }
}

#[test]
fn a_slow_action_gets_smaller_chunks_of_rows_but_not_of_lines() {
    let world = World::new("chunk-time");
    let [primary, ..] = block_on(primaries("plan_time"));
    products_of(&primary, 310);
    let topic = world.topic_with_delay("products", 1);
    let got = world.file("got");
    // Only the first ones are slow: then the chunks are small, and many.
    let got_five = format!("[ $(wc -l < {}) -gt 5 ]", got.display());
    let action = format!("cat > /dev/null; echo $KSYNC_BATCH_COUNT >> {}; {got_five} || sleep 0.4", got.display());
    let action = world.script(&action);
    let counts = |source: &str, lines: &str| {
        let options = format!("--chunk-size 100 --chunk-time 200ms {source} -- {action}");
        let mut stream = world.stream_lines(&format!("-t {topic} {options}"), lines);
        assert_eq!(stream.wait(), End::Status(0));
        let told = fs::read_to_string(&got).unwrap();
        fs::remove_file(&got).unwrap();
        told.lines().map(|line| line.parse().unwrap()).collect::<Vec<usize>>()
    };
    let of_rows = counts(&format!("--database {} --table products", primary.url), "");
    // The second one is read before the action of the first is over.
    assert_eq!((of_rows[0], of_rows[1], of_rows.iter().sum::<usize>()), (100, 100, 310), "{of_rows:?}");
    assert!((25..=50).contains(&of_rows[2]) && (1..=25).contains(&of_rows[4]), "{of_rows:?}");
    let lines: String = (0..200).map(|id| format!("{{\"id\":{id}}}\n")).collect();
    assert_eq!(counts("- --chunk-wait 5s", &lines), [100, 100]);
}

#[test]
fn with_an_action_the_next_rows_are_read_before_it_unless_nothing_is_to_be_read_ahead() {
    let world = World::new("read-ahead");
    for primary in block_on(primaries("plan_ahead")) {
        products_of(&primary, 25);
        for (options, price) in [("--read-ahead 0", 1), ("--read-ahead 1", 0), ("", 0)] {
            block_on(primary.execute("UPDATE products SET price = 0"));
            let topic = world.topic_with_delay(&format!("products-{:06x}", rand::random::<u32>()), 1);
            let gate = world.gate();
            let action = world.script(&format!("cat > /dev/null; await {gate}"));
            let source = format!("--database {} --table products --payload id,price --chunk-size 10", primary.url);
            let mut stream = world.stream(&format!("-t {topic} {source} {options} -- {action}"));
            let ahead = if price == 0 { 20 } else { 10 };
            world.eventually("the action runs", || delayed(&world, &topic).len() == ahead);
            block_on(primary.execute("UPDATE products SET price = 1"));
            gate.open();
            assert_eq!(stream.wait(), End::Status(0), "{primary:?} {options}: {:?}", stream.log());
            let records = world.kafka.records(&topic);
            let of = |id: usize| records[id - 1].value.clone().unwrap();
            let expected = |id: usize, price: u8| format!("{{\"id\":{id},\"price\":{price}}}");
            assert_eq!([of(1), of(11), of(21)], [expected(1, 0), expected(11, price), expected(21, 1)], "{options}");
        }
    }
}

#[test]
fn the_end_tells_what_was_sent_and_how_often_a_statement_was_tried_again() {
    let world = World::new("summary");
    let [primary, ..] = block_on(primaries("plan_summary"));
    products_of(&primary, 25);
    block_on(primary.execute(
        "CREATE SEQUENCE attempts;
         CREATE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           IF nextval('attempts') < 3 THEN RAISE EXCEPTION 'conflict' USING ERRCODE = '40001'; END IF;
           RETURN NEW;
         END $$;
         CREATE TRIGGER conflict BEFORE UPDATE ON products FOR EACH ROW EXECUTE FUNCTION conflict()",
    ));
    let topic = world.topic_with_delay("products", 1);
    let source = format!("-t {topic} --database '{}' --table products", primary.url);
    let sql = "--sql 'UPDATE products SET price = 1 WHERE id IN (:keys)'";
    for (options, told) in [
        (
            sql.to_owned(),
            "; 50 messages, 2 retries; consumers get the instant ones now, the delay messages 5m after they were sent",
        ),
        ("--only delay --delay 1m".to_owned(), "; 25 messages, 0 retries; consumers get them 1m after they were sent"),
        (String::new(), "; 25 messages, 0 retries; consumers get them now"),
    ] {
        let mut stream = world.stream(&format!("{source} {options}"));
        assert_eq!(stream.wait(), End::Status(0), "{:?}", stream.log());
        assert!(stream.says(&["info: 25 rows in ", told]), "{:?}", stream.log());
    }
    let mut stream = world.stream(&format!("{source} --progress json"));
    assert_eq!(stream.wait(), End::Status(0));
    let last = stream.log().into_iter().find(|line| line.contains("finished")).unwrap();
    let last: serde_json::Value = serde_json::from_str(&last).unwrap();
    let figures = ["done", "messages", "retries"].map(|name| last[name].as_u64());
    assert_eq!(figures, [Some(25), Some(25), Some(0)], "{last}");
}
