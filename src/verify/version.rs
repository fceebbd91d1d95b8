//! Versions of a row, as the primary and a store write them, and when two of them are the same.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use anyhow::{Context, Result};
use serde_json::value::RawValue;

/// Powers of ten up to here are written out; no floating point number has larger ones.
const LARGEST_POWER: usize = 400;

/// Any JSON. Two are equal that say the same, however it is written: the order of members and blanks count for nothing, `1.50` is
/// `1.5`, and a number is the text that some stores make of it.
#[derive(Clone, Debug)]
pub(super) struct Version {
    pub json: Box<RawValue>,
    /// The one form of all that say the same.
    canonical: String,
}

impl PartialEq for Version {
    fn eq(&self, other: &Version) -> bool {
        self.canonical == other.canonical
    }
}

impl Version {
    pub fn of(json: &RawValue) -> Result<Version> {
        let mut canonical = String::with_capacity(json.get().len());
        write(json.get(), &mut canonical)?;
        Ok(Version { json: json.to_owned(), canonical })
    }

    /// Small enough to be kept for later; the same for equal versions in this process.
    pub fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.canonical.hash(&mut hasher);
        hasher.finish()
    }
}

fn write(json: &str, out: &mut String) -> Result<()> {
    match json.as_bytes().first() {
        Some(b'{') => {
            let members: BTreeMap<String, &RawValue> = serde_json::from_str(json)?;
            out.push('{');
            for (name, value) in members {
                out.push_str(&serde_json::to_string(&name)?);
                out.push(':');
                write(value.get(), out)?;
                out.push(',');
            }
            out.push('}');
        }
        Some(b'[') => {
            out.push('[');
            for item in serde_json::from_str::<Vec<&RawValue>>(json)? {
                write(item.get(), out)?;
                out.push(',');
            }
            out.push(']');
        }
        // Escapes may be written in several ways.
        Some(b'"') => out.push_str(&serde_json::to_string(&serde_json::from_str::<String>(json)?)?),
        Some(b'-' | b'0'..=b'9') => {
            out.push('"');
            out.push_str(&number(json).with_context(|| format!("the number {json} is too large"))?);
            out.push('"');
        }
        _ => out.push_str(json),
    }
    Ok(())
}

/// The one form of all that mean the same number; exact, so that long decimals differ where they do.
fn number(json: &str) -> Result<String> {
    let (json, sign) = json.strip_prefix('-').map_or((json, ""), |digits| (digits, "-"));
    let (mantissa, power) = json.split_once(['e', 'E']).unwrap_or((json, "0"));
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let mut power: i64 = power.parse::<i64>()?.checked_sub(i64::try_from(part.len())?).context("out of range")?;
    let digits = format!("{whole}{part}");
    let short = digits.trim_start_matches('0').trim_end_matches('0');
    if short.is_empty() {
        return Ok("0".to_owned());
    }
    let zeros = i64::try_from(digits.len() - digits.trim_end_matches('0').len())?;
    power = power.checked_add(zeros).context("out of range")?;
    let size = usize::try_from(power.unsigned_abs())?;
    Ok(match power {
        _ if size > LARGEST_POWER => format!("{sign}{short}e{power}"),
        0.. => format!("{sign}{short}{}", "0".repeat(size)),
        _ if size < short.len() => format!("{sign}{}.{}", &short[..short.len() - size], &short[short.len() - size..]),
        _ => format!("{sign}0.{}{short}", "0".repeat(size - short.len())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(json: &str) -> Version {
        Version::of(serde_json::from_str(json).unwrap()).unwrap()
    }

    #[test]
    fn what_means_the_same_is_the_same_version() {
        for same in [
            &["7", "7.0", "70e-1", "0.7E1", "\"7\""][..],
            &["-0.05", "-5e-2", "-0.0500", "\"-0.05\""],
            &["0", "-0", "0.0", "0e5"],
            &["1e16", "10000000000000000", "1E+16"],
            &["12345678901234567890.10", "\"12345678901234567890.1\""],
            &["1e999", "10e998"],
            &["\"\\u00e9\"", "\"é\""],
            &[r#"{"a":1,"b":[2.50,null]}"#, r#" { "b" : [ 2.5, null ], "a" : 1.0 } "#],
        ] {
            for one in same {
                assert_eq!(version(one), version(same[0]), "{one}");
                assert_eq!(version(one).digest(), version(same[0]).digest(), "{one}");
            }
        }
    }

    #[test]
    fn what_differs_is_another_version() {
        let all = [
            "1",
            "-1",
            "10",
            "0.1",
            "1e999",
            "1e-999",
            "true",
            "false",
            "null",
            "\"\"",
            "\"01\"",
            "\"1.0\"",
            "\"null\"",
            "[]",
            "[1]",
            "[1,1]",
            "[[1],1]",
            "{}",
            r#"{"a":1}"#,
            r#"{"b":1}"#,
            r#"{"a":{"a":1}}"#,
            r#"{"a":null}"#,
            "12345678901234567890.1",
            "12345678901234567890.2",
        ];
        for (at, one) in all.iter().enumerate() {
            for other in &all[at + 1..] {
                assert_ne!(version(one), version(other));
            }
        }
    }
}
