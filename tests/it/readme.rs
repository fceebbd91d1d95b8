//! What README.md and docs/ show is true as it is written: their examples run, and do what they say.

use std::fs;
use std::path::Path;

use rustix::process::Signal;

use crate::consume::ids;
use crate::support::{End, Primary, Process, World, block_on, primaries};

mod applications;
mod cron;
mod rights;
mod shown;

const STREAM: &str = env!("CARGO_BIN_EXE_ksync-stream");
pub const PROJECT: &str = env!("CARGO_MANIFEST_DIR");

/// The documents beside README.md, and how many examples of each are to be run.
const DOCUMENTS: [(&str, usize); 6] = [
    ("docs/applications.md", 1),
    ("docs/design.md", 0),
    ("docs/handlers.md", 5),
    ("docs/operations.md", 0),
    ("docs/performance.md", 0),
    ("docs/stream.md", 4),
];

/// A document of the project, by its path there.
pub fn document(name: &str) -> String {
    fs::read_to_string(Path::new(PROJECT).join(name)).unwrap()
}

/// The headings of a document: in which line each stands, of which level it is, what it says.
pub fn headings(text: &str) -> Vec<(usize, usize, &str)> {
    let (mut headings, mut is_block) = (vec![], false);
    for (number, line) in text.lines().enumerate() {
        if line.starts_with("```") {
            is_block = !is_block;
        }
        let level = line.bytes().take_while(|byte| *byte == b'#').count();
        if let Some(title) = line[level..].strip_prefix(' ')
            && level > 0
            && !is_block
        {
            headings.push((number, level, title));
        }
    }
    headings
}

/// What stands under a heading, with the sections of lower levels in it.
fn section(name: &str, title: &str) -> String {
    let text = document(name);
    let headings = headings(&text);
    let at = headings.iter().position(|(.., found)| *found == title);
    let at = at.unwrap_or_else(|| panic!("{name} has no section {title}"));
    let (begin, level, _) = headings[at];
    let next = headings[at + 1..].iter().find(|(_, other, _)| *other <= level);
    let end = next.map_or_else(|| text.lines().count(), |(line, ..)| *line);
    text.lines().skip(begin + 1).take(end - begin - 1).collect::<Vec<_>>().join("\n")
}

/// The blocks that begin with such a mark: "sh run".
fn blocks<'a>(text: &'a str, mark: &str) -> Vec<&'a str> {
    let begin = format!("\n```{mark}\n");
    text.split(begin.as_str()).skip(1).map(|block| block.split_once("\n```").unwrap().0).collect()
}

/// The first block of SQL in a section.
pub fn sql_of(name: &str, title: &str) -> String {
    blocks(&section(name, title), "sql")[0].to_owned()
}

/// The lines of a section that are shown as a program prints them.
fn printed(section: &str) -> Vec<&str> {
    section.lines().filter_map(|line| line.strip_prefix("    ")).collect()
}

/// Our programs before all others.
fn path() -> String {
    format!("{}:{}", Path::new(STREAM).parent().unwrap().display(), std::env::var("PATH").unwrap())
}

fn thousand_products(postgres: &Primary) {
    block_on(postgres.execute("DROP TABLE IF EXISTS products"));
    block_on(postgres.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, name TEXT, price INTEGER)"));
    block_on(postgres.execute("INSERT INTO products SELECT n, 'x', n * 100 FROM generate_series(1, 1000) AS n"));
}

/// Somebody who does what a document shows, in the folder of ksync.
struct Reader {
    world: World,
    postgres: Primary,
}

impl Reader {
    fn of(test: &str) -> Reader {
        let world = World::alone(test);
        let [postgres, ..] = block_on(primaries(test));
        Reader { world, postgres }
    }

    /// Begins an example; what `more` says of its environment counts.
    fn start(&self, example: &str, more: &[(&str, &str)]) -> Process {
        let (path, home) = (path(), self.world.dir.display().to_string());
        let mut environment = vec![("PATH", path.as_str()), ("DATABASE_URL", &self.postgres.url), ("HOME", &home)];
        environment.extend(more);
        let script = self.world.script(&format!("cd {PROJECT}\n{example}"));
        self.world.start(&script, "", &environment)
    }

    fn run(&self, example: &str) -> Process {
        let mut process = self.start(example, &[]);
        assert_eq!(process.wait(), End::Status(0), "{example}");
        process
    }

    /// How many instant messages were ever written, and how many delay messages.
    fn messages(&self) -> (i64, i64) {
        (self.world.kafka.count("products"), self.world.kafka.count("products-delay"))
    }

    /// How many more there are than there were.
    fn messages_since(&self, before: (i64, i64)) -> (i64, i64) {
        let now = self.messages();
        (now.0 - before.0, now.1 - before.1)
    }

    fn text(&self, sql: &str) -> String {
        block_on(self.postgres.texts(sql)).join(", ")
    }
}

