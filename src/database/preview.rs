//! What reading a source will take, before it is read: how many rows there are, which is the last, and whether an index helps.

use anyhow::Context;
use serde_json::Value as Json;

use super::chunk::{Filling, Limit};
use super::position::Position;
use super::scan::Scan;
use super::trouble::Trouble;
use super::{Connection, Database, ask, cannot_read};

/// A chunk for which the database goes through this many times its rows costs more than it should.
const TOO_MANY: f64 = 10.0;

/// What a database does for one chunk.
#[derive(Debug, Default, PartialEq)]
struct Effort {
    /// The steps that sort or go through all, in its own words.
    steps: Vec<String>,
    /// About how many rows that is; `None` where it does not say so.
    rows: Option<f64>,
}

impl Database {
    /// Exactly how many rows a scan has left to read. The database may have to go through all of them.
    pub async fn count(&mut self, scan: &Scan) -> Result<u64, Trouble> {
        let text = self.text(&scan.count()).await.map_err(|trouble| cannot_read(trouble, &scan.relation))?;
        let count = text.as_deref().unwrap_or("0").parse().with_context(|| format!("{text:?} is not a number of rows"));
        count.map_err(Trouble::Refused)
    }

    /// Where the scan stands after its next row, and after its last one; `None` where it has none.
    pub async fn edges(&mut self, scan: &Scan) -> Result<Option<(Position, Position)>, Trouble> {
        // Without a first one the last one would be looked for among all rows, those that were read, too.
        let Some(first) = self.edge(scan, false).await? else { return Ok(None) };
        Ok(self.edge(scan, true).await?.map(|last| (first, last)))
    }

    /// How many rows the next chunk would have, and where the scan would stand behind it.
    pub async fn peek(&mut self, scan: &Scan, limit: Limit) -> Result<Option<(usize, Position)>, Trouble> {
        let chunk = self.next_chunk(&mut scan.clone(), limit).await?;
        Ok(chunk.and_then(|chunk| Some((chunk.changes.len(), chunk.end()?))))
    }

    async fn edge(&mut self, scan: &Scan, is_last: bool) -> Result<Option<Position>, Trouble> {
        let one = Limit { rows: 1, bytes: usize::MAX };
        let sql = if is_last { scan.last() } else { scan.next(one) };
        let mut filling = Filling::new(one, &scan.members);
        let read = ask!(self, session => session.read(&sql, scan, &mut filling)).and_then(|read| read);
        read.map_err(|trouble| cannot_read(trouble, &scan.relation))?;
        Ok(filling.finish(&scan.key).0.end())
    }

    /// What the database would do for the next chunk of so many rows, in its own words, where that is far more than to read
    /// them: no index has the order of the key. It reads no row for that; SQLite alone, where it has to sort, counts them.
    pub async fn costly(&mut self, scan: &Scan, rows: usize) -> Result<Option<String>, Trouble> {
        let sql = scan.next(Limit { rows, bytes: usize::MAX });
        let Database { connection, watch, is_lost, .. } = &mut *self;
        let effort = async {
            match connection {
                Connection::Postgres(postgres) => postgres.explain(&sql).await.map(|plan| postgres_effort(&plan)),
                Connection::MySql(mysql) => mysql.explain(&sql).await.map(|plan| mysql_effort(&plan)),
                Connection::Sqlite(sqlite) => sqlite.explain(&sql).await.map(|plan| sqlite_effort(&plan)),
            }
        };
        let Effort { steps, rows: goes_through } = watch.over(effort, is_lost).await??;
        if steps.is_empty() {
            return Ok(None);
        }
        let many = rows as f64 * TOO_MANY;
        let goes_through = match goes_through {
            Some(rows) => rows,
            None => self.count(scan).await? as f64,
        };
        Ok((goes_through > many).then(|| format!("{} of about {goes_through:.0} rows", steps.join(", "))))
    }
}

/// Of `EXPLAIN (FORMAT JSON)`.
fn postgres_effort(plan: &str) -> Effort {
    let plan: Json = serde_json::from_str(plan).unwrap_or_default();
    let mut effort = Effort::default();
    walk(&plan, &mut |node| {
        let Some(kind) = node["Node Type"].as_str() else { return };
        if kind.contains("Sort") || kind == "Seq Scan" {
            let relation = node["Relation Name"].as_str().map_or(String::new(), |name| format!(" on {name}"));
            effort.steps.push(format!("{kind}{relation}"));
            let rows = node["Plan Rows"].as_f64().unwrap_or_default();
            effort.rows = Some(effort.rows.map_or(rows, |known| known.max(rows)));
        }
    });
    effort
}

/// Of `EXPLAIN FORMAT=JSON`, as MySQL and MariaDB have it.
fn mysql_effort(plan: &str) -> Effort {
    let plan: Json = serde_json::from_str(plan).unwrap_or_default();
    let mut effort = Effort::default();
    walk(&plan, &mut |node| {
        if node["using_filesort"] == true || node["filesort"].is_object() {
            effort.steps.push("filesort".to_owned());
        }
        if node["access_type"] == "ALL" {
            let table = node["table_name"].as_str().unwrap_or_default();
            effort.steps.push(format!("full scan on {table}"));
        }
        let rows = [&node["rows"], &node["rows_examined_per_scan"]].into_iter().find_map(Json::as_f64);
        effort.rows = effort.rows.into_iter().chain(rows).reduce(f64::max);
    });
    effort
}

/// Of `EXPLAIN QUERY PLAN`, a line for each step. A table whose rowid is the key is scanned, too, but in its order.
fn sqlite_effort(steps: &[String]) -> Effort {
    let sorts = |step: &String| step.contains("TEMP B-TREE");
    if !steps.iter().any(sorts) {
        return Effort::default();
    }
    let is_costly = |step: &&String| sorts(step) || (step.starts_with("SCAN") && !step.contains(" USING "));
    Effort { steps: steps.iter().filter(is_costly).cloned().collect(), rows: None }
}

fn walk(json: &Json, see: &mut impl FnMut(&Json)) {
    match json {
        Json::Array(items) => items.iter().for_each(|item| walk(item, see)),
        Json::Object(members) => {
            see(json);
            members.values().for_each(|member| walk(member, see));
        }
        _ => {}
    }
}
