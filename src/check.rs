//! The pre-flight: every endpoint, the settings, live keys and rows. Changes nothing but a probe key that it deletes.
//!
//! `sessionferry check` prints all of it; `run` asks the same before the first start of a move, so that a wrong
//! password or SECRET_KEY is found before Django is pointed at the proxy.

mod rights;
mod sessions;

use serde::Serialize;

pub use self::sessions::other_prefix;

use self::sessions::{live_sessions, strangers};

use crate::clock::now_ms;
use crate::session::KeyPatterns;
use crate::session::row::RowCodec;
use crate::sink::redis::{Role, Tells};
use crate::sink::{Database, DatabaseErrorKind, RedisStore, ServerFacts, StoreErrorKind};
use crate::tee::{Rows, SiteRows};

/// Live sessions and rows that are read.
const SAMPLE: usize = 1000;
/// Servers' clocks may be apart by this, ms: the stores must agree within 2 s on when a session ends.
const MAX_SKEW_MS: i64 = 1000;
const PROBE_KEY: &str = "sessionferry:probe";

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
    /// Single sessions that this is about.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sessions: Vec<Listed>,
}

impl Finding {
    pub fn new(level: Level, about: &'static str, detail: String) -> Finding {
        Finding {
            level,
            about,
            detail,
            stops: Stops::Nothing,
            sessions: Vec::new(),
        }
    }
}

/// One session, without its key or value.
#[derive(Clone, Debug, Serialize)]
pub struct Listed {
    /// The keyed digest that logs and the page show.
    pub session: String,
    pub reason: String,
    #[serde(rename = "type")]
    pub type_name: Option<String>,
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
    pub patterns: &'a KeyPatterns,
    /// `check --sessions`: look at each session of the sample, at rights and round trips. The key of the digests.
    pub deep: Option<[u8; 16]>,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, level: Level, about: &'static str, detail: impl Into<String>) {
        self.0.push(Finding::new(level, about, detail.into()));
    }

    fn stop(&mut self, stops: Stops, about: &'static str, detail: impl Into<String>) {
        self.0.push(Finding {
            level: Level::Red,
            about,
            detail: detail.into(),
            stops,
            sessions: Vec::new(),
        });
    }

    /// One finding with single sessions, where there are any.
    fn list(&mut self, sessions: Vec<Listed>) {
        if sessions.is_empty() {
            return;
        }
        self.add(Level::Yellow, "sessions", "those that no row can carry, by digest:");
        if let Some(finding) = self.0.last_mut() {
            finding.sessions = sessions;
        }
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
        for site in rows.sites() {
            let before = findings.0.len();
            database(&mut findings, site).await;
            if rows.sites().len() > 1 {
                let name = site.database.name();
                let of_site = findings.0.iter_mut().skip(before);
                of_site.for_each(|finding| finding.detail = format!("{name}: {}", finding.detail));
            }
            if subject.deep.is_some() {
                let next = "rows arrive that much later, and a cutover holds clients for as long";
                let ask = async || site.database.page("~", 1, now_ms()).await.is_ok();
                rights::round_trips(&mut findings, "database", next, ask).await;
            }
        }
    } else {
        findings.add(
            Level::Green,
            "database",
            "none is configured: sessions are kept in Redis alone",
        );
    }
    if subject.deep.is_some() {
        for (about, store, facts) in [("source", subject.source, &source), ("target", subject.target, &target)] {
            if facts.is_some() {
                rights::rights(&mut findings, about, store, subject.patterns).await;
                open(&mut findings, about, store);
            }
        }
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

/// Whether others on the way can read along.
fn open(findings: &mut Findings, about: &'static str, store: &RedisStore) {
    let endpoint = store.endpoint();
    if !endpoint.tls && !endpoint.is_local() {
        findings.add(
            Level::Yellow,
            about,
            "sessions go there without encryption: rediss:// is TLS, where the network is not your own",
        );
    }
}

async fn writable(findings: &mut Findings, target: &RedisStore) {
    match target.write_probe(PROBE_KEY).await {
        Ok(()) => findings.add(Level::Green, "target", "takes writes"),
        Err(error) => findings.add(Level::Red, "target", format!("does not take writes: {error}")),
    }
}

async fn database(findings: &mut Findings, site: &SiteRows) {
    let report = match site.database.inspect().await {
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
        if site.may_be_made {
            findings.add(
                Level::Green,
                "database",
                format!("{}: the table {} will be made", report.server, site.table),
            );
        } else {
            findings.stop(
                Stops::FirstStart,
                "database",
                format!(
                    "{}: there is no table {}: add django.contrib.sessions to INSTALLED_APPS and run \
                     `manage.py migrate sessions`, or name the right one as database.table",
                    report.server, site.table
                ),
            );
        }
        return;
    }
    findings.add(
        Level::Green,
        "database",
        format!("{}: the table {} is there", report.server, site.table),
    );
    for problem in &report.problems {
        findings.stop(Stops::FirstStart, "database", problem.clone());
    }
    for note in &report.notes {
        findings.add(Level::Yellow, "database", note.clone());
    }
    secret_key(findings, &site.database, &site.codec).await;
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
