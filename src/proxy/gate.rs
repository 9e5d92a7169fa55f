//! Which replies may leave already: a reply to a session write can have to wait until other stores have the write
//! (`tee.ack`), and no later reply may overtake it. No socket, no clock.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// A point in the output that is not passed before it is opened.
#[derive(Debug)]
pub(super) struct Barrier {
    /// Bytes of output before it, since the client came.
    at: u64,
    open: Cell<bool>,
}

impl Barrier {
    pub(super) fn open(&self) {
        self.open.set(true);
    }
}

/// A client's output, as far as it may be written.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// Bytes written since the client came.
    written: Cell<u64>,
    barriers: RefCell<VecDeque<Rc<Barrier>>>,
}

impl Gate {
    /// What is appended to the output from here on waits; `waiting` bytes of earlier output are not written yet.
    pub(super) fn close(&self, waiting: usize) -> Rc<Barrier> {
        let barrier = Rc::new(Barrier {
            at: self.written.get() + waiting as u64,
            open: Cell::new(false),
        });
        self.barriers.borrow_mut().push_back(barrier.clone());
        barrier
    }

    /// How many of the `waiting` bytes may be written now.
    #[inline]
    pub(super) fn may_write(&self, waiting: usize) -> usize {
        let mut barriers = self.barriers.borrow_mut();
        while barriers.front().is_some_and(|barrier| barrier.open.get()) {
            barriers.pop_front();
        }
        match barriers.front() {
            Some(barrier) => waiting.min((barrier.at - self.written.get()) as usize),
            None => waiting,
        }
    }

    #[inline]
    pub(super) fn note_written(&self, bytes: usize) {
        self.written.set(self.written.get() + bytes as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_overtakes_what_waits() {
        let gate = Gate::default();
        assert_eq!(gate.may_write(10), 10);
        gate.note_written(10);
        // 5 bytes are there, then a reply that waits, then one that does not, then one that waits again.
        let first = gate.close(5);
        let second = gate.close(5 + 7 + 3);
        assert_eq!(gate.may_write(20), 5);
        gate.note_written(3);
        assert_eq!(gate.may_write(17), 2);
        second.open();
        assert_eq!(gate.may_write(17), 2, "the first is still closed");
        first.open();
        assert_eq!(gate.may_write(17), 17);
    }
}
