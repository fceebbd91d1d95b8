//! strace: which calls a process makes to the system, and its death at any of them.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use super::{Process, World};

/// By which a process changes what is outside of it, or begins another one.
pub const CALLS: &str = "write,writev,sendto,sendmsg,fsync,fdatasync,rename,vfork,clone,clone3,kill,tgkill";

/// How many that were killed are followed at a time.
pub const TOGETHER: usize = 8;

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
