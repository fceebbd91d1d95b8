//! How far a job is, as it is kept for the next run.

use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::job::Job;
use crate::database::Position;

/// The version of what is written here.
const VERSION: u32 = 1;

/// How far a job is: all chunks up to a row are done, and nothing behind it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Checkpoint {
    v: u32,
    pub job: Job,
    /// The key of the last row that is done.
    pub last: Option<Position>,
    pub rows: u64,
    pub messages: u64,
    pub chunks: u64,
    pub finished: bool,
    /// When the first run began, and when this was written.
    begun: String,
    pub written: String,
}

impl Checkpoint {
    /// Before the first row.
    pub fn new(job: Job) -> Checkpoint {
        let now = now();
        Checkpoint {
            v: VERSION,
            job,
            last: None,
            rows: 0,
            messages: 0,
            chunks: 0,
            finished: false,
            begun: now.clone(),
            written: now,
        }
    }

    /// Fails for what was cut off, and for what a later release may have written.
    pub fn parse(text: &str) -> Result<Checkpoint> {
        #[derive(Deserialize)]
        struct Version {
            v: u32,
        }
        let damaged = "it is no checkpoint, or only a part of one";
        let Version { v } = serde_json::from_str(text).context(damaged)?;
        ensure!(v <= VERSION, "it has version {v}, of a later ksync-stream; this one knows {VERSION}");
        serde_json::from_str(text).context(damaged)
    }

    pub fn text(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// What is to be kept once a chunk is done that ends at `last`.
    pub fn after(&self, last: Option<Position>, rows: u64, messages: u64) -> Checkpoint {
        Checkpoint {
            last,
            rows: self.rows + rows,
            messages: self.messages + messages,
            chunks: self.chunks + 1,
            written: now(),
            ..self.clone()
        }
    }

    /// What is to be kept once there are no more rows.
    pub fn at_end(&self) -> Checkpoint {
        Checkpoint { finished: true, written: now(), ..self.clone() }
    }
}

fn now() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_read_as_it_was_written_and_nothing_else_is_taken_for_one() {
        let checkpoint = Checkpoint::new(Job::new([("table", Some("products".to_owned()))]));
        let checkpoint = checkpoint.after(serde_json::from_str(r#"[{"integer":7}]"#).unwrap(), 7, 14).at_end();
        let text = checkpoint.text().unwrap();
        assert_eq!(Checkpoint::parse(&text).unwrap(), checkpoint);

        let told = |text: &str| format!("{:#}", Checkpoint::parse(text).unwrap_err());
        // The line break at its end may be missing.
        for length in 0..text.len() - 1 {
            let told = told(&text[..length]);
            assert!(told.starts_with("it is no checkpoint, or only a part of one: "), "{length}: {told}");
        }
        let later = text.replacen("\"v\": 1", "\"v\": 2", 1).replace("rows", "lines");
        assert_eq!(told(&later), "it has version 2, of a later ksync-stream; this one knows 1");
    }
}
