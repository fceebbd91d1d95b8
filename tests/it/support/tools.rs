//! Kafka's own tools, by the names that its distribution gives them.

use std::fs;
use std::process::Command;

use super::services::java;
use super::{World, handler};

const TOOLS: [(&str, &str); 5] = [
    ("kafka-acls.sh", "org.apache.kafka.tools.AclCommand"),
    ("kafka-configs.sh", "kafka.admin.ConfigCommand"),
    ("kafka-leader-election.sh", "org.apache.kafka.tools.LeaderElectionCommand"),
    ("kafka-reassign-partitions.sh", "org.apache.kafka.tools.reassign.ReassignPartitionsCommand"),
    ("kafka-topics.sh", "org.apache.kafka.tools.TopicCommand"),
];

impl World {
    /// Runs shell commands in which these tools may be named; fails where the last one does.
    pub fn shell(&self, commands: &str) {
        let dir = self.dir.join("kafka-tools");
        if !dir.exists() {
            fs::create_dir(&dir).unwrap();
            for (name, class) in TOOLS {
                let java = java(self.services.get("KSYNC_KAFKA_CLASSPATH"));
                handler::write_script(&dir.join(name), &format!("#!/bin/sh\nexec {java} {class} \"$@\"\n"));
            }
        }
        let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap());
        let output = Command::new("sh").args(["-c", commands]).env("PATH", path).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{commands}: {}: {}", output.status, String::from_utf8_lossy(&said));
    }

    /// Sets `name=value` for a topic, and leaves its other settings as they are.
    pub fn set(&self, topic: &str, setting: &str) {
        let bootstrap = self.services.get("KSYNC_BOOTSTRAP_SERVER");
        let tool = format!("kafka-configs.sh --bootstrap-server {bootstrap}");
        self.shell(&format!("{tool} --alter --topic {topic} --add-config {setting}"));
    }
}
