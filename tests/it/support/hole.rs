//! A way to one server on which everything can be lost without a word, as behind a firewall that has forgotten a connection.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::block_on;

pub struct Hole {
    /// Where the client begins: HOST:PORT.
    pub address: String,
    lost: watch::Sender<Lost>,
}

/// What is lost on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    Nothing,
    /// What connections bring that are there already; new ones work.
    Old,
    All,
    /// New connections, which are closed at once: as if the server were down.
    New,
}

impl Hole {
    /// Before the server at HOST:PORT.
    pub fn before(server: &str) -> Hole {
        let (lost, losses) = watch::channel(Lost::Nothing);
        let server = server.to_owned();
        block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            tokio::spawn(async move {
                while let Ok((client, _)) = listener.accept().await {
                    if *losses.borrow() == Lost::New {
                        continue;
                    }
                    tokio::spawn(pass(client, server.clone(), losses.clone()));
                }
            });
            Hole { address, lost }
        })
    }

    pub fn lose(&self, lost: Lost) {
        self.lost.send_replace(lost);
    }
}

async fn pass(client: TcpStream, server: String, losses: watch::Receiver<Lost>) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    let is_old = *losses.borrow() == Lost::Nothing;
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::join!(
        copy(from_client, to_server, (losses.clone(), is_old)),
        copy(from_server, to_client, (losses, is_old))
    );
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, (losses, is_old): (watch::Receiver<Lost>, bool)) {
    let mut bytes = vec![0; 1 << 16];
    loop {
        let Ok(length @ 1..) = from.read(&mut bytes).await else { return };
        let is_lost = match *losses.borrow() {
            Lost::Nothing | Lost::New => false,
            Lost::Old => is_old,
            Lost::All => true,
        };
        if !is_lost && to.write_all(&bytes[..length]).await.is_err() {
            return;
        }
    }
}
