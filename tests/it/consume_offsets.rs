//! The offset that ksync-consume keeps in ZooKeeper: where work begins, and one that was moved or has lost its log.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::consume::ids;
use crate::support::{End, Message, Run, World, value};

#[test]
fn the_state_beside_the_offset_says_what_the_offset_belongs_to() {
    let world = World::new("state");
    let products = world.topic("products", 1);
    let messages = (1..=5)
        .map(|id: i64| Message { timestamp_ms: Some(1_700_000_000_000 + id), ..value(format!("{{\"id\":{id}}}")) });
    world.kafka.produce(&products, messages);
    let handler = world.handler("");
    assert_eq!(world.consume(&format!("-t {products} -n indexer -e -- {handler}")).wait(), End::Status(0));

    let seat = world.seat(&products, 0, "indexer");
    let mut state = seat.state();
    let topic_id = state["topic_id"].take();
    let is_id = |id: &str| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()) && id.bytes().any(|b| b != b'0');
    assert!(topic_id.as_str().is_some_and(is_id), "{topic_id}");
    let term = handler.runs()[0].term;
    let last = json!({"offset": 4, "ts": 1_700_000_000_005_i64, "crc32c": crc32c::crc32c(br#"{"id":5}"#)});
    assert_eq!(
        state,
        json!({"v": 1, "offset": 5, "topic_id": Value::Null, "leader_epoch": 0, "last": last, "term": term})
    );
    assert_eq!(seat.text("offset").as_deref(), Some("5"));
}

#[test]
fn a_first_start_begins_where_it_is_told_and_later_ones_where_the_offset_stands() {
    let world = World::new("first");
    let products = world.topic("products", 1);
    let messages = (0..4).map(|hour: i64| Message {
        timestamp_ms: Some(1_700_000_000_000 + hour * 3_600_000),
        ..value(hour.to_string())
    });
    world.kafka.produce(&products, messages);
    // The third hour begins at 2023-11-15T00:13:20Z.
    for (name, at, expected) in
        [("a", "earliest", 0), ("b", "latest", 4), ("c", "@2023-11-15T00:00Z", 2), ("d", "@2030-01-01T00:00Z", 4)]
    {
        let handler = world.handler("");
        let mut consumer = world.consume(&format!("-t {products} -n {name} -e --first-start {at} -- {handler}"));
        assert_eq!(consumer.wait(), End::Status(0), "{at}");
        let begun = format!("{products}/0 as {name}: no offset is stored, beginning at {expected}");
        assert!(consumer.log_of("info").contains(&begun), "{at}");
        assert_eq!(handler.payloads().len(), 4 - expected, "{at}");
    }
    let handler = world.handler("");
    let mut again = world.consume(&format!("-t {products} -n a -e --first-start latest -- {handler}"));
    assert_eq!(again.wait(), End::Status(0));
    assert!(again.says(&["an offset is stored, so --first-start does not count"]));
    assert_eq!(world.seat(&products, 0, "a").offset(), Some(4));
}

#[test]
fn an_offset_moved_by_hand_deposes_the_leader_which_goes_on_from_there() {
    let world = World::new("moved");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=5));
    let handler = world.handler("");
    let consumer = world.consume(&format!("-t {products} -n indexer -- {handler}"));
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("all is done", || seat.offset() == Some(5));

    seat.write("offset", "2");
    world.kafka.produce(&products, ids(6..=6));
    world.eventually("it went on from 2", || seat.offset() == Some(6));
    let deposed = "no longer leading: deposed: somebody else has written the offset since; queueing again";
    world.eventually("it is told", || consumer.says(&[deposed]));
    let moved = format!("{products}/0 as indexer: the offset was moved from 5 to 2 by somebody else; going on from 2");
    world.eventually("where it went on is told", || consumer.log_of("warn").contains(&moved));
    let runs = handler.runs();
    let again: Vec<i64> = runs.iter().skip(1).flat_map(|run| run.offsets()).collect();
    assert_eq!(again, [5, 2, 3, 4, 5]);
}

