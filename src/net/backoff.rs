//! How long to wait before the next try: doubling, capped, with jitter so that many do not return at once.

use std::time::Duration;

/// A growing wait.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
    first: Duration,
    cap: Duration,
}

impl Backoff {
    pub fn new(first: Duration, cap: Duration) -> Self {
        Backoff {
            next: first,
            first,
            cap,
        }
    }

    /// The next wait: between half and all of a duration that doubles up to the cap.
    pub fn wait(&mut self) -> Duration {
        let base = self.next;
        self.next = (base * 2).min(self.cap);
        base.mul_f64(rand::random_range(0.5..=1.0))
    }

    /// The last try went well.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_the_cap_and_starts_again() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(10), ms(30));
        for (low, high) in [(5, 10), (10, 20), (15, 30), (15, 30)] {
            let wait = backoff.wait();
            assert!(wait >= ms(low) && wait <= ms(high), "{wait:?}");
        }
        backoff.reset();
        assert!(backoff.wait() <= ms(10));
    }
}
