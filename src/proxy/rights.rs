//! When users and passwords change, a Redis lets no stranger in any more, though connections that stood before go on. So
//! clients that come after such a change share no connection with those that came before it.

use std::ops::BitOrAssign;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use crate::clock::now_ms;
use crate::command::{Access, CommandId};
use crate::resp::Args;

/// A connection that the server ends so soon after a change, ms, is taken to have been ended because of it.
const AFTERMATH_MS: i64 = 1000;

/// Who the source lets in without a password.
const EVERYBODY: u64 = u64::MAX;

/// Whose rights a command changes, if the server agrees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Change {
    #[default]
    Nobodys,
    /// Of users that have a name: who is one of them says so.
    Named,
    /// Perhaps of the one that everybody is who has not authenticated (`default`), too.
    Everybodys,
}

impl BitOrAssign for Change {
    /// The two together.
    fn bitor_assign(&mut self, other: Change) {
        *self = (*self).max(other);
    }
}

/// How often the rights of those who have not authenticated were changed by a command that came through here.
#[derive(Debug)]
pub struct Rights {
    changes: AtomicU64,
    /// How often anybody's were.
    all_changes: AtomicU64,
    /// The last change, of a named user, too, ms since the Unix epoch.
    at: AtomicI64,
    /// Clients that came after so many changes, or more, must authenticate.
    asked_from: AtomicU64,
    /// After so many changes the source was asked whether it lets strangers in.
    known_to: AtomicU64,
}

impl Rights {
    /// `asks`: the source lets nobody in without a password.
    pub fn new(asks: bool) -> Self {
        Rights {
            changes: AtomicU64::new(0),
            all_changes: AtomicU64::new(0),
            at: AtomicI64::new(0),
            asked_from: AtomicU64::new(if asks { 0 } else { EVERYBODY }),
            known_to: AtomicU64::new(0),
        }
    }

    /// What the source does since so many changes.
    pub fn set_asks(&self, asks: bool, changes: u64) {
        if asks {
            self.asked_from.fetch_min(changes, Relaxed);
        } else {
            self.asked_from.store(EVERYBODY, Relaxed);
        }
        self.known_to.store(changes, Relaxed);
    }

    /// Whether it is known how the source treats a client that came after so many changes.
    pub(super) fn are_known(&self, changes: u64) -> bool {
        changes <= self.known_to.load(Relaxed)
    }

    /// Whether a client that came after so many changes must authenticate.
    pub(super) fn asks(&self, changes: u64) -> bool {
        changes >= self.asked_from.load(Relaxed)
    }

    pub(super) fn note(&self, change: Change) {
        if change != Change::Nobodys {
            self.at.store(now_ms(), Relaxed);
            self.all_changes.fetch_add(1, Relaxed);
        }
        if change == Change::Everybodys {
            self.changes.fetch_add(1, Relaxed);
        }
    }

    pub fn changes(&self) -> u64 {
        self.changes.load(Relaxed)
    }

    /// Named users included. Who has been here since before the last of them may be refused on a new connection.
    pub(super) fn all_changes(&self) -> u64 {
        self.all_changes.load(Relaxed)
    }

    pub(super) fn changed_just_now(&self) -> bool {
        now_ms().saturating_sub(self.at.load(Relaxed)) < AFTERMATH_MS
    }
}

/// Whose rights a command changes.
pub(super) fn change(command: CommandId, frame: &[u8]) -> Change {
    let entry = command.entry();
    if entry.access != Access::Other || !matches!(entry.name, "acl" | "config") {
        return Change::Nobodys;
    }
    let mut args = Args::new(frame).skip(1);
    let is = |arg: &[u8], words: &[&str]| words.iter().any(|word| arg.eq_ignore_ascii_case(word.as_bytes()));
    let Some(subcommand) = args.next() else {
        return Change::Nobodys;
    };
    let everybodys = if entry.name == "config" {
        is(subcommand, &["set"]) && args.any(|arg| is(arg, &["requirepass"]))
    } else if is(subcommand, &["setuser"]) {
        // Names of users are told apart by case.
        args.next() == Some(b"default")
    } else {
        is(subcommand, &["load"])
    };
    if everybodys {
        Change::Everybodys
    } else if entry.name == "acl" && is(subcommand, &["setuser", "deluser"]) {
        Change::Named
    } else {
        Change::Nobodys
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::request::encode;

    #[test]
    fn only_what_changes_users_is_taken_for_it() {
        for (words, expected) in [
            (&["ACL", "setuser", "default", "off"][..], Change::Everybodys),
            (&["ACL", "SETUSER", "Default", "off"], Change::Named),
            (&["ACL", "SETUSER"], Change::Named),
            (&["acl", "LOAD"], Change::Everybodys),
            (&["ACL", "DELUSER", "x"], Change::Named),
            (&["ACL", "WHOAMI"], Change::Nobodys),
            (&["ACL"], Change::Nobodys),
            (&["CONFIG", "GET", "requirepass"], Change::Nobodys),
            (
                &["CONFIG", "SET", "maxmemory", "1", "RequirePass", "x"],
                Change::Everybodys,
            ),
            (&["CONFIG", "SET", "maxmemory", "1"], Change::Nobodys),
            (&["SET", "setuser", "load"], Change::Nobodys),
        ] {
            let mut frame = Vec::new();
            encode(words, &mut frame);
            assert_eq!(
                change(CommandId::lookup(words[0].as_bytes()), &frame),
                expected,
                "{words:?}"
            );
        }
    }
}
