//! An application in one of the languages that ksync has a client for: it changes its products as it is told.

use std::path::Path;
use std::time::Duration;

use super::{Process, World};

/// How long a start may take: frameworks have much to read.
const STARTED: Duration = Duration::from_secs(60);

const PROJECT: &str = env!("CARGO_MANIFEST_DIR");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    Ruby,
    SqlAlchemy,
    Django,
    Node,
    Rust,
}

impl Language {
    pub const ALL: [Language; 5] =
        [Language::Ruby, Language::SqlAlchemy, Language::Django, Language::Node, Language::Rust];

    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

pub struct Application {
    pub language: Language,
    pub process: Process,
}

impl Application {
    /// What it changes.
    pub const TABLE: &str = "CREATE TABLE products (id INTEGER PRIMARY KEY, name VARCHAR(20) NOT NULL DEFAULT 'x', \
                             price INTEGER, updated_at TIMESTAMP NULL)";

    /// Announces to `topic`, by the ksync-stream that serves at `socket`, what it changes in a database.
    pub fn start(world: &World, language: Language, url: &str, topic: &str, socket: &Path) -> Application {
        let this = std::env::current_exe().unwrap().display().to_string();
        let (program, arguments) = match language {
            Language::Ruby => ("ruby", shop("shop.rb")),
            Language::SqlAlchemy => ("python3", shop("sqlalchemy_shop.py")),
            Language::Django => ("python3", shop("django_shop.py")),
            Language::Node => ("node", shop("shop.js")),
            Language::Rust => (this.as_str(), "shop::shop_in_rust --exact --ignored --nocapture".to_owned()),
        };
        let (clients, fetched) = (format!("{PROJECT}/examples"), format!("{PROJECT}/target/servers"));
        let process = world.start(
            program,
            &arguments,
            &[
                ("RUBYLIB", &format!("{clients}/ruby")),
                ("PYTHONPATH", &format!("{clients}/python:{fetched}/python")),
                ("NODE_PATH", &format!("{clients}/node:{fetched}/node/node_modules")),
                ("DATABASE_URL", url),
                ("TOPIC", topic),
                ("KSYNC_SOCKET", &socket.display().to_string()),
                ("KSYNC_ANSWER_TIMEOUT", "30"),
            ],
        );
        Application { language, process }
    }

    pub fn wait_for_start(&self, world: &World) {
        let is_ready = || self.process.log().contains(&"ready".to_owned());
        world.within(STARTED, &format!("{:?} is ready", self.language), is_ready);
    }

    pub fn tell(&mut self, command: &str) {
        self.process.tell(format!("{command}\n"));
    }

    /// Whether it has done what it was told; `None` while it is at it.
    pub fn has_done(&self, command: &str) -> Option<bool> {
        let (did, failed) = (format!("did {command}"), format!("failed {command}: "));
        self.process.log().iter().find_map(|line| match line {
            line if *line == did => Some(true),
            line if line.starts_with(&failed) => Some(false),
            _ => None,
        })
    }

    /// Has it do this, which has to come to that end.
    pub fn does(&mut self, world: &World, command: &str) {
        self.tell(command);
        world.eventually(&format!("{:?}: {command}", self.language), || self.has_done(command).is_some());
        assert_eq!(self.has_done(command), Some(true), "{:?}: {:?}", self.language, self.process.log());
    }
}

fn shop(name: &str) -> String {
    format!("{PROJECT}/tests/applications/{name}")
}
