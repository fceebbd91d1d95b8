//! Who leads, and which offsets a leader finds, commits and is refused, against a real ZooKeeper.

use std::time::{Duration, Instant};

use ksync::election::{Lease, Lost, Seat, StoredOffset, StoredState, Term};
use ksync::topic::{Offset, Topic};
use zookeeper::{Acls, CreateMode};

use crate::support::election::{AT_ONCE, T, World, at, seat, within};
use crate::support::{EPHEMERAL_SEQUENTIAL, PERSISTENT, Proxy, pass};

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_leads_at_once_when_the_leader_releases() {
    let world = World::new("release").await;
    let (first, second) = (world.election(), world.election());
    let lease = world.lead(&first).await;
    let old_term = lease.term();
    let mut candidacy = second.candidate(seat(0));
    let shutdown = world.shutdown.clone();
    let standby = tokio::spawn(async move { (candidacy.lead(&shutdown).await.unwrap().unwrap(), Instant::now()) });
    world.eventually("two candidates", async || world.queue().await.len() == 2).await;
    assert!(!standby.is_finished());

    let released = Instant::now();
    lease.release().await;
    let (lease, led) = within(T, standby).await.unwrap();

    assert!(led - released < AT_ONCE);
    assert!(lease.is_held());
    assert!(lease.term() > old_term);
    assert_eq!(world.queue().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_leads_at_once_when_the_leader_drops_its_lease_or_closes() {
    let world = World::new("drop").await;
    let (first, second) = (world.election(), world.election());
    for close in [false, true] {
        let lease = world.lead(&first).await;
        let mut candidacy = second.candidate(seat(0));
        let (left, led) = tokio::join!(
            async {
                world.eventually("two candidates", async || world.queue().await.len() == 2).await;
                let left = Instant::now();
                if close {
                    within(AT_ONCE, first.clone().close()).await;
                    assert!(!lease.is_held());
                    assert_eq!(lease.lost().await, Lost::Closed);
                } else {
                    drop(lease);
                }
                left
            },
            async {
                let lease = candidacy.lead(&world.shutdown).await.unwrap().unwrap();
                let led = Instant::now();
                lease.release().await;
                led
            }
        );
        assert!(led - left < AT_ONCE);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_is_refused_when_somebody_else_wrote_the_offset() {
    let world = World::new("moved").await;
    let election = world.election();
    let mut candidacy = election.candidate(seat(0));
    let lease = candidacy.lead(&world.shutdown).await.unwrap().unwrap();
    lease.commit(at(10)).await.unwrap();
    world.write("offset", "4").await;

    assert_eq!(lease.commit(at(11)).await, Err(Lost::OffsetMoved));
    assert!(!lease.is_held());
    assert_eq!(lease.commit(at(12)).await, Err(Lost::OffsetMoved));

    assert_eq!(world.text("offset").await, "4");
    let old_term = lease.term();
    drop(lease);
    let lease = within(T, candidacy.lead(&world.shutdown)).await.unwrap().unwrap();
    assert_eq!(lease.stored().offset, StoredOffset::At(Offset(4)));
    let StoredState::Kept(state) = &lease.stored().state else { panic!("{:?}", lease.stored()) };
    assert_eq!((&state.position, state.term), (&at(10), old_term));
    assert_eq!(world.queue().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_writes_offset_and_state_and_the_next_leader_finds_them() {
    let world = World::new("commit").await;
    let election = world.election();
    let lease = world.lead(&election).await;
    assert_eq!(lease.stored().offset, StoredOffset::None);
    assert_eq!(lease.stored().state, StoredState::None);
    lease.commit(at(4711)).await.unwrap();
    let Term(term) = lease.term();
    assert_eq!(world.text("offset").await, "4711");
    assert_eq!(
        world.text("state").await,
        format!(
            "{{\"v\":1,\"offset\":4711,\"topic_id\":\"000000000000000000000000000000ab\",\"leader_epoch\":3,\
             \"last\":{{\"offset\":4710,\"ts\":1700000000123,\"crc32c\":7}},\"term\":{term}}}"
        )
    );
    let own = world.queue().await.remove(0);
    let (data, stat) = world.zk.get_data(&world.path(&format!("leader/{own}"))).await.unwrap();
    assert_eq!(data, std::fs::read("/proc/sys/kernel/hostname").unwrap());
    assert_eq!(stat.czxid, term);
    let before = world.zk.check_stat(&world.path("offset")).await.unwrap().unwrap().version;
    lease.release().await;

    let lease = world.lead(&election).await;
    assert_eq!(lease.stored().offset, StoredOffset::At(Offset(4711)));
    let StoredState::Kept(state) = &lease.stored().state else { panic!("{:?}", lease.stored()) };
    assert_eq!((&state.position, state.term), (&at(4711), Term(term)));
    let after = world.zk.check_stat(&world.path("offset")).await.unwrap().unwrap().version;
    assert_eq!(after, before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_of_the_gem_and_of_people_are_read() {
    let world = World::new("gem-offset").await;
    let election = world.election();
    for (data, offset) in [
        ("4711", StoredOffset::At(Offset(4711))),
        ("", StoredOffset::None),
        ("abc", StoredOffset::Garbage("abc".to_owned())),
    ] {
        world.write("offset", data).await;
        let lease = world.lead(&election).await;
        assert_eq!(lease.stored().offset, offset);
        assert_eq!(world.text("offset").await, data);
        lease.release().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_of_the_gem_is_waited_for_and_a_stranger_is_passed_over() {
    let world = World::new("gem").await;
    world.write("leader/stranger", "").await;
    let prefix = world.path("leader/0123456789abcdef0123456789abcdef_");
    let (_, number) = world.zk.create(&prefix, b"web1\n", &EPHEMERAL_SEQUENTIAL).await.unwrap();
    let election = world.election();
    let mut candidacy = election.candidate(seat(0));
    let (gone, led) = tokio::join!(
        async {
            world.eventually("both queue", async || world.queue().await.len() == 3).await;
            // What the gem's own heartbeats would be: it must not wake the one behind it for good.
            world.zk.set_data(&format!("{prefix}{number}"), b"web1\n", None).await.unwrap();
            world.zk.delete(&format!("{prefix}{number}"), None).await.unwrap();
            Instant::now()
        },
        async {
            let lease = candidacy.lead(&world.shutdown).await.unwrap().unwrap();
            (Instant::now(), lease)
        }
    );
    assert!(led.0.saturating_duration_since(gone) < AT_ONCE);
    assert!(led.1.is_held());
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_seats_share_one_session() {
    let world = World::new("seats").await;
    let proxy = Proxy::to(&world.server).await;
    // Its leases outlive a machine that stands still for some seconds.
    let election = world.election_for(&proxy.address, 2 * T);
    let mut waiting = Vec::new();
    for partition in 0..64 {
        let (election, shutdown) = (election.clone(), world.shutdown.clone());
        waiting.push(tokio::spawn(async move { election.candidate(seat(partition)).lead(&shutdown).await }));
    }
    let mut leases = Vec::new();
    for lease in waiting {
        leases.push(within(4 * T, lease).await.unwrap().unwrap().unwrap());
    }
    for (offset, lease) in (1..).zip(&leases) {
        lease.commit(at(offset)).await.unwrap();
    }
    pass(2 * T).await;
    assert!(leases.iter().all(Lease::is_held));
    assert_eq!(*proxy.accepted.borrow(), 1);
    let mut heartbeats = 0;
    for partition in 0..64 {
        let queue = format!("{}/kafka_sync/consumer/products/{partition}/indexer/leader", world.chroot);
        let own = world.zk.list_children(&queue).await.unwrap().remove(0);
        heartbeats += world.zk.get_data(&format!("{queue}/{own}")).await.unwrap().1.version;
    }
    // One by each would be 64 in each tenth of 2 T.
    assert!((5..100).contains(&heartbeats), "{heartbeats} heartbeats in 2 T");
    let seats = election.candidates(&"products".parse().unwrap()).await.unwrap();
    assert_eq!(seats, (0..64).map(|partition| (seat(partition), 1)).collect::<Vec<_>>());
    let closing = Instant::now();
    election.close().await;
    // Sooner than by the end of the session.
    world.eventually("its candidates are gone", async || world.queue().await.is_empty()).await;
    assert!(closing.elapsed() < T);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_wait_withdraws_the_candidate() {
    let world = World::new("cancel").await;
    let (first, second) = (world.election(), world.election());
    let lease = world.lead(&first).await;
    let mut candidacy = second.candidate(seat(0));
    for _ in 0..3 {
        tokio::select! {
            _ = candidacy.lead(&world.shutdown) => panic!("it leads"),
            () = world.eventually("two candidates", async || world.queue().await.len() == 2) => {}
        }
    }
    world.eventually("one candidate", async || world.queue().await.len() == 1).await;
    assert!(lease.is_held());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_ends_the_wait_at_once() {
    let world = World::new("shutdown").await;
    let nowhere = world.election_through("127.0.0.1:1");
    let (first, second) = (world.election(), world.election());
    let _lease = world.lead(&first).await;
    let (mut away, mut standby) = (nowhere.candidate(seat(0)), second.candidate(seat(0)));
    let (waits, ()) =
        tokio::join!(async { tokio::join!(away.lead(&world.shutdown), standby.lead(&world.shutdown)) }, async {
            world.eventually("two candidates", async || world.queue().await.len() == 2).await;
            world.trigger.request();
        });
    assert!(waits.0.unwrap().is_none());
    assert!(waits.1.unwrap().is_none());
    within(AT_ONCE, nowhere.close()).await;
    world.eventually("one candidate", async || world.queue().await.len() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_right_is_an_error() {
    let world = World::new("acl").await;
    let read_only = CreateMode::Persistent.with_acls(Acls::anyone_read());
    world.zk.create(&world.chroot, b"", &PERSISTENT).await.unwrap();
    world.zk.create(&format!("{}/kafka_sync", world.chroot), b"", &read_only).await.unwrap();
    let election = world.election();
    let refused = within(T, election.candidate(seat(0)).lead(&world.shutdown)).await.unwrap_err();
    assert_eq!(format!("{refused:#}"), "cannot queue for products/0 as indexer: ZooKeeper refuses it: not authorized");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_delay_is_refused_while_its_delayer_is_alive() {
    let world = World::new("delay").await;
    let (first, second) = (world.election(), world.election());
    let topic: Topic = "products-delay".parse().unwrap();
    let seat = Seat { partition: topic.partition(0), name: "delayer".parse().unwrap() };
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    assert_eq!(first.delay_of(&topic).await.unwrap(), None);
    let now = first.declare_delay(&seat, minutes(5)).await.unwrap();
    assert!(now.elapsed().unwrap() < Duration::from_secs(5), "the server's time is {now:?}");
    let lease = first.candidate(seat.clone()).lead(&world.shutdown).await.unwrap().unwrap();
    second.declare_delay(&seat, minutes(5)).await.unwrap();
    first.declare_delay(&seat, minutes(6)).await.unwrap();

    let refused = second.declare_delay(&seat, minutes(1)).await.unwrap_err().to_string();

    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let host = host.trim_end();
    assert_eq!(
        refused,
        format!(
            "cannot delay products-delay/0 by 60s on {host}: a delayer is at work on {host} that delays it by 360s; \
             give both the same --delay"
        )
    );
    assert_eq!(second.delay_of(&topic).await.unwrap(), Some(minutes(6)));
    lease.release().await;
    second.declare_delay(&seat, minutes(1)).await.unwrap();
    assert_eq!(first.delay_of(&topic).await.unwrap(), Some(minutes(1)));
}
