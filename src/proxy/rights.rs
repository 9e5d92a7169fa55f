//! When users and passwords change, a Redis lets no stranger in any more, though connections that stood before go on. So
//! clients that come after such a change share no connection with those that came before it.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use crate::clock::now_ms;
use crate::command::{Access, CommandId};
use crate::resp::Args;

/// A connection that the server ends so soon after a change, ms, is taken to have been ended because of it.
const AFTERMATH_MS: i64 = 1000;

/// Who the source lets in without a password.
const EVERYBODY: u64 = u64::MAX;

/// How often users were changed by a command that came through here.
#[derive(Debug)]
pub struct Rights {
    changes: AtomicU64,
    /// The last one, ms since the Unix epoch.
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

    pub(super) fn note_change(&self) {
        self.at.store(now_ms(), Relaxed);
        self.changes.fetch_add(1, Relaxed);
    }

    pub fn changes(&self) -> u64 {
        self.changes.load(Relaxed)
    }

    pub(super) fn changed_just_now(&self) -> bool {
        now_ms().saturating_sub(self.at.load(Relaxed)) < AFTERMATH_MS
    }
}

/// Whether a command changes who may do what, if the server agrees.
pub(super) fn may_change(command: CommandId, frame: &[u8]) -> bool {
    let entry = command.entry();
    if entry.access != Access::Other || !matches!(entry.name, "acl" | "config") {
        return false;
    }
    let mut args = Args::new(frame).skip(1);
    let is = |arg: &[u8], words: &[&str]| words.iter().any(|word| arg.eq_ignore_ascii_case(word.as_bytes()));
    let Some(subcommand) = args.next() else { return false };
    if entry.name == "acl" {
        is(subcommand, &["setuser", "deluser", "load"])
    } else {
        is(subcommand, &["set"]) && args.any(|arg| is(arg, &["requirepass"]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::request::encode;

    #[test]
    fn only_what_changes_users_is_taken_for_it() {
        for (words, expected) in [
            (&["ACL", "setuser", "default", "off"][..], true),
            (&["acl", "LOAD"], true),
            (&["ACL", "DELUSER", "x"], true),
            (&["ACL", "WHOAMI"], false),
            (&["ACL"], false),
            (&["CONFIG", "GET", "requirepass"], false),
            (&["CONFIG", "SET", "maxmemory", "1", "RequirePass", "x"], true),
            (&["CONFIG", "SET", "maxmemory", "1"], false),
            (&["SET", "setuser", "load"], false),
        ] {
            let mut frame = Vec::new();
            encode(words, &mut frame);
            assert_eq!(
                may_change(CommandId::lookup(words[0].as_bytes()), &frame),
                expected,
                "{words:?}"
            );
        }
    }
}
