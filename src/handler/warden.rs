//! The warden: a process of our own program that outlives us by a moment and kills the handlers that we could not.
//!
//! It reads a pipe that only this process can write to. Each run is told before its process is started, by the marker
//! that will be in its environment, then by its process group, and at its end. When the pipe ends, however we came to die,
//! what is in these groups is killed and whatever has a marker of theirs.
//!
//! A SIGKILL in the middle of a start hits a process that has not loaded its program yet and so has no marker; it would
//! live on, with an empty stdin. So a run of which no group was told is looked for again and again for a second.

use std::collections::BTreeMap;
use std::env;
use std::fs::File;
use std::io::{self, PipeWriter, Read};
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use log::warn;
use memchr::memrchr;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::task;

use super::OURSELVES;
use super::descendants::{self, Marker};
use crate::sys::{Place, Program};

/// The program's name of itself by which it is the warden.
const NAME: &str = "ksync-warden";

/// How long the warden lets messages lie in the pipe, so that it is not woken thrice a run. Its end wakes it at once.
const NAP: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// How long a process is looked for that was about to be started.
const START: Duration = Duration::from_secs(1);

/// Between two wardens, the first two aside: one that ends at once would do so again.
const RESPITE: Duration = Duration::from_secs(1);

/// Between two looks for processes that are about to start or end.
const PAUSE: Duration = Duration::from_millis(2);

/// A run that the warden knows of.
#[derive(Debug, Default, PartialEq, Eq)]
struct Run {
    marker: Option<Marker>,
    /// `None` before it is started.
    group: Option<Pid>,
}

/// Our end.
struct Warden {
    /// `None` while there is no warden.
    pipe: Option<(Pid, PipeWriter)>,
    replaced: Option<Instant>,
    runs: BTreeMap<u64, Run>,
    last: u64,
}

/// `None` where none is wanted.
static WARDEN: Mutex<Option<Warden>> = Mutex::new(None);

fn warden() -> MutexGuard<'static, Option<Warden>> {
    WARDEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the warden for this process; the program has to begin with [`is_asked_for`].
pub(super) fn start() -> io::Result<()> {
    let mut warden = warden();
    if warden.is_none() {
        *warden = Some(Warden { pipe: Some(hire()?), replaced: None, runs: BTreeMap::new(), last: 0 });
    }
    Ok(())
}

/// One run that the warden is told of. Dropped, it is told that nothing is left of it.
pub(super) struct Guarded(u64);

impl Guarded {
    /// To be called before the process is started.
    pub fn begin(marker: Option<&Marker>) -> Guarded {
        let mut warden = warden();
        let Some(warden) = warden.as_mut() else { return Guarded(0) };
        warden.last += 1;
        let number = warden.last;
        warden.runs.insert(number, Run { marker: marker.cloned(), group: None });
        warden.tell(number);
        Guarded(number)
    }

    pub fn started(&self, group: Pid) {
        let mut warden = warden();
        let Some(warden) = warden.as_mut() else { return };
        if let Some(run) = warden.runs.get_mut(&self.0) {
            run.group = Some(group);
            warden.tell(self.0);
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let mut warden = warden();
        let Some(warden) = warden.as_mut() else { return };
        if warden.runs.remove(&self.0).is_some() {
            warden.tell(self.0);
        }
    }
}

/// Sends the signal to all that belongs to the runs under way, and gives whether there are any.
pub(super) fn signal_all(signal: Signal) -> bool {
    // None of them is reaped meanwhile, since it stays here until then.
    let warden = warden();
    let Some(Warden { runs, .. }) = warden.as_ref().filter(|warden| !warden.runs.is_empty()) else { return false };
    task::block_in_place(|| {
        signal_groups(runs, signal);
        let (mut known, mut found) = (0, signal_marked(runs, signal));
        // One that was being started meanwhile may have been missed.
        while found > known {
            (known, found) = (found, signal_marked(runs, signal));
        }
    });
    true
}

impl Warden {
    /// Tells how it stands with this run. Where nobody listens any more, a new warden is told of all.
    fn tell(&mut self, number: u64) {
        let told = match &self.pipe {
            Some((_, pipe)) => write(pipe, &line(number, self.runs.get(&number))),
            None => Err(io::ErrorKind::NotConnected.into()),
        };
        if let Err(cause) = told {
            self.replace(&cause);
        }
    }

    fn replace(&mut self, cause: &io::Error) {
        let is_news = self.pipe.is_some();
        if let Some((pid, pipe)) = self.pipe.take() {
            // One that only stands still must not find its pipe at an end.
            kill_process(pid, Signal::KILL).ok();
            descendants::disown(pid);
            drop(pipe);
        }
        if self.replaced.is_none_or(|replaced| replaced.elapsed() > RESPITE) {
            self.replaced = Some(Instant::now());
            self.pipe = self.successor().inspect_err(|err| warn!("cannot start another warden: {err}")).ok();
        }
        if self.pipe.is_some() {
            warn!("the warden did not listen ({cause}); there is a new one");
        } else if is_news {
            warn!(
                "the warden did not listen ({cause}); until there is a new one, handlers outlive a kill of this process"
            );
        }
    }

