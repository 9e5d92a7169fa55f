//! One worker: a thread, its clients, their upstream connections. Nothing in here is shared with another thread but
//! through [`Shared`], so that the way of a command needs no lock and no wake-up of another thread.

mod connections;
mod crossing;
mod writes;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rustc_hash::FxHashMap;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use super::client::Client;
use super::downstream::Downstream;
use super::handover::{Handover, Known};
use super::identity::{Identity, Labels};
use super::roster::Roster;
use super::stats::WorkerStats;
use super::upstream::Upstream;
use super::{Shared, balance};
use crate::journal::Writer;
use crate::net::stream::{Detached, ReadHalf, WriteHalf, split_tcp, split_tls, split_unix, tune};
use crate::status::Authority;
use connections::Kept;
pub(super) use crossing::shorten_timeout;

/// Bytes read from a client at once.
const SCRATCH_LEN: usize = 64 * 1024;
/// After so many turns of its loop a worker has read what had arrived, and has acted on it.
const HEAR_TURNS: u32 = 3;
/// How often spares that were taken are opened again.
const REFILL_EVERY: Duration = Duration::from_secs(1);
/// After so many of those, connections that nobody has used since are closed.
const REFILLS_A_TIDY: u32 = 10;

/// What a worker is told.
#[derive(Debug)]
pub(super) enum Order {
    Serve(Box<Handover>),
    /// Give such a part of the clients to another worker, each once it is idle.
    Shed {
        to: usize,
        share: f64,
    },
    /// Connect to `authority` in every identity in use.
    Prepare {
        authority: Authority,
        done: oneshot::Sender<Result<(), String>>,
    },
    /// Start no new command; say when the last reply is there, or what waits for one is lifted.
    Hold {
        gives_up: bool,
        done: oneshot::Sender<()>,
    },
    /// Go on, with this authority.
    Release {
        authority: Authority,
        done: oneshot::Sender<()>,
    },
    /// Say when what has arrived by now has been read.
    HearOut {
        done: oneshot::Sender<()>,
    },
    /// Say who is connected.
    CallRoll {
        done: oneshot::Sender<Roster>,
    },
    /// Close all clients but this one.
    CloseClients {
        except: u64,
    },
    /// Close idle clients, and the others as soon as they are idle.
    Drain,
    /// End.
    Stop,
}

/// A worker as the acceptor and the other workers see it.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) orders: mpsc::UnboundedSender<Order>,
    pub(super) stats: Arc<WorkerStats>,
}

/// One worker's state; everything on its thread holds an `Rc` of it.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) stats: Arc<WorkerStats>,
    pub(super) authority: Cell<Authority>,
    /// Grows with each change of authority: tells clients that their route is out of date.
    pub(super) generation: Cell<u64>,
    pub(super) held: Cell<bool>,
    pub(super) draining: Cell<bool>,
    index: usize,
    /// All workers, this one included.
    peers: Vec<Peer>,
    journal: RefCell<Writer>,
    clients: RefCell<FxHashMap<u64, Rc<Client>>>,
    next_client: Cell<u64>,
    upstreams: RefCell<HashMap<Identity, Rc<Upstream>>>,
    prepared: RefCell<HashMap<Identity, Rc<Upstream>>>,
    kept: RefCell<HashMap<(Identity, Labels), Kept>>,
    next_upstream: Cell<u64>,
    /// Commands whose replies a hold has to wait for.
    in_flight: Cell<usize>,
    hold_done: Cell<Option<oneshot::Sender<()>>>,
    /// Clients that wait for the release.
    parked: RefCell<FxHashMap<u64, Rc<Client>>>,
    /// Clients that wait for their upstream to catch up.
    backlogged: RefCell<FxHashMap<u64, Rc<Client>>>,
    to_flush: RefCell<Vec<Rc<Client>>>,
    scratch: Cell<Option<BytesMut>>,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Worker({})", self.index)
    }
}

