//! How partitions are spread: a process that leads more than its share of them hands one over now and then.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::Duration;

use anyhow::Result;
use log::{debug, info};
use tokio::time::{Instant, sleep, timeout};

use super::Leading;
use crate::election::{Process, Seat};

/// Who queues for what, in the order in which they lead.
type Queues = BTreeMap<Seat, Vec<Process>>;

/// For so many session timeouts no process may have come or gone: a restart is not answered by moving partitions about.
const QUIET: u32 = 6;

/// At least so long is taken for each queue that is looked at: thousands of them are read at a bounded rate.
const EACH: Duration = Duration::from_millis(10);

/// What this process hands over, and when.
pub(super) struct Spread<'a> {
    leading: &'a Leading,
    process: Process,
    session_timeout: Duration,
    crowd: Crowd,
}

/// The processes of a name as they were seen last.
struct Crowd {
    processes: BTreeSet<Process>,
    /// Since when there have been no others.
    since: Instant,
}

impl Spread<'_> {
    pub fn new(leading: &Leading, session_timeout: Duration) -> Spread<'_> {
        let crowd = Crowd { processes: BTreeSet::new(), since: Instant::now() };
        Spread { leading, process: leading.election.process(), session_timeout, crowd }
    }

    /// Looks who leads what, again and again, and hands one over each time that this process leads too much.
    pub async fn go_on(mut self) -> Infallible {
        let mut queues = Queues::new();
        loop {
            sleep(self.session_timeout.max(EACH * u32::try_from(queues.len()).unwrap_or(u32::MAX))).await;
            queues = match timeout(self.session_timeout, self.queues()).await {
                Ok(Ok(queues)) => queues,
                Ok(Err(error)) => {
                    debug!("cannot see who leads: {error:#}");
                    continue;
                }
                Err(_) => continue,
            };
            self.leading.handed.send_if_modified(|handed| forget(handed, &queues, &self.process));
            let chosen = {
                let handed = self.leading.handed.borrow();
                self.crowd.too_much(&queues, &self.process, &handed, (Instant::now(), QUIET * self.session_timeout))
            };
            if let Some(seat) = chosen {
                info!("{seat}: another process leads fewer partitions and gets this one");
                self.leading.handed.send_if_modified(|handed| handed.insert(seat));
            }
        }
    }

    async fn queues(&self) -> Result<Queues> {
        let mut queues = Queues::new();
        for topic in self.leading.topics.keys() {
            queues.extend(self.leading.election.queues(topic, &self.leading.name).await?);
        }
        Ok(queues)
    }
}

/// Forgets what was handed over and is led by another one now. Whether that was anything.
fn forget(handed: &mut BTreeSet<Seat>, queues: &Queues, process: &Process) -> bool {
    let before = handed.len();
    handed.retain(|seat| leads(process, seat, queues));
    handed.len() < before
}

fn leads(process: &Process, seat: &Seat, queues: &Queues) -> bool {
    queues.get(seat).and_then(|queue| queue.first()) == Some(process)
}

