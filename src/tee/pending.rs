//! What one sink still has to be told: per key the newest state, in the order in which the keys first changed.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use bytes::Bytes;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry as MapEntry;
use rustc_hash::FxBuildHasher;
use tokio::sync::{Notify, oneshot};

use super::SinkName;
use crate::session::Effect;

/// Values kept per sink, bytes. Past it only keys are kept (dirty) and read again when they are delivered.
pub const MAX_VALUE_BYTES: u64 = 256 * 1024 * 1024;

/// Who wants the key delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A client's write.
    Tee,
    Backfill,
    /// Something else than a client of the proxy has changed it at the authority, or deleted it.
    Repair,
    /// This store may lack it. Nothing says that it was changed or deleted at the authority.
    Refill,
    /// To be sure. Nothing says that this store has not what the authority has.
    Recheck,
}

#[derive(Debug)]
struct Entry {
    /// The oldest write that this state stands for.
    first_seq: u64,
    /// Counts changes, so that a delivery can tell whether what it delivered is still the newest.
    version: u64,
    since: Instant,
    effect: Effect,
    origin: Origin,
    /// A look at the authority was asked for since something may have been deleted there.
    suspect: bool,
    /// Wanted once more after what is pending has arrived.
    recheck: bool,
    /// Backfill is reading it, and no delivery has been told of it yet.
    held: bool,
}

impl Entry {
    fn may_differ(&self) -> bool {
        self.origin != Origin::Recheck || self.suspect
    }
}

/// A key taken for delivery. It stays pending until [`Pending::done`].
#[derive(Debug)]
pub struct Taken {
    pub key: Bytes,
    /// `Put` and `Delete` can be delivered as they are; any other must be read from the authority.
    pub effect: Effect,
    pub origin: Origin,
    version: u64,
    at: Instant,
}

/// Told when a state has arrived.
pub type Ack = oneshot::Receiver<()>;

/// Someone who waits until this version of a key, or a later one, has arrived.
#[derive(Debug)]
struct Waiter {
    version: u64,
    told: oneshot::Sender<()>,
}

/// The pending states of one sink.
#[derive(Debug)]
pub struct Pending {
    pub name: SinkName,
    enabled: AtomicBool,
    entries: DashMap<Bytes, Entry, FxBuildHasher>,
    /// Keys of `entries` that no delivery has taken, oldest first.
    queue: Mutex<VecDeque<Bytes>>,
    notify: Notify,
    value_bytes: AtomicU64,
    waiters: DashMap<Bytes, Vec<Waiter>, FxBuildHasher>,
    /// Somebody has waited: only then they are looked for.
    has_waiters: AtomicBool,
    /// Keys that wait because backfill marked them.
    backfilling: AtomicU64,
    pub delivered: AtomicU64,
    pub retries: AtomicU64,
    pub connected: AtomicBool,
    pub last_error: Mutex<Option<String>>,
}

impl Pending {
    pub fn new(name: SinkName, enabled: bool) -> Self {
        Pending {
            name,
            enabled: AtomicBool::new(enabled),
            entries: DashMap::default(),
            queue: Mutex::default(),
            notify: Notify::new(),
            value_bytes: AtomicU64::new(0),
            waiters: DashMap::default(),
            has_waiters: AtomicBool::new(false),
            backfilling: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            connected: AtomicBool::new(false),
            last_error: Mutex::default(),
        }
    }

