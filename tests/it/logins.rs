//! Logins to Kafka whose password is changed while they are in use.

use std::fs;
use std::net;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::consume::ids;
use crate::support::{Process, World};
use crate::tls::free_ports;

/// For so long a connection goes on by one login.
const LIFE: Duration = Duration::from_secs(2);

/// Starts the broker with a listener besides that wants a login; gives its address.
fn broker(world: &World) -> (Process, String) {
    let settings = fs::read_to_string(world.services.dir.join("kafka-1/server.properties")).unwrap();
    let plain = settings.lines().find(|line| line.starts_with("listeners=")).unwrap();
    let [port, ..] = free_ports();
    let address = format!("127.0.0.1:{port}");
    let login = format!(
        "{plain},LOGIN://{address}\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,LOGIN:SASL_PLAINTEXT\n\
         listener.name.login.sasl.enabled.mechanisms=SCRAM-SHA-256\n\
         listener.name.login.scram-sha-256.sasl.jaas.config=\
         org.apache.kafka.common.security.scram.ScramLoginModule required;\n\
         listener.name.login.scram-sha-256.connections.max.reauth.ms={}\n",
        LIFE.as_millis()
    );
    world.services.stop("kafka");
    let broker = world.start_broker("kafka-1", &login);
    world.eventually("it listens", || net::TcpStream::connect(&address).is_ok());
    (broker, address)
}

#[test]
fn a_password_that_is_changed_is_told_and_the_work_goes_on_once_it_is_right_again() {
    let world = World::alone("login");
    let (_broker, address) = broker(&world);
    let products = world.topic("products", 1);
    let password = |word: &str| {
        let tool = format!("kafka-configs.sh --bootstrap-server {}", world.services.get("KSYNC_BOOTSTRAP_SERVER"));
        let user = "--alter --entity-type users --entity-name ksync";
        world.shell(&format!("{tool} {user} --add-config 'SCRAM-SHA-256=[password={word}]'"));
    };
    password("right");
    let (file, handler) = (world.file("properties"), world.handler(""));
    let login =
        "security.protocol=sasl_plaintext\nsasl.mechanism=SCRAM-SHA-256\nsasl.username=ksync\nsasl.password=right\n";
    fs::write(&file, login).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let options = format!("-b {address} -F {} -t {products} -n indexer --session-timeout 10s", file.display());
    let consumer = world.consume(&format!("{options} -- {handler}"));
    let seat = world.seat(&products, 0, "indexer");
    world.kafka.produce(&products, ids(0..3));
    world.eventually("the first are done", || seat.offset() == Some(3));
    let leader = seat.candidates();
    // Logins are renewed meanwhile.
    world
        .for_a_while(2 * LIFE, "there is no trouble", || consumer.log_of("warn").iter().all(|line| !is_of_login(line)));

    password("changed");
    world
        .within(Duration::from_secs(60), "it is told", || consumer.log_of("warn").iter().any(|line| is_of_login(line)));
    world.for_a_while(2 * LIFE, "the last connection ends", || true);
    world.kafka.produce(&products, ids(3..6));
    world.for_a_while(LIFE, "nothing more is read", || seat.offset() == Some(3));
    password("right");
    world.eventually("all are done", || seat.offset() == Some(6));
    assert_eq!((seat.candidates(), handler.payloads().len(), consumer.log_of("error")), (leader, 6, vec![]));
}

fn is_of_login(line: &str) -> bool {
    line.starts_with("cannot reach Kafka at ") && line.contains("uthentication")
}
