//! What the proxy itself has at a server, so that what the server says of its clients can be told without it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The count for one server. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Footprint {
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    connections: AtomicUsize,
    trackers: AtomicUsize,
    prefixes: AtomicUsize,
}

impl PartialEq for Footprint {
    /// It says nothing about which server this is.
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Footprint {}

impl Footprint {
    /// Counts a connection.
    pub fn connection(&self) -> Presence {
        self.presence(1, 0, 0)
    }

    /// Counts a client that has the server track so many prefixes.
    pub fn tracker(&self, prefixes: usize) -> Presence {
        self.presence(0, 1, prefixes)
    }

    fn presence(&self, connections: usize, trackers: usize, prefixes: usize) -> Presence {
        self.counts.connections.fetch_add(connections, Relaxed);
        self.counts.trackers.fetch_add(trackers, Relaxed);
        self.counts.prefixes.fetch_add(prefixes, Relaxed);
        Presence {
            counts: self.counts.clone(),
            connections,
            trackers,
            prefixes,
        }
    }

    pub fn connections(&self) -> usize {
        self.counts.connections.load(Relaxed)
    }

    pub fn trackers(&self) -> usize {
        self.counts.trackers.load(Relaxed)
    }

    pub fn prefixes(&self) -> usize {
        self.counts.prefixes.load(Relaxed)
    }
}

/// Something that is counted for as long as this lives.
#[derive(Debug)]
pub struct Presence {
    counts: Arc<Counts>,
    connections: usize,
    trackers: usize,
    prefixes: usize,
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.counts.connections.fetch_sub(self.connections, Relaxed);
        self.counts.trackers.fetch_sub(self.trackers, Relaxed);
        self.counts.prefixes.fetch_sub(self.prefixes, Relaxed);
    }
}
