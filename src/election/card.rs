//! What a candidate tells of its process: the host's name, as the gem writes it, and below it what the gem does not read.

use std::sync::atomic::Ordering;

use log::warn;

use super::Seat;
use super::zookeeper::ZooKeeper;

/// What stands before the handler.
const HANDLER: &str = "handler ";

/// The data of a candidate: lines, of which those that are not known are passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Card {
    /// The name of the machine.
    pub host: String,
    /// The name of the handler's program, and a digest of its command line.
    pub handler: Option<String>,
}

impl Card {
    pub fn parse(data: &[u8]) -> Card {
        let text = String::from_utf8_lossy(data);
        let mut lines = text.lines().map(str::trim);
        let host = lines.next().unwrap_or_default().to_owned();
        let handler = lines.find_map(|line| line.strip_prefix(HANDLER)).map(str::to_owned);
        Card { host, handler }
    }

    pub fn data(&self) -> String {
        let handler = self.handler.iter().map(|handler| format!("{HANDLER}{handler}\n"));
        format!("{}\n{}", self.host, handler.collect::<String>())
    }
}

impl ZooKeeper {
    /// Warns, once in this process, where the candidate that is ahead works by another handler.
    pub(super) fn compare(&self, seat: &Seat, ahead: &Card) {
        let (Some(own), Some(theirs)) = (&self.card.handler, &ahead.handler) else { return };
        if own != theirs && !self.has_warned.swap(true, Ordering::Relaxed) {
            warn!(
                "{seat}: the process ahead in the queue, on {}, has another handler: {theirs}, and here it is {own}; one of \
                 them gets what the other one does not, so give each its own --name (if it is a new version: this passes)",
                ahead.host
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_read_as_it_is_written_and_so_is_one_of_the_gem_or_of_a_later_release() {
        let card = |host: &str, handler: Option<&str>| Card { host: host.into(), handler: handler.map(str::to_owned) };
        for card in [card("web1", None), card("", None), card("web1", Some("index.py 0123abcd"))] {
            assert_eq!(Card::parse(card.data().as_bytes()), card);
        }
        assert_eq!(card("web1", None).data(), "web1\n");
        for (data, read) in [
            ("web1", card("web1", None)),
            ("web1\nzone eu 1\nhandler a b\nhandlers 7\n", card("web1", Some("a b"))),
            ("web1\nhandlers 7\n", card("web1", None)),
        ] {
            assert_eq!(Card::parse(data.as_bytes()), read);
        }
    }
}
