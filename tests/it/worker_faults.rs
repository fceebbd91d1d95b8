//! Workers that hang, die, or break the protocol, and a ksync that loses its lease or is killed while they work.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::consume::ids;
use crate::processes::runs;
use crate::support::{End, Mode, Process, Proxy, Worker, World, block_on, is_full, value};
use crate::worker::SOON_AGAIN;

/// The numbers of the descendants that it has noted.
fn children(worker: &Worker) -> Vec<i32> {
    worker.noted("child").iter().map(|note| note.message["child"].as_i64().unwrap() as i32).collect()
}

fn end(mut consumer: Process) {
    consumer.signal(Signal::TERM);
    assert_eq!(consumer.wait(), End::Status(0));
}

#[test]
fn a_worker_that_says_nothing_for_its_timeout_is_killed_with_its_descendants_and_replaced() {
    let world = World::new("silent");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=2));
    let (mended, gate) = (world.gate(), world.gate());
    let worker = world.worker(&format!(
        "if kind == 'hello' and not is_open('{mended}'): ignore_term(); descend()\n\
         if kind == 'end' and not is_open('{mended}'): wait('/nowhere')\n\
         if kind == 'end': wait('{gate}')"
    ));
    let options =
        format!("--session-timeout 30s --worker --timeout 8s {SOON_AGAIN} --isolate-after 1000 --batch-size 2");
    let consumer = world.consume(&format!("-t {products} -n indexer {options} -- {worker}"));
    world.eventually("it is asked to end", || worker.noted("TERM").len() == 1);
    let [first] = worker.pids()[..] else { panic!("one, not {:?}", worker.pids()) };
    let [child] = children(&worker)[..] else { panic!("one, not {:?}", children(&worker)) };
    assert!(runs(first), "it is given time to end");
    mended.open();
    world.eventually("another one gets the batch", || worker.given() == 2);
    assert_eq!([first, child].map(runs), [false, false]);
    let seat = world.seat(&products, 0, "indexer");
    assert_eq!((seat.offset(), worker.batches()[1].attempt()), (Some(0), 2));
    let told = "attempt 1: no answer within 8s (--timeout); does the worker flush its stdout after each line?; trying";
    world.eventually("it is told", || consumer.says(&["warn: ", told]));

    gate.open();
    world.eventually("it is done", || seat.offset() == Some(2));
    let batch = "batch record record end";
    assert_eq!(worker.stories(), [format!("hello child {batch} TERM"), format!("hello {batch} done")]);
    end(consumer);
}

#[test]
fn a_worker_that_dies_or_speaks_between_batches_is_replaced_and_no_batch_fails() {
    let world = World::new("between");
    let products = world.topic("products", 2);
    for (name, partition) in [("dies", 0), ("speaks", 1)] {
        let topic = format!("{products} -p {partition}");
        world.kafka.produce(&products, ids(1..=1).map(|message| message.to(partition)));
        let gate = world.gate();
        let worker = world.worker(&format!(
            "if kind == 'end' and not is_open('{gate}'): done(); wait('{gate}'); \
             return say(type='done', id=batch['id'])"
        ));
        let consumer = world.consume(&format!("-t {topic} -n indexer --session-timeout 30s --worker -- {worker}"));
        let seat = world.seat(&products, partition, "indexer");
        world.eventually("the first batch is done", || seat.offset() == Some(1));
        let [first] = worker.pids()[..] else { panic!("one, not {:?}", worker.pids()) };
        let told = match name {
            "dies" => {
                kill_process(Pid::from_raw(first).unwrap(), Signal::KILL).unwrap();
                "signal 9 (SIGKILL)".to_owned()
            }
            _ => {
                let id = worker.batches()[0].message["id"].as_str().unwrap().to_owned();
                format!("the worker broke the protocol: it answered for batch {id}, which it did not have any more")
            }
        };
        gate.open();
        world.eventually("it is gone", || !runs(first));
        world.eventually("it is told", || !consumer.log_of("warn").is_empty());
        world.kafka.produce(&products, ids(2..=2).map(|message| message.to(partition)));
        world.eventually("the next batch is done", || seat.offset() == Some(2));
        assert_eq!(consumer.log_of("warn"), [format!("a worker that had no batch is replaced: {told}")]);
        assert_eq!(worker.stories(), ["hello batch record end done", "hello batch record end done"]);
        assert_eq!((worker.done(), worker.batches()[1].attempt()), (vec![0, 1], 1));
        end(consumer);
    }
}

