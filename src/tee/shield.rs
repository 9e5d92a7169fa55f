//! FLUSHDB and FLUSHALL that spare the sessions (`tee.on_flush = shield`): `cache.clear()` must not log everybody out.

use tokio::runtime::Handle;

use super::delivery::Stores;
use crate::session::KeyPatterns;
use crate::sink::{RedisStore, RedisWrite, StoreError};

/// Keys asked for per SCAN, and deleted at once.
const BATCH: usize = 1000;

/// What a client wants to be emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// The database number that holds the sessions.
    Sessions,
    /// All of them.
    Everything,
}

/// Deletes everything but sessions.
#[derive(Debug)]
pub struct Shield {
    stores: Stores,
    patterns: KeyPatterns,
    /// The stores belong to this runtime: no worker waits for them.
    control: Handle,
}

impl Shield {
    /// To be made on the runtime that the deliveries run on.
    pub fn new(stores: Stores, patterns: KeyPatterns) -> Shield {
        Shield {
            stores,
            patterns,
            control: Handle::current(),
        }
    }

    /// Empties what `flush` says at the authority, but for the sessions. Not at one moment, as Redis does it: what others
    /// write meanwhile may be deleted or not.
    ///
    /// # Errors
    /// In words, for the client; a part may be done.
    pub async fn flush(&self, flush: Flush) -> Result<(), String> {
        let (store, patterns) = (self.stores.authority_store().clone(), self.patterns.clone());
        let work = self.control.spawn(async move {
            if flush == Flush::Everything {
                for number in store.databases().await? {
                    if number != store.endpoint().db {
                        store.numbered(number).flush().await?;
                    }
                }
            }
            delete_others(&store, &patterns).await
        });
        match work.await {
            Ok(done) => done.map_err(|error| error.to_string()),
            Err(_) => Err("the proxy is ending".into()),
        }
    }
}

async fn delete_others(store: &RedisStore, patterns: &KeyPatterns) -> Result<(), StoreError> {
    let mut cursor = 0;
    loop {
        let (next, keys) = store.scan(cursor, "*", BATCH).await?;
        let others: Vec<RedisWrite> = keys
            .into_iter()
            .filter(|key| patterns.session_key(key).is_none())
            .map(|key| RedisWrite::Delete { key })
            .collect();
        store.write(&others).await?;
        if next == 0 {
            return Ok(());
        }
        cursor = next;
    }
}
