//! Answers that a broker may give, each error once and again, by librdkafka's own mock of a broker.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use ksync::kafka::{Admin, Event, Log, Outgoing, Writer};
use ksync::shutdown::Shutdown;
use ksync::topic::Offset;
use rdkafka::types::RDKafkaApiKey::{self, ApiVersion, Fetch, InitProducerId, ListOffsets, Metadata, Produce};
use rdkafka::types::RDKafkaRespErr;

use crate::mock::{Mock, Take, leading};
use crate::support::{World, block_on, is_full, log_lines, pass};

/// All that a broker may answer, or some of them; once, and in the long form three times as well.
fn errors() -> Vec<(RDKafkaRespErr, usize)> {
    let (codes, times): (Vec<i32>, &[usize]) = match is_full() {
        true => ((1..=120).collect(), &[1, 3]),
        false => (vec![1, 3, 6, 19, 87], &[1]),
    };
    let known = codes.into_iter().filter_map(|code| RDKafkaRespErr::try_from(code).ok());
    known.flat_map(|error| times.iter().map(move |times| (error, *times))).collect()
}

/// These requests, and one for metadata where the error is to come once: it lasts until it is over.
fn with_metadata(requests: &[RDKafkaApiKey], times: usize) -> Vec<RDKafkaApiKey> {
    requests.iter().copied().chain((times == 1).then_some(Metadata)).collect()
}

/// Leads the mock's partition while the broker does what `trouble` says, between the third record and the last three; gives
/// what was said of the topic at `level`.
fn led_through(test: &str, level: &str, trouble: impl FnOnce(&World, &Mock)) -> Vec<String> {
    let world = World::new(test);
    let mock = Mock::new(&format!("products-{}", world.id));
    let said = || log_lines(&format!("{level} {}", mock.topic));
    assert_eq!(said(), [""; 0]);
    let (taken, (trigger, shutdown)) = (Arc::<Mutex<Vec<String>>>::default(), Shutdown::new());
    let (work, leading) = (Take(taken.clone()), block_on(leading(&world, &mock)));
    let daemon = std::thread::spawn(move || block_on(leading.run(work, &shutdown)));
    let seat = world.seat(mock.topic.as_str(), 0, "indexer");
    (1..=3).for_each(|id| mock.produce(&id.to_string()));
    world.eventually("the first are done", || seat.offset() == Some(3));
    trouble(&world, &mock);
    (4..=6).for_each(|id| mock.produce(&id.to_string()));
    world.eventually("all are done", || seat.offset() == Some(6));
    assert_eq!(*taken.lock().unwrap(), ["1", "2", "3", "4", "5", "6"]);
    trigger.request();
    daemon.join().unwrap().unwrap();
    said()
}

#[test]
fn an_offset_that_a_lagging_replica_does_not_know_is_looked_at_anew_and_nothing_is_reset() {
    let warnings = led_through("lagging", "WARN", |world, mock| {
        mock.broker.request_errors(Fetch, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE]);
        let told = format!("WARN {}", mock.topic);
        world.eventually("it is told", || log_lines(&told).len() == 1);
    });
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].ends_with("the offset is not in the log any more; looking at it anew"), "{warnings:?}");
}

#[test]
fn a_topic_that_a_broker_does_not_know_for_some_seconds_is_not_taken_for_deleted() {
    let errors = led_through("unknown", "ERROR", |world, mock| {
        mock.topic_fails(Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART));
        let told = format!("ERROR {}", mock.topic);
        world.for_a_while(Duration::from_secs(2), "nothing is called deleted", || log_lines(&told).is_empty());
        mock.topic_fails(None);
    });
    assert_eq!(errors, [""; 0]);
}

