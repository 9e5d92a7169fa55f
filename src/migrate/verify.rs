//! Compares the three stores, in both directions, by content and deadline.
//!
//! A busy site changes while it is looked at. What differs is therefore looked at again, up to three rounds, and counts
//! only where the authority held still meanwhile and the tee has nothing on its way for that key: what the tee has, it
//! will deliver.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use rustc_hash::FxHashMap;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::census::PAGE_LEN;
use super::differences::{Differences, Kind, follow};
use super::{Controller, End};
use crate::clock::{now_ms, now_rfc3339};
use crate::session::Deadline;
use crate::session::key::is_storable;
use crate::session::row::Comparison;
use crate::sink::{Row, Stored};
use crate::status::{Authority, BackfillState, Phase, Verify, VerifyState};
use crate::tee::SiteRows;

/// Keys compared at once: in the first round many. Later few, so that little changes while they are read; but where so
/// much differs that it is no coincidence, not so few that it takes for ever.
const FIRST_BATCH: usize = 500;
const LATER_BATCH: usize = 16;
const LATER_BATCHES: usize = 100;
/// Looks at a key that keeps changing before it is left to the tee.
const MAX_LOOKS: usize = 20;
/// Looks at everything, and then again at what differed.
const ROUNDS: u64 = 3;
/// Differences remembered by key; past it the stores are plainly not the same, and verify says so at once.
const MAX_DIFFERENCES: usize = 200_000;
/// The stores may disagree by this much on when a session ends, ms.
const DEADLINE_TOLERANCE_MS: i64 = 2000;
#[derive(Debug, Default)]
struct Looked {
    differences: Vec<Kind>,
    unstorable: bool,
    /// The authority changed while the others were read, or the tee has something on its way.
    moving: bool,
}

/// A sink must have caught up before its state says anything: bounded, since a sink that is away shows in the result.
const CATCH_UP: Duration = Duration::from_secs(2);

impl Controller {
    pub(super) async fn run_verify(&self, stop: &CancellationToken) -> End {
        let after_cutover = self.parts.stores.authority() == Authority::Target;
        {
            let mut state = self.state();
            state.verify = Verify {
                state: VerifyState::Running,
                after_cutover,
                // Until this one is done.
                differences: std::mem::take(&mut state.verify.differences),
                ..Verify::default()
            };
        }
        let result = self.compare_all(stop).await;
        let stopped = stop.is_cancelled();
        let (differs, counts) = self.update(|state| {
            let verify = &mut state.verify;
            verify.at = Some(now_rfc3339());
            let differs = result.is_ok() && differences(verify) > 0;
            verify.state = match (&result, differs) {
                _ if stopped => VerifyState::Failed,
                (Err(_), _) => VerifyState::Failed,
                (Ok(()), true) => VerifyState::Differs,
                (Ok(()), false) => VerifyState::Clean,
            };
            let clean = verify.state == VerifyState::Clean;
            state.verified_at_ms = clean.then(now_ms);
            let counts = json!(state.verify);
            match state.phase {
                Phase::Teeing | Phase::Backfilling if clean && state.backfill.state == BackfillState::Done => {
                    state.enter(Phase::Synced);
                }
                Phase::Synced if !clean => state.enter(Phase::Backfilling),
                _ => {}
            }
            (differs, counts)
        });
        match result {
            _ if stopped => End::Stopped(counts),
            Err(error) => End::Failed(error, counts),
            Ok(()) if differs => End::Failed("the stores differ".into(), counts),
            Ok(()) => End::Done(counts),
        }
    }

    async fn compare_all(&self, stop: &CancellationToken) -> Result<(), String> {
        let mut unstorable = BTreeSet::new();
        let mut found = self.first_round(stop, &mut unstorable).await?;
        let mut rounds = 1;
        while !found.is_empty() && rounds < ROUNDS && !stop.is_cancelled() {
            self.note_differences(&found, &unstorable, rounds);
            self.let_tee_catch_up().await;
            self.progress(0, Some(found.len() as u64), "looking again at what differed");
            found = self.look_again(found, stop, &mut unstorable).await?;
            rounds += 1;
        }
        self.note_differences(&found, &unstorable, rounds);
        if !stop.is_cancelled() {
            let before = self.state().verify.differences.clone();
            let told = follow(&before, &found, |key| self.parts.tee.digest(key));
            self.state().verify.differences = told;
        }
        Ok(())
    }

