//! The state that ties a client to an upstream connection of its own, and how it moves to another server.

use std::collections::BTreeSet;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};

use super::identity::{Credentials, Protocol};
use super::rights::Change;
use super::upstream::{SessionWrite, Upstream};
use crate::command::Connection;
use crate::resp::ReplyScanner;
use crate::session::effect::Planned;

/// Commands queued in one transaction are kept, to be replayed at a cutover, up to this many bytes; a client with more
/// is closed at the cutover, as a failover would.
const MAX_KEPT_TRANSACTION: usize = 16 * 1024 * 1024;

/// What a command changes on a connection, if its reply is no error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StateChange {
    Select(u32),
    Auth(Credentials),
    Hello {
        protocol: Option<Protocol>,
        credentials: Option<Credentials>,
        name: Option<Vec<u8>>,
    },
    /// A HELLO with options that the server will refuse.
    BadHello,
    Name(Vec<u8>),
    LibName(Vec<u8>),
    LibVer(Vec<u8>),
}

impl StateChange {
    /// Whether it says who the client is.
    pub(super) fn authenticates(&self) -> bool {
        match self {
            StateChange::Auth(_) => true,
            StateChange::Hello { credentials, .. } => credentials.is_some(),
            _ => false,
        }
    }
}

/// What EXEC will have changed beside data.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// The transaction's SELECTs: which of the queued commands, and the database.
    pub(super) selects: Vec<(usize, u32)>,
    /// Who may do what.
    pub(super) rights: Change,
}

/// Between MULTI and EXEC.
#[derive(Debug, Default)]
pub(super) struct Transaction {
    /// The queued commands as they came, MULTI included.
    frames: BytesMut,
    count: usize,
    /// Too large to be kept.
    overflown: bool,
    /// Session keys that EXEC may change.
    keys: Vec<Bytes>,
    wipes: bool,
    /// It has CLIENT REPLY in it, and EXEC may answer a part, or nothing; or SUBSCRIBE and its like, which are confirmed by as many
    /// messages as they please, within EXEC's answer and behind it.
    pub(super) ends_counting: bool,
    pub(super) outcome: Outcome,
    /// Commands that the server has queued, if it refused none.
    queued: usize,
}

impl Transaction {
    /// Notes MULTI itself.
    pub(super) fn open(frame: &[u8]) -> Self {
        let mut transaction = Transaction::default();
        transaction.keep(frame);
        transaction
    }

    /// Notes a command that the server queues, or answers at once if it is one that cannot be queued.
    pub(super) fn queue(&mut self, connection: Connection, frame: &[u8], select: Option<u32>) {
        self.keep(frame);
        if !matches!(connection, Connection::Multi | Connection::Watch) {
            self.outcome.selects.extend(select.map(|db| (self.queued, db)));
            self.queued += 1;
        }
    }

    /// Notes what a queued command may do to sessions.
    pub(super) fn note(&mut self, write: &SessionWrite) {
        match write {
            SessionWrite::Keys(planned) => self.keys.extend(planned.keys().cloned()),
            SessionWrite::Wipe => self.wipes = true,
        }
    }

    fn keep(&mut self, frame: &[u8]) {
        self.count += 1;
        if self.overflown || self.frames.len() + frame.len() > MAX_KEPT_TRANSACTION {
            self.overflown = true;
            self.frames = BytesMut::new();
        } else {
            self.frames.extend_from_slice(frame);
        }
    }

    /// What EXEC may have done to sessions: all that was queued, or nothing.
    pub(super) fn into_write(self) -> Option<SessionWrite> {
        if self.wipes {
            Some(SessionWrite::Wipe)
        } else if self.keys.is_empty() {
            None
        } else {
            Some(SessionWrite::Keys(Planned::unknown(self.keys)))
        }
    }

    /// What to send to another server to have the same transaction open there: bytes and number of replies.
    fn replay(&self) -> Option<(Bytes, usize)> {
        (!self.overflown).then(|| (Bytes::copy_from_slice(&self.frames), self.count))
    }
}

