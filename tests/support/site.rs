//! A whole site: the old Redis, the new one, the database, Django, and the proxy between them.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use sessionferry::status::VerifyState;
use tempfile::TempDir;

use super::{Django, Hammer, MariaDb, PREFIX, Postgres, Proxy, ProxyOptions, RedisServer, SECRET, django};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DatabaseKind {
    Sqlite,
    Postgres,
    MariaDb,
}

enum Database {
    Sqlite(TempDir),
    Postgres(Postgres),
    MariaDb(MariaDb),
}

impl Database {
    fn start(kind: DatabaseKind) -> Database {
        match kind {
            DatabaseKind::Sqlite => Database::Sqlite(tempfile::tempdir().unwrap()),
            DatabaseKind::Postgres => Database::Postgres(Postgres::start()),
            DatabaseKind::MariaDb => Database::MariaDb(MariaDb::start()),
        }
    }

    fn url(&self) -> String {
        match self {
            Database::Sqlite(dir) => format!("sqlite://{}?mode=rwc", dir.path().join("site.db").display()),
            Database::Postgres(server) => server.url(),
            Database::MariaDb(server) => server.url(),
        }
    }
}

pub struct Site {
    // Dropped in this order: the proxy before what it talks to.
    pub proxy: Option<Proxy>,
    pub django: Django,
    pub source: RedisServer,
    pub target: RedisServer,
    database: Database,
    listen: Option<String>,
}

/// One session of a Redis: its bytes and when it ends.
#[derive(Clone, Debug)]
pub struct Held {
    pub value: Vec<u8>,
    /// Seconds since 1970; absent where it never ends.
    pub ends: Option<f64>,
}

/// How far apart two stores may be about the end of a session.
const APART: f64 = 2.0;

/// Django's SESSION_COOKIE_AGE.
const COOKIE_AGE: f64 = 1_209_600.0;

impl Site {
    /// Everything but the proxy; the table made as Django makes it.
    pub fn prepare(kind: DatabaseKind) -> Site {
        Site::prepare_with(kind, django::USUAL, &[], &[])
    }

    pub fn prepare_with(kind: DatabaseKind, version: &str, source: &[&str], target: &[&str]) -> Site {
        Site::prepare_django(kind, version, source, target, &[])
    }

    /// With further arguments of the driver.
    pub fn prepare_django(
        kind: DatabaseKind,
        version: &str,
        source: &[&str],
        target: &[&str],
        settings: &[&str],
    ) -> Site {
        let (source, target) = (RedisServer::start(source), RedisServer::start(target));
        Site::between(kind, version, source, target, settings)
    }

    /// Between these two.
    pub fn between(
        kind: DatabaseKind,
        version: &str,
        source: RedisServer,
        target: RedisServer,
        settings: &[&str],
    ) -> Site {
        let database = Database::start(kind);
        let caches = [("source", source.url()), ("target", target.url())];
        let django = Django::start_with(version, &caches, &database.url(), SECRET, settings);
        django.migrate();
        Site {
            proxy: None,
            django,
            source,
            target,
            database,
            listen: None,
        }
    }

    /// Everything, the proxy ready.
    pub fn start(kind: DatabaseKind) -> Site {
        let mut site = Site::prepare(kind);
        site.start_proxy(&[]);
        site
    }

    pub fn start_proxy(&mut self, args: &[&str]) {
        self.proxy = Some(Proxy::start(self.options().args(args)));
    }

    pub fn options(&self) -> ProxyOptions {
        ProxyOptions {
            source: self.source.url(),
            target: self.target.url(),
            database: self.database_url(),
            ..ProxyOptions::default()
        }
    }

    pub fn database_url(&self) -> String {
        self.database.url()
    }

