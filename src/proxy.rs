//! The hot path: clients on one side, the authority on the other, bytes untouched in between.
//!
//! One thread per core, each with its own clients and upstream connections ([`worker`]). Clients that hold no state on
//! their connection share an upstream ([`upstream`]); one that does has its own for that time ([`pin`]). What a command
//! did to sessions goes to the tee, which never waits.
//!
//! Invariants: a reply goes to the client whose command it answers, in order, or the connection is closed. No byte of
//! a command or a reply is changed, but for the few that the proxy answers itself. No sink can delay a reply.

pub mod access;
mod balance;
mod census;
mod client;
mod dispatch;
mod downstream;
mod gate;
mod handover;
pub mod identity;
mod listener;
mod names;
mod pause;
mod pin;
mod rights;
mod roster;
mod scripts;
pub mod stats;
mod upstream;
mod worker;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout_at;

use crate::journal::Journal;
use crate::net::tls::TlsAcceptor;
use crate::status::{Authority, ClientList};
use crate::tee::{Rescue, Restore, Shield, SinkName, Tee};
pub use access::Access;
use balance::Load;
use identity::{Identity, Servers};
pub use listener::{Listen, Listener};
pub use names::Names;
pub use pause::Pause;
pub use rights::Rights;
use roster::Roster;
pub use scripts::Scripts;
pub use stats::WorkerStats;
use worker::{Order, Peer, Worker};

/// What all workers share.
#[derive(Debug)]
pub struct Shared {
    pub tee: Arc<Tee>,
    pub names: Names,
    /// Where sessions are read while the authority is away.
    pub rescue: Option<Arc<Rescue>>,
    pub journal: Arc<Journal>,
    pub servers: Servers,
    /// The database number that holds the sessions.
    pub sessions_db: u32,
    /// Session writes are recorded before they are sent (`ack` is not `source`).
    pub journaled: bool,
    /// The stores that must have a session write before its reply leaves.
    pub acks: Vec<SinkName>,
    pub workers: usize,
    pub max_clients: usize,
    /// Puts back what a restarted authority has lost.
    pub restore: Option<Arc<Restore>>,
    pub on_flush: OnFlush,
    /// Scripts that clients loaded, for the other server at a cutover.
    pub scripts: Scripts,
    /// Whether a client has the server hold commands.
    pub pause: Pause,
    /// Whether users have been changed, and whom the source asks for a password: so does the proxy, then.
    pub rights: Rights,
    /// Who may come in.
    pub access: Access,
    /// TLS to clients that come over TCP.
    pub tls: Option<TlsAcceptor>,
}

/// What FLUSHDB, FLUSHALL and SWAPDB do.
#[derive(Debug)]
pub enum OnFlush {
    /// What Redis does; the other stores follow.
    Mirror,
    /// They spare the sessions.
    Shield(Arc<Shield>),
    Refuse,
}

impl Shared {
    /// Whether the source would let this identity do what it lets the proxy do, as far as is known without asking it: it
    /// speaks as the user of the URL. What other users may do only the server knows.
    fn speaks_as_proxy(&self, identity: &Identity) -> bool {
        let credentials = identity.credentials.as_deref();
        let users_own = self.servers.by_url || self.servers.are_the_sources(credentials);
        // Without a password it depends on when the client came.
        let let_in = credentials.is_some() || self.rights.are_known(identity.rights);
        users_own && let_in
    }
}

