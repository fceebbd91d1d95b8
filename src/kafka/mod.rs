//! Kafka as ksync uses it: which cluster, read by [`Reader`], written by [`Writer`], looked at by [`Admin`].

mod admin;
mod aside;
mod check;
mod ends;
mod ids;
mod lane;
mod lost;
mod message;
mod mirror;
mod partition;
mod reader;
mod settings;
mod slots;
mod writer;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use log::{Level, log, warn};
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use aside::Aside;

pub use admin::{Admin, NewTopics};
pub use check::{Check, Hazard, Pair};
pub use ends::Ends;
pub use ids::TopicIds;
pub use lane::{Lane, Undelivered};
pub use message::{Message, Timestamp};
pub use mirror::Mirror;
pub use partition::{Event, Partition};
pub use reader::{Found, Log, Reader, group};
pub use writer::{Headers, Outgoing, Plain, Writer};

use crate::exit::Exit;

/// How to reach a cluster: what each client of ours is made with.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// `HOST:PORT,..`
    pub bootstrap: String,
    pub properties: Vec<Property>,
}

/// How many bytes of records are written at once, where a topic takes so many: its own default is a bit more.
const BATCH: i64 = 1_000_000;

/// Starts a thread that nobody waits for. Fails with status 75 where the machine allows none.
fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    started
        .map(drop)
        .map_err(|error| Exit::Again.because(anyhow!(error).context(format!("cannot start thread {name}"))))
}

/// What librdkafka says where it cannot make a client for want of a thread (rdkafka.c).
const NO_THREAD: &str = "Failed to create thread";

impl Cluster {
    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.bootstrap)
            .set("client.id", "ksync")
            .set("socket.keepalive.enable", "true")
            .set("topic.metadata.refresh.interval.ms", "30000")
            // The default of 10 s holds up the recovery from a broker's restart.
            .set("reconnect.backoff.max.ms", "1000")
            .set("allow.auto.create.topics", "false");
        for Property { name, value } in &self.properties {
            config.set(name, value);
        }
        config.set_log_level(RDKafkaLogLevel::Info);
        config
    }

    /// Makes a client of librdkafka, which connects later, and looks after it. If that fails it is the user's fault: the properties
    /// do not fit together; or the machine allows no more threads, which it may the next time.
    fn client<C, T>(&self, config: &ClientConfig, context: C) -> Result<Aside<T>>
    where
        C: ClientContext,
        T: FromClientConfigAndContext<C> + lost::Client + 'static,
    {
        self.client_anew(config, context).map_err(|error| {
            let exit = match &error {
                KafkaError::ClientCreation(why) if why.starts_with(NO_THREAD) => Exit::Again,
                _ => Exit::Misconfigured,
            };
            exit.because(anyhow!(error).context(format!("cannot make a client for {self}")))
        })
    }

    /// Makes another one in the place of one that [`Cluster::client`] has made: the properties fit together.
    fn client_anew<C, T>(&self, config: &ClientConfig, context: C) -> Result<Aside<T>, KafkaError>
    where
        C: ClientContext,
        T: FromClientConfigAndContext<C> + lost::Client + 'static,
    {
        let client = Aside::from(Arc::<T>::new(config.create_with_context(context)?));
        let looked_after = lost::look_after(&client, &self.bootstrap);
        looked_after.map_err(|error| KafkaError::ClientCreation(format!("{NO_THREAD}: {error:#}")))?;
        Ok(client)
    }

    /// This cluster, with records written in batches of at most so many bytes, unless the user says otherwise: brokers refuse a
    /// larger one as a whole, though they would take each of its records.
    pub fn with_batches_of(mut self, bytes: i64) -> Cluster {
        // The user's come later, and count.
        self.properties.insert(0, Property { name: "batch.size".into(), value: bytes.clamp(1, BATCH).to_string() });
        self
    }

    /// The same for a writer of many messages at once that waits for them, unless the user says otherwise: after a millisecond all
    /// of them are queued. At once they would go in many small batches, which cost brokers twice as much.
    pub fn with_short_linger(mut self) -> Cluster {
        self.properties.insert(0, Property { name: "linger.ms".into(), value: "1".into() });
        self
    }

    /// For a client whose trouble is the process's trouble.
    fn log(&self) -> ClientLog {
        ClientLog { bootstrap: self.bootstrap.clone(), started: Instant::now(), quiet_until_ms: Default::default() }
    }

    /// For a client whose user tells of its trouble, or that nobody waits for.
    fn quiet_log(&self) -> ClientLog {
        ClientLog { quiet_until_ms: [const { AtomicU64::new(u64::MAX) }; 2], ..self.log() }
    }
}

impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kafka at {}", self.bootstrap)
    }
}

/// A property of librdkafka that the user gives, `name=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Property {
    pub name: String,
    pub value: String,
}

