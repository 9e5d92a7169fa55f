//! From a reply to the other stores: takes each session write from the proxy, keeps it until every sink has it.
//!
//! State, not history, is what travels: per key the newest effect wins. The path of a write is
//! [`Tee::begin`] before the command is sent (so that two writes in flight on different connections are noticed, and so
//! that the journal knows the key), [`Tee::settle`] when its reply is there, and then one [`pending::Pending`] per sink,
//! which a delivery task of that sink empties. All that is known of a key on this path is in one map (`ledger`). Nothing
//! here waits: the proxy calls it on the reply path.
//!
//! A key whose state only the authority can tell is *dirty*: the delivery task reads it there, value and deadline, at
//! the moment it delivers. Repair is a key marked dirty; backfill reserves keys before it reads them (`reserved`). So
//! neither can overtake a write or undo a logout: per sink and key there is one delivery at a time, and what a client did
//! since goes before what was read.

mod counted;
pub mod delivery;
mod ledger;
mod linger;
pub mod pending;
pub mod rescue;
mod reserved;
pub mod restore;
mod rows;
#[cfg(feature = "sabotage")]
mod sabotage;
pub mod shield;
pub mod tombstones;
pub mod trust;
mod writes;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::session::{Effect, KeyPatterns};
pub use counted::Counted;
pub use ledger::Origin;
use ledger::{KeyState, Ledger};
pub use pending::{Ack, Pending};
pub use rescue::Rescue;
pub use reserved::Reserved;
pub use restore::Restore;
pub use rows::{Rows, SiteRows};
pub use shield::Shield;
use writes::Writes;

/// Which of the stores that are not the authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinkName {
    /// The Redis that is not the authority.
    Redis,
    Database,
}

/// All of them.
const SINKS: [SinkName; 2] = [SinkName::Redis, SinkName::Database];

impl SinkName {
    /// As metrics and logs have it.
    pub fn label(self) -> &'static str {
        match self {
            SinkName::Redis => "target",
            SinkName::Database => "database",
        }
    }
}

/// Takes session writes and keeps them for the sinks.
#[derive(Debug)]
pub struct Tee {
    pub patterns: KeyPatterns,
    seq: AtomicU64,
    ledger: Arc<Ledger>,
    writes: Writes,
    pub redis: Pending,
    pub database: Pending,
    pub session_writes: Counted,
    /// The oldest wipe (FLUSHDB and its like) whose aftermath is not yet dealt with.
    wipe: Mutex<Option<u64>>,
    pub wiped: tokio::sync::Notify,
    digest_key: [u8; 16],
    bypassing: AtomicU64,
    #[cfg(feature = "sabotage")]
    sabotage: sabotage::Sabotage,
}

impl Tee {
    /// `first_seq` must be larger than any sequence number in the journal.
    pub fn new(patterns: KeyPatterns, first_seq: u64, database: bool, digest_key: [u8; 16]) -> Self {
        let ledger: Arc<Ledger> = Arc::default();
        Tee {
            patterns,
            seq: AtomicU64::new(first_seq),
            writes: Writes::new(ledger.clone()),
            redis: Pending::new(SinkName::Redis, true, ledger.clone()),
            database: Pending::new(SinkName::Database, database, ledger.clone()),
            ledger,
            session_writes: Counted::default(),
            wipe: Mutex::new(None),
            wiped: tokio::sync::Notify::new(),
            digest_key,
            bypassing: AtomicU64::new(0),
            #[cfg(feature = "sabotage")]
            sabotage: sabotage::Sabotage::default(),
        }
    }

    pub fn sinks(&self) -> [&Pending; 2] {
        [&self.redis, &self.database]
    }

    pub fn sink(&self, name: SinkName) -> &Pending {
        match name {
            SinkName::Redis => &self.redis,
            SinkName::Database => &self.database,
        }
    }

    /// A write to `key` is about to be sent on `upstream`. Answers its sequence number, for the journal.
    pub fn begin(&self, upstream: u64, key: &Bytes) -> u64 {
        self.writes.begin(upstream, key, || self.seq.fetch_add(1, Relaxed))
    }

    /// The write's reply is there and says that `effect` happened (`None`: nothing did).
    pub fn settle(&self, key: &Bytes, effect: Option<Effect>) {
        self.writes.settle(key, effect.is_some(), |key, state| {
            let (overlapped, seq) = (state.writes.overlapped, state.writes.first_seq);
            let effect = effect.filter(|_| !overlapped).unwrap_or(Effect::Unknown);
            self.session_writes.note(&effect);
            #[cfg(feature = "sabotage")]
            let effects = self.sabotage.tamper(key, effect);
            #[cfg(not(feature = "sabotage"))]
            let effects = [effect];
            for effect in effects {
                self.push(key, state, seq, &effect);
            }
        });
    }

    fn push(&self, key: &Bytes, state: &mut KeyState, seq: u64, effect: &Effect) {
        for sink in self.sinks() {
            sink.push(key, state.of_mut(sink.name), seq, effect);
        }
    }

