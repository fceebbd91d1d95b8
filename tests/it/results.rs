//! What a handler says of its batch: by its exit status, by results of single records, by what it leaves unread.

use rustix::process::Signal;

use crate::consume::ids;
use crate::isolation::{fails_at, letters};
use crate::support::{End, World};

#[test]
fn exit_65_isolates_at_once_and_the_record_needs_no_other_to_succeed() {
    let world = World::new("permanent");
    let (products, dead) = (world.topic("products", 1), world.topic("dead", 1));
    world.kafka.produce(&products, ids(1..=1));
    let (handler, _) = fails_at(&world, [0], 65);
    let options = format!("--retry-pause 1h --dead-letter={dead}");
    let mut consumer = world.consume(&format!("-t {products} -n indexer -e {options} -- {handler}"));
    assert_eq!(consumer.wait(), End::Status(3));
    assert_eq!((letters(&world, &dead), handler.runs().len()), (vec![0], 1));
}

#[test]
fn a_temporary_failure_counts_against_no_record() {
    let world = World::new("temporary");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=8));
    let handler = world.handler("[ $KSYNC_BATCH_ATTEMPT -gt 10 ] || exit 75");
    let options = "--retry-pause 10ms --retry-pause-max 20ms --batch-wait 1s";
    let mut consumer = world.consume(&format!("-t {products} -n indexer -e {options} -- {handler}"));
    assert_eq!(consumer.wait(), End::Status(0));
    let counts: Vec<_> = handler.runs().iter().map(|run| (run.count, run.attempt)).collect();
    assert_eq!(counts, Vec::from_iter((1..=11).map(|attempt| (8, attempt))));
}

#[test]
fn a_misconfigured_handler_ends_the_process_before_its_first_success_and_never_after_it() {
    let world = World::new("misconfigured");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=4));
    let never = world.handler("exit 127");
    let mut refused = world.consume(&format!("-t {products} -n refused -- {never}"));
    assert_eq!(refused.wait(), End::Status(78));
    assert!(refused.says(&["the handler failed before it ever succeeded: exit status 127.", "look at"]));
    let seat = world.seat(&products, 0, "refused");
    assert_eq!((seat.offset(), seat.candidates().len()), (Some(0), 0));

    let swapped = world.gate();
    let deployed = world.handler(&format!("[ $KSYNC_BATCH_FIRST_OFFSET -lt 2 ] || [ -e {swapped} ] || exit 127"));
    let options = "--retry-pause 10ms --retry-pause-max 20ms --batch-size 2";
    let mut consumer = world.consume(&format!("-t {products} -n indexer {options} -- {deployed}"));
    world.eventually("it fails again and again", || deployed.runs().len() > 10);
    assert!(deployed.runs().iter().all(|run| run.count == 2), "nothing was isolated");
    swapped.open();
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("it goes on after the deploy", || seat.offset() == Some(4));
    consumer.signal(Signal::TERM);
    assert_eq!(consumer.wait(), End::Status(0));
}

#[test]
fn records_that_the_handler_names_are_put_aside_without_any_halving() {
    let world = World::new("named");
    for (form, line, runs) in [
        ("own", r#"{\"offset\":$1,\"status\":\"fail\",\"error\":\"no such index\",\"permanent\":true}"#, 1),
        ("lambda", r#"{\"batchItemFailures\":[{\"itemIdentifier\":\"$1\"}]}"#, 3),
    ] {
        let (products, dead) = (world.topic(&format!("products-{form}"), 1), world.topic(&format!("dead-{form}"), 1));
        world.kafka.produce(&products, ids(1..=100));
        let handler = world.handler(&format!(
            "tell() {{ echo \"{line}\" >&3; }}; for offset in 17 42; do if grep -q \"\\\"offset\\\":$offset,\" \"$run\"; then \
             tell $offset; fi; done"
        ));
        let options = format!("--retry-pause 10ms --batch-wait 1s --dead-letter={dead}");
        let mut consumer = world.consume(&format!("-t {products} -n indexer -e {options} -- {handler}"));
        assert_eq!(consumer.wait(), End::Status(3));
        let counts: Vec<_> = handler.runs().iter().map(|run| run.count).collect();
        assert_eq!((letters(&world, &dead), counts.len()), (vec![17, 42], runs), "{form}: {counts:?}");
    }
}

#[test]
fn results_that_cannot_be_understood_fail_the_whole_batch() {
    let world = World::new("results");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=3));
    for (name, line, told) in [
        ("unknown", r#"{\"offset\":99,\"status\":\"ok\"}"#, "the results name offset 99, which is not in the batch"),
        ("broken", r#"{\"offset\":1,"#, "cannot read the result line '{\"offset\":1,'"),
    ] {
        let handler = world.handler(&format!("if [ $KSYNC_BATCH_ATTEMPT -eq 1 ]; then echo \"{line}\" >&3; fi"));
        let options = "--retry-pause 10ms --batch-wait 1s";
        let mut consumer = world.consume(&format!("-t {products} -n {name} -e {options} -- {handler}"));
        assert_eq!(consumer.wait(), End::Status(0));
        assert!(consumer.says(&["warn: ", told]), "{:?}", consumer.log());
        let runs: Vec<_> = handler.runs().iter().map(|run| (run.count, run.attempt)).collect();
        assert_eq!(runs, [(3, 1), (3, 2)]);
    }
}

#[test]
fn with_require_result_only_what_was_reported_done_is_done() {
    let world = World::new("require");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=3));
    let ok = r#"{\"offset\":$1,\"status\":\"ok\"}"#;
    let all = "for offset in $(seq $KSYNC_BATCH_FIRST_OFFSET $KSYNC_BATCH_LAST_OFFSET); do tell $offset; done";
    let handler = world.handler(&format!(
        "tell() {{ echo \"{ok}\" >&3; }}; if [ $KSYNC_BATCH_COUNT -eq 3 ]; then tell 0; else {all}; fi"
    ));
    let options = "--require-result --retry-pause 10ms --batch-wait 1s";
    let mut consumer = world.consume(&format!("-t {products} -n indexer -e {options} -- {handler}"));
    assert_eq!(consumer.wait(), End::Status(0));
    let runs: Vec<_> = handler.runs().iter().map(|run| run.offsets()).collect();
    assert_eq!(runs, [vec![0, 1, 2], vec![1, 2]]);
}

#[test]
fn a_batch_that_was_not_read_to_its_end_is_not_committed() {
    let world = World::new("unread");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=3));
    let script = world.script("[ $KSYNC_BATCH_ATTEMPT -eq 1 ] || cat >/dev/null");
    let options = "--retry-pause 10ms --batch-wait 1s";
    let mut consumer = world.consume(&format!("-t {products} -n indexer -e {options} -- {script}"));
    assert_eq!(consumer.wait(), End::Status(0));
    assert!(consumer.says(&["warn: ", "exit status 0 with", "of its input unread"]), "{:?}", consumer.log());
    let careless = world.script("exit 0");
    let mut allowed = world.consume(&format!("-t {products} -n careless -e --allow-unread -- {careless}"));
    assert_eq!(allowed.wait(), End::Status(0));
    assert_eq!(world.seat(&products, 0, "careless").offset(), Some(3));
}
