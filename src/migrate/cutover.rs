//! The switch of the authority, in either direction: hold, drain, switch, release; undone when it takes too long.
//!
//! 1. Connections to the new authority are opened in advance, so that the hold does not wait for them.
//! 2. Commands are held at command boundaries and the replies in flight come in.
//! 3. The tee delivers what it has, to the other Redis and to the database.
//! 4. The new authority is made durable. This one file replacement is the switch: a crash before it comes back to the
//!    old authority, a crash after it to the new one, and both hold the same sessions at that moment.
//! 5. Commands go on, at the new authority.
//!
//! Where the old authority is lost and the operator forces it, what waits for it goes along, what is recorded is delivered,
//! and sessions whose state only the lost one could tell are named: the new authority has them as it knew them last.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;
use tokio::time::timeout;

use super::plan::MAX_LAG_SECONDS;
use super::{Controller, End};
use crate::sink::StoreErrorKind;
use crate::status::{Authority, CutoverState, OperationKind, OperationOptions, Phase, Plan};

/// Before the checks are made, a sink may take this long to catch up.
const CATCH_UP: Duration = Duration::from_secs(10);
/// Before commands are held, the tee may take this long to become nearly empty.
const PRE_DRAIN: Duration = Duration::from_secs(10);
/// Pending writes that a hold can deliver in a moment.
const NEARLY_EMPTY: usize = 200;
/// A Redis that does not answer a ping within this is not there.
const SILENT_AFTER: Duration = Duration::from_millis(500);
/// Sessions in doubt that are named one by one.
const MAX_NAMED: usize = 10_000;
const DRAIN_POLL: Duration = Duration::from_micros(500);

/// How long commands were held, and the keys that only a lost authority could have told of.
type Switched = (Duration, Vec<Bytes>);

impl Controller {
    pub(super) async fn run_switch(&self, kind: OperationKind, options: OperationOptions) -> End {
        let to = match kind {
            OperationKind::Rollback => Authority::Source,
            _ => Authority::Target,
        };
        self.progress(0, None, "asking what it depends on");
        let lost = options.force && self.absence(to.other()).await.is_some();
        // Nothing gathers any more until the switch is over: what is not pending need not be waited for in the hold.
        let _hurry = self.parts.counters.hurry();
        if !lost {
            self.let_sinks_catch_up().await;
        }
        let checks = self.checks(to, options.force, lost).await;
        let failed: Vec<String> = checks
            .iter()
            .filter(|check| !check.passed)
            .map(|check| format!("{}: {}", check.name, check.detail))
            .collect();
        let mut plan = Plan {
            dry_run: options.dry_run,
            checks,
            steps: [
                format!("connect to the {to} Redis in advance"),
                if lost {
                    format!("hold new commands, take along those that wait for the {}", to.other())
                } else {
                    "hold new commands, wait for the replies in flight".to_owned()
                },
                if lost {
                    "deliver the writes that are recorded, name the sessions in doubt".to_owned()
                } else {
                    "deliver pending writes to the other Redis and the database".to_owned()
                },
                format!("make the {to} the authority, durably"),
                format!(
                    "release: Django goes on at the {to}; over {:.1} s all is undone",
                    self.parts.max_hold.as_secs_f64()
                ),
            ]
            .to_vec(),
            ..Plan::default()
        };
        if !failed.is_empty() {
            return End::Failed(
                format!("refused, nothing was changed: {}", failed.join("; ")),
                json!(plan),
            );
        }
        if options.dry_run {
            return End::Done(json!(plan));
        }
        let phase_before = self.state().phase;
        match self.switch(to, lost).await {
            Ok((hold, doubtful)) => {
                plan.hold_seconds = Some(hold.as_secs_f64());
                plan.doubtful = doubtful.len() as u64;
                plan.doubtful_sessions = self.name_doubtful(&doubtful);
                tracing::info!(authority = %to, hold_ms = hold.as_secs_f64() * 1000.0, "the authority is switched");
                End::Done(json!(plan))
            }
            Err((reason, hold)) => {
                plan.hold_seconds = hold.map(|hold| hold.as_secs_f64());
                plan.undone = Some(reason.clone());
                self.update(|state| {
                    state.cutover.state = CutoverState::Undone;
                    state.cutover.reason = Some(reason.clone());
                    state.cutover.hold_seconds = plan.hold_seconds;
                    state.phase = phase_before;
                });
                End::Failed(
                    format!("undone, the {} is still the authority: {reason}", to.other()),
                    json!(plan),
                )
            }
        }
    }

    /// Where it fails, everything is as it was.
    async fn switch(&self, to: Authority, lost: bool) -> Result<Switched, (String, Option<Duration>)> {
        let proxy = &self.parts.proxy;
        self.progress(0, None, "connecting to the new authority");
        proxy.prepare(to).await.map_err(|error| (error.to_string(), None))?;
        self.hold_and_switch(to, lost).await
    }

