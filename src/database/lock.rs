//! A lock in the database that one process at a time holds for a job.

use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use anyhow::anyhow;
use log::warn;

use super::sql::Sql;
use super::trouble::Trouble;
use super::value::Value;
use super::{Connection, Database};

/// The lock of a job. It is held until the connection of the [`Database`] ends, or with SQLite until this is dropped.
#[derive(Debug)]
pub struct Lock {
    _socket: Option<UnixListener>,
}

/// Who holds it, of a lock of Postgres. Of sessions of other users it tells nothing, unless we may see them.
const HOLDER_IN_POSTGRES: &str = "
    SELECT concat_ws(' ', 'from ' || host(client_addr),
                     'since ' || to_char(backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'))
    FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND classid::bigint << 32 | objid::bigint = ";

const UNLOCKED: &str = "cannot lock the job, so that a second run of it would not be noticed";

impl Database {
    /// Takes the lock of the job with this number, at once or not at all: then the error is [`Trouble::Busy`], with who
    /// holds it where that can be known. The lock is one of the database, in MySQL and MariaDB of the server.
    ///
    /// Where there are no such locks (in a Galera cluster, in a sandbox without local sockets), that is told.
    pub async fn lock(&mut self, job: u64) -> Result<Lock, Trouble> {
        let number = Value::Integer(job.cast_signed());
        let name = format!("ksync-stream {job:016x}");
        let (take, holder) = match self.connection {
            Connection::Postgres(_) => {
                (("SELECT pg_try_advisory_lock(", &number, ")::text"), (HOLDER_IN_POSTGRES, &number, ""))
            }
            Connection::MySql(_) => {
                let name = &Value::Text(name);
                let holder =
                    "SELECT CONCAT('from ', host) FROM information_schema.processlist WHERE id = IS_USED_LOCK(";
                return self.take(("SELECT CAST(GET_LOCK(", name, ", 0) AS CHAR)"), (holder, name, ")")).await;
            }
            Connection::Sqlite(_) => return bind(&name),
        };
        self.take(take, holder).await
    }

    /// Each is what stands before the value that is bound, the value, and what stands behind it.
    async fn take(&mut self, take: (&str, &Value, &str), holder: (&str, &Value, &str)) -> Result<Lock, Trouble> {
        let dialect = self.dialect();
        let sql = |(before, value, behind): (&str, &Value, &str)| {
            let mut sql = Sql::new(dialect, before);
            sql.bind("?", value).push(behind);
            sql
        };
        match self.text(&sql(take)).await {
            Ok(Some(taken)) if taken == "true" || taken == "1" => {}
            Ok(_) => {
                // It only makes the text better.
                let holder = self.text(&sql(holder)).await.ok().flatten();
                return Err(busy(holder.as_deref().unwrap_or_default()));
            }
            Err(Trouble::Away(error)) => {
                return Err(Trouble::Away(error.context("cannot lock the job")));
            }
            Err(trouble) => warn!("{UNLOCKED}: {trouble:#}"),
        }
        Ok(Lock { _socket: None })
    }
}

/// SQLite has no such locks, but all who work on a file are on one machine: there a socket of this name is bound once. It
/// has no file, and ends with its process.
fn bind(name: &str) -> Result<Lock, Trouble> {
    match SocketAddr::from_abstract_name(name).and_then(|address| UnixListener::bind_addr(&address)) {
        Ok(socket) => Ok(Lock { _socket: Some(socket) }),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Err(busy("")),
        Err(error) => {
            warn!("{UNLOCKED}: {error}");
            Ok(Lock { _socket: None })
        }
    }
}

fn busy(holder: &str) -> Trouble {
    let blank = if holder.is_empty() { "" } else { " " };
    Trouble::Busy(anyhow!("a session of the database is at the same job already{blank}{holder}"))
}
