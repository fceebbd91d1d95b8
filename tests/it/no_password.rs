//! Passwords of databases: where they come from besides a URL, that nothing tells them, and how sessions are encrypted.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Once;

use ksync::database::{Database, Dialect};

use crate::support::{Client, End, Primary, Services, World, block_on, primaries};

const STREAM: &str = env!("CARGO_BIN_EXE_ksync-stream");

/// Of the only role of Postgres that is asked for one.
const RIGHT: &str = "right-Canary";
const WRONG: &str = "wrong-Canary";

fn products_of(primary: &Primary) {
    block_on(primary.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, price INTEGER)"));
    block_on(primary.execute("INSERT INTO products VALUES (1, 0), (2, 0), (3, 0)"));
}

/// The URL by which that role reads `products`, without its password.
fn with_password(postgres: &Primary) -> String {
    // Of two that change it at once one would fail.
    static ROLE: Once = Once::new();
    ROLE.call_once(|| {
        let known = "SELECT FROM pg_roles WHERE rolname = 'with_password'";
        let make = format!("DO $$ BEGIN IF NOT EXISTS ({known}) THEN CREATE ROLE with_password; END IF; END $$");
        block_on(postgres.execute(&format!("{make}; ALTER ROLE with_password LOGIN PASSWORD '{RIGHT}'")));
    });
    let (_, schema) = postgres.url.rsplit_once("%3D").unwrap();
    block_on(postgres.execute(&format!("GRANT USAGE ON SCHEMA {schema} TO with_password")));
    block_on(postgres.execute("GRANT SELECT ON products TO with_password"));
    postgres.url.replace("//ksync@", "//with_password@")
}

/// HOST:PORT
fn server_of(url: &str) -> &str {
    let (_, rest) = url.split_once('@').unwrap();
    rest.split_once('/').unwrap().0
}

#[test]
fn a_password_of_postgres_comes_from_pgpass_and_none_is_told() {
    let world = World::new("pgpass");
    let [postgres, ..] = block_on(primaries("password_pgpass"));
    products_of(&postgres);
    let (topic, url) = (world.topic("products", 1), with_password(&postgres));
    let home = world.dir.to_str().unwrap();
    for (password, mode, status, told) in [
        (RIGHT, 0o600, 0, "3 rows"),
        (WRONG, 0o600, 78, "password authentication failed for user \"with_password\""),
        // As psql does, it passes over a file that others can read.
        (RIGHT, 0o644, 78, "password"),
    ] {
        let file = world.dir.join(".pgpass");
        fs::write(&file, format!("# for a test\n{}:*:with_password:{password}\n", server_of(&url))).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let source = format!("-vv -t {topic} --database '{url}' --table products");
        let mut stream = world.start(STREAM, &source, &[("HOME", home)]);
        assert_eq!(stream.wait(), End::Status(status), "{password} {mode:o}: {:?}", stream.log());
        assert!(stream.says(&[told]) && !stream.says(&["Canary"]), "{:?}", stream.log());
    }
}

#[test]
fn passwords_come_from_the_variables_of_postgres_and_from_my_cnf_and_so_does_the_database() {
    let world = World::new("left-out-passwords");
    let [postgres, mariadb, _] = block_on(primaries("password_left_out"));
    products_of(&postgres);
    products_of(&mariadb);
    let topic = world.topic("products", 1);
    let home = world.dir.to_str().unwrap();
    let url = with_password(&postgres);
    let (host, port) = server_of(&url).split_once(':').unwrap();
    let (_, options) = url.split_once("/ksync?").unwrap();
    for (password, status, told) in
        [(RIGHT, 0, "3 rows"), (WRONG, 78, "password authentication failed for user \"with_password\"")]
    {
        let environment = [
            ("HOME", home),
            ("PGHOST", host),
            ("PGPORT", port),
            ("PGUSER", "with_password"),
            ("PGPASSWORD", password),
            ("PGDATABASE", "ksync"),
        ];
        let source = format!("-vv -t {topic} --database 'postgres:///?{options}' --table products");
        let mut stream = world.start(STREAM, &source, &environment);
        assert_eq!(stream.wait(), End::Status(status), "{password}: {:?}", stream.log());
        assert!(stream.says(&[told]) && !stream.says(&["Canary"]), "{:?}", stream.log());
    }

    // It has what begins a comment elsewhere in the file.
    let right = "#right Canary";
    block_on(mariadb.execute(&format!("CREATE OR REPLACE USER ksync_cnf@'127.0.0.1' IDENTIFIED BY '{right}'")));
    block_on(mariadb.execute("GRANT SELECT ON products TO ksync_cnf@'127.0.0.1'"));
    let (host, port) = server_of(&mariadb.url).split_once(':').unwrap();
    let (_, name) = mariadb.url.rsplit_once('/').unwrap();
    for (password, status, told) in [(right, 0, "3 rows"), (WRONG, 78, "Access denied for user 'ksync_cnf'")] {
        let client = format!("[client]\nuser=ksync_cnf\npassword=\"{password}\"\nhost={host}\nport={port}\n");
        fs::write(world.dir.join(".my.cnf"), client).unwrap();
        let source = format!("-vv -t {topic} --database 'mysql:///{name}' --table products");
        let mut stream = world.start(STREAM, &source, &[("HOME", home)]);
        assert_eq!(stream.wait(), End::Status(status), "{password}: {:?}", stream.log());
        assert!(stream.says(&[told]) && !stream.says(&["Canary"]), "{:?}", stream.log());
    }
    assert_eq!(world.kafka.count(&topic), 6);
}

