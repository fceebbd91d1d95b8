//! Applications that ask before Kafka is there.

use std::convert::Infallible;
use std::io;

use anyhow::anyhow;
use log::debug;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use super::connection::SHORT;
use super::request::{answer, id_of};
use super::{APPLICATIONS, next_application};

/// Answers each request that nothing was sent, until it is dropped. The connections end with it, and whoever connects again is served.
pub async fn turn_away(listener: &UnixListener) -> Infallible {
    let mut applications = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = applications.join_next() => {}
            application = next_application(listener), if applications.len() < APPLICATIONS => {
                applications.spawn(async move {
                    refuse(application).await.unwrap_or_else(|error| debug!("an application is gone: {error}"));
                });
            }
        }
    }
}

async fn refuse(mut application: UnixStream) -> io::Result<()> {
    let (from, mut to) = application.split();
    let (mut from, mut line) = (BufReader::new(from), Vec::new());
    loop {
        line.clear();
        (&mut from).take(SHORT as u64).read_until(b'\n', &mut line).await?;
        if line.is_empty() {
            return Ok(());
        }
        let refusal = Err(anyhow!("ksync-stream was started and waits for Kafka; nothing was sent"));
        to.write_all(answer(&id_of(&line), &refusal).as_bytes()).await?;
        if !line.ends_with(b"\n") {
            // Longer: nobody knows where the next one begins.
            return Ok(());
        }
    }
}
