//! The clauses of the operator's SQL, told from each other by words and brackets: no more is known here of its grammar.

use anyhow::Result;

use super::Rows;
use super::lexer::{name, tokens};
use super::statement::Dialect;

/// A token, and how many brackets are open around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    pub text: &'a str,
    pub depth: usize,
}

/// SQL piece by piece, without blanks and comments; a bracket stands outside of what it encloses.
pub(super) fn pieces(sql: &str, dialect: Dialect) -> Result<Vec<Piece<'_>>> {
    let (mut pieces, mut depth) = (Vec::new(), 0_usize);
    for (_, text) in tokens(sql, dialect)? {
        if matches!(text, ")" | "]") {
            depth = depth.saturating_sub(1);
        }
        pieces.push(Piece { text, depth });
        if matches!(text, "(" | "[") {
            depth += 1;
        }
    }
    Ok(pieces)
}

pub(super) fn texts<'a>(pieces: &[Piece<'a>]) -> Vec<&'a str> {
    pieces.iter().map(|piece| piece.text).collect()
}

/// Whether a token is one of these words; what is quoted is a name.
pub(super) fn is_one_of(token: &str, words: &[&str]) -> bool {
    words.iter().any(|word| word.eq_ignore_ascii_case(token))
}

/// The parts of `a`, `t.a` or `` `t`.`a` ``, as they can be compared; `None` of anything else.
pub(super) fn names(tokens: &[&str], dialect: Dialect) -> Option<Vec<String>> {
    let are_apart = tokens.len() % 2 == 1 && tokens.iter().skip(1).step_by(2).all(|token| *token == ".");
    if !are_apart {
        return None;
    }
    tokens.iter().step_by(2).map(|token| name(token, dialect)).collect()
}

/// The verbs of statements that change rows, and of those that give some.
const CHANGES: &[&str] = &["delete", "insert", "merge", "replace", "update"];
const QUERIES: &[&str] = &["select", "table", "values"];

/// Whether the outermost part of a statement changes rows, so that the number of rows that it touches is theirs: that of a SELECT
/// around an UPDATE, or of a CALL, says nothing.
pub(super) fn counts_changes(sql: &str, dialect: Dialect) -> Result<bool> {
    let pieces = pieces(sql, dialect)?;
    let outer: Vec<_> = pieces.iter().filter(|piece| piece.depth == 0).map(|piece| piece.text).collect();
    let mut verb = match outer.as_slice() {
        // MariaDB: SET STATEMENT max_statement_time = 5 FOR UPDATE ..
        [set, statement, others @ ..] if is_one_of(set, &["set"]) && is_one_of(statement, &["statement"]) => {
            others.iter().skip_while(|word| !is_one_of(word, &["for"])).nth(1).copied()
        }
        _ => outer.first().copied(),
    };
    if verb.is_some_and(|word| is_one_of(word, &["with"])) {
        // Behind these stands the name of a part.
        let pairs = outer.windows(2).filter(|pair| !is_one_of(pair[0], &["with", "recursive", ","]));
        verb = pairs.map(|pair| pair[1]).find(|word| is_one_of(word, CHANGES) || is_one_of(word, QUERIES));
    }
    Ok(verb.is_some_and(|verb| is_one_of(verb, CHANGES)))
}

/// Whether a statement gives rows that it changes.
pub(super) fn returns_rows(sql: &str, dialect: Dialect) -> Result<bool> {
    let pieces = pieces(sql, dialect)?;
    Ok(pieces.iter().any(|piece| piece.depth == 0 && is_one_of(piece.text, &["returning"])))
}

impl Rows {
    /// How many rows a query gives at most by its own LIMIT, OFFSET or FETCH, whatever its sub-selects say; `usize::MAX` where
    /// that is no plain number.
    pub fn limit(&self, dialect: Dialect) -> Result<Option<usize>> {
        let Rows::Query(query) = self else { return Ok(None) };
        let pieces = pieces(query, dialect)?;
        let outer: Vec<_> = pieces.iter().filter(|piece| piece.depth == 0).map(|piece| piece.text).collect();
        Ok((0..outer.len()).filter_map(|at| limit(&outer[..at], &outer[at..], dialect)).min())
    }
}