impl Crowd {
    /// What `process` has to hand over now, besides `handed`, which it does already; nothing before the crowd was the same for
    /// as long as `quiet`.
    fn too_much(
        &mut self,
        queues: &Queues,
        process: &Process,
        handed: &BTreeSet<Seat>,
        (now, quiet): (Instant, Duration),
    ) -> Option<Seat> {
        let processes: BTreeSet<_> = queues.values().flatten().cloned().collect();
        if processes != self.processes {
            *self = Crowd { processes, since: now };
        }
        if now < self.since + quiet {
            return None;
        }
        let mut led: BTreeMap<&Process, usize> = BTreeMap::new();
        for (seat, queue) in queues {
            // What is being handed over counts as the next one's already.
            let leader = if handed.contains(seat) { queue.get(1) } else { queue.first() };
            *led.entry(leader.unwrap_or(process)).or_default() += 1;
        }
        let led_by = |process: &Process| led.get(process).copied().unwrap_or(0);
        let own = led_by(process);
        if own <= queues.len().div_ceil(self.processes.len().max(1)) {
            return None;
        }
        let ours = queues.iter().filter(|(seat, _)| leads(process, seat, queues) && !handed.contains(seat));
        let heirs = ours.filter_map(|(seat, queue)| Some((led_by(queue.get(1)?), seat)));
        heirs.filter(|(others, _)| *others < own).min().map(|(_, seat)| seat.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topic::Topic;

    const T: Duration = Duration::from_secs(10);

    /// Processes that queue for all seats; what one hands over goes to the next, at once.
    struct World {
        queues: Queues,
        processes: Vec<(Process, Crowd, BTreeSet<Seat>)>,
        moves: BTreeMap<Seat, u32>,
        now: Instant,
    }

    impl World {
        fn new(seats: i32) -> World {
            let (topic, name) = ("products".parse::<Topic>().unwrap(), "indexer".parse().unwrap());
            let seat = |partition| Seat { partition: topic.partition(partition), name: Clone::clone(&name) };
            let queues = (0..seats).map(|partition| (seat(partition), vec![])).collect();
            World { queues, processes: vec![], moves: BTreeMap::new(), now: Instant::now() }
        }

        fn join(&mut self, name: &str) {
            let process = Process(name.into());
            self.queues.values_mut().for_each(|queue| queue.push(process.clone()));
            let crowd = Crowd { processes: BTreeSet::new(), since: self.now };
            self.processes.push((process, crowd, BTreeSet::new()));
        }

        fn leave(&mut self, name: &str) {
            self.queues.values_mut().for_each(|queue| queue.retain(|process| &*process.0 != name));
            self.processes.retain(|(process, ..)| &*process.0 != name);
        }

        /// Each process looks once in each session timeout. How many partitions changed hands.
        fn go_on(&mut self, looks: u32) -> usize {
            let mut moves = 0;
            for _ in 0..looks {
                self.now += T;
                let mut handed = vec![];
                for (process, crowd, own) in &mut self.processes {
                    forget(own, &self.queues, process);
                    let seat = crowd.too_much(&self.queues, process, own, (self.now, QUIET * T));
                    own.extend(seat.clone());
                    handed.extend(seat);
                }
                // All have looked before the first one acts.
                for seat in &handed {
                    self.queues.get_mut(seat).unwrap().rotate_left(1);
                    *self.moves.entry(seat.clone()).or_default() += 1;
                }
                moves += handed.len();
            }
            moves
        }

        fn led(&self) -> Vec<usize> {
            let led_by = |process: &Process| self.queues.values().filter(|queue| queue[0] == *process).count();
            self.processes.iter().map(|(process, ..)| led_by(process)).collect()
        }
    }

    #[test]
    fn after_a_quiet_time_three_processes_lead_a_third_each_and_nothing_moves_more_than_twice() {
        let mut world = World::new(64);
        world.join("a");
        world.go_on(3);
        world.join("b");
        world.go_on(3);
        world.join("c");
        assert_eq!((world.go_on(6), world.led()), (0, vec![64, 0, 0]));
        world.go_on(100);
        let led = world.led();
        assert!(led.iter().all(|led| *led <= 22), "{led:?}");
        assert!(world.moves.values().all(|moves| *moves <= 2), "{:?}", world.moves);
        assert_eq!(world.go_on(100), 0);
    }

    #[test]
    fn a_rolling_restart_moves_nothing_and_afterwards_no_more_than_it_takes() {
        let mut world = World::new(64);
        for name in ["a", "b", "c"] {
            world.join(name);
        }
        world.go_on(100);
        for name in ["a", "b", "c"] {
            world.leave(name);
            assert_eq!(world.go_on(2), 0);
            world.join(&format!("{name}2"));
            assert_eq!(world.go_on(3), 0);
        }
        let missing: usize = world.led().iter().map(|led| 22_usize.saturating_sub(*led)).sum();
        world.moves.clear();
        let moves = world.go_on(100);
        assert!(world.led().iter().all(|led| *led <= 22), "{:?}", world.led());
        assert!(moves <= 2 * missing, "{moves} moves to fill {missing}");
        assert!(world.moves.values().all(|moves| *moves <= 2), "{:?}", world.moves);
    }

    #[test]
    fn a_process_that_leads_its_share_keeps_it_even_where_another_one_leads_less() {
        let mut world = World::new(4);
        for name in ["a", "b", "c"] {
            world.join(name);
        }
        world.go_on(30);
        let mut led = world.led();
        led.sort_unstable();
        assert_eq!(led, [0, 2, 2]);
        assert_eq!(world.go_on(30), 0);
    }
}