/// The database that the SELECTs of a transaction have led to, by the reply to EXEC.
pub(super) fn selected(reply: &[u8], selects: &[(usize, u32)]) -> Option<u32> {
    let mut rest = reply.strip_prefix(b"*").and_then(|_| {
        let start = memchr::memchr(b'\n', reply)? + 1;
        Some(&reply[start..])
    })?;
    let mut index = 0;
    let mut selected = None;
    while let Ok(Some(element)) = ReplyScanner::default().scan(rest) {
        let (frame, tail) = rest.split_at(element.len);
        if let Some((_, db)) = selects.iter().find(|(of, _)| *of == index)
            && frame == b"+OK\r\n"
        {
            selected = Some(*db);
        }
        (index, rest) = (index + 1, tail);
    }
    selected
}

/// A client's own upstream, and why it has one.
#[derive(Debug)]
pub(super) struct Pin {
    pub(super) upstream: Rc<Upstream>,
    pub(super) transaction: Option<Transaction>,
    pub(super) watching: bool,
    /// The watched keys were on a server that is no longer the authority: EXEC must answer nil, as when they changed.
    pub(super) watch_lost: bool,
    pub(super) blocking: bool,
    /// State that the proxy does not know in detail.
    pub(super) sticky: bool,
    /// That state cannot be had on another server: at a cutover the client is closed.
    pub(super) unmovable: bool,
    /// Bytes only pass through: what comes is not one reply for each command.
    pub(super) stream: bool,
    /// The connection's identity changed, or the server is told to end it: it is closed rather than kept for others.
    pub(super) used_up: bool,
    /// A change of that identity is in flight: what follows must wait for its answer.
    pub(super) changing: bool,
    /// It was nobody's when the client had to authenticate. The database is chosen behind that, which the user may not be allowed to.
    pub(super) made_do: bool,
    channels: BTreeSet<Bytes>,
    patterns: BTreeSet<Bytes>,
    shards: BTreeSet<Bytes>,
}

impl Pin {
    pub(super) fn new(upstream: Rc<Upstream>) -> Self {
        Pin {
            upstream,
            transaction: None,
            watching: false,
            watch_lost: false,
            blocking: false,
            sticky: false,
            unmovable: false,
            stream: false,
            used_up: false,
            changing: false,
            made_do: false,
            channels: BTreeSet::new(),
            patterns: BTreeSet::new(),
            shards: BTreeSet::new(),
        }
    }

    /// Nothing ties the client to this connection (a command whose reply is still to come apart).
    pub(super) fn is_free(&self) -> bool {
        !(self.sticky || self.watching || self.blocking || self.transaction.is_some() || self.subscriptions() > 0)
    }

    pub(super) fn subscriptions(&self) -> usize {
        self.channels.len() + self.patterns.len() + self.shards.len()
    }

    /// From here on bytes only pass through (CLIENT REPLY OFF, MONITOR, replication).
    pub(super) fn become_stream(&mut self) {
        (self.sticky, self.unmovable, self.stream) = (true, true, true);
        self.upstream.become_stream();
    }

    /// How many confirmations a subscribe or unsubscribe command will get.
    pub(super) fn confirmations(&self, name: &str, channels: usize) -> usize {
        if channels > 0 {
            return channels;
        }
        let known = match name {
            "punsubscribe" => self.patterns.len(),
            "sunsubscribe" => self.shards.len(),
            _ => self.channels.len(),
        };
        known.max(1)
    }

    pub(super) fn note(&mut self, message: &Message) {
        let Message::Confirmation { kind, channel } = message else {
            return;
        };
        let Some(channel) = channel else { return };
        let (set, add) = match kind.as_slice() {
            b"subscribe" => (&mut self.channels, true),
            b"unsubscribe" => (&mut self.channels, false),
            b"psubscribe" => (&mut self.patterns, true),
            b"punsubscribe" => (&mut self.patterns, false),
            b"ssubscribe" => (&mut self.shards, true),
            b"sunsubscribe" => (&mut self.shards, false),
            _ => return,
        };
        if add {
            set.insert(channel.clone());
        } else {
            set.remove(channel);
        }
    }

