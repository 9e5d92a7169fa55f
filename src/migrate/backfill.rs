//! Copies what was there before the tee: reads every session of the authority, and has it delivered.
//!
//! A key that the tee already has something for is skipped, and one that is to be read is pending before: a write that
//! comes later replaces what was read. So a late copy can neither overwrite a newer value nor bring a deleted session back.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::differences::note_backfill;
use super::pace::Pace;
use super::scan::{GENTLE_COUNT, Position, SCAN_COUNT, SessionScan};
use super::state::Checkpoint;
use super::{Controller, End};
use crate::net::Backoff;
use crate::session::Effect;
use crate::status::{Authority, Backfill, BackfillState, Phase, VerifyState};
use crate::tee::Pending;

/// Marked keys that wait for delivery, at most: what bounds memory, and how far ahead of the sinks the reading is.
const MAX_WAITING: u64 = 8192;
/// Bytes of values that wait for delivery, at most, but for what one more read brings.
const MAX_WAITING_BYTES: u64 = 64 * 1024 * 1024;
/// Keys that are read at once, and keys that the server looks at for one SCAN.
const FAST: (usize, usize) = (128, SCAN_COUNT);
/// The same while others use the server.
const GENTLE: (usize, usize) = (32, GENTLE_COUNT);
/// Failed SCANs in a row before backfill gives up.
const MAX_FAILURES: u32 = 20;
const POLL: Duration = Duration::from_millis(2);
/// How often it waits for all that was read to be delivered, and notes that it came so far.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);
/// How long a backfill that is stopped waits for that.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(5);

/// A backfill that runs.
struct Copying<'a> {
    scan: SessionScan,
    pace: Pace,
    stop: &'a CancellationToken,
    started: Instant,
    /// What an earlier one had done.
    before: Backfill,
    /// Everything up to here was read; and how many keys that were.
    reached: (Position, u64),
    noted: Instant,
}

impl Controller {
    pub(super) async fn run_backfill(&self, stop: &CancellationToken) -> End {
        let store = self.parts.stores.authority_store();
        let mut scan = self.scan(store);
        let before = self.resume(&mut scan).await;
        let counters = &self.parts.counters;
        for (counter, value) in [
            (&counters.backfill_copied, before.copied),
            (&counters.backfill_skipped, before.skipped),
            (&counters.backfill_failed, 0),
        ] {
            counter.store(value, Relaxed);
        }
        self.update(|state| {
            state.backfill = Backfill {
                state: BackfillState::Running,
                ..before.clone()
            };
            state.enter(Phase::Backfilling);
        });
        let mut copying = Copying {
            reached: (scan.position(), before.scanned),
            scan,
            pace: Pace::new(),
            stop,
            started: Instant::now(),
            before,
            noted: Instant::now(),
        };
        let result = self.copy_all(&mut copying).await;
        self.note_backfill(&copying);
        let stopped = stop.is_cancelled();
        if stopped {
            self.note_where_it_stopped(&copying).await;
        }
        self.update(|state| {
            let done = result.is_ok() && !stopped;
            state.backfill.state = if done {
                state.checkpoint = None;
                BackfillState::Done
            } else {
                BackfillState::Failed
            };
            if done {
                note_backfill(&mut state.verify.differences);
            }
            // What verify saw before is no longer what is there.
            if done && state.verify.state == VerifyState::Clean {
                state.verify.state = VerifyState::Idle;
            }
        });
        let counts = json!(self.state().backfill);
        match result {
            _ if stopped => End::Stopped(counts),
            Ok(()) => End::Done(counts),
            Err(error) => End::Failed(error, counts),
        }
    }

    async fn copy_all(&self, copying: &mut Copying<'_>) -> Result<(), String> {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        let mut failures = 0;
        loop {
            self.look_at_load(copying).await;
            let asked = Instant::now();
            let (chunk, count) = if copying.pace.is_busy() { GENTLE } else { FAST };
            let keys = match copying.scan.next_of(count).await {
                Ok(Some(keys)) => keys,
                Ok(None) => break,
                Err(error) => {
                    failures += 1;
                    if failures >= MAX_FAILURES || copying.stop.is_cancelled() {
                        return Err(format!("cannot read the authority: {error}"));
                    }
                    sleep(backoff.wait()).await;
                    continue;
                }
            };
            failures = 0;
            let took = asked.elapsed();
            sleep(copying.pace.pause(took)).await;
            for chunk in keys.chunks(chunk) {
                let asked = Instant::now();
                self.copy(chunk).await;
                sleep(copying.pace.pause(asked.elapsed())).await;
                self.until_waiting_below(MAX_WAITING, copying).await?;
            }
            copying.reached = (copying.scan.position(), self.state().backfill.scanned);
            if copying.noted.elapsed() > CHECKPOINT_EVERY {
                self.until_waiting_below(1, copying).await?;
                self.note_checkpoint(copying).await;
                copying.noted = Instant::now();
            }
        }
        self.until_waiting_below(1, copying).await
    }

