//! Records of one partition, in their order, as the lines that one handler run gets.

use std::collections::HashSet;
use std::hash::BuildHasher;
use std::ops::Range;

use anyhow::Result;

use super::line::{self, Order, Original};
use super::{LastRecord, Record};
use crate::topic::{Offset, TopicPartition};

/// Records of one partition, in their order, as the lines that one handler run gets.
#[derive(Debug)]
pub struct Batch {
    /// `{"topic":"products","partition":0,"offset":`, the same in each line.
    head: Vec<u8>,
    partition: TopicPartition,
    lines: Vec<u8>,
    index: Vec<Entry>,
    /// The values that cannot be read back from their lines, each with its record's index.
    kept: Vec<(usize, Vec<u8>)>,
    kept_bytes: usize,
    next: Option<Offset>,
    last: Option<LastRecord>,
    leader_epoch: Option<i32>,
}

/// What a batch was at some time.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    len: usize,
    kept: usize,
    kept_bytes: usize,
    next: Option<Offset>,
    last: Option<LastRecord>,
    leader_epoch: Option<i32>,
}

/// One of the lines.
#[derive(Clone, Copy, Debug)]
struct Entry {
    offset: Offset,
    end: usize,
}

impl Batch {
    pub fn new(partition: &TopicPartition) -> Batch {
        let head = format!("{{\"topic\":\"{}\",\"partition\":{},\"offset\":", partition.topic, partition.partition);
        Batch {
            head: head.into(),
            partition: partition.clone(),
            lines: vec![],
            index: vec![],
            kept: vec![],
            kept_bytes: 0,
            next: None,
            last: None,
            leader_epoch: None,
        }
    }

    pub fn partition(&self) -> &TopicPartition {
        &self.partition
    }

    /// Makes room for the record's line, of as much as `most` for all lines: left to itself a vector takes up to twice of what it
    /// holds.
    pub fn make_room(&mut self, record: &Record<'_>, most: usize) {
        let needed = self.lines.len() + self.head.len() + line::about(record);
        if needed > self.lines.capacity() {
            let wanted = (2 * self.lines.capacity()).min(most).max(needed);
            self.lines.reserve_exact(wanted - self.lines.len());
        }
    }

    /// Adds the record's line and moves the batch's end past it.
    ///
    /// Fails, and adds nothing, where the value is not JSON.
    pub fn push(&mut self, record: &Record<'_>) -> Result<()> {
        let payload = line::payload(record.value)?;
        let is_faithful = line::write(&mut self.lines, &self.head, record, payload)?;
        if let Some(value) = record.value.filter(|_| !is_faithful) {
            self.kept.push((self.index.len(), value.to_vec()));
            self.kept_bytes += value.len();
        }
        self.end_line(record);
        Ok(())
    }

    /// Adds the record's line with the value's bytes, whatever they are, and moves the batch's end past it.
    pub fn push_raw(&mut self, record: &Record<'_>) -> Result<()> {
        line::write_raw(&mut self.lines, &self.head, record, record.value.unwrap_or_default())?;
        self.end_line(record);
        Ok(())
    }

    /// Adds a line that somebody has kept or written, as it is, and moves the batch's end past its record.
    ///
    /// Fails, and adds nothing, where no record can be read from it.
    pub fn push_line(&mut self, offset: Offset, line: &[u8]) -> Result<()> {
        line::original(line)?;
        self.lines.extend_from_slice(line);
        if !line.ends_with(b"\n") {
            self.lines.push(b'\n');
        }
        self.index.push(Entry { offset, end: self.lines.len() });
        self.pass_to(offset.next());
        Ok(())
    }

    /// Moves the batch's end past a record that is no part of it: it went to the dead-letter topic.
    pub fn pass(&mut self, record: &Record<'_>) {
        self.last = Some(LastRecord::of(record));
        self.leader_epoch = record.leader_epoch;
        self.next = Some(record.offset.next());
    }

    /// Moves the batch's end to `offset`, past what a consumer never sees (control records, compacted ones).
    pub fn pass_to(&mut self, offset: Offset) {
        self.next = self.next.max(Some(offset));
    }

    /// The lines, each with its line break.
    pub fn lines(&self) -> &[u8] {
        &self.lines
    }

    /// The lines of some records that follow each other.
    pub fn lines_of(&self, range: Range<usize>) -> &[u8] {
        &self.lines[self.start(range.start)..self.start(range.end)]
    }

