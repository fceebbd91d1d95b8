//! The judgement of a topic's replicas.

use super::finding::{Finding, Hazard};
use super::judge::On;

/// With so many replicas one may be away, and another be lost.
const REPLICAS: usize = 3;

impl On<'_> {
    pub fn of_replicas(&self) -> [Option<Finding>; 4] {
        [self.replication(), self.min_insync(), self.min_insync_all(), self.unclean_election()]
    }

    /// Of the partition that has the fewest.
    fn replicas(&self) -> Option<usize> {
        self.settings.replicas.iter().map(Vec::len).min()
    }

    /// Whether there are brokers that could have another replica.
    fn has_room(&self, replicas: usize) -> bool {
        replicas < REPLICAS.min(self.brokers.len())
    }

    fn replication(&self) -> Option<Finding> {
        let replicas = self.replicas().filter(|replicas| self.has_room(*replicas))?;
        let brokers = self.brokers.len();
        let has = match replicas {
            1 => format!("1 replica on {brokers} brokers: with that broker all of its records are lost"),
            _ => format!(
                "{replicas} replicas on {brokers} brokers: while one is away there is no copy of what is written"
            ),
        };
        Some(self.finding(Hazard::Replication, has, self.replicate(REPLICAS)))
    }

    /// Judged with two replicas and more: with one alone it would stop the writers.
    fn min_insync(&self) -> Option<Finding> {
        self.replicas().filter(|replicas| *replicas > 1)?;
        self.settings.number("min.insync.replicas").filter(|least| *least < 2)?;
        let why = ": what one broker has acknowledged alone is lost with it";
        self.setting(Hazard::MinInsync, "min.insync.replicas", "min.insync.replicas=2", why)
    }

    /// Two brokers can do no better than two of two.
    fn min_insync_all(&self) -> Option<Finding> {
        let replicas = self.replicas()?;
        let least = self.settings.number("min.insync.replicas").and_then(|least| usize::try_from(least).ok())?;
        let why = match least {
            _ if least > replicas => format!(" of {replicas}: nothing can be written"),
            _ if least == replicas && replicas > 1 && self.brokers.len().max(replicas) > 2 => {
                format!(" of {replicas}: nothing can be written while one of its brokers is away")
            }
            _ => return None,
        };
        let better = format!("min.insync.replicas={}", replicas.min(2));
        let finding = self.setting(Hazard::MinInsyncAll, "min.insync.replicas", &better, &why)?;
        Some(if self.has_room(replicas) { Finding { mend: self.replicate(REPLICAS), ..finding } } else { finding })
    }

    fn unclean_election(&self) -> Option<Finding> {
        self.settings.text("unclean.leader.election.enable").filter(|enable| *enable == "true")?;
        let why = ": a replica that lacks records may become the leader, and they are lost";
        let name = "unclean.leader.election.enable";
        self.setting(Hazard::UncleanElection, name, "unclean.leader.election.enable=false", why)
    }
}

#[cfg(test)]
mod tests {
    use super::super::judge::tests::{found, set, sound};

    const SET: &str = "mend it with: kafka-configs.sh --bootstrap-server a:1 --alter --topic products --add-config";

    /// What is found of a topic with such replicas, on so many brokers.
    fn replicated(replicas: &[&[i32]], brokers: i32, least: &str) -> Vec<String> {
        let mut settings = sound();
        settings.brokers = (1..=brokers).collect();
        settings.topics.retain(|topic, _| topic.as_str() == "products");
        let topic = settings.topics.values_mut().next().unwrap();
        topic.replicas = replicas.iter().map(|replicas| replicas.to_vec()).collect();
        set(&mut settings, "products", &format!("min.insync.replicas={least}"));
        found(&settings)
    }

    fn names(found: &[String]) -> Vec<&str> {
        found.iter().map(|text| text.split(['(', ')']).nth(1).unwrap()).collect()
    }

    #[test]
    fn replicas_are_judged_by_how_many_brokers_there_are() {
        for (replicas, brokers, least, expected) in [
            (&[1][..], 1, "1", &[][..]),
            (&[1], 1, "2", &["min-insync-all"]),
            (&[1], 2, "1", &["replication"]),
            (&[1], 3, "1", &["replication"]),
            (&[1], 3, "2", &["replication", "min-insync-all"]),
            (&[1, 2], 2, "1", &["min-insync"]),
            (&[1, 2], 2, "2", &[]),
            (&[1, 2], 3, "2", &["replication", "min-insync-all"]),
            (&[1, 2, 3], 3, "1", &["min-insync"]),
            (&[1, 2, 3], 3, "2", &[]),
            (&[1, 2, 3], 3, "3", &["min-insync-all"]),
            // One of three is away.
            (&[1, 2, 3], 2, "2", &[]),
            (&[1, 2, 3], 2, "3", &["min-insync-all"]),
        ] {
            let found = replicated(&[replicas], brokers, least);
            assert_eq!(names(&found), expected, "{replicas:?} on {brokers} brokers, {least} in sync");
        }
    }

    #[test]
    fn what_is_found_of_replicas_says_what_may_happen_and_how_to_mend_it() {
        let given = concat!(
            "mend it with: echo '{\"version\":1,\"partitions\":[",
            r#"{"topic":"products","partition":0,"replicas":[2,1,3]},{"topic":"products","partition":1,"replicas":[3,2,1]}"#,
            "]}' | kafka-reassign-partitions.sh --bootstrap-server a:1 --reassignment-json-file /dev/stdin --execute"
        );
        let alone =
            "topic products has 1 replica on 3 brokers: with that broker all of its records are lost (replication)";
        let none = "topic products has min.insync.replicas=2 of 1: nothing can be written (min-insync-all)";
        assert_eq!(replicated(&[&[2], &[3]], 3, "2"), [format!("{alone}; {given}"), format!("{none}; {given}")]);
        let why = "what one broker has acknowledged alone is lost with it (min-insync)";
        assert_eq!(
            replicated(&[&[1, 2, 3]], 3, "1"),
            [format!("topic products has min.insync.replicas=1: {why}; {SET} min.insync.replicas=2")]
        );
        let why = "nothing can be written while one of its brokers is away (min-insync-all)";
        assert_eq!(
            replicated(&[&[1, 2, 3]], 3, "3"),
            [format!("topic products has min.insync.replicas=3 of 3: {why}; {SET} min.insync.replicas=2")]
        );
    }
}
