//! Stores that handlers write to, as a test sees them: past the handlers.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(20);

/// A connection to Redis or memcached.
pub struct Store(BufReader<TcpStream>);

impl Store {
    pub fn at(address: &str) -> Store {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(ANSWER)).unwrap();
        Store(BufReader::new(stream))
    }

    /// The first line of the answer to these lines.
    pub fn ask(&mut self, lines: &str) -> String {
        self.0.get_mut().write_all(format!("{lines}\r\n").as_bytes()).unwrap();
        self.line()
    }

    /// The next line of the answer.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end_matches("\r\n").to_owned()
    }

    /// The field of a hash of Redis, if there is one.
    pub fn field(&mut self, key: &str, field: &str) -> Option<String> {
        let words = ["HGET", key, field].map(|word| format!("\r\n${}\r\n{word}", word.len()));
        (self.ask(&format!("*3{}", words.concat())) != "$-1").then(|| self.line())
    }
}

/// What OpenSearch at `url` answers: `PUT /products`.
pub fn opensearch(url: &str, request: &str, body: &str) -> Value {
    let address = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(ANSWER)).unwrap();
    let about = format!("Host: {address}\r\nContent-Type: application/json\r\nContent-Length: {}", body.len());
    write!(stream, "{request} HTTP/1.1\r\n{about}\r\nConnection: close\r\n\r\n{body}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{request}: {answer}");
    serde_json::from_str(body).unwrap()
}
