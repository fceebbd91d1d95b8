//! The calls for which there is no safe function yet: the only `unsafe` of the crate.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io::{self, Write as _};
use std::os::fd::{FromRawFd, RawFd};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use rdkafka::bindings::*;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::{IsError, KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionList;

use crate::topic::{Topic, TopicId};

mod brokers;
mod produce;
mod records;
mod spawn;

pub use brokers::{add_brokers, brokers_learned};
pub use produce::{Plain, produce};
pub use records::{Message, Records};
pub use spawn::{Place, Program};

/// The size from which the allocator gives a block back as soon as it is freed, in bytes.
const LARGE_BLOCK: i32 = 4 << 20;

/// From how many heaps threads get their memory: more than threads that are busy at once would only scatter what is free.
const HEAPS: i32 = 4;

/// Keeps glibc from holding much that is free, once for the process (mallopt(3)). Left to itself it takes the first large
/// block that is freed for a sign that many will come, keeps what is as large, and scatters it: with records of 8 MiB that
/// took twice as much as they need. And it makes eight heaps for each core, which cost 8 MiB where 64 partitions have load.
pub fn hold_little_free_memory() {
    // SAFETY: each only sets a number. What they give says that the number is refused, and then all stays as it was.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BLOCK);
        libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE_BLOCK);
        libc::mallopt(libc::M_ARENA_MAX, HEAPS);
    }
}

/// Ends the process with this status, whatever its threads are at. librdkafka's look only each 100 ms whether they are to end, and
/// none may be at work while exit(3) takes the process down.
pub fn exit(status: u8) -> ! {
    // Who reads it no more has been told so already.
    drop(std::io::stdout().flush());
    // SAFETY: it does not return, and runs nothing of this process.
    unsafe { libc::_exit(status.into()) }
}

/// Takes a listening socket over that was passed on to this process, by the number of its descriptor.
pub fn take_socket(descriptor: RawFd) -> io::Result<UnixListener> {
    // SAFETY: whoever passes a descriptor on leaves it to this process, which asks for it once.
    let listener = unsafe { UnixListener::from_raw_fd(descriptor) };
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// What a broker says of each topic that it was asked for, by the topic's name.
pub type TopicIds = HashMap<String, KafkaResult<TopicId>>;

/// Asks a broker for the topics' ids, this one or with `None` the one that librdkafka takes for the controller; blocks for at
/// most `timeout` and a second.
pub fn topic_ids<C: ClientContext>(
    client: &Client<C>,
    broker: Option<i32>,
    topics: &[Topic],
    timeout: Duration,
) -> KafkaResult<TopicIds> {
    let names = topics.iter().map(|topic| CString::new(topic.as_str())).collect::<Result<Vec<_>, _>>()?;
    let mut pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
    let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX - 1000);
    let mut error = [0; 512];
    // SAFETY: `client` outlives every handle made here, and each is destroyed once, after the answer was copied out of
    // the event; `names` outlive the call that copies them.
    unsafe {
        let rk = client.native_ptr();
        let options = rd_kafka_AdminOptions_new(rk, rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS);
        rd_kafka_AdminOptions_set_request_timeout(options, millis, error.as_mut_ptr(), error.len());
        if let Some(broker) = broker {
            rd_kafka_AdminOptions_set_broker(options, broker, error.as_mut_ptr(), error.len());
        }
        let collection = rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
        let queue = rd_kafka_queue_new(rk);
        rd_kafka_DescribeTopics(rk, collection, options, queue);
        let event = rd_kafka_queue_poll(queue, millis + 1000);
        let ids = read_topic_ids(event);
        if !event.is_null() {
            rd_kafka_event_destroy(event);
        }
        rd_kafka_queue_destroy(queue);
        rd_kafka_TopicCollection_destroy(collection);
        rd_kafka_AdminOptions_destroy(options);
        ids
    }
}

/// # Safety
///
/// `event` is null or the answer of rd_kafka_DescribeTopics.
unsafe fn read_topic_ids(event: *mut rd_kafka_event_t) -> KafkaResult<TopicIds> {
    if event.is_null() {
        return Err(KafkaError::AdminOp(rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__TIMED_OUT.into()));
    }
    // SAFETY: the event is alive, and so is all that it owns; the array has `count` elements.
    unsafe {
        let error = rd_kafka_event_error(event);
        if error.is_error() {
            return Err(KafkaError::AdminOp(error.into()));
        }
        let mut count = 0;
        let found = rd_kafka_DescribeTopics_result_topics(rd_kafka_event_DescribeTopics_result(event), &mut count);
        let topics = std::slice::from_raw_parts(found, count);
        Ok(topics.iter().map(|topic| (name_of(*topic), read_topic_id(*topic))).collect())
    }
}

/// # Safety
///
/// `topic` is part of an event that is alive.
unsafe fn name_of(topic: *const rd_kafka_TopicDescription_t) -> String {
    // SAFETY: librdkafka gives a string that ends in NUL and lives as long as the topic.
    unsafe { CStr::from_ptr(rd_kafka_TopicDescription_name(topic)).to_string_lossy().into_owned() }
}

/// # Safety
///
/// `topic` is part of an event that is alive.
unsafe fn read_topic_id(topic: *const rd_kafka_TopicDescription_t) -> KafkaResult<TopicId> {
    // SAFETY: as above.
    unsafe {
        let error = rd_kafka_error_code(rd_kafka_TopicDescription_error(topic));
        if error.is_error() {
            return Err(KafkaError::AdminOp(error.into()));
        }
        let id = rd_kafka_TopicDescription_topic_id(topic);
        let (high, low) = (rd_kafka_Uuid_most_significant_bits(id), rd_kafka_Uuid_least_significant_bits(id));
        Ok(TopicId((u128::from(high as u64) << 64) | u128::from(low as u64)))
    }
}

/// Why the last broker was not spoken to that was not to be trusted, or wanted another login, if one was since the last call. Only
/// for a client whose own queue nobody else reads.
pub fn refusal<C: ClientContext>(client: &Client<C>) -> Option<String> {
    let mut refusal = None;
    // SAFETY: the client outlives the handle of its queue, which is destroyed once, as is each event after its text was copied.
    unsafe {
        let queue = rd_kafka_queue_get_main(client.native_ptr());
        loop {
            let event = rd_kafka_queue_poll(queue, 0);
            if event.is_null() {
                break;
            }
            let code = RDKafkaErrorCode::from(rd_kafka_event_error(event));
            let is_refusal = matches!(code, RDKafkaErrorCode::SSL | RDKafkaErrorCode::Authentication);
            if is_refusal && rd_kafka_event_type(event) == RD_KAFKA_EVENT_ERROR {
                refusal = Some(CStr::from_ptr(rd_kafka_event_error_string(event)).to_string_lossy().into_owned());
            }
            rd_kafka_event_destroy(event);
        }
        rd_kafka_queue_destroy(queue);
    }
    refusal
}

/// Makes a seek with this list carry the epoch that belongs to the offset of its only element.
pub fn set_leader_epoch(list: &mut TopicPartitionList, epoch: i32) {
    assert_eq!(list.count(), 1, "a list for one seek has one element");
    // SAFETY: the list is borrowed mutably and has a first element.
    unsafe { rd_kafka_topic_partition_set_leader_epoch((*list.ptr()).elems, epoch) }
}

/// Ends the process as the signal does that it was asked to end by. Returns only where the signal is one that the
/// kernel ignores.
pub fn die_of(signal: std::ffi::c_int) {
    // SAFETY: both calls take a number; the default action needs no handler of ours.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}