/// Has the faulty worker fail at a batch until it is mended, and checks that each time it is killed and replaced, that
/// nothing is committed before, and all after it. `ID` in `told` is the id of a batch.
fn fails_until_mended(world: &World, topic: &str, name: &str, (when, fault, told): (&str, &str, &str)) {
    let mended = world.gate();
    let worker = world.worker(&format!("if {when} and not is_open('{mended}'): return {fault}"));
    let options = format!("--session-timeout 30s --worker {SOON_AGAIN} --isolate-after 1000 --batch-size 3");
    let consumer = world.consume(&format!("-t {topic} -n {name} {options} -- {worker}"));
    let is_told = || {
        let batches = worker.batches();
        let second = batches.get(1).map(|batch| batch.message["id"].as_str().unwrap().to_owned());
        second.is_some_and(|id| consumer.says(&["warn: ", &format!("attempt 2: {}", told.replace("ID", &id))]))
    };
    world.eventually(&format!("{name} is told"), is_told);
    let seat = world.seat(topic, 0, name);
    assert_eq!((seat.offset(), worker.done()), (Some(0), vec![]), "{name}");
    assert_eq!(worker.pids()[..2].iter().copied().map(runs).collect::<Vec<_>>(), [false, false], "{name}");
    mended.open();
    world.eventually(&format!("all is done after {name}"), || seat.offset() == Some(3));
    let batches = worker.batches();
    let shown: Vec<_> = batches.iter().map(|batch| (batch.pid, batch.attempt())).collect();
    assert_eq!(shown, Vec::from_iter(worker.pids().into_iter().zip(1..)), "{name}");
    assert_eq!((worker.done(), &batches.last().unwrap().offsets[..]), (vec![0, 1, 2], &[0, 1, 2][..]), "{name}");
    end(consumer);
}

#[test]
fn a_worker_that_dies_in_a_batch_is_replaced_and_the_failure_says_how_it_died() {
    let world = World::new("dies");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=3));
    for (name, fault, told) in [
        ("status", "os._exit(3)", "exit status 3; trying again in "),
        ("signal", "os.kill(os.getpid(), signal.SIGSEGV)", "signal 11 (SIGSEGV); trying again in "),
        ("quiet", "os._exit(0)", "the worker ended, or closed its stdout, without an answer; trying again in "),
        (
            "closed",
            "(os.close(1), wait('/nowhere'))",
            "the worker ended, or closed its stdout, without an answer; trying",
        ),
    ] {
        fails_until_mended(&world, &products, name, ("kind == 'end'", fault, told));
    }
}

#[test]
fn a_worker_that_does_not_keep_to_the_protocol_is_killed_and_replaced_and_its_answer_means_nothing() {
    let world = World::new("protocol");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=3));
    let at_end = "kind == 'end'";
    for (name, when, fault, told) in [
        ("stranger", at_end, "say(type='done', id='b7')", "it answered for batch b7 while it had batch ID; trying"),
        (
            "twice",
            at_end,
            "os.write(1, 2 * line(type='done', id=batch['id']).encode())",
            "it answered for batch ID, which it did not have any more; trying",
        ),
        ("garbage", at_end, "say(type='done')", "cannot read its answer '{\"type\": \"done\"}': missing field `id`"),
        ("ready", at_end, "say(type='ready')", "it said ready while it had batch ID; trying"),
        (
            "unread",
            "kind == 'record' and len(offsets) == batch['count']",
            "(wait_for_more(), say(type='done', id=batch['id']), wait('/nowhere'))",
            "it answered with 39 bytes of the batch unread; trying",
        ),
    ] {
        let told = format!("the worker broke the protocol: {told}");
        fails_until_mended(&world, &products, name, (when, fault, &told));
    }
    // More than a pipe holds, so that its end cannot have been written.
    let large = world.topic("large", 1);
    world.kafka.produce(&large, (0..3).map(|_| value(format!("\"{}\"", "x".repeat(200_000)))));
    let told = "the worker broke the protocol: it answered for batch ID before it was given its end; trying";
    let fault = "(say(type='done', id=batch['id']), wait('/nowhere'))";
    fails_until_mended(&world, &large, "early", ("kind == 'batch'", fault, told));
}

