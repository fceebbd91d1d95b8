//! `(a, b) IN (:keys)` in a statement for MySQL and MariaDB, which is to become a condition that an index serves.

use anyhow::Result;

use super::column::Column;
use super::lexer::tokens;
use super::statement::Dialect;

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
