//! What a process that leads partitions tells of itself to whoever sends SIGUSR1.

use std::future::Future;
use std::process::ExitCode;

use anyhow::{Context, Result};
use log::info;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Tool;
use crate::exit::Exit;
use crate::lead::Board;
use crate::shutdown::Shutdown;

/// Where what was asked for goes in the log: it is there with --quiet, too.
pub(super) const ASKED: &str = "asked";

/// As [`main`](super::main), for a tool that leads partitions and shows them on a board.
pub fn daemon<T: Tool, F: Future<Output = Result<Exit>>>(run: impl FnOnce(T, Shutdown, Board) -> F) -> ExitCode {
    super::main(|tool, shutdown| async move {
        let board = Board::default();
        let asked = signal(SignalKind::user_defined1()).context("cannot listen to SIGUSR1")?;
        tokio::spawn(answer(asked, board.clone()));
        run(tool, shutdown, board).await
    })
}

async fn answer(mut asked: Signal, board: Board) {
    while asked.recv().await.is_some() {
        for line in board.lines() {
            info!(target: ASKED, "{line}");
        }
    }
}