#[test]
fn an_offset_moved_forward_by_hand_leaves_out_what_lies_before_it_with_a_warning() {
    let world = World::new("forward");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(0..10));
    let gate = world.gate();
    let handler = world.handler(&format!("await {gate}"));
    let consumer = world.consume(&format!("-t {products} -n indexer --batch-size 5 -- {handler}"));
    world.eventually("the handler runs", || handler.runs().len() == 1);
    let seat = world.seat(&products, 0, "indexer");
    seat.write("offset", "8");
    gate.open();
    world.eventually("it went on from 8", || seat.offset() == Some(10));
    let moved = format!("{products}/0 as indexer: the offset was moved from 0 to 8 by somebody else; going on from 8");
    world.eventually("that is told", || consumer.log_of("warn").contains(&moved));
    let offsets: Vec<_> = handler.runs().iter().flat_map(Run::offsets).collect();
    assert_eq!(offsets, [0, 1, 2, 3, 4, 8, 9]);
}

#[test]
fn an_offset_that_is_not_a_number_halts_the_partition() {
    let world = World::new("garbage");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=5));
    let seat = world.seat(&products, 0, "indexer");
    seat.write("offset", "five");
    let handler = world.handler("");
    let mut consumer = world.consume(&format!("-t {products} -n indexer -e -- {handler}"));
    assert_eq!(consumer.wait(), End::Status(1));
    let told = [format!(
        "{products}/0 as indexer: halted: the stored offset is 'five', which is not a number; write a number there \
         (nothing means: from the beginning)"
    )];
    assert_eq!(consumer.log_of("error"), told);
    assert_eq!((seat.text("offset").as_deref(), handler.runs().len()), (Some("five"), 0));

    // The same in the middle of a run.
    seat.write("offset", "0");
    let gate = world.gate();
    let held_up = world.handler(&format!("await {gate}"));
    let leader = world.consume(&format!("-t {products} -n indexer --batch-size 3 -- {held_up}"));
    world.eventually("the handler runs", || held_up.runs().len() == 1);
    seat.write("offset", "five");
    gate.open();
    world.eventually("it halts", || leader.log_of("error") == told);
    assert_eq!((seat.text("offset").as_deref(), held_up.runs().len()), (Some("five"), 1));
}

#[test]
fn where_the_offset_of_a_leader_is_deleted_all_comes_again_whatever_first_start_says() {
    let world = World::new("offset-deleted");
    let products = world.topic("products", 4);
    let gate = world.gate();
    let handler = world.handler(&format!("[ $KSYNC_BATCH_FIRST_OFFSET -lt 3 ] || await {gate}"));
    let options = format!("-t {products} -n indexer --first-start latest --batch-size 1 -j 4");
    let consumer = world.consume(&format!("{options} -- {handler}"));
    let seats = [0, 1, 2, 3].map(|p| world.seat(&products, p, "indexer"));
    world.eventually("all are led", || seats.iter().all(|seat| seat.offset() == Some(0)));
    world.kafka.produce(&products, (0..4).flat_map(|p| ids(0..10).map(move |message| message.to(p))));
    let offsets = |partition: i32| -> Vec<i64> {
        handler.runs().iter().filter(|run| run.partition == partition).flat_map(Run::offsets).collect()
    };
    world.eventually("the fourth record of each is under way", || {
        (0..4).all(|p| offsets(p) == [0, 1, 2, 3]) && seats.iter().all(|seat| seat.offset() == Some(3))
    });
    world.kafka.delete_records(&products, 3, 6);
    world.eventually("one log begins behind its offset", || world.kafka.log(&products, 3).0 == 6);
    let [deleted, emptied, all, lost] = &seats;
    deleted.delete("offset");
    emptied.write("offset", "");
    all.delete_all();
    lost.delete("offset");
    gate.open();
    world.eventually("all that is there is done", || seats[..3].iter().all(|seat| seat.offset() == Some(10)));
    for p in 0..3 {
        let about = format!("{products}/{p} as indexer: no offset is stored any more");
        let told = format!("{about}, it was 3; beginning at 0: records come again");
        world.eventually("it is told", || consumer.log_of("warn").contains(&told));
        // What it leads again may just then be deleted once more.
        let again = offsets(p).split_off(4);
        assert!(again.ends_with(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]), "{again:?}");
    }
    let told = "the log begins at 6 now: the records from 3 to 5 are lost";
    world.eventually("the other one halts", || {
        consumer.says(&["error: ", &format!("{products}/3 as indexer: halted"), &format!("{products}/3:3-6@"), told])
    });
    assert_eq!((offsets(3), lost.offset()), (vec![0, 1, 2, 3], None));
}

