//! How many sessions each store holds: for people to look at, not for decisions.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Controller;
use crate::status::Authority;

/// Rows asked for per page.
pub(super) const PAGE_LEN: u32 = 1000;
/// A count, which leaves most of its time to others, is taken again after ten times what it took, within these bounds.
const COUNT_EVERY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(120));

/// The last counts.
#[derive(Debug, Default)]
pub struct Census {
    pub source: AtomicU64,
    pub target: AtomicU64,
    pub database: AtomicU64,
}

impl Controller {
    /// Counts now and then, less often where it takes long.
    pub async fn keep_census(&self) {
        loop {
            let start = Instant::now();
            self.count().await;
            let (source, target) = (self.census.source.load(Relaxed), self.census.target.load(Relaxed));
            match self.parts.stores.authority() {
                Authority::Source => self.compare_counts(source, target),
                Authority::Target => self.compare_counts(target, source),
            }
            tokio::time::sleep((start.elapsed() * 10).clamp(COUNT_EVERY.0, COUNT_EVERY.1)).await;
        }
    }

    async fn count(&self) {
        for authority in [Authority::Source, Authority::Target] {
            if authority == Authority::Source && self.state().phase == crate::status::Phase::Finished {
                continue;
            }
            if let Ok(count) = self.scan(self.parts.stores.of(authority)).count().await {
                let slot = match authority {
                    Authority::Source => &self.census.source,
                    Authority::Target => &self.census.target,
                };
                slot.store(count, Relaxed);
            }
        }
        if let Some(rows) = &self.parts.rows
            && let Ok(count) = rows.count().await
        {
            self.census.database.store(count, Relaxed);
        }
    }

    /// Names every session key that one of the Redis servers has; one may come twice. Answers how many those were.
    pub(super) async fn walk_redis(&self, mut name: impl FnMut(Bytes)) -> Result<u64, String> {
        let mut named = 0;
        for authority in [Authority::Source, Authority::Target] {
            if !self.parts.tee.redis.is_enabled() && authority != self.parts.stores.authority() {
                continue;
            }
            let mut scan = self.scan(self.parts.stores.of(authority));
            while let Some(keys) = scan.next().await.map_err(|error| error.to_string())? {
                named += keys.len() as u64;
                // A slice of the whole SCAN reply would keep all of it in memory.
                keys.iter().for_each(|key| name(Bytes::copy_from_slice(key)));
            }
        }
        Ok(named)
    }

    /// For sessions with the keys that each may have, the one under which the authority has it, else the usual one; and
    /// whether it has it. A row is this key's: looked for under another it would be taken for one too many.
    pub(super) async fn present(&self, sessions: Vec<Vec<Bytes>>) -> Result<Vec<(Bytes, bool)>, String> {
        let keys: Vec<Bytes> = sessions.iter().flatten().cloned().collect();
        let exist = self.parts.stores.authority_store().exists(&keys).await;
        let mut exist = exist.map_err(|error| error.to_string())?.into_iter();
        let key_of = |keys: Vec<Bytes>| {
            let exist: Vec<bool> = exist.by_ref().take(keys.len()).collect();
            let place = exist.iter().position(|exists| *exists);
            let key = keys.into_iter().nth(place.unwrap_or(0))?;
            Some((key, place.is_some()))
        };
        Ok(sessions.into_iter().filter_map(key_of).collect())
    }

    /// After a wipe: marks every session of every store for a look at the authority. Answers how many keys that were.
    pub(super) async fn mark_everything(&self) -> Result<u64, String> {
        let tee = &self.parts.tee;
        let mut marked = self
            .walk_redis(|key| {
                tee.mark_wiped(&key);
            })
            .await?;
        if let Some(rows) = &self.parts.rows
            && tee.database.is_enabled()
        {
            for site in rows.sites() {
                let mut after = String::new();
                while let Some(sessions) = site
                    .page(&mut after, PAGE_LEN)
                    .await
                    .map_err(|error| error.to_string())?
                {
                    marked += sessions.len() as u64;
                    for (key, _) in self.present(sessions).await? {
                        tee.mark_wiped(&key);
                    }
                }
            }
        }
        Ok(marked)
    }
}
