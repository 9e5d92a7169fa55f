//! `check --sessions`: what it says before anything is moved, and what it never says.
#![cfg(feature = "net")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod support;

use serde_json::{Value, json};
use support::{DatabaseKind, PREFIX, Proxy, ProxyOptions, Site};

/// All findings, and the exit code.
fn check(options: ProxyOptions) -> (i32, Vec<Value>) {
    let answer = Proxy::unstarted(options).configured("check", &["--sessions", "--json"]);
    let code = answer.code;
    let found = answer.json();
    (code, found["findings"].as_array().unwrap().clone())
}

/// The one finding about this that holds these words.
fn found<'a>(findings: &'a [Value], about: &str, words: &str) -> &'a Value {
    let holds = |finding: &&Value| finding["about"] == about && finding["detail"].as_str().unwrap().contains(words);
    let all: Vec<&Value> = findings.iter().filter(holds).collect();
    assert_eq!(all.len(), 1, "{about}: {words}: {findings:#?}");
    all[0]
}

#[test]
fn what_no_row_can_carry_is_named_by_digest_reason_and_type_before_the_move() {
    let site = Site::prepare(DatabaseKind::Sqlite);
    let kept = site.django.save("source", &json!({"secret": "tell nobody"}));
    let opaque = site.django.pickle_object("datetime");
    let key = format!("{PREFIX}{}", "u".repeat(32));
    let () = redis::cmd("SET")
        .arg(&key)
        .arg(&opaque[..])
        .query(&mut site.source.connection())
        .unwrap();
    // What begins like a session, and is none.
    let _: () = site.source.ask(&["SET", &format!("{PREFIX}short"), "x"]);
    let (code, findings) = check(site.options());
    assert_eq!(code, 0, "{findings:#?}");
    let listed = &found(&findings, "sessions", "by digest")["sessions"][0];
    assert!(
        listed["reason"]
            .as_str()
            .unwrap()
            .contains(listed["type"].as_str().unwrap()),
        "{listed}"
    );
    assert!(listed["session"].as_str().unwrap().len() >= 8);
    found(&findings, "sessions", "2 as pickle");
    found(&findings, "sessions", "1 keys begin like sessions and are none");
    found(&findings, "rows", "0 have a row that holds the same, 0 another, 1 none");
    for about in ["source", "target"] {
        found(&findings, about, "may do all that a move needs");
        found(&findings, about, "a round trip takes");
    }
    found(&findings, "database", "a round trip takes");
    let said = json!(findings).to_string();
    for secret in ["tell nobody", kept.as_str(), &"u".repeat(32)] {
        assert!(!said.contains(secret), "{secret} is shown: {said}");
    }
}

#[test]
fn the_digests_are_those_that_the_proxy_shows() {
    let mut site = Site::prepare(DatabaseKind::Sqlite);
    let opaque = site.django.pickle_object("datetime");
    let key = format!("{PREFIX}{}", "u".repeat(32));
    site.start_proxy(&[]);
    let () = redis::cmd("SET")
        .arg(&key)
        .arg(&opaque[..])
        .query(&mut site.source.connection())
        .unwrap();
    site.proxy().done("backfill");
    let proxy = site.proxy();
    let answer = proxy.configured(
        "check",
        &["--sessions", "--json", "--data-dir", proxy.data_dir().to_str().unwrap()],
    );
    let findings = answer.expect(0).json()["findings"].as_array().unwrap().clone();
    let digest = found(&findings, "sessions", "by digest")["sessions"][0]["session"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        proxy.log_text().contains(&digest),
        "{digest} is not in the log:\n{}",
        proxy.log_text()
    );
}

#[test]
fn each_command_that_the_user_may_not_send_is_named() {
    let user = "--user ferry on >pass ~* &* +@all -scan -pexpireat -client|tracking";
    let args: Vec<&str> = user.split(' ').collect();
    let site = Site::prepare_with(DatabaseKind::Sqlite, support::django::USUAL, &args, &[]);
    let options = ProxyOptions {
        source: site.source.url().replace("redis://", "redis://ferry:pass@"),
        ..site.options()
    };
    let (code, findings) = check(options);
    assert_eq!(code, 1);
    let needed = found(&findings, "source", "its user may not PEXPIREAT, SCAN sessions");
    assert_eq!(needed["level"], "red");
    assert!(
        needed["detail"].as_str().unwrap().contains("+pexpireat +scan"),
        "{needed}"
    );
    let useful = found(&findings, "source", "its user may not CLIENT TRACKING");
    assert_eq!(useful["level"], "yellow");
    // Nothing was left behind by trying.
    let keys: Vec<String> = site.target.ask(&["KEYS", "*"]);
    assert!(keys.is_empty(), "{keys:?}");
}

#[test]
fn rows_of_cached_db_are_held_against_redis() {
    let site = Site::prepare(DatabaseKind::Sqlite);
    let django = &site.django;
    let keys: Vec<String> = (0..5)
        .map(|number| {
            django.ask(&json!({"do": "save", "engine": "cached_db", "cache": "source", "data": {"n": number}}))
        })
        .collect();
    django.sql(&format!("DELETE FROM django_session WHERE session_key = '{}'", keys[0]));
    let options = site
        .options()
        .args(&["--engine", "cached_db", "--database-mode", "verify"]);
    let (code, findings) = check(options);
    assert_eq!(code, 0, "{findings:#?}");
    let rows = found(&findings, "rows", "4 have a row that holds the same, 0 another, 1 none");
    assert_eq!(rows["level"], "yellow");
    found(&findings, "secret_key", "4 rows read, all signatures are good");
}

/// The first site's many sessions do not hide that the second one's are unreadable, nor that the third has none.
#[test]
fn each_site_is_looked_at() {
    let site = Site::prepare(DatabaseKind::Sqlite);
    let folder = tempfile::tempdir().unwrap();
    let table = |name: &str| {
        let database = match name {
            "shop" => site.database_url(),
            _ => format!("sqlite://{}?mode=rwc", folder.path().join(name).display()),
        };
        format!(
            "[[site]]\ndjango = {{ key_prefix = \"{name}\", secret_key = \"{name}\" }}\ndatabase.url = \"{database}\"\n"
        )
    };
    let put = |name: &str, number: u32, value: &[u8]| {
        let key = format!("{name}:1:django.contrib.sessions.cache{number:032}");
        let () = redis::cmd("SET")
            .arg(key)
            .arg(value)
            .query(&mut site.source.connection())
            .unwrap();
    };
    (0..1500).for_each(|number| put("shop", number, b"\x80\x04}."));
    put("blog", 1, b"\x80\x04}\x8c\x01aC\x01xs.");
    let options = ProxyOptions {
        database: String::new(),
        secret_key: None,
        config: Some(["shop", "blog", "wiki"].map(table).concat()),
        ..site.options()
    };
    let answer = Proxy::unstarted(options).configured("check", &["--sessions", "--json"]);
    let findings = answer.expect(0).json()["findings"].as_array().unwrap().clone();
    assert_eq!(
        found(&findings, "sessions", "by digest")["sessions"][0]["type"],
        "bytes"
    );
    found(&findings, "sessions", "matches wiki:1:django.contrib.sessions.cache*");
    found(&findings, "database", "site.db: SQLite");
    found(&findings, "database", "/blog: SQLite");
}
