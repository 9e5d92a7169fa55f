//! Commands that wait for a server that is away: reads of sessions are answered from elsewhere, and nothing waits for ever.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::time::Duration;

use bytes::{Buf, Bytes};

use super::super::identity::Protocol;
use super::Upstream;
use super::in_flight::{InFlight, Kind, Queue};
use crate::resp::{Args, RequestScanner};
use crate::tee::rescue::Known;

/// A command waits at most this long for a server that is away. Django's client gives up at 5 s and then logs the user
/// out, so an answer must leave well before.
const PARK_LIMIT: Duration = Duration::from_secs(4);
/// A server that is back within this time answers everything itself.
const RESCUE_AFTER: Duration = Duration::from_secs(1);
/// Sessions that are read elsewhere at once.
const RESCUE_BATCH: usize = 1024;

impl Upstream {
    /// Called every now and then while there is no connection.
    pub(super) fn look_after_parked(self: &Rc<Self>) {
        self.expire_parked();
        self.rescue_parked();
    }

    /// Whether the command that this is the answer to is one of a session: it has not been executed, and waits for the
    /// server as for one that is away.
    pub(super) fn waits_for_loading(&self) -> bool {
        if self.exclusive || self.identity.db != self.worker.shared.sessions_db {
            return false;
        }
        let mut queue = self.queue.borrow_mut();
        let Some(entry) = queue.in_flight.front().filter(|_| queue.forgotten == 0) else {
            return false;
        };
        if self.worker.sessions_in(&queue.out[..entry.len]).is_empty() {
            return false;
        }
        // The server says the same to whatever came after it.
        queue.in_flight.iter_mut().for_each(|entry| entry.repeatable = true);
        self.loading.set(true);
        true
    }

    /// Answers what has waited too long.
    fn expire_parked(self: &Rc<Self>) {
        loop {
            let mut queue = self.queue.borrow_mut();
            if queue
                .in_flight
                .front()
                .is_none_or(|entry| entry.queued.elapsed() < PARK_LIMIT)
            {
                break;
            }
            let Some(entry) = queue.in_flight.pop_front() else {
                break;
            };
            queue.out.advance(entry.len);
            queue.sent = queue.sent.saturating_sub(entry.len);
            drop(queue);
            let side = self.authority;
            let text = format!("-ERR sessionferry: the {side} Redis cannot be reached; gave up after 4 s\r\n");
            self.finish(entry, text.as_bytes(), true);
        }
        if self.raw.get() && self.away.get().is_some_and(|since| since.elapsed() >= PARK_LIMIT) {
            // There is no reply that could say so.
            self.close_owner();
            self.closed.set(true);
        }
        self.worker.flush_clients();
    }

    /// Has sessions that clients wait for read elsewhere.
    fn rescue_parked(self: &Rc<Self>) {
        let shared = &self.worker.shared;
        let Some(rescue) = &shared.rescue else { return };
        let away = self.away.get().is_some_and(|since| since.elapsed() >= RESCUE_AFTER);
        if !away || self.exclusive || self.rescuing.get() || !self.may_read_sessions() {
            return;
        }
        let wanted = self.wanted_sessions();
        if wanted.is_empty() {
            return;
        }
        self.rescuing.set(true);
        let (upstream, rescue) = (self.clone(), rescue.clone());
        tokio::task::spawn_local(async move {
            let known: HashMap<Bytes, Known> = rescue.read(wanted).await.into_iter().collect();
            upstream.rescuing.set(false);
            for (entry, known) in upstream.take_known(&known) {
                let reply = reply(
                    entry.command.entry().name,
                    known.value.as_deref(),
                    upstream.identity.protocol,
                );
                rescue.note_answered(known.from);
                upstream.finish(entry, &reply, false);
            }
            upstream.worker.flush_clients();
        });
    }

    /// Whether the server would let this identity read sessions: what the proxy itself reads, it may.
    fn may_read_sessions(&self) -> bool {
        let (shared, identity) = (&self.worker.shared, &self.identity);
        identity.db == shared.sessions_db && shared.speaks_as_proxy(identity)
    }

    /// The sessions that the first parked command of some client asks for.
    fn wanted_sessions(&self) -> Vec<Bytes> {
        let queue = self.queue.borrow();
        let mut wanted = Vec::new();
        let mut at = 0;
        let mut seen = HashSet::new();
        for entry in &queue.in_flight {
            let frame = &queue.out[at..at + entry.len];
            at += entry.len;
            let first = seen.insert(client_of(entry));
            if first && let Some(key) = self.session_asked_for(entry, frame) {
                wanted.push(Bytes::copy_from_slice(key));
                if wanted.len() == RESCUE_BATCH {
                    break;
                }
            }
        }
        wanted
    }

    /// The session that a parked command reads, if that is all it does, and its client may.
    fn session_asked_for<'a>(&self, entry: &InFlight, frame: &'a [u8]) -> Option<&'a [u8]> {
        let client = entry.client.as_ref()?;
        let reads = matches!(entry.kind, Kind::Plain) && matches!(entry.command.entry().name, "get" | "exists");
        if !reads || client.is_stranger() || !matches!(RequestScanner::default().scan(frame), Ok(Some(_))) {
            return None;
        }
        let mut args = Args::new(frame).skip(1);
        let (key, None) = (args.next()?, args.next()) else {
            return None;
        };
        self.worker.shared.tee.patterns.session_key(key).map(|_| key)
    }

    /// Takes the commands out of the queue that can be answered now: no earlier one of the same client waits.
    fn take_known(&self, known: &HashMap<Bytes, Known>) -> Vec<(InFlight, Known)> {
        let mut queue = self.queue.borrow_mut();
        // The server is back: it answers.
        if self.connected.get() || queue.sent > 0 || queue.forgotten > 0 {
            return Vec::new();
        }
        let Queue { mut out, in_flight, .. } = std::mem::take(&mut *queue);
        let mut taken = Vec::new();
        let mut seen = HashSet::new();
        for entry in in_flight {
            let frame = out.split_to(entry.len);
            let answer = self.session_asked_for(&entry, &frame).and_then(|key| known.get(key));
            match answer {
                Some(answer) if !seen.contains(&client_of(&entry)) => taken.push((entry, answer.clone())),
                _ => {
                    seen.insert(client_of(&entry));
                    queue.out.extend_from_slice(&frame);
                    queue.in_flight.push_back(entry);
                }
            }
        }
        taken
    }
}

fn client_of(entry: &InFlight) -> Option<u64> {
    entry.client.as_ref().map(|client| client.id)
}

/// What Redis would answer.
fn reply(command: &str, known: Option<&[u8]>, protocol: Protocol) -> Vec<u8> {
    match (command, known) {
        ("exists", known) => format!(":{}\r\n", u8::from(known.is_some())).into_bytes(),
        (_, Some(value)) => [format!("${}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat(),
        (_, None) if protocol == Protocol::Resp3 => b"_\r\n".to_vec(),
        (_, None) => b"$-1\r\n".to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_those_of_redis() {
        use Protocol::{Resp2, Resp3};
        for (command, known, protocol, expected) in [
            ("get", Some(&b"a\r\n"[..]), Resp2, &b"$3\r\na\r\n\r\n"[..]),
            ("get", None, Resp2, b"$-1\r\n"),
            ("get", None, Resp3, b"_\r\n"),
            ("exists", Some(b""), Resp2, b":1\r\n"),
            ("exists", None, Resp3, b":0\r\n"),
        ] {
            assert_eq!(reply(command, known, protocol), expected);
        }
    }
}
