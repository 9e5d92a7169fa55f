//! The stores against real servers, which each test starts on a free loopback port and stops by its process id.

#![allow(
    clippy::unwrap_used,
    reason = "clippy allows it in test functions, but not in the helpers around them"
)]

use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use sessionferry::net::Endpoint;
use sessionferry::session::Deadline;
use sessionferry::sink::redis::Role;
use sessionferry::sink::{Database, DatabaseErrorKind, DatabaseOptions, Row};
use sessionferry::sink::{RedisStore, RedisWrite, StoreErrorKind, Stored};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[path = "sinks/servers.rs"]
mod servers;
use servers::{Mariadb, Postgres, Redis};

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

fn store(url: &str) -> RedisStore {
    RedisStore::new(Endpoint::parse(url).unwrap())
}

fn put(key: &str, value: &str, deadline: Deadline) -> RedisWrite {
    RedisWrite::Put {
        key: Bytes::from(key.to_owned()),
        value: Bytes::from(value.to_owned()),
        deadline,
    }
}

fn keys(names: &[&str]) -> Vec<Bytes> {
    names.iter().map(|name| Bytes::from((*name).to_owned())).collect()
}

async fn raw(url: &str, words: &[&str]) -> redis::Value {
    let client = redis::Client::open(url).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let mut command = redis::cmd(words[0]);
    for word in &words[1..] {
        command.arg(word);
    }
    command.query_async(&mut connection).await.unwrap()
}

/// What every Redis must do, whatever its version lets us use. Expiry comes back at most `early_ms` early, and never late.
async fn check_redis_round_trip(store: &RedisStore, plain_url: &str, early_ms: i64) {
    let deadline = Deadline::At(now_ms() + 1_209_600_123);
    let mut writes: Vec<_> = (0..1200)
        .map(|n| put(&format!("s:{n}"), &format!("value {n}"), deadline))
        .collect();
    writes.push(put("s:never", "n", Deadline::Never));
    writes.push(put("s:binary", "a\0\r\nb", Deadline::At(now_ms() + 60_000)));
    store.write(&writes).await.unwrap();
    // Twice is the same as once, and the last word counts.
    store.write(&writes).await.unwrap();
    store
        .write(&[put("s:7", "old", Deadline::Never), put("s:7", "new", deadline)])
        .await
        .unwrap();

    let names: Vec<Bytes> = (0..1200).map(|n| Bytes::from(format!("s:{n}"))).collect();
    let found = store.read(&names).await.unwrap();
    assert_eq!(found.len(), 1200);
    for (n, stored) in found.into_iter().enumerate() {
        let value = if n == 7 { "new".to_owned() } else { format!("value {n}") };
        let Stored::Value {
            value: kept,
            deadline: Deadline::At(ms),
        } = stored
        else {
            panic!("{n}: {stored:?}")
        };
        assert_eq!(kept, value);
        let Deadline::At(wanted) = deadline else { unreachable!() };
        assert!(
            (wanted - early_ms..=wanted).contains(&ms),
            "expiry of {n}: {ms}, wanted {wanted}"
        );
    }

    raw(plain_url, &["RPUSH", "list", "x"]).await;
    let found = store
        .read(&keys(&["s:never", "list", "nothing", "s:binary"]))
        .await
        .unwrap();
    assert_eq!(
        found[0],
        Stored::Value {
            value: Bytes::from("n"),
            deadline: Deadline::Never
        }
    );
    assert_eq!(found[1], Stored::WrongType);
    assert_eq!(found[2], Stored::Absent);
    assert!(matches!(&found[3], Stored::Value { value, .. } if value == "a\0\r\nb"));

    // A deadline in the past leaves nothing behind, however far in the past.
    let past = [
        put("s:1", "late", Deadline::At(now_ms() - 1)),
        put("s:2", "late", Deadline::At(-5)),
    ];
    store.write(&past).await.unwrap();
    store
        .write(&[RedisWrite::Delete {
            key: Bytes::from("s:3"),
        }])
        .await
        .unwrap();
    let found = store.exists(&keys(&["s:1", "s:2", "s:3", "s:4"])).await.unwrap();
    assert_eq!(found, [false, false, false, true]);

    let mut scanned = HashSet::new();
    let mut cursor = 0;
    loop {
        let (next, page) = store.scan(cursor, "s:*", 100).await.unwrap();
        scanned.extend(page);
        cursor = next;
        if cursor == 0 {
            break;
        }
    }
    assert_eq!(scanned.len(), 1202 - 3);
    assert!(!scanned.contains(&b"list"[..]));
}

