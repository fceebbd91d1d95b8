//! The operator's SQL, cut where the keys of a chunk are to be bound.

use std::iter;

use anyhow::{Context, Result, bail, ensure};

use super::clause::{counts_changes, returns_rows};
use super::lexer::split;
use super::tuple::{Use, equal};

/// Which SQL the database of a URL speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    Postgres,
    /// MySQL and MariaDB.
    MySql,
    Sqlite,
}

impl Dialect {
    /// The dialect by the scheme of a database URL; an error does not repeat the URL, which may hold a password.
    pub fn of(url: &str) -> Result<Dialect> {
        match url.split_once(':').map(|(scheme, _)| scheme) {
            Some("postgres" | "postgresql") => Ok(Dialect::Postgres),
            Some("mysql" | "mariadb") => Ok(Dialect::MySql),
            Some("sqlite") => Ok(Dialect::Sqlite),
            _ => bail!("a database URL begins with postgres://, mysql://, mariadb:// or sqlite:"),
        }
    }
}

/// A statement to run for the keys of a chunk, split where it says `:keys`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    pub(super) dialect: Dialect,
    parts: Vec<String>,
    /// For MySQL and MariaDB: what each `:keys` stands in.
    uses: Vec<Use>,
    counts_changes: bool,
}

impl Statement {
    /// Fails where `:keys` is missing, where something else would have to be bound, and for a second statement.
    pub fn parse(sql: &str, dialect: Dialect) -> Result<Statement> {
        let parts = split(sql, dialect).context("cannot use the statement")?;
        ensure!(
            parts.len() > 1,
            "the statement has no :keys outside of strings and comments; write for example ... WHERE id IN (:keys)"
        );
        let uses = match dialect {
            Dialect::MySql => {
                parts.windows(2).map(|pair| Use::between(&pair[0], &pair[1])).collect::<Result<Vec<_>>>()?
            }
            Dialect::Postgres | Dialect::Sqlite => Vec::new(),
        };
        let whole = parts.join(":keys");
        ensure!(
            dialect != Dialect::MySql || !returns_rows(&whole, dialect).context("cannot use the statement")?,
            "of a statement with RETURNING MySQL and MariaDB do not tell how many rows it has changed; leave RETURNING out"
        );
        let counts_changes = counts_changes(&whole, dialect).context("cannot use the statement")?;
        Ok(Statement { dialect, parts, uses, counts_changes })
    }

    /// Whether the number of rows that it touches is that of those it changes.
    pub fn counts_changes(&self) -> bool {
        self.counts_changes
    }

    /// The statement as it was given, but for a `;` at its end.
    pub fn text(&self) -> String {
        self.with(":keys")
    }

    /// How often the keys are to be bound.
    pub(super) fn places(&self) -> usize {
        self.parts.len() - 1
    }

    /// The statement with `keys` written in each place.
    pub(super) fn with(&self, keys: &str) -> String {
        self.parts.join(keys)
    }

    /// The statement as it is run for rows with so many key columns, for a person: `keys` says which.
    pub fn shown(&self, columns: usize, keys: &str) -> String {
        self.with_columns(columns, keys, |names| format!("({} OR .. for {keys})", equal(names, iter::repeat(".."))))
    }

    /// The same, but with a condition of these columns in place of each `(a, b) IN (:keys)` that has so many.
    pub(super) fn with_columns(&self, columns: usize, keys: &str, condition: impl Fn(&[String]) -> String) -> String {
        let (mut text, mut from) = (String::new(), 0);
        for (at, part) in self.parts.iter().enumerate() {
            match self.uses.get(at) {
                Some(Use::Condition(tuple)) if columns > 1 && tuple.names.len() == columns => {
                    text.push_str(&part[from..tuple.begin]);
                    text.push_str(&condition(&tuple.names));
                    from = tuple.end;
                }
                _ => {
                    text.push_str(&part[from..]);
                    text.push_str(if at < self.places() { keys } else { "" });
                    from = 0;
                }
            }
        }
        text
    }

    /// Whether the database would look for the rows of so many key columns without an index.
    pub fn may_scan(&self, columns: usize) -> bool {
        let may = |of_keys: &Use| match of_keys {
            Use::Condition(tuple) => tuple.names.len() != columns,
            Use::Search => true,
            Use::List => false,
        };
        columns > 1 && self.uses.iter().any(may)
    }
}

/// A query that is asked as it is, for one number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question(pub(super) String);

impl Question {
    /// Fails where something would have to be bound, and for a second statement.
    pub fn parse(sql: &str, dialect: Dialect) -> Result<Question> {
        fragment(sql, dialect).map(Question)
    }
}

/// Checks SQL that is to stand inside of a statement of ours, and takes a `;` off its end.
pub(super) fn fragment(sql: &str, dialect: Dialect) -> Result<String> {
    let parts = split(sql, dialect)?;
    let [whole] = parts.as_slice() else { bail!("it cannot use :keys, which only a statement for --sql has") };
    ensure!(!whole.trim().is_empty(), "it is empty");
    Ok(whole.clone())
}