    async fn look_at_load(&self, copying: &mut Copying<'_>) {
        if copying.pace.wants_look(copying.started.elapsed()) {
            let store = self.parts.stores.authority_store();
            let ours = store.sent();
            let executed = store.executed().await.ok();
            let others = executed.map(|executed| executed.saturating_sub(ours));
            copying.pace.looked(copying.started.elapsed(), others);
        }
    }

    /// Reads the keys once, for all sinks. What cannot be read now is read when it is delivered, and there it is said
    /// what stands in the way.
    async fn copy(&self, keys: &[Bytes]) {
        let parts = &self.parts;
        self.state().backfill.scanned += keys.len() as u64;
        // A slice of the whole SCAN reply would keep all of it in memory.
        let reserved = parts.tee.reserve(keys.iter().map(|key| Bytes::copy_from_slice(key)));
        let skipped = keys.len() - reserved.keys().len();
        parts.counters.backfill_skipped.fetch_add(skipped as u64, Relaxed);
        if reserved.keys().is_empty() || parts.restore.guards() {
            return;
        }
        let read = parts.stores.authority_store().read_trusted(reserved.keys()).await;
        // What a restarted server does not have is not gone.
        if let Ok(stored) = read
            && !parts.restore.guards()
        {
            reserved.supply(stored.into_iter().map(Effect::from));
        }
    }

    /// Goes on where the last backfill was stopped, if this is the same server. Answers what that one had done.
    async fn resume(&self, scan: &mut SessionScan) -> Backfill {
        let Some(checkpoint) = self.state().checkpoint.clone() else {
            return Backfill::default();
        };
        // A cursor means nothing to another process, and another database has none of the rows.
        let run_id = self.parts.stores.authority_store().run_id().await.ok().flatten();
        let same = run_id.as_ref() == Some(&checkpoint.run_id) && self.database_name() == checkpoint.database;
        if !same || !scan.go_on_from(checkpoint.position) {
            return Backfill::default();
        }
        tracing::info!(
            sessions = checkpoint.scanned,
            "backfill goes on where it was: so many are copied"
        );
        Backfill {
            scanned: checkpoint.scanned,
            copied: checkpoint.copied,
            skipped: checkpoint.skipped,
            ..Backfill::default()
        }
    }

    /// The database that the copies go to, if any.
    fn database_name(&self) -> Option<String> {
        let rows = self
            .parts
            .rows
            .as_ref()
            .filter(|_| self.parts.tee.database.is_enabled());
        rows.map(|rows| rows.name())
    }

    /// All that was read is delivered: notes how far that is, for a backfill that goes on there.
    async fn note_checkpoint(&self, copying: &Copying<'_>) {
        let Ok(Some(run_id)) = self.parts.stores.authority_store().run_id().await else {
            return;
        };
        self.note_backfill(copying);
        let (position, scanned) = copying.reached.clone();
        self.update(|state| {
            state.checkpoint = Some(Checkpoint {
                run_id,
                database: self.database_name(),
                position,
                scanned,
                copied: state.backfill.copied,
                skipped: state.backfill.skipped,
            });
        });
    }

    async fn note_where_it_stopped(&self, copying: &Copying<'_>) {
        let asked = Instant::now();
        while asked.elapsed() < CHECKPOINT_PATIENCE {
            if self.have_room(1) {
                return self.note_checkpoint(copying).await;
            }
            sleep(POLL).await;
        }
    }

    /// Whether fewer keys than `limit` that backfill reads wait for any sink.
    fn have_room(&self, limit: u64) -> bool {
        let room = |sink: &Pending| sink.backfilling() < limit && sink.value_bytes() < MAX_WAITING_BYTES;
        self.parts.tee.sinks().into_iter().all(room)
    }

    async fn until_waiting_below(&self, limit: u64, copying: &Copying<'_>) -> Result<(), String> {
        loop {
            self.note_backfill(copying);
            if copying.stop.is_cancelled() {
                return Err("stopped".into());
            }
            if self.have_room(limit) {
                return Ok(());
            }
            sleep(POLL).await;
        }
    }

    fn note_backfill(&self, copying: &Copying<'_>) {
        let counters = &self.parts.counters;
        // The last count will do for a progress bar; soon after the start there is none.
        let counted = match self.parts.stores.authority() {
            Authority::Source => self.census.source.load(Relaxed),
            Authority::Target => self.census.target.load(Relaxed),
        };
        let waiting = self.parts.tee.sinks().map(Pending::backfilling).into_iter().max();
        let (done, total) = {
            let mut state = self.state();
            let backfill = &mut state.backfill;
            backfill.expected = counted;
            backfill.copied = counters.backfill_copied.load(Relaxed);
            backfill.skipped = counters.backfill_skipped.load(Relaxed);
            backfill.failed = counters.backfill_failed.load(Relaxed);
            let now = backfill.copied.saturating_sub(copying.before.copied);
            backfill.per_second = now as f64 / copying.started.elapsed().as_secs_f64().max(0.001);
            let done = backfill.scanned.saturating_sub(waiting.unwrap_or(0));
            (done, (counted > 0).then_some(counted.max(backfill.scanned)))
        };
        self.progress(done, total, "copying sessions");
    }
}
