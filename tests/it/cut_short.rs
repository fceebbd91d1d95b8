//! Consumers that are killed while a batch is on its way: to the handler, or done and on its way to ZooKeeper.

use std::fs;

use rustix::io::ioctl_fionread;

use crate::consume::ids;
use crate::support::{End, Mode, Proxy, World, block_on, value};

/// Records that take 3 MiB, of which no pipe holds more than one.
const RECORDS: usize = 30;
const RECORD: usize = 105_000;
/// What is in a pipe of the least size when it is full; less may fit no further piece.
const FULL: u64 = (64 << 10) - 4096;

#[test]
fn a_batch_that_is_cut_off_in_the_middle_has_fewer_lines_than_its_count_and_comes_again() {
    let world = World::new("cut-batch");
    let products = world.topic("products", 1);
    let text = "x".repeat(RECORD);
    world.kafka.produce(&products, (0..RECORDS).map(|id| value(format!("\"{id} {text}\""))));
    let (gate, pid, told, lines) = (world.gate(), world.file("pid"), world.file("told"), world.file("lines"));
    // It reads late, and outlives ksync: it is in another group, and nothing of its environment gives it away to the warden.
    let reader = world.script(&format!(
        "echo $$ > {0}.part; mv {0}.part {0}; await {gate}; cat > {1}.part; mv {1}.part {1}",
        pid.display(),
        lines.display()
    ));
    let handler = world.script(&format!(
        "echo $KSYNC_BATCH_COUNT $KSYNC_BATCH_FIRST_OFFSET $KSYNC_BATCH_LAST_OFFSET > {}\n\
         setsid env -i PATH=\"$PATH\" WORLD=\"$WORLD\" {reader}",
        told.display()
    ));
    let options = format!("-t {products} -n indexer --batch-size {RECORDS} --batch-wait 20s");
    let mut first = world.consume(&format!("{options} -- {handler}"));
    world.eventually("the handler runs", || pid.exists());
    let stdin = format!("/proc/{}/fd/0", fs::read_to_string(&pid).unwrap().trim());
    world.eventually("the pipe is full", || ioctl_fionread(fs::File::open(&stdin).unwrap()).unwrap() >= FULL);
    first.kill();
    gate.open();
    world.eventually("all that is left is read", || lines.exists());
    let told = fs::read_to_string(&told).unwrap();
    assert_eq!(told.trim(), format!("{RECORDS} 0 {}", RECORDS - 1));
    let (whole, bytes) =
        (fs::read_to_string(&lines).unwrap().matches('\n').count(), fs::metadata(&lines).unwrap().len());
    assert!(bytes >= FULL && whole < RECORDS, "{whole} lines, {bytes} bytes");
    let seat = world.seat(&products, 0, "indexer");
    assert_eq!(seat.offset(), Some(0));

    // Nobody has to wait for the end of the session.
    seat.candidates().iter().for_each(|candidate| seat.delete(&format!("leader/{candidate}")));
    let handler = world.handler("");
    let mut next = world.consume(&format!("{options} -e -- {handler}"));
    assert_eq!((next.wait(), seat.offset()), (End::Status(0), Some(RECORDS as i64)));
    let runs = handler.runs();
    assert_eq!((runs.len(), runs[0].count, runs[0].offsets()), (1, RECORDS, (0..RECORDS as i64).collect()));
}

#[test]
fn a_consumer_that_is_killed_without_an_answer_to_its_commit_is_followed_from_where_that_has_brought_the_offset() {
    const COMMIT: &str = "\"offset\":5,";
    let world = World::new("unanswered");
    let handler = world.handler("");
    // It is carried out and nothing tells so, or it never arrives.
    for (name, mode, offset) in [("answer", Mode::DeafAfter(COMMIT, 0), 5), ("commit", Mode::FrozenAt(COMMIT), 0)] {
        let products = world.topic(name, 1);
        world.kafka.produce(&products, ids(0..5));
        let proxy = block_on(Proxy::to(world.services.get("KSYNC_ZOOKEEPER")));
        proxy.set(mode);
        let way = format!("--zookeeper {}/{} --session-timeout 30s", proxy.address, world.id);
        let mut first = world.consume(&format!("-t {products} -n indexer {way} -- {handler}"));
        let seat = world.seat(&products, 0, "indexer");
        let is_lost = || proxy.is(Mode::Deaf) || proxy.is(Mode::Frozen);
        world.eventually("its commit is on its way", || is_lost() && seat.offset() == Some(offset));
        let of_topic = || handler.runs().into_iter().filter(|run| run.topic == products).collect::<Vec<_>>();
        assert_eq!((of_topic().len(), of_topic()[0].done.is_some()), (1, true), "{name}");
        first.kill();
        seat.candidates().iter().for_each(|candidate| seat.delete(&format!("leader/{candidate}")));

        world.kafka.produce(&products, ids(5..10));
        let mut next = world.consume(&format!("-t {products} -n indexer -e -- {handler}"));
        assert_eq!((next.wait(), next.log_of("warn")), (End::Status(0), vec![]), "{name}");
        assert!(next.says(&[&format!("leading from offset {offset},")]), "{name}: {:?}", next.log());
        let again: Vec<_> = of_topic().iter().skip(1).flat_map(|run| run.offsets()).collect();
        assert_eq!((again, seat.offset()), ((offset..10).collect(), Some(10)), "{name}");
    }
}