    fn note_differences(&self, found: &Differences, unstorable: &BTreeSet<Bytes>, rounds: u64) {
        let mut state = self.state();
        let verify = &mut state.verify;
        let count = |kind| found.values().filter(|kinds| kinds.contains(&kind)).count() as u64;
        verify.missing_target = count(Kind::MissingTarget);
        verify.different_target = count(Kind::DifferentTarget);
        verify.extra_target = count(Kind::ExtraTarget);
        verify.missing_database = count(Kind::MissingDatabase);
        verify.different_database = count(Kind::DifferentDatabase);
        verify.extra_database = count(Kind::ExtraDatabase);
        verify.unstorable = unstorable.len() as u64;
        verify.rounds = rounds;
    }

    async fn first_round(
        &self,
        stop: &CancellationToken,
        unstorable: &mut BTreeSet<Bytes>,
    ) -> Result<Differences, String> {
        let mut found = Differences::new();
        let text = |error: crate::sink::StoreError| error.to_string();
        let mut compared = 0;
        let total = {
            use std::sync::atomic::Ordering::Relaxed;
            let census = [&self.census.source, &self.census.target, &self.census.database];
            census.iter().map(|count| count.load(Relaxed)).sum::<u64>()
        };
        // Everything that the authority has, elsewhere.
        let mut scan = self.scan(self.parts.stores.authority_store());
        while let Some(keys) = scan.next().await.map_err(text)? {
            for batch in keys.chunks(FIRST_BATCH) {
                if stop.is_cancelled() {
                    return Ok(found);
                }
                compared += batch.len() as u64;
                let looked = self.look(batch, false).await?;
                collect(batch, looked, &mut found, unstorable);
                self.state().verify.compared = compared;
                self.progress(compared, Some(total), "comparing what the authority has");
            }
        }
        too_many(&found)?;

        // Everything that another store has, and the authority may not.
        let mut seen = compared;
        let mut scan = self.scan(self.parts.stores.other_store());
        while let Some(keys) = scan.next().await.map_err(text)? {
            seen += keys.len() as u64;
            self.progress(seen, Some(total), "comparing what the other Redis has");
            let sessions = keys.into_iter().map(|key| vec![key]).collect();
            self.find_extras(sessions, Kind::ExtraTarget, &mut found).await?;
        }
        // With `cached_db` a row without a Redis key is an ordinary thing.
        let sites = self.parts.rows.iter().flat_map(|rows| rows.sites());
        for site in sites.filter(|site| !site.are_djangos) {
            let mut after = String::new();
            while let Some(sessions) = site
                .page(&mut after, PAGE_LEN)
                .await
                .map_err(|error| error.to_string())?
            {
                seen += sessions.len() as u64;
                self.progress(seen, Some(total), "comparing what the database has");
                self.find_extras(sessions, Kind::ExtraDatabase, &mut found).await?;
                if stop.is_cancelled() {
                    break;
                }
            }
        }
        too_many(&found)?;
        Ok(found)
    }

