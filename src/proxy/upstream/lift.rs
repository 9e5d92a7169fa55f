//! How commands leave a server that is given up for the one that takes its place.

use std::rc::Rc;

use super::Upstream;
use super::in_flight::{Kind, Queue};

impl Upstream {
    /// Takes the commands that wait for this server out of its way: whatever comes of it, [`Upstream::land`] must follow.
    /// Where there still is a connection it is taken for lost, and what must not be repeated gets its error.
    pub(in crate::proxy) fn lift(self: &Rc<Self>) {
        if self.connected.get() {
            self.handle_loss();
            self.given_up.set(true);
            self.wake();
        }
        if self.closed.get() || self.raw.get() {
            return;
        }
        let mut queue = self.queue.borrow_mut();
        // One that blocks holds up nobody, and is issued again where its client goes.
        if queue.in_flight.iter().any(|entry| matches!(entry.kind, Kind::Blocking)) {
            return;
        }
        let lifted = std::mem::take(&mut *queue);
        drop(queue);
        let count = lifted.in_flight.len();
        self.lifted.replace(Some(lifted));
        (0..count).for_each(|_| self.worker.left());
    }

    pub(in crate::proxy) fn has_lifted(&self) -> bool {
        self.lifted.borrow().is_some()
    }

    /// Has the commands that were lifted from `old` (which may be this one) sent here, before any others of their clients.
    pub(in crate::proxy) fn land(&self, old: &Upstream) {
        let Some(Queue { out, in_flight, .. }) = old.lifted.take() else {
            return;
        };
        in_flight.iter().for_each(|_| self.worker.entered());
        let mut queue = self.queue.borrow_mut();
        queue.out.extend_from_slice(&out);
        queue.in_flight.extend(in_flight);
        drop(queue);
        self.wake();
    }
}
