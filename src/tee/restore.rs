//! Puts sessions back that the authority has lost: from the other Redis, byte for byte, else from the database's rows.
//!
//! A Redis that was restarted may have lost what the other stores still have, and Django takes the nil that it would
//! answer for a logout. So from the moment a connection to the authority breaks it is *doubted*: who reads a session
//! then waits until it is known whether the server is still the same process, and, where it is not, until that session
//! has been put back. Meanwhile all others are put back, too, and then it is trusted again.
//!
//! A logout must not be undone by this. What has reached the other stores is gone there; what is on its way is pending
//! here; and what is deleted while sessions are put back leaves a tombstone, looked at before a session is put back and
//! once more after it.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::delivery::Stores;
use super::rows::{FromRow, Rows};
use super::tombstones::{Keeper, Tombstones};
use super::trust::{Trust, Verdict};
use super::{Origin, Tee};
use crate::clock::now_ms;
use crate::session::Effect;
use crate::sink::{NewKey, StoreError, Stored};
use crate::status::Restored;

/// Sessions that are put back at once.
pub const BATCH: usize = 500;

/// Who reads a session waits at most this long for it: an answer must leave before Django's client gives up.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Puts sessions back, one by one as they are asked for, or batch by batch.
pub struct Restore {
    pub trust: Trust,
    tombstones: Tombstones,
    tee: Arc<Tee>,
    stores: Stores,
    rows: Option<Arc<Rows>>,
    /// The stores belong to this runtime: no worker waits for them.
    control: Handle,
    restored: AtomicU64,
    resurrected: AtomicU64,
}

/// What the other stores have of sessions that the authority lacks.
struct Found {
    sessions: Vec<NewKey>,
    /// The keys of those that come from rows.
    from_rows: HashSet<Bytes>,
    /// Why the other Redis could not be asked for some that are nowhere else.
    unread: Option<StoreError>,
}

impl std::fmt::Debug for Restore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Restore({:?})", self.trust)
    }
}

impl Restore {
    /// To be made on the runtime that the deliveries run on.
    pub fn new(tee: Arc<Tee>, stores: Stores, rows: Option<Arc<Rows>>) -> Restore {
        Restore {
            trust: Trust::default(),
            tombstones: Tombstones::default(),
            tee,
            stores,
            rows,
            control: Handle::current(),
            restored: AtomicU64::new(0),
            resurrected: AtomicU64::new(0),
        }
    }

    /// Sessions that were put back.
    pub fn restored(&self) -> u64 {
        self.restored.load(Relaxed)
    }

    /// Sessions that were logged out while they were put back, and that could not be deleted again.
    pub fn resurrected(&self) -> u64 {
        self.resurrected.load(Relaxed)
    }

    /// A connection to the authority broke.
    pub fn doubt(&self) {
        // Before it is doubted: who is told of it may put sessions back at once.
        self.tombstones.retain();
        if !self.trust.doubt() {
            self.tombstones.release();
        }
    }

    /// After so many doubts it was found to be the process that it was, or all has been put back.
    pub fn settle(&self, doubts: u64) {
        if self.trust.settle(doubts) {
            self.tombstones.release();
        }
    }

    /// Whether a session must not be read yet.
    #[inline]
    pub fn guards(&self) -> bool {
        self.trust.guards()
    }

