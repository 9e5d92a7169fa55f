//! A rehearsal: real sessions to the new Redis and into a table of its own, compared, measured, and removed again.
//!
//! Towards the source it only reads. What it writes to the target is written where nothing is, ends by itself soon, and is
//! removed where it is still what was written; rows go into a table that is not Django's.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::check::{Finding, Level};
use crate::clock::now_ms;
use crate::session::expiry::expire_ms;
use crate::session::key::is_storable;
use crate::session::{Comparison, Deadline, KeyPatterns};
use crate::sink::{NewKey, RedisStore, RedisWrite, Row, Stored};
use crate::tee::{Rows, SiteRows};

/// The name of the table that rows are written to.
pub const SCRATCH_TABLE: &str = "sessionferry_rehearsal";
/// Sessions that are copied where it is not said how many.
pub const SAMPLE: usize = 10_000;
/// Copies end by themselves after this, should they not be removed, ms.
const KEPT_MS: i64 = 10 * 60 * 1000;
/// Keys per SCAN.
const SCAN_COUNT: usize = 1000;
/// Sessions that are copied at once.
const BATCH: usize = 500;
/// Round trips that are measured.
const PINGS: usize = 20;

/// What is rehearsed.
pub struct Subject<'a> {
    pub source: &'a RedisStore,
    pub target: &'a RedisStore,
    pub patterns: &'a KeyPatterns,
    /// With [`SCRATCH_TABLE`] in place of Django's, whose name comes with each.
    pub rows: Option<(&'a Rows, Vec<String>)>,
    /// How many sessions; `None`: all.
    pub limit: Option<usize>,
    pub data_dir: &'a Path,
}

/// How much was done of something, and how long that took.
#[derive(Default)]
struct Pace {
    count: u64,
    took: Duration,
}

impl Pace {
    fn add(&mut self, count: usize, since: Instant) {
        self.count += count as u64;
        self.took += since.elapsed();
    }

    /// Seconds for one.
    fn each(&self) -> f64 {
        self.took.as_secs_f64() / self.count.max(1) as f64
    }

    fn per_second(&self) -> u64 {
        (1.0 / self.each().max(1e-9)) as u64
    }
}

#[derive(Default)]
struct Tally {
    looked_at: usize,
    all: bool,
    read: Pace,
    written: Pace,
    rows: Pace,
    /// What this batch has written to the target, and is to be removed.
    made: Vec<NewKey>,
    copied: u64,
    removed: u64,
    /// The target had them already.
    there: u64,
    different: u64,
    rows_different: u64,
    unstorable: BTreeMap<String, u64>,
    /// Why no rows are written.
    no_rows: Option<String>,
}

/// Copies, compares, measures and removes; answers what was found. `stop` ends the copying, not the removing.
pub async fn rehearse(subject: &Subject<'_>, stop: &CancellationToken) -> Vec<Finding> {
    let mut tally = Tally::default();
    if let Some((rows, likes)) = &subject.rows {
        for (site, like) in rows.sites().iter().zip(likes) {
            if let Err(error) = site.database.create_like(like).await {
                tally.no_rows = Some(error.to_string());
            }
        }
    }
    let ended = tokio::select! {
        ended = copy(subject, &mut tally) => ended,
        () = stop.cancelled() => Err("stopped on request".into()),
    };
    // What a batch had written that came to no end.
    let removed = match remove_copies(subject, &mut tally).await {
        Ok(()) => drop_tables(subject).await,
        failed => failed,
    };
    let hold = if ended.is_ok() { hold(subject).await } else { None };
    report(subject, &tally, ended, removed, hold)
}

