//! One client connection: finds its commands, and decides for each which upstream it travels on.
//!
//! A client uses one route at a time. Whatever must not overtake what is in flight (a local answer, a change of
//! upstream) waits until the last reply is there; meanwhile nothing more is taken from the client's bytes.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};

use super::identity::{Credentials, Identity, Labels, Protocol};
use super::pin::{Message, Pin, StateChange, Transaction};
use super::upstream::{InFlight, Kind, SessionWrite, Upstream};
use super::worker::Worker;
use crate::command::{Access, CommandId, Connection};
use crate::net::stream::{ReadHalf, WriteHalf};
use crate::resp::request::encode;
use crate::resp::{Args, ProtocolError, Request, RequestScanner, inline};
use crate::session::effect::{Plan, Planned, plan};
use crate::status::Authority;

/// Replies that a client may leave unread, bytes. Redis sets no limit for ordinary clients; this one keeps a client that
/// never reads from taking all memory.
const MAX_OUTPUT: usize = 1024 * 1024 * 1024;
/// Bytes taken from a client while its commands wait, to notice when it goes.
const MAX_WAITING_INPUT: usize = 64 * 1024;
/// No more is taken from clients while their upstream has this many bytes to send or to get answered.
const MAX_BACKLOG: usize = 64 * 1024 * 1024;
/// A buffer that grew beyond this is given back once it is empty, bytes.
const KEEP_LEN: usize = 16 * 1024;

/// What of a client is reached from upstream connections too.
pub(super) struct Client {
    pub(super) id: u64,
    worker: Rc<Worker>,
    writer: RefCell<WriteHalf>,
    out: RefCell<BytesMut>,
    /// Is in the worker's list of clients to flush.
    flush_queued: Cell<bool>,
    /// Commands sent upstream whose replies have not come.
    pub(super) in_flight: Cell<usize>,
    closed: Cell<bool>,
    /// Close once everything is written.
    closing: Cell<bool>,
    waker: Cell<Option<Waker>>,
    identity: RefCell<Identity>,
    labels: RefCell<Labels>,
    pin: RefCell<Option<Pin>>,
    /// The shared upstream used last, with the authority's generation that it belongs to.
    route: RefCell<Option<(u64, Rc<Upstream>)>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client({})", self.id)
    }
}