/// What the first word of `from` says of it.
fn limit(before: &[&str], from: &[&str], dialect: Dialect) -> Option<usize> {
    let (word, rest) = from.split_first()?;
    // Behind these it is a name.
    if before.last().is_some_and(|last| is_one_of(last, &[".", "as"])) {
        return None;
    }
    let (is_limit, is_offset) = (is_one_of(word, &["limit"]), is_one_of(word, &["offset"]));
    let is_fetch = is_one_of(word, &["fetch"]) && rest.first().is_some_and(|next| is_one_of(next, &["first", "next"]));
    match rest {
        [all, ..] if is_limit && is_one_of(all, &["all", "null"]) => None,
        [_, ",", rows @ ..] if is_limit => Some(number(rows)),
        [_, ..] if is_limit => Some(number(rest)),
        [_, row, ..] if is_fetch && is_one_of(row, &["row", "rows"]) => Some(1),
        [_, rows @ ..] if is_fetch => Some(number(rows)),
        // It leaves out no row: Postgres is told by it how to plan.
        ["0", ..] if is_offset => None,
        // All but Postgres take it for the name of a column, too.
        [first, ..] if is_offset && (dialect == Dialect::Postgres || begins_number(first)) => Some(usize::MAX),
        _ => None,
    }
}

fn begins_number(token: &str) -> bool {
    token.starts_with(|c: char| c.is_ascii_digit() || c == '(')
}

