//! One worker: a thread, its clients, their upstream connections. Nothing in here is shared with another thread but
//! through [`Shared`], so that the way of a command needs no lock and no wake-up of another thread.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rustc_hash::FxHashMap;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use super::Shared;
use super::client::Client;
use super::downstream::Downstream;
use super::identity::{Identity, Labels};
use super::stats::WorkerStats;
use super::upstream::{InFlight, SessionWrite, Upstream};
use crate::command::CommandId;
use crate::journal::{RecordedEffect, Writer};
use crate::net::stream::{ReadHalf, WriteHalf, split_tcp, split_unix};
use crate::resp::{Args, RequestScanner};
use crate::status::Authority;

/// Bytes read from a client at once.
const SCRATCH_LEN: usize = 64 * 1024;
/// Idle connections kept per identity for transactions and blocking commands.
const MAX_KEPT: usize = 16;
/// How long connections to the other server may take before a cutover is refused.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(2);
/// A write whose reply will never come (CLIENT REPLY OFF) is read again after this.
const SETTLE_LATER: Duration = Duration::from_millis(100);

/// A client as the acceptor hands it over.
#[derive(Debug)]
pub(super) enum Accepted {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

/// What a worker is told.
#[derive(Debug)]
pub(super) enum Order {
    Serve(Accepted),
    /// Connect to `authority` in every identity in use.
    Prepare {
        authority: Authority,
        done: oneshot::Sender<Result<(), String>>,
    },
    /// Start no new command; say when the last reply is there.
    Hold {
        done: oneshot::Sender<()>,
    },
    /// Go on, with this authority.
    Release {
        authority: Authority,
        done: oneshot::Sender<()>,
    },
    /// Close idle clients, and the others as soon as they are idle.
    Drain,
    /// End.
    Stop,
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
    journal: RefCell<Writer>,
    clients: RefCell<FxHashMap<u64, Rc<Client>>>,
    next_client: Cell<u64>,
    upstreams: RefCell<HashMap<Identity, Rc<Upstream>>>,
    prepared: RefCell<HashMap<Identity, Rc<Upstream>>>,
    kept: RefCell<HashMap<Identity, Vec<Rc<Upstream>>>>,
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
        stats: Arc<WorkerStats>,
        index: usize,
        authority: Authority,
        mut orders: mpsc::UnboundedReceiver<Order>,
    ) {
        let journal = RefCell::new(Writer::new(shared.journal.clone(), index));
        let worker = Rc::new(Worker {
            shared,
            stats,
            authority: Cell::new(authority),
            generation: Cell::new(0),
            held: Cell::new(false),
            draining: Cell::new(false),
            index,
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
        while let Some(order) = orders.recv().await {
            match order {
                Order::Serve(accepted) => worker.serve(accepted),
                Order::Prepare { authority, done } => worker.prepare(authority, done),
                Order::Hold { done } => worker.hold(done),
                Order::Release { authority, done } => {
                    worker.release(authority);
                    let _ = done.send(());
                }
                Order::Drain => worker.drain(),
                Order::Stop => break,
            }
        }
        worker.journal.borrow_mut().finish();
    }

    fn serve(self: &Rc<Self>, accepted: Accepted) {
        let halves: std::io::Result<(ReadHalf, WriteHalf)> = match accepted {
            Accepted::Tcp(stream) => tokio::net::TcpStream::from_std(stream).map(split_tcp),
            Accepted::Unix(stream) => tokio::net::UnixStream::from_std(stream).map(split_unix),
        };
        let Ok((reader, writer)) = halves else {
            self.stats.client_gone();
            return;
        };
        let id = self.next_client.get() * self.shared.workers as u64 + self.index as u64;
        self.next_client.set(self.next_client.get() + 1);
        let client = Client::new(self, id, writer);
        self.clients.borrow_mut().insert(id, client.clone());
        tokio::task::spawn_local(Downstream::new(client, reader).run());
    }

    pub(super) fn remove(&self, id: u64) {
        self.clients.borrow_mut().remove(&id);
        self.parked.borrow_mut().remove(&id);
        self.backlogged.borrow_mut().remove(&id);
        self.stats.held.store(self.parked.borrow().len() as u64, Relaxed);
        self.stats.client_gone();
    }

    // --- upstream connections ---

    pub(super) fn next_upstream_id(&self) -> u64 {
        let next = self.next_upstream.get();
        self.next_upstream.set(next + 1);
        next * self.shared.workers as u64 + self.index as u64
    }

    /// The connection that all clients of this identity share.
    pub(super) fn shared_upstream(self: &Rc<Self>, identity: &Identity) -> Rc<Upstream> {
        if let Some(upstream) = self.upstreams.borrow().get(identity) {
            return upstream.clone();
        }
        let upstream = Upstream::open(self, self.authority.get(), identity.clone(), None);
        self.upstreams.borrow_mut().insert(identity.clone(), upstream.clone());
        upstream
    }

    /// The shared connection of this identity, if it stands: the proof that the identity is good.
    pub(super) fn known_upstream(&self, identity: &Identity) -> Option<Rc<Upstream>> {
        self.upstreams
            .borrow()
            .get(identity)
            .filter(|upstream| upstream.connected.get())
            .cloned()
    }

    /// A connection for one client alone.
    pub(super) fn exclusive_upstream(self: &Rc<Self>, identity: &Identity, labels: &Labels) -> Rc<Upstream> {
        if let Some(kept) = self.kept.borrow_mut().get_mut(identity) {
            while let Some(upstream) = kept.pop() {
                if upstream.connected.get() && upstream.labels == *labels {
                    return upstream;
                }
                upstream.close();
            }
        }
        Upstream::open(self, self.authority.get(), identity.clone(), Some(labels.clone()))
    }

    /// Takes back a connection that no client needs any more.
    pub(super) fn keep(&self, upstream: Rc<Upstream>) {
        let mut kept = self.kept.borrow_mut();
        let list = kept.entry(upstream.identity.clone()).or_default();
        if upstream.authority == self.authority.get() && upstream.connected.get() && list.len() < MAX_KEPT {
            list.push(upstream);
        } else {
            upstream.close();
        }
    }

    pub(super) fn upstream_error(&self) {
        self.stats.upstream_errors.fetch_add(1, Relaxed);
    }

    // --- session writes ---

    /// Registers what is about to be sent, and puts it on its way to the journal.
    pub(super) fn begin(&self, upstream: u64, write: &SessionWrite) {
        let tee = &self.shared.tee;
        let mut journal = self.journal.borrow_mut();
        match write {
            SessionWrite::Keys(planned) => {
                for (key, hope) in planned.hopes(now_ms()) {
                    let seq = tee.begin(upstream, key);
                    if self.shared.journaled {
                        journal.append(seq, key, &RecordedEffect::from(&hope));
                    }
                }
            }
            SessionWrite::Wipe => {
                let seq = tee.begin_wipe();
                if self.shared.journaled {
                    journal.append(seq, b"", &RecordedEffect::Wipe);
                }
            }
        }
    }

    #[inline]
    pub(super) fn flush_journal(&self) {
        self.journal.borrow_mut().flush();
    }

    /// The reply is there: what changed goes to the sinks.
    pub(super) fn settle(&self, write: &SessionWrite, reply: &[u8]) {
        match write {
            SessionWrite::Keys(planned) => {
                for (key, effect) in planned.settle(reply, now_ms()) {
                    self.shared.tee.settle(key, effect);
                }
            }
            SessionWrite::Wipe => self.shared.tee.settle_wipe(),
        }
    }

    /// The reply will never come.
    pub(super) fn abandon(&self, write: &SessionWrite) {
        match write {
            SessionWrite::Keys(planned) => planned.keys().for_each(|key| self.shared.tee.abandon(key)),
            SessionWrite::Wipe => self.shared.tee.settle_wipe(),
        }
    }

    /// For a command that gets no reply.
    pub(super) fn settle_later(self: &Rc<Self>, write: SessionWrite) {
        let worker = self.clone();
        tokio::task::spawn_local(async move {
            sleep(SETTLE_LATER).await;
            worker.abandon(&write);
        });
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

    // --- hold and release ---

    pub(super) fn entered(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
    }

    pub(super) fn left(&self) {
        self.in_flight.set(self.in_flight.get() - 1);
        if self.in_flight.get() == 0 {
            self.report_hold();
        }
    }

    fn report_hold(&self) {
        if self.held.get()
            && let Some(done) = self.hold_done.take()
        {
            let _ = done.send(());
        }
    }

    pub(super) fn park(&self, client: &Rc<Client>) {
        self.parked.borrow_mut().insert(client.id, client.clone());
        self.stats.held.store(self.parked.borrow().len() as u64, Relaxed);
    }

    pub(super) fn park_backlogged(&self, client: &Rc<Client>) {
        self.backlogged.borrow_mut().insert(client.id, client.clone());
    }

    pub(super) fn wake_backlogged(&self) {
        if !self.backlogged.borrow().is_empty() {
            self.backlogged.take().values().for_each(|client| client.wake());
        }
    }

    fn hold(&self, done: oneshot::Sender<()>) {
        self.held.set(true);
        self.hold_done.set(Some(done));
        if self.in_flight.get() == 0 {
            self.report_hold();
        }
    }

    fn prepare(self: &Rc<Self>, authority: Authority, done: oneshot::Sender<Result<(), String>>) {
        let identities: Vec<Identity> = self.upstreams.borrow().keys().cloned().collect();
        let prepared: HashMap<_, _> = identities
            .into_iter()
            .map(|identity| (identity.clone(), Upstream::open(self, authority, identity, None)))
            .collect();
        for (_, old) in self.prepared.replace(prepared.clone()) {
            old.close();
        }
        // Scripts belong to a server: one worker loads them for all. The hold waits for their replies.
        if let (0, Some(upstream)) = (self.index, prepared.get(&Identity::default())) {
            for frame in self.shared.scripts.commands() {
                upstream.send(&frame, InFlight::unowned(CommandId::lookup(b"script"), frame.len()));
            }
        }
        tokio::task::spawn_local(async move {
            let start = Instant::now();
            // A client that speaks as nobody may be refused there as it is here: one good identity is enough.
            while !prepared.values().any(|upstream| upstream.connected.get()) {
                if start.elapsed() > PREPARE_TIMEOUT {
                    let _ = done.send(Err(format!("cannot connect to the {authority} Redis within 2 s")));
                    return;
                }
                sleep(Duration::from_millis(2)).await;
            }
            // The others get a moment to stand too.
            let patience = Instant::now() + Duration::from_millis(50);
            while !prepared.values().all(|upstream| upstream.connected.get()) && Instant::now() < patience {
                sleep(Duration::from_millis(2)).await;
            }
            let _ = done.send(Ok(()));
        });
    }

    fn release(self: &Rc<Self>, authority: Authority) {
        if authority != self.authority.get() {
            self.authority.set(authority);
            self.generation.set(self.generation.get() + 1);
            let old = self.upstreams.replace(self.prepared.take());
            let kept = self.kept.take();
            old.values()
                .chain(kept.values().flatten())
                .for_each(|upstream| upstream.close());
            let clients: Vec<Rc<Client>> = self.clients.borrow().values().cloned().collect();
            for client in clients {
                client.move_to(authority);
            }
        } else {
            self.prepared.take().values().for_each(|upstream| upstream.close());
        }
        self.held.set(false);
        self.hold_done.set(None);
        self.stats.held.store(0, Relaxed);
        self.parked.take().values().for_each(|client| client.wake());
    }

    fn drain(&self) {
        self.draining.set(true);
        self.clients.borrow().values().for_each(|client| client.wake());
    }

    /// A blocked command with what is left of its timeout, in place of the whole.
    pub(super) fn shorten_timeout(&self, frame: &Bytes, sent: Option<Instant>) -> Bytes {
        let waited = sent.map_or(Duration::ZERO, |sent| sent.elapsed()).as_secs_f64();
        let Ok(Some(_)) = RequestScanner::default().scan(frame) else {
            return frame.clone();
        };
        let mut args: Vec<Vec<u8>> = Args::new(frame).map(<[u8]>::to_vec).collect();
        let name = args[0].to_ascii_lowercase();
        // Where the timeout stands, and how many of its units a second has.
        let (position, unit) = match name.as_slice() {
            b"blpop" | b"brpop" | b"brpoplpush" | b"blmove" | b"bzpopmin" | b"bzpopmax" => (args.len() - 1, 1.0),
            b"blmpop" | b"bzmpop" => (1, 1.0),
            b"xread" | b"xreadgroup" => match args.iter().position(|arg| arg.eq_ignore_ascii_case(b"block")) {
                Some(block) if block + 1 < args.len() => (block + 1, 1000.0),
                _ => return frame.clone(),
            },
            _ => return frame.clone(),
        };
        let Some(timeout) = std::str::from_utf8(&args[position])
            .ok()
            .and_then(|text| text.parse::<f64>().ok())
        else {
            return frame.clone();
        };
        // 0 means for ever; what is left must not become that.
        if timeout <= 0.0 {
            return frame.clone();
        }
        let left = (timeout - waited * unit).max(0.001 * unit);
        args[position] = if unit > 1.0 {
            format!("{left:.0}")
        } else {
            format!("{left:.3}")
        }
        .into_bytes();
        let mut out = Vec::new();
        crate::resp::request::encode(&args, &mut out);
        out.into()
    }
}

/// Wall clock, ms since the Unix epoch.
pub(super) fn now_ms() -> i64 {
    crate::clock::now_ms()
}
