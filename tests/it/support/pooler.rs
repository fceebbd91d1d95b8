//! A pooler in transaction mode before a Postgres, as pgbouncer is one: all clients share one session, each for as long as its
//! transaction is open.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

use super::block_on;

/// Starts one before the Postgres at HOST:PORT, and gives its own HOST:PORT.
pub fn pooler(server: &str, user: &str, database: &str) -> String {
    let startup = [&[0, 3, 0, 0], format!("user\0{user}\0database\0{database}\0\0").as_bytes()].concat();
    let server = server.to_owned();
    block_on(async {
        let mut session = TcpStream::connect(server).await.unwrap();
        send(&mut session, None, &startup).await;
        while receive(&mut session).await.unwrap().0 != b'Z' {}
        let session = Arc::new(Mutex::new(session));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, session.clone()));
            }
        });
        address
    })
}

async fn serve(mut client: TcpStream, session: Arc<Mutex<TcpStream>>) -> Option<()> {
    // Whether it may encrypt comes first, which it may not, then who it is.
    loop {
        let length = client.read_u32().await.ok()? as usize;
        let mut startup = vec![0; length - 4];
        client.read_exact(&mut startup).await.ok()?;
        if startup != 80_877_103_u32.to_be_bytes() {
            break;
        }
        client.write_all(b"N").await.ok()?;
    }
    send(&mut client, Some(b'R'), &[0; 4]).await;
    send(&mut client, Some(b'K'), &[0; 8]).await;
    send(&mut client, Some(b'Z'), b"I").await;
    loop {
        let mut message = receive(&mut client).await?;
        let mut session = session.lock().await;
        loop {
            let (kind, body) = message;
            if kind == b'X' {
                return None;
            }
            send(&mut session, Some(kind), &body).await;
            // Query and Sync are answered with ReadyForQuery.
            if matches!(kind, b'Q' | b'S') {
                let state = loop {
                    let (kind, body) = receive(&mut session).await?;
                    send(&mut client, Some(kind), &body).await;
                    if kind == b'Z' {
                        break body[0];
                    }
                };
                if state == b'I' {
                    break;
                }
            }
            message = receive(&mut client).await?;
        }
    }
}

async fn receive(from: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let kind = from.read_u8().await.ok()?;
    let mut body = vec![0; from.read_u32().await.ok()? as usize - 4];
    from.read_exact(&mut body).await.ok()?;
    Some((kind, body))
}

async fn send(to: &mut TcpStream, kind: Option<u8>, body: &[u8]) {
    let length = (body.len() as u32 + 4).to_be_bytes();
    let message = [kind.as_slice(), &length, body].concat();
    // Who has gone is seen at the next read.
    drop(to.write_all(&message).await);
}
