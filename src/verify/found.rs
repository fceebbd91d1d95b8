//! What differs, and how that is told.

use std::io::{self, Write};

use anyhow::{Context, Result};
use log::{info, warn};
use serde::Serialize;
use serde_json::value::RawValue;

use super::suspects::Held;
use super::version::Version;

/// What was found in the end.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub missing: u64,
    pub stale: u64,
    pub surplus: u64,
    /// What the store has under them has changed between the looks, and differed at each.
    pub changing: u64,
    /// Listed by the store, though they can be no keys of the table.
    pub unfit: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Difference {
    /// The store does not hold the row.
    Missing,
    /// It holds another version of it.
    Stale,
    /// It holds what the primary does not have.
    Surplus,
}

/// What a second look says of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Equal,
    Differs(Difference),
    /// It differed at both looks, but the store has changed in between: it follows.
    Changing,
}

impl Verdict {
    /// `before` is what the store held at the first look, `held` what it holds now, `row` what the primary has now.
    pub fn of(before: Held, held: Option<&Version>, row: Option<&Version>, is_cache: bool) -> Verdict {
        let difference = match (row, held) {
            (None, None) => return Verdict::Equal,
            (Some(row), Some(held)) if row == held => return Verdict::Equal,
            (Some(_), None) if is_cache => return Verdict::Equal,
            (Some(_), None) => Difference::Missing,
            (Some(_), Some(_)) => Difference::Stale,
            (None, Some(_)) => Difference::Surplus,
        };
        if before == Held::of(held) { Verdict::Differs(difference) } else { Verdict::Changing }
    }
}

impl Found {
    pub fn differences(&self) -> u64 {
        self.missing + self.stale + self.surplus
    }

    pub fn count(&mut self, difference: Difference) {
        match difference {
            Difference::Missing => self.missing += 1,
            Difference::Stale => self.stale += 1,
            Difference::Surplus => self.surplus += 1,
        }
    }

    /// For people: how many there are, and of those that were announced, how many are left.
    pub fn tell(&self, left: Option<u64>) {
        let Found { missing, stale, surplus, changing, unfit } = self;
        if *changing > 0 {
            info!("{changing} keys differed at each look, but the store had changed them in between: it follows them");
        }
        if *unfit > 0 {
            warn!("{unfit} keys of the store cannot be keys of the table: delete them there");
        }
        let all = self.differences();
        let kinds = format!("{all} differences: {missing} missing, {stale} stale, {surplus} surplus");
        match left {
            _ if all == 0 && changing + unfit > 0 => {}
            _ if all == 0 => info!("no difference"),
            None => info!("{kinds}; --repair announces them"),
            Some(0) => info!("{kinds}; they were announced, and are gone"),
            Some(left) => {
                warn!("{kinds}; they were announced, {left} of them are left: look at the log of the consumer")
            }
        }
    }
}

pub(super) fn print(line: &Line<'_>) -> Result<()> {
    let line = serde_json::to_string(line)?;
    writeln!(io::stdout(), "{line}").context("cannot print the differences")
}

/// A difference as it is printed.
#[derive(Serialize)]
pub(super) struct Line<'a> {
    pub key: &'a str,
    pub difference: Difference,
    /// That of the primary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<&'a RawValue>,
    /// That of the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_counts_once_the_store_had_its_time_and_has_not_used_it() {
        let version = |json: &str| Version::of(serde_json::from_str(json).unwrap()).unwrap();
        let (one, two, three) = (version("1"), version("2"), version("3"));
        let held = |version| Held::of(Some(version));
        use Difference::{Missing, Stale, Surplus};
        use Verdict::{Changing, Differs, Equal};
        for (before, now, row, expected) in [
            (Held::Nothing, None, Some(&one), Differs(Missing)),
            (held(&one), None, Some(&one), Changing),
            (held(&one), Some(&one), Some(&two), Differs(Stale)),
            (held(&one), Some(&two), Some(&two), Equal),
            // The row has changed again since, and the store before that.
            (held(&one), Some(&two), Some(&three), Changing),
            (Held::Nothing, Some(&two), Some(&three), Changing),
            (held(&one), Some(&one), None, Differs(Surplus)),
            (Held::Nothing, Some(&one), None, Changing),
        ] {
            assert_eq!(Verdict::of(before, now, row, false), expected, "{before:?}, {now:?}, {row:?}");
        }
        assert_eq!(Verdict::of(Held::Nothing, None, Some(&one), true), Equal);
    }
}