    /// Whether anything is delivered here: no database may be configured, and `finish` detaches the source.
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Relaxed)
    }

    /// Stops keeping anything for this sink; what is pending is dropped, on purpose.
    pub fn disable(&self) {
        self.enabled.store(false, Relaxed);
        self.entries.clear();
        self.waiters.clear();
        self.queue.lock().expect("no panic while locked").clear();
        self.value_bytes.store(0, Relaxed);
        self.backfilling.store(0, Relaxed);
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn contains(&self, key: &Bytes) -> bool {
        self.entries.contains_key(key)
    }

    /// What is pending for `key`.
    pub fn effect(&self, key: &Bytes) -> Option<Effect> {
        self.entries.get(key).map(|entry| entry.effect.clone())
    }

    /// Whether a look at the authority is pending for `key`, because something may have been deleted.
    pub fn is_being_repaired(&self, key: &Bytes) -> bool {
        let entry = self.entries.get(key);
        entry.is_some_and(|entry| entry.effect == Effect::Unknown && entry.suspect)
    }

    /// Whether this store may have something else than the authority: more is pending for `key` than a look to be sure.
    pub fn may_differ(&self, key: &Bytes) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.may_differ())
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Keys that backfill marked and that are not delivered yet.
    pub fn backfilling(&self) -> u64 {
        self.backfilling.load(Relaxed)
    }

    /// A write happened.
    pub fn push(&self, key: &Bytes, seq: u64, effect: Effect) {
        if !self.is_enabled() {
            return;
        }
        let mut effect = effect;
        if let Effect::Put { value, .. } = &effect
            && self.value_bytes.load(Relaxed) + value.len() as u64 > MAX_VALUE_BYTES
        {
            effect = Effect::Unknown;
        }
        match self.entries.entry(key.clone()) {
            MapEntry::Occupied(mut entry) => {
                let entry = entry.get_mut();
                let newest = merge(&entry.effect, effect);
                self.account(Some(&entry.effect), Some(&newest));
                entry.suspect &= !newest.is_known();
                if entry.origin == Origin::Recheck {
                    entry.origin = Origin::Tee;
                }
                entry.effect = newest;
                entry.version += 1;
                self.release(key, entry);
                // A mark may have come between the write's record and its reply.
                entry.first_seq = entry.first_seq.min(seq);
            }
            MapEntry::Vacant(entry) => {
                self.account(None, Some(&effect));
                entry.insert(Entry {
                    first_seq: seq,
                    version: 0,
                    since: Instant::now(),
                    effect,
                    origin: Origin::Tee,
                    suspect: false,
                    recheck: false,
                    held: false,
                });
                self.enqueue(key.clone());
            }
        }
    }

    /// Resolves when what is pending for `key` now has arrived; `None` where nothing is.
    pub fn ack(&self, key: &Bytes) -> Option<Ack> {
        // The entry stays locked until the waiter is there: it cannot arrive in between.
        let entry = self.entries.get(key)?;
        self.has_waiters.store(true, Relaxed);
        let (told, ack) = oneshot::channel();
        let waiter = Waiter {
            version: entry.version,
            told,
        };
        self.waiters.entry(key.clone()).or_default().push(waiter);
        drop(entry);
        Some(ack)
    }

    fn tell_waiters(&self, taken: &Taken) {
        if !self.has_waiters.load(Relaxed) {
            return;
        }
        if let MapEntry::Occupied(mut entry) = self.waiters.entry(taken.key.clone()) {
            let (arrived, waiting) = entry.get_mut().drain(..).partition(|w| w.version <= taken.version);
            let arrived: Vec<Waiter> = arrived;
            *entry.get_mut() = waiting;
            if entry.get().is_empty() {
                entry.remove();
            }
            for waiter in arrived {
                // A client that has gone does not wait any more.
                let _ = waiter.told.send(());
            }
        }
    }

    /// Has the key read from the authority and delivered, unless something is pending for it already.
    pub fn mark(&self, key: &Bytes, seq: u64, origin: Origin) -> bool {
        self.insert(key, seq, origin, false)
    }

    /// The same for backfill, which reads the key itself and then says what it is, with [`Pending::supply`].
    pub fn hold(&self, key: &Bytes, seq: u64) -> bool {
        self.insert(key, seq, Origin::Backfill, true)
    }

    /// What a key that is held was when it was read. Where something has happened to it since, that is what is
    /// delivered; where nothing was read (`None`), the key is read when it is delivered.
    pub fn supply(&self, key: &Bytes, effect: Option<Effect>) {
        let Some(mut entry) = self.entries.get_mut(key) else {
            return;
        };
        if let Some(effect) = effect.filter(|_| entry.held) {
            self.account(Some(&entry.effect), Some(&effect));
            entry.effect = effect;
        }
        self.release(key, &mut entry);
    }

    fn release(&self, key: &Bytes, entry: &mut Entry) {
        if std::mem::take(&mut entry.held) {
            self.enqueue(key.clone());
        }
    }

    fn insert(&self, key: &Bytes, seq: u64, origin: Origin, held: bool) -> bool {
        if !self.is_enabled() {
            return false;
        }
        match self.entries.entry(key.clone()) {
            MapEntry::Occupied(mut entry) => {
                let entry = entry.get_mut();
                match origin {
                    // What is under way may be older than what the repair is asked for.
                    Origin::Repair => {
                        self.account(Some(&entry.effect), None);
                        entry.effect = Effect::Unknown;
                        entry.suspect = true;
                        entry.version += 1;
                        entry.first_seq = entry.first_seq.min(seq);
                        self.release(key, entry);
                    }
                    // What is under way is the best that is known: should the authority lose it, it would be gone.
                    Origin::Recheck | Origin::Refill => {
                        entry.recheck = true;
                        if origin == Origin::Refill && entry.origin == Origin::Recheck {
                            entry.origin = origin;
                        }
                    }
                    Origin::Tee | Origin::Backfill => {}
                }
                false
            }
            MapEntry::Vacant(entry) => {
                if origin == Origin::Backfill {
                    self.backfilling.fetch_add(1, Relaxed);
                }
                let effect = Effect::Unknown;
                entry.insert(Entry {
                    first_seq: seq,
                    version: 0,
                    since: Instant::now(),
                    effect,
                    origin,
                    suspect: origin == Origin::Repair,
                    recheck: false,
                    held,
                });
                if !held {
                    self.enqueue(key.clone());
                }
                true
            }
        }
    }

    /// Everything that is pending is to be read from the authority: it may have been deleted since.
    pub fn doubt_all(&self) {
        for mut entry in self.entries.iter_mut() {
            self.account(Some(&entry.effect), None);
            entry.effect = Effect::Unknown;
            entry.version += 1;
            entry.suspect = true;
            let key = entry.key().clone();
            self.release(&key, &mut entry);
        }
    }

    fn enqueue(&self, key: Bytes) {
        self.queue.lock().expect("no panic while locked").push_back(key);
        self.notify.notify_one();
    }

    fn account(&self, old: Option<&Effect>, new: Option<&Effect>) {
        let len = |effect: Option<&Effect>| match effect {
            Some(Effect::Put { value, .. }) => value.len() as u64,
            _ => 0,
        };
        self.value_bytes.fetch_add(len(new), Relaxed);
        self.value_bytes.fetch_sub(len(old), Relaxed);
    }

    /// Bytes of the values that are kept.
    pub fn value_bytes(&self) -> u64 {
        self.value_bytes.load(Relaxed)
    }

    /// Waits until there may be something to take. Cancel safe.
    pub async fn ready(&self) {
        loop {
            let notified = self.notify.notified();
            if !self.queue.lock().expect("no panic while locked").is_empty() {
                return;
            }
            notified.await;
        }
    }

    /// Keys that no delivery has taken.
    pub fn waiting(&self) -> usize {
        self.queue.lock().expect("no panic while locked").len()
    }

    /// Takes up to `max` keys with up to `max_bytes` of values, oldest first.
    pub fn take(&self, max: usize, max_bytes: usize) -> Vec<Taken> {
        let mut taken = Vec::new();
        let at = Instant::now();
        let mut bytes = 0;
        while taken.len() < max && bytes < max_bytes {
            let Some(key) = self.queue.lock().expect("no panic while locked").pop_front() else {
                break;
            };
            let Some(entry) = self.entries.get(&key) else { continue };
            if let Effect::Put { value, .. } = &entry.effect {
                bytes += value.len();
            }
            let effect = entry.effect.clone();
            let (origin, version) = (entry.origin, entry.version);
            drop(entry);
            taken.push(Taken {
                key,
                effect,
                origin,
                version,
                at,
            });
        }
        taken
    }

    /// What was taken has arrived. If the key changed meanwhile it waits again, else it is no longer pending.
    pub fn done(&self, taken: &Taken) {
        let removed = self
            .entries
            .remove_if(&taken.key, |_, entry| entry.version == taken.version);
        match removed {
            Some((_, entry)) => {
                self.account(Some(&entry.effect), None);
                if entry.origin == Origin::Backfill {
                    self.backfilling.fetch_sub(1, Relaxed);
                }
                self.delivered.fetch_add(1, Relaxed);
                if entry.recheck {
                    self.mark(&taken.key, entry.first_seq, Origin::Recheck);
                }
            }
            None => {
                // What waits now has changed since it was taken: a session that never rests is not behind for that.
                if let Some(mut entry) = self.entries.get_mut(&taken.key) {
                    entry.since = entry.since.max(taken.at);
                }
                self.put_back(taken);
            }
        }
        // After the removal: whoever comes to wait later finds nothing to wait for.
        self.tell_waiters(taken);
    }

    /// What was taken has not arrived: it waits again, at the end.
    pub fn put_back(&self, taken: &Taken) {
        if self.entries.contains_key(&taken.key) {
            self.enqueue(taken.key.clone());
        }
    }

    /// Keys whose state must be read from the authority.
    pub fn dirty(&self) -> u64 {
        self.entries.iter().filter(|entry| !entry.effect.is_known()).count() as u64
    }

    /// Those of them that this store may have otherwise than the authority.
    pub fn doubtful_keys(&self) -> Vec<Bytes> {
        let dirty = self
            .entries
            .iter()
            .filter(|entry| !entry.effect.is_known() && entry.may_differ());
        dirty.map(|entry| entry.key().clone()).collect()
    }

    /// Whether all that is pending is dirty.
    pub fn is_dirty_only(&self) -> bool {
        self.entries.iter().all(|entry| !entry.effect.is_known())
    }

    /// Seconds since the oldest pending change.
    pub fn lag_seconds(&self) -> f64 {
        self.entries
            .iter()
            .map(|entry| entry.since)
            .min()
            .map_or(0.0, |since| since.elapsed().as_secs_f64())
    }

    /// The oldest sequence number that is pending.
    pub fn first_seq(&self) -> Option<u64> {
        self.entries.iter().map(|entry| entry.first_seq).min()
    }

    /// Appends every pending key.
    pub fn collect(&self, keys: &mut Vec<(Bytes, u64)>) {
        keys.extend(self.entries.iter().map(|entry| (entry.key().clone(), entry.first_seq)));
    }

    pub fn failed(&self, error: &str) {
        self.retries.fetch_add(1, Relaxed);
        *self.last_error.lock().expect("no panic while locked") = Some(error.to_owned());
    }

    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().expect("no panic while locked").clone()
    }
}

