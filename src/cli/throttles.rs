//! What slows ksync-stream down, and who may steer it while it is at work.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;

use super::{SourceOptions, duration};
use crate::database::{Dialect, Question};
use crate::election::{Election, Servers, ZooKeeper};
use crate::exit::Exit;
use crate::kafka::{Cluster, Ends};
use crate::shutdown::Trigger;
use crate::stream::{Console, Control, Gauge, Lag, Limits, Query, Rate, Throttle};
use crate::topic::{Name, Topic};

/// How far behind consumers may be where no option says so.
const LAG: u64 = 100_000;
/// Nothing is held by this session.
const SESSION: Duration = Duration::from_secs(10);

/// What holds the next chunk up.
#[derive(Args, Clone, Debug)]
pub struct ThrottleOptions {
    /// How many rows are announced in a second at most
    #[arg(long, env = "KSYNC_RATE", value_name = "N/s", default_value = "off", help_heading = "Throttles")]
    pub rate: Rate,

    /// Pause between two chunks
    #[arg(long, env = "KSYNC_PAUSE", value_name = "DURATION", default_value = "0s", value_parser = duration,
          help_heading = "Throttles")]
    pub pause: Duration,

    /// Waits while consumers of the topic are more than so many records behind, by --zookeeper; off: however many. Without NAME:
    /// those at work [default: 100000]
    #[arg(long, env = "KSYNC_MAX_LAG", value_name = "[NAME=]N", value_delimiter = ',', help_heading = "Throttles")]
    pub max_lag: Vec<MaxLag>,

    /// Waits while the first column of the query's first row is above 0; asked once a second
    #[arg(long, env = "KSYNC_THROTTLE_QUERY", value_name = "SQL", help_heading = "Throttles")]
    pub throttle_query: Option<String>,

    /// Database to ask [default: that of the rows]
    #[arg(
        long,
        env = "KSYNC_THROTTLE_DATABASE",
        hide_env_values = true,
        value_name = "URL",
        requires = "throttle_query",
        help_heading = "Throttles"
    )]
    pub throttle_database: Option<String>,

    /// Unix socket that takes status, pause, resume, rate N, stop and help, a line each
    #[arg(long, env = "KSYNC_CONTROL", value_name = "unix:PATH", value_parser = socket, help_heading = "Throttles")]
    pub control: Option<PathBuf>,
}

/// A limit for a name, or for all that are at work; `None` is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaxLag {
    name: Option<Name>,
    limit: Option<u64>,
}

impl FromStr for MaxLag {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<MaxLag> {
        let (name, limit) = match text.split_once('=') {
            Some((name, limit)) => (Some(name.parse::<Name>()?), limit),
            None => (None, text),
        };
        if name == Some(Name::delayer()) {
            bail!("the delayer is always as far behind as its --delay has it; limit those that read what it sends on");
        }
        let limit = match limit {
            "off" => None,
            limit => {
                let wrong = || format!("'{}' is not [NAME=]N, for example indexer=100000, or off", text.escape_debug());
                Some(limit.parse().with_context(wrong)?)
            }
        };
        Ok(MaxLag { name, limit })
    }
}

fn socket(text: &str) -> Result<PathBuf> {
    let path = text.strip_prefix("unix:").unwrap_or_default();
    ensure!(!path.is_empty() && !path.ends_with('/'), "a control socket is written as unix:PATH");
    Ok(path.into())
}

impl ThrottleOptions {
    /// Seen without opening anything.
    pub fn check(&self, source: &SourceOptions, zookeeper: Option<&Servers>) -> Result<()> {
        let (_, is_asked_for) = self.limits();
        if is_asked_for && zookeeper.is_none() {
            return Err(usage(anyhow!("--max-lag can see consumers only by --zookeeper")));
        }
        self.query(source).map(drop)
    }

    /// Where people steer the run, which `stop` ends; with the socket, if there is to be one.
    pub async fn console(&self, stop: Trigger, is_dry: bool) -> Result<(Console, Option<Control>)> {
        let console = Console::new(self.rate, stop);
        let Some(path) = self.control.as_ref().filter(|_| !is_dry) else { return Ok((console, None)) };
        let control = Control::listen(path, console.clone()).await.context("--control");
        let control = control.map_err(|error| match Exit::of(&error) {
            Exit::Busy => error,
            _ => Exit::Misconfigured.because(error),
        });
        Ok((console, Some(control?)))
    }

    /// Has looked for the first time at all that may hold the run up.
    pub async fn open(
        &self,
        console: Console,
        (topic, cluster): (&Topic, &Cluster),
        source: &SourceOptions,
        zookeeper: Option<&Servers>,
    ) -> Result<Throttle> {
        let mut gauges = vec![];
        let (limits, is_asked_for) = self.limits();
        if let Some(servers) = zookeeper.filter(|_| !limits.are_none()) {
            let election = Election::ZooKeeper(ZooKeeper::connect(servers, SESSION));
            let lag = Lag { topic: topic.clone(), limits, election, ends: Ends::open(cluster)? };
            gauges.push(Gauge::lag(lag, is_asked_for).await?);
        }
        if let Some(query) = self.query(source)? {
            gauges.push(Gauge::query(query).await?);
        }
        Ok(Throttle::new(console, self.pause, gauges, self.control.is_some()))
    }

    /// How far behind consumers may be, and whether any of it was asked for.
    fn limits(&self) -> (Limits, bool) {
        let mut limits = Limits { live: Some(LAG), named: BTreeMap::new() };
        for MaxLag { name, limit } in &self.max_lag {
            match name {
                Some(name) => drop(limits.named.insert(name.clone(), *limit)),
                None => limits.live = *limit,
            }
        }
        (limits, self.max_lag.iter().any(|max_lag| max_lag.limit.is_some()))
    }

    fn query(&self, source: &SourceOptions) -> Result<Option<Query>> {
        let Some(sql) = &self.throttle_query else { return Ok(None) };
        let url = match &self.throttle_database {
            Some(url) => url.clone(),
            None => source.url()?,
        };
        let dialect = Dialect::of(&url).map_err(usage)?;
        let question = Question::parse(sql, dialect).context("cannot use --throttle-query").map_err(usage)?;
        Ok(Some(Query::new(url, question)))
    }
}

fn usage(error: anyhow::Error) -> anyhow::Error {
    Exit::Usage.because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_for_a_name_or_for_all() {
        let limit = |name: Option<&str>, limit| MaxLag { name: name.map(|name| name.parse().unwrap()), limit };
        assert_eq!("5000".parse::<MaxLag>().unwrap(), limit(None, Some(5000)));
        assert_eq!("indexer=0".parse::<MaxLag>().unwrap(), limit(Some("indexer"), Some(0)));
        assert_eq!("indexer=off".parse::<MaxLag>().unwrap(), limit(Some("indexer"), None));
        assert_eq!("off".parse::<MaxLag>().unwrap(), limit(None, None));
        for wrong in ["", "indexer", "indexer=", "=5", "a/b=5", "-1", "5k"] {
            assert!(wrong.parse::<MaxLag>().is_err(), "{wrong}");
        }
        assert!(
            "delayer=5".parse::<MaxLag>().unwrap_err().to_string().starts_with("the delayer is always as far behind")
        );
    }

    #[test]
    fn a_socket_is_written_with_its_kind() {
        assert_eq!(socket("unix:/run/x").unwrap(), PathBuf::from("/run/x"));
        for wrong in ["/run/x", "unix:", "tcp:1", "unix:/run/"] {
            assert_eq!(socket(wrong).unwrap_err().to_string(), "a control socket is written as unix:PATH", "{wrong}");
        }
    }
}
