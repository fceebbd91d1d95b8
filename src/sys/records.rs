//! The records of one partition, taken from librdkafka many at a time: to ask it for each by itself takes longer than
//! all else that is done with a small one.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;

use rdkafka::Timestamp;
use rdkafka::bindings::*;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{IsError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, OwnedHeaders};

/// Takes what waits in the queue of one partition, which has to be split from its consumer's.
pub struct Records<C: ConsumerContext> {
    queue: NonNull<rd_kafka_queue_t>,
    /// How many may be taken at once.
    most: usize,
    /// What was taken and not yet given, in its order.
    taken: VecDeque<Native>,
    given: Option<Native>,
    // Dropped last: librdkafka wants its messages back before the client ends.
    _consumer: Arc<BaseConsumer<C>>,
}

// SAFETY: librdkafka's queues and messages may be used by any thread, if only by one at a time; `poll` takes `&mut`.
unsafe impl<C: ConsumerContext> Send for Records<C> {}

impl<C: ConsumerContext> Records<C> {
    /// `None` where librdkafka does not know the partition.
    pub fn new(consumer: &Arc<BaseConsumer<C>>, (topic, partition): (&str, i32), most: usize) -> Option<Records<C>> {
        let topic = CString::new(topic).ok()?;
        // SAFETY: the consumer is alive; librdkafka copies the name and counts the queue's owners.
        let queue = unsafe { rd_kafka_queue_get_partition(consumer.client().native_ptr(), topic.as_ptr(), partition) };
        let queue = NonNull::new(queue)?;
        Some(Records { queue, most, taken: VecDeque::new(), given: None, _consumer: consumer.clone() })
    }

    /// What comes next, without waiting: a record at `from` or after it, or an error.
    pub fn poll(&mut self, from: i64) -> Option<Result<Message<'_>, Failure>> {
        loop {
            if self.taken.is_empty() {
                self.take();
            }
            let native = self.given.insert(self.taken.pop_front()?);
            // SAFETY: it is alive for as long as it is `given`.
            let message = Message(unsafe { native.0.as_ref() });
            match message.0.err {
                rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR if message.offset() < from => {}
                rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => return Some(Ok(message)),
                code => {
                    return Some(Err(Failure { code: code.into(), offset: message.offset(), text: message.text() }));
                }
            }
        }
    }

    /// The offset of the last record that was taken and not yet given.
    pub fn last_taken(&self) -> Option<i64> {
        // SAFETY: they are alive until they are taken out.
        let mut last_first = self.taken.iter().rev().map(|native| unsafe { native.0.as_ref() });
        let record = last_first.find(|message| message.err == rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR)?;
        Some(record.offset)
    }

    /// Whether so few records and bytes are all that was read ahead.
    pub fn are_few(&self, records: usize, bytes: usize) -> bool {
        // SAFETY: the messages are alive until they are taken out, and the queue is ours.
        let sizes =
            self.taken.iter().map(|native| unsafe { native.0.as_ref() }).map(|message| message.len + message.key_len);
        self.taken.len() <= records
            && sizes.sum::<usize>() <= bytes
            && unsafe { rd_kafka_queue_length(self.queue.as_ptr()) } == 0
    }

    /// What was given last will be given again.
    pub fn put_back(&mut self) {
        if let Some(given) = self.given.take() {
            self.taken.push_front(given);
        }
    }

    /// Lets go what was taken and not yet given.
    pub fn forget(&mut self) {
        self.taken.clear();
    }

    fn take(&mut self) {
        let mut natives = vec![ptr::null_mut(); self.most];
        // SAFETY: the queue is ours; there is room for as many as are asked for. What was written there is ours.
        let count =
            unsafe { rd_kafka_consume_batch_queue(self.queue.as_ptr(), 0, natives.as_mut_ptr(), natives.len()) };
        // Below 0 is an error, and nothing was taken.
        natives.truncate(usize::try_from(count).unwrap_or(0));
        self.taken.extend(natives.into_iter().filter_map(NonNull::new).map(Native));
    }
}

impl<C: ConsumerContext> Drop for Records<C> {
    fn drop(&mut self) {
        self.taken.clear();
        self.given = None;
        // SAFETY: this gives back what `new` got, once.
        unsafe { rd_kafka_queue_destroy(self.queue.as_ptr()) }
    }
}

