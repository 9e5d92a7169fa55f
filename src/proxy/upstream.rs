//! One connection to a Redis: shared by all clients of one identity, or a single client's own.
//!
//! Bytes of commands are kept until their reply is there, so that after a lost connection those that may be repeated
//! are sent again, and the others get an error that says what is known. Many commands leave in one write and many
//! replies come in one read: clients only append to `out`, and the task here writes once per wake-up.

mod away;
mod in_flight;
mod lift;
mod loss;
mod opening;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use tokio::time::sleep;

use super::census::Census;
use super::client::Client;
use super::identity::{Identity, Labels};
use super::pin::{Message, StateChange, selected};
use super::stats::Trouble;
use super::worker::Worker;
use crate::net::tls::explain;
use crate::net::{Backoff, Footprint};
use crate::resp::ReplyScanner;
use crate::status::Authority;
use in_flight::Queue;
pub(super) use in_flight::{InFlight, Kind, SessionWrite};
use opening::{LOADING, Refusal, Standing, has_too_many_clients, is_denial, is_passing, is_there};

const RECONNECT_FIRST: Duration = Duration::from_millis(10);
const RECONNECT_CAP: Duration = Duration::from_millis(250);
/// Room made for one read of replies, bytes.
const READ_LEN: usize = 64 * 1024;
/// A buffer that grew beyond this is given back once it is empty, bytes.
const KEEP_LEN: usize = 1024 * 1024;
/// After so many bytes of replies the worker's other connections have their turn.
const MAX_READ_BATCH: usize = 256 * 1024;

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
    /// Since when there has been no connection.
    away: Cell<Option<Instant>>,
    /// Sessions are being read elsewhere.
    rescuing: Cell<bool>,
    /// The connection is to be taken for lost, although it stands.
    given_up: Cell<bool>,
    /// The server has not read its data from disk yet.
    loading: Cell<bool>,
    /// Commands on their way to another server.
    lifted: RefCell<Option<Queue>>,
    /// What comes is not one reply for each command (replication, CLIENT REPLY OFF): it goes to the owner as it is.
    raw: Cell<bool>,
    /// The user may not SELECT: the database is chosen before it authenticates.
    selects_first: Cell<bool>,
    /// Where pushes and other messages that answer no command go; only of an exclusive connection.
    owner: RefCell<Option<Rc<Client>>>,
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
            away: Cell::new(Some(Instant::now())),
            rescuing: Cell::new(false),
            given_up: Cell::new(false),
            loading: Cell::new(false),
            lifted: RefCell::default(),
            raw: Cell::new(false),
            selects_first: Cell::new(false),
            owner: RefCell::new(None),
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

    /// Whether somebody waits for this connection. Who only passes bytes through waits for no reply.
    fn is_wanted(&self) -> bool {
        !self.is_idle() || (self.raw.get() && self.backlog() > 0)
    }

    /// From here on bytes only pass through.
    pub(super) fn become_stream(&self) {
        self.raw.set(true);
        if !self.connected.get() {
            // Its owner has not waited yet.
            self.away.set(Some(Instant::now()));
        }
    }

    /// Bytes that wait to be sent or answered.
    pub(super) fn backlog(&self) -> usize {
        self.queue.borrow().out.len()
    }

    pub(super) fn wake(&self) {
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
        let mut reasons = Vec::new();
        while !self.closed.get() {
            let endpoint = self.worker.shared.servers.endpoint(self.authority).clone();
            match self.attempt(&endpoint).await {
                Ok(Ok(mut standing)) => {
                    backoff.reset();
                    reasons.clear();
                    self.loading.set(false);
                    self.doubt_unwatched();
                    self.clear_waiting().await;
                    self.connected.set(true);
                    self.away.set(None);
                    let mut scanner = ReplyScanner::default();
                    let end = poll_fn(|cx| self.poll_io(cx, &mut standing, &mut scanner)).await;
                    drop(standing);
                    self.connected.set(false);
                    self.away.set(Some(Instant::now()));
                    if self.closed.get() {
                        break;
                    }
                    tracing::warn!(authority = ?self.authority, reason = %end, "an upstream connection ended");
                    self.worker.stats.note_upstream_error(self.authority, Trouble::Lost);
                    if self.identity.credentials.is_some()
                        && self.worker.shared.rights.changed_just_now()
                        && is_there(&endpoint).await
                    {
                        // The server was told to change its users, and has ended the connections of this one.
                        self.close_owner();
                        self.worker.lose_identity(&self.identity);
                        break;
                    }
                    self.handle_loss();
                    if !self.is_wanted() && self.is_for_nobody() {
                        break;
                    }
                    if !self.is_wanted() && !self.identity.is_nobody() {
                        // Whoever ended it may have meant the user: nobody has asked for it again.
                        self.until_wanted().await;
                    }
                }
                Ok(Err(Refusal::Server(reply))) if has_too_many_clients(&reply) => {
                    self.note_unreachable(&mut reasons, "it has too many clients (maxclients)");
                    sleep(backoff.wait()).await;
                }
                Ok(Err(Refusal::Server(reply)))
                    if reply.starts_with(b"-NOPERM") && self.identity.db != 0 && !self.selects_first.replace(true) =>
                {
                    // The client may have chosen its database before it became this user.
                }
                // Sessions wait for it, and are read elsewhere, as if it were away.
                Ok(Err(Refusal::Server(reply))) if self.loading.get() && reply.starts_with(LOADING) => {
                    sleep(backoff.wait()).await;
                }
                Ok(Err(Refusal::Server(reply))) if is_passing(&reply) => {
                    // What the client would hear on a connection that stands, until the server is ready again.
                    self.refuse_all(&reply);
                    sleep(backoff.wait()).await;
                }
                Ok(Err(Refusal::Server(reply))) => {
                    // The server is there and says no: every command would get that answer from it.
                    self.refuse_all(&reply);
                    if self.exclusive {
                        self.close_owner();
                        break;
                    }
                    if is_denial(&reply) && self.identity.credentials.is_some() {
                        // They were good once. A user that is deleted, or whose password has changed, loses its
                        // connections at a Redis too.
                        self.worker.lose_identity(&self.identity);
                        break;
                    }
                    sleep(backoff.wait()).await;
                }
                Ok(Err(Refusal::Io(error))) => {
                    let words = explain(&error).unwrap_or_else(|| error.to_string());
                    self.note_unreachable(&mut reasons, &words);
                    sleep(backoff.wait()).await;
                }
                Err(_) => {
                    let limit = endpoint.connect_timeout;
                    self.note_unreachable(&mut reasons, &format!("no answer within {limit:?}"));
                    sleep(backoff.wait()).await;
                }
            }
            self.look_after_parked();
            if !self.is_wanted() && !self.connected.get() && (!reasons.is_empty() || self.loading.get()) {
                // Nobody waits: the next command will wake us.
                self.until_wanted().await;
            }
        }
        self.connected.set(false);
        self.closed.set(true);
        self.drop_all();
    }

    /// An exclusive connection that is only kept.
    fn is_for_nobody(&self) -> bool {
        self.exclusive && self.owner.borrow().is_none()
    }

    /// Says each reason once, until there is a connection again.
    fn note_unreachable(&self, reasons: &mut Vec<String>, error: &str) {
        self.worker
            .stats
            .note_upstream_error(self.authority, Trouble::Unreachable);
        if !reasons.iter().any(|known| known == error) {
            tracing::warn!(authority = ?self.authority, %error, "cannot connect upstream; commands are parked");
            reasons.push(error.to_owned());
        }
    }

    async fn until_wanted(&self) {
        poll_fn(|cx| {
            if self.is_wanted() || self.closed.get() {
                return Poll::Ready(());
            }
            self.waker.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    /// Writes and reads until the connection ends; answers why it did.
    fn poll_io(
        self: &Rc<Self>,
        cx: &mut Context<'_>,
        standing: &mut Standing,
        scanner: &mut ReplyScanner,
    ) -> Poll<String> {
        let Standing {
            reader,
            writer,
            rest: buffer,
            ..
        } = standing;
        if self.closed.get() {
            return Poll::Ready("closed".into());
        }
        if self.given_up.take() {
            return Poll::Ready("given up".into());
        }
        // Replies first: they free clients, whose next commands then leave in the same write.
        let mut batch = 0;
        loop {
            if self.exclusive && self.owner_reads_slowly() {
                break;
            }
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
                    if self.exclusive {
                        queue.forget_sent();
                        self.worker.wake_backlogged();
                    }
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

    /// Whether nothing more should be read before the owner has read what is there; it wakes us then.
    fn owner_reads_slowly(&self) -> bool {
        let owner = self.owner.borrow();
        let Some(owner) = owner.as_ref().filter(|owner| owner.reads_slowly()) else {
            return false;
        };
        owner.flush();
        let slowly = owner.reads_slowly();
        owner.upstream_waits.set(slowly);
        slowly
    }

    fn handle_replies(self: &Rc<Self>, scanner: &mut ReplyScanner, buffer: &mut BytesMut) -> Result<(), String> {
        if self.raw.get() && self.is_idle() {
            if let Some(owner) = self.owner.borrow().as_ref() {
                owner.reply(buffer);
            }
            buffer.clear();
            return Ok(());
        }
        let mut start = 0;
        let mut heard = false;
        let result = loop {
            match scanner.scan(&buffer[start..]) {
                Ok(Some(reply)) => {
                    heard |= !reply.is_error();
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
        if heard {
            self.worker.stats.note_heard(self.authority);
        }
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
        if error && bytes.starts_with(LOADING) && self.waits_for_loading() {
            return Err("the server is loading its data".into());
        }
        let mut queue = self.queue.borrow_mut();
        let Some(entry) = queue.in_flight.pop_front() else {
            return Err("a reply came that no command asked for".into());
        };
        if queue.forgotten > 0 {
            queue.forgotten -= 1;
        } else if entry.len > queue.sent {
            queue.in_flight.push_front(entry);
            return Err("a reply came before its command was sent".into());
        } else {
            queue.out.advance(entry.len);
            queue.sent -= entry.len;
        }
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
        let acks = entry.write.as_ref().map(|write| {
            self.worker.settle(write, reply, entry.queued);
            self.worker.acks(write)
        });
        if !matches!(entry.kind, Kind::Blocking) {
            self.worker.left();
        }
        let Some(client) = entry.client else { return };
        if let Some(acks) = acks.filter(|acks| !acks.is_empty()) {
            client.await_acks(acks);
        }
        self.worker.stats.answered(entry.command, error, entry.queued);
        match entry.kind {
            Kind::Instead(bytes) => client.reply(bytes),
            Kind::Census => match self.census().rewrite(reply) {
                Some(rewritten) => client.reply(&rewritten),
                None => client.reply(reply),
            },
            Kind::KillsAll(kill_all) => match kill_all.count(reply, self.footprint().connections()) {
                Some(count) => {
                    self.worker.close_clients_but(client.id);
                    client.reply(&count);
                    client.closing.set(!kill_all.spares_itself);
                }
                None => client.reply(reply),
            },
            Kind::Executes(outcome) => {
                // Where it was refused within the array nothing changed, and newcomers have a connection of their own for nothing.
                if !error {
                    self.worker.shared.rights.note(outcome.rights);
                }
                client.reply(reply);
                if let Some(db) = selected(reply, &outcome.selects) {
                    client.apply(StateChange::Select(db));
                }
            }
            Kind::ChangesRights(change) => {
                if !error {
                    self.worker.shared.rights.note(change);
                }
                client.reply(reply);
            }
            Kind::Quit => {
                client.reply(reply);
                client.closing.set(true);
            }
            Kind::Reset => {
                client.reply(reply);
                if !error {
                    client.reset();
                }
            }
            Kind::Multi => {
                client.reply(reply);
                if error {
                    client.lose_transaction();
                }
            }
            Kind::Change(change) => {
                client.changing.set(false);
                client.reply(reply);
                if error {
                    client.stay_after(&change, reply);
                } else if !crate::session::effect::is_null(reply) {
                    client.apply(*change);
                }
            }
            _ => client.reply(reply),
        }
        client.answered();
    }

    /// What stands in for the proxy's own connections to this server.
    fn census(&self) -> Census {
        Census::new(self.footprint(), self.worker.clients_of_all())
    }

    /// What the proxy has at this server.
    pub(super) fn footprint(&self) -> &Footprint {
        &self.worker.shared.servers.endpoint(self.authority).footprint
    }

    fn close_owner(&self) {
        if let Some(owner) = self.owner.borrow().as_ref() {
            owner.end();
        }
    }
}
