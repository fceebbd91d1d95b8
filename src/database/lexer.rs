//! Just enough of each dialect's lexical rules to tell `:keys` from what only looks like it.

use anyhow::{Result, bail, ensure};

use super::statement::Dialect;

/// Cuts `sql` at each `:keys` and leaves out a `;` at its end with what follows.
///
/// Fails for another statement behind it, for placeholders that nobody binds, and for brackets that are not closed in it: it may
/// stand inside of a statement of ours.
pub(super) fn split(sql: &str, dialect: Dialect) -> Result<Vec<String>> {
    let mut lexer = Lexer { sql, dialect, at: 0, brackets: 0, open: 0 };
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
    ensure!(lexer.open == 0, "it has a '(' that nothing closes");
    parts.push(sql[start..end.unwrap_or(sql.len())].to_owned());
    Ok(parts)
}

/// What a part of a statement has besides blanks and comments, piece by piece, and where each begins.
pub(super) fn tokens(part: &str, dialect: Dialect) -> Result<Vec<(usize, &str)>> {
    // What it closes may have been opened before it.
    let mut lexer = Lexer { sql: part, dialect, at: 0, brackets: 0, open: part.len() };
    let mut tokens = Vec::new();
    while lexer.at < part.len() {
        let from = lexer.at;
        if lexer.token()? != Token::Blank {
            tokens.push((from, &part[from..lexer.at]));
        }
    }
    Ok(tokens)
}

/// The name that a token is, [`folded`]; `None` where it can be none.
pub(super) fn name(token: &str, dialect: Dialect) -> Option<String> {
    use Dialect::{MySql, Postgres, Sqlite};
    let unquoted = |quote: &str| folded(&token[1..token.len() - 1].replace(&quote.repeat(2), quote), dialect);
    match (*token.as_bytes().first()?, dialect) {
        (b'"', _) => Some(unquoted("\"")),
        (b'`', MySql | Sqlite) => Some(unquoted("`")),
        // It takes a string for a name where only a name can stand.
        (b'\'', Sqlite) => Some(unquoted("'")),
        (b'[', Sqlite) => Some(folded(&token[1..token.len() - 1], dialect)),
        (first, _) if !is_word(first) => None,
        (_, Postgres) => Some(token.to_ascii_lowercase()),
        (_, MySql | Sqlite) => Some(folded(token, dialect)),
    }
}

/// A name as it can be compared: but for Postgres upper and lower case are the same.
pub(super) fn folded(name: &str, dialect: Dialect) -> String {
    match dialect {
        Dialect::Postgres => name.to_owned(),
        Dialect::MySql | Dialect::Sqlite => name.to_lowercase(),
    }
}

#[derive(Debug, PartialEq)]
enum Token {
    /// White space or a comment.
    Blank,
    Semicolon,
    Keys,
    Other,
}

struct Lexer<'a> {
    sql: &'a str,
    dialect: Dialect,
    at: usize,
    /// How many `[` are open: in Postgres a `:` between them is a slice.
    brackets: usize,
    /// How many `(` are open.
    open: usize,
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
            (b'(', _) => {
                self.open += 1;
                self.at += 1;
            }
            (b')', _) => {
                ensure!(self.open > 0, "it has a ')' that closes nothing");
                self.open -= 1;
                self.at += 1;
            }
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
