//! What a command did to sessions: computed from the command *and its own reply*, as a pair.
//!
//! Two steps, because the command is known when it is sent and the reply when it comes: [`plan`] says what will have
//! happened if the reply is favourable, [`Planned::settle`] looks at the reply. Anything that is not one of the few
//! forms whose outcome is certain becomes [`Effect::Unknown`], which means: read the key again from the authority. So
//! every command that can touch a session is covered, not a list of favourites.

use bytes::Bytes;

use super::{Deadline, KeyPatterns};
use crate::command::{Access, CommandId};

/// What happened to one session key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Put {
        value: Bytes,
        deadline: Deadline,
    },
    /// The value stays, the deadline is new (`Never`: PERSIST).
    Expire(Deadline),
    Delete,
    /// Changed in a way that only the authority can tell.
    Unknown,
}

impl Effect {
    /// Whether it says what the session is now; otherwise its key is dirty.
    pub fn is_known(&self) -> bool {
        matches!(self, Effect::Put { .. } | Effect::Delete)
    }
}

/// A time to live as the command states it; absolute only once the reply is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lifetime {
    Never,
    /// ms from now.
    For(i64),
    /// ms since the epoch.
    Until(i64),
}

impl Lifetime {
    fn deadline(self, now_ms: i64) -> Deadline {
        match self {
            Lifetime::Never => Deadline::Never,
            Lifetime::For(ms) => Deadline::At(now_ms.saturating_add(ms)),
            Lifetime::Until(ms) => Deadline::At(ms),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Put(Bytes, Lifetime),
    Expire(Lifetime),
    Delete,
    Unknown,
}

/// Which replies mean that the change happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// `+OK`.
    Ok,
    /// `:1`.
    One,
    /// Anything but an error or a null.
    Value,
    /// Anything but an error.
    NoError,
    /// Whatever the reply: a script may fail halfway.
    Always,
}

/// The changes that one command will have made to session keys, if its reply says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    changes: Vec<(Bytes, Change)>,
    when: When,
    /// The command may have been executed before, and its reply lost.
    repeated: bool,
}

impl Planned {
    fn new(changes: Vec<(Bytes, Change)>, when: When) -> Self {
        Planned {
            changes,
            when,
            repeated: false,
        }
    }
}

/// What a command may do to sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Nothing.
    Nothing,
    /// Something to these keys.
    Keys(Planned),
    /// Something to every key there is (FLUSHALL, FLUSHDB, SWAPDB).
    Wipe,
}

/// What `command` with `args` (its name first) may do to sessions. `frame` is the request that the arguments are slices
/// of; keys and values of the plan share its memory.
pub fn plan(command: CommandId, frame: &Bytes, args: &[&[u8]], patterns: &KeyPatterns) -> Plan {
    match command.entry().access {
        Access::Read | Access::Other => return Plan::Nothing,
        Access::Wipe => return Plan::Wipe,
        Access::Write | Access::Script => {}
    }
    let is_session = |arg: &[u8]| patterns.session_key(arg).is_some();
    let Some(first) = args.get(1) else { return Plan::Nothing };
    if is_session(first)
        && let Some(planned) = certain(command, frame, args)
    {
        return Plan::Keys(planned);
    }
    let name = command.entry().name;
    let (change, when) = match name {
        "del" | "unlink" => (Change::Delete, When::NoError),
        _ if command.entry().access == Access::Script => (Change::Unknown, When::Always),
        _ => (Change::Unknown, When::NoError),
    };
    if matches!(name, "mset" | "msetnx") {
        return pairs(frame, args, &is_session, name == "mset");
    }
    let changes: Vec<_> = args[1..]
        .iter()
        .filter(|arg| is_session(arg))
        .map(|arg| (frame.slice_ref(arg), change.clone()))
        .collect();
    if changes.is_empty() {
        Plan::Nothing
    } else {
        Plan::Keys(Planned::new(changes, when))
    }
}

/// MSET and MSETNX: only every second argument is a key.
fn pairs(frame: &Bytes, args: &[&[u8]], is_session: &dyn Fn(&[u8]) -> bool, mset: bool) -> Plan {
    let changes: Vec<_> = args[1..]
        .chunks_exact(2)
        .filter(|pair| is_session(pair[0]))
        .map(|pair| {
            (
                frame.slice_ref(pair[0]),
                Change::Put(frame.slice_ref(pair[1]), Lifetime::Never),
            )
        })
        .collect();
    if changes.is_empty() {
        return Plan::Nothing;
    }
    Plan::Keys(Planned::new(changes, if mset { When::Ok } else { When::One }))
}