/// The running workers.
#[derive(Debug)]
pub struct Proxy {
    workers: Vec<Peer>,
    threads: std::sync::Mutex<Vec<std::thread::JoinHandle<()>>>,
    max_clients: usize,
    /// Nothing can be said to a client before its handshake.
    secure: bool,
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
        let (orders, receivers): (Vec<_>, Vec<_>) = (0..shared.workers).map(|_| mpsc::unbounded_channel()).unzip();
        let workers: Vec<Peer> = orders
            .into_iter()
            .map(|orders| Peer {
                orders,
                stats: Arc::default(),
            })
            .collect();
        let mut threads = Vec::new();
        for (index, receiver) in receivers.into_iter().enumerate() {
            let (shared, peers) = (shared.clone(), workers.clone());
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .event_interval(31)
                .build()?;
            let thread = std::thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || {
                    let local = tokio::task::LocalSet::new();
                    local.block_on(&runtime, Worker::run(shared, index, authority, peers, receiver));
                })?;
            threads.push(thread);
        }
        Ok(Proxy {
            workers,
            threads: std::sync::Mutex::new(threads),
            max_clients: shared.max_clients,
            secure: shared.tls.is_some(),
        })
    }

    pub fn stats(&self) -> impl Iterator<Item = &Arc<WorkerStats>> {
        self.workers.iter().map(|worker| &worker.stats)
    }

    /// Gives every worker an order that it answers. The answer of one that has ended is an error.
    fn ask_all<T>(&self, order: impl Fn(oneshot::Sender<T>) -> Order) -> Vec<oneshot::Receiver<T>> {
        let ask = |worker: &Peer| {
            let (done, wait) = oneshot::channel();
            let _ = worker.orders.send(order(done));
            wait
        };
        self.workers.iter().map(ask).collect()
    }

    /// Has every worker connect to `authority`, so that a switch finds the connections standing.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub async fn prepare(&self, authority: Authority) -> Result<(), HoldError> {
        for wait in self.ask_all(|done| Order::Prepare { authority, done }) {
            wait.await
                .map_err(|_| HoldError::WorkerGone)?
                .map_err(HoldError::Unprepared)?;
        }
        Ok(())
    }

    /// Starts no new command, and waits until every reply is there. Whatever comes of it, [`Proxy::release`] must follow.
    /// With `gives_up` the authority will not reply any more: what waits for it goes where the release says.
    ///
    /// # Errors
    /// Not all replies were there by `deadline`.
    pub async fn hold(&self, deadline: Instant, gives_up: bool) -> Result<(), HoldError> {
        for wait in self.ask_all(|done| Order::Hold { gives_up, done }) {
            timeout_at(deadline.into(), wait)
                .await
                .map_err(|_| HoldError::TooSlow)?
                .map_err(|_| HoldError::WorkerGone)?;
        }
        Ok(())
    }

    /// Answers when every worker has read what had arrived on its connections, and has noticed those that have ended: replies
    /// that a server gave before it died tell of writes that are in flight until then. A worker that takes longer than
    /// `limit` is not waited for.
    pub async fn hear_out(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        for wait in self.ask_all(|done| Order::HearOut { done }) {
            let _ = timeout_at(deadline.into(), wait).await;
        }
    }

    /// Goes on with `authority`; answers once every worker does.
    pub async fn release(&self, authority: Authority) {
        for wait in self.ask_all(|done| Order::Release { authority, done }) {
            let _ = wait.await;
        }
    }

    fn loads(&self) -> Vec<Load> {
        self.stats().map(|stats| stats.load()).collect()
    }

    /// Moves clients between the workers as the load asks for, until dropped.
    pub async fn balance(self: Arc<Self>) {
        loop {
            tokio::time::sleep(balance::LOOK_EVERY).await;
            if let Some(shift) = balance::shift(&self.loads()) {
                tracing::debug!(?shift, "clients change their worker");
                let _ = self.workers[shift.from].orders.send(Order::Shed {
                    to: shift.to,
                    share: shift.share,
                });
            }
        }
    }

    pub fn connected(&self) -> u64 {
        self.stats()
            .map(|stats| stats.clients.load(std::sync::atomic::Ordering::Relaxed))
            .sum()
    }

    /// Who is connected. A worker that does not answer within `limit` is left out.
    pub async fn clients(&self, limit: Duration) -> ClientList {
        let deadline = Instant::now() + limit;
        let mut all = Roster::default();
        for wait in self.ask_all(|done| Order::CallRoll { done }) {
            if let Ok(Ok(roster)) = timeout_at(deadline.into(), wait).await {
                all.merge(roster);
            }
        }
        all.list()
    }

    /// Closes clients as they become idle; answers when all are gone or `grace` is over.
    pub async fn drain(&self, grace: Duration) {
        for Peer { orders, .. } in &self.workers {
            let _ = orders.send(Order::Drain);
        }
        let end = Instant::now() + grace;
        while self.connected() > 0 && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends the workers, and with them the segments of the journal that they write.
    pub fn stop(&self) {
        for Peer { orders, .. } in &self.workers {
            let _ = orders.send(Order::Stop);
        }
        for thread in self.threads.lock().expect("no panic while locked").drain(..) {
            let _ = thread.join();
        }
    }
}
