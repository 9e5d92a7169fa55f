//! The move: phases, backfill, verify, cutover and rollback.
//!
//! One operation at a time. Backfill and verify only read, and tell the tee; its delivery does all writing, so that
//! nothing here can overtake a client's write. The switch of the authority is one durable file replacement while
//! every command is held: before it the old Redis is the authority, after it the new one, whatever ends the process.

pub mod backfill;
pub mod bypass;
pub mod census;
pub mod control;
pub mod cutover;
mod differences;
mod exposition;
mod line;
mod notice;
mod pace;
pub mod plan;
pub mod promote;
pub mod restart;
pub mod restore;
pub mod scan;
pub mod state;
pub mod verify;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use crate::journal::{self, Journal};
use crate::proxy::Proxy;
use crate::status::{ClientList, Operation, OperationKind, OperationOptions, OperationState, Phase, Status};
use crate::tee::delivery::{Counters, Stores};
use crate::tee::{Rescue, Restore, Rows, Tee};
use state::{DataDir, State};

/// Finished operations that are still answered for.
const MAX_REMEMBERED: usize = 100;

/// Why an operation was not started (HTTP 409), in plain words that say what to do next.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// What the admin address may ask of the move.
pub trait Control: Send + Sync + 'static {
    fn status(&self) -> Status;
    /// Starts an operation in the background.
    fn start(&self, kind: OperationKind, options: OperationOptions) -> Result<u64, Refused>;
    fn operation(&self, id: u64) -> Option<Operation>;
    /// The one that runs, and those before it, newest first.
    fn operations(&self) -> Vec<Operation>;
    /// Asks an operation to stop; what is done stays done. `false` where there is none of that id running.
    fn stop(&self, id: u64) -> bool;
    /// Reasons why the proxy is not ready; empty where it is.
    fn unready(&self) -> Vec<String>;
    /// Who is connected.
    fn clients(&self) -> BoxFuture<'_, ClientList>;
    /// Appends the metrics in Prometheus text form.
    fn metrics(&self) -> String;
}

/// What a move works with.
pub struct Parts {
    pub tee: Arc<Tee>,
    pub stores: Stores,
    pub proxy: Arc<Proxy>,
    pub journal: Arc<Journal>,
    pub counters: Arc<Counters>,
    pub rescue: Arc<Rescue>,
    pub restore: Arc<Restore>,
    /// `None` where no database is configured.
    pub rows: Option<Arc<Rows>>,
    pub data_dir: DataDir,
    pub max_hold: Duration,
    /// The authority answered the last ping.
    pub reachable: Arc<std::sync::atomic::AtomicBool>,
    pub warnings: Vec<String>,
}

/// The move, as the admin address and the command line steer it.
pub struct Controller {
    parts: Parts,
    state: Mutex<State>,
    operations: Mutex<Operations>,
    started: Instant,
    census: census::Census,
    /// The last hold, µs.
    hold_us: AtomicU64,
    /// The other Redis was restarted and does not have every session yet.
    filling: AtomicBool,
    /// It was found to lack most of them.
    emptied: AtomicBool,
    /// How the authority tells of bypassing writes, where it does.
    watch: Mutex<&'static str>,
    /// Where changes that did not come through the proxy are recorded until they are delivered.
    journal: Mutex<journal::Writer>,
    me: std::sync::Weak<Controller>,
}

#[derive(Default)]
struct Operations {
    last_id: u64,
    current: Option<(Operation, CancellationToken)>,
    finished: VecDeque<Operation>,
}

/// How an operation ended.
enum End {
    Done(serde_json::Value),
    Failed(String, serde_json::Value),
    Stopped(serde_json::Value),
}

