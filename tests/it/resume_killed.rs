//! ksync-stream that is killed at random, and the runs that go on.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;

use crate::resume::{UPDATE, changed, instant, items_of, payloads, source, topic};
use crate::stream::delayed;
use crate::support::{End, Primary, World, block_on, is_full, payload, primaries};

const ROWS: u32 = 300;
const CHUNK: usize = 5;
/// Of the moments of the plain form.
const SEED: u64 = 6;

/// One job that is killed at random until it is through.
struct Job<'a> {
    world: &'a World,
    primary: &'a Primary,
    topic: String,
    command: String,
    kills: usize,
}

impl Job<'_> {
    /// Kills it at most so often.
    fn run(&mut self, kills: usize, random: &mut StdRng) {
        loop {
            let mut stream = self.world.stream(&self.command);
            if self.kills < kills {
                let mut latest = 400;
                if random.random() {
                    // Where most of the moments are that matter.
                    let before = changed(self.primary);
                    self.world.eventually("it is at work", || changed(self.primary) != before || !stream.is_running());
                    latest = 50;
                }
                let moment = Instant::now() + Duration::from_millis(random.random_range(0..latest));
                self.world.eventually("the moment comes", || Instant::now() >= moment || !stream.is_running());
            }
            if self.kills < kills && stream.is_running() {
                stream.signal(Signal::KILL);
            }
            match stream.wait() {
                End::By(Signal::KILL) => {
                    self.kills += 1;
                    let (changed, delayed) = (changed(self.primary), delayed(self.world, &self.topic));
                    assert!(changed.is_subset(&delayed.into_iter().collect()), "changed, and not covered");
                }
                // It was done a moment before.
                End::Status(0) => return,
                // The session of the one that was killed is not at its end.
                End::Status(4) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn check(&self, keep: &str) {
        let (all, repeated) = (payloads(1..=ROWS).into_iter().collect::<BTreeSet<_>>(), self.kills * CHUNK);
        let about = format!("{:?} {keep}", self.primary);
        assert_eq!(changed(self.primary), all, "{about}");
        let counts = block_on(self.primary.texts("SELECT n FROM items"));
        let times: usize = counts.iter().map(|n| n.parse::<usize>().unwrap()).sum();
        let missing = all.difference(&instant(self.world, &self.topic).into_iter().collect()).count();
        if keep == "table" {
            assert_eq!(times, ROWS as usize, "{about}: a row was changed twice");
            assert!(missing <= repeated, "{about}: {missing} without an instant message");
        } else {
            assert!(times <= ROWS as usize + repeated, "{about}: more than a chunk was done again");
            assert_eq!(missing, 0, "{about}");
        }
    }
}

#[test]
fn streams_killed_at_random_change_all_rows_each_covered_and_with_a_table_each_once() {
    let world = World::new("killed");
    let seed = if is_full() { rand::random() } else { SEED };
    // Shown where it fails.
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let kills = if is_full() { 50 } else { 2 };
    let (mut topics, mut killed) = (vec![], 0);
    for primary in block_on(primaries("resume_killed")) {
        items_of(&primary, ROWS);
        for keep in ["file", "table"] {
            let mut left = kills;
            while left > 0 {
                block_on(primary.execute("UPDATE items SET n = 0"));
                let topic = topic(&world);
                let option = match keep {
                    "file" => format!("--checkpoint {}", world.file("checkpoint").display()),
                    _ => "--checkpoint-table".to_owned(),
                };
                let command = format!("{} --delay 1s --chunk-size {CHUNK} {option} {UPDATE}", source(&topic, &primary));
                let mut job = Job { world: &world, primary: &primary, topic, command, kills: 0 };
                job.run(left, &mut random);
                job.check(keep);
                (left, killed) = (left - job.kills, killed + job.kills);
                topics.push(job.topic);
            }
        }
    }
    assert_eq!(killed, 6 * kills);
    // What lacks its instant message has its delay message.
    let handler = world.handler("");
    let list = topics.join(",");
    let _delayer = world.delayer(&format!("-t {list} --delay 1s"));
    let _consumer = world.consume(&format!("-t {list} -n indexer -- {handler}"));
    let all: BTreeSet<_> = payloads(1..=ROWS).into_iter().collect();
    let limit = Duration::from_secs(if is_full() { 300 } else { 120 });
    world.within(limit, "the handler gets each row of each topic", || {
        let runs = handler.runs();
        topics.iter().all(|topic| {
            let lines = runs.iter().filter(|run| run.topic == *topic).flat_map(|run| &run.lines);
            lines.map(|line| payload(line)).collect::<BTreeSet<_>>() == all
        })
    });
}