    /// The connection was lost with the write on it: it may have happened or not.
    pub fn abandon(&self, key: &Bytes) {
        self.settle(key, Some(Effect::Unknown));
    }

    /// Marks a key dirty on every sink that has nothing pending for it. Answers how many sinks took it.
    pub fn mark(&self, key: &Bytes, origin: Origin) -> usize {
        if origin == Origin::Repair {
            // What is in flight may have been executed before the change that is looked after.
            self.writes.doubt(key);
        }
        let seq = self.seq.load(Relaxed);
        self.mark_since(key, origin, seq)
    }

    /// The same for a record of the journal that must be kept until the key is delivered.
    fn mark_since(&self, key: &Bytes, origin: Origin, seq: u64) -> usize {
        self.sinks()
            .into_iter()
            .filter(|sink| sink.mark(key, seq, origin))
            .count()
    }

    /// Takes the keys that some sink has nothing pending for, so that backfill can read them for all sinks at once.
    pub fn reserve(&self, keys: impl IntoIterator<Item = Bytes>) -> Reserved<'_> {
        let seq = self.seq.load(Relaxed);
        let mut keys: Vec<Bytes> = keys.into_iter().collect();
        keys.retain(|key| self.sinks().into_iter().filter(|sink| sink.hold(key, seq)).count() > 0);
        Reserved::new(self, keys)
    }

    /// Marks a key that something else changed, for good: `record` gets the sequence number for the journal.
    pub fn mark_recorded(&self, key: &Bytes, record: impl FnOnce(u64)) {
        self.writes.doubt(key);
        let mut state = self.ledger.open(key);
        // Taken with the key locked, so that no search for the oldest unfinished write can miss it in between.
        let seq = self.seq.fetch_add(1, Relaxed);
        let (key, of_key) = state.pair_mut();
        for sink in self.sinks() {
            sink.mark_locked(key, of_key.of_mut(sink.name), seq, Origin::Repair);
        }
        self.ledger.close(state);
        record(seq);
    }

    /// Marks a key that the pending wipe may have touched: its record stays until the key is delivered.
    pub fn mark_wiped(&self, key: &Bytes) {
        self.writes.doubt(key);
        let seq = self.pending_wipe().unwrap_or_else(|| self.head());
        self.mark_since(key, Origin::Repair, seq);
    }

    /// Takes over what an earlier run left in the journal.
    pub fn replay(&self, key: &Bytes, seq: u64) {
        let mut state = self.ledger.open(key);
        let (key, state) = state.pair_mut();
        self.push(key, state, seq, &Effect::Unknown);
    }

    /// A command that touches every key is about to be sent. Answers its sequence number, for the journal.
    pub fn begin_wipe(&self) -> u64 {
        let mut wipe = self.wipe.lock().expect("no panic while locked");
        let seq = self.seq.fetch_add(1, Relaxed);
        wipe.get_or_insert(seq);
        seq
    }

    /// A wipe of an earlier run, found in the journal.
    pub fn replay_wipe(&self, seq: u64) {
        self.wipe.lock().expect("no panic while locked").get_or_insert(seq);
        self.wiped.notify_one();
    }

    /// The wipe's reply is there (or lost): the sinks must be compared with the authority. What is pending, or in flight,
    /// may have been executed before it.
    pub fn settle_wipe(&self) {
        self.writes.doubt_all();
        for sink in self.sinks() {
            sink.doubt_all();
        }
        self.wiped.notify_one();
    }

    /// The wipe that waits to be dealt with, for [`Tee::wipe_done`].
    pub fn pending_wipe(&self) -> Option<u64> {
        *self.wipe.lock().expect("no panic while locked")
    }

    /// Everything that the wipe could have touched is marked dirty. Another one may have come meanwhile: `now` is the
    /// sequence number read before the sinks were looked through.
    pub fn wipe_done(&self, now: u64) {
        let mut wipe = self.wipe.lock().expect("no panic while locked");
        if wipe.is_some_and(|seq| seq < now) {
            *wipe = None;
        }
    }

    /// The next sequence number.
    pub fn head(&self) -> u64 {
        self.seq.load(Relaxed)
    }

    /// Every write with a smaller sequence number has reached every sink.
    pub fn low_watermark(&self) -> u64 {
        let head = self.head();
        let mut low = head.min(self.pending_wipe().unwrap_or(head));
        self.ledger
            .visit(|_, state| low = low.min(state.first_seq().unwrap_or(head)));
        low
    }

    /// Every key that some sink still lacks, with the oldest sequence number: what a compaction of the journal keeps.
    pub fn unfinished(&self) -> Vec<(Bytes, u64)> {
        let mut keys = Vec::new();
        self.ledger
            .visit(|key, state| keys.extend(state.first_seq().map(|seq| (key.clone(), seq))));
        keys
    }

    /// Whether a client's write to `key` is sent and not answered.
    pub fn is_in_flight(&self, key: &Bytes) -> bool {
        self.writes.contains(key)
    }

    /// Whether a write to `key` is in flight or on its way to some sink.
    pub fn is_unfinished(&self, key: &Bytes) -> bool {
        self.writes.contains(key) || self.sinks().iter().any(|sink| sink.contains(key))
    }

    /// Says whether the authority tells of all writes. Answers whether it did before.
    pub fn set_watched(&self, watched: bool) -> bool {
        self.writes.set_watched(watched)
    }

    /// The authority refuses to tell of writes.
    pub fn end_watch(&self) {
        self.writes.end_watch();
    }

    /// The authority is about to be asked to tell of all writes.
    pub fn begin_watch(&self) {
        self.writes.begin_watch();
    }

    pub fn is_watched(&self) -> bool {
        self.writes.is_watched()
    }

    /// The proxy itself is about to change `key` at the authority, and will be told of it.
    pub fn expect_told(&self, key: &Bytes) {
        self.writes.expect_told(key);
    }

    /// The authority told of a change of `key`. Answers whether it was a write that came through here.
    pub fn told(&self, key: &[u8]) -> bool {
        self.writes.told(key)
    }

    /// Forgets old writes; called now and then.
    pub fn age(&self) {
        for key in self.writes.age() {
            self.mark(&key, Origin::Recheck);
        }
    }

    /// A write bypassed the proxy.
    pub fn note_bypass(&self) {
        self.bypassing.fetch_add(1, Relaxed);
    }

    pub fn bypassing_writes(&self) -> u64 {
        self.bypassing.load(Relaxed)
    }

    /// Whether every write that was settled has reached every sink, and none is in flight.
    pub fn is_drained(&self) -> bool {
        self.writes.is_idle() && self.pending_wipe().is_none() && self.sinks().iter().all(|sink| sink.is_empty())
    }

    /// A short keyed digest of a session key: what logs and the page show instead of the credential.
    pub fn digest(&self, key: &[u8]) -> String {
        digest(&self.digest_key, key)
    }
}

