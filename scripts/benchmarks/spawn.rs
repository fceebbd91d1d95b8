//! Starts a command so many times, one after the other, gives it so many bytes on stdin and waits for its end: what one
//! process for each batch costs by itself.

use std::env;
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

const USAGE: &str = "usage: spawn RUNS BYTES COMMAND [ARG..]";

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [runs, bytes, program, rest @ ..] = arguments.as_slice() else { bail!(USAGE) };
    let runs: u32 = runs.parse().context(USAGE)?;
    let input = vec![b'x'; bytes.parse().context(USAGE)?];
    for _ in 0..runs {
        let mut command = Command::new(program);
        let mut child =
            command.args(rest).stdin(Stdio::piped()).spawn().with_context(|| format!("cannot start '{program}'"))?;
        // Taken, so that it is closed behind the input.
        child.stdin.take().context("no stdin")?.write_all(&input).context("cannot write")?;
        let status = child.wait().context("cannot wait")?;
        ensure!(status.success(), "'{program}' ended with {status}");
    }
    Ok(())
}
