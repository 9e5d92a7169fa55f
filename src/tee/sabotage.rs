//! Breaks one write in a thousand on purpose, so that it can be seen that tests notice. Never in a build without the feature
//! `sabotage`, and only where `SESSIONFERRY_SABOTAGE` says how.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use dashmap::DashMap;

use crate::session::Effect;

/// One in so many writes, or in so many logouts.
const ONE_IN: u64 = 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// The sinks never hear of it.
    Drop,
    /// The write before it comes after it.
    Reorder,
    /// A logged-out session is written once more.
    Revive,
}

#[derive(Debug)]
pub(super) struct Sabotage {
    how: Option<How>,
    writes: AtomicU64,
    deletes: AtomicU64,
    /// The last value of each key.
    last: DashMap<Bytes, Effect>,
}

impl Default for Sabotage {
    fn default() -> Self {
        let how = match std::env::var("SESSIONFERRY_SABOTAGE").as_deref() {
            Ok("drop") => Some(How::Drop),
            Ok("reorder") => Some(How::Reorder),
            Ok("revive") => Some(How::Revive),
            _ => None,
        };
        Sabotage {
            how,
            writes: AtomicU64::new(0),
            deletes: AtomicU64::new(0),
            last: DashMap::default(),
        }
    }
}

impl Sabotage {
    /// What the sinks are told instead of `effect`, one after the other.
    pub(super) fn tamper(&self, key: &Bytes, effect: Effect) -> Vec<Effect> {
        let before = match &effect {
            Effect::Put { .. } => self.last.insert(key.clone(), effect.clone()),
            _ => self.last.get(key).map(|last| last.clone()),
        };
        let nth = |counter: &AtomicU64, n: u64| counter.fetch_add(1, Relaxed) % n == n - 1;
        match (self.how, before) {
            (Some(How::Drop), _) if nth(&self.writes, ONE_IN) => Vec::new(),
            (Some(How::Reorder), Some(before)) if nth(&self.writes, ONE_IN) => vec![effect, before],
            (Some(How::Revive), Some(before)) if effect == Effect::Delete && nth(&self.deletes, ONE_IN / 10) => {
                vec![effect, before]
            }
            _ => vec![effect],
        }
    }
}
