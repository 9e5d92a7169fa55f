//! How many workers the load needs, and which clients go where. Pure.
//!
//! As few as will do: a worker that serves many clients sends their commands in one write and reads many replies at
//! once, while two half-busy ones wake up more often for less. On two cores that share the load with Redis and Django,
//! one worker takes 20 % less CPU per command than two.

use std::time::Duration;

/// How often the loads are looked at. Longer than a burst, shorter than a person notices.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A worker takes new clients while its thread is busy for less than this share of the time.
const ROOM: f64 = 0.6;
/// From here on a worker passes clients on, if another is less than half as busy.
const FULL: f64 = 0.8;
/// Two workers that are together busy for less than this become one.
const FEW: f64 = 0.4;

/// How busy a worker is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Load {
    /// Share of the last interval that its thread was on a CPU.
    pub(super) busy: f64,
    pub(super) clients: u64,
}

/// Clients that change their worker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Shift {
    pub(super) from: usize,
    pub(super) to: usize,
    /// So large a part of the clients of `from`.
    pub(super) share: f64,
}

/// The worker for a new client; 0 where there is no worker to choose from.
pub(super) fn for_new_client(loads: &[Load]) -> usize {
    let least = || {
        let by_busy = |&(_, a): &(usize, &Load), &(_, b): &(usize, &Load)| a.busy.total_cmp(&b.busy);
        loads.iter().enumerate().min_by(by_busy).map_or(0, |(index, _)| index)
    };
    loads.iter().position(|load| load.busy < ROOM).unwrap_or_else(least)
}

/// What to change, if anything.
pub(super) fn shift(loads: &[Load]) -> Option<Shift> {
    let by_busy = |&(_, a): &(usize, &Load), &(_, b): &(usize, &Load)| a.busy.total_cmp(&b.busy);
    let (from, most) = loads.iter().enumerate().max_by(by_busy)?;
    let (to, least) = loads.iter().enumerate().min_by(by_busy)?;
    if most.busy > FULL && least.busy < most.busy / 2.0 && most.clients > 1 {
        let share = (most.busy - least.busy) / 2.0 / most.busy;
        return Some(Shift { from, to, share });
    }
    // The last ones that have clients become one, as far to the front as there is room.
    let (from, last) = loads.iter().enumerate().rfind(|(_, load)| load.clients > 0)?;
    let to = loads[..from]
        .iter()
        .position(|load| load.busy + last.busy < FEW && load.clients > 0)?;
    Some(Shift { from, to, share: 1.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loads(of: &[(f64, u64)]) -> Vec<Load> {
        of.iter().map(|&(busy, clients)| Load { busy, clients }).collect()
    }

    #[test]
    fn new_clients_go_where_others_are_until_that_is_busy() {
        let check = |of: &[(f64, u64)], expected| assert_eq!(for_new_client(&loads(of)), expected, "{of:?}");
        check(&[(0.0, 0), (0.0, 0)], 0);
        check(&[(0.5, 9), (0.0, 0)], 0);
        check(&[(0.7, 9), (0.1, 1)], 1);
        check(&[(0.9, 9), (0.7, 9), (0.8, 1)], 1);
    }

    #[test]
    fn a_full_worker_passes_clients_on_and_idle_ones_come_together() {
        let check = |of: &[(f64, u64)], expected: Option<(usize, usize, f64)>| {
            let expected = expected.map(|(from, to, share)| Shift { from, to, share });
            assert_eq!(shift(&loads(of)), expected, "{of:?}");
        };
        check(&[(0.9, 50), (0.0, 0)], Some((0, 1, 0.5)));
        check(&[(1.0, 50), (0.6, 3)], None);
        check(&[(1.0, 1), (0.0, 0)], None);
        check(&[(0.7, 50), (0.0, 0)], None);
        check(&[(0.1, 5), (0.2, 5)], Some((1, 0, 1.0)));
        check(&[(0.3, 5), (0.2, 5)], None);
        check(&[(0.3, 5), (0.0, 0), (0.05, 5)], Some((2, 0, 1.0)));
        check(&[(0.1, 5)], None);
        check(&[], None);
    }

    #[test]
    fn what_was_spread_is_not_gathered_at_once() {
        // Between the two limits nothing moves, whichever way the load came there.
        for total in [0.5, 0.8, 1.1] {
            let half = total / 2.0;
            assert_eq!(shift(&loads(&[(half, 5), (half, 5)])), None);
        }
    }
}
