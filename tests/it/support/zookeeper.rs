//! ZooKeeper as a test sees it: past the code under test.

use std::time::Duration;

use serde_json::Value;
use zookeeper::{Acls, Client, CreateMode, CreateOptions, Error, Stat};

use super::block_on;

pub const PERSISTENT: CreateOptions<'static> = CreateMode::Persistent.with_acls(Acls::anyone_all());
pub const EPHEMERAL_SEQUENTIAL: CreateOptions<'static> = CreateMode::EphemeralSequential.with_acls(Acls::anyone_all());

/// The nodes of one topic, partition and name: `/CHROOT/kafka_sync/consumer/products/0/indexer`.
pub struct Seat {
    pub client: Client,
    pub path: String,
}

impl Seat {
    pub fn connect(server: &str) -> Client {
        block_on(Client::connector().with_session_timeout(Duration::from_secs(60)).connect(server)).unwrap()
    }

    pub fn path(&self, node: &str) -> String {
        format!("{}/{node}", self.path)
    }

    pub fn node(&self, node: &str) -> Option<(String, Stat)> {
        match block_on(self.client.get_data(&self.path(node))) {
            Ok((data, stat)) => Some((String::from_utf8(data).unwrap(), stat)),
            Err(Error::NoNode) => None,
            Err(error) => panic!("cannot read {}: {error}", self.path(node)),
        }
    }

    pub fn text(&self, node: &str) -> Option<String> {
        self.node(node).map(|(text, _)| text)
    }

    pub fn offset(&self) -> Option<i64> {
        self.text("offset").filter(|text| !text.is_empty()).map(|text| text.parse().unwrap())
    }

    pub fn state(&self) -> Value {
        serde_json::from_str(&self.text("state").expect("there is a state")).unwrap()
    }

    /// Writes a node as another program would; makes it, and what is above it, where that is missing.
    pub fn write(&self, node: &str, data: &str) {
        let path = self.path(node);
        block_on(async {
            self.client.mkdir(&self.path("leader"), &PERSISTENT).await.unwrap();
            match self.client.create(&path, data.as_bytes(), &PERSISTENT).await {
                Err(Error::NodeExists) => drop(self.client.set_data(&path, data.as_bytes(), None).await.unwrap()),
                created => drop(created.unwrap()),
            }
        });
    }

    pub fn delete(&self, node: &str) {
        block_on(self.client.delete(&self.path(node), None)).unwrap();
    }

    /// Deletes all that there is of it, as a person's deleteall does.
    pub fn delete_all(&self) {
        block_on(remove(&self.client, &self.path));
    }

    /// The candidates in their order.
    pub fn candidates(&self) -> Vec<String> {
        let mut names = match block_on(self.client.list_children(&self.path("leader"))) {
            Err(Error::NoNode) => vec![],
            names => names.unwrap(),
        };
        names.sort_by_key(|name| name.rsplit_once('_').and_then(|(_, number)| number.parse::<i64>().ok()));
        names
    }
}

/// Deletes a node with all that is below it.
pub async fn remove(zk: &Client, path: &str) {
    while let Ok(children) = zk.list_children(path).await {
        for child in children {
            Box::pin(remove(zk, &format!("{path}/{child}"))).await;
        }
        // A node that came up meanwhile is seen in the next round.
        drop(zk.delete(path, None).await);
    }
}
