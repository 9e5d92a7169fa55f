//! How fast backfill may read while others use the authority: as long as their round trips stay what they were. No
//! socket, no clock.

use std::time::Duration;

/// Others' commands per second from which on they are considered.
const BUSY: f64 = 100.0;
/// Round trips from which it is learned what is usual, with nothing read meanwhile.
const LEARNED_FROM: usize = 250;
/// Round trips after which the rate is thought over.
const WINDOW: usize = 250;
/// A round trip that takes longer than so many times the usual p99 is slow.
const SLOW: f64 = 1.5;
/// Slow round trips in a window: up to so many, and more is read; from so many on, and less is. By chance alone they are
/// as many where 1 % of the round trips are slow.
const FEW: usize = 1;
const MANY: usize = 5;
const FASTER: f64 = 1.1;
const SLOWER: f64 = 0.7;
/// Keys per second: at first, and at the least, so that there is an end.
const FIRST: f64 = 2000.0;
const LEAST: f64 = 500.0;
/// What is usual is learned anew after so many windows: load changes within the hours of a day.
const LEARN_EVERY: u32 = 60;

/// Chooses the rate from round trips that are measured all the while.
#[derive(Debug)]
pub(super) struct Pace {
    /// Whether others use the authority; `None` where that is not known yet.
    busy: Option<bool>,
    /// A round trip's p99 without a backfill.
    usual: Option<Duration>,
    round_trips: Vec<Duration>,
    windows: u32,
    rate: f64,
}

impl Pace {
    pub(super) fn new() -> Self {
        Pace {
            busy: None,
            usual: None,
            round_trips: Vec::with_capacity(LEARNED_FROM),
            windows: 0,
            rate: FIRST,
        }
    }

    /// Others' commands per second; `None` where the server does not tell.
    pub(super) fn load(&mut self, others: Option<f64>) {
        let busy = others.is_none_or(|others| others >= BUSY);
        if self.busy != Some(busy) {
            self.busy = Some(busy);
            self.learn();
        }
    }

    fn learn(&mut self) {
        self.usual = None;
        self.windows = 0;
        self.round_trips.clear();
    }

    /// So long a round trip took just now.
    pub(super) fn round_trip(&mut self, took: Duration) {
        if self.busy != Some(true) {
            return;
        }
        self.round_trips.push(took);
        match self.usual {
            None if self.round_trips.len() >= LEARNED_FROM => {
                self.round_trips.sort_unstable();
                self.usual = Some(self.round_trips[LEARNED_FROM * 99 / 100]);
                self.round_trips.clear();
            }
            Some(usual) if self.round_trips.len() >= WINDOW => {
                let slow = self
                    .round_trips
                    .iter()
                    .filter(|took| **took > usual.mul_f64(SLOW))
                    .count();
                if slow >= MANY {
                    self.rate = (self.rate * SLOWER).max(LEAST);
                } else if slow <= FEW {
                    self.rate *= FASTER;
                }
                self.round_trips.clear();
                self.windows += 1;
                if self.windows >= LEARN_EVERY {
                    self.learn();
                }
            }
            _ => {}
        }
    }

    /// Keys that may be read per second; 0 while it is learned what is usual, infinite where nobody else is there.
    pub(super) fn rate(&self) -> f64 {
        match (self.busy, self.usual) {
            (Some(false), _) => f64::INFINITY,
            (Some(true), None) => 0.0,
            _ => self.rate,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Duration = Duration::from_micros(100);

    fn learned() -> Pace {
        let mut pace = Pace::new();
        pace.load(Some(5000.0));
        assert_eq!(pace.rate(), 0.0);
        for _ in 0..LEARNED_FROM {
            pace.round_trip(QUICK);
        }
        assert_eq!(pace.rate(), FIRST);
        pace
    }

    #[test]
    fn nobody_is_considered_where_nobody_is() {
        let mut pace = Pace::new();
        assert_eq!(pace.rate(), FIRST, "before that is known");
        pace.load(Some(3.0));
        assert_eq!(pace.rate(), f64::INFINITY);
        pace.load(None);
        assert_eq!(pace.rate(), 0.0);
    }

    /// A server that becomes slow for 5 % of its commands beyond some rate is asked for about that.
    #[test]
    fn the_rate_settles_where_round_trips_become_slow() {
        for limit in [800.0, 5_000.0, 40_000.0] {
            let mut pace = learned();
            let mut sum = 0.0;
            const WINDOWS: usize = 200;
            for window in 0..WINDOWS {
                if pace.rate() == 0.0 {
                    (0..LEARNED_FROM).for_each(|_| pace.round_trip(QUICK));
                }
                let rate = pace.rate();
                for at in 0..WINDOW {
                    let slow = rate > limit && at % 20 == 0;
                    pace.round_trip(if slow { QUICK * 5 } else { QUICK });
                }
                sum += if window >= WINDOWS / 2 { rate } else { 0.0 };
            }
            let mean = sum / (WINDOWS / 2) as f64;
            assert!((0.7..1.1).contains(&(mean / limit)), "{mean} where {limit} would do");
        }
    }

    #[test]
    fn there_is_always_an_end_in_sight() {
        let mut pace = learned();
        for _ in 0..50 * WINDOW {
            pace.round_trip(QUICK * 10);
        }
        assert_eq!(pace.rate(), LEAST);
    }
}
