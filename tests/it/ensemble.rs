//! What may happen to ZooKeeper itself, and to the way there: servers that are cut off, slow lines, lost data.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use ksync::election::{Election, Lost, Servers, ZooKeeper};
use rustix::process::{Signal, kill_process};
use tokio::task::JoinSet;

use crate::consume::ids;
use crate::support::election::{self, SOON, T, at, seat, within};
use crate::support::{End, Mode, Process, Proxy, Seat, Services, World, block_on, is_full, pass, reigns};

/// What a server says of itself in answer to a command of four letters; nothing where it does not answer.
pub fn told(server: &str, command: &str) -> String {
    let mut said = String::new();
    if let Ok(mut connection) = TcpStream::connect(server)
        && connection.write_all(command.as_bytes()).is_ok()
    {
        // Cut off in the middle it is no answer either.
        connection.read_to_string(&mut said).unwrap_or_default();
    }
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_ends_in_time_though_its_own_server_goes_on_to_answer() {
    let id = format!("cut-off-{}", std::process::id());
    let ensemble = tokio::task::spawn_blocking(move || Services::ensemble(&id)).await.unwrap();
    let servers: Vec<&str> = ensemble.get("KSYNC_ZOOKEEPER").split(',').collect();
    let is_leader = |server: &&str| told(server, "srvr").contains("Mode: leader");
    let leader = servers.iter().position(is_leader).expect("one leads");
    let follower = (leader + 1) % 3;
    for own in [follower, leader] {
        let world = election::World::on(servers[own], &format!("cut-off-{own}")).await;
        let election = world.election_through(servers[own]);
        assert_eq!(within(4 * T, election.voters()).await.unwrap(), Some(3));
        let mut candidacy = election.candidate(seat(0));
        let others = (0..3).filter(|other| *other != own);
        let others: Vec<_> = others.map(|other| ensemble.pid(&format!("zookeeper-{}", other + 1))).collect();
        let expected = T * 3 / 10 - SOON..=T * 4 / 10 + 2 * SOON;
        // A machine that stands still for a moment makes it earlier or later, but not each time.
        for round in 1.. {
            let lease = within(10 * T, candidacy.lead(&world.shutdown)).await.unwrap().unwrap();
            lease.commit(at(6 + round)).await.unwrap();

            // Whoever is left alone, be it the leader, can carry out no write; it still answers pings and reads.
            let stopped = Instant::now();
            others.iter().for_each(|pid| kill_process(*pid, Signal::STOP).unwrap());
            let lost = within(2 * T, lease.lost()).await;
            let took = stopped.elapsed();
            others.iter().for_each(|pid| kill_process(*pid, Signal::CONT).unwrap());
            assert!(matches!(lost, Lost::Unanswered(_)), "{lost:?}");
            if expected.contains(&took) {
                break;
            }
            assert!(round < 5, "{took:?} is not in {expected:?}");
        }

        let lease = within(10 * T, candidacy.lead(&world.shutdown)).await.unwrap().unwrap();
        lease.commit(at(20)).await.unwrap();
        assert_eq!(world.queue().await.len(), 1);
    }
}

#[test]
fn a_session_timeout_that_zookeeper_makes_longer_is_refused_and_it_is_said_what_to_ask_for() {
    let world = World::new("short-session");
    let products = world.topic_with_delay("products", 1);
    let handler = world.handler("");
    // The servers of the tests grant two ticks of half a second, or more.
    let consume = format!("-t {products} -n indexer --session-timeout");
    let daemon = world.consume(&format!("{consume} 999ms -- {handler}"));
    let bounded = world.consume(&format!("{consume} 500ms -e -- {handler}"));
    let delayer = world.delayer(&format!("-t {products} --session-timeout 900ms"));
    let consumed = format!("{products}/0 as indexer");
    for (mut process, seat) in
        [(daemon, &consumed), (bounded, &consumed), (delayer, &format!("{products}-delay/0 as delayer"))]
    {
        assert_eq!(process.wait(), End::Status(78));
        let told = format!(
            "cannot queue for {seat}: ZooKeeper grants no session timeout below 1s, and where that is less than five of its \
             ticks (tickTime) another process might lead before the handlers of this one are ended; ask for 3s, or for 1s where \
             it is five ticks or more (--session-timeout)"
        );
        assert_eq!((process.log_of("error"), process.log_of("warn")), (vec![told], vec![]));
    }
    let mut longer = world.consume(&format!("{consume} 3s -e -- {handler}"));
    assert_eq!((longer.wait(), longer.says(&["grants"])), (End::Status(0), false));
    let mut shorter = world.consume(&format!("{consume} 90s -e -- {handler}"));
    assert_eq!(shorter.wait(), End::Status(0));
    let told = format!("ZooKeeper at {}: grants a session timeout of 60s, not 90s", world.zookeeper());
    assert_eq!(shorter.log_of("warn"), [told]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_line_moves_no_leadership() {
    let world = election::World::new("slow").await;
    let proxy = Proxy::to(&world.server).await;
    const SESSION: Duration = Duration::from_secs(10);
    let servers: Servers = format!("{}{}", proxy.address, world.chroot).parse().unwrap();
    let election = Election::ZooKeeper(ZooKeeper::connect(&servers, SESSION));
    let mut candidacy = election.candidate(seat(0));
    let time = if is_full() { 60 * SESSION } else { 2 * SESSION };
    let (mut begun, mut before, mut offset) = (Instant::now(), 0, 0);
    // A machine that stands still for a second or two costs the lease, but not each time.
    for round in 1.. {
        let lease = candidacy.lead(&world.shutdown).await.unwrap().unwrap();
        // There and back it is a fifth of the session timeout, and no answer is late by itself; but a lease that waited for
        // each before its next heartbeat would run out.
        proxy.set(Mode::Slow(SESSION / 10));
        // In the long form it may be lost twice in the whole time, in the plain one not once in the last one.
        if !is_full() {
            (begun, before) = (Instant::now(), offset);
        }
        while begun.elapsed() < time {
            offset += 1;
            if lease.commit(at(offset)).await.is_err() {
                break;
            }
            pass(SESSION / 20).await;
        }
        if lease.is_held() && offset > before + 5 {
            break;
        }
        assert!(round < 3, "the lease is lost each time: {:?} after the beginning", begun.elapsed());
        proxy.set(Mode::Open);
    }
}

/// The other traffic on a line: so many requests are under way at any time, to write such a piece or to read it.
const OTHERS: u32 = 8;
const PIECE: u32 = 1500;

/// Has others fill a line in both directions until the tasks are dropped; tells how often a piece has gone each way.
fn fill(world: &World, line: &Proxy) -> (JoinSet<()>, Arc<AtomicU32>) {
    let (others, piece) = (world.seat("others", 0, "others"), "x".repeat(PIECE as usize));
    others.write("piece", &piece);
    let (client, path, passed) = (Seat::connect(&line.address), others.path("piece"), Arc::<AtomicU32>::default());
    let mut tasks = JoinSet::new();
    block_on(async {
        for _ in 0..OTHERS {
            let (client, path, piece, passed) = (client.clone(), path.clone(), piece.clone(), passed.clone());
            tasks.spawn(async move {
                while client.set_data(&path, piece.as_bytes(), None).await.is_ok()
                    && client.get_data(&path).await.is_ok()
                {
                    passed.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    (tasks, passed)
}

#[test]
fn a_narrow_line_that_others_fill_moves_no_leadership() {
    const BATCH: usize = 5;
    // In the long form it has 64 kbit/s; in both as much passes within a session timeout.
    let (session, seconds, most) = if is_full() { (10, 600, 2) } else { (10, 20, 0) };
    let bytes_per_second = 80_000 / session;
    let world = World::new("narrow");
    let products = world.topic("products", 1);
    let (line, handler) = (block_on(Proxy::to(world.services.get("KSYNC_ZOOKEEPER"))), world.handler(""));
    let way = format!("--zookeeper {}/{} --session-timeout {session}s", line.address, world.id);
    let options = format!("-t {products} -n indexer {way} --batch-size {BATCH}");
    let mut consumers = [0, 1].map(|_| world.consume(&format!("{options} -- {handler}")));
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("one leads, the other stands by", || seat.candidates().len() == 2 && seat.offset() == Some(0));
    line.set(Mode::Narrow(bytes_per_second));
    let (others, passed) = fill(&world, &line);
    // More than can be committed meanwhile.
    world.kafka.produce(&products, ids(0..3 * 40 * BATCH as u32 * seconds / session));
    let changes = |consumers: &[Process]| {
        let log = consumers.iter().flat_map(Process::log);
        log.filter(|line| line.contains("no longer leading: ")).count()
    };
    let commits = || seat.node("offset").unwrap().1.version;
    let time = Duration::from_secs(seconds.into());
    // A machine that stands still for more than a second costs a lease, but not each time.
    let (mut round, tries) = (0, if is_full() { 1 } else { 3 });
    let (commits, passed) = loop {
        round += 1;
        let (before, known, filled) = (commits(), changes(&consumers), passed.load(Ordering::Relaxed));
        world.for_a_while(time, "time passes", || true);
        if changes(&consumers) - known <= most {
            break (commits() - before, passed.load(Ordering::Relaxed) - filled);
        }
        assert!(round < tries, "the leader does not stay: {} changes", changes(&consumers));
    };
    drop(others);
    assert!(commits as u32 >= 2 * seconds / session, "{commits} commits in {time:?}");
    assert!(passed * PIECE >= bytes_per_second * seconds / 3, "the line was not full: {passed} pieces in {time:?}");
    assert_eq!(seat.candidates().len(), 2);
    let changes = changes(&consumers);
    line.set(Mode::Open);
    for consumer in &mut consumers {
        consumer.signal(Signal::TERM);
        assert_eq!(consumer.wait(), End::Status(0));
    }
    let (done, offset) = (handler.payloads(), seat.offset().unwrap() as usize);
    assert_eq!(done.iter().collect::<BTreeSet<_>>().len(), offset);
    // Each time that one stops leading, a batch may be done that was not committed.
    assert!(done.len() <= offset + BATCH * changes, "{} were done up to {offset}, {changes} changes", done.len());
}

#[test]
fn a_line_that_flaps_lets_the_work_go_on_and_skips_nothing() {
    let (world, since) = (World::new("flaps"), SystemTime::now());
    let products = world.topic("products", 1);
    let (records, time) = if is_full() { (3000, Duration::from_secs(300)) } else { (200, Duration::from_secs(8)) };
    let handler = world.handler("sleep 0.02");
    let proxy = block_on(Proxy::to(world.services.get("KSYNC_ZOOKEEPER")));
    let options = format!("--zookeeper {}/{} --session-timeout 2s --batch-size 1", proxy.address, world.id);
    let mut consumer = world.consume(&format!("-t {products} -n indexer {options} -- {handler}"));
    let seat = world.seat(&products, 0, "indexer");
    let flow = world.kafka.flow(&products, ids(0..records).collect(), time);
    world.eventually("it is at work", || seat.offset() > Some(0));
    let (begun, before) = (Instant::now(), seat.offset());
    let (mut highest, mut moved) = (before, begun);
    // A busy machine does not get through in each window.
    while begun.elapsed() < time || highest == before {
        for mode in [Mode::Closed, Mode::Open] {
            proxy.set(mode);
            world.for_a_while(Duration::from_millis(500), "the offset never goes back", || {
                let now = seat.offset();
                if now > highest {
                    moved = Instant::now();
                }
                std::mem::replace(&mut highest, now) <= now
            });
        }
        assert!(moved.elapsed() < Duration::from_secs(60), "no progress: {highest:?}");
    }
    flow.join().unwrap();
    let all = Some(i64::from(records));
    world.within(Duration::from_secs(240), "all is done", || seat.offset() == all);
    consumer.signal(Signal::TERM);
    assert_eq!(consumer.wait(), End::Status(0));
    let done = handler.payloads();
    assert_eq!(done.iter().collect::<BTreeSet<_>>().len(), records as usize);
    // Each time that it stops leading, a batch may be done that was not committed.
    let stops = consumer.log().iter().filter(|line| line.contains("no longer leading: ")).count();
    assert!(stops > 0, "the line has not flapped");
    assert!(done.len() <= records as usize + stops, "{} were done, {stops} stops", done.len());
    let reigns = reigns(&world.services, since, &seat);
    assert_eq!(reigns.last().and_then(|reign| reign.offsets.last().copied()), all);
}

#[test]
fn where_all_that_is_stored_is_deleted_the_leader_stops_and_begins_anew() {
    let world = World::new("deleted");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(0..3));
    let handler = world.handler("");
    let consumer = world.consume(&format!("-t {products} -n indexer -- {handler}"));
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("all is done", || seat.offset() == Some(3));
    seat.delete_all();
    world.eventually("it begins at the beginning", || handler.payloads().len() >= 6 && seat.offset() == Some(3));
    // It was 3, or, where it has led again for a moment while the nodes were deleted one by one, 0.
    let told = ["no offset is stored any more, it was ", "; beginning at 0: records come again"];
    world.eventually("it says so", || consumer.says(&["no longer leading"]) && consumer.says(&told));
}

#[test]
fn a_zookeeper_that_was_set_back_to_yesterday_brings_records_again_and_loses_none() {
    let world = World::alone("set-back");
    let products = world.topic("products", 1);
    let handler = world.handler("");
    let consume = || world.consume(&format!("-t {products} -n indexer --session-timeout 2s -- {handler}"));
    let consumers = [consume(), consume()];
    // Nobody leads in the place of this one, which so remembers where it stood.
    let of_alone = world.handler("");
    let alone = world.consume(&format!("-t {products} -n alone --session-timeout 2s -- {of_alone}"));
    let server = world.services.get("KSYNC_ZOOKEEPER");
    let offsets = || {
        // By a session of its own, which does not end with a server that is away.
        let client = Seat::connect(server);
        ["indexer", "alone"].map(|name| Seat { client: client.clone(), ..world.seat(&products, 0, name) }.offset())
    };
    world.kafka.produce(&products, ids(0..3));
    world.eventually("the first are done", || offsets() == [Some(3); 2]);
    let data = Path::new(world.services.get("KSYNC_ZOOKEEPER_DATA"));
    let backup = world.file("backup");
    let copy = |from: &Path, to: &Path| {
        let status = std::process::Command::new("cp").arg("-r").arg(from).arg(to).status().unwrap();
        assert!(status.success());
    };
    world.services.stop("zookeeper");
    copy(data, &backup);
    world.services.start_again("zookeeper");
    world.kafka.produce(&products, ids(3..10));
    world.eventually("all are done", || offsets() == [Some(10); 2]);
    world.services.stop("zookeeper");
    fs::remove_dir_all(data).unwrap();
    copy(&backup, data);
    world.services.start_again("zookeeper");
    world.within(Duration::from_secs(60), "what came after the backup is done again", || {
        offsets() == [Some(10); 2] && handler.payloads().len() >= 17
    });
    let done = handler.payloads();
    assert!((0..10).all(|id| done.contains(&format!("{{\"id\":{id}}}"))), "{done:?}");
    let told = ["warn: ", "the offset went back from 10 to 3: records come again"];
    world.eventually("who has led before tells it", || alone.says(&told));
    drop(consumers);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_candidates_one_leads_at_a_time_and_each_change_wakes_but_the_next() {
    let world = election::World::new("herd").await;
    let (candidates, changes) = if is_full() { (200, 50) } else { (40, 20) };
    // How long the next one may take to lead, behind one that was killed: in the long form each is.
    let limit = if is_full() { T + Duration::from_secs(2) } else { 4 * T };
    // Whoever will lead has a way of its own, by which it can be killed.
    let mut ways = vec![];
    for _ in 0..=changes {
        ways.push(Proxy::to(&world.server).await);
    }
    let (leads, mut leaders) = tokio::sync::mpsc::unbounded_channel();
    let stand = |number: usize| {
        let election = world.election_through(&ways[number.min(changes)].address);
        let (mut candidacy, shutdown, leads) = (election.candidate(seat(0)), world.shutdown.clone(), leads.clone());
        tokio::spawn(async move {
            if let Ok(Some(lease)) = candidacy.lead(&shutdown).await {
                leads.send((number, lease)).unwrap();
                // One candidacy is enough for each.
                std::future::pending::<()>().await;
            }
        })
    };
    let mut tasks: Vec<_> = (0..changes).map(&stand).collect();
    world.eventually("those queue that will lead", async || world.queue().await.len() == changes).await;
    tasks.extend((changes..candidates).map(&stand));
    world.eventually("all queue", async || world.queue().await.len() == candidates).await;
    // The last to queue has yet to look whom it waits for.
    pass(SOON).await;
    let requests = || ways.iter().map(Proxy::requests).sum::<usize>();
    let events = || ways.iter().map(Proxy::events).sum::<usize>();
    let (mut term, before, fired) = (None, requests(), events());
    for change in 0..=changes {
        let (number, lease) = within(limit, leaders.recv()).await.unwrap();
        assert!(Some(lease.term()) > term, "{:?} after {term:?}", lease.term());
        term = Some(lease.term());
        lease.commit(at(1)).await.unwrap();
        assert!(leaders.is_empty(), "two lead");
        if change == changes {
            break;
        }
        // A session takes its time to end.
        if is_full() || change % 7 == 0 {
            // To the server, and to those behind, it is what SIGKILL does.
            ways[number].set(Mode::Closed);
            assert_eq!(within(T, lease.lost()).await, Lost::Disconnected);
            tasks[number].abort();
        } else {
            lease.release().await;
        }
    }
    let (requests, fired) = (requests() - before, events() - fired);
    assert!(requests <= 12 * (changes + 1), "{requests} requests for {changes} changes");
    // That of the next one, and where the leader leaves by itself, its own.
    assert!(fired <= 2 * changes, "{fired} watches have fired at {changes} changes");
    tasks.iter().for_each(|task| task.abort());
}
