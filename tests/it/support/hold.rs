//! A way to a Postgres on which a transaction is held at a chosen moment, whatever the client's language.

use std::sync::Arc;

use memchr::memmem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::block_on;

/// What is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The answer to the statement that has changed a row.
    Changed,
    /// COMMIT, on its way to the server.
    Commit,
    /// The answer to COMMIT.
    Committed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passage {
    Open,
    Awaiting(Moment),
    Held,
    /// What is held is lost, and its connection.
    Lost,
}

pub struct Hold {
    /// Where the client begins: HOST:PORT.
    pub address: String,
    passage: Arc<watch::Sender<Passage>>,
}

impl Hold {
    /// Before the server at HOST:PORT.
    pub fn before(server: &str) -> Hold {
        let passage = Arc::new(watch::Sender::new(Passage::Open));
        let (server, passages) = (server.to_owned(), passage.clone());
        block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            tokio::spawn(async move {
                while let Ok((client, _)) = listener.accept().await {
                    tokio::spawn(pass(client, server.clone(), passages.clone()));
                }
            });
            Hold { address, passage }
        })
    }

    /// Holds what comes next of this.
    pub fn at(&self, moment: Moment) {
        self.passage.send_replace(Passage::Awaiting(moment));
    }

    pub fn is_held(&self) -> bool {
        *self.passage.borrow() == Passage::Held
    }

    /// What is held goes on, even if its client is gone.
    pub fn let_go(&self) {
        self.passage.send_replace(Passage::Open);
    }

    /// What is held never arrives.
    pub fn lose(&self) {
        self.passage.send_replace(Passage::Lost);
        while *self.passage.borrow() == Passage::Lost {
            super::pause();
        }
    }
}

async fn pass(client: TcpStream, server: String, passage: Arc<watch::Sender<Passage>>) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::join!(copy(from_client, to_server, &passage, of_client), copy(from_server, to_client, &passage, of_server));
}

/// The end of one direction shuts it down, and so is that of the other one.
async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    passage: &watch::Sender<Passage>,
    moment_of: fn(&[u8]) -> Option<Moment>,
) {
    let mut bytes = vec![0; 1 << 16];
    while let Ok(length @ 1..) = from.read(&mut bytes).await {
        let is_awaited = moment_of(&bytes[..length]).is_some_and(|moment| {
            passage.send_if_modified(|passage| {
                let is_so = *passage == Passage::Awaiting(moment);
                *passage = if is_so { Passage::Held } else { *passage };
                is_so
            })
        });
        if is_awaited {
            let mut passages = passage.subscribe();
            let end = passages.wait_for(|passage| *passage != Passage::Held).await.map(|passage| *passage);
            if end.unwrap() == Passage::Lost {
                passage.send_replace(Passage::Open);
                return;
            }
        }
        if to.write_all(&bytes[..length]).await.is_err() {
            return;
        }
    }
}

fn of_client(bytes: &[u8]) -> Option<Moment> {
    has(bytes, b"COMMIT\0").then_some(Moment::Commit)
}

/// By the tags of completed commands.
fn of_server(bytes: &[u8]) -> Option<Moment> {
    let changed: [&[u8]; 3] = [b"INSERT 0 1\0", b"UPDATE 1\0", b"DELETE 1\0"];
    if changed.iter().any(|tag| has(bytes, tag)) {
        return Some(Moment::Changed);
    }
    has(bytes, b"COMMIT\0").then_some(Moment::Committed)
}

fn has(bytes: &[u8], text: &[u8]) -> bool {
    memmem::find(bytes, text).is_some()
}
