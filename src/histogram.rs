//! How often what took how long: counts by upper bound, as Prometheus wants them. No clock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Durations by bounds of µs, and beyond the last.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    bounds: &'static [u64; N],
    counts: [AtomicU64; N],
    beyond: AtomicU64,
    sum_us: AtomicU64,
}

/// What a histogram holds, or several together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    bounds: &'static [u64],
    /// One more than there are bounds.
    counts: Vec<u64>,
    sum_us: u64,
}

impl<const N: usize> Histogram<N> {
    pub fn new(bounds: &'static [u64; N]) -> Self {
        Histogram {
            bounds,
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
            beyond: AtomicU64::new(0),
            sum_us: AtomicU64::new(0),
        }
    }

    fn bucket(&self, took_us: u64) -> &AtomicU64 {
        let at = self.bounds.iter().position(|&bound| took_us <= bound);
        at.map_or(&self.beyond, |at| &self.counts[at])
    }

    /// For any thread.
    pub fn note(&self, took: Duration) {
        let took = took.as_micros() as u64;
        self.bucket(took).fetch_add(1, Relaxed);
        self.sum_us.fetch_add(took, Relaxed);
    }

    /// For a histogram that this thread alone writes: a plain store.
    pub fn note_alone(&self, took: Duration) {
        let took = took.as_micros() as u64;
        let add = |counter: &AtomicU64, n| counter.store(counter.load(Relaxed) + n, Relaxed);
        add(self.bucket(took), 1);
        add(&self.sum_us, took);
    }

    pub fn counts(&self) -> Counts {
        let all = self.counts.iter().chain([&self.beyond]);
        Counts {
            bounds: self.bounds,
            counts: all.map(|count| count.load(Relaxed)).collect(),
            sum_us: self.sum_us.load(Relaxed),
        }
    }
}

impl Counts {
    /// With those of another histogram of the same bounds.
    #[must_use]
    pub fn and(mut self, other: &Counts) -> Counts {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.sum_us += other.sum_us;
        self
    }

    /// How many took at most so long, in seconds; the last has no bound.
    pub fn cumulative(&self) -> impl Iterator<Item = (Option<f64>, u64)> + '_ {
        let bounds = self.bounds.iter().map(|&us| Some(us as f64 / 1e6)).chain([None]);
        let mut running = 0;
        bounds.zip(&self.counts).map(move |(bound, count)| {
            running += count;
            (bound, running)
        })
    }

    pub fn sum_seconds(&self) -> f64 {
        self.sum_us as f64 / 1e6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_duration_counts_at_its_bound_and_all_above() {
        static BOUNDS: [u64; 2] = [100, 1000];
        let (one, other) = (Histogram::new(&BOUNDS), Histogram::new(&BOUNDS));
        one.note(Duration::from_micros(100));
        one.note_alone(Duration::from_micros(101));
        other.note(Duration::from_millis(5));
        let both = one.counts().and(&other.counts());
        assert_eq!(
            both.cumulative().collect::<Vec<_>>(),
            [(Some(0.0001), 1), (Some(0.001), 2), (None, 3)]
        );
        assert!((both.sum_seconds() - 0.005_201).abs() < 1e-9);
    }
}
