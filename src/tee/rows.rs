//! How sessions become rows, and rows sessions: each site's in its own way, in its own table.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::clock::now_ms;
use crate::session::key::is_storable;
use crate::session::row::{RowCodec, RowError};
use crate::session::{Deadline, KeyPatterns};
use crate::sink::{Database, DatabaseError, Row};

/// One site's rows: where they are, and what Django writes into them.
pub struct SiteRows {
    /// What the site's Redis keys look like.
    pub patterns: KeyPatterns,
    pub database: Database,
    /// The table's name.
    pub table: String,
    pub codec: RowCodec,
    /// Seconds that a session without an expiry gets in its row.
    pub cookie_age: i64,
    /// Django's `cached_db` writes them: they are compared, and never written.
    pub are_djangos: bool,
    /// It may be made where it is missing.
    pub may_be_made: bool,
}

impl std::fmt::Debug for SiteRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SiteRows({:?})", self.database)
    }
}

impl SiteRows {
    /// For up to `limit` sessions that have a row and have not ended, behind `after` (which is moved on), the Redis keys that
    /// each may have: one, where the site has one pattern. `None`: there are no more.
    pub async fn page(&self, after: &mut String, limit: u32) -> Result<Option<Vec<Vec<Bytes>>>, DatabaseError> {
        let page = self.database.page(after, limit, now_ms()).await?;
        let Some(last) = page.last() else {
            return Ok(None);
        };
        after.clone_from(last);
        let keys = |session_key: &String| {
            let keys = self.patterns.redis_keys(session_key);
            keys.into_iter().map(Bytes::from).collect()
        };
        Ok(Some(page.iter().map(keys).collect()))
    }
}

/// The rows of all sites that have any.
#[derive(Clone, Debug, Default)]
pub struct Rows(Vec<Arc<SiteRows>>);

/// A session as its row has it, expired or not.
#[derive(Debug)]
pub enum FromRow {
    /// There is no row, or cannot be.
    Absent,
    /// The value that Django would have stored in Redis.
    Value(Bytes, Deadline),
    Unreadable(RowError),
}

impl Rows {
    /// `None` where no site has rows.
    pub fn new(sites: Vec<Arc<SiteRows>>) -> Option<Arc<Rows>> {
        (!sites.is_empty()).then(|| Arc::new(Rows(sites)))
    }

    pub fn sites(&self) -> &[Arc<SiteRows>] {
        &self.0
    }

    /// Those that are ours to write; `None` where there are none.
    pub fn written(&self) -> Option<Arc<Rows>> {
        Rows::new(self.0.iter().filter(|site| !site.are_djangos).cloned().collect())
    }

    /// The site that a Redis key belongs to, by its place, and the session's own key there.
    pub fn place<'a>(&self, key: &'a [u8]) -> Option<(usize, &'a str)> {
        let sites = self.0.iter().enumerate();
        sites
            .filter_map(|(place, site)| Some((place, site.patterns.session_key(key)?)))
            .next()
    }

    /// The same with the site itself.
    pub fn of<'a>(&self, key: &'a [u8]) -> Option<(&SiteRows, &'a str)> {
        self.place(key)
            .map(|(place, session_key)| (&*self.0[place], session_key))
    }

    /// The databases' names, without secrets.
    pub fn name(&self) -> String {
        let names: Vec<&str> = self.0.iter().map(|site| site.database.name()).collect();
        names.join(", ")
    }

    /// How many rows have not expired, in all tables.
    pub async fn count(&self) -> Result<u64, DatabaseError> {
        let mut count = 0;
        for site in &self.0 {
            count += site.database.count(now_ms()).await?;
        }
        Ok(count)
    }

    /// Whether all databases answer.
    pub async fn ping(&self) -> Result<(), DatabaseError> {
        for site in &self.0 {
            site.database.page("~", 1, now_ms()).await?;
        }
        Ok(())
    }

    /// The rows of these Redis keys that there are, those that have expired as well.
    pub async fn fetch(&self, keys: &[Bytes]) -> Result<HashMap<Bytes, Row>, DatabaseError> {
        let mut wanted: Vec<HashMap<String, Bytes>> = vec![HashMap::new(); self.0.len()];
        for key in keys {
            if let Some((place, session_key)) = self.place(key)
                && is_storable(session_key)
            {
                wanted[place].insert(session_key.to_owned(), key.clone());
            }
        }
        let mut found = HashMap::with_capacity(keys.len());
        for (site, mut wanted) in self.0.iter().zip(wanted) {
            let names: Vec<String> = wanted.keys().cloned().collect();
            let rows = site.database.fetch(&names).await?;
            found.extend(
                rows.into_iter()
                    .filter_map(|(name, row)| Some((wanted.remove(&name)?, row))),
            );
        }
        Ok(found)
    }

    /// What the rows say of the sessions under these Redis keys.
    pub async fn sessions(&self, keys: Vec<Bytes>) -> Result<Vec<(Bytes, FromRow)>, DatabaseError> {
        let rows = self.fetch(&keys).await?;
        let read = |key: &Bytes| match (rows.get(key), self.of(key)) {
            (Some(row), Some((site, _))) => match site.codec.value(&row.session_data) {
                Ok(value) => FromRow::Value(value.into(), Deadline::At(row.expire_ms)),
                Err(error) => FromRow::Unreadable(error),
            },
            _ => FromRow::Absent,
        };
        Ok(keys
            .into_iter()
            .map(|key| {
                let row = read(&key);
                (key, row)
            })
            .collect())
    }
}
