//! One application: its requests are read in turn, and answered as Kafka answers.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::Shared;
use super::request::{Asked, Op, Request, answer};
use super::transaction::{Transaction, cover_once, send};
use crate::shutdown::Shutdown;

/// How long a request may be, in bytes.
const LONGEST: u64 = 16 << 20;
/// A request that is no longer than this is read without asking for room.
pub(super) const SHORT: usize = 64 << 10;
/// How many requests of an application may wait for their answer; then no more are read.
const UNANSWERED: usize = 1000;
/// How long an application may take to read its answers, and to end a long request.
const READING: Duration = Duration::from_secs(30);
/// How many transactions of an application may be under way.
const UNDER_WAY: usize = 10_000;
/// What it means that messages do not arrive of a transaction of which nothing is known here.
const UNKNOWN: &str =
    "cannot send the instant messages; only delay messages that were acknowledged before cover the change";

/// Where the answer to a request goes: there is one, whatever becomes of the request. What it holds until then is room for the
/// request itself.
pub(super) struct Reply {
    id: String,
    answers: UnboundedSender<Answer>,
    place: Option<OwnedSemaphorePermit>,
    _room: OwnedSemaphorePermit,
}

/// A line, and its place among those that the application has not read yet.
type Answer = (String, OwnedSemaphorePermit);

impl Reply {
    pub fn give(mut self, result: Result<()>) {
        self.answer(&result);
    }

    fn answer(&mut self, result: &Result<()>) {
        if let Some(place) = self.place.take() {
            // An application that is gone does not want it.
            drop(self.answers.send((answer(&self.id, result), place)));
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.answer(&Err(anyhow!("the transaction is not known any more; send its messages along")));
    }
}

/// Serves one application until it closes its side, or the end is asked for; then what was read of it is answered yet.
pub(super) async fn converse(
    shared: Arc<Shared>,
    from: impl AsyncRead + Unpin,
    to: impl AsyncWrite + Unpin + Send + 'static,
    shutdown: &Shutdown,
) -> Result<()> {
    let (answers, said) = unbounded_channel();
    let mut writing = tokio::spawn(write(said, to));
    let asked = tokio::select! {
        asked = listen(&shared, from, answers, shutdown) => asked,
        written = &mut writing => return written.context("the task of an application has failed")?,
    };
    writing.await.context("the task of an application has failed")?.and(asked)
}

async fn write(mut said: UnboundedReceiver<Answer>, mut to: impl AsyncWrite + Unpin) -> Result<()> {
    let (mut some, mut lines) = (Vec::<Answer>::new(), Vec::new());
    while said.recv_many(&mut some, UNANSWERED).await > 0 {
        lines.clear();
        some.iter().for_each(|(line, _)| lines.extend_from_slice(line.as_bytes()));
        let written = async {
            to.write_all(&lines).await?;
            to.flush().await
        };
        timeout(READING, written).await.context("it does not read its answers")?.context("cannot write an answer")?;
        some.clear();
    }
    Ok(())
}

async fn listen(
    shared: &Arc<Shared>,
    from: impl AsyncRead + Unpin,
    answers: UnboundedSender<Answer>,
    shutdown: &Shutdown,
) -> Result<()> {
    let mut from = BufReader::with_capacity(SHORT, from);
    let (mut line, mut transactions) = (Vec::new(), Transactions::default());
    let unanswered = Arc::new(Semaphore::new(UNANSWERED));
    loop {
        line.clear();
        line.shrink_to(SHORT);
        let reading = async {
            let place = unanswered.clone().acquire_owned().await?;
            let room = read(shared, &mut from, &mut line).await?;
            anyhow::Ok((place, room))
        };
        let (place, room) = tokio::select! {
            biased;
            () = shutdown.requested() => return Ok(()),
            permits = reading => permits?,
        };
        let is_last = !line.ends_with(b"\n");
        let said = line.trim_ascii();
        let reply = |id| Reply { id, answers: answers.clone(), place: Some(place), _room: room };
        if is_last && line.len() as u64 >= LONGEST {
            // Nobody knows where the next one begins.
            reply("null".to_owned()).give(Err(anyhow!("a request is longer than {LONGEST} bytes")));
            return Ok(());
        }
        if !said.is_empty() {
            let Request { id, asked } = Request::parse(said, &shared.topics);
            match asked {
                Ok(asked) => transactions.serve(shared, asked, reply(id)),
                Err(error) => reply(id).give(Err(error)),
            }
        }
        if is_last {
            return Ok(());
        }
    }
}

/// Reads a line, or as much as there is to the end, and gives the room that it takes until it is answered.
async fn read(
    shared: &Shared,
    from: &mut (impl AsyncBufReadExt + Unpin),
    line: &mut Vec<u8>,
) -> Result<OwnedSemaphorePermit> {
    (&mut *from).take(SHORT as u64).read_until(b'\n', line).await.context("cannot read a request")?;
    if !line.ends_with(b"\n") && line.len() == SHORT {
        // Few at once, so that they do not take all memory; and not for long, since others wait for that.
        let _turn = shared.long.acquire().await?;
        let mut rest = (&mut *from).take(LONGEST - SHORT as u64);
        let read = timeout(READING, rest.read_until(b'\n', line)).await;
        read.context("it does not end a request")?.context("cannot read a request")?;
        // Before the turn is the next one's.
        return Ok(shared.asked.clone().acquire_many_owned(u32::try_from(line.len())?).await?);
    }
    Ok(shared.asked.clone().acquire_many_owned(u32::try_from(line.len())?).await?)
}

/// Those of one application that are under way.
#[derive(Default)]
struct Transactions {
    open: HashMap<String, Transaction>,
    /// Of which nothing is kept, not even of what comes later: only the application knows them as a whole.
    unkept: HashSet<String>,
}

impl Transactions {
    fn serve(&mut self, shared: &Arc<Shared>, Asked { tx, op, changes }: Asked, reply: Reply) {
        let tx = tx.unwrap_or_default();
        match op {
            Op::Delay => {
                if let Some(open) = self.open.get(&tx) {
                    let room = shared.room_for(&changes);
                    return open.cover(changes, room, reply);
                }
                if self.unkept.contains(&tx) {
                    return cover_once(shared, changes, reply);
                }
                if self.open.len() + self.unkept.len() >= UNDER_WAY {
                    return reply.give(Err(anyhow!(
                        "{UNDER_WAY} transactions are under way on this connection, as if their ends were not told; nothing was sent"
                    )));
                }
                match shared.room_for_one_more().zip(shared.room_for(&changes)) {
                    Some((place, room)) => {
                        let begun = Transaction::begin(shared, place);
                        begun.cover(changes, Some(room), reply);
                        self.open.insert(tx, begun);
                    }
                    None => {
                        self.unkept.insert(tx);
                        cover_once(shared, changes, reply);
                    }
                }
            }
            Op::Instant => match self.ended(&tx) {
                Some(transaction) => transaction.commit(changes, reply),
                None if changes.is_empty() => {
                    reply.give(Err(anyhow!("tx {tx} is not known here, or not any more; send its messages along")));
                }
                None => {
                    let (shared, room) = (shared.clone(), shared.room_for(&changes));
                    tokio::spawn(
                        async move { send(&shared, changes, room.map(|room| vec![room]), UNKNOWN, reply).await },
                    );
                }
            },
            Op::Forget => {
                drop(self.ended(&tx));
                reply.give(Ok(()));
            }
        }
    }

    /// What is known of it, for the last time.
    fn ended(&mut self, tx: &str) -> Option<Transaction> {
        self.unkept.remove(tx);
        self.open.remove(tx)
    }
}
