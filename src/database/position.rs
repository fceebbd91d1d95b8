//! A place in the rows of a source, such that another process can go on behind it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::value::Value;

/// The key of the last row that was read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Position(Vec<Value>);

impl Position {
    pub(super) fn of(key: &[Value]) -> Position {
        Position(key.to_vec())
    }

    pub(super) fn values(&self) -> &[Value] {
        &self.0
    }
}

/// As a person reads it: `4711`, `1, a`.
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let values: Vec<_> = self.0.iter().map(Value::text).collect();
        f.write_str(&values.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn again(position: &Position) -> Position {
        serde_json::from_str(&serde_json::to_string(position).unwrap()).unwrap()
    }

    #[test]
    fn a_position_is_written_in_words_that_a_person_can_read() {
        let values = [Value::Integer(-7), Value::Text("a\"\0é".to_owned()), Value::Bytes(vec![0, 255])];
        let written = serde_json::to_string(&Position::of(&values)).unwrap();
        assert_eq!(written, r#"[{"integer":-7},{"text":"a\"\u0000é"},{"bytes":"AP8="}]"#);
    }

    #[test]
    fn a_position_survives_json_exactly_whatever_the_key_is() {
        let mut edges = vec![
            Value::Integer(i64::MIN),
            Value::Integer(i64::MAX),
            Value::Unsigned(u64::MAX),
            Value::Unsigned((1 << 53) + 1),
            Value::Real(-0.0),
            Value::Real(f64::INFINITY),
            Value::Real(f64::MIN_POSITIVE),
            Value::Literal("12345678901234567890.010".to_owned()),
            Value::Text(String::new()),
            Value::Text("NaN".to_owned()),
            Value::Text("2024-02-29 23:59:59.000001".to_owned()),
            Value::Text("f81d4fae-7dec-11d0-a765-00a0c91e6bf6".to_owned()),
            Value::Bytes(vec![]),
        ];
        let mut random = StdRng::seed_from_u64(6);
        for _ in 0..10_000 {
            let text = (0..random.random_range(0..9)).map(|_| random.random::<char>()).collect();
            let bytes = (0..random.random_range(0..40)).map(|_| random.random()).collect();
            let real = f64::from_bits(random.random());
            edges.extend([Value::Integer(random.random()), Value::Unsigned(random.random())]);
            edges.extend([Value::Text(text), Value::Bytes(bytes)]);
            edges.extend((!real.is_nan()).then_some(Value::Real(real)));
        }
        for values in edges.chunks(2) {
            let position = Position::of(values);
            let again = again(&position);
            assert_eq!(again, position);
            // `==` takes -0.0 for 0.0.
            for (value, again) in position.values().iter().zip(again.values()) {
                if let (Value::Real(one), Value::Real(other)) = (value, again) {
                    assert_eq!(one.to_bits(), other.to_bits());
                }
            }
        }
    }
}