/// The number that is all that stands before the next word.
fn number(from: &[&str]) -> usize {
    let is_alone = from.get(1).is_none_or(|next| *next == ";" || next.starts_with(|c: char| c.is_ascii_alphabetic()));
    from.first().filter(|_| is_alone).and_then(|number| number.parse().ok()).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::Dialect::{MySql, Postgres, Sqlite};
    use super::*;

    #[test]
    fn a_limit_of_a_query_is_found_and_that_of_a_sub_select_is_not() {
        const ALL: &[Dialect] = &[Postgres, MySql, Sqlite];
        const SOME: Option<usize> = Some(usize::MAX);
        let cases: [(&[Dialect], &str, Option<usize>); 28] = [
            (ALL, "SELECT id FROM t", None),
            (ALL, "SELECT id FROM t ORDER BY id LIMIT 5000", Some(5000)),
            (ALL, "SELECT id FROM t /* a */ limit 5;\n-- LIMIT 1", Some(5)),
            (ALL, "SELECT id FROM t LIMIT 5 OFFSET 10", Some(5)),
            (&[MySql, Sqlite], "SELECT id FROM t LIMIT 10, 20", Some(20)),
            (&[MySql], "SELECT id FROM t LIMIT ROWS EXAMINED 9", SOME),
            (&[Postgres], "SELECT id FROM t OFFSET 10 LIMIT 5", Some(5)),
            (ALL, "SELECT id FROM t LIMIT (2 + 3)", SOME),
            (ALL, "SELECT id FROM t LIMIT 2 + 3", SOME),
            (&[Postgres], "SELECT id FROM t LIMIT ALL", None),
            (&[Postgres], "SELECT id FROM t OFFSET 10", SOME),
            (&[Postgres], "SELECT id FROM t OFFSET floor(random() * 10)", SOME),
            (&[Postgres], "SELECT id FROM t OFFSET 0", None),
            (&[Postgres, MySql], "SELECT id FROM t FETCH FIRST 7 ROWS ONLY", Some(7)),
            (&[Postgres, MySql], "SELECT id FROM t FETCH NEXT ROW ONLY", Some(1)),
            (&[MySql], "SELECT id FROM t OFFSET 2 ROWS FETCH FIRST 7 ROWS ONLY", Some(7)),
            (ALL, "WITH a AS (SELECT 1 LIMIT 1) SELECT id FROM t, a", None),
            (ALL, "SELECT id, (SELECT b FROM u WHERE u.id = t.id LIMIT 1) AS b FROM t", None),
            (ALL, "SELECT id FROM (SELECT id FROM t LIMIT 5) AS t", None),
            (ALL, "SELECT id FROM a UNION SELECT id FROM b LIMIT 5", Some(5)),
            (ALL, "SELECT id, ' LIMIT 5' AS a FROM t -- LIMIT 5", None),
            (ALL, "SELECT id, t.limit, t.offset FROM t", None),
            (&[Postgres], "SELECT id, most AS limit, least AS \"offset\" FROM t", None),
            (&[MySql], "SELECT id, `limit` FROM t WHERE `offset` > 5", None),
            (&[MySql, Sqlite], "SELECT id, offset FROM t WHERE offset > 5 ORDER BY offset", None),
            (&[Sqlite], "SELECT [limit], fetch FROM t", None),
            (&[Postgres], "SELECT \"limit\" FROM t", None),
            (&[Postgres], "SELECT a[1:2] FROM t LIMIT 3", Some(3)),
        ];
        for (dialects, sql, expected) in cases {
            for dialect in dialects {
                let limit = Rows::Query(sql.to_owned()).limit(*dialect).unwrap();
                assert_eq!(limit, expected, "{dialect:?}: {sql}");
            }
        }
        let table = Rows::Table { table: "t".to_owned(), filter: Some("id IN (SELECT 1 LIMIT 1)".to_owned()) };
        assert_eq!(table.limit(Postgres).unwrap(), None);
        let cut = Rows::Query("SELECT 'a".to_owned()).limit(Postgres).unwrap_err().to_string();
        assert_eq!(cut, "what is quoted from ''a' on has no end");
    }

    #[test]
    fn a_statement_counts_what_it_changes_where_that_is_what_it_does_outermost() {
        for (sql, expected) in [
            ("UPDATE t SET a = 1 WHERE id IN (:keys)", true),
            ("/* a */ delete FROM t WHERE id IN (:keys)", true),
            ("INSERT INTO o SELECT id FROM t WHERE id IN (:keys)", true),
            ("REPLACE INTO o SELECT id FROM t WHERE id IN (:keys)", true),
            ("MERGE INTO t USING (:keys) AS k ON a = b WHEN MATCHED THEN DELETE", true),
            ("WITH a AS (SELECT 1) UPDATE t SET b = 1 FROM a WHERE id IN (:keys)", true),
            ("WITH RECURSIVE a (n) AS (SELECT 1), select AS (SELECT 2) DELETE FROM t WHERE id IN (:keys)", true),
            ("WITH a AS (UPDATE t SET b = 1 WHERE id IN (:keys) RETURNING id) SELECT count(*) FROM a", false),
            ("WITH update AS (UPDATE t SET b = 1 WHERE id IN (:keys) RETURNING id) TABLE update", false),
            ("WITH a AS (SELECT 1) SELECT 1 FROM t WHERE id IN (:keys) FOR UPDATE", false),
            ("SELECT f(id) FROM t WHERE id IN (:keys) FOR UPDATE", false),
            ("(SELECT f(:keys))", false),
            ("CALL update_all(:keys)", false),
            ("DO f(:keys)", false),
            ("SET STATEMENT max_statement_time = 5 FOR UPDATE t SET a = 1 WHERE id IN (:keys)", true),
            ("SET STATEMENT max_statement_time = 5 FOR SELECT f(id) FROM t WHERE id IN (:keys)", false),
            ("VALUES (:keys)", false),
        ] {
            for dialect in [Postgres, MySql, Sqlite] {
                assert_eq!(counts_changes(sql, dialect).unwrap(), expected, "{dialect:?}: {sql}");
            }
        }
    }

    #[test]
    fn a_name_is_read_as_its_database_takes_it() {
        let read = |sql: &str, dialect| {
            let names = names(&texts(&pieces(sql, dialect).unwrap()), dialect);
            names.map(|names| names.join("|"))
        };
        for (dialect, sql, expected) in [
            (Postgres, "Id", Some("id")),
            (Postgres, "\"Id\"", Some("Id")),
            (Postgres, "public.T.\"a\"\"b\"", Some("public|t|a\"b")),
            (Postgres, "'id'", None),
            (Postgres, "a[1]", None),
            (MySql, "`T` . `a``B`", Some("t|a`b")),
            (MySql, "'id'", None),
            (Sqlite, "[Id]", Some("id")),
            (Sqlite, "'id'", Some("id")),
            (Sqlite, "Straße.ü", Some("straße|ü")),
            (MySql, "a.b +", None),
            (MySql, "a b", None),
            (MySql, "f(a)", None),
            (MySql, "", None),
        ] {
            assert_eq!(read(sql, dialect).as_deref(), expected, "{dialect:?}: {sql}");
        }
    }
}
