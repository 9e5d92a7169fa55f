//! Keys that backfill reads once for all sinks. No socket, no clock.

use bytes::Bytes;

use super::Tee;
use crate::session::Effect;

/// Keys that are held back on the sinks that had nothing pending for them, until it is known what they are. What is
/// dropped unread is read when it is delivered.
#[derive(Debug)]
pub struct Reserved<'a> {
    tee: &'a Tee,
    keys: Vec<Bytes>,
}

impl<'a> Reserved<'a> {
    pub(super) fn new(tee: &'a Tee, keys: Vec<Bytes>) -> Self {
        Reserved { tee, keys }
    }

    pub fn keys(&self) -> &[Bytes] {
        &self.keys
    }

    /// What the keys were, in their order, when they were read after they had been reserved: a write that was executed
    /// later finds the key pending, and goes before what was read.
    pub fn supply(mut self, effects: impl IntoIterator<Item = Effect>) {
        let keys = std::mem::take(&mut self.keys);
        let effects = effects.into_iter().map(Some).chain(std::iter::repeat(None));
        for (key, effect) in keys.iter().zip(effects) {
            self.give(key, effect);
        }
    }

    fn give(&self, key: &Bytes, effect: Option<Effect>) {
        for sink in self.tee.sinks() {
            sink.supply(key, effect.clone());
        }
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        for key in &self.keys {
            self.give(key, None);
        }
    }
}