#[tokio::test]
async fn redis_keeps_values_and_expiry_to_the_millisecond() {
    let redis = Redis::start(&[]);
    let store = store(&format!("{}/3", redis.url()));
    check_redis_round_trip(&store, &format!("{}/3", redis.url()), 0).await;
}

#[tokio::test]
async fn redis_of_unknown_version_keeps_them_too() {
    // INFO is refused, so the version is not known and only what the oldest servers have is used.
    let redis = Redis::start(&[
        "--user",
        "old",
        "on",
        ">pw",
        "~*",
        "+@all",
        "-info",
        "-pexpiretime",
        "-client|kill",
    ]);
    let store = store(&redis.url().replace("redis://", "redis://old:pw@"));
    check_redis_round_trip(&store, &redis.url(), 20).await;
    // Written to the millisecond all the same: another connection that may ask the server sees it.
    let deadline = Deadline::At(now_ms() + 1_209_600_123);
    store.write(&[put("exact", "1", deadline)]).await.unwrap();
    let found = RedisStore::new(Endpoint::parse(&redis.url()).unwrap())
        .read(&keys(&["exact"]))
        .await
        .unwrap();
    assert_eq!(
        found,
        [Stored::Value {
            value: Bytes::from("1"),
            deadline
        }]
    );
    let facts = store.facts(now_ms()).await.unwrap();
    assert_eq!((facts.version, facts.role), (None, None));
    assert!(facts.dbsize.is_some());
}

#[tokio::test]
async fn redis_over_a_unix_socket() {
    let redis = Redis::start(&[]);
    let store = store(&format!("unix:{}?db=1", redis.socket().display()));
    store.write(&[put("a", "1", Deadline::Never)]).await.unwrap();
    let found = store.read(&keys(&["a"])).await.unwrap();
    assert_eq!(
        found,
        [Stored::Value {
            value: Bytes::from("1"),
            deadline: Deadline::Never
        }]
    );
    assert_eq!(
        raw(&format!("{}/1", redis.url()), &["DBSIZE"]).await,
        redis::Value::Int(1)
    );
}

#[tokio::test]
async fn redis_tells_its_facts() {
    let redis = Redis::start(&[
        "--maxmemory",
        "64mb",
        "--maxmemory-policy",
        "allkeys-lru",
        "--appendonly",
        "yes",
    ]);
    let store = store(&redis.url());
    store.write(&[put("a", "1", Deadline::Never)]).await.unwrap();
    let facts = store.facts(now_ms()).await.unwrap();
    assert!(facts.version >= Some((6, 0, 0)), "{facts:?}");
    assert!(facts.version_text.as_deref().unwrap().starts_with("redis "));
    assert_eq!((facts.role, facts.read_only), (Some(Role::Master), Some(false)));
    assert_eq!(
        (facts.maxmemory, facts.maxmemory_policy.as_deref()),
        (Some(64 << 20), Some("allkeys-lru"))
    );
    assert!(facts.used_memory > Some(100_000));
    assert_eq!((facts.aof, facts.rdb), (Some(true), Some(false)));
    assert_eq!(
        (facts.dbsize, facts.cluster_enabled, facts.loading),
        (Some(1), Some(false), Some(false))
    );
    assert_eq!(facts.run_id.unwrap().len(), 40);
    assert!(facts.skew_ms.unwrap().abs() < 500, "{:?}", facts.skew_ms);
    let late = store.facts(now_ms() - 90_000).await.unwrap();
    assert!((89_000..91_000).contains(&late.skew_ms.unwrap()), "{:?}", late.skew_ms);
}

#[tokio::test]
async fn a_read_only_replica_is_named_as_such() {
    let redis = Redis::start(&["--replicaof", "127.0.0.1 1"]);
    let store = store(&redis.url());
    let facts = store.facts(now_ms()).await.unwrap();
    assert_eq!((facts.role, facts.read_only), (Some(Role::Replica), Some(true)));
    let error = store.write_probe("probe").await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::ReadOnly, "{error}");
    let error = store.write(&[put("a", "1", Deadline::Never)]).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::ReadOnly, "{error}");
    // Reading goes on over the same connection.
    assert_eq!(store.read(&keys(&["a"])).await.unwrap(), [Stored::Absent]);
}

