//! The applications that are to be running in five minutes: each is run as it is shown, and what it has changed has arrived.

use std::time::Duration;

use super::{PROJECT, blocks, document, path, section, sql_of};
use crate::clients::environment;
use crate::examples::built;
use crate::support::{End, Primary, Record, World, block_on, primaries};

/// How long an application may take to start, and to be run.
const MINUTES: Duration = Duration::from_secs(300);

#[test]
fn the_applications_of_five_minutes_announce_what_they_change() {
    let world = World::alone("readme-shop");
    let [postgres, ..] = block_on(primaries("readme_shop"));
    // Only ksync takes a schema from the URL.
    block_on(postgres.execute("DROP DATABASE IF EXISTS ksync_readme_shop WITH (FORCE)"));
    block_on(postgres.execute("CREATE DATABASE ksync_readme_shop"));
    let (server, _) = postgres.url.rsplit_once('/').unwrap();
    let shop = Primary { url: format!("{server}/ksync_readme_shop"), ..postgres };
    block_on(shop.execute(&sql_of("README.md", "Changes of an application")));
    built();
    let (path, dir) = (path(), world.dir.display().to_string());
    let [python, node] = ["python", "node/node_modules"].map(|folder| environment("", folder).1);
    let variables = [
        ("PATH", path.as_str()),
        ("DATABASE_URL", &shop.url),
        ("TMPDIR", &dir),
        ("PYTHONPATH", &python),
        ("NODE_PATH", &node),
    ];
    let mut told: Vec<u32> = vec![];
    for (title, changed) in [
        ("Rails in five minutes", vec![1_u32, 1]),
        ("Django in five minutes", vec![2]),
        ("Node", vec![3]),
        ("Rust", vec![2, 3, 4, 4]),
    ] {
        let text = section("README.md", title);
        let [block] = blocks(&text, "sh run shop")[..] else { panic!("{text}") };
        let script = world.script(&format!("cd {PROJECT}\n{block}"));
        let mut process = world.start(&script, "", &variables);
        world.within(MINUTES, block, || !process.is_running());
        assert_eq!(process.wait(), End::Status(0), "{block}");
        told.extend(&changed);
        told.sort();
        let lines: Vec<_> = told.iter().map(|id| format!("{id}|{{\"id\":{id}}}")).collect();
        assert_eq!(sorted(world.kafka.records("products").iter().map(Record::line)), lines, "{block}");
        let covered = world.kafka.records("products-delay").into_iter().map(|record| record.key.unwrap());
        assert_eq!(sorted(covered), told.iter().map(u32::to_string).collect::<Vec<_>>(), "{block}");
        let last = changed.last().unwrap();
        let shown = format!("\"key\":\"{last}\",\"headers\":[],\"payload\":{{\"id\":{last}}}}}");
        assert!(process.says(&[&shown]), "{block}: {:?}", process.log());
    }
    assert_eq!(blocks(&document("README.md"), "sh run shop").len(), 4);
    let rows = block_on(shop.texts("SELECT id || ' ' || name || ' ' || price FROM products ORDER BY id"));
    assert_eq!(rows, ["1 tea 500", "2 tea 500", "3 tea 500", "4 tea 500"]);
}

fn sorted(lines: impl Iterator<Item = String>) -> Vec<String> {
    let mut lines: Vec<_> = lines.collect();
    lines.sort();
    lines
}