/// The state after `old` (not yet delivered) and then `new`.
fn merge(old: &Effect, new: Effect) -> Effect {
    match (old, new) {
        (Effect::Put { value, .. }, Effect::Expire(deadline)) => Effect::Put {
            value: value.clone(),
            deadline,
        },
        (_, Effect::Expire(_)) => Effect::Unknown,
        (_, new) => new,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Deadline;

    const KEY: Bytes = Bytes::from_static(b"k");

    fn put(value: &'static str, at: i64) -> Effect {
        Effect::Put {
            value: Bytes::from_static(value.as_bytes()),
            deadline: Deadline::At(at),
        }
    }

    #[test]
    fn the_newest_state_is_delivered_and_an_extension_keeps_the_value() {
        let pending = Pending::new(SinkName::Redis, true);
        pending.push(&KEY, 1, put("a", 1));
        pending.push(&KEY, 2, put("b", 2));
        pending.push(&KEY, 3, Effect::Expire(Deadline::At(9)));
        let taken = pending.take(10, 100);
        assert_eq!(taken.len(), 1);
        assert_eq!(taken[0].effect, put("b", 9));
    }

    #[test]
    fn a_change_during_delivery_is_delivered_after_it() {
        let pending = Pending::new(SinkName::Redis, true);
        pending.push(&KEY, 1, put("a", 1));
        let taken = pending.take(10, 100).remove(0);
        pending.push(&KEY, 2, Effect::Delete);
        assert!(pending.take(10, 100).is_empty(), "one delivery per key at a time");
        pending.done(&taken);
        let again = pending.take(10, 100).remove(0);
        assert_eq!(again.effect, Effect::Delete);
        pending.done(&again);
        assert!(pending.is_empty());
        assert_eq!(pending.delivered.load(Relaxed), 1);
    }

    /// An authority that is lost takes what was only to be read there with it; so nothing known is given up without need.
    #[test]
    fn a_look_to_be_sure_gives_up_nothing_and_is_no_sign_of_a_deletion() {
        let pending = Pending::new(SinkName::Redis, true);
        pending.push(&KEY, 1, put("a", 1));
        pending.mark(&KEY, 2, Origin::Recheck);
        let taken = pending.take(10, 100).remove(0);
        assert_eq!(taken.effect, put("a", 1));
        pending.done(&taken);
        let again = pending.take(10, 100).remove(0);
        assert_eq!(again.effect, Effect::Unknown);
        assert!(!pending.is_being_repaired(&KEY));
        pending.mark(&KEY, 3, Origin::Repair);
        assert!(pending.is_being_repaired(&KEY));
        pending.push(&KEY, 4, put("b", 2));
        pending.mark(&KEY, 5, Origin::Recheck);
        assert!(!pending.is_being_repaired(&KEY), "a client has written it since");
    }

    /// What this store holds may be answered while the authority is away.
    #[test]
    fn a_look_to_be_sure_casts_no_doubt_on_what_is_there() {
        let pending = Pending::new(SinkName::Redis, true);
        assert!(!pending.may_differ(&KEY));
        pending.mark(&KEY, 1, Origin::Recheck);
        assert!(!pending.may_differ(&KEY) && pending.doubtful_keys().is_empty());
        pending.push(&KEY, 2, Effect::Unknown);
        assert!(pending.may_differ(&KEY), "a write may have happened");
        assert_eq!(pending.doubtful_keys(), [KEY]);
        for origin in [Origin::Repair, Origin::Refill] {
            let pending = Pending::new(SinkName::Redis, true);
            pending.mark(&KEY, 1, Origin::Recheck);
            pending.mark(&KEY, 2, origin);
            assert!(pending.may_differ(&KEY), "{origin:?}");
        }
    }

    #[test]
    fn a_session_that_never_rests_is_not_behind() {
        let pending = Pending::new(SinkName::Redis, true);
        pending.push(&KEY, 1, put("a", 1));
        std::thread::sleep(std::time::Duration::from_millis(50));
        let taken = pending.take(10, 100).remove(0);
        pending.push(&KEY, 2, put("b", 2));
        assert!(pending.lag_seconds() >= 0.05);
        pending.done(&taken);
        assert!(!pending.is_empty() && pending.lag_seconds() < 0.05);
    }

    #[test]
    fn backfill_never_replaces_what_the_tee_has() {
        let pending = Pending::new(SinkName::Redis, true);
        pending.push(&KEY, 1, Effect::Delete);
        assert!(!pending.mark(&KEY, 2, Origin::Backfill));
        assert_eq!(pending.take(1, 1)[0].effect, Effect::Delete);
        assert_eq!(pending.backfilling(), 0);
    }

    #[test]
    fn what_backfill_read_gives_way_to_what_happened_since() {
        let pending = Pending::new(SinkName::Redis, true);
        assert!(pending.hold(&KEY, 1));
        assert!(pending.take(1, 1).is_empty(), "it is being read");
        pending.supply(&KEY, Some(put("a", 1)));
        let taken = pending.take(1, 1).remove(0);
        assert_eq!(taken.effect, put("a", 1));
        pending.done(&taken);
        assert_eq!((pending.backfilling(), pending.value_bytes()), (0, 0));

        let changes: [fn(&Pending); 3] = [
            |pending| pending.push(&KEY, 3, Effect::Delete),
            |pending| assert!(!pending.mark(&KEY, 3, Origin::Repair)),
            Pending::doubt_all,
        ];
        for (change, expected) in changes.iter().zip([Effect::Delete, Effect::Unknown, Effect::Unknown]) {
            assert!(pending.hold(&KEY, 2));
            change(&pending);
            pending.supply(&KEY, Some(put("a", 1)));
            let taken = pending.take(2, 1);
            assert_eq!(taken.len(), 1);
            assert_eq!(taken[0].effect, expected);
            pending.done(&taken[0]);
            assert!(pending.is_empty() && pending.value_bytes() == 0);
        }
    }

    #[test]
    fn past_the_limit_only_keys_are_kept() {
        let pending = Pending::new(SinkName::Redis, true);
        pending.value_bytes.store(MAX_VALUE_BYTES, Relaxed);
        pending.push(&KEY, 1, put("a", 1));
        assert_eq!(pending.take(1, 1)[0].effect, Effect::Unknown);
        assert_eq!(pending.dirty(), 1);
    }
}
