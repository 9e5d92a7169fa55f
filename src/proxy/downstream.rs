//! The task of one client connection: reads, finds the commands, has them dispatched, and writes what is left over.
//!
//! A client uses one route at a time. Whatever must not overtake what is in flight (a local answer, a change of
//! upstream) waits until the last reply is there; meanwhile nothing more is taken from the client's bytes.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};

use super::access::MAX_UNAUTHENTICATED_OUTPUT;
use super::client::Client;
use super::dispatch::Dispatch;
use super::handover::Handover;
use crate::net::stream::{ReadHalf, reunite};
use crate::net::tls::looks_like_tls;
use crate::resp::{ProtocolError, RequestScanner};

/// Bytes taken from a client while its commands wait, to notice when it goes.
const MAX_WAITING_INPUT: usize = 64 * 1024;
/// Most bytes of one command; a client that sends more is closed (Redis: `client-query-buffer-limit`).
const MAX_INPUT: usize = 1024 * 1024 * 1024;

/// The client's task: reads, dispatches, and writes what did not fit into the socket at once.
pub(super) struct Downstream {
    pub(super) client: Rc<Client>,
    reader: ReadHalf,
    pub(super) scanner: RequestScanner,
    /// Bytes that are not dispatched yet.
    input: BytesMut,
    ended: bool,
}

/// Why a client is no longer served here.
#[derive(Clone, Copy, Debug)]
enum End {
    Closed,
    LeavesTo(usize),
}

impl Downstream {
    /// `input` is what another worker has read already.
    pub(super) fn new(client: Rc<Client>, reader: ReadHalf, input: BytesMut) -> Self {
        Downstream {
            client,
            reader,
            scanner: RequestScanner::default(),
            input,
            ended: false,
        }
    }

    /// Serves the client to its end.
    pub(super) async fn run(mut self) {
        let end = poll_fn(|cx| self.poll(cx)).await;
        let client = &self.client;
        client.closed.set(true);
        if let Some(pin) = client.pin.borrow_mut().take() {
            pin.upstream.own(None);
            pin.upstream.close();
        }
        if let (End::LeavesTo(to), Some(writer)) = (end, client.writer.take()) {
            match reunite(self.reader, writer) {
                Ok(socket) => {
                    let said = (client.labels.take(), client.library.take());
                    let handover = Handover::new(
                        socket,
                        self.input,
                        &client.identity.borrow(),
                        said,
                        client.admitted.get(),
                    );
                    client.worker.hand_over(to, handover);
                }
                Err(error) => tracing::warn!(client = client.id, %error, "a client could not change its worker"),
            }
        }
        client.worker.remove(client.id);
    }

    /// Whether nothing ties the client to this worker: nothing in flight or to be written, no upstream of its own, no change
    /// of rights since it came.
    fn can_leave(&self, waiting: bool) -> bool {
        let client = &self.client;
        !waiting
            && !self.ended
            && !client.closing.get()
            && client.in_flight.get() == 0
            && client.pin.borrow().is_none()
            && client.out.borrow().is_empty()
            && self.reader.can_move()
            && client.may_change_worker()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
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
                Poll::Ready(Ok(_)) if self.input.len() > MAX_INPUT => {
                    tracing::warn!(
                        client = client.id,
                        limit = MAX_INPUT,
                        "a client's command is too large; closing it"
                    );
                    client.closed.set(true);
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
            return Poll::Ready(End::Closed);
        }
        #[cfg(feature = "restless")]
        if client.has_been_answered_here() {
            client.leaves_to.set(client.worker.next_worker());
        }
        if let Some(to) = client.leaves_to.get() {
            if self.can_leave(waiting) {
                return Poll::Ready(End::LeavesTo(to));
            }
            if client.pin.borrow().is_some() {
                // It may hold its upstream for ever; the load is looked at again then.
                client.leaves_to.set(None);
            }
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
            let may_write = client.gate.may_write(out.len());
            if may_write == 0 {
                return;
            }
            let mut writer = client.writer.borrow_mut();
            let Some(writer) = writer.as_mut() else { return };
            match writer.poll_write(cx, &out[..may_write]) {
                Poll::Ready(Ok(written)) => {
                    client.gate.note_written(written);
                    out.advance(written);
                    let left = out.len();
                    drop(out);
                    client.note_written(left);
                }
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
        self.scanner.unauthenticated = client.is_stranger();
        if self.scanner.unauthenticated && client.out.borrow().len() > MAX_UNAUTHENTICATED_OUTPUT {
            tracing::warn!(
                client = client.id,
                "a client asks without authenticating and reads no answers; closing it"
            );
            client.close();
            return (bytes.len(), false);
        }
        if looks_like_tls(bytes) {
            tracing::warn!(
                client = client.id,
                "a client speaks TLS to an address that does not: set client.tls_cert and client.tls_key, or have it \
                 use redis://; closing it"
            );
            client.close();
            return (bytes.len(), false);
        }
        while used < bytes.len() && !client.closing.get() && !client.closed.get() {
            match self.scanner.scan(&bytes[used..]) {
                Ok(None) => return (used, false),
                Ok(Some(request)) => {
                    let frame = &bytes[used..used + request.len];
                    match self.dispatch(frame, &request) {
                        Dispatch::Done => used += request.len,
                        Dispatch::AwaitReplies => return (used, true),
                        Dispatch::AwaitRoom => {
                            client.wants_room.set(true);
                            return (used, true);
                        }
                        Dispatch::Held => {
                            client.worker.park(&client);
                            return (used, true);
                        }
                        Dispatch::Guarded(keys) => {
                            client.worker.park_until_cleared(&client, keys);
                            return (used, true);
                        }
                        Dispatch::Backlogged => {
                            client.worker.park_backlogged(&client);
                            return (used, true);
                        }
                    }
                }
                Err(_) if self.is_stream() => {
                    // Whether it says so is the server's affair; it ends the connection, and that ends this one.
                    self.pass_bytes(&bytes[used..]);
                    return (bytes.len(), false);
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
        self.client.reply(&[b"-ERR ", &error.message()[..], b"\r\n"].concat());
        self.client.closing.set(true);
    }
}
