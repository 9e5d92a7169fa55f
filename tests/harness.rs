//! The tests' own tools, without the proxy: they find right what is right, and they notice each thing that can go wrong.
#![cfg(feature = "net")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod support;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    thread::sleep,
    time::Duration,
};

use serde_json::json;
use support::{DatabaseKind, Hammer, Load, RedisServer, Site, eventually, redis_server::ask, session, site::sessions};

fn fails(check: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(check)).is_err()
}

#[test]
fn every_database_starts_stops_and_is_read_by_django() {
    for kind in [DatabaseKind::Sqlite, DatabaseKind::Postgres, DatabaseKind::MariaDb] {
        let mut site = Site::prepare(kind);
        let save = json!({"do": "save", "engine": "cached_db", "cache": "empty", "data": {"ü": 1}});
        let key: String = site.django.ask(&save);
        assert!(site.django.load_one("cached_db", "empty", &key).found);
        if kind != DatabaseKind::Sqlite {
            site.stop_database();
            assert!(
                site.django
                    .try_ask::<serde_json::Value>(&json!({"do": "rows"}))
                    .is_err()
            );
            site.restart_database();
        }
        assert_eq!(site.django.rows().len(), 1, "{kind:?}");
    }
}

#[test]
fn a_difference_between_the_stores_is_noticed() {
    let site = Site::prepare(DatabaseKind::Sqlite);
    let (mut source, mut target) = (site.source.connection(), site.target.connection());
    let mut keys = Vec::new();
    for number in 0..10 {
        // The row, the source and the target as a perfect proxy would leave them.
        let data = json!({"n": number, "name": "Zoë"});
        let key: String = site
            .django
            .ask(&json!({"do": "save", "engine": "db", "cache": "empty", "data": data, "expiry": 5_000}));
        let value = site
            .django
            .pickle(&json!({"n": number, "name": "Zoë", "_session_expiry": 5_000}));
        for connection in [&mut source, &mut target] {
            redis::cmd("SET")
                .arg(session(&key))
                .arg(&value)
                .arg("EX")
                .arg(5_000)
                .exec(connection)
                .unwrap();
        }
        keys.push(key);
    }
    assert_eq!(site.differences(), Ok(10));
    let object = site.django.pickle_object("datetime");
    let (name, held) = (session(&keys[0]), sessions(&site.source)[&keys[0]].value.clone());
    let put = |value: &[u8], seconds: u64, connection: &mut redis::Connection| {
        redis::cmd("SET")
            .arg(&name)
            .arg(value)
            .arg("EX")
            .arg(seconds)
            .exec(connection)
            .unwrap();
    };
    let noticed = |what: &str| {
        assert_eq!(
            site.differences().unwrap_err().len(),
            1,
            "{what}: {:?}",
            site.differences()
        )
    };
    ask::<()>(&mut target, &["DEL", &name]);
    noticed("missing on the target");
    put(&held, 5_010, &mut target);
    noticed("ends later on the target");
    ask::<()>(&mut target, &["PERSIST", &name]);
    noticed("never ends on the target");
    put(&[&held, b"x".as_slice()].concat(), 5_000, &mut target);
    noticed("other bytes on the target");
    put(&held, 5_000, &mut target);
    assert_eq!(site.differences(), Ok(10));
    ask::<()>(&mut target, &["SET", &session(&"e".repeat(32)), "x"]);
    noticed("extra on the target");
    ask::<()>(&mut target, &["DEL", &session(&"e".repeat(32))]);
    for connection in [&mut source, &mut target] {
        put(&object, 5_000, connection);
    }
    noticed("a row for what no row can carry");
    for connection in [&mut source, &mut target] {
        put(&held, 6_000, connection);
    }
    noticed("the row ends earlier");
    for connection in [&mut source, &mut target] {
        put(&site.django.pickle(&json!({"n": 77})), 5_000, connection);
    }
    noticed("the row holds something else");
    for connection in [&mut source, &mut target] {
        put(&held, 5_000, connection);
    }
    assert_eq!(site.differences(), Ok(10));
    site.django.sql(&format!(
        "UPDATE django_session SET session_key = '{}' WHERE session_key = '{}'",
        "e".repeat(32),
        keys[0]
    ));
    assert_eq!(site.differences().unwrap_err().len(), 2, "one row missing, one extra");
}

