//! Lines that a handler is tried out on: our own, those of kcat, and such as are no record's.

use crate::replay::{line, lines, sh};
use crate::support::{End, Message, World, value};

#[test]
fn our_own_lines_reach_the_handler_byte_for_byte_as_batches_of_each_partition_in_the_order_of_their_first_lines() {
    let world = World::new("replay");
    let by_hand =
        "{ \"topic\" : \"orders\",\"partition\":1, \"offset\":7,\"payload\":{\"id\": 18446744073709551616} }\n";
    let raw = "{\"topic\":\"products\",\"partition\":0,\"offset\":44,\"ts\":null,\"key_b64\":\"/wA=\",\
               \"headers\":[[\"a\",null],[\"b\",{\"b64\":\"/w==\"}]],\"payload_b64\":\"e30ge30=\"}\n";
    let [first, second] = [lines("products", 0, [41, 42]), lines("products", 0, [45])];
    let file = [&first, by_hand, raw, "\n", second.trim_end()].concat();
    let handler = world.handler("echo 'it is said' >&2");
    let tried = sh(&world, &format!("ksync-consume --replay - --batch-size 3 -n indexer -- {handler}"), &file);
    let printed = [
        "run 1: products/0 offsets 41 to 44 (3 records): done",
        "would commit products/0 at offset 45",
        "run 2: orders/1 offset 7 (1 record): done",
        "would commit orders/1 at offset 8",
        "run 3: products/0 offset 45 (1 record): done",
        "would commit products/0 at offset 46",
    ];
    assert_eq!((tried.printed, tried.status), (printed.map(str::to_owned).to_vec(), Some(0)));
    assert!(tried.said.contains("products/0: it is said"), "{}", tried.said);
    let given: Vec<_> =
        handler.runs().into_iter().map(|run| (run.lines.join("\n") + "\n", run.name, run.term)).collect();
    let expected = [format!("{first}{raw}"), by_hand.to_owned(), second];
    assert_eq!(given, expected.map(|lines| (lines, "indexer".to_owned(), 0)));
    assert!(handler.runs().iter().all(|run| run.done.is_some() && run.attempt == 1));

    let bytes = first.len() + 10; // The raw one would make it larger.
    let cut = sh(&world, &format!("ksync-consume --replay - --batch-bytes {bytes} -- {handler}"), &file);
    let runs: Vec<_> = handler.runs()[3..].iter().map(|run| (run.first, run.count, run.name.clone())).collect();
    let run = |first, count| (first, count, "replay".to_owned());
    assert_eq!((runs, cut.status), (vec![run(41, 2), run(7, 1), run(44, 1), run(45, 1)], Some(0)));
}

#[test]
fn lines_of_kcat_reach_the_handler_as_the_records_themselves_do() {
    let world = World::new("replay-kcat");
    let products = world.topic("products", 1);
    let none = Message::default();
    world.kafka.produce(
        &products,
        [
            value("{\"id\":\n 18446744073709551616,\"é\":\"\u{2028}\\ud800 \\\"\"}")
                .key("7")
                .header("k", "v")
                .header("k", "w"),
            Message { headers: vec![("none".to_owned(), None)], ..none.clone() }.key("8"),
            value("{\"id\":10}").key(""),
            value("{\"id\":11}"),
            value("null").key(b"\xff\x00k\"").header("b", b"\xff").header("", ""),
            value("no JSON"),
            value(b"\xfe\x01\"\\/\n").key("9"),
            value(""),
            none,
        ],
    );
    let handler = world.handler("");
    let mut consumer = world.consume(&format!("-t {products} -n replay -e --on-invalid raw -- {handler}"));
    assert_eq!(consumer.wait(), End::Status(0));
    let bootstrap = world.services.get("KSYNC_BOOTSTRAP_SERVER");
    let kcat = format!("kcat -C -J -e -q -o beginning -b {bootstrap} -t {products}");
    let tried = sh(&world, &format!("{kcat} | ksync-consume --replay - --on-invalid raw -- {handler}"), "");
    assert_eq!(tried.status, Some(0), "{}", tried.said);
    let lines = |count| handler.runs().into_iter().skip(count).flat_map(|run| run.lines).collect::<Vec<_>>();
    let runs = handler.runs().len() - 1;
    assert_eq!((lines(runs).len(), lines(runs)), (9, lines(0)[..9].to_vec()));

    let why = "it is not JSON: expected ident at line 1 column 2";
    let halts = sh(&world, &format!("{kcat} | ksync-consume --replay - -- {handler}"), "");
    let printed = [
        format!("run 1: {products}/0 offsets 0 to 4 (5 records): done"),
        format!("would commit {products}/0 at offset 5"),
        format!(
            "would halt at {products}/0: line 6: the value at offset 5 cannot be given to the handler: {why}; mend its writer \
             and let --on-invalid dead-letter put it aside"
        ),
    ];
    assert_eq!((&halts.printed[..], halts.status), (&printed[..], Some(1)));
    let aside = sh(&world, &format!("{kcat} | ksync-consume --replay - --on-invalid dead-letter -- {handler}"), "");
    let aside_at = |offset: i64, why: &str| format!("would put {products}/0@{offset} aside: {why}");
    let printed = [
        format!("run 1: {products}/0 offsets 0 to 8 (6 records): done"),
        aside_at(5, why),
        aside_at(6, "it is not JSON: expected value at line 1 column 1"),
        aside_at(7, "it is empty"),
        format!("would commit {products}/0 at offset 9"),
    ];
    assert_eq!((&aside.printed[..], aside.status), (&printed[..], Some(3)));
}

#[test]
fn a_line_that_is_no_record_or_out_of_order_is_told_by_its_number_and_nothing_is_run() {
    let world = World::new("replay-lines");
    let handler = world.handler("");
    let good = lines("products", 0, 0..3);
    let kcat = "{\"topic\":\"t\",\"partition\":0,\"offset\":1,\"tstype\":\"create\",\"payload\":{}}\n";
    let neither = "it is no record's line, neither of ksync nor of kcat -J";
    for (bad, options, why) in [
        ("{\"id\":7}\n", "", format!("line 4: {neither}: missing field `topic` at line 1 column 8")),
        ("hello\n", "", format!("line 4: {neither}: expected value at line 1 column 1")),
        (kcat, "", format!("line 4: {neither}: invalid type: map, expected a text at line 1 column 66")),
        (&line("products", 0, 2), "", "line 4: offset 2 of products/0 does not come after 2".to_owned()),
        ("", "--memory 200", "line 2: the records up to here take more than 200 bytes (--memory)".to_owned()),
    ] {
        let tried = sh(&world, &format!("ksync-consume --replay - {options} -- {handler}"), &format!("{good}{bad}"));
        assert_eq!((tried.printed, tried.status), (vec![], Some(1)), "{bad}");
        assert!(tried.said.contains(&format!("error: cannot read stdin: {why}\n")), "{}", tried.said);
    }
    let missing = sh(&world, &format!("ksync-consume --replay missing.jsonl -- {handler}"), "");
    assert_eq!((missing.status, handler.runs()), (Some(1), vec![]));
    assert!(missing.said.contains("cannot read missing.jsonl: No such file or directory"), "{}", missing.said);
    let empty = sh(&world, &format!("ksync-consume --replay - -- {handler}"), "");
    assert_eq!((empty.status, empty.said.contains("warn: - has no records")), (Some(0), true), "{}", empty.said);
}
