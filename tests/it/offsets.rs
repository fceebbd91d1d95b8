//! Offsets in the holes of a log, at its end, and where no log can reach.

use std::time::Duration;

use crate::consume_offsets::printed_option;
use crate::support::{End, Message, Run, World, value};

/// Records with these offsets, whose values are their offsets too. Those that are kept have a key of their own.
fn records(offsets: std::ops::Range<u32>, kept: &[u32]) -> impl Iterator<Item = Message> {
    offsets.map(|offset| {
        let key = if kept.contains(&offset) { offset.to_string() } else { "other".to_owned() };
        value(offset.to_string()).key(key)
    })
}

#[test]
fn in_a_log_with_holes_of_compaction_nothing_stalls_and_no_record_is_skipped() {
    let world = World::new("holes");
    let products = format!("products-{}", world.id);
    let policy = [("cleanup.policy", "compact"), ("min.cleanable.dirty.ratio", "0.001")];
    world.kafka.create(&products, 1, &policy);
    let seat = |name: &str| world.seat(&products, 0, name);
    let consume = |name: &str| {
        let handler = world.handler("");
        let mut consumer = world.consume(&format!("-t {products} -n {name} -e -- {handler}"));
        assert_eq!(consumer.wait(), End::Status(0), "{name}: {:?}", consumer.log());
        (handler.payloads().iter().map(|id| id.parse().unwrap()).collect::<Vec<u32>>(), seat(name).offset())
    };
    world.kafka.produce(&products, records(0..400, &[3, 9]));
    // The last that it has done will be gone.
    assert_eq!(consume("before"), ((0..400).collect(), Some(400)));
    let waiting_handler = world.handler("");
    let waiting = world.consume(&format!("-t {products} -n waiting -- {waiting_handler}"));
    world.eventually("all is done", || seat("waiting").offset() == Some(400));
    // Not before: what has come so far may have come in two parts.
    world.kafka.set(&products, &[&policy[..], &[("segment.ms", "100")]].concat());
    // A segment is closed by the first record that comes when its time is over, and only a closed one is compacted.
    for offset in 400..403 {
        world.kafka.produce(&products, records(offset..offset + 1, &[400, 402]));
        world.for_a_while(Duration::from_millis(200), "its segment's time passes", || true);
    }
    let left = || world.kafka.records(&products).into_iter().map(|record| record.offset).collect::<Vec<_>>();
    world.eventually("it is compacted", || left() == [3, 9, 400, 401, 402]);
    assert_eq!(world.kafka.log(&products, 0), (0, 403));

    assert_eq!(consume("from-the-beginning"), (vec![3, 9, 400, 401, 402], Some(403)));
    assert_eq!(consume("before"), (vec![400, 401, 402], Some(403)));
    seat("in-a-hole").write("offset", "10");
    assert_eq!(consume("in-a-hole"), (vec![400, 401, 402], Some(403)));
    world.eventually("one that has waited all the time has it all", || seat("waiting").offset() == Some(403));
    assert_eq!((waiting_handler.payloads().len(), waiting.log_of("error")), (403, vec![]));
}

#[test]
fn an_offset_at_the_end_of_the_log_is_idle_and_one_that_no_log_has_halts_with_a_reason() {
    let world = World::new("edges");
    let products = world.topic("products", 4);
    let write = |partitions: &[i32]| world.kafka.produce(&products, partitions.iter().map(|p| value("1").to(*p)));
    write(&[0, 2, 3]);
    let seats = [0, 1, 2, 3].map(|p| world.seat(&products, p, "indexer"));
    let texts = || seats.each_ref().map(|seat| seat.text("offset").unwrap_or_default());
    let (low, high) = ("-1", i64::MAX.to_string());
    for (seat, offset) in seats.iter().zip(["1", "", low, &high]) {
        seat.write("offset", offset);
    }
    let handler = world.handler("");
    let command = format!("-t {products} -n indexer");
    let mut bounded = world.consume(&format!("{command} -e -- {handler}"));
    assert_eq!((bounded.wait(), handler.payloads()), (End::Status(1), vec![]));
    assert_eq!(texts(), ["1", "0", low, &high]);
    let mut errors = bounded.log_of("error");
    errors.sort();
    assert_eq!(errors.len(), 2, "{errors:?}");
    let begins = [
        format!("{products}/2 as indexer: halted: the stored offset is '-1', which is not a number"),
        format!("{products}/3 as indexer: halted: "),
    ];
    for (error, begin) in errors.iter().zip(&begins) {
        assert!(error.starts_with(begin), "{error}");
    }
    let option = printed_option(&errors);
    assert!(option.starts_with(&format!("{products}/3:{high}-0@")), "{option}");

    let consumer = world.consume(&format!("{command} --accept-loss {option} -- {handler}"));
    world.eventually("it is told again", || consumer.log_of("error").len() == 1);
    assert!(handler.runs().iter().all(|run| run.partition == 3), "the others are idle");
    write(&[0, 1, 3]);
    world.eventually("the others go on", || texts() == ["2", "1", low, "2"]);
}

