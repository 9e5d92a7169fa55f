//! Counters of one worker. Each has one writer, so that counting costs a plain store.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use super::balance::Load;
use crate::command::CommandId;
use crate::histogram::{Counts, Histogram};
use crate::status::Authority;

/// Upper bounds of the latency histogram, µs.
static LATENCY_BOUNDS_US: [u64; 12] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 50_000, 250_000, 1_000_000, 4_000_000,
];

/// What went wrong with a connection to Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It could not be made.
    Unreachable,
    /// It ended.
    Lost,
}

impl Trouble {
    pub const ALL: [Trouble; 2] = [Trouble::Unreachable, Trouble::Lost];

    /// The word in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Trouble::Unreachable => "unreachable",
            Trouble::Lost => "lost",
        }
    }
}

/// What one worker has done.
#[derive(Debug)]
pub struct WorkerStats {
    pub clients: AtomicU64,
    pub clients_total: AtomicU64,
    /// Share of the last interval that the worker's thread was on a CPU, in millionths.
    busy: AtomicU64,
    pub held: AtomicU64,
    pub errors: AtomicU64,
    /// Reads from each side with a reply in them that is no error.
    heard: [AtomicU64; 2],
    /// By side, then by kind.
    upstream_errors: [[AtomicU64; Trouble::ALL.len()]; 2],
    /// Replies that left before the stores of `tee.ack` had the write.
    pub late_acks: AtomicU64,
    commands: Vec<AtomicU64>,
    latency: Histogram<{ LATENCY_BOUNDS_US.len() }>,
}

impl Default for WorkerStats {
    fn default() -> Self {
        WorkerStats {
            clients: AtomicU64::new(0),
            clients_total: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            held: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            heard: Default::default(),
            upstream_errors: Default::default(),
            late_acks: AtomicU64::new(0),
            commands: (0..CommandId::COUNT).map(|_| AtomicU64::new(0)).collect(),
            latency: Histogram::new(&LATENCY_BOUNDS_US),
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
        self.latency.note_alone(queued.elapsed());
    }

    pub(super) fn note_heard(&self, side: Authority) {
        add(&self.heard[side as usize], 1);
    }

    /// Grows with the replies of this side: as long as it does, nobody need ask whether it is there.
    pub fn heard(&self, side: Authority) -> u64 {
        self.heard[side as usize].load(Relaxed)
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

    /// From a command's arrival to its reply.
    pub fn latency(&self) -> Counts {
        self.latency.counts()
    }

    pub(super) fn note_upstream_error(&self, side: Authority, kind: Trouble) {
        add(&self.upstream_errors[side as usize][kind as usize], 1);
    }

    pub fn upstream_errors(&self, side: Authority, kind: Trouble) -> u64 {
        self.upstream_errors[side as usize][kind as usize].load(Relaxed)
    }
}
