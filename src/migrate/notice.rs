//! How a server tells which keys were changed. No socket, no clock.

use bytes::Bytes;

use crate::resp::{Args, RequestScanner};
use crate::session::KeyPatterns;
use crate::session::key::escape_glob;

/// Before the list of keys, with tracking.
const INVALIDATE: &[u8] = b">2\r\n$10\r\ninvalidate\r\n";
/// Before pattern, channel and event, with notifications.
const MESSAGE: &[u8] = b"*4\r\n$8\r\npmessage\r\n";

/// What a frame says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Notice {
    Changed(Vec<Bytes>),
    /// Everything is gone (FLUSHALL and its like), or nobody knows what.
    Everything,
    Nothing,
}

/// The prefixes to name: without one the server tells of every key.
fn tracked(patterns: &KeyPatterns) -> impl Iterator<Item = &str> {
    let everything = patterns.prefixes().any(str::is_empty);
    patterns.prefixes().filter(move |_| !everything)
}

/// Reads the frames of one connection.
#[derive(Debug)]
pub(super) enum Notices {
    /// `CLIENT TRACKING … BCAST`.
    Tracking,
    /// Keyspace notifications.
    Events {
        /// What a channel's name has before the key.
        channel: String,
        /// The key that the last frame said was set: where a deadline came with the value, a second event follows.
        set: Option<Bytes>,
    },
}

impl Notices {
    pub(super) fn events(db: u32) -> Notices {
        Notices::Events {
            channel: format!("__keyspace@{db}__:"),
            set: None,
        }
    }

    /// As the status has it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Notices::Tracking => "tracking",
            Notices::Events { .. } => "notifications",
        }
    }

    /// The prefixes that the server tracks for this.
    pub(super) fn prefixes(&self, patterns: &KeyPatterns) -> Option<usize> {
        // To track everything is to track one that is empty.
        matches!(self, Notices::Tracking).then(|| tracked(patterns).count().max(1))
    }

    /// The command that asks for notices.
    pub(super) fn command(&self, patterns: &KeyPatterns) -> Vec<String> {
        match self {
            Notices::Tracking => {
                let mut words: Vec<String> = ["CLIENT", "TRACKING", "ON", "BCAST"].map(str::to_owned).into();
                for prefix in tracked(patterns) {
                    words.extend(["PREFIX".to_owned(), prefix.to_owned()]);
                }
                words
            }
            Notices::Events { channel, .. } => {
                let globs = patterns
                    .prefixes()
                    .map(|prefix| format!("{channel}{}*", escape_glob(prefix)));
                std::iter::once("PSUBSCRIBE".to_owned()).chain(globs).collect()
            }
        }
    }

    pub(super) fn read(&mut self, frame: &[u8]) -> Notice {
        match self {
            Notices::Tracking => match frame.strip_prefix(INVALIDATE) {
                None => Notice::Nothing,
                Some(list) => keys(list).map_or(Notice::Everything, |keys| {
                    Notice::Changed(keys.map(Bytes::copy_from_slice).collect())
                }),
            },
            Notices::Events { channel, set } => {
                let mut args = Args::new(frame).skip(2);
                let (true, Some(name), Some(event)) = (frame.starts_with(MESSAGE), args.next(), args.next()) else {
                    return Notice::Nothing;
                };
                let Some(key) = name.strip_prefix(channel.as_bytes()) else {
                    return Notice::Nothing;
                };
                let last = set.take();
                if event == b"expire" && last.is_some_and(|last| last == key) {
                    return Notice::Nothing;
                }
                let key = Bytes::copy_from_slice(key);
                *set = (event == b"set").then(|| key.clone());
                Notice::Changed(vec![key])
            }
        }
    }
}

/// The keys in the list that follows [`INVALIDATE`], which looks like a command; `None` where there is none.
fn keys(list: &[u8]) -> Option<Args<'_>> {
    let listed = list.starts_with(b"*") && matches!(RequestScanner::default().scan(list), Ok(Some(_)));
    listed.then(|| Args::new(list))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::request::encode;

    fn changed(keys: &[&'static str]) -> Notice {
        Notice::Changed(
            keys.iter()
                .copied()
                .map(|key| Bytes::from_static(key.as_bytes()))
                .collect(),
        )
    }

    #[test]
    fn keys_are_told_from_a_wipe() {
        let mut tracking = Notices::Tracking;
        assert_eq!(
            tracking.read(b">2\r\n$10\r\ninvalidate\r\n*2\r\n$1\r\na\r\n$2\r\nbc\r\n"),
            changed(&["a", "bc"])
        );
        for unlisted in [
            &b">2\r\n$10\r\ninvalidate\r\n_\r\n"[..],
            b">2\r\n$10\r\ninvalidate\r\n*1\r\n$-1\r\n",
            b">2\r\n$10\r\ninvalidate\r\n*2\r\n$1\r\na\r\n:1\r\n",
        ] {
            assert_eq!(
                tracking.read(unlisted),
                Notice::Everything,
                "{}",
                unlisted.escape_ascii()
            );
        }
        assert_eq!(tracking.read(b"+PONG\r\n"), Notice::Nothing);
    }

    #[test]
    fn a_value_with_a_deadline_is_one_change() {
        let mut events = Notices::events(3);
        let mut tell = |key: &str, event: &str| {
            let mut frame = Vec::new();
            let channel = format!("__keyspace@3__:{key}");
            encode(&["pmessage", "__keyspace@3__:*", &channel, event], &mut frame);
            events.read(&frame)
        };
        assert_eq!(tell("a", "set"), changed(&["a"]));
        assert_eq!(tell("a", "expire"), Notice::Nothing);
        assert_eq!(tell("a", "expire"), changed(&["a"]));
        assert_eq!(tell("a", "set"), changed(&["a"]));
        assert_eq!(tell("b", "expire"), changed(&["b"]));
        assert_eq!(tell("a", "expire"), changed(&["a"]));
        assert_eq!(tell("a", "expired"), changed(&["a"]));
        assert_eq!(
            events.read(b"*3\r\n$10\r\npsubscribe\r\n$1\r\n*\r\n:1\r\n"),
            Notice::Nothing
        );
    }
}
