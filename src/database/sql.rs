//! SQL as it is put together here: names are quoted, values are bound.

use anyhow::{Result, bail};
use sqlx::AssertSqlSafe;

use super::statement::Dialect;
use super::value::Value;

/// A statement of ours and the values for its placeholders, in order.
///
/// The only way from a text made at run time to sqlx: what the text holds besides our own words are quoted names and
/// SQL of the operator that went through the lexer, never data.
pub(super) struct Sql {
    dialect: Dialect,
    text: String,
    pub values: Vec<Value>,
    /// Whether integers stand in the text, as in a COPY, to which nothing can be bound.
    holds_integers: bool,
}

impl Sql {
    pub fn new(dialect: Dialect, text: impl Into<String>) -> Sql {
        Sql { dialect, text: text.into(), values: Vec::new(), holds_integers: false }
    }

    /// From here on integers are written into the text.
    pub fn hold_integers(&mut self) {
        self.holds_integers = true;
    }

    pub fn push(&mut self, text: &str) -> &mut Sql {
        self.text.push_str(text);
        self
    }

    /// Appends `template`, in which the first `?` stands for `value`.
    pub fn bind(&mut self, template: &str, value: &Value) -> &mut Sql {
        if let (true, Value::Integer(number)) = (self.holds_integers, value) {
            // In quotes, since a minus sign binds less than a cast.
            self.text.push_str(&template.replacen('?', &format!("'{number}'"), 1));
            return self;
        }
        self.values.push(value.clone());
        match self.dialect {
            Dialect::Postgres => self.text.push_str(&template.replacen('?', &format!("${}", self.values.len()), 1)),
            Dialect::MySql | Dialect::Sqlite => self.text.push_str(template),
        }
        self
    }

    /// With the same values.
    pub fn explained(&self, how: &str) -> Sql {
        Sql { text: format!("{how} {}", self.text), values: self.values.clone(), ..*self }
    }

    /// As Postgres gives the rows line by line; it may have no values.
    pub fn copied(&self) -> String {
        format!("COPY ({}) TO STDOUT", self.text)
    }

    /// Vouches for the text to sqlx.
    pub fn text(&self) -> AssertSqlSafe<&str> {
        AssertSqlSafe(&self.text)
    }
}

/// A name as the dialect quotes it.
pub(super) fn quoted(name: &str, dialect: Dialect) -> String {
    match dialect {
        Dialect::MySql => format!("`{}`", name.replace('`', "``")),
        Dialect::Postgres | Dialect::Sqlite => format!("\"{}\"", name.replace('"', "\"\"")),
    }
}

/// A table by name, perhaps in a schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub schema: Option<String>,
    pub name: String,
}

impl Table {
    /// Reads `table` or `schema.table`; a part that holds a dot is written in double quotes or backticks.
    pub fn parse(text: &str) -> Result<Table> {
        let mut parts = Vec::new();
        let mut rest = text;
        loop {
            let quote = rest.chars().next().filter(|c| matches!(c, '"' | '`'));
            let (part, after) = match quote {
                Some(quote) => match rest[1..].split_once(quote) {
                    Some(found) => found,
                    None => bail!("the table name {text} has a quote without its end"),
                },
                None => rest.split_at(rest.find('.').unwrap_or(rest.len())),
            };
            parts.push(part.to_owned());
            match after.strip_prefix('.') {
                Some(more) => rest = more,
                None if after.is_empty() => break,
                None => bail!("the table name {text} goes on behind its quotes"),
            }
        }
        let name = parts.pop().unwrap_or_default();
        if parts.len() > 1 || name.is_empty() || parts.iter().any(String::is_empty) {
            bail!("'{text}' is not a table name; write TABLE or SCHEMA.TABLE");
        }
        Ok(Table { schema: parts.pop(), name })
    }

    pub fn quoted(&self, dialect: Dialect) -> String {
        let name = quoted(&self.name, dialect);
        match &self.schema {
            Some(schema) => format!("{}.{name}", quoted(schema, dialect)),
            None => name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_may_stand_in_the_text() {
        let mut sql = Sql::new(Dialect::Postgres, "");
        sql.hold_integers();
        sql.bind("?::bigint", &Value::Integer(i64::MIN)).bind(", ?::text", &Value::Text("a".to_owned()));
        assert_eq!((&sql.text[..], sql.values.len()), ("'-9223372036854775808'::bigint, $1::text", 1));
    }

    #[test]
    fn a_table_name_may_have_a_schema_and_quotes() {
        let cases = [
            ("products", "\"products\""),
            ("shop.products", "\"shop\".\"products\""),
            ("\"odd.name\"", "\"odd.name\""),
            ("shop.`odd.name`", "\"shop\".\"odd.name\""),
            ("Straße", "\"Straße\""),
        ];
        for (text, expected) in cases {
            assert_eq!(Table::parse(text).unwrap().quoted(Dialect::Postgres), expected);
        }
        for text in ["", ".a", "a.", "a.b.c", "\"a", "\"a\"b"] {
            assert!(Table::parse(text).is_err(), "{text}");
        }
    }
}
