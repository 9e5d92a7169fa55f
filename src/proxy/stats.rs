//! Counters of one worker. Each has one writer, so that counting costs a plain store.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use super::balance::Load;
use crate::command::CommandId;

/// Upper bounds of the latency histogram, µs.
pub const LATENCY_BOUNDS_US: [u64; 12] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 50_000, 250_000, 1_000_000, 4_000_000,
];

/// What one worker has done.
#[derive(Debug)]
pub struct WorkerStats {
    pub clients: AtomicU64,
    pub clients_total: AtomicU64,
    /// Share of the last interval that the worker's thread was on a CPU, in millionths.
    busy: AtomicU64,
    pub held: AtomicU64,
    pub errors: AtomicU64,
    pub upstream_errors: AtomicU64,
    /// Replies that left before the stores of `tee.ack` had the write.
    pub late_acks: AtomicU64,
    commands: Vec<AtomicU64>,
    latency: [AtomicU64; LATENCY_BOUNDS_US.len() + 1],
    latency_sum_us: AtomicU64,
}

impl Default for WorkerStats {
    fn default() -> Self {
        WorkerStats {
            clients: AtomicU64::new(0),
            clients_total: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            held: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            upstream_errors: AtomicU64::new(0),
            late_acks: AtomicU64::new(0),
            commands: (0..CommandId::COUNT).map(|_| AtomicU64::new(0)).collect(),
            latency: Default::default(),
            latency_sum_us: AtomicU64::new(0),
        }
    }
}

/// A read-modify-write without the lock: this thread is the only writer.
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Relaxed) + n, Relaxed);
}

impl WorkerStats {
    pub(super) fn forwarded(&self, command: CommandId) {
        add(&self.commands[command.index()], 1);
    }

    pub(super) fn answered(&self, _command: CommandId, error: bool, queued: Instant) {
        if error {
            add(&self.errors, 1);
        }
        let took = queued.elapsed().as_micros() as u64;
        let bucket = LATENCY_BOUNDS_US
            .iter()
            .position(|&bound| took <= bound)
            .unwrap_or(LATENCY_BOUNDS_US.len());
        add(&self.latency[bucket], 1);
        add(&self.latency_sum_us, took);
    }

    /// Two threads count clients: the acceptor and the worker.
    pub(super) fn client_came(&self) {
        self.clients.fetch_add(1, Relaxed);
        self.clients_total.fetch_add(1, Relaxed);
    }

    /// A client came from another worker.
    pub(super) fn client_moved_here(&self) {
        self.clients.fetch_add(1, Relaxed);
    }

    pub(super) fn set_busy(&self, share: f64) {
        self.busy.store((share * 1e6) as u64, Relaxed);
    }

    pub(super) fn load(&self) -> Load {
        Load {
            busy: self.busy.load(Relaxed) as f64 / 1e6,
            clients: self.clients.load(Relaxed),
        }
    }

    pub(super) fn client_gone(&self) {
        self.clients.fetch_sub(1, Relaxed);
    }

    /// Commands forwarded, per command.
    pub fn commands(&self) -> impl Iterator<Item = (CommandId, u64)> + '_ {
        CommandId::all().zip(self.commands.iter().map(|counter| counter.load(Relaxed)))
    }

    /// Counts per bucket (the last one unbounded) and the sum in µs.
    pub fn latency(&self) -> (Vec<u64>, u64) {
        (
            self.latency.iter().map(|counter| counter.load(Relaxed)).collect(),
            self.latency_sum_us.load(Relaxed),
        )
    }
}
