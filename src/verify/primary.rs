//! The rows of the primary: their versions, their keys, and how they are announced.

use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result};
use serde_json::value::RawValue;

use super::version::Version;
use crate::database::{Database, Found, Limit, Scan, Trouble};
use crate::message::Change;
use crate::stream::failure;

/// The same rows, read for three purposes.
pub struct Primary {
    pub database: Database,
    /// The columns that make a version.
    pub versions: Scan,
    /// Whether a version is the value of one column, not an object of several.
    pub is_one_column: bool,
    pub keys: Scan,
    /// As they are announced.
    pub announced: Scan,
}

/// What the primary has under some keys.
pub(super) struct Rows {
    /// With the key columns as payloads.
    pub named: Vec<Change>,
    /// `None` where it has no such row.
    pub versions: Vec<Option<Version>>,
}

impl Rows {
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.named.iter().map(key)
    }
}

impl Primary {
    /// The next rows in the order of their keys; `None` behind the last.
    pub(super) async fn next(&mut self, limit: Limit) -> Result<Option<Rows>> {
        let chunk = self.database.next_chunk(&mut self.versions, limit).await.map_err(failure)?;
        let Some(chunk) = chunk else { return Ok(None) };
        let versions = chunk.changes.iter().map(|change| self.version(change).map(Some)).collect::<Result<_>>()?;
        let payloads = chunk.key_payloads();
        let named = chunk.changes.into_iter().zip(payloads).map(|(change, payload)| Change { payload, ..change });
        Ok(Some(Rows { named: named.collect(), versions }))
    }

    /// What is under these keys now.
    pub(super) async fn rows(&mut self, keys: Vec<String>) -> Result<Rows> {
        let (named, _) = self.keys.key().named(keys);
        let found = found(self.database.look_up(&self.versions, &named).await)?;
        let found = found.into_iter().map(|change| Ok((self.version(&change)?, change.key)));
        let mut found: HashMap<_, _> =
            found.map(|pair| pair.map(|(version, key)| (key, version))).collect::<Result<_>>()?;
        let versions = named.changes.iter().map(|change| found.remove(&change.key)).collect();
        Ok(Rows { named: named.changes, versions })
    }

    /// Those of the keys that no row has, and those that none can have, with why.
    pub(super) async fn absent(&mut self, keys: Vec<String>) -> Result<(Vec<String>, Vec<(String, anyhow::Error)>)> {
        let (named, mut unfit) = self.keys.key().named(keys);
        let found = self.database.look_up(&self.keys, &named).await.map_err(failure)?;
        unfit.extend(found.unfit);
        let others: HashSet<_> =
            found.changes.iter().map(key).chain(unfit.iter().map(|(key, _)| key.as_str())).collect();
        let absent = named.changes.iter().map(key).filter(|key| !others.contains(key)).map(str::to_owned).collect();
        Ok((absent, unfit))
    }

    /// What is announced of the rows under these keys; of those that are gone it is their key columns.
    pub(super) async fn changes(&mut self, keys: Vec<String>) -> Result<Vec<Change>> {
        let (named, _) = self.keys.key().named(keys);
        let mut changes = found(self.database.look_up(&self.announced, &named).await)?;
        let found: HashSet<_> = changes.iter().map(|change| change.key.clone()).collect();
        changes.extend(named.changes.into_iter().filter(|change| !found.contains(&change.key)));
        Ok(changes)
    }

    fn version(&self, change: &Change) -> Result<Version> {
        let row: &RawValue = serde_json::from_slice(&change.payload)?;
        if !self.is_one_column {
            return Version::of(row);
        }
        let members: HashMap<String, &RawValue> = serde_json::from_str(row.get())?;
        Version::of(members.into_values().next().context("a row has no version")?)
    }
}

/// What was found under keys that are known to be fit: that one is refused now is no sign that its row is gone.
fn found(looked: Result<Found, Trouble>) -> Result<Vec<Change>> {
    let Found { changes, unfit } = looked.map_err(failure)?;
    match unfit.into_iter().next() {
        Some((key, why)) => Err(failure(Trouble::Unfit(why.context(format!("cannot look up the key '{key}'"))))),
        None => Ok(changes),
    }
}

/// Rows have keys, and these are text.
fn key(change: &Change) -> &str {
    change.key.as_deref().and_then(|key| std::str::from_utf8(key).ok()).unwrap_or_default()
}
