//! The operator's SQL: a lexer that knows just enough of each dialect to find `:keys` and nothing but it.

use anyhow::{Context, Result, bail, ensure};

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
    parts: Vec<String>,
}

impl Statement {
    /// Fails where `:keys` is missing, where something else would have to be bound, and for a second statement.
    pub fn parse(sql: &str, dialect: Dialect) -> Result<Statement> {
        let parts = split(sql, dialect).context("cannot use the statement")?;
        ensure!(
            parts.len() > 1,
            "the statement has no :keys outside of strings and comments; write for example ... WHERE id IN (:keys)"
        );
        Ok(Statement { parts })
    }

    /// How often the keys are to be bound.
    pub(super) fn places(&self) -> usize {
        self.parts.len() - 1
    }

    /// The statement with `keys` written in each place.
    pub(super) fn with(&self, keys: &str) -> String {
        self.parts.join(keys)
    }
}

/// Checks SQL that is to stand inside of a statement of ours, and takes a `;` off its end.
pub(super) fn fragment(sql: &str, dialect: Dialect) -> Result<String> {
    let parts = split(sql, dialect)?;
    let [whole] = parts.as_slice() else { bail!("it cannot use :keys, which only a statement for --sql has") };
    ensure!(!whole.trim().is_empty(), "it is empty");
    Ok(whole.clone())
}

#[derive(Debug, PartialEq)]
enum Token {
    /// White space or a comment.
    Blank,
    Semicolon,
    Keys,
    Other,
}

/// Cuts `sql` at each `:keys`; what begins with a closing `;` is left out.
fn split(sql: &str, dialect: Dialect) -> Result<Vec<String>> {
    let mut lexer = Lexer { sql, dialect, at: 0, brackets: 0 };
    let (mut parts, mut start, mut end) = (Vec::new(), 0, None);
    while lexer.at < sql.len() {
        let from = lexer.at;
        match lexer.token()? {
            Token::Blank => {}
            _ if end.is_some() => bail!("it goes on after the ';'; one statement is all that is run"),
            Token::Semicolon => end = Some(from),
            Token::Keys => {
                parts.push(sql[start..from].to_owned());
                start = lexer.at;
            }
            Token::Other => {}
        }
    }
    parts.push(sql[start..end.unwrap_or(sql.len())].to_owned());
    Ok(parts)
}

struct Lexer<'a> {
    sql: &'a str,
    dialect: Dialect,
    at: usize,
    /// How many `[` are open: in Postgres a `:` between them is a slice.
    brackets: usize,
}

