//! The pre-flight: every endpoint, the settings, live keys and rows. Changes nothing but a probe key that it deletes.
//!
//! `sessionferry check` prints all of it; `run` asks the same before the first start of a move, so that a wrong
//! password or SECRET_KEY is found before Django is pointed at the proxy.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;

use crate::clock::now_ms;
use crate::session::KeyPatterns;
use crate::session::row::RowCodec;
use crate::sink::redis::{Role, Tells};
use crate::sink::{Database, DatabaseErrorKind, RedisStore, ServerFacts, StoreErrorKind, Stored};
use crate::tee::Rows;

/// Live sessions and rows that are read.
const SAMPLE: usize = 1000;
/// SCAN calls spent on finding them: enough for a few hundred thousand keys of other kinds.
const MAX_SCANS: usize = 300;
const SCAN_COUNT: usize = 1000;
/// Servers' clocks may be apart by this, ms: the stores must agree within 2 s on when a session ends.
const MAX_SKEW_MS: i64 = 1000;
const PROBE_KEY: &str = "sessionferry:probe";
/// What any Django session key holds, whatever prefix and version stand in front of it.
const ANY_SESSION: &str = "*django.contrib.sessions.*";

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    Green,
    /// Works, but the operator should know.
    Yellow,
    /// The move cannot work, or would lose sessions.
    Red,
}

/// One thing that was asked, and the answer.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub level: Level,
    pub about: &'static str,
    pub detail: String,
    #[serde(skip)]
    pub stops: Stops,
}

/// What a finding means for `run`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stops {
    /// It goes on, and says so: clients are served, and a cutover is refused while it holds.
    Nothing,
    /// The first start of a move, where it is most likely a mistake; later, what is away may come back.
    FirstStart,
    /// Every start: going on would harm.
    AnyStart,
}

/// What is looked at.
pub struct Subject<'a> {
    pub source: &'a RedisStore,
    pub target: &'a RedisStore,
    /// The source is the authority: what only the target holds is a surprise.
    pub before_cutover: bool,
    pub rows: Option<&'a Rows>,
    pub table: &'a str,
    /// A missing table is made (SQLite).
    pub makes_table: bool,
    pub patterns: &'a KeyPatterns,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, level: Level, about: &'static str, detail: impl Into<String>) {
        self.0.push(Finding {
            level,
            about,
            detail: detail.into(),
            stops: Stops::Nothing,
        });
    }

    fn stop(&mut self, stops: Stops, about: &'static str, detail: impl Into<String>) {
        self.0.push(Finding {
            level: Level::Red,
            about,
            detail: detail.into(),
            stops,
        });
    }
}

/// Asks everything.
pub async fn preflight(subject: &Subject<'_>) -> Vec<Finding> {
    let mut findings = Findings::default();
    let source = redis(&mut findings, "source", subject.source).await;
    let target = redis(&mut findings, "target", subject.target).await;
    if let (Some(source), Some(target)) = (&source, &target) {
        if source.run_id.is_some() && source.run_id == target.run_id {
            findings.stop(
                Stops::AnyStart,
                "target",
                "source and target are the same server: give the new Redis as target.url",
            );
        }
        if let (Some(used), Some(max)) = (source.used_memory, target.maxmemory.filter(|&max| max > 0))
            && max < used
        {
            findings.add(
                Level::Yellow,
                "target",
                format!("its maxmemory ({max} bytes) is less than what the source uses ({used} bytes)"),
            );
        }
    }
    if target.is_some() {
        writable(&mut findings, subject.target).await;
    }
    if let Some(rows) = subject.rows {
        database(&mut findings, subject, rows).await;
    } else {
        findings.add(
            Level::Green,
            "database",
            "none is configured: sessions are kept in Redis alone",
        );
    }
    if source.is_some() {
        live_sessions(&mut findings, subject).await;
    }
    if source.is_some() && target.is_some() && subject.before_cutover {
        strangers(&mut findings, subject).await;
    }
    findings.0
}

/// What the old Redis alone says of itself, for who has no other store yet.
pub async fn of_source(source: &RedisStore) -> Vec<Finding> {
    let mut findings = Findings::default();
    redis(&mut findings, "source", source).await;
    findings.0
}

