//! A way to the brokers for one client alone: a proxy before each of them, by whose addresses that client knows them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use memchr::memmem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::block_on;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    Open,
    /// Records that are written arrive; from then on all answers on their connection are lost.
    Unacknowledged,
    /// Nothing passes, connections stay.
    Frozen,
    /// Connections are closed, old and new.
    Closed,
}

pub struct Way {
    /// Where the client begins.
    pub bootstrap: String,
    passages: Vec<watch::Sender<Passage>>,
}

impl Way {
    /// To the brokers 1, 2, .. at these addresses.
    pub fn to(bootstrap: &str) -> Way {
        block_on(async {
            let (mut doors, mut renamed) = (vec![], vec![]);
            for broker in bootstrap.split(',') {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let broker: SocketAddr = broker.parse().unwrap();
                let both = [broker, listener.local_addr().unwrap()];
                renamed.push(both.map(|address| told(&address.ip().to_string(), address.port())));
                doors.push((listener, broker));
            }
            let own = doors.iter().map(|(listener, _)| listener.local_addr().unwrap().to_string());
            let bootstrap = own.collect::<Vec<_>>().join(",");
            Way::open(bootstrap, doors, renamed)
        })
    }

    /// To the broker at this address, which tells its client this name instead: a name that is as long. The ways 1, 2 and 3
    /// begin at 127.0.0.1, 127.0.0.2 and 127.0.0.3, with one port.
    pub fn by_name(name: &str, broker: &str) -> Way {
        block_on(async {
            let broker: SocketAddr = broker.parse().unwrap();
            let first = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = first.local_addr().unwrap().port();
            let second = TcpListener::bind(("127.0.0.2", port)).await.unwrap();
            let third = TcpListener::bind(("127.0.0.3", port)).await.unwrap();
            let renamed = [told(&broker.ip().to_string(), broker.port()), told(name, port)];
            assert_eq!(renamed[0].len(), renamed[1].len());
            let doors = [first, second, third].map(|listener| (listener, broker));
            Way::open(format!("{name}:{port}"), doors.into(), vec![renamed])
        })
    }

    /// Each listener is a way to the broker beside it. What brokers tell of themselves is told otherwise, by these pairs.
    fn open(bootstrap: String, doors: Vec<(TcpListener, SocketAddr)>, renamed: Vec<[Vec<u8>; 2]>) -> Way {
        let renamed = Arc::new(renamed);
        let open = |(listener, broker)| {
            let (passage, passages) = watch::channel(Passage::Open);
            tokio::spawn(accept(listener, broker, passages, Arc::clone(&renamed)));
            passage
        };
        Way { bootstrap, passages: doors.into_iter().map(open).collect() }
    }

    /// Of the way to one broker: 1, 2, ..
    pub fn set(&self, broker: usize, passage: Passage) {
        self.passages[broker - 1].send_replace(passage);
    }

    /// Ends all connections to it; new ones work.
    pub fn cut(&self, broker: usize) {
        self.set(broker, Passage::Closed);
        // The one that is left is the listener's.
        while self.passages[broker - 1].receiver_count() > 1 {
            super::pause();
        }
        self.set(broker, Passage::Open);
    }
}

/// An address as brokers tell it: the host, then four bytes of port.
fn told(host: &str, port: u16) -> Vec<u8> {
    [host.as_bytes(), &u32::from(port).to_be_bytes()].concat()
}

async fn accept(
    listener: TcpListener,
    broker: SocketAddr,
    passages: watch::Receiver<Passage>,
    renamed: Arc<Vec<[Vec<u8>; 2]>>,
) {
    while let Ok((client, _)) = listener.accept().await {
        let (mut passages, renamed) = (passages.clone(), renamed.clone());
        tokio::spawn(async move {
            let Ok(broker) = TcpStream::connect(broker).await else { return };
            let ((from_client, to_client), (from_broker, to_broker)) = (client.into_split(), broker.into_split());
            let is_deaf = AtomicBool::new(false);
            tokio::select! {
                () = requests(from_client, to_broker, (passages.clone(), &is_deaf)) => {}
                () = answers(from_broker, to_client, (passages.clone(), &is_deaf), &renamed) => {}
                _ = passages.wait_for(|passage| *passage == Passage::Closed) => {}
            }
        });
    }
}

type State<'a> = (watch::Receiver<Passage>, &'a AtomicBool);

async fn requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, (mut passages, is_deaf): State<'_>) {
    while let Some(message) = read(&mut from).await {
        let Ok(passage) = passages.wait_for(|passage| *passage != Passage::Frozen).await.map(|passage| *passage) else {
            return;
        };
        // It begins with its kind, of which 0 is Produce.
        if passage == Passage::Unacknowledged && message.starts_with(&[0, 0]) {
            is_deaf.store(true, Ordering::Relaxed);
        }
        if write(&mut to, &message).await.is_err() {
            return;
        }
    }
}

async fn answers(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    (mut passages, is_deaf): State<'_>,
    renamed: &[[Vec<u8>; 2]],
) {
    while let Some(mut message) = read(&mut from).await {
        for [theirs, ours] in renamed {
            let found: Vec<_> = memmem::find_iter(&message, theirs).collect();
            found.into_iter().for_each(|at| message[at..at + ours.len()].copy_from_slice(ours));
        }
        if passages.wait_for(|passage| *passage != Passage::Frozen).await.is_err() {
            return;
        }
        if !is_deaf.load(Ordering::Relaxed) && write(&mut to, &message).await.is_err() {
            return;
        }
    }
}

/// A request or an answer; the length is before each.
async fn read(from: &mut OwnedReadHalf) -> Option<Vec<u8>> {
    let length = from.read_u32().await.ok()?;
    let mut message = vec![0; length as usize];
    from.read_exact(&mut message).await.ok()?;
    Some(message)
}

async fn write(to: &mut OwnedWriteHalf, message: &[u8]) -> std::io::Result<()> {
    to.write_all(&[&(message.len() as u32).to_be_bytes(), message].concat()).await
}
