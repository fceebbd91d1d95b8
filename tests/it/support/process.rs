//! A process of ksync: what it is told, what it says, how it ends. It never outlives its value.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::pause;

/// How long an end may take that a test waits for.
const END: Duration = Duration::from_secs(120);

/// The lines of a process's stderr, as they come.
pub type Lines = Arc<Mutex<Vec<String>>>;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Status(i32),
    By(Signal),
}

pub struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Lines,
    stderr: Option<JoinHandle<()>>,
    pub pid: i32,
}

impl Process {
    pub fn start(mut command: Command, lines: Lines) -> Process {
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (stdin, stderr) = (child.stdin.take(), child.stderr.take().unwrap());
        let kept = lines.clone();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stderr).split(b'\n') {
                kept.lock().unwrap().push(String::from_utf8_lossy(&line.unwrap()).into_owned());
            }
        });
        let pid = child.id() as i32;
        Process { child, stdin, lines, stderr: Some(reader), pid }
    }

    /// Writes to its stdin.
    pub fn tell(&mut self, text: impl AsRef<[u8]>) {
        // It may have ended already: then that tells what it took.
        match self.stdin.as_mut().unwrap().write_all(text.as_ref()) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            told => told.unwrap(),
        }
    }

    /// Waits for its end, after the end of its stdin.
    pub fn wait(&mut self) -> End {
        drop(self.stdin.take());
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                if let Some(reader) = self.stderr.take() {
                    reader.join().unwrap();
                }
                return match status.code() {
                    Some(code) => End::Status(code),
                    None => End::By(Signal::from_named_raw(status.signal().unwrap()).unwrap()),
                };
            }
            assert!(begun.elapsed() < END, "the process has not ended after {END:?}");
            pause();
        }
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.pid).unwrap(), signal).unwrap();
    }

    /// SIGUSR1, if it listens for that already: before, it would die of it.
    pub fn ask(&self) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t")).unwrap();
        if u64::from_str_radix(caught, 16).unwrap() & 1 << (Signal::USR1.as_raw() - 1) != 0 {
            self.signal(Signal::USR1);
        }
    }

    /// How long it has kept a processor busy so far.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap();
        // After the name, which may have anything in it; the 14th and 15th field of all, in hundredths of a second (proc(5)).
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        let ticks = [11, 12].iter().map(|field| fields[*field].parse::<u64>().unwrap()).sum::<u64>();
        Duration::from_millis(10 * ticks)
    }

    /// The most memory that it ever had, in bytes.
    pub fn most_memory(&self) -> usize {
        self.memory().unwrap()
    }

    /// The same, unless it has ended.
    pub fn memory(&self) -> Option<usize> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim();
        Some(most.strip_suffix(" kB").unwrap().parse::<usize>().unwrap() << 10)
    }

    /// SIGKILL, and its end.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        assert_eq!(self.wait(), End::By(Signal::KILL));
    }

    /// What it has said so far, without the times: `error: topic x does not exist`.
    pub fn log(&self) -> Vec<String> {
        self.lines.lock().unwrap().iter().map(|line| without_time(line)).collect()
    }

    /// The lines of its log with this level, without it.
    pub fn log_of(&self, level: &str) -> Vec<String> {
        let prefix = format!("{level}: ");
        self.log().iter().filter_map(|line| line.strip_prefix(&prefix).map(str::to_owned)).collect()
    }

    /// Whether a line of its log has all these texts.
    pub fn says(&self, texts: &[&str]) -> bool {
        self.log().iter().any(|line| texts.iter().all(|text| line.contains(text)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; a stopped one ends by SIGKILL, too.
        if self.is_running() {
            self.signal(Signal::KILL);
            self.child.wait().unwrap();
        }
    }
}

/// `2026-11-22T03:00:00.000Z ksync-consume error: ..` -> `error: ..`
fn without_time(line: &str) -> String {
    match line.split_once(" ksync-") {
        Some((time, rest)) if time.ends_with('Z') => rest.split_once(' ').map_or(rest, |(_, text)| text).to_owned(),
        _ => line.to_owned(),
    }
}
