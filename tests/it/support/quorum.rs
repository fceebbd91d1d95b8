//! Three ZooKeeper servers, the third of which can be cut off from the other two, while its clients still reach it.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use super::services::java;
use super::{Process, World, block_on, pass};

const RECIPE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/servers/zookeeper");

/// The server that can be cut off.
const THIRD: usize = 3;

/// The servers 1, 2 and 3, which end with the value.
pub struct Quorum {
    /// Where clients find each of them.
    pub addresses: [String; 3],
    /// Each one's for clients, for followers, and for elections.
    ports: [[u16; 3]; 3],
    is_cut: watch::Sender<bool>,
    servers: Vec<Process>,
}

impl Quorum {
    /// `leader` is 2 or 3: of those two that are there first, and know nothing yet, the greater one leads.
    pub fn led_by(leader: usize, world: &World) -> Quorum {
        let held = [(); 3].map(|()| [(); 3].map(|()| reserve()));
        let ports = held.each_ref().map(|sockets| sockets.each_ref().map(|socket| socket.local_addr().unwrap().port()));
        let addresses = ports.map(|[client, ..]| format!("127.0.0.1:{client}"));
        let mut quorum = Quorum { addresses, ports, is_cut: watch::Sender::new(false), servers: vec![] };
        let (second, last) = (leader - 1, if leader == THIRD { 1 } else { THIRD });
        quorum.start(world, second);
        quorum.start(world, leader);
        world.eventually("the first two work together", || quorum.role(leader).as_deref() == Some("leader"));
        quorum.start(world, last);
        world.eventually("the others follow", || {
            [second, last].iter().all(|server| quorum.role(*server).as_deref() == Some("follower"))
        });
        quorum
    }

    /// What a server takes itself for, `leader` or `follower`; nothing while it serves nobody.
    pub fn role(&self, server: usize) -> Option<String> {
        let mut connection = std::net::TcpStream::connect(&self.addresses[server - 1]).ok()?;
        connection.write_all(b"srvr").ok()?;
        let mut said = String::new();
        connection.read_to_string(&mut said).ok()?;
        said.lines().find_map(|line| line.strip_prefix("Mode: ")).map(str::to_owned)
    }

    /// From now on nothing passes between the third server and the other two; connections stay.
    pub fn cut_off(&self) {
        self.is_cut.send_replace(true);
    }

    pub fn heal(&self) {
        self.is_cut.send_replace(false);
    }

    fn start(&mut self, world: &World, server: usize) {
        let data = world.dir.join(format!("zookeeper-{server}"));
        fs::create_dir(&data).unwrap();
        fs::write(data.join("myid"), server.to_string()).unwrap();
        let servers: String = (1..=3).map(|other| self.line(server, other)).collect();
        // In ticks of half a second: the two are a quorum long before the third one finds that it is in none.
        let limit = if server == THIRD { 120 } else { 10 };
        let template = fs::read_to_string(format!("{RECIPE}/zoo.cfg")).unwrap();
        let settings = template
            .replace("$port", &self.ports[server - 1][0].to_string())
            .replace("$data", &data.display().to_string())
            // What is said last counts.
            .replace("$servers", &format!("{servers}syncLimit={limit}"));
        let file = world.file("zoo.cfg");
        fs::write(&file, settings).unwrap();
        let jars = world.services.get("KSYNC_ZOOKEEPER_CLASSPATH");
        let options = format!("-Dlogback.configurationFile={RECIPE}/logback.xml -Xmx256m");
        let main = "org.apache.zookeeper.server.quorum.QuorumPeerMain";
        // It logs to its stdout, which is not kept.
        let command = format!("exec {} {options} {main} {} >&2", java(jars), file.display());
        self.servers.push(world.start("sh", &format!("-c \"{command}\""), &[]));
    }

    /// Where a server finds another one, or itself.
    fn line(&self, server: usize, other: usize) -> String {
        let [_, peer, election] = self.ports[other - 1];
        let (host, [peer, election]) = if server == other {
            // A greater one connects back to the address that it is told, past the way between them. This one it passes over.
            ("0.0.0.0", [peer, election])
        } else if [server, other].contains(&THIRD) {
            ("127.0.0.1", [peer, election].map(|port| self.way_to(port)))
        } else {
            ("127.0.0.1", [peer, election])
        };
        format!("server.{other}={host}:{peer}:{election}\n")
    }

    /// The port at which a way to that one begins.
    fn way_to(&self, port: u16) -> u16 {
        let way = Way { port, is_cut: self.is_cut.subscribe() };
        block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let begin = listener.local_addr().unwrap().port();
            tokio::spawn(way.accept(listener));
            begin
        })
    }
}

/// A way to one port of a server. A frozen [`Proxy`](super::Proxy) would let the end of a connection through, and so tell a
/// server that it is cut off.
#[derive(Clone)]
struct Way {
    port: u16,
    is_cut: watch::Receiver<bool>,
}

impl Way {
    async fn accept(self, listener: TcpListener) {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(self.clone().carry(client));
        }
    }

    async fn carry(mut self, client: TcpStream) {
        if !self.is_open().await {
            return;
        }
        let Some(server) = self.reach().await else { return };
        client.set_nodelay(true).unwrap();
        server.set_nodelay(true).unwrap();
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        tokio::join!(self.clone().copy(from_client, to_server), self.copy(from_server, to_client));
    }

    /// Waits until it is not cut; false where that never comes.
    async fn is_open(&mut self) -> bool {
        self.is_cut.wait_for(|is_cut| !is_cut).await.is_ok()
    }

    /// A follower may be there before its leader listens. It tries again where it is refused, but not after an end.
    async fn reach(&self) -> Option<TcpStream> {
        for _ in 0..100 {
            if let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await {
                return Some(server);
            }
            pass(Duration::from_millis(10)).await;
        }
        None
    }

    /// The end is held back as bytes are.
    async fn copy(mut self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut bytes = vec![0; 1 << 16];
        loop {
            let length = from.read(&mut bytes).await.unwrap_or(0);
            if !self.is_open().await || length == 0 || to.write_all(&bytes[..length]).await.is_err() {
                return;
            }
        }
    }
}

/// A free port, held until the value is dropped, though a server may have it before. As with those of `scripts/services`
/// no outgoing connection gets it.
fn reserve() -> TcpSocket {
    loop {
        let socket = TcpSocket::new_v4().unwrap();
        let port = rand::random_range(12000..32000);
        if socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).is_ok() {
            socket.set_reuseaddr(true).unwrap();
            return socket;
        }
    }
}