    pub fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().unwrap()
    }

    pub fn proxy_mut(&mut self) -> &mut Proxy {
        self.proxy.as_mut().unwrap()
    }

    /// Django of that version, with the caches `source`, `target`, `proxy`, on this site's database.
    pub fn django_of(&self, version: &str) -> Django {
        self.django_with(version, &[], &[])
    }

    /// The same with further caches, and further arguments of the driver.
    pub fn django_with(&self, version: &str, more: &[(&str, String)], settings: &[&str]) -> Django {
        let caches = [
            ("proxy", self.proxy().url()),
            ("source", self.source.url()),
            ("target", self.target.url()),
        ];
        let caches = [&caches, more].concat();
        Django::start_with(version, &caches, &self.database_url(), SECRET, settings)
    }

    pub fn stop_database(&mut self) {
        match &mut self.database {
            Database::Sqlite(_) => panic!("SQLite has no server to stop"),
            Database::Postgres(server) => server.stop(),
            Database::MariaDb(server) => server.stop(),
        }
    }

    pub fn restart_database(&mut self) {
        match &mut self.database {
            Database::Sqlite(_) => panic!("SQLite has no server to start"),
            Database::Postgres(server) => server.restart(),
            Database::MariaDb(server) => server.restart(),
        }
    }

    /// Waits until the three stores hold the same sessions, and says how many; panics with the differences otherwise.
    ///
    /// The same: the same keys, the same bytes in both Redis, rows that real Django decodes to the same content, and ends
    /// within two seconds of each other. Sessions that no row can carry have none.
    pub fn expect_same_everywhere(&self) -> usize {
        if let Some(proxy) = &self.proxy {
            proxy.settle();
        }
        let began = Instant::now();
        loop {
            match self.differences() {
                Ok(count) => return count,
                Err(differences) if began.elapsed() > Duration::from_secs(10) => {
                    panic!(
                        "the stores differ ({}):\n{}",
                        differences.len(),
                        differences[..differences.len().min(10)].join("\n")
                    )
                }
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// All that the hammer's visitors were told is true in every store, and the stores agree, with no repair before.
    pub fn expect_whole(&self, hammer: &Hammer) {
        let proxy = self.proxy();
        proxy.settle();
        proxy.done("verify");
        let verify = proxy.status().verify;
        assert_eq!(verify.state, VerifyState::Clean, "{verify:#?}\n{}", proxy.log_tail());
        let django = self.django_of("5.2");
        for (engine, cache) in [("cache", "source"), ("cache", "target"), ("cached_db", "empty")] {
            django.check(&hammer.log(), engine, cache).expect_nothing_lost(cache);
        }
        self.expect_same_everywhere();
    }

    /// How many sessions there are, or what differs.
    pub fn differences(&self) -> Result<usize, Vec<String>> {
        let source = sessions(&self.source);
        let target = sessions(&self.target);
        let keys: Vec<String> = source.keys().cloned().collect();
        let seen = self.django.load("cache", "source", &keys);
        // A row that has ended is one that Django never looks at.
        let live = |row: &django::Seen| row.ends.unwrap() > now();
        let rows: BTreeMap<String, django::Seen> = self
            .django
            .rows()
            .into_iter()
            .filter(live)
            .map(|row| (row.key.clone(), row))
            .collect();
        let mut wrong = Vec::new();
        for key in target.keys().filter(|key| !source.contains_key(*key)) {
            wrong.push(format!("{key}: on the target, not on the source"));
        }
        for key in rows.keys().filter(|key| !source.contains_key(*key)) {
            wrong.push(format!("{key}: in the database, not on the source"));
        }
        for (key, seen) in keys.iter().zip(seen) {
            let held = &source[key];
            match target.get(key) {
                None => wrong.push(format!("{key}: not on the target")),
                Some(copy) if copy.value != held.value => wrong.push(format!("{key}: other bytes on the target")),
                Some(copy) if !close(copy.ends, held.ends) => {
                    wrong.push(format!(
                        "{key}: ends {:?} on the target, {:?} on the source",
                        copy.ends, held.ends
                    ));
                }
                Some(_) => {}
            }
            match (rows.get(key), seen.json) {
                (None, Some(content)) => wrong.push(format!("{key}: no row for {content:.100}")),
                (Some(row), Some(content)) if row.exact != content => {
                    wrong.push(format!(
                        "{key}: the row holds {:.100}, the source {content:.100}",
                        row.exact
                    ));
                }
                (Some(row), Some(_)) => {
                    let ends = held.ends.unwrap_or_else(|| now() + COOKIE_AGE);
                    // Without an end in Redis the row's depends on when it was written: give it the test's length.
                    let apart = if held.ends.is_some() { APART } else { 120.0 };
                    if (row.ends.unwrap() - ends).abs() > apart {
                        wrong.push(format!(
                            "{key}: ends {:?} in the row, {:?} on the source",
                            row.ends, held.ends
                        ));
                    }
                }
                (Some(row), None) => wrong.push(format!("{key}: a row for what no row can carry: {:.100}", row.exact)),
                (None, None) => {}
            }
        }
        if wrong.is_empty() { Ok(keys.len()) } else { Err(wrong) }
    }
}

fn close(left: Option<f64>, right: Option<f64>) -> bool {
    match (left, right) {
        (Some(left), Some(right)) => (left - right).abs() <= APART,
        (left, right) => left == right,
    }
}

pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// The sessions of a Redis by session key.
pub fn sessions(server: &RedisServer) -> BTreeMap<String, Held> {
    let mut connection = server.connection();
    let mut names: Vec<Vec<u8>> = Vec::new();
    let mut cursor = 0_u64;
    loop {
        let (next, some): (u64, Vec<Vec<u8>>) = redis::cmd("SCAN")
            .arg(cursor)
            .arg("MATCH")
            .arg(format!("{PREFIX}*"))
            .arg("COUNT")
            .arg(1_000)
            .query(&mut connection)
            .unwrap();
        names.extend(some);
        cursor = next;
        if cursor == 0 {
            break;
        }
    }
    let mut held = BTreeMap::new();
    for name in names {
        let (value, left): (Option<Vec<u8>>, i64) = redis::pipe()
            .cmd("GET")
            .arg(&name)
            .cmd("PTTL")
            .arg(&name)
            .query(&mut connection)
            .unwrap();
        if let Some(value) = value {
            let key = String::from_utf8(name[PREFIX.len()..].to_vec()).unwrap();
            if key.starts_with("d_db") {
                continue; // engine cached_db's name for a session, which begins like engine cache's
            }
            let ends = (left >= 0).then(|| now() + left as f64 / 1_000.0);
            held.insert(key, Held { value, ends });
        }
    }
    held
}
