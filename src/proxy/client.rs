//! What of a client is reached from its upstream connections too: its output, its state, the upstream it uses.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use tokio::time::timeout;

use super::gate::Gate;
use super::identity::{Identity, Labels, Library, Protocol};
use super::pin::{Message, Pin, StateChange};
use super::upstream::{InFlight, Kind, Upstream};
use super::worker::{Worker, shorten_timeout};
use crate::command::{Access, CommandId};
use crate::net::stream::WriteHalf;
use crate::resp::RequestScanner;
use crate::status::Authority;
use crate::tee::Ack;

/// Replies that a client may leave unread here, bytes; with more it is closed. Only what it had in flight on the shared
/// upstream can add up to this: past [`OUTPUT_HIGH`] it has an upstream of its own, which is not read meanwhile, so that
/// Redis's own limit (`client-output-buffer-limit`) decides.
const MAX_OUTPUT: usize = 4 * 1024 * 1024 * 1024;
/// With so many bytes unread, a client reads slower than it asks.
pub(super) const OUTPUT_HIGH: usize = 1024 * 1024;
/// Below this its own upstream is read again, bytes.
const OUTPUT_LOW: usize = OUTPUT_HIGH / 4;
/// Commands that one client may have in flight on a shared upstream, at first and at the most. A single deep pipeline with
/// large replies would stand in front of everybody else's commands, and how large they are shows only when they come: so
/// it begins with a few, and each reply that is not large allows one more.
const WINDOW_FIRST: usize = 8;
const WINDOW_MOST: usize = 128;
/// A reply of more bytes than this takes long enough that nobody else's should stand behind the next of its kind.
const HEAVY_REPLY: usize = 256 * 1024;
/// After such a reply, so many commands of the client travel on an upstream of its own.
const HEAVY_COMMANDS: u32 = 64;
/// When the server has ended the connection, the client may take so long to read what is left.
const END_LINGER: Duration = Duration::from_secs(10);
/// A reply waits at most this long for the stores that `tee.ack` names. Django's client gives up at 5 s and then logs the
/// user out; the write is kept until they have it all the same.
const ACK_LIMIT: Duration = Duration::from_secs(4);
/// A buffer that grew beyond this is given back once it is empty, bytes.
const KEEP_LEN: usize = 16 * 1024;

/// A client connection, but for its reading half.
pub(super) struct Client {
    pub(super) id: u64,
    pub(super) worker: Rc<Worker>,
    /// Where it connected from; nothing over a unix socket.
    pub(super) address: Option<IpAddr>,
    /// `None` once the client has left for another worker.
    pub(super) writer: RefCell<Option<WriteHalf>>,
    pub(super) out: RefCell<BytesMut>,
    /// How much of `out` may be written.
    pub(super) gate: Gate,
    /// Is in the worker's list of clients to flush.
    pub(super) flush_queued: Cell<bool>,
    /// Commands sent upstream whose replies have not come.
    pub(super) in_flight: Cell<usize>,
    /// Commands that it may have in flight on the shared upstream, see [`WINDOW_FIRST`].
    pub(super) window: Cell<usize>,
    /// Waits for its window on the shared upstream.
    pub(super) wants_room: Cell<bool>,
    /// Waits for something other than a reply: sessions that may not be read yet, a flush that spares them.
    pub(super) clearing: Cell<bool>,
    /// Has asked on a shared upstream for a change of its own state. What comes behind waits for the answer.
    pub(super) changing: Cell<bool>,
    /// Commands that travel on an upstream of its own because of large replies, see [`HEAVY_REPLY`].
    pub(super) heavy: Cell<u32>,
    /// Its own upstream is not read until this client has read more of its replies.
    pub(super) upstream_waits: Cell<bool>,
    /// May do anything, as far as the proxy decides that itself ([`Access`](super::access::Access)).
    pub(super) admitted: Cell<bool>,
    pub(super) closed: Cell<bool>,
    /// After so many changes of rights the server took it for who it is.
    proven_after: Cell<u64>,
    /// The worker to go to as soon as nothing is in flight.
    pub(super) leaves_to: Cell<Option<usize>>,
    /// Close once everything is written.
    pub(super) closing: Cell<bool>,
    pub(super) waker: Cell<Option<Waker>>,
    pub(super) identity: RefCell<Identity>,
    pub(super) labels: RefCell<Labels>,
    pub(super) library: RefCell<Library>,
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
    pub(super) fn new(worker: &Rc<Worker>, id: u64, writer: WriteHalf, identity: Identity, labels: Labels) -> Rc<Self> {
        Rc::new(Client {
            id,
            worker: worker.clone(),
            address: writer.peer(),
            writer: RefCell::new(Some(writer)),
            out: RefCell::default(),
            flush_queued: Cell::new(false),
            in_flight: Cell::new(0),
            window: Cell::new(WINDOW_FIRST),
            wants_room: Cell::new(false),
            clearing: Cell::new(false),
            changing: Cell::new(false),
            gate: Gate::default(),
            heavy: Cell::new(0),
            upstream_waits: Cell::new(false),
            admitted: Cell::new(worker.shared.access.is_open()),
            closed: Cell::new(false),
            proven_after: Cell::new(worker.shared.rights.all_changes()),
            leaves_to: Cell::new(None),
            closing: Cell::new(false),
            waker: Cell::new(None),
            identity: RefCell::new(identity),
            labels: RefCell::new(labels),
            library: RefCell::default(),
            pin: RefCell::new(None),
            route: RefCell::new(None),
        })
    }