    /// A new warden that knows all runs.
    fn successor(&self) -> io::Result<(Pid, PipeWriter)> {
        let (pid, pipe) = hire()?;
        self.runs.iter().try_for_each(|(number, run)| write(&pipe, &line(*number, Some(run))))?;
        Ok((pid, pipe))
    }
}

/// Starts a warden and gives our end of its pipe.
fn hire() -> io::Result<(Pid, PipeWriter)> {
    let (reader, writer) = io::pipe()?;
    ioctl_fionbio(&writer, true)?;
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    // The file that we run, even if another one has its name by now. Of our environment it needs nothing.
    let program = Program::new(OURSELVES.as_ref(), [NAME.as_ref()], [])?;
    let descriptors = [reader.as_fd(), nothing.as_fd(), nothing.as_fd()];
    Ok((descendants::start(&program, &descriptors, Place::Aloof)?, writer))
}

/// All of it or nothing: it is shorter than what a pipe takes at once.
fn write(pipe: &PipeWriter, line: &str) -> io::Result<()> {
    rustix::io::write(pipe, line.as_bytes())?;
    Ok(())
}

/// `7 KSYNC_BATCH_ID=5f0c 0` before the process is started, `7 KSYNC_BATCH_ID=5f0c 4711` after it, `7` at the end.
fn line(number: u64, run: Option<&Run>) -> String {
    let Some(run) = run else { return format!("{number}\n") };
    let marker = run.marker.as_ref().map_or("-", |marker| &marker.0);
    format!("{number} {marker} {}\n", run.group.map_or(0, Pid::as_raw_pid))
}

fn parse(line: &str) -> Option<(u64, Option<Run>)> {
    let mut words = line.split(' ');
    let number = words.next()?.parse().ok()?;
    let Some(marker) = words.next() else { return Some((number, None)) };
    let marker = (marker != "-").then(|| Marker(marker.to_owned()));
    let group = Pid::from_raw(words.next()?.parse().ok()?);
    Some((number, Some(Run { marker, group })))
}

/// Whether this process was started to be the warden.
pub(super) fn is_asked_for() -> bool {
    env::args_os().next().is_some_and(|name| name == NAME)
}

/// What the warden does in its life: returns when the pipe on stdin is at its end and no process is left.
pub(super) fn keep_watch() -> io::Result<()> {
    // Not `exe`, by the name of the file it was started from.
    rustix::thread::set_name(c"ksync-warden")?;
    let (mut stdin, mut runs) = (io::stdin().lock(), BTreeMap::new());
    let (mut text, mut piece) = (Vec::new(), [0; 64 << 10]);
    loop {
        let read = stdin.read(&mut piece)?;
        if read == 0 {
            break;
        }
        text.extend_from_slice(&piece[..read]);
        let whole = memrchr(b'\n', &text).map_or(0, |end| end + 1);
        for line in text.drain(..whole).as_slice().split(|byte| *byte == b'\n') {
            match str::from_utf8(line).ok().and_then(parse) {
                Some((number, Some(run))) => drop(runs.insert(number, run)),
                Some((number, None)) => drop(runs.remove(&number)),
                None => {}
            }
        }
        // Wanting no event it wakes at the end only.
        match poll(&mut [PollFd::new(&stdin, PollFlags::empty())], Some(&NAP)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(err) => return Err(err.into()),
        }
    }
    end(&runs);
    Ok(())
}

/// Kills all that is left of these runs.
fn end(runs: &BTreeMap<u64, Run>) {
    let begun = Instant::now();
    signal_groups(runs, Signal::KILL);
    let is_starting = runs.values().any(|run| run.group.is_none());
    while signal_marked(runs, Signal::KILL) > 0 || is_starting && begun.elapsed() < START {
        thread::sleep(PAUSE);
    }
}

fn signal_groups(runs: &BTreeMap<u64, Run>, signal: Signal) {
    for group in runs.values().filter_map(|run| run.group) {
        // It may have ended by itself.
        kill_process_group(group, signal).ok();
    }
}

/// Those that left their groups, too. Gives how many there are.
fn signal_marked(runs: &BTreeMap<u64, Run>, signal: Signal) -> usize {
    let markers: Vec<_> = runs.values().filter_map(|run| run.marker.as_ref()).collect();
    if markers.is_empty() { 0 } else { descendants::signal_marked(&markers, None, signal) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_warden_reads_what_it_is_told() {
        let marker = Some(Marker("KSYNC_BATCH_ID=5f0c".to_owned()));
        for run in [
            Some(Run { marker: marker.clone(), group: None }),
            Some(Run { marker, group: Pid::from_raw(4711) }),
            Some(Run { marker: None, group: Pid::from_raw(4711) }),
            None,
        ] {
            assert_eq!(parse(line(7, run.as_ref()).trim_end()), Some((7, run)));
        }
    }
}
