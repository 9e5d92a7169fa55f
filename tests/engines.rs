//! A site that changes its engine while it runs: some workers have `cache` already, or still, and some `cached_db`.
#![cfg(feature = "net")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod support;

use std::{thread::sleep, time::Duration};

use serde_json::json;
use support::{DatabaseKind, Hammer, Proxy, Raw, Site};

const BOTH: [&str; 4] = ["--engine", "both", "--ack", "all"];

/// A visitor's requests go to whichever worker is free.
fn visitors_of_both_kinds_of_workers(kind: DatabaseKind) {
    let mut site = Site::prepare(kind);
    let before = site.django.fill("source", 100, 3);
    site.start_proxy(&BOTH);
    for kind in ["backfill", "verify"] {
        site.proxy().done(kind);
    }
    let (url, database) = (site.proxy().url(), site.database_url());
    let engines = ["--engines", "cache,cached_db", "--logout", "0.2"];
    let mut hammer = Hammer::start_with("5.2", &url, &database, 10, &engines);
    for kind in ["cutover", "rollback"] {
        sleep(Duration::from_secs(1));
        site.proxy().done(kind);
    }
    sleep(Duration::from_millis(500));
    let counts = hammer.stop();
    hammer.expect_unnoticed(&counts);
    assert!(counts.logout > 0);
    site.expect_whole(&hammer);
    let django = site.django_of("5.2");
    for seen in django.load("cached_db", "proxy", &before) {
        assert!(seen.found, "{}", seen.key);
    }
    assert!(!django.load_one("cached_db", "proxy", &"n".repeat(32)).found);
    for server in [&site.source, &site.target] {
        assert_eq!(
            server.ask::<Vec<String>>(&["KEYS", "*cached_db*"]),
            Vec::<String>::new()
        );
    }
}

#[test]
fn visitors_of_both_kinds_of_workers_with_postgres() {
    visitors_of_both_kinds_of_workers(DatabaseKind::Postgres);
}

#[test]
fn visitors_of_both_kinds_of_workers_with_mariadb() {
    visitors_of_both_kinds_of_workers(DatabaseKind::MariaDb);
}

#[test]
fn what_one_kind_writes_the_other_reads_and_ends() {
    let mut site = Site::prepare(DatabaseKind::Sqlite);
    site.start_proxy(&BOTH);
    let django = site.django_of("5.2");
    let request = |what: &str, engine: &str, key: Option<&String>, n: u32| json!({"do": what, "engine": engine, "cache": "proxy", "data": {"n": n}, "key": key});
    for (first, second) in [("cache", "cached_db"), ("cached_db", "cache")] {
        let key: String = django.ask(&request("save", first, None, 1));
        let seen = django.load_one(second, "proxy", &key);
        assert!(seen.found && seen.exact.contains('1'), "{first}: {}", seen.exact);
        assert_eq!(django.ask::<String>(&request("save", second, Some(&key), 2)), key);
        let seen = django.load_one(first, "proxy", &key);
        assert!(seen.exact.contains('2'), "{second}: {}", seen.exact);
        let row = django.rows().into_iter().find(|row| row.key == key).unwrap();
        assert_eq!(row.exact, seen.exact);
        django.ask::<serde_json::Value>(&request("delete", second, Some(&key), 0));
        assert!(!django.load_one(first, "proxy", &key).found, "{second} has logged out");
        assert!(django.rows().iter().all(|row| row.key != key));
    }
}

/// The end of docs/after.md: with `cached_db` everywhere, the proxy needs to bring nothing together any more.
#[test]
fn when_the_last_worker_has_changed_everybody_is_still_there() {
    let mut site = Site::prepare(DatabaseKind::Sqlite);
    let keys = site.django.fill("source", 50, 8);
    let folder = tempfile::tempdir().unwrap();
    let mut options = site.options().args(&BOTH);
    options.data_dir = Some(folder.path().to_owned());
    site.proxy = Some(Proxy::start(options));
    for kind in ["backfill", "verify", "cutover", "finish"] {
        site.proxy().done(kind);
    }
    assert!(site.proxy_mut().terminate().success());
    let mut options = site
        .options()
        .args(&["--engine", "cached_db", "--database-mode", "verify"]);
    options.data_dir = Some(folder.path().to_owned());
    site.proxy = Some(Proxy::start(options));
    let django = site.django_of("5.2");
    for _ in 0..2 {
        for seen in django.load("cached_db", "proxy", &keys) {
            assert!(seen.found, "{}", seen.key);
        }
    }
    assert_eq!(django.rows().len(), keys.len());
}

/// One that read the row just before it was deleted puts it into its cache just after.
#[test]
fn a_logout_is_not_undone_by_who_had_read_the_row() {
    let mut site = Site::prepare(DatabaseKind::Sqlite);
    let keys = site.django.fill("source", 2, 5);
    site.start_proxy(&BOTH);
    let name = |engine: &str, key: &str| format!(":1:django.contrib.sessions.{engine}{key}");
    let mut client = Raw::connect(&site.proxy().address());
    let value = "v";
    assert_eq!(client.ask(&["DEL", &name("cache", &keys[0])]), b":1\r\n");
    client.ask(&["SET", &name("cached_db", &keys[0]), value, "EX", "99"]);
    client.ask(&["SETEX", &name("cached_db", &keys[0]), "99", value]);
    assert_eq!(client.ask(&["GET", &name("cache", &keys[0])]), b"$-1\r\n");
    // Who is still here, and who is new, is not concerned.
    for key in [&keys[1], &"n".repeat(32)] {
        assert_eq!(
            client.ask(&["SET", &name("cached_db", key), value, "EX", "99"]),
            b"+OK\r\n"
        );
        assert_eq!(client.ask(&["GET", &name("cache", key)]), b"$1\r\nv\r\n");
    }
}
