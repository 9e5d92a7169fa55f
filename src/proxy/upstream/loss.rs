//! What becomes of the commands in flight when their connection ends.

use std::rc::Rc;

use bytes::Buf;

use super::Upstream;
use super::in_flight::{Kind, Queue, SessionWrite};
use crate::clock::now_ms;
use crate::session::Effect;
use crate::status::Authority;

/// Keeps the place of a command that must not be repeated.
const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";

impl Upstream {
    /// The connection is lost. What was not sent stays; what was sent is sent again where that is harmless.
    pub(super) fn handle_loss(self: &Rc<Self>) {
        self.doubt();
        let owner_has_state = self.exclusive
            && (self.queue.borrow().has_state()
                || self.owner.borrow().as_ref().is_some_and(|owner| owner.has_pin_state()));
        if owner_has_state {
            self.close_owner();
            self.closed.set(true);
            return;
        }
        let mut queue = self.queue.borrow_mut();
        let Queue {
            mut out,
            sent,
            forgotten,
            in_flight,
        } = std::mem::take(&mut *queue);
        let text = self.loss();
        let mut lost = Vec::new();
        let mut offset = 0;
        for (index, mut entry) in in_flight.into_iter().enumerate() {
            let bytes = out.split_to(entry.len);
            let was_sent = index < forgotten || offset < sent;
            offset += entry.len;
            if was_sent && !entry.repeatable {
                // Whether it was executed nobody can tell but the authority.
                if let Some(write) = entry.write.take() {
                    self.worker.abandon(&write);
                }
                if !queue.answers_first(&entry) {
                    lost.push(entry);
                    continue;
                }
                // The client has earlier commands that are asked again: this answer must not overtake theirs.
                queue.out.extend_from_slice(PING);
                entry.len = PING.len();
                entry.kind = Kind::Instead(text);
                entry.repeatable = true;
                queue.in_flight.push_back(entry);
                continue;
            }
            if was_sent && let Some(SessionWrite::Keys(planned)) = entry.write.as_deref_mut() {
                planned.note_repeated();
            }
            queue.out.extend_from_slice(&bytes);
            queue.in_flight.push_back(entry);
        }
        drop(queue);
        for entry in lost {
            self.finish(entry, text, true);
        }
        self.worker.flush_clients();
        self.follow_owner();
    }

    /// The owner's state may have changed since this connection was opened (SELECT): opened again, it would be in the old one. What is
    /// to be repeated goes to one that is as the owner is now.
    fn follow_owner(&self) {
        let owner = self.owner.borrow().clone();
        if let Some(new) = owner.and_then(|owner| owner.pin_anew()) {
            self.own(None);
            *new.queue.borrow_mut() = self.queue.take();
            new.wake();
            self.close();
        }
    }

    /// While no connection to the authority stood, nobody could notice that it was restarted.
    pub(super) fn doubt_unwatched(&self) {
        if !self.worker.is_connected_to(self.authority) {
            self.doubt();
        }
    }

    /// The server may be another process now, which has lost sessions. What is on its way to be deleted stays deleted.
    fn doubt(&self) {
        let shared = &self.worker.shared;
        let Some(restore) = &shared.restore else { return };
        if self.authority != self.worker.authority.get() {
            return;
        }
        restore.doubt();
        for entry in &self.queue.borrow().in_flight {
            if let Some(SessionWrite::Keys(planned)) = entry.write.as_deref() {
                let deletes = planned.hopes(now_ms()).filter(|(_, hope)| *hope == Effect::Delete);
                deletes.for_each(|(key, _)| restore.note_delete(key));
            }
        }
    }

    /// What a client is told whose command was lost and must not be repeated.
    pub(super) fn loss(&self) -> &'static [u8] {
        match self.authority {
            Authority::Source => {
                b"-ERR sessionferry: the connection to the source Redis was lost before it replied; \
                  the command may or may not have been executed\r\n"
            }
            Authority::Target => {
                b"-ERR sessionferry: the connection to the target Redis was lost before it replied; \
                  the command may or may not have been executed\r\n"
            }
        }
    }

    /// The server refused the connection itself: that is its answer to everything.
    pub(super) fn refuse_all(self: &Rc<Self>, reply: &[u8]) {
        loop {
            let mut queue = self.queue.borrow_mut();
            let Some(entry) = queue.in_flight.pop_front() else {
                break;
            };
            queue.out.advance(entry.len);
            queue.sent = 0;
            drop(queue);
            self.finish(entry, reply, true);
        }
        self.worker.flush_clients();
    }

    /// The connection is closed on purpose: sessions settle as unknown, and nobody is answered.
    pub(super) fn drop_all(&self) {
        loop {
            let entry = self.queue.borrow_mut().in_flight.pop_front();
            let Some(entry) = entry else { break };
            if let Some(write) = &entry.write {
                self.worker.abandon(write);
            }
            if !matches!(entry.kind, Kind::Blocking) {
                self.worker.left();
            }
            if let Some(client) = entry.client {
                if client.changing.get() {
                    // What it is to become is no more, and nothing of what it is has ended.
                    client.close();
                }
                client.answered();
            }
        }
        self.owner.borrow_mut().take();
    }
}
