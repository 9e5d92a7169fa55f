//! How long writes gather before they are delivered, so that a session changed twice is written once.
//!
//! The busier the delivery, the longer: what it spends on a state that is soon replaced, the clients' commands lack. It
//! settles where deliveries take a fair share of the time, or at the longest. A drain does not linger.

use std::time::Duration;

/// With more than this share of the time spent on deliveries, writes gather twice as long …
const MUCH: f64 = 0.3;
/// … and with less than this, half as long.
const LITTLE: f64 = 0.1;

#[derive(Debug)]
pub(super) struct Linger {
    now: Duration,
    least: Duration,
    most: Duration,
}

impl Linger {
    /// `most` is how far a store may fall behind because of it.
    pub(super) fn new(least: Duration, most: Duration) -> Self {
        Linger {
            now: least,
            least,
            most,
        }
    }

    pub(super) fn now(&self) -> Duration {
        self.now
    }

    /// What gathered while it lingered took so long to deliver.
    pub(super) fn adapt(&mut self, took: Duration) {
        let share = took.as_secs_f64() / (took + self.now).as_secs_f64();
        if share > MUCH {
            self.now = (self.now * 2).min(self.most);
        } else if share < LITTLE {
            self.now = (self.now / 2).max(self.least);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: Duration = Duration::from_millis(2);
    const MOST: Duration = Duration::from_millis(500);

    #[test]
    fn it_grows_while_deliveries_take_much_of_the_time_and_shrinks_again() {
        let mut linger = Linger::new(LEAST, MOST);
        linger.adapt(LEAST);
        assert_eq!(linger.now(), 2 * LEAST, "half of the time");
        linger.adapt(LEAST / 2);
        assert_eq!(linger.now(), 2 * LEAST, "a fifth");
        for _ in 0..20 {
            linger.adapt(linger.now());
        }
        assert_eq!(linger.now(), MOST);
        for _ in 0..20 {
            linger.adapt(Duration::ZERO);
        }
        assert_eq!(linger.now(), LEAST);
    }
}
