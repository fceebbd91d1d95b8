//! The brokers that a client of librdkafka knows.

use std::ffi::CString;

use rdkafka::bindings::*;
use rdkafka::client::{Client, ClientContext};

/// How many brokers some broker has told it of: none before its first answer.
pub fn brokers_learned<C: ClientContext>(client: &Client<C>) -> usize {
    let mut count = 0;
    // SAFETY: the client is alive. The list is the caller's to free, also an empty one, and is not looked at.
    unsafe { libc::free(rd_kafka_brokers_learned_ids(client.native_ptr(), &mut count).cast()) };
    count
}

/// Lets it ask these, too, `HOST:PORT,..`, until some broker tells it of brokers. Those that it has in mind stay as they are.
pub fn add_brokers<C: ClientContext>(client: &Client<C>, brokers: &str) {
    let Ok(brokers) = CString::new(brokers) else { return };
    // SAFETY: the client is alive; librdkafka copies the text.
    unsafe { rd_kafka_brokers_add(client.native_ptr(), brokers.as_ptr()) };
}