#[tokio::test]
async fn a_full_redis_is_named_as_such() {
    let redis = Redis::start(&["--maxmemory", "1mb", "--maxmemory-policy", "noeviction"]);
    let store = store(&redis.url());
    let big = "x".repeat(1 << 20);
    let mut kinds = Vec::new();
    for n in 0..4 {
        let outcome = store.write(&[put(&format!("k{n}"), &big, Deadline::Never)]).await;
        kinds.push(outcome.err().map(|error| error.kind()));
    }
    assert_eq!(kinds.last(), Some(&Some(StoreErrorKind::OutOfMemory)), "{kinds:?}");
    assert_eq!(
        store.write_probe("probe").await.unwrap_err().kind(),
        StoreErrorKind::OutOfMemory
    );
}

#[tokio::test]
async fn credentials_and_permissions_are_told_apart() {
    let redis = Redis::start(&[
        "--requirepass",
        "hunter2",
        "--user",
        "reader",
        "on",
        ">pw",
        "~s:*",
        "+@read",
        "+@connection",
        "+@transaction",
        "+time",
    ]);
    let url = |who: &str| redis.url().replace("redis://", &format!("redis://{who}"));
    for (who, kind) in [
        ("", StoreErrorKind::Auth),
        (":wrong@", StoreErrorKind::Auth),
        ("reader:hunter2@", StoreErrorKind::Auth),
    ] {
        let error = store(&url(who)).ping().await.unwrap_err();
        assert_eq!(error.kind(), kind, "{who}: {error}");
        let text = format!("{error} {error:?}");
        assert!(!text.contains("hunter2") && !text.contains("wrong@"), "{text}");
    }
    store(&url(":hunter2@")).ping().await.unwrap();
    let reader = store(&url("reader:pw@"));
    assert_eq!(reader.read(&keys(&["s:1"])).await.unwrap(), [Stored::Absent]);
    let error = reader
        .write(&[put("s:secret", "1", Deadline::Never)])
        .await
        .unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::NoPermission, "{error}");
    assert!(!error.to_string().contains("s:secret"));
    assert_eq!(
        reader.read(&keys(&["other"])).await.unwrap_err().kind(),
        StoreErrorKind::NoPermission
    );
    // A password for a server that has none.
    let open = Redis::start(&[]);
    let error = store(&open.url().replace("redis://", "redis://web:pw@"))
        .ping()
        .await
        .unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Auth, "{error}");
    let error = store(&format!("{}/9999", open.url())).ping().await.unwrap_err();
    assert!(error.to_string().contains("database number"), "{error}");
}

#[tokio::test]
async fn a_server_that_is_away_or_mute_is_told_apart_in_time() {
    let error = store(&format!("redis://127.0.0.1:{}", servers::free_port()))
        .ping()
        .await
        .unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Refused, "{error}");
    assert_eq!(
        store("unix:/nowhere/r.sock").ping().await.unwrap_err().kind(),
        StoreErrorKind::Refused
    );

    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mute_store = store(&format!("redis://{}", mute.local_addr().unwrap()));
    let began = std::time::Instant::now();
    // All who wait for the connection fail together, not one after the other.
    let pings = futures_util::future::join_all((0..5).map(|_| mute_store.ping())).await;
    assert!(
        pings
            .into_iter()
            .all(|ping| ping.unwrap_err().kind() == StoreErrorKind::Timeout)
    );
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_restarted_redis_is_connected_to_again() {
    let mut redis = Redis::start(&[]);
    let store = store(&redis.url());
    store.write(&[put("a", "1", Deadline::Never)]).await.unwrap();
    redis.stop();
    let kind = store.ping().await.unwrap_err().kind();
    assert!(
        matches!(kind, StoreErrorKind::Closed | StoreErrorKind::Refused),
        "{kind:?}"
    );
    redis.start_again();
    assert_eq!(store.read(&keys(&["a"])).await.unwrap(), [Stored::Absent]);
    // Where nothing was asked while it was away, no error is seen at all.
    redis.stop();
    redis.start_again();
    tokio::time::sleep(Duration::from_millis(50)).await;
    store.write(&[put("a", "1", Deadline::Never)]).await.unwrap();
}

/// A network that holds back what its first connection sends, once told to, until it is told to let go.
struct Relay {
    url: String,
    hold: tokio::sync::watch::Sender<bool>,
}

impl Relay {
    async fn start(port: u16) -> Relay {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        let (hold, held) = tokio::sync::watch::channel(false);
        tokio::spawn(async move {
            let mut held = Some(held);
            while let Ok((client, _)) = listener.accept().await {
                let server = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                tokio::spawn(Self::carry(client, server, held.take()));
            }
        });
        Relay { url, hold }
    }