async fn copy(subject: &Subject<'_>, tally: &mut Tally) -> Result<(), String> {
    let limit = subject.limit.unwrap_or(usize::MAX);
    for glob in subject.patterns.scan_globs() {
        let mut cursor = 0;
        loop {
            let found = subject.source.scan(cursor, &glob, SCAN_COUNT).await;
            let (next, mut keys) = found.map_err(|error| error.to_string())?;
            keys.retain(|key| subject.patterns.session_key(key).is_some());
            // It may name one twice.
            keys.sort_unstable();
            keys.dedup();
            keys.truncate(limit - tally.looked_at);
            tally.looked_at += keys.len();
            for batch in keys.chunks(BATCH) {
                copy_batch(subject, batch, tally).await?;
            }
            if tally.looked_at >= limit {
                return Ok(());
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
    }
    tally.all = true;
    Ok(())
}

async fn copy_batch(subject: &Subject<'_>, keys: &[Bytes], tally: &mut Tally) -> Result<(), String> {
    let began = Instant::now();
    let stored = subject.source.read(keys).await.map_err(|error| error.to_string())?;
    tally.read.add(keys.len(), began);
    let ends = now_ms() + KEPT_MS;
    let sessions: Vec<(NewKey, Deadline)> = keys
        .iter()
        .zip(stored)
        .filter_map(|(key, stored)| {
            let Stored::Value { value, deadline } = stored else {
                return None;
            };
            let soon = match deadline {
                Deadline::At(at) => Deadline::At(at.min(ends)),
                Deadline::Never => Deadline::At(ends),
            };
            let new = NewKey {
                key: Bytes::copy_from_slice(key),
                value,
                deadline: soon,
            };
            (!soon.is_past(now_ms())).then_some((new, deadline))
        })
        .collect();
    write_target(subject, &sessions, tally).await?;
    if tally.no_rows.is_none()
        && let Some((rows, _)) = &subject.rows
    {
        for (place, site) in rows.sites().iter().enumerate() {
            let own = sessions.iter().filter_map(|(new, deadline)| {
                let (found, session_key) = rows.place(&new.key)?;
                (found == place).then_some((session_key, &new.value, *deadline))
            });
            write_rows(site, own.collect(), tally).await?;
        }
    }
    remove_copies(subject, tally).await
}

async fn write_target(subject: &Subject<'_>, sessions: &[(NewKey, Deadline)], tally: &mut Tally) -> Result<(), String> {
    let new: Vec<NewKey> = sessions.iter().map(|(new, _)| new.clone()).collect();
    let began = Instant::now();
    let made = subject
        .target
        .write_new(&new, now_ms())
        .await
        .map_err(|error| error.to_string())?;
    tally.written.add(new.len(), began);
    let (made, there): (Vec<_>, Vec<_>) = new.into_iter().zip(made).partition(|(_, made)| *made);
    tally.there += there.len() as u64;
    let made: Vec<NewKey> = made.into_iter().map(|(new, _)| new).collect();
    let keys: Vec<Bytes> = made.iter().map(|new| new.key.clone()).collect();
    tally.copied += made.len() as u64;
    tally.made.clone_from(&made);
    let copies = subject.target.read(&keys).await.map_err(|error| error.to_string())?;
    let differs = |(new, copy): &(&NewKey, Stored)| !matches!(copy, Stored::Value { value, .. } if *value == new.value);
    tally.different += made.iter().zip(copies).filter(differs).count() as u64;
    Ok(())
}

async fn write_rows(site: &SiteRows, sessions: Vec<(&str, &Bytes, Deadline)>, tally: &mut Tally) -> Result<(), String> {
    let (now, began) = (now_ms(), Instant::now());
    let mut made = Vec::with_capacity(sessions.len());
    for (session_key, value, deadline) in sessions.into_iter().filter(|(key, ..)| is_storable(key)) {
        match site.codec.encode(value, now.div_euclid(1000)) {
            Ok(session_data) => made.push((
                Row {
                    session_key: session_key.to_owned(),
                    session_data,
                    expire_ms: expire_ms(deadline, now, site.cookie_age),
                },
                value,
            )),
            Err(reason) => *tally.unstorable.entry(reason.to_string()).or_default() += 1,
        }
    }
    let rows: Vec<Row> = made.iter().map(|(row, _)| row.clone()).collect();
    let keys: Vec<String> = rows.iter().map(|row| row.session_key.clone()).collect();
    site.database
        .apply(&rows, &[])
        .await
        .map_err(|error| error.to_string())?;
    tally.rows.add(rows.len(), began);
    let found = site.database.fetch(&keys).await.map_err(|error| error.to_string())?;
    let same = |(row, value): &&(Row, &Bytes)| {
        let found = found.get(&row.session_key);
        found.is_some_and(|found| matches!(site.codec.compare(value, &found.session_data), Comparison::Same))
    };
    tally.rows_different += (made.len() - made.iter().filter(same).count()) as u64;
    Ok(())
}

/// Removes what the batch has written, where it is still that.
async fn remove_copies(subject: &Subject<'_>, tally: &mut Tally) -> Result<(), String> {
    let keys: Vec<Bytes> = tally.made.iter().map(|new| new.key.clone()).collect();
    let now = subject.target.read(&keys).await.map_err(|error| error.to_string())?;
    let is_own =
        |(new, stored): &(&NewKey, Stored)| matches!(stored, Stored::Value { value, .. } if *value == new.value);
    let own = tally.made.iter().zip(now).filter(is_own);
    let deletes: Vec<RedisWrite> = own
        .map(|(new, _)| RedisWrite::Delete { key: new.key.clone() })
        .collect();
    subject
        .target
        .write(&deletes)
        .await
        .map_err(|error| error.to_string())?;
    tally.removed += deletes.len() as u64;
    tally.made.clear();
    Ok(())
}

async fn drop_tables(subject: &Subject<'_>) -> Result<(), String> {
    for site in subject.rows.iter().flat_map(|(rows, _)| rows.sites()) {
        site.database.drop_table().await.map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// What a hold is made of: the last replies of the one, the last writes to the other, and the state on disk.
async fn hold(subject: &Subject<'_>) -> Option<Duration> {
    let (from, to) = (round_trip(subject.source).await?, round_trip(subject.target).await?);
    let began = Instant::now();
    let probe = subject
        .data_dir
        .parent()
        .unwrap_or(subject.data_dir)
        .join(".sessionferry-rehearsal");
    let synced = std::fs::File::create(&probe).and_then(|file| file.sync_all());
    let disk = began.elapsed();
    let _ = std::fs::remove_file(&probe);
    synced.ok()?;
    Some(2 * from + 2 * to + 2 * disk)
}

async fn round_trip(store: &RedisStore) -> Option<Duration> {
    let mut took = Vec::with_capacity(PINGS);
    for _ in 0..PINGS {
        let began = Instant::now();
        store.ping().await.ok()?;
        took.push(began.elapsed());
    }
    took.sort_unstable();
    took.get(PINGS / 2).copied()
}

fn report(
    subject: &Subject<'_>,
    tally: &Tally,
    ended: Result<(), String>,
    removed: Result<(), String>,
    hold: Option<Duration>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |level, about, detail: String| findings.push(Finding::new(level, about, detail));
    let good = |clean: bool| if clean { Level::Green } else { Level::Red };
    if let Err(error) = &ended {
        let detail = format!("it came to an end before its time: {error}");
        add(Level::Red, "rehearsal", detail);
    }
    let extent = if tally.all { "all that there are" } else { "a sample" };
    let some = if tally.looked_at == 0 { Level::Red } else { Level::Green };
    add(
        some,
        "sessions",
        format!(
            "{} read at the source, {extent}: {} a second",
            tally.looked_at,
            tally.read.per_second()
        ),
    );
    let there = match tally.there {
        0 => String::new(),
        there => format!("; {there} more were there already, and were left alone"),
    };
    add(
        good(tally.different == 0),
        "target",
        format!(
            "{} written and read back, {} differ: {} a second{there}",
            tally.copied,
            tally.different,
            tally.written.per_second()
        ),
    );
    match (&subject.rows, &tally.no_rows) {
        (None, _) => {}
        (Some(_), Some(error)) => add(
            Level::Yellow,
            "database",
            format!(
                "no table {SCRATCH_TABLE} could be made, so no rows were tried ({error}); give this user CREATE for the rehearsal, or trust `check --sessions`"
            ),
        ),
        (Some(_), None) => add(
            good(tally.rows_different == 0),
            "database",
            format!(
                "{} rows written to {SCRATCH_TABLE} and decoded, {} differ: {} a second",
                tally.rows.count,
                tally.rows_different,
                tally.rows.per_second()
            ),
        ),
    }
    for (reason, count) in &tally.unstorable {
        add(
            Level::Yellow,
            "unstorable",
            format!("{count} sessions that no row can carry: {reason}"),
        );
    }
    let each = tally.read.each() + tally.written.each().max(tally.rows.each());
    let thousand = Duration::from_secs_f64(each * 1e6);
    add(
        Level::Green,
        "backfill",
        format!(
            "about {:.0} s for each million sessions while nobody else uses the source; it gives way to others, and takes longer then",
            thousand.as_secs_f64()
        ),
    );
    if let Some(hold) = hold {
        add(
            Level::Green,
            "cutover",
            format!(
                "clients will be held for some {:.0} ms: two round trips to each Redis, and what the disk takes to sync twice",
                hold.as_secs_f64() * 1e3 + 1.0
            ),
        );
    }
    match removed {
        Ok(()) => add(
            Level::Green,
            "removed",
            format!("{} copies at the target, and the rows", tally.removed),
        ),
        Err(error) => add(
            Level::Red,
            "removed",
            format!(
                "not all could be removed ({error}); copies at the target end by themselves within 10 minutes, the table {SCRATCH_TABLE} can be dropped"
            ),
        ),
    }
    findings
}
