//! What a store holds, as a command of the user tells it.

use std::collections::HashMap;
use std::future::{pending, ready};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use super::primary::Rows;
use super::version::Version;
use crate::exit::Exit;
use crate::handler::{Command, Environment, Input, Terms, new_id};
use crate::message::key_of_parts;
use crate::record::write_without_breaks;
use crate::stream::ended;

/// How many pieces of its output are there before the command has to wait.
const PIECES: usize = 4;

/// The command: with rows on its stdin it prints what the store holds of them, with `--list` all keys that the store holds.
pub struct Store {
    tells: Command,
    lists: Command,
    /// The columns that make a version, as the command is told them.
    columns: String,
}

/// A line of its output.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    key: &'a RawValue,
    #[serde(borrow, default, deserialize_with = "even_null")]
    version: Option<&'a RawValue>,
}

/// A column may be NULL.
fn even_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// A key and the version that the store holds.
type Told = (String, Option<Version>);

impl Store {
    /// `columns` make a version; none means all.
    pub fn new(argv: &[String], columns: &[String]) -> Result<Store> {
        let terms = Terms { timeout: Duration::MAX, allows_unread: false };
        let command = |more: &[&str]| {
            let argv = argv.iter().cloned().chain(more.iter().map(|word| (*word).to_owned())).collect();
            Command::check(argv, terms, &Environment::Ours).map_err(|error| Exit::Misconfigured.because(error))
        };
        Ok(Store { tells: command(&[])?, lists: command(&["--list"])?, columns: columns.join(",") })
    }

    /// The versions that it holds of these rows.
    pub(super) async fn held(&self, rows: &Rows) -> Result<Vec<Option<Version>>> {
        let mut lines = Vec::new();
        for ((key, named), version) in rows.keys().zip(&rows.named).zip(&rows.versions) {
            lines.extend_from_slice(b"{\"key\":");
            serde_json::to_writer(&mut lines, key)?;
            lines.extend_from_slice(b",\"payload\":");
            write_without_breaks(&mut lines, &named.payload);
            lines.extend_from_slice(b",\"version\":");
            let version = version.as_ref().map_or("null", |version| version.json.get());
            write_without_breaks(&mut lines, version.as_bytes());
            lines.extend_from_slice(b"}\n");
        }
        let places: HashMap<&str, usize> = rows.keys().zip(0..).collect();
        let mut held = vec![None; rows.named.len()];
        let (sender, mut pieces) = Store::pieces();
        let telling = self.run(&self.tells, &lines, sender);
        let hearing = async {
            while let Some(piece) = pieces.recv().await {
                for told in parse(&piece) {
                    let (key, version) = told?;
                    let at =
                        *places.get(key.as_str()).with_context(|| format!("{WRONG}: nobody asked for key '{key}'"))?;
                    ensure!(held[at].is_none(), "{WRONG}: it told twice of key '{key}'");
                    held[at] = Some(version.with_context(|| format!("{WRONG}: key '{key}' has no version"))?);
                }
            }
            Ok(())
        };
        tokio::try_join!(hearing, telling)?;
        Ok(held)
    }

    /// Has it print all keys that it holds; they are read by [`parse`].
    pub(super) async fn list(&self, pieces: mpsc::Sender<Vec<u8>>) -> Result<()> {
        self.run(&self.lists, b"", pieces).await
    }

    /// The sender is gone once the command has ended.
    async fn run(&self, command: &Command, lines: &[u8], pieces: mpsc::Sender<Vec<u8>>) -> Result<()> {
        let environment = [("KSYNC_BATCH_ID", new_id()), ("KSYNC_VERSION_COLUMN", self.columns.clone())];
        let input = Input { label: "store", lines, environment: &environment, told: Some(&pieces) };
        ended(command.run(input, ready(true), pending()).await, "the command that tells what the store holds", "")
    }

    /// For [`Store::list`].
    pub(super) fn pieces() -> (mpsc::Sender<Vec<u8>>, mpsc::Receiver<Vec<u8>>) {
        mpsc::channel(PIECES)
    }
}

const WRONG: &str = "the command is not one for --verify";

/// Each line of a piece of its output.
pub(super) fn parse(piece: &[u8]) -> impl Iterator<Item = Result<Told>> {
    let lines = piece.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    lines.map(|line| {
        parse_line(line).with_context(|| {
            let shown = String::from_utf8_lossy(&line[..line.len().min(200)]);
            format!("{WRONG}: it printed '{}' where {{\"key\":..,\"version\":..}} was to come", shown.escape_debug())
        })
    })
}

fn parse_line(line: &[u8]) -> Result<Told> {
    let Line { key, version } = serde_json::from_slice(line)?;
    let key = match key.get() {
        text if text.starts_with('"') => serde_json::from_str(text)?,
        "null" => return Err(anyhow!("the key is null")),
        parts if parts.starts_with('[') => key_of_parts(&serde_json::from_str::<Vec<_>>(parts)?)?,
        other => other.to_owned(),
    };
    Ok((key, version.map(Version::of).transpose()?))
}