impl Lexer<'_> {
    /// Reads one token and leaves `at` behind it.
    fn token(&mut self) -> Result<Token> {
        use Dialect::{MySql, Postgres, Sqlite};
        let start = self.at;
        let rest = &self.sql.as_bytes()[start..];
        match (rest[0], rest.get(1).copied().unwrap_or(b' ')) {
            (first, _) if first.is_ascii_whitespace() => return Ok(self.pass(1, Token::Blank)),
            (b'-', b'-') if self.dialect != MySql || rest.get(2).is_none_or(|c| *c <= b' ') => return Ok(self.line()),
            (b'#', _) if self.dialect == MySql => return Ok(self.line()),
            (b'/', b'*') => return self.comment(),
            (b';', _) => return Ok(self.pass(1, Token::Semicolon)),
            (b'\'', _) => self.quoted(b'\'', self.dialect == MySql)?,
            (b'e' | b'E', b'\'') if self.dialect == Postgres => {
                self.at += 1;
                self.quoted(b'\'', true)?;
            }
            (b'"', _) => self.quoted(b'"', self.dialect == MySql)?,
            (b'`', _) if self.dialect != Postgres => self.quoted(b'`', false)?,
            (b'[', _) if self.dialect == Sqlite => self.to("]", 1)?,
            (b'[', _) => {
                self.brackets += 1;
                self.at += 1;
            }
            (b']', _) => {
                self.brackets = self.brackets.saturating_sub(1);
                self.at += 1;
            }
            (b'$', b'0'..=b'9') if self.dialect == Postgres => bail!(self.placeholder(1)),
            (b'$', _) if self.dialect == Postgres => self.dollar()?,
            (b'$' | b'@', next) if self.dialect == Sqlite && is_word(next) => bail!(self.placeholder(1)),
            (b'?', _) if self.dialect != Postgres => bail!(self.placeholder(1)),
            (b':', b':' | b'=') => self.at += 2,
            (b':', next) if is_word(next) => return self.named(),
            (first, _) if is_word(first) => self.at += word(rest).len(),
            _ => self.at += 1,
        }
        Ok(Token::Other)
    }

    fn pass(&mut self, bytes: usize, token: Token) -> Token {
        self.at += bytes;
        token
    }

    fn line(&mut self) -> Token {
        let length = self.sql[self.at..].find('\n').unwrap_or(self.sql.len() - self.at);
        self.pass(length, Token::Blank)
    }

    fn comment(&mut self) -> Result<Token> {
        let rest = &self.sql[self.at..];
        if self.dialect == Dialect::MySql && (rest.starts_with("/*!") || rest.starts_with("/*M!")) {
            bail!("a comment that the server runs as SQL ('/*!') cannot be checked; write it without");
        }
        let (bytes, mut depth, mut at) = (rest.as_bytes(), 1, 2);
        while depth > 0 {
            match (bytes.get(at), bytes.get(at + 1)) {
                (Some(b'*'), Some(b'/')) => (depth, at) = (depth - 1, at + 2),
                (Some(b'/'), Some(b'*')) if self.dialect == Dialect::Postgres => (depth, at) = (depth + 1, at + 2),
                (Some(_), _) => at += 1,
                (None, _) => bail!("the comment that begins with '{}' has no end", excerpt(rest)),
            }
        }
        Ok(self.pass(at, Token::Blank))
    }

    /// Passes a string or a quoted name, in which a doubled quote stands for itself.
    fn quoted(&mut self, quote: u8, backslash: bool) -> Result<()> {
        let rest = &self.sql[self.at..];
        let (bytes, mut at) = (rest.as_bytes(), 1);
        loop {
            match bytes.get(at) {
                Some(b'\\') if backslash => at += 2,
                Some(c) if *c == quote && bytes.get(at + 1) == Some(&quote) => at += 2,
                Some(c) if *c == quote => break,
                Some(_) => at += 1,
                None => bail!("what is quoted from '{}' on has no end", excerpt(rest)),
            }
        }
        self.at += at + 1;
        Ok(())
    }

    /// Passes all up to and with `end`, which is looked for behind the first `skip` bytes.
    fn to(&mut self, end: &str, skip: usize) -> Result<()> {
        let rest = &self.sql[self.at..];
        let Some(found) = rest[skip..].find(end) else {
            bail!("what is quoted from '{}' on has no end", excerpt(rest));
        };
        self.at += skip + found + end.len();
        Ok(())
    }

    /// Passes `$tag$ .. $tag$` of Postgres, or a lone `$`.
    fn dollar(&mut self) -> Result<()> {
        let rest = &self.sql[self.at..];
        let tag = rest[1..].bytes().take_while(|c| is_word(*c) && *c != b'$').count();
        if rest.as_bytes().get(1 + tag) != Some(&b'$') {
            self.at += 1;
            return Ok(());
        }
        self.to(&rest[..tag + 2], tag + 2)
    }

    /// `:keys`, or a name that nobody can bind.
    fn named(&mut self) -> Result<Token> {
        let name = word(&self.sql.as_bytes()[self.at + 1..]);
        if self.brackets > 0 {
            return Ok(self.pass(1 + name.len(), Token::Other));
        }
        if name != b"keys" {
            bail!(self.placeholder(1));
        }
        Ok(self.pass(5, Token::Keys))
    }

    /// The text of the error about the placeholder at `at`, whose word begins `skip` bytes behind it.
    fn placeholder(&self, skip: usize) -> String {
        let name = word(&self.sql.as_bytes()[self.at + skip..]);
        format!(
            "it has the placeholder '{}'; nothing but :keys is bound",
            &self.sql[self.at..self.at + skip + name.len()]
        )
    }
}

/// Part of a name or a number; Postgres, MySQL and SQLite all allow `$` inside.
fn is_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || c == b'_' || c == b'$' || c >= 0x80
}

fn word(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().take_while(|c| is_word(**c)).count()]
}

fn excerpt(text: &str) -> &str {
    let end = text.char_indices().nth(20).map_or(text.len(), |(at, _)| at);
    text[..end].lines().next().unwrap_or_default()
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
}
