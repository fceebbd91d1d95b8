//! Looks after a session with the database: sqlx waits for an answer without end, and one that has vanished, or that a
//! firewall has cut us off from without a word, never gives it.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Error, anyhow};
use futures_util::future::{Either, select};
use log::{debug, warn};
use tokio::time::{Instant, sleep, timeout};

use super::mysql::MySql;
use super::postgres::Postgres;
use super::sql::Sql;
use super::statement::Dialect;
use super::trouble::Trouble;
use super::value::Value;
use super::{Connection, Database, OPEN_TIMEOUT, ask};

/// How long an answer may take before another session looks what becomes of it, and how long after that it looks again.
const LOOK: Duration = Duration::from_secs(15);
/// After this time in which each look found nobody at work for us the answer is not waited for any longer.
const SILENCE: Duration = Duration::from_secs(60);
/// The same where a look came to another server: there may be several behind an address.
const SILENCE_ELSEWHERE: Duration = Duration::from_secs(600);
/// How long a session may have nothing to do before it is asked whether it is still there.
const IDLE: Duration = Duration::from_secs(30);

/// By what another session knows a session, and its server.
pub(super) enum Watch {
    /// It is a file, which does not vanish that way.
    Needless,
    Postgres(By),
    MySql(By),
}

pub(super) struct By {
    pub url: String,
    server: Option<String>,
    /// In Postgres its name: behind a pooler the number of its backend is another one for each transaction. In MySQL and MariaDB
    /// its number, where no proxy gives out others. `None` is taken to be always at work.
    session: Option<String>,
}

/// What another session sees.
enum Seen {
    AtWork,
    Idle,
    Elsewhere,
}

impl Watch {
    /// Asks the session what it is to be known by.
    pub async fn new(connection: &mut Connection, url: &str) -> Watch {
        let url = url.to_owned();
        match connection {
            Connection::Sqlite(_) => Watch::Needless,
            Connection::Postgres(postgres) => {
                let server = known(postgres.text(&Sql::new(Dialect::Postgres, POSTGRES)).await);
                let session = "SELECT nullif(current_setting('application_name'), '')";
                let session = known(postgres.text(&Sql::new(Dialect::Postgres, session)).await);
                Watch::Postgres(By { url, server, session })
            }
            Connection::MySql(mysql) => {
                let server = known(mysql.text(&Sql::new(Dialect::MySql, MYSQL)).await);
                let session = "SELECT CAST(id AS CHAR) FROM information_schema.processlist WHERE id = CONNECTION_ID()";
                let session = known(mysql.text(&Sql::new(Dialect::MySql, session)).await);
                Watch::MySql(By { url, server, session })
            }
        }
    }

