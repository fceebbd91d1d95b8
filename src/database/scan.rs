//! A read of rows in the order of their key, chunk after chunk: how far it is, and the SQL of its next step.

use std::cmp::Ordering;
use std::sync::Arc;

use anyhow::anyhow;

use super::chunk::{Chunk, Limit, Members, Place};
use super::column::{Column, Kind};
use super::key::Key;
use super::position::Position;
use super::relation::Relation;
use super::sql::Sql;
use super::statement::Dialect;
use super::trouble::Trouble;
use super::value::Value;

/// How many rows are asked for at first where more than their keys is read: each of them may be large.
const FIRST: usize = 100;

/// How far a source has been read; the connection may change in between.
#[derive(Clone)]
pub struct Scan {
    pub(super) relation: Relation,
    pub(super) key: Arc<[Column]>,
    /// What the payload has besides the key: as what it is read, and by which expression.
    pub(super) others: Vec<(Kind, String)>,
    pub(super) members: Arc<Members>,
    /// Whether nothing of it is read by COPY: after an error sqlx mistakes what comes next.
    pub(super) is_queried: bool,
    /// How many rows are asked for at once, where their bytes may end a chunk.
    most: Option<usize>,
    last: Option<Vec<Value>>,
    ahead: Option<Vec<Value>>,
    pub(super) is_done: bool,
}

impl Scan {
    /// `members` are the columns of the payload; `is_json` has Postgres write them.
    pub(super) fn new(relation: Relation, key: Vec<Column>, members: Vec<Column>, is_json: bool) -> Scan {
        let mut others = Vec::new();
        let places = members.iter().map(|column| {
            let at = key.iter().position(|of_key| of_key.name == column.name);
            let place = match at.filter(|_| !is_json || column.kind == Kind::Integer) {
                Some(at) => Place::Key(at),
                None => {
                    let (kind, read) = column.shown();
                    others.push(match is_json && column.kind != Kind::Integer {
                        true => (Kind::Json, format!("to_json({})::text", relation.column(&column.name))),
                        false => (kind, read.to_owned()),
                    });
                    Place::Other(others.len() - 1)
                }
            };
            (column.name.as_str(), place)
        });
        let members = Arc::new(Members::new(places));
        let most = (!others.is_empty()).then_some(FIRST);
        Scan {
            relation,
            key: key.into(),
            others,
            members,
            is_queried: false,
            most,
            last: None,
            ahead: None,
            is_done: false,
        }
    }

    /// The key of the rows, for those that others name by it.
    pub fn key(&self) -> Key {
        Key::new(self.key.clone(), self.relation.label.clone())
    }

    /// What is read: `table products`.
    pub fn label(&self) -> &str {
        &self.relation.label
    }

    /// Whether the last row was read; false may mean that this is not known yet.
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// The database is not asked for far more rows than a chunk can take by its bytes.
    pub(super) fn fitting(&self, limit: Limit) -> Limit {
        Limit { rows: self.most.map_or(limit.rows, |most| limit.rows.min(most)), ..limit }
    }

    /// Learns how large rows are: so many were all that the bytes of a chunk allowed, or `None` where these did not end it.
    pub(super) fn learn(&mut self, fitting_rows: Option<usize>) {
        self.most = fitting_rows.or(self.most).map(|rows| rows.saturating_mul(2));
    }

    /// The rows of the next chunk and one more, which shows whether there are more.
    pub(super) fn next(&self, limit: Limit) -> Sql {
        let (names, mut sql) = (self.names(), self.relation.select(&self.reads()));
        if self.is_copied() {
            sql.hold_integers();
        }
        self.push_rest(&names, &mut sql);
        sql.push(&format!(" ORDER BY {} LIMIT {}", names.join(", "), limit.rows.saturating_add(1)));
        sql
    }

    /// The condition that rows lie behind the last one that was read.
    fn push_rest(&self, names: &[String], sql: &mut Sql) {
        match &self.last {
            None => drop(sql.push("1 = 1")),
            Some(last) if self.relation.dialect == Dialect::MySql => self.behind(names, last, sql),
            Some(last) => {
                sql.push("(").push(&names.join(", ")).push(") > (");
                for (at, (column, value)) in self.key.iter().zip(last).enumerate() {
                    sql.push(if at == 0 { "" } else { ", " }).bind(&column.bind, value);
                }
                sql.push(")");
            }
        }
    }

