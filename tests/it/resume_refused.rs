//! Checkpoints by which no run may go on, and options of resuming that do not fit.

use std::fs;

use serde_json::json;

use crate::resume::{UPDATE, checkpoint, items_of, source, topic};
use crate::support::{End, Primary, World, block_on, primaries};

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
