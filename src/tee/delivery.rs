//! Empties the pending states into the sinks: one task for the other Redis, one for the database.
//!
//! A batch is taken, dirty keys are read from the authority, the sink is written, and only then the keys are done. On an
//! error the whole batch waits again: delivery is idempotent. One batch at a time per sink is what keeps the order per key.

mod table;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dashmap::DashMap;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::ledger::Origin;
use super::linger::Linger;
use super::pending::Taken;
use super::{Pending, Restore, Rows, SinkName, Tee};
use crate::net::Backoff;
use crate::session::{Deadline, Effect};
use crate::sink::{RedisStore, RedisWrite, StoreErrorKind};
use crate::status::Authority;

/// Keys per batch.
const REDIS_BATCH: usize = 512;
const DATABASE_BATCH: usize = 4 * table::TRANSACTION;
/// Bytes of values per batch.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Writes gather so long before a round of deliveries, at the least and at the most. A row costs several times what a key
/// in the other Redis does.
const REDIS_LINGER: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(500)];
const DATABASE_LINGER: [Duration; 2] = [Duration::from_millis(10), Duration::from_secs(1)];
/// What backfill brings in small portions, because others use the authority, gathers so long at the most.
const REDIS_GATHER: Duration = Duration::from_millis(30);
const DATABASE_GATHER: Duration = Duration::from_millis(250);
/// So much is enough.
const GATHERED: usize = 512;
/// The authority may take so long to tell what is dirty before what is known goes ahead.
const READ_PATIENCE: Duration = Duration::from_millis(300);
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_CAP: Duration = Duration::from_secs(1);

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
    hurry: watch::Sender<bool>,
}

/// As long as it lives, deliveries do not linger.
#[derive(Debug)]
pub struct Hurry<'a>(&'a watch::Sender<bool>);

impl Counters {
    pub fn hurry(&self) -> Hurry<'_> {
        self.hurry.send_replace(true);
        Hurry(&self.hurry)
    }
}

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
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
fn known(effect: Effect) -> State {
    match effect {
        Effect::Put { value, deadline } => Some((value, deadline)),
        _ => None,
    }
}

/// Waits for a batch that is worth it, no longer than `limit`.
async fn gathered(pending: &Pending, limit: Duration) {
    const LOOK_EVERY: Duration = Duration::from_millis(5);
    let since = Instant::now();
    while since.elapsed() < limit && pending.waiting() < GATHERED {
        sleep(LOOK_EVERY).await;
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

    async fn run(&self, pending: &Pending, rows: Option<&Arc<Rows>>, stop: &CancellationToken) {
        let (max, [least, most], gather) = if rows.is_some() {
            (DATABASE_BATCH, DATABASE_LINGER, DATABASE_GATHER)
        } else {
            (REDIS_BATCH, REDIS_LINGER, REDIS_GATHER)
        };
        // For those who wait for it, it does not linger.
        let ([least, most], gather) = if self.acks.contains(&pending.name) {
            ([Duration::ZERO; 2], Duration::ZERO)
        } else {
            ([least, most], gather)
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
                let lingering = async {
                    if pending.backfilling() > 0 {
                        gathered(pending, gather).await;
                    } else if !linger.now().is_zero() {
                        // A sleep of nothing would wait for the timer's next tick.
                        sleep(linger.now()).await;
                    }
                };
                tokio::select! {
                    () = lingering => {}
                    _ = hurry.wait_for(|hurry| *hurry) => {}
                    () = stop.cancelled() => return,
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
                        () = sleep(wait) => {}
                        () = stop.cancelled() => return,
                    }
                }
            }
        }
    }

    /// All at once where the authority tells what is dirty; where it does not, or not soon, what is known goes first. What
    /// has not arrived waits again.
    async fn deliver(&self, pending: &Pending, rows: Option<&Arc<Rows>>, batch: &[Taken]) -> Result<(), Trouble> {
        let (recorded, dirty): (Vec<&Taken>, Vec<&Taken>) = batch.iter().partition(|taken| taken.effect.is_known());
        let mut states: Vec<(&Taken, State)> = recorded
            .into_iter()
            .map(|taken| (taken, known(taken.effect.clone())))
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

    async fn write(
        &self,
        pending: &Pending,
        rows: Option<&Arc<Rows>>,
        states: Vec<(&Taken, State)>,
    ) -> Result<(), Trouble> {
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
        let stored = self.stores.of(authority).read_trusted(&keys).await.map_err(|error| {
            if error.kind() == StoreErrorKind::Restarted {
                // Noticed here before any connection of the clients ended.
                self.restore.doubt();
            }
            format!("reading from the {authority}: {error}")
        })?;
        let states = stored.into_iter().map(|stored| known(stored.into()));
        Ok(dirty.iter().copied().zip(states).collect())
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
}
