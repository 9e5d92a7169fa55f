//! Decides for each command which upstream it travels on, or answers it.

mod flush;
mod state;

use std::rc::Rc;

use bytes::Bytes;

use super::census::counts_clients;
use super::downstream::Downstream;
use super::identity::Protocol;
use super::pin::Transaction;
use super::rights::{Change, change};
use super::upstream::{InFlight, Kind, SessionWrite, Upstream};
use crate::command::{Access, CommandId, Connection};
use crate::resp::request::encode;
use crate::resp::{Args, Request, RequestScanner, inline};
use crate::session::effect::{Plan, plan};
use crate::tee::Restore;
use state::db_number;

/// No more is taken from clients while their upstream has this many bytes to send or to get answered.
const MAX_BACKLOG: usize = 64 * 1024 * 1024;
/// Commands that one client may have in flight on an upstream of its own.
const MAX_OWN_IN_FLIGHT: usize = 1024 * 1024;
/// A command of more bytes than this travels on an upstream of its own: sending it takes long.
const MAX_SHARED_FRAME: usize = 256 * 1024;

/// What became of a command.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Dispatch {
    /// It is on its way, or answered.
    Done,
    /// It must wait until the client's replies are there.
    AwaitReplies,
    /// It must wait until fewer of the client's commands are in flight.
    AwaitRoom,
    /// All commands are held.
    Held,
    /// These sessions must not be read yet.
    Guarded(Vec<Bytes>),
    /// The upstream has too much to do.
    Backlogged,
}