async fn redis(findings: &mut Findings, about: &'static str, store: &RedisStore) -> Option<ServerFacts> {
    // INFO may be refused by an ACL; whether the server answers at all is another question.
    let asked = match store.ping().await {
        Ok(()) => store.facts(now_ms()).await,
        Err(error) => Err(error),
    };
    let facts = match asked {
        Ok(facts) => facts,
        Err(error) if error.kind() == StoreErrorKind::Auth => {
            findings.stop(
                Stops::AnyStart,
                about,
                format!("{error}: check user and password in {about}.url"),
            );
            return None;
        }
        Err(error) => {
            findings.stop(Stops::FirstStart, about, error.to_string());
            return None;
        }
    };
    let version = facts.version_text.clone().unwrap_or_else(|| "unknown version".into());
    findings.add(Level::Green, about, format!("{} answers ({version})", store.endpoint()));
    if facts.version.is_some_and(|version| version < (6, 0, 0)) {
        findings.add(
            Level::Yellow,
            about,
            format!("Redis {version} is older than 6: clients that speak RESP3 will fail"),
        );
    }
    if facts.cluster_enabled == Some(true) {
        findings.add(Level::Red, about, "it is a cluster, which this version cannot move");
    }
    if facts.role == Some(Role::Replica) {
        findings.add(
            Level::Red,
            about,
            format!("it is a replica: give the address of its master as {about}.url"),
        );
    }
    if let Some(policy) = facts.maxmemory_policy.as_deref()
        && facts.maxmemory.is_some_and(|max| max > 0)
        && policy != "noeviction"
    {
        findings.add(
            Level::Yellow,
            about,
            format!("maxmemory-policy is {policy}: it may drop sessions when memory is short, which logs users out"),
        );
    }
    if facts.tells == Tells::Nothing {
        findings.add(
            Level::Yellow,
            about,
            "it does not tell of writes that bypass the proxy, and only verify finds them: allow +client|tracking \
             (Redis 6 and later), or set notify-keyspace-events to KA",
        );
    }
    if let Some(skew) = facts.skew_ms.filter(|skew| skew.abs() > MAX_SKEW_MS) {
        findings.add(
            Level::Yellow,
            about,
            format!(
                "its clock is {skew} ms off this machine's: sessions would end that much early or late; set up NTP"
            ),
        );
    }
    if about == "target" && facts.aof == Some(false) && facts.rdb == Some(false) {
        findings.add(
            Level::Yellow,
            about,
            "it keeps nothing on disk (no AOF, no RDB): its restart would log everyone out",
        );
    }
    Some(facts)
}

async fn writable(findings: &mut Findings, target: &RedisStore) {
    match target.write_probe(PROBE_KEY).await {
        Ok(()) => findings.add(Level::Green, "target", "takes writes"),
        Err(error) => findings.add(Level::Red, "target", format!("does not take writes: {error}")),
    }
}

async fn database(findings: &mut Findings, subject: &Subject<'_>, rows: &Rows) {
    let report = match rows.database.inspect().await {
        Ok(report) => report,
        Err(error) if error.kind() == DatabaseErrorKind::Auth => {
            findings.stop(
                Stops::AnyStart,
                "database",
                format!("{error}: check user and password in database.url"),
            );
            return;
        }
        // Opened without `mode=rwc`, or not made yet: the table's absence is what the operator should hear of.
        Err(error) => {
            findings.stop(Stops::FirstStart, "database", error.to_string());
            return;
        }
    };
    if !report.exists {
        if subject.makes_table {
            findings.add(
                Level::Green,
                "database",
                format!("{}: the table {} will be made", report.server, subject.table),
            );
        } else {
            findings.stop(
                Stops::FirstStart,
                "database",
                format!(
                    "{}: there is no table {}: add django.contrib.sessions to INSTALLED_APPS and run \
                     `manage.py migrate sessions`, or name the right one as database.table",
                    report.server, subject.table
                ),
            );
        }
        return;
    }
    findings.add(
        Level::Green,
        "database",
        format!("{}: the table {} is there", report.server, subject.table),
    );
    for problem in &report.problems {
        findings.stop(Stops::FirstStart, "database", problem.clone());
    }
    for note in &report.notes {
        findings.add(Level::Yellow, "database", note.clone());
    }
    secret_key(findings, &rows.database, &rows.codec).await;
}

/// Django answers a bad signature with an empty session: a wrong SECRET_KEY would log everyone out in silence.
async fn secret_key(findings: &mut Findings, database: &Database, codec: &RowCodec) {
    let sample = match database.sample(SAMPLE as u32).await {
        Ok(sample) => sample,
        Err(error) => {
            findings.add(Level::Red, "secret_key", format!("cannot read rows: {error}"));
            return;
        }
    };
    let bad = sample
        .iter()
        .filter(|row| {
            codec
                .payload(&row.session_data)
                .is_err_and(|error| error.is_bad_signature())
        })
        .count();
    match (sample.len(), bad) {
        (0, _) => findings.add(
            Level::Yellow,
            "secret_key",
            "the table holds no row to check SECRET_KEY against: make sure that it is the site's own",
        ),
        (rows, 0) => findings.add(Level::Green, "secret_key", format!("{rows} rows read, all signatures are good")),
        (rows, bad) if bad == rows => findings.stop(
            Stops::AnyStart,
            "secret_key",
            format!(
                "none of {rows} rows in the table carries a signature of this SECRET_KEY: django.secret_key or django.salt \
                 is not the site's, or SECRET_KEY_FALLBACKS lacks an older one; Django would log everyone out"
            ),
        ),
        (rows, bad) => findings.add(
            Level::Yellow,
            "secret_key",
            format!("{bad} of {rows} rows carry a signature of another key: does SECRET_KEY_FALLBACKS lack one?"),
        ),
    }
}