#[test]
fn a_lost_write_an_undone_logout_and_a_failed_command_are_noticed_by_the_load() {
    let mut server = RedisServer::start(&[]);
    let load = Load::start(&server.address(), 50);
    // Enough for each client to have logged out once.
    eventually("there was some load", Duration::from_secs(20), || {
        load.commands() > 10_000
    });
    let report = load.stop();
    assert!(report.wrong.is_empty(), "{:?}", report.wrong);
    let mut connection = server.connection();
    report.check("plain Redis", &mut connection);
    let alive = report.sessions.iter().find(|told| !told.logged_out).unwrap();
    let gone = report.sessions.iter().find(|told| told.logged_out).unwrap();
    let (alive, gone) = (session(&alive.key), session(&gone.key));
    let value: Vec<u8> = ask(&mut connection, &["GET", &alive]);
    redis::cmd("SET").arg(&gone).arg(&value).exec(&mut connection).unwrap();
    assert!(fails(
        || report.check("a Redis with an undone logout", &mut server.connection())
    ));
    ask::<()>(&mut connection, &["DEL", &gone, &alive]);
    assert!(fails(
        || report.check("a Redis that lost a session", &mut server.connection())
    ));
    redis::cmd("SET")
        .arg(&alive)
        .arg(support::load::pickled(1))
        .exec(&mut connection)
        .unwrap();
    assert!(fails(
        || report.check("a Redis that lost a write", &mut server.connection())
    ));
    // The server forgets everything under the clients' hands.
    let load = Load::start(&server.address(), 10);
    sleep(Duration::from_millis(300));
    server.ask::<()>(&["FLUSHALL"]);
    sleep(Duration::from_millis(300));
    assert!(!load.stop().wrong.is_empty());
    let load = Load::start(&server.address(), 10);
    sleep(Duration::from_millis(300));
    server.stop();
    // Each client has to get as far as its next command.
    sleep(Duration::from_millis(500));
    assert_eq!(load.stop().wrong.len(), 10);
}

#[test]
fn a_lost_session_an_old_one_and_an_undone_logout_are_noticed_by_djangos_visitors() {
    let site = Site::prepare(DatabaseKind::Sqlite);
    let mut hammer = Hammer::start("5.2", &site.source.url(), 20, &["--logout", "0.2"]);
    sleep(Duration::from_millis(500));
    let counts = hammer.stop();
    hammer.expect_unnoticed(&counts);
    let django = &site.django;
    django
        .check(&hammer.log(), "cache", "source")
        .expect_nothing_lost("plain Redis");
    assert!(fails(|| django
        .check(&hammer.log(), "cache", "target")
        .expect_nothing_lost("an empty Redis")));
    assert!(fails(|| django
        .check(&hammer.log(), "cached_db", "empty")
        .expect_nothing_lost("an empty table")));
    let gone = hammer.events("logout").pop().unwrap()["key"]
        .as_str()
        .unwrap()
        .to_owned();
    let value = django.pickle(&json!({"n": 1}));
    redis::cmd("SET")
        .arg(session(&gone))
        .arg(&value)
        .exec(&mut site.source.connection())
        .unwrap();
    assert_eq!(django.check(&hammer.log(), "cache", "source").revived.len(), 1);
    // Under their hands: first each session goes back in time, then all are gone.
    let mut hammer = Hammer::start("5.2", &site.source.url(), 20, &["--logout", "0", "--think", "20"]);
    let mut connection = site.source.connection();
    for key in sessions(&site.source).keys() {
        redis::cmd("SET")
            .arg(session(key))
            .arg(&value)
            .arg("EX")
            .arg(500)
            .exec(&mut connection)
            .unwrap();
    }
    sleep(Duration::from_millis(500));
    site.source.ask::<()>(&["FLUSHALL"]);
    sleep(Duration::from_millis(500));
    let counts = hammer.stop();
    assert!(counts.stale > 0 && counts.lost > 0, "{counts:?}");
    assert!(fails(|| hammer.expect_unnoticed(&counts)));
}