    /// What brings a fresh connection to the same state: bytes, and how many replies they get. `None` where it cannot
    /// be had on another server.
    pub(super) fn replay(&self) -> Option<(Bytes, usize)> {
        if self.unmovable || self.stream {
            return None;
        }
        let mut out = Vec::new();
        let mut replies = 0;
        for (command, set) in [
            (b"SUBSCRIBE".as_slice(), &self.channels),
            (b"PSUBSCRIBE", &self.patterns),
            (b"SSUBSCRIBE", &self.shards),
        ] {
            for channel in set {
                crate::resp::request::encode(&[command, channel], &mut out);
                replies += 1;
            }
        }
        if let Some(transaction) = &self.transaction {
            let (bytes, count) = transaction.replay()?;
            out.extend_from_slice(&bytes);
            replies += count;
        }
        Some((out.into(), replies))
    }
}

/// A frame that a subscriber gets.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// A published message, or an invalidation.
    Published,
    /// A (un)subscription is confirmed.
    Confirmation { kind: Vec<u8>, channel: Option<Bytes> },
}

impl Message {
    /// Looks at the first elements of an array (RESP2) or a push (RESP3).
    pub(super) fn parse(frame: &[u8], push: bool) -> Option<Message> {
        if !push && frame.first() != Some(&b'*') {
            return None;
        }
        let start = memchr::memchr(b'\n', frame)? + 1;
        let (kind, rest) = bulk(&frame[start..])?;
        let kind = kind?.to_ascii_lowercase();
        match kind.as_slice() {
            b"message" | b"pmessage" | b"smessage" | b"invalidate" => Some(Message::Published),
            b"subscribe" | b"unsubscribe" | b"psubscribe" | b"punsubscribe" | b"ssubscribe" | b"sunsubscribe" => {
                let (channel, _) = bulk(rest)?;
                Some(Message::Confirmation {
                    kind,
                    channel: channel.map(Bytes::copy_from_slice),
                })
            }
            _ if push => Some(Message::Published),
            _ => None,
        }
    }
}

/// The bulk string at the start, and what follows; `Some(None)` for a null.
fn bulk(bytes: &[u8]) -> Option<(Option<&[u8]>, &[u8])> {
    let reply = ReplyScanner::default().scan(bytes).ok()??;
    let (frame, rest) = bytes.split_at(reply.len);
    if frame == b"$-1\r\n" || frame == b"_\r\n" {
        return Some((None, rest));
    }
    if frame.first() != Some(&b'$') {
        return None;
    }
    let start = memchr::memchr(b'\n', frame)? + 1;
    Some((Some(&frame[start..frame.len() - 2]), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_select_that_the_server_took_changes_the_database() {
        let selects = [(1, 3), (2, 99)];
        let check = |reply: &[u8], expected| assert_eq!(selected(reply, &selects), expected);
        check(b"*3\r\n*1\r\n+OK\r\n+OK\r\n-ERR DB index is out of range\r\n", Some(3));
        check(b"*2\r\n:1\r\n-ERR x\r\n", None);
        check(b"*-1\r\n", None);
        check(b"-EXECABORT x\r\n", None);
        check(b"_\r\n", None);
    }

    #[test]
    fn tells_messages_from_replies() {
        let check = |bytes: &[u8], push, expected| assert_eq!(Message::parse(bytes, push), expected);
        check(
            b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nm\r\n",
            false,
            Some(Message::Published),
        );
        let confirmed = |channel| Message::Confirmation {
            kind: b"subscribe".to_vec(),
            channel,
        };
        check(
            b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n",
            false,
            Some(confirmed(Some(Bytes::from_static(b"c")))),
        );
        check(
            b">3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n",
            true,
            Some(confirmed(Some(Bytes::from_static(b"c")))),
        );
        check(b"*2\r\n$4\r\npong\r\n$0\r\n\r\n", false, None);
        check(b"*2\r\n:1\r\n:2\r\n", false, None);
        check(b"*0\r\n", false, None);
        check(b"+OK\r\n", false, None);
    }
}
