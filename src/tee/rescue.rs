//! What a session is while the authority is away: from what is on its way to the other stores, from the other Redis, or,
//! where that is away too, from the database.
//!
//! Django takes an error, and a nil, for a logout. So a session is answered only where its state is certain: nothing
//! about it is in doubt, and what is missing there is nil only once everything is known to have been copied.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use tokio::runtime::Handle;

use super::Tee;
use super::delivery::Stores;
use super::rows::{FromRow, Rows};
use crate::clock::now_ms;
use crate::session::{Deadline, Effect};
use crate::sink::Stored;

/// What a session is, and where that is known from.
#[derive(Clone, Debug)]
pub struct Known {
    /// As Django stored it; `None`: there is no such session.
    pub value: Option<Bytes>,
    pub from: Place,
}

/// Where a session is read while the authority is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On its way to the other stores.
    Pending,
    Redis,
    Database,
}

impl Place {
    const ALL: [Place; 3] = [Place::Pending, Place::Redis, Place::Database];

    /// The word in metrics.
    fn name(self) -> &'static str {
        match self {
            Place::Pending => "pending",
            Place::Redis => "redis",
            Place::Database => "database",
        }
    }

    fn knows(self, value: Option<Bytes>) -> Known {
        Known { value, from: self }
    }
}

/// Reads sessions where they are besides the authority.
#[derive(Debug)]
pub struct Rescue {
    tee: Arc<Tee>,
    stores: Stores,
    rows: Option<Arc<Rows>>,
    /// The stores belong to this runtime: no worker waits for them.
    control: Handle,
    /// The other stores have every session.
    complete: AtomicBool,
    /// There are sessions that no row can carry.
    unstorable: AtomicBool,
    answered: [AtomicU64; Place::ALL.len()],
}

impl Rescue {
    /// To be made on the runtime that the deliveries run on.
    pub fn new(tee: Arc<Tee>, stores: Stores, rows: Option<Arc<Rows>>) -> Rescue {
        Rescue {
            tee,
            stores,
            rows,
            control: Handle::current(),
            complete: AtomicBool::new(false),
            unstorable: AtomicBool::new(false),
            answered: Default::default(),
        }
    }

    /// Says whether the other stores have every session, so that one that is not there does not exist.
    pub fn set_complete(&self, complete: bool, unstorable: bool) {
        self.complete.store(complete, Relaxed);
        self.unstorable.store(unstorable, Relaxed);
    }

    /// Reads that were answered so.
    pub fn answered(&self) -> u64 {
        self.answered_from().map(|(_, count)| count).sum()
    }

    pub fn answered_from(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Place::ALL
            .map(|place| (place.name(), self.answered[place as usize].load(Relaxed)))
            .into_iter()
    }

    pub fn note_answered(&self, from: Place) {
        self.answered[from as usize].fetch_add(1, Relaxed);
    }

    /// What is certain about `keys`; those in doubt are left out.
    pub async fn read(self: &Arc<Self>, keys: Vec<Bytes>) -> Vec<(Bytes, Known)> {
        let rescue = self.clone();
        let reading = self.control.spawn(async move { rescue.read_here(keys).await });
        reading.await.unwrap_or_default()
    }

    async fn read_here(&self, keys: Vec<Bytes>) -> Vec<(Bytes, Known)> {
        // After `finish` nothing is kept up to date there; after a wipe everything is in doubt.
        if !self.tee.redis.is_enabled() || self.tee.pending_wipe().is_some() {
            return Vec::new();
        }
        let now = now_ms();
        let (mut known, mut to_read) = (Vec::new(), Vec::new());
        for key in keys {
            match self.tee.redis.effect(&key) {
                Some(Effect::Put { value, deadline }) => {
                    let ended = matches!(deadline, Deadline::At(at) if at <= now);
                    known.push((key, Place::Pending.knows((!ended).then_some(value))));
                }
                Some(Effect::Delete) => known.push((key, Place::Pending.knows(None))),
                Some(Effect::Unknown) if !self.tee.redis.may_differ(&key) => to_read.push(key),
                Some(Effect::Expire(_) | Effect::Unknown) => {}
                None => to_read.push(key),
            }
        }
        // Asked before the reading: what becomes complete meanwhile was not when it was read.
        let complete = self.complete.load(Relaxed);
        let stored = match self.stores.other_store().read(&to_read).await {
            Ok(stored) => stored,
            Err(error) => {
                tracing::debug!(%error, "sessions cannot be read from the other Redis while the authority is away");
                known.extend(self.read_rows(to_read, complete).await);
                return known;
            }
        };
        for (key, stored) in to_read.into_iter().zip(stored) {
            match stored {
                // It changed meanwhile, or came to be in doubt: another look will tell.
                _ if self.tee.redis.may_differ(&key) => {}
                Stored::Value { value, .. } => known.push((key, Place::Redis.knows(Some(value)))),
                Stored::Absent if complete => known.push((key, Place::Redis.knows(None))),
                Stored::Absent | Stored::WrongType => {}
            }
        }
        known
    }

    /// From the rows, whose sessions Django reads as well as those that it has pickled itself.
    async fn read_rows(&self, mut keys: Vec<Bytes>, complete: bool) -> Vec<(Bytes, Known)> {
        let (Some(rows), pending) = (&self.rows, &self.tee.database) else {
            return Vec::new();
        };
        keys.retain(|key| !pending.may_differ(key));
        let mut sessions = match rows.sessions(keys).await {
            Ok(sessions) => sessions,
            Err(error) => {
                tracing::debug!(%error, "nor from the database");
                return Vec::new();
            }
        };
        // It changed meanwhile, or came to be in doubt: another look will tell.
        sessions.retain(|(key, _)| !pending.may_differ(key));
        let now = now_ms();
        // One that no row can carry has none.
        let nobody = complete && !self.unstorable.load(Relaxed);
        let known = sessions.into_iter().filter_map(|(key, row)| match row {
            FromRow::Value(value, deadline) if !deadline.is_past(now) => {
                Some((key, Place::Database.knows(Some(value))))
            }
            FromRow::Value(..) | FromRow::Absent => nobody.then_some((key, Place::Database.knows(None))),
            FromRow::Unreadable(_) => None,
        });
        known.collect()
    }
}