    async fn carry(
        client: tokio::net::TcpStream,
        server: tokio::net::TcpStream,
        mut held: Option<tokio::sync::watch::Receiver<bool>>,
    ) {
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
        let mut buffer = vec![0; 1 << 16];
        while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
            if let Some(held) = &mut held {
                held.wait_for(|held| !held).await.unwrap();
            }
            let _late = to_server.write_all(&buffer[..count]).await;
        }
    }
}

#[tokio::test]
async fn a_write_that_timed_out_never_lands_on_a_newer_one() {
    let redis = Redis::start(&[]);
    let relay = Relay::start(redis.port()).await;
    let store = store(&relay.url);
    store.connect().await.unwrap();
    relay.hold.send(true).unwrap();
    let error = store.write(&[put("a", "older", Deadline::Never)]).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Timeout, "{error}");
    store.write(&[put("a", "newer", Deadline::Never)]).await.unwrap();
    relay.hold.send(false).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let found = store.read(&keys(&["a"])).await.unwrap();
    assert_eq!(
        found,
        [Stored::Value {
            value: Bytes::from("newer"),
            deadline: Deadline::Never
        }]
    );
}

// ---- databases ----

fn options(table: &str, use_tz: bool) -> DatabaseOptions {
    DatabaseOptions {
        table: table.to_owned(),
        use_tz,
        time_zone: chrono_tz::Tz::America__New_York,
    }
}

fn row(key: &str, data: &str, expire_ms: i64) -> Row {
    Row {
        session_key: key.to_owned(),
        session_data: data.to_owned(),
        expire_ms,
    }
}

fn names(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|key| (*key).to_owned()).collect()
}

/// What every database must do, with USE_TZ on and off. The table is there and empty.
async fn check_database_round_trip(url: &str, table: &str, use_tz: bool) {
    let database = Database::open(url, options(table, use_tz)).unwrap();
    let report = database.inspect().await.unwrap();
    assert!(report.exists && report.problems.is_empty(), "{report:?}");

    let now = now_ms();
    let ends = now + 1_209_600_000;
    // More than one statement's worth, with a value that is large.
    let mut rows: Vec<Row> = (0..2500)
        .rev()
        .map(|n| row(&format!("key{n:05}"), &format!("data {n}"), ends + n))
        .collect();
    rows[3].session_data = "x".repeat(700_000);
    database.apply(&rows, &[]).await.unwrap();
    database.apply(&rows, &names(&["nothing"])).await.unwrap();
    assert_eq!(database.count(now).await.unwrap(), 2500);

    // A row is replaced as a whole; expiry is kept to the millisecond; an expired row is kept but is not live.
    let changed = [
        row("key00001", "changed é", ends + 777),
        row("key00002", "gone", now - 1),
    ];
    database
        .apply(&changed, &names(&["key00003", "key00004"]))
        .await
        .unwrap();
    let asked = names(&["key00001", "key00002", "key00003", "key00005", "nothing"]);
    let found = database.fetch(&asked).await.unwrap();
    assert_eq!(found.len(), 3, "{found:?}");
    assert_eq!(found["key00001"], changed[0]);
    assert_eq!(found["key00002"], changed[1]);
    assert_eq!(found["key00005"], row("key00005", "data 5", ends + 5));
    let all: Vec<String> = (0..2500).map(|n| format!("key{n:05}")).collect();
    assert_eq!(database.fetch(&all).await.unwrap().len(), 2498);
    assert_eq!(database.count(now).await.unwrap(), 2497);

    let mut paged: Vec<String> = Vec::new();
    loop {
        let after = paged.last().cloned().unwrap_or_default();
        let page = database.page(&after, 400, now).await.unwrap();
        let end = page.len() < 400;
        paged.extend(page);
        if end {
            break;
        }
    }
    let wanted: Vec<String> = all
        .iter()
        .filter(|key| !["key00002", "key00003", "key00004"].contains(&key.as_str()))
        .cloned()
        .collect();
    assert_eq!(paged, wanted);

    let sample = database.sample(3).await.unwrap();
    assert_eq!(sample.len(), 3);
    assert_eq!(sample[0].session_key, "key02499");
    database.apply(&[], &all).await.unwrap();
    assert_eq!(database.count(0).await.unwrap(), 0);
}

