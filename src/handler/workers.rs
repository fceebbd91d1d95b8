//! The workers of this process: those that wait for a batch, and when they are replaced.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use log::{debug, info, warn};
use tokio::signal::unix::{self, SignalKind};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::descendants::Marker;
use super::outcome::{Failed, Failure, Outcome};
use super::worker::{Worked, Worker};
use super::{Batch, Command, GRACE};
use crate::topic::Name;

/// Workers of one command: as many as batches are given at the same time, started when they are needed.
pub struct Workers {
    command: Command,
    name: Name,
    terms: WorkerTerms,
    idle: Mutex<Vec<Idle>>,
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

/// A worker without a batch. It is looked after, so that its output does not fill up and its end is noticed.
struct Idle {
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
        Ok(Workers { command, name, terms, idle: Mutex::new(vec![]), renewals })
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
                    drop(hired.worker.end(Failure::Gone).await);
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
        let idle = std::mem::take(&mut *self.idle.lock().unwrap_or_else(PoisonError::into_inner));
        let retired = idle.into_iter().map(|Idle { recall, worker }| {
            recall.send(()).ok(); // It may have ended.
            tokio::spawn(async move {
                if let Ok(Some(hired)) = worker.await {
                    drop(hired.worker.retire().await);
                }
            })
        });
        for retired in retired.collect::<Vec<_>>() {
            retired.await.ok(); // A panic has been told.
        }
    }

    /// One that waits, or a new one.
    pub(super) async fn hire(&self) -> Result<Hired, Failed> {
        while let Some(Idle { recall, worker }) = self.pop() {
            recall.send(()).ok(); // It may have ended.
            if let Ok(Some(mut hired)) = worker.await {
                match hired.worker.misspoken() {
                    None => return Ok(hired),
                    Some(failure) => dismiss(hired, failure).await,
                }
            }
        }
        let renewal = *self.renewals.borrow();
        let id = format!("{:016x}", rand::random::<u64>());
        let environment = [("KSYNC_WORKER_ID", id)];
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

    fn pop(&self) -> Option<Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Lets it wait for another batch, or replaces it.
    fn keep(&self, hired: Hired) {
        let is_worn = self.terms.recycle_after.is_some_and(|limit| hired.worker.batches >= limit);
        let (recall, recalled) = oneshot::channel();
        let worker = tokio::spawn(wait(hired, is_worn, recalled, self.renewals.clone()));
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(Idle { recall, worker });
    }
}

/// Looks after a worker without a batch; gives it back once it is recalled.
async fn wait(
    mut hired: Hired,
    is_worn: bool,
    recalled: oneshot::Receiver<()>,
    mut renewals: watch::Receiver<u64>,
) -> Option<Hired> {
    let since = hired.renewal;
    let renewed = async {
        if !is_worn {
            // An error means that the process comes to its end.
            renewals.wait_for(|renewal| *renewal > since).await.ok();
        }
    };
    tokio::select! {
        biased;
        () = renewed => {
            debug!("a worker is replaced after {} batches", hired.worker.batches);
            drop(hired.worker.retire().await);
            None
        }
        _ = recalled => Some(hired),
        failure = hired.worker.idle() => {
            dismiss(hired, failure).await;
            None
        }
    }
}

async fn dismiss(hired: Hired, failure: Failure) {
    let Failed { failure, .. } = hired.worker.end(failure).await;
    warn!("a worker that had no batch is replaced: {failure}");
}
