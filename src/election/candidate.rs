//! A candidate: one node in the queue for a seat, from its making until it is gone.

use anyhow::{Result, anyhow};
use log::{debug, warn};
use tokio::select;
use tokio::sync::{oneshot, watch};
use zookeeper::{Acls, CreateMode, CreateOptions, Error, SessionState};

use super::card::Card;
use super::fence::Fence;
use super::lease::{Lease, Timing, since_boot};
use super::sequence::{next_ahead, sequence};
use super::tenure::{Signs, Tenure};
use super::zookeeper::{Backoff, PERSISTENT, Session, ZooKeeper};
use super::{Place, Seat, Term};

const EPHEMERAL: CreateOptions<'static> = CreateMode::EphemeralSequential.with_acls(Acls::anyone_all());

/// Queues for `seat`, hands out one lease when it leads, serves it, and ends only when its candidate is gone.
///
/// Withdraws when nobody waits for `won` any more.
pub(super) async fn stand(
    zookeeper: ZooKeeper,
    (seat, place): (Seat, watch::Sender<Place>),
    mut won: oneshot::Sender<Result<Lease>>,
) {
    let mut backoff = Backoff::default();
    loop {
        let session = select! {
            session = zookeeper.session() => session,
            () = won.closed() => None,
        };
        let Some(session) = session else { return };
        if let Err(refused) = session.may_lead() {
            return refuse(won, refused.context(format!("cannot queue for {seat}")));
        }
        let err = match queue(&session, &zookeeper, (&seat, &place), &mut won).await {
            Ok(Some(led)) => return led.serve(won, &session).await,
            Ok(None) => return,
            Err(err) => err,
        };
        if is_refusal(&err) {
            return refuse(won, anyhow!(err).context(format!("cannot queue for {seat}: ZooKeeper refuses it")));
        }
        debug!("{seat}: {err}; queueing again");
        place.send_replace(Place::Outside);
        backoff.wait().await;
    }
}

fn refuse(won: oneshot::Sender<Result<Lease>>, why: anyhow::Error) {
    // Nobody listens where the candidacy was dropped meanwhile.
    drop(won.send(Err(why)));
}

/// One candidate of one session; `None` if it was withdrawn because nobody wants to lead any more.
async fn queue<'a>(
    session: &'a Session,
    zookeeper: &'a ZooKeeper,
    (seat, place): (&'a Seat, &watch::Sender<Place>),
    won: &mut oneshot::Sender<Result<Lease>>,
) -> Result<Option<Led<'a>>, Error> {
    // To its end, even if nobody waits any more: a request is carried out all the same, and its node has to go again.
    let candidate = Candidate::enlist(session, zookeeper, seat).await?;
    let led = select! {
        led = candidate.lead(place) => led.map(Some),
        () = won.closed() => Ok(None),
        () = session.closing.requested() => Ok(None),
    };
    match led {
        Ok(Some((lease, tenure, fence, signs))) => Ok(Some(Led { candidate, lease, tenure, fence, signs })),
        Ok(None) => {
            candidate.withdraw().await;
            Ok(None)
        }
        Err(err) => {
            candidate.withdraw().await;
            Err(err)
        }
    }
}

/// A candidate that leads.
struct Led<'a> {
    candidate: Candidate<'a>,
    lease: Lease,
    tenure: Tenure,
    fence: Fence,
    signs: Signs,
}

impl Led<'_> {
    async fn serve(mut self, won: oneshot::Sender<Result<Lease>>, session: &Session) {
        if won.send(Ok(self.lease)).is_err() {
            return self.candidate.withdraw().await;
        }
        let clock = self.tenure.serve(&mut self.fence, self.signs, session).await;
        if let Some(lost) = &clock.holds.borrow().lost {
            debug!("{}: term {} has ended: {lost}", self.candidate.seat, self.candidate.term);
        }
        self.candidate.withdraw().await;
        // The holder of the lease takes this for the sign that the candidate is gone.
        drop(clock);
    }
}

/// A node that this process has put in the queue.
struct Candidate<'a> {
    session: &'a Session,
    seat: &'a Seat,
    zookeeper: &'a ZooKeeper,
    /// The path of the queue, `../leader`.
    queue: String,
    name: String,
    term: Term,
}

impl<'a> Candidate<'a> {
    /// Makes the node, at the end of the queue; exactly one, even if the answer is lost on the way.
    async fn enlist(session: &'a Session, zookeeper: &'a ZooKeeper, seat: &'a Seat) -> Result<Self, Error> {
        let queue = session.path(seat, "leader");
        let prefix = format!("{}_", zookeeper.process);
        let path = format!("{queue}/{prefix}");
        sweep(session, seat, &queue, &prefix).await?;
        let (name, czxid) = loop {
            match session.client.create(&path, zookeeper.card.data().as_bytes(), &EPHEMERAL).await {
                Ok((stat, sequence)) => break (format!("{prefix}{sequence}"), stat.czxid),
                Err(Error::NoNode) => session.client.mkdir(&queue, &PERSISTENT).await?,
                Err(err) if is_refusal(&err) => return Err(err),
                Err(err) => match until_answered(session, || find(session, &queue, &prefix)).await? {
                    Some(found) => break found,
                    None => return Err(err),
                },
            }
        };
        debug!("{seat}: queueing as {name}");
        Ok(Candidate { session, seat, zookeeper, queue, name, term: Term(czxid) })
    }