    /// Of sessions with the keys that each may have, those that the authority has under none.
    async fn find_extras(&self, sessions: Vec<Vec<Bytes>>, kind: Kind, found: &mut Differences) -> Result<(), String> {
        let keys = self.present(sessions).await?;
        for (key, _) in keys.into_iter().filter(|(_, exists)| !exists) {
            let kinds = found.entry(Bytes::copy_from_slice(&key)).or_default();
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        Ok(())
    }

    async fn let_tee_catch_up(&self) {
        let end = std::time::Instant::now() + CATCH_UP;
        while !self.parts.tee.is_drained() && std::time::Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn look_again(
        &self,
        found: Differences,
        stop: &CancellationToken,
        unstorable: &mut BTreeSet<Bytes>,
    ) -> Result<Differences, String> {
        let keys: Vec<Bytes> = found.into_keys().collect();
        let mut still = Differences::new();
        let mut done = 0;
        let len = (keys.len() / LATER_BATCHES).clamp(LATER_BATCH, FIRST_BATCH);
        for batch in keys.chunks(len) {
            if stop.is_cancelled() {
                break;
            }
            let mut open = batch.to_vec();
            for _ in 0..MAX_LOOKS {
                let looked = self.look(&open, true).await?;
                let moving: Vec<Bytes> = open
                    .iter()
                    .zip(&looked)
                    .filter(|(_, looked)| looked.moving)
                    .map(|(key, _)| key.clone())
                    .collect();
                collect(&open, looked, &mut still, unstorable);
                if moving.is_empty() {
                    break;
                }
                open = moving;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            done += batch.len() as u64;
            self.progress(done, Some(keys.len() as u64), "looking again at what differed");
        }
        Ok(still)
    }

    /// Looks at `keys` in all stores. With `careful`, a key that moves meanwhile is told from one that differs.
    async fn look(&self, keys: &[Bytes], careful: bool) -> Result<Vec<Looked>, String> {
        let parts = &self.parts;
        let tee = &parts.tee;
        let text = |error: crate::sink::StoreError| error.to_string();
        let before: Vec<bool> = keys.iter().map(|key| careful && tee.is_unfinished(key)).collect();
        let authority = parts.stores.authority_store().read(keys).await.map_err(text)?;
        let other = parts.stores.other_store().read(keys).await.map_err(text)?;
        let rows = match &parts.rows {
            Some(rows) => Some(rows.fetch(keys).await.map_err(|error| error.to_string())?),
            None => None,
        };
        let again = if careful {
            Some(parts.stores.authority_store().read(keys).await.map_err(text)?)
        } else {
            None
        };
        let now = now_ms();
        let looked = keys.iter().enumerate().map(|(i, key)| {
            if before[i]
                || again
                    .as_ref()
                    .is_some_and(|again| again[i] != authority[i] || tee.is_unfinished(key))
            {
                return Looked {
                    moving: true,
                    ..Looked::default()
                };
            }
            let mut looked = Looked::default();
            looked.differences.extend(compare_redis(&authority[i], &other[i], now));
            if let (Some(all), Some(rows)) = (&parts.rows, &rows)
                && let Some((site, session_key)) = all.of(key)
                && is_storable(session_key)
            {
                let row = rows.get(key).filter(|row| row.expire_ms > now);
                compare_row(site, &authority[i], row, now, &mut looked);
            }
            looked
        });
        Ok(looked.collect())
    }
}

fn compare_row(site: &SiteRows, authority: &Stored, row: Option<&Row>, now: i64, looked: &mut Looked) {
    let kind = match (authority, row) {
        (Stored::Value { value, deadline }, Some(row)) => {
            let same_end = match deadline {
                Deadline::At(at) => (at - row.expire_ms).abs() <= DEADLINE_TOLERANCE_MS,
                Deadline::Never => true,
            };
            match site.codec.compare(value, &row.session_data) {
                Comparison::Same if same_end => return,
                Comparison::Same | Comparison::Different | Comparison::Unreadable(_) => Kind::DifferentDatabase,
                Comparison::Unstorable(_) => {
                    looked.unstorable = true;
                    Kind::ExtraDatabase
                }
            }
        }
        (Stored::Value { value, deadline }, None) => {
            if site.codec.encode(value, now / 1000).is_err() {
                looked.unstorable = true;
                return;
            }
            if ends_soon(*deadline, now) {
                return;
            }
            Kind::MissingDatabase
        }
        (_, Some(row)) if row.expire_ms > now + DEADLINE_TOLERANCE_MS && !site.are_djangos => Kind::ExtraDatabase,
        _ => return,
    };
    looked.differences.push(kind);
}

fn compare_redis(authority: &Stored, other: &Stored, now: i64) -> Option<Kind> {
    match (authority, other) {
        (
            Stored::Value { value, deadline },
            Stored::Value {
                value: copy,
                deadline: its,
            },
        ) => {
            let same_end = match (deadline, its) {
                (Deadline::At(a), Deadline::At(b)) => (a - b).abs() <= DEADLINE_TOLERANCE_MS,
                (a, b) => a == b,
            };
            (value != copy || !same_end).then_some(Kind::DifferentTarget)
        }
        (Stored::Value { deadline, .. }, _) if ends_soon(*deadline, now) => None,
        (Stored::Value { .. }, _) => Some(Kind::MissingTarget),
        (_, Stored::Value { deadline, .. }) if ends_soon(*deadline, now) => None,
        (_, Stored::Value { .. }) => Some(Kind::ExtraTarget),
        _ => None,
    }
}

/// A session about to end may be gone in one store a moment earlier than in another.
fn ends_soon(deadline: Deadline, now: i64) -> bool {
    matches!(deadline, Deadline::At(at) if at <= now + DEADLINE_TOLERANCE_MS)
}

fn collect(keys: &[Bytes], looked: Vec<Looked>, found: &mut Differences, unstorable: &mut BTreeSet<Bytes>) {
    let looked: FxHashMap<&Bytes, Looked> = keys.iter().zip(looked).collect();
    for (key, looked) in looked {
        // A slice of a whole reply would keep all of it in memory.
        let owned = || Bytes::copy_from_slice(key);
        if looked.unstorable {
            unstorable.insert(owned());
        }
        if !looked.differences.is_empty() && found.len() < MAX_DIFFERENCES {
            found.insert(owned(), looked.differences);
        }
    }
}

fn too_many(found: &Differences) -> Result<(), String> {
    if found.len() < MAX_DIFFERENCES {
        return Ok(());
    }
    Err(format!(
        "more than {MAX_DIFFERENCES} sessions differ: has backfill been run?"
    ))
}

/// All differences of a result.
fn differences(verify: &Verify) -> u64 {
    verify.missing_target
        + verify.different_target
        + verify.extra_target
        + verify.missing_database
        + verify.different_database
        + verify.extra_database
}