/// Batches that overlap and want the rows in other orders must all get through, those of one store (they wait for each other)
/// and those of several (deadlocks and locks are tried again).
async fn check_writers_side_by_side(url: &str, table: &str) {
    let databases = [0, 1].map(|_| Database::open(url, options(table, true)).unwrap());
    let database = &databases[0];
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..6_i64 {
        let database = databases[writer as usize % databases.len()].clone();
        writers.spawn(async move {
            for round in 0..8_i64 {
                let rows: Vec<Row> = (0..60)
                    .filter(|n| (n + writer + round) % 3 != 0)
                    .map(|n| row(&format!("k{n}"), &format!("{writer}"), now_ms() + 60_000))
                    .collect();
                let gone: Vec<String> = (0..60)
                    .filter(|n| (n + writer + round) % 3 == 0)
                    .map(|n| format!("k{n}"))
                    .collect();
                database.apply(&rows, &gone).await?;
            }
            Ok::<(), sessionferry::sink::DatabaseError>(())
        });
    }
    while let Some(outcome) = writers.join_next().await {
        outcome.unwrap().unwrap();
    }
    database
        .apply(&[], &(0..60).map(|n| format!("k{n}")).collect::<Vec<_>>())
        .await
        .unwrap();
}

async fn check_missing_table(url: &str) {
    let database = Database::open(url, options("not_there", true)).unwrap();
    assert!(!database.inspect().await.unwrap().exists);
    for error in [
        database.apply(&[row("a", "b", 0)], &[]).await.unwrap_err(),
        database.apply(&[], &names(&["a"])).await.unwrap_err(),
        database.fetch(&names(&["a"])).await.map(drop).unwrap_err(),
        database.count(0).await.map(drop).unwrap_err(),
    ] {
        assert_eq!(error.kind(), DatabaseErrorKind::MissingTable, "{error}");
        assert!(error.to_string().contains("migrate"), "{error}");
    }
}

/// The table `wrong` lacks `session_data` and has no key.
async fn check_wrong_columns(url: &str) {
    let database = Database::open(url, options("wrong", true)).unwrap();
    let report = database.inspect().await.unwrap();
    assert!(report.exists && report.problems.len() == 3, "{report:?}");
    let error = database.apply(&[row("a", "b", 0)], &[]).await.unwrap_err();
    assert_eq!(error.kind(), DatabaseErrorKind::WrongColumns, "{error}");
}

/// A row that does not fit is an error of its own kind, and nothing of its batch is written.
async fn check_rejected(url: &str, table: &str) {
    let database = Database::open(url, options(table, true)).unwrap();
    let rows = [
        row("fits", "data", now_ms() + 1000),
        row(&"k".repeat(41), "data", now_ms() + 1000),
    ];
    let error = database.apply(&rows, &[]).await.unwrap_err();
    assert_eq!(error.kind(), DatabaseErrorKind::Rejected, "{error}");
    assert!(!error.to_string().contains("kkkk"), "{error}");
    assert!(database.fetch(&names(&["fits"])).await.unwrap().is_empty());
}

async fn check_refused(url: &str, kind: DatabaseErrorKind) {
    let database = Database::open(url, options("django_session", true)).unwrap();
    let error = database.inspect().await.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(!format!("{error} {error:?} {}", database.name()).contains("hunter2"));
}

/// 2026-07-15 12:34:56.789 UTC.
const SUMMER: i64 = 1_784_118_896_789;

mod sqlite {
    use super::*;
    use sqlx::{Connection, Executor, Row as _};

    fn url(dir: &tempfile::TempDir, mode: &str) -> String {
        format!("sqlite://{}/site.db?mode={mode}", dir.path().display())
    }

