//! Empties the pending states into the sinks: one task for the other Redis, one for the database.
//!
//! A batch is taken, dirty keys are read from the authority, the sink is written, and only then the keys are done. On an
//! error the whole batch waits again: delivery is idempotent. One batch at a time per sink is what keeps the order per key.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dashmap::DashMap;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::linger::Linger;
use super::pending::{Origin, Taken};
use super::{Pending, Restore, Rows, SinkName, Tee};
use crate::clock::now_ms;
use crate::net::Backoff;
use crate::session::expiry::expire_ms;
use crate::session::key::is_storable;
use crate::session::{Deadline, Effect};
use crate::sink::{DatabaseError, DatabaseErrorKind, RedisStore, RedisWrite, Row, Stored};
use crate::status::Authority;

/// Keys per batch.
const REDIS_BATCH: usize = 512;
const DATABASE_BATCH: usize = 1000;
/// Bytes of values per batch.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Writes gather so long before a round of deliveries, at the least and at the most. A row costs several times what a key
/// in the other Redis does.
const REDIS_LINGER: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(500)];
const DATABASE_LINGER: [Duration; 2] = [Duration::from_millis(10), Duration::from_secs(1)];
/// The authority may take so long to tell what is dirty before what is known goes ahead.
const READ_PATIENCE: Duration = Duration::from_millis(300);
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_CAP: Duration = Duration::from_secs(1);
/// Sessions that a row cannot carry are remembered by name up to this many; beyond, they are only counted.
const MAX_UNSTORABLE: usize = 100_000;
/// So many of them are told of one by one.
const MAX_TOLD: usize = 20;

/// The two Redis servers as the proxy's own client sees them, and which is the authority.
#[derive(Clone, Debug)]
pub struct Stores {
    pub source: RedisStore,
    pub target: RedisStore,
    target_is_authority: Arc<AtomicBool>,
}

impl Stores {
    pub fn new(source: RedisStore, target: RedisStore, authority: Authority) -> Self {
        let target_is_authority = Arc::new(AtomicBool::new(authority == Authority::Target));
        Stores {
            source,
            target,
            target_is_authority,
        }
    }

    pub fn authority(&self) -> Authority {
        if self.target_is_authority.load(Relaxed) {
            Authority::Target
        } else {
            Authority::Source
        }
    }

    pub fn switch(&self, authority: Authority) {
        self.target_is_authority.store(authority == Authority::Target, Relaxed);
    }

    pub fn of(&self, authority: Authority) -> &RedisStore {
        match authority {
            Authority::Source => &self.source,
            Authority::Target => &self.target,
        }
    }

    pub fn authority_store(&self) -> &RedisStore {
        self.of(self.authority())
    }

    /// The Redis that the tee writes to.
    pub fn other_store(&self) -> &RedisStore {
        self.of(self.authority().other())
    }
}

/// What backfill and delivery count.
#[derive(Debug, Default)]
pub struct Counters {
    pub backfill_copied: AtomicU64,
    pub backfill_skipped: AtomicU64,
    pub backfill_failed: AtomicU64,
    /// Sessions that the database cannot hold (their key is too long).
    pub rejected: AtomicU64,
    /// Session keys whose value no row can carry, with the reason.
    pub unstorable: DashMap<Bytes, String>,
    /// A drain is under way: do not linger.
    pub hurry: watch::Sender<bool>,
}

/// One sink's delivery.
pub struct Delivery {
    pub tee: Arc<Tee>,
    pub stores: Stores,
    pub counters: Arc<Counters>,
    pub restore: Arc<Restore>,
    /// Clients wait for these sinks.
    pub acks: Vec<SinkName>,
}

/// Why nothing was delivered.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    /// The keys could not be read.
    #[error("{0}")]
    Authority(String),
    #[error("{0}")]
    Sink(String),
}

/// A key with what the sink is to be told; `None` for what is not there any more.
type State = Option<(Bytes, Deadline)>;

/// What a known effect says that the session is.
fn recorded(effect: &Effect) -> State {
    match effect {
        Effect::Put { value, deadline } => Some((value.clone(), *deadline)),
        _ => None,
    }
}

impl Delivery {
    /// Delivers to the Redis that is not the authority, until cancelled.
    pub async fn run_redis(self, stop: CancellationToken) {
        self.run(&self.tee.redis, None, &stop).await;
    }

    /// Delivers to the database, until cancelled.
    pub async fn run_database(self, rows: Arc<Rows>, stop: CancellationToken) {
        self.run(&self.tee.database, Some(&rows), &stop).await;
    }

