//! Whoever has read what is old, and writes it last: a handler of a leader that was deposed, and an application behind a cache.

use std::fs;
use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::json;

use crate::secondaries::{CONSUME, Shop, handler};
use crate::support::{End, Gate, Primary, Process, Store, block_on};

/// A consumer that stands still, and whose handler does, too, until the gate opens.
struct Late {
    gate: Gate,
    ended: PathBuf,
    _consumer: Process,
}

impl Late {
    /// Its handler stands before or behind its psql on this database: it has not yet locked, or has read.
    fn start(shop: &Shop, store: &str, database: &Primary, is_before: bool) -> Late {
        let (world, gate, reached, ended) =
            (&shop.world, shop.world.gate(), shop.world.file("reached"), shop.world.file("ended"));
        let stand = format!(": > '{}'; await '{gate}'", reached.display());
        let (before, behind) = if is_before { (stand.as_str(), ":") } else { (":", stand.as_str()) };
        let (path, name) = (std::env::var("PATH").unwrap(), database.url.rsplit_once('/').unwrap().1);
        let psql = world.script(&format!(
            "export PATH='{path}'\ncase \"$*\" in *'/{name} '*) ;; *) exec psql \"$@\" ;; esac\n\
             {before}\npsql \"$@\" || exit\n{behind}"
        ));
        let dir = world.file("bin");
        fs::create_dir(&dir).unwrap();
        fs::rename(psql, dir.join("psql")).unwrap();
        let (script, ended_path) = (handler(store), ended.display());
        let script = world.script(&format!(
            "status=0\n'{}' || status=$?\necho $status > '{ended_path}.new'\nmv '{ended_path}.new' '{ended_path}'\nexit $status",
            script.display()
        ));
        let path = format!("{}:{path}", dir.display());
        let consumer = shop.start(CONSUME, &format!("-t {} -n {store} -- {script}", shop.topic), &[("PATH", &path)]);
        world.eventually("the late handler stands", || reached.exists());
        consumer.signal(Signal::STOP);
        Late { gate, ended, _consumer: consumer }
    }

    /// Lets the handler go on; gives how it has ended.
    fn go_on(&self, shop: &Shop) -> String {
        self.gate.open();
        shop.world.eventually("the late handler has ended", || self.ended.exists());
        fs::read_to_string(&self.ended).unwrap()
    }
}

#[test]
fn a_late_handler_puts_nothing_old_over_what_a_later_leader_has_written() {
    let shop = Shop::open("secondaries-late");
    shop.change("INSERT INTO $ VALUES (7, 'old', 7), (8, 'old', 8)");
    shop.announce([7, 8]);
    let late =
        [("opensearch", &shop.primary, false), ("redis", &shop.primary, false), ("postgres_copy", &shop.copy, true)]
            .map(|(store, database, is_before)| (store, Late::start(&shop, store, database, is_before)));
    shop.change("UPDATE $ SET name = 'new' WHERE id = 7");
    shop.change("DELETE FROM $ WHERE id = 8");
    let _later = late.each_ref().map(|(store, _)| shop.consume(store, ""));
    let new = json!({"id": 7, "name": "new", "price": 7});
    for (store, late) in late {
        shop.world.eventually("the later leader has done it", || shop.offset(store) == Some(2));
        assert_eq!(shop.stored(store, 8), std::slice::from_ref(&new), "{store}");
        let status = if store == "postgres_copy" { "75\n" } else { "0\n" };
        assert_eq!(late.go_on(&shop), status, "{store}");
        assert_eq!(shop.stored(store, 8), std::slice::from_ref(&new), "{store}");
    }
}

#[test]
fn a_later_leader_of_a_copy_reads_after_the_earlier_one_has_written() {
    reads_after_an_earlier_run("secondaries-locked", "postgres_copy");
}

/// Another name has a row of its own in ksync_terms, as another partition has.
#[test]
fn a_run_beside_another_one_of_the_same_table_reads_after_that_has_written() {
    reads_after_an_earlier_run("secondaries-beside", "beside");
}

fn reads_after_an_earlier_run(test: &str, name: &str) {
    let shop = Shop::open(test);
    shop.change("INSERT INTO $ VALUES (7, 'old', 7)");
    shop.announce([7]);
    let late = Late::start(&shop, "postgres_copy", &shop.primary, false);
    shop.change("UPDATE $ SET name = 'new'");
    let command = format!("-t {} -n {name} -- {}", shop.topic, handler("postgres_copy").display());
    let _later = shop.start(CONSUME, &command, &[]);
    let waiting =
        "SELECT pid::text FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
    shop.world.eventually("the later run waits for a lock", || !block_on(shop.copy.texts(waiting)).is_empty());
    assert_eq!(late.go_on(&shop), "0\n");
    shop.world.eventually("the later run has done it", || shop.offset(name) == Some(1));
    assert_eq!(shop.stored("postgres_copy", 7), [json!({"id": 7, "name": "new", "price": 7})]);
}

/// What the heads of redis.py and memcached.py say that an application has to do.
#[test]
fn an_application_that_reads_late_puts_nothing_old_into_a_cache() {
    let shop = Shop::open("secondaries-cached");
    let (mut redis, mut memcached) = (shop.connect("redis"), shop.connect("memcached"));
    let keys = [7, 8].map(|id| format!("{}:{id}", shop.table));
    let number = |memcached: &mut Store, key: &str| {
        let found = memcached.ask(&format!("gets {key}"));
        assert_eq!([memcached.line(), memcached.line()], ["", "END"]);
        found.rsplit_once(' ').unwrap().1.to_owned()
    };
    // It finds nothing, and reads both rows. Not for 10 s only: that they expire would look as if the handler had deleted them.
    let numbers = keys.each_ref().map(|key| {
        assert_eq!(redis.field(key, "row"), None);
        assert_eq!(memcached.ask(&format!("get {key}")), "END");
        assert_eq!(memcached.ask(&format!("add {key} 0 600 0\r\n")), "STORED");
        number(&mut memcached, key)
    });
    shop.change("INSERT INTO $ VALUES (8, 'new', 8)");
    shop.announce([7, 8]);
    for store in ["redis", "memcached"] {
        assert_eq!(shop.consume(store, "-e").wait(), End::Status(0), "{store}");
    }
    // Of the second one another application has begun to read.
    assert_eq!(memcached.ask(&format!("add {} 0 600 0\r\n", keys[1])), "STORED");
    let fresh = number(&mut memcached, &keys[1]);
    for (key, number, refusal) in [(&keys[0], &numbers[0], "NOT_FOUND"), (&keys[1], &numbers[1], "EXISTS")] {
        assert_eq!(redis.ask(&format!("HSETNX {key} row old")), ":0");
        assert_eq!(memcached.ask(&format!("cas {key} 0 60 3 {number}\r\nold")), refusal);
    }
    assert_eq!(memcached.ask(&format!("cas {} 0 60 3 {fresh}\r\nnew", keys[1])), "STORED");
    assert_eq!(redis.field(&keys[0], "row").as_deref(), Some(""));
    assert_eq!(redis.field(&keys[1], "row").as_deref(), Some(r#"{"id": 8, "name": "new", "price": 8}"#));
    // Nobody has told the handler of this one.
    assert_eq!(redis.ask(&format!("HSETNX {}:9 row old", shop.table)), ":1");
}