/// What became of a command.
#[derive(Debug, PartialEq, Eq)]
enum Dispatch {
    /// It is on its way, or answered.
    Done,
    /// It must wait until the client's replies are there.
    AwaitReplies,
    /// All commands are held.
    Held,
    /// The upstream has too much to do.
    Backlogged,
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
            return;
        }
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

    fn entry(self: &Rc<Self>, command: CommandId, len: usize) -> InFlight {
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
    fn shared(&self) -> Rc<Upstream> {
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
    fn pin(self: &Rc<Self>) {
        if self.pin.borrow().is_none() {
            let upstream = self
                .worker
                .exclusive_upstream(&self.identity.borrow(), &self.labels.borrow());
            upstream.own(Some(self.clone()));
            *self.pin.borrow_mut() = Some(Pin::new(upstream));
        }
    }

    /// Answers a client by the proxy itself.
    fn answer(self: &Rc<Self>, bytes: &[u8]) {
        self.reply(bytes);
    }
}

/// The client's task: reads, dispatches, and writes what did not fit into the socket at once.
pub(super) struct Downstream {
    client: Rc<Client>,
    reader: ReadHalf,
    scanner: RequestScanner,
    /// Bytes that are not dispatched yet.
    input: BytesMut,
    ended: bool,
}

impl Downstream {
    pub(super) fn new(client: Rc<Client>, reader: ReadHalf) -> Self {
        Downstream {
            client,
            reader,
            scanner: RequestScanner::default(),
            input: BytesMut::new(),
            ended: false,
        }
    }

    /// Serves the client to its end.
    pub(super) async fn run(mut self) {
        poll_fn(|cx| self.poll(cx)).await;
        let client = &self.client;
        client.closed.set(true);
        if let Some(pin) = client.pin.borrow_mut().take() {
            pin.upstream.own(None);
            pin.upstream.close();
        }
        client.worker.remove(client.id);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let client = self.client.clone();
        let mut waiting = false;
        // What waited may go on now.
        if !self.input.is_empty() {
            let mut input = std::mem::take(&mut self.input);
            let (used, stopped) = self.process(&input);
            input.advance(used);
            if !input.is_empty() {
                self.input = input;
            }
            waiting = stopped;
        }
        let mut scratch = client.worker.take_scratch();
        while self.may_read(waiting) {
            let read = if self.input.is_empty() {
                scratch.clear();
                self.reader.poll_read_buf(cx, &mut scratch)
            } else {
                if self.input.capacity() - self.input.len() < 4096 {
                    let wanted = self.scanner.wants(&self.input);
                    self.input.reserve(wanted.clamp(16 * 1024, 64 * 1024 * 1024));
                }
                self.reader.poll_read_buf(cx, &mut self.input)
            };
            match read {
                Poll::Pending => break,
                Poll::Ready(Ok(0) | Err(_)) => self.ended = true,
                Poll::Ready(Ok(_)) if self.input.is_empty() => {
                    let (used, stopped) = self.process(&scratch);
                    waiting = stopped;
                    self.input.extend_from_slice(&scratch[used..]);
                }
                Poll::Ready(Ok(_)) => {
                    if !waiting {
                        let mut input = std::mem::take(&mut self.input);
                        let (used, stopped) = self.process(&input);
                        waiting = stopped;
                        input.advance(used);
                        self.input = if input.is_empty() { BytesMut::new() } else { input };
                    }
                }
            }
        }
        client.worker.give_scratch(scratch);
        client.worker.flush_clients();
        self.poll_flush(cx);
        let done = client.out.borrow().is_empty() && client.in_flight.get() == 0;
        let blocked = client
            .pin
            .borrow()
            .as_ref()
            .is_some_and(|pin| pin.blocking || pin.subscriptions() > 0);
        let draining = client.worker.draining.get() && (blocked || self.input.is_empty());
        // A client that hung up gets what it is owed, as far as it still reads; a blocked one waits for nothing now.
        if client.closed.get()
            || (done && (client.closing.get() || (self.ended && !waiting)))
            || (self.ended && blocked)
            || (draining && (done || blocked))
        {
            return Poll::Ready(());
        }
        client.waker.set(Some(cx.waker().clone()));
        Poll::Pending
    }

    /// While commands wait, only so much is read as shows whether the client is still there.
    fn may_read(&self, waiting: bool) -> bool {
        let enough = waiting && self.input.len() >= MAX_WAITING_INPUT;
        !(self.ended || self.client.closed.get() || enough)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) {
        let client = &self.client;
        loop {
            let mut out = client.out.borrow_mut();
            if out.is_empty() {
                return;
            }
            match client.writer.borrow_mut().poll_write(cx, &out) {
                Poll::Ready(Ok(written)) => out.advance(written),
                Poll::Ready(Err(_)) => {
                    client.closed.set(true);
                    return;
                }
                Poll::Pending => return,
            }
        }
    }

    /// Dispatches whole commands from the start of `bytes`. Answers how many bytes it used, and whether it stopped
    /// before a command that has to wait.
    fn process(&mut self, bytes: &[u8]) -> (usize, bool) {
        let client = self.client.clone();
        let mut used = 0;
        self.scanner.unauthenticated =
            client.worker.shared.asks_password.load(Relaxed) && client.identity.borrow().credentials.is_none();
        while used < bytes.len() && !client.closing.get() && !client.closed.get() {
            match self.scanner.scan(&bytes[used..]) {
                Ok(None) => return (used, false),
                Ok(Some(request)) => {
                    let frame = &bytes[used..used + request.len];
                    match self.dispatch(frame, &request) {
                        Dispatch::Done => used += request.len,
                        Dispatch::AwaitReplies => return (used, true),
                        Dispatch::Held => {
                            client.worker.park(&client);
                            return (used, true);
                        }
                        Dispatch::Backlogged => {
                            client.worker.park_backlogged(&client);
                            return (used, true);
                        }
                    }
                }
                Err(error) => {
                    if client.in_flight.get() > 0 {
                        // The answer must not overtake replies. The error is found again.
                        self.scanner = RequestScanner::default();
                        return (used, true);
                    }
                    self.refuse(&error);
                    return (bytes.len(), false);
                }
            }
        }
        (if client.closing.get() { bytes.len() } else { used }, false)
    }

    /// A protocol error: the message that Redis gives, and then the end.
    fn refuse(&self, error: &ProtocolError) {
        self.client.answer(format!("-ERR {error}\r\n").as_bytes());
        self.client.closing.set(true);
    }

    fn dispatch(&mut self, frame: &[u8], request: &Request) -> Dispatch {
        if request.argc == 0 {
            return Dispatch::Done;
        }
        let client = self.client.clone();
        let client = &client;
        let worker = client.worker.clone();
        if worker.held.get() {
            return Dispatch::Held;
        }
        let multibulk = frame[0] == b'*';
        let command = if multibulk {
            CommandId::lookup(&frame[request.name.clone()])
        } else {
            // A person at a keyboard: the words are encoded the way every client does.
            let words = inline::split(&frame[..frame.len() - 1]).unwrap_or_default();
            let mut encoded = Vec::new();
            encode(&words, &mut encoded);
            let Ok(Some(request)) = RequestScanner::default().scan(&encoded) else {
                return Dispatch::Done;
            };
            return self.dispatch(&encoded, &request);
        };
        let entry = command.entry();
        let pinned = client.pin.borrow().is_some();
        if entry.access == Access::Wipe && worker.shared.refuses_flush {
            if client.in_flight.get() > 0 {
                return Dispatch::AwaitReplies;
            }
            client.answer(b"-ERR sessionferry: refused, it would delete every session (tee.on_flush = refuse)\r\n");
            return Dispatch::Done;
        }
        match entry.connection {
            // The hot path.
            Connection::Shared | Connection::Exec | Connection::Discard | Connection::Unwatch if !pinned => {
                let upstream = client.shared();
                if upstream.backlog() > MAX_BACKLOG {
                    return Dispatch::Backlogged;
                }
                if entry.name == "script" && frame[request.first.clone()].eq_ignore_ascii_case(b"load") {
                    worker.shared.scripts.note(frame);
                }
                let write = self.session_write(&upstream, command, frame, request);
                self.send(&upstream, frame, command, write, Kind::Plain);
                return Dispatch::Done;
            }
            // Nothing may overtake a blocked command, and a confirmation must be told from other replies.
            _ if pinned && self.must_wait(entry.connection) => return Dispatch::AwaitReplies,
            _ => {}
        }
        if command.is_unknown() && is_http(&frame[request.name.clone()]) {
            // Redis's own guard against a browser that was made to speak to it.
            tracing::warn!(
                client = client.id,
                "possible cross-protocol attack: a client speaks HTTP; closing it"
            );
            client.close();
            return Dispatch::Done;
        }
        let args: Vec<&[u8]> = Args::new(frame).collect();
        let in_transaction = client
            .pin
            .borrow()
            .as_ref()
            .is_some_and(|pin| pin.transaction.is_some());
        if in_transaction
            && !matches!(
                entry.connection,
                Connection::Exec | Connection::Discard | Connection::Quit | Connection::Reset
            )
        {
            self.queue_in_transaction(command, frame, request, &args);
            return Dispatch::Done;
        }
        let idle = client.in_flight.get() == 0;
        match entry.connection {
            Connection::Quit if idle => {
                client.answer(b"+OK\r\n");
                client.closing.set(true);
            }
            Connection::Reset if idle && args.len() == 1 => self.reset(),
            Connection::Select | Connection::Auth | Connection::Hello if idle => {
                self.change_state(command, frame, &args);
            }
            Connection::Quit | Connection::Reset | Connection::Select | Connection::Auth | Connection::Hello => {
                return Dispatch::AwaitReplies;
            }
            Connection::Client => return self.client_command(command, frame, request, &args),
            Connection::Blocking if !pinned && !blocks(&args) => {
                let upstream = client.shared();
                let write = self.session_write(&upstream, command, frame, request);
                self.send(&upstream, frame, command, write, Kind::Plain);
            }
            Connection::Shared => self.send_pinned(command, frame, request, Kind::Plain),
            _ if !pinned && !idle => return Dispatch::AwaitReplies,
            connection => {
                client.pin();
                self.send_stateful(connection, command, frame, request, &args);
            }
        }
        Dispatch::Done
    }

    /// Whether a pinned client's next command has to wait for replies.
    fn must_wait(&self, next: Connection) -> bool {
        let pin = self.client.pin.borrow();
        let Some(pin) = pin.as_ref() else { return false };
        self.client.in_flight.get() > 0
            && (pin.blocking || pin.used_up || matches!(next, Connection::Subscribe) || self.confirming())
    }

    fn confirming(&self) -> bool {
        self.client
            .pin
            .borrow()
            .as_ref()
            .is_some_and(|pin| pin.upstream.is_confirming())
    }

    /// What the command will do to sessions, registered and on its way to the journal.
    fn session_write(
        &self,
        upstream: &Upstream,
        command: CommandId,
        frame: &[u8],
        request: &Request,
    ) -> Option<Box<SessionWrite>> {
        match command.entry().access {
            Access::Read | Access::Other => return None,
            Access::Write | Access::Script | Access::Wipe => {}
        }
        let worker = &self.client.worker;
        let write = self.plan(command, frame, request)?;
        worker.begin(upstream.id, &write);
        Some(Box::new(write))
    }

    fn plan(&self, command: CommandId, frame: &[u8], request: &Request) -> Option<SessionWrite> {
        let worker = &self.client.worker;
        let patterns = &worker.shared.tee.patterns;
        let access = command.entry().access;
        if access == Access::Wipe {
            return Some(SessionWrite::Wipe);
        }
        if self.client.identity.borrow().db != worker.shared.sessions_db
            && !matches!(command.entry().name, "move" | "copy")
        {
            return None;
        }
        // Most writes of most sites are no sessions, which the first argument tells, or a look at the whole.
        if patterns.session_key(&frame[request.first.clone()]).is_none() && !patterns.may_be_in(frame) {
            return None;
        }
        let shared = Bytes::copy_from_slice(frame);
        let args: Vec<&[u8]> = Args::new(&shared).collect();
        match plan(command, &shared, &args, patterns) {
            Plan::Nothing => None,
            Plan::Wipe => Some(SessionWrite::Wipe),
            Plan::Keys(planned) => Some(SessionWrite::Keys(planned)),
        }
    }

    fn send(
        &self,
        upstream: &Rc<Upstream>,
        frame: &[u8],
        command: CommandId,
        write: Option<Box<SessionWrite>>,
        kind: Kind,
    ) {
        let mut entry = self.client.entry(command, frame.len());
        entry.repeatable |= matches!(kind, Kind::Change(_)) || (write.is_some() && is_absolute(command));
        entry.write = write;
        entry.kind = kind;
        self.client.worker.stats.forwarded(command);
        upstream.send(frame, entry);
    }

    fn send_pinned(&self, command: CommandId, frame: &[u8], request: &Request, kind: Kind) {
        let Some((upstream, silent)) = self
            .client
            .pin
            .borrow()
            .as_ref()
            .map(|pin| (pin.upstream.clone(), pin.silent))
        else {
            return;
        };
        let write = self.session_write(&upstream, command, frame, request);
        if silent {
            upstream.send_silent(frame);
            if let Some(write) = write {
                self.client.worker.settle_later(*write);
            }
            return;
        }
        self.send(&upstream, frame, command, write, kind);
    }

    /// A command on the client's own upstream that gives or ends state.
    fn send_stateful(
        &self,
        connection: Connection,
        command: CommandId,
        frame: &[u8],
        request: &Request,
        args: &[&[u8]],
    ) {
        let client = &self.client;
        let mut kind = Kind::Plain;
        {
            let mut slot = client.pin.borrow_mut();
            let Some(pin) = slot.as_mut() else { return };
            match connection {
                Connection::Multi if args.len() == 1 => {
                    let mut transaction = Transaction::default();
                    transaction.queue(frame);
                    pin.transaction = Some(transaction);
                }
                Connection::Watch if args.len() > 1 => pin.watching = true,
                Connection::Unwatch => (pin.watching, pin.watch_lost) = (false, false),
                Connection::Exec | Connection::Discard if pin.transaction.is_some() => {
                    drop(slot);
                    return self.end_transaction(connection, command, frame, args);
                }
                Connection::Blocking => {
                    pin.blocking = true;
                    kind = Kind::Blocking;
                }
                Connection::Subscribe => {
                    kind = Kind::Subscribe(pin.confirmations(command.entry().name, args.len() - 1))
                }
                Connection::Monitor => (pin.sticky, pin.unmovable) = (true, true),
                Connection::Sticky => pin.sticky = true,
                _ => {}
            }
        }
        self.send_pinned(command, frame, request, kind);
    }

    /// A command between MULTI and EXEC: the server queues it, so that its effect comes with EXEC.
    fn queue_in_transaction(&self, command: CommandId, frame: &[u8], request: &Request, args: &[&[u8]]) {
        let planned = self.plan(command, frame, request);
        let Some(upstream) = self.client.pin.borrow().as_ref().map(|pin| pin.upstream.clone()) else {
            return;
        };
        if let Some(pin) = self.client.pin.borrow_mut().as_mut()
            && let Some(transaction) = &mut pin.transaction
        {
            transaction.queue(frame);
            match planned {
                Some(SessionWrite::Keys(planned)) => transaction.keys.extend(planned.keys().cloned()),
                Some(SessionWrite::Wipe) => transaction.wipes = true,
                None => {}
            }
            match command.entry().connection {
                Connection::Select => transaction.select = args.get(1).and_then(|db| db_number(db)),
                Connection::Hello
                | Connection::Auth
                | Connection::Client
                | Connection::Sticky
                | Connection::Subscribe => {
                    (pin.sticky, pin.unmovable) = (true, true);
                }
                _ => {}
            }
        }
        self.send(&upstream, frame, command, None, Kind::Plain);
    }

    /// EXEC and DISCARD.
    fn end_transaction(&self, connection: Connection, command: CommandId, frame: &[u8], args: &[&[u8]]) {
        let client = &self.client;
        if args.len() != 1 {
            // The server refuses it, and the transaction stays open.
            let Some(upstream) = client.pin.borrow().as_ref().map(|pin| pin.upstream.clone()) else {
                return;
            };
            self.send(&upstream, frame, command, None, Kind::Plain);
            return;
        }
        let (upstream, transaction, watch_lost) = {
            let mut slot = client.pin.borrow_mut();
            let Some(pin) = slot.as_mut() else { return };
            let Some(transaction) = pin.transaction.take() else {
                return;
            };
            let lost = pin.watch_lost;
            (pin.watching, pin.watch_lost) = (false, false);
            (pin.upstream.clone(), transaction, lost)
        };
        if connection == Connection::Discard {
            self.send(&upstream, frame, command, None, Kind::Plain);
            return;
        }
        if watch_lost {
            // What was watched is on the other server: as if it had changed, which is what WATCH is for.
            let nil: &[u8] = if client.identity.borrow().protocol == Protocol::Resp3 {
                b"_\r\n"
            } else {
                b"*-1\r\n"
            };
            self.send(&upstream, b"*1\r\n$7\r\nDISCARD\r\n", command, None, Kind::Instead(nil));
            return;
        }
        let write = if transaction.wipes {
            Some(SessionWrite::Wipe)
        } else if transaction.keys.is_empty() {
            None
        } else {
            Some(SessionWrite::Keys(Planned::unknown(transaction.keys)))
        };
        if let Some(write) = &write {
            client.worker.begin(upstream.id, write);
        }
        let kind = match transaction.select {
            Some(db) => Kind::Change(Box::new(StateChange::Select(db))),
            None => Kind::Plain,
        };
        let mut entry = client.entry(command, frame.len());
        entry.write = write.map(Box::new);
        entry.kind = kind;
        client.worker.stats.forwarded(command);
        upstream.send(frame, entry);
    }

    /// SELECT, AUTH and HELLO: the server says whether they are good, the proxy remembers.
    fn change_state(&self, command: CommandId, frame: &[u8], args: &[&[u8]]) {
        let client = &self.client;
        let change = state_change(command, args);
        if let Some(change) = &change
            && self.answer_from_what_is_known(change)
        {
            return;
        }
        let frame = match &change {
            Some(change) => self.for_the_authority(change, frame),
            None => frame.to_vec(),
        };
        if frame.is_empty() {
            if let Some(change) = change {
                client.answer(b"+OK\r\n");
                client.apply(change);
            }
            return;
        }
        client.pin();
        let Some(upstream) = client.pin.borrow_mut().as_mut().map(|pin| {
            pin.used_up = true;
            pin.upstream.clone()
        }) else {
            return;
        };
        let kind = change.map_or(Kind::Plain, |change| Kind::Change(Box::new(change)));
        self.send(&upstream, &frame, command, None, kind);
    }

    /// A connection that stands in the wanted state is proof enough, for what carries no credentials.
    fn answer_from_what_is_known(&self, change: &StateChange) -> bool {
        let client = &self.client;
        if client.pin.borrow().is_some() {
            return false;
        }
        let mut wanted = client.identity.borrow().clone();
        match change {
            StateChange::Select(db) => wanted.db = *db,
            StateChange::Hello {
                protocol,
                credentials: None,
                ..
            } => {
                wanted.protocol = protocol.unwrap_or(wanted.protocol);
            }
            _ => return false,
        }
        let Some(upstream) = client.worker.known_upstream(&wanted) else {
            return false;
        };
        match change {
            StateChange::Select(_) => client.answer(b"+OK\r\n"),
            _ => match upstream.hello.borrow().as_ref() {
                Some(hello) => client.answer(hello),
                None => return false,
            },
        }
        client.apply(change.clone());
        true
    }

    /// The frame that asks the authority. After a cutover the source's credentials stand for the target's own; an empty
    /// frame means that the target needs none.
    fn for_the_authority(&self, change: &StateChange, frame: &[u8]) -> Vec<u8> {
        let worker = &self.client.worker;
        let servers = &worker.shared.servers;
        let authority = worker.authority.get();
        let given = match change {
            StateChange::Auth(credentials) => credentials,
            StateChange::Hello {
                credentials: Some(credentials),
                ..
            } => credentials,
            _ => return frame.to_vec(),
        };
        if authority == Authority::Source || !servers.are_the_sources(Some(given)) {
            return frame.to_vec();
        }
        let mapped = servers.credentials(authority, Some(given));
        let identity = match change {
            StateChange::Hello { protocol, .. } => Identity {
                protocol: protocol.unwrap_or_default(),
                ..Identity::default()
            },
            _ => Identity::default(),
        };
        let mut out = Vec::new();
        super::identity::handshake(&identity, mapped.as_ref(), &mut out);
        out
    }

    fn reset(&self) {
        let client = &self.client;
        if let Some(pin) = client.pin.borrow_mut().take() {
            pin.upstream.own(None);
            pin.upstream.close();
        }
        *client.identity.borrow_mut() = Identity::default();
        *client.labels.borrow_mut() = Labels::default();
        *client.route.borrow_mut() = None;
        client.answer(b"+RESET\r\n");
    }

    /// CLIENT: what a client says of itself is kept; everything else concerns a connection of its own.
    fn client_command(&self, command: CommandId, frame: &[u8], request: &Request, args: &[&[u8]]) -> Dispatch {
        let client = &self.client;
        let sub = args.get(1).map(|sub| sub.to_ascii_lowercase()).unwrap_or_default();
        let idle = client.in_flight.get() == 0;
        let change = match (sub.as_slice(), &args[1..]) {
            (b"setname", [_, name]) => Some(StateChange::Name(name.to_vec())),
            (b"setinfo", [_, what, text]) if what.eq_ignore_ascii_case(b"lib-name") => {
                Some(StateChange::LibName(text.to_vec()))
            }
            (b"setinfo", [_, what, text]) if what.eq_ignore_ascii_case(b"lib-ver") => {
                Some(StateChange::LibVer(text.to_vec()))
            }
            (b"maint_notifications", _) => {
                // They announce moves of the server itself, to a shared connection; redis-py goes on without them.
                if !idle {
                    return Dispatch::AwaitReplies;
                }
                client.answer(b"-ERR unknown subcommand 'MAINT_NOTIFICATIONS'. Try CLIENT HELP.\r\n");
                return Dispatch::Done;
            }
            _ => None,
        };
        let pinned = client.pin.borrow().is_some();
        if let (Some(change), false) = (&change, pinned) {
            // On the shared upstream it names the proxy's connection, which is no lie, and the server checks the text.
            let upstream = client.shared();
            self.send(&upstream, frame, command, None, Kind::Change(Box::new(change.clone())));
            return Dispatch::Done;
        }
        if !pinned && !idle {
            return Dispatch::AwaitReplies;
        }
        client.pin();
        if let Some(pin) = client.pin.borrow_mut().as_mut() {
            pin.sticky = true;
            pin.unmovable |= matches!(sub.as_slice(), b"tracking" | b"reply");
            if sub == b"reply" {
                // With replies off nobody can be told whose reply is whose: bytes only pass through from here on.
                pin.silent = true;
            }
        }
        let kind = change.map_or(Kind::Plain, |change| Kind::Change(Box::new(change)));
        self.send_pinned(command, frame, request, kind);
        Dispatch::Done
    }
}

/// The words that Redis takes for HTTP.
fn is_http(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"post") || name.eq_ignore_ascii_case(b"host:")
}

