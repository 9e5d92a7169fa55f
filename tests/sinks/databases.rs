//! The session table on each of the databases.

use std::time::Duration;

use sessionferry::sink::{Database, DatabaseErrorKind, DatabaseOptions, Row};

use super::now_ms;
use super::servers::{self, Mariadb, Postgres};

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

    check_newest_first(&database, &all, ends).await;
    database.apply(&[], &all).await.unwrap();
    assert_eq!(database.count(0).await.unwrap(), 0);
}

/// Many rows that end at once: pages end among them, and none may be met twice or never.
async fn check_newest_first(database: &Database, keys: &[String], ends: i64) {
    let end = |number: usize| ends + (number % 20) as i64;
    let rows: Vec<Row> = keys
        .iter()
        .enumerate()
        .map(|(n, key)| row(key, "data", end(n)))
        .collect();
    database.apply(&rows, &[]).await.unwrap();
    let (mut met, mut before) = (Vec::new(), None);
    loop {
        // What ends first of all is as good as gone.
        let page = database.newest(before.as_ref(), 70, ends).await.unwrap();
        met.extend(page.iter().map(|place| place.session_key.clone()));
        if page.len() < 70 {
            break;
        }
        before = page.into_iter().last();
    }
    let mut wanted: Vec<(i64, &String)> = keys.iter().enumerate().map(|(n, key)| (end(n), key)).collect();
    wanted.retain(|(end, _)| *end > ends);
    wanted.sort_unstable_by(|a, b| b.cmp(a));
    assert!(
        met.iter().eq(wanted.iter().map(|(_, key)| *key)),
        "{} of {}",
        met.len(),
        wanted.len()
    );
}

/// Batches that overlap and want the rows in other orders must all get through, those of one store (they wait for each
/// other) and those of several (deadlocks and locks are tried again).
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