#[test]
fn what_a_later_release_has_written_beside_the_offset_halts_the_partition_and_stays() {
    let world = World::new("newer");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, (1..=3).map(|id| value(id.to_string())));
    let seat = world.seat(&products, 0, "indexer");
    let newer = r#"{"v":2,"offset":{"high":1}}"#;
    seat.write("offset", "1");
    seat.write("state", newer);
    let handler = world.handler("");
    // Nor may it be overwritten where the offset beside it was deleted.
    for offset in ["1", ""] {
        let mut consumer = world.consume(&format!("-t {products} -n indexer -e -- {handler}"));
        assert_eq!(consumer.wait(), End::Status(1));
        let told = "halted: the state beside the offset is of version 2, which this release does not know";
        assert!(consumer.says(&["error: ", told, "; start the newer ksync"]), "{:?}", consumer.log());
        let kept = (seat.text("offset"), seat.text("state"));
        assert_eq!(kept, (Some(offset.to_owned()), Some(newer.to_owned())));
        seat.delete("offset");
    }
    assert_eq!(handler.payloads(), Vec::<String>::new());
}

#[test]
fn an_offset_that_went_back_together_with_its_state_is_told() {
    let world = World::new("went-back");
    let products = world.topic("products", 1);
    let write = |ids: std::ops::Range<u32>| world.kafka.produce(&products, ids.map(|id| value(id.to_string())));
    let handler = world.handler("");
    let consumer = world.consume(&format!("-t {products} -n indexer -- {handler}"));
    let seat = world.seat(&products, 0, "indexer");
    write(0..3);
    world.eventually("the first are done", || seat.offset() == Some(3));
    let state = seat.text("state").unwrap();
    write(3..7);
    world.eventually("all are done", || seat.offset() == Some(7));
    // As where ZooKeeper comes from a backup.
    seat.write("state", &state);
    seat.write("offset", "3");
    write(7..8);
    world.eventually("all are done again", || seat.offset() == Some(8));
    let told = ["warn: ", "the offset went back from 7 to 3: records come again"];
    world.eventually("it is told", || consumer.says(&told));
    assert!((0..8).all(|id| handler.payloads().contains(&id.to_string())), "{:?}", handler.payloads());
}

#[test]
fn records_that_are_deleted_ahead_of_a_handler_at_work_halt_the_partition_and_are_named_to_the_record() {
    const RECORDS: usize = 40;
    const LAST: i64 = RECORDS as i64 - 1;
    let world = World::new("ahead");
    let products = world.topic("products", 1);
    // Much more than a client reads ahead.
    let text = "x".repeat(400_000);
    world.kafka.produce(&products, (0..RECORDS).map(|id| value(format!("\"{id} {text}\""))));
    let gate = world.gate();
    let handler = world.handler(&format!("await {gate}"));
    let options = format!("-t {products} -n indexer --batch-size 2");
    let consumer = world.consume(&format!("{options} -- {handler}"));
    world.eventually("the handler is at work", || handler.runs().len() == 1);
    world.kafka.delete_records(&products, 0, LAST);
    world.eventually("the log begins there", || world.kafka.log(&products, 0).0 == LAST);
    gate.open();
    world.eventually("it halts", || consumer.says(&["error: ", &format!("{products}/0 as indexer: halted")]));
    let seat = world.seat(&products, 0, "indexer");
    let offset = seat.offset().unwrap();
    let offsets = |runs: &[Run]| runs.iter().flat_map(Run::offsets).collect::<Vec<_>>();
    assert_eq!(offsets(&handler.runs()), (0..offset).collect::<Vec<_>>());
    assert!((1..LAST).contains(&offset), "{offset}");
    let errors = consumer.log_of("error");
    let range = format!("the records from {offset} to {} are lost", LAST - 1);
    assert!(errors.len() == 1 && errors[0].contains(&range), "{errors:?}");
    drop(consumer);
    // Nobody has to wait for the end of the session.
    seat.candidates().iter().for_each(|candidate| seat.delete(&format!("leader/{candidate}")));
    let accepted = format!("{options} -e --accept-loss {}", printed_option(&errors));
    assert_eq!(world.consume(&format!("{accepted} -- {handler}")).wait(), End::Status(0));
    let expected: Vec<_> = (0..offset).chain([LAST]).collect();
    assert_eq!((offsets(&handler.runs()), seat.offset()), (expected, Some(LAST + 1)));
}
