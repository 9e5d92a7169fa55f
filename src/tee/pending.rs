//! What one sink still has to be told: per key the newest state, in the order in which the keys first changed.

use std::collections::VecDeque;
use std::sync::atomic::{
    AtomicBool, AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry as MapEntry;
use rustc_hash::FxBuildHasher;
use tokio::sync::{Notify, oneshot};

use super::SinkName;
use super::ledger::{Ledger, Origin, Waiting};
use crate::session::Effect;

/// Values kept per sink, bytes. Past it only keys are kept (dirty) and read again when they are delivered.
pub const MAX_VALUE_BYTES: u64 = 256 * 1024 * 1024;

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
    ledger: Arc<Ledger>,
    /// How many keys something is pending for.
    len: AtomicUsize,
    /// Those of them that no delivery has taken, oldest first.
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
    pub(super) fn new(name: SinkName, enabled: bool, ledger: Arc<Ledger>) -> Self {
        Pending {
            name,
            enabled: AtomicBool::new(enabled),
            ledger,
            len: AtomicUsize::new(0),
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
        self.ledger.sweep(|_, state| {
            if state.of_mut(self.name).take().is_some() {
                self.len.fetch_sub(1, Relaxed);
            }
        });
        self.waiters.clear();
        self.queue.lock().expect("no panic while locked").clear();
        self.value_bytes.store(0, Relaxed);
        self.backfilling.store(0, Relaxed);
    }

    pub fn len(&self) -> usize {
        self.len.load(Acquire)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Answers `see` of what is pending for `key`; `None` where nothing is.
    fn look<T>(&self, key: &Bytes, see: impl FnOnce(&Waiting) -> T) -> Option<T> {
        self.ledger.get(key)?.of(self.name).map(see)
    }

    /// Shows all that is pending.
    fn visit(&self, mut see: impl FnMut(&Bytes, &Waiting)) {
        self.ledger.visit(|key, state| {
            if let Some(waiting) = state.of(self.name) {
                see(key, waiting);
            }
        });
    }

    pub fn contains(&self, key: &Bytes) -> bool {
        self.look(key, |_| ()).is_some()
    }

    /// What is pending for `key`.
    pub fn effect(&self, key: &Bytes) -> Option<Effect> {
        self.look(key, |waiting| waiting.effect.clone())
    }

    /// Whether a look at the authority is pending for `key`, because something may have been deleted.
    pub fn is_being_repaired(&self, key: &Bytes) -> bool {
        self.look(key, |waiting| waiting.effect == Effect::Unknown && waiting.suspect) == Some(true)
    }

    /// Whether this store may have something else than the authority: more is pending for `key` than a look to be sure.
    pub fn may_differ(&self, key: &Bytes) -> bool {
        self.look(key, Waiting::may_differ) == Some(true)
    }

    /// Keys that backfill marked and that are not delivered yet.
    pub fn backfilling(&self) -> u64 {
        self.backfilling.load(Relaxed)
    }

    /// A write happened. `slot` is this sink's place in what is known of `key`, which is locked.
    pub(super) fn push(&self, key: &Bytes, slot: &mut Option<Waiting>, seq: u64, effect: &Effect) {
        if !self.is_enabled() {
            return;
        }
        let effect = match effect {
            Effect::Put { value, .. } if self.value_bytes.load(Relaxed) + value.len() as u64 > MAX_VALUE_BYTES => {
                Effect::Unknown
            }
            effect => effect.clone(),
        };
        let Some(waiting) = slot else {
            self.account(None, Some(&effect));
            self.fill(slot, seq, effect, Origin::Tee, false);
            self.enqueue(key.clone());
            return;
        };
        let newest = merge(&waiting.effect, effect);
        self.account(Some(&waiting.effect), Some(&newest));
        waiting.suspect &= !newest.is_known();
        if waiting.origin == Origin::Recheck {
            waiting.origin = Origin::Tee;
        }
        waiting.effect = newest;
        waiting.version += 1;
        self.release(key, waiting);
        // A mark may have come between the write's record and its reply.
        waiting.first_seq = waiting.first_seq.min(seq);
    }

    fn fill(&self, slot: &mut Option<Waiting>, seq: u64, effect: Effect, origin: Origin, held: bool) {
        *slot = Some(Waiting {
            first_seq: seq,
            version: 0,
            since: Instant::now(),
            effect,
            origin,
            suspect: origin == Origin::Repair,
            recheck: false,
            held,
        });
        self.len.fetch_add(1, Relaxed);
    }

    /// Resolves when what is pending for `key` now has arrived; `None` where nothing is.
    pub fn ack(&self, key: &Bytes) -> Option<Ack> {
        // The entry stays locked until the waiter is there: it cannot arrive in between.
        self.look(key, |waiting| {
            self.has_waiters.store(true, Relaxed);
            let (told, ack) = oneshot::channel();
            let version = waiting.version;
            let waiter = Waiter { version, told };
            self.waiters.entry(key.clone()).or_default().push(waiter);
            ack
        })
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

    /// The same, with the key's lock held.
    pub(super) fn mark_locked(&self, key: &Bytes, slot: &mut Option<Waiting>, seq: u64, origin: Origin) -> bool {
        self.is_enabled() && self.put(key, slot, seq, origin, false)
    }

    /// The same for backfill, which reads the key itself and then says what it is, with [`Pending::supply`].
    pub fn hold(&self, key: &Bytes, seq: u64) -> bool {
        self.insert(key, seq, Origin::Backfill, true)
    }

    /// What a key that is held was when it was read. Where something has happened to it since, that is what is
    /// delivered; where nothing was read (`None`), the key is read when it is delivered.
    pub fn supply(&self, key: &Bytes, effect: Option<Effect>) {
        let Some(mut state) = self.ledger.get_mut(key) else {
            return;
        };
        let (key, state) = state.pair_mut();
        let Some(waiting) = state.of_mut(self.name) else { return };
        if let Some(effect) = effect.filter(|_| waiting.held) {
            self.account(Some(&waiting.effect), Some(&effect));
            waiting.effect = effect;
        }
        self.release(key, waiting);
    }

    fn release(&self, key: &Bytes, waiting: &mut Waiting) {
        if std::mem::take(&mut waiting.held) {
            self.enqueue(key.clone());
        }
    }

    fn insert(&self, key: &Bytes, seq: u64, origin: Origin, held: bool) -> bool {
        if !self.is_enabled() {
            return false;
        }
        let mut state = self.ledger.open(key);
        let (key, state) = state.pair_mut();
        self.put(key, state.of_mut(self.name), seq, origin, held)
    }

    fn put(&self, key: &Bytes, slot: &mut Option<Waiting>, seq: u64, origin: Origin, held: bool) -> bool {
        let Some(waiting) = slot else {
            if origin == Origin::Backfill {
                self.backfilling.fetch_add(1, Relaxed);
            }
            self.fill(slot, seq, Effect::Unknown, origin, held);
            if !held {
                self.enqueue(key.clone());
            }
            return true;
        };
        match origin {
            // What is under way may be older than what the repair is asked for.
            Origin::Repair => {
                waiting.first_seq = waiting.first_seq.min(seq);
                self.doubt(key, waiting);
            }
            // What is under way is the best that is known: should the authority lose it, it would be gone.
            Origin::Recheck | Origin::Refill => {
                waiting.recheck = true;
                if origin == Origin::Refill && waiting.origin == Origin::Recheck {
                    waiting.origin = origin;
                }
            }
            Origin::Tee | Origin::Backfill => {}
        }
        false
    }

    /// What is pending is to be read from the authority: it may have been deleted since.
    fn doubt(&self, key: &Bytes, waiting: &mut Waiting) {
        self.account(Some(&waiting.effect), None);
        waiting.effect = Effect::Unknown;
        waiting.version += 1;
        waiting.suspect = true;
        self.release(key, waiting);
    }

    /// The same for everything that is pending.
    pub fn doubt_all(&self) {
        self.ledger.visit_mut(|key, state| {
            if let Some(waiting) = state.of_mut(self.name) {
                self.doubt(key, waiting);
            }
        });
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
            let now = self.look(&key, |waiting| {
                (waiting.effect.clone(), waiting.origin, waiting.version)
            });
            let Some((effect, origin, version)) = now else { continue };
            if let Effect::Put { value, .. } = &effect {
                bytes += value.len();
            }
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
        if let Some(mut state) = self.ledger.get_mut(&taken.key) {
            let slot = state.of_mut(self.name);
            if let Some(arrived) = slot.take_if(|waiting| waiting.version == taken.version) {
                self.ledger.close(state);
                self.account(Some(&arrived.effect), None);
                if arrived.origin == Origin::Backfill {
                    self.backfilling.fetch_sub(1, Relaxed);
                }
                self.delivered.fetch_add(1, Relaxed);
                if arrived.recheck {
                    self.mark(&taken.key, arrived.first_seq, Origin::Recheck);
                }
                // Only now, so that nobody takes it for drained in between.
                self.len.fetch_sub(1, Release);
            } else if let Some(waiting) = slot {
                // What waits now has changed since it was taken: a session that never rests is not behind for that.
                waiting.since = waiting.since.max(taken.at);
                self.enqueue(taken.key.clone());
            }
        }
        // After the removal: whoever comes to wait later finds nothing to wait for.
        self.tell_waiters(taken);
    }

    /// What was taken has not arrived: it waits again, at the end.
    pub fn put_back(&self, taken: &Taken) {
        if self.contains(&taken.key) {
            self.enqueue(taken.key.clone());
        }
    }

    /// Keys whose state must be read from the authority.
    pub fn dirty(&self) -> u64 {
        let mut dirty = 0;
        self.visit(|_, waiting| dirty += u64::from(!waiting.effect.is_known()));
        dirty
    }

    /// Those of them that this store may have otherwise than the authority.
    pub fn doubtful_keys(&self) -> Vec<Bytes> {
        let mut keys = Vec::new();
        self.visit(|key, waiting| {
            if !waiting.effect.is_known() && waiting.may_differ() {
                keys.push(key.clone());
            }
        });
        keys
    }

    /// Whether all that is pending is dirty.
    pub fn is_dirty_only(&self) -> bool {
        let mut only = true;
        self.visit(|_, waiting| only &= !waiting.effect.is_known());
        only
    }

    /// Seconds since the oldest pending change.
    pub fn lag_seconds(&self) -> f64 {
        let mut oldest: Option<Instant> = None;
        self.visit(|_, waiting| oldest = Some(oldest.map_or(waiting.since, |oldest| oldest.min(waiting.since))));
        oldest.map_or(0.0, |since| since.elapsed().as_secs_f64())
    }

    /// The oldest sequence number that is pending.
    pub fn first_seq(&self) -> Option<u64> {
        let mut first: Option<u64> = None;
        self.visit(|_, waiting| first = Some(first.map_or(waiting.first_seq, |first| first.min(waiting.first_seq))));
        first
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

    fn nothing() -> Pending {
        Pending::new(SinkName::Redis, true, Arc::default())
    }

    fn push(pending: &Pending, seq: u64, effect: Effect) {
        let mut state = pending.ledger.open(&KEY);
        let (key, state) = state.pair_mut();
        pending.push(key, state.of_mut(SinkName::Redis), seq, &effect);
    }

    #[test]
    fn the_newest_state_is_delivered_and_an_extension_keeps_the_value() {
        let pending = nothing();
        push(&pending, 1, put("a", 1));
        push(&pending, 2, put("b", 2));
        push(&pending, 3, Effect::Expire(Deadline::At(9)));
        let taken = pending.take(10, 100);
        assert_eq!(taken.len(), 1);
        assert_eq!(taken[0].effect, put("b", 9));
    }

    #[test]
    fn a_change_during_delivery_is_delivered_after_it() {
        let pending = nothing();
        push(&pending, 1, put("a", 1));
        let taken = pending.take(10, 100).remove(0);
        push(&pending, 2, Effect::Delete);
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
        let pending = nothing();
        push(&pending, 1, put("a", 1));
        pending.mark(&KEY, 2, Origin::Recheck);
        let taken = pending.take(10, 100).remove(0);
        assert_eq!(taken.effect, put("a", 1));
        pending.done(&taken);
        let again = pending.take(10, 100).remove(0);
        assert_eq!(again.effect, Effect::Unknown);
        assert!(!pending.is_being_repaired(&KEY));
        pending.mark(&KEY, 3, Origin::Repair);
        assert!(pending.is_being_repaired(&KEY));
        push(&pending, 4, put("b", 2));
        pending.mark(&KEY, 5, Origin::Recheck);
        assert!(!pending.is_being_repaired(&KEY), "a client has written it since");
    }

    /// What this store holds may be answered while the authority is away.
    #[test]
    fn a_look_to_be_sure_casts_no_doubt_on_what_is_there() {
        let pending = nothing();
        assert!(!pending.may_differ(&KEY));
        pending.mark(&KEY, 1, Origin::Recheck);
        assert!(!pending.may_differ(&KEY) && pending.doubtful_keys().is_empty());
        push(&pending, 2, Effect::Unknown);
        assert!(pending.may_differ(&KEY), "a write may have happened");
        assert_eq!(pending.doubtful_keys(), [KEY]);
        for origin in [Origin::Repair, Origin::Refill] {
            let pending = nothing();
            pending.mark(&KEY, 1, Origin::Recheck);
            pending.mark(&KEY, 2, origin);
            assert!(pending.may_differ(&KEY), "{origin:?}");
        }
    }

    #[test]
    fn a_session_that_never_rests_is_not_behind() {
        let pending = nothing();
        push(&pending, 1, put("a", 1));
        std::thread::sleep(std::time::Duration::from_millis(50));
        let taken = pending.take(10, 100).remove(0);
        push(&pending, 2, put("b", 2));
        assert!(pending.lag_seconds() >= 0.05);
        pending.done(&taken);
        assert!(!pending.is_empty() && pending.lag_seconds() < 0.05);
    }

    #[test]
    fn backfill_never_replaces_what_the_tee_has() {
        let pending = nothing();
        push(&pending, 1, Effect::Delete);
        assert!(!pending.mark(&KEY, 2, Origin::Backfill));
        assert_eq!(pending.take(1, 1)[0].effect, Effect::Delete);
        assert_eq!(pending.backfilling(), 0);
    }

    #[test]
    fn what_backfill_read_gives_way_to_what_happened_since() {
        let pending = nothing();
        assert!(pending.hold(&KEY, 1));
        assert!(pending.take(1, 1).is_empty(), "it is being read");
        pending.supply(&KEY, Some(put("a", 1)));
        let taken = pending.take(1, 1).remove(0);
        assert_eq!(taken.effect, put("a", 1));
        pending.done(&taken);
        assert_eq!((pending.backfilling(), pending.value_bytes()), (0, 0));

        let changes: [fn(&Pending); 3] = [
            |pending| push(pending, 3, Effect::Delete),
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
        let pending = nothing();
        pending.value_bytes.store(MAX_VALUE_BYTES, Relaxed);
        push(&pending, 1, put("a", 1));
        assert_eq!(pending.take(1, 1)[0].effect, Effect::Unknown);
        assert_eq!(pending.dirty(), 1);
    }
}