    /// What `work` gives, which waits for an answer to the session; [`Trouble::Away`] where there will be none, and from then on,
    /// which `is_lost` says.
    pub async fn over<T>(&self, work: impl Future<Output = T>, is_lost: &mut bool) -> Result<T, Trouble> {
        if *is_lost {
            return Err(Trouble::Away(anyhow!("the session with the database is lost")));
        }
        let (mut work, mut heard) = (pin!(work), Instant::now());
        loop {
            let looked = async {
                sleep(LOOK).await;
                // Seldom needed, and large.
                Box::pin(self.look()).await
            };
            let looked = tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                looked = looked => looked,
            };
            let (error, limit) = match looked {
                Ok(Seen::AtWork) => {
                    heard = Instant::now();
                    continue;
                }
                Ok(Seen::Idle) => (anyhow!("it has ended the session, or waits for us, who wait for it"), SILENCE),
                Ok(Seen::Elsewhere) => (anyhow!("another server answers at its address"), SILENCE_ELSEWHERE),
                Err(error) => (error, SILENCE),
            };
            if heard.elapsed() >= limit {
                *is_lost = true;
                let silence = heard.elapsed().as_secs();
                return Err(Trouble::Away(error.context(format!("the database has not answered for {silence} s"))));
            }
            warn!("waiting for the database: {error:#}");
        }
    }

    /// Fails where nobody answers.
    async fn look(&self) -> Result<Seen, Error> {
        match timeout(OPEN_TIMEOUT, self.see()).await {
            Ok(Ok(seen)) => Ok(seen),
            Ok(Err(Trouble::Away(error))) if error.chain().any(|cause| cause.is::<std::io::Error>()) => Err(error),
            // Too many connections, perhaps: whoever answers has not vanished.
            Ok(Err(trouble)) => {
                debug!("cannot look after the session: {trouble:#}");
                Ok(Seen::AtWork)
            }
            Err(_) => Err(anyhow!("no answer to a new connection within {OPEN_TIMEOUT:?}")),
        }
    }

    async fn see(&self) -> Result<Seen, Trouble> {
        match self {
            Watch::Needless => Ok(Seen::AtWork),
            Watch::Postgres(by) => {
                let mut other = Postgres::open(&by.url, None).await?;
                let server = other.text(&Sql::new(Dialect::Postgres, POSTGRES)).await?;
                let Some(session) = &by.session else { return Ok(Seen::AtWork) };
                let mut sql =
                    Sql::new(Dialect::Postgres, "SELECT 'it is' FROM pg_stat_activity WHERE application_name = ");
                sql.bind("?", &Value::Text(session.clone())).push(
                    " AND pid <> pg_backend_pid() AND coalesce(state, '') NOT LIKE 'idle%'
                      AND coalesce(wait_event_type, '') <> 'Client'",
                );
                Ok(by.seen(&server, other.text(&sql).await?.is_some()))
            }
            Watch::MySql(by) => {
                let mut other = MySql::open(&by.url).await?;
                let server = other.text(&Sql::new(Dialect::MySql, MYSQL)).await?;
                let Some(session) = &by.session else { return Ok(Seen::AtWork) };
                let found = "SELECT 'it is' FROM information_schema.processlist WHERE command <> 'Sleep' AND id = ";
                let mut sql = Sql::new(Dialect::MySql, found);
                sql.bind("?", &Value::Text(session.clone()));
                Ok(by.seen(&server, other.text(&sql).await?.is_some()))
            }
        }
    }
}

impl By {
    fn seen(&self, server: &Option<String>, is_at_work: bool) -> Seen {
        match is_at_work {
            true => Seen::AtWork,
            false if *server == self.server => Seen::Idle,
            false => Seen::Elsewhere,
        }
    }
}

/// Which server it is that answers.
const POSTGRES: &str = "SELECT concat(inet_server_addr(), ' ', inet_server_port())";
const MYSQL: &str = "SELECT CONCAT(@@hostname, ' ', @@port)";

/// Who may not ask is known by nothing.
fn known(answer: sqlx::Result<Option<String>>) -> Option<String> {
    answer.unwrap_or_else(|error| {
        debug!("cannot learn what the session is known by: {error}");
        None
    })
}

impl Database {
    /// Lets `meanwhile` finish. A session that nobody asks for long is ended by servers and firewalls, and with it the lock of
    /// a job: so it is asked now and then. Fails where it has ended all the same.
    pub async fn kept_awake<T>(&mut self, meanwhile: impl Future<Output = T>) -> Result<T, Trouble> {
        let mut meanwhile = Box::pin(meanwhile);
        loop {
            tokio::select! {
                biased;
                done = &mut meanwhile => return Ok(done),
                () = sleep(IDLE) => {}
            }
            let over = match select(&mut meanwhile, pin!(self.ping())).await {
                // To its end: an answer that is half read would be in the way of the next one.
                Either::Left((done, asked)) => Some((done, asked.await)),
                Either::Right((asked, _)) => {
                    asked.map_err(|trouble| trouble.context("the session has ended"))?;
                    None
                }
            };
            if let Some((done, asked)) = over {
                self.is_lost |= asked.is_err();
                return Ok(done);
            }
        }
    }

    async fn ping(&mut self) -> Result<(), Trouble> {
        Ok(ask!(self, session => session.ping())??)
    }
}