/// As a reader who begins at the beginning, in the same order, with the same table.
#[test]
fn the_examples_of_the_readme_change_and_announce_what_they_say() {
    let reader = Reader::of("readme");
    let readme = document("README.md");
    assert_eq!(blocks(&readme, "sh run").len(), 10, "an example is not marked with `sh run`, or is new");

    let first = section("README.md", "First run");
    let [first] = blocks(&first, "sh run")[..] else { panic!("{first}") };
    // The test has servers and programs of its own.
    let own: Vec<_> = first.lines().skip(3).collect();
    assert!(own[0].starts_with("psql "), "{first}");
    let read = reader.run(&own.join("\n"));
    assert!(read.says(&[r#""payload":{"id":1000}}"#]), "{:?}", read.log());
    assert_eq!(reader.world.kafka.count("products"), 1000);
    for example in blocks(&section("README.md", "The three programs"), "sh run") {
        reader.run(example);
    }
    assert_eq!(reader.messages(), (1000 + 100 + 100 + 1, 0));

    for (title, messages, question, answer) in [
        ("Guarded bulk update", (4, 4), "SELECT min(price) || ' of ' || count(*) FROM products", "500 of 1000"),
        ("Re-index from cron", (101, 0), "SELECT min(price) || ' of ' || count(*) FROM products", "500 of 1000"),
        ("Delete many rows", (400, 400), "SELECT max(price) || ' of ' || count(*) FROM products", "60000 of 600"),
        ("A night window", (600, 600), "SELECT DISTINCT name FROM products", "X"),
    ] {
        let before = reader.messages();
        let text = section("README.md", title);
        let [example] = blocks(&text, "sh run")[..] else { panic!("{text}") };
        reader.run(example);
        assert_eq!((reader.messages_since(before), &*reader.text(question)), (messages, answer), "{title}");
    }

    let resume = section("README.md", "Resume after a crash");
    let [by_file, by_table] = blocks(&resume, "sh run")[..] else { panic!("{resume}") };
    goes_on_where_it_was_ended(&reader, by_file);
    let changed = "SELECT count(*)::text FROM products WHERE id > 500 AND price = id * 100 + 100";
    let before = reader.messages();
    for finished in [false, true] {
        let run = reader.run(by_table);
        assert_eq!(run.says(&["says that this job was finished at "]), finished, "{:?}", run.log());
        assert_eq!((reader.messages_since(before), &*reader.text(changed)), ((100, 100), "100"));
    }
}

/// The example's command `wc -l` is still at its first chunk when the end is asked for.
fn goes_on_where_it_was_ended(reader: &Reader, example: &str) {
    let world = &reader.world;
    let (gate, begun, folder) = (world.gate(), world.file("begun"), world.file("bin"));
    let slow = world.script(&format!("cat > /dev/null; echo > {}; await {gate}", begun.display()));
    fs::create_dir(&folder).unwrap();
    fs::rename(slow, folder.join("wc")).unwrap();
    let path = format!("{}:{}", folder.display(), path());
    let options = [("PATH", path.as_str()), ("KSYNC_CHUNK_SIZE", "100"), ("KSYNC_READ_AHEAD", "0")];
    let before = reader.messages();
    let mut run = reader.start(&format!("exec {example}"), &options);
    world.eventually("its first chunk is at work", || begun.exists());
    run.signal(Signal::TERM);
    world.eventually("the end was asked for", || run.says(&["asked to end"]));
    gate.open();
    assert_eq!((run.wait(), reader.messages_since(before)), (End::Status(75), (100, 100)), "{:?}", run.log());
    let next = reader.run(example);
    assert!(next.says(&["info: going on behind key 100: 100 rows were done by 20"]), "{:?}", next.log());
    assert_eq!(reader.messages_since(before), (600, 600));
}

#[test]
fn the_examples_of_the_other_documents_run() {
    let reader = Reader::of("docs");
    let folder = fs::read_dir(Path::new(PROJECT).join("docs")).unwrap();
    let mut there: Vec<_> = folder.map(|entry| format!("docs/{}", entry.unwrap().file_name().display())).collect();
    there.sort();
    assert_eq!(there, DOCUMENTS.map(|(name, _)| name));
    let kafka = &reader.world.kafka;
    kafka.create("products", 4, &[]);
    kafka.create("products-delay", 4, &[("message.timestamp.type", "LogAppendTime")]);
    kafka.produce("products", ids(1..=20));

    for (name, count) in DOCUMENTS {
        thousand_products(&reader.postgres);
        let text = document(name);
        let examples = blocks(&text, "sh run");
        assert_eq!(examples.len(), count, "{name}: an example is not marked with `sh run`, or is new");
        for example in examples {
            reader.run(example);
        }
    }
    // What the last one of them, docs/stream.md, has changed.
    let prices = "SELECT min(price) || ' of ' || count(*) FROM products WHERE id NOT IN (7, 9)";
    let by_lines = "SELECT price FROM products WHERE id IN (7, 9)";
    assert_eq!((&*reader.text(prices), &*reader.text(by_lines)), ("500 of 988", "700, 700"));
    shown::a_plan_and_an_end(&reader);
}
