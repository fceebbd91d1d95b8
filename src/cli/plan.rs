//! Whether a person sees first what a run would do.

use std::io::{IsTerminal, Write as _, stderr, stdin};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;

use super::SourceOptions;
use super::log_lines::escaped;
use crate::exit::Exit;
use crate::stream::Prospect;

/// What is shown before anything is done.
#[derive(Args, Clone, Copy, Debug)]
pub struct PlanOptions {
    /// Prints what would be done, and does nothing
    #[arg(long, env = "KSYNC_DRY_RUN", help_heading = "Plan")]
    pub dry_run: bool,

    /// Does not ask on a terminal before an action is begun
    #[arg(long, short, env = "KSYNC_YES", help_heading = "Plan")]
    pub yes: bool,

    /// Counts the rows first, for the time that is left, and looks for keys that rows share where none may be; the database goes
    /// through all of them
    #[arg(long, env = "KSYNC_COUNT", help_heading = "Plan")]
    pub count: bool,
}

impl PlanOptions {
    /// Whether they fit the others; seen without opening anything.
    pub fn check(&self, source: &SourceOptions) -> Result<()> {
        let check = || {
            let name = if self.dry_run { "--dry-run" } else { "--count" };
            ensure!(
                source.stdin.is_none() || !(self.dry_run || self.count),
                "{name} needs rows of a database: lines of stdin cannot be looked at before"
            );
            Ok(())
        };
        check().map_err(|error: anyhow::Error| Exit::Usage.because(error))
    }

    /// Whether a plan is to be made for rows of a database.
    pub fn is_wanted(&self, has_action: bool) -> bool {
        let asks = has_action && !self.yes && stdin().is_terminal() && stderr().is_terminal();
        self.dry_run || asks
    }

    /// Shows the plan, and asks if rows are left; whether the run may begin. Fails with status 1 where the answer is no.
    pub async fn show(&self, lines: &[String], prospect: Prospect) -> Result<bool> {
        if self.dry_run {
            let mut out = std::io::stdout().lock();
            lines.iter().try_for_each(|line| writeln!(out, "{}", escaped(line))).context("cannot print the plan")?;
            return Ok(false);
        }
        lines.iter().for_each(|line| eprintln!("{}", escaped(line)));
        match prospect {
            Prospect::Over => return Ok(false),
            Prospect::NoRows => return Ok(true),
            Prospect::Rows => {}
        }
        eprint!("begin? [y/N] ");
        // A thread that is left behind waiting for an answer does not keep the process.
        let (sender, answer) = tokio::sync::oneshot::channel();
        std::thread::Builder::new().name("answer".to_owned()).spawn(move || {
            let mut line = String::new();
            let read = stdin().read_line(&mut line).map(|_| line);
            drop(sender.send(read));
        })?;
        let answer = answer.await.context("cannot read the answer")?.context("cannot read the answer")?;
        match answer.trim().to_lowercase().as_str() {
            "y" | "yes" => Ok(true),
            _ => Err(Exit::Person.because(anyhow!("not begun: nothing was done; --yes does not ask"))),
        }
    }
}
