//! The tables whose rows a statement changes, as it names them.

use super::clause::{is_one_of, names};
use super::lexer::{folded, name};
use super::sql::Table;
use super::statement::Dialect;

/// What may stand behind a table in place of another name for it.
const NO_ALIASES: &[&str] = &[
    "cross",
    "default",
    "for",
    "force",
    "ignore",
    "indexed",
    "inner",
    "join",
    "left",
    "natural",
    "not",
    "on",
    "overriding",
    "partition",
    "right",
    "select",
    "set",
    "straight_join",
    "table",
    "use",
    "using",
    "value",
    "values",
    "with",
];

/// Words that stand between UPDATE or INSERT and its table.
fn words_before_a_table(dialect: Dialect) -> &'static [&'static str] {
    match dialect {
        Dialect::Postgres => &["into", "only"],
        Dialect::MySql => &["delayed", "high_priority", "ignore", "into", "low_priority"],
        Dialect::Sqlite => &["abort", "fail", "ignore", "into", "or", "replace", "rollback"],
    }
}

/// A table in a statement: its schema and name, and how else it is called there.
pub(super) struct Target {
    name: Vec<String>,
    alias: Option<String>,
}

impl Target {
    /// What begins with a table, up to where something else begins; `None` of a sub-select.
    fn of(tokens: &[&str], dialect: Dialect) -> Option<Target> {
        let skipped = tokens.iter().take_while(|token| is_one_of(token, words_before_a_table(dialect))).count();
        let tokens = &tokens[skipped..];
        let mut length = 1;
        while tokens.get(length) == Some(&".") {
            length += 2;
        }
        let parts = names(tokens.get(..length)?, dialect)?;
        let alias = match &tokens[length..] {
            [word, alias, ..] if is_one_of(word, &["as"]) => name(alias, dialect),
            [alias, ..] if !is_one_of(alias, NO_ALIASES) => name(alias, dialect),
            _ => None,
        };
        Some(Target { name: parts, alias })
    }

    /// By what its columns are qualified.
    pub fn qualifier(&self) -> Option<&str> {
        self.alias.as_ref().or(self.name.last()).map(String::as_str)
    }

    /// Whether it may be this one: either of them may be named without its schema.
    pub fn is(&self, table: &Table, dialect: Dialect) -> bool {
        let mut parts = self.name.iter().rev();
        let is_named_alike = parts.next().is_some_and(|name| *name == folded(&table.name, dialect));
        let schemas = parts.next().zip(table.schema.as_deref());
        is_named_alike && schemas.is_none_or(|(one, other)| *one == folded(other, dialect))
    }
}

/// The tables between UPDATE and SET, of which MySQL and MariaDB allow several.
pub(super) fn updated(tokens: &[&str], dialect: Dialect) -> Vec<Target> {
    let parts = tokens.split(|token| is_one_of(token, &[",", "join", "straight_join"]));
    parts.filter_map(|part| Target::of(part, dialect)).collect()
}

/// The table behind INSERT, REPLACE or MERGE, and whether it is one of the former, for which rows are no more than met.
pub(super) fn inserted(before: &[&str], dialect: Dialect) -> (Vec<Target>, bool) {
    let Some(head) = before.iter().position(|token| is_one_of(token, &["insert", "replace", "merge"])) else {
        return (Vec::new(), false);
    };
    let table = Target::of(&before[head + 1..], dialect);
    (table.into_iter().collect(), !is_one_of(before[head], &["merge"]))
}
