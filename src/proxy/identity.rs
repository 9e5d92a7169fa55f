//! As whom and where a client speaks to its Redis: the state of a connection that the proxy keeps and replays.

use std::rc::Rc;

use crate::net::Endpoint;
use crate::resp::request::encode;
use crate::status::Authority;

/// The protocol version that a client has chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    #[default]
    Resp2,
    Resp3,
}

/// What a client authenticated with.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Credentials {
    /// `None` where the client gave a password alone, which means the user `default`.
    pub username: Option<Vec<u8>>,
    pub password: Vec<u8>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(***)")
    }
}

/// What decides which shared upstream a client may use: all clients of one identity may share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Identity {
    pub db: u32,
    pub protocol: Protocol,
    pub credentials: Option<Rc<Credentials>>,
    /// How often users had been changed when the client came, see [`rights`](super::rights).
    pub rights: u64,
}

impl Identity {
    /// As whoever has just connected.
    pub fn nobody(rights: u64) -> Self {
        Identity {
            rights,
            ..Identity::default()
        }
    }

    /// Whether nothing need be said on a connection before it is this one's.
    pub fn is_nobody(&self) -> bool {
        *self == Identity::nobody(self.rights)
    }
}

/// What a client said of itself; replayed on an upstream of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Labels {
    pub name: Option<Vec<u8>>,
    pub lib_name: Option<Vec<u8>>,
    pub lib_ver: Option<Vec<u8>>,
}

impl Labels {
    /// The commands that set them, encoded, and how many they are.
    pub fn commands(&self, out: &mut Vec<u8>) -> usize {
        let mut count = 0;
        let mut add = |args: &[&[u8]]| {
            encode(args, out);
            count += 1;
        };
        if let Some(name) = &self.name {
            add(&[b"CLIENT", b"SETNAME", name]);
        }
        if let Some(name) = &self.lib_name {
            add(&[b"CLIENT", b"SETINFO", b"LIB-NAME", name]);
        }
        if let Some(version) = &self.lib_ver {
            add(&[b"CLIENT", b"SETINFO", b"LIB-VER", version]);
        }
        count
    }
}

/// The library that a client says it uses, to be shown: Redis before 7.2 refuses to be told, and the client has said it all
/// the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Library {
    name: Vec<u8>,
    version: Vec<u8>,
}

impl Library {
    /// Of what a client says, bytes: a server has no limit.
    const MAX_LEN: usize = 64;

    pub fn set_name(&mut self, name: &[u8]) {
        Self::take(&mut self.name, name);
    }

    pub fn set_version(&mut self, version: &[u8]) {
        Self::take(&mut self.version, version);
    }

    /// What Redis would not take is not taken here: an operator's terminal would obey it.
    fn take(to: &mut Vec<u8>, said: &[u8]) {
        if said.iter().all(u8::is_ascii_graphic) {
            *to = said[..said.len().min(Self::MAX_LEN)].to_vec();
        }
    }

    /// `redis-py 5.0.1`; empty where the client has said nothing.
    pub fn text(&self) -> String {
        let words = [&self.name, &self.version].map(|word| String::from_utf8_lossy(word));
        words.join(" ").trim().to_owned()
    }
}

/// The two Redis servers as clients' credentials see them.
#[derive(Clone, Debug)]
pub struct Servers {
    pub source: Endpoint,
    pub target: Endpoint,
    /// Clients do not present the servers' credentials: every connection has those of the URL.
    pub by_url: bool,
}

impl Servers {
    pub fn endpoint(&self, authority: Authority) -> &Endpoint {
        match authority {
            Authority::Source => &self.source,
            Authority::Target => &self.target,
        }
    }

    /// What to authenticate with on `authority` for a client that authenticated with `credentials`.
    ///
    /// Clients know the source's credentials (`client.auth = same`). On the target, whoever came in with those of the
    /// source's URL gets those of the target's URL; any other user is taken to exist there under the same name.
    pub fn credentials(&self, authority: Authority, credentials: Option<&Credentials>) -> Option<Credentials> {
        if self.by_url {
            return of_endpoint(self.endpoint(authority));
        }
        if authority == Authority::Target && self.are_the_sources(credentials) {
            return of_endpoint(&self.target);
        }
        credentials.cloned()
    }

    /// Whether these are the very credentials of the source's URL.
    pub fn are_the_sources(&self, credentials: Option<&Credentials>) -> bool {
        use subtle::ConstantTimeEq;
        match (of_endpoint(&self.source), credentials) {
            (None, None) => true,
            (Some(own), Some(theirs)) => {
                let user = |c: &Credentials| c.username.clone().unwrap_or_else(|| b"default".to_vec());
                let same = user(&own).ct_eq(&user(theirs)) & own.password.ct_eq(&theirs.password);
                same.into()
            }
            _ => false,
        }
    }
}

fn of_endpoint(endpoint: &Endpoint) -> Option<Credentials> {
    let password = endpoint.password.as_ref()?.as_bytes().to_vec();
    Some(Credentials {
        username: endpoint.username.as_ref().map(|user| user.as_bytes().to_vec()),
        password,
    })
}

/// Which comes first, the user or the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    AuthenticateFirst,
    /// For users who may not SELECT.
    SelectFirst,
}

/// The commands that bring a fresh connection to `identity`, encoded, and how many they are.
pub fn handshake(identity: &Identity, credentials: Option<&Credentials>, order: Order, out: &mut Vec<u8>) -> usize {
    let mut count = 0;
    let select = |out: &mut Vec<u8>| {
        if identity.db != 0 {
            encode(&[b"SELECT".to_vec(), identity.db.to_string().into_bytes()], out);
        }
        usize::from(identity.db != 0)
    };
    if order == Order::SelectFirst {
        count += select(out);
    }
    match (identity.protocol, credentials) {
        (Protocol::Resp2, None) => {}
        (
            Protocol::Resp2,
            Some(Credentials {
                username: None,
                password,
            }),
        ) => {
            encode(&[b"AUTH".as_slice(), password], out);
            count += 1;
        }
        (
            Protocol::Resp2,
            Some(Credentials {
                username: Some(user),
                password,
            }),
        ) => {
            encode(&[b"AUTH".as_slice(), user, password], out);
            count += 1;
        }
        (Protocol::Resp3, None) => {
            encode(&[b"HELLO".as_slice(), b"3"], out);
            count += 1;
        }
        (Protocol::Resp3, Some(Credentials { username, password })) => {
            let user = username.as_deref().unwrap_or(b"default");
            encode(&[b"HELLO".as_slice(), b"3", b"AUTH", user, password], out);
            count += 1;
        }
    }
    if order == Order::AuthenticateFirst {
        count += select(out);
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_not_taken_from_a_client() {
        let mut library = Library::default();
        library.set_name(b"redis-py");
        library.set_version(b"5.0.1");
        for hostile in [&b"\x1b[2J"[..], b"a b", b"a\nb", "\u{202e}".as_bytes()] {
            library.set_name(hostile);
            library.set_version(hostile);
        }
        assert_eq!(library.text(), "redis-py 5.0.1");
        library.set_name(&[b'x'; 1000]);
        assert_eq!(library.text(), format!("{} 5.0.1", "x".repeat(Library::MAX_LEN)));
    }
}
