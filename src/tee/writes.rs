//! Writes that came through the proxy and of which something is still to come: their reply, or the authority's own word.
//!
//! Between sending and reply a write is in flight. And where the authority tells of each change (the watch for
//! bypassing writes), it tells of the proxy's own too, once for each, or once for several in one turn of its event
//! loop. So each write is counted when it is sent and discounted when it is told of; what is told of beyond that
//! bypassed the proxy. Where some count is left over, a bypassing write may hide behind it: such a key is looked at again
//! once it has been quiet for a while. (As long as it is not, each further write brings the other stores up to date.)

use std::sync::atomic::{
    AtomicBool, AtomicU32, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::ledger::{KeyState, Ledger};

/// A write is remembered at least this long: far longer than the authority takes to tell of it.
const REMEMBER: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Writes {
    ledger: Arc<Ledger>,
    in_flight: AtomicUsize,
    /// The authority tells of all writes.
    watched: AtomicBool,
    /// It tells of them, or did and is being asked to again: each write is counted.
    counting: AtomicBool,
    /// Grows by one each [`REMEMBER`].
    generation: AtomicU32,
    aged: Mutex<Option<Instant>>,
}

impl Writes {
    pub(super) fn new(ledger: Arc<Ledger>) -> Self {
        Writes {
            ledger,
            in_flight: AtomicUsize::new(0),
            watched: AtomicBool::new(false),
            counting: AtomicBool::new(false),
            generation: AtomicU32::new(0),
            aged: Mutex::new(None),
        }
    }

    pub(super) fn set_watched(&self, watched: bool) -> bool {
        self.watched.swap(watched, Relaxed)
    }

    /// The authority will not tell of anything.
    pub(super) fn end_watch(&self) {
        self.watched.store(false, Relaxed);
        self.counting.store(false, Relaxed);
    }

    /// The authority is about to be asked to tell of all writes. It may tell of what is in flight now, too: a count too many
    /// costs a look, and one too few would be taken for a write that bypassed the proxy.
    pub(super) fn begin_watch(&self) {
        if self.counting.swap(true, Relaxed) {
            return;
        }
        self.ledger
            .visit_mut(|_, state| state.writes.untold += state.writes.in_flight);
    }

    pub(super) fn is_watched(&self) -> bool {
        self.watched.load(Relaxed)
    }

    /// The authority will tell of a change that is no client's.
    pub(super) fn expect_told(&self, key: &Bytes) {
        if !self.counting.load(Relaxed) {
            return;
        }
        let mut state = self.ledger.open(key);
        state.writes.untold += 1;
        state.writes.generation = self.generation.load(Relaxed);
    }

    /// A write is about to be sent on `upstream`. Answers its sequence number, which `next_seq` gives.
    pub(super) fn begin(&self, upstream: u64, key: &Bytes, next_seq: impl FnOnce() -> u64) -> u64 {
        let mut state = self.ledger.open(key);
        let writes = &mut state.writes;
        // Taken while the key is locked: whoever looks through the keys sees every number below the counter.
        let seq = next_seq();
        if writes.in_flight == 0 {
            (writes.upstream, writes.overlapped, writes.first_seq) = (upstream, false, seq);
        }
        writes.overlapped |= writes.upstream != upstream;
        writes.in_flight += 1;
        writes.untold += u32::from(self.counting.load(Relaxed));
        writes.generation = self.generation.load(Relaxed);
        self.in_flight.fetch_add(1, Relaxed);
        seq
    }

    /// A write's reply is there. `keep` gets the key's state and hands the write to the sinks; only then it is no longer
    /// in flight, so that no search for the oldest unfinished write can miss it in between.
    pub(super) fn settle(&self, key: &Bytes, happened: bool, keep: impl FnOnce(&Bytes, &mut KeyState)) {
        let Some(mut locked) = self.ledger.get_mut(key).filter(|state| state.writes.in_flight > 0) else {
            debug_assert!(false, "a write settles once for each begin");
            return;
        };
        let (key, state) = locked.pair_mut();
        if happened {
            keep(key, state);
        } else {
            state.writes.untold = state.writes.untold.saturating_sub(1);
        }
        state.writes.in_flight -= 1;
        self.ledger.close(locked);
        self.in_flight.fetch_sub(1, Release);
    }

    /// Something else changed `key`, before or after what is in flight.
    pub(super) fn doubt(&self, key: &Bytes) {
        if let Some(mut state) = self.ledger.get_mut(key) {
            state.writes.overlapped = true;
        }
    }

    /// The same for every key.
    pub(super) fn doubt_all(&self) {
        self.ledger.visit_mut(|_, state| state.writes.overlapped = true);
    }

    /// Whether no write is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.load(Acquire) == 0
    }

    /// Whether a write to `key` is in flight.
    pub(super) fn contains(&self, key: &Bytes) -> bool {
        self.ledger.get(key).is_some_and(|state| state.writes.in_flight > 0)
    }

    /// The authority told of a change of `key`. Answers whether that may have been a write from here.
    pub(super) fn told(&self, key: &[u8]) -> bool {
        let Some(mut state) = self.ledger.get_mut(key).filter(|state| state.writes.untold > 0) else {
            return false;
        };
        let writes = &mut state.writes;
        writes.merged |= writes.untold > 1;
        writes.untold -= 1;
        true
    }

    /// Forgets keys that have been quiet. Answers those of which the authority has not told as often as was written.
    pub(super) fn age(&self) -> Vec<Bytes> {
        let mut aged = self.aged.lock().expect("no panic while locked");
        if aged.is_some_and(|at| at.elapsed() < REMEMBER) {
            return Vec::new();
        }
        *aged = Some(Instant::now());
        let now = self.generation.fetch_add(1, Relaxed).wrapping_add(1);
        let mut left = Vec::new();
        self.ledger.sweep(|key, state| {
            let writes = &mut state.writes;
            // The last write was in the generation before the last one, or earlier.
            let quiet = writes.in_flight == 0 && now.wrapping_sub(writes.generation) > 1;
            if quiet && (writes.untold > 0 || writes.merged) {
                (writes.untold, writes.merged) = (0, false);
                left.push(key.clone());
            }
        });
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Bytes = Bytes::from_static(b"k");

    fn unwatched() -> Writes {
        Writes::new(Arc::default())
    }

    fn watched() -> Writes {
        let writes = unwatched();
        writes.begin_watch();
        writes.set_watched(true);
        writes
    }

    fn write(writes: &Writes) {
        writes.begin(1, &KEY, || 1);
        writes.settle(&KEY, true, |_, _| ());
    }

    fn age(writes: &Writes) -> Vec<Bytes> {
        *writes.aged.lock().unwrap() = None;
        writes.age()
    }

    #[test]
    fn what_is_told_of_beyond_the_own_writes_bypassed_the_proxy() {
        let writes = watched();
        write(&writes);
        age(&writes);
        write(&writes);
        assert!(
            writes.told(&KEY) && writes.told(&KEY),
            "two own writes, in two generations"
        );
        assert!(!writes.told(&KEY));
    }

    #[test]
    fn a_write_that_changed_nothing_is_not_told_of() {
        let writes = watched();
        writes.begin(1, &KEY, || 1);
        writes.settle(&KEY, false, |_, _| panic!("nothing to deliver"));
        assert!(!writes.told(&KEY));
    }

    #[test]
    fn a_key_with_a_count_left_is_looked_at_again_once_it_is_quiet() {
        let writes = watched();
        write(&writes);
        write(&writes);
        assert!(writes.told(&KEY), "of both at once");
        for _ in 0..3 {
            assert_eq!(age(&writes), Vec::<Bytes>::new());
            write(&writes);
            assert!(writes.told(&KEY));
        }
        assert_eq!(age(&writes), Vec::<Bytes>::new(), "one generation on");
        assert_eq!(age(&writes), [KEY]);
        assert_eq!(age(&writes), Vec::<Bytes>::new());
        assert!(writes.ledger.is_empty());
    }

    #[test]
    fn a_bypassing_write_that_hid_behind_two_told_of_at_once_is_found() {
        let writes = watched();
        write(&writes);
        write(&writes);
        assert!(writes.told(&KEY), "of both at once");
        assert!(writes.told(&KEY), "of the one that bypassed");
        age(&writes);
        assert_eq!(age(&writes), [KEY]);
    }

    #[test]
    fn what_is_in_flight_when_the_watch_begins_did_not_bypass() {
        let writes = unwatched();
        writes.begin(1, &KEY, || 1);
        writes.begin_watch();
        writes.set_watched(true);
        assert!(writes.told(&KEY));
        writes.settle(&KEY, true, |_, _| ());
        assert!(!writes.told(&KEY));
    }

    #[test]
    fn what_is_in_flight_is_never_forgotten() {
        let writes = watched();
        writes.begin(1, &KEY, || 7);
        for _ in 0..4 {
            age(&writes);
        }
        assert!(writes.contains(&KEY) && !writes.is_idle());
        writes.settle(&KEY, true, |_, state| {
            assert!(!state.writes.overlapped && state.writes.first_seq == 7);
        });
        assert!(!writes.contains(&KEY) && writes.is_idle());
    }

    #[test]
    fn unwatched_nothing_is_kept_once_it_is_answered() {
        let writes = unwatched();
        write(&writes);
        assert!(writes.ledger.is_empty());
    }
}