    #[tokio::test]
    async fn sqlite_round_trip() {
        for use_tz in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let database = Database::open(&url(&dir, "rwc"), options("django_session", use_tz)).unwrap();
            database.create_table().await.unwrap();
            database.create_table().await.unwrap();
            check_database_round_trip(&url(&dir, "rw"), "django_session", use_tz).await;
        }
    }

    #[tokio::test]
    async fn sqlite_table_and_dates_are_djangos_own() {
        let dir = tempfile::tempdir().unwrap();
        for (use_tz, text) in [
            (true, "2026-07-15 12:34:56.789000"),
            (false, "2026-07-15 08:34:56.789000"),
        ] {
            let database = Database::open(&url(&dir, "rwc"), options("django_session", use_tz)).unwrap();
            database.create_table().await.unwrap();
            database
                .apply(&[row("a", "b", SUMMER), row("whole", "b", SUMMER - 789)], &[])
                .await
                .unwrap();
            let mut raw = sqlx::SqliteConnection::connect(&url(&dir, "ro")).await.unwrap();
            let dates =
                "SELECT CAST(expire_date AS TEXT), typeof(expire_date) FROM django_session ORDER BY session_key";
            let dates = raw.fetch_all(dates).await.unwrap();
            assert_eq!(dates[0].get::<String, _>(0), text);
            assert_eq!(dates[0].get::<String, _>(1), "text");
            assert_eq!(dates[1].get::<String, _>(0), text[..19]);
            assert_eq!(database.fetch(&names(&["a"])).await.unwrap()["a"].expire_ms, SUMMER);
            let objects = raw
                .fetch_all("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY type DESC")
                .await
                .unwrap();
            assert_eq!(
                objects[0].get::<String, _>(0),
                "CREATE TABLE \"django_session\" (\"session_key\" varchar(40) NOT NULL PRIMARY KEY, \
                 \"session_data\" text NOT NULL, \"expire_date\" datetime NOT NULL)"
            );
            assert_eq!(
                objects[1].get::<String, _>(0),
                "CREATE INDEX \"django_session_expire_date_a5c62663\" ON \"django_session\" (\"expire_date\")"
            );
        }
    }

    #[tokio::test]
    async fn sqlite_errors_have_their_kinds() {
        let dir = tempfile::tempdir().unwrap();
        check_refused(&url(&dir, "rw"), DatabaseErrorKind::Refused).await;
        let mut raw = sqlx::SqliteConnection::connect(&url(&dir, "rwc")).await.unwrap();
        raw.execute("CREATE TABLE wrong (session_key varchar(40), expire_date bigint)")
            .await
            .unwrap();
        check_missing_table(&url(&dir, "rw")).await;
        check_wrong_columns(&url(&dir, "rw")).await;
        let database = Database::open(&url(&dir, "rw"), options("django_session", true)).unwrap();
        database.create_table().await.unwrap();
        let reader = Database::open(&url(&dir, "ro"), options("django_session", true)).unwrap();
        let error = reader.apply(&[row("a", "b", 0)], &[]).await.unwrap_err();
        assert_eq!(error.kind(), DatabaseErrorKind::ReadOnly, "{error}");
        std::fs::write(
            dir.path().join("text.db"),
            "this is no database, though it is long enough to be one".repeat(40),
        )
        .unwrap();
        check_refused(
            &url(&dir, "rw").replace("site.db", "text.db"),
            DatabaseErrorKind::Refused,
        )
        .await;
    }

    #[tokio::test]
    async fn sqlite_writers_side_by_side() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(&url(&dir, "rwc"), options("django_session", true)).unwrap();
        database.create_table().await.unwrap();
        check_writers_side_by_side(&url(&dir, "rw"), "django_session").await;
    }
}

mod postgres {
    use super::*;
    use sqlx::{Connection, Executor, Row as _};

    const TABLE: &str = "(session_key varchar(40) NOT NULL PRIMARY KEY, session_data text NOT NULL, \
                         expire_date timestamp with time zone NOT NULL)";

    async fn raw(server: &Postgres, sql: &str) -> sqlx::PgConnection {
        let mut raw = sqlx::PgConnection::connect(&server.url()).await.unwrap();
        raw.execute(sqlx::AssertSqlSafe(sql)).await.unwrap();
        raw
    }

    #[tokio::test]
    async fn postgres_round_trip() {
        let server = Postgres::shared();
        raw(
            &server,
            &format!("CREATE TABLE round {TABLE}; CREATE SCHEMA web; CREATE TABLE web.\"Sessions\" {TABLE}"),
        )
        .await;
        check_database_round_trip(&server.url(), "round", true).await;
        check_database_round_trip(&server.url(), "web.Sessions", false).await;
    }

    #[tokio::test]
    async fn postgres_dates_are_instants() {
        let server = Postgres::shared();
        let mut raw = raw(&server, &format!("CREATE TABLE dates {TABLE}")).await;
        for use_tz in [true, false] {
            let database = Database::open(&server.url(), options("dates", use_tz)).unwrap();
            database.apply(&[row("a", "b", SUMMER)], &[]).await.unwrap();
            let text = raw
                .fetch_one("SELECT (expire_date AT TIME ZONE 'UTC')::text FROM dates")
                .await
                .unwrap();
            assert_eq!(text.get::<String, _>(0), "2026-07-15 12:34:56.789");
        }
    }

