//! Lines of stdin that name the rows of a table, for a statement to change.

use ksync::database::Dialect;

use crate::stream::delayed;
use crate::support::{End, Primary, World, block_on, primaries};

const BIG: &str = "9007199254740993";

fn products_of(primary: &Primary) {
    let columns = "shop VARCHAR(20) NOT NULL, id BIGINT NOT NULL, price INTEGER, PRIMARY KEY (shop, id)";
    block_on(primary.execute(&format!("CREATE TABLE products ({columns})")));
    let rows = format!("('a', 1, 0), ('a', 2, 0), ('b', 3, 0), ('b', {BIG}, 0)");
    block_on(primary.execute(&format!("INSERT INTO products VALUES {rows}")));
}

fn changed(primary: &Primary) -> Vec<String> {
    block_on(primary.texts("SELECT id FROM products WHERE price > 0 ORDER BY id"))
}

fn new_topic(world: &World) -> String {
    world.topic_with_delay(&format!("products-{:06x}", rand::random::<u32>()), 1)
}

#[test]
fn lines_name_the_rows_that_a_statement_changes() {
    let world = World::new("keys");
    for (primary, other) in block_on(primaries("keys_named")).into_iter().zip(block_on(primaries("keys_elsewhere"))) {
        products_of(&primary);
        products_of(&other);
        let topic = new_topic(&world);
        let sql = "--sql 'UPDATE products SET price = price + 1 WHERE (shop, id) IN (:keys)'";
        let source = format!("- -t {topic} --database {} --table products --chunk-wait 5s {sql}", primary.url);
        let big = format!(r#"{{"note":"x","id":"{BIG}","shop":"b"}}"#);
        // The third is twice there, the last one in no table.
        let lines = [r#"{"shop":"a","id":1}"#, &big, r#"{"shop":"a","id":1}"#, r#"{"shop":"c","id":1}"#];
        let lines = lines.map(str::to_owned);
        let mut stream = world.stream_lines(&source, lines.join("\n"));
        assert_eq!(stream.wait(), End::Status(0), "{primary:?}: {:?}", stream.log());
        assert_eq!(changed(&primary), ["1", BIG], "{primary:?}");
        let records = world.kafka.records(&topic);
        let instant: Vec<_> = records.iter().map(|record| record.value.clone().unwrap()).collect();
        assert_eq!((&delayed(&world, &topic)[..], &instant[..]), (&lines[..], &lines[..]), "{primary:?}");
        assert_eq!(records[0].key.as_deref(), Some(r#"["a",1]"#));
        assert!(stream.says(&["4 rows in ", "; 8 messages, 0 retries; consumers get"]), "{:?}", stream.log());

        let mut elsewhere = world.stream_lines(&format!("{source} --action-database {}", other.url), &lines[0]);
        assert_eq!(elsewhere.wait(), End::Status(0), "{primary:?}: {:?}", elsewhere.log());
        assert_eq!(
            (changed(&primary), changed(&other)),
            (vec!["1".into(), BIG.into()], vec!["1".into()]),
            "{primary:?}"
        );
    }
}

#[test]
fn a_line_that_names_no_row_is_refused_before_anything_of_its_chunk_is_sent() {
    let world = World::new("keys-wrong");
    for primary in block_on(primaries("keys_wrong")) {
        products_of(&primary);
        let topic = new_topic(&world);
        let sql = "--sql 'DELETE FROM products WHERE id IN (:keys)'";
        let source = format!("- -t {topic} --database {} --table products --key id --chunk-size 2 {sql}", primary.url);
        let wrong = match primary.dialect {
            Dialect::Sqlite => vec![("{\"id\":true}", "its 'id': is true, which SQLite has no value for")],
            _ => vec![
                ("{\"id\":1.5}", "its 'id': is 1.5, which is no number of its column's type"),
                ("{\"id\":\"x\"}", "its 'id': is \"x\", which is no number of its column's type"),
            ],
        };
        let always =
            [("{\"ID\":2}", "it has no 'id'"), ("{\"id\":null}", "its 'id': is null"), ("[2]", "it is no JSON object")];
        for (line, why) in wrong.into_iter().chain(always) {
            let mut stream =
                world.stream_lines(&source, format!("{{\"id\":77}}\n{{\"id\":78}}\n{{\"id\":2}}\n{line}\n"));
            assert_eq!(stream.wait(), End::Status(1), "{line}: {:?}", stream.log());
            let told = format!("up to line 4 of stdin: {line} names no row of table products: {why}");
            assert!(stream.says(&["error: ", &told]), "{told}: {:?}", stream.log());
        }
        assert_eq!(block_on(primary.texts("SELECT id FROM products")).len(), 4, "{primary:?}");
        assert!(delayed(&world, &topic).iter().all(|payload| payload.contains("77") || payload.contains("78")));
    }
    for (options, why) in [
        (
            "--sql 'DELETE FROM products WHERE id IN (:keys)'",
            "--sql needs the --table whose rows the lines of stdin name",
        ),
        ("--table products -- wc -l", "--table is of no use with lines of stdin, unless --sql changes its rows"),
        ("--query 'SELECT 1' --key id", "cannot be used with"),
    ] {
        let mut refused = world.stream(&format!("- -t products --database sqlite:none {options}"));
        assert_eq!(refused.wait(), End::Status(2), "{options}");
        assert!(refused.says(&[why]), "{:?}", refused.log());
    }
}
