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
/// After so many of these looks at the earliest: one alone may have come between two statements.
const LOOKS: u32 = 3;
/// How long an end waits for the answer that a session of ours was asked for to stay awake.
const LAST_WORD: Duration = Duration::from_secs(5);

/// By what another session knows a session; a file needs nobody to look after it.
pub(super) struct Watch(pub Option<By>);

pub(super) struct By {
    dialect: Dialect,
    pub url: String,
    server: Option<String>,
    /// In Postgres its name, which no other session has: behind a pooler the number of its backend is another one for each
    /// transaction. In MySQL and MariaDB its number, where no proxy gives out others. `None` is taken to be always at work.
    session: Option<String>,
}

/// What another session sees.
enum Seen {
    AtWork,
    Idle,
    Elsewhere,
}

/// Which server it is that answers.
const POSTGRES: &str = "SELECT concat(inet_server_addr(), ' ', inet_server_port())";
const MYSQL: &str = "SELECT CONCAT(@@hostname, ' ', @@port)";

impl Watch {
    /// Asks the session what it is to be known by.
    pub async fn new(connection: &mut Connection, url: &str) -> Watch {
        let (dialect, url) = (connection.dialect(), url.to_owned());
        let (server, session) = match connection {
            Connection::Sqlite(_) => return Watch(None),
            Connection::Postgres(postgres) => {
                let server = postgres.text(&Sql::new(dialect, POSTGRES)).await;
                let session = "SELECT nullif(current_setting('application_name'), '')";
                (server, postgres.text(&Sql::new(dialect, session)).await)
            }
            Connection::MySql(mysql) => {
                let server = mysql.text(&Sql::new(dialect, MYSQL)).await;
                let session = "SELECT CAST(id AS CHAR) FROM information_schema.processlist WHERE id = CONNECTION_ID()";
                (server, mysql.text(&Sql::new(dialect, session)).await)
            }
        };
        Watch(Some(By { dialect, url, server: known(server), session: known(session) }))
    }

    /// What `work` gives, which waits for an answer to the session; [`Trouble::Away`] where there will be none, and from then on,
    /// which `is_lost` says.
    pub async fn over<T>(&self, work: impl Future<Output = T>, is_lost: &mut bool) -> Result<T, Trouble> {
        if *is_lost {
            return Err(lost());
        }
        let (mut work, mut heard, mut looks) = (pin!(work), Instant::now(), 0);
        let mut patience = SILENCE;
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
            let Err((error, limit)) = looked else {
                (heard, looks, patience) = (Instant::now(), 0, SILENCE);
                continue;
            };
            // What one look has seen holds whatever the next ones see.
            (looks, patience) = (looks + 1, patience.max(limit));
            if looks >= LOOKS && heard.elapsed() >= patience {
                *is_lost = true;
                let silence = heard.elapsed().as_secs();
                return Err(Trouble::Away(error.context(format!("the database has not answered for {silence} s"))));
            }
            warn!("waiting for the database: {error:#}");
        }
    }

    /// Fails where nobody is seen at work for the session, with how long that may be.
    async fn look(&self) -> Result<(), (Error, Duration)> {
        let Some(by) = &self.0 else { return Ok(()) };
        match timeout(OPEN_TIMEOUT, by.see()).await {
            Ok(Ok(Seen::AtWork)) => Ok(()),
            Ok(Ok(Seen::Idle)) => Err((anyhow!("it has ended the session, or waits for us, who wait for it"), SILENCE)),
            Ok(Ok(Seen::Elsewhere)) => Err((anyhow!("another server answers at its address"), SILENCE_ELSEWHERE)),
            Ok(Err(Trouble::Away(error))) if error.chain().any(|cause| cause.is::<std::io::Error>()) => {
                Err((error, SILENCE))
            }
            // Whoever lets nobody in any more has not vanished.
            Ok(Err(trouble)) if is_crowded(&trouble) => Ok(()),
            // A proxy may say so of a server that it has lost.
            Ok(Err(trouble)) => Err((anyhow!("cannot look after the session: {trouble:#}"), SILENCE_ELSEWHERE)),
            Err(_) => Err((anyhow!("no answer to a new connection within {OPEN_TIMEOUT:?}"), SILENCE)),
        }
    }
}