/// The forms whose outcome is certain, for the key at `args[1]`.
fn certain(command: CommandId, frame: &Bytes, args: &[&[u8]]) -> Option<Planned> {
    let key = frame.slice_ref(args[1]);
    let one = |change, when| Some(Planned::new(vec![(key.clone(), change)], when));
    let value = |arg: &[u8]| frame.slice_ref(arg);
    match (command.entry().name, &args[2..]) {
        ("set", [v, options @ ..]) => {
            let (lifetime, conditional, get) = set_options(options)?;
            let when = match (conditional, get) {
                (_, false) => When::Ok,
                (false, true) => When::NoError,
                // The reply is the old value: it does not say whether the condition held.
                (true, true) => return None,
            };
            one(Change::Put(value(v), lifetime), when)
        }
        ("setex", [seconds, v]) => one(Change::Put(value(v), Lifetime::For(seconds_ms(seconds)?)), When::Ok),
        ("psetex", [ms, v]) => one(Change::Put(value(v), Lifetime::For(integer(ms)?)), When::Ok),
        ("setnx", [v]) => one(Change::Put(value(v), Lifetime::Never), When::One),
        ("getset", [v]) => one(Change::Put(value(v), Lifetime::Never), When::NoError),
        ("getdel", []) => one(Change::Delete, When::NoError),
        ("del" | "unlink", []) => one(Change::Delete, When::NoError),
        ("expire", [seconds, ..]) => one(Change::Expire(Lifetime::For(seconds_ms(seconds)?)), When::One),
        ("pexpire", [ms, ..]) => one(Change::Expire(Lifetime::For(integer(ms)?)), When::One),
        ("expireat", [seconds, ..]) => one(Change::Expire(Lifetime::Until(seconds_ms(seconds)?)), When::One),
        ("pexpireat", [ms, ..]) => one(Change::Expire(Lifetime::Until(integer(ms)?)), When::One),
        ("persist", []) => one(Change::Expire(Lifetime::Never), When::One),
        ("getex", [option]) if option.eq_ignore_ascii_case(b"persist") => {
            one(Change::Expire(Lifetime::Never), When::Value)
        }
        ("getex", [option, amount]) => one(Change::Expire(lifetime(option, amount)?), When::Value),
        _ => None,
    }
}

/// The options of SET behind the value: lifetime, whether NX or XX stands there, whether GET does. `None` for what
/// leaves the outcome open (KEEPTTL) or is no option that we know.
fn set_options(mut options: &[&[u8]]) -> Option<(Lifetime, bool, bool)> {
    let (mut life, mut conditional, mut get) = (Lifetime::Never, false, false);
    loop {
        options = match options {
            [] => return Some((life, conditional, get)),
            [option, rest @ ..] if option.eq_ignore_ascii_case(b"nx") || option.eq_ignore_ascii_case(b"xx") => {
                conditional = true;
                rest
            }
            [option, rest @ ..] if option.eq_ignore_ascii_case(b"get") => {
                get = true;
                rest
            }
            [option, amount, rest @ ..] => {
                life = lifetime(option, amount)?;
                rest
            }
            _ => return None,
        }
    }
}

fn lifetime(option: &[u8], amount: &[u8]) -> Option<Lifetime> {
    match option.to_ascii_lowercase().as_slice() {
        b"ex" => Some(Lifetime::For(seconds_ms(amount)?)),
        b"px" => Some(Lifetime::For(integer(amount)?)),
        b"exat" => Some(Lifetime::Until(seconds_ms(amount)?)),
        b"pxat" => Some(Lifetime::Until(integer(amount)?)),
        _ => None,
    }
}

fn integer(text: &[u8]) -> Option<i64> {
    crate::resp::parse_integer(text)
}

fn seconds_ms(text: &[u8]) -> Option<i64> {
    integer(text)?.checked_mul(1000)
}