#[cfg(test)]
mod tests {
    use super::Dialect::{MySql, Postgres, Sqlite};
    use super::*;

    /// What is left of `sql` when each `:keys` that was found is written as `<>`.
    fn marked(sql: &str, dialect: Dialect) -> String {
        match Statement::parse(sql, dialect) {
            Ok(statement) => statement.with("<>"),
            Err(error) => format!("{error:#}"),
        }
    }

    #[test]
    fn keys_are_found_outside_of_strings_names_and_comments_only() {
        let cases: [(&[Dialect], &str, &str); 20] = [
            (&[Postgres, MySql, Sqlite], "DELETE FROM t WHERE id IN (:keys)", "DELETE FROM t WHERE id IN (<>)"),
            (&[Postgres, MySql, Sqlite], "a IN (:keys) OR b IN (:keys);\n -- end\n", "a IN (<>) OR b IN (<>)"),
            (
                &[Postgres, MySql, Sqlite],
                "a = ':keys' /* :keys */ -- :keys\n, (:keys)",
                "a = ':keys' /* :keys */ -- :keys\n, (<>)",
            ),
            (&[Postgres, MySql, Sqlite], "a = 'it''s :keys', (:keys)", "a = 'it''s :keys', (<>)"),
            (&[Postgres, MySql, Sqlite], "\"a:keys\" = 1, (:keys)", "\"a:keys\" = 1, (<>)"),
            (&[Postgres, MySql, Sqlite], "ä = 'ü' AND (:keys)", "ä = 'ü' AND (<>)"),
            (&[Postgres], "a = '1'::keys::text, (:keys)", "a = '1'::keys::text, (<>)"),
            (
                &[Postgres],
                "a = $$ :keys ' $$, b = $q$:keys$$ $q$, (:keys)",
                "a = $$ :keys ' $$, b = $q$:keys$$ $q$, (<>)",
            ),
            (&[Postgres], r"a = E'\' :keys', b = 'x\', (:keys)", r"a = E'\' :keys', b = 'x\', (<>)"),
            (&[Postgres], r"a = U&'\', note'' = 1, (:keys)", r"a = U&'\', note'' = 1, (<>)"),
            (
                &[Postgres],
                "a = b[1:keys], j ? 'x' /* /* */ :keys */, (:keys)",
                "a = b[1:keys], j ? 'x' /* /* */ :keys */, (<>)",
            ),
            (&[Postgres], "a$1 = 1, (:keys)", "a$1 = 1, (<>)"),
            (&[MySql], "a = 'x\\' :keys' # :keys\n, (:keys)", "a = 'x\\' :keys' # :keys\n, (<>)"),
            (
                &[MySql],
                r#"a = "x\" :keys", `q:keys` = @v, n = 5--1, (:keys)"#,
                r#"a = "x\" :keys", `q:keys` = @v, n = 5--1, (<>)"#,
            ),
            (&[MySql], "@n := @n + 1, (:keys)", "@n := @n + 1, (<>)"),
            (&[Sqlite], "[a:keys] = 1, `b:keys` = 2, (:keys)", "[a:keys] = 1, `b:keys` = 2, (<>)"),
            (&[Sqlite, Postgres], r"a = 'x\', (:keys)", r"a = 'x\', (<>)"),
            (&[MySql, Sqlite], "a = b--:keys\n, (:keys)", "a = b--<>\n, (<>)"),
            (&[Postgres], "a #- '{b}' @> c AND (:keys)", "a #- '{b}' @> c AND (<>)"),
            (
                &[Postgres, MySql, Sqlite],
                "(:keys);;",
                "cannot use the statement: it goes on after the ';'; one statement is all that is run",
            ),
        ];
        for (dialects, sql, expected) in cases {
            for dialect in dialects {
                // The one case in which SQLite and MySQL part: only MySQL wants a blank behind `--`.
                let expected =
                    if sql.starts_with("a = b--") && *dialect == Sqlite { "a = b--:keys\n, (<>)" } else { expected };
                assert_eq!(marked(sql, *dialect), expected, "{dialect:?}");
            }
        }
    }

