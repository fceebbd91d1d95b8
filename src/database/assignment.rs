//! What a statement sets: rows are announced by the key under which they were read, so it has to stay as it is.

use anyhow::{Result, bail};

use super::clause::{Piece, is_one_of, names, pieces, texts};
use super::lexer::{folded, name};
use super::sql::Table;
use super::statement::{Dialect, Statement};
use super::target::{Target, inserted, updated};

/// What ends a list of assignments.
const ENDS: &[&str] = &["where", "from", "returning", "order", "limit"];

/// The rows that are announced.
struct Announced<'a> {
    dialect: Dialect,
    key: &'a [String],
    /// Theirs; which tables a query reads nobody knows.
    table: Option<Table>,
}

/// The assignments of an UPDATE, or of what an INSERT does to rows that it meets.
struct List<'a> {
    /// Those whose columns they may set; empty where that cannot be told.
    tables: Vec<Target>,
    is_of_insert: bool,
    /// The columns of its ON CONFLICT: in these a row that is met is like the one that was to be inserted.
    alike: Vec<String>,
    assignments: Vec<Assignment<'a>>,
}

struct Assignment<'a> {
    /// The tokens of each column that it sets.
    targets: Vec<Vec<&'a str>>,
    /// Those of the value, where it sets one column.
    value: Vec<&'a str>,
}

impl Statement {
    /// Fails where it sets a column of the key by which the rows of `table`, or of a query, are announced. A key that is set to
    /// itself, or to that by which a row was met, is none that changes, nor is a column of another table, as far as the text tells
    /// that it is another.
    pub fn check_assignments(&self, key: &[String], table: Option<&str>) -> Result<()> {
        let dialect = self.dialect;
        let announced = Announced { dialect, key, table: table.map(Table::parse).transpose()? };
        let text = self.text();
        let pieces = pieces(&text, dialect)?;
        let lists = (0..pieces.len()).filter_map(|at| List::behind(&pieces, at, dialect));
        for list in lists {
            if let Some(column) = list.of_key(&announced) {
                bail!(
                    "it sets {column}, which is of the key that the rows are announced by: nobody would be told of the new one; \
                     leave it out, or name a --key that stays as it is"
                );
            }
        }
        Ok(())
    }
}

impl<'a> List<'a> {
    /// The one that begins behind the word at `at`, if one does.
    fn behind(pieces: &[Piece<'a>], at: usize, dialect: Dialect) -> Option<List<'a>> {
        let before = level(pieces, at);
        let is = |word: &str| word.eq_ignore_ascii_case(pieces[at].text);
        let (tables, is_of_insert) = if is("set") {
            let update = before.iter().rposition(|token| is_one_of(token, &["update"]))?;
            match &before[update + 1..] {
                // ON CONFLICT DO UPDATE SET, WHEN MATCHED THEN UPDATE SET
                [] => inserted(&before, dialect),
                tables => (updated(tables, dialect), false),
            }
        } else if is("update") && is_on_duplicate_key(&before) {
            inserted(&before, dialect)
        } else {
            return None;
        };
        let depth = pieces[at].depth;
        let list = up_to_its_end(&pieces[at + 1..], depth);
        let parts = list.split(|piece| piece.depth == depth && piece.text == ",");
        let assignments = parts.filter_map(|part| Assignment::of(part, depth)).collect();
        let alike = compared(&pieces[..at], depth, dialect);
        Some(List { tables, is_of_insert, alike, assignments })
    }

    /// The column of the key that one of them changes.
    fn of_key<'k>(&self, announced: &Announced<'k>) -> Option<&'k str> {
        let targets = self.assignments.iter().flat_map(Assignment::parts);
        for (target, value) in targets {
            let Some((qualifier, column)) = column(target, announced.dialect) else { continue };
            let Some(of_key) = announced.key.iter().find(|of_key| folded(of_key, announced.dialect) == column) else {
                continue;
            };
            let is_kept = self.is_met(&column, value, announced.dialect)
                || self.is_same(qualifier.as_deref(), &column, names(value, announced.dialect));
            if self.may_mean(qualifier.as_deref(), announced) && !is_kept {
                return Some(of_key.as_str());
            }
        }
        None
    }

    /// Whether a column that is qualified like this may be one of the rows that are announced.
    fn may_mean(&self, qualifier: Option<&str>, announced: &Announced) -> bool {
        let Some(table) = &announced.table else {
            // An INSERT is mostly for a table that is not read.
            return !self.is_of_insert;
        };
        let is_meant = |named: &&Target| qualifier.is_none_or(|qualifier| named.qualifier() == Some(qualifier));
        let meant: Vec<_> = self.tables.iter().filter(is_meant).collect();
        meant.is_empty() || meant.iter().any(|named| named.is(table, announced.dialect))
    }

