//! How a lease is lost and what follows: leaders killed or stopped, candidates deleted, connections and replies lost.

use std::pin::pin;
use std::time::{Duration, Instant};

use ksync::election::{Lost, StoredOffset, Term};
use ksync::topic::Offset;
use rustix::process::Signal;
use tokio::time::timeout;

use crate::support::election::{AT_ONCE, Leader, SOON, T, World, assert_between, at, seat, within};
use crate::support::{EPHEMERAL_SEQUENTIAL, Mode, Proxy, pass};

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_leads_after_the_session_timeout_when_the_leader_is_killed() {
    let world = World::new("kill").await;
    let leader = Leader::start(&world).await;
    let election = world.election();
    let killed = Instant::now();
    leader.signal(Signal::KILL);
    let lease = world.lead(&election).await;
    assert_between(killed.elapsed(), T / 2, T + Duration::from_secs(8));
    assert!(lease.is_held());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_stopped_and_wakes_cannot_commit() {
    let world = World::new("stop").await;
    let mut leader = Leader::start(&world).await;
    leader.commit(100).await;
    assert_eq!(leader.says().await, "held=true committed");
    let election = world.election();
    leader.signal(Signal::STOP);
    let lease = world.lead(&election).await;
    assert_eq!(lease.stored().offset, StoredOffset::At(Offset(100)));
    within(T, lease.commit(at(200))).await.unwrap();

    leader.commit(101).await;
    leader.signal(Signal::CONT);

    let said = leader.says().await;
    assert!(said.starts_with("held=false "), "{said}");
    assert_eq!(world.text("offset").await, "200");
    within(T, lease.commit(at(201))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_candidate_is_deleted_stops() {
    let world = World::new("deleted").await;
    let election = world.election();
    let lease = world.lead(&election).await;
    let own = world.queue().await.remove(0);
    world.zk.delete(&world.path(&format!("leader/{own}")), None).await.unwrap();
    let deleted = Instant::now();
    assert_eq!(within(T, lease.lost()).await, Lost::CandidateGone);
    assert!(deleted.elapsed() < AT_ONCE);
    assert!(!lease.is_held());
    assert_eq!(lease.grace(), Duration::ZERO);
    assert_eq!(lease.commit(at(1)).await, Err(Lost::CandidateGone));
    assert_eq!(world.text("offset").await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_candidate_is_noticed_while_another_lease_of_its_session_writes_for_both() {
    let world = World::new("deleted-beside").await;
    let election = world.election_for(&world.server, 2 * T);
    let lease = world.lead(&election).await;
    let other = within(T, election.candidate(seat(1)).lead(&world.shutdown)).await.unwrap().expect("no shutdown");
    let own = world.queue().await.remove(0);
    let commits = async {
        for offset in 0.. {
            other.commit(at(offset)).await.unwrap();
            pass(T / 40).await;
        }
    };
    let deleted = async {
        pass(T).await;
        world.zk.delete(&world.path(&format!("leader/{own}")), None).await.unwrap();
        let deleted = Instant::now();
        assert_eq!(within(T, lease.lost()).await, Lost::CandidateGone);
        assert!(deleted.elapsed() < AT_ONCE);
    };
    tokio::select! {
        () = commits => {}
        () = deleted => {}
    }
    assert!(other.is_held());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_right_after_the_deletion_is_refused() {
    let world = World::new("deleted-commit").await;
    let election = world.election();
    let lease = world.lead(&election).await;
    let own = world.queue().await.remove(0);
    world.zk.delete(&world.path(&format!("leader/{own}")), None).await.unwrap();
    assert_eq!(lease.commit(at(1)).await, Err(Lost::CandidateGone));
    assert_eq!(world.text("offset").await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn work_stops_at_four_tenths_of_the_timeout_when_the_server_goes_silent() {
    let world = World::new("silent").await;
    let proxy = Proxy::to(&world.server).await;
    let election = world.election_through(&proxy.address);
    let mut candidacy = election.candidate(seat(0));
    // Nothing passes, or what we send arrives, and no answer does.
    for mode in [Mode::Deaf, Mode::Frozen] {
        let expected = T * 3 / 10 - SOON..=T * 4 / 10 + SOON;
        // A machine that stands still for a moment makes it earlier or later, but not each time.
        for round in 1.. {
            let lease = within(10 * T, candidacy.lead(&world.shutdown)).await.unwrap().unwrap();
            proxy.set(mode);
            let silent = Instant::now();
            let lost = within(2 * T, lease.lost()).await;
            let (took, grace) = (silent.elapsed(), lease.grace());
            assert!(matches!(lost, Lost::Unanswered(_) | Lost::Disconnected), "{lost:?}");
            assert!(grace <= T / 10, "{grace:?}");
            assert!(!lease.is_held());
            assert_eq!(lease.commit(at(1)).await, Err(lost));
            match mode {
                // What was lost never comes.
                Mode::Deaf => proxy.cut().await,
                _ => proxy.set(Mode::Open),
            }
            drop(lease);
            if expected.contains(&took) {
                break;
            }
            assert!(round < 5, "{took:?} is not in {expected:?}");
        }
    }
    let lease = within(4 * T, candidacy.lead(&world.shutdown)).await.unwrap().unwrap();
    assert_eq!(lease.stored().offset, StoredOffset::None);
    assert_eq!(world.queue().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_behind_an_unanswered_heartbeat_fails_with_the_lease() {
    let world = World::new("behind").await;
    let proxy = Proxy::to(&world.server).await;
    let election = world.election_for(&proxy.address, 2 * T);
    let lease = world.lead(&election).await;
    proxy.set(Mode::Frozen);
    let frozen = Instant::now();
    let before = proxy.requests();
    world.eventually("a heartbeat is under way", async || proxy.requests() > before).await;
    let lost = within(2 * T, lease.commit(at(1))).await.unwrap_err();
    assert!(frozen.elapsed() < T * 6 / 5, "{:?}", frozen.elapsed());
    assert_eq!(lost, lease.lost().await);
    proxy.set(Mode::Open);
    drop(lease);
    world.eventually("the candidate is withdrawn", async || world.queue().await.is_empty()).await;
    // Only now it is known whether it counts: it was sent, behind the heartbeat and before the withdrawal.
    assert_eq!(world.text("offset").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_connection_breaks_leads_again_with_a_new_term() {
    let world = World::new("cut").await;
    let proxy = Proxy::to(&world.server).await;
    let election = world.election_through(&proxy.address);
    let mut candidacy = election.candidate(seat(0));
    let lease = candidacy.lead(&world.shutdown).await.unwrap().unwrap();
    let cut = Instant::now();
    proxy.set(Mode::Closed);
    assert_eq!(within(T, lease.lost()).await, Lost::Disconnected);
    let noticed = cut.elapsed();
    assert!(noticed < AT_ONCE, "{noticed:?}");
    proxy.set(Mode::Open);
    let term = lease.term();
    drop(lease);
    let next = within(4 * T, candidacy.lead(&world.shutdown)).await.unwrap().unwrap();
    assert!(next.term() > term);
    assert_eq!(world.queue().await.len(), 1);
}

/// Its handler may still be at work: then nobody else may lead, though the session lives and the candidate could be deleted.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_is_lost_lets_nobody_else_lead_before_it_is_dropped() {
    let world = World::new("lost-and-held").await;
    let proxy = Proxy::to(&world.server).await;
    let (election, another) = (world.election_through(&proxy.address), world.election());
    let lease = world.lead(&election).await;
    let mut standby = another.candidate(seat(0));
    let mut next = pin!(standby.lead(&world.shutdown));
    proxy.cut().await;
    assert_eq!(within(T, lease.lost()).await, Lost::Disconnected);
    assert!(timeout(2 * T, &mut next).await.is_err(), "a second one leads");
    assert_eq!(lease.commit(at(5)).await, Err(Lost::Disconnected));
    drop(lease);
    let next = within(Duration::from_secs(60), next).await.unwrap().unwrap();
    assert_eq!(next.stored().offset, StoredOffset::None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_leads_again_after_an_outage_longer_than_the_session() {
    let world = World::new("outage").await;
    let proxy = Proxy::to(&world.server).await;
    let election = world.election_through(&proxy.address);
    let mut candidacy = election.candidate(seat(0));
    let lease = candidacy.lead(&world.shutdown).await.unwrap().unwrap();
    lease.commit(at(5)).await.unwrap();
    proxy.set(Mode::Closed);
    assert_eq!(within(T, lease.lost()).await, Lost::Disconnected);
    world.eventually("the session has ended", async || world.queue().await.is_empty()).await;
    // Until the client itself has given the session up.
    pass(T).await;
    proxy.set(Mode::Open);
    drop(lease);
    let lease = within(4 * T, candidacy.lead(&world.shutdown)).await.unwrap().unwrap();
    assert_eq!(lease.stored().offset, StoredOffset::At(Offset(5)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_reply_to_the_candidates_making_leaves_one_candidate() {
    let world = World::new("lost-create").await;
    let proxy = Proxy::to(&world.server).await;
    let election = world.election_through(&proxy.address);
    world.lead(&election).await.release().await;
    // What comes before the making has its answer.
    proxy.set(Mode::DeafAfter("/leader/", 0));
    let (lease, ()) = tokio::join!(world.lead(&election), async {
        world.eventually("the candidate is made", async || world.queue().await.len() == 1).await;
        proxy.cut().await;
    });
    assert_eq!(world.queue().await.len(), 1);
    let own = world.queue().await.remove(0);
    let stat = world.zk.check_stat(&world.path(&format!("leader/{own}"))).await.unwrap().unwrap();
    assert_eq!(lease.term(), Term(stat.czxid));
}

/// It looks so where a session is dying which this process has given up before its server did.
#[tokio::test(flavor = "multi_thread")]
async fn candidates_of_the_own_name_that_another_session_made_are_waited_for_and_not_taken_for_the_own() {
    // So many that the first to be looked at is hardly the own one by chance.
    const DYING: usize = 5;
    let world = World::new("dying").await;
    let proxy = Proxy::to(&world.server).await;
    let election = world.election_through(&proxy.address);
    let lease = world.lead(&election).await;
    let own = world.queue().await.remove(0);
    lease.release().await;
    let prefix = world.path(&format!("leader/{}_", own.rsplit_once('_').unwrap().0));
    let mut dying = vec![];
    for _ in 0..DYING {
        let (_, number) = world.zk.create(&prefix, b"web1\n", &EPHEMERAL_SEQUENTIAL).await.unwrap();
        dying.push(format!("{prefix}{number}"));
    }
    // Whoever makes a candidate tells the name of its host.
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    proxy.set(Mode::DeafAfter(host.leak(), 0));
    let ((lease, led), gone) = tokio::join!(async { (world.lead(&election).await, Instant::now()) }, async {
        world.eventually("the candidate is made", async || world.queue().await.len() == DYING + 1).await;
        proxy.cut().await;
        pass(T / 2).await;
        assert_eq!(world.queue().await.len(), DYING + 1);
        let gone = Instant::now();
        for path in &dying {
            world.zk.delete(path, None).await.unwrap();
        }
        gone
    });
    assert!(led > gone, "it leads beside a session that is dying");
    let queue = world.queue().await;
    assert_eq!(queue.len(), 1);
    let stat = world.zk.check_stat(&world.path(&format!("leader/{}", queue[0]))).await.unwrap().unwrap();
    assert_eq!(lease.term(), Term(stat.czxid));
    within(T, lease.commit(at(1))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_reply_to_the_making_whose_session_ends_as_well_leaves_one_candidate_of_the_next_session() {
    let world = World::new("lost-session").await;
    let proxy = Proxy::to(&world.server).await;
    let election = world.election_through(&proxy.address);
    world.lead(&election).await.release().await;
    proxy.set(Mode::DeafAfter("/leader/", 0));
    let (lease, lost) = tokio::join!(world.lead(&election), async {
        world.eventually("the candidate is made", async || world.queue().await.len() == 1).await;
        let lost = world.queue().await;
        proxy.end_session().await;
        proxy.cut().await;
        lost
    });
    let queue = world.queue().await;
    assert_eq!(queue.len(), 1);
    assert_ne!(queue, lost);
    let stat = world.zk.check_stat(&world.path(&format!("leader/{}", queue[0]))).await.unwrap().unwrap();
    assert_eq!(lease.term(), Term(stat.czxid));
    within(T, lease.commit(at(1))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_reply_to_a_commit_ends_the_lease_and_the_next_one_knows() {
    let world = World::new("lost-commit").await;
    let proxy = Proxy::to(&world.server).await;
    let election = world.election_through(&proxy.address);
    let mut candidacy = election.candidate(seat(0));
    let lease = candidacy.lead(&world.shutdown).await.unwrap().unwrap();
    lease.commit(at(1)).await.unwrap();
    proxy.set(Mode::Deaf);
    let lost = within(T, lease.commit(at(2))).await.unwrap_err();
    assert!(matches!(lost, Lost::Unanswered(_) | Lost::Disconnected), "{lost:?}");
    world.eventually("it is carried out", async || world.text("offset").await == "2").await;
    proxy.cut().await;
    drop(lease);
    let lease = within(4 * T, candidacy.lead(&world.shutdown)).await.unwrap().unwrap();
    assert_eq!(lease.stored().offset, StoredOffset::At(Offset(2)));
    assert_eq!(world.queue().await.len(), 1);
}
