//! How many servers ZooKeeper has, as it tells itself.

use anyhow::Result;
use zookeeper::Error;

use super::zookeeper::ZooKeeper;

impl ZooKeeper {
    pub(super) async fn voters(&self) -> Result<Option<usize>> {
        self.ask(|session| async move {
            match session.client.get_config().await {
                Ok((config, _)) => Ok(Some(count(&String::from_utf8_lossy(&config)))),
                // Before 3.5.
                Err(Error::NoNode) => Ok(None),
                Err(error) => Err(error),
            }
        })
        .await
    }
}

/// Those that count for a quorum; observers do not. One that was told of no others says nothing.
fn count(config: &str) -> usize {
    let voters = config.lines().filter(|line| line.starts_with("server.") && line.contains(":participant"));
    voters.count().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_vote_are_counted() {
        let server = |number: u32, role: &str| format!("server.{number}=zk{number}:2888:3888:{role};0.0.0.0:2181\n");
        let three: String = (1..=3).map(|number| server(number, "participant")).collect();
        assert_eq!(count(&format!("{three}{}version=0", server(4, "observer"))), 3);
        assert_eq!((count(&format!("{}version=0", server(1, "participant"))), count("")), (1, 1));
    }
}
