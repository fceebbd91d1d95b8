//! Commands that stand still while Kafka does not take the delay messages that would cover what they commit.

use std::fs;
use std::time::Duration;

use rustix::process::{Signal, kill_process};

use crate::stream::made_at;
use crate::support::{End, World};

#[test]
fn a_command_stands_still_before_its_delay_messages_are_due_while_they_cannot_be_sent_again() {
    let world = World::alone("command-held");
    let topic = world.topic_with_delay("products", 1);
    let delay_topic = format!("{topic}-delay");
    // The command itself works, one that has left its process group, and one that has none of its environment.
    let ticks = [world.file("ticks"), world.file("ticks"), world.file("ticks")];
    let tick = |at: usize| format!("while :; do date +%s.%N >> {}; sleep 0.05; done", ticks[at].display());
    let times = |at: usize| -> Vec<f64> {
        let text = fs::read_to_string(&ticks[at]).unwrap_or_default();
        text.lines().map(|time| time.parse().unwrap()).collect()
    };
    let told = || [times(0), times(1), times(2)];
    let run = || {
        for file in &ticks {
            fs::write(file, "").unwrap();
        }
        let gate = world.gate();
        let (left, bare) = (format!("setsid sh -c '{}'", tick(0)), format!("env -i PATH=$PATH sh -c '{}'", tick(2)));
        let works = format!("{left} & left=$!; {bare} & bare=$!; ({}) & await {gate}", tick(1));
        let action = world.script(&format!("cat > /dev/null; {works}; kill -- $! $bare -$left"));
        let stream = world.stream_lines(&format!("- -t {topic} --delay 8s -- {action}"), "{\"id\":1}\n");
        world.eventually("the command is at work", || told().iter().all(|times| !times.is_empty()));
        let broker = world.services.pid("kafka");
        kill_process(broker, Signal::STOP).unwrap();
        world.eventually("it stands still", || stream.says(&["warn: ", "the action stands still"]));
        (stream, broker, gate)
    };

    let (mut stream, broker, gate) = run();
    let held = told();
    world.for_a_while(Duration::from_secs(3), "nothing of it goes on", || told() == held);
    kill_process(broker, Signal::CONT).unwrap();
    world.eventually("it goes on", || told().iter().zip(&held).all(|(now, then)| now.len() > then.len()));
    gate.open();
    assert_eq!(stream.wait(), End::Status(0), "{:?}", stream.log());
    let made: Vec<f64> = world.kafka.records(&delay_topic).iter().map(made_at).collect();
    for last in held.iter().map(|times| times.last().unwrap()) {
        assert!(last - made[0] < 7.0, "the first one is of {}, it was last at work at {last}", made[0]);
    }
    assert_eq!(world.kafka.count(&topic), 1);

    let (mut stream, broker, _) = run();
    stream.kill();
    world.eventually("what stands still is ended with its ksync-stream", || world.processes() == 0);
    kill_process(broker, Signal::CONT).unwrap();
}
