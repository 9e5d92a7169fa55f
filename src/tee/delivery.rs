//! Empties the pending states into the sinks: one task for the other Redis, one for the database.
//!
//! A batch is taken, dirty keys are read from the authority, the sink is written, and only then the keys are done. On an
//! error the whole batch waits again: delivery is idempotent. One batch at a time per sink is what keeps the order per key.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dashmap::DashMap;
use tokio_util::sync::CancellationToken;

use super::pending::{Origin, Taken};
use super::{Pending, Tee};
use crate::clock::now_ms;
use crate::net::Backoff;
use crate::session::expiry::expire_ms;
use crate::session::key::is_storable;
use crate::session::row::RowCodec;
use crate::session::{Deadline, Effect};
use crate::sink::{Database, DatabaseError, DatabaseErrorKind, RedisStore, RedisWrite, Row, Stored};
use crate::status::Authority;

/// Keys per batch.
const REDIS_BATCH: usize = 512;
const DATABASE_BATCH: usize = 1000;
/// Bytes of values per batch.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Writes gather this long before a batch is taken, so that one session changed twice is written once, and the cores
/// forward meanwhile. A drain does not wait.
const REDIS_LINGER: Duration = Duration::from_millis(2);
const DATABASE_LINGER: Duration = Duration::from_millis(10);
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_CAP: Duration = Duration::from_secs(1);
/// Sessions that a row cannot carry are remembered by name up to this many; beyond, they are only counted.
const MAX_UNSTORABLE: usize = 100_000;
/// So many of them are told of one by one.
const MAX_TOLD: usize = 20;

/// The two Redis servers as the proxy's own client sees them, and which is the authority.
#[derive(Clone)]
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

/// How rows are made.
pub struct Rows {
    pub database: Database,
    pub codec: RowCodec,
    /// Seconds that a session without an expiry gets in its row.
    pub cookie_age: i64,
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
    pub hurry: AtomicBool,
}

/// One sink's delivery.
pub struct Delivery {
    pub tee: Arc<Tee>,
    pub stores: Stores,
    pub counters: Arc<Counters>,
}

/// A key with what the sink is to be told; `None` for what is not there any more.
type State = Option<(Bytes, Deadline)>;

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
        let (max, linger) = if rows.is_some() {
            (DATABASE_BATCH, DATABASE_LINGER)
        } else {
            (REDIS_BATCH, REDIS_LINGER)
        };
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_CAP);
        let mut troubled = false;
        loop {
            tokio::select! {
                () = pending.ready() => {}
                () = stop.cancelled() => return,
            }
            if !self.counters.hurry.load(Relaxed) && pending.len() < max {
                tokio::time::sleep(linger).await;
            }
            let batch = pending.take(max, BATCH_BYTES);
            let began = Instant::now();
            let result = match self.states(&batch).await {
                Ok(states) => {
                    let written = match rows {
                        Some(rows) => self.write_database(rows, &states).await,
                        None => self.write_redis(&states).await,
                    };
                    written.map(|()| self.count(pending, &states))
                }
                Err(error) => Err(error),
            };
            match result {
                Ok(()) => {
                    tracing::debug!(sink = self.name(pending), keys = batch.len(), took = ?began.elapsed(), "delivered");
                    batch.iter().for_each(|taken| pending.done(taken));
                    pending.connected.store(true, Relaxed);
                    backoff.reset();
                    if std::mem::take(&mut troubled) {
                        tracing::info!(sink = self.name(pending), "delivery goes on");
                    }
                }
                Err(error) => {
                    batch.iter().for_each(|taken| pending.put_back(taken));
                    pending.connected.store(false, Relaxed);
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

    /// Which store the sink is now, as an operator knows it.
    fn name(&self, pending: &Pending) -> &'static str {
        match pending.name {
            super::SinkName::Database => "database",
            super::SinkName::Redis => self.stores.authority().other().name(),
        }
    }

    /// What each key is now: as recorded, or read from the authority where only that can tell.
    async fn states<'a>(&self, batch: &'a [Taken]) -> Result<Vec<(&'a Taken, State)>, String> {
        let dirty: Vec<Bytes> = batch
            .iter()
            .filter(|taken| !matches!(taken.effect, Effect::Put { .. } | Effect::Delete))
            .map(|taken| taken.key.clone())
            .collect();
        let mut read = if dirty.is_empty() {
            Vec::new()
        } else {
            let authority = self.stores.authority();
            let store = self.stores.of(authority);
            store
                .read(&dirty)
                .await
                .map_err(|error| format!("reading from the {authority}: {error}"))?
        }
        .into_iter();
        let states = batch.iter().map(|taken| {
            let state = match &taken.effect {
                Effect::Put { value, deadline } => Some((value.clone(), *deadline)),
                Effect::Delete => None,
                _ => match read.next() {
                    Some(Stored::Value { value, deadline }) => Some((value, deadline)),
                    // No string is no session: Django would fail to read it, too.
                    Some(Stored::Absent | Stored::WrongType) | None => None,
                },
            };
            (taken, state)
        });
        Ok(states.collect())
    }

    fn count(&self, pending: &Pending, states: &[(&Taken, State)]) {
        if pending.name != super::SinkName::Redis {
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
