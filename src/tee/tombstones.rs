//! Sessions that were deleted while others are put back: what keeps a logout from being undone.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use bytes::Bytes;
use dashmap::DashSet;
use rustc_hash::FxBuildHasher;

/// Sessions that are remembered at once. Beyond, nothing more is put back until they may be forgotten.
const MAX: usize = 1_000_000;

#[derive(Debug, Default)]
pub struct Tombstones {
    /// Whether anybody wants to know: all that the way of a command looks at.
    kept: AtomicBool,
    /// How many do.
    keepers: Mutex<usize>,
    keys: DashSet<Bytes, FxBuildHasher>,
}

/// While this lives, what is deleted is remembered.
#[derive(Debug)]
pub struct Keeper<'a>(&'a Tombstones);

impl Drop for Keeper<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

impl Tombstones {
    /// From here on what is deleted is remembered, until [`Tombstones::release`].
    pub fn retain(&self) {
        let mut keepers = self.keepers.lock().expect("no panic while locked");
        *keepers += 1;
        self.kept.store(true, Relaxed);
    }

    /// One less wants to know; after the last all are forgotten.
    pub fn release(&self) {
        let mut keepers = self.keepers.lock().expect("no panic while locked");
        *keepers -= 1;
        if *keepers == 0 {
            self.kept.store(false, Relaxed);
            self.keys.clear();
        }
    }

    pub fn keep(&self) -> Keeper<'_> {
        self.retain();
        Keeper(self)
    }

    /// A command that deletes `key` is about to be sent.
    #[inline]
    pub fn note(&self, key: &Bytes) {
        if self.kept.load(Relaxed) && !self.is_full() {
            // The key is a slice of the whole command.
            self.keys.insert(Bytes::copy_from_slice(key));
        }
    }

    pub fn contains(&self, key: &Bytes) -> bool {
        self.keys.contains(key)
    }

    /// Not all are remembered.
    pub fn is_full(&self) -> bool {
        self.keys.len() >= MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_kept_as_long_as_anybody_wants_to_know() {
        let (tombstones, key) = (Tombstones::default(), Bytes::from_static(b"k"));
        tombstones.note(&key);
        assert!(!tombstones.contains(&key));
        let one = tombstones.keep();
        let other = tombstones.keep();
        tombstones.note(&key);
        drop(one);
        assert!(tombstones.contains(&key));
        drop(other);
        assert!(!tombstones.contains(&key));
    }
}
