//! What of a client is reached from its upstream connections too: its output, its state, the upstream it uses.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Waker;
use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};

use super::dispatch::SHARED_WINDOW;
use super::identity::{Identity, Labels, Protocol};
use super::pin::{Message, Pin, StateChange};
use super::upstream::{InFlight, Kind, Upstream};
use super::worker::Worker;
use crate::command::{Access, CommandId};
use crate::net::stream::WriteHalf;
use crate::resp::RequestScanner;
use crate::status::Authority;

/// Replies that a client may leave unread, bytes. Redis sets no limit for ordinary clients; this one keeps a client that
/// never reads from taking all memory.
const MAX_OUTPUT: usize = 1024 * 1024 * 1024;
/// A buffer that grew beyond this is given back once it is empty, bytes.
const KEEP_LEN: usize = 16 * 1024;

/// A client connection, but for its reading half.
pub(super) struct Client {
    pub(super) id: u64,
    pub(super) worker: Rc<Worker>,
    pub(super) writer: RefCell<WriteHalf>,
    pub(super) out: RefCell<BytesMut>,
    /// Is in the worker's list of clients to flush.
    pub(super) flush_queued: Cell<bool>,
    /// Commands sent upstream whose replies have not come.
    pub(super) in_flight: Cell<usize>,
    /// Waits for its window on the shared upstream.
    pub(super) wants_room: Cell<bool>,
    pub(super) closed: Cell<bool>,
    /// Close once everything is written.
    pub(super) closing: Cell<bool>,
    pub(super) waker: Cell<Option<Waker>>,
    pub(super) identity: RefCell<Identity>,
    pub(super) labels: RefCell<Labels>,
    pub(super) pin: RefCell<Option<Pin>>,
    /// The shared upstream used last, with the authority's generation that it belongs to.
    pub(super) route: RefCell<Option<(u64, Rc<Upstream>)>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client({})", self.id)
    }
}

impl Client {
    pub(super) fn new(worker: &Rc<Worker>, id: u64, writer: WriteHalf) -> Rc<Self> {
        Rc::new(Client {
            id,
            worker: worker.clone(),
            writer: RefCell::new(writer),
            out: RefCell::default(),
            flush_queued: Cell::new(false),
            in_flight: Cell::new(0),
            wants_room: Cell::new(false),
            closed: Cell::new(false),
            closing: Cell::new(false),
            waker: Cell::new(None),
            identity: RefCell::default(),
            labels: RefCell::default(),
            pin: RefCell::new(None),
            route: RefCell::new(None),
        })
    }

    pub(super) fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Appends to what the client is to read; written by [`Client::flush`].
    pub(super) fn reply(self: &Rc<Self>, bytes: &[u8]) {
        if self.closed.get() {
            return;
        }
        let mut out = self.out.borrow_mut();
        if out.len() + bytes.len() > MAX_OUTPUT {
            tracing::warn!(
                client = self.id,
                limit = MAX_OUTPUT,
                "a client does not read its replies; closing it"
            );
            drop(out);
            self.close();
            return;
        }
        out.extend_from_slice(bytes);
        drop(out);
        if !self.flush_queued.replace(true) {
            self.worker.queue_flush(self);
        }
    }

