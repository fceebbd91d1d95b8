//! A hot standby of a Postgres, which replays what its primary has done, or holds it back.

use std::net::TcpListener;

use ksync::database::{Database, Dialect};
use rustix::process::Signal;

use super::{End, Primary, Process, World, block_on};

pub struct Standby {
    /// What can be read of it.
    pub replica: Primary,
    process: Process,
}

impl Standby {
    /// Of the server of `primary`, as it is now.
    pub fn of(primary: &Primary, world: &World) -> Standby {
        let port = free_port();
        // As scripts/services runs Postgres, which refuses to be run by root.
        let script = world.script(&format!(
            r#"bin=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
as=
mkdir -m 700 standby
if [ "$(id -u)" = 0 ]; then
    as="setpriv --reuid=postgres --regid=postgres --clear-groups"
    chown postgres standby
fi
$as "$bin/pg_basebackup" -d {} -D standby/data -R -c fast --no-sync
exec $as "$bin/postgres" -D standby/data -h 127.0.0.1 -p {port} -k '' -c fsync=off"#,
            primary.url
        ));
        let process = world.start(&script, "", &[]);
        let url = format!("postgres://ksync@127.0.0.1:{port}/ksync");
        world.eventually("the standby answers", || block_on(Database::open(&url)).is_ok());
        Standby { replica: Primary { dialect: Dialect::Postgres, url }, process }
    }

    /// From now on it replays nothing.
    pub fn hold(&self, world: &World) {
        block_on(self.replica.execute("SELECT pg_wal_replay_pause()"));
        let state = "SELECT pg_get_wal_replay_pause_state()";
        world.eventually("it replays nothing", || block_on(self.replica.texts(state)) == ["paused"]);
    }

    /// From now on it replays all that it has.
    pub fn let_go(&self) {
        block_on(self.replica.execute("SELECT pg_wal_replay_resume()"));
    }

    pub fn end(mut self) {
        self.process.signal(Signal::INT);
        assert_eq!(self.process.wait(), End::Status(0), "{:?}", self.process.log());
    }
}

/// One that no outgoing connection is given meanwhile: below the kernel's range for these.
fn free_port() -> u16 {
    let mut ports = std::iter::repeat_with(|| 12_000 + rand::random::<u16>() % 20_000);
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}
