//! What changes the state of a connection, or ends it: SELECT, AUTH, HELLO, RESET, QUIT, CLIENT.

use std::rc::Rc;

use super::super::census::{KillAll, kills_everybody};
use super::super::downstream::Downstream;
use super::super::identity::{Credentials, Identity, Order, Protocol};
use super::super::pin::StateChange;
use super::super::upstream::{InFlight, Kind, Upstream};
use super::{Dispatch, MAX_BACKLOG};
use crate::command::{CommandId, Connection};
use crate::resp::Request;
use crate::resp::request::encode;
use crate::status::Authority;

impl Downstream {
    /// SELECT, AUTH and HELLO: the server says whether they are good, the proxy remembers.
    pub(super) fn change_state(&self, command: CommandId, frame: &[u8], args: &[&[u8]]) {
        let client = &self.client;
        let change = state_change(command, args);
        if let Some(change) = &change
            && let Some(upstream) = self.where_it_stands(change, frame)
        {
            client.changing.set(true);
            self.send(&upstream, frame, command, None, Kind::Change(Box::new(change.clone())));
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
        if change.as_ref().is_some_and(StateChange::authenticates) {
            client.pin_to_authenticate();
        } else {
            client.pin();
        }
        let Some((upstream, made_do)) = client.pin.borrow_mut().as_mut().map(|pin| {
            pin.changing = true;
            // A SELECT that is refused changes nothing; a HELLO may have changed something all the same.
            pin.used_up |= command.entry().connection != Connection::Select;
            (pin.upstream.clone(), pin.made_do)
        }) else {
            return;
        };
        let kind = change.map_or(Kind::Plain, |change| Kind::Change(Box::new(change)));
        self.send(&upstream, &frame, command, None, kind);
        let db = client.identity.borrow().db;
        if made_do && db != 0 {
            let mut select = Vec::new();
            encode(&[b"SELECT".to_vec(), db.to_string().into_bytes()], &mut select);
            upstream.send(&select, InFlight::unowned(CommandId::lookup(b"select"), select.len()));
        }
    }

    /// The shared connection that is in the wanted state already. The server's answer to the same command there is its answer
    /// to this client, and changes nothing for the others. Only for what carries no credentials.
    fn where_it_stands(&self, change: &StateChange, frame: &[u8]) -> Option<Rc<Upstream>> {
        let client = &self.client;
        // A stranger's connection stands too, and can do nothing.
        if client.pin.borrow().is_some() || client.is_stranger() || !self.may_share(frame) {
            return None;
        }
        let mut wanted = client.identity.borrow().clone();
        match change {
            StateChange::Select(db) => wanted.db = *db,
            // A name makes the client's connection one of its own.
            StateChange::Hello {
                protocol,
                credentials: None,
                name: None,
            } => {
                wanted.protocol = protocol.unwrap_or(wanted.protocol);
            }
            _ => return None,
        }
        let upstream = client.worker.known_upstream(&wanted)?;
        (upstream.backlog() <= MAX_BACKLOG).then_some(upstream)
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
        super::super::identity::handshake(&identity, mapped.as_ref(), Order::AuthenticateFirst, &mut out);
        out
    }

    /// QUIT of a client that has its own upstream: when it is answered, its subscriptions and the like are gone, and the
    /// server closes that connection, which nobody else must be given meanwhile.
    pub(super) fn quit_own_upstream(&self, command: CommandId, frame: &[u8]) {
        let Some(upstream) = self.client.pin.borrow_mut().as_mut().map(|pin| {
            (pin.used_up, pin.changing) = (true, true);
            pin.upstream.clone()
        }) else {
            return;
        };
        self.send(&upstream, frame, command, None, Kind::Quit);
    }

    /// RESET. A client that has its own upstream gets what is still on its way there first: Redis answers then.
    pub(super) fn reset(&self, command: CommandId, frame: &[u8]) {
        let upstream = self.client.pin.borrow_mut().as_mut().map(|pin| {
            pin.changing = true;
            pin.upstream.clone()
        });
        match upstream {
            Some(upstream) => self.send(&upstream, frame, command, None, Kind::Reset),
            None => {
                self.client.reset();
                self.client.reply(b"+RESET\r\n");
            }
        }
    }

    /// CLIENT: what a client says of itself is kept; everything else concerns a connection of its own.
    pub(super) fn client_command(
        &self,
        command: CommandId,
        frame: &[u8],
        request: &Request,
        args: &[&[u8]],
    ) -> Dispatch {
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
                let refusal = [b"-ERR unknown subcommand '", args[1], b"'. Try CLIENT HELP.\r\n"].concat();
                client.reply(&refusal);
                return Dispatch::Done;
            }
            _ => None,
        };
        match &change {
            Some(StateChange::LibName(name)) => client.library.borrow_mut().set_name(name),
            Some(StateChange::LibVer(version)) => client.library.borrow_mut().set_version(version),
            _ => {}
        }
        match sub.as_slice() {
            b"pause" => client
                .worker
                .shared
                .pause
                .begin(args.get(2).copied().unwrap_or_default()),
            b"unpause" => client.worker.shared.pause.end(),
            _ => {}
        }
        let pinned = client.pin.borrow().is_some();
        if let (Some(change @ (StateChange::LibName(_) | StateChange::LibVer(_))), false) = (&change, pinned) {
            // On the shared upstream it names the proxy's connection, which is no lie, and the server checks the text.
            let upstream = client.shared();
            self.send(&upstream, frame, command, None, Kind::Change(Box::new(change.clone())));
            return Dispatch::Done;
        }
        if let (b"kill", Some(spares_itself)) = (sub.as_slice(), args.get(2..).and_then(kills_everybody)) {
            let upstream = client.pinned_to().unwrap_or_else(|| client.shared());
            let kill_all = KillAll {
                spares_itself,
                own: upstream.footprint().connections(),
                clients: client.worker.clients_of_all(),
            };
            self.send(&upstream, frame, command, None, Kind::KillsAll(kill_all));
            return Dispatch::Done;
        }
        let silences = sub == b"reply"
            && matches!(&args[2..], [how] if how.eq_ignore_ascii_case(b"off") || how.eq_ignore_ascii_case(b"skip"));
        if !idle && (!pinned || silences) {
            return Dispatch::AwaitReplies;
        }
        client.pin();
        if let Some(pin) = client.pin.borrow_mut().as_mut() {
            // A name ties the client to its connection once the server has taken it.
            pin.sticky |= change.is_none();
            pin.unmovable |= sub == b"tracking";
            if silences {
                pin.become_stream();
            }
        }
        if silences {
            return self.pass_on(command, frame, request);
        }
        let kind = change.map_or(Kind::Plain, |change| Kind::Change(Box::new(change)));
        self.send_pinned(command, frame, request, kind);
        Dispatch::Done
    }
}

pub(super) fn db_number(text: &[u8]) -> Option<u32> {
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
                    _ => return Some(StateChange::BadHello),
                }
            }
        }
        _ => None,
    }
}
