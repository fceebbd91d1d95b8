//! `(a, b) IN (:keys)` in a statement: its columns are in the order of the key, and for MySQL and MariaDB it is to become a
//! condition that an index serves.

use anyhow::{Result, bail};

use super::clause::{is_one_of, names};
use super::column::Column;
use super::lexer::{folded, tokens};
use super::statement::{Dialect, Statement};

/// Behind which a condition begins: what stands behind a name would be the arguments of a call.
const BEFORE: [&str; 9] = ["where", "and", "or", "xor", "not", "on", "having", "when", "("];

/// What a `:keys` stands in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Condition(Tuple),
    /// Rows are looked for by it in another way, which no index serves.
    Search,
    /// It is a list of rows by itself.
    List,
}

/// The columns of it, and where it begins and ends in what stands before and behind its `:keys`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tuple {
    pub names: Vec<String>,
    pub begin: usize,
    pub end: usize,
}

impl Use {
    pub fn between(before: &str, behind: &str) -> Result<Use> {
        let (before, behind) = (tokens(before, Dialect::MySql)?, tokens(behind, Dialect::MySql)?);
        let [rest @ .., (_, word), (_, "(")] = before.as_slice() else { return Ok(Use::List) };
        if !word.eq_ignore_ascii_case("in") {
            return Ok(Use::List);
        }
        Ok(Tuple::ending(rest, &behind).map_or(Use::Search, Use::Condition))
    }
}

impl Tuple {
    /// That at the end of what stands before ` IN (`.
    fn ending(before: &[(usize, &str)], behind: &[(usize, &str)]) -> Option<Tuple> {
        let [rest @ .., (_, ")")] = before else { return None };
        let [(end, ")"), ..] = behind else { return None };
        let open = rest.iter().rposition(|(_, token)| *token == "(")?;
        let (_, word) = rest[..open].last()?;
        let names = rest[open + 1..].split(|(_, token)| *token == ",").map(name).collect::<Option<Vec<_>>>()?;
        let (begin, _) = rest[open];
        let is_condition = BEFORE.iter().any(|before| before.eq_ignore_ascii_case(word));
        is_condition.then_some(Tuple { names, begin, end: end + 1 })
    }
}

impl Statement {
    /// Fails where columns are compared with the keys that are just those of the key, but in another order: each would be compared
    /// with the value of another one, and other rows be changed than are announced.
    pub fn check_order(&self, key: &[String]) -> Result<()> {
        let text = self.text();
        let tokens: Vec<_> = tokens(&text, self.dialect)?.into_iter().map(|(_, token)| token).collect();
        let places = (0..tokens.len()).filter(|at| tokens[*at] == ":keys");
        let folded: Vec<_> = key.iter().map(|name| folded(name, self.dialect)).collect();
        for columns in places.filter_map(|at| compared(&tokens[..at], self.dialect)) {
            let are_those = columns.len() == folded.len() && folded.iter().all(|name| columns.contains(name));
            if are_those && columns != folded {
                bail!(
                    "it compares ({}) with the keys, whose columns are ({}): each would get the value of another one; write ({}) \
                     IN (:keys)",
                    columns.join(", "),
                    key.join(", "),
                    key.join(", ")
                );
            }
        }
        Ok(())
    }
}

/// The columns that are compared with what comes behind `before`: `(a, b) IN (`, `(a, b) NOT IN (`, `(a, b) = ANY (`.
fn compared(before: &[&str], dialect: Dialect) -> Option<Vec<String>> {
    let [before @ .., word, "("] = before else { return None };
    if !is_one_of(word, &["in", "any", "some", "all"]) {
        return None;
    }
    let end = before.iter().rposition(|token| !is_one_of(token, &["not", "=", "<", ">", "!"]))?;
    let [before @ .., ")"] = &before[..=end] else { return None };
    let open = before.iter().rposition(|token| *token == "(")?;
    before[open + 1..].split(|token| *token == ",").map(|column| names(column, dialect)?.pop()).collect()
}

