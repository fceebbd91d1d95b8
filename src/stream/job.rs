//! What a run does, part by part, so that a later one can tell whether it does the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::database::ROW_SECURITY;

const SERVER: &str = "server";
const DATABASE: &str = "database";
/// Where the statement is run, if that is not where the rows are read.
const ACTION_SERVER: &str = "action server";
const ACTION_DATABASE: &str = "action database";

/// Those who ask a database: another one is a difference only where row security may show other rows to them.
const USERS: [&str; 2] = ["user", "action user"];

/// The parts by which a job gets no other number, so that what is kept of it is found and compared; where one of two jobs does
/// not tell one of them, that is no difference.
const OUTSIDE_THE_NUMBER: [&str; 7] =
    [SERVER, ACTION_SERVER, "cluster", "time zone", "session sql", "user", "action user"];

/// The parts of a job by their names, in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Job(BTreeMap<String, String>);

impl Job {
    pub fn new(parts: impl IntoIterator<Item = (&'static str, Option<String>)>) -> Job {
        let named = parts.into_iter().filter_map(|(name, part)| Some((name.to_owned(), part?)));
        Job(named.collect())
    }

    /// The job's number in a database, the same over all addresses of that database.
    pub fn number(&self) -> u64 {
        let parts = self.0.iter().filter(|(name, _)| !OUTSIDE_THE_NUMBER.contains(&name.as_str()));
        fnv(parts.flat_map(|(name, part)| [name.as_str(), "\0", part, "\0"]).flat_map(str::bytes))
    }

    /// The job on any address of its databases: what lies in one of them moves with it.
    pub fn anywhere(mut self) -> Job {
        self.0.retain(|name, _| ![SERVER, ACTION_SERVER].contains(&name.as_str()));
        self
    }

    /// The same job, with what is known of it now; of what is not the old parts stay.
    pub fn extended(mut self, now: Job) -> Job {
        self.0.extend(now.0);
        self
    }

    /// Where the rows are read, in words: `postgres at db1:5432, shop, schema public`.
    pub fn place(&self) -> String {
        self.joined(&[SERVER, DATABASE])
    }

    /// Where the statement is run, if that is elsewhere.
    pub fn action_place(&self) -> Option<String> {
        self.0.contains_key(ACTION_DATABASE).then(|| self.joined(&[ACTION_SERVER, ACTION_DATABASE]))
    }

    fn joined(&self, names: &[&str]) -> String {
        names.iter().filter_map(|name| self.0.get(*name).map(String::as_str)).collect::<Vec<_>>().join(", ")
    }

    /// Each difference in words: `table: products there, orders here`.
    pub fn differences(&self, there: &Job) -> Vec<String> {
        let names: BTreeSet<_> = self.0.keys().chain(there.0.keys()).collect();
        let told = |job: &Job, name| job.0.get(name).map_or("none".to_owned(), String::clone);
        let counts = |name: &str| {
            let is_told_by_both = self.0.contains_key(name) && there.0.contains_key(name);
            is_told_by_both || !OUTSIDE_THE_NUMBER.contains(&name)
        };
        let differ = |name: &String| match (self.0.get(name), there.0.get(name)) {
            (Some(here), Some(there)) if USERS.contains(&name.as_str()) => is_another_user(here, there),
            (here, there) => here != there,
        };
        let differing = names.into_iter().filter(|name| counts(name) && differ(name));
        differing.map(|name| format!("{name}: {} there, {} here", told(there, name), told(self, name))).collect()
    }
}

/// Enough to know it by: `topic products, table products`.
impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let named =
            ["topic", "table", "query"].iter().filter_map(|name| Some(format!("{name} {}", self.0.get(*name)?)));
        f.write_str(&named.collect::<Vec<_>>().join(", "))
    }
}

fn is_another_user(one: &str, other: &str) -> bool {
    let named = |user: &str| user.strip_suffix(ROW_SECURITY).unwrap_or(user).to_owned();
    [one, other].iter().any(|user| user.ends_with(ROW_SECURITY)) && named(one) != named(other)
}