    #[test]
    fn a_statement_that_cannot_be_bound_is_refused_and_told_why() {
        const MISSING: &str =
            "the statement has no :keys outside of strings and comments; write for example ... WHERE id IN (:keys)";
        let cases = [
            ("UPDATE t SET a = 1", Postgres, MISSING),
            ("UPDATE t SET a = ':keys' -- :keys", MySql, MISSING),
            ("", Sqlite, MISSING),
            (
                "DELETE FROM t WHERE id IN (:keys) RETURNING id",
                MySql,
                "of a statement with RETURNING MySQL and MariaDB do not tell how many rows it has changed; leave RETURNING out",
            ),
            (
                "id IN (:keyset)",
                Postgres,
                "cannot use the statement: it has the placeholder ':keyset'; nothing but :keys is bound",
            ),
            (
                "a = $1, (:keys)",
                Postgres,
                "cannot use the statement: it has the placeholder '$1'; nothing but :keys is bound",
            ),
            (
                "a = ?, (:keys)",
                MySql,
                "cannot use the statement: it has the placeholder '?'; nothing but :keys is bound",
            ),
            (
                "a = ?1, (:keys)",
                Sqlite,
                "cannot use the statement: it has the placeholder '?1'; nothing but :keys is bound",
            ),
            (
                "a = @x, (:keys)",
                Sqlite,
                "cannot use the statement: it has the placeholder '@x'; nothing but :keys is bound",
            ),
            (
                "(:keys); DROP TABLE t",
                Sqlite,
                "cannot use the statement: it goes on after the ';'; one statement is all that is run",
            ),
            (
                "(:keys) /*! OR 1 */",
                MySql,
                "cannot use the statement: a comment that the server runs as SQL ('/*!') cannot be checked; write it without",
            ),
            ("(:keys", MySql, "cannot use the statement: it has a '(' that nothing closes"),
            ("a = 1) OR (:keys)", Sqlite, "cannot use the statement: it has a ')' that closes nothing"),
            ("a = 'x, (:keys)", Postgres, "cannot use the statement: what is quoted from ''x, (:keys)' on has no end"),
            ("(:keys) /* a", Sqlite, "cannot use the statement: the comment that begins with '/* a' has no end"),
            (
                "$a$ (:keys) $b$",
                Postgres,
                "cannot use the statement: what is quoted from '$a$ (:keys) $b$' on has no end",
            ),
        ];
        for (sql, dialect, expected) in cases {
            assert_eq!(marked(sql, dialect), expected);
        }
    }

    #[test]
    fn a_list_of_rows_becomes_a_condition_of_its_columns_where_no_index_would_serve_it() {
        let written = |sql: &str| {
            let statement = Statement::parse(sql, MySql).unwrap();
            (statement.with_columns(2, "<>", |names| format!("<{}>", names.join("|"))), statement.may_scan(2))
        };
        for (sql, expected) in [
            ("UPDATE t SET n = 1 WHERE (a, b) IN (:keys) AND c = 2", "UPDATE t SET n = 1 WHERE <a|b> AND c = 2"),
            ("WHERE not ( `a` , /* x */ t.`b, c` )\nin( :keys )", "WHERE not <`a`|t.`b, c`>"),
            ("WHERE ((a, b) IN (:keys)) OR (c, ü) IN (:keys);", "WHERE (<a|b>) OR <c|ü>"),
        ] {
            assert_eq!(written(sql), (expected.to_owned(), false));
        }
        for sql in [
            "WHERE (a, b) NOT IN (:keys)",
            "WHERE (a, b, c) IN (:keys)",
            "WHERE f(a, b) IN (:keys)",
            "WHERE (a, 'b') IN (:keys)",
            "WHERE (a, f(b)) IN (:keys)",
            "WHERE (a, b) IN (:keys, (1, 2))",
            "WHERE a IN (:keys)",
        ] {
            assert_eq!(written(sql), (sql.replace(":keys", "<>"), true));
        }
        for sql in ["UPDATE t JOIN (VALUES :keys) AS k SET n = 1", "INSERT INTO t (a, b) VALUES :keys"] {
            assert_eq!(written(sql), (sql.replace(":keys", "<>"), false));
        }
        let shown = |dialect| Statement::parse("WHERE (a, b) IN (:keys)", dialect).unwrap().shown(2, "keys");
        assert_eq!(shown(MySql), "WHERE ((a = .. AND b = ..) OR .. for keys)");
        assert_eq!(shown(Postgres), "WHERE (a, b) IN (keys)");
        let one = Statement::parse("WHERE (a) IN (:keys)", MySql).unwrap();
        assert_eq!(
            (one.with_columns(1, "<>", |_| String::new()), one.may_scan(1)),
            ("WHERE (a) IN (<>)".to_owned(), false)
        );
        assert!(!Statement::parse("WHERE (a, b) NOT IN (:keys)", Postgres).unwrap().may_scan(2));
    }

    #[test]
    fn a_condition_is_whole_by_itself() {
        assert_eq!(fragment("a IN (1, 2) AND b <> ')' -- (", MySql).unwrap(), "a IN (1, 2) AND b <> ')' -- (");
        for (sql, expected) in [
            ("a = 1) OR (b = 2", "it has a ')' that closes nothing"),
            ("(a = 1", "it has a '(' that nothing closes"),
            ("(a = 1 /* ) */", "it has a '(' that nothing closes"),
        ] {
            assert_eq!(fragment(sql, Postgres).unwrap_err().to_string(), expected, "{sql}");
        }
    }
}