    /// Whether `value` is that of the same column in a row that was to be inserted, and that has met one that equals it there. By
    /// which unique index rows meet in MySQL and MariaDB, the text does not tell.
    fn is_met(&self, column: &str, value: &[&str], dialect: Dialect) -> bool {
        let [word, ".", inserted] = value else { return false };
        self.is_of_insert
            && dialect != Dialect::MySql
            && is_one_of(word, &["excluded"])
            && self.alike.iter().any(|alike| alike == column)
            && name(inserted, dialect).as_deref() == Some(column)
    }

    /// Whether `value` is the very column that it is set to.
    fn is_same(&self, qualifier: Option<&str>, column: &str, value: Option<Vec<String>>) -> bool {
        let Some([before @ .., last]) = value.as_deref() else { return false };
        let is_qualified_alike = match (before.last().map(String::as_str), qualifier) {
            (None, _) => true,
            (Some(one), Some(other)) => one == other,
            (Some(one), None) => matches!(&self.tables[..], [table] if table.qualifier() == Some(one)),
        };
        last == column && is_qualified_alike
    }
}

impl<'a> Assignment<'a> {
    /// Each column with the value.
    fn parts(&self) -> impl Iterator<Item = (&[&'a str], &[&'a str])> {
        self.targets.iter().map(move |target| (&target[..], &self.value[..]))
    }

    fn of(part: &[Piece<'a>], depth: usize) -> Option<Assignment<'a>> {
        let equals = part.iter().position(|piece| piece.depth == depth && matches!(piece.text, "=" | ":="))?;
        let (target, value) = (&part[..equals], &part[equals + 1..]);
        if target.first()?.text != "(" {
            return Some(Assignment { targets: vec![texts(target)], value: texts(value) });
        }
        let within: Vec<_> = target.iter().filter(|piece| piece.depth > depth).copied().collect();
        let targets = within.split(|piece| piece.depth == depth + 1 && piece.text == ",").map(texts).collect();
        Some(Assignment { targets, value: Vec::new() })
    }
}

/// What stands before `at` in the same brackets, without what stands in further ones.
fn level<'a>(pieces: &[Piece<'a>], at: usize) -> Vec<&'a str> {
    let depth = pieces[at].depth;
    let within = pieces[..at].iter().rev().take_while(|piece| piece.depth >= depth);
    let mut level: Vec<_> = within.filter(|piece| piece.depth == depth).map(|piece| piece.text).collect();
    level.reverse();
    level
}

fn up_to_its_end<'a, 'b>(pieces: &'b [Piece<'a>], depth: usize) -> &'b [Piece<'a>] {
    let text = |at: usize| pieces.get(at).map_or("", |piece| piece.text);
    let is_end = |at: &usize| {
        let before = at.checked_sub(1).map_or("", text);
        // A column may be called so, and IS DISTINCT FROM ends nothing.
        let is_other = before == "." || is_one_of(before, &["distinct"]) || matches!(text(at + 1), "=" | ":=");
        let piece = pieces[*at];
        piece.depth < depth || (piece.depth == depth && is_one_of(piece.text, ENDS) && !is_other)
    };
    &pieces[..(0..pieces.len()).find(is_end).unwrap_or(pieces.len())]
}

/// The columns of the last ON CONFLICT in these brackets, as far as they are no expressions.
fn compared(before: &[Piece], depth: usize, dialect: Dialect) -> Vec<String> {
    let is_it = |piece: &Piece| piece.depth == depth && is_one_of(piece.text, &["conflict"]);
    let Some(conflict) = before.iter().rposition(is_it) else { return Vec::new() };
    let within: Vec<_> =
        before[conflict + 1..].iter().skip(1).take_while(|piece| piece.depth > depth).copied().collect();
    let columns = within.split(|piece| piece.depth == depth + 1 && piece.text == ",");
    columns.filter_map(|column| names(&texts(column), dialect)).flatten().collect()
}

fn is_on_duplicate_key(before: &[&str]) -> bool {
    matches!(before, [.., word, key] if is_one_of(word, &["duplicate"]) && is_one_of(key, &["key"]))
}

/// The column that an assignment sets, and by what it is qualified.
fn column(target: &[&str], dialect: Dialect) -> Option<(Option<String>, String)> {
    if dialect == Dialect::MySql {
        let mut names = names(target, dialect)?;
        let column = names.pop()?;
        return Some((names.pop(), column));
    }
    // What Postgres takes behind it is a field or an element of it.
    Some((None, name(target.first()?, dialect)?))
}

#[cfg(test)]
mod tests {
    use super::Dialect::{MySql, Postgres, Sqlite};
    use super::*;

    const ALL: &[Dialect] = &[Postgres, MySql, Sqlite];

