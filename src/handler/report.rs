//! What a handler says of single records: lines on `KSYNC_RESULT_FD`, in our own form or that of AWS Lambda.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;

use crate::topic::Offset;

/// What a run has said of single records. It may have said nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub records: BTreeMap<Offset, Said>,
}

/// What was said of a record; of two lines about the same record the later one counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    Ok,
    Failed {
        error: String,
        /// It will never work.
        is_permanent: bool,
    },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Own {
        offset: i64,
        status: Status,
        #[serde(default)]
        error: String,
        #[serde(default)]
        permanent: bool,
    },
    Lambda {
        #[serde(rename = "batchItemFailures")]
        failures: Vec<Item>,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    Fail,
}

/// Source: AWS Lambda's "partial batch response"; there it is a text, and some write a number.
#[derive(Deserialize)]
struct Item {
    #[serde(rename = "itemIdentifier")]
    identifier: Identifier,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Identifier {
    Text(String),
    Number(i64),
}

impl Report {
    /// Reads the lines of one run. Empty lines mean nothing.
    ///
    /// Fails, naming the line, where one is not of either form.
    pub fn parse(lines: &[u8]) -> Result<Report> {
        let mut records = BTreeMap::new();
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
            let shown = || format!("the result line '{}'", String::from_utf8_lossy(&line[..line.len().min(200)]));
            let neither = || {
                anyhow!("it is neither {{\"offset\":..,\"status\":\"ok\"|\"fail\"}} nor {{\"batchItemFailures\":[..]}}")
            };
            let parsed = match line.trim_ascii_start().starts_with(b"{") {
                true => serde_json::from_slice(line).map_err(|error| match error.classify() {
                    // What serde says of an untagged form names no member.
                    serde_json::error::Category::Data => neither(),
                    _ => error.into(),
                }),
                // serde takes a list of the members' values for an object.
                false => Err(neither()),
            };
            match parsed.with_context(|| format!("cannot read {}", shown()))? {
                Line::Own { offset, status: Status::Ok, .. } => {
                    records.insert(Offset(offset), Said::Ok);
                }
                Line::Own { offset, status: Status::Fail, error, permanent } => {
                    records.insert(Offset(offset), Said::Failed { error, is_permanent: permanent });
                }
                Line::Lambda { failures } => {
                    for Item { identifier } in failures {
                        let offset = identifier.offset().with_context(|| format!("cannot read {}", shown()))?;
                        records.insert(offset, Said::Failed { error: String::new(), is_permanent: false });
                    }
                }
            }
        }
        Ok(Report { records })
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

impl Identifier {
    fn offset(&self) -> Result<Offset> {
        match self {
            Identifier::Number(offset) => Ok(Offset(*offset)),
            Identifier::Text(text) => match text.parse() {
                Ok(offset) => Ok(Offset(offset)),
                Err(_) => bail!("the itemIdentifier '{text}' is not an offset"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_the_later_line_counts() {
        let lines = br#"{"offset":42,"status":"fail","error":"no such index","permanent":true}
{"offset":43,"status":"ok"}

{"batchItemFailures":[{"itemIdentifier":"44"},{"itemIdentifier":45}]}
{"offset":44,"status":"ok","anything":"else"}
{"batchItemFailures":[]}"#;
        let failed = |error: &str, is_permanent| Said::Failed { error: error.into(), is_permanent };
        let records = [
            (Offset(42), failed("no such index", true)),
            (Offset(43), Said::Ok),
            (Offset(44), Said::Ok),
            (Offset(45), failed("", false)),
        ];
        assert_eq!(Report::parse(lines).unwrap().records, BTreeMap::from(records));
        assert!(Report::parse(b"\n \n").unwrap().is_empty());
    }

    #[test]
    fn a_line_of_another_form_is_named() {
        let form = "it is neither {\"offset\":..,\"status\":\"ok\"|\"fail\"} nor {\"batchItemFailures\":[..]}";
        for (line, why) in [
            ("{\"offset\":1}", form),
            ("{\"offset\":1,\"status\":\"done\"}", form),
            ("{\"offset\":1,\"sta", "EOF while parsing a string at line 1 column 16"),
            ("ok", form),
            ("[42,\"ok\"]", form),
            ("{\"batchItemFailures\":[{\"itemIdentifier\":\"x\"}]}", "the itemIdentifier 'x' is not an offset"),
        ] {
            let error = Report::parse(format!("\n{line}").as_bytes()).unwrap_err();
            assert_eq!(format!("{error:#}"), format!("cannot read the result line '{line}': {why}"));
        }
    }
}
