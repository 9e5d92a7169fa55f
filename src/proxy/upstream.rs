//! One connection to a Redis: shared by all clients of one identity, or a single client's own.
//!
//! Bytes of commands are kept until their reply is there, so that after a lost connection those that may be repeated
//! are sent again, and the others get an error that says what is known. Many commands leave in one write and many
//! replies come in one read: clients only append to `out`, and the task here writes once per wake-up.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use tokio::time::{sleep, timeout};

use super::client::Client;
use super::identity::{Identity, Labels, handshake};
use super::pin::{Message, StateChange};
use super::worker::Worker;
use crate::command::CommandId;
use crate::net::stream::{ReadHalf, WriteHalf, connect};
use crate::net::{Backoff, Endpoint};
use crate::resp::ReplyScanner;
use crate::session::effect::Planned;
use crate::status::Authority;

/// Bound of one attempt to connect and shake hands.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A command waits at most this long for a server that is away. Django's client gives up at 5 s and then logs the user
/// out, so an answer must leave well before.
const PARK_LIMIT: Duration = Duration::from_secs(4);
const RECONNECT_FIRST: Duration = Duration::from_millis(10);
const RECONNECT_CAP: Duration = Duration::from_millis(250);
/// Room made for one read of replies, bytes.
const READ_LEN: usize = 64 * 1024;
/// A buffer that grew beyond this is given back once it is empty, bytes.
const KEEP_LEN: usize = 1024 * 1024;
/// After so many bytes of replies the worker's other connections have their turn.
const MAX_READ_BATCH: usize = 256 * 1024;

/// What a command is to the connection.
#[derive(Debug)]
pub(super) enum Kind {
    Plain,
    /// May take as long as it likes; does not hold up a cutover.
    Blocking,
    /// So many confirmations are still to come.
    Subscribe(usize),
    /// If the reply is no error, the connection and its client have changed so.
    Change(Box<StateChange>),
    /// The client gets this in place of the reply.
    Instead(&'static [u8]),
}

/// What a command does to sessions.
#[derive(Debug)]
pub(super) enum SessionWrite {
    Keys(Planned),
    Wipe,
}

/// A command whose reply has not come.
#[derive(Debug)]
pub(super) struct InFlight {
    /// `None`: the proxy's own replay of state; the reply is for nobody.
    pub(super) client: Option<Rc<Client>>,
    /// Its bytes in `out`.
    pub(super) len: usize,
    pub(super) command: CommandId,
    pub(super) write: Option<Box<SessionWrite>>,
    pub(super) kind: Kind,
    /// May be sent again where the connection was lost before the reply.
    pub(super) repeatable: bool,
    pub(super) queued: Instant,
}

impl InFlight {
    /// A command of the proxy's own, whose reply is for nobody.
    pub(super) fn unowned(command: CommandId, len: usize) -> Self {
        let queued = Instant::now();
        InFlight {
            client: None,
            len,
            command,
            write: None,
            kind: Kind::Plain,
            repeatable: true,
            queued,
        }
    }
}

#[derive(Debug, Default)]
struct Queue {
    /// Bytes of all commands in flight, sent or not.
    out: BytesMut,
    /// How much of `out` is sent.
    sent: usize,
    in_flight: VecDeque<InFlight>,
}

/// One upstream connection.
pub(super) struct Upstream {
    pub(super) id: u64,
    pub(super) worker: Rc<Worker>,
    pub(super) identity: Identity,
    pub(super) labels: Labels,
    pub(super) authority: Authority,
    /// Belongs to one client.
    pub(super) exclusive: bool,
    queue: RefCell<Queue>,
    waker: Cell<Option<Waker>>,
    pub(super) connected: Cell<bool>,
    closed: Cell<bool>,
    /// Where pushes and other messages that answer no command go; only of an exclusive connection.
    owner: RefCell<Option<Rc<Client>>>,
    /// The reply to HELLO, for clients that ask again what the connection already is.
    pub(super) hello: RefCell<Option<Bytes>>,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Upstream({}, {:?})", self.id, self.authority)
    }
}