/// Session writes that leave the same state when they are executed twice.
fn is_absolute(command: CommandId) -> bool {
    matches!(command.entry().name, "set" | "setex" | "psetex" | "del" | "unlink")
}

/// XREAD and its like block only where they say BLOCK.
fn blocks(args: &[&[u8]]) -> bool {
    if args[0].len() >= 5 && args[0][..5].eq_ignore_ascii_case(b"xread") {
        return args.iter().any(|arg| arg.eq_ignore_ascii_case(b"block"));
    }
    true
}

fn db_number(text: &[u8]) -> Option<u32> {
    crate::resp::parse_integer(text).and_then(|db| u32::try_from(db).ok())
}

/// What SELECT, AUTH or HELLO would change; `None` where the server will refuse it anyway.
fn state_change(command: CommandId, args: &[&[u8]]) -> Option<StateChange> {
    match (command.entry().connection, &args[1..]) {
        (Connection::Select, [db]) => Some(StateChange::Select(db_number(db)?)),
        (Connection::Auth, [password]) => Some(StateChange::Auth(Credentials {
            username: None,
            password: password.to_vec(),
        })),
        (Connection::Auth, [user, password]) => Some(StateChange::Auth(Credentials {
            username: Some(user.to_vec()),
            password: password.to_vec(),
        })),
        (Connection::Hello, []) => Some(StateChange::Hello {
            protocol: None,
            credentials: None,
            name: None,
        }),
        (Connection::Hello, [version, options @ ..]) => {
            let protocol = Some(match *version {
                b"2" => Protocol::Resp2,
                b"3" => Protocol::Resp3,
                _ => return None,
            });
            let (mut credentials, mut name, mut rest) = (None, None, options);
            loop {
                rest = match rest {
                    [] => {
                        return Some(StateChange::Hello {
                            protocol,
                            credentials,
                            name,
                        });
                    }
                    [auth, user, password, tail @ ..] if auth.eq_ignore_ascii_case(b"auth") => {
                        credentials = Some(Credentials {
                            username: Some(user.to_vec()),
                            password: password.to_vec(),
                        });
                        tail
                    }
                    [setname, text, tail @ ..] if setname.eq_ignore_ascii_case(b"setname") => {
                        name = Some(text.to_vec());
                        tail
                    }
                    _ => return None,
                }
            }
        }
        _ => None,
    }
}
