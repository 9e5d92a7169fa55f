//! Decides for each command which upstream it travels on, or answers it.

use std::rc::Rc;

use bytes::Bytes;

use super::downstream::Downstream;
use super::identity::{Credentials, Identity, Labels, Protocol};
use super::pin::{StateChange, Transaction};
use super::upstream::{Kind, SessionWrite, Upstream};
use crate::command::{Access, CommandId, Connection};
use crate::resp::request::encode;
use crate::resp::{Args, Request, RequestScanner, inline};
use crate::session::effect::{Plan, Planned, plan};
use crate::status::Authority;

/// Commands that one client may have in flight on a shared upstream. Without it a single deep pipeline with large
/// replies would stand in front of everybody else's commands; with it a pipeline still keeps the upstream busy.
pub(super) const SHARED_WINDOW: usize = 32;
/// No more is taken from clients while their upstream has this many bytes to send or to get answered.
const MAX_BACKLOG: usize = 64 * 1024 * 1024;

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
    /// The upstream has too much to do.
    Backlogged,
}

impl Downstream {
    pub(super) fn dispatch(&mut self, frame: &[u8], request: &Request) -> Dispatch {
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
            client.reply(b"-ERR sessionferry: refused, it would delete every session (tee.on_flush = refuse)\r\n");
            return Dispatch::Done;
        }
        match entry.connection {
            // The hot path.
            Connection::Shared | Connection::Exec | Connection::Discard | Connection::Unwatch if !pinned => {
                if client.in_flight.get() >= SHARED_WINDOW {
                    return Dispatch::AwaitRoom;
                }
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
                client.reply(b"+OK\r\n");
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
                client.reply(b"+OK\r\n");
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
            StateChange::Select(_) => client.reply(b"+OK\r\n"),
            _ => match upstream.hello.borrow().as_ref() {
                Some(hello) => client.reply(hello),
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
        client.reply(b"+RESET\r\n");
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
                client.reply(b"-ERR unknown subcommand 'MAINT_NOTIFICATIONS'. Try CLIENT HELP.\r\n");
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
