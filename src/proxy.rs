//! The hot path: clients on one side, the authority on the other, bytes untouched in between.
//!
//! One thread per core, each with its own clients and upstream connections ([`worker`]). Clients that hold no state on
//! their connection share an upstream ([`upstream`]); one that does has its own for that time ([`pin`]). What a command
//! did to sessions goes to the tee, which never waits.
//!
//! Invariants: a reply goes to the client whose command it answers, in order, or the connection is closed. No byte of
//! a command or a reply is changed, but for the few that the proxy answers itself. No sink can delay a reply.

mod client;
mod dispatch;
mod downstream;
pub mod identity;
mod listener;
mod pin;
mod scripts;
pub mod stats;
mod upstream;
mod worker;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout_at;

use crate::journal::Journal;
use crate::status::Authority;
use crate::tee::Tee;
use identity::Servers;
pub use listener::{Listen, Listener};
pub use scripts::Scripts;
pub use stats::WorkerStats;
use worker::{Order, Worker};

/// What all workers share.
#[derive(Debug)]
pub struct Shared {
    pub tee: Arc<Tee>,
    pub journal: Arc<Journal>,
    pub servers: Servers,
    /// The database number that holds the sessions.
    pub sessions_db: u32,
    /// Session writes are recorded before they are sent (`ack` is not `source`).
    pub journaled: bool,
    pub workers: usize,
    pub max_clients: usize,
    /// FLUSHDB, FLUSHALL and SWAPDB are refused (`on_flush = refuse`).
    pub refuses_flush: bool,
    /// Scripts that clients loaded, for the other server at a cutover.
    pub scripts: Scripts,
    /// The source answers nobody who has not authenticated; neither does the proxy, then.
    pub asks_password: AtomicBool,
}

/// The running workers.
#[derive(Debug)]
pub struct Proxy {
    orders: Vec<mpsc::UnboundedSender<Order>>,
    stats: Vec<Arc<WorkerStats>>,
    threads: std::sync::Mutex<Vec<std::thread::JoinHandle<()>>>,
    max_clients: usize,
}

/// Why commands could not be held.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    #[error("commands in flight were not answered in time; is the authority slow?")]
    TooSlow,
    #[error("a worker has ended; the proxy must be restarted")]
    WorkerGone,
    #[error("{0}")]
    Unprepared(String),
}

impl Proxy {
    /// Starts the workers.
    ///
    /// # Errors
    /// A thread or its runtime cannot be started.
    pub fn start(shared: Arc<Shared>, authority: Authority) -> std::io::Result<Proxy> {
        let (mut orders, mut stats, mut threads) = (Vec::new(), Vec::new(), Vec::new());
        for index in 0..shared.workers {
            let (sender, receiver) = mpsc::unbounded_channel();
            let worker_stats = Arc::new(WorkerStats::default());
            let (shared, its_stats) = (shared.clone(), worker_stats.clone());
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .event_interval(31)
                .build()?;
            let thread = std::thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || {
                    let local = tokio::task::LocalSet::new();
                    local.block_on(&runtime, Worker::run(shared, its_stats, index, authority, receiver));
                })?;
            orders.push(sender);
            stats.push(worker_stats);
            threads.push(thread);
        }
        Ok(Proxy {
            orders,
            stats,
            threads: std::sync::Mutex::new(threads),
            max_clients: shared.max_clients,
        })
    }

    pub fn stats(&self) -> &[Arc<WorkerStats>] {
        &self.stats
    }

    /// Has every worker connect to `authority`, so that a switch finds the connections standing.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub async fn prepare(&self, authority: Authority) -> Result<(), HoldError> {
        let mut waits = Vec::new();
        for orders in &self.orders {
            let (done, wait) = oneshot::channel();
            orders
                .send(Order::Prepare { authority, done })
                .map_err(|_| HoldError::WorkerGone)?;
            waits.push(wait);
        }
        for wait in waits {
            wait.await
                .map_err(|_| HoldError::WorkerGone)?
                .map_err(HoldError::Unprepared)?;
        }
        Ok(())
    }

    /// Starts no new command, and waits until every reply is there. Whatever comes of it, [`Proxy::release`] must follow.
    ///
    /// # Errors
    /// Not all replies were there by `deadline`.
    pub async fn hold(&self, deadline: Instant) -> Result<(), HoldError> {
        let mut waits = Vec::new();
        for orders in &self.orders {
            let (done, wait) = oneshot::channel();
            orders.send(Order::Hold { done }).map_err(|_| HoldError::WorkerGone)?;
            waits.push(wait);
        }
        for wait in waits {
            timeout_at(deadline.into(), wait)
                .await
                .map_err(|_| HoldError::TooSlow)?
                .map_err(|_| HoldError::WorkerGone)?;
        }
        Ok(())
    }

    /// Goes on with `authority`; answers once every worker does.
    pub async fn release(&self, authority: Authority) {
        let mut waits = Vec::new();
        for orders in &self.orders {
            let (done, wait) = oneshot::channel();
            if orders.send(Order::Release { authority, done }).is_ok() {
                waits.push(wait);
            }
        }
        for wait in waits {
            let _ = wait.await;
        }
    }

    pub fn connected(&self) -> u64 {
        self.stats
            .iter()
            .map(|stats| stats.clients.load(std::sync::atomic::Ordering::Relaxed))
            .sum()
    }

    /// Closes clients as they become idle; answers when all are gone or `grace` is over.
    pub async fn drain(&self, grace: Duration) {
        for orders in &self.orders {
            let _ = orders.send(Order::Drain);
        }
        let end = Instant::now() + grace;
        while self.connected() > 0 && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends the workers, and with them the segments of the journal that they write.
    pub fn stop(&self) {
        for orders in &self.orders {
            let _ = orders.send(Order::Stop);
        }
        for thread in self.threads.lock().expect("no panic while locked").drain(..) {
            let _ = thread.join();
        }
    }
}
