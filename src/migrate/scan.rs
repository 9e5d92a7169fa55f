//! A walk through the session keys of one Redis, which can be gone on with later.

use std::time::Instant;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::Controller;
use crate::session::KeyPatterns;
use crate::sink::{RedisStore, StoreError};

/// Keys asked for per SCAN.
pub(super) const SCAN_COUNT: usize = 1000;
/// The same where others use the server: they wait for one SCAN at the most, some 20 µs.
pub(super) const GENTLE_COUNT: usize = 128;
/// How much longer than it takes to count is left to others in between.
const LEFT_TO_OTHERS: u32 = 4;

/// Where a walk is. It means something to the server process that it began on, and to no other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Patterns still to be scanned; the last one is under way.
    globs: Vec<String>,
    cursor: u64,
}

pub(super) struct SessionScan {
    store: RedisStore,
    patterns: KeyPatterns,
    at: Position,
}

impl SessionScan {
    /// The next batch of session keys (which may be empty), or `None` at the end. After an error, call again to go on.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Bytes>>, StoreError> {
        self.next_of(SCAN_COUNT).await
    }

    /// The same, where the server is to look at so many keys.
    pub(super) async fn next_of(&mut self, count: usize) -> Result<Option<Vec<Bytes>>, StoreError> {
        let Some(glob) = self.at.globs.last() else {
            return Ok(None);
        };
        let (next, mut keys) = self.store.scan(self.at.cursor, glob, count).await?;
        self.at.cursor = next;
        if next == 0 {
            self.at.globs.pop();
        }
        keys.retain(|key| self.patterns.session_key(key).is_some());
        Ok(Some(keys))
    }

    /// How many there are. Takes its time: nobody waits for it, and others use the server.
    pub(super) async fn count(mut self) -> Result<u64, StoreError> {
        let mut count = 0;
        loop {
            let asked = Instant::now();
            let Some(keys) = self.next_of(GENTLE_COUNT).await? else {
                return Ok(count);
            };
            count += keys.len() as u64;
            sleep(asked.elapsed() * LEFT_TO_OTHERS).await;
        }
    }

    /// Everything up to here has been answered.
    pub(super) fn position(&self) -> Position {
        self.at.clone()
    }

    /// Goes on from there, where that is a position of such a walk.
    pub(super) fn go_on_from(&mut self, position: Position) -> bool {
        let fits = self.patterns.scan_globs().starts_with(&position.globs);
        if fits {
            self.at = position;
        }
        fits
    }
}

impl Controller {
    /// The session keys in `store`, batch by batch. A key may come twice.
    pub(super) fn scan(&self, store: &RedisStore) -> SessionScan {
        let patterns = self.parts.tee.patterns.clone();
        SessionScan {
            store: store.clone(),
            at: Position {
                globs: patterns.scan_globs(),
                cursor: 0,
            },
            patterns,
        }
    }
}
