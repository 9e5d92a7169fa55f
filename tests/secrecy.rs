//! Nothing that is shown, logged or left behind holds a session key, a value or a secret; docs/security.md says why.
#![cfg(feature = "net")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod support;

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use serde_json::json;
use support::{DatabaseKind, Hammer, Raw, Site, django::USUAL, eventually, session};

const SOURCE_PASSWORD: &str = "kestrel-source";
const TARGET_PASSWORD: &str = "kestrel-target";
/// Of every value.
const MARK: &str = "kestrel-in-a-cart";

/// All that the proxy has said, and says.
fn said(site: &Site) -> Vec<(String, String)> {
    let proxy = site.proxy();
    let mut all = vec![("the log".to_owned(), proxy.log_text())];
    for path in [
        "/api/v1/status",
        "/api/v1/operations",
        "/api/v1/operations/1",
        "/metrics",
        "/readyz",
        "/",
    ] {
        all.push((path.to_owned(), proxy.get(path).unwrap().1));
    }
    for words in [
        &["status"][..],
        &["status", "--json"],
        &["verify"],
        &["verify", "--json"],
        &["cutover", "--dry-run"],
    ] {
        all.push((words.join(" "), proxy.cli(words).said()));
    }
    all
}

#[test]
fn nothing_that_is_said_holds_a_session_or_a_secret() {
    let (source, target) = (["--requirepass", SOURCE_PASSWORD], ["--requirepass", TARGET_PASSWORD]);
    let mut site = Site::prepare_with(DatabaseKind::Postgres, USUAL, &source, &target);
    let key = site.django.save("source", &json!({"cart": MARK}));
    site.start_proxy(&["--log", "sessionferry=trace,warn"]);
    for kind in ["backfill", "verify"] {
        site.proxy().done(kind);
    }
    let name = session(&key);
    let mut client = Raw::connect(&site.proxy().address());
    assert_eq!(client.ask(&["AUTH", SOURCE_PASSWORD]), b"+OK\r\n");
    // What no row can carry, what is no session at all, what bypasses the proxy, what is refused by a store, and what is
    // there twice.
    let other = site.django.pickle_object("datetime");
    let broken = session(&"b".repeat(32));
    for words in [
        &[
            b"SET".as_slice(),
            session(&"c".repeat(32)).as_bytes(),
            &other,
            b"EX",
            b"500",
        ],
        &[b"SET".as_slice(), broken.as_bytes(), MARK.as_bytes(), b"EX", b"500"],
    ] {
        assert_eq!(client.ask(words), b"+OK\r\n");
    }
    site.source
        .ask::<()>(&["SET", &session(&"d".repeat(32)), MARK, "EX", "500"]);
    site.source.ask::<()>(&["DEL", &name]);
    client.ask(&["LPUSH", &session(&"e".repeat(32)), MARK]);
    client.ask(&["EVAL", "return redis.call('GET', KEYS[1])", "1", &broken]);
    client.ask(&["NOSUCHCOMMAND", &name, MARK]);
    client.ask(&["AUTH", "kestrel-wrong"]);
    site.target.ask::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    client.ask(&["AUTH", SOURCE_PASSWORD]);
    client.ask(&["SET", &session(&"f".repeat(32)), MARK, "EX", "500"]);
    std::thread::sleep(Duration::from_millis(500));
    site.target.ask::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    site.stop_database();
    client.ask(&["SET", &session(&"g".repeat(32)), MARK, "EX", "500"]);
    std::thread::sleep(Duration::from_millis(500));
    site.restart_database();
    site.source.restart_empty();
    eventually("it is noticed", Duration::from_secs(10), || {
        site.proxy().log_text().contains("was restarted")
    });
    site.proxy_mut().restart();
    site.proxy().settle();
    let mut hidden: Vec<String> = "bcdefg".chars().map(|letter| letter.to_string().repeat(32)).collect();
    let secrets = [
        SOURCE_PASSWORD,
        TARGET_PASSWORD,
        "kestrel-wrong",
        MARK,
        support::SECRET,
        &key,
    ];
    hidden.extend(secrets.map(str::to_owned));
    assert!(site.proxy().log_text().contains("DEBUG"), "it says little");
    for (place, text) in said(&site) {
        for secret in &hidden {
            let at = text.find(secret.as_str()).map(|at| &text[at.saturating_sub(200)..at]);
            assert!(
                at.is_none(),
                "{place} holds {secret}, after: {}",
                at.unwrap_or_default()
            );
        }
    }
}

/// `data_dir` has sessions in it.
#[test]
fn what_is_left_on_disk_is_for_its_owner_alone() {
    let mut site = Site::start(DatabaseKind::Sqlite);
    let mut hammer = Hammer::start("5.2", &site.proxy().url(), 3, &[]);
    site.proxy().done("backfill");
    hammer.stop();
    let folder = site.proxy().data_dir();
    let mut seen = 0;
    let mut look = vec![folder];
    while let Some(path) = look.pop() {
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        let wanted = if path.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode, wanted, "{}: {mode:o}", path.display());
        seen += 1;
        if path.is_dir() {
            look.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    assert!(seen > 3, "{seen}");
    assert!(site.proxy_mut().terminate().success());
}

#[test]
fn its_memory_is_not_dumped() {
    let site = Site::start(DatabaseKind::Sqlite);
    let limits = fs::read_to_string(Path::new("/proc").join(site.proxy().pid().to_string()).join("limits")).unwrap();
    let cores = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(
        cores.split_whitespace().skip(4).take(2).collect::<Vec<_>>(),
        ["0", "0"],
        "{cores}"
    );
}
