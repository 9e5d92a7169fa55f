//! A Redis on which the proxy is itself a client: delivery, backfill, verify, the pre-flight.
//!
//! Absent on purpose: retries (the caller knows what is still wanted), clusters, and anything on the reply path.

mod error;
mod facts;
mod link;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use ::redis::{Pipeline, Value};
use bytes::Bytes;
use tokio::sync::Mutex;

pub use self::error::{StoreError, StoreErrorKind};
pub use self::facts::{Role, ServerFacts, Tells};
pub use self::link::RESPONSE_TIMEOUT;
pub use crate::net::endpoint::CONNECT_TIMEOUT;

use self::error::Fault;
use self::facts::time_ms;
use self::link::{Identity, Link, info_field, text};
use crate::net::Endpoint;
use crate::session::{Deadline, Effect};

/// Keys in one `MULTI`: value and deadline of a key belong together, and the server is not held up for long.
pub const READ_CHUNK: usize = 128;
/// Commands in one pipeline of writes or of `EXISTS`.
pub const WRITE_CHUNK: usize = 512;
/// Bytes of values in one pipeline of writes, but for a single value over it: well within the response timeout.
pub const WRITE_CHUNK_BYTES: usize = 4 << 20;
/// Connections that were given up and are not yet known to be dead on the server. More are forgotten, oldest first.
const ABANDONED_MAX: usize = 16;
/// How often a full server is asked for keys that change meanwhile.
const FULL_TRIES: u32 = 5;
/// What lies between two looks at the time that is left, where the server does not tell an instant, ms.
const FULL_TOLERANCE_MS: u64 = 100;
const INFO: &str = "info";

/// What a Redis holds under a key.
#[derive(Clone, PartialEq, Eq)]
pub enum Stored {
    /// No such key, or it expired.
    Absent,
    Value {
        value: Bytes,
        deadline: Deadline,
    },
    /// The key holds a list, a hash …: no session.
    WrongType,
}

impl From<Stored> for Effect {
    /// What the session is now. No string is no session: Django would fail to read it, too.
    fn from(stored: Stored) -> Effect {
        match stored {
            Stored::Value { value, deadline } => Effect::Put { value, deadline },
            Stored::Absent | Stored::WrongType => Effect::Delete,
        }
    }
}

/// What a Redis shall hold under a key. Writing it twice is the same as once.
#[derive(Clone, PartialEq, Eq)]
pub enum RedisWrite {
    /// A deadline in the past leaves no key.
    Put {
        key: Bytes,
        value: Bytes,
        deadline: Deadline,
    },
    Delete {
        key: Bytes,
    },
}

/// What a Redis shall hold under a key that it does not have.
#[derive(Clone, PartialEq, Eq)]
pub struct NewKey {
    pub key: Bytes,
    pub value: Bytes,
    pub deadline: Deadline,
}

// Sessions are secrets: what may end up in a log shows none of them.
impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stored::Absent => f.write_str("Absent"),
            Stored::Value { value, deadline } => write!(f, "Value({} bytes, {deadline:?})", value.len()),
            Stored::WrongType => f.write_str("WrongType"),
        }
    }
}

impl fmt::Debug for RedisWrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RedisWrite::Put { value, deadline, .. } => write!(f, "Put({} bytes, {deadline:?})", value.len()),
            RedisWrite::Delete { .. } => f.write_str("Delete"),
        }
    }
}

/// One Redis, connected to when first needed and again after an error. A clone shares the connection.
///
/// Every method ends within the endpoint's `connect_timeout` plus [`RESPONSE_TIMEOUT`] per pipeline. All may be cancelled: a write
/// that was sent and not awaited is still executed before any later write of the same store.
#[derive(Clone)]
pub struct RedisStore {
    inner: Arc<Inner>,
}

struct Inner {
    endpoint: Endpoint,
    slot: Mutex<Slot>,
    /// Commands sent so far.
    sent: AtomicU64,
    /// The process that has all that the server was given, where that is known.
    trusted: std::sync::Mutex<Option<String>>,
}