/// FNV-1a: a number that other releases make of the same bytes, too. Nothing depends on it that an enemy could want.
fn fnv(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(parts: &[(&'static str, &str)]) -> Job {
        Job::new(parts.iter().map(|(name, part)| (*name, Some((*part).to_owned()))))
    }

    #[test]
    fn the_differences_of_two_jobs_are_told_part_by_part() {
        let here = job(&[("topic", "a"), ("table", "orders"), ("where", "x = 1")]);
        let there = job(&[("topic", "a"), ("table", "products"), ("key", "id")]);
        let expected =
            ["key: id there, none here", "table: products there, orders here", "where: none there, x = 1 here"];
        assert_eq!(here.differences(&there), expected);
        assert!(here.differences(&here).is_empty());
    }

    #[test]
    fn another_cluster_or_time_zone_is_a_difference_where_both_jobs_know_of_it() {
        let at = |cluster, zone| job(&[("topic", "a"), ("cluster", cluster), ("time zone", zone)]);
        let (here, older) = (at("x", "+00:00"), job(&[("topic", "a")]));
        assert_eq!(here.differences(&at("y", "+00:00")), ["cluster: y there, x here"]);
        assert_eq!(here.differences(&at("x", "+02:00")), ["time zone: +02:00 there, +00:00 here"]);
        assert!(here.differences(&older).is_empty() && older.differences(&here).is_empty());
        assert_eq!((here.number(), at("y", "+02:00").number()), (older.number(), older.number()));
    }

    #[test]
    fn what_may_show_other_rows_makes_no_other_number_and_is_a_difference_where_both_jobs_tell_it() {
        let (older, sql) = (job(&[("table", "orders")]), "SET row_security = off");
        for (name, there, here) in
            [("session sql", "none", sql), ("user", "a", "b (row security)"), ("action user", "a (row security)", "b")]
        {
            let with = |part| job(&[("table", "orders"), (name, part)]);
            let (none, some) = (with(there), with(here));
            assert_eq!((none.number(), some.number()), (older.number(), older.number()), "{name}");
            assert_eq!(some.clone().anywhere().differences(&none), [format!("{name}: {there} there, {here} here")]);
            assert!(some.differences(&older).is_empty() && older.differences(&some).is_empty(), "{name}");
        }
    }

    #[test]
    fn another_user_is_a_difference_only_where_row_security_chooses_the_rows_of_one() {
        let of = |user| job(&[("table", "orders"), ("user", user)]);
        assert!(of("a").differences(&of("b")).is_empty());
        // Whoever turned it on or off meanwhile.
        assert!(of("a").differences(&of("a (row security)")).is_empty());
        assert_eq!(of("a (row security)").differences(&of("b (row security)")).len(), 1);
    }

    #[test]
    fn the_number_of_a_job_is_that_of_its_parts_but_for_its_whereabouts() {
        let one = job(&[("server", "db1"), ("table", "products")]);
        assert_eq!(one.number(), job(&[("server", "db2"), ("table", "products")]).number());
        assert_ne!(one.number(), job(&[("server", "db1"), ("table", "product"), ("topic", "s")]).number());
        // A replica may be replaced as well as the server of the statement.
        let apart = |server, action| job(&[("server", server), ("action server", action), ("action database", "shop")]);
        assert_eq!(apart("db1", "db2").number(), apart("db3", "db4").number());
        assert_eq!(apart("db1", "db2").anywhere(), apart("db3", "db4").anywhere());
        assert_eq!(apart("db1", "db2").anywhere().differences(&apart("db3", "db2")), Vec::<String>::new());
        assert_eq!(apart("db1", "db2").differences(&apart("db3", "db2")), ["server: db3 there, db1 here"]);
        assert_eq!(apart("db1", "db2").place(), "db1");
        assert_eq!(apart("db1", "db2").action_place().as_deref(), Some("db2, shop"));
        assert_eq!(one.action_place(), None);
        // As every release has to make it.
        assert_eq!(fnv("foobar".bytes()), 0x85944171f73967e8);
    }
}
