//! Who may come in, where that is not left to Redis: `client.auth` other than `same`.
//!
//! The proxy then speaks to the authority with the credentials of its URL, so that nothing of a client that has not
//! authenticated may travel at all, and no AUTH may travel ever: what it named would be a user of the proxy's own.

use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use super::client::Client;
use super::dispatch::{Dispatch, is_http};
use super::downstream::Downstream;
use super::identity::Protocol;
use super::upstream::Kind;
use crate::command::{CommandId, Connection};
use crate::resp::request::encode;
use crate::resp::{Args, Request, RequestScanner};

/// Who may come in.
#[derive(Debug)]
pub enum Access {
    /// Whoever the authority lets in: it is asked each time.
    Same,
    /// Those whom the configuration names.
    Users(Users),
    /// Everybody, as with a Redis that has no password.
    Open,
}

/// Names and passwords, as digests: all of one length, so that comparing tells nothing.
pub struct Users(Vec<([u8; 32], [u8; 32])>);

impl std::fmt::Debug for Users {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Users({})", self.0.len())
    }
}

impl Users {
    pub fn new<'a>(users: impl IntoIterator<Item = (&'a str, &'a str)>) -> Users {
        let users = users.into_iter();
        Users(
            users
                .map(|(name, password)| (digest(name.as_bytes()), digest(password.as_bytes())))
                .collect(),
        )
    }

    /// Looks at every user in full, whoever it is.
    fn know(&self, name: &[u8], password: &[u8]) -> bool {
        let (name, password) = (digest(name), digest(password));
        let mut known = Choice::from(0);
        for (its_name, its_password) in &self.0 {
            known |= its_name.ct_eq(&name) & its_password.ct_eq(&password);
        }
        known.into()
    }
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

// Redis's own words.
const NOAUTH: &[u8] = b"-NOAUTH Authentication required.\r\n";
const EXEC_NOAUTH: &[u8] = b"-EXECABORT Transaction discarded because of: NOAUTH Authentication required.\r\n";
const WRONGPASS: &[u8] = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n";
const HELLO_NOAUTH: &[u8] = b"-NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time\r\n";
const NO_PASSWORD_SET: &[u8] = b"-ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?\r\n";
const IN_TRANSACTION: &[u8] = b"-ERR Command not allowed inside a transaction\r\n";

/// Replies that one who has not authenticated may leave unread, bytes. Redis allows 1 KiB beside its fixed buffer.
pub(super) const MAX_UNAUTHENTICATED_OUTPUT: usize = 17 * 1024;

impl Access {
    /// Whether a client that has just connected may do anything.
    pub(super) fn is_open(&self) -> bool {
        matches!(self, Access::Open)
    }

    /// Whether clients present the authority's own credentials.
    pub(super) fn is_the_authoritys(&self) -> bool {
        matches!(self, Access::Same)
    }

    fn check(&self, name: &[u8], password: &[u8]) -> Result<(), &'static [u8]> {
        let good = match self {
            Access::Same => false,
            Access::Users(users) => users.know(name, password),
            // Redis's user `default` without a password takes any.
            Access::Open => name == b"default",
        };
        if good { Ok(()) } else { Err(WRONGPASS) }
    }
}

impl Client {
    /// Redis's limits for strangers hold for it.
    pub(super) fn is_stranger(&self) -> bool {
        let shared = &self.worker.shared;
        match shared.access {
            Access::Same => {
                let identity = self.identity.borrow();
                identity.credentials.is_none() && shared.rights.asks(identity.rights)
            }
            Access::Users(_) | Access::Open => !self.admitted.get(),
        }
    }
}