impl By {
    async fn see(&self) -> Result<Seen, Trouble> {
        let (server, found) = match self.dialect {
            Dialect::Postgres => {
                let mut other = Postgres::open(&self.url, None).await?;
                let server = other.text(&Sql::new(self.dialect, POSTGRES)).await?;
                // One that waits until we read would do so for long where the way to us is cut.
                let is_at_work = "pid <> pg_backend_pid() AND coalesce(state, '') NOT LIKE 'idle%'
                                  AND coalesce(wait_event, '') <> 'ClientWrite'";
                (server, other.text(&self.find("application_name", is_at_work)).await?)
            }
            _ => {
                let mut other = MySql::open(&self.url).await?;
                let server = other.text(&Sql::new(self.dialect, MYSQL)).await?;
                let found = other.text(&self.find("CAST(id AS CHAR)", "command <> 'Sleep'")).await?;
                other.close().await;
                (server, found)
            }
        };
        Ok(match found {
            Some(_) => Seen::AtWork,
            None if server == self.server => Seen::Idle,
            None => Seen::Elsewhere,
        })
    }

    /// Finds the session, if it is at work.
    fn find(&self, name: &str, is_at_work: &str) -> Sql {
        let sessions = match self.dialect {
            Dialect::Postgres => "pg_stat_activity",
            _ => "information_schema.processlist",
        };
        let Some(session) = &self.session else { return Sql::new(self.dialect, "SELECT 'unknown'") };
        let text = format!("SELECT 'it is' FROM {sessions} WHERE {is_at_work} AND {name} = ");
        let mut sql = Sql::new(self.dialect, text);
        sql.bind("?", &Value::Text(session.clone())).push(" LIMIT 1");
        sql
    }
}

fn lost() -> Trouble {
    Trouble::Away(anyhow!("the session with the database is lost"))
}

/// Who may not ask is known by nothing.
fn known(answer: sqlx::Result<Option<String>>) -> Option<String> {
    answer.unwrap_or_else(|error| {
        debug!("cannot learn what the session is known by: {error}");
        None
    })
}

/// Whether a server answers that has as many sessions as it takes.
fn is_crowded(trouble: &Trouble) -> bool {
    let text = format!("{trouble:#}").to_lowercase();
    ["too many", "connection slots", "max_user_connections"].iter().any(|words| text.contains(words))
}

impl Database {
    /// Lets `meanwhile` finish. A session that nobody asks for long is ended by servers and firewalls, and with it the lock of
    /// a job: so it is asked now and then. Fails where it has ended all the same.
    pub async fn kept_awake<T>(&mut self, meanwhile: impl Future<Output = T>) -> Result<T, Trouble> {
        let mut meanwhile = Box::pin(meanwhile);
        if self.is_lost {
            return Err(lost());
        }
        loop {
            tokio::select! {
                biased;
                done = &mut meanwhile => return Ok(done),
                () = sleep(IDLE) => {}
            }
            let over = match select(&mut meanwhile, pin!(self.ping())).await {
                // To its end: an answer that is half read would be in the way of the next one.
                Either::Left((done, asked)) => Some((done, timeout(LAST_WORD, asked).await)),
                Either::Right((asked, _)) => {
                    asked.map_err(|trouble| trouble.context("the session has ended"))?;
                    None
                }
            };
            if let Some((done, asked)) = over {
                self.is_lost |= !matches!(asked, Ok(Ok(())));
                return Ok(done);
            }
        }
    }

    /// The same, but what becomes of the session is told only by what is asked of it next.
    pub async fn kept_awake_if_it_lives<T>(&mut self, meanwhile: impl Future<Output = T>) -> T {
        let mut meanwhile = pin!(meanwhile);
        match self.kept_awake(&mut meanwhile).await {
            Ok(done) => done,
            Err(trouble) => {
                debug!("{trouble:#}");
                self.is_lost = true;
                meanwhile.await
            }
        }
    }

    async fn ping(&mut self) -> Result<(), Trouble> {
        Ok(ask!(self, session => session.ping())??)
    }
}