    #[tokio::test]
    async fn postgres_errors_have_their_kinds() {
        let server = Postgres::shared();
        raw(
            &server,
            &format!("CREATE TABLE errors {TABLE}; CREATE TABLE wrong (session_key varchar(40), expire_date bigint)"),
        )
        .await;
        check_missing_table(&server.url()).await;
        check_wrong_columns(&server.url()).await;
        check_rejected(&server.url(), "errors").await;
        check_refused(
            &server.url().replace(servers::PASSWORD, "hunter2"),
            DatabaseErrorKind::Auth,
        )
        .await;
        let dead = format!("postgres://u:hunter2@127.0.0.1:{}/x", servers::free_port());
        check_refused(&dead, DatabaseErrorKind::Refused).await;
        let database = Database::open(&server.url(), options("errors", true)).unwrap();
        assert_eq!(
            database.create_table().await.unwrap_err().kind(),
            DatabaseErrorKind::MissingTable
        );
        // One who may only read.
        raw(
            &server,
            "CREATE ROLE reader LOGIN PASSWORD 'pw'; GRANT SELECT ON errors TO reader",
        )
        .await;
        let reader = server.url().replace("postgres:pass", "reader:pw");
        let reader = Database::open(&reader, options("errors", true)).unwrap();
        assert_eq!(reader.inspect().await.unwrap().problems.len(), 1);
        let error = reader.apply(&[row("a", "b", 0)], &[]).await.unwrap_err();
        assert_eq!(error.kind(), DatabaseErrorKind::NoPermission, "{error}");
        raw(
            &server,
            "GRANT INSERT, UPDATE ON errors TO reader; ALTER ROLE reader SET default_transaction_read_only = on",
        )
        .await;
        let error = reader.apply(&[row("a", "b", 0)], &[]).await.unwrap_err();
        assert_eq!(error.kind(), DatabaseErrorKind::ReadOnly, "{error}");
    }

    #[tokio::test]
    async fn postgres_writers_side_by_side() {
        let server = Postgres::shared();
        raw(&server, &format!("CREATE TABLE side {TABLE}")).await;
        check_writers_side_by_side(&server.url(), "side").await;
    }

    #[tokio::test]
    async fn postgres_connections_that_the_server_closed_are_made_anew() {
        let server = Postgres::shared();
        raw(
            &server,
            &format!("CREATE TABLE anew {TABLE}; CREATE ROLE anew SUPERUSER LOGIN PASSWORD 'pw'"),
        )
        .await;
        let database =
            Database::open(&server.url().replace("postgres:pass", "anew:pw"), options("anew", true)).unwrap();
        database.apply(&[row("a", "b", SUMMER)], &[]).await.unwrap();
        raw(
            &server,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'anew'",
        )
        .await;
        database.apply(&[row("a", "c", SUMMER)], &[]).await.unwrap();
        assert_eq!(database.fetch(&names(&["a"])).await.unwrap()["a"].session_data, "c");
    }
}

mod mariadb {
    use super::*;
    use sqlx::{Connection, Executor, Row as _};

    const TABLE: &str = "(session_key varchar(40) NOT NULL PRIMARY KEY, session_data longtext NOT NULL, \
                         expire_date datetime(6) NOT NULL)";

    async fn raw(server: &Mariadb, sql: &str) -> sqlx::MySqlConnection {
        let mut raw = sqlx::MySqlConnection::connect(&server.url()).await.unwrap();
        raw.execute(sqlx::AssertSqlSafe(sql)).await.unwrap();
        raw
    }

    #[tokio::test]
    async fn mariadb_round_trip() {
        let server = Mariadb::shared();
        raw(&server, &format!("CREATE TABLE round_trip {TABLE}")).await;
        for use_tz in [true, false] {
            check_database_round_trip(&server.url(), "round_trip", use_tz).await;
            check_database_round_trip(&server.url().replace("mysql:", "mariadb:"), "site.round_trip", use_tz).await;
        }
    }

    #[tokio::test]
    async fn mariadb_dates_follow_use_tz() {
        let server = Mariadb::shared();
        let mut raw = raw(&server, &format!("CREATE TABLE dates {TABLE}")).await;
        for (use_tz, wanted) in [
            (true, "2026-07-15 12:34:56.789000"),
            (false, "2026-07-15 08:34:56.789000"),
        ] {
            let database = Database::open(&server.url(), options("dates", use_tz)).unwrap();
            database.apply(&[row("a", "b", SUMMER)], &[]).await.unwrap();
            let text = raw
                .fetch_one("SELECT CAST(expire_date AS CHAR) FROM dates")
                .await
                .unwrap();
            assert_eq!(text.get::<String, _>(0), wanted);
            assert_eq!(database.fetch(&names(&["a"])).await.unwrap()["a"].expire_ms, SUMMER);
        }
    }

