//! Sessions that were logged out a moment ago, where workers with `cached_db` take part: one of them may have read the row
//! just before it was deleted, and is about to put what it read into its cache.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustc_hash::FxBuildHasher;

/// From reading a row to writing the cache Django takes at most this long. Remembered for up to twice that.
const KEEP: Duration = Duration::from_secs(10);
/// With more logouts than this within [`KEEP`] they are remembered for a shorter time.
const MAX_KEYS: usize = 262_144;

type Keys = HashSet<Bytes, FxBuildHasher>;

#[derive(Debug, Default)]
pub struct Ended(Mutex<Generations>);

#[derive(Debug, Default)]
struct Generations {
    young: Keys,
    old: Keys,
    /// Of the young ones.
    since: Option<Instant>,
}

impl Ended {
    /// A command that deletes `key` is about to be sent.
    pub fn note(&self, key: &Bytes) {
        // Copied: the key is a slice of the whole command.
        self.generations().young.insert(Bytes::copy_from_slice(key));
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        let generations = self.generations();
        generations.young.contains(key) || generations.old.contains(key)
    }

    fn generations(&self) -> MutexGuard<'_, Generations> {
        let mut generations = self.0.lock().expect("no panic while locked");
        let age = generations.since.get_or_insert_with(Instant::now).elapsed();
        if age >= KEEP || generations.young.len() >= MAX_KEYS {
            let young = std::mem::take(&mut generations.young);
            generations.old = if age >= 2 * KEEP { Keys::default() } else { young };
            generations.since = Some(Instant::now());
        }
        generations
    }
}
