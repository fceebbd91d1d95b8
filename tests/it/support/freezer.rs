//! A process and all that it starts stand still at once, as on a virtual machine that is paused.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::pause;

/// A control group that can be frozen; where none can be made, signals in its place.
pub enum Freezer {
    Group { dir: PathBuf, state: &'static str, frozen: &'static str, thawed: &'static str },
    Signals,
}

impl Freezer {
    pub fn new(id: &str) -> Freezer {
        for line in fs::read_to_string("/proc/self/mounts").unwrap().lines() {
            let [_, place, kind, options, ..] = line.split(' ').collect::<Vec<_>>()[..] else { continue };
            let (state, frozen, thawed) = match kind {
                "cgroup2" => ("cgroup.freeze", "1", "0"),
                "cgroup" if options.split(',').any(|option| option == "freezer") => {
                    ("freezer.state", "FROZEN", "THAWED")
                }
                _ => continue,
            };
            let dir = Path::new(place).join(format!("ksync-test-{id}"));
            // It takes root, and a place that is not read-only.
            if fs::create_dir(&dir).is_ok() {
                return Freezer::Group { dir, state, frozen, thawed };
            }
        }
        eprintln!("no control group can be made here: SIGSTOP in its place");
        Freezer::Signals
    }

    /// What a shell has to do before it becomes a process that can be frozen.
    pub fn enter(&self) -> String {
        match self {
            Freezer::Group { dir, .. } => format!("echo $$ > {}/cgroup.procs", dir.display()),
            Freezer::Signals => String::new(),
        }
    }

    /// Returns when the process and all of its descendants stand still.
    pub fn freeze(&self, pid: i32) {
        match self {
            Freezer::Group { dir, state, frozen, .. } => {
                // Who waits for a child that was frozen before its exec (vfork) cannot be: then once more from the beginning.
                for _ in 0..20 {
                    fs::write(dir.join(state), frozen).unwrap();
                    let limit = Instant::now() + Duration::from_secs(1);
                    while Instant::now() < limit {
                        if is_frozen(dir) {
                            return;
                        }
                        pause();
                    }
                    self.thaw(pid);
                }
                panic!("{} cannot be frozen", dir.display());
            }
            Freezer::Signals => signal_all(pid, Signal::STOP),
        }
    }

    pub fn thaw(&self, pid: i32) {
        match self {
            Freezer::Group { dir, state, thawed, .. } => fs::write(dir.join(state), thawed).unwrap(),
            Freezer::Signals => signal_all(pid, Signal::CONT),
        }
    }
}

/// To be dropped before its process: what is frozen does not die.
impl Drop for Freezer {
    fn drop(&mut self) {
        let Freezer::Group { dir, state, thawed, .. } = self else { return };
        fs::write(dir.join(state), thawed).unwrap();
        while fs::remove_dir(&*dir).is_err() {
            for pid in fs::read_to_string(dir.join("cgroup.procs")).unwrap().lines() {
                // It may have ended meanwhile.
                kill_process(Pid::from_raw(pid.parse().unwrap()).unwrap(), Signal::KILL).unwrap_or_default();
            }
            pause();
        }
    }
}

fn is_frozen(dir: &Path) -> bool {
    let says = |file: &str, text: &str| fs::read_to_string(dir.join(file)).is_ok_and(|said| said.contains(text));
    says("cgroup.events", "frozen 1") || says("freezer.state", "FROZEN")
}

/// The parents first, so that none begins another one meanwhile.
fn signal_all(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap_or_default();
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
    for task in tasks {
        let children = fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default();
        children.split_ascii_whitespace().for_each(|child| signal_all(child.parse().unwrap(), signal));
    }
}
