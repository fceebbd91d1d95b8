//! A column: how its database selects, compares and binds it.

use super::value::Value;

/// A column as its database handles it where it is part of the key, and where it is a mere member of a payload.
#[derive(Clone)]
pub(super) struct Column {
    pub name: String,
    pub kind: Kind,
    /// The expression that is selected.
    pub read: String,
    /// The expression that the column is compared with; the first `?` stands for the value.
    pub bind: String,
    /// True where the column is written otherwise than the first `?`, although `=` may not tell them apart; `None` where
    /// that cannot be.
    pub differs: Option<String>,
    /// Why it cannot be part of a key, if so.
    pub unfit: Option<&'static str>,
    /// Whether it is read in the time zone of the session.
    pub is_zoned: bool,
    /// As what, and by which expression, it is read where it is no part of the key, if otherwise.
    pub shown: Option<(Kind, String)>,
}

impl Column {
    /// As what, and by which expression, a payload has it.
    pub fn shown(&self) -> (Kind, &str) {
        self.shown.as_ref().map_or((self.kind, &self.read), |(kind, read)| (*kind, read))
    }
}

/// As what the value of a column is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Integer,
    Unsigned,
    Real,
    /// The text of a number or a bool.
    Literal,
    Text,
    Bytes,
    /// Text that is JSON; no key has it.
    Json,
    /// Each value says itself what it is, as in SQLite.
    Dynamic,
}

impl Kind {
    /// Whether a column of this kind can have given `value`.
    pub fn takes(self, value: &Value) -> bool {
        match (self, value) {
            (Kind::Dynamic, _) => true,
            (Kind::Integer, Value::Integer(_)) | (Kind::Unsigned, Value::Unsigned(_)) => true,
            (Kind::Real, Value::Real(_)) | (Kind::Bytes, Value::Bytes(_)) => true,
            // NaN and Infinity of a number are texts.
            (Kind::Literal, Value::Literal(_)) | (Kind::Literal | Kind::Text, Value::Text(_)) => true,
            _ => false,
        }
    }
}