impl Upstream {
    /// Opens a connection; commands may be sent at once and leave when it stands.
    pub(super) fn open(worker: &Rc<Worker>, authority: Authority, identity: Identity, own: Option<Labels>) -> Rc<Self> {
        let upstream = Rc::new(Upstream {
            id: worker.next_upstream_id(),
            worker: worker.clone(),
            identity,
            authority,
            exclusive: own.is_some(),
            labels: own.unwrap_or_default(),
            queue: RefCell::default(),
            waker: Cell::new(None),
            connected: Cell::new(false),
            closed: Cell::new(false),
            owner: RefCell::new(None),
            hello: RefCell::new(None),
        });
        tokio::task::spawn_local(upstream.clone().run());
        upstream
    }

    pub(super) fn own(&self, client: Option<Rc<Client>>) {
        *self.owner.borrow_mut() = client;
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Ends the connection. What is in flight is answered to nobody.
    pub(super) fn close(&self) {
        self.closed.set(true);
        self.wake();
    }

    pub(super) fn is_idle(&self) -> bool {
        self.queue.borrow().in_flight.is_empty()
    }

    /// Bytes that wait to be sent or answered.
    pub(super) fn backlog(&self) -> usize {
        self.queue.borrow().out.len()
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Queues a command; it leaves at the end of this wake-up, together with all others.
    pub(super) fn send(&self, frame: &[u8], entry: InFlight) {
        if !matches!(entry.kind, Kind::Blocking) {
            self.worker.entered();
        }
        if let Some(client) = &entry.client {
            client.in_flight.set(client.in_flight.get() + 1);
        }
        let mut queue = self.queue.borrow_mut();
        queue.out.extend_from_slice(frame);
        queue.in_flight.push_back(entry);
        drop(queue);
        self.wake();
    }

    /// Queues bytes to which the server will not reply.
    pub(super) fn send_silent(&self, frame: &[u8]) {
        let mut queue = self.queue.borrow_mut();
        queue.out.extend_from_slice(frame);
        drop(queue);
        self.wake();
    }

    /// Whether confirmations of a subscription are still to come.
    pub(super) fn is_confirming(&self) -> bool {
        matches!(
            self.queue.borrow().in_flight.front(),
            Some(InFlight {
                kind: Kind::Subscribe(_),
                ..
            })
        )
    }

    /// When the oldest command in flight was queued.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.queue.borrow().in_flight.front().map(|entry| entry.queued)
    }

    /// The raw bytes of the commands in flight: what a blocked client's command is issued again from.
    pub(super) fn unanswered(&self) -> Bytes {
        Bytes::copy_from_slice(&self.queue.borrow().out)
    }

    async fn run(self: Rc<Self>) {
        let mut backoff = Backoff::new(RECONNECT_FIRST, RECONNECT_CAP);
        let mut waited_since = None;
        while !self.closed.get() {
            let endpoint = self.worker.shared.servers.endpoint(self.authority).clone();
            match timeout(CONNECT_TIMEOUT, self.establish(&endpoint)).await {
                Ok(Ok((mut reader, mut writer, mut rest))) => {
                    backoff.reset();
                    waited_since = None;
                    self.connected.set(true);
                    let mut scanner = ReplyScanner::default();
                    let end = poll_fn(|cx| self.poll_io(cx, &mut reader, &mut writer, &mut scanner, &mut rest)).await;
                    self.connected.set(false);
                    if self.closed.get() {
                        break;
                    }
                    tracing::warn!(authority = ?self.authority, reason = %end, "an upstream connection ended");
                    self.worker.upstream_error();
                    self.handle_loss();
                }
                Ok(Err(Refusal::Server(reply))) => {
                    // The server is there and says no: every command would get that answer from it.
                    self.refuse_all(&reply);
                    if self.exclusive {
                        self.close_owner();
                        break;
                    }
                    sleep(backoff.wait()).await;
                }
                Ok(Err(Refusal::Io(error))) => {
                    self.note_unreachable(&mut waited_since, &error.to_string());
                    sleep(backoff.wait()).await;
                }
                Err(_) => {
                    self.note_unreachable(&mut waited_since, "no answer within 2 s");
                    sleep(backoff.wait()).await;
                }
            }
            self.expire_parked();
            if self.is_idle() && !self.connected.get() && waited_since.is_some() {
                // Nobody waits: the next command will wake us.
                self.until_wanted().await;
            }
        }
        self.connected.set(false);
        self.drop_all();
    }

    fn note_unreachable(&self, since: &mut Option<Instant>, error: &str) {
        self.worker.upstream_error();
        if since.is_none() {
            *since = Some(Instant::now());
            tracing::warn!(authority = ?self.authority, %error, "cannot connect upstream; commands are parked");
        }
    }

    async fn until_wanted(&self) {
        poll_fn(|cx| {
            if !self.is_idle() || self.closed.get() {
                return Poll::Ready(());
            }
            self.waker.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    /// Connects and brings the connection to the identity that it stands for.
    async fn establish(&self, endpoint: &Endpoint) -> Result<(ReadHalf, WriteHalf, BytesMut), Refusal> {
        let (mut reader, mut writer) = connect(endpoint).await.map_err(Refusal::Io)?;
        let mut hello = Vec::new();
        let credentials = self
            .worker
            .shared
            .servers
            .credentials(self.authority, self.identity.credentials.as_deref());
        let must = handshake(&self.identity, credentials.as_ref(), &mut hello);
        let may = self.labels.commands(&mut hello);
        let mut sent = 0;
        while sent < hello.len() {
            sent += poll_fn(|cx| writer.poll_write(cx, &hello[sent..]))
                .await
                .map_err(Refusal::Io)?;
        }
        let mut buffer = BytesMut::new();
        let mut scanner = ReplyScanner::default();
        let mut seen = 0;
        while seen < must + may {
            match scanner
                .scan(&buffer)
                .map_err(|error| Refusal::Io(io::Error::other(error)))?
            {
                Some(reply) => {
                    let bytes = buffer.split_to(reply.len).freeze();
                    if reply.is_push() {
                        continue;
                    }
                    // A server too old for SETINFO says so, and is none the worse.
                    if reply.is_error() && seen < must {
                        return Err(Refusal::Server(bytes));
                    }
                    if seen == 0 && bytes.starts_with(b"%") {
                        *self.hello.borrow_mut() = Some(bytes);
                    }
                    seen += 1;
                }
                None => {
                    if poll_fn(|cx| reader.poll_read_buf(cx, &mut buffer))
                        .await
                        .map_err(Refusal::Io)?
                        == 0
                    {
                        return Err(Refusal::Io(io::ErrorKind::UnexpectedEof.into()));
                    }
                }
            }
        }
        Ok((reader, writer, buffer))
    }

    /// Writes and reads until the connection ends; answers why it did.
    fn poll_io(
        self: &Rc<Self>,
        cx: &mut Context<'_>,
        reader: &mut ReadHalf,
        writer: &mut WriteHalf,
        scanner: &mut ReplyScanner,
        buffer: &mut BytesMut,
    ) -> Poll<String> {
        if self.closed.get() {
            return Poll::Ready("closed".into());
        }
        // Replies first: they free clients, whose next commands then leave in the same write.
        let mut batch = 0;
        loop {
            let spare = buffer.capacity() - buffer.len();
            if spare < READ_LEN / 4 {
                buffer.reserve(scanner.wants(buffer).max(READ_LEN));
            }
            match reader.poll_read_buf(cx, buffer) {
                Poll::Ready(Ok(0)) => return Poll::Ready("closed by the server".into()),
                Poll::Ready(Ok(read)) => {
                    batch += read;
                    if let Err(reason) = self.handle_replies(scanner, buffer) {
                        return Poll::Ready(reason);
                    }
                    if batch >= MAX_READ_BATCH {
                        // There is more, but the worker's other connections come first.
                        cx.waker().wake_by_ref();
                        break;
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(error.to_string()),
                Poll::Pending => break,
            }
        }
        self.worker.flush_clients();
        if batch > 0 {
            self.worker.wake_backlogged();
        }
        if buffer.is_empty() && buffer.capacity() > KEEP_LEN {
            *buffer = BytesMut::new();
        }
        loop {
            let mut queue = self.queue.borrow_mut();
            if queue.sent == queue.out.len() {
                break;
            }
            // What is about to leave must be in the journal before it does.
            self.worker.flush_journal();
            let queue = &mut *queue;
            match writer.poll_write(cx, &queue.out[queue.sent..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready("the socket takes no bytes".into()),
                Poll::Ready(Ok(written)) => {
                    queue.sent += written;
                    if queue.in_flight.is_empty() {
                        // Silent commands: no reply will ever free their bytes.
                        let sent = queue.sent;
                        queue.out.advance(sent);
                        queue.sent = 0;
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(error.to_string()),
                Poll::Pending => break,
            }
        }
        self.waker.set(Some(cx.waker().clone()));
        Poll::Pending
    }

    fn handle_replies(self: &Rc<Self>, scanner: &mut ReplyScanner, buffer: &mut BytesMut) -> Result<(), String> {
        let mut start = 0;
        let result = loop {
            match scanner.scan(&buffer[start..]) {
                Ok(Some(reply)) => {
                    let bytes = &buffer[start..start + reply.len];
                    start += reply.len;
                    if let Err(reason) = self.handle_reply(bytes, reply.is_push(), reply.is_error()) {
                        break Err(reason);
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error.to_string()),
            }
        };
        if start == buffer.len() {
            buffer.clear();
        } else {
            buffer.advance(start);
        }
        result
    }

    /// One reply: whose is it, and what did its command do?
    fn handle_reply(self: &Rc<Self>, bytes: &[u8], push: bool, error: bool) -> Result<(), String> {
        if self.exclusive && self.is_out_of_band(bytes, push, error) {
            if let Some(owner) = self.owner.borrow().as_ref() {
                owner.reply(bytes);
            }
            return Ok(());
        }
        if push && !self.exclusive {
            // Nothing on a shared connection asks for pushes; a server may still send one that concerns nobody.
            return Ok(());
        }
        let mut queue = self.queue.borrow_mut();
        let Some(entry) = queue.in_flight.pop_front() else {
            return Err("a reply came that no command asked for".into());
        };
        if entry.len > queue.sent {
            queue.in_flight.push_front(entry);
            return Err("a reply came before its command was sent".into());
        }
        queue.out.advance(entry.len);
        queue.sent -= entry.len;
        if queue.out.is_empty() && queue.out.capacity() > KEEP_LEN {
            queue.out = BytesMut::new();
        }
        drop(queue);
        self.finish(entry, bytes, error);
        Ok(())
    }

    /// Whether this answers no command: a push, a message to a subscriber, a confirmation that is one of several.
    fn is_out_of_band(&self, bytes: &[u8], push: bool, error: bool) -> bool {
        let mut queue = self.queue.borrow_mut();
        // In RESP2 a message is an array like any other: only a subscriber's can be one.
        let subscriber = matches!(
            queue.in_flight.front(),
            Some(InFlight {
                kind: Kind::Subscribe(_),
                ..
            })
        ) || self.owner.borrow().as_ref().is_some_and(|owner| owner.is_subscriber());
        let message = if push || subscriber {
            Message::parse(bytes, push)
        } else {
            None
        };
        if let Some(message) = &message
            && let Some(owner) = self.owner.borrow().as_ref()
        {
            owner.note_message(message);
        }
        match queue.in_flight.front_mut() {
            None => true,
            Some(InFlight {
                kind: Kind::Subscribe(left),
                ..
            }) => {
                if error || !matches!(message, Some(Message::Confirmation { .. })) {
                    return !error;
                }
                *left -= 1;
                *left > 0
            }
            Some(_) => push || message.is_some(),
        }
    }

    /// The reply (or what stands for it) is there: sessions settle, the client gets its bytes.
    fn finish(self: &Rc<Self>, entry: InFlight, reply: &[u8], error: bool) {
        if let Some(write) = &entry.write {
            self.worker.settle(write, reply);
        }
        if !matches!(entry.kind, Kind::Blocking) {
            self.worker.left();
        }
        let Some(client) = entry.client else { return };
        self.worker.stats.answered(entry.command, error, entry.queued);
        match entry.kind {
            Kind::Instead(bytes) => client.reply(bytes),
            Kind::Change(change) => {
                client.reply(reply);
                if !error && !crate::session::effect::is_null(reply) {
                    client.apply(*change);
                }
            }
            _ => client.reply(reply),
        }
        client.answered();
    }

    /// The connection is lost. What was not sent stays; what was sent is sent again where that is harmless.
    fn handle_loss(self: &Rc<Self>) {
        let owner_has_state = self.exclusive && self.owner.borrow().as_ref().is_some_and(|owner| owner.has_pin_state());
        if owner_has_state {
            self.close_owner();
            self.closed.set(true);
            return;
        }
        let mut queue = self.queue.borrow_mut();
        let Queue {
            mut out,
            sent,
            in_flight,
        } = std::mem::take(&mut *queue);
        let mut lost = Vec::new();
        let mut offset = 0;
        for mut entry in in_flight {
            let bytes = out.split_to(entry.len);
            let was_sent = offset < sent;
            offset += entry.len;
            if was_sent && !entry.repeatable {
                lost.push(entry);
                continue;
            }
            if was_sent && let Some(write) = &mut entry.write {
                // It may happen twice: only the authority can tell what came of it.
                if let SessionWrite::Keys(planned) = &mut **write {
                    let keys: Vec<Bytes> = planned.keys().cloned().collect();
                    *planned = Planned::unknown(keys);
                }
            }
            queue.out.extend_from_slice(&bytes);
            queue.in_flight.push_back(entry);
        }
        drop(queue);
        let side = self.authority;
        for entry in lost {
            let text = format!(
                "-ERR sessionferry: the connection to the {side} Redis was lost before it replied; \
                 the command may or may not have been executed\r\n"
            );
            self.finish(entry, text.as_bytes(), true);
        }
        self.worker.flush_clients();
    }

    /// Answers what has waited too long for a server that is away.
    fn expire_parked(self: &Rc<Self>) {
        loop {
            let mut queue = self.queue.borrow_mut();
            if queue
                .in_flight
                .front()
                .is_none_or(|entry| entry.queued.elapsed() < PARK_LIMIT)
            {
                break;
            }
            let Some(entry) = queue.in_flight.pop_front() else {
                break;
            };
            queue.out.advance(entry.len);
            queue.sent = queue.sent.saturating_sub(entry.len);
            drop(queue);
            let side = self.authority;
            let text = format!("-ERR sessionferry: the {side} Redis cannot be reached; gave up after 4 s\r\n");
            self.finish(entry, text.as_bytes(), true);
        }
        self.worker.flush_clients();
    }

    /// The server refused the connection itself: that is its answer to everything.
    fn refuse_all(self: &Rc<Self>, reply: &[u8]) {
        loop {
            let mut queue = self.queue.borrow_mut();
            let Some(entry) = queue.in_flight.pop_front() else {
                break;
            };
            queue.out.advance(entry.len);
            queue.sent = 0;
            drop(queue);
            self.finish(entry, reply, true);
        }
        self.worker.flush_clients();
    }

    fn close_owner(&self) {
        if let Some(owner) = self.owner.borrow().as_ref() {
            owner.close();
        }
    }

    /// The connection is closed on purpose: sessions settle as unknown, and nobody is answered.
    fn drop_all(&self) {
        loop {
            let entry = self.queue.borrow_mut().in_flight.pop_front();
            let Some(entry) = entry else { break };
            if let Some(write) = &entry.write {
                self.worker.abandon(write);
            }
            if !matches!(entry.kind, Kind::Blocking) {
                self.worker.left();
            }
            if let Some(client) = entry.client {
                client.answered();
            }
        }
        self.owner.borrow_mut().take();
    }
}

#[derive(Debug)]
enum Refusal {
    Io(io::Error),
    /// The server's own error reply to the handshake.
    Server(Bytes),
}
