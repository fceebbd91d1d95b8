//! Records that a broker gives otherwise than they were written: nobody goes on behind them, and nothing is lost.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use crate::brokers::delay_message;
use crate::support::{End, World, value};

/// A batch in the file of a log. Where its parts are: <https://kafka.apache.org/documentation/#recordbatch>
struct Batch {
    file: PathBuf,
    begin: usize,
    whole: Vec<u8>,
}

const CRC: usize = 17;
const ATTRIBUTES: usize = 21;

impl Batch {
    /// The second of three, in a topic of one partition.
    fn second_of_three(world: &World, topic: &str, values: [String; 3]) -> Batch {
        let file = world.services.dir.join(format!("kafka-1/data/{topic}-0/00000000000000000000.log"));
        let ends = values.map(|text| {
            world.kafka.produce(topic, [value(text)]);
            fs::metadata(&file).unwrap().len() as usize
        });
        let whole = fs::read(&file).unwrap()[ends[0]..ends[1]].to_vec();
        Batch { file, begin: ends[0], whole }
    }

    /// Of a disk or a line that has turned a bit over.
    fn turn_a_bit(&self) {
        let mut batch = self.whole.clone();
        *batch.last_mut().unwrap() ^= 1;
        self.write(&batch);
    }

    /// By a codec that there is not.
    fn compress_unreadably(&self) {
        let mut batch = self.whole.clone();
        batch[ATTRIBUTES + 1] |= 7;
        let crc = crc32c::crc32c(&batch[ATTRIBUTES..]);
        batch[CRC..ATTRIBUTES].copy_from_slice(&crc.to_be_bytes());
        self.write(&batch);
    }

    fn mend(&self) {
        self.write(&self.whole);
    }

    /// In place, as it is what the broker reads for each who asks.
    fn write(&self, batch: &[u8]) {
        write_at(&self.file, self.begin, batch);
    }
}

fn write_at(file: &Path, begin: usize, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    fs::OpenOptions::new().write(true).open(file).unwrap().write_all_at(bytes, begin as u64).unwrap();
}

/// What is done to a batch, and what is told of it.
type Damage = (fn(&Batch), &'static str);

const DAMAGES: [Damage; 2] =
    [(Batch::turn_a_bit, "failed CRC32C check"), (Batch::compress_unreadably, "Decompression (codec 0x7)")];

#[test]
fn a_consumer_halts_before_what_is_damaged_and_goes_on_with_it_once_it_is_whole() {
    let world = World::new("damaged");
    for (number, (damage, why)) in DAMAGES.into_iter().enumerate() {
        let products = world.topic(&format!("products-{number}"), 1);
        let all = [1, 2, 3].map(|id| format!("{{\"id\":{id}}}"));
        let batch = Batch::second_of_three(&world, &products, all.clone());
        damage(&batch);
        let handler = world.handler("");
        let consume = || world.consume(&format!("-t {products} -n indexer -e -- {handler}"));
        let mut consumer = consume();
        assert_eq!(consumer.wait(), End::Status(1), "{why}");
        assert!(consumer.says(&["error: ", "halted", "what comes at offset 1 cannot be read: ", why]), "{why}");
        let seat = world.seat(&products, 0, "indexer");
        assert_eq!((seat.offset(), handler.payloads()), (Some(1), all[..1].to_vec()), "{why}");
        batch.mend();
        assert_eq!(consume().wait(), End::Status(0), "{why}");
        assert_eq!((seat.offset(), handler.payloads()), (Some(3), all.to_vec()), "{why}");
    }
}

#[test]
fn a_delayer_sends_on_what_lies_before_the_damage_and_halts() {
    let world = World::new("damaged-delay");
    for (number, (damage, why)) in DAMAGES.into_iter().enumerate() {
        let products = world.topic_with_delay(&format!("products-{number}"), 1);
        let delay_topic = format!("{products}-delay");
        let batch = Batch::second_of_three(&world, &delay_topic, ["1", "2", "3"].map(delay_message));
        damage(&batch);
        let delay = || world.delayer(&format!("-t {products} --delay 1s"));
        let mut delayer = delay();
        let told = ["error: ", "halted", "what comes at offset 1 cannot be read: ", why];
        world.eventually("it is told", || delayer.says(&told));
        assert!(delayer.says(&["warn: ", why, "; what lies before it is sent on first"]), "{:?}", delayer.log());
        let seat = world.seat(&delay_topic, 0, "delayer");
        let sent = || world.kafka.records(&products).into_iter().filter_map(|record| record.value).collect::<Vec<_>>();
        assert_eq!((seat.offset(), sent()), (Some(1), vec!["1".to_owned()]), "{why}");
        delayer.signal(Signal::TERM);
        assert_eq!(delayer.wait(), End::Status(0), "{why}");
        batch.mend();
        let _mended = delay();
        world.eventually("all are sent on", || seat.offset() == Some(3));
        assert_eq!(sent(), ["1", "2", "3"], "{why}");
    }
}

#[test]
fn a_delayer_begins_anew_where_a_message_before_the_damage_is_refused_and_tells_of_that_one() {
    let world = World::new("damaged-refused");
    let products = world.topic("products", 1);
    let delay_topic = format!("{products}-delay");
    // Their times lie in the future: so they are due when the delay has passed since they were read.
    world.kafka.create(&delay_topic, 1, &[("message.timestamp.type", "CreateTime")]);
    let message = |payload: &str| format!(r#"{{"payload": {payload}, "created_at": 9e9}}"#);
    // Such that compression does not make it small.
    let large = format!("{:?}", (0..500).map(|_| rand::random::<u64>()).collect::<Vec<_>>()).replace(' ', "");
    world.kafka.produce(&delay_topic, [value(message("1"))]);
    let batch = Batch::second_of_three(&world, &delay_topic, [large.as_str(), "3", "4"].map(message));
    batch.turn_a_bit();
    let delay = || world.delayer(&format!("-t {products} --delay 10s"));
    let mut delayer = delay();
    let met = ["warn: ", "what comes at offset 2 cannot be read: ", "; what lies before it is sent on first"];
    world.eventually("it has met the damage", || delayer.says(&met));
    world.kafka.set(&products, &[("max.message.bytes", "1000")]);
    let told = format!("halted at offset 1: cannot send the message of offset 1 on to {products}");
    world.eventually("it halts before the one that is refused", || delayer.says(&["error: ", &told]));
    let seat = world.seat(&delay_topic, 0, "delayer");
    let sent = || world.kafka.records(&products).into_iter().filter_map(|record| record.value).collect::<Vec<_>>();
    assert_eq!((seat.offset(), sent(), delayer.log_of("error").len()), (Some(1), vec!["1".to_owned()], 1));

    delayer.signal(Signal::TERM);
    assert_eq!(delayer.wait(), End::Status(0));
    world.kafka.set(&products, &[("max.message.bytes", "1048588")]);
    batch.mend();
    let _mended = delay();
    world.eventually("all are sent on", || seat.offset() == Some(4));
    assert_eq!(sent(), ["1", &large, "3", "4"]);
}