    async fn run(&self, pending: &Pending, rows: Option<&Rows>, stop: &CancellationToken) {
        let (max, [least, most]) = if rows.is_some() {
            (DATABASE_BATCH, DATABASE_LINGER)
        } else {
            (REDIS_BATCH, REDIS_LINGER)
        };
        // For those who wait for it, it does not linger.
        let [least, most] = if self.acks.contains(&pending.name) {
            [Duration::ZERO; 2]
        } else {
            [least, most]
        };
        let mut linger = Linger::new(least, most);
        let mut hurry = self.counters.hurry.subscribe();
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_CAP);
        let mut troubled = false;
        // Keys that waited when the last linger was over.
        let mut due = 0_usize;
        let mut round = Instant::now();
        loop {
            if due == 0 {
                linger.adapt(round.elapsed());
                tokio::select! {
                    () = pending.ready() => {}
                    () = stop.cancelled() => return,
                }
                // What backfill waits for is many keys, each once.
                if pending.backfilling() == 0 && !linger.now().is_zero() {
                    tokio::select! {
                        () = tokio::time::sleep(linger.now()) => {}
                        _ = hurry.wait_for(|hurry| *hurry) => {}
                        () = stop.cancelled() => return,
                    }
                }
                due = pending.waiting();
                round = Instant::now();
            }
            let batch = pending.take(max.min(due), BATCH_BYTES);
            due = if batch.is_empty() { 0 } else { due - batch.len() };
            let began = Instant::now();
            match self.deliver(pending, rows, &batch).await {
                Ok(()) => {
                    tracing::debug!(sink = self.name(pending), keys = batch.len(), took = ?began.elapsed(), "delivered");
                    pending.connected.store(true, Relaxed);
                    backoff.reset();
                    if std::mem::take(&mut troubled) {
                        tracing::info!(sink = self.name(pending), "delivery goes on");
                    }
                }
                Err(trouble) => {
                    pending
                        .connected
                        .store(matches!(trouble, Trouble::Authority(_)), Relaxed);
                    let error = trouble.to_string();
                    pending.failed(&error);
                    if !std::mem::replace(&mut troubled, true) {
                        tracing::warn!(sink = self.name(pending), %error, "cannot deliver; writes are kept and tried again");
                    }
                    let wait = backoff.wait();
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = stop.cancelled() => return,
                    }
                }
            }
        }
    }

    /// All at once where the authority tells what is dirty; where it does not, or not soon, what is known goes first. What
    /// has not arrived waits again.
    async fn deliver(&self, pending: &Pending, rows: Option<&Rows>, batch: &[Taken]) -> Result<(), Trouble> {
        let (known, dirty): (Vec<&Taken>, Vec<&Taken>) = batch.iter().partition(|taken| taken.effect.is_known());
        let mut states: Vec<(&Taken, State)> = known
            .into_iter()
            .map(|taken| (taken, recorded(&taken.effect)))
            .collect();
        let reading = self.read(&dirty);
        tokio::pin!(reading);
        let read = match timeout(READ_PATIENCE, &mut reading).await {
            Ok(Ok(read)) => {
                states.extend(read);
                return self.write(pending, rows, states).await;
            }
            Ok(Err(error)) => Err(error),
            Err(_) => {
                let written = self.write(pending, rows, std::mem::take(&mut states)).await;
                match reading.await {
                    Ok(read) if written.is_ok() => return self.write(pending, rows, read).await,
                    outcome => {
                        dirty.iter().for_each(|taken| pending.put_back(taken));
                        return written.and(outcome.map(drop).map_err(Trouble::Authority));
                    }
                }
            }
        };
        dirty.iter().for_each(|taken| pending.put_back(taken));
        self.write(pending, rows, states).await?;
        read.map_err(Trouble::Authority)
    }

    async fn write(&self, pending: &Pending, rows: Option<&Rows>, states: Vec<(&Taken, State)>) -> Result<(), Trouble> {
        if states.is_empty() {
            return Ok(());
        }
        let written = match rows {
            Some(rows) => self.write_database(rows, &states).await,
            None => self.write_redis(&states).await,
        };
        match written {
            Ok(()) => {
                self.count(pending, &states);
                states.iter().for_each(|(taken, _)| pending.done(taken));
                Ok(())
            }
            Err(error) => {
                states.iter().for_each(|(taken, _)| pending.put_back(taken));
                Err(Trouble::Sink(error))
            }
        }
    }

    /// Which store the sink is now, as an operator knows it.
    fn name(&self, pending: &Pending) -> &'static str {
        match pending.name {
            SinkName::Database => "database",
            SinkName::Redis => self.stores.authority().other().name(),
        }
    }

    /// What each of these keys is now at the authority.
    async fn read<'a>(&self, dirty: &[&'a Taken]) -> Result<Vec<(&'a Taken, State)>, String> {
        if dirty.is_empty() {
            return Ok(Vec::new());
        }
        let authority = self.stores.authority();
        if self.restore.guards() {
            return Err(format!(
                "the {authority} may have been restarted: what it lost is put back first"
            ));
        }
        let keys: Vec<Bytes> = dirty.iter().map(|taken| taken.key.clone()).collect();
        let stored = self.stores.of(authority).read(&keys).await;
        let stored = stored.map_err(|error| format!("reading from the {authority}: {error}"))?;
        let states = dirty.iter().zip(stored).map(|(&taken, stored)| match stored {
            Stored::Value { value, deadline } => (taken, Some((value, deadline))),
            // No string is no session: Django would fail to read it, too.
            Stored::Absent | Stored::WrongType => (taken, None),
        });
        Ok(states.collect())
    }

    fn count(&self, pending: &Pending, states: &[(&Taken, State)]) {
        if pending.name != SinkName::Redis {
            return;
        }
        for (taken, state) in states {
            if taken.origin == Origin::Backfill {
                let counter = if state.is_some() {
                    &self.counters.backfill_copied
                } else {
                    &self.counters.backfill_skipped
                };
                counter.fetch_add(1, Relaxed);
            }
        }
    }

    async fn write_redis(&self, states: &[(&Taken, State)]) -> Result<(), String> {
        let writes: Vec<RedisWrite> = states
            .iter()
            .map(|(taken, state)| match state {
                Some((value, deadline)) => RedisWrite::Put {
                    key: taken.key.clone(),
                    value: value.clone(),
                    deadline: *deadline,
                },
                None => RedisWrite::Delete { key: taken.key.clone() },
            })
            .collect();
        self.stores
            .other_store()
            .write(&writes)
            .await
            .map_err(|error| error.to_string())
    }

    async fn write_database(&self, rows: &Rows, states: &[(&Taken, State)]) -> Result<(), String> {
        let now = now_ms();
        let (mut upserts, mut deletes) = (Vec::new(), Vec::new());
        for (taken, state) in states {
            let Some(session_key) = self.tee.patterns.session_key(&taken.key) else {
                continue;
            };
            if !is_storable(session_key) {
                self.counters.rejected.fetch_add(1, Relaxed);
                continue;
            }
            let Some((value, deadline)) = state else {
                self.counters.unstorable.remove(&taken.key);
                deletes.push(session_key.to_owned());
                continue;
            };
            match rows.codec.encode(value, now.div_euclid(1000)) {
                Ok(session_data) => {
                    self.counters.unstorable.remove(&taken.key);
                    let expire_ms = expire_ms(*deadline, now, rows.cookie_age);
                    upserts.push(Row {
                        session_key: session_key.to_owned(),
                        session_data,
                        expire_ms,
                    });
                }
                Err(reason) => {
                    // No row is better than the row of an older state, which would come back to life.
                    self.note_unstorable(&taken.key, &reason.to_string());
                    deletes.push(session_key.to_owned());
                }
            }
        }
        self.apply_rows(rows, upserts, &deletes).await
    }

    /// Writes the rows; one that the database refuses is found and counted, so that it does not hold up the others.
    async fn apply_rows(&self, rows: &Rows, upserts: Vec<Row>, deletes: &[String]) -> Result<(), String> {
        let text = |error: DatabaseError| error.to_string();
        match rows.database.apply(&upserts, deletes).await {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() != DatabaseErrorKind::Rejected => return Err(text(error)),
            Err(_) => {}
        }
        rows.database.apply(&[], deletes).await.map_err(text)?;
        for row in upserts {
            match rows.database.apply(std::slice::from_ref(&row), &[]).await {
                Ok(()) => {}
                Err(error) if error.kind() == DatabaseErrorKind::Rejected => {
                    tracing::warn!(session = self.tee.digest(&self.tee.patterns.redis_key(&row.session_key)), %error, "the database refuses this row");
                    self.counters.rejected.fetch_add(1, Relaxed);
                    // No row is better than the row of an older state.
                    rows.database.apply(&[], &[row.session_key]).await.map_err(text)?;
                }
                Err(error) => return Err(text(error)),
            }
        }
        Ok(())
    }

    fn note_unstorable(&self, key: &Bytes, reason: &str) {
        let unstorable = &self.counters.unstorable;
        if unstorable.contains_key(key) || unstorable.len() >= MAX_UNSTORABLE {
            return;
        }
        let digest = self.tee.digest(key);
        match unstorable.len() {
            known if known < MAX_TOLD => {
                tracing::warn!(
                    session = digest,
                    reason,
                    "this session cannot be stored in a row; it is copied to Redis alone"
                );
            }
            MAX_TOLD => tracing::warn!("more sessions cannot be stored in a row; see `unstorable` in the status"),
            _ => tracing::debug!(session = digest, reason, "this session cannot be stored in a row"),
        }
        unstorable.insert(Bytes::copy_from_slice(key), reason.to_owned());
    }
}