#[test]
fn a_process_that_finds_no_offset_but_a_state_begins_at_the_beginning_whatever_first_start_says() {
    let world = World::new("state-alone");
    let products = world.topic("products", 2);
    let write = |range: std::ops::Range<u32>| {
        world.kafka.produce(&products, (0..2).flat_map(|p| ids(range.clone()).map(move |message| message.to(p))));
    };
    write(0..5);
    let command = format!("-t {products} -n indexer -e");
    let before = world.handler("");
    assert_eq!(world.consume(&format!("{command} -- {before}")).wait(), End::Status(0));
    write(5..10);
    world.kafka.delete_records(&products, 1, 8);
    let seats = [0, 1].map(|p| world.seat(&products, p, "indexer"));
    seats.iter().for_each(|seat| seat.delete("offset"));

    let handler = world.handler("");
    let mut next = world.consume(&format!("{command} --first-start latest -- {handler}"));
    assert_eq!(next.wait(), End::Status(1));
    let about = format!("{products}/0 as indexer: no offset is stored any more");
    let told = format!("{about}, it was 5; beginning at 0: records come again");
    assert!(next.log_of("warn").contains(&told), "{:?}", next.log());
    let offsets = || handler.runs().iter().flat_map(Run::offsets).collect::<Vec<_>>();
    assert_eq!(offsets(), (0..10).collect::<Vec<_>>());
    let errors = next.log_of("error");
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].starts_with(&format!("{products}/1 as indexer: halted: ")), "{errors:?}");
    assert!(errors[0].contains(&format!("--accept-loss {products}/1:5-8@")), "{errors:?}");
    assert!(errors[0].ends_with(": the log begins at 8 now: the records from 5 to 7 are lost"), "{errors:?}");
    assert_eq!(seats.each_ref().map(|seat| seat.offset()), [Some(10), None]);

    let accepted = format!("{command} --first-start latest --accept-loss {}", printed_option(&errors));
    assert_eq!(world.consume(&format!("{accepted} -- {handler}")).wait(), End::Status(0));
    assert_eq!((offsets().split_off(10), seats[1].offset()), (vec![8, 9], Some(10)));

    // One that cannot be read tells no less that there was an offset.
    seats[0].delete("offset");
    seats[0].write("state", "{");
    let mut last = world.consume(&format!("{command} -p 0 --first-start latest -- {handler}"));
    assert_eq!(last.wait(), End::Status(0));
    let told = [about.as_str(), ", and the state beside it cannot be read: ", "; beginning at 0: records come again"];
    assert!(last.log_of("warn").iter().any(|line| told.iter().all(|text| line.contains(text))), "{:?}", last.log());
    assert_eq!(offsets().split_off(12), (0..10).collect::<Vec<_>>());
}

/// The option that an error has printed.
pub fn printed_option(errors: &[String]) -> String {
    let error = errors.iter().find(|error| error.contains("--accept-loss")).expect("an option is printed");
    let (_, option) = error.split_once("--accept-loss ").unwrap();
    option.split(':').take(2).collect::<Vec<_>>().join(":")
}

