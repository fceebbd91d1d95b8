//! The fence around an offset: transactions that only the leader of the moment can carry out.

use log::debug;
use zookeeper::{CheckWriteError, Error, MultiWriteResult};

use super::Seat;
use super::lease::Lost;
use super::offsets::{State, Stored, StoredOffset, StoredState};
use super::zookeeper::{PERSISTENT, Session};
use crate::mutants::Mutant;

/// How often a take-over is begun again because the offset was written in the middle of it.
const ATTEMPTS: u32 = 10;

/// The right to write one seat's offset, as long as the candidate stands and nobody else wrote.
#[derive(Debug)]
pub(super) struct Fence {
    session: Session,
    candidate: String,
    /// What the candidate's data is.
    card: String,
    offset: String,
    state: String,
    /// The version of `offset` that this process wrote last.
    version: i32,
}

impl Fence {
    /// Reads what is stored and shuts out every commit of earlier leaders, by writing the offset to itself.
    ///
    /// An error from the server, [`Error::NoNode`] among them, means that the candidate has to be given up.
    pub async fn put_up(session: &Session, seat: &Seat, candidate: &str, card: &str) -> Result<(Fence, Stored), Error> {
        let mut fence = Fence {
            session: session.clone(),
            candidate: candidate.to_owned(),
            card: card.to_owned(),
            offset: session.path(seat, "offset"),
            state: session.path(seat, "state"),
            version: 0,
        };
        for _ in 0..ATTEMPTS {
            match fence.take_over().await? {
                Some(stored) => return Ok((fence, stored)),
                None => debug!("{seat}: the offset was written during the take-over; reading it again"),
            }
        }
        Err(Error::BadVersion)
    }

    /// One attempt; `None` if somebody wrote between the reading and the writing.
    async fn take_over(&mut self) -> Result<Option<Stored>, Error> {
        // In this order: the transaction below proves the offset to be the latest, and whoever commits writes both at
        // once, so a state that was read after it is no older.
        let offset = present(self.session.client.get_data(&self.offset).await)?;
        let state = present(self.session.client.get_data(&self.state).await)?;
        let mut transaction = self.session.client.new_check_writer(&self.candidate, None)?;
        match &offset {
            Some((data, stat)) => transaction.add_set_data(&self.offset, data, Some(stat.version))?,
            None => transaction.add_create(&self.offset, b"", &PERSISTENT)?,
        }
        if state.is_none() {
            transaction.add_create(&self.state, b"", &PERSISTENT)?;
        }
        match transaction.commit().await {
            Ok(results) => self.version = written_version(&results).unwrap_or(0),
            Err(CheckWriteError::OperationFailed {
                source: Error::BadVersion | Error::NodeExists | Error::NoNode,
                ..
            }) => return Ok(None),
            Err(CheckWriteError::CheckFailed { source } | CheckWriteError::OperationFailed { source, .. }) => {
                return Err(source);
            }
            Err(CheckWriteError::RequestFailed { source }) => return Err(source),
        }
        Ok(Some(Stored {
            offset: offset.map_or(StoredOffset::None, |(data, _)| StoredOffset::parse(&data)),
            state: state.map_or(StoredState::None, |(data, _)| StoredState::parse(&data)),
        }))
    }

    /// Writes offset and state. To be called never again after an error: it may have been carried out all the same.
    pub async fn commit(&mut self, state: &State) -> Result<(), Lost> {
        let results = self.write(state).await.map_err(|err| self.why_not_committed(err))?;
        self.version = written_version(&results).unwrap_or(self.version + 1);
        Ok(())
    }

    async fn write(&self, state: &State) -> Result<Vec<MultiWriteResult>, CheckWriteError> {
        let json = serde_json::to_vec(state).expect("a state has no maps and no numbers that JSON lacks");
        let offset = state.position.offset.to_string();
        let is_unfenced = Mutant::CommitsUnfenced.is_on();
        let (checked, version) = if is_unfenced { (&self.offset, None) } else { (&self.candidate, Some(self.version)) };
        let mut transaction = self.session.client.new_check_writer(checked, None)?;
        transaction.add_set_data(&self.offset, offset.as_bytes(), version)?;
        transaction.add_set_data(&self.state, &json, None)?;
        transaction.commit().await
    }

    fn why_not_committed(&self, err: CheckWriteError) -> Lost {
        match err {
            CheckWriteError::CheckFailed { source: Error::NoNode } => Lost::CandidateGone,
            CheckWriteError::OperationFailed { source: Error::BadVersion | Error::NoNode, .. } => Lost::OffsetMoved,
            CheckWriteError::CheckFailed { source } => why_unanswered(source, &self.candidate),
            CheckWriteError::OperationFailed { index: 1, source } => why_unanswered(source, &self.state),
            CheckWriteError::OperationFailed { source, .. } | CheckWriteError::RequestFailed { source } => {
                why_unanswered(source, &self.offset)
            }
        }
    }

    pub fn heart(&self) -> Heart {
        let Fence { session, candidate, card, .. } = self;
        Heart { session: session.clone(), candidate: candidate.clone(), card: card.clone() }
    }
}

/// What shows that writes are still answered.
#[derive(Debug)]
pub(super) struct Heart {
    session: Session,
    candidate: String,
    card: String,
}

impl Heart {
    /// Writes the candidate's data to itself.
    pub async fn beat(&self) -> Result<(), Lost> {
        match self.session.client.set_data(&self.candidate, self.card.as_bytes(), None).await {
            Ok(_) => Ok(()),
            Err(Error::NoNode) => Err(Lost::CandidateGone),
            Err(err) => Err(why_unanswered(err, &self.candidate)),
        }
    }
}

fn present<T>(read: Result<T, Error>) -> Result<Option<T>, Error> {
    match read {
        Ok(node) => Ok(Some(node)),
        Err(Error::NoNode) => Ok(None),
        Err(err) => Err(err),
    }
}

/// The version that the offset has now; `None` where it was created.
fn written_version(results: &[MultiWriteResult]) -> Option<i32> {
    match results.first() {
        Some(MultiWriteResult::SetData { stat }) => Some(stat.version),
        _ => None,
    }
}

/// What an error means that tells nothing about who leads. Only the errors named here are a server's own answer.
fn why_unanswered(err: Error, node: &str) -> Lost {
    match err {
        Error::NoAuth | Error::QuotaExceeded | Error::MarshallingError | Error::NotReadOnly | Error::Throttled => {
            Lost::Refused(format!("{node}: {err}"))
        }
        err => {
            debug!("a write was not answered: {err}");
            Lost::Disconnected
        }
    }
}
