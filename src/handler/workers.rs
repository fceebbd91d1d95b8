//! The workers of this process: those that wait for a batch, and when they are replaced.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use log::{debug, info, warn};
use tokio::signal::unix::{self, SignalKind};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::descendants::Marker;
use super::outcome::{Failed, Failure, Outcome};
use super::worker::{Worked, Worker};
use super::{Batch, Command, GRACE, new_id};
use crate::topic::Name;

/// A worker that gets no batch for so long is looked after.
const REST: Duration = Duration::from_millis(50);

/// Workers of one command: as many as batches are given at the same time, started when they are needed.
pub struct Workers {
    command: Command,
    name: Name,
    terms: WorkerTerms,
    idle: Arc<Mutex<Idle>>,
    /// How often all were to be replaced; a worker that was started before the last time gets no more batches.
    renewals: watch::Receiver<u64>,
}

/// What holds for each worker.
#[derive(Clone, Copy, Debug)]
pub struct WorkerTerms {
    /// How long it may take until it is ready.
    pub start_timeout: Duration,
    /// After so many batches it is replaced.
    pub recycle_after: Option<u64>,
}

/// The workers without a batch.
#[derive(Default)]
struct Idle {
    /// Nobody looks after these yet. Most often they get the next batch at once, and a task for each would delay it.
    fresh: Vec<Hired>,
    /// Whether a task will look after the fresh ones.
    is_tended: bool,
    watched: Vec<Watched>,
}

/// A worker that is looked after, so that its output does not fill up and its end is noticed.
struct Watched {
    recall: oneshot::Sender<()>,
    /// `None` where it has ended.
    worker: JoinHandle<Option<Hired>>,
}

/// A worker, and since which renewal it is there.
pub(super) struct Hired {
    pub worker: Worker,
    renewal: u64,
}

impl Workers {
    /// Listens to SIGHUP from now on: it replaces all workers, each after its batch.
    pub fn new(command: Command, name: Name, terms: WorkerTerms) -> Result<Workers> {
        let mut hangup = unix::signal(SignalKind::hangup()).context("cannot listen to SIGHUP")?;
        let (renew, renewals) = watch::channel(0);
        tokio::spawn(async move {
            while hangup.recv().await.is_some() && !renew.is_closed() {
                info!("SIGHUP: the workers are replaced after their batches");
                renew.send_modify(|renewal| *renewal += 1);
            }
        });
        Ok(Workers { command, name, terms, idle: Arc::default(), renewals })
    }

    /// As [`Command::run`], by a worker. Its batch ends once `go` says true.
    pub(super) async fn run(
        &self,
        batch: &Batch<'_>,
        lines: &[u8],
        go: impl Future<Output = bool>,
        stop: impl Future<Output = Instant>,
    ) -> Outcome {
        let mut stop = std::pin::pin!(stop);
        let hired = tokio::select! {
            biased;
            _ = &mut stop => return Outcome::Stopped,
            hired = self.hire() => hired,
        };
        let mut hired = match hired {
            Ok(hired) => hired,
            Err(failed) => return Outcome::Failed(failed),
        };
        match hired.worker.work((batch, lines), self.command.terms.timeout, go, stop.as_mut()).await {
            Worked::Answered(answer) => {
                self.keep(hired);
                answer.map_or_else(Outcome::from, Outcome::Done)
            }
            Worked::Stopped { is_free } => {
                if is_free {
                    self.keep(hired);
                } else {
                    hired.worker.kill().await;
                }
                Outcome::Stopped
            }
            Worked::Broken(failure) => {
                if let Failure::Silent { .. } | Failure::Fatal(_) = failure {
                    hired.worker.terminate(Instant::now() + GRACE, stop).await;
                }
                Outcome::Failed(hired.worker.end(failure).await)
            }
        }
    }

    pub(super) fn name(&self) -> &Name {
        &self.name
    }

    /// How long an answer may take.
    pub(super) fn timeout(&self) -> Duration {
        self.command.terms.timeout
    }

