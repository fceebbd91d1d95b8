//! Record lines of a file as the batches that a handler would be given.

use std::collections::HashMap;
use std::io::BufRead;

use anyhow::{Context, Result, ensure};

use super::line::Line;
use crate::fit::Skip;
use crate::intake::{Limits, Load, OnInvalid, Stop};
use crate::topic::{Offset, TopicPartition};

/// How batches are made of lines.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    pub limits: Limits,
    pub on_invalid: OnInvalid,
    pub skips: Vec<Skip>,
    /// How much all records may take, in bytes.
    pub memory: usize,
}

/// Batches in the order of their first lines.
struct Batches<'a> {
    reading: &'a Reading,
    loads: Vec<Load>,
    /// Of each partition the last offset, and which batch is its latest.
    partitions: HashMap<TopicPartition, (Offset, usize)>,
    bytes: usize,
}

impl Reading {
    /// Reads all lines, whose batches come in the order of their first lines.
    ///
    /// Fails, naming the line, where one is no record's, or does not come after the one before it of its partition.
    pub fn read(&self, mut input: impl BufRead) -> Result<Vec<Load>> {
        let mut batches = Batches { reading: self, loads: vec![], partitions: HashMap::new(), bytes: 0 };
        let mut line = vec![];
        for number in 1u64.. {
            line.clear();
            if input.read_until(b'\n', &mut line)? == 0 {
                break;
            }
            if !line.trim_ascii().is_empty() {
                batches.take(&line, number).with_context(|| format!("line {number}"))?;
            }
        }
        if self.limits.coalesce {
            batches.loads.iter_mut().for_each(|load| load.batch.coalesce());
        }
        Ok(batches.loads)
    }
}

impl Batches<'_> {
    fn take(&mut self, line: &[u8], number: u64) -> Result<()> {
        let line = Line::parse(line)?;
        let (partition, offset) = (line.partition.clone(), line.offset);
        let latest = self.partitions.get(&partition).copied();
        if let Some((last, _)) = latest {
            ensure!(offset > last, "offset {offset} of {partition} does not come after {last}");
        }
        let mut index = match latest {
            Some((_, index)) => index,
            None => self.begin(&partition),
        };
        if self.loads[index].stop.is_none() {
            if self.loads[index].is_full(&self.reading.limits) || !self.add(index, &line)? {
                index = self.begin(&partition);
                self.add(index, &line)?;
            }
            if let Some(Stop::Invalid(why)) = self.loads[index].stop.take() {
                self.loads[index].stop = Some(Stop::Invalid(why.context(format!("line {number}"))));
            }
        }
        self.partitions.insert(partition, (offset, index));
        let room = self.reading.memory;
        ensure!(self.bytes <= room, "the records up to here take more than {room} bytes (--memory)");
        Ok(())
    }

    fn begin(&mut self, partition: &TopicPartition) -> usize {
        self.loads.push(Load::new(partition));
        self.loads.len() - 1
    }

    /// Whether there was room for it.
    fn add(&mut self, index: usize, line: &Line<'_>) -> Result<bool> {
        let load = &mut self.loads[index];
        let is_this = |skip: &Skip| skip.partition == line.partition && skip.offset == line.offset;
        if self.reading.skips.iter().any(is_this) {
            load.batch.pass_to(line.offset.next());
            return Ok(true);
        }
        let before = load.bytes();
        let had_room = line.add_to(load, (self.reading.on_invalid, self.reading.limits.bytes))?;
        self.bytes += load.bytes() - before;
        Ok(had_room)
    }
}
