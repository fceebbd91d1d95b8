//! What ksync's library logs when a test calls it in its own process.

use std::sync::{Mutex, Once};

use log::{LevelFilter, Log, Metadata, Record};

struct Logged(Mutex<Vec<String>>);

static LOGGED: Logged = Logged(Mutex::new(Vec::new()));

impl Log for Logged {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "handler" || metadata.target().starts_with("ksync")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.lock().unwrap().push(format!("{} {}", record.level(), record.args()));
        }
    }

    fn flush(&self) {}
}

/// The lines that were logged since the first call, and that have this text in them: `INFO products/0: one`.
pub fn log_lines(text: &str) -> Vec<String> {
    static LOGGER: Once = Once::new();
    LOGGER.call_once(|| {
        log::set_logger(&LOGGED).expect("this is the only logger of the tests");
        log::set_max_level(LevelFilter::Info);
    });
    LOGGED.0.lock().unwrap().iter().filter(|line| line.contains(text)).cloned().collect()
}