/// Up to [`SAMPLE`] session keys; and whether all keys were looked at.
async fn sample(store: &RedisStore, patterns: &KeyPatterns) -> Result<(Vec<Bytes>, bool), String> {
    let mut keys = Vec::new();
    for glob in patterns.scan_globs() {
        let mut cursor = 0;
        for _ in 0..MAX_SCANS {
            let (next, found) = store
                .scan(cursor, &glob, SCAN_COUNT)
                .await
                .map_err(|error| error.to_string())?;
            keys.extend(found.into_iter().filter(|key| patterns.session_key(key).is_some()));
            cursor = next;
            if cursor == 0 || keys.len() >= SAMPLE {
                break;
            }
        }
        if cursor != 0 {
            return Ok((keys, false));
        }
    }
    Ok((keys, true))
}

async fn live_sessions(findings: &mut Findings, subject: &Subject<'_>) {
    let (keys, all) = match sample(subject.source, subject.patterns).await {
        Ok(found) => found,
        Err(error) => {
            findings.add(
                Level::Red,
                "sessions",
                format!("cannot look for sessions at the source: {error}"),
            );
            return;
        }
    };
    if keys.is_empty() {
        no_sessions(findings, subject, all).await;
        return;
    }
    let stored = match subject.source.read(&keys).await {
        Ok(stored) => stored,
        Err(error) => {
            findings.add(
                Level::Red,
                "sessions",
                format!("cannot read sessions at the source: {error}"),
            );
            return;
        }
    };
    let (mut read, mut wrong_type) = (0, 0);
    let mut unstorable = BTreeMap::<String, u64>::new();
    for stored in &stored {
        match stored {
            Stored::Absent => {}
            Stored::WrongType => wrong_type += 1,
            Stored::Value { value, .. } => {
                read += 1;
                if let Some(Err(reason)) = subject.rows.map(|rows| rows.codec.encode(value, now_ms() / 1000)) {
                    *unstorable.entry(reason.to_string()).or_default() += 1;
                }
            }
        }
    }
    let more = if all { "" } else { " (a sample)" };
    findings.add(
        Level::Green,
        "sessions",
        format!("{read} live sessions read at the source{more}"),
    );
    if wrong_type > 0 {
        findings.add(
            Level::Yellow,
            "sessions",
            format!(
                "{wrong_type} keys look like sessions and are no strings: is django.session_key_patterns too wide?"
            ),
        );
    }
    for (reason, count) in unstorable {
        findings.add(
            Level::Yellow,
            "sessions",
            format!(
                "{count} of {read} sessions cannot be stored in a row ({reason}); they are copied to the target alone"
            ),
        );
    }
}

/// Nothing matches: what is there instead?
async fn no_sessions(findings: &mut Findings, subject: &Subject<'_>, all: bool) {
    let wanted = subject.patterns.scan_globs().join(", ");
    let other = other_prefix(subject.source).await;
    let level = if other.is_none() { Level::Yellow } else { Level::Red };
    let detail = match other {
        Some(prefix) => format!(
            "no key at the source matches {wanted}, but others start with {prefix}: set django.key_prefix, \
             django.key_version and django.engine to match"
        ),
        None if all => format!(
            "no key at the source matches {wanted}: a site without sessions yet, or sessions in another database number \
             (redis://…/N), or under another prefix"
        ),
        None => format!("no key that matches {wanted} was found among many others at the source"),
    };
    findings.add(level, "sessions", detail);
}

/// How Django session keys of any site start there, if some are found: the text up to the engine's name, which is no
/// secret.
pub async fn other_prefix(store: &RedisStore) -> Option<String> {
    const MIDDLE: &str = "django.contrib.sessions.";
    let (_, found) = store.scan(0, ANY_SESSION, 100 * SCAN_COUNT).await.ok()?;
    let text = String::from_utf8_lossy(found.first()?).into_owned();
    let end = text.find(MIDDLE)? + MIDDLE.len();
    let engine = if text[end..].starts_with("cached_db") {
        "cached_db"
    } else {
        "cache"
    };
    Some(format!("{}{engine}", &text[..end]))
}

/// Sessions at the target that the source does not have.
async fn strangers(findings: &mut Findings, subject: &Subject<'_>) {
    let result = async {
        let (keys, all) = sample(subject.target, subject.patterns).await?;
        let known = subject.source.exists(&keys).await.map_err(|error| error.to_string())?;
        Ok::<_, String>((keys.len(), known.iter().filter(|known| !**known).count(), all))
    };
    match result.await {
        Ok((0, _, _)) => findings.add(Level::Green, "target", "holds no sessions yet"),
        Ok((seen, 0, _)) => findings.add(Level::Green, "target", format!("{seen} sessions there, all known to the source")),
        Ok((seen, strange, all)) => findings.add(
            Level::Red,
            "target",
            format!(
                "it holds {strange}{} sessions that the source does not have (of {seen} looked at): another site's, or left from \
                 an earlier attempt; use an empty Redis or another database number, or delete them there first",
                if all { "" } else { " or more" }
            ),
        ),
        Err(error) => findings.add(Level::Red, "target", format!("cannot look for sessions there: {error}")),
    }
}