impl Controller {
    pub fn new(parts: Parts, state: State) -> Arc<Controller> {
        // Its segments are named after a worker that there is not.
        let journal = journal::Writer::new(parts.journal.clone(), usize::from(u16::MAX));
        Arc::new_cyclic(|me| Controller {
            parts,
            state: Mutex::new(state),
            operations: Mutex::default(),
            started: Instant::now(),
            census: census::Census::default(),
            hold_us: AtomicU64::new(0),
            filling: AtomicBool::new(false),
            emptied: AtomicBool::new(false),
            watch: Mutex::new("off"),
            journal: Mutex::new(journal),
            me: me.clone(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while locked")
    }

    fn journal_end(&self) -> MutexGuard<'_, journal::Writer> {
        self.journal.lock().expect("no panic while locked")
    }

    /// Nothing is recorded any more.
    pub fn finish_journal(&self) {
        self.journal_end().finish();
    }

    fn operations(&self) -> MutexGuard<'_, Operations> {
        self.operations.lock().expect("no panic while locked")
    }

    /// Changes the state and makes it durable.
    fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let result = change(&mut state);
        if let Err(error) = self.parts.data_dir.save(&state) {
            tracing::error!(%error, "the move's state is not saved");
        }
        result
    }

    /// Says how far the running operation is.
    fn progress(&self, done: u64, total: Option<u64>, message: &str) {
        if let Some((operation, _)) = &mut self.operations().current {
            operation.done = done;
            operation.total = total;
            if operation.message != message {
                operation.message = message.to_owned();
            }
        }
    }

    fn launch(&self, kind: OperationKind, options: OperationOptions) -> Result<u64, Refused> {
        let Some(me) = self.me.upgrade() else {
            return Err(Refused("the proxy is ending".into()));
        };
        let mut operations = self.operations();
        if let Some((running, _)) = &operations.current {
            return Err(Refused(format!(
                "a {} is running (operation {}); wait for its end, or stop it with DELETE /api/v1/operations/{}",
                running.kind.name(),
                running.operation,
                running.operation
            )));
        }
        self.may_start(kind, options.force)?;
        operations.last_id += 1;
        let id = operations.last_id;
        let stop = CancellationToken::new();
        let operation = Operation {
            operation: id,
            kind,
            state: OperationState::Running,
            started: crate::clock::now_rfc3339(),
            finished: None,
            done: 0,
            total: None,
            message: "starting".into(),
            error: None,
            result: serde_json::Value::Null,
        };
        operations.current = Some((operation, stop.clone()));
        drop(operations);
        tracing::info!(operation = id, kind = kind.name(), "operation started");
        tokio::spawn(async move {
            let end = match kind {
                OperationKind::Backfill => me.run_backfill(&stop).await,
                OperationKind::Verify => me.run_verify(&stop).await,
                OperationKind::Cutover | OperationKind::Rollback => me.run_switch(kind, options).await,
                OperationKind::Finish => me.run_finish().await,
                OperationKind::Restore => me.run_restore(&stop).await,
            };
            me.finish_operation(end);
        });
        Ok(id)
    }

    /// What an operation asks for before it is even started.
    fn may_start(&self, kind: OperationKind, force: bool) -> Result<(), Refused> {
        let phase = self.state().phase;
        let refuse = |text: &str| Err(Refused(text.to_owned()));
        match (kind, phase) {
            (OperationKind::Restore, Phase::Finished) if !self.parts.tee.database.is_enabled() => {
                refuse("there is no other store: the source is detached and no database is written")
            }
            (OperationKind::Backfill | OperationKind::Verify, Phase::Finished) => {
                refuse("the move is finished: the source is detached")
            }
            (OperationKind::Backfill, Phase::CutOver) => refuse(
                "the target is the authority already; writes are teed back to the source, and a backfill has nothing to copy",
            ),
            (OperationKind::Cutover, Phase::CutOver | Phase::Finished) => refuse("the target is the authority already"),
            (OperationKind::Cutover, Phase::Teeing | Phase::Backfilling) if !force => {
                refuse("not synced: run `sessionferry backfill` and then `sessionferry verify` until it is clean")
            }
            (OperationKind::Rollback, Phase::CutOver) => Ok(()),
            (OperationKind::Rollback, Phase::Finished) => refuse("the move is finished: the source is detached"),
            (OperationKind::Rollback, _) => refuse("the source is the authority already"),
            (OperationKind::Finish, Phase::CutOver) => Ok(()),
            (OperationKind::Finish, Phase::Finished) => refuse("the move is finished already"),
            (OperationKind::Finish, _) => refuse("not cut over: the source is still the authority"),
            _ => Ok(()),
        }
    }