    /// Waits until nobody is ahead, then takes over.
    async fn lead(&self, place: &watch::Sender<Place>) -> Result<(Lease, Tenure, Fence, Signs), Error> {
        self.wait_for_turn(place).await?;
        let mut link = self.session.client.state_watcher();
        while link.state() != SessionState::SyncConnected {
            if self.session.has_ended() {
                return Err(Error::SessionExpired);
            }
            link.changed().await;
        }
        // A watch on its children: one on its data would go off with each of our own heartbeats.
        let (_, gone) = self.session.client.list_and_watch_children(&self.path()).await?;
        let answered = since_boot();
        let (fence, stored) = Fence::put_up(self.session, self.seat, &self.path(), &self.zookeeper.card.data()).await?;
        let timing = Timing { answered, session_timeout: self.session.timeout };
        let (lease, tenure) = Lease::new(self.seat.clone(), self.term, stored, timing);
        Ok((lease, tenure, fence, Signs { link, gone }))
    }

    async fn wait_for_turn(&self, place: &watch::Sender<Place>) -> Result<(), Error> {
        let mut warned = false;
        loop {
            let children = self.session.client.list_children(&self.queue).await?;
            if let Some(stranger) = children.iter().find(|name| sequence(name).is_none())
                && !warned
            {
                warn!("{}: passing over {}/{stranger}, which is no candidate; delete it", self.seat, self.queue);
                warned = true;
            }
            if !children.contains(&self.name) {
                return Err(Error::NoNode);
            }
            let Some(ahead) = next_ahead(&self.name, &children) else {
                place.send_replace(Place::First);
                return Ok(());
            };
            debug!("{}: waiting for {ahead}", self.seat);
            let path = format!("{}/{ahead}", self.queue);
            let card = match self.session.client.get_data(&path).await {
                Ok((data, _)) => Card::parse(&data),
                Err(Error::NoNode) => continue,
                Err(err) => return Err(err),
            };
            self.zookeeper.compare(self.seat, &card);
            place.send_replace(Place::Behind(card.host));
            // On its children: a watch on its data would go off with each of its heartbeats.
            match self.session.client.list_and_watch_children(&path).await {
                Ok((_, watcher)) => {
                    if watcher.changed().await.session_state.is_terminated() {
                        return Err(Error::SessionExpired);
                    }
                }
                Err(Error::NoNode) => {}
                Err(err) => return Err(err),
            }
        }
    }

    /// Deletes the node. Returns when it is gone, or goes with its session; tries again until then.
    async fn withdraw(self) {
        let path = self.path();
        let deleted = until_answered(self.session, || self.session.client.delete(&path, None)).await;
        match deleted {
            Ok(()) | Err(Error::NoNode) => debug!("{}: {} is withdrawn", self.seat, self.name),
            Err(err) if self.session.has_ended() => debug!("{}: {} goes with its session: {err}", self.seat, self.name),
            Err(err) => warn!("{}: cannot delete {path}: {err}; nobody leads until the session ends", self.seat),
        }
    }

    fn path(&self) -> String {
        format!("{}/{}", self.queue, self.name)
    }
}

/// Deletes what this very session has in the queue already: candidates that were withdrawn, in a ZooKeeper that was set back to
/// a time before that. The session lives in it again and keeps them, so that whoever is behind them would wait for ever.
async fn sweep(session: &Session, seat: &Seat, queue: &str, prefix: &str) -> Result<(), Error> {
    for (name, _) in own(session, queue, prefix).await? {
        warn!("{seat}: deleting {queue}/{name}, which this session had withdrawn; was ZooKeeper set back?");
        match session.client.delete(&format!("{queue}/{name}"), None).await {
            Ok(()) | Err(Error::NoNode) => {}
            Err(err) => return Err(err),
        }
    }
    Ok(())
}

/// The node that was made by a request without an answer, if it was.
async fn find(session: &Session, queue: &str, prefix: &str) -> Result<Option<(String, i64)>, Error> {
    // After a reconnection the new server may not have heard yet of what the old one did.
    session.client.sync(queue).await?;
    Ok(own(session, queue, prefix).await?.into_iter().next())
}

/// The nodes of this very session, with the number of the transaction that made them. Another session's with the same prefix is
/// dying, and somebody else's for us.
async fn own(session: &Session, queue: &str, prefix: &str) -> Result<Vec<(String, i64)>, Error> {
    let children = match session.client.list_children(queue).await {
        Ok(children) => children,
        Err(Error::NoNode) => return Ok(vec![]),
        Err(err) => return Err(err),
    };
    let mut own = vec![];
    for name in children.into_iter().filter(|name| name.starts_with(prefix)) {
        if let Some(stat) = session.client.check_stat(&format!("{queue}/{name}")).await?
            && stat.ephemeral_owner == session.client.session_id().0
        {
            own.push((name, stat.czxid));
        }
    }
    Ok(own)
}

/// Does `request`, which may be done twice, until it has an answer of the server or the session has ended.
async fn until_answered<T, F>(session: &Session, request: impl Fn() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut backoff = Backoff::default();
    loop {
        match request().await {
            Err(err) if err != Error::NoNode && !is_refusal(&err) && !session.has_ended() => {
                debug!("{err}; asking again");
                backoff.wait().await;
            }
            answer => return answer,
        }
    }
}

/// Whether an error is the server's no, which another attempt would get as well.
pub(super) fn is_refusal(err: &Error) -> bool {
    matches!(
        err,
        Error::NoAuth
            | Error::InvalidAcl
            | Error::QuotaExceeded
            | Error::NoChildrenForEphemerals
            | Error::MarshallingError
            | Error::Unimplemented
            | Error::BadArguments(_)
    )
}