    /// The last row that there is.
    pub(super) fn last(&self) -> Sql {
        let reads = self.reads();
        let names = self.key.iter().map(|column| format!("{} DESC", self.relation.column(&column.name)));
        let order = names.collect::<Vec<_>>().join(", ");
        let mut sql = self.relation.select(&reads);
        sql.push("1 = 1 ORDER BY ").push(&order).push(" LIMIT 1");
        sql
    }

    /// How many rows are left, as text.
    pub(super) fn count(&self) -> Sql {
        let mut sql = self.relation.select(match self.relation.dialect {
            Dialect::Postgres => "count(*)::text",
            Dialect::MySql | Dialect::Sqlite => "CAST(count(*) AS CHAR)",
        });
        self.push_rest(&self.names(), &mut sql);
        sql
    }

    /// A key that several of the rows have that are left.
    pub(super) fn shared_keys(&self) -> Sql {
        let (names, mut sql) = (self.names(), self.relation.select("1"));
        self.push_rest(&names, &mut sql);
        sql.push(&format!(" GROUP BY {} HAVING count(*) > 1 LIMIT 1", names.join(", ")));
        sql
    }

    /// Whether COPY can read it: Postgres does that faster, but takes no values for it.
    pub(super) fn is_copied(&self) -> bool {
        let is_plain = self.others.is_empty() && self.key.iter().all(|column| column.kind == Kind::Integer);
        self.relation.dialect == Dialect::Postgres && is_plain && !self.is_queried
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.key.iter().map(|column| self.relation.column(&column.name)).collect()
    }

    pub(super) fn reads(&self) -> String {
        let others = self.others.iter().map(|(_, read)| &read[..]);
        self.key.iter().map(|column| column.read.as_str()).chain(others).collect::<Vec<_>>().join(", ")
    }

    /// `(a, b) > (1, 2)` as `a > 1 OR (a = 1 AND b > 2)`: MySQL and MariaDB use an index only for this.
    fn behind(&self, names: &[String], last: &[Value], sql: &mut Sql) {
        sql.push("(");
        for at in 0..names.len() {
            sql.push(if at == 0 { "(" } else { " OR (" });
            for before in 0..at {
                sql.push(&names[before]).push(" = ").bind(&self.key[before].bind, &last[before]).push(" AND ");
            }
            sql.push(&names[at]).push(" > ").bind(&self.key[at].bind, &last[at]).push(")");
        }
        sql.push(")");
    }

    /// Rows that `>` would pass over: the database takes their key for the last one's, but its text is another.
    ///
    /// `None` where there are none, by the types of the key or since the next chunk begins with the row that was read
    /// ahead. Of a position that another process has left nobody knows what was ahead.
    pub(super) fn passed_over(&self, first: Option<&[Value]>) -> Option<Sql> {
        let last = self.last.as_ref()?;
        let is_next = first.is_some() && first == self.ahead.as_deref();
        if is_next || self.key.iter().all(|column| column.differs.is_none()) {
            return None;
        }
        let mut sql = self.relation.select("1");
        for (column, value) in self.key.iter().zip(last) {
            sql.push(&self.relation.column(&column.name)).push(" = ").bind(&column.bind, value).push(" AND ");
        }
        sql.push("(1 = 0");
        for (column, value) in self.key.iter().zip(last) {
            if let Some(differs) = &column.differs {
                sql.push(" OR ").bind(differs, value);
            }
        }
        sql.push(") LIMIT 1");
        Some(sql)
    }

    /// Rows that no comparison finds, since a part of their key is NULL.
    pub(super) fn nulls(&self) -> Sql {
        let tests = self.key.iter().map(|column| format!("{} IS NULL", self.relation.column(&column.name)));
        let tests = tests.collect::<Vec<_>>().join(" OR ");
        let mut sql = self.relation.select("1");
        sql.push("(").push(&tests).push(") LIMIT 1");
        sql
    }

    /// Whether rows that were read come again, as far as that can be told: which of two texts lies behind the other only the
    /// database knows.
    pub(super) fn stands_still(&self, chunk: &Chunk) -> bool {
        let (Some(last), Some(first)) = (&self.last, chunk.keys().next()) else { return false };
        match order(first, last) {
            Some(order) => order.is_le(),
            // Not only the last one: this chunk may be larger than the one before.
            None => chunk.keys().any(|key| key == last.as_slice()),
        }
    }

