//! Prints the ids of a batch: a handler for ksync-consume.
//!
//! Exit status: 0 done; 65 a record that will never work; 75 the store is away, the same batch comes again later; an error
//! makes it 1, a panic 101, and the batch comes again, too.

use std::error::Error;
use std::io::{self, BufRead, Write};
use std::process::ExitCode;

use serde_json::Value;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let (mut source, mut ids) = (String::new(), vec![]);
    // To the end: a batch that was not read is not done.
    for line in io::stdin().lock().lines() {
        let record: Value = serde_json::from_str(&line?)?;
        source = format!("{}/{}", record["topic"].as_str().ok_or("no topic")?, record["partition"]);
        let id = match record.get("payload").ok_or("no payload")? {
            // A tombstone says by its key what was deleted.
            Value::Null => &record["key"],
            payload => &payload["id"],
        };
        match id {
            Value::String(text) => ids.push(text.clone()),
            Value::Number(number) => ids.push(number.to_string()),
            _ => {
                eprintln!("offset {}: no id", record["offset"]);
                return Ok(ExitCode::from(65));
            }
        }
    }
    // This line is where your store is written to. (println! would panic.)
    if let Err(error) = writeln!(io::stdout(), "{source}: {}", ids.join(" ")) {
        eprintln!("the store is away: {error}");
        return Ok(ExitCode::from(75));
    }
    Ok(ExitCode::SUCCESS)
}
