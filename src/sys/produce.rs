//! Producing many records at once: one by one, each looks its topic up and takes the same locks.

use std::ffi::CString;
use std::ptr;

use rdkafka::bindings::*;
use rdkafka::error::{IsError, KafkaError};
use rdkafka::producer::{Producer, ProducerContext, ThreadedProducer};
use rdkafka::util::IntoOpaque;

/// RD_KAFKA_PARTITION_UA, a cast in C, which the bindings leave out.
const ANY_PARTITION: i32 = -1;

/// A record without headers, with the time at which it is produced.
#[derive(Clone, Copy, Debug)]
pub struct Plain<'a> {
    /// `None` leaves the choice to the partitioner.
    pub partition: Option<i32>,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
}

/// Queues the records, in their order, as far as there is room: behind the first that finds none no other is queued.
///
/// For each that is queued a report will come, with its own clone of `opaque`. Of those that are not it gives the index and the
/// error.
pub fn produce<C, O>(
    producer: &ThreadedProducer<C>,
    topic: &str,
    records: &[Plain<'_>],
    opaque: &O,
) -> Result<(), Vec<(usize, KafkaError)>>
where
    C: ProducerContext<DeliveryOpaque = O> + 'static,
    O: IntoOpaque + Clone,
{
    let all = |error: KafkaError| Err((0..records.len()).map(|index| (index, error.clone())).collect());
    let Ok(name) = CString::new(topic) else {
        return all(KafkaError::MessageProduction(rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__INVALID_ARG.into()));
    };
    let mut messages: Vec<_> = records.iter().map(|record| native(record, opaque.clone().into_ptr())).collect();
    let flags = RD_KAFKA_MSG_F_COPY | RD_KAFKA_MSG_F_PARTITION;
    // SAFETY: the producer is alive, and a topic's handle, one of many, is given back once. librdkafka copies keys and values
    // before it returns, and does not write to them.
    unsafe {
        let handle = rd_kafka_topic_new(producer.client().native_ptr(), name.as_ptr(), ptr::null_mut());
        if handle.is_null() {
            let error = rd_kafka_last_error();
            messages.iter().for_each(|message| drop(O::from_ptr(message._private)));
            return all(KafkaError::MessageProduction(error.into()));
        }
        let count = i32::try_from(messages.len()).unwrap_or(i32::MAX);
        rd_kafka_produce_batch(handle, ANY_PARTITION, flags, messages.as_mut_ptr(), count);
        rd_kafka_topic_destroy(handle);
    }
    let mut failed = vec![];
    for (index, message) in messages.iter().enumerate() {
        if message.err.is_error() {
            // SAFETY: no report comes of it, which would have taken it.
            drop(unsafe { O::from_ptr(message._private) });
            failed.push((index, KafkaError::MessageProduction(message.err.into())));
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(failed) }
}

fn native(record: &Plain<'_>, opaque: *mut std::ffi::c_void) -> rd_kafka_message_t {
    let part = |bytes: Option<&[u8]>| {
        bytes.map_or((ptr::null_mut(), 0), |bytes| (bytes.as_ptr().cast_mut().cast(), bytes.len()))
    };
    let ((payload, len), (key, key_len)) = (part(record.value), part(record.key));
    rd_kafka_message_t {
        err: rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR,
        rkt: ptr::null_mut(),
        partition: record.partition.unwrap_or(ANY_PARTITION),
        payload,
        len,
        key,
        key_len,
        offset: 0,
        _private: opaque,
    }
}
