//! How a connection comes to stand: connected, and brought to the identity that it stands for; or what the server said.

use std::collections::HashSet;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use super::super::identity::{Order, handshake};
use super::Upstream;
use crate::net::stream::{ReadHalf, WriteHalf, connect};
use crate::net::{Endpoint, Presence};
use crate::resp::ReplyScanner;
use crate::resp::request::encode;

/// How often, while an attempt to connect lasts, those who wait are looked after.
const EXPIRE_EVERY: Duration = Duration::from_millis(250);

/// What a Redis says that has not read its data from disk yet.
pub(super) const LOADING: &[u8] = b"-LOADING";

/// What a Redis says to a connection too many.
const TOO_MANY_CLIENTS: &[u8] = b"-ERR max number of clients";

/// A connection that stands.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) reader: ReadHalf,
    pub(super) writer: WriteHalf,
    /// What has been read behind the handshake's replies.
    pub(super) rest: BytesMut,
    pub(super) _presence: Presence,
}

/// Why no connection came to stand.
#[derive(Debug)]
pub(super) enum Refusal {
    Io(io::Error),
    /// The server's own error reply to the handshake.
    Server(Bytes),
}

impl Upstream {
    /// One attempt, within the time that is configured. Those who wait are not bound to it: they get their answer when
    /// their own time is over.
    pub(super) async fn attempt(self: &Rc<Self>, endpoint: &Endpoint) -> Result<Result<Standing, Refusal>, Elapsed> {
        let attempt = timeout(endpoint.connect_timeout, self.establish(endpoint));
        tokio::pin!(attempt);
        loop {
            match timeout(EXPIRE_EVERY, &mut attempt).await {
                Ok(outcome) => return outcome,
                Err(_) => self.look_after_parked(),
            }
        }
    }

    /// Where the server may have lost sessions, those that the waiting commands name are put back before it is asked.
    pub(super) async fn clear_waiting(self: &Rc<Self>) {
        let Some(restore) = &self.worker.shared.restore else {
            return;
        };
        while restore.guards() && self.authority == self.worker.authority.get() {
            // More may have come while the last ones were put back.
            let mut waiting = self.sessions_named();
            waiting.retain(|key| !restore.trust.is_cleared(key));
            if waiting.is_empty() {
                return;
            }
            let cleared = restore.clear(waiting);
            tokio::pin!(cleared);
            while timeout(EXPIRE_EVERY, &mut cleared).await.is_err() {
                self.look_after_parked();
            }
        }
    }

    /// The sessions that commands in the queue name.
    fn sessions_named(&self) -> Vec<Bytes> {
        let queue = self.queue.borrow();
        let mut named = HashSet::new();
        let mut at = 0;
        for entry in &queue.in_flight {
            let frame = &queue.out[at..at + entry.len];
            at += entry.len;
            named.extend(self.worker.sessions_in(frame));
        }
        named.into_iter().collect()
    }

    /// Connects and brings the connection to the identity that it stands for.
    async fn establish(&self, endpoint: &Endpoint) -> Result<Standing, Refusal> {
        let presence = endpoint.footprint.connection();
        let (mut reader, mut writer) = connect(endpoint).await.map_err(Refusal::Io)?;
        let mut hello = Vec::new();
        let credentials = self
            .worker
            .shared
            .servers
            .credentials(self.authority, self.identity.credentials.as_deref());
        let order = if self.selects_first.get() {
            Order::SelectFirst
        } else {
            Order::AuthenticateFirst
        };
        let mut must = handshake(&self.identity, credentials.as_ref(), order, &mut hello);
        if self.loading.get() {
            encode(&[b"PING"], &mut hello);
            must += 1;
        }
        let mut may = self.labels.commands(&mut hello);
        if endpoint.tls && must + may == 0 {
            // Whether it takes our certificate, a server says only after the handshake.
            encode(&[b"PING"], &mut hello);
            may = 1;
        }
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
                    if reply.is_error() && seen < must && !needs_no_password(&bytes) {
                        return Err(Refusal::Server(bytes));
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
        Ok(Standing {
            reader,
            writer,
            rest: buffer,
            _presence: presence,
        })
    }
}

/// Whether the server answers, be it with an error. That it takes a connection says nothing: the kernel takes them on
/// behalf of a process that is ending.
pub(super) async fn is_there(endpoint: &Endpoint) -> bool {
    let answer = async {
        let _presence = endpoint.footprint.connection();
        let (mut reader, mut writer) = connect(endpoint).await?;
        let mut ping = Vec::new();
        encode(&[b"PING"], &mut ping);
        let mut sent = 0;
        while sent < ping.len() {
            sent += poll_fn(|cx| writer.poll_write(cx, &ping[sent..])).await?;
        }
        let mut reply = BytesMut::new();
        poll_fn(|cx| reader.poll_read_buf(cx, &mut reply)).await
    };
    matches!(timeout(endpoint.connect_timeout, answer).await, Ok(Ok(1..)))
}

/// Whether it takes no more connections.
pub(super) fn has_too_many_clients(reply: &[u8]) -> bool {
    reply.starts_with(TOO_MANY_CLIENTS)
}

/// Whether this is about the password, and not about the server's own state (loading, too many clients …).
pub(super) fn is_denial(reply: &[u8]) -> bool {
    reply.starts_with(b"-WRONGPASS") || reply.starts_with(b"-NOAUTH")
}

/// Whether the password that was given is not asked for any more.
fn needs_no_password(reply: &[u8]) -> bool {
    reply.starts_with(b"-ERR AUTH <password> called without any password configured")
}

/// Whether the server only says that it is busy with something else.
pub(super) fn is_passing(reply: &[u8]) -> bool {
    [&b"-BUSY"[..], b"-LOADING", b"-MASTERDOWN", b"-TRYAGAIN"]
        .iter()
        .any(|code| reply.starts_with(code))
}
