//! Compares the rows of the primary with what a store holds, while both go on changing.
//!
//! What differs at a first look may be on its way. It counts once the delay and a tenth of it are over, in which whatever was
//! announced before has come to the store, if it differs still and the store has not changed it meanwhile.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Result, anyhow};
use log::{info, warn};
use tokio::time::{Instant, sleep_until};

use crate::announce::{Announcer, Changed, Destination};
use crate::database::Limit;
use crate::exit::Exit;
use crate::progress::Progress;
use crate::shutdown::Shutdown;
use crate::stream::{Throttle, failure};

mod found;
mod primary;
mod store;
mod suspects;
mod version;

use found::{Difference, Found, Line, Verdict};
pub use primary::Primary;
use primary::Rows;
pub use store::Store;
use store::parse;
use suspects::{Held, Suspect, Suspects};
use version::Version;

/// How many keys are looked at together where they are not those of a chunk.
const KEYS: usize = 1000;

/// Between two looks at what was announced, or a quarter of the delay.
const PAUSE: Duration = Duration::from_secs(1);

/// One run of `ksync-stream --verify`.
pub struct Verify {
    pub primary: Primary,
    pub store: Store,
    /// A row that the store does not hold is no difference then.
    pub is_cache: bool,
    pub chunk: Limit,
    /// How long the delayer holds a message back.
    pub delay: Duration,
    pub throttle: Throttle,
    pub announcer: Announcer,
    /// Where differences are announced, if they are to be repaired.
    pub repair: Option<Destination>,
}

impl Verify {
    /// Exits with status 0 if nothing differs in the end, with 1 if something does.
    pub async fn run(mut self, rows: Progress, keys: Progress, shutdown: &Shutdown) -> Result<Exit> {
        let left = tokio::select! {
            biased;
            () = shutdown.requested() => None,
            left = self.compare(rows, keys, shutdown) => left?,
        };
        match left {
            None => {
                info!("asked to end before all was compared");
                Ok(Exit::Again)
            }
            Some(0) => Ok(Exit::Done),
            Some(_) => Ok(Exit::Person),
        }
    }

    /// How many differences are left; `None` where the end was asked for.
    async fn compare(&mut self, rows: Progress, keys: Progress, shutdown: &Shutdown) -> Result<Option<u64>> {
        let (mut found, mut suspects) = (Found::default(), Suspects::new()?);
        let Some(held) = self.all_rows(&mut suspects, rows, shutdown).await? else { return Ok(None) };
        let listed = self.all_keys(&mut suspects, &mut found, keys).await?;
        if listed == 0 && held > 0 {
            return Err(Exit::Person.because(anyhow!(
                "the command printed nothing with --list, although the store holds {held} of the rows; it is to print all keys \
                 that the store holds"
            )));
        }
        let unfit = found.surplus;
        let announced = self.look_again(suspects, &mut found).await?;
        if self.repair.is_none() {
            found.tell(None);
            return Ok(Some(found.differences()));
        }
        let left = unfit + self.see_repaired(announced).await?;
        found.tell(Some(left));
        Ok(Some(left))
    }

    /// Compares each row with what the store holds of it; how many of them it holds. `None` where the end was asked for.
    async fn all_rows(
        &mut self,
        suspects: &mut Suspects,
        mut progress: Progress,
        shutdown: &Shutdown,
    ) -> Result<Option<usize>> {
        let mut count = 0;
        loop {
            let wait = self.throttle.wait(&self.announcer, &mut progress, shutdown);
            if !self.primary.database.kept_awake(wait).await.map_err(failure)?? {
                return Ok(None);
            }
            let Some(rows) = self.primary.next(self.chunk).await? else {
                progress.finish(0, 0, "the keys of the store come next");
                return Ok(Some(count));
            };
            self.throttle.begin(&rows.named);
            let held = self.held(&rows).await?;
            for ((key, row), held) in rows.keys().zip(&rows.versions).zip(&held) {
                count += usize::from(held.is_some());
                if row != held && !(held.is_none() && self.is_cache) {
                    suspects.add(&Suspect { key: key.to_owned(), held: Held::of(held.as_ref()) })?;
                }
            }
            self.throttle.done(&rows.named);
            progress.add(rows.named.len());
        }
    }

