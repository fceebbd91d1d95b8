//! Recognises a pooler that gives a session another backend for each transaction.

use log::debug;
use tokio::time::timeout;

use super::postgres::Postgres;
use super::sql::Sql;
use super::statement::Dialect;
use super::trouble::Trouble;
use super::watch::Watch;
use super::{Database, OPEN_TIMEOUT};

impl Database {
    /// Whether two sessions were given the same backend, one right after the other: in front of Postgres there is a pooler in
    /// transaction mode then. Where it has given them two of the backends that it has, this does not see it.
    pub async fn is_pooled(&mut self) -> bool {
        let (Dialect::Postgres, Watch(Some(by))) = (self.dialect(), &self.watch) else { return false };
        let (backend, url) = (Sql::new(Dialect::Postgres, "SELECT pg_backend_pid()::text"), by.url.clone());
        let theirs = async { Postgres::open(&url, None).await?.text(&backend).await.map_err(Trouble::from) };
        let (Ok(ours), Ok(Ok(theirs))) = (self.text(&backend).await, timeout(OPEN_TIMEOUT, theirs).await) else {
            debug!("cannot look for a pooler");
            return false;
        };
        ours == theirs
    }
}