#[derive(Default)]
struct Slot {
    link: Option<Arc<Link>>,
    abandoned: Vec<Identity>,
    /// The last attempt to connect that failed, for those who waited for it.
    failed: Option<(Instant, StoreError)>,
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisStore({})", self.inner.endpoint)
    }
}

impl RedisStore {
    /// Does not connect yet.
    pub fn new(endpoint: Endpoint) -> Self {
        RedisStore {
            inner: Arc::new(Inner {
                endpoint,
                slot: Mutex::default(),
                sent: AtomicU64::new(0),
                trusted: std::sync::Mutex::default(),
            }),
        }
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.inner.endpoint
    }

    /// Connects and logs in, where that is not done yet.
    pub async fn connect(&self) -> Result<(), StoreError> {
        self.link().await.map(drop)
    }

    /// One round trip that touches no key.
    pub async fn ping(&self) -> Result<(), StoreError> {
        let mut pipeline = Pipeline::new();
        pipeline.cmd("PING");
        self.command("ping", &pipeline).await
    }

    /// Values and deadlines of `keys`, in their order. Each pair is read in one transaction, so that the two belong
    /// together. Where the server is older than 7.0, or does not tell its version, deadlines may be a few milliseconds
    /// early.
    pub async fn read(&self, keys: &[Bytes]) -> Result<Vec<Stored>, StoreError> {
        self.read_from(keys, |_| true).await
    }

    /// [`RedisStore::read`] for who takes what is not there for deleted: another process than the trusted one may have lost
    /// it, and is not asked.
    ///
    /// # Errors
    /// As there; [`StoreErrorKind::Restarted`] where it is another.
    pub async fn read_trusted(&self, keys: &[Bytes]) -> Result<Vec<Stored>, StoreError> {
        let trusted = self.trusted().clone();
        let is_trusted = |run: Option<&String>| trusted.is_none() || run.is_none() || run == trusted.as_ref();
        self.read_from(keys, is_trusted).await
    }

    /// The process with this id has all that the server was given. `None`: which one has is not known.
    pub fn trust(&self, run_id: Option<String>) {
        *self.trusted() = run_id;
    }

    fn trusted(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.inner.trusted.lock().expect("no panic while locked")
    }

    async fn read_from(
        &self,
        keys: &[Bytes],
        may_answer: impl Fn(Option<&String>) -> bool,
    ) -> Result<Vec<Stored>, StoreError> {
        const OPERATION: &str = "read";
        let mut found = Vec::with_capacity(keys.len());
        for chunk in keys.chunks(READ_CHUNK) {
            let link = self.link().await?;
            if !may_answer(link.identity.run_id.as_ref()) {
                let what = "the server was restarted; what it lost is put back first";
                return Err(self.error(Fault::new(StoreErrorKind::Restarted, what), OPERATION));
            }
            let mut pipeline = Pipeline::with_capacity(2 * chunk.len() + 3);
            pipeline.cmd("MULTI");
            // Before 7.0 only the time that is left can be had: with the server's own clock it makes an instant.
            pipeline.cmd("TIME");
            for key in chunk {
                pipeline.cmd("GET").arg(&key[..]);
                pipeline
                    .cmd(if link.pexpiretime { "PEXPIRETIME" } else { "PTTL" })
                    .arg(&key[..]);
            }
            pipeline.cmd("EXEC");
            let replies = self.exchange_on(&link, OPERATION, &pipeline).await?;
            let stored = match transaction(replies) {
                Ok(results) => pairs(results, chunk.len(), link.pexpiretime),
                Err(fault) if fault.kind == StoreErrorKind::OutOfMemory => {
                    found.extend(self.read_from_full(&link, chunk).await?);
                    continue;
                }
                Err(fault) => Err(fault),
            };
            found.extend(stored.map_err(|fault| self.error(fault, OPERATION))?);
        }
        Ok(found)
    }