    async fn hold_and_switch(&self, to: Authority, lost: bool) -> Result<Switched, (String, Option<Duration>)> {
        let proxy = &self.parts.proxy;
        if !lost {
            // A sync waits for whatever was written to that file system since the last one, and the journal and SQLite write
            // much: after this one, that within the hold finds little.
            self.update(|_| ());
            self.pre_drain().await;
        }
        let start = Instant::now();
        let deadline = start + self.parts.max_hold;
        self.note_step(CutoverState::Holding, "holding new commands");
        let drained = match proxy.hold(deadline, lost).await {
            Ok(()) => {
                self.note_step(CutoverState::Draining, "delivering pending writes");
                self.drain(deadline, lost).await
            }
            Err(error) => Err(error.to_string()),
        };
        let switched = match drained {
            Ok(()) => {
                self.note_step(CutoverState::Switching, "switching");
                let doubtful = self.parts.tee.redis.doubtful_keys();
                let durable = self.make_durable(to, start).map_err(|error| error.to_string());
                durable.map(|()| doubtful)
            }
            Err(error) => Err(error),
        };
        if switched.is_ok() {
            self.parts.stores.switch(to);
        }
        proxy.release(self.parts.stores.authority()).await;
        let hold = start.elapsed();
        self.set_hold(hold);
        match switched {
            Ok(doubtful) => {
                self.update(|state| state.cutover.hold_seconds = Some(hold.as_secs_f64()));
                Ok((hold, doubtful))
            }
            Err(reason) => Err((reason, Some(hold))),
        }
    }

    /// Why nothing is there that could answer; `None` where something is.
    pub(super) async fn absence(&self, authority: Authority) -> Option<StoreErrorKind> {
        match timeout(SILENT_AFTER, self.parts.stores.of(authority).ping()).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.kind()).filter(|kind| kind.is_absence()),
            Err(_) => Some(StoreErrorKind::Timeout),
        }
    }

    /// Their digests, as they are in the logs.
    fn name_doubtful(&self, keys: &[Bytes]) -> Vec<String> {
        let tee = &self.parts.tee;
        let sessions: Vec<String> = keys.iter().take(MAX_NAMED).map(|key| tee.digest(key)).collect();
        if !keys.is_empty() {
            let total = keys.len();
            tracing::warn!(
                total,
                ?sessions,
                "the lost Redis may have known these sessions otherwise"
            );
        }
        sessions
    }

    fn note_step(&self, at: CutoverState, message: &str) {
        {
            let mut state = self.state();
            state.cutover.state = at;
            state.phase = Phase::CuttingOver;
        }
        self.progress(0, None, message);
    }

    /// A sink that is there and a little behind is no reason to refuse.
    async fn let_sinks_catch_up(&self) {
        // Well within what is asked for a moment later.
        let behind =
            |sink: &&crate::tee::Pending| sink.connected.load(Relaxed) && sink.lag_seconds() > MAX_LAG_SECONDS / 2.0;
        let end = Instant::now() + CATCH_UP;
        while self.parts.tee.sinks().iter().any(behind) && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Writes that can be delivered before the hold need not be waited for in it.
    async fn pre_drain(&self) {
        let tee = &self.parts.tee;
        let end = Instant::now() + PRE_DRAIN;
        while tee.sinks().iter().any(|sink| sink.len() > NEARLY_EMPTY) && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// From a lost authority nothing can be read any more, and the database need not be waited for.
    async fn drain(&self, deadline: Instant, lost: bool) -> Result<(), String> {
        let tee = &self.parts.tee;
        let is_drained = || {
            if lost {
                tee.redis.is_dirty_only()
            } else {
                tee.is_drained()
            }
        };
        while !is_drained() {
            if Instant::now() >= deadline {
                return Err(self.still_pending());
            }
            tokio::time::sleep(DRAIN_POLL).await;
        }
        Ok(())
    }

    fn still_pending(&self) -> String {
        let waiting: Vec<String> = self
            .parts
            .tee
            .sinks()
            .iter()
            .filter(|sink| !sink.is_empty())
            .map(|sink| {
                let error = sink.last_error().map(|error| format!(" ({error})")).unwrap_or_default();
                format!("{} writes to the {}{error}", sink.len(), sink.name.label())
            })
            .collect();
        format!(
            "still pending after max_hold of {:.1} s: {}",
            self.parts.max_hold.as_secs_f64(),
            waiting.join(", ")
        )
    }

    /// The switch itself. Where saving fails the old state stands, on disk and in memory.
    fn make_durable(&self, to: Authority, start: Instant) -> Result<(), super::state::StateError> {
        let mut state = self.state();
        let mut next = state.clone();
        next.authority = to;
        next.cutover.state = CutoverState::Done;
        next.cutover.reason = None;
        next.cutover.hold_seconds = Some(start.elapsed().as_secs_f64());
        next.enter(match to {
            Authority::Target => Phase::CutOver,
            Authority::Source => Phase::Synced,
        });
        self.parts.data_dir.save(&next)?;
        *state = next;
        Ok(())
    }
}