#[test]
fn what_is_acknowledged_while_a_broker_does_not_know_the_topic_is_in_the_log() {
    let world = World::new("unknown-written");
    let mock = Mock::new(&format!("products-{}", world.id));
    let writer = Writer::open(&mock.cluster, Duration::from_secs(10)).unwrap();
    let (mut lane, mut written, mut acknowledged) = (writer.lane(), 0, vec![]);
    // Whether all of ten are acknowledged.
    let mut write = || {
        let ids: Vec<i32> = (written..written + 10).collect();
        written += 10;
        let count = block_on(async {
            for text in ids.iter().map(i32::to_string) {
                let (key, value, headers) = (None, Some(text.as_bytes()), None);
                let record = Outgoing { topic: &mock.topic, partition: Some(0), key, value, headers, timestamp: None };
                if lane.send(record).await.is_err() {
                    break;
                }
            }
            let all_reported = async {
                while lane.in_flight() > 0 {
                    lane.reported().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), all_reported).await.expect("it has an end");
            let count = lane.acknowledged() as usize;
            // What failed is not written again, but others after it.
            drop(lane.settled().await);
            count
        });
        acknowledged.extend_from_slice(&ids[..count]);
        count == ids.len()
    };
    world.eventually("all are acknowledged", &mut write);
    let unknown = RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
    mock.topic_fails(Some(unknown));
    // Those that are on their way are refused, and the client asks who leads.
    mock.broker.request_errors(Produce, &[unknown; 3]);
    // It has to begin with the topic anew then: so librdkafka lost messages before 1.9.
    world.eventually("the client takes it for deleted", || !write());
    mock.topic_fails(None);
    mock.broker.clear_request_errors(Produce);
    world.eventually("all are acknowledged again", || (0..10).all(|_| write()));

    let records = mock.kafka.records(mock.topic.as_str());
    let there: Vec<i32> = records.iter().map(|record| record.value.as_ref().unwrap().parse().unwrap()).collect();
    assert!(there.is_sorted_by(|one, next| one < next), "not once and in order: {there:?}");
    let lost: Vec<_> = acknowledged.iter().filter(|id| !there.contains(id)).collect();
    assert!(lost.is_empty(), "acknowledged and not there: {lost:?}");
}

#[test]
fn whatever_error_a_broker_answers_of_a_topic_its_id_is_told_as_it_is_or_not_at_all() {
    let world = World::new("told-id");
    let mock = Mock::new(&format!("products-{}", world.id));
    let reader = mock.reader(&Admin::new(&mock.cluster).unwrap());
    let ask = || {
        let asked = async { tokio::time::timeout(Duration::from_secs(60), reader.ids().ask(&mock.topic)).await };
        block_on(asked).expect("it has an end").ok()
    };
    let mut id = None;
    world.eventually("it is told", || {
        id = ask().flatten();
        id.is_some()
    });
    for (error, _) in errors() {
        mock.topic_fails(Some(error));
        // By no other one it may be taken for deleted.
        let is_unknown = error == RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
        assert_eq!(ask(), is_unknown.then_some(None), "{error:?}");
        mock.topic_fails(None);
        world.eventually(&format!("it is told after {error:?}"), || ask() == Some(id));
    }
}

#[test]
fn whatever_error_a_broker_answers_a_reader_gets_each_record_once_and_in_order() {
    let world = World::new("read");
    let mock = Mock::new(&format!("products-{}", world.id));
    let admin = Admin::new(&mock.cluster).unwrap();
    let reader = mock.reader(&admin);
    let partition = mock.topic.partition(0);
    let mut records = reader.partition(&partition, Offset(0), None);
    let mut written = 0;
    for (error, times) in errors() {
        for key in with_metadata(&[Fetch], times) {
            if key == Metadata {
                mock.topic_fails(Some(error));
                // By this answer the reader asks for it at once.
                mock.broker.request_errors(Fetch, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART]);
                world.for_a_while(Duration::from_millis(300), "nothing new is there", || {
                    !matches!(records.poll(), Some(Event::Record(_)))
                });
                mock.topic_fails(None);
            } else {
                mock.broker.request_errors(key, &vec![error; times]);
            }
            mock.produce(&written.to_string());
            world.within(Duration::from_secs(60), &format!("it is read after {error:?} of {key:?}"), || {
                match records.poll() {
                    Some(Event::Record(message)) => {
                        assert_eq!(
                            (message.offset(), message.value().unwrap()),
                            (Offset(written), written.to_string().as_bytes())
                        );
                        written += 1;
                        return true;
                    }
                    // As `lead` does.
                    Some(Event::OutOfLog) => {
                        assert_eq!(error, RDKafkaRespErr::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE);
                        records = reader.partition(&partition, Offset(written), None);
                    }
                    Some(_) => {}
                    None => block_on(records.readable()),
                }
                false
            });
            mock.broker.clear_request_errors(Fetch);
        }
    }
}