    /// A server that is full and evicts nothing refuses transactions, even those that only read. Here each expiry is read
    /// before the value and after it: where it is the same, the two belong together.
    async fn read_from_full(&self, link: &Arc<Link>, keys: &[Bytes]) -> Result<Vec<Stored>, StoreError> {
        const OPERATION: &str = "read";
        let expiry = if link.pexpiretime { "PEXPIRETIME" } else { "PTTL" };
        for _ in 0..FULL_TRIES {
            let mut pipeline = Pipeline::with_capacity(3 * keys.len() + 1);
            pipeline.cmd("TIME");
            for key in keys {
                pipeline.cmd(expiry).arg(&key[..]);
                pipeline.cmd("GET").arg(&key[..]);
                pipeline.cmd(expiry).arg(&key[..]);
            }
            let mut replies = self.exchange_on(link, OPERATION, &pipeline).await?.into_iter();
            let time = replies.next().unwrap_or(Value::Nil);
            let (mut before, mut after) = (vec![time.clone()], vec![time]);
            while let (Some(first), Some(value), Some(last)) = (replies.next(), replies.next(), replies.next()) {
                before.extend([value.clone(), first]);
                after.extend([value, last]);
            }
            let stored = |results| {
                let stored = pairs(results, keys.len(), link.pexpiretime);
                stored.map_err(|fault| self.error(fault, OPERATION))
            };
            let (before, after) = (stored(before)?, stored(after)?);
            if before
                .iter()
                .zip(&after)
                .all(|(before, after)| end_alike(before, after))
            {
                return Ok(before);
            }
        }
        let what = "the server is out of memory, and sessions change faster than they can be read; raise maxmemory";
        Err(self.error(Fault::new(StoreErrorKind::OutOfMemory, what), OPERATION))
    }

