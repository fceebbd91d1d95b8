//! How a run shows how far it is.

use clap::ValueEnum;

use crate::progress::{Format, Progress};

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProgressOption {
    /// A bar on a terminal, else lines in the log
    Auto,
    /// Lines in the log
    Plain,
    /// A JSON object a line on stderr
    Json,
    /// Nothing
    None,
}

impl ProgressOption {
    /// `what` is counted, of which there are about `total`.
    pub fn start(self, is_quiet: bool, what: &'static str, total: Option<u64>) -> Progress {
        let format = match self {
            _ if is_quiet => Format::Nothing,
            ProgressOption::Auto => Format::Auto,
            ProgressOption::Plain => Format::Plain,
            ProgressOption::Json => Format::Json,
            ProgressOption::None => Format::Nothing,
        };
        Progress::new(format, what, total)
    }
}
