//! A process of the handler with its descendants: started as a process group of its own, ended as a whole.

use std::io;
use std::os::fd::BorrowedFd;
use std::process::ExitStatus;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::signal::unix::{self, SignalKind};
use tokio::task;

use super::descendants::{self, Marker};
use super::warden::Guarded;
use crate::mutants::Mutant;
use crate::sys::{Place, Program};

/// Between two looks at what is left of a dropped run.
const PAUSE: Duration = Duration::from_millis(5);

/// The process and its descendants, those that stayed in its group and those that did not. Dropped, they are killed.
///
/// Until the process is reaped its number names this group and no other, so that no signal hits a stranger.
/// That is why it is neither tokio's Child, which reaps as soon as it can, nor std's, which may.
pub(super) struct Group {
    pid: Pid,
    marker: Option<Marker>,
    child_ended: unix::Signal,
    /// `None` once nothing is left.
    guarded: Option<Guarded>,
}

impl Group {
    /// Starts the program with these descriptors as its 0, 1, 2, ..
    pub fn start(program: &Program, descriptors: &[BorrowedFd<'_>], marker: Option<Marker>) -> io::Result<Group> {
        // Before the process is there, so that the signal of its end cannot come too early.
        let child_ended = unix::signal(SignalKind::child())?;
        let guarded = Guarded::begin(marker.as_ref());
        // posix_spawn holds its thread until the program is loaded, from a slow disk perhaps. To hand that to another thread
        // would take as long as most spawns do.
        let pid = task::block_in_place(|| descendants::start(program, descriptors, Place::Group))?;
        guarded.started(pid);
        Ok(Group { pid, marker, child_ended, guarded: Some(guarded) })
    }

    /// Asks all to end that belong to it.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
        if let Some(marker) = &self.marker {
            descendants::signal_marked(&[marker], Some(self.pid), Signal::TERM);
        }
    }

    fn signal(&self, signal: Signal) {
        // Not reaped yet, its group exists. EPERM, where all that is left runs as somebody else, cannot be helped.
        kill_process_group(self.pid, signal).ok();
    }

    /// Whether the process has ended.
    pub fn has_ended(&self) -> bool {
        descendants::has_ended(self.pid)
    }

    /// Returns when the process has ended, and leaves it to be reaped.
    pub async fn exit(&mut self) {
        while !self.has_ended() {
            self.child_ended.recv().await;
            descendants::reap_orphans();
        }
    }

    /// Kills all that is left, and tells how the process itself ended.
    pub async fn end(mut self) -> io::Result<ExitStatus> {
        if !Mutant::LeavesGrandchildren.is_on() || !self.has_ended() {
            self.signal(Signal::KILL);
        }
        self.exit().await;
        while !Mutant::LeavesGrandchildren.is_on() && descendants::kill_orphans(self.pid, self.marker.as_ref()) {
            self.child_ended.recv().await;
        }
        // The warden first: once it is reaped, its number may be another's.
        drop(self.guarded.take());
        descendants::reap(self.pid)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(guarded) = self.guarded.take() else { return };
        self.signal(Signal::KILL);
        let (pid, marker) = (self.pid, self.marker.take());
        // Even a killed process may take its time, in a disk's queue for one, and here nobody may wait for it.
        let reaper = thread::Builder::new().name("reaper".into()).spawn(move || {
            // An error means that somebody else has reaped it.
            waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).ok();
            while descendants::kill_orphans(pid, marker.as_ref()) {
                thread::sleep(PAUSE);
            }
            drop(guarded);
            descendants::reap(pid).ok();
        });
        // Without a thread it stays a zombie until we end.
        drop(reaper);
    }
}