    /// Makes the keys what `writes` says, in that order. After an error some may be done: write the whole batch again.
    ///
    /// Whether a deadline is past is left to the server, whose clock is the one that counts.
    pub async fn write(&self, writes: &[RedisWrite]) -> Result<(), StoreError> {
        const OPERATION: &str = "write";
        let mut rest = writes;
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(chunk_len(rest));
            rest = after;
            let link = self.link().await?;
            let mut pipeline = Pipeline::with_capacity(2 * chunk.len() + 2);
            if !link.pxat {
                // SET and PEXPIREAT are two commands here; nobody may see, or be left with, a session that never ends.
                pipeline.cmd("MULTI");
            }
            for write in chunk {
                add_write(&mut pipeline, write, link.pxat);
            }
            if !link.pxat {
                pipeline.cmd("EXEC");
            }
            let replies = self.exchange_on(&link, OPERATION, &pipeline).await?;
            let outcome = if link.pxat {
                first_error(&replies)
            } else {
                transaction(replies).and_then(|r| first_error(&r))
            };
            outcome.map_err(|fault| self.error(fault, OPERATION))?;
        }
        Ok(())
    }

    /// Makes those keys that are not there, and leaves the others; answers which it made. Deadlines must lie ahead.
    pub async fn write_new(&self, keys: &[NewKey], now_ms: i64) -> Result<Vec<bool>, StoreError> {
        const OPERATION: &str = "write new";
        let mut made = Vec::with_capacity(keys.len());
        for chunk in keys.chunks(READ_CHUNK) {
            let mut pipeline = Pipeline::with_capacity(chunk.len());
            for NewKey { key, value, deadline } in chunk {
                let set = pipeline.cmd("SET").arg(&key[..]).arg(&value[..]).arg("NX");
                // What every version knows; the clocks are compared by `check`.
                if let Some(left) = deadline.remaining_ms(now_ms) {
                    set.arg("PX").arg(left.max(1));
                }
            }
            let replies = self.exchange(OPERATION, &pipeline).await?;
            first_error(&replies).map_err(|fault| self.error(fault, OPERATION))?;
            made.extend(replies.iter().map(|reply| !matches!(reply, Value::Nil)));
        }
        Ok(made)
    }

    /// Deletes a key that still holds `value`.
    pub async fn delete_if(&self, key: &Bytes, value: &Bytes) -> Result<(), StoreError> {
        let stored = self.read(std::slice::from_ref(key)).await?;
        if matches!(&stored[..], [Stored::Value { value: now, .. }] if now == value) {
            self.write(&[RedisWrite::Delete { key: key.clone() }]).await?;
        }
        Ok(())
    }

    /// Whether the ACL refuses this command; `KEY` in it stands for `key`. Other errors than that are no refusal.
    pub async fn is_refused(&self, command: &[&str], key: &[u8]) -> Result<bool, StoreError> {
        let mut pipeline = Pipeline::new();
        for (number, word) in command.iter().enumerate() {
            match (number, *word) {
                (0, name) => drop(pipeline.cmd(name)),
                (_, "KEY") => drop(pipeline.arg(key)),
                (_, word) => drop(pipeline.arg(word)),
            }
        }
        let replies = self.exchange("try", &pipeline).await?;
        Ok(matches!(&replies[..], [Value::ServerError(error)] if error.code() == "NOPERM"))
    }

    /// The id of the server's process; `None` where it tells none.
    pub async fn run_id(&self) -> Result<Option<String>, StoreError> {
        // A connection to a process that is gone is found to be closed.
        self.ping().await?;
        Ok(self.link().await?.identity.run_id.clone())
    }

    /// Commands that this store and its clones have sent so far.
    pub fn sent(&self) -> u64 {
        self.inner.sent.load(Relaxed)
    }

    /// Commands that the server has executed so far, whosever they were.
    pub async fn executed(&self) -> Result<u64, StoreError> {
        let stats = self.info("stats").await?;
        let executed = info_field(&stats, "total_commands_processed").and_then(|count| count.parse().ok());
        executed.ok_or_else(|| self.error(Fault::unexpected("INFO"), INFO))
    }

    async fn info(&self, section: &str) -> Result<String, StoreError> {
        let mut pipeline = Pipeline::new();
        pipeline.cmd("INFO").arg(section);
        let replies = self.exchange(INFO, &pipeline).await?;
        first_error(&replies).map_err(|fault| self.error(fault, INFO))?;
        let info = replies.first().and_then(text).map(str::to_owned);
        info.ok_or_else(|| self.error(Fault::unexpected("INFO"), INFO))
    }

    /// One step of `SCAN … MATCH glob COUNT count`: the next cursor (0 at the end) and the keys. A key may come twice.
    pub async fn scan(&self, cursor: u64, glob: &str, count: usize) -> Result<(u64, Vec<Bytes>), StoreError> {
        const OPERATION: &str = "scan";
        let mut pipeline = Pipeline::new();
        pipeline
            .cmd("SCAN")
            .arg(cursor)
            .arg("MATCH")
            .arg(glob)
            .arg("COUNT")
            .arg(count);
        let replies = self.exchange(OPERATION, &pipeline).await?;
        first_error(&replies).map_err(|fault| self.error(fault, OPERATION))?;
        scan_reply(replies).ok_or_else(|| self.error(Fault::unexpected("SCAN"), OPERATION))
    }

    /// The numbers of the databases that have keys.
    pub async fn databases(&self) -> Result<Vec<u32>, StoreError> {
        let info = self.info("keyspace").await?;
        let number = |line: &str| line.strip_prefix("db")?.split(':').next()?.parse().ok();
        Ok(info.lines().filter_map(number).collect())
    }

    /// The same server, another of its databases, over a connection of its own.
    pub fn numbered(&self, db: u32) -> RedisStore {
        let mut endpoint = self.inner.endpoint.clone();
        endpoint.db = db;
        RedisStore::new(endpoint)
    }

    /// Deletes every key of this database.
    pub async fn flush(&self) -> Result<(), StoreError> {
        let mut pipeline = Pipeline::new();
        pipeline.cmd("FLUSHDB");
        self.command("flush", &pipeline).await
    }

    /// Which of `keys` exist, in their order.
    pub async fn exists(&self, keys: &[Bytes]) -> Result<Vec<bool>, StoreError> {
        const OPERATION: &str = "exists";
        let mut found = Vec::with_capacity(keys.len());
        for chunk in keys.chunks(WRITE_CHUNK) {
            let mut pipeline = Pipeline::with_capacity(chunk.len());
            for key in chunk {
                pipeline.cmd("EXISTS").arg(&key[..]);
            }
            let replies = self.exchange(OPERATION, &pipeline).await?;
            first_error(&replies).map_err(|fault| self.error(fault, OPERATION))?;
            found.extend(
                replies
                    .iter()
                    .map(|reply| matches!(reply, Value::Int(count) if *count > 0)),
            );
        }
        Ok(found)
    }

    /// Writes a key that ends after a second, and deletes it: tells a read-only replica, a full server, a missing
    /// permission.
    pub async fn write_probe(&self, key: &str) -> Result<(), StoreError> {
        let mut pipeline = Pipeline::new();
        pipeline.cmd("SET").arg(key).arg("probe").arg("PX").arg(1000);
        pipeline.cmd("DEL").arg(key);
        self.command("write probe", &pipeline).await
    }

    async fn command(&self, operation: &'static str, pipeline: &Pipeline) -> Result<(), StoreError> {
        let replies = self.exchange(operation, pipeline).await?;
        first_error(&replies).map_err(|fault| self.error(fault, operation))
    }

    async fn exchange(&self, operation: &'static str, pipeline: &Pipeline) -> Result<Vec<Value>, StoreError> {
        let link = self.link().await?;
        self.exchange_on(&link, operation, pipeline).await
    }

    async fn exchange_on(
        &self,
        link: &Arc<Link>,
        operation: &'static str,
        pipeline: &Pipeline,
    ) -> Result<Vec<Value>, StoreError> {
        self.inner.sent.fetch_add(pipeline.len() as u64, Relaxed);
        match link.exchange(pipeline).await {
            Ok(replies) => Ok(replies),
            Err(fault) => {
                self.abandon(link).await;
                Err(self.error(fault, operation))
            }
        }
    }

    /// The connection, made where there is none. Those who wait while one of them fails to connect fail with it.
    async fn link(&self) -> Result<Arc<Link>, StoreError> {
        let asked = Instant::now();
        let mut slot = self.inner.slot.lock().await;
        if let Some(link) = &slot.link {
            if !link.is_closed() {
                return Ok(link.clone());
            }
            let identity = link.identity.clone();
            slot.give_up(identity);
        }
        if let Some((at, error)) = &slot.failed
            && *at >= asked
        {
            return Err(error.clone());
        }
        match Link::open(&self.inner.endpoint, &slot.abandoned).await {
            Ok(link) => {
                let link = Arc::new(link);
                slot.abandoned.clear();
                slot.failed = None;
                slot.link = Some(link.clone());
                Ok(link)
            }
            Err(fault) => {
                let error = self.error(fault, "connect");
                slot.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// Gives a connection up. Others that wait on it fail with it: what they sent is in doubt as well.
    async fn abandon(&self, link: &Arc<Link>) {
        let mut slot = self.inner.slot.lock().await;
        link.close();
        if slot.link.as_ref().is_some_and(|current| Arc::ptr_eq(current, link)) {
            slot.give_up(link.identity.clone());
        }
    }

    fn error(&self, fault: Fault, operation: &'static str) -> StoreError {
        StoreError::new(fault, &self.inner.endpoint, operation)
    }
}

impl Slot {
    fn give_up(&mut self, identity: Identity) {
        self.link = None;
        if self.abandoned.len() >= ABANDONED_MAX {
            self.abandoned.remove(0);
        }
        self.abandoned.push(identity);
    }
}

/// How many of `writes` go into one pipeline: at least one.
fn chunk_len(writes: &[RedisWrite]) -> usize {
    let mut bytes = 0_usize;
    let fits = writes.iter().take(WRITE_CHUNK).take_while(|write| {
        bytes = bytes.saturating_add(match write {
            RedisWrite::Put { value, .. } => value.len(),
            RedisWrite::Delete { .. } => 0,
        });
        bytes <= WRITE_CHUNK_BYTES
    });
    fits.count().max(1)
}

fn add_write(pipeline: &mut Pipeline, write: &RedisWrite, pxat: bool) {
    match write {
        // PXAT refuses what is not positive, where PEXPIREAT deletes.
        RedisWrite::Put {
            key,
            deadline: Deadline::At(ms),
            ..
        } if *ms <= 0 => {
            pipeline.cmd("DEL").arg(&key[..]);
        }
        RedisWrite::Put { key, value, deadline } => {
            let set = pipeline.cmd("SET").arg(&key[..]).arg(&value[..]);
            match deadline {
                Deadline::Never => {}
                Deadline::At(ms) if pxat => {
                    set.arg("PXAT").arg(*ms);
                }
                Deadline::At(ms) => {
                    pipeline.cmd("PEXPIREAT").arg(&key[..]).arg(*ms);
                }
            }
        }
        RedisWrite::Delete { key } => {
            pipeline.cmd("DEL").arg(&key[..]);
        }
    }
}

fn first_error(replies: &[Value]) -> Result<(), Fault> {
    match replies.iter().find_map(|reply| {
        if let Value::ServerError(error) = reply {
            Some(error)
        } else {
            None
        }
    }) {
        Some(error) => Err(Fault::reply(error)),
        None => Ok(()),
    }
}

/// The replies of a pipeline that begins with MULTI and ends with EXEC: what EXEC gave. The first error is the one that
/// counts, since those after it say no more than that the transaction was dropped.
fn transaction(mut replies: Vec<Value>) -> Result<Vec<Value>, Fault> {
    first_error(&replies)?;
    match replies.pop() {
        Some(Value::Array(results)) => Ok(results),
        _ => Err(Fault::unexpected("EXEC")),
    }
}

/// Makes TIME, then a value and an expiry per key, into what is stored.
fn pairs(results: Vec<Value>, keys: usize, absolute: bool) -> Result<Vec<Stored>, Fault> {
    let mut results = results.into_iter();
    let server_ms = results
        .next()
        .as_ref()
        .and_then(time_ms)
        .ok_or_else(|| Fault::unexpected("TIME"))?;
    let mut found = Vec::with_capacity(keys);
    for _ in 0..keys {
        let (Some(value), Some(expiry)) = (results.next(), results.next()) else {
            return Err(Fault::unexpected("EXEC"));
        };
        found.push(match (value, expiry) {
            (Value::ServerError(error), _) if error.code() == "WRONGTYPE" => Stored::WrongType,
            (Value::ServerError(error), _) | (_, Value::ServerError(error)) => return Err(Fault::reply(&error)),
            // -2: the key ended between the two.
            (Value::Nil, _) | (_, Value::Int(-2)) => Stored::Absent,
            (Value::BulkString(value), Value::Int(expiry)) => {
                let deadline = match expiry {
                    -1 => Deadline::Never,
                    ms if absolute => Deadline::At(ms),
                    ms => Deadline::At(server_ms.saturating_add(ms)),
                };
                Stored::Value {
                    value: value.into(),
                    deadline,
                }
            }
            _ => return Err(Fault::unexpected("GET")),
        });
    }
    Ok(found)
}

/// Whether the same value, read once, has the same end in both.
fn end_alike(a: &Stored, b: &Stored) -> bool {
    match (a, b) {
        (
            Stored::Value {
                deadline: Deadline::At(a),
                ..
            },
            Stored::Value {
                deadline: Deadline::At(b),
                ..
            },
        ) => a.abs_diff(*b) <= FULL_TOLERANCE_MS,
        (a, b) => a == b,
    }
}

fn scan_reply(mut replies: Vec<Value>) -> Option<(u64, Vec<Bytes>)> {
    let Some(Value::Array(parts)) = replies.pop() else {
        return None;
    };
    let [cursor, Value::Array(keys)] = <[Value; 2]>::try_from(parts).ok()? else {
        return None;
    };
    let cursor = text(&cursor)?.parse().ok()?;
    let keys = keys.into_iter().map(|key| {
        if let Value::BulkString(key) = key {
            Some(key.into())
        } else {
            None
        }
    });
    Some((cursor, keys.collect::<Option<Vec<Bytes>>>()?))
}