impl Downstream {
    /// What the proxy decides on who may come in; `None` where the command may go its way.
    pub(super) fn admit(&mut self, command: CommandId, frame: &[u8], request: &Request) -> Option<Dispatch> {
        let client = self.client.clone();
        let connection = command.entry().connection;
        let named = matches!(connection, Connection::Auth | Connection::Hello);
        if client.admitted.get() && !named {
            return None;
        }
        if command.is_unknown() && is_http(&frame[request.name.clone()]) {
            return None;
        }
        if client.in_flight.get() > 0 {
            return Some(Dispatch::AwaitReplies);
        }
        let args: Vec<&[u8]> = Args::new(frame).collect();
        match connection {
            Connection::Auth | Connection::Hello if client.is_subscriber() => {
                let name = command.entry().name;
                let text = format!(
                    "-ERR Can't execute '{name}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context\r\n"
                );
                client.reply(text.as_bytes());
            }
            Connection::Auth => self.auth(command, &args),
            Connection::Hello => return self.hello(command, &args),
            Connection::Quit => return None,
            Connection::Reset if args.len() == 1 => return None,
            Connection::Reset => client.reply(b"-ERR wrong number of arguments for 'reset' command\r\n"),
            Connection::Exec => client.reply(EXEC_NOAUTH),
            _ => client.reply(NOAUTH),
        }
        Some(Dispatch::Done)
    }

    fn auth(&mut self, command: CommandId, args: &[&[u8]]) {
        let client = self.client.clone();
        if self.is_impossible_here(command) {
            return;
        }
        let access = &client.worker.shared.access;
        let outcome = match args[1..] {
            [] => Err(&b"-ERR wrong number of arguments for 'auth' command\r\n"[..]),
            [_] if access.is_open() => Err(NO_PASSWORD_SET),
            [password] => access.check(b"default", password),
            [name, password] => access.check(name, password),
            _ => Err(&b"-ERR syntax error\r\n"[..]),
        };
        match outcome {
            Ok(()) => {
                self.welcome();
                client.reply(b"+OK\r\n");
            }
            Err(error) => self.turn_away(error),
        }
    }

    fn hello(&mut self, command: CommandId, args: &[&[u8]]) -> Option<Dispatch> {
        let client = self.client.clone();
        let hello = Hello::parse(args);
        let presents = args[1..].iter().any(|arg| arg.eq_ignore_ascii_case(b"auth"));
        if !presents && client.admitted.get() {
            return None;
        }
        if self.is_impossible_here(command) {
            return Some(Dispatch::Done);
        }
        let hello = match hello {
            Ok(hello) => hello,
            Err(error) => {
                client.reply(&error);
                return Some(Dispatch::Done);
            }
        };
        if let Some((name, password)) = hello.credentials
            && let Err(error) = client.worker.shared.access.check(name, password)
        {
            self.turn_away(error);
            return Some(Dispatch::Done);
        }
        if hello.credentials.is_some() {
            self.welcome();
        } else if !client.admitted.get() {
            client.reply(HELLO_NOAUTH);
            return Some(Dispatch::Done);
        }
        // The rest of it, for Redis to answer.
        let frame = hello.without_credentials();
        let request = RequestScanner::default().scan(&frame).ok().flatten()?;
        Some(self.dispatch(&frame, &request))
    }

    fn welcome(&mut self) {
        self.client.admitted.set(true);
        self.scanner.unauthenticated = false;
    }

    /// Whoever is in stays in, as with Redis.
    fn turn_away(&self, error: &[u8]) {
        if error == WRONGPASS {
            tracing::info!(client = self.client.id, "a client gave a wrong user name or password");
        }
        self.client.reply(error);
    }

    /// Where replies are off nobody can be told what came of it; between MULTI and EXEC it cannot wait for EXEC, as the
    /// server must not see it.
    fn is_impossible_here(&self, command: CommandId) -> bool {
        let client = &self.client;
        let (upstream, silent) = match client.pin.borrow_mut().as_mut() {
            Some(pin) if pin.stream => (pin.upstream.clone(), true),
            Some(pin) => match &mut pin.transaction {
                Some(transaction) => {
                    // Answered at once, like WATCH there.
                    transaction.queue(Connection::Watch, REFUSED_BY_REDIS, None);
                    (pin.upstream.clone(), false)
                }
                None => return false,
            },
            None => return false,
        };
        if silent {
            tracing::warn!(
                client = client.id,
                "a client authenticates while its replies are off; closing it"
            );
            client.close();
            return true;
        }
        // The server refuses it, and with it the transaction.
        let mut entry = client.entry(command, REFUSED_BY_REDIS.len());
        entry.kind = Kind::Instead(IN_TRANSACTION);
        client.worker.stats.forwarded(command);
        upstream.send(REFUSED_BY_REDIS, entry);
        true
    }
}

