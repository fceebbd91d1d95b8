//! A wall clock that is wrong, for one process alone.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the processes that are told of it take for the time of day. Their other clocks stay as they are.
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
        fs::write(&file, 0i64.to_ne_bytes()).unwrap();
        Clock { library, file }
    }

    /// From now on it is so many seconds ahead, or behind.
    pub fn set(&self, seconds_ahead: f64) {
        // In place: whoever sees the file has it mapped.
        let file = File::options().write(true).open(&self.file).unwrap();
        file.write_all_at(&((seconds_ahead * 1e9) as i64).to_ne_bytes(), 0).unwrap();
    }

    /// What a process has to have in its environment to go by this clock.
    pub fn environment(&self) -> [(&str, &str); 2] {
        [("LD_PRELOAD", self.library.to_str().unwrap()), ("CLOCK", self.file.to_str().unwrap())]
    }
}