    /// Looks for keys of the store that no row has; how many keys the store has.
    async fn all_keys(&mut self, suspects: &mut Suspects, found: &mut Found, mut progress: Progress) -> Result<usize> {
        let Verify { primary, store, .. } = self;
        let (sender, mut pieces) = Store::pieces();
        let looking = async {
            let (mut keys, mut count) = (HashMap::new(), 0);
            loop {
                let piece = primary.database.kept_awake(async { anyhow::Ok(pieces.recv().await) }).await;
                let piece = piece.map_err(failure)??;
                for told in parse(piece.as_deref().unwrap_or_default()) {
                    let (key, version) = told?;
                    let held = version.map_or(Held::Something, |version| Held::of(Some(&version)));
                    keys.insert(key, held);
                }
                if keys.len() < KEYS && piece.is_some() {
                    continue;
                }
                count += keys.len();
                progress.add(keys.len());
                let (absent, unfit) = primary.absent(keys.keys().cloned().collect()).await?;
                for key in absent {
                    let held = keys.get(&key).copied().unwrap_or(Held::Something);
                    suspects.add(&Suspect { key, held })?;
                }
                for (key, why) in unfit {
                    let error = Some(format!("{why:#}"));
                    let difference = Difference::Surplus;
                    found.add(&Line { key: &key, difference, version: None, held: None, error })?;
                }
                keys.clear();
                if piece.is_none() {
                    return Ok(count);
                }
            }
        };
        let (count, ()) = tokio::try_join!(looking, store.list(sender))?;
        progress.finish(0, 0, "what differs is looked at again");
        Ok(count)
    }

    /// Looks again at what differed, once all that was announced before has had its time; announces what differs still, and gives
    /// it back.
    async fn look_again(&mut self, suspects: Suspects, found: &mut Found) -> Result<Suspects> {
        let mut left = Suspects::new()?;
        if suspects.count() == 0 {
            return Ok(left);
        }
        let pause = self.delay + self.delay / 10;
        info!("{} keys differ; looking again in {:.0?}", suspects.count(), pause);
        self.pause(pause).await?;
        let mut suspects = suspects.read()?;
        while let Some(looks) = self.look(&mut suspects).await? {
            let mut keys = vec![];
            for Look { key, held, row, verdict } in looks {
                match verdict {
                    Verdict::Equal => continue,
                    Verdict::Changing => {
                        found.changing += 1;
                        continue;
                    }
                    Verdict::Differs(difference) => {
                        let (version, json) = (row.as_ref(), held.as_ref());
                        let (version, json) = (version.map(|row| &*row.json), json.map(|held| &*held.json));
                        found.add(&Line { key: &key, difference, version, held: json, error: None })?;
                    }
                }
                left.add(&Suspect { key: key.clone(), held: Held::of(held.as_ref()) })?;
                keys.push(key);
            }
            self.announce(keys).await?;
        }
        Ok(left)
    }

    async fn announce(&mut self, keys: Vec<String>) -> Result<()> {
        let Some(to) = &self.repair else { return Ok(()) };
        let changes = self.primary.changes(keys).await?;
        self.announcer.instant_messages(&[Changed { to, changes: &changes }]).await?;
        self.announcer.settled().await
    }

    /// Waits until what was announced does not differ any more, at most as long as the delay; how many do still.
    async fn see_repaired(&mut self, mut announced: Suspects) -> Result<u64> {
        let (until, pause) = (Instant::now() + self.delay, PAUSE.min(self.delay / 4));
        while announced.count() > 0 {
            let is_last = Instant::now() + pause >= until;
            self.pause(pause).await?;
            let (mut left, mut suspects) = (Suspects::new()?, announced.read()?);
            while let Some(looks) = self.look(&mut suspects).await? {
                for Look { key, verdict, held, .. } in looks {
                    // What changes is not at its end yet.
                    if verdict != Verdict::Equal {
                        if is_last {
                            warn!(
                                "key {key} differs still, {} after it was announced",
                                humantime::format_duration(self.delay)
                            );
                        }
                        left.add(&Suspect { key, held: Held::of(held.as_ref()) })?;
                    }
                }
            }
            announced = left;
            if is_last {
                break;
            }
        }
        Ok(announced.count())
    }

    /// Looks at the next of the suspects; `None` behind the last.
    async fn look(&mut self, suspects: &mut impl Iterator<Item = Result<Suspect>>) -> Result<Option<Vec<Look>>> {
        let mut before = HashMap::new();
        for suspect in suspects.take(KEYS) {
            let Suspect { key, held } = suspect?;
            before.insert(key, held);
        }
        if before.is_empty() {
            return Ok(None);
        }
        let rows = self.primary.rows(before.keys().cloned().collect()).await?;
        let held = self.held(&rows).await?;
        let is_cache = self.is_cache;
        let looks = rows.keys().zip(&rows.versions).zip(held).map(|((key, row), held)| {
            let before = before.get(key).copied().unwrap_or(Held::Something);
            let verdict = Verdict::of(before, held.as_ref(), row.as_ref(), is_cache);
            Look { key: key.to_owned(), held, row: row.clone(), verdict }
        });
        Ok(Some(looks.collect()))
    }

    /// What the store holds of the rows, which were read before.
    async fn held(&mut self, rows: &Rows) -> Result<Vec<Option<Version>>> {
        let asking = self.store.held(rows);
        self.primary.database.kept_awake(asking).await.map_err(failure)?
    }

    async fn pause(&mut self, pause: Duration) -> Result<()> {
        let over = sleep_until(Instant::now() + pause);
        self.primary.database.kept_awake(over).await.map_err(failure)
    }
}

/// A key that was looked at again.
struct Look {
    key: String,
    held: Option<Version>,
    row: Option<Version>,
    verdict: Verdict,
}