    /// From here on what is deleted is remembered.
    pub fn remember(&self) -> Keeper<'_> {
        self.tombstones.keep()
    }

    /// A command that deletes `key` is about to be sent.
    #[inline]
    pub fn note_delete(&self, key: &Bytes) {
        self.tombstones.note(key);
    }

    /// Answers when `keys` may be read: what the authority has lost of them is back, as far as it can be had in time.
    pub async fn clear(self: &Arc<Self>, keys: Vec<Bytes>) {
        let (restore, asked) = (self.clone(), keys.clone());
        let work = self.control.spawn(async move {
            let (verdict, doubts) = restore.trust.verdict().await;
            if verdict == Verdict::Restarted
                && let Err(error) = restore.put_back(&keys).await
            {
                // Whoever puts everything back says so, once.
                tracing::debug!(%error, "sessions that are asked for cannot be put back into the authority");
            }
            doubts
        });
        // It goes on by itself where nobody waits for it any more.
        let doubts = timeout(PATIENCE, work).await;
        self.trust.clear(asked, doubts.ok().and_then(Result::ok));
    }

    /// Puts back what the authority lacks of `keys`, which may not come twice.
    ///
    /// # Errors
    /// The authority cannot be asked, or takes nothing; or it lacks what the other Redis, which cannot be read, may have.
    pub async fn put_back(&self, keys: &[Bytes]) -> Result<Restored, String> {
        let (outcome, unread) = self.put_back_what_can_be_read(keys).await?;
        match unread {
            Some(error) => Err(format!("the other Redis cannot be read: {error}")),
            None => Ok(outcome),
        }
    }

    /// Besides, answers why the other Redis could not be read, where it may have what nothing else has.
    async fn put_back_what_can_be_read(&self, keys: &[Bytes]) -> Result<(Restored, Option<StoreError>), String> {
        let mut outcome = Restored::default();
        let _remembering = self.remember();
        if self.tombstones.is_full() || self.tee.pending_wipe().is_some() {
            outcome.skipped = keys.len() as u64;
            return Ok((outcome, None));
        }
        let authority = self.stores.authority();
        let store = self.stores.of(authority);
        let text = |error: StoreError| format!("the {authority}: {error}");
        let exist = store.exists(keys).await.map_err(text)?;
        let lacking: Vec<Bytes> = keys
            .iter()
            .zip(exist)
            .filter(|(_, exists)| !exists)
            .map(|(key, _)| key.clone())
            .collect();
        outcome.present = (keys.len() - lacking.len()) as u64;
        let Found {
            sessions: found,
            from_rows,
            unread,
        } = self.find(lacking, &mut outcome).await;
        if found.is_empty() {
            return Ok((outcome, unread));
        }
        let (before, found): (Vec<NewKey>, Vec<NewKey>) =
            found.into_iter().partition(|new| self.tombstones.contains(&new.key));
        outcome.absent += before.len() as u64;
        // The authority tells of these writes, too.
        found.iter().for_each(|new| self.tee.expect_told(&new.key));
        let written = store.write_new(&found, now_ms()).await.map_err(text)?;
        for (new, written) in found.iter().zip(written) {
            if !written {
                self.tee.told(&new.key);
                outcome.present += 1;
            } else if self.tombstones.contains(&new.key) {
                // The logout came in between, and what it found to delete nobody knows.
                if let Err(error) = store.delete_if(&new.key, &new.value).await {
                    self.resurrected.fetch_add(1, Relaxed);
                    return Err(text(error));
                }
                outcome.absent += 1;
            } else {
                outcome.restored += 1;
                if from_rows.contains(&new.key) {
                    // The other Redis lacks it as well.
                    self.tee.redis.mark(&new.key, self.tee.head(), Origin::Refill);
                }
            }
        }
        self.restored.fetch_add(outcome.restored, Relaxed);
        Ok((outcome, unread))
    }

    /// Puts back what is on its way to the other stores, and so may be in none of them yet.
    ///
    /// # Errors
    /// The authority cannot be asked, or takes nothing.
    pub async fn put_pending_back(&self) -> Result<Restored, String> {
        let mut keys: Vec<Bytes> = self.tee.unfinished().into_iter().map(|(key, _)| key).collect();
        // What only the authority can tell is not to be made from an older copy.
        let is_value = |effect| matches!(effect, Some(Effect::Put { .. }));
        keys.retain(|key| self.tee.sinks().iter().any(|sink| is_value(sink.effect(key))));
        keys.sort_unstable();
        keys.dedup();
        let mut total = Restored::default();
        for batch in keys.chunks(BATCH) {
            total += self.put_back(batch).await?;
        }
        Ok(total)
    }

    /// Whether there are rows to put back from.
    pub fn has_rows(&self) -> bool {
        self.rows.is_some()
    }

    /// Puts back whatever has a row, who was here last first, until `goes_on`, which is told how many were looked at, says no. The inner result is
    /// why the rows could not be read to their end.
    ///
    /// # Errors
    /// The authority cannot be asked, or takes nothing.
    pub async fn put_rows_back(&self, goes_on: impl Fn(u64) -> bool) -> Result<(Restored, Result<(), String>), String> {
        let mut total = Restored::default();
        let Some(rows) = &self.rows else {
            return Ok((total, Ok(())));
        };
        let mut looked_at = 0;
        for site in rows.sites() {
            let mut before = None;
            loop {
                let page = match site.database.newest(before.as_ref(), BATCH as u32, now_ms()).await {
                    Ok(page) => page,
                    Err(error) => return Ok((total, Err(error.to_string()))),
                };
                let keys: Vec<Bytes> = page
                    .iter()
                    .map(|place| site.patterns.redis_key(&place.session_key).into())
                    .collect();
                before = page.into_iter().last();
                if before.is_none() {
                    break;
                }
                looked_at += keys.len() as u64;
                if site.patterns.is_one() {
                    // Each had a row a moment ago: what has none now was logged out.
                    let (outcome, _) = self.put_back_what_can_be_read(&keys).await?;
                    total += outcome;
                } else {
                    // Which of its kinds of keys a row belongs to, it does not say. Who asks for a session says it.
                    total.skipped += keys.len() as u64;
                }
                if !goes_on(looked_at) {
                    return Ok((total, Ok(())));
                }
            }
        }
        Ok((total, Ok(())))
    }

    /// The sessions under `keys` as the other stores have them.
    async fn find(&self, keys: Vec<Bytes>, outcome: &mut Restored) -> Found {
        let now = now_ms();
        let mut unread = None;
        let (mut found, mut elsewhere) = (Vec::new(), Vec::new());
        for key in keys {
            // While the authority is not trusted, what was in flight is known: what deletes was noted.
            let in_doubt = !self.guards() && self.tee.is_unfinished(&key);
            if in_doubt || self.tee.sinks().iter().any(|sink| sink.is_being_repaired(&key)) {
                outcome.skipped += 1;
                continue;
            }
            // What is known on its way to one sink is what has reached, or is on its way to, the other.
            let mut on_its_way = self.tee.sinks().into_iter().filter_map(|sink| sink.effect(&key));
            match on_its_way.find(Effect::is_known) {
                Some(Effect::Put { value, deadline }) => found.push(NewKey { key, value, deadline }),
                Some(Effect::Delete) => outcome.absent += 1,
                _ => elsewhere.push(key),
            }
        }
        if self.tee.redis.is_enabled() && !elsewhere.is_empty() {
            match self.stores.other_store().read(&elsewhere).await {
                Ok(stored) => {
                    let keys = std::mem::take(&mut elsewhere);
                    for (key, stored) in keys.into_iter().zip(stored) {
                        match stored {
                            Stored::Value { value, deadline } => found.push(NewKey { key, value, deadline }),
                            Stored::Absent | Stored::WrongType => elsewhere.push(key),
                        }
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "nothing can be put back from the other Redis");
                    unread = Some(error);
                }
            }
        }
        let (from_redis, wanted) = (found.len(), elsewhere.len());
        self.find_rows(elsewhere, &mut found, outcome).await;
        let from_rows: HashSet<Bytes> = found[from_redis..].iter().map(|new| new.key.clone()).collect();
        if from_rows.len() == wanted {
            unread = None;
        }
        let all = found.len();
        found.retain(|new| !new.deadline.is_past(now));
        outcome.absent += (all - found.len()) as u64;
        Found {
            sessions: found,
            from_rows,
            unread,
        }
    }

    async fn find_rows(&self, mut keys: Vec<Bytes>, found: &mut Vec<NewKey>, outcome: &mut Restored) {
        let all = keys.len();
        keys.retain(|key| self.rows.is_some() && self.tee.database.effect(key) != Some(Effect::Delete));
        outcome.absent += (all - keys.len()) as u64;
        let (Some(rows), count) = (&self.rows, keys.len() as u64) else {
            return;
        };
        let sessions = match rows.sessions(keys).await {
            Ok(sessions) => sessions,
            Err(error) => {
                tracing::debug!(%error, "nothing can be put back from the database");
                outcome.skipped += count;
                return;
            }
        };
        for (key, row) in sessions {
            match row {
                FromRow::Absent => outcome.absent += 1,
                FromRow::Value(value, deadline) => found.push(NewKey { key, value, deadline }),
                FromRow::Unreadable(error) => {
                    tracing::warn!(session = self.tee.digest(&key), %error, "this row cannot be put back");
                    outcome.skipped += 1;
                }
            }
        }
    }
}
