//! Session changes that clients made, by what they did.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::session::Effect;

/// The words in metrics; the last is what only the authority can tell.
const NAMES: [&str; 4] = ["put", "expire", "delete", "read_again"];

/// Counts by effect.
#[derive(Debug, Default)]
pub struct Counted([AtomicU64; NAMES.len()]);

impl Counted {
    pub(super) fn note(&self, effect: &Effect) {
        let at = match effect {
            Effect::Put { .. } => 0,
            Effect::Expire(_) => 1,
            Effect::Delete => 2,
            Effect::Unknown => 3,
        };
        self.0[at].fetch_add(1, Relaxed);
    }

    pub fn all(&self) -> u64 {
        self.0.iter().map(|count| count.load(Relaxed)).sum()
    }

    pub fn each(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        NAMES.into_iter().zip(self.0.iter().map(|count| count.load(Relaxed)))
    }
}