/// A message that librdkafka has given away.
struct Native(NonNull<rd_kafka_message_t>);

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: nobody else has it.
        unsafe { rd_kafka_message_destroy(self.0.as_ptr()) }
    }
}

/// Something other than a record.
#[derive(Debug)]
pub struct Failure {
    pub code: RDKafkaErrorCode,
    /// For the end of the partition: what will be read next, past records that no consumer sees.
    pub offset: i64,
    /// What librdkafka says of it besides.
    pub text: String,
}

/// A record as librdkafka holds it.
#[derive(Clone, Copy)]
pub struct Message<'a>(&'a rd_kafka_message_t);

impl<'a> Message<'a> {
    pub fn offset(self) -> i64 {
        self.0.offset
    }

    /// Of what is no record.
    fn text(self) -> String {
        // SAFETY: librdkafka gives a text that ends with a zero and lives as long as the message, or null.
        let text = unsafe {
            let text = rd_kafka_message_errstr(self.0);
            (!text.is_null()).then(|| CStr::from_ptr(text))
        };
        text.unwrap_or_default().to_string_lossy().into_owned()
    }

    pub fn key(self) -> Option<&'a [u8]> {
        // SAFETY: librdkafka keeps so many bytes there for as long as the message lives.
        unsafe { bytes(self.0.key, self.0.key_len) }
    }

    pub fn value(self) -> Option<&'a [u8]> {
        // SAFETY: as for the key.
        unsafe { bytes(self.0.payload, self.0.len) }
    }

    pub fn timestamp(self) -> Timestamp {
        let mut kind = rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is alive.
        match (unsafe { rd_kafka_message_timestamp(self.0, &mut kind) }, kind) {
            (-1, _) | (_, rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE) => Timestamp::NotAvailable,
            (time, rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_CREATE_TIME) => Timestamp::CreateTime(time),
            (time, rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_LOG_APPEND_TIME) => Timestamp::LogAppendTime(time),
        }
    }

    /// The leader epoch in which the record was written; `None` where the broker does not say.
    pub fn leader_epoch(self) -> Option<i32> {
        // SAFETY: the message is alive.
        match unsafe { rd_kafka_message_leader_epoch(self.0) } {
            -1 => None,
            epoch => Some(epoch),
        }
    }

    /// The headers in their order. A name that is not UTF-8 is made so, where rust-rdkafka's own way panics.
    pub fn headers(self) -> Vec<(Cow<'a, str>, Option<&'a [u8]>)> {
        let Some(native) = self.native_headers() else {
            return vec![];
        };
        // SAFETY: the names and values in the headers live as long as they do.
        unsafe {
            let count = rd_kafka_header_cnt(native.as_ptr());
            let mut headers = Vec::with_capacity(count);
            for index in 0..count {
                let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
                if rd_kafka_header_get_all(native.as_ptr(), index, &mut name, &mut value, &mut size).is_error() {
                    break;
                }
                headers.push((CStr::from_ptr(name).to_string_lossy(), bytes(value, size)));
            }
            headers
        }
    }

    /// A copy of the headers, byte for byte; `None` where there are none.
    pub fn copied_headers(self) -> Option<OwnedHeaders> {
        let native = self.native_headers()?;
        // SAFETY: the headers are alive, and a pointer to them is all that BorrowedHeaders is: rust-rdkafka makes it by the
        // same cast, from what only it may make otherwise.
        Some(unsafe { native.cast::<BorrowedHeaders>().as_ref() }.detach())
    }

    fn native_headers(self) -> Option<NonNull<rd_kafka_headers_t>> {
        let mut native = ptr::null_mut();
        // SAFETY: the message is alive, and its headers are for as long.
        let code = unsafe { rd_kafka_message_headers(self.0, &mut native) };
        if code.is_error() { None } else { NonNull::new(native) }
    }
}

impl<'a> From<&'a BorrowedMessage<'_>> for Message<'a> {
    fn from(message: &'a BorrowedMessage<'_>) -> Message<'a> {
        // SAFETY: the message is borrowed, so the native one is alive.
        Message(unsafe { &*message.ptr() })
    }
}

/// # Safety
///
/// Where `start` is not null, `size` bytes are there and live for as long as 'a.
unsafe fn bytes<'a>(start: *const std::ffi::c_void, size: usize) -> Option<&'a [u8]> {
    // SAFETY: as the caller promises.
    (!start.is_null()).then(|| unsafe { slice::from_raw_parts(start.cast(), size) })
}