#[test]
fn a_run_that_succeeds_has_no_password_in_its_log_its_plan_its_checkpoint_or_its_status() {
    let world = World::new("no-password");
    let [postgres, ..] = block_on(primaries("password_silent"));
    products_of(&postgres);
    let url = with_password(&postgres).replace("with_password@", &format!("with_password:{RIGHT}@"));
    let (topic, gate) = (world.topic_with_delay("products", 1), world.gate());
    let [plan, checkpoint, control] = ["plan", "checkpoint", "control"].map(|name| world.file(name));
    let action = world.script(&format!("cat > /dev/null; touch {gate}.begun; await {gate}"));
    let source = format!("-vv -t {topic} --table products --checkpoint {}", checkpoint.display());
    let environment = [("DATABASE_URL", url.as_str())];
    let shown = format!("-c \"{STREAM} {source} --dry-run -- {action} > {}\"", plan.display());
    let mut dry = world.start("sh", &shown, &environment);
    assert_eq!(dry.wait(), End::Status(0), "{:?}", dry.log());

    let steered = format!("{source} --control unix:{} -- {action}", control.display());
    let mut stream = world.start(STREAM, &steered, &environment);
    let begun = format!("{gate}.begun");
    world.eventually("the action runs", || Path::new(&begun).exists());
    let status = Client::to(&world, &control).ask("status");
    let command_line = fs::read_to_string(format!("/proc/{}/cmdline", stream.pid)).unwrap();
    gate.open();
    assert_eq!(stream.wait(), End::Status(0), "{:?}", stream.log());
    let place = format!("postgres at {}", server_of(&url));
    for (told, text) in [
        (fs::read_to_string(plan).unwrap(), place.as_str()),
        (fs::read_to_string(checkpoint).unwrap(), place.as_str()),
        (status, "0 rows in 0 chunks, "),
        (command_line, "--control"),
        (stream.log().join("\n"), "3 rows in "),
        (dry.log().join("\n"), ""),
    ] {
        assert!(told.contains(text) && !told.contains("Canary"), "{told}");
    }
}

/// Has the Postgres whose folder is `$data` take connections by TLS alone, with a certificate of an authority of ours.
const TLS_ALONE: &str = r#"
key="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
for name in ours unknown; do
    openssl req -x509 $key -keyout $name.key -out $name.pem -subj /CN=$name -days 2
done
openssl req $key -keyout server.key -out server.csr -subj /CN=server
echo subjectAltName=IP:127.0.0.1 > extensions
openssl x509 -req -in server.csr -out server.crt -CA ours.pem -CAkey ours.key -CAcreateserial -days 2 \
    -extfile extensions
chmod 600 server.key
cp server.key server.crt "$data"
chown --reference="$data" "$data/server.key" "$data/server.crt"
echo "hostssl all all 127.0.0.1/32 trust" > "$data/pg_hba.conf"
"#;

#[test]
fn a_server_that_wants_tls_is_reached_by_it_alone_and_its_certificate_is_looked_at_where_that_is_asked_for() {
    let world = World::new("database-tls");
    let services = Services::postgres(&world.id);
    let primary = Primary { dialect: Dialect::Postgres, url: services.get("KSYNC_TEST_POSTGRES").to_owned() };
    products_of(&primary);
    let data = block_on(primary.texts("SHOW data_directory")).remove(0);
    world.shell(&format!("set -e; cd '{}'; data='{data}'{TLS_ALONE}", world.dir.display()));
    block_on(primary.execute("ALTER SYSTEM SET ssl = on"));
    block_on(primary.execute("SELECT pg_reload_conf()"));
    let by_tls = format!("{}?sslmode=require", primary.url);
    world.eventually("it takes TLS", || block_on(Database::open(&by_tls)).is_ok());

    let topic = world.topic("products", 1);
    let by_authority = |name: &str| format!("sslrootcert={}", world.dir.join(name).display());
    let (ours, unknown) = (by_authority("ours.pem"), by_authority("unknown.pem"));
    let refused = "invalid peer certificate: ";
    for (host, parameters, status, told) in [
        ("127.0.0.1", "application_name=x".to_owned(), 0, "3 rows in "),
        ("127.0.0.1", "sslmode=require".to_owned(), 0, "3 rows in "),
        ("127.0.0.1", "sslmode=disable".to_owned(), 78, "no pg_hba.conf entry for host"),
        ("127.0.0.1", format!("sslmode=verify-full&{ours}"), 0, "3 rows in "),
        // With status 75, as where it is a broker's: another one may be there the next time.
        ("127.0.0.1", format!("sslmode=verify-full&{unknown}"), 75, refused),
        ("localhost", format!("sslmode=verify-full&{ours}"), 75, refused),
        ("localhost", format!("sslmode=verify-ca&{ours}"), 0, "3 rows in "),
    ] {
        let url = format!("{}?{parameters}", primary.url).replace("127.0.0.1", host);
        let mut stream = world.stream(&format!("-t {topic} --database '{url}' --table products"));
        assert_eq!(stream.wait(), End::Status(status), "{url}: {:?}", stream.log());
        assert!(stream.says(&[told]), "{url}: {:?}", stream.log());
    }
    assert_eq!(world.kafka.count(&topic), 4 * 3);
}