impl Worker {
    /// Serves until the orders end.
    pub(super) async fn run(
        shared: Arc<Shared>,
        index: usize,
        authority: Authority,
        peers: Vec<Peer>,
        mut orders: mpsc::UnboundedReceiver<Order>,
    ) {
        let stats = peers[index].stats.clone();
        let journal = RefCell::new(Writer::new(shared.journal.clone(), index));
        let worker = Rc::new(Worker {
            shared,
            stats,
            authority: Cell::new(authority),
            generation: Cell::new(0),
            held: Cell::new(false),
            draining: Cell::new(false),
            index,
            peers,
            journal,
            clients: RefCell::default(),
            next_client: Cell::new(0),
            upstreams: RefCell::default(),
            prepared: RefCell::default(),
            kept: RefCell::default(),
            next_upstream: Cell::new(0),
            in_flight: Cell::new(0),
            hold_done: Cell::new(None),
            parked: RefCell::default(),
            backlogged: RefCell::default(),
            to_flush: RefCell::default(),
            scratch: Cell::new(None),
        });
        // Most clients speak as nobody in particular to database 0: that connection stands before the first comes.
        worker.shared_upstream(&Identity::default());
        let measuring = tokio::task::spawn_local({
            let stats = worker.stats.clone();
            async move {
                let mut last = (Instant::now(), cpu_time());
                loop {
                    sleep(balance::LOOK_EVERY).await;
                    let now = (Instant::now(), cpu_time());
                    stats.set_busy((now.1 - last.1).as_secs_f64() / (now.0 - last.0).as_secs_f64());
                    last = now;
                }
            }
        });
        let tidying = tokio::task::spawn_local({
            let worker = worker.clone();
            async move {
                let mut round: u32 = 0;
                loop {
                    sleep(REFILL_EVERY).await;
                    worker.refill();
                    round = round.wrapping_add(1);
                    if round.is_multiple_of(REFILLS_A_TIDY) {
                        worker.tidy();
                    }
                }
            }
        });
        while let Some(order) = orders.recv().await {
            match order {
                Order::Serve(client) => worker.serve(*client),
                Order::Shed { to, share } => worker.shed(to, share),
                Order::Prepare { authority, done } => worker.prepare(authority, done),
                Order::Hold { gives_up, done } => worker.hold(gives_up, done),
                Order::Release { authority, done } => {
                    worker.release(authority);
                    let _ = done.send(());
                }
                Order::HearOut { done } => {
                    tokio::task::spawn_local(async move {
                        for _ in 0..HEAR_TURNS {
                            // Time passes only where the sockets are looked at; whoever has something to read then goes first.
                            sleep(Duration::from_millis(1)).await;
                        }
                        let _ = done.send(());
                    });
                }
                Order::CallRoll { done } => {
                    let _ = done.send(worker.roster());
                }
                Order::CloseClients { except } => worker.close_own_clients_but(except),
                Order::Drain => worker.drain(),
                Order::Stop => break,
            }
        }
        measuring.abort();
        tidying.abort();
        worker.journal.borrow_mut().finish();
    }

    /// Clients that are connected, whichever worker serves them.
    pub(super) fn clients_of_all(&self) -> usize {
        let counts = self.peers.iter().map(|peer| peer.stats.clients.load(Relaxed));
        counts.sum::<u64>() as usize
    }

    /// Ends the connections of all clients but one, whichever worker serves them.
    pub(super) fn close_clients_but(&self, except: u64) {
        self.close_own_clients_but(except);
        for (index, peer) in self.peers.iter().enumerate() {
            if index != self.index {
                // A worker that has ended has no clients.
                let _ = peer.orders.send(Order::CloseClients { except });
            }
        }
    }

    fn close_own_clients_but(&self, except: u64) {
        let clients = self.clients.borrow();
        let others = clients.values().filter(|client| client.id != except);
        others.for_each(|client| client.close());
    }

    /// Lets clients go to another worker.
    fn shed(&self, to: usize, share: f64) {
        let clients = self.clients.borrow();
        let count = (clients.len() as f64 * share).ceil() as usize;
        for client in clients.values().filter(|client| client.may_change_worker()).take(count) {
            client.leaves_to.set(Some(to));
            client.wake();
        }
    }

    /// The one after this.
    #[cfg(feature = "restless")]
    pub(super) fn next_worker(&self) -> Option<usize> {
        (self.peers.len() > 1).then(|| (self.index + 1) % self.peers.len())
    }