/// The condition that a row is one of so many, each of which has these columns bound: MariaDB uses no index for a list of rows.
pub(super) fn one_of(names: &[String], key: &[Column], rows: usize) -> String {
    let row = equal(names, key.iter().map(|column| column.bind.as_str()));
    format!("({})", vec![row; rows].join(" OR "))
}

/// The condition that a row has these values.
pub(super) fn equal<'a>(names: &[String], values: impl Iterator<Item = &'a str>) -> String {
    let equal: Vec<_> = names.iter().zip(values).map(|(name, value)| format!("{name} = {value}")).collect();
    format!("({})", equal.join(" AND "))
}

/// `a`, `t.a` or `` `t`.`a` ``, and nothing else.
fn name(tokens: &[(usize, &str)]) -> Option<String> {
    let is_word = |token: &str| token.starts_with(|c: char| matches!(c, '`' | '_' | '$') || c.is_alphanumeric());
    let fits = |(at, (_, token)): (usize, &(usize, &str))| if at % 2 == 0 { is_word(token) } else { *token == "." };
    let is_it = tokens.len() % 2 == 1 && tokens.iter().enumerate().all(fits);
    is_it.then(|| tokens.iter().map(|(_, token)| *token).collect())
}

#[cfg(test)]
mod tests {
    use super::Dialect::{MySql, Postgres, Sqlite};
    use super::*;

    #[test]
    fn the_columns_of_the_key_have_to_be_compared_in_its_order() {
        const ALL: &[Dialect] = &[Postgres, MySql, Sqlite];
        let told = |sql: &str, dialect| {
            let key = ["tenant", "Id"].map(str::to_owned);
            Statement::parse(sql, dialect).unwrap().check_order(&key).err().map(|error| error.to_string())
        };
        let cases: [(&[Dialect], &str, bool); 15] = [
            (&[MySql, Sqlite], "UPDATE t SET n = 1 WHERE (id, tenant) IN (:keys)", true),
            (&[MySql, Sqlite], "DELETE FROM t WHERE a = 1 OR ( t.ID , /* x */ `t`.tenant )\nnot  in ( :keys )", true),
            (&[MySql, Sqlite], "UPDATE t SET n = 1 WHERE ROW(id, tenant) IN (:keys) AND n = 2", true),
            (&[MySql, Sqlite], "a IN (:keys) AND (tenant, id) IN (:keys) AND (id, tenant) IN (:keys)", true),
            (&[Sqlite], "WHERE ([id], \"tenant\") IN (:keys)", true),
            (&[Postgres], "WHERE (\"Id\", tenant) IN (:keys)", true),
            (&[Postgres], "WHERE (t.\"Id\", t.TENANT) = ANY (:keys)", true),
            (&[Postgres], "WHERE (\"Id\", tenant) <> ALL (:keys)", true),
            // Another column of the table than that of the key.
            (&[Postgres], "WHERE (id, tenant) IN (:keys)", false),
            (&[MySql, Sqlite], "WHERE (tenant, ID) IN (:keys)", false),
            (ALL, "WHERE (b, a) IN (:keys)", false),
            (ALL, "WHERE (id, id) IN (:keys)", false),
            (ALL, "WHERE (id, tenant, n) IN (:keys)", false),
            (ALL, "WHERE tenant IN (:keys)", false),
            (&[MySql, Sqlite], "WHERE (id, tenant) IN ((1, 2)) AND ':keys' = f(:keys)", false),
        ];
        for (dialects, sql, is_refused) in cases {
            for dialect in dialects {
                assert_eq!(told(sql, *dialect).is_some(), is_refused, "{dialect:?}: {sql}");
            }
        }
        let text = "it compares (id, tenant) with the keys, whose columns are (tenant, Id): each would get the value of another \
                    one; write (tenant, Id) IN (:keys)";
        assert_eq!(told("UPDATE t SET n = 1 WHERE (ID, tenant) IN (:keys)", Sqlite).as_deref(), Some(text));
    }
}
