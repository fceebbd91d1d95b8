//! Records that are compressed: with each codec, and such that become much larger.

use std::fs;
use std::time::Duration;

use rand::Rng;
use rand::distr::Alphanumeric;

use crate::support::{End, World, is_full, value};

const CODECS: [(&str, u8); 4] = [("gzip", 1), ("snappy", 2), ("lz4", 3), ("zstd", 4)];

#[test]
fn records_compressed_with_each_codec_arrive_byte_for_byte() {
    let world = World::new("codecs");
    let products = world.topic("products", 1);
    for (codec, number) in CODECS {
        let products = format!("{products}-{codec}");
        world.kafka.create(&products, 1, &[]);
        // What can be made small, what cannot, and of all sizes.
        let values: Vec<_> = (0..200_usize)
            .map(|size| {
                let random: Vec<u64> = (0..size % 7).map(|_| rand::random()).collect();
                format!("{{ \"id\":{size}, \"text\":\"ä\u{2028}{}\", \"random\":{random:?} }}", "x".repeat(size * 50))
            })
            .collect();
        let kafka = world.kafka.with("compression.type", codec).with("linger.ms", "500");
        kafka.produce(&products, values.iter().map(value));
        let log = world.services.dir.join(format!("kafka-1/data/{products}-0/00000000000000000000.log"));
        // The attributes of the first batch.
        assert_eq!(fs::read(log).unwrap()[22] & 7, number, "{codec}");
        let handler = world.handler("");
        let mut consumer = world.consume(&format!("-t {products} -n indexer -e -- {handler}"));
        assert_eq!(consumer.wait(), End::Status(0), "{codec}: {:?}", consumer.log());
        assert!(handler.payloads() == values, "{codec}");
    }
}

/// What `--memory` is set to, and what else may vary, in MiB.
const MEMORY: usize = 16;
const SLACK: usize = 8;

/// How much more a consumer of these batches, each of so many MiB of zeros and this noise, held at most than one that had
/// nothing to read; in MiB.
fn taken(world: &World, (batches, size, noise): (usize, usize, &str)) -> usize {
    let products = format!("products-{batches}-{size}-{}-{}", noise.len(), world.id);
    world.kafka.create(&products, 1, &[("max.message.bytes", "4000000")]);
    let kafka = world.kafka.with("compression.type", "zstd").with("linger.ms", "1000").with("batch.size", "200000000");
    let (zeros, noise) = (format!("\"{}\"", "0".repeat((1 << 20) - 2)), format!("\"{noise}\""));
    for _ in 0..batches {
        kafka.produce(&products, std::iter::once(value(&noise)).chain((0..size).map(|_| value(&zeros))));
    }
    let log = world.services.dir.join(format!("kafka-1/data/{products}-0/00000000000000000000.log"));
    let length = fs::metadata(log).unwrap().len() as usize;
    assert!(length < batches * (noise.len() + (size << 10)), "{length} bytes are not small");
    let count = batches * (size + 1);
    let held = |from: &str| {
        let counts = world.file("counts");
        let script = world.script(&format!("wc -l >> {}", counts.display()));
        let options = format!("-n {from} --first-start {from} --memory {MEMORY}MiB");
        let consumer = world.consume(&format!("-t {products} {options} -- {script}"));
        let seat = world.seat(&products, 0, from);
        world.within(Duration::from_secs(90), "all is done", || seat.offset() == Some(count as i64));
        let given = fs::read_to_string(counts).unwrap_or_default();
        (consumer.most_memory() >> 20, given.lines().map(|count| count.trim().parse::<usize>().unwrap()).sum::<usize>())
    };
    let ((idle, nothing), (busy, given)) = (held("latest"), held("earliest"));
    assert_eq!((nothing, given), (0, count));
    busy - idle
}

#[test]
fn of_batches_that_become_far_larger_no_more_is_held_than_two_answers_of_a_broker_bring() {
    let world = World::new("bombs");
    // Such that one batch is as much as a broker gives at a time.
    let noise: String = rand::rng().sample_iter(Alphanumeric).take(2 << 20).map(char::from).collect();
    let (batches, size) = if is_full() { (8, 150) } else { (5, 16) };
    let taken = taken(&world, (batches, size, &noise));
    assert!(taken <= 2 * (size + 2) + MEMORY + SLACK, "{taken} MiB");
    // Without it an answer has all of these.
    let taken = self::taken(&world, (3, size, ""));
    assert!(taken <= 3 * size + MEMORY + SLACK, "{taken} MiB");
}
