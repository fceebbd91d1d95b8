//! Rows that are served at once: what is announced of them, and their keys as the database binds them.

use std::sync::Arc;

use super::column::Column;
use super::position::Position;
use super::value::Value;
use crate::message::Change;

/// Rows with different keys, in the order of their keys.
pub struct Chunk {
    pub changes: Vec<Change>,
    /// The values of the key columns, row by row.
    pub(super) values: Vec<Value>,
    pub(super) key: Arc<[Column]>,
}

impl Chunk {
    /// Where a scan stands that has read this chunk.
    pub fn end(&self) -> Option<Position> {
        self.keys().last().map(Position::of)
    }

    /// For each row a payload that has its key columns and nothing else.
    pub fn key_payloads(&self) -> Vec<Vec<u8>> {
        let places = self.key.iter().enumerate().map(|(at, column)| (column.name.as_str(), Place::Key(at)));
        let (members, mut json) = (Members::new(places), Vec::new());
        self.keys().map(|key| members.change(key, &[], &mut json).payload).collect()
    }

    /// The values of each row's key.
    pub(super) fn keys(&self) -> impl Iterator<Item = &[Value]> {
        self.values.chunks(self.key.len())
    }
}

/// How much one chunk may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    pub rows: usize,
    /// Of keys and payloads; one row always fits.
    pub bytes: usize,
}

/// A chunk while rows are added, one more than fits being read ahead.
pub(super) struct Filling<'a> {
    limit: Limit,
    members: &'a Members,
    changes: Vec<Change>,
    values: Vec<Value>,
    rows: usize,
    bytes: usize,
    json: Vec<u8>,
    ahead: Option<Vec<Value>>,
    /// Two rows had the same key.
    is_repeated: bool,
}

impl<'a> Filling<'a> {
    pub fn new(limit: Limit, members: &'a Members) -> Filling<'a> {
        Filling {
            limit,
            members,
            changes: Vec::new(),
            values: Vec::new(),
            rows: 0,
            bytes: 0,
            json: Vec::new(),
            ahead: None,
            is_repeated: false,
        }
    }

    /// Takes the key of the next row out of `key`, and what its payload has besides; returns false where no more is taken.
    pub fn add(&mut self, key: &mut Vec<Value>, others: &[Option<Value>]) -> bool {
        self.is_repeated |= self.rows > 0 && self.values.ends_with(key);
        if self.rows == self.limit.rows || (self.rows > 0 && self.bytes >= self.limit.bytes) {
            self.ahead = Some(std::mem::take(key));
            return false;
        }
        self.rows += 1;
        if self.values.ends_with(key) {
            // The same key says the same of the same record: once is enough.
            key.clear();
            return true;
        }
        let change = self.members.change(key, others, &mut self.json);
        self.bytes += change.payload.len() + change.key.as_ref().map_or(0, Vec::len);
        self.changes.push(change);
        self.values.append(key);
        true
    }

    /// The chunk, and the key of the row behind it where there is one.
    pub fn finish(self, key: &Arc<[Column]>) -> (Chunk, Option<Vec<Value>>) {
        (Chunk { changes: self.changes, values: self.values, key: key.clone() }, self.ahead)
    }

    /// Whether a row was left out that has more to tell than its key, which another one has, too.
    pub fn leaves_out(&self) -> bool {
        self.is_repeated && self.members.have_others()
    }

    /// How many rows were all that the bytes allow; `None` where they are not what ended the chunk.
    pub fn fitting_rows(&self) -> Option<usize> {
        (self.rows < self.limit.rows && self.ahead.is_some()).then_some(self.rows)
    }
}

/// The members of a payload: their names as they stand there, `{"id":`, `,"part":`, and where their values are.
pub(super) struct Members(Vec<(Vec<u8>, Place)>);

/// Which value of a row it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Key(usize),
    Other(usize),
}

impl Members {
    pub fn new<'a>(members: impl Iterator<Item = (&'a str, Place)>) -> Members {
        let member = |(at, (name, place))| {
            let mut json = vec![if at == 0 { b'{' } else { b',' }];
            Value::Text(String::from(name)).write_json(&mut json);
            json.push(b':');
            (json, place)
        };
        Members(members.enumerate().map(member).collect())
    }

    fn have_others(&self) -> bool {
        self.0.iter().any(|(_, place)| matches!(place, Place::Other(_)))
    }

    fn change(&self, key: &[Value], others: &[Option<Value>], json: &mut Vec<u8>) -> Change {
        json.clear();
        for (name, place) in &self.0 {
            json.extend_from_slice(name);
            match *place {
                Place::Key(at) => key[at].write_json(json),
                Place::Other(at) => match &others[at] {
                    Some(value) => value.write_json(json),
                    None => json.extend_from_slice(b"null"),
                },
            }
        }
        json.push(b'}');
        let record_key = match key {
            [value] => value.text().into_owned().into_bytes(),
            several => array(several),
        };
        Change { key: Some(record_key), payload: json.clone() }
    }
}

