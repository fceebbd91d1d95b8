//! What the tools that lead partitions share.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Result, anyhow};
use clap::Args;
use tokio::sync::{OnceCell, watch};

use super::{KafkaOptions, duration, size, time};
use crate::dead_letter::DeadLetters;
use crate::election::{Election, Servers, ZooKeeper};
use crate::exit::Exit;
use crate::fit::AcceptLoss;
use crate::intake::OnInvalid;
use crate::kafka::{Admin, Cluster, Mirror, Pair, Reader, Writer, group};
use crate::lead::{Board, Bounded, FirstStart, Leading, Lookout};
use crate::topic::{Name, Topic};

/// After this time a record that could not be delivered is given to the producer anew.
const DELIVERY: Duration = Duration::from_secs(120);

/// What librdkafka holds of a partition that has much to be read, in bytes: a large batch of a producer's, the answer that
/// it came in, and what each of its records takes besides.
const SLOT: usize = 5 << 19;

/// Options of a process that leads partitions.
#[derive(Args, Clone, Debug)]
pub struct LeaderOptions {
    /// ZooKeeper servers; a path after them keeps installations apart
    #[arg(
        long,
        env = "KSYNC_ZOOKEEPER",
        value_name = "HOST:PORT,..[/CHROOT]",
        required = true,
        help_heading = "ZooKeeper"
    )]
    pub zookeeper: Option<Servers>,

    /// How long ZooKeeper waits for a process that does not answer before another one may lead
    #[arg(
        long, env = "KSYNC_SESSION_TIMEOUT", value_name = "DURATION", default_value = "10s", value_parser = duration,
        help_heading = "ZooKeeper"
    )]
    pub session_timeout: Duration,

    /// Hands no partition over to a process of the same name that leads fewer
    #[arg(long, env = "KSYNC_NO_SPREAD", help_heading = "ZooKeeper")]
    pub no_spread: bool,

    /// How long a commit may wait for those that follow it; a crash repeats what was done in that time
    #[arg(
        long, env = "KSYNC_COMMIT_INTERVAL", value_name = "DURATION", default_value = "0s", value_parser = duration,
        help_heading = "ZooKeeper"
    )]
    pub commit_interval: Duration,

    /// Where to begin where nothing is stored: earliest, latest or @TIME [default: earliest]
    #[arg(long, env = "KSYNC_FIRST_START", value_name = "WHERE", value_parser = first_start)]
    pub first_start: Option<FirstStart>,

    /// Goes on past this loss, and no other; the option as an error has printed it
    #[arg(long, env = "KSYNC_ACCEPT_LOSS", value_name = "LOSS")]
    pub accept_loss: Vec<AcceptLoss>,

    /// Where records go that cannot be worked on [default: TOPIC-NAME-dead]
    #[arg(
        long, env = "KSYNC_DEAD_LETTER", value_name = "TOPIC", num_args = 0..=1, require_equals = true,
        default_missing_value = ""
    )]
    pub dead_letter: Option<String>,

    /// Group that shows the offsets to Kafka's own tools, or off [default: ksync.NAME]
    #[arg(long, env = "KSYNC_MIRROR_GROUP", value_name = "GROUP")]
    pub mirror_group: Option<String>,

    /// How long an end may take that was asked for by a signal
    #[arg(long, env = "KSYNC_GRACE", value_name = "DURATION", default_value = "25s", value_parser = duration)]
    pub grace: Duration,

    /// Memory for the records of all batches
    #[arg(long, env = "KSYNC_MEMORY", value_name = "SIZE", default_value = "64MiB", value_parser = size)]
    pub memory: usize,
}

fn first_start(text: &str) -> Result<FirstStart> {
    match (text, text.strip_prefix('@')) {
        ("earliest", _) => Ok(FirstStart::Earliest),
        ("latest", _) => Ok(FirstStart::Latest),
        (_, Some(at)) => Ok(FirstStart::At(time(at)?)),
        _ => Err(anyhow!("it is written earliest, latest or @TIME, for example @2026-11-22T03:00Z")),
    }
}

