//! Notices a Redis that was restarted, and so may have lost what it held.
//!
//! The other Redis is filled again: every session is marked for a look at the authority. What the authority has lost is put
//! back from the other stores (`tee::restore`), before any of it is read.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::time::sleep;

use super::Controller;
use crate::net::Backoff;
use crate::status::{Authority, Phase, Restored};
use crate::tee::Origin;

/// How often the other Redis is asked which process it is.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// With fewer sessions than this, what the other Redis lacks of them says nothing.
const FEW: u64 = 20;
/// The authority is asked again and again, from when a connection to it broke until it answers.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));
/// What the workers have not read of the process before by then is lost.
const HEAR_OUT: Duration = Duration::from_millis(500);
/// A worker may be so late in noticing that its connections were to a process that is gone.
const LATE: Duration = Duration::from_secs(5);

impl Controller {
    /// Looks after the other Redis, for ever.
    pub async fn watch_other_redis(self: Arc<Self>) {
        loop {
            // At once, too: it may be the authority before half a second is over.
            if self.parts.tee.redis.is_enabled() {
                self.look_after_other().await;
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Fills the other Redis again if it is not the process that it was, or was found to be emptied. Answers once all is
    /// there.
    async fn look_after_other(&self) {
        let server = self.parts.stores.authority().other();
        let Ok(Some(run)) = self.parts.stores.of(server).run_id().await else {
            return;
        };
        let known = self.state().runs.of(server).clone();
        let restarted = known.as_ref().is_some_and(|known| *known != run);
        let emptied = self.emptied.swap(false, Relaxed);
        if restarted || emptied {
            self.filling.store(true, Relaxed);
            let reason = if restarted {
                "it was restarted"
            } else {
                "it has less than half of the sessions"
            };
            self.fill_other(server, reason).await;
            self.filling.store(false, Relaxed);
        }
        // Where it is the authority by now, whether it was filled is not known.
        if known.as_ref() != Some(&run) && self.parts.stores.authority() != server {
            self.remember_process(server, Some(run));
        }
    }

    /// This process of `server` has all that the server should have.
    fn remember_process(&self, server: Authority, run: Option<String>) {
        self.parts.stores.of(server).trust(run.clone());
        self.update(|state| *state.runs.of(server) = run);
    }

    /// Has every session written to `server`, the other Redis, again. Answers once they are there, or it is not that any
    /// more.
    async fn fill_other(&self, server: Authority, reason: &str) {
        let (tee, stores) = (&self.parts.tee, &self.parts.stores);
        self.parts.rescue.set_complete(false, true);
        let is_other = || stores.authority().other() == server;
        let mut told = false;
        while is_other() {
            let mark = |key: Bytes| {
                tee.redis.mark(&key, tee.head(), Origin::Refill);
            };
            match self.walk_redis(mark).await {
                Ok(keys) => {
                    tracing::warn!(%server, keys, reason, "what this Redis may have lost is written to it again");
                    break;
                }
                Err(error) if !std::mem::replace(&mut told, true) => {
                    tracing::warn!(%server, %error, reason, "this Redis cannot be filled again yet; trying again");
                }
                Err(error) => tracing::debug!(%server, %error, "it cannot be filled again yet"),
            }
            sleep(LOOK_EVERY).await;
        }
        let marked_to = tee.head();
        while is_other() && tee.redis.first_seq().is_some_and(|first| first < marked_to) {
            sleep(LOOK_EVERY / 10).await;
        }
    }

    /// Notices that somebody has emptied the other Redis: it has far fewer sessions than it should.
    pub(super) fn compare_counts(&self, authority: u64, other: u64) {
        let tee = &self.parts.tee;
        // What is on its way is not lost.
        let awaited = tee.redis.len() as u64 > authority / 4;
        if authority >= FEW && other < authority / 2 && !awaited && self.other_is_complete() {
            self.emptied.store(true, Relaxed);
        }
    }

    /// Looks after the authority, for ever: it is doubted from when a connection to it breaks.
    pub async fn watch_authority(self: Arc<Self>) {
        let restore = &self.parts.restore;
        self.remember_authority().await;
        let mut restarted_at: Option<Instant> = None;
        loop {
            restore.trust.doubted().await;
            // What is found out from here on holds for the doubts until now.
            let doubts = restore.trust.doubts();
            let mut backoff = Backoff::new(ASK_AGAIN.0, ASK_AGAIN.1);
            let (authority, run) = loop {
                let authority = self.parts.stores.authority();
                match self.parts.stores.of(authority).run_id().await {
                    Ok(run) => break (authority, run),
                    Err(_) => sleep(backoff.wait()).await,
                }
            };
            let known = self.state().runs.of(authority).clone();
            let restarted = run.is_some() && known.is_some() && run != known;
            let lately = restarted_at.is_some_and(|at| at.elapsed() < LATE);
            if restarted || lately {
                // A logout that the process before has answered is not to be undone for not having been read.
                self.parts.proxy.hear_out(HEAR_OUT).await;
            }
            if restarted {
                restarted_at = Some(Instant::now());
                restore.trust.note_restart();
                tracing::warn!(%authority, "this Redis was restarted: what it has lost is put back from the other stores");
                self.put_everything_back(authority, &mut backoff).await;
            } else if lately {
                // A connection to the process before, which a worker has read to its end only now: its last replies told of
                // writes that were not known when everything was put back. Whatever else is missing is gone.
                self.put_pending_back(authority, &mut backoff).await;
            }
            if run != known {
                self.remember_process(authority, run);
            }
            restore.settle(doubts);
        }
    }

    /// A restart while the proxy was not there is no reason to put anything back: what went around it is not known.
    async fn remember_authority(&self) {
        let mut backoff = Backoff::new(ASK_AGAIN.0, ASK_AGAIN.1);
        loop {
            let authority = self.parts.stores.authority();
            if let Ok(run) = self.parts.stores.of(authority).run_id().await {
                let known = self.state().runs.of(authority).clone();
                if known.is_some() && known != run {
                    tracing::warn!(%authority, "this Redis was restarted while the proxy was not there; if it has lost \
                        sessions, `sessionferry restore` puts them back from the other stores");
                }
                self.remember_process(authority, run);
                return;
            }
            sleep(backoff.wait()).await;
        }
    }

    async fn put_everything_back(&self, authority: Authority, backoff: &mut Backoff) {
        // First: what is delivered from here on is found in the other stores.
        self.put_pending_back(authority, backoff).await;
        let mut told = false;
        while self.parts.stores.authority() == authority {
            match self.restore_all(|_| true).await {
                Ok(Restored {
                    present,
                    restored,
                    absent,
                    skipped,
                }) => {
                    tracing::info!(present, restored, absent, skipped, "sessions that it had lost are back");
                    return;
                }
                Err(error) if !std::mem::replace(&mut told, true) => {
                    tracing::warn!(%error, "cannot put sessions back yet; trying again");
                }
                Err(error) => tracing::debug!(%error, "cannot put sessions back yet"),
            }
            sleep(backoff.wait()).await;
        }
    }

    /// What no other store has yet.
    async fn put_pending_back(&self, authority: Authority, backoff: &mut Backoff) {
        let mut told = false;
        while self.parts.stores.authority() == authority {
            match self.parts.restore.put_pending_back().await {
                Ok(_) => return,
                Err(error) if !std::mem::replace(&mut told, true) => {
                    tracing::warn!(%error, "sessions on their way cannot be put back yet; trying again");
                }
                Err(error) => tracing::debug!(%error, "sessions on their way cannot be put back yet"),
            }
            sleep(backoff.wait()).await;
        }
    }

    /// Whether the other Redis, about to become the authority, still has what was copied to it.
    pub(super) async fn check_kept(&self, to: Authority) -> Result<String, String> {
        let run = self
            .parts
            .stores
            .of(to)
            .run_id()
            .await
            .map_err(|error| error.to_string())?;
        let known = self.state().runs.of(to).clone();
        if self.filling.load(Relaxed) || (known.is_some() && known != run) {
            return Err(format!(
                "the {to} was restarted and is being filled again: wait until nothing is pending there"
            ));
        }
        Ok("it has not been restarted since".into())
    }

    /// Whether the other Redis has every session.
    pub(super) fn other_is_complete(&self) -> bool {
        let copied = matches!(self.state().phase, Phase::Synced | Phase::CuttingOver | Phase::CutOver);
        copied && !self.filling.load(Relaxed)
    }
}
