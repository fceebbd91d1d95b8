//! TLS to Kafka: whose certificate is taken, and what is sent to whom.

use std::fs;
use std::net;
use std::sync::{Arc, Mutex};

use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{End, Process, World, block_on, is_full};

/// Each has a certificate of our own authority, which is good, has expired, or is another host's.
const LISTENERS: [&str; 3] = ["good", "expired", "elsewhere"];

/// For each `NAME.pem`: an authority's certificate, or a listener's with its key.
const CERTIFICATES: &str = r#"
key="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
authority() {
    openssl req -x509 $key -keyout $1.key -out $1.pem -subj /CN=$1 -days 2
}
certificate() {
    openssl req $key -keyout $1.key -out $1.csr -subj /CN=broker
    echo "subjectAltName=$2" > $1.extensions
    openssl x509 -req -in $1.csr -out $1.crt -CA ours.pem -CAkey ours.key -CAcreateserial -extfile $1.extensions -days $3
    cat $1.key $1.crt > $1.pem
}
authority ours
authority unknown
certificate good IP:127.0.0.1 2
certificate expired IP:127.0.0.1 -1
certificate elsewhere DNS:elsewhere.example 2
"#;

/// Starts the broker with these listeners besides; gives their addresses.
fn broker(world: &World) -> (Process, [String; 3]) {
    world.shell(&format!("set -e; cd '{}'{CERTIFICATES}", world.dir.display()));
    let settings = fs::read_to_string(world.services.dir.join("kafka-1/server.properties")).unwrap();
    let plain = settings.lines().find(|line| line.starts_with("listeners=")).unwrap();
    let map = "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT";
    let (mut listeners, mut protocols, mut stores) = (plain.to_owned(), map.to_owned(), String::new());
    let addresses = free_ports().map(|port| format!("127.0.0.1:{port}"));
    for (listener, address) in LISTENERS.iter().zip(&addresses) {
        let (name, store) = (listener.to_uppercase(), world.dir.join(format!("{listener}.pem")));
        listeners += &format!(",{name}://{address}");
        protocols += &format!(",{name}:SSL");
        stores += &format!("listener.name.{listener}.ssl.keystore.type=PEM\n");
        stores += &format!("listener.name.{listener}.ssl.keystore.location={}\n", store.display());
    }
    world.services.stop("kafka");
    let broker = world.start_broker("kafka-1", &format!("{listeners}\n{protocols}\n{stores}"));
    world.eventually("it listens", || addresses.iter().all(|address| net::TcpStream::connect(address).is_ok()));
    (broker, addresses)
}

/// Below those that outgoing connections get, which could take them before the broker does.
pub fn free_ports() -> [u16; 3] {
    let mut held = vec![];
    while held.len() < 3 {
        held.extend(net::TcpListener::bind(("127.0.0.1", rand::random_range(12_000..32_000_u16))));
    }
    [0, 1, 2].map(|number: usize| held[number].local_addr().unwrap().port())
}

const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;
/// TLS 1.3 has an alert look like so many bytes of data; no request and no end of a handshake is as short.
const ALERT: usize = 24;

/// A way to a listener that keeps what clients send.
struct Tap {
    address: String,
    connections: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Tap {
    fn before(server: &str) -> Tap {
        let (server, connections) = (server.to_owned(), Arc::<Mutex<Vec<Vec<u8>>>>::default());
        let kept = connections.clone();
        block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            tokio::spawn(async move {
                while let Ok((client, _)) = listener.accept().await {
                    tokio::spawn(pass(client, server.clone(), kept.clone()));
                }
            });
            Tap { address, connections }
        })
    }

    /// The kind and the length of each record of TLS; fails where anything else was sent.
    fn sent(&self) -> Vec<(u8, usize)> {
        let mut records = vec![];
        for mut bytes in self.connections.lock().unwrap().iter().map(Vec::as_slice) {
            while let [kind, 3, _, high, low, rest @ ..] = bytes {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                records.push((*kind, length));
                bytes = rest.get(length..).unwrap_or_default();
            }
            // The last may be cut off.
            assert!(bytes.len() < 5, "this is not TLS: {}", bytes.escape_ascii());
        }
        records
    }
}

async fn pass(client: TcpStream, server: String, connections: Arc<Mutex<Vec<Vec<u8>>>>) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let number = {
        let mut connections = connections.lock().unwrap();
        connections.push(vec![]);
        connections.len() - 1
    };
    let requests = async {
        let mut bytes = [0; 4096];
        while let Ok(length @ 1..) = from_client.read(&mut bytes).await {
            connections.lock().unwrap()[number].extend_from_slice(&bytes[..length]);
            if to_server.write_all(&bytes[..length]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = requests => {}
        _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
    }
}

#[test]
fn a_broker_whose_certificate_is_not_good_is_told_of_and_gets_nothing_by_tls_or_without() {
    let world = World::alone("tls");
    let (products, handler) = (world.topic_with_delay("products", 1), world.handler(""));
    let (_broker, [good, expired, elsewhere]) = broker(&world);
    let options = |tap: &Tap, authority: &str| {
        let authority = world.dir.join(authority);
        let tls = format!("-X security.protocol=ssl -X ssl.ca.location={}", authority.display());
        format!("-b {} -t {products} {tls}", tap.address)
    };
    let cases = [(&expired, "ours.pem"), (&elsewhere, "ours.pem"), (&good, "unknown.pem")];
    let refused = cases.map(|(server, authority)| {
        let tap = Tap::before(server);
        let options = options(&tap, authority);
        let stream = world.stream_lines(&format!("- {options}"), "{\"id\":1}\n");
        let consumer = world.consume(&format!("{options} -n indexer -- {handler}"));
        (tap, stream, consumer)
    });

    let tap = Tap::before(&good);
    let options = options(&tap, "ours.pem");
    assert_eq!(world.stream_lines(&format!("- {options}"), "{\"id\":2}\n").wait(), End::Status(0));
    assert_eq!(world.consume(&format!("{options} -n indexer -e -- {handler}")).wait(), End::Status(0));
    assert!(tap.sent().iter().any(|(kind, length)| *kind == DATA && *length > ALERT), "{:?}", tap.sent());

    for (tap, mut stream, mut consumer) in refused {
        let whom = format!("cannot ask Kafka at {} about topic {products}: ", tap.address);
        world.eventually("both tell", || {
            let line = ["warn: ", whom.as_str(), "certificate verify failed", "; trying again"];
            stream.says(&line) && consumer.says(&line)
        });
        consumer.signal(Signal::TERM);
        assert_eq!(consumer.wait(), End::Status(0));
        if !is_full() {
            // Else it gives up by itself, after half a minute.
            stream.signal(Signal::TERM);
        }
        assert_eq!(stream.wait(), End::Status(75));
        let sent = tap.sent();
        assert!(sent.iter().any(|(kind, _)| *kind == HANDSHAKE), "{sent:?}");
        assert!(sent.iter().all(|(kind, length)| *kind != DATA || *length <= ALERT), "{sent:?}");
    }
    assert_eq!((world.kafka.count(&products), handler.payloads()), (1, vec![r#"{"id":2}"#.to_owned()]));
}