    /// A client has left, with nothing unanswered.
    pub(super) fn hand_over(&self, to: usize, client: Handover) {
        let Some(peer) = self.peers.get(to) else { return };
        // Counted there before it is no longer counted here: nobody who waits for the last client goes too early.
        peer.stats.client_moved_here();
        if peer.orders.send(Order::Serve(Box::new(client))).is_err() {
            peer.stats.client_gone();
        }
    }

    fn serve(self: &Rc<Self>, client: Handover) {
        let (socket, known) = client.parts();
        let halves: std::io::Result<(ReadHalf, WriteHalf)> = match socket {
            // Those that are through their handshake do not change their worker: this one is new.
            Detached::Tcp(stream) if self.shared.tls.is_some() => {
                let worker = self.clone();
                tokio::task::spawn_local(async move { worker.serve_securely(stream, known).await });
                return;
            }
            Detached::Tcp(stream) => tokio::net::TcpStream::from_std(stream).map(split_tcp),
            Detached::Unix(stream) => tokio::net::UnixStream::from_std(stream).map(split_unix),
        };
        let Ok((reader, writer)) = halves else {
            self.stats.client_gone();
            return;
        };
        self.welcome(reader, writer, known);
    }

    /// The handshake is the client's own affair: nobody waits for it.
    async fn serve_securely(self: &Rc<Self>, stream: std::net::TcpStream, known: Known) {
        let session = match (&self.shared.tls, tokio::net::TcpStream::from_std(stream)) {
            (Some(tls), Ok(stream)) => {
                tune(&stream);
                tls.accept(stream).await
            }
            (_, Err(error)) => Err(error.to_string()),
            (None, _) => return,
        };
        match session {
            Ok(session) => {
                let (reader, writer) = split_tls(session);
                self.welcome(reader, writer, known);
            }
            Err(reason) => {
                tracing::warn!(%reason, "no TLS with a client; closing it");
                self.stats.client_gone();
            }
        }
    }

    fn welcome(self: &Rc<Self>, reader: ReadHalf, writer: WriteHalf, known: Known) {
        let id = self.next_client.get() * self.shared.workers as u64 + self.index as u64;
        self.next_client.set(self.next_client.get() + 1);
        let identity = known.identity(self.shared.rights.changes());
        let Known {
            input,
            labels,
            library,
            admitted,
            ..
        } = known;
        let client = Client::new(self, id, writer, identity, labels);
        *client.library.borrow_mut() = library;
        client.admitted.set(client.admitted.get() || admitted);
        let first = self.clients.borrow().is_empty();
        self.clients.borrow_mut().insert(id, client.clone());
        if first {
            self.open_all_spares();
        }
        tokio::task::spawn_local(Downstream::new(client, reader, input).run());
    }

    pub(super) fn remove(&self, id: u64) {
        self.clients.borrow_mut().remove(&id);
        self.parked.borrow_mut().remove(&id);
        self.backlogged.borrow_mut().remove(&id);
        self.stats.held.store(self.parked.borrow().len() as u64, Relaxed);
        self.stats.client_gone();
    }

    // --- batching ---

    pub(super) fn take_scratch(&self) -> BytesMut {
        self.scratch
            .take()
            .unwrap_or_else(|| BytesMut::with_capacity(SCRATCH_LEN))
    }

    pub(super) fn give_scratch(&self, scratch: BytesMut) {
        self.scratch.set(Some(scratch));
    }

    pub(super) fn queue_flush(&self, client: &Rc<Client>) {
        self.to_flush.borrow_mut().push(client.clone());
    }

    /// Hands replies to the sockets, once per batch.
    pub(super) fn flush_clients(&self) {
        let mut clients = self.to_flush.take();
        for client in clients.drain(..) {
            client.flush();
        }
        // The list keeps its room for the next batch.
        let mut slot = self.to_flush.borrow_mut();
        if slot.is_empty() {
            *slot = clients;
        }
    }

    fn roster(&self) -> Roster {
        let mut roster = Roster::default();
        for client in self.clients.borrow().values() {
            let name = &client.labels.borrow().name;
            roster.add(client.address, name.as_ref(), &client.library.borrow());
        }
        roster
    }

    fn drain(&self) {
        self.draining.set(true);
        self.clients.borrow().values().for_each(|client| client.wake());
    }
}

/// What this thread has spent on a CPU.
fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Wall clock, ms since the Unix epoch.
pub(super) fn now_ms() -> i64 {
    crate::clock::now_ms()
}
