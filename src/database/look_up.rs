//! Rows that are looked up by their keys.

use std::ops::Range;

use anyhow::Error;

use super::chunk::{Chunk, Filling, Limit};
use super::scan::Scan;
use super::sql::Sql;
use super::statement::Dialect;
use super::trouble::Trouble;
use super::tuple::one_of;
use super::value::Value;
use super::{Connection, Database, ask, cannot_read};
use crate::message::Change;

/// How many keys are looked up at once: fewer than the values that any of the databases binds.
const MOST_KEYS: usize = 1000;

/// What was found under some keys.
pub struct Found {
    /// What the scan reads of the rows that there are.
    pub changes: Vec<Change>,
    /// The record keys that can be none of the table, a word where a UUID should be, an integer that is too large, and why.
    pub unfit: Vec<(String, Error)>,
}

impl Database {
    /// Looks for the rows that have these keys. How far the scan has read is all the same.
    pub async fn look_up(&mut self, scan: &Scan, named: &Chunk) -> Result<Found, Trouble> {
        let mut found = Found { changes: Vec::with_capacity(named.changes.len()), unfit: vec![] };
        let (all, mut scan) = (named.changes.len(), scan.clone());
        scan.is_queried = true;
        let mut parts: Vec<_> = (0..all).step_by(MOST_KEYS).map(|from| from..all.min(from + MOST_KEYS)).collect();
        while let Some(part) = parts.pop() {
            match self.look_up_part(&scan, named, part.clone()).await {
                Ok(changes) => found.changes.extend(changes),
                // Of one of them.
                Err(Trouble::Unfit(_)) if part.len() > 1 => {
                    let middle = part.start + part.len() / 2;
                    parts.extend([part.start..middle, middle..part.end]);
                }
                Err(Trouble::Unfit(error)) => {
                    let key = named.changes[part.start].key.as_deref().unwrap_or_default();
                    found.unfit.push((String::from_utf8_lossy(key).into_owned(), error));
                }
                Err(trouble) => return Err(trouble),
            }
        }
        Ok(found)
    }

    async fn look_up_part(&mut self, scan: &Scan, named: &Chunk, part: Range<usize>) -> Result<Vec<Change>, Trouble> {
        let width = scan.key.len();
        let sql = scan.among(&named.values[part.start * width..part.end * width]);
        let mut filling = Filling::new(Limit { rows: usize::MAX, bytes: usize::MAX }, &scan.members);
        let read = ask!(self, session => session.read(&sql, scan, &mut filling)).and_then(|read| read);
        read.map_err(|trouble| cannot_read(trouble, &scan.relation))?;
        if filling.leaves_out() {
            return Err(scan.repeated());
        }
        Ok(filling.finish(&scan.key).0.changes)
    }
}

impl Scan {
    /// The rows that have these keys, the values of which stand one behind the other.
    fn among(&self, keys: &[Value]) -> Sql {
        let (names, mut sql) = (self.names(), self.relation.select(&self.reads()));
        let (dialect, width, order) = (self.relation.dialect, self.key.len(), names.join(", "));
        if dialect == Dialect::MySql && width > 1 {
            sql.push(&one_of(&names, &self.key, keys.len() / width));
            sql.values.extend_from_slice(keys);
        } else {
            sql.push("(").push(&order).push(if dialect == Dialect::Sqlite { ") IN (VALUES " } else { ") IN (" });
            for (at, row) in keys.chunks(width).enumerate() {
                sql.push(if at == 0 { "(" } else { ", (" });
                for (place, (column, value)) in self.key.iter().zip(row).enumerate() {
                    sql.push(if place == 0 { "" } else { ", " }).bind(&column.bind, value);
                }
                sql.push(")");
                if let (Dialect::Sqlite, [column], [value]) = (dialect, &self.key[..], row) {
                    // In a column without a type the text of a number is another key, and has the same record key.
                    sql.push(", (").bind(&column.bind, &Value::Text(value.text().into_owned())).push(")");
                }
            }
            sql.push(")");
        }
        sql.push(" ORDER BY ").push(&order);
        sql
    }
}
