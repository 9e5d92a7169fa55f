//! What a command is: whether it reads or writes, and what it does to its connection. As data.
//!
//! Absent on purpose: arities and key positions. The server checks the first; where session keys stand is found by
//! looking at every argument of a write (see [`crate::session::effect`]), which needs no table that could be wrong.

mod table;

use std::sync::LazyLock;

use rustc_hash::FxHashMap;

/// What a command may do to keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Changes nothing: may be sent again when its reply was lost.
    Read,
    /// Changes keys that stand among its arguments.
    Write,
    /// May change anything, even when it answers an error; the keys that it names stand among its arguments.
    Script,
    /// Changes every key of a database at once.
    Wipe,
    /// Touches no key that could be a session.
    Other,
}

/// What a command does to its connection: decides whether it may travel on a shared upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// Nothing: travels on the shared upstream.
    Shared,
    /// May block its connection until another client acts.
    Blocking,
    Multi,
    Exec,
    Discard,
    Watch,
    Unwatch,
    /// The subscribe and unsubscribe commands.
    Subscribe,
    /// The connection becomes a stream of lines between the replies.
    Monitor,
    /// The connection becomes a stream of replication, which is no RESP.
    Replica,
    /// May run for long, while the server refuses all others with `-BUSY`: nobody's command may stand behind it.
    Lengthy,
    /// Blocks until replicas have what this connection has seen written.
    Wait,
    /// Leaves state that the proxy does not keep: the client stays on an upstream of its own.
    Sticky,
    /// State that the proxy keeps and replays.
    Select,
    Hello,
    Auth,
    Client,
    Quit,
    Reset,
}

/// One command.
#[derive(Debug)]
pub struct Entry {
    /// Lower case.
    pub name: &'static str,
    pub access: Access,
    pub connection: Connection,
}

impl Entry {
    const fn new(name: &'static str, access: Access, connection: Connection) -> Self {
        Entry {
            name,
            access,
            connection,
        }
    }
}

/// Index into [`entries`]; what the hot path carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandId(u16);

/// What is not in the table: it gets an upstream of its own, and is taken to change whatever it names.
const UNKNOWN: Entry = Entry::new("unknown", Access::Script, Connection::Sticky);
/// Longest name in the table; longer ones need no look-up.
const MAX_NAME_LEN: usize = 24;

static INDEX: LazyLock<FxHashMap<&'static [u8], CommandId>> = LazyLock::new(|| {
    table::TABLE
        .iter()
        .enumerate()
        .map(|(i, entry)| (entry.name.as_bytes(), CommandId(i as u16)))
        .collect()
});
static GET: LazyLock<CommandId> = LazyLock::new(|| lookup_slow(b"get"));
static SET: LazyLock<CommandId> = LazyLock::new(|| lookup_slow(b"set"));

impl CommandId {
    /// Number of ids, the one for unknown commands included.
    pub const COUNT: usize = table::TABLE.len() + 1;
    const UNKNOWN: CommandId = CommandId(table::TABLE.len() as u16);

    /// The command of this name, in any case; unknown ones share one id.
    pub fn lookup(name: &[u8]) -> CommandId {
        // Nearly all that Django sends.
        if let [a, b, c] = name {
            match [a | 0x20, b | 0x20, c | 0x20] {
                [b'g', b'e', b't'] => return *GET,
                [b's', b'e', b't'] => return *SET,
                _ => {}
            }
        }
        lookup_slow(name)
    }

    pub fn is_unknown(self) -> bool {
        self == Self::UNKNOWN
    }

    pub fn entry(self) -> &'static Entry {
        table::TABLE.get(usize::from(self.0)).unwrap_or(&UNKNOWN)
    }

    /// Position among all ids, `0..COUNT`: for arrays of counters.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// Every id, in order.
    pub fn all() -> impl Iterator<Item = CommandId> {
        (0..Self::COUNT).map(|i| CommandId(i as u16))
    }
}

fn lookup_slow(name: &[u8]) -> CommandId {
    if name.len() > MAX_NAME_LEN {
        return CommandId::UNKNOWN;
    }
    let mut lower = [0u8; MAX_NAME_LEN];
    for (to, from) in lower.iter_mut().zip(name) {
        *to = from.to_ascii_lowercase();
    }
    INDEX.get(&lower[..name.len()]).copied().unwrap_or(CommandId::UNKNOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_commands_in_any_case() {
        let check = |name: &str, access, connection| {
            let entry = CommandId::lookup(name.as_bytes()).entry();
            assert_eq!((entry.access, entry.connection), (access, connection), "{name}");
        };
        check("GET", Access::Read, Connection::Shared);
        check("sEt", Access::Write, Connection::Shared);
        check("BLPOP", Access::Write, Connection::Blocking);
        check("EVAL", Access::Script, Connection::Lengthy);
        check("FLUSHDB", Access::Wipe, Connection::Shared);
        check("client", Access::Other, Connection::Client);
        check("no-such-command", Access::Script, Connection::Sticky);
        check("", Access::Script, Connection::Sticky);
        check(
            "a-name-that-is-longer-than-any-command-there-is",
            Access::Script,
            Connection::Sticky,
        );
    }
}
