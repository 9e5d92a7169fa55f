//! How sessions become rows, and rows sessions.

use bytes::Bytes;

use crate::session::key::is_storable;
use crate::session::row::{RowCodec, RowError};
use crate::session::{Deadline, KeyPatterns};
use crate::sink::{Database, DatabaseError};

/// The database, and what Django writes into it.
pub struct Rows {
    pub database: Database,
    pub codec: RowCodec,
    /// Seconds that a session without an expiry gets in its row.
    pub cookie_age: i64,
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rows({:?})", self.database)
    }
}

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
    /// What the rows say of the sessions under these Redis keys.
    pub async fn sessions(
        &self,
        patterns: &KeyPatterns,
        keys: Vec<Bytes>,
    ) -> Result<Vec<(Bytes, FromRow)>, DatabaseError> {
        let named: Vec<(Bytes, Option<String>)> = keys
            .into_iter()
            .map(|key| {
                let storable = patterns
                    .session_key(&key)
                    .filter(|session_key| is_storable(session_key));
                let session_key = storable.map(str::to_owned);
                (key, session_key)
            })
            .collect();
        let wanted: Vec<String> = named
            .iter()
            .filter_map(|(_, session_key)| session_key.clone())
            .collect();
        let rows = self.database.fetch(&wanted).await?;
        let read = |session_key: Option<String>| match session_key.and_then(|key| rows.get(&key)) {
            None => FromRow::Absent,
            Some(row) => match self.codec.value(&row.session_data) {
                Ok(value) => FromRow::Value(value.into(), Deadline::At(row.expire_ms)),
                Err(error) => FromRow::Unreadable(error),
            },
        };
        Ok(named
            .into_iter()
            .map(|(key, session_key)| (key, read(session_key)))
            .collect())
    }
}