#[test]
fn a_line_that_is_no_answer_is_logged_and_acknowledges_nothing() {
    let world = World::new("no-answer");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=3));
    let gate = world.gate();
    let worker = world.worker(&format!(
        "id = batch.get('id')\n\
         texts = ['done', '[\"fatal\"]', json.dumps(['done', id]), json.dumps(dict(type='log'))]\n\
         texts += [line(type='done', id=id)[:-2]]\n\
         if kind == 'end': note('said', texts=texts); os.write(1, '\\n'.join(texts + ['']).encode()); wait('{gate}')"
    ));
    let mut consumer = world
        .consume(&format!("-t {products} -n indexer -e --session-timeout 30s --worker --batch-size 3 -- {worker}"));
    let source = format!("info: {products}/0: ");
    let logged = || -> Vec<_> {
        consumer.log().iter().filter_map(|line| line.strip_prefix(&source).map(str::to_owned)).collect()
    };
    world.eventually("they are logged", || logged().len() == 5);
    assert_eq!(json!(logged()), worker.noted("said")[0].message["texts"]);
    let seat = world.seat(&products, 0, "indexer");
    world.for_a_while(Duration::from_millis(500), "nothing is committed", || seat.offset() == Some(0));
    gate.open();
    assert_eq!((consumer.wait(), consumer.log_of("warn")), (End::Status(0), vec![]));
    assert_eq!((worker.done(), seat.offset()), (vec![0, 1, 2], Some(3)));
}

/// ksync-consume behind a proxy, with a worker that has begun its first batch.
fn behind_a_proxy(world: &World, products: &str, options: &str, worker: &Worker) -> (Proxy, Process) {
    let proxy = block_on(Proxy::to(world.services.get("KSYNC_ZOOKEEPER")));
    let options = format!("--worker --zookeeper {}/{} {options}", proxy.address, world.id);
    let consumer = world.consume(&format!("-t {products} -n indexer {options} -- {worker}"));
    world.eventually("it is at work", || worker.batches().len() == 1);
    (proxy, consumer)
}

#[test]
fn a_batch_is_taken_back_with_the_lease_and_a_late_answer_commits_nothing() {
    let world = World::new("cancel");
    let (products, gate) = (world.topic("products", 1), world.gate());
    // It answers the first batch only when that is taken back.
    let worker = world.worker(&format!(
        "if kind == 'end' and number == 1: return\n\
         if kind == 'end': wait('{gate}')\n\
         if kind == 'cancel': done()"
    ));
    world.kafka.produce(&products, ids(1..=2));
    let (proxy, consumer) = behind_a_proxy(&world, &products, "--session-timeout 30s --batch-size 2", &worker);
    world.eventually("it has all of it", || worker.given() == 1);
    proxy.set(Mode::Closed);
    world.eventually("it has answered", || worker.noted("done").len() == 1);
    proxy.set(Mode::Open);
    world.eventually("the batch comes again", || worker.given() == 2);
    let seat = world.seat(&products, 0, "indexer");
    assert_eq!(seat.offset(), Some(0));
    let batches = worker.batches();
    assert!(batches[0].term() < batches[1].term(), "{batches:?}");
    let cancelled: Vec<_> = worker.noted("cancel").iter().map(|note| note.message["id"].clone()).collect();
    assert_eq!(cancelled, [batches[0].message["id"].clone()]);

    gate.open();
    world.eventually("it is done", || seat.offset() == Some(2));
    let batch = "batch record record end";
    assert_eq!(worker.stories(), [format!("hello {batch} cancel done {batch} done")]);
    assert!(consumer.says(&["warn: ", "no longer leading: "]));
    end(consumer);
}

#[test]
fn a_batch_that_was_given_in_part_is_taken_back_at_the_end_of_a_line() {
    let world = World::new("cancel-part");
    let (products, gate) = (world.topic("products", 1), world.gate());
    // More than a pipe holds.
    world.kafka.produce(&products, (0..3).map(|_| value(format!("\"{}\"", "x".repeat(200_000)))));
    let worker = world.worker(&format!("if kind == 'batch': wait('{gate}')"));
    let (proxy, consumer) = behind_a_proxy(&world, &products, "--session-timeout 30s --batch-size 3", &worker);
    proxy.set(Mode::Closed);
    let limit = Duration::from_millis(500);
    world.for_a_while(limit, "the worker is waited for", || !consumer.says(&["no longer leading"]));
    gate.open();
    world.eventually("it is taken back", || worker.noted("cancel").len() == 1);
    proxy.set(Mode::Open);
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("it is done", || seat.offset() == Some(3));
    let batches = worker.batches();
    let shown: Vec<_> = batches.iter().map(|batch| (batch.pid, batch.is_given, batch.offsets.len() == 3)).collect();
    let pid = worker.pids()[0];
    assert_eq!(shown, [(pid, false, false), (pid, true, true)]);
    assert_eq!((worker.done(), worker.pids().len()), (vec![0, 1, 2], 1));
    end(consumer);
}