/// Properties with which a promise would not hold, or that run code; with the reason.
const REFUSED: [(&str, &str); 18] = [
    ("acks", "a message counts when all replicas have it"),
    ("request.required.acks", "a message counts when all replicas have it"),
    ("enable.idempotence", "a retried message must not be written twice or out of order"),
    ("max.in.flight", "more requests in flight would change the order"),
    ("max.in.flight.requests.per.connection", "more requests in flight would change the order"),
    ("retries", "fewer retries would fail messages that can be delivered"),
    ("message.send.max.retries", "fewer retries would fail messages that can be delivered"),
    ("transactional.id", "ksync uses no transactions"),
    ("auto.offset.reset", "a lost offset must be an error, not a jump"),
    ("enable.auto.commit", "an offset is committed after its batch only"),
    ("enable.auto.offset.store", "an offset is committed after its batch only"),
    ("isolation.level", "records of aborted transactions must not be read"),
    ("group.id", "ksync sets it itself"),
    ("bootstrap.servers", "use --bootstrap-server"),
    ("plugin.library.paths", "it loads code"),
    ("sasl.kerberos.kinit.cmd", "it runs a command"),
    ("enable.ssl.certificate.verification", "without it anybody can stand in for a broker"),
    ("ssl.endpoint.identification.algorithm", "without it anybody with any certificate can stand in for a broker"),
];

impl FromStr for Property {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Property> {
        let (name, value) = text.split_once('=').context("a property is written name=value")?;
        let (name, value) = (name.trim().to_owned(), value.trim().to_owned());
        // Many files have this one, which is the default.
        let is_default = (name.as_str(), value.as_str()) == ("ssl.endpoint.identification.algorithm", "https");
        if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| *refused == name && !is_default) {
            bail!("the property {name} cannot be set: {why}");
        }
        ensure!(!name.is_empty(), "a property is written name=value");
        Ok(Property { name, value })
    }
}

impl Property {
    /// Whether the value is one that must not stand where `ps` shows it.
    pub fn is_secret(&self) -> bool {
        self.name.contains("password") || self.name.contains("secret") || self.name == "ssl.key.pem"
    }
}

/// Puts what librdkafka has to say into our log: its own lines at `debug`, that it cannot reach a broker, or must not, at `warn`.
#[derive(Debug)]
struct ClientLog {
    bootstrap: String,
    started: Instant,
    /// That no broker answers, or that one refuses us.
    quiet_until_ms: [AtomicU64; 2],
}

impl ClientLog {
    /// How long one cause stays quiet after its line: the log of a day without Kafka is to be readable.
    const QUIET: Duration = Duration::from_secs(60);
}

impl ClientContext for ClientLog {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        let is_grave = matches!(level, RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical);
        let level = if is_grave { Level::Warn } else { Level::Debug };
        log!(target: "librdkafka", level, "{facility}: {message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let [down, refused] = &self.quiet_until_ms;
        let (why, quiet_until_ms) = match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AllBrokersDown) => ("no broker answers", down),
            Some(RDKafkaErrorCode::SSL | RDKafkaErrorCode::Authentication) => (reason, refused),
            _ => return log::trace!(target: "librdkafka", "{error}: {reason}"),
        };
        let now = self.started.elapsed().as_millis() as u64;
        if now >= quiet_until_ms.load(Ordering::Relaxed) {
            quiet_until_ms.store(now + Self::QUIET.as_millis() as u64, Ordering::Relaxed);
            warn!("cannot reach Kafka at {}: {why}; trying again", self.bootstrap);
        }
    }
}

/// Whether the error goes away by itself, so that the same call may work later.
fn is_transient(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::*;
    let code = match error {
        // rdkafka has a code in it, and gives none.
        KafkaError::AdminOp(code) => Some(*code),
        error => error.rdkafka_error_code(),
    };
    matches!(
        code,
        Some(
            AllBrokersDown
                | BrokerTransportFailure
                | BrokerNotAvailable
                | CoordinatorLoadInProgress
                | CoordinatorNotAvailable
                | LeaderNotAvailable
                | MessageTimedOut
                | NetworkException
                | NotCoordinator
                | NotEnoughReplicas
                | NotEnoughReplicasAfterAppend
                | NotLeaderForPartition
                | OperationTimedOut
                | QueueFull
                | ReplicaNotAvailable
                | RequestTimedOut
                | Resolve
                | TimedOutQueue
                | PreferredLeaderNotAvailable
                | KafkaStorageError
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_property_that_undoes_a_promise_is_refused() {
        let refused = "auto.offset.reset=latest".parse::<Property>().unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the property auto.offset.reset cannot be set: a lost offset must be an error, not a jump"
        );
        let property: Property = "sasl.password = a=b".parse().unwrap();
        assert_eq!(property, Property { name: "sasl.password".into(), value: "a=b".into() });
        assert!(property.is_secret());
        assert!("acks".parse::<Property>().is_err());
    }

    #[test]
    fn an_answer_that_did_not_come_is_asked_for_again_whatever_was_asked() {
        let code = RDKafkaErrorCode::OperationTimedOut;
        assert!(is_transient(&KafkaError::AdminOp(code)) && is_transient(&KafkaError::MetadataFetch(code)));
        assert!(!is_transient(&KafkaError::AdminOp(RDKafkaErrorCode::ClusterAuthorizationFailed)));
    }
}
