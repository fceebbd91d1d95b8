//! The processes of this one: those it has started, and the descendants of handlers that it was left with.
//!
//! A descendant can leave its handler's group, and be orphaned. Being a *subreaper*, we become its parent then. So when
//! a handler and its group are gone, all that is left of its run are children of ours that we did not start, and their
//! children. A child cannot be mistaken: its number stays its own until we reap it.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::warn;
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitOptions, getpgid, getpid, kill_process, pidfd_open,
    pidfd_send_signal, set_child_subreaper, waitid, waitpid,
};

use crate::sys::{Place, Program};

/// How often, at most, ended orphans are reaped while handlers run on.
const REAPED_EACH: Duration = Duration::from_secs(1);

/// What a run's processes have in their environment and no other has: `KSYNC_BATCH_ID=5f0c..`. They can run from it,
/// by starting a program with another environment; then only their group and their parent give them away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Marker(pub String);

impl Marker {
    /// The id of a batch, which has to be of one run alone, or that of a worker.
    pub fn of(environment: &[(&str, String)]) -> Option<Marker> {
        let is_id = |name: &str| name == "KSYNC_BATCH_ID" || name == "KSYNC_WORKER_ID";
        let (name, id) = environment.iter().find(|(name, _)| is_id(name))?;
        let is_plain = id.len() < 200 && id.bytes().all(|byte| byte.is_ascii_graphic());
        is_plain.then(|| Marker(format!("{name}={id}")))
    }
}

/// Who is ours. The lock is held for moments only; no process is started or waited for meanwhile.
struct Children {
    adopts: bool,
    /// Started by us and not yet reaped. Whoever has started one reaps it.
    started: Vec<Pid>,
    /// Being started: there may be children that are not in `started` yet.
    starting: usize,
    /// Helps us, and is no handler.
    warden: Option<Pid>,
    reaped: Option<Instant>,
}

static CHILDREN: Mutex<Children> =
    Mutex::new(Children { adopts: false, started: Vec::new(), starting: 0, warden: None, reaped: None });

fn children() -> MutexGuard<'static, Children> {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on the orphans of handlers are ours. All processes must be started by [`start`] then: any other child would
/// be taken for an orphan.
pub(super) fn adopt() -> io::Result<()> {
    set_child_subreaper(Some(getpid()))?;
    if let Err(err) = listed() {
        warn!("cannot list the processes that handlers leave behind: {err}; those that leave their group run on");
    }
    children().adopts = true;
    Ok(())
}

/// What we are the parent of: all orphans, which are given to the first thread, and some of what we started.
fn listed() -> io::Result<String> {
    fs::read_to_string(format!("/proc/self/task/{}/children", getpid()))
}

pub(super) fn start(program: &Program, descriptors: &[BorrowedFd<'_>], place: Place) -> io::Result<Pid> {
    children().starting += 1;
    let started = program.spawn(descriptors, place);
    let mut children = children();
    children.starting -= 1;
    let pid = Pid::from_raw(started?).expect("a process has a number");
    children.started.push(pid);
    if place == Place::Aloof {
        children.warden = Some(pid);
    }
    Ok(pid)
}

/// Whether a process that was started here has ended. It is left to be reaped.
pub(super) fn has_ended(pid: Pid) -> bool {
    let ended = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    // An error means that somebody else has reaped it; `reap` will say so.
    !matches!(waitid(WaitId::Pid(pid), ended), Ok(None))
}

/// Frees the number of a process that was started here and has ended, and tells how.
pub(super) fn reap(pid: Pid) -> io::Result<ExitStatus> {
    let mut children = children();
    let ended = waitpid(Some(pid), WaitOptions::NOHANG);
    children.started.retain(|started| *started != pid);
    match ended? {
        Some((_, status)) => Ok(ExitStatus::from_raw(status.as_raw())),
        None => Err(Errno::CHILD.into()),
    }
}

/// Leaves the reaping of a process that was started here to [`reap_orphans`].
pub(super) fn disown(pid: Pid) {
    let mut children = children();
    children.started.retain(|started| *started != pid);
    if children.warden == Some(pid) {
        children.warden = None;
    }
}

/// Frees the numbers of orphans that have ended, if that was not done a moment ago.
pub(super) fn reap_orphans() {
    let mut children = children();
    if children.adopts && children.reaped.is_none_or(|reaped| reaped.elapsed() > REAPED_EACH) {
        children.reaped = Some(Instant::now());
        children.orphans();
    }
}

/// Kills the orphans of a run whose handler, the leader of `group`, has ended. False once there are none: then nothing
/// is left of the run. While it is true, a SIGCHLD says when to ask again.
pub(super) fn kill_orphans(group: Pid, marker: Option<&Marker>) -> bool {
    let mut children = children();
    if !children.adopts {
        return false;
    }
    let orphans = children.orphans();
    let is_alone =
        children.starting == 0 && children.started.iter().all(|pid| *pid == group || children.warden == Some(*pid));
    let of_this_run = |pid: Pid| {
        is_alone || getpgid(Some(pid)) == Ok(group) || marker.is_some_and(|marker| has_marker(pid, &[marker]))
    };
    // One that we may not kill, since it runs as somebody else, cannot be helped.
    orphans.into_iter().filter(|orphan| of_this_run(*orphan) && kill_process(*orphan, Signal::KILL).is_ok()).count() > 0
}

impl Children {
    /// The living children that we did not start. Those that have ended are reaped.
    fn orphans(&mut self) -> Vec<Pid> {
        let listed = listed().unwrap_or_default();
        let mut orphans = vec![];
        for child in listed.split_ascii_whitespace().filter_map(|child| Pid::from_raw(child.parse().ok()?)) {
            if self.started.contains(&child) {
                continue;
            }
            if !has_ended(child) {
                orphans.push(child);
            } else if self.starting == 0 {
                // It is an orphan for certain. An error means that it is none of ours any more.
                waitpid(Some(child), WaitOptions::NOHANG).ok();
            }
        }
        orphans
    }
}

/// Sends the signal to all processes with one of these markers that are in none of these groups, and gives how many.
pub(super) fn signal_marked(markers: &[&Marker], except: Option<Pid>, signal: Signal) -> usize {
    let Ok(processes) = fs::read_dir("/proc") else { return 0 };
    let pids = processes.filter_map(|entry| Pid::from_raw(entry.ok()?.file_name().to_str()?.parse().ok()?));
    let of_group = |pid| except.is_some() && getpgid(Some(pid)).ok() == except;
    pids.filter(|pid| has_marker(*pid, markers) && !of_group(*pid) && signal_if_marked(*pid, markers, signal)).count()
}

/// The process may have ended meanwhile and its number be somebody else's: held by a descriptor it is looked at again.
fn signal_if_marked(pid: Pid, markers: &[&Marker], signal: Signal) -> bool {
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => has_marker(pid, markers) && pidfd_send_signal(process, signal).is_ok(),
        // Linux before 5.3.
        Err(Errno::NOSYS) => kill_process(pid, signal).is_ok(),
        Err(_) => false,
    }
}

/// One that has ended has no environment, and of somebody else's we may not know it.
fn has_marker(pid: Pid, markers: &[&Marker]) -> bool {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|variable| markers.iter().any(|marker| variable == marker.0.as_bytes()))
}