    fn finish_operation(&self, end: End) {
        let mut operations = self.operations();
        let Some((mut operation, _)) = operations.current.take() else {
            return;
        };
        operation.finished = Some(crate::clock::now_rfc3339());
        let (state, error, result) = match end {
            End::Done(result) => (OperationState::Done, None, result),
            End::Failed(error, result) => (OperationState::Failed, Some(error), result),
            End::Stopped(result) => (OperationState::Stopped, Some("stopped on request".into()), result),
        };
        operation.state = state;
        operation.message = match state {
            OperationState::Done => "done".into(),
            OperationState::Stopped => "stopped".into(),
            _ => "failed".into(),
        };
        tracing::info!(
            operation = operation.operation,
            kind = operation.kind.name(),
            ?state,
            error,
            "operation ended"
        );
        operation.error = error;
        operation.result = result;
        operations.finished.push_back(operation);
        if operations.finished.len() > MAX_REMEMBERED {
            operations.finished.pop_front();
        }
    }

    fn find_operation(&self, id: u64) -> Option<Operation> {
        let operations = self.operations();
        let current = operations.current.iter().map(|(operation, _)| operation);
        current
            .chain(&operations.finished)
            .find(|operation| operation.operation == id)
            .cloned()
    }

    fn all_operations(&self) -> Vec<Operation> {
        let operations = self.operations();
        let current = operations.current.iter().map(|(operation, _)| operation);
        current.chain(operations.finished.iter().rev()).cloned().collect()
    }

    /// Which operations would not be started now, and why.
    fn refused(&self) -> BTreeMap<OperationKind, String> {
        let running = self.operations().current.as_ref().map(|(operation, _)| operation.kind);
        let reason = |kind| match running {
            Some(running) => Some(format!("a {} is running", running.name())),
            None => self.may_start(kind, false).err().map(|refused| refused.0),
        };
        let kinds = OperationKind::ALL.into_iter();
        kinds.filter_map(|kind| Some((kind, reason(kind)?))).collect()
    }

    fn stop_operation(&self, id: u64) -> bool {
        match &self.operations().current {
            // A switch is over in moments, or undoes itself.
            Some((operation, stop))
                if operation.operation == id
                    && matches!(
                        operation.kind,
                        OperationKind::Backfill | OperationKind::Verify | OperationKind::Restore
                    ) =>
            {
                stop.cancel();
                true
            }
            _ => false,
        }
    }

    async fn run_finish(&self) -> End {
        self.parts.tee.redis.disable();
        self.update(|state| state.enter(Phase::Finished));
        End::Done(serde_json::json!({"phase": "finished"}))
    }

    /// What has to be looked after now and then: what every store has needs no record in the journal.
    pub fn tend(&self) {
        let (journal, tee) = (&self.parts.journal, &self.parts.tee);
        tee.age();
        let counters = &self.parts.counters;
        let unstorable = !counters.unstorable.is_empty()
            || counters.rejected.load(Relaxed) > 0
            || self.state().verify.unstorable > 0;
        self.parts.rescue.set_complete(self.other_is_complete(), unstorable);
        if journal.owes() {
            // The journal says what is wrong, in the log and in the status.
            let _ = journal.catch_up(|| (tee.unfinished(), tee.pending_wipe()));
        }
        if !journal.has_closed() {
            return;
        }
        journal.retire(tee.low_watermark());
        if journal.wants_compaction()
            && let Err(error) = journal.compact(|| (tee.unfinished(), tee.pending_wipe()))
        {
            tracing::error!(%error, "the journal cannot be compacted");
        }
    }

    /// Marks everything that a wipe (FLUSHDB and its like) may have touched, whenever there was one.
    pub async fn follow_wipes(&self) {
        let tee = &self.parts.tee;
        let mut backoff = crate::net::Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        loop {
            tee.wiped.notified().await;
            while tee.pending_wipe().is_some() {
                let head = tee.head();
                match self.mark_everything().await {
                    Ok(keys) => {
                        tracing::info!(keys, "a FLUSH or SWAPDB was mirrored to the other stores, for sessions");
                        tee.wipe_done(head);
                        backoff.reset();
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot mirror a FLUSH yet; trying again");
                        tokio::time::sleep(backoff.wait()).await;
                    }
                }
            }
        }
    }

    fn set_hold(&self, hold: Duration) {
        self.hold_us.store(hold.as_micros() as u64, Relaxed);
    }
}
