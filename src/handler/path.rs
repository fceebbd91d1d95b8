//! Where a program is: at its path, or on PATH.

use std::env;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use rustix::fs::{Access, access};

/// Where programs are looked for when there is no PATH, as glibc does.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// Where the program is, looked for as execvp does. The error ends in what to look at.
pub(super) fn find(name: &str) -> Result<PathBuf> {
    if name.contains('/') {
        let hint = |err: io::Error| match err.kind() {
            io::ErrorKind::PermissionDenied => anyhow!("{err}; is it executable?"),
            io::ErrorKind::NotFound => anyhow!("{err}; is the path right?"),
            _ => err.into(),
        };
        executable(Path::new(name)).map_err(hint)?;
        return Ok(name.into());
    }
    let path = env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    let mut refused = None;
    for directory in env::split_paths(&path) {
        // An empty entry of PATH means the working directory; "./" keeps it a path.
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { &directory };
        let program = directory.join(name);
        match executable(&program) {
            Ok(()) => return Ok(program),
            Err(err) if err.kind() == io::ErrorKind::PermissionDenied => refused = Some((program, err)),
            Err(_) => {}
        }
    }
    match refused {
        Some((program, err)) => Err(anyhow!("{err}; is {} executable?", program.display())),
        None => Err(anyhow!("{}; is it on the PATH?", io::Error::from(rustix::io::Errno::NOENT))),
    }
}

/// Fails as execve would, as far as that can be told without doing it.
fn executable(program: &Path) -> io::Result<()> {
    access(program, Access::EXEC_OK)?;
    if program.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    Ok(())
}
