//! Commands on an upstream connection whose replies have not come, and their bytes. No socket.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

use bytes::{Buf, BytesMut};

use super::super::census::KillAll;
use super::super::client::Client;
use super::super::pin::{Outcome, StateChange};
use super::super::rights::Change;
use crate::command::{CommandId, Connection};
use crate::session::effect::Planned;

/// Bytes that an exclusive connection keeps of commands that are sent. A client that writes far ahead of its reading
/// would fill memory, and such a pipeline is never repeated.
const KEEP_SENT: usize = 1024 * 1024;

/// What a command is to the connection.
#[derive(Debug)]
pub(in crate::proxy) enum Kind {
    Plain,
    /// Between MULTI and EXEC: what it does comes with EXEC.
    Queued,
    /// May take as long as it likes; does not hold up a cutover.
    Blocking,
    /// So many confirmations are still to come.
    Subscribe(usize),
    /// If the reply is no error, the connection and its client have changed so.
    Change(Box<StateChange>),
    /// EXEC of a transaction that changes more than data.
    Executes(Outcome),
    /// May change who may do what.
    ChangesRights(Change),
    /// The reply counts the server's clients.
    Census,
    /// All clients end if the server agrees.
    KillsAll(KillAll),
    /// When this is answered, the client's connection ends.
    Quit,
    /// When this is answered, the client is as if it had just connected.
    Reset,
    /// MULTI: if the server refuses it, what follows is executed at once.
    Multi,
    /// The client gets this in place of the reply.
    Instead(&'static [u8]),
}

/// What a command does to sessions.
#[derive(Debug)]
pub(in crate::proxy) enum SessionWrite {
    Keys(Planned),
    Wipe,
}

/// A command whose reply has not come.
#[derive(Debug)]
pub(in crate::proxy) struct InFlight {
    /// `None`: the proxy's own replay of state; the reply is for nobody.
    pub(in crate::proxy) client: Option<Rc<Client>>,
    /// Its bytes in `out`.
    pub(in crate::proxy) len: usize,
    pub(in crate::proxy) command: CommandId,
    pub(in crate::proxy) write: Option<Box<SessionWrite>>,
    pub(in crate::proxy) kind: Kind,
    /// May be sent again where the connection was lost before the reply.
    pub(in crate::proxy) repeatable: bool,
    pub(in crate::proxy) queued: Instant,
}

impl InFlight {
    /// A command of the proxy's own, whose reply is for nobody.
    pub(in crate::proxy) fn unowned(command: CommandId, len: usize) -> Self {
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
pub(super) struct Queue {
    /// Bytes of all commands in flight, sent or not.
    pub(super) out: BytesMut,
    /// How much of `out` is sent.
    pub(super) sent: usize,
    /// So many commands at the front are sent and their bytes no longer kept.
    pub(super) forgotten: usize,
    pub(super) in_flight: VecDeque<InFlight>,
}

impl Queue {
    /// Whether a transaction is being opened or ended, half of which must never be sent again, or the connection's state
    /// is being given up.
    pub(super) fn has_state(&self) -> bool {
        let ends = |entry: &InFlight| {
            let connection = entry.command.entry().connection;
            let changes = matches!(
                connection,
                Connection::Multi | Connection::Exec | Connection::Discard | Connection::Quit | Connection::Reset
            );
            entry.client.is_some() && changes
        };
        self.in_flight.iter().any(ends)
    }

    /// Whether the client of `entry` has a command in this queue already.
    pub(super) fn answers_first(&self, entry: &InFlight) -> bool {
        let Some(client) = &entry.client else { return false };
        let is_the_same = |other: &InFlight| other.client.as_ref().is_some_and(|other| Rc::ptr_eq(other, client));
        self.in_flight.iter().any(is_the_same)
    }

    /// Keeps no more than [`KEEP_SENT`] bytes of commands that are sent.
    pub(super) fn forget_sent(&mut self) {
        if self.sent <= KEEP_SENT {
            return;
        }
        while let Some(entry) = self.in_flight.get_mut(self.forgotten)
            && entry.len <= self.sent
        {
            self.out.advance(entry.len);
            self.sent -= entry.len;
            (entry.len, entry.repeatable) = (0, false);
            self.forgotten += 1;
        }
    }
}