#[test]
fn whatever_error_a_broker_answers_to_new_connections_all_that_is_there_is_read() {
    let world = World::new("connected");
    let mock = Mock::new(&format!("products-{}", world.id));
    let all = ["0", "1", "2"];
    all.iter().for_each(|text| mock.produce(text));
    let admin = Admin::new(&mock.cluster).unwrap();
    for (error, times) in errors() {
        for key in with_metadata(&[ApiVersion], times) {
            match key {
                Metadata => mock.topic_fails(Some(error)),
                key => mock.broker.request_errors(key, &vec![error; times]),
            }
            let reader = mock.reader(&admin);
            let mut records = reader.partition(&mock.topic.partition(0), Offset(0), None);
            let mut read = vec![];
            // How many are read so far.
            let mut read_on = || {
                match records.poll() {
                    Some(Event::Record(message)) => {
                        read.push(str::from_utf8(message.value().unwrap()).unwrap().to_owned());
                    }
                    Some(_) => {}
                    None => block_on(async {
                        drop(tokio::time::timeout(Duration::from_millis(100), records.readable()).await);
                    }),
                }
                read.len()
            };
            if key == Metadata {
                let time = Duration::from_millis(500);
                world.for_a_while(time, &format!("nothing is read with {error:?}"), || read_on() == 0);
                mock.topic_fails(None);
            }
            world.eventually(&format!("all is read after {error:?} of {key:?}"), || read_on() == all.len());
            assert_eq!(read, all);
            mock.broker.clear_request_errors(key);
        }
    }
}

#[test]
fn whatever_error_a_broker_answers_where_a_log_begins_and_ends_is_told_as_it_is_or_not_at_all() {
    let world = World::new("ends");
    let mock = Mock::new(&format!("products-{}", world.id));
    (0..3).for_each(|id| mock.produce(&id.to_string()));
    let reader = mock.reader(&Admin::new(&mock.cluster).unwrap());
    let partition = mock.topic.partition(0);
    let log = || block_on(async { tokio::time::timeout(Duration::from_secs(60), reader.log(&partition)).await });
    let truth = Log { begin: Offset(0), end: Offset(3) };
    for (error, times) in errors() {
        // librdkafka asks two questions, and may have both answers, of which one is the error, at the same moment.
        for _ in 0..10 {
            mock.broker.request_errors(ListOffsets, &vec![error; times]);
            if let Ok(told) = log().expect("it has an end") {
                assert_eq!(told, truth, "after {error:?}");
            }
            mock.broker.clear_request_errors(ListOffsets);
        }
        world.eventually(&format!("it is told after {error:?}"), || log().is_ok_and(|told| told.is_ok()));
    }
}

#[test]
fn whatever_error_a_broker_answers_what_is_acknowledged_is_in_the_log() {
    let world = World::new("written");
    let mock = Mock::new(&format!("products-{}", world.id));
    let key_of = |key: RDKafkaApiKey| format!("{key:?}");
    for (error, times) in errors() {
        for key in with_metadata(&[Produce, InitProducerId, ApiVersion], times) {
            if key == Produce && error == RDKafkaRespErr::RD_KAFKA_RESP_ERR_DUPLICATE_SEQUENCE_NUMBER {
                // By it a broker says that the message is there already. This one would lie.
                continue;
            }
            let is_of_topic = key == Metadata;
            match is_of_topic {
                true => mock.topic_fails(Some(error)),
                false => mock.broker.request_errors(key, &vec![error; times]),
            }
            let writer = Writer::open(&mock.cluster, Duration::from_secs(10)).unwrap();
            let mut lane = writer.lane();
            let text = format!("{} {error:?} {times}", key_of(key));
            let sent = block_on(async {
                let (key, value, headers) = (None, Some(text.as_bytes()), None);
                let sent = lane
                    .send(Outgoing { topic: &mock.topic, partition: Some(0), key, value, headers, timestamp: None })
                    .await;
                if is_of_topic {
                    pass(Duration::from_millis(500)).await;
                    assert_eq!(lane.acknowledged(), 0, "{text}");
                    mock.topic_fails(None);
                }
                tokio::time::timeout(Duration::from_secs(60), lane.settled()).await.expect("it has an end").and(sent)
            });
            mock.broker.clear_request_errors(key);
            let records = mock.kafka.records(mock.topic.as_str());
            let is_there = records.iter().any(|record| record.value.as_deref() == Some(&text));
            assert_eq!(is_there, sent.is_ok(), "{text}: {sent:?}");
        }
    }
}
