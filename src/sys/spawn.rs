//! posix_spawn with what std's Command cannot say without a fork: which descriptors the process has, and no other.

use std::ffi::{CString, OsStr, c_int, c_short};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::ptr;

/// A program that can be started any number of times.
pub struct Program {
    path: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

/// Which signals reach a new process.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It leads a process group of its own, blocks no signal, and a broken pipe ends it.
    Group,
    /// It leads a session of its own, and of all signals only KILL and STOP do anything to it.
    Aloof,
}

impl Program {
    /// The arguments begin with the name that the program is told. Fails where a text has a NUL in it.
    pub fn new<'a>(
        path: &OsStr,
        arguments: impl IntoIterator<Item = &'a OsStr>,
        environment: impl IntoIterator<Item = (&'a OsStr, &'a OsStr)>,
    ) -> io::Result<Program> {
        let text = |text: &OsStr| CString::new(text.as_bytes());
        let variable =
            |(name, value): (&OsStr, &OsStr)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat());
        Ok(Program {
            path: text(path)?,
            arguments: arguments.into_iter().map(text).collect::<Result<_, _>>()?,
            environment: environment.into_iter().map(variable).collect::<Result<_, _>>()?,
        })
    }

    /// Starts it with these descriptors as its 0, 1, 2, .. and no others, and gives its number. Returns when the program
    /// is loaded, or cannot be.
    pub fn spawn(&self, descriptors: &[BorrowedFd<'_>], place: Place) -> io::Result<i32> {
        let pointers = |texts: &[CString]| -> Vec<*mut libc::c_char> {
            texts.iter().map(|text| text.as_ptr().cast_mut()).chain([ptr::null_mut()]).collect()
        };
        let (arguments, environment) = (pointers(&self.arguments), pointers(&self.environment));
        let actions = Actions::new(descriptors)?;
        let attributes = Attributes::new(place)?;
        let mut pid = 0;
        // SAFETY: both lists end in null, and they, their strings, the actions and the attributes outlive the call.
        check(unsafe {
            let (path, arguments, environment) = (self.path.as_ptr(), arguments.as_ptr(), environment.as_ptr());
            libc::posix_spawn(&mut pid, path, &actions.0, &attributes.0, arguments, environment)
        })?;
        Ok(pid)
    }
}

struct Actions(libc::posix_spawn_file_actions_t);

impl Actions {
    fn new(descriptors: &[BorrowedFd<'_>]) -> io::Result<Actions> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: it is initialised where the call succeeds, and only then looked at.
        let mut actions = unsafe {
            check(libc::posix_spawn_file_actions_init(actions.as_mut_ptr()))?;
            Actions(actions.assume_init())
        };
        let mut number: c_int = 0;
        for descriptor in descriptors {
            let source = descriptor.as_raw_fd();
            if source < number {
                // It would be overwritten before its turn. Rust sees to it that 0, 1 and 2 are open in us.
                return Err(io::ErrorKind::InvalidInput.into());
            }
            // SAFETY: the actions are initialised.
            check(unsafe { libc::posix_spawn_file_actions_adddup2(&mut actions.0, source, number) })?;
            number += 1;
        }
        // Not left to close-on-exec: librdkafka opens its wake-up pipes without.
        // SAFETY: as above.
        check(unsafe { libc::posix_spawn_file_actions_addclosefrom_np(&mut actions.0, number) })?;
        Ok(actions)
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: they are initialised, and destroyed once. The call has nothing to tell.
        unsafe { libc::posix_spawn_file_actions_destroy(&mut self.0) };
    }
}

struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    fn new(place: Place) -> io::Result<Attributes> {
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: it is initialised where the call succeeds, and only then looked at.
        let mut attributes = unsafe {
            check(libc::posix_spawnattr_init(attributes.as_mut_ptr()))?;
            Attributes(attributes.assume_init())
        };
        let (mut blocked, mut default) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        let flag = match place {
            Place::Group => libc::POSIX_SPAWN_SETPGROUP,
            Place::Aloof => c_int::from(libc::POSIX_SPAWN_SETSID),
        };
        let flags = flag | libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF;
        let flags = c_short::try_from(flags).expect("the flags of posix_spawn are a short");
        // SAFETY: the attributes are initialised, and the sets are before they are used.
        unsafe {
            match place {
                Place::Group => libc::sigemptyset(blocked.as_mut_ptr()),
                Place::Aloof => libc::sigfillset(blocked.as_mut_ptr()),
            };
            libc::sigemptyset(default.as_mut_ptr());
            // Rust ignores it in us.
            libc::sigaddset(default.as_mut_ptr(), libc::SIGPIPE);
            check(libc::posix_spawnattr_setsigmask(&mut attributes.0, blocked.as_ptr()))?;
            check(libc::posix_spawnattr_setsigdefault(&mut attributes.0, default.as_ptr()))?;
            check(libc::posix_spawnattr_setpgroup(&mut attributes.0, 0))?;
            check(libc::posix_spawnattr_setflags(&mut attributes.0, flags))?;
        }
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: they are initialised, and destroyed once. The call has nothing to tell.
        unsafe { libc::posix_spawnattr_destroy(&mut self.0) };
    }
}

/// These functions give their error instead of setting errno.
fn check(code: c_int) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
}
