//! Which writes of the proxy's own the authority has still to tell of: what distinguishes those that bypass it.
//!
//! The authority tells of each change once, or once for several in one turn of its event loop. So each write is counted
//! when it is sent and discounted when it is told of; what is told of beyond that bypassed the proxy. Where some count
//! is left over, a bypassing write may hide behind it: such a key is looked at again when it is forgotten.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dashmap::DashMap;
use rustc_hash::FxBuildHasher;

/// A write is remembered at least this long: far longer than the authority takes to tell of it.
const REMEMBER: Duration = Duration::from_secs(1);

/// Two generations of keys with their counts, so that forgetting is emptying one of them.
#[derive(Debug, Default)]
pub(super) struct OwnWrites {
    watched: AtomicBool,
    young: AtomicUsize,
    generations: [DashMap<Bytes, u32, FxBuildHasher>; 2],
    aged: Mutex<Option<Instant>>,
}

impl OwnWrites {
    pub(super) fn set_watched(&self, watched: bool) -> bool {
        self.watched.swap(watched, Relaxed)
    }

    pub(super) fn is_watched(&self) -> bool {
        self.watched.load(Relaxed)
    }

    /// A write is about to be sent.
    pub(super) fn sent(&self, key: &Bytes) {
        if !self.is_watched() {
            return;
        }
        let young = &self.generations[self.young.load(Relaxed) & 1];
        if let Some(mut count) = young.get_mut(key) {
            *count += 1;
            return;
        }
        // The key is a slice of the whole command, value included.
        *young.entry(Bytes::copy_from_slice(key)).or_insert(0) += 1;
    }

    /// The authority told of a change, or a write turned out to change nothing: one count less. `false` where there was
    /// none.
    pub(super) fn told(&self, key: &Bytes) -> bool {
        self.generations.iter().any(|generation| match generation.get_mut(key) {
            Some(mut count) if *count > 0 => {
                *count -= 1;
                true
            }
            _ => false,
        })
    }

    /// Forgets what is old. Answers the keys whose counts were left over.
    pub(super) fn age(&self) -> Vec<Bytes> {
        let mut aged = self.aged.lock().expect("no panic while locked");
        if aged.is_some_and(|at| at.elapsed() < REMEMBER) {
            return Vec::new();
        }
        *aged = Some(Instant::now());
        let old = (self.young.load(Relaxed) + 1) & 1;
        let left = self.generations[old]
            .iter()
            .filter(|entry| *entry.value() > 0)
            .map(|entry| entry.key().clone());
        let left = left.collect();
        self.generations[old].clear();
        self.young.store(old, Relaxed);
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Bytes = Bytes::from_static(b"k");

    fn age(own: &OwnWrites) -> Vec<Bytes> {
        *own.aged.lock().unwrap() = None;
        own.age()
    }

    #[test]
    fn what_is_told_of_beyond_the_own_writes_bypassed_the_proxy() {
        let own = OwnWrites::default();
        own.set_watched(true);
        own.sent(&KEY);
        age(&own);
        own.sent(&KEY);
        assert!(own.told(&KEY) && own.told(&KEY), "two own writes, in two generations");
        assert!(!own.told(&KEY));
    }

    #[test]
    fn a_key_with_a_count_left_is_looked_at_again() {
        let own = OwnWrites::default();
        own.set_watched(true);
        own.sent(&KEY);
        assert_eq!(age(&own), Vec::<Bytes>::new(), "one generation on");
        assert_eq!(age(&own), [KEY]);
        assert_eq!(age(&own), Vec::<Bytes>::new());
    }
}
