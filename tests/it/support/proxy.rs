//! A way to ZooKeeper that can be disturbed: a proxy before the server, which may hold back, lose or delay what passes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use memchr::memmem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::pass;

/// A way to the server that can be disturbed.
pub struct Proxy {
    pub address: String,
    mode: Arc<watch::Sender<Mode>>,
    pub accepted: watch::Receiver<usize>,
    requests: Arc<AtomicUsize>,
    events: Arc<AtomicUsize>,
    server: String,
    /// What the server has answered to the first client.
    first: Arc<OnceLock<Vec<u8>>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Open,
    /// Bytes are held back in both directions, connections stay.
    Frozen,
    /// Requests arrive, what the server sends is lost.
    Deaf,
    /// Open, until a packet with this text in it and so many after it have come: then deaf.
    DeafAfter(&'static str, usize),
    /// Open, until a packet with this text in it comes: then frozen, with that packet.
    FrozenAt(&'static str),
    /// Whatever passes takes so long, in each direction.
    Slow(Duration),
    /// So many bytes pass in a second, in each direction: those of all connections, in the order in which they come.
    Narrow(u32),
    /// Connections are closed, old and new.
    Closed,
}

impl Proxy {
    pub async fn to(server: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (mode, modes) = watch::channel(Mode::Open);
        let (counter, accepted) = watch::channel(0);
        let (mode, requests, first) = (Arc::new(mode), Arc::<AtomicUsize>::default(), Arc::<OnceLock<_>>::default());
        let (server, kept) = (server.to_owned(), (server.to_owned(), first.clone()));
        let (events, lines) = (Arc::<AtomicUsize>::default(), [Line::new(), Line::new()]);
        // With the proxy goes the mode, and with that all connections.
        let (count, weak, fired) = (requests.clone(), Arc::downgrade(&mode), events.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                counter.send_modify(|count| *count += 1);
                let (count, weak, mut after, mut sent) = (count.clone(), weak.clone(), None, Packets::default());
                let noted = move |packet: &[u8]| {
                    count.fetch_add(sent.count(packet, |number| number >= 0), Ordering::Relaxed);
                    let Some(mode) = weak.upgrade() else { return };
                    let (text, further, then) = match *mode.borrow() {
                        Mode::DeafAfter(text, further) => (text, further, Mode::Deaf),
                        Mode::FrozenAt(text) => (text, 0, Mode::Frozen),
                        _ => return,
                    };
                    after = match after {
                        None => memmem::find(packet, text.as_bytes()).map(|_| 0),
                        Some(packets) => Some(packets + 1),
                    };
                    if after == Some(further) {
                        mode.send_replace(then);
                    }
                };
                let (first, fired, mut got) = (first.clone(), fired.clone(), Packets::default());
                let answered = move |bytes: &[u8]| {
                    drop(first.set(bytes.to_vec()));
                    fired.fetch_add(got.count(bytes, |number| number == -1), Ordering::Relaxed);
                };
                tokio::spawn(Proxy::carry(client, (server.clone(), lines.clone()), modes.clone(), (noted, answered)));
            }
        });
        let (server, first) = kept;
        Proxy { address, mode, accepted, requests, events, server, first }
    }

