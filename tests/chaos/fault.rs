//! What can go wrong, drawn by lot.

#![allow(unreachable_pub, reason = "a module of one test")]

use std::{fmt, time::Duration};

use rand::{RngExt, rngs::StdRng};

use super::relay::Link;

/// One of the three stores, as it stands to the proxy at that moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    Authority,
    Other,
    Database,
}

#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// `kill -9`, and started again.
    KillProxy,
    /// `kill -9`; what it had on disk is there again.
    Kill(Store),
    /// Of the data directory.
    FullDisk,
    /// The process stops and goes on.
    Freeze(Store),
    Link(Store, Link),
    /// It comes back without what it had.
    Empty(Store),
    /// The other Redis is there and takes no writes, for this setting of its own, and takes them again with the second.
    Refusing([&'static str; 3], [&'static str; 3]),
    Cutover,
    Rollback,
    /// The authority is lost and left by force.
    Leave,
    Backfill,
}

/// A fault and how long it lasts.
#[derive(Clone, Copy)]
pub struct Event {
    pub fault: Fault,
    pub lasts: Duration,
    /// Before the next one.
    pub then: Duration,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} for {:?}", self.fault, self.lasts)
    }
}

/// The longest that the authority may be away without anybody noticing: what waits then waits for less than 4 s.
const UNNOTICED: u64 = 2_500;

impl Event {
    /// The next one.
    pub fn draw(dice: &mut StdRng, database: bool) -> Event {
        let stores = if database { 3 } else { 2 };
        let store = [Store::Authority, Store::Other, Store::Database][dice.random_range(0..stores)];
        let link = match dice.random_range(0..4) {
            0 => Link::Cut,
            1 => Link::Silent,
            2 => Link::HalfOpen,
            _ => Link::Slow(dice.random_range(10..100)),
        };
        let fault = match dice.random_range(0..100) {
            0..10 => Fault::KillProxy,
            10..24 => Fault::Kill(store),
            24..34 => Fault::Freeze(if store == Store::Database { Store::Other } else { store }),
            34..54 => Fault::Link(store, link),
            54..58 => [
                Fault::Refusing(["CONFIG", "SET", "maxmemory 1"], ["CONFIG", "SET", "maxmemory 0"]),
                Fault::Refusing(["REPLICAOF", "127.0.0.1", "1"], ["REPLICAOF", "NO", "ONE"]),
                Fault::Refusing(
                    ["CONFIG", "SET", "min-replicas-to-write 1"],
                    ["CONFIG", "SET", "min-replicas-to-write 0"],
                ),
            ][dice.random_range(0..3)],
            58..64 => Fault::Empty(if store == Store::Database { Store::Other } else { store }),
            64..79 => Fault::Cutover,
            79..92 => Fault::Rollback,
            92..95 => Fault::Leave,
            95..97 => Fault::Backfill,
            _ => Fault::FullDisk,
        };
        let longest = match fault {
            Fault::KillProxy => 500,
            Fault::Kill(Store::Authority)
            | Fault::Freeze(Store::Authority)
            | Fault::Link(Store::Authority, _)
            | Fault::Empty(Store::Authority) => UNNOTICED,
            _ => 6_000,
        };
        Event {
            fault,
            lasts: Duration::from_millis(dice.random_range(0..longest)),
            then: Duration::from_millis(dice.random_range(0..1_500)),
        }
    }

    /// Whether visitors may see an error although all goes as it should: without a proxy they would.
    pub fn may_be_noticed(&self) -> bool {
        match self.fault {
            Fault::KillProxy => true,
            // A command that must not be repeated was under way.
            Fault::Kill(Store::Authority)
            | Fault::Empty(Store::Authority)
            | Fault::Link(Store::Authority, Link::Cut)
            | Fault::Leave => true,
            _ => false,
        }
    }
}
