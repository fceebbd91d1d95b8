//! Brokers of a test's own, one by one: how they end, and what they are set to when they start again.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::services::java;
use super::{Process, World};

impl World {
    /// Ends one of its own brokers that `scripts/services` has started, and waits for that.
    pub fn end_broker(&self, pid: Pid, signal: Signal) {
        kill_process(pid, signal).unwrap();
        // What waits to be reaped has no more files open.
        let files = format!("/proc/{}/fd", pid.as_raw_nonzero());
        let has_files = || std::fs::read_dir(&files).is_ok_and(|mut files| files.next().is_some());
        self.eventually("the broker has ended", || !has_files());
    }

    /// Starts it again, with these lines among its settings, and until the value is dropped.
    pub fn start_broker(&self, node: &str, settings: &str) -> Process {
        let jars = self.services.get("KSYNC_KAFKA_CLASSPATH");
        let file = self.services.dir.join(node).join("server.properties");
        let old = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, old + settings).unwrap();
        let command = format!("exec {} -Xmx384m kafka.Kafka {}", java(jars), file.display());
        self.start("sh", &format!("-c \"{command}\""), &[])
    }

    /// Waits until this broker leads the partition, and these are in sync.
    pub fn leads(&self, topic: &str, partition: usize, (leader, in_sync): (i32, &[i32])) {
        self.within(Duration::from_secs(60), "the broker leads", || {
            let (leads, mut replicas) = self.kafka.leader(topic, partition);
            replicas.sort_unstable();
            (leads, &replicas[..]) == (leader, in_sync)
        });
    }
}
