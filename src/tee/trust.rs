//! Whether the authority still has what it was given. No socket, no clock: it is told what happened to connections, and
//! what was found out.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use dashmap::DashMap;
use rustc_hash::FxBuildHasher;
use tokio::sync::watch;

/// Cleared for as long as the doubt lasts, whatever else happens: whoever asked has waited long enough.
const WHATEVER_COMES: u64 = u64::MAX;

/// What is known of the authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has what it was given.
    Trusted,
    /// A connection to it broke: it may have been restarted.
    Doubted,
    /// It was restarted: sessions are being put back.
    Restarted,
}

/// The verdict, and which sessions may be read although the authority is not trusted.
#[derive(Debug)]
pub struct Trust {
    verdict: watch::Sender<Verdict>,
    /// Whether the authority is not trusted: all that the way of a command looks at.
    guards: AtomicBool,
    /// How often it was doubted. What was found out before the last doubt proves nothing after it.
    doubts: AtomicU64,
    /// Each with the number of doubts that it was cleared after.
    cleared: DashMap<Bytes, u64, FxBuildHasher>,
}

impl Default for Trust {
    fn default() -> Self {
        Trust {
            verdict: watch::Sender::new(Verdict::Trusted),
            guards: AtomicBool::new(false),
            doubts: AtomicU64::new(0),
            cleared: DashMap::default(),
        }
    }
}

impl Trust {
    /// A connection broke. Answers whether it was trusted until then.
    pub fn doubt(&self) -> bool {
        // All under the one lock: who is told of the doubt finds everything else in place.
        self.verdict.send_if_modified(|verdict| {
            self.doubts.fetch_add(1, Relaxed);
            let began = *verdict == Verdict::Trusted;
            if began {
                self.cleared.clear();
                self.guards.store(true, Relaxed);
                *verdict = Verdict::Doubted;
            }
            began
        })
    }

    /// How often it was doubted so far, for [`Trust::settle`].
    pub fn doubts(&self) -> u64 {
        self.doubts.load(Relaxed)
    }

    /// It is another process than it was.
    pub fn note_restart(&self) {
        self.verdict.send_replace(Verdict::Restarted);
    }

    /// All is well, as far as could be found out after so many doubts. Answers whether that was all of them; otherwise it
    /// is to be found out again.
    pub fn settle(&self, doubts: u64) -> bool {
        let mut settled = false;
        self.verdict.send_if_modified(|verdict| {
            settled = self.doubts() == doubts;
            if settled {
                self.guards.store(false, Relaxed);
                self.cleared.clear();
            }
            *verdict = if settled { Verdict::Trusted } else { Verdict::Doubted };
            true
        });
        settled
    }

    /// Answers when it is doubted.
    pub async fn doubted(&self) {
        // The sender lives as long as this does.
        let _ = self
            .verdict
            .subscribe()
            .wait_for(|verdict| *verdict == Verdict::Doubted)
            .await;
    }

    /// Answers once it is known, with how often it had been doubted before.
    pub async fn verdict(&self) -> (Verdict, u64) {
        let doubts = self.doubts();
        let mut verdict = self.verdict.subscribe();
        let known = verdict.wait_for(|verdict| *verdict != Verdict::Doubted).await;
        (known.map_or(Verdict::Trusted, |verdict| *verdict), doubts)
    }

    /// Whether a session must not be read yet.
    #[inline]
    pub fn guards(&self) -> bool {
        self.guards.load(Relaxed)
    }

    pub fn is_cleared(&self, key: &[u8]) -> bool {
        let after = self.cleared.get(key).map(|after| *after);
        after.is_some_and(|after| after == WHATEVER_COMES || after == self.doubts())
    }

    /// `keys` were looked after; `doubts` is how often it had been doubted by then, `None` where it took too long.
    pub fn clear(&self, keys: Vec<Bytes>, doubts: Option<u64>) {
        for key in keys {
            self.cleared.insert(key, doubts.unwrap_or(WHATEVER_COMES));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Bytes = Bytes::from_static(b"k");

    #[test]
    fn what_was_found_out_before_another_doubt_proves_nothing() {
        let trust = Trust::default();
        assert!(trust.doubt());
        let doubts = trust.doubts();
        trust.clear(vec![KEY], Some(doubts));
        assert!(trust.is_cleared(&KEY));
        assert!(!trust.doubt(), "it was doubted already");
        assert!(!trust.is_cleared(&KEY));
        assert!(!trust.settle(doubts));
        assert!(trust.guards());
        assert!(trust.settle(trust.doubts()));
        assert!(!trust.guards());
    }

    #[test]
    fn a_restart_after_a_restart_is_looked_into() {
        let trust = Trust::default();
        trust.doubt();
        let doubts = trust.doubts();
        trust.note_restart();
        assert!(!trust.doubt());
        assert!(!trust.settle(doubts));
        assert_eq!(*trust.verdict.borrow(), Verdict::Doubted);
    }

    #[test]
    fn nothing_is_cleared_for_the_next_time() {
        let trust = Trust::default();
        trust.doubt();
        trust.settle(trust.doubts());
        // Too late.
        trust.clear(vec![KEY], None);
        trust.doubt();
        assert!(!trust.is_cleared(&KEY));
        trust.clear(vec![KEY], None);
        trust.doubt();
        assert!(trust.is_cleared(&KEY), "it has waited long enough");
    }
}
