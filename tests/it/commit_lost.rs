//! Changes that are committed, or half done, and of which ksync-stream does not know: the answer is lost, or the command dies.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use crate::resume::{UPDATE, changed, instant, items_of, payloads, source, topic};
use crate::stream::delayed;
use crate::support::{End, Hold, Moment, Primary, World, block_on, primaries};

/// A way to the database on which a transaction can be held, and the database as it is seen over that.
pub fn way_to(primary: &Primary) -> (Hold, Primary) {
    let (_, rest) = primary.url.split_once('@').unwrap();
    let (server, _) = rest.split_once('/').unwrap();
    let hold = Hold::before(server);
    let url = primary.url.replace(server, &hold.address);
    (hold, Primary { dialect: primary.dialect, url })
}

#[test]
fn of_a_commit_whose_answer_is_lost_a_table_knows_and_with_a_file_its_chunk_is_done_again() {
    let world = World::new("commit-lost");
    let [postgres, ..] = block_on(primaries("commit_lost"));
    let (hold, over_the_way) = way_to(&postgres);
    items_of(&postgres, 6);
    // Where the second of three chunks is lost: how often its rows are changed in the end, and behind which key the next run
    // goes on.
    for (moment, keep, times, last) in [
        (Moment::Commit, "table", 1, 2),
        (Moment::Committed, "table", 1, 4),
        (Moment::Commit, "file", 1, 2),
        (Moment::Committed, "file", 2, 2),
    ] {
        let about = format!("{moment:?} {keep}");
        block_on(postgres.execute("UPDATE items SET n = 0"));
        let (topic, is_table) = (topic(&world), keep == "table");
        let option = match is_table {
            true => "--checkpoint-table".to_owned(),
            false => format!("--checkpoint {}", world.file("checkpoint").display()),
        };
        let command = format!("{} --chunk-size 2 --chunk-time 1h {option} {UPDATE}", source(&topic, &over_the_way));
        hold.at(moment);
        let mut stream = world.stream(&command);
        world.eventually("the first chunk is held", || hold.is_held());
        // It goes on, and the next one is held.
        hold.at(moment);
        world.eventually("the second chunk is held", || hold.is_held());
        let committed = if moment == Moment::Commit { 2 } else { 4 };
        assert_eq!(changed(&postgres), BTreeSet::from_iter(payloads(1..=committed)), "{about}");
        hold.lose();
        assert_eq!(stream.wait(), End::Status(75), "{about}: {:?}", stream.log());
        assert!(stream.says(&["error: cannot run the statement: "]), "{about}: {:?}", stream.log());
        // A table may be further than the run knows.
        let behind = if is_table { "" } else { " behind key 2" };
        let told = format!("failed after 2 rows; run it again to go on{behind}");
        assert!(stream.log_of("info").contains(&told), "{about}: {:?}", stream.log());
        assert_eq!(instant(&world, &topic), payloads(1..=2), "{about}");

        let mut next = world.stream(&command);
        world.eventually("the next run has come to its end", || {
            let end = next.wait();
            if end == End::Status(4) {
                // The session that was cut off is not at its end.
                next = world.stream(&command);
                return false;
            }
            assert_eq!(end, End::Status(0), "{about}: {:?}", next.log());
            true
        });
        let told = format!("info: going on behind key {last}: {last} rows were done by ");
        assert!(next.says(&[&told]), "{about}: {:?}", next.log());
        let n = block_on(postgres.texts("SELECT n FROM items ORDER BY id"));
        assert_eq!(n, [1, 1, times, times, 1, 1].map(|n: u32| n.to_string()), "{about}");
        // What the next run does not do again has its delay messages.
        let announced = payloads((1..=2).chain(last + 1..=6));
        assert_eq!(instant(&world, &topic), announced, "{about}");
        let covered = BTreeSet::from_iter(delayed(&world, &topic));
        assert_eq!(covered, BTreeSet::from_iter(payloads(1..=6)), "{about}");
    }
}

#[test]
fn what_a_command_has_half_done_when_it_is_killed_reaches_the_handler_by_its_delay_messages() {
    let world = World::new("half-done");
    let topic = world.topic_with_delay("products", 1);
    let [primary, seen] = ["primary", "seen"].map(|name| world.file(name));
    // It comes to the first of two.
    let action = world.script(&format!("read -r first; echo \"$first\" > {}; kill -9 $$", primary.display()));
    let lines = "{\"id\":1}\n{\"id\":2}\n";
    let mut stream = world.stream_lines(&format!("- -t {topic} --delay 2s -- {action}"), lines);
    assert_eq!(stream.wait(), End::Status(1), "{:?}", stream.log());
    assert_eq!((instant(&world, &topic), delayed(&world, &topic)), (vec![], payloads(1..=2)));
    let handler = world.handler(&format!("cat {} >> {}", primary.display(), seen.display()));
    let _delayer = world.delayer(&format!("-t {topic} --delay 2s"));
    let _consumer = world.consume(&format!("-t {topic} -n indexer -- {handler}"));
    let both = BTreeSet::from_iter(payloads(1..=2));
    world.within(Duration::from_secs(2 + 30), "the handler gets both", || {
        BTreeSet::from_iter(handler.payloads()) == both
    });
    let seen = fs::read_to_string(&seen).unwrap();
    assert!(seen.lines().all(|line| line == "{\"id\":1}") && !seen.is_empty(), "{seen}");
}