/// The first 40 bits of HMAC-SHA256, in hex.
pub fn digest(digest_key: &[u8; 16], key: &[u8]) -> String {
    use hmac::{Hmac, KeyInit, Mac};
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(digest_key).expect("any length of key is good");
    mac.update(key);
    mac.finalize().into_bytes()[..5]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{Deadline, Engine};

    fn tee() -> Tee {
        Tee::new(KeyPatterns::from_django("", "1", Engine::Cache), 1, true, [7; 16])
    }

    fn put(value: &'static str) -> Effect {
        Effect::Put {
            value: Bytes::from_static(value.as_bytes()),
            deadline: Deadline::At(1),
        }
    }

    const KEY: Bytes = Bytes::from_static(b"k");

    fn state(tee: &Tee) -> Option<Effect> {
        tee.redis
            .take(10, 1_000_000)
            .into_iter()
            .next()
            .map(|taken| taken.effect)
    }

    #[test]
    fn writes_on_one_connection_keep_their_order() {
        let tee = tee();
        tee.begin(1, &KEY);
        tee.begin(1, &KEY);
        tee.settle(&KEY, Some(put("a")));
        tee.settle(&KEY, Some(put("b")));
        assert_eq!(state(&tee), Some(put("b")));
    }

    #[test]
    fn writes_on_two_connections_at_once_are_read_again_after_both() {
        let tee = tee();
        tee.begin(1, &KEY);
        tee.begin(2, &KEY);
        tee.settle(&KEY, Some(put("a")));
        assert_eq!(state(&tee), Some(Effect::Unknown));
        tee.settle(&KEY, Some(put("b")));
        assert_eq!(state(&tee), None, "already taken, not yet done");
        assert!(!tee.redis.is_empty());
    }

    #[test]
    fn the_watermark_waits_for_what_is_about_to_be_recorded() {
        let tee = tee();
        let mut recorded = None;
        tee.mark_recorded(&KEY, |seq| recorded = Some((seq, tee.low_watermark())));
        assert_eq!(recorded, Some((tee.head() - 1, tee.head() - 1)));
    }

    #[test]
    fn the_watermark_waits_for_what_is_in_flight_or_pending() {
        let tee = tee();
        let seq = tee.begin(1, &KEY);
        tee.begin(1, &Bytes::from_static(b"other"));
        assert_eq!(tee.low_watermark(), seq);
        tee.settle(&KEY, None);
        assert_eq!(tee.low_watermark(), seq + 1);
        tee.settle(&Bytes::from_static(b"other"), Some(put("a")));
        assert_eq!(tee.low_watermark(), seq + 1);
        for sink in tee.sinks() {
            for taken in sink.take(10, 1000) {
                sink.done(&taken);
            }
        }
        assert_eq!(tee.low_watermark(), tee.head());
        assert!(tee.is_drained());
    }
}