impl Planned {
    /// A change to `keys` that only the authority can tell, whatever the reply.
    pub fn unknown(keys: impl IntoIterator<Item = Bytes>) -> Self {
        let changes = keys.into_iter().map(|key| (key, Change::Unknown)).collect();
        Planned::new(changes, When::Always)
    }

    /// The command is sent once more, and may happen twice. Then a value is there, and a deleted session is not, whatever
    /// happened the first time; anything else, and what the second reply denies, only the authority can tell.
    pub fn note_repeated(&mut self) {
        self.repeated = true;
    }

    /// The session keys that may change, as Redis keys.
    pub fn keys(&self) -> impl Iterator<Item = &Bytes> {
        self.changes.iter().map(|(key, _)| key)
    }

    /// What will have happened to each key if the reply is favourable: what is recorded before the command is sent.
    pub fn hopes(&self, now_ms: i64) -> impl Iterator<Item = (&Bytes, Effect)> {
        self.changes
            .iter()
            .map(move |(key, change)| (key, change.effect(now_ms)))
    }

    /// What did happen, now that `reply` (one whole reply) has come. `None`: nothing changed.
    pub fn settle(&self, reply: &[u8], now_ms: i64) -> impl Iterator<Item = (&Bytes, Option<Effect>)> {
        let happened = self.when.holds(reply);
        self.changes.iter().map(move |(key, change)| {
            let effect = happened.then(|| change.effect(now_ms));
            let certain = !self.repeated || effect.as_ref().is_some_and(Effect::is_known);
            (key, if certain { effect } else { Some(Effect::Unknown) })
        })
    }
}

impl Change {
    fn effect(&self, now_ms: i64) -> Effect {
        match self {
            Change::Put(value, life) => match life.deadline(now_ms) {
                Deadline::At(at) if at <= now_ms => Effect::Delete,
                deadline => Effect::Put {
                    value: value.clone(),
                    deadline,
                },
            },
            Change::Expire(life) => match life.deadline(now_ms) {
                Deadline::At(at) if at <= now_ms => Effect::Delete,
                deadline => Effect::Expire(deadline),
            },
            Change::Delete => Effect::Delete,
            Change::Unknown => Effect::Unknown,
        }
    }
}

impl When {
    fn holds(self, reply: &[u8]) -> bool {
        let error = matches!(reply.first(), Some(b'-' | b'!'));
        match self {
            When::Ok => reply.starts_with(b"+OK"),
            When::One => reply == b":1\r\n",
            When::Value => !error && !is_null(reply),
            When::NoError => !error,
            When::Always => true,
        }
    }
}

