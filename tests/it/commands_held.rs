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
    let ticks = world.file("ticks");
    let tick = format!("while :; do date +%s.%N >> {}; sleep 0.05; done", ticks.display());
    let told = || -> Vec<f64> {
        let ticks = fs::read_to_string(&ticks).unwrap_or_default();
        ticks.lines().map(|time| time.parse().unwrap()).collect()
    };
    let run = || {
        fs::write(&ticks, "").unwrap();
        let gate = world.gate();
        // One that leaves its process group works for it.
        let action = world.script(&format!("cat > /dev/null; setsid sh -c '{tick}' & await {gate}; kill -- -$!"));
        let stream = world.stream_lines(&format!("- -t {topic} --delay 8s -- {action}"), "{\"id\":1}\n");
        world.eventually("the command is at work", || !told().is_empty());
        let broker = world.services.pid("kafka");
        kill_process(broker, Signal::STOP).unwrap();
        world.eventually("it stands still", || stream.says(&["warn: ", "the action stands still"]));
        (stream, broker, gate)
    };

    let (mut stream, broker, gate) = run();
    let held = told();
    world.for_a_while(Duration::from_secs(3), "nothing of it goes on", || told() == held);
    kill_process(broker, Signal::CONT).unwrap();
    world.eventually("it goes on", || told().len() > held.len());
    gate.open();
    assert_eq!(stream.wait(), End::Status(0), "{:?}", stream.log());
    let made: Vec<f64> = world.kafka.records(&delay_topic).iter().map(made_at).collect();
    assert!(held.last().unwrap() - made[0] < 8.0, "the first ones are of {made:?}, it was last at work at {held:?}");
    assert_eq!(world.kafka.count(&topic), 1);

    let (mut stream, broker, _) = run();
    stream.kill();
    world.eventually("what stands still is ended with its ksync-stream", || world.processes() == 0);
    kill_process(broker, Signal::CONT).unwrap();
}