    async fn carry(
        client: TcpStream,
        (server, [up, down]): (String, [Line; 2]),
        mut modes: watch::Receiver<Mode>,
        (noted, answered): (impl FnMut(&[u8]) + Send + 'static, impl FnMut(&[u8]) + Send + 'static),
    ) {
        match modes.wait_for(|mode| *mode != Mode::Frozen).await.map(|mode| *mode) {
            Ok(Mode::Closed | Mode::Frozen) | Err(_) => return,
            Ok(_) => {}
        }
        let Ok(server) = TcpStream::connect(server).await else {
            return;
        };
        client.set_nodelay(true).unwrap();
        server.set_nodelay(true).unwrap();
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        let mut replies = modes.clone();
        let mut requests = modes.clone();
        tokio::select! {
            () = pump(&mut from_client, &mut to_server, &mut requests, (false, up, noted)) => {}
            () = pump(&mut from_server, &mut to_client, &mut replies, (true, down, answered)) => {}
            _ = modes.wait_for(|mode| *mode == Mode::Closed) => {}
        }
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    pub fn is(&self, mode: Mode) -> bool {
        *self.mode.borrow() == mode
    }

    /// How many requests have come from clients, without their pings.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// How many events have come from the server: watches that fired.
    pub fn events(&self) -> usize {
        self.events.load(Ordering::Relaxed)
    }

    /// Ends the session of the first client, as one who knows its password can.
    pub async fn end_session(&self) {
        // Behind length, version and timeout: the id, and the password with its length.
        let answer = self.first.get().unwrap();
        let (timeout, session) = (&answer[8..12], &answer[12..40]);
        let connect = [&[0; 12], timeout, session, &[0]].concat();
        let close = [1_i32, -11].map(i32::to_be_bytes).concat();
        let mut server = TcpStream::connect(&self.server).await.unwrap();
        for request in [connect, close] {
            server.write_all(&(request.len() as u32).to_be_bytes()).await.unwrap();
            server.write_all(&request).await.unwrap();
        }
        // The server closes the connection once it has ended the session.
        server.read_to_end(&mut vec![]).await.unwrap();
    }

    /// Ends all connections; new ones work.
    pub async fn cut(&self) {
        self.set(Mode::Closed);
        // The one that is left is the listener's.
        while self.mode.receiver_count() > 1 {
            pass(Duration::from_millis(1)).await;
        }
        self.set(Mode::Open);
    }
}

/// One direction of a narrow way, which all connections share, by the time from when on it is free.
#[derive(Clone)]
struct Line(Arc<Mutex<Instant>>);

impl Line {
    fn new() -> Line {
        Line(Arc::new(Mutex::new(Instant::now())))
    }

    /// When so many bytes that come now are through, behind all that came before.
    fn passes(&self, bytes: u32, bytes_per_second: u32) -> Instant {
        let mut free = self.0.lock().unwrap();
        *free = (*free).max(Instant::now()) + Duration::from_secs(1) * bytes / bytes_per_second;
        *free
    }
}

/// What goes one way on a connection, cut where its packets end. Each has its length, and then its number: of requests from 0
/// on, of what answers none and of pings less.
#[derive(Default)]
struct Packets(Vec<u8>);

impl Packets {
    /// How many with such a number are whole with these bytes.
    fn count(&mut self, bytes: &[u8], is_such: impl Fn(i32) -> bool) -> usize {
        self.0.extend(bytes);
        let mut count = 0;
        while let Some((length, rest)) = self.0.split_first_chunk::<4>() {
            let length = u32::from_be_bytes(*length) as usize;
            let Some(number) = rest.get(..length).and_then(|packet| packet.first_chunk::<4>()) else { break };
            count += usize::from(is_such(i32::from_be_bytes(*number)));
            self.0.drain(..4 + length);
        }
        count
    }
}

async fn pump(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    modes: &mut watch::Receiver<Mode>,
    (replies, line, mut noted): (bool, Line, impl FnMut(&[u8])),
) {
    let (arrived, mut on_its_way) = mpsc::unbounded_channel();
    let latencies = modes.clone();
    let read = async move {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            noted(&buffer[..length]);
            let due = match *latencies.borrow() {
                Mode::Slow(latency) => Instant::now() + latency,
                Mode::Narrow(bytes_per_second) => line.passes(length as u32, bytes_per_second),
                _ => Instant::now(),
            };
            if arrived.send((due, buffer[..length].to_vec())).is_err() {
                return;
            }
        }
    };
    let write = async {
        while let Some((due, bytes)) = on_its_way.recv().await {
            sleep_until(due).await;
            let Ok(mode) = modes.wait_for(|mode| *mode != Mode::Frozen).await.map(|mode| *mode) else {
                return;
            };
            if !(replies && mode == Mode::Deaf) && to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(read, write);
}