/// The nulls of RESP2 and RESP3.
pub fn is_null(reply: &[u8]) -> bool {
    matches!(reply, b"$-1\r\n" | b"*-1\r\n" | b"_\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::request::encode;
    use crate::session::Engine;

    const NOW: i64 = 1_000_000;
    const KEY: &str = ":1:django.contrib.sessions.cacheaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn planned(words: &[&str]) -> Plan {
        let words: Vec<&str> = words.iter().map(|w| if *w == "K" { KEY } else { w }).collect();
        let mut frame = Vec::new();
        encode(&words, &mut frame);
        let frame = Bytes::from(frame);
        let args: Vec<&[u8]> = crate::resp::Args::new(&frame).collect();
        let patterns = KeyPatterns::from_django("", "1", Engine::Cache);
        plan(CommandId::lookup(args[0]), &frame, &args, &patterns)
    }

    /// What `words` with `reply` did to the one session that they name; `None` where nothing.
    fn effect(words: &[&str], reply: &str) -> Option<Effect> {
        match planned(words) {
            Plan::Nothing => None,
            Plan::Wipe => panic!("a wipe"),
            Plan::Keys(planned) => planned.settle(reply.as_bytes(), NOW).next().expect("a key").1,
        }
    }

    fn put(deadline: Deadline) -> Option<Effect> {
        Some(Effect::Put {
            value: Bytes::from_static(b"v"),
            deadline,
        })
    }

    #[test]
    fn what_may_have_happened_twice_is_certain_where_it_is_the_same_after_both() {
        let settled = |words: &[&str], reply: &str| {
            let Plan::Keys(mut plan) = planned(words) else {
                panic!("{words:?}")
            };
            plan.note_repeated();
            let hope = plan.hopes(NOW).next().expect("a key").1;
            (hope, plan.settle(reply.as_bytes(), NOW).next().expect("a key").1)
        };
        // Gone the first time already; and should the connection break again, it is still known for a deletion.
        assert_eq!(settled(&["DEL", "K"], ":0\r\n"), (Effect::Delete, Some(Effect::Delete)));
        assert_eq!(settled(&["DEL", "K"], "-READONLY\r\n").1, Some(Effect::Unknown));
        assert_eq!(
            settled(&["SET", "K", "v", "PX", "5", "XX"], "+OK\r\n").1,
            put(Deadline::At(NOW + 5))
        );
        // The first may have been executed before somebody deleted it.
        assert_eq!(settled(&["SET", "K", "v", "XX"], "$-1\r\n").1, Some(Effect::Unknown));
        assert_eq!(settled(&["PERSIST", "K"], ":1\r\n").1, Some(Effect::Unknown));
    }

    #[test]
    fn the_reply_decides_not_the_request() {
        let at = |ms| put(Deadline::At(NOW + ms));
        for (words, reply, expected) in [
            (&["SET", "K", "v", "EX", "10"][..], "+OK\r\n", at(10_000)),
            (&["SET", "K", "v", "NX", "EX", "10"], "+OK\r\n", at(10_000)),
            (&["SET", "K", "v", "EX", "10", "NX"], "$-1\r\n", None),
            (&["SET", "K", "v", "EX", "10", "NX"], "_\r\n", None),
            (&["SET", "K", "v", "EX", "10"], "-OOM no\r\n", None),
            (
                &["set", "K", "v", "pxat", "1000077"],
                "+OK\r\n",
                put(Deadline::At(1_000_077)),
            ),
            (&["SET", "K", "v", "EXAT", "1"], "+OK\r\n", Some(Effect::Delete)),
            (&["SET", "K", "v"], "+OK\r\n", put(Deadline::Never)),
            (&["SET", "K", "v", "GET"], "$1\r\nx\r\n", put(Deadline::Never)),
            (&["SET", "K", "v", "GET", "XX"], "$1\r\nx\r\n", Some(Effect::Unknown)),
            (&["SET", "K", "v", "KEEPTTL"], "+OK\r\n", Some(Effect::Unknown)),
            (&["SETEX", "K", "10", "v"], "+OK\r\n", at(10_000)),
            (&["PSETEX", "K", "10", "v"], "+OK\r\n", at(10)),
            (&["SETNX", "K", "v"], ":1\r\n", put(Deadline::Never)),
            (&["SETNX", "K", "v"], ":0\r\n", None),
            (&["MSET", "a", "b", "K", "v"], "+OK\r\n", put(Deadline::Never)),
            (&["DEL", "a", "K"], ":2\r\n", Some(Effect::Delete)),
            (&["DEL", "K"], ":0\r\n", Some(Effect::Delete)),
            (&["GETDEL", "K"], "$1\r\nv\r\n", Some(Effect::Delete)),
            (
                &["EXPIRE", "K", "10"],
                ":1\r\n",
                Some(Effect::Expire(Deadline::At(NOW + 10_000))),
            ),
            (&["EXPIRE", "K", "0"], ":1\r\n", Some(Effect::Delete)),
            (&["EXPIRE", "K", "10", "GT"], ":0\r\n", None),
            (&["PERSIST", "K"], ":1\r\n", Some(Effect::Expire(Deadline::Never))),
            (&["GETEX", "K"], "$1\r\nv\r\n", Some(Effect::Unknown)),
            (&["GETEX", "K", "EX", "1"], "$-1\r\n", None),
            (&["APPEND", "K", "v"], ":2\r\n", Some(Effect::Unknown)),
            (&["RENAME", "a", "K"], "+OK\r\n", Some(Effect::Unknown)),
            (&["EVAL", "…", "1", "K"], "-ERR x\r\n", Some(Effect::Unknown)),
            (&["NEWCOMMAND", "K"], ":0\r\n", Some(Effect::Unknown)),
            (&["GET", "K"], "$1\r\nv\r\n", None),
            (&["SET", "other", "v"], "+OK\r\n", None),
        ] {
            assert_eq!(effect(words, reply), expected, "{words:?} answered {reply:?}");
        }
        assert_eq!(planned(&["FLUSHDB"]), Plan::Wipe);
    }
}