    /// Ends them all. Those that have a batch are not waited for.
    pub(super) async fn close(&self) {
        let Idle { fresh, watched, .. } = std::mem::take(&mut *lock(&self.idle));
        let fresh = fresh.into_iter().map(|hired| tokio::spawn(retire(hired)));
        let watched = watched.into_iter().map(|Watched { recall, worker }| {
            recall.send(()).ok(); // It may have ended.
            tokio::spawn(async move {
                if let Ok(Some(hired)) = worker.await {
                    retire(hired).await;
                }
            })
        });
        for retired in fresh.chain(watched).collect::<Vec<_>>() {
            retired.await.ok(); // A panic has been told.
        }
    }

    /// One that waits, or a new one.
    pub(super) async fn hire(&self) -> Result<Hired, Failed> {
        while let Some(mut hired) = self.recall().await {
            match hired.worker.unusable() {
                _ if hired.renewal < *self.renewals.borrow() => drop(tokio::spawn(retire(hired))),
                None => return Ok(hired),
                Some(failure) => dismiss(hired, failure).await,
            }
        }
        let renewal = *self.renewals.borrow();
        let environment = [("KSYNC_WORKER_ID", new_id())];
        let started = self.command.program(&environment).and_then(|program| {
            let marker = Marker::of(&environment).expect("it has an id");
            Worker::start(&program, marker)
        });
        let not_started = |cause| Failed::from(Failure::NotStarted { program: self.command.argv[0].clone(), cause });
        let mut worker = started.map_err(not_started)?;
        match worker.get_ready(&self.name.to_string(), self.terms.start_timeout).await {
            Ok(()) => Ok(Hired { worker, renewal }),
            Err(failure) => {
                let failed = worker.end(failure).await;
                Err(Failed { failure: Failure::NotReady(Box::new(failed.failure)), ..failed })
            }
        }
    }

    /// One of those that wait; `None` where there is none.
    async fn recall(&self) -> Option<Hired> {
        loop {
            let Watched { recall, worker } = {
                let mut idle = lock(&self.idle);
                match idle.fresh.pop() {
                    Some(hired) => return Some(hired),
                    None => idle.watched.pop()?,
                }
            };
            recall.send(()).ok(); // It may have ended.
            if let Ok(Some(hired)) = worker.await {
                return Some(hired);
            }
        }
    }

    /// Lets it wait for another batch, or replaces it.
    fn keep(&self, hired: Hired) {
        if self.terms.recycle_after.is_some_and(|limit| hired.worker.batches >= limit) {
            tokio::spawn(retire(hired));
            return;
        }
        let mut idle = lock(&self.idle);
        idle.fresh.push(hired);
        if !std::mem::replace(&mut idle.is_tended, true) {
            let (idle, renewals) = (self.idle.clone(), self.renewals.clone());
            tokio::spawn(async move {
                sleep(REST).await;
                lock(&idle).watch(&renewals);
            });
        }
    }
}

impl Idle {
    /// Has each of the fresh ones looked after by a task of its own.
    fn watch(&mut self, renewals: &watch::Receiver<u64>) {
        self.is_tended = false;
        self.watched.extend(self.fresh.drain(..).map(|hired| {
            let (recall, recalled) = oneshot::channel();
            Watched { recall, worker: tokio::spawn(wait(hired, recalled, renewals.clone())) }
        }));
    }
}

fn lock(idle: &Mutex<Idle>) -> MutexGuard<'_, Idle> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks after a worker without a batch; gives it back once it is recalled.
async fn wait(mut hired: Hired, recalled: oneshot::Receiver<()>, mut renewals: watch::Receiver<u64>) -> Option<Hired> {
    let since = hired.renewal;
    // An error means that the process comes to its end.
    let renewed = async { renewals.wait_for(|renewal| *renewal > since).await.map(drop) };
    tokio::select! {
        biased;
        _ = renewed => {
            retire(hired).await;
            None
        }
        _ = recalled => Some(hired),
        failure = hired.worker.idle() => {
            dismiss(hired, failure).await;
            None
        }
    }
}

async fn retire(hired: Hired) {
    debug!("a worker is retired after {} batches", hired.worker.batches);
    drop(hired.worker.retire().await);
}

async fn dismiss(hired: Hired, failure: Failure) {
    let Failed { failure, .. } = hired.worker.end(failure).await;
    warn!("a worker that had no batch is replaced: {failure}");
}
