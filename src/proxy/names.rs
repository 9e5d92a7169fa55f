//! The names that clients have for sessions, where workers with both engines take part.
//!
//! A worker with `cached_db` that finds no key reads the row. It may have read it just before a logout deleted it, and is about to put what it
//! read into its cache: so what was logged out a moment ago is remembered.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustc_hash::FxBuildHasher;

use crate::session::Aliases;

/// From reading a row to writing the cache Django takes at most this long. Remembered for up to twice that.
const KEEP: Duration = Duration::from_secs(10);
/// With more logouts than this within [`KEEP`] they are remembered for a shorter time.
const MAX_KEYS: usize = 262_144;

type Keys = HashSet<Bytes, FxBuildHasher>;

/// By default there is one name for each session.
#[derive(Debug, Default)]
pub struct Names {
    aliases: Option<Aliases>,
    ended: Mutex<Generations>,
}

#[derive(Debug, Default)]
struct Generations {
    young: Keys,
    old: Keys,
    /// Of the young ones.
    since: Option<Instant>,
}

impl Names {
    pub fn new(aliases: Option<Aliases>) -> Names {
        Names {
            aliases,
            ended: Mutex::default(),
        }
    }

    /// The whole multibulk command with the names that Redis has; `None` where it has no other.
    #[inline]
    pub(super) fn rename(&self, frame: &[u8]) -> Option<Vec<u8>> {
        let aliases = self.aliases.as_ref()?;
        aliases.rename(frame, |key| self.has_ended(key))
    }

    /// A command that deletes `key` is about to be sent.
    pub(super) fn note_delete(&self, key: &Bytes) {
        if self.aliases.is_some() {
            // Copied: the key is a slice of the whole command.
            self.generations().young.insert(Bytes::copy_from_slice(key));
        }
    }

    fn has_ended(&self, key: &[u8]) -> bool {
        let generations = self.generations();
        generations.young.contains(key) || generations.old.contains(key)
    }

    fn generations(&self) -> MutexGuard<'_, Generations> {
        let mut generations = self.ended.lock().expect("no panic while locked");
        let age = generations.since.get_or_insert_with(Instant::now).elapsed();
        if age >= KEEP || generations.young.len() >= MAX_KEYS {
            let young = std::mem::take(&mut generations.young);
            generations.old = if age >= 2 * KEEP { Keys::default() } else { young };
            generations.since = Some(Instant::now());
        }
        generations
    }
}