    #[tokio::test]
    async fn mariadb_keys_that_differ_in_case_are_not_mixed_up() {
        let server = Mariadb::shared();
        raw(
            &server,
            &format!("CREATE TABLE letter_case {TABLE} CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci"),
        )
        .await;
        let database = Database::open(&server.url(), options("letter_case", true)).unwrap();
        assert_eq!(database.inspect().await.unwrap().notes.len(), 1);
        database
            .apply(
                &[
                    row("abc", "lower", SUMMER),
                    row("Def", "mixed", SUMMER),
                    row("b", "b", SUMMER),
                ],
                &[],
            )
            .await
            .unwrap();
        database.apply(&[], &names(&["ABC", "def"])).await.unwrap();
        assert_eq!(
            database.count(0).await.unwrap(),
            3,
            "another session's row is not deleted"
        );
        assert!(database.fetch(&names(&["ABC", "def"])).await.unwrap().is_empty());
        assert_eq!(database.page("", 2, 0).await.unwrap(), ["abc", "b"]);
        assert_eq!(database.page("b", 2, 0).await.unwrap(), ["Def"]);
    }

    #[tokio::test]
    async fn mariadb_errors_have_their_kinds() {
        let server = Mariadb::shared();
        raw(&server, &format!("CREATE TABLE errors {TABLE}")).await;
        raw(
            &server,
            "CREATE TABLE wrong (session_key varchar(40), expire_date bigint)",
        )
        .await;
        check_missing_table(&server.url()).await;
        check_wrong_columns(&server.url()).await;
        check_rejected(&server.url(), "errors").await;
        check_refused(
            &server.url().replace(servers::PASSWORD, "hunter2"),
            DatabaseErrorKind::Auth,
        )
        .await;
        let dead = format!("mysql://u:hunter2@127.0.0.1:{}/x", servers::free_port());
        check_refused(&dead, DatabaseErrorKind::Refused).await;
        raw(&server, "CREATE TABLE myisam (session_key varchar(40) NOT NULL PRIMARY KEY, session_data longtext NOT NULL, expire_date datetime NOT NULL) ENGINE=MyISAM").await;
        let report = Database::open(&server.url(), options("myisam", true))
            .unwrap()
            .inspect()
            .await
            .unwrap();
        assert!(
            report.problems.len() == 1 && report.problems[0].contains("InnoDB"),
            "{report:?}"
        );
        assert!(
            report.notes.iter().any(|note| note.contains("whole seconds")),
            "{report:?}"
        );
    }

    #[tokio::test]
    async fn mariadb_writers_side_by_side() {
        let server = Mariadb::shared();
        raw(&server, &format!("CREATE TABLE side {TABLE}")).await;
        check_writers_side_by_side(&server.url(), "side").await;
    }
}

#[tokio::test]
async fn a_mute_database_is_a_timeout() {
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = mute.local_addr().unwrap();
    let began = std::time::Instant::now();
    let (postgres, mysql) = (
        format!("postgres://u:hunter2@{address}/x"),
        format!("mysql://u:hunter2@{address}/x"),
    );
    futures_util::join!(
        check_refused(&postgres, DatabaseErrorKind::Timeout),
        check_refused(&mysql, DatabaseErrorKind::Timeout)
    );
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

#[tokio::test]
async fn mariadb_read_only_is_reported() {
    let server = Mariadb::alone();
    let mut raw = <sqlx::MySqlConnection as sqlx::Connection>::connect(&server.url())
        .await
        .unwrap();
    for sql in [
        "CREATE TABLE t (session_key varchar(40) PRIMARY KEY, session_data longtext NOT NULL, expire_date datetime(6) NOT NULL)",
        "CREATE USER 'web'@'%' IDENTIFIED BY 'pw'",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON site.* TO 'web'@'%'",
        "SET GLOBAL read_only = 1",
    ] {
        sqlx::Executor::execute(&mut raw, sql).await.unwrap();
    }
    let database = Database::open(&server.url().replace("ferry:pass", "web:pw"), options("t", true)).unwrap();
    assert!(database.inspect().await.unwrap().problems[0].contains("read-only"));
    let error = database.apply(&[row("a", "b", 0)], &[]).await.unwrap_err();
    assert_eq!(error.kind(), DatabaseErrorKind::ReadOnly, "{error}");
}

#[test]
fn a_url_or_a_table_name_that_cannot_be_is_refused_without_its_secret() {
    for (url, table) in [
        ("http://u:hunter2@h/x", "django_session"),
        ("postgres://u:hunter2@h:port/x", "django_session"),
        ("mysql://u:hunter2@h:99999/x", "django_session"),
        ("hunter2", "django_session"),
        ("postgres://u:hunter2@h/x", "django_session; drop"),
    ] {
        let error = Database::open(url, options(table, true)).err().unwrap();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    }
}
