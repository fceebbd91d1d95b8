//! The judgement of a delay topic, by itself and beside its topic.

use std::time::Duration;

use humantime::format_duration;

use super::finding::{Finding, Hazard};
use super::judge::{OUTAGE, On, WEEK, retained};

impl On<'_> {
    /// What can be wrong with a delay topic whose messages wait for `delay`.
    pub fn of_delay(&self, delay: Duration) -> [Option<Finding>; 3] {
        [self.delay_retention(delay), self.delay_compaction(), self.delay_timestamps()]
    }

    /// What can be wrong with a topic beside its delay topic.
    pub fn beside(&self, delay_topic: &On<'_>) -> [Option<Finding>; 2] {
        [self.partition_count(delay_topic), self.message_size(delay_topic)]
    }

    fn delay_retention(&self, delay: Duration) -> Option<Finding> {
        let retention = self.settings.retention()?;
        let delay_text = format_duration(delay);
        let (hazard, why) = if retention < delay.saturating_mul(2) {
            let why = format!(
                ", less than twice the delay of {delay_text}: a delay message may be deleted before it is sent on"
            );
            (Hazard::DelayRetention, why)
        } else if retention < delay.saturating_add(OUTAGE) {
            let why = format!(
                ", less than a day and the delay of {delay_text}: a delayer that is away for a day loses messages"
            );
            (Hazard::DelayOutage, why)
        } else {
            return None;
        };
        let better = WEEK.max(delay.saturating_mul(2).saturating_add(OUTAGE));
        self.setting(hazard, "retention.ms", &retained(better), &why)
    }

    fn delay_compaction(&self) -> Option<Finding> {
        self.settings.has_policy("compact").filter(|has| *has)?;
        let why =
            ": a delay message is deleted once there is a later one with its key, though their changes may differ";
        self.setting(Hazard::DelayCompaction, "cleanup.policy", "cleanup.policy=delete", why)
    }

    fn delay_timestamps(&self) -> Option<Finding> {
        self.settings.text("message.timestamp.type").filter(|from| *from == "CreateTime")?;
        let why = ": when a delay message is due, and when it is deleted, goes by the clock of its writer";
        let better = "message.timestamp.type=LogAppendTime";
        self.setting(Hazard::DelayTimestamps, "message.timestamp.type", better, why)
    }

    fn partition_count(&self, delay_topic: &On<'_>) -> Option<Finding> {
        let (ours, theirs) = (self.settings.replicas.len(), delay_topic.settings.replicas.len());
        let smaller = if ours < theirs { self } else { delay_topic };
        (ours != theirs).then(|| Finding {
            hazard: Hazard::PartitionCount,
            what: format!(
                "topic {} has {theirs} partitions and {} has {ours}: a delay message goes on to the partition with its own \
                 number",
                delay_topic.topic, self.topic
            ),
            mend: self.commands.partitions(smaller.topic, ours.max(theirs)),
        })
    }

    fn message_size(&self, delay_topic: &On<'_>) -> Option<Finding> {
        let limit = |on: &On<'_>| on.settings.number("max.message.bytes");
        let (ours, theirs) = (limit(self)?, limit(delay_topic)?);
        let why = format!(
            ", less than {theirs} of {}: a delay message that is larger can never be sent on",
            delay_topic.topic
        );
        let finding =
            self.setting(Hazard::MessageSize, "max.message.bytes", &format!("max.message.bytes={theirs}"), &why);
        finding.filter(|_| ours < theirs)
    }
}
