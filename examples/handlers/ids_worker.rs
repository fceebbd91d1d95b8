//! Prints the ids of each batch: a worker for ksync-consume --worker, one process for many batches.
//! Its stdout is for answers, one JSON object a line; all else goes to stderr. It ends when it is told to, or stdin does.

use std::io::{self, BufRead, Write};

use serde_json::{Value, json};

fn main() -> io::Result<()> {
    // Rust flushes stdout at each line break; what stays in a buffer is no answer.
    let answer = |message: Value| writeln!(io::stdout(), "{message}");
    let (mut batch, mut ids, mut failed) = (None, vec![], vec![]);
    for line in io::stdin().lock().lines() {
        let message: Value = serde_json::from_str(&line?)?;
        match (message["type"].as_str(), &batch) {
            (Some("hello"), _) => answer(json!({"type": "ready"}))?,
            (Some("batch"), _) => (batch, ids, failed) = (Some(message), vec![], vec![]),
            // Another process has it now: nothing of it is written, and no answer is due.
            (Some("cancel"), Some(current)) if current["id"] == message["id"] => batch = None,
            (Some("end"), Some(current)) => {
                let topic = current["topic"].as_str().unwrap_or_default();
                // This line is where your store is written to; after it the batch may be called done.
                answer(match writeln!(io::stderr(), "{topic}/{}: {}", current["partition"], ids.join(" ")) {
                    Ok(()) => json!({"type": "done", "id": current["id"], "failed": failed}),
                    Err(_) => json!({"type": "backoff", "id": current["id"], "ms": 5000}),
                })?;
                batch = None;
            }
            (Some("shutdown"), _) => break,
            (None, Some(_)) => match (message.get("payload"), message.get("key")) {
                // A tombstone (null) says by its key what was deleted.
                (Some(Value::Null), Some(Value::String(key))) => ids.push(key.clone()),
                (Some(payload), _) if payload["id"].is_number() => ids.push(payload["id"].to_string()),
                _ => failed.push(json!({"offset": message["offset"], "error": "no id", "permanent": true})),
            },
            _ => {}
        }
    }
    Ok(())
}
