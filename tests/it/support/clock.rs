//! Clocks that are wrong, for one process alone.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where in the file the time that has passed is. Before it is how far the time of day is ahead.
const PASSED: u64 = size_of::<i64>() as u64;

/// What the processes that are told of it take for the time of day, and for how much time has passed.
pub struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    /// It is right at first.
    pub(super) fn new(dir: &Path) -> Clock {
        let (library, file) = (dir.join("clock.so"), dir.join("ahead"));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/c/clock.c");
        let mut cc = Command::new("cc");
        let status = cc.args(["-O2", "-shared", "-fPIC", source, "-o"]).arg(&library).status().unwrap();
        assert!(status.success(), "cc: {status}");
        fs::write(&file, [0_u8; 2 * size_of::<i64>()]).unwrap();
        Clock { library, file }
    }

    /// From now on the time of day is so many seconds ahead, or behind.
    pub fn set(&self, seconds_ahead: f64) {
        self.file().write_all_at(&nanos(seconds_ahead).to_ne_bytes(), 0).unwrap();
    }

    /// So many seconds pass at once, besides those before: timeouts and pauses of tokio see it when something wakes it. The time
    /// of day stays as it is.
    pub fn pass(&self, seconds: f64) {
        let (file, mut passed) = (self.file(), [0; size_of::<i64>()]);
        file.read_exact_at(&mut passed, PASSED).unwrap();
        let passed = i64::from_ne_bytes(passed) + nanos(seconds);
        file.write_all_at(&passed.to_ne_bytes(), PASSED).unwrap();
    }

    /// To be changed in place: whoever sees it has it mapped.
    fn file(&self) -> File {
        File::options().read(true).write(true).open(&self.file).unwrap()
    }

    /// What a process has to have in its environment to go by this clock.
    pub fn environment(&self) -> [(&str, &str); 2] {
        [("LD_PRELOAD", self.library.to_str().unwrap()), ("CLOCK", self.file.to_str().unwrap())]
    }
}

fn nanos(seconds: f64) -> i64 {
    (seconds * 1e9) as i64
}
