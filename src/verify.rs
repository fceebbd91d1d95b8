//! Compares the rows of the primary with what a store holds, while both go on changing.
//!
//! What differs at a first look may be on its way. It counts once the delay and a tenth of it are over, in which whatever was
//! announced before has come to the store, if it differs still and the store has not changed it meanwhile.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use anyhow::{Result, anyhow};
use log::info;
use tokio::time::{Instant, sleep_until};

use crate::announce::{Announcer, Changed, Destination};
use crate::database::Limit;
use crate::exit::Exit;
use crate::progress::{Format, Progress};
use crate::shutdown::Shutdown;
use crate::stream::{Throttle, failure};

mod found;
mod primary;
mod store;
mod suspects;
mod version;

use found::{Difference, Found, Line, Verdict, print};
pub use primary::Primary;
use primary::Rows;
pub use store::Store;
use store::parse;
use suspects::{Held, Reading, Suspect, Suspects};
use version::Version;

/// How many keys are looked at together where they are not those of a chunk.
const KEYS: usize = 1000;

/// How often it is looked again, each time a delay later, at what the store changes again and again.
const LOOKS: usize = 3;

/// Before the first look at what was announced, or a quarter of the delay; each next one comes later.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

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
    pub async fn run(mut self, rows: Progress, keys: impl FnOnce() -> Progress, shutdown: &Shutdown) -> Result<Exit> {
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
    async fn compare(
        &mut self,
        rows: Progress,
        keys: impl FnOnce() -> Progress,
        shutdown: &Shutdown,
    ) -> Result<Option<u64>> {
        let (mut found, mut suspects) = (Found::default(), Suspects::new()?);
        let Some(held) = self.all_rows(&mut suspects, rows, shutdown).await? else { return Ok(None) };
        let listed = self.all_keys(&mut suspects, &mut found, keys()).await?;
        if listed == 0 && held > 0 && !self.is_cache {
            return Err(Exit::Person.because(anyhow!(
                "the command printed nothing with --list, although the store holds {held} of the rows; it is to print all keys \
                 that the store holds"
            )));
        }
        let announced = self.look_again(suspects, &mut found, shutdown).await?;
        let left = match (announced, &self.repair) {
            (None, _) => return Ok(None),
            (Some(_), None) => None,
            (Some(announced), Some(_)) => Some(self.see_repaired(announced).await?),
        };
        found.tell(left);
        Ok(Some(left.unwrap_or_else(|| found.differences()) + found.unfit))
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
            count += held.iter().flatten().count();
            suspects.add_all(&rows, &held, self.is_cache)?;
            self.throttle.done(&rows.named);
            progress.add(rows.named.len());
        }
    }

    /// Looks for keys of the store that no row has; how many keys the store has.
    async fn all_keys(&mut self, suspects: &mut Suspects, found: &mut Found, mut progress: Progress) -> Result<usize> {
        let Verify { primary, store, is_cache, .. } = self;
        let (sender, mut pieces) = Store::pieces();
        let mut unfit = Suspects::new()?;
        let looking = async {
            let (mut keys, mut count) = (HashSet::new(), 0);
            loop {
                let piece = primary.database.kept_awake(pieces.recv()).await.map_err(failure)?;
                for told in parse(piece.as_deref().unwrap_or_default()) {
                    keys.insert(told?.0);
                }
                if keys.len() < KEYS && piece.is_some() {
                    continue;
                }
                count += keys.len();
                progress.add(keys.len());
                let (absent, no_keys) = primary.absent(keys.drain().collect()).await?;
                if !absent.is_empty() {
                    let rows = primary.rows(absent).await?;
                    let held = primary.database.kept_awake(store.held(&rows)).await.map_err(failure)??;
                    suspects.add_all(&rows, &held, *is_cache)?;
                }
                for (key, _) in no_keys {
                    unfit.add(Suspect::new(key, None, None))?;
                }
                if piece.is_none() {
                    return Ok(count);
                }
            }
        };
        let (count, ()) = tokio::try_join!(looking, store.list(sender))?;
        progress.finish(0, 0, "what differs is looked at again");
        self.tell_unfit(unfit, found).await?;
        Ok(count)
    }

    /// Tells of keys that can be none of the table. There is no row to wait for.
    async fn tell_unfit(&mut self, keys: Suspects, found: &mut Found) -> Result<()> {
        let mut keys = keys.read()?;
        loop {
            let some = keys.next(Limit { rows: KEYS, ..self.chunk })?;
            if some.is_empty() {
                return Ok(());
            }
            let (_, unfit) = self.primary.absent(some.into_iter().map(|suspect| suspect.key).collect()).await?;
            for (key, why) in unfit {
                found.unfit += 1;
                let (difference, error) = (Difference::Surplus, Some(format!("{why:#}")));
                print(&Line { key: &key, difference, version: None, held: None, error })?;
            }
        }
    }

    /// Looks again at what differed, once all that was announced before has had its time; announces what differs still, and gives
    /// it back. What the store has changed meanwhile gets its time anew. `None` where the end was asked for.
    async fn look_again(
        &mut self,
        mut suspects: Suspects,
        found: &mut Found,
        shutdown: &Shutdown,
    ) -> Result<Option<Suspects>> {
        let mut left = Suspects::new()?;
        for _ in 0..LOOKS {
            if suspects.count() == 0 {
                break;
            }
            let pause = self.delay + self.delay / 10;
            info!("{} keys differ; looking again in {:.0?}", suspects.count(), pause);
            self.pause(pause).await?;
            let (mut looked, mut changing) = (suspects.read()?, Suspects::new()?);
            while let Some(looks) = self.look(&mut looked).await? {
                let mut keys = vec![];
                for Look { key, held, row, verdict } in looks {
                    let suspect = Suspect::new(key, row.as_ref(), held.as_ref());
                    let difference = match verdict {
                        Verdict::Equal => continue,
                        Verdict::Changing => {
                            changing.add(suspect)?;
                            continue;
                        }
                        Verdict::Differs(difference) => difference,
                    };
                    found.count(difference);
                    let (version, held) = (row.as_ref().map(|row| &*row.json), held.as_ref().map(|held| &*held.json));
                    print(&Line { key: &suspect.key, difference, version, held, error: None })?;
                    keys.push(suspect.key.clone());
                    left.add(suspect)?;
                }
                if !self.announce(keys, shutdown).await? {
                    return Ok(None);
                }
            }
            suspects = changing;
        }
        found.changing = suspects.count();
        Ok(Some(left))
    }

    /// Whether it did; false where the end was asked for.
    async fn announce(&mut self, keys: Vec<String>, shutdown: &Shutdown) -> Result<bool> {
        let Some(to) = self.repair.as_ref().filter(|_| !keys.is_empty()) else { return Ok(true) };
        let mut unseen = Progress::new(Format::Nothing, "keys", None);
        let wait = self.throttle.wait(&self.announcer, &mut unseen, shutdown);
        if !self.primary.database.kept_awake(wait).await.map_err(failure)?? {
            return Ok(false);
        }
        let changes = self.primary.changes(keys).await?;
        self.throttle.begin(&changes);
        self.announcer.announce_now(&[Changed { to, changes: &changes }]).await?;
        self.throttle.done(&changes);
        Ok(true)
    }

    /// Waits until what was announced does not differ any more, at most as long as the delay; how many do still.
    async fn see_repaired(&mut self, mut announced: Suspects) -> Result<u64> {
        let until = Instant::now() + self.delay;
        let mut pause = FIRST_PAUSE.min(self.delay / 4);
        while announced.count() > 0 {
            let is_last = Instant::now() + pause >= until;
            self.pause(pause).await?;
            pause = (2 * pause).min(self.delay / 10);
            let (mut left, mut looked) = (Suspects::new()?, announced.read()?);
            while let Some(looks) = self.look(&mut looked).await? {
                for Look { key, held, row, verdict } in looks {
                    match verdict {
                        Verdict::Equal => {}
                        // It follows.
                        Verdict::Changing if is_last => {}
                        // By the look before this one: what stands still, and differs, follows nothing.
                        _ => left.add(Suspect::new(key, row.as_ref(), held.as_ref()))?,
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
    async fn look(&mut self, suspects: &mut Reading) -> Result<Option<Vec<Look>>> {
        let next = suspects.next(Limit { rows: KEYS.min(self.chunk.rows), ..self.chunk })?;
        let suspected: HashMap<_, _> = next.into_iter().map(|suspect| (suspect.key, suspect.held)).collect();
        if suspected.is_empty() {
            return Ok(None);
        }
        let rows = self.primary.rows(suspected.keys().cloned().collect()).await?;
        let held = self.held(&rows).await?;
        let is_cache = self.is_cache;
        let looks = rows.keys().zip(&rows.versions).zip(held).map(|((key, row), held)| {
            let before = suspected.get(key).copied().unwrap_or(Held::Nothing);
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