fn array(values: &[Value]) -> Vec<u8> {
    let mut json = Vec::new();
    for value in values {
        json.push(if json.is_empty() { b'[' } else { b',' });
        value.write_json(&mut json);
    }
    json.push(b']');
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_key_is_written_as_the_wire_format_has_it() {
        let cases = [
            (vec![Value::Integer(-7)], "-7", r#"{"a":-7}"#),
            (vec![Value::Unsigned(u64::MAX)], "18446744073709551615", r#"{"a":18446744073709551615}"#),
            (vec![Value::Literal("0.10".to_owned())], "0.10", r#"{"a":0.10}"#),
            (vec![Value::Real(1.5)], "1.5", r#"{"a":1.5}"#),
            (vec![Value::Real(f64::INFINITY)], "Infinity", r#"{"a":"Infinity"}"#),
            (vec![Value::Text("x\"\n".to_owned())], "x\"\n", r#"{"a":"x\"\n"}"#),
            (vec![Value::Bytes(vec![0, 255])], "\\x00ff", r#"{"a":"\\x00ff"}"#),
            (vec![Value::Integer(1), Value::Text("a".to_owned())], r#"[1,"a"]"#, r#"{"a":1,"b":"a"}"#),
        ];
        for (key, record_key, payload) in cases {
            let places = ["a", "b"].into_iter().zip((0..key.len()).map(Place::Key));
            let change = Members::new(places).change(&key, &[], &mut Vec::new());
            assert_eq!((text(&change.key.unwrap()), text(&change.payload)), (record_key, payload));
        }
    }

    #[test]
    fn a_payload_has_its_members_in_the_order_that_was_asked_for() {
        let places =
            [("name", Place::Other(1)), ("id", Place::Key(0)), ("tags", Place::Other(0)), ("at", Place::Other(2))];
        let others = [Some(Value::Literal(r#"["a"]"#.to_owned())), Some(Value::Text("x\"".to_owned())), None];
        let change = Members::new(places.into_iter()).change(&[Value::Integer(7)], &others, &mut Vec::new());
        assert_eq!(text(&change.payload), r#"{"name":"x\"","id":7,"tags":["a"],"at":null}"#);
        assert_eq!(text(&change.key.unwrap()), "7");
    }

    #[test]
    fn a_chunk_ends_at_its_rows_or_its_bytes_and_holds_a_key_once() {
        let members = Members::new([("id", Place::Key(0))].into_iter());
        let fill = |limit, numbers: &[i64]| {
            let mut filling = Filling::new(limit, &members);
            let taken =
                numbers.iter().take_while(|number| filling.add(&mut vec![Value::Integer(**number)], &[])).count();
            assert!(!filling.leaves_out());
            let (chunk, ahead) = filling.finish(&Arc::default());
            (taken, chunk.values, ahead)
        };
        let values = |numbers: &[i64]| numbers.iter().map(|number| Value::Integer(*number)).collect::<Vec<_>>();
        assert_eq!(fill(Limit { rows: 3, bytes: 1000 }, &[1, 1, 2]), (3, values(&[1, 2]), None));
        assert_eq!(fill(Limit { rows: 3, bytes: 1000 }, &[1, 1, 2, 3]), (3, values(&[1, 2]), Some(values(&[3]))));
        assert_eq!(fill(Limit { rows: 3, bytes: 1 }, &[1, 2]), (1, values(&[1]), Some(values(&[2]))));
    }

    #[test]
    fn a_row_that_has_more_to_tell_than_its_key_is_not_left_out_in_silence() {
        let members = Members::new([("id", Place::Key(0)), ("name", Place::Other(0))].into_iter());
        for (rows, numbers, leaves_out) in
            [(3, &[1, 2, 2][..], true), (2, &[1, 2, 2], true), (3, &[1, 2, 3, 4], false), (1, &[1, 1], true)]
        {
            let mut filling = Filling::new(Limit { rows, bytes: 1000 }, &members);
            for number in numbers {
                filling.add(&mut vec![Value::Integer(*number)], &[None]);
            }
            assert_eq!(filling.leaves_out(), leaves_out, "{rows} of {numbers:?}");
        }
    }
}
