//! What a run would do, for a person who is to decide whether it may.

use std::time::{Duration, Instant};

use anyhow::Result;
use humantime::format_duration;

use super::journal::{Beginning, Keep, Resume};
use super::pace::Rate;
use super::source::ChunkLimits;
use super::status::printable;
use super::{Action, failure};
use crate::announce::Phases;
use crate::database::{Database, Limit, Position, Scan};
use crate::topic::Topic;

/// What is left to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prospect {
    /// The job was finished.
    Over,
    /// No rows are left; that the job is finished is to be noted.
    NoRows,
    Rows,
}

/// A run before it begins.
pub struct Plan<'a> {
    pub database: &'a mut Database,
    /// Behind what is done.
    pub scan: &'a Scan,
    /// About how many rows are left, where that is known.
    pub left: Option<u64>,
    pub action: Option<&'a Action>,
    /// The words of a command.
    pub command: &'a [String],
    pub phases: Phases,
    pub chunk: ChunkLimits,
    pub topic: &'a Topic,
    /// Those that are written to.
    pub partitions: usize,
    pub delay: Duration,
    pub rate: Rate,
    pub pause: Duration,
    pub resume: &'a Resume,
    pub beginning: &'a Beginning,
}

impl Plan<'_> {
    /// Line by line, and what is left to be done. Reads the first chunk and the last row, and changes nothing.
    pub async fn lines(&mut self) -> Result<(Vec<String>, Prospect)> {
        let limit = Limit { rows: self.chunk.rows, bytes: self.chunk.bytes };
        let mut lines: Vec<String> = self.beginning.told.iter().cloned().collect();
        if self.beginning.is_over {
            return Ok((lines, Prospect::Over));
        }
        let Some((first, last)) = self.database.edges(self.scan).await.map_err(failure)? else {
            lines.push(format!("{} has no rows left: nothing would be done", self.scan.label()));
            return Ok((lines, Prospect::NoRows));
        };
        let begun = Instant::now();
        let chunk_end = self.database.peek(self.scan, limit).await.map_err(failure)?;
        let (took, size) = (begun.elapsed(), chunk_end.as_ref().map(|(size, _)| *size));
        let Plan { scan, left, chunk, action, phases, topic, partitions, resume, .. } = &*self;
        let (first, last, key) = (shown(&first), shown(&last), scan.key_names());
        let rows = left.map_or("an unknown number of rows".to_owned(), |left| format!("about {left} rows"));
        lines.push(format!("{} in {}: {rows} by {key}, from {first} to {last}", scan.label(), resume.job.place()));
        let chunks = left.map(|left| left.div_ceil(chunk.rows as u64));
        // With more than keys the first ones are smaller, nobody knows how many of them.
        let count = chunks.filter(|_| !scan.tells_more_than_keys());
        let count = count.map_or("chunks".to_owned(), |count| format!("about {count} chunks"));
        if let Some((size, end)) = chunk_end {
            lines.push(format!(
                "{count} of at most {} rows, the first of them has {size}, up to {key} {}",
                chunk.rows,
                shown(&end)
            ));
        }
        lines.push("for each chunk:".to_owned());
        let place = format!("({partitions} partitions)");
        if *phases != Phases::InstantOnly {
            let held = format_duration(self.delay);
            lines.push(format!("  delay messages to {topic}-delay {place}, acknowledged; they are held for {held}"));
        }
        match action {
            None => {}
            Some(Action::Sql { statement, .. }) => {
                let sql = statement.shown(scan.key().names().len(), &format!("the keys from {first} on"));
                // Line by line: what stands behind a comment must not be taken for a part of it.
                lines.extend(sql.trim().lines().map(|line| format!("  {}", line.replace('\t', "    "))));
                if let Some(place) = resume.job.action_place() {
                    lines.push(format!("    in {place}"));
                }
            }
            Some(Action::Command(_)) => lines.push(format!("  {}, with the payloads on stdin", self.command.join(" "))),
        }
        if *phases != Phases::DelayOnly {
            lines.push(format!("  instant messages to {topic} {place}, acknowledged"));
        }
        if let Some(left) = left {
            lines.push(format!("each consumer of {topic} gets about {} records", phases.count() * left));
        }
        // Of more than keys the first chunk is small.
        let known = left.zip(size).filter(|_| !scan.tells_more_than_keys());
        if let Some(time) = known.and_then(|(left, size)| reading_time(left, size, took)) {
            lines.push(format!("reading alone takes about {} at the pace of the first chunk", format_duration(time)));
        }
        if let Some(time) = self.least_time(chunks) {
            lines.push(format!("it takes at least {} by --rate and --pause", format_duration(time)));
        }
        lines.extend(self.repeats());
        Ok((lines, Prospect::Rows))
    }

    fn least_time(&self, chunks: Option<u64>) -> Option<Duration> {
        let pauses = self.pause.checked_mul(u32::try_from(chunks?).ok()?)?;
        let rows = self.rate.time_of(usize::try_from(self.left?).ok()?);
        let time = pauses.max(rows);
        // To the second: it is an estimate.
        (time > Duration::ZERO).then(|| Duration::from_secs(time.as_secs().max(1)))
    }

    /// What comes of a run that dies.
    fn repeats(&self) -> Option<String> {
        let harm = match self.action? {
            Action::Sql { .. } if self.phases != Phases::InstantOnly => {
                "which does no harm to SET a = 1, but to SET a = a + 1; --checkpoint-table avoids that"
            }
            Action::Sql { .. } => "which does no harm to SET a = 1, but to SET a = a + 1",
            Action::Command(_) => "which has to do no harm",
        };
        Some(match self.resume.keep {
            Keep::Table(_) => "should it die, the next run goes on, and changes no row twice".to_owned(),
            Keep::File(_) => format!("should it die, the next run goes on, and may do one chunk twice, {harm}"),
            Keep::Nowhere => format!("should it die, the next run does all again, {harm}"),
        })
    }
}

/// How long it takes to read so many rows where the first ones took so long; `None` where it is too short to be told by that.
fn reading_time(left: u64, rows: usize, took: Duration) -> Option<Duration> {
    let minutes = took.as_secs_f64() * left as f64 / rows as f64 / 60.0;
    (minutes >= 1.0).then(|| Duration::from_secs((minutes as u64).saturating_mul(60)))
}

fn shown(key: &Position) -> String {
    printable(key.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_reading_is_told_in_minutes() {
        let time = |left, rows, millis| {
            let time = reading_time(left, rows, Duration::from_millis(millis));
            time.map(|time| format_duration(time).to_string())
        };
        assert_eq!(time(100_000_000, 1000, 50), Some("1h 23m".to_owned()));
        assert_eq!(time(60_000, 1000, 1000), Some("1m".to_owned()));
        assert_eq!(time(59_000, 1000, 1000), None);
    }
}
