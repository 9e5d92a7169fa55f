//! How fast backfill may read while others use the authority. No socket, no clock.

use std::time::Duration;

/// Others' commands per second from which on they are considered.
const BUSY: f64 = 1000.0;
/// How much longer than a read took the server is left to others then: no more than 1 % of their commands find it busy
/// with a read. A server that becomes slow is left alone for longer.
const LEFT_TO_OTHERS: u32 = 100;
/// The longest pause, so that there is an end.
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// A read that takes longer than this shows by itself that the server is busy: as much time is left to it.
const PATIENCE: Duration = Duration::from_millis(20);
/// From one look at others' load to the next; the first two are nearer.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const FIRST_LOOK: Duration = Duration::from_millis(200);

/// Whether others use the authority, and what that means for the next read.
#[derive(Debug)]
pub(super) struct Pace {
    /// Not known yet is taken for yes.
    busy: bool,
    /// When it was looked last, and how many commands others had sent by then.
    last: Option<(Duration, u64)>,
    next_look: Duration,
}

impl Pace {
    pub(super) fn new() -> Self {
        Pace {
            busy: true,
            last: None,
            next_look: Duration::ZERO,
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        self.busy
    }

    /// Whether it is time to ask for others' load. Times are from one and the same beginning.
    pub(super) fn wants_look(&self, now: Duration) -> bool {
        now >= self.next_look
    }

    /// So many commands others have sent until now; `None` where the server does not tell.
    pub(super) fn looked(&mut self, now: Duration, others: Option<u64>) {
        self.next_look = now + if self.last.is_some() { LOOK_EVERY } else { FIRST_LOOK };
        if let (Some((then, before)), Some(others)) = (self.last, others) {
            let elapsed = now.saturating_sub(then).as_secs_f64();
            self.busy = others.saturating_sub(before) as f64 >= BUSY * elapsed;
        } else {
            self.busy = true;
        }
        self.last = others.map(|others| (now, others));
    }

    /// How long nothing may be read after a read that took so long.
    pub(super) fn pause(&self, took: Duration) -> Duration {
        match took {
            _ if self.busy => (took * LEFT_TO_OTHERS).min(PAUSE_MAX),
            // It is busy, with whatever.
            _ if took > PATIENCE => took,
            _ => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_given_way_to_where_there_are_some() {
        let ms = Duration::from_millis;
        let mut pace = Pace::new();
        assert!(pace.is_busy(), "nobody knows yet");
        let mut others = 0;
        let mut now = Duration::ZERO;
        for (more, busy) in [
            (0, true),
            (30, false),
            (190, false),
            (5000, true),
            (900, false),
            (1100, true),
        ] {
            assert!(pace.wants_look(now));
            others += more;
            pace.looked(now, Some(others));
            assert!(!pace.wants_look(now + ms(199)));
            assert_eq!(pace.is_busy(), busy, "{more} more");
            assert_eq!(
                pace.pause(Duration::from_micros(500)),
                if busy { ms(50) } else { ms(0) }
            );
            assert_eq!(pace.pause(ms(30)), if busy { PAUSE_MAX } else { ms(30) });
            now += if now.is_zero() { FIRST_LOOK } else { LOOK_EVERY };
        }
        pace.looked(now, None);
        assert!(pace.is_busy(), "a server that does not tell may be in use");
        pace.looked(now + LOOK_EVERY, Some(others));
        assert!(pace.is_busy(), "there is nothing to compare with");
    }
}
