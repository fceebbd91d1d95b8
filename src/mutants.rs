//! Mistakes that are made on purpose, one at a time, where a build has the feature `mutants` and `KSYNC_MUTANT` names it:
//! `scripts/chaos --mutants` has to find each. No release has them: without the feature none can be on, and the compiler
//! drops what they would do.

macro_rules! mutants {
    ($($(#[$about:meta])* $name:ident,)*) => {
        /// Most are of section 4.5 of the project's fault matrix; readers of the checker asked for the others.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mutant {
            $($(#[$about])* $name,)*
        }

        #[cfg(feature = "mutants")]
        const ALL: &[Mutant] = &[$(Mutant::$name),*];
    };
}

mutants! {
    /// A batch is committed before the handler is given it.
    CommitsFirst,
    /// The offset of the last record is committed instead of the next one.
    CommitsLast,
    /// One record too many is committed.
    CommitsPastNext,
    /// Each exit status means done.
    IgnoresStatus,
    /// A handler that a signal has killed is done.
    IgnoresSignal,
    /// An offset is written whoever leads.
    CommitsUnfenced,
    /// A leader works on while ZooKeeper is away.
    WorksOnDisconnected,
    /// An offset that is not in the log is a jump to its end.
    JumpsToLatest,
    /// A message is dropped where the producer's queue is full.
    DropsOnQueueFull,
    /// A message that was not delivered counts as acknowledged.
    IgnoresDeliveryErrors,
    /// ksync-stream ends without waiting for its last messages.
    ExitsUnflushed,
    /// ksync-stream sends no delay messages.
    SendsInstantOnly,
    /// The delayer believes the time in a message, whatever the broker's is.
    BelievesPayload,
    /// A value that is not JSON is passed over in silence.
    SkipsInvalid,
    /// What a handler has started is left alone at its end.
    LeavesGrandchildren,
    /// Payloads go through a JSON tree, whose numbers are doubles.
    ParsesPayload,
    /// Done counts although input is unread.
    AcceptsUnread,
    /// A topic that was made again is read on.
    IgnoresTopicId,
    /// A record goes to any partition, whatever its key.
    IgnoresKey,
    /// No delay message is sent again while an action lasts.
    RenewsNothing,
    /// The batch under way is committed at SIGTERM.
    CommitsAtStop,
    /// A leader begins one record below the stored offset.
    BeginsBefore,
    /// A delayer commits each 20 s.
    CommitsSeldom,
    /// A lease is renewed by commits alone.
    NeverBeats,
}

impl Mutant {
    #[cfg(not(feature = "mutants"))]
    pub const fn is_on(self) -> bool {
        false
    }

    /// Panics where `KSYNC_MUTANT` names none of them.
    #[cfg(feature = "mutants")]
    pub fn is_on(self) -> bool {
        static ON: std::sync::LazyLock<Option<Mutant>> = std::sync::LazyLock::new(|| {
            let name = std::env::var("KSYNC_MUTANT").ok()?;
            Some(ALL.iter().copied().find(|mutant| format!("{mutant:?}") == name).expect("KSYNC_MUTANT names a mutant"))
        });
        *ON == Some(self)
    }
}