#[test]
fn a_topic_made_again_while_nobody_read_halts_until_that_very_loss_is_accepted() {
    let world = World::new("remade");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=5));
    let handler = world.handler("");
    let command = format!("-t {products} -n indexer -e");
    assert_eq!(world.consume(&format!("{command} -- {handler}")).wait(), End::Status(0));

    // Longer than the old one: the offset looks as if it fitted.
    world.kafka.delete(&products);
    world.kafka.create(&products, 1, &[]);
    world.kafka.produce(&products, ids(11..=18));
    let mut halted = world.consume(&format!("{command} -- {handler}"));
    assert_eq!(halted.wait(), End::Status(1));
    let errors = halted.log_of("error");
    assert!(
        errors[0].starts_with(&format!(
            "{products}/0 as indexer: halted: to go on from offset 0, the first one there, start with --accept-loss \
             {products}/0:5-0@"
        )),
        "{errors:?}"
    );
    assert!(errors[0].contains("the topic was deleted and made again (its id was "), "{errors:?}");
    assert!(errors[0].ends_with("what followed offset 5 is lost"), "{errors:?}");
    let seat = world.seat(&products, 0, "indexer");
    assert_eq!((seat.offset(), handler.payloads().len()), (Some(5), 5));

    let option = printed_option(&errors);
    let mut accepted = world.consume(&format!("{command} --accept-loss {option} -- {handler}"));
    assert_eq!(accepted.wait(), End::Status(0));
    assert_eq!((seat.offset(), handler.payloads().len()), (Some(8), 13));
}

#[test]
fn a_topic_made_again_while_it_is_read_halts_before_a_record_of_it_is_committed() {
    let world = World::new("remade-live");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=5));
    let handler = world.handler("");
    let mut consumer = world.consume(&format!("-t {products} -n indexer -- {handler}"));
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("all is done", || seat.offset() == Some(5));

    world.kafka.delete(&products);
    world.kafka.create(&products, 1, &[]);
    world.kafka.produce(&products, ids(11..=18));
    world.eventually("it halts", || consumer.says(&["error: ", "halted at offset 5", "--accept-loss", "made again"]));
    assert_eq!(seat.offset(), Some(5));
    let option = printed_option(&consumer.log_of("error"));
    consumer.signal(Signal::TERM);
    assert_eq!(consumer.wait(), End::Status(0));

    let after = world.handler("");
    let mut accepted = world.consume(&format!("-t {products} -n indexer -e --accept-loss {option} -- {after}"));
    assert_eq!(accepted.wait(), End::Status(0));
    assert_eq!((seat.offset(), after.payloads().len()), (Some(8), 8));
}

#[test]
fn an_offset_that_the_log_has_left_behind_halts_until_the_loss_is_accepted() {
    let world = World::new("expired");
    let products = world.topic("products", 2);
    let to = |p: i32| move |message: Message| message.to(p);
    world.kafka.produce(&products, ids(1..=5).map(to(0)).chain(ids(1..=5).map(to(1))));
    let handler = world.handler("");
    let command = format!("-t {products} -n indexer -e");
    assert_eq!(world.consume(&format!("{command} -- {handler}")).wait(), End::Status(0));

    world.kafka.produce(&products, ids(6..=10).map(to(0)).chain(ids(6..=10).map(to(1))));
    world.kafka.delete_records(&products, 0, 8);
    let mut halted = world.consume(&format!("{command} -- {handler}"));
    assert_eq!(halted.wait(), End::Status(1));
    let errors = halted.log_of("error");
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].contains(&format!("--accept-loss {products}/0:5-8@")), "{errors:?}");
    assert!(errors[0].ends_with(": the log begins at 8 now: the records from 5 to 7 are lost"), "{errors:?}");
    let (zero, one) = (world.seat(&products, 0, "indexer"), world.seat(&products, 1, "indexer"));
    assert_eq!((zero.offset(), one.offset()), (Some(5), Some(10)));

    let option = printed_option(&errors);
    let mut accepted = world.consume(&format!("{command} --accept-loss {option} -- {handler}"));
    assert_eq!(accepted.wait(), End::Status(0));
    assert_eq!(zero.offset(), Some(10));
    assert_eq!(handler.runs().last().unwrap().offsets(), [8, 9]);
}