/// AUTH without anything: too few arguments on every server.
const REFUSED_BY_REDIS: &[u8] = b"*1\r\n$4\r\nAUTH\r\n";

/// A HELLO that Redis would take.
#[derive(Debug, PartialEq, Eq)]
struct Hello<'a> {
    protocol: Option<Protocol>,
    credentials: Option<(&'a [u8], &'a [u8])>,
    name: Option<&'a [u8]>,
}

impl<'a> Hello<'a> {
    /// Redis's own checks, in its order.
    fn parse(args: &[&'a [u8]]) -> Result<Hello<'a>, Vec<u8>> {
        let mut hello = Hello {
            protocol: None,
            credentials: None,
            name: None,
        };
        let Some((version, options)) = args[1..].split_first() else {
            return Ok(hello);
        };
        hello.protocol = Some(match crate::resp::parse_integer(version) {
            Some(2) => Protocol::Resp2,
            Some(3) => Protocol::Resp3,
            Some(_) => return Err(b"-NOPROTO unsupported protocol version\r\n".to_vec()),
            None => return Err(b"-ERR Protocol version is not an integer or out of range\r\n".to_vec()),
        });
        let mut rest = options;
        loop {
            rest = match rest {
                [] => return Ok(hello),
                [option, name, password, tail @ ..] if option.eq_ignore_ascii_case(b"auth") => {
                    hello.credentials = Some((name, password));
                    tail
                }
                [option, name, tail @ ..] if option.eq_ignore_ascii_case(b"setname") => {
                    if !name.iter().all(|byte| (b'!'..=b'~').contains(byte)) {
                        let text = "-ERR Client names cannot contain spaces, newlines or special characters.\r\n";
                        return Err(text.into());
                    }
                    hello.name = Some(name);
                    tail
                }
                [option, ..] => {
                    let shown: Vec<u8> = option
                        .iter()
                        .map(|&byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { byte })
                        .collect();
                    let mut error = b"-ERR Syntax error in HELLO option '".to_vec();
                    error.extend_from_slice(&shown);
                    error.extend_from_slice(b"'\r\n");
                    return Err(error);
                }
            }
        }
    }

    fn without_credentials(&self) -> Vec<u8> {
        let mut args: Vec<&[u8]> = vec![b"HELLO"];
        args.extend(self.protocol.map(|protocol| match protocol {
            Protocol::Resp2 => &b"2"[..],
            Protocol::Resp3 => &b"3"[..],
        }));
        if let Some(name) = self.name {
            args.extend([&b"SETNAME"[..], name]);
        }
        let mut frame = Vec::new();
        encode(&args, &mut frame);
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_name_and_password_are_known() {
        let users = Users::new([("web", "s3cret"), ("default", "other")]);
        for (name, password, known) in [
            ("web", "s3cret", true),
            ("default", "other", true),
            ("web", "other", false),
            ("Web", "s3cret", false),
            ("web", "s3cret ", false),
            ("web", "", false),
            ("", "", false),
        ] {
            assert_eq!(users.know(name.as_bytes(), password.as_bytes()), known, "{name}");
        }
        assert!(!Users::new([]).know(b"default", b""));
    }

    #[test]
    fn hello_goes_on_without_what_is_only_for_the_proxy() {
        let args: [&[u8]; 7] = [b"hello", b"3", b"setname", b"me", b"AUTH", b"web", b"s3cret"];
        let hello = Hello::parse(&args).unwrap();
        assert_eq!(hello.credentials, Some((&b"web"[..], &b"s3cret"[..])));
        let mut wanted = Vec::new();
        encode(&[&b"HELLO"[..], b"3", b"SETNAME", b"me"], &mut wanted);
        assert_eq!(hello.without_credentials(), wanted);
    }
}