    /// The lines of a choice of records, in the order given.
    pub fn gather(&self, indices: &[usize]) -> Vec<u8> {
        indices.iter().map(|&index| self.line(index)).collect::<Vec<_>>().concat()
    }

    /// How much memory the records take: the lines, and the values that are kept beside them.
    pub fn bytes(&self) -> usize {
        self.lines.len() + self.kept_bytes
    }

    /// How many lines there are.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// The offset of one of the lines.
    pub fn offset(&self, index: usize) -> Offset {
        self.index[index].offset
    }

    /// The index of the line with this offset.
    pub fn find(&self, offset: Offset) -> Option<usize> {
        self.index.binary_search_by_key(&offset, |entry| entry.offset).ok()
    }

    /// The indices of the later records that have to be handled after this one: those with its key. Reads all their lines.
    pub fn later_of_its_key(&self, index: usize) -> Vec<usize> {
        let Ok(order) = self.order(index) else {
            return vec![];
        };
        (index + 1..self.len()).filter(|later| self.order(*later).is_ok_and(|later| later == order)).collect()
    }

    /// What orders a record. Reads its whole line.
    pub fn order(&self, index: usize) -> Result<Order<'_>> {
        line::order(self.line(index))
    }

    /// Of each record a number that is the same for all that have to be handled in their order. Reads all lines.
    pub fn keys(&self, hasher: &impl BuildHasher) -> Vec<u64> {
        // One that cannot be read is taken for one of its own.
        let key = |index| self.order(index).map_or(index as u64, |order| hasher.hash_one(order));
        (0..self.len()).map(key).collect()
    }

    /// Key, value and headers as they lie in Kafka, byte for byte.
    pub fn original(&self, index: usize) -> Result<Original> {
        let mut original = line::original(self.line(index))?;
        if let Ok(at) = self.kept.binary_search_by_key(&index, |(index, _)| *index) {
            original.value = Some(self.kept[at].1.clone());
        }
        Ok(original)
    }

    /// For [`Batch::back_to`].
    pub fn mark(&self) -> Mark {
        let (kept, kept_bytes) = (self.kept.len(), self.kept_bytes);
        Mark { len: self.len(), kept, kept_bytes, next: self.next, last: self.last, leader_epoch: self.leader_epoch }
    }

    /// Takes away what was added since.
    pub fn back_to(&mut self, mark: Mark) {
        self.lines.truncate(self.start(mark.len));
        self.index.truncate(mark.len);
        self.kept.truncate(mark.kept);
        self.kept_bytes = mark.kept_bytes;
        (self.next, self.last, self.leader_epoch) = (mark.next, mark.last, mark.leader_epoch);
    }

    /// Of records that are ordered by the same only the last stays; the batch's end is what it was.
    pub fn coalesce(&mut self) {
        let mut later = HashSet::new();
        // What could not be read would be no reason to drop it.
        let is_last = |index: &usize| self.order(*index).map_or(true, |order| later.insert(order));
        let mut stay: Vec<usize> = (0..self.len()).rev().filter(is_last).collect();
        stay.reverse();
        if stay.len() < self.len() {
            self.retain(&stay);
        }
    }

    fn retain(&mut self, stay: &[usize]) {
        let mut end = 0;
        for (to, &from) in stay.iter().enumerate() {
            let line = self.start(from)..self.index[from].end;
            self.lines.copy_within(line.clone(), end);
            end += line.len();
            self.index[to] = Entry { offset: self.index[from].offset, end };
        }
        self.lines.truncate(end);
        self.index.truncate(stay.len());
        self.kept.retain_mut(|(index, _)| stay.binary_search(index).map(|to| *index = to).is_ok());
        self.kept_bytes = self.kept.iter().map(|(_, value)| value.len()).sum();
    }

    /// The offsets of the first and the last line.
    pub fn range(&self) -> Option<(Offset, Offset)> {
        Some((self.index.first()?.offset, self.index.last()?.offset))
    }

    /// The offset to commit once the batch is done; `None` where it has not moved.
    pub fn next(&self) -> Option<Offset> {
        self.next
    }

    pub fn last(&self) -> Option<LastRecord> {
        self.last
    }

    pub fn leader_epoch(&self) -> Option<i32> {
        self.leader_epoch
    }

    /// Adds the records of a batch that comes after this one.
    pub fn append(&mut self, later: &Batch) {
        let (lines, records) = (self.lines.len(), self.index.len());
        self.lines.extend_from_slice(&later.lines);
        self.index.extend(later.index.iter().map(|entry| Entry { end: lines + entry.end, ..*entry }));
        self.kept.extend(later.kept.iter().map(|(index, value)| (records + index, value.clone())));
        self.kept_bytes += later.kept_bytes;
        if later.next.is_some() {
            self.next = later.next;
        }
        // One that has passed nothing but what nobody is given knows of no record.
        if later.last.is_some() {
            (self.last, self.leader_epoch) = (later.last, later.leader_epoch);
        }
    }

    /// Adds one of another batch's records, which come after those that are here.
    pub fn add_of(&mut self, other: &Batch, index: usize) {
        if let Ok(at) = other.kept.binary_search_by_key(&index, |(index, _)| *index) {
            let value = &other.kept[at].1;
            self.kept.push((self.index.len(), value.clone()));
            self.kept_bytes += value.len();
        }
        self.lines.extend_from_slice(other.line(index));
        let offset = other.offset(index);
        self.index.push(Entry { offset, end: self.lines.len() });
        self.pass_to(offset.next());
    }

    /// Empties the batch and keeps its memory, unless that is much more than `room`.
    pub fn clear(&mut self, room: usize) {
        self.lines.clear();
        if self.lines.capacity() / 2 > room {
            self.lines = vec![];
        }
        self.index.clear();
        self.kept.clear();
        self.kept_bytes = 0;
        (self.next, self.last, self.leader_epoch) = (None, None, None);
    }

    fn end_line(&mut self, record: &Record<'_>) {
        self.index.push(Entry { offset: record.offset, end: self.lines.len() });
        self.pass(record);
    }

    fn line(&self, index: usize) -> &[u8] {
        self.lines_of(index..index + 1)
    }

    /// Where the line begins, or the last one ends.
    fn start(&self, index: usize) -> usize {
        index.checked_sub(1).map_or(0, |before| self.index[before].end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(offset: i64, value: Option<&[u8]>) -> Record<'_> {
        Record {
            offset: Offset(offset),
            timestamp_ms: Some(1_700_000_000_000),
            key: Some(b"7"),
            headers: vec![],
            value,
            leader_epoch: Some(3),
        }
    }

    fn batch() -> Batch {
        Batch::new(&"products".parse::<crate::topic::Topic>().unwrap().partition(0))
    }

    fn line(record: &Record<'_>) -> String {
        let mut batch = batch();
        batch.push(record).unwrap();
        String::from_utf8(batch.lines().to_vec()).unwrap()
    }

    #[test]
    fn a_record_becomes_the_line_of_the_design() {
        let mut seven = record(42, Some(br#"{"id":7}"#));
        seven.headers = vec![("k".into(), Some(b"v"))];
        assert_eq!(
            line(&seven),
            concat!(
                r#"{"topic":"products","partition":0,"offset":42,"ts":1700000000000,"key":"7","#,
                r#""headers":[["k","v"]],"payload":{"id":7}}"#,
                "\n"
            )
        );
    }

    #[test]
    fn the_lines_take_no_more_memory_than_they_may_have() {
        let (mut batch, most) = (batch(), 100_000);
        let value = format!("{{\"text\":\"{}\"}}", "x".repeat(200));
        for offset in 0.. {
            let record = record(offset, Some(value.as_bytes()));
            batch.make_room(&record, most);
            batch.push(&record).unwrap();
            if batch.bytes() > most - 1000 {
                break;
            }
        }
        assert!(batch.lines.capacity() <= most, "{}", batch.lines.capacity());
    }

    #[test]
    fn a_batch_of_nothing_takes_the_offset_further_and_nothing_else() {
        let mut whole = batch();
        let one = Record { leader_epoch: Some(4), ..record(7, Some(b"1")) };
        whole.push(&one).unwrap();
        let last = whole.last();
        let mut nothing = batch();
        nothing.pass_to(Offset(12));
        whole.append(&nothing);
        assert_eq!((whole.next(), whole.leader_epoch(), whole.last()), (Some(Offset(12)), Some(4), last));
    }

    #[test]
    fn payload_bytes_stay_as_they_are_but_line_breaks() {
        let value = b" {\n\"id\": 18446744073709551616, \"x\":1e400,\r\n\"id\" :0.10000000000000000555} ";
        assert!(
            line(&record(0, Some(value))).ends_with(
                "\"payload\":{ \"id\": 18446744073709551616, \"x\":1e400,  \"id\" :0.10000000000000000555}}\n"
            )
        );
    }

    #[test]
    fn what_is_not_text_is_base64_and_a_tombstone_is_null() {
        let mut odd = record(0, None);
        odd.key = Some(b"\xff\x00");
        odd.headers = vec![("a".into(), None), ("b".into(), Some(b"\xff"))];
        odd.timestamp_ms = None;
        assert_eq!(
            line(&odd),
            concat!(
                r#"{"topic":"products","partition":0,"offset":0,"ts":null,"key_b64":"/wA=","#,
                r#""headers":[["a",null],["b",{"b64":"/w=="}]],"payload":null}"#,
                "\n"
            )
        );
    }

    #[test]
    fn a_value_that_is_not_json_can_be_given_as_it_is() {
        let values = [
            &b""[..],
            b" \t\n",
            b"{",
            b"{}{}",
            b"\"\n\"",
            b"nul",
            b"NaN",
            b"\"\xff\"",
            b"\xef\xbb\xbf{}",
            b"'7'",
            b"01",
        ];
        let mut batch = batch();
        for (offset, value) in (0..).zip(values) {
            assert!(batch.push(&record(offset, Some(value))).is_err(), "{}", value.escape_ascii());
            batch.push_raw(&record(offset, Some(value))).unwrap();
        }
        let first = r#"{"topic":"products","partition":0,"offset":0,"ts":1700000000000,"key":"7","headers":[],"payload_b64":""}"#;
        assert_eq!(batch.lines_of(0..1), format!("{first}\n").as_bytes());
        assert!(batch.lines_of(2..3).ends_with(b",\"payload_b64\":\"ew==\"}\n"));
        let got = (0..batch.len()).map(|index| batch.original(index).unwrap().value);
        assert_eq!(got.collect::<Vec<_>>(), values.map(|value| Some(value.to_vec())));
    }

    #[test]
    fn a_value_that_is_not_json_is_refused_and_leaves_the_batch_as_it_was() {
        let mut batch = batch();
        batch.push(&record(5, Some(b"1"))).unwrap();
        let before = batch.lines().to_vec();
        for value in [&b""[..], b"{", b"{}{}", b"\"\n\"", b"nul", b"\"\xff\""] {
            let error = batch.push(&record(6, Some(value))).unwrap_err();
            assert!(error.to_string().starts_with("it is "), "{error}");
        }
        assert_eq!((batch.lines(), batch.len(), batch.next()), (&before[..], 1, Some(Offset(6))));
    }

    #[test]
    fn the_offset_to_commit_is_the_next_one_to_read() {
        let mut batch = batch();
        assert_eq!(batch.next(), None);
        batch.push(&record(5, Some(b"1"))).unwrap();
        batch.pass(&record(9, Some(b"{")));
        assert_eq!((batch.range(), batch.next()), (Some((Offset(5), Offset(5))), Some(Offset(10))));
        assert_eq!(batch.last().map(|last| last.offset), Some(Offset(9)));
        batch.pass_to(Offset(17));
        assert_eq!(batch.next(), Some(Offset(17)));
    }

    #[test]
    fn lines_are_found_by_their_index() {
        let mut batch = batch();
        for (offset, value) in [(5, "1"), (8, "{\"id\":7}"), (9, "[]")] {
            batch.push(&record(offset, Some(value.as_bytes()))).unwrap();
        }
        let lines: Vec<&[u8]> = batch.lines().split_inclusive(|byte| *byte == b'\n').collect();
        assert_eq!([0, 1, 2].map(|index| batch.lines_of(index..index + 1)), lines[..]);
        assert_eq!([0, 1, 2].map(|index| batch.offset(index)), [Offset(5), Offset(8), Offset(9)]);
        assert_eq!((batch.lines_of(0..3), batch.lines_of(1..1)), (batch.lines(), &b""[..]));
        assert_eq!(batch.gather(&[0, 2]), [lines[0], lines[2]].concat());
    }

    #[test]
    fn a_record_is_read_back_byte_for_byte() {
        fn b(bytes: &[u8]) -> Option<&[u8]> {
            Some(bytes)
        }
        let values = [
            None,
            b(b"null"),
            b(b" null"),
            b(b"\"null\""),
            b(b"{\"id\":18446744073709551616,\"id\":-0,\"x\":1e400,\"y\":0.10000000000000000555}"),
            b(b"{\n  \"id\":\r\n 7\n}"),
            b(b" \t{\"id\":7}\r\n"),
            b("\"a\\\"\u{2028}ä\\ud800\\u0000\\n</script>\"".as_bytes()),
            b(b"[[],{\"__proto__\":{},\"\":1}]"),
        ];
        let keys = [None, b(b""), b(b"null"), b(b"a\0\"\\\x1b[31m\n"), b(b"\xff\x00"), b("\u{2028}ä".as_bytes())];
        let headers = [
            vec![],
            vec![
                ("a".into(), None),
                ("a".into(), b(b"")),
                ("\n\"".into(), b(b"\xff\"")),
                ("".into(), b(b"{\"b64\":1}")),
            ],
        ];
        let mut batch = batch();
        let mut expected = vec![];
        for (offset, value) in (0..).zip(values) {
            for key in keys {
                for headers in &headers {
                    batch.push(&Record { key, headers: headers.clone(), ..record(offset, value) }).unwrap();
                    let headers = headers.iter().map(|(name, value)| (name.to_string(), value.map(<[u8]>::to_vec)));
                    expected.push(Original {
                        key: key.map(<[u8]>::to_vec),
                        value: value.map(<[u8]>::to_vec),
                        headers: headers.collect(),
                    });
                }
            }
        }
        let got: Vec<Original> = (0..batch.len()).map(|index| batch.original(index).unwrap()).collect();
        assert_eq!(got, expected);
    }

    #[test]
    fn what_was_added_since_a_mark_can_be_taken_away() {
        let mut batch = batch();
        batch.push(&record(5, Some(b" 1"))).unwrap();
        let (mark, before) = (batch.mark(), format!("{batch:?}"));
        batch.push(&record(6, Some(b" 2"))).unwrap();
        batch.pass(&record(7, None));
        batch.back_to(mark);
        assert_eq!(format!("{batch:?}"), before);
    }

    #[test]
    fn of_records_with_the_same_key_only_the_last_stays() {
        let mut batch = batch();
        let keyed = |offset, key: &'static str, value: Option<&'static str>| Record {
            key: Some(key.as_bytes()),
            ..record(offset, value.map(str::as_bytes))
        };
        let bare = |offset, value: &'static str| Record { key: None, ..record(offset, Some(value.as_bytes())) };
        let records = [
            keyed(1, "a", Some("1")),
            bare(2, "[3]"),
            keyed(3, "b", Some("null")),
            keyed(4, "a", Some("{\n}")),
            bare(6, "[2]"),
            bare(7, "[3]"),
            keyed(8, "c", Some("1")),
            keyed(9, "c", None),
        ];
        for record in &records {
            batch.push(record).unwrap();
        }
        let line = |index: usize| batch.lines_of(index..index + 1).to_vec();
        let expected = [2, 3, 4, 5, 7].map(line);
        batch.coalesce();
        assert_eq!(
            [0, 1, 2, 3, 4].map(|index| batch.lines_of(index..index + 1)),
            expected.each_ref().map(Vec::as_slice)
        );
        assert_eq!(batch.lines(), expected.concat());
        assert_eq!((batch.len(), batch.range(), batch.next()), (5, Some((Offset(3), Offset(9))), Some(Offset(10))));
        let values = [0, 1, 2].map(|index| batch.original(index).unwrap().value);
        assert_eq!(values, [Some(b"null".to_vec()), Some(b"{\n}".to_vec()), Some(b"[2]".to_vec())]);
    }

    #[test]
    fn the_key_orders_a_record_and_without_one_its_payload() {
        let one = Some(&b"1"[..]);
        let keyed = |key: &'static [u8], value| Record { key: Some(key), ..record(0, value) };
        let bare = |value| Record { key: None, ..record(0, value) };
        let mut batch = batch();
        for record in [
            keyed(b"7", one),
            keyed(b"7", Some(b"[2]")),
            keyed(b"7", None),
            keyed(b"8", one),
            keyed(b"/w==", one),
            keyed(b"\xff", one),
            keyed(b"", one),
            bare(Some(b"\"7\"")),
            bare(Some(b" \"7\"\n")),
            bare(None),
            bare(Some(b"null")),
        ] {
            batch.push(&record).unwrap();
        }
        let orders: Vec<Order<'_>> = (0..batch.len()).map(|index| batch.order(index).unwrap()).collect();
        let first_equal = |order| orders.iter().position(|other| other == order).unwrap();
        // The last is told apart from a tombstone by nobody who sees its line.
        assert_eq!(orders.iter().map(first_equal).collect::<Vec<_>>(), [0, 0, 0, 3, 4, 5, 6, 7, 7, 9, 9]);
    }
}
