//! What ksync-stream does not begin with, since it would change other rows than it announces, or not those.

use ksync::database::Dialect;

use crate::support::{End, Primary, World, block_on, primaries};

/// `products` with so many rows, of which none is changed yet.
fn products_of(primary: &Primary, rows: usize) {
    block_on(primary.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, price INTEGER, other INTEGER)"));
    let rows: Vec<_> = (1..=rows).map(|id| format!("({id}, 0, 0)")).collect();
    block_on(primary.execute(&format!("INSERT INTO products VALUES {}", rows.join(", "))));
}

fn changed(primary: &Primary) -> usize {
    block_on(primary.texts("SELECT id FROM products WHERE price <> 0")).len()
}

const CHANGE: &str = "--sql 'UPDATE products SET price = 1 WHERE id IN (:keys)'";

/// ksync-stream with a topic that gets nothing of it.
struct Refusals<'a> {
    world: &'a World,
    topic: String,
}

impl<'a> Refusals<'a> {
    fn new(world: &'a World) -> Refusals<'a> {
        Refusals { world, topic: world.topic_with_delay("refused", 1) }
    }

    /// It ends with this status and this error, and sends nothing.
    fn check(&self, primary: &Primary, (source, action): (&str, &str), (status, error): (i32, &str)) {
        let Refusals { world, topic } = self;
        let mut stream = world.stream(&format!("{source} -t {topic} --database {} {action}", primary.url));
        assert_eq!(stream.wait(), End::Status(status), "{primary:?} {source} {action}: {:?}", stream.log());
        assert_eq!(stream.log_of("error"), [error], "{primary:?} {source} {action}");
        let sent = [topic, &format!("{topic}-delay")].map(|topic| world.kafka.count(topic));
        assert_eq!(sent, [0, 0], "{primary:?} {source} {action}");
    }
}

/// It begins, and ends well; gives how many instant messages it has sent, and its warnings.
fn runs(world: &World, primary: &Primary, (source, action): (&str, &str)) -> (i64, Vec<String>) {
    let topic = world.topic_with_delay(&format!("products-{:06x}", rand::random::<u32>()), 1);
    let mut stream = world.stream(&format!("{source} -t {topic} --database {} {action}", primary.url));
    assert_eq!(stream.wait(), End::Status(0), "{primary:?} {source} {action}: {:?}", stream.log());
    (world.kafka.count(&topic), stream.log_of("warn"))
}

#[test]
fn a_query_that_says_how_many_rows_it_gives_is_refused_to_an_action() {
    const LIMITED: &str = "--query says itself how many rows it gives (LIMIT, OFFSET, FETCH), and is asked again for each \
                           chunk: behind rows that the action has changed it would give further ones; write a condition \
                           instead, or give the rows as lines of stdin";
    let world = World::new("limited");
    let refusals = Refusals::new(&world);
    for primary in block_on(primaries("refused_limit")) {
        products_of(&primary, 25);
        let ends = match primary.dialect {
            Dialect::Postgres => ["LIMIT 5", "OFFSET 5", "FETCH FIRST 5 ROWS ONLY"],
            Dialect::MySql => ["LIMIT 5", "LIMIT 20, 5", "OFFSET 5 ROWS FETCH NEXT 5 ROWS ONLY"],
            Dialect::Sqlite => ["LIMIT 5", "LIMIT 20, 5", "LIMIT 5 OFFSET 20"],
        };
        for end in ends {
            let source =
                format!("--query 'SELECT id FROM products WHERE price = 0 ORDER BY id {end}' --key id --chunk-size 2");
            for action in [CHANGE, &format!("--dry-run {CHANGE}"), "-- cat"] {
                refusals.check(&primary, (&source, action), (2, LIMITED));
            }
        }
        assert_eq!(changed(&primary), 0, "{primary:?}");
        // What a sub-select says is of no matter to the number of rows.
        let source = "--query 'SELECT id FROM products WHERE 0 = (SELECT other FROM products LIMIT 1)' --key id";
        assert_eq!(runs(&world, &primary, (source, CHANGE)).0, 25, "{primary:?}");
        assert_eq!(changed(&primary), 25, "{primary:?}");
    }
}

#[test]
fn a_query_that_says_how_many_rows_it_gives_is_told_of_where_it_is_asked_again() {
    let world = World::new("limit-told");
    let told = "the query says itself how many rows it gives (LIMIT, OFFSET, FETCH), and is asked again for each chunk: they \
                are others where rows change meanwhile, or have no fixed order; better write a condition";
    for primary in block_on(primaries("refused_limit_told")) {
        products_of(&primary, 25);
        let source = "--query 'SELECT id, price FROM products ORDER BY id LIMIT 20' --key id";
        for (options, is_told) in
            [("--chunk-size 10", true), ("--chunk-size 20", false), ("--chunk-size 20 --payload row", true)]
        {
            let (sent, warnings) = runs(&world, &primary, (source, options));
            let is_told_here = warnings.iter().any(|warning| warning == told);
            assert_eq!((sent, is_told_here), (20, is_told), "{primary:?} {options}: {warnings:?}");
        }
    }
}

#[test]
fn a_statement_that_changes_the_key_is_refused() {
    const KEY: &str = "cannot use --sql: it sets id, which is of the key that the rows are announced by: nobody would be told \
                       of the new one; leave it out, or name a --key that stays as it is";
    let world = World::new("key-set");
    let refusals = Refusals::new(&world);
    for primary in block_on(primaries("refused_key")) {
        products_of(&primary, 3);
        block_on(primary.execute("CREATE TABLE others (id INTEGER PRIMARY KEY, price INTEGER)"));
        block_on(primary.execute("INSERT INTO others VALUES (1, 0), (2, 0), (3, 0)"));
        let of_dialect = match primary.dialect {
            Dialect::MySql => [
                "UPDATE products AS x SET x.id = x.id + 100 WHERE x.id IN (:keys)",
                "UPDATE products x JOIN others o ON o.id = x.id SET x.`id` = o.id + 100 WHERE x.id IN (:keys)",
            ],
            Dialect::Postgres | Dialect::Sqlite => [
                "UPDATE products SET \"id\" = id + 100 WHERE id IN (:keys)",
                "UPDATE products AS x SET (price, id) = (1, x.id + 100) WHERE x.id IN (:keys)",
            ],
        };
        let alike = [
            "UPDATE products SET id = id + 100 WHERE id IN (:keys)",
            "UPDATE products SET price = 1, other = id, ID = id + 100 WHERE id IN (:keys)",
        ];
        for sql in alike.into_iter().chain(of_dialect) {
            let action = format!("--sql '{sql}'");
            for source in ["--table products", "--query 'SELECT id FROM products' --key id", "- --table products"] {
                refusals.check(&primary, (source, &action), (2, KEY));
            }
        }
        let keys = || block_on(primary.texts("SELECT id FROM products ORDER BY id"));
        assert_eq!((keys(), changed(&primary)), (["1", "2", "3"].map(str::to_owned).to_vec(), 0), "{primary:?}");

        let (upsert, onto_itself) = match primary.dialect {
            Dialect::MySql => {
                ("ON DUPLICATE KEY UPDATE id = VALUES(id)", "ON DUPLICATE KEY UPDATE price = VALUES(price)")
            }
            Dialect::Postgres | Dialect::Sqlite => {
                let upsert = "ON CONFLICT (id) DO UPDATE SET id = excluded.id";
                (upsert, upsert)
            }
        };
        for sql in [
            "UPDATE products SET other = id, price = id WHERE id IN (:keys)",
            "UPDATE products SET id = id, other = (SELECT max(id) FROM others) WHERE id IN (:keys)",
            "UPDATE others SET id = id + 100 WHERE id IN (:keys)",
            &format!("INSERT INTO others SELECT id, price FROM products WHERE id IN (:keys) {upsert}"),
            &format!("INSERT INTO products SELECT id, price, other FROM products WHERE id IN (:keys) {onto_itself}"),
        ] {
            let (sent, _) = runs(&world, &primary, ("--table products", &format!("--sql '{sql}'")));
            assert_eq!(sent, 3, "{primary:?} {sql}");
        }
        assert_eq!((keys(), changed(&primary)), (["1", "2", "3"].map(str::to_owned).to_vec(), 3), "{primary:?}");
        let others = block_on(primary.texts("SELECT id FROM others ORDER BY id"));
        assert_eq!(others, ["1", "2", "3", "101", "102", "103"], "{primary:?}");
    }
}

#[test]
fn columns_of_the_key_in_another_order_are_refused() {
    let world = World::new("key-order");
    let refusals = Refusals::new(&world);
    for primary in block_on(primaries("refused_order")) {
        block_on(primary.execute(
            "CREATE TABLE orders (tenant INTEGER NOT NULL, id INTEGER NOT NULL, state INTEGER, PRIMARY KEY (tenant, id))",
        ));
        block_on(primary.execute("INSERT INTO orders VALUES (3, 5, 0), (5, 3, 0), (7, 7, 0)"));
        let close = |columns: &str| format!("--sql 'UPDATE orders SET state = 2 WHERE {columns} IN (:keys)'");
        let told = |columns: &str, key: &str| {
            format!(
                "cannot use --sql: it compares ({columns}) with the keys, whose columns are ({key}): each would get the value \
                 of another one; write ({key}) IN (:keys)"
            )
        };
        let source = "--table orders --where 'tenant = 3'";
        let other = told("id, tenant", "tenant, id");
        for columns in ["(id, tenant)", "(orders.id, tenant) NOT", "( ID , /* the shop */ orders.tenant )"] {
            refusals.check(&primary, (source, &close(columns)), (2, &other));
        }
        let by_id = format!("{source} --key id,tenant");
        refusals.check(&primary, (&by_id, &close("(tenant, id)")), (2, &told("tenant, id", "id, tenant")));
        let states = || block_on(primary.texts("SELECT state FROM orders ORDER BY tenant"));
        assert_eq!(states(), ["0", "0", "0"], "{primary:?}");

        for (source, columns) in [(source, "(tenant, id)"), (&by_id, "(orders.id, orders.tenant)")] {
            assert_eq!(runs(&world, &primary, (source, &close(columns))).0, 1, "{primary:?} {columns}");
            assert_eq!(states(), ["2", "0", "0"], "{primary:?} {columns}");
        }
    }
}

#[test]
fn a_checkpoint_table_without_transactions_is_refused() {
    let world = World::new("no-undo");
    let refusals = Refusals::new(&world);
    let [_, mariadb, _] = block_on(primaries("refused_engine"));
    products_of(&mariadb, 3);
    let columns = "job VARCHAR(16) PRIMARY KEY, run BIGINT NOT NULL, state MEDIUMTEXT NOT NULL";
    block_on(mariadb.execute(&format!("CREATE TABLE ksync_checkpoints ({columns}) ENGINE=MyISAM")));
    for engine in ["MyISAM", "Aria"] {
        block_on(mariadb.execute(&format!("ALTER TABLE ksync_checkpoints ENGINE={engine}")));
        let told = format!(
            "--checkpoint-table leaves out no row, but table ksync_checkpoints knows no transactions ({engine}), so that it may \
             tell of changes that were undone; run: ALTER TABLE `ksync_checkpoints` ENGINE=InnoDB"
        );
        for options in ["", "--dry-run", "--restart"] {
            let source = format!("--table products --checkpoint-table {options}");
            refusals.check(&mariadb, (&source, CHANGE), (78, &told));
        }
    }
    let kept = || block_on(mariadb.texts("SELECT job FROM ksync_checkpoints")).len();
    assert_eq!((kept(), changed(&mariadb)), (0, 0));
    // What it says is done.
    block_on(mariadb.execute("ALTER TABLE `ksync_checkpoints` ENGINE=InnoDB"));
    assert_eq!(runs(&world, &mariadb, ("--table products --checkpoint-table", CHANGE)).0, 3);
    assert_eq!((kept(), changed(&mariadb)), (1, 3));
}

#[test]
fn a_chunk_size_that_is_more_than_the_database_binds_is_refused() {
    let world = World::new("too-many-keys");
    let refusals = Refusals::new(&world);
    let [postgres, mariadb, sqlite] = block_on(primaries("refused_size"));
    let twice = "--sql 'UPDATE products SET price = 1 WHERE id IN (:keys) AND id IN (:keys)'";
    let told = |most: u32, keys: u32, values: u32, fit: u32| {
        format!(
            "the database binds at most {most} values to a statement, and {keys} keys need {values}; use a --chunk-size of at \
             most {fit}"
        )
    };
    for primary in [&postgres, &mariadb, &sqlite] {
        products_of(primary, 3);
    }
    for (primary, size, action, told) in [
        (&mariadb, 65_536, CHANGE, told(65_535, 65_536, 65_536, 65_535)),
        (&mariadb, 40_000, twice, told(65_535, 40_000, 80_000, 32_767)),
        (&sqlite, 32_767, CHANGE, told(32_766, 32_767, 32_767, 32_766)),
        (&sqlite, 20_000, twice, told(32_766, 20_000, 40_000, 16_383)),
    ] {
        for source in ["--table products", "- --table products"] {
            refusals.check(primary, (&format!("{source} --chunk-size {size}"), action), (78, &told));
        }
        assert_eq!(changed(primary), 0, "{primary:?}");
    }
    for (primary, size) in [(&postgres, 100_000), (&mariadb, 65_535), (&sqlite, 32_766)] {
        let (sent, _) = runs(&world, primary, (&format!("--table products --chunk-size {size}"), CHANGE));
        assert_eq!((sent, changed(primary)), (3, 3), "{primary:?}");
    }
}

#[test]
fn decimals_of_mariadb_that_are_not_compared_exactly_are_refused_as_a_key() {
    let world = World::new("long-decimals");
    let refusals = Refusals::new(&world);
    let [_, mariadb, _] = block_on(primaries("refused_decimals"));
    let change = "--sql 'UPDATE sizes SET n = n + 1 WHERE k IN (:keys)'";
    let told = "column k of the query cannot be a key: a DECIMAL of a query is compared exactly only up to 35 digits before the \
                point and 30 behind it; name its --table instead, or another --key";
    let (table, query) = ("--table sizes", "--query 'SELECT k FROM sizes' --key k");
    let counts = || block_on(mariadb.texts("SELECT n FROM sizes ORDER BY k"));
    for kind in ["DECIMAL(38,20)", "DECIMAL(65,30)", "DECIMAL(38,0)", "DECIMAL(40,38)"] {
        block_on(mariadb.execute("DROP TABLE IF EXISTS sizes"));
        block_on(mariadb.execute(&format!("CREATE TABLE sizes (k {kind} PRIMARY KEY, n INTEGER NOT NULL)")));
        block_on(mariadb.execute("INSERT INTO sizes VALUES (1, 0), (2, 0)"));
        for action in ["", change] {
            assert_eq!(runs(&world, &mariadb, (table, action)).0, 2, "{kind}");
        }
        assert_eq!(counts(), ["1", "1"], "{kind}");
    }
    // Of a query the values tell it, and those above have few digits.
    assert_eq!(runs(&world, &mariadb, (query, "")).0, 2);
    block_on(mariadb.execute("INSERT INTO sizes VALUES (0.00000000000000000000000000000000001, 0)"));
    for action in ["", change] {
        refusals.check(&mariadb, (query, action), (78, told));
    }
    assert_eq!(counts(), ["0", "1", "1"]);
    assert_eq!(runs(&world, &mariadb, (table, change)).0, 3);
    assert_eq!(counts(), ["1", "2", "2"]);
}