impl LeaderOptions {
    /// Waits until a broker answers, checks that the topics are there, and makes what the partitions are led with.
    ///
    /// `read` are the topics to be read.
    pub async fn leading(
        &self,
        (cluster, kafka): (&Cluster, &KafkaOptions),
        read: &[Topic],
        name: &Name,
        bounded: Option<Bounded>,
    ) -> Result<Leading> {
        let admin = Admin::new(cluster)?;
        let mut topics = BTreeMap::new();
        for topic in read {
            let count = admin.need(topic, kafka.create_topics, kafka.patience(bounded.is_some())).await?;
            topics.insert(topic.clone(), kafka.chosen(topic, count)?);
        }
        let partitions = topics.values().map(BTreeSet::len).sum();
        let zookeeper = self.zookeeper.as_ref().expect("it is required of all that lead");
        let group = group(name)?;
        let mirror = match self.mirror_group.as_deref() {
            Some("off") => None,
            named => Some(Mirror::open(cluster, named.unwrap_or(&group))?),
        };
        Ok(Leading {
            reader: Reader::open(cluster, &admin, &group, partitions, self.ahead(name))?,
            mirror,
            admin,
            election: Election::ZooKeeper(ZooKeeper::connect(zookeeper, self.session_timeout)),
            claimed: OnceCell::new(),
            name: name.clone(),
            topics,
            grows: kafka.partition.is_empty() && bounded.is_none(),
            first_start: self.first_start,
            accept_loss: self.accept_loss.clone(),
            bounded,
            spread: (!self.no_spread).then_some(self.session_timeout),
            handed: watch::Sender::default(),
            commit_interval: self.commit_interval,
            board: Board::default(),
            lookout: None,
        })
    }

    /// How many partitions may be read ahead at once: half of the memory is for what librdkafka holds. A delayer keeps its
    /// own messages until they are due, and must not wait for others then.
    fn ahead(&self, name: &Name) -> usize {
        match *name == Name::delayer() {
            true => usize::MAX,
            false => (self.memory / 2 / SLOT).max(2),
        }
    }

    /// What ksync-consume leads its topics with, and where it puts bad records.
    pub async fn start_consumer(
        &self,
        kafka: &KafkaOptions,
        (name, bounded): (&Name, Option<Bounded>),
        on_invalid: OnInvalid,
    ) -> Result<(Leading, Option<DeadLetters>)> {
        let cluster = kafka.cluster()?;
        let mut leading = self.leading((&cluster, kafka), &kafka.topic, name, bounded).await?;
        let pairs = kafka.topic.iter().map(|topic| Pair { topic: topic.clone(), delay: None });
        let check = kafka.check.start(&leading.admin, pairs).await?;
        if bounded.is_none() {
            leading.lookout = Some(Lookout::new(check, &cluster)?);
        }
        let writer = self.writer(&cluster)?;
        let origins = kafka.topic.iter().map(|topic| (topic.clone(), topic.clone())).collect();
        let dead_letters = self.dead_letters(&writer, (&leading, kafka), &origins, on_invalid).await?;
        Ok((leading, dead_letters))
    }

    pub fn writer(&self, cluster: &Cluster) -> Result<Writer> {
        Writer::open(cluster, DELIVERY)
    }

    /// Where bad records go, if they shall; fails where such a topic does not exist. `origins` gives for each topic
    /// that is read the one that the default name is made of.
    pub async fn dead_letters(
        &self,
        writer: &Writer,
        (leading, kafka): (&Leading, &KafkaOptions),
        origins: &BTreeMap<Topic, Topic>,
        on_invalid: OnInvalid,
    ) -> Result<Option<DeadLetters>> {
        if self.dead_letter.is_none() && on_invalid != OnInvalid::DeadLetter {
            return Ok(None);
        }
        let mut topics = BTreeMap::new();
        for (read, origin) in origins {
            let topic = self.dead_letter_topic(origin, &leading.name)?;
            let patience = kafka.patience(leading.bounded.is_some());
            leading.admin.need(&topic, kafka.create_topics, patience).await?;
            topics.insert(read.clone(), topic);
        }
        Ok(Some(DeadLetters { writer: writer.clone(), topics, name: leading.name.clone() }))
    }

    /// Where the records of `origin` go that `name` cannot work on, if they go anywhere.
    pub fn dead_letter_topic(&self, origin: &Topic, name: &Name) -> Result<Topic> {
        match self.dead_letter.as_deref() {
            None | Some("") => origin.dead_letter(name),
            Some(named) => named.parse().map_err(|error| Exit::Usage.because(error)),
        }
    }
}
