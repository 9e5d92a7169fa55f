//! Copies what was there before the tee: reads every session of the authority, and has it delivered.
//!
//! A key that the tee already has something for is skipped, and one that is to be read is pending before: a write that
//! comes later replaces what was read. So a late copy can neither overwrite a newer value nor bring a deleted session back.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{Controller, End};
use crate::net::Backoff;
use crate::session::Effect;
use crate::status::{Authority, Backfill, BackfillState, Phase, VerifyState};
use crate::tee::Pending;

/// Marked keys that wait for delivery, at most: what bounds memory, and how far ahead of the sinks the reading is.
const MAX_WAITING: u64 = 8192;
/// Bytes of values that wait for delivery, at most, but for what one more read brings.
const MAX_WAITING_BYTES: u64 = 64 * 1024 * 1024;
/// Keys that are read at once.
const CHUNK: usize = 128;
/// A SCAN that takes longer than this shows that the source is busy: as much time is left to it.
const SCAN_PATIENCE: Duration = Duration::from_millis(20);
/// Failed SCANs in a row before backfill gives up.
const MAX_FAILURES: u32 = 20;
const POLL: Duration = Duration::from_millis(2);

impl Controller {
    pub(super) async fn run_backfill(&self, stop: &CancellationToken) -> End {
        let counters = &self.parts.counters;
        for counter in [
            &counters.backfill_copied,
            &counters.backfill_skipped,
            &counters.backfill_failed,
        ] {
            counter.store(0, Relaxed);
        }
        let authority = self.parts.stores.authority();
        self.count().await;
        let expected = match authority {
            Authority::Source => self.census.source.load(Relaxed),
            Authority::Target => self.census.target.load(Relaxed),
        };
        self.update(|state| {
            state.backfill = Backfill {
                state: BackfillState::Running,
                expected,
                ..Backfill::default()
            };
            state.enter(Phase::Backfilling);
        });
        let start = Instant::now();
        let result = self.copy_all(stop, start).await;
        self.note_backfill(start);
        let stopped = stop.is_cancelled();
        self.update(|state| {
            let done = result.is_ok() && !stopped;
            state.backfill.state = if done {
                BackfillState::Done
            } else {
                BackfillState::Failed
            };
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

    async fn copy_all(&self, stop: &CancellationToken, start: Instant) -> Result<(), String> {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        let mut failures = 0;
        let mut scan = self.scan(self.parts.stores.authority_store());
        loop {
            let asked = Instant::now();
            let keys = match scan.next().await {
                Ok(Some(keys)) => keys,
                Ok(None) => break,
                Err(error) => {
                    failures += 1;
                    if failures >= MAX_FAILURES || stop.is_cancelled() {
                        return Err(format!("cannot read the authority: {error}"));
                    }
                    tokio::time::sleep(backoff.wait()).await;
                    continue;
                }
            };
            failures = 0;
            let took = asked.elapsed();
            for chunk in keys.chunks(CHUNK) {
                self.copy(chunk).await;
                self.until_waiting_below(MAX_WAITING, stop, start).await?;
            }
            if took > SCAN_PATIENCE {
                tokio::time::sleep(took).await;
            }
        }
        self.until_waiting_below(1, stop, start).await
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
        let read = parts.stores.authority_store().read(reserved.keys()).await;
        // What a restarted server does not have is not gone.
        if let Ok(stored) = read
            && !parts.restore.guards()
        {
            reserved.supply(stored.into_iter().map(Effect::from));
        }
    }

    /// Waits until fewer marked keys than `limit` wait for any sink.
    async fn until_waiting_below(&self, limit: u64, stop: &CancellationToken, start: Instant) -> Result<(), String> {
        loop {
            self.note_backfill(start);
            if stop.is_cancelled() {
                return Err("stopped".into());
            }
            let room = |sink: &&Pending| sink.backfilling() < limit && sink.value_bytes() < MAX_WAITING_BYTES;
            if self.parts.tee.sinks().iter().all(room) {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn note_backfill(&self, start: Instant) {
        let counters = &self.parts.counters;
        let (done, total, message) = {
            let mut state = self.state();
            let backfill = &mut state.backfill;
            backfill.copied = counters.backfill_copied.load(Relaxed);
            backfill.skipped = counters.backfill_skipped.load(Relaxed);
            backfill.failed = counters.backfill_failed.load(Relaxed);
            backfill.per_second = backfill.copied as f64 / start.elapsed().as_secs_f64().max(0.001);
            let waiting = self
                .parts
                .tee
                .sinks()
                .iter()
                .map(|sink| sink.backfilling())
                .max()
                .unwrap_or(0);
            (
                backfill.scanned.saturating_sub(waiting),
                backfill.expected.max(backfill.scanned),
                "copying sessions",
            )
        };
        self.progress(done, Some(total), message);
    }
}
