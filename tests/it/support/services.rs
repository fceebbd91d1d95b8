//! The servers that tests run against: one set for all, or a set of its own for a test that harms it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use rustix::process::Pid;

use super::Clock;

/// For a Java that ends soon: it starts with two thirds of the work.
const SHORT_LIVED: &str = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC";

/// How Java is started with these jars, `DIR/*`, if it ends soon: with the classes that `scripts/services install` has kept there.
pub fn java(jars: &str) -> String {
    format!("java {SHORT_LIVED} -XX:SharedArchiveFile={}/classes.jsa -cp '{jars}'", jars.trim_end_matches("/*"))
}

/// Running servers, in the folder that `scripts/services` keeps for them.
pub struct Services {
    pub dir: PathBuf,
    variables: HashMap<String, String>,
    is_own: bool,
}

impl Services {
    /// The set that all tests share. Started once, left running: the next run of the tests finds it.
    pub fn shared() -> Arc<Services> {
        static SHARED: OnceLock<Arc<Services>> = OnceLock::new();
        let start = || {
            let dir = std::env::var_os("KSYNC_TEST_SERVICES_DIR")
                .map_or_else(|| project().join("target/services-test"), PathBuf::from);
            Arc::new(Services::up(dir, &["kafka", "zookeeper", "postgres", "mariadb"], false))
        };
        SHARED.get_or_init(start).clone()
    }

    /// The same, and the stores that handlers write to.
    pub fn with_stores() -> Arc<Services> {
        static STORES: OnceLock<Arc<Services>> = OnceLock::new();
        let start = || {
            let dir = Services::shared().dir.clone();
            Arc::new(Services::up(dir, &["opensearch", "redis", "memcached"], false))
        };
        STORES.get_or_init(start).clone()
    }

    /// So many brokers (1 or 3) and one ZooKeeper that end with the value.
    pub fn own(id: &str, brokers: usize) -> Arc<Services> {
        let dir = std::env::temp_dir().join(format!("ksync-services-{id}"));
        Arc::new(Services::up(dir, &["kafka", "zookeeper", "--brokers", &brokers.to_string()], true))
    }

    /// Three ZooKeeper servers that end with the value.
    pub fn ensemble(id: &str) -> Arc<Services> {
        let dir = std::env::temp_dir().join(format!("ksync-services-{id}"));
        Arc::new(Services::up(dir, &["zookeeper", "--zookeepers", "3"], true))
    }

    /// A Postgres that ends with the value.
    pub fn postgres(id: &str) -> Services {
        let dir = std::env::temp_dir().join(format!("ksync-services-{id}"));
        Services::up(dir, &["postgres"], true)
    }

    /// The same, of which each serves for reading only while it finds no others.
    pub fn ensemble_for_readers(id: &str) -> Arc<Services> {
        let dir = std::env::temp_dir().join(format!("ksync-services-{id}"));
        let environment = [("JAVA_TOOL_OPTIONS", &*format!("{SHORT_LIVED} -Dreadonlymode.enabled=true"))];
        Arc::new(Services::up_with(dir, &["zookeeper", "--zookeepers", "3"], true, &environment))
    }

    fn up(dir: PathBuf, servers: &[&str], is_own: bool) -> Services {
        Services::up_with(dir, servers, is_own, &[])
    }

    fn up_with(dir: PathBuf, servers: &[&str], is_own: bool, environment: &[(&str, &str)]) -> Services {
        let mut services = Services { dir, variables: HashMap::new(), is_own };
        services.call_with("up", servers, environment);
        for line in services.call("env", &[]).lines() {
            let (name, value) = line.strip_prefix("export ").unwrap().split_once('=').unwrap();
            services.variables.insert(name.to_owned(), value.trim_matches('\'').to_owned());
        }
        services
    }

    /// Ends one of its own servers; what it has stored stays.
    pub fn stop(&self, server: &str) {
        assert!(self.is_own, "other tests use it, too");
        self.call("down", &[server]);
    }

    /// Starts it again, at its old address.
    pub fn start_again(&self, server: &str) {
        self.call("up", &[server]);
    }

    /// The same, by another clock.
    pub fn start_again_at(&self, server: &str, clock: &Clock) {
        self.call_with("up", &[server], &clock.environment());
    }

    /// The process of one of its own servers, `kafka-1`, to stop and continue.
    pub fn pid(&self, node: &str) -> Pid {
        assert!(self.is_own, "other tests use it, too");
        let status = self.call("status", &[]);
        let line = status.lines().find(|line| line.starts_with(node)).unwrap();
        Pid::from_raw(line.split_whitespace().last().unwrap().parse().unwrap()).unwrap()
    }

    /// A variable of `scripts/services env`.
    pub fn get(&self, name: &str) -> &str {
        let found = self.variables.get(name);
        found.unwrap_or_else(|| panic!("scripts/services env does not tell {name} of {}", self.dir.display()))
    }

    fn call(&self, command: &str, arguments: &[&str]) -> String {
        self.call_with(command, arguments, &[])
    }

    fn call_with(&self, command: &str, arguments: &[&str], environment: &[(&str, &str)]) -> String {
        let mut script = Command::new(project().join("scripts/services"));
        script.arg(command).args(arguments).arg("--dir").arg(&self.dir);
        if self.is_own {
            script.env("JAVA_TOOL_OPTIONS", SHORT_LIVED);
        }
        script.envs(environment.iter().copied());
        let output = script.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "scripts/services {command} failed ({}): {said}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        if self.is_own {
            self.call("down", &["--purge"]);
        }
    }
}

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
