//! What is known of each session key, in one map: its writes of which something is still to come, and what each sink
//! has still to be told. One look-up finds all of it: a map as large as a site has sessions is a cache miss at each step.

use std::time::Instant;

use bytes::Bytes;
use dashmap::DashMap;
use dashmap::mapref::one::{Ref, RefMut};
use rustc_hash::FxBuildHasher;

use super::{SINKS, SinkName};
use crate::session::Effect;

/// Parts that are locked one by one: the way of a command must seldom meet a delivery at the same lock.
const SHARDS: usize = 128;

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

/// A key's writes: their order, and what is still to come of them.
#[derive(Debug)]
pub(super) struct KeyWrites {
    pub(super) in_flight: u32,
    /// The upstream connection of the first of those in flight.
    pub(super) upstream: u64,
    /// Some in flight travelled on different connections, or something else changed the key meanwhile: their order is
    /// not known.
    pub(super) overlapped: bool,
    /// The oldest in flight.
    pub(super) first_seq: u64,
    /// The authority has still to tell of so many.
    pub(super) untold: u32,
    /// It may have told of several at once: then a count is left over, behind which a bypassing write may have hidden.
    pub(super) merged: bool,
    /// Of the last write.
    pub(super) generation: u32,
}

impl KeyWrites {
    const NONE: KeyWrites = KeyWrites {
        in_flight: 0,
        upstream: 0,
        overlapped: false,
        first_seq: u64::MAX,
        untold: 0,
        merged: false,
        generation: 0,
    };

    /// Whether nothing is to come, and nothing is in doubt.
    fn is_over(&self) -> bool {
        self.in_flight == 0 && self.untold == 0 && !self.merged
    }
}

/// What one sink has still to be told of a key.
#[derive(Debug)]
pub(super) struct Waiting {
    /// The oldest write that this state stands for.
    pub(super) first_seq: u64,
    /// Counts changes, so that a delivery can tell whether what it delivered is still the newest.
    pub(super) version: u64,
    pub(super) since: Instant,
    pub(super) effect: Effect,
    pub(super) origin: Origin,
    /// A look at the authority was asked for since something may have been deleted there.
    pub(super) suspect: bool,
    /// Wanted once more after what is pending has arrived.
    pub(super) recheck: bool,
    /// Backfill is reading it, and no delivery has been told of it yet.
    pub(super) held: bool,
}

impl Waiting {
    pub(super) fn may_differ(&self) -> bool {
        self.origin != Origin::Recheck || self.suspect
    }
}

#[derive(Debug)]
pub(super) struct KeyState {
    pub(super) writes: KeyWrites,
    sinks: [Option<Waiting>; SINKS.len()],
}

impl KeyState {
    pub(super) fn of(&self, sink: SinkName) -> Option<&Waiting> {
        self.sinks[sink as usize].as_ref()
    }

    pub(super) fn of_mut(&mut self, sink: SinkName) -> &mut Option<Waiting> {
        &mut self.sinks[sink as usize]
    }

    /// The oldest write that is in flight or that some sink has not been told of.
    pub(super) fn first_seq(&self) -> Option<u64> {
        let in_flight = (self.writes.in_flight > 0).then_some(self.writes.first_seq);
        let waiting = self.sinks.iter().flatten().map(|waiting| waiting.first_seq);
        in_flight.into_iter().chain(waiting).min()
    }

    /// Whether there is nothing left to know.
    fn is_over(&self) -> bool {
        self.writes.is_over() && self.sinks.iter().all(Option::is_none)
    }
}

/// Every key that something is known of.
#[derive(Debug)]
pub(super) struct Ledger {
    keys: DashMap<Bytes, KeyState, FxBuildHasher>,
}

impl Default for Ledger {
    fn default() -> Self {
        Ledger {
            keys: DashMap::with_hasher_and_shard_amount(FxBuildHasher, SHARDS),
        }
    }
}

pub(super) type Locked<'a> = RefMut<'a, Bytes, KeyState>;

impl Ledger {
    pub(super) fn get(&self, key: &[u8]) -> Option<Ref<'_, Bytes, KeyState>> {
        self.keys.get(key)
    }

    pub(super) fn get_mut(&self, key: &[u8]) -> Option<Locked<'_>> {
        self.keys.get_mut(key)
    }

    /// Locks what is known of a key, be it nothing.
    pub(super) fn open(&self, key: &[u8]) -> Locked<'_> {
        match self.keys.get_mut(key) {
            Some(state) => state,
            // Copied: the key may be a slice of a whole command, value included.
            None => self
                .keys
                .entry(Bytes::copy_from_slice(key))
                .or_insert_with(|| KeyState {
                    writes: KeyWrites::NONE,
                    sinks: [const { None }; SINKS.len()],
                }),
        }
    }

    /// Gives the lock back, and forgets the key where there is nothing left to know.
    pub(super) fn close(&self, state: Locked<'_>) {
        if state.is_over() {
            let key = state.key().clone();
            drop(state);
            self.keys.remove_if(&key, |_, state| state.is_over());
        }
    }

    /// Looks at all of them, one by one.
    pub(super) fn visit(&self, mut see: impl FnMut(&Bytes, &KeyState)) {
        self.keys.iter().for_each(|entry| see(entry.key(), entry.value()));
    }

    pub(super) fn visit_mut(&self, mut see: impl FnMut(&Bytes, &mut KeyState)) {
        self.keys.iter_mut().for_each(|mut entry| {
            let (key, state) = entry.pair_mut();
            see(key, state);
        });
    }

    /// The same, and forgets those of which there is nothing left to know then.
    pub(super) fn sweep(&self, mut see: impl FnMut(&Bytes, &mut KeyState)) {
        self.keys.retain(|key, state| {
            see(key, state);
            !state.is_over()
        });
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}