    /// Writes what the socket takes; the client's own task goes on where that is not all.
    pub(super) fn flush(&self) {
        self.flush_queued.set(false);
        let mut out = self.out.borrow_mut();
        while !out.is_empty() {
            match self.writer.borrow().try_write(&out) {
                Ok(written) => out.advance(written),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    drop(out);
                    self.wake();
                    return;
                }
                Err(_) => {
                    drop(out);
                    self.close();
                    return;
                }
            }
        }
        if out.capacity() > KEEP_LEN {
            *out = BytesMut::new();
        } else {
            out.clear();
        }
    }

    /// One command less in flight.
    pub(super) fn answered(self: &Rc<Self>) {
        self.in_flight.set(self.in_flight.get() - 1);
        if self.in_flight.get() > 0 {
            // At half the window, so that the next commands leave while the rest is still being answered.
            if self.in_flight.get() <= SHARED_WINDOW / 2 && self.wants_room.replace(false) {
                self.wake();
            }
            return;
        }
        self.wants_room.set(false);
        if let Some(pin) = self.pin.borrow_mut().as_mut() {
            pin.blocking = false;
        }
        self.unpin_if_free();
        self.wake();
    }

    fn unpin_if_free(&self) {
        let free = self.pin.borrow().as_ref().is_some_and(Pin::is_free);
        if free
            && self.in_flight.get() == 0
            && let Some(pin) = self.pin.borrow_mut().take()
        {
            pin.upstream.own(None);
            if pin.used_up {
                pin.upstream.close();
            } else {
                self.worker.keep(pin.upstream);
            }
        }
    }

    /// Ends the connection.
    pub(super) fn close(&self) {
        self.closed.set(true);
        self.wake();
    }

    pub(super) fn has_pin_state(&self) -> bool {
        self.pin.borrow().as_ref().is_some_and(|pin| !pin.is_free())
    }

    pub(super) fn is_subscriber(&self) -> bool {
        self.identity.borrow().protocol == Protocol::Resp2
            && self.pin.borrow().as_ref().is_some_and(|pin| pin.subscriptions() > 0)
    }

    pub(super) fn note_message(&self, message: &Message) {
        if let Some(pin) = self.pin.borrow_mut().as_mut() {
            pin.note(message);
        }
    }

    /// A command changed the connection's state, and the server agreed.
    pub(super) fn apply(&self, change: StateChange) {
        let mut identity = self.identity.borrow_mut();
        let mut labels = self.labels.borrow_mut();
        if let Some(pin) = self.pin.borrow_mut().as_mut() {
            pin.used_up = true;
        }
        match change {
            StateChange::Select(db) => identity.db = db,
            StateChange::Auth(credentials) => identity.credentials = Some(Rc::new(credentials)),
            StateChange::Hello {
                protocol,
                credentials,
                name,
            } => {
                identity.protocol = protocol.unwrap_or(identity.protocol);
                if let Some(credentials) = credentials {
                    identity.credentials = Some(Rc::new(credentials));
                }
                if name.is_some() {
                    labels.name = name;
                }
            }
            StateChange::Name(name) => labels.name = Some(name),
            StateChange::LibName(name) => labels.lib_name = Some(name),
            StateChange::LibVer(version) => labels.lib_ver = Some(version),
        }
        drop((identity, labels));
        *self.route.borrow_mut() = None;
    }

    /// Follows the authority to another server: opens a connection there in the same state.
    ///
    /// Called while everything is held, so that at most a blocked command is in flight.
    pub(super) fn move_to(self: &Rc<Self>, authority: Authority) {
        *self.route.borrow_mut() = None;
        let mut slot = self.pin.borrow_mut();
        let Some(pin) = slot.as_mut() else { return };
        let Some((state, replies)) = pin.replay() else {
            drop(slot);
            // Its state cannot be had elsewhere. It has no request in flight, so that it reconnects in silence.
            self.close();
            return;
        };
        let old = pin.upstream.clone();
        let blocked = if pin.blocking { old.unanswered() } else { Bytes::new() };
        let new = Upstream::open(
            &self.worker,
            authority,
            self.identity.borrow().clone(),
            Some(old.labels.clone()),
        );
        new.own(Some(self.clone()));
        let mut rest = &state[..];
        let subscriptions = pin.subscriptions();
        for number in 0..replies {
            let Ok(Some(request)) = RequestScanner::default().scan(rest) else {
                break;
            };
            let (frame, tail) = rest.split_at(request.len);
            let kind = if number < subscriptions {
                Kind::Subscribe(1)
            } else {
                Kind::Plain
            };
            new.send(
                frame,
                InFlight {
                    kind,
                    ..InFlight::unowned(CommandId::lookup(b"multi"), frame.len())
                },
            );
            rest = tail;
        }
        if pin.watching {
            pin.watch_lost = true;
        }
        pin.upstream = new.clone();
        drop(slot);
        old.own(None);
        if !blocked.is_empty() {
            let blocked = self.worker.shorten_timeout(&blocked, old.oldest());
            let entry = InFlight {
                kind: Kind::Blocking,
                ..self.entry(CommandId::lookup(b"blpop"), blocked.len())
            };
            new.send(&blocked, entry);
        }
        old.close();
    }

    pub(super) fn entry(self: &Rc<Self>, command: CommandId, len: usize) -> InFlight {
        InFlight {
            client: Some(self.clone()),
            len,
            command,
            write: None,
            kind: Kind::Plain,
            repeatable: command.entry().access == Access::Read,
            queued: Instant::now(),
        }
    }

    /// The shared upstream for this client now.
    pub(super) fn shared(&self) -> Rc<Upstream> {
        let generation = self.worker.generation.get();
        if let Some((of, upstream)) = self.route.borrow().as_ref()
            && *of == generation
            && !upstream.is_closed()
        {
            return upstream.clone();
        }
        let upstream = self.worker.shared_upstream(&self.identity.borrow());
        *self.route.borrow_mut() = Some((generation, upstream.clone()));
        upstream
    }

    /// Gives the client an upstream of its own.
    pub(super) fn pin(self: &Rc<Self>) {
        if self.pin.borrow().is_none() {
            let upstream = self
                .worker
                .exclusive_upstream(&self.identity.borrow(), &self.labels.borrow());
            upstream.own(Some(self.clone()));
            *self.pin.borrow_mut() = Some(Pin::new(upstream));
        }
    }
}
