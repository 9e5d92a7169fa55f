//! Answers for the admin address.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::{Control, Controller, Operations, Refused};
use crate::status::{
    ClientList, Clients, Commands, Cutover, CutoverState, Operation, OperationKind, OperationOptions, Phase, Sessions,
    Sink, Status, Tee,
};
use crate::tee::{Pending, SinkName};

/// A worker answers between two commands; one that does not is in trouble, and so is the answer.
const ROLL_LIMIT: Duration = Duration::from_secs(2);

impl Control for Controller {
    fn status(&self) -> Status {
        let parts = &self.parts;
        let mut clients = Clients::default();
        let mut commands = Commands {
            session_writes: parts.tee.session_writes.all(),
            ..Commands::default()
        };
        for stats in parts.proxy.stats() {
            clients.connected += stats.clients.load(Relaxed);
            clients.total += stats.clients_total.load(Relaxed);
            clients.held += stats.held.load(Relaxed);
            commands.forwarded += stats.commands().map(|(_, count)| count).sum::<u64>();
            commands.errors += stats.errors.load(Relaxed);
        }
        let state = self.state().clone();
        let running = |operations: &Operations| Some(operations.current.as_ref()?.0.clone());
        let operation = running(&Controller::operations(self));
        let mut warnings = parts.warnings.clone();
        warnings.extend(parts.journal.trouble());
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            phase: state.phase,
            authority: parts.stores.authority(),
            since: state.since,
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            clients,
            commands,
            tee: Tee {
                target: sink(&parts.tee.redis, 0),
                database: sink(&parts.tee.database, parts.counters.rejected.load(Relaxed)),
            },
            sessions: Sessions {
                source: self.census.source.load(Relaxed),
                target: self.census.target.load(Relaxed),
                database: self.census.database.load(Relaxed),
                unstorable: (parts.counters.unstorable.len() as u64).max(state.verify.unstorable),
                bypassing_writes: parts.tee.bypassing_writes(),
                bypass_watch: self.watch().into(),
                restored: parts.restore.restored(),
                rescued_reads: parts.rescue.answered(),
                resurrected: parts.restore.resurrected(),
            },
            backfill: state.backfill,
            verify: state.verify,
            cutover: Cutover { ..state.cutover },
            operation,
            refused: self.refused(),
            warnings,
        }
    }

    fn start(&self, kind: OperationKind, options: OperationOptions) -> Result<u64, Refused> {
        self.launch(kind, options)
    }

    fn operation(&self, id: u64) -> Option<Operation> {
        self.find_operation(id)
    }

    fn operations(&self) -> Vec<Operation> {
        self.all_operations()
    }

    fn stop(&self, id: u64) -> bool {
        self.stop_operation(id)
    }

    fn unready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        let (tee, state) = (&self.parts.tee, self.state());
        let holding = matches!(
            state.cutover.state,
            CutoverState::Holding | CutoverState::Draining | CutoverState::Switching
        );
        if !self.parts.reachable.load(Relaxed) && !holding {
            reasons.push(format!(
                "the {} Redis, which is the authority, cannot be reached",
                state.authority
            ));
        }
        for sink in tee.sinks() {
            if sink.is_enabled() && !sink.connected.load(Relaxed) && state.phase != Phase::Finished {
                let error = sink.last_error().unwrap_or_else(|| "not connected yet".into());
                let name = match sink.name {
                    SinkName::Redis => state.authority.other().name(),
                    SinkName::Database => "database",
                };
                reasons.push(format!("the tee cannot reach the {name}: {error}"));
            }
        }
        reasons.extend(self.parts.journal.trouble());
        reasons
    }

    fn clients(&self) -> BoxFuture<'_, ClientList> {
        Box::pin(self.parts.proxy.clients(ROLL_LIMIT))
    }

    fn metrics(&self) -> String {
        super::exposition::metrics(self)
    }
}

fn sink(pending: &Pending, rejected: u64) -> Sink {
    Sink {
        connected: pending.is_enabled() && pending.connected.load(Relaxed),
        pending: pending.len() as u64,
        lag_seconds: pending.lag_seconds(),
        delivered: pending.delivered.load(Relaxed),
        retries: pending.retries.load(Relaxed),
        dirty: pending.dirty(),
        rejected,
        last_error: pending.last_error(),
        absent: !pending.is_enabled(),
    }
}
