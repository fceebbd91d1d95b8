//! strace: which calls a process makes to the system, and its death at any of them.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use super::{Process, World, is_full};

/// By which a process changes what is outside of it, or begins another one.
pub const CALLS: &str = "write,writev,sendto,sendmsg,fsync,fdatasync,rename,vfork,clone,clone3,kill,tgkill";

/// How many that were killed are followed at a time.
pub const TOGETHER: usize = 8;

/// A call of a thread to the system, and the how many-th of its kind it is.
pub type Call = (String, usize);

/// A command whose calls strace follows from the beginning; not those of the processes that it starts.
pub fn traced(world: &World, options: &str, command: &str) -> Process {
    world.start("strace", &format!("-f -b execve -qq -e trace={CALLS} -e signal=none {options} {command}"), &[])
}

/// The most that a thread has made of each call, by what strace has written to this file.
pub fn most_calls(file: &Path) -> BTreeMap<String, usize> {
    let mut counts = HashMap::<(String, String), usize>::new();
    for line in fs::read_to_string(file).unwrap().lines() {
        // THREAD CALL(..
        let (thread, rest) = line.split_once(' ').unwrap();
        if let Some((call, _)) = rest.trim_start().split_once('(').filter(|(call, _)| !call.contains(' ')) {
            *counts.entry((thread.to_owned(), call.to_owned())).or_default() += 1;
        }
    }
    let mut most = BTreeMap::new();
    for ((_, call), count) in counts {
        let known = most.entry(call).or_default();
        *known = count.max(*known);
    }
    most
}

/// All calls that each of these runs has made, by what strace has written to its file.
pub fn common_calls(files: &[PathBuf]) -> Vec<Call> {
    let runs: Vec<_> = files.iter().map(|file| most_calls(file)).collect();
    let least = |call: &str| runs.iter().map(|run| run.get(call).copied().unwrap_or(0)).min().unwrap();
    let all = |call: &String| (1..=least(call)).map(|number| (call.clone(), number)).collect::<Vec<_>>();
    runs[0].keys().flat_map(all).collect()
}

/// Goes over these calls, some at a time; `kill` gives those of them at which nobody was killed.
///
/// How many a thread makes differs from run to run. In the long form those that have not come are gone over twice more,
/// and nine of ten have to come.
pub fn kill_at_each(calls: Vec<Call>, mut kill: impl FnMut(&[Call]) -> Vec<Call>) {
    let all = calls.len();
    let (tries, most) = if is_full() { (3, all / 10) } else { (1, all / 2) };
    let mut left = calls;
    for _ in 0..tries {
        left = left.chunks(TOGETHER).flat_map(&mut kill).collect();
    }
    assert!(left.len() <= most, "nobody was killed at {} of {all}: {left:?}", left.len());
}
