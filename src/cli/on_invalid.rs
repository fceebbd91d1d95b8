//! What each tool can do with a record whose value is not what it has to be.

use clap::ValueEnum;

use crate::intake::OnInvalid;

/// For records that a handler gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnInvalidRecord {
    /// The partition halts there; the others go on
    Halt,
    /// The record goes to the dead-letter topic
    DeadLetter,
    /// The command gets its bytes: payload_b64 instead of payload
    Raw,
}

/// For delay messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnInvalidMessage {
    /// The partition halts there; the others go on
    Halt,
    /// The message goes to the dead-letter topic
    DeadLetter,
}

impl From<OnInvalidRecord> for OnInvalid {
    fn from(option: OnInvalidRecord) -> OnInvalid {
        match option {
            OnInvalidRecord::Halt => OnInvalid::Halt,
            OnInvalidRecord::DeadLetter => OnInvalid::DeadLetter,
            OnInvalidRecord::Raw => OnInvalid::Raw,
        }
    }
}

impl From<OnInvalidMessage> for OnInvalid {
    fn from(option: OnInvalidMessage) -> OnInvalid {
        match option {
            OnInvalidMessage::Halt => OnInvalid::Halt,
            OnInvalidMessage::DeadLetter => OnInvalid::DeadLetter,
        }
    }
}