    /// The column that is refused to a job of these rows, whose key is `id` and `Part`.
    fn refused(sql: &str, table: Option<&str>, dialect: Dialect) -> Option<String> {
        let key = ["id", "Part"].map(str::to_owned);
        let checked = Statement::parse(sql, dialect).unwrap().check_assignments(&key, table);
        let text = checked.err()?.to_string();
        let text = text.strip_suffix(
            ", which is of the key that the rows are announced by: nobody would be told of the new one; leave it out, or \
             name a --key that stays as it is",
        );
        Some(text.unwrap().strip_prefix("it sets ").unwrap().to_owned())
    }

    #[test]
    fn a_column_of_the_key_must_not_be_set() {
        let cases: [(&[Dialect], &str, &str); 28] = [
            (ALL, "UPDATE t SET id = id + 1 WHERE id IN (:keys)", "id"),
            (ALL, "update t set a = 1, ID = 2 where id in (:keys)", "id"),
            (ALL, "UPDATE t /* x */ SET a = f(b, c), id=(SELECT 1) WHERE id IN (:keys)", "id"),
            (ALL, "UPDATE s.t AS x SET id = DEFAULT WHERE id IN (:keys)", "id"),
            (ALL, "UPDATE t SET a = CASE WHEN b THEN 1 ELSE 2 END, id = 3 WHERE id IN (:keys)", "id"),
            (&[Postgres, Sqlite], "UPDATE t SET \"id\" = 1 WHERE id IN (:keys)", "id"),
            (&[Postgres, Sqlite], "UPDATE t SET (a, id) = (1, 2) WHERE id IN (:keys)", "id"),
            (&[Postgres, Sqlite], "UPDATE t SET a = b IS DISTINCT FROM c, id = 1 WHERE id IN (:keys)", "id"),
            (&[Postgres, Sqlite], "UPDATE t SET id = o.id FROM o WHERE t.id IN (:keys)", "id"),
            (&[Postgres], "UPDATE ONLY t SET \"Part\" = 1 WHERE id IN (:keys)", "Part"),
            (&[Postgres], "UPDATE t SET id[1] = 1 WHERE id IN (:keys)", "id"),
            (&[Postgres], "WITH a AS (UPDATE t SET id = 1 WHERE id IN (:keys) RETURNING 1) SELECT 1", "id"),
            (&[Postgres], "WITH a AS (SELECT 1 FOR UPDATE) UPDATE t SET id = 1 WHERE id IN (:keys)", "id"),
            (&[Postgres], "MERGE INTO t USING (:keys) AS k ON a = b WHEN MATCHED THEN UPDATE SET id = 1", "id"),
            (&[Sqlite], "UPDATE OR REPLACE t SET [part] = 1 WHERE id IN (:keys)", "Part"),
            (&[Sqlite], "UPDATE t SET 'id' = 1 WHERE id IN (:keys)", "id"),
            (&[MySql], "UPDATE t AS x SET x.id = x.id + 1 WHERE x.id IN (:keys)", "id"),
            (&[MySql], "UPDATE LOW_PRIORITY IGNORE t x SET x . `Id` := 1 WHERE id IN (:keys)", "id"),
            (&[MySql], "UPDATE o, t SET o.a = 1, t.part = 2 WHERE t.id IN (:keys)", "Part"),
            (&[MySql], "UPDATE o JOIN s.t AS x ON o.id = x.id SET x.id = o.id WHERE x.id IN (:keys)", "id"),
            (&[MySql], "UPDATE t LEFT JOIN (SELECT 1 AS n) AS k ON n SET id = n WHERE id IN (:keys)", "id"),
            (&[MySql], "INSERT INTO t SELECT * FROM t WHERE id IN (:keys) ON DUPLICATE KEY UPDATE id = 5", "id"),
            (
                &[Postgres, Sqlite],
                "INSERT INTO t SELECT * FROM t WHERE id IN (:keys) ON CONFLICT (a) DO UPDATE SET id = 5",
                "id",
            ),
            // The row that is met has another key than the one that was to be inserted.
            (
                &[Postgres, Sqlite],
                "INSERT INTO t SELECT * FROM o WHERE id IN (:keys) ON CONFLICT (a, lower(id)) DO UPDATE SET id = excluded.id",
                "id",
            ),
            (
                &[Postgres, Sqlite],
                "INSERT INTO t SELECT * FROM o WHERE id IN (:keys) ON CONFLICT (id) DO UPDATE SET id = excluded.a",
                "id",
            ),
            (
                &[Postgres, Sqlite],
                "INSERT INTO t SELECT * FROM o WHERE id IN (:keys) ON CONFLICT (id) DO UPDATE SET id = excluded.id + 1",
                "id",
            ),
            (&[Postgres], "UPDATE t SET id = excluded.id FROM o AS excluded WHERE t.id IN (:keys)", "id"),
            (
                &[MySql],
                "INSERT INTO t SELECT * FROM o WHERE id IN (:keys) ON DUPLICATE KEY UPDATE id = VALUES(id)",
                "id",
            ),
        ];
        for (dialects, sql, column) in cases {
            for dialect in dialects {
                assert_eq!(refused(sql, Some("t"), *dialect).as_deref(), Some(column), "{dialect:?}: {sql}");
            }
        }
        // By its text it may be that of the rows.
        for sql in ["UPDATE o SET id = 1 WHERE id IN (:keys)", "UPDATE s.o AS x SET id = 1 WHERE id IN (:keys)"] {
            assert_eq!(refused(sql, None, Postgres).as_deref(), Some("id"), "{sql}");
        }
        for table in ["s.t", "\"t\""] {
            assert!(refused("UPDATE t SET id = 1 WHERE id IN (:keys)", Some(table), MySql).is_some(), "{table}");
        }
    }

