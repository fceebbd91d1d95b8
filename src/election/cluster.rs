//! Which Kafka cluster the offsets in ZooKeeper belong to, so that those of another one are not taken for them.

use anyhow::{Result, bail};
use log::warn;
use zookeeper::Error;

use super::candidate::is_refusal;
use super::zookeeper::{PERSISTENT, Session, ZooKeeper};

/// Whose the offsets are.
enum Owner {
    Noted(String),
    /// The server lets us neither see nor note it.
    Hidden(Error),
}

impl ZooKeeper {
    pub(super) async fn claim(&self, cluster: &str) -> Result<()> {
        let path = format!("{}/kafka_sync/cluster", self.servers.chroot);
        match self.ask(|session| note(session, path.clone(), cluster.to_owned())).await? {
            Owner::Noted(noted) if noted == cluster => Ok(()),
            Owner::Noted(noted) => bail!(
                "ZooKeeper at {} has the offsets of Kafka cluster {noted}, and this is cluster {cluster}: give each cluster \
                 a path of its own there (--zookeeper HOST:PORT/PATH), or, if the offsets are meant for this one, delete {path}",
                self.servers
            ),
            Owner::Hidden(error) => {
                warn!(
                    "ZooKeeper at {}: cannot note at {path} that the offsets are those of Kafka cluster {cluster}: {error}; \
                     nobody would notice another cluster that is led from the same place",
                    self.servers
                );
                Ok(())
            }
        }
    }
}

/// Notes the cluster, where none is noted.
async fn note(session: Session, path: String, cluster: String) -> Result<Owner, Error> {
    loop {
        let created = match session.client.get_data(&path).await {
            // Its first line, so that a later release may add others.
            Ok((data, _)) => {
                let text = String::from_utf8_lossy(&data);
                return Ok(Owner::Noted(text.lines().next().unwrap_or_default().trim().to_owned()));
            }
            Err(Error::NoNode) => session.client.create(&path, cluster.as_bytes(), &PERSISTENT).await.map(drop),
            Err(error) => Err(error),
        };
        match created {
            // By this process, or by another one at the same time: what stands there now is to be read.
            Ok(()) | Err(Error::NodeExists) => {}
            Err(Error::NoNode) => {
                let above = path.rsplit_once('/').map_or("", |(above, _)| above);
                match session.client.mkdir(above, &PERSISTENT).await {
                    Err(error) if is_refusal(&error) => return Ok(Owner::Hidden(error)),
                    made => made?,
                }
            }
            Err(error) if is_refusal(&error) => return Ok(Owner::Hidden(error)),
            Err(error) => return Err(error),
        }
    }
}