    /// Whether another worker may serve it. That one opens a connection in its name, which the server may refuse where
    /// rights have changed, while those that stand go on.
    pub(super) fn may_change_worker(&self) -> bool {
        self.proven_after.get() == self.worker.shared.rights.all_changes()
    }

    /// Whether there was a reply since it came to this worker.
    #[cfg(feature = "restless")]
    pub(super) fn has_been_answered_here(&self) -> bool {
        self.window.get() > WINDOW_FIRST
    }

    fn note_proven(&self) {
        self.proven_after.set(self.worker.shared.rights.all_changes());
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
        if bytes.len() > HEAVY_REPLY {
            self.heavy.set(HEAVY_COMMANDS);
            self.window.set(WINDOW_FIRST);
        } else {
            self.window.set((self.window.get() + 1).min(WINDOW_MOST));
        }
        if !self.flush_queued.replace(true) {
            self.worker.queue_flush(self);
        }
    }

    /// Writes what the socket takes; the client's own task goes on where that is not all.
    pub(super) fn flush(&self) {
        self.flush_queued.set(false);
        let mut out = self.out.borrow_mut();
        loop {
            let may_write = self.gate.may_write(out.len());
            if may_write == 0 {
                break;
            }
            let writer = self.writer.borrow();
            let Some(writer) = writer.as_ref() else { return };
            match writer.try_write(&out[..may_write]) {
                Ok(written) => {
                    self.gate.note_written(written);
                    out.advance(written);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    let left = out.len();
                    drop(out);
                    self.note_written(left);
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
        if !out.is_empty() {
            // The rest waits for an acknowledgement.
            let left = out.len();
            drop(out);
            self.note_written(left);
            return;
        }
        if out.capacity() > KEEP_LEN {
            *out = BytesMut::new();
        } else {
            out.clear();
        }
        drop(out);
        self.note_written(0);
    }

    /// What is appended to the output from here on leaves only when all of `acks` are there, or after [`ACK_LIMIT`].
    pub(super) fn await_acks(self: &Rc<Self>, acks: Vec<Ack>) {
        let barrier = self.gate.close(self.out.borrow().len());
        let client = self.clone();
        tokio::task::spawn_local(async move {
            let all = async {
                for ack in acks {
                    // A sender that is gone: the store is no longer written to.
                    let _ = ack.await;
                }
            };
            if timeout(ACK_LIMIT, all).await.is_err() {
                client.worker.stats.late_acks.fetch_add(1, Relaxed);
            }
            barrier.open();
            client.flush();
            client.wake();
        });
    }

    /// So many bytes are left to write: goes on reading the client's own upstream where that had to wait.
    pub(super) fn note_written(&self, left: usize) {
        if left <= OUTPUT_LOW
            && self.upstream_waits.replace(false)
            && let Some(pin) = self.pin.borrow().as_ref()
        {
            pin.upstream.wake();
        }
    }

    /// Whether the client leaves so much unread that its own upstream must wait.
    pub(super) fn reads_slowly(&self) -> bool {
        self.out.borrow().len() > OUTPUT_HIGH
    }

    /// One command less in flight.
    pub(super) fn answered(self: &Rc<Self>) {
        self.in_flight.set(self.in_flight.get() - 1);
        if self.in_flight.get() > 0 {
            // At half the window, so that the next commands leave while the rest is still being answered.
            if self.in_flight.get() <= self.window.get() / 2 && self.wants_room.replace(false) {
                self.wake();
            }
            return;
        }
        self.wants_room.set(false);
        if let Some(pin) = self.pin.borrow_mut().as_mut() {
            pin.blocking = false;
            pin.changing = false;
        }
        self.unpin_if_free();
        self.wake();
    }

    fn unpin_if_free(&self) {
        let free = self.pin.borrow().as_ref().is_some_and(|pin| {
            // An upstream that is no longer in the state that it was opened in must not be opened again in that one.
            pin.is_free() && (pin.used_up || (self.heavy.get() == 0 && !self.reads_slowly()))
        });
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

    /// The server has ended its connection: the client gets what came before, and then its end.
    pub(super) fn end(self: &Rc<Self>) {
        self.closing.set(true);
        self.wake();
        if !self.out.borrow().is_empty() {
            let client = self.clone();
            tokio::task::spawn_local(async move {
                tokio::time::sleep(END_LINGER).await;
                client.close();
            });
        }
    }

    pub(super) fn has_pin_state(&self) -> bool {
        self.pin.borrow().as_ref().is_some_and(|pin| !pin.is_free())
    }

    /// The connection of its own.
    pub(super) fn pinned_to(&self) -> Option<Rc<Upstream>> {
        self.pin.borrow().as_ref().map(|pin| pin.upstream.clone())
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
        let authenticated = change.authenticates();
        match change {
            StateChange::Select(db) => identity.db = db,
            StateChange::Auth(credentials) => {
                identity.credentials = Some(Rc::new(credentials));
                self.note_proven();
            }
            StateChange::Hello {
                protocol,
                credentials,
                name,
            } => {
                identity.protocol = protocol.unwrap_or(identity.protocol);
                if let Some(credentials) = credentials {
                    identity.credentials = Some(Rc::new(credentials));
                    self.note_proven();
                }
                if let Some(name) = name {
                    labels.name = Some(name).filter(|name| !name.is_empty());
                }
            }
            StateChange::BadHello => {}
            StateChange::Name(name) => labels.name = Some(name).filter(|name| !name.is_empty()),
            StateChange::LibName(name) => labels.lib_name = Some(name),
            StateChange::LibVer(version) => labels.lib_ver = Some(version),
        }
        if let Some(pin) = self.pin.borrow_mut().as_mut() {
            // A name is there to be found in CLIENT LIST: the connection that bears it is this client's alone.
            pin.sticky |= labels.name.is_some();
            // Another connection may be refused what this one has.
            let (by_old_rights, chosen_before) = (!self.may_change_worker(), authenticated && identity.db != 0);
            pin.sticky |= !pin.made_do && (by_old_rights || chosen_before) && !self.worker.knows(&identity);
        }
        drop((identity, labels));
        *self.route.borrow_mut() = None;
    }

    /// The server refused a change of the connection's state. It goes through a HELLO from left to right, and keeps what it has done before
    /// it finds a mistake: only this connection knows who the client is now.
    pub(super) fn stay_after(&self, change: &StateChange, refusal: &[u8]) {
        let has_options = match change {
            StateChange::Hello { credentials, name, .. } => credentials.is_some() || name.is_some(),
            StateChange::BadHello => true,
            _ => false,
        };
        let at_once = [&b"-NOPROTO"[..], b"-ERR Protocol version"];
        if has_options
            && !at_once.iter().any(|error| refusal.starts_with(error))
            && let Some(pin) = self.pin.borrow_mut().as_mut()
        {
            (pin.sticky, pin.unmovable) = (true, true);
        }
    }

    /// MULTI was refused: what was taken to be queued behind it has been executed, or is about to be.
    pub(super) fn lose_transaction(&self) {
        let lost = self.pin.borrow_mut().as_mut().and_then(|pin| {
            let transaction = pin.transaction.take()?;
            Some((pin.upstream.id, transaction.into_write()?))
        });
        if let Some((upstream, write)) = lost {
            self.worker.begin(upstream, &write);
            self.worker.settle_later(write);
        }
    }

    /// As if it had just connected, but for its library, which stays what it is.
    pub(super) fn reset(&self) {
        if let Some(pin) = self.pin.borrow_mut().take() {
            pin.upstream.own(None);
            pin.upstream.close();
        }
        *self.identity.borrow_mut() = Identity::nobody(self.worker.shared.rights.changes());
        self.note_proven();
        self.labels.borrow_mut().name = None;
        *self.route.borrow_mut() = None;
        self.admitted.set(self.worker.shared.access.is_open());
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
            Some(self.labels.borrow().clone()),
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
            let blocked = shorten_timeout(&blocked, old.oldest());
            let entry = InFlight {
                kind: Kind::Blocking,
                ..self.entry(CommandId::lookup(b"blpop"), blocked.len())
            };
            new.send(&blocked, entry);
        }
        new.land(&old);
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

    /// Gives the client an upstream of its own to authenticate on: one that stands and is as the client is, or one that has not
    /// authenticated, since what the client was may be refused by now.
    pub(super) fn pin_to_authenticate(self: &Rc<Self>) {
        if self.pin.borrow().is_some() {
            return;
        }
        let identity = self.identity.borrow().clone();
        let standing = match identity.is_nobody() {
            true => None,
            false => self.worker.take_standing(&identity, &self.labels.borrow()),
        };
        let made_do = standing.is_none();
        let upstream = standing.unwrap_or_else(|| {
            let nobody = Identity::nobody(self.worker.shared.rights.changes());
            self.worker.exclusive_upstream(&nobody, &Labels::default())
        });
        upstream.own(Some(self.clone()));
        let mut pin = Pin::new(upstream);
        pin.made_do = made_do;
        *self.pin.borrow_mut() = Some(pin);
    }

    /// Another upstream of its own, in the state that the client is in, where that has changed since the present one was opened.
    pub(super) fn pin_anew(self: &Rc<Self>) -> Option<Rc<Upstream>> {
        let mut slot = self.pin.borrow_mut();
        // A change on its way is repeated from the state that it was made in.
        let pin = slot.as_mut().filter(|pin| pin.used_up && !pin.changing)?;
        pin.upstream = self
            .worker
            .exclusive_upstream(&self.identity.borrow(), &self.labels.borrow());
        pin.upstream.own(Some(self.clone()));
        pin.used_up = false;
        Some(pin.upstream.clone())
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