    /// Goes on behind a chunk that ends with `last`; `ahead` is the row behind it.
    pub(super) fn advance(&mut self, last: Vec<Value>, ahead: Option<Vec<Value>>) {
        self.last = Some(last);
        self.is_done = ahead.is_none();
        self.ahead = ahead;
    }

    /// Goes on behind the row that another scan of the same rows has read last.
    pub fn go_on_behind(&mut self, position: &Position) -> Result<(), Trouble> {
        let values = position.values();
        let fits = self.key.len() == values.len()
            && self.key.iter().zip(values).all(|(column, value)| column.kind.takes(value));
        if !fits {
            return Err(Trouble::Misconfigured(anyhow!(
                "{} cannot be read on behind '{position}': its {} is now of another type",
                self.relation.label,
                self.key_names()
            )));
        }
        self.last = Some(values.to_vec());
        (self.ahead, self.is_done) = (None, false);
        Ok(())
    }

    /// The error about a scan that [stands still](Scan::stands_still).
    pub(super) fn read_again(&self) -> Trouble {
        Trouble::Misconfigured(anyhow!(
            "{} cannot be read on behind '{}': the database gives rows again that were read before, since it does not compare \
             the {} exactly (numbers with too many digits, perhaps); name another --key",
            self.relation.label,
            self.last_key(),
            self.key_names()
        ))
    }

    /// The error about the rows of [`Scan::passed_over`].
    pub(super) fn not_distinct(&self) -> Trouble {
        Trouble::Misconfigured(anyhow!(
            "{} has several rows whose {} is '{}' for the database although they are written differently (upper \
             and lower case, perhaps); name a --key that tells them apart",
            self.relation.label,
            self.key_names(),
            self.last_key()
        ))
    }

    fn last_key(&self) -> String {
        self.last.iter().flatten().map(Value::text).collect::<Vec<_>>().join(", ")
    }

    /// The error about rows with the same key, of which each has more to tell.
    pub(super) fn repeated(&self) -> Trouble {
        Trouble::Misconfigured(anyhow!(
            "{} has several rows with the same {}, and a payload that tells them apart; name a --key that does, too",
            self.relation.label,
            self.key_names()
        ))
    }

    /// The error about a NULL in the key.
    pub(super) fn null_key(&self) -> Trouble {
        Trouble::Misconfigured(anyhow!(
            "{} has rows whose {} is NULL; leave them out with a condition (IS NOT NULL), or name another --key",
            self.relation.label,
            self.key_names()
        ))
    }

    /// Whether the payload has columns that are not of the key.
    pub fn tells_more_than_keys(&self) -> bool {
        !self.others.is_empty()
    }

    /// The columns of the key: `id`, `a, b`.
    pub fn key_names(&self) -> String {
        self.key.iter().map(|column| column.name.as_str()).collect::<Vec<_>>().join(", ")
    }
}

/// Which of two keys comes first; `None` where that depends on the database.
fn order(one: &[Value], other: &[Value]) -> Option<Ordering> {
    let part = |(one, other): (&Value, &Value)| match (one, other) {
        (Value::Integer(one), Value::Integer(other)) => Some(one.cmp(other)),
        (Value::Unsigned(one), Value::Unsigned(other)) => Some(one.cmp(other)),
        _ => (one == other).then_some(Ordering::Equal),
    };
    let mut parts = one.iter().zip(other).map(part);
    parts.find(|order| *order != Some(Ordering::Equal)).unwrap_or(Some(Ordering::Equal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_compared_as_far_as_all_databases_do_it_alike() {
        let text = |text: &str| Value::Text(text.to_owned());
        let numbers =
            |one, other| order(&[Value::Integer(1), Value::Integer(one)], &[Value::Integer(1), Value::Integer(other)]);
        assert_eq!(numbers(-7, 3), Some(Ordering::Less));
        assert_eq!(numbers(3, 3), Some(Ordering::Equal));
        assert_eq!(numbers(7, 3), Some(Ordering::Greater));
        assert_eq!(order(&[Value::Unsigned(u64::MAX)], &[Value::Unsigned(1)]), Some(Ordering::Greater));
        assert_eq!(order(&[text("a"), Value::Integer(1)], &[text("a"), Value::Integer(2)]), Some(Ordering::Less));
        assert_eq!(order(&[text("a"), Value::Integer(1)], &[text("b"), Value::Integer(2)]), None);
        assert_eq!(order(&[Value::Integer(1)], &[Value::Real(1.5)]), None);
    }
}