impl Downstream {
    pub(super) fn dispatch(&mut self, frame: &[u8], request: &Request) -> Dispatch {
        if request.argc == 0 {
            if self.is_stream() {
                // CLIENT REPLY SKIP may skip this.
                self.pass_bytes(frame);
            }
            return Dispatch::Done;
        }
        let client = self.client.clone();
        let client = &client;
        let worker = client.worker.clone();
        if worker.held.get() {
            return Dispatch::Held;
        }
        if frame[0] != b'*' {
            // A person at a keyboard.
            let words = inline::split(&frame[..frame.len() - 1]).unwrap_or_default();
            return self.dispatch_encoded(&words);
        }
        if request.is_odd {
            // One server does not look there, another ends the connection, which is not this client's alone.
            return self.dispatch_encoded(&Args::new(frame).collect::<Vec<_>>());
        }
        let command = CommandId::lookup(&frame[request.name.clone()]);
        if let Some(renamed) = worker.shared.names.rename(frame)
            && let Ok(Some(request)) = RequestScanner::default().scan(&renamed)
        {
            return self.dispatch(&renamed, &request);
        }
        let entry = command.entry();
        if !worker.shared.access.is_the_authoritys()
            && let Some(decided) = self.admit(command, frame, request)
        {
            return decided;
        }
        let pinned = client.pin.borrow().is_some();
        let mut connection = entry.connection;
        if entry.name == "script" {
            let subcommand = &frame[request.first.clone()];
            // Not what a stranger sends: the other server would get it from the proxy itself.
            if subcommand.eq_ignore_ascii_case(b"load") && !client.is_stranger() {
                worker.shared.scripts.note(frame);
            }
            if subcommand.eq_ignore_ascii_case(b"debug") {
                // What follows is a conversation with the debugger.
                connection = Connection::Monitor;
            }
        }
        if client.clearing.get() || client.changing.get() {
            return Dispatch::AwaitReplies;
        }
        if entry.access == Access::Wipe
            && let Some(decided) = self.decide_on_flush(command, frame)
        {
            return decided;
        }
        if pinned && self.is_stream() {
            return self.pass_on(command, frame, request);
        }
        if let Some(restore) = &worker.shared.restore
            && restore.guards()
        {
            let guarded = self.guarded(restore, frame);
            if !guarded.is_empty() {
                return Dispatch::Guarded(guarded);
            }
        }
        match connection {
            // The hot path.
            Connection::Shared | Connection::Exec | Connection::Discard | Connection::Unwatch
                if !pinned && self.may_share(frame) =>
            {
                if client.in_flight.get() >= client.window.get() {
                    return Dispatch::AwaitRoom;
                }
                let upstream = client.shared();
                if upstream.backlog() > MAX_BACKLOG {
                    return Dispatch::Backlogged;
                }
                let write = self.session_write(&upstream, command, frame, request);
                self.send(&upstream, frame, command, write, Kind::Plain);
                return Dispatch::Done;
            }
            // Nothing may overtake a blocked command, and a confirmation must be told from other replies.
            _ if pinned && self.must_wait(connection) => return Dispatch::AwaitReplies,
            _ if pinned && self.is_backlogged() => return Dispatch::Backlogged,
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
        match connection {
            Connection::Exec if pinned && !idle && self.ends_counting() => return Dispatch::AwaitReplies,
            Connection::Quit if pinned => self.quit_own_upstream(command, frame),
            Connection::Quit if idle => {
                client.reply(b"+OK\r\n");
                client.closing.set(true);
            }
            Connection::Reset if args.len() != 1 && idle && !pinned => {
                self.send(&client.shared(), frame, command, None, Kind::Plain);
            }
            Connection::Reset if args.len() != 1 && pinned => self.send_pinned(command, frame, request, Kind::Plain),
            Connection::Reset if idle => self.reset(command, frame),
            Connection::Select | Connection::Auth | Connection::Hello if idle => {
                self.change_state(command, frame, &args);
            }
            Connection::Quit | Connection::Reset | Connection::Select | Connection::Auth | Connection::Hello => {
                return Dispatch::AwaitReplies;
            }
            Connection::Client => return self.client_command(command, frame, request, &args),
            Connection::Blocking if !pinned && !blocks(&args) && self.may_share(frame) => {
                let upstream = client.shared();
                let write = self.session_write(&upstream, command, frame, request);
                self.send(&upstream, frame, command, write, Kind::Plain);
            }
            Connection::Shared if pinned => self.send_pinned(command, frame, request, Kind::Plain),
            _ if !pinned && !idle => return Dispatch::AwaitReplies,
            connection => {
                client.pin();
                self.send_stateful(connection, command, frame, request, &args, !pinned);
            }
        }
        Dispatch::Done
    }

    /// The sessions in a command that the authority may have lost. While it is away its own connection sees to that.
    fn guarded(&self, restore: &Restore, frame: &[u8]) -> Vec<Bytes> {
        let client = &self.client;
        let upstream = client.pinned_to().unwrap_or_else(|| client.shared());
        if !upstream.connected.get() {
            return Vec::new();
        }
        let mut named = client.worker.sessions_in(frame);
        named.retain(|key| !restore.trust.is_cleared(key));
        named.sort_unstable();
        named.dedup();
        named
    }

    /// Whether this command may travel with other clients' commands: it and its reply hold nobody up for long, as far
    /// as one can tell beforehand.
    fn may_share(&self, frame: &[u8]) -> bool {
        let client = &self.client;
        frame.len() <= MAX_SHARED_FRAME
            && client.heavy.get() == 0
            && !client.reads_slowly()
            && !client.worker.shared.pause.is_on()
    }

    /// Whether the client's own upstream has too much to do.
    fn is_backlogged(&self) -> bool {
        let pin = self.client.pin.borrow();
        let full = |upstream: &Upstream| upstream.backlog() > MAX_BACKLOG;
        self.client.in_flight.get() >= MAX_OWN_IN_FLIGHT || pin.as_ref().is_some_and(|pin| full(&pin.upstream))
    }

    /// The words as every client encodes them.
    fn dispatch_encoded<A: AsRef<[u8]>>(&mut self, words: &[A]) -> Dispatch {
        let mut encoded = Vec::new();
        encode(words, &mut encoded);
        match RequestScanner::default().scan(&encoded) {
            Ok(Some(request)) => self.dispatch(&encoded, &request),
            _ => Dispatch::Done,
        }
    }

    /// Whether the open transaction may be answered by other than one reply.
    fn ends_counting(&self) -> bool {
        let pin = self.client.pin.borrow();
        let transaction = pin.as_ref().and_then(|pin| pin.transaction.as_ref());
        transaction.is_some_and(|transaction| transaction.ends_counting)
    }

    /// Whether a pinned client's next command has to wait for replies.
    fn must_wait(&self, next: Connection) -> bool {
        let pin = self.client.pin.borrow();
        let Some(pin) = pin.as_ref() else { return false };
        self.client.in_flight.get() > 0
            && (pin.blocking
                || pin.changing
                || matches!(next, Connection::Subscribe | Connection::Monitor | Connection::Replica)
                || self.confirming())
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
            && !self.is_stream()
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
        entry.kind = match kind {
            Kind::Plain if counts_clients(command) => Kind::Census,
            Kind::Plain => match change(command, frame) {
                Change::Nobodys => Kind::Plain,
                change => Kind::ChangesRights(change),
            },
            kind => kind,
        };
        self.client.worker.stats.forwarded(command);
        upstream.send(frame, entry);
    }

    fn send_pinned(&self, command: CommandId, frame: &[u8], request: &Request, kind: Kind) {
        let Some(upstream) = self.client.pin.borrow().as_ref().map(|pin| pin.upstream.clone()) else {
            return;
        };
        let write = self.session_write(&upstream, command, frame, request);
        self.send(&upstream, frame, command, write, kind);
    }

    /// What is no command, on a connection whose replies cannot be told apart.
    pub(super) fn pass_bytes(&self, bytes: &[u8]) {
        if let Some(pin) = self.client.pin.borrow().as_ref() {
            pin.upstream.send_silent(bytes);
        }
    }

    pub(super) fn is_stream(&self) -> bool {
        self.client.pin.borrow().as_ref().is_some_and(|pin| pin.stream)
    }

    /// A command on a connection whose replies cannot be told apart: it goes on as it is, and what it names is read
    /// again from the authority a little later, and once more after EXEC.
    fn pass_on(&self, command: CommandId, frame: &[u8], request: &Request) -> Dispatch {
        if self.is_backlogged() {
            return Dispatch::Backlogged;
        }
        let client = &self.client;
        let Some(upstream) = client.pin.borrow().as_ref().map(|pin| pin.upstream.clone()) else {
            return Dispatch::Done;
        };
        let mut rights = change(command, frame);
        let mut writes = Vec::new();
        writes.extend(
            self.session_write(&upstream, command, frame, request)
                .map(|write| *write),
        );
        if let Some(pin) = client.pin.borrow_mut().as_mut() {
            match command.entry().connection {
                Connection::Multi => pin.transaction = Some(Transaction::default()),
                Connection::Exec => {
                    let ended = pin.transaction.take();
                    rights |= ended.as_ref().map_or(Change::Nobodys, |ended| ended.outcome.rights);
                    if let Some(write) = ended.and_then(Transaction::into_write) {
                        client.worker.begin(upstream.id, &write);
                        writes.push(write);
                    }
                }
                _ => {}
            }
            if let Some(transaction) = &mut pin.transaction {
                writes.iter().for_each(|write| transaction.note(write));
                transaction.outcome.rights |= std::mem::take(&mut rights);
            }
        }
        client.worker.note_unanswered_change_of_rights(rights);
        client.worker.stats.forwarded(command);
        upstream.send_silent(frame);
        writes.into_iter().for_each(|write| client.worker.settle_later(write));
        Dispatch::Done
    }

    /// A command on the client's own upstream that gives or ends state.
    fn send_stateful(
        &self,
        connection: Connection,
        command: CommandId,
        frame: &[u8],
        request: &Request,
        args: &[&[u8]],
        pinned_anew: bool,
    ) {
        let client = &self.client;
        let mut kind = Kind::Plain;
        client.heavy.set(client.heavy.get().saturating_sub(1));
        {
            let mut slot = client.pin.borrow_mut();
            let Some(pin) = slot.as_mut() else { return };
            match connection {
                Connection::Multi if args.len() == 1 => {
                    pin.transaction = Some(Transaction::open(frame));
                    kind = Kind::Multi;
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
                Connection::Wait => {
                    // The server waits for what it had executed at this connection's last command. Here that must
                    // not be older than the writes, which may have gone another way.
                    if pinned_anew {
                        let ping = b"*1\r\n$4\r\nPING\r\n";
                        pin.upstream
                            .send(ping, InFlight::unowned(CommandId::lookup(b"ping"), ping.len()));
                    }
                    pin.blocking = true;
                    kind = Kind::Blocking;
                }
                Connection::Monitor | Connection::Replica => {
                    pin.become_stream();
                    drop(slot);
                    self.pass_on(command, frame, request);
                    return;
                }
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
            let connection = command.entry().connection;
            let select = match (connection, &args[1..]) {
                (Connection::Select, [db]) => db_number(db),
                _ => None,
            };
            transaction.queue(connection, frame, select);
            transaction.outcome.rights |= change(command, frame);
            planned.iter().for_each(|write| transaction.note(write));
            match connection {
                Connection::Hello
                | Connection::Auth
                | Connection::Client
                | Connection::Sticky
                | Connection::Subscribe => {
                    (pin.sticky, pin.unmovable) = (true, true);
                    transaction.ends_counting |= connection == Connection::Subscribe
                        || (args.len() > 1 && args[1].eq_ignore_ascii_case(b"reply"));
                }
                _ => {}
            }
        }
        self.send(&upstream, frame, command, None, Kind::Queued);
    }

    /// EXEC and DISCARD.
    fn end_transaction(&self, connection: Connection, command: CommandId, frame: &[u8], args: &[&[u8]]) {
        let client = &self.client;
        if args.len() != 1 {
            // The server refuses it: that ends a transaction with EXEC, and not with DISCARD.
            if connection == Connection::Exec
                && let Some(pin) = client.pin.borrow_mut().as_mut()
            {
                pin.transaction = None;
                (pin.watching, pin.watch_lost) = (false, false);
            }
            let Some(upstream) = client.pin.borrow().as_ref().map(|pin| pin.upstream.clone()) else {
                return;
            };
            self.send(&upstream, frame, command, None, Kind::Plain);
            return;
        }
        let (upstream, mut transaction, watch_lost) = {
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
        let ends_counting = transaction.ends_counting;
        let outcome = std::mem::take(&mut transaction.outcome);
        let write = transaction.into_write();
        if let Some(write) = &write {
            client.worker.begin(upstream.id, write);
        }
        if ends_counting {
            if let Some(pin) = client.pin.borrow_mut().as_mut() {
                pin.become_stream();
            }
            client.worker.stats.forwarded(command);
            upstream.send_silent(frame);
            client.worker.note_unanswered_change_of_rights(outcome.rights);
            if let Some(write) = write {
                client.worker.settle_later(write);
            }
            return;
        }
        let kind = if outcome.selects.is_empty() && outcome.rights == Change::Nobodys {
            Kind::Plain
        } else {
            Kind::Executes(outcome)
        };
        let mut entry = client.entry(command, frame.len());
        entry.write = write.map(Box::new);
        entry.kind = kind;
        client.worker.stats.forwarded(command);
        upstream.send(frame, entry);
    }
}

/// The words that Redis takes for HTTP.
pub(super) fn is_http(name: &[u8]) -> bool {
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
