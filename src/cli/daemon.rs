//! What a process that leads partitions tells of itself: to systemd, and to whoever sends SIGUSR1.

use std::future::Future;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use log::{info, warn};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;
use tokio::time::{interval, sleep, timeout};

use super::Tool;
use crate::exit::Exit;
use crate::lead::Board;
use crate::shutdown::Shutdown;

/// Where what was asked for goes in the log: it is there with --quiet, too.
pub(super) const ASKED: &str = "asked";

/// How long it stays untold at most that something has changed, so that what comes and goes is not told each time.
const PAUSE: Duration = Duration::from_secs(1);

/// How long the end of the process waits for systemd to be told of it.
const LAST_WORD: Duration = Duration::from_millis(500);

/// As [`main`](super::main), for a tool that leads partitions and shows them on a board.
pub fn daemon<T: Tool, F: Future<Output = Result<Exit>> + Send + 'static>(
    run: impl FnOnce(T, Shutdown, Board) -> F + Send + 'static,
) -> ExitCode {
    super::main(|tool, shutdown| async move {
        let board = Board::default();
        let shown = board.clone();
        answer_when_asked(move || shown.lines())?;
        let systemd = tokio::spawn(tell_systemd(board.clone(), shutdown.clone()));
        tokio::spawn(show_life());
        let ended = run(tool, shutdown.clone(), board).await;
        if shutdown.is_requested() {
            // It is about to tell of that; if it cannot, that is no reason to stay.
            timeout(LAST_WORD, systemd).await.ok();
        }
        ended
    })
}

/// Logs these lines at each SIGUSR1, also with `--quiet`.
pub fn answer_when_asked(lines: impl Fn() -> Vec<String> + Send + 'static) -> Result<()> {
    let mut asked = signal(SignalKind::user_defined1()).context("cannot listen to SIGUSR1")?;
    tokio::spawn(async move {
        while asked.recv().await.is_some() {
            for line in lines() {
                info!(target: ASKED, "{line}");
            }
        }
    });
    Ok(())
}

/// That all partitions are queued for, once; how they stand, when that changes; that the end was asked for.
async fn tell_systemd(board: Board, shutdown: Shutdown) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let (mut changes, mut told, mut is_ready) = (board.changes(), String::new(), false);
    loop {
        let summary = board.summary();
        if !is_ready && board.is_candidate() {
            is_ready = true;
            tell(|| sd_notify::notify(&[NotifyState::Ready])).await;
        }
        if summary != told {
            told.clone_from(&summary);
            tell(move || sd_notify::notify(&[NotifyState::Status(&summary)])).await;
        }
        let changed = async {
            sleep(PAUSE).await;
            changes.next().await;
        };
        tokio::select! {
            () = shutdown.requested() => break,
            () = changed => {}
        }
    }
    tell(|| sd_notify::notify(&[NotifyState::Stopping, NotifyState::Status("finishing what is under way")])).await;
}

/// Tells systemd that the process is ready, where it wants to know.
pub(super) async fn tell_ready() {
    tell(|| sd_notify::notify(&[NotifyState::Ready])).await;
}

/// As long as the runtime has this task turn, systemd hears of it, if it wants to.
pub(super) async fn show_life() {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut beat = interval(limit / 2);
    loop {
        beat.tick().await;
        tell(|| sd_notify::notify(&[NotifyState::Watchdog])).await;
    }
}

/// On a thread of its own: a service manager that stands still must not hold up those that work.
async fn tell(say: impl FnOnce() -> io::Result<()> + Send + 'static) {
    if let Err(error) = spawn_blocking(say).await.unwrap_or_else(|broken| Err(broken.into())) {
        warn!("cannot tell systemd: {error}");
    }
}
