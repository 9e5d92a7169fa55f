//! Delivery into the session table: while one transaction is under way, the rows of the next are made.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use tokio::task::spawn_blocking;

use super::{Delivery, State, Taken};
use crate::clock::now_ms;
use crate::session::expiry::expire_ms;
use crate::session::key::is_storable;
use crate::sink::{DatabaseError, DatabaseErrorKind, Row};
use crate::tee::{Rows, SiteRows};

/// Sessions in one transaction. Each waits for the disk, and writes every page that it touches once.
pub(super) const TRANSACTION: usize = 4000;
/// So many rows are made at once where they are needed; more, on a thread beside.
const FEW: usize = 64;
/// Sessions that a row cannot carry are remembered by name up to this many; beyond, they are only counted.
const MAX_UNSTORABLE: usize = 100_000;
/// So many of them are told of one by one.
const MAX_TOLD: usize = 20;

/// What one transaction is to do.
#[derive(Debug, Default)]
struct Work {
    upserts: Vec<Row>,
    deletes: Vec<String>,
    /// Keys of sessions that a row can carry, or that are gone.
    well: Vec<Bytes>,
    /// Keys of those that no row can carry, and why.
    unstorable: Vec<(Bytes, String)>,
    /// Sessions whose key is too long for the table.
    rejected: u64,
}

/// Makes the rows: what is to be done at each site.
fn prepare(rows: &Rows, sessions: Vec<(Bytes, State)>) -> Vec<Work> {
    let now = now_ms();
    let mut works: Vec<Work> = rows.sites().iter().map(|_| Work::default()).collect();
    for (key, state) in sessions {
        let Some((place, session_key)) = rows.place(&key).map(|(place, name)| (place, name.to_owned())) else {
            continue;
        };
        let (site, work) = (&rows.sites()[place], &mut works[place]);
        if !is_storable(&session_key) {
            work.rejected += 1;
            continue;
        }
        let Some((value, deadline)) = state else {
            work.well.push(key);
            work.deletes.push(session_key);
            continue;
        };
        match site.codec.encode(&value, now.div_euclid(1000)) {
            Ok(session_data) => {
                work.well.push(key);
                work.upserts.push(Row {
                    session_key,
                    session_data,
                    expire_ms: expire_ms(deadline, now, site.cookie_age),
                });
            }
            Err(reason) => {
                // No row is better than the row of an older state, which would come back to life.
                work.unstorable.push((key, reason.to_string()));
                work.deletes.push(session_key);
            }
        }
    }
    works
}

impl Delivery {
    pub(super) async fn write_database(&self, rows: &Arc<Rows>, states: &[(&Taken, State)]) -> Result<(), String> {
        let prepared = |part: &[(&Taken, State)]| {
            let rows = rows.clone();
            let sessions: Vec<(Bytes, State)> = part
                .iter()
                .map(|(taken, state)| (taken.key.clone(), state.clone()))
                .collect();
            async move {
                if sessions.len() <= FEW {
                    return Ok(prepare(&rows, sessions));
                }
                let work = spawn_blocking(move || prepare(&rows, sessions)).await;
                work.map_err(|error| format!("making rows: {error}"))
            }
        };
        let mut parts = states.chunks(TRANSACTION);
        let Some(first) = parts.next() else { return Ok(()) };
        let mut work = prepared(first).await?;
        for part in parts {
            let (written, next) = tokio::join!(self.carry_out(rows, work), prepared(part));
            written?;
            work = next?;
        }
        self.carry_out(rows, work).await
    }

    /// At every site, also where another one's database is away; what failed is answered then.
    async fn carry_out(&self, rows: &Rows, works: Vec<Work>) -> Result<(), String> {
        let mut outcome = Ok(());
        for (site, work) in rows.sites().iter().zip(works) {
            let done = self.carry_out_at(site, work).await;
            outcome = outcome.and(done);
        }
        outcome
    }

    async fn carry_out_at(&self, site: &SiteRows, work: Work) -> Result<(), String> {
        self.counters.rejected.fetch_add(work.rejected, Relaxed);
        for key in &work.well {
            self.counters.unstorable.remove(key);
        }
        for (key, reason) in &work.unstorable {
            self.note_unstorable(key, reason);
        }
        self.apply_rows(site, work.upserts, &work.deletes).await
    }

    /// Writes the rows; one that the database refuses is found and counted, so that it does not hold up the others.
    async fn apply_rows(&self, site: &SiteRows, upserts: Vec<Row>, deletes: &[String]) -> Result<(), String> {
        let text = |error: DatabaseError| error.to_string();
        match site.database.apply(&upserts, deletes).await {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() != DatabaseErrorKind::Rejected => return Err(text(error)),
            Err(_) => {}
        }
        site.database.apply(&[], deletes).await.map_err(text)?;
        // By halves: one in thousands is found in some thirty transactions.
        let mut parts = vec![upserts];
        while let Some(mut part) = parts.pop() {
            match (site.database.apply(&part, &[]).await, &part[..]) {
                (Ok(()), _) => {}
                (Err(error), _) if error.kind() != DatabaseErrorKind::Rejected => return Err(text(error)),
                (Err(error), [row]) => {
                    tracing::warn!(session = self.tee.digest(&site.patterns.redis_key(&row.session_key)), %error, "the database refuses this row");
                    self.counters.rejected.fetch_add(1, Relaxed);
                    // No row is better than the row of an older state.
                    let refused = [row.session_key.clone()];
                    site.database.apply(&[], &refused).await.map_err(text)?;
                }
                (Err(_), _) => {
                    parts.push(part.split_off(part.len() / 2));
                    parts.push(part);
                }
            }
        }
        Ok(())
    }

    fn note_unstorable(&self, key: &Bytes, reason: &str) {
        let unstorable = &self.counters.unstorable;
        if unstorable.contains_key(key) || unstorable.len() >= MAX_UNSTORABLE {
            return;
        }
        let digest = self.tee.digest(key);
        match unstorable.len() {
            known if known < MAX_TOLD => {
                tracing::warn!(
                    session = digest,
                    reason,
                    "this session cannot be stored in a row; it is copied to Redis alone"
                );
            }
            MAX_TOLD => tracing::warn!("more sessions cannot be stored in a row; see `unstorable` in the status"),
            _ => tracing::debug!(session = digest, reason, "this session cannot be stored in a row"),
        }
        unstorable.insert(Bytes::copy_from_slice(key), reason.to_owned());
    }
}
