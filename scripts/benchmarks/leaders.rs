//! Made-up leaders: leads so many partitions and commits to each at an interval, for so long; prints how many commits were
//! answered and how long the slowest of 99 % took. For what many partitions cost ZooKeeper.

use std::env;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ksync::election::{Election, Lease, Lost, Position, Seat, ZooKeeper};
use ksync::shutdown::Shutdown;
use ksync::topic::{Offset, Topic, TopicId};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout_at};

const USAGE: &str =
    "usage: leaders ZOOKEEPER PARTITIONS SECONDS EVERY COMMIT_INTERVAL (both in ms; EVERY 0: without a pause)";
const SESSION: Duration = Duration::from_secs(10);

/// What each leader does.
#[derive(Clone, Copy)]
struct Plan {
    time: Duration,
    every: Duration,
    interval: Duration,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [servers, partitions, seconds, every, interval] = arguments.as_slice() else { bail!(USAGE) };
    let ms = |text: &String| anyhow::Ok(Duration::from_millis(text.parse().context(USAGE)?));
    let time = Duration::from_secs(seconds.parse().context(USAGE)?);
    let plan = Plan { time, every: ms(every)?, interval: ms(interval)? };
    let election = Election::ZooKeeper(ZooKeeper::connect(&servers.parse()?, SESSION));
    let leases = lead(&election, partitions.parse().context(USAGE)?).await?;
    writeln!(io::stdout(), "leading")?;
    let mut working = JoinSet::new();
    for (number, lease) in (0..).zip(leases) {
        working.spawn(commit(lease, number, plan));
    }
    let (mut taken, mut lost) = (vec![], vec![]);
    while let Some(worked) = working.join_next().await {
        let (times, end) = worked?;
        taken.extend(times);
        lost.extend(end);
    }
    taken.sort_unstable();
    let slowest = taken.get(taken.len() * 99 / 100).copied().unwrap_or_default();
    let (commits, milliseconds) = (taken.len(), slowest.as_secs_f64() * 1e3);
    writeln!(io::stdout(), "{commits} commits, 99 % within {milliseconds:.1} ms, {} leases lost", lost.len())?;
    election.close().await;
    Ok(())
}

async fn lead(election: &Election, partitions: i32) -> Result<Vec<Lease>> {
    let topic: Topic = "made-up".parse()?;
    let (_trigger, shutdown) = Shutdown::new();
    let mut queueing = JoinSet::new();
    for partition in 0..partitions {
        let seat = Seat { partition: topic.partition(partition), name: "leader".parse()? };
        let (mut candidacy, shutdown) = (election.candidate(seat), shutdown.clone());
        queueing.spawn(async move { candidacy.lead(&shutdown).await });
    }
    let mut leases = vec![];
    while let Some(lease) = queueing.join_next().await {
        leases.push(lease??.context("nobody asks for an end")?);
    }
    Ok(leases)
}

/// Commits until the time is over or the lease is lost; gives how long each commit took.
async fn commit(lease: Lease, number: u32, plan: Plan) -> (Vec<Duration>, Option<Lost>) {
    let (begun, mut taken) = (Instant::now(), vec![]);
    let every = plan.every.max(Duration::from_micros(1));
    // Not all at the same time.
    let mut tick = interval_at(begun + every * (number % 1000) / 1000, every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for offset in 0.. {
        if timeout_at(begun + plan.time, tick.tick()).await.is_err() {
            break;
        }
        let asked = Instant::now();
        let position =
            Position { offset: Offset(offset), topic_id: TopicId(7), leader_epoch: Some(0), last: None, skipped: None };
        if let Err(lost) = lease.commit_within(position, plan.interval).await {
            return (taken, Some(lost));
        }
        taken.push(asked.elapsed());
    }
    lease.release().await;
    (taken, None)
}