#[test]
fn a_worker_that_goes_on_with_what_was_taken_back_is_ended_before_another_process_can_lead() {
    let world = World::new("not-cancelled");
    let (products, mended) = (world.topic("products", 1), world.gate());
    let worker = world.worker(&format!(
        "if kind == 'hello' and not is_open('{mended}'): ignore_term(); descend()\n\
         if kind == 'end' and not is_open('{mended}'): wait('/nowhere')"
    ));
    world.kafka.produce(&products, ids(1..=2));
    let (proxy, consumer) = behind_a_proxy(&world, &products, "--session-timeout 30s --batch-size 2", &worker);
    world.eventually("it has all of it", || worker.given() == 1);
    let both = [worker.pids()[0], children(&worker)[0]];
    proxy.set(Mode::Frozen);
    // Seven tenths of the session timeout after the last answer.
    let limit = Duration::from_secs(21);
    world.within(limit, "it is gone with its descendant", || both.map(runs) == [false, false]);
    assert_eq!(worker.noted("TERM").len(), 1);
    mended.open();
    proxy.set(Mode::Open);
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("another one does the batch", || seat.offset() == Some(2));
    let batch = "batch record record end";
    assert_eq!(worker.stories(), [format!("hello child {batch} TERM"), format!("hello {batch} done")]);
    assert_eq!(worker.batches()[1].attempt(), 1);
    end(consumer);
}

#[test]
fn where_another_process_may_lead_already_the_worker_is_killed_at_once() {
    let world = World::new("candidate");
    let (products, gate) = (world.topic("products", 1), world.gate());
    world.kafka.produce(&products, ids(1..=2));
    let worker = world.worker(&format!("if kind == 'hello': ignore_term()\nif kind == 'end': wait('{gate}')"));
    // A connection that is lost would leave it 12 s at least; a heartbeat, each third second, tells of the deletion.
    let options = "--worker --session-timeout 30s --batch-size 2";
    let consumer = world.consume(&format!("-t {products} -n indexer {options} -- {worker}"));
    world.eventually("it is at work", || worker.given() == 1);
    let (seat, first) = (world.seat(&products, 0, "indexer"), worker.pids()[0]);
    seat.delete(&format!("leader/{}", seat.candidates()[0]));
    world.within(Duration::from_secs(10), "it is gone", || !runs(first));
    world.eventually("it leads again, with another worker", || worker.given() == 2);
    let told = "no longer leading: deposed: the own candidate is gone; queueing again";
    world.eventually("it is told", || consumer.says(&["warn: ", told]));
    let batches = worker.batches();
    assert_eq!((runs(first), seat.offset(), batches[1].attempt()), (false, Some(0), 1));
    assert!(batches[0].pid != batches[1].pid && batches[0].term() < batches[1].term(), "{batches:?}");
    gate.open();
    world.eventually("it is done", || seat.offset() == Some(2));
    assert_eq!(worker.done(), [0, 1]);
    end(consumer);
}

#[test]
fn a_sigkill_of_ksync_leaves_no_worker_and_no_descendant() {
    let world = World::new("killed");
    let products = world.topic("products", 2);
    world.kafka.produce(&products, ids(1..=2).zip(0..).map(|(message, partition)| message.to(partition)));
    // One is at work, the other has nothing to do.
    let gate = world.gate();
    let worker = world.worker(&format!(
        "if kind == 'hello': ignore_term(); descend()\n\
         if kind == 'end': wait('{gate}' if batch['partition'] == 1 else '/nowhere')"
    ));
    let mut consumer = world.consume(&format!("-t {products} -n indexer --worker -j 2 -- {worker}"));
    world.eventually("both are at work", || worker.given() == 2);
    gate.open();
    world.eventually("one batch is done", || world.seat(&products, 1, "indexer").offset() == Some(1));
    let all = [worker.pids(), children(&worker)].concat();
    assert_eq!((all.len(), all.iter().all(|pid| runs(*pid))), (4, true));
    consumer.kill();
    let limit = Duration::from_secs(if is_full() { 1 } else { 5 });
    world.within(limit, "all of them are gone", || !all.iter().any(|pid| runs(*pid)));
    world.eventually("nothing is left", || world.processes() == 0);
}
