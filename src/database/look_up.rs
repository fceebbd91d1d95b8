//! Rows that are looked up by their keys.

use super::chunk::{Chunk, Filling, Limit};
use super::scan::Scan;
use super::trouble::Trouble;
use super::{Connection, Database, ask, cannot_read};
use crate::message::Change;

/// How many keys are looked up at once: fewer than the values that any of the databases binds.
const MOST_KEYS: usize = 1000;

impl Database {
    /// What the scan reads of the rows that have these keys, those of them that there are. How far it has read is all the same.
    pub async fn look_up(&mut self, scan: &Scan, named: &Chunk) -> Result<Vec<Change>, Trouble> {
        let mut changes = Vec::with_capacity(named.changes.len());
        for keys in named.values.chunks(MOST_KEYS * scan.key.len()) {
            let sql = scan.among(keys);
            let mut filling = Filling::new(Limit { rows: usize::MAX, bytes: usize::MAX }, &scan.members);
            let read = ask!(self, session => session.read(&sql, scan, &mut filling)).and_then(|read| read);
            read.map_err(|trouble| cannot_read(trouble, &scan.relation))?;
            if filling.leaves_out() {
                return Err(scan.repeated());
            }
            changes.extend(filling.finish(&scan.key).0.changes);
        }
        Ok(changes)
    }
}
