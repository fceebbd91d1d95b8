//! The client's side of a Unix socket that takes lines and answers with lines.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::World;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(60);
/// After which time it counts as certain that nobody reads what is said.
const UNHEARD: Duration = Duration::from_secs(5);

pub struct Client(BufReader<UnixStream>);

impl Client {
    /// Waits until somebody listens.
    pub fn to(world: &World, path: &Path) -> Client {
        let mut client = None;
        world.eventually("somebody listens", || {
            client = UnixStream::connect(path).ok();
            client.is_some()
        });
        let client = client.unwrap();
        client.set_read_timeout(Some(ANSWER)).unwrap();
        Client(BufReader::new(client))
    }

    /// The same connection, to say something while answers are read.
    pub fn teller(&self) -> Client {
        Client(BufReader::new(self.0.get_ref().try_clone().unwrap()))
    }

    pub fn say(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    /// Says lines for as long as they are read; how many were. What comes after that is cut off.
    pub fn say_while_heard(&mut self, lines: impl Iterator<Item = String>) -> usize {
        let stream = self.0.get_mut();
        stream.set_write_timeout(Some(UNHEARD)).unwrap();
        lines.take_while(|line| stream.write_all(format!("{line}\n").as_bytes()).is_ok()).count()
    }

    /// The next line that it answers; nothing at the end.
    pub fn answer(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end_matches('\n').to_owned()
    }

    /// Whether the other side has ended it.
    pub fn is_closed(&mut self) -> bool {
        self.0.read_line(&mut String::new()).map_or(true, |read| read == 0)
    }

    /// Whether there is no answer for so long.
    pub fn is_silent_for(&mut self, time: Duration) -> bool {
        self.0.get_ref().set_read_timeout(Some(time)).unwrap();
        let is_silent = self.0.read_line(&mut String::new()).is_err();
        self.0.get_ref().set_read_timeout(Some(ANSWER)).unwrap();
        is_silent
    }

    pub fn ask(&mut self, line: &str) -> String {
        self.say(format!("{line}\n").as_bytes());
        self.answer()
    }
}
