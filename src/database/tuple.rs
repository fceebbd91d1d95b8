//! `(a, b) IN (:keys)` in a statement for MySQL and MariaDB, which is to become a condition that an index serves.

use anyhow::Result;

use super::lexer::tokens;
use super::statement::Dialect;

/// Behind which a condition begins: what stands behind a name would be the arguments of a call.
const BEFORE: [&str; 9] = ["where", "and", "or", "xor", "not", "on", "having", "when", "("];

/// The columns of it, and where it begins and ends in what stands before and behind its `:keys`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tuple {
    pub names: Vec<String>,
    pub begin: usize,
    pub end: usize,
}

impl Tuple {
    /// `None` where `before` and `behind` make something else of `:keys`.
    pub fn between(before: &str, behind: &str) -> Result<Option<Tuple>> {
        let (before, behind) = (tokens(before, Dialect::MySql)?, tokens(behind, Dialect::MySql)?);
        let [rest @ .., (_, ")"), (_, word), (_, "(")] = before.as_slice() else { return Ok(None) };
        let [(end, ")"), ..] = behind.as_slice() else { return Ok(None) };
        let Some(open) = rest.iter().rposition(|(_, token)| *token == "(") else { return Ok(None) };
        let is_condition =
            rest[..open].last().is_some_and(|(_, word)| BEFORE.iter().any(|it| it.eq_ignore_ascii_case(word)));
        let names = rest[open + 1..].split(|(_, token)| *token == ",").map(name).collect::<Option<Vec<_>>>();
        let (begin, _) = rest[open];
        let is_it = word.eq_ignore_ascii_case("in") && is_condition;
        Ok(names.filter(|_| is_it).map(|names| Tuple { names, begin, end: end + 1 }))
    }
}

/// `a`, `t.a` or `` `t`.`a` ``, and nothing else.
fn name(tokens: &[(usize, &str)]) -> Option<String> {
    let is_word = |token: &str| token.starts_with(|c: char| matches!(c, '`' | '_' | '$') || c.is_alphanumeric());
    let fits = |(at, (_, token)): (usize, &(usize, &str))| if at % 2 == 0 { is_word(token) } else { *token == "." };
    let is_it = tokens.len() % 2 == 1 && tokens.iter().enumerate().all(fits);
    is_it.then(|| tokens.iter().map(|(_, token)| *token).collect())
}