    #[test]
    fn other_columns_may_be_set_and_the_key_be_used_for_it() {
        let cases: [(&[Dialect], &str); 23] = [
            (ALL, "UPDATE t SET other = id, parts = 1, keyed = 2, a = id = 5 WHERE id IN (:keys)"),
            (ALL, "UPDATE t SET id = id, a = 1 WHERE id IN (:keys)"),
            (ALL, "UPDATE t SET id = t.id WHERE id IN (:keys)"),
            (ALL, "UPDATE t AS x SET id = x.id WHERE x.id IN (:keys)"),
            (ALL, "UPDATE t SET a = (SELECT max(b) FROM o WHERE o.x = 1, id = 2) WHERE id = 3 AND id IN (:keys)"),
            (ALL, "UPDATE t SET a = ', id = 1' /* , id = 2 */ WHERE id IN (:keys)"),
            (ALL, "UPDATE o SET id = 1 WHERE id IN (:keys)"),
            (ALL, "DELETE FROM t WHERE id = 1 AND id IN (:keys)"),
            (ALL, "INSERT INTO o SELECT id, a FROM t WHERE id IN (:keys)"),
            (&[Postgres, Sqlite], "UPDATE t SET a = 1 WHERE id IN (:keys) RETURNING a, id = 1"),
            (&[Postgres, Sqlite], "UPDATE t SET a = 1 FROM o, id WHERE t.id IN (:keys)"),
            (&[Postgres], "UPDATE t SET \"ID\" = 1, part = 2, a.id = 3, b[id] = 4 WHERE id IN (:keys)"),
            (&[Postgres], "UPDATE \"T\" SET id = 1 WHERE id IN (:keys)"),
            (&[Postgres], "UPDATE s.t SET id = 1 WHERE id IN (:keys)"),
            (&[Sqlite], "UPDATE t SET (a, b) = (id, 1) WHERE id IN (:keys)"),
            (&[MySql], "UPDATE t JOIN o ON t.id = o.id SET o.id = t.id, a = 1 WHERE t.id IN (:keys)"),
            (&[MySql], "UPDATE t x, o AS y SET y.id = 5, x.id = x.id WHERE x.id IN (:keys)"),
            (&[MySql], "UPDATE t SET a = CAST(b AS CHAR CHARACTER SET utf8mb4) ORDER BY a, id = 1 LIMIT :keys"),
            (&[MySql], "INSERT INTO t SET a = (:keys), id = 5"),
            (&[MySql], "INSERT INTO o SELECT id FROM t WHERE id IN (:keys) ON DUPLICATE KEY UPDATE id = VALUES(id)"),
            (
                &[Postgres, Sqlite],
                "INSERT INTO o AS x SELECT id FROM t WHERE id IN (:keys) ON CONFLICT (id) DO UPDATE SET id = excluded.id",
            ),
            (
                &[Postgres, Sqlite],
                "INSERT INTO t SELECT * FROM o WHERE id IN (:keys) ON CONFLICT (ID) WHERE a DO UPDATE SET id = EXCLUDED.id, a = 1",
            ),
            (
                &[Postgres, Sqlite],
                "INSERT INTO t SELECT * FROM o WHERE id IN (:keys)
                 ON CONFLICT (id, \"Part\") DO UPDATE SET \"Part\" = excluded.\"Part\", id = excluded.id",
            ),
        ];
        for (dialects, sql) in cases {
            for dialect in dialects {
                assert_eq!(refused(sql, Some("public.t"), *dialect), None, "{dialect:?}: {sql}");
            }
        }
        let copy = "INSERT INTO o SELECT id FROM t WHERE id IN (:keys) ON CONFLICT (id) DO UPDATE SET id = excluded.id";
        assert_eq!(refused(copy, None, Postgres), None);
    }
}
