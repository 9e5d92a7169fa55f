//! What goes wrong is said plainly, and costs nobody a session.
#![cfg(feature = "net")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod support;

use std::{
    thread::{scope, sleep},
    time::{Duration, Instant},
};

use serde_json::json;
use sessionferry::status::{Authority, CutoverState, OperationState, Phase, VerifyState};
use support::{
    DatabaseKind, Load, Proxy, ProxyOptions, RedisServer, Site, eventually,
    load::pickled,
    proxy::{Answer, binary},
    session,
    site::sessions,
};

/// `run` with this configuration has to end by itself, soon.
fn run_ends(options: ProxyOptions) -> (i32, String) {
    let proxy = Proxy::spawn(options);
    let began = Instant::now();
    loop {
        if let Some(status) = proxy.exited() {
            return (status.code().unwrap_or(-1), proxy.log_text());
        }
        assert!(
            began.elapsed() < Duration::from_secs(15),
            "it went on running:\n{}",
            proxy.log_text()
        );
        sleep(Duration::from_millis(20));
    }
}

/// `check` with this configuration: its code and all it said, in small letters.
fn check(options: ProxyOptions) -> (i32, String) {
    let proxy = Proxy::unstarted(options);
    let answer = proxy.configured("check", &[]);
    (answer.code, answer.said())
}

// ---------------------------------------------------------------------------------------------- configuration

#[test]
fn every_bad_value_is_named_in_one_go() {
    let options = ProxyOptions {
        source: "http://127.0.0.1:1".to_owned(),
        target: "redis://".to_owned(),
        database: "oracle://x".to_owned(),
        ..ProxyOptions::default()
    };
    let (code, log) = run_ends(options.args(&["--max-hold", "soon", "--ack", "perhaps"]));
    assert_eq!(code, 2, "{log}");
    // The command line's parser may stop at its own errors first; the values come together after it.
    assert!(log.contains("max-hold") || log.contains("ack"), "{log}");
    let options = ProxyOptions {
        source: "http://127.0.0.1:1".to_owned(),
        target: "not a url".to_owned(),
        database: "oracle://x".to_owned(),
        ..ProxyOptions::default()
    };
    let (code, log) = run_ends(options);
    assert_eq!(code, 2, "{log}");
    for name in ["source", "target", "database"] {
        assert!(log.contains(name), "{name} is not named: {log}");
    }
}

#[test]
fn a_missing_value_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let answer = Answer::of(binary(dir.path()).arg("run")).expect(2);
    for name in ["source", "target", "secret"] {
        assert!(answer.said().contains(name), "{name} is not named: {answer:#?}");
    }
    Answer::of(binary(dir.path()).arg("nosuchcommand")).expect(2);
    Answer::of(binary(dir.path()).args(["status", "--admin", "http://127.0.0.1:1"])).expect(3);
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        0,
        "a refused start left files"
    );
}

#[test]
fn a_password_is_never_printed() {
    let server = RedisServer::start(&["--requirepass", "tr0ub4dor"]);
    let target = RedisServer::start(&[]);
    let options = |source: String| ProxyOptions {
        source,
        target: target.url(),
        database: "none".to_owned(),
        ..ProxyOptions::default()
    };
    let (code, said) = check(options(server.url()));
    assert_eq!(code, 0, "{said}");
    assert!(!said.contains("tr0ub4dor"), "{said}");
    let (code, said) = check(options(format!("redis://:xkcd936@{}", server.address())));
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains("source") && (said.contains("password") || said.contains("auth")),
        "{said}"
    );
    assert!(!said.contains("xkcd936"), "{said}");
    let (code, said) = check(options(format!("redis://{}", server.address())));
    assert_eq!(code, 1, "{said}");
    let proxy = Proxy::spawn(options(format!("redis://:xkcd936@{}", server.address())));
    eventually(
        "it ends, or says that it is not ready and why",
        Duration::from_secs(15),
        || {
            proxy.exited().is_some_and(|status| !status.success())
                || proxy
                    .get("/readyz")
                    .is_some_and(|(code, body)| code == 503 && body.contains("source"))
        },
    );
    assert!(!proxy.log_text().contains("xkcd936"));
}

#[test]
fn endpoints_that_do_not_answer_are_named() {
    let mut server = RedisServer::start(&[]);
    let alive = RedisServer::start(&[]);
    server.stop();
    for (source, target, name) in [(&server, &alive, "source"), (&alive, &server, "target")] {
        let options = ProxyOptions::between(source, target);
        let (code, said) = check(options);
        assert_eq!(code, 1, "{said}");
        assert!(said.contains(name), "{said}");
    }
    let options = ProxyOptions::between(&alive, &alive);
    let (code, said) = check(options);
    assert_eq!(code, 2, "source and target are the same server: {said}");
}

#[test]
fn a_wrong_secret_key_is_told_before_it_logs_everyone_out() {
    let site = Site::prepare(DatabaseKind::Sqlite);
    // A row that Django wrote, and a proxy that signs with another key.
    let key: String = site
        .django
        .ask(&json!({"do": "save", "engine": "cached_db", "cache": "empty", "data": {"signed": "by Django"}}));
    let wrong = || ProxyOptions {
        secret_key: Some("not Django's key".to_owned()),
        ..site.options()
    };
    let (code, said) = check(wrong());
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("secret"), "{said}");
    assert!(!said.contains("not django's key"), "the secret was printed: {said}");
    let mut proxy = Proxy::spawn(wrong());
    eventually("`run` tells as well", Duration::from_secs(15), || {
        proxy.exited().is_some_and(|status| !status.success()) || proxy.log_text().to_lowercase().contains("secret")
    });
    assert!(!proxy.log_text().contains("not Django's key"));
    proxy.kill9();
    assert_eq!(
        site.django
            .rows()
            .iter()
            .map(|row| row.key.as_str())
            .collect::<Vec<_>>(),
        [key.as_str()]
    );
    let (code, said) = check(site.options());
    assert_eq!(code, 0, "with the right key: {said}");
    // The old key among the fallbacks is fine.
    let mut options = wrong();
    options.env.push((
        "SESSIONFERRY_SECRET_KEY_FALLBACKS".to_owned(),
        support::SECRET.to_owned(),
    ));
    let (code, said) = check(options);
    assert_eq!(code, 0, "with the right key as a fallback: {said}");
}

#[test]
fn a_missing_table_is_told_and_never_created_on_a_server() {
    for kind in [DatabaseKind::Postgres, DatabaseKind::MariaDb] {
        let site = Site::prepare(kind);
        site.django.sql("DROP TABLE django_session");
        let (code, said) = check(site.options());
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("django_session"), "{said}");
        let mut proxy = Proxy::spawn(site.options());
        eventually("`run` tells as well", Duration::from_secs(15), || {
            proxy.exited().is_some_and(|status| !status.success()) || proxy.log_text().contains("django_session")
        });
        proxy.kill9();
        let request = json!({"do": "sql", "statement": "SELECT count(*) FROM django_session"});
        assert!(
            site.django.try_ask::<serde_json::Value>(&request).is_err(),
            "the table was created"
        );
    }
}

// ---------------------------------------------------------------------------------------------- a target that cannot

fn keeps_serving(site: &Site, name: &str) {
    let proxy = site.proxy();
    for number in 0..20 {
        let key = session(&format!("{name}{number:0>28}"));
        let mut connection = proxy.connection();
        let began = Instant::now();
        redis::cmd("SET")
            .arg(&key)
            .arg(pickled(number))
            .arg("EX")
            .arg(1_000)
            .exec(&mut connection)
            .unwrap();
        let value: Vec<u8> = redis::cmd("GET").arg(&key).query(&mut connection).unwrap();
        assert_eq!(value, pickled(number));
        assert!(
            began.elapsed() < Duration::from_secs(1),
            "a client waited {:?}",
            began.elapsed()
        );
    }
}

/// It was refused or it was undone, it says why, and the source goes on answering.
fn cutover_fails(site: &Site) {
    let proxy = site.proxy();
    let answer = proxy.cli(&["cutover"]).expect(1);
    assert!(!answer.err.trim().is_empty(), "no reason: {answer:?}");
    let answer = proxy.cli(&["cutover", "--force"]);
    assert_eq!(answer.code, 1, "even forced: {answer:?}");
    let status = proxy.status();
    assert_eq!(status.authority, Authority::Source);
    assert_ne!(status.phase, Phase::CutOver);
    assert!(
        matches!(status.cutover.state, CutoverState::Idle | CutoverState::Undone),
        "{:?}",
        status.cutover
    );
}

#[test]
fn a_target_that_may_not_be_written_is_told_and_nothing_is_lost() {
    let mut site = Site::prepare(DatabaseKind::Sqlite);
    let primary = RedisServer::start(&[]);
    let port = primary.address().rsplit(':').next().unwrap().to_owned();
    site.target.ask::<()>(&["REPLICAOF", "127.0.0.1", &port]);
    eventually("the replica follows", Duration::from_secs(20), || {
        site.target
            .ask::<String>(&["INFO", "replication"])
            .contains("master_link_status:up")
    });
    let (code, said) = check(site.options());
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains("target") && (said.contains("read") || said.contains("replica")),
        "{said}"
    );
    site.proxy = Some(Proxy::spawn(site.options()));
    eventually("it serves", Duration::from_secs(15), || {
        std::net::TcpStream::connect(site.proxy().address()).is_ok()
    });
    keeps_serving(&site, "readonly");
    let tee = site.proxy().status().tee.target;
    assert!(tee.pending + tee.dirty >= 20 && tee.last_error.is_some(), "{tee:#?}");
    cutover_fails(&site);
    site.target.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
    assert_eq!(site.expect_same_everywhere(), 20);
}

#[test]
fn a_full_target_is_told_and_nothing_is_lost() {
    let mut site = Site::prepare(DatabaseKind::Sqlite);
    site.start_proxy(&[]);
    site.target.ask::<()>(&["SET", "ballast", &"x".repeat(1 << 20)]);
    site.target.ask::<()>(&["CONFIG", "SET", "maxmemory", "1mb"]);
    site.target
        .ask::<()>(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    let (code, said) = check(site.options());
    assert!(said.contains("memory"), "code {code}: {said}");
    keeps_serving(&site, "full");
    eventually("the error is shown", Duration::from_secs(5), || {
        site.proxy().status().tee.target.last_error.is_some()
    });
    let tee = site.proxy().status().tee.target;
    assert!(tee.pending + tee.dirty >= 20, "{tee:#?}");
    cutover_fails(&site);
    // A logout has to get through even so: a delete needs no memory.
    site.target.ask::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(site.expect_same_everywhere(), 20);
}

#[test]
fn a_target_that_would_evict_is_told() {
    let site = Site::prepare_with(
        DatabaseKind::Sqlite,
        "5.2",
        &[],
        &["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"],
    );
    let (_, said) = check(site.options());
    assert!(
        said.contains("evict") || said.contains("maxmemory-policy") || said.contains("allkeys-lru"),
        "{said}"
    );
}

#[test]
fn other_peoples_sessions_on_the_target_are_told_and_left_alone() {
    let mut site = Site::prepare(DatabaseKind::Sqlite);
    let theirs = site.django.fill("target", 50, 1);
    let ours = site.django.fill("source", 50, 2);
    let (code, said) = check(site.options());
    assert!(said.contains("target") && said.contains("50"), "code {code}: {said}");
    site.start_proxy(&[]);
    site.proxy().done("backfill");
    let _ = site.proxy().operation("verify", json!({}));
    let verify = site.proxy().status().verify;
    assert_eq!(
        (verify.state, verify.extra_target),
        (VerifyState::Differs, 50),
        "{verify:#?}"
    );
    site.proxy().cli(&["cutover"]).expect(1);
    assert_eq!(site.proxy().status().authority, Authority::Source);
    let held = sessions(&site.target);
    assert!(theirs.iter().chain(&ours).all(|key| held.contains_key(key)));
    assert_eq!(site.django.rows().len(), 50, "their sessions got rows");
}

#[test]
fn a_cutover_to_a_target_that_is_away_is_undone_and_nobody_notices() {
    let mut site = Site::start(DatabaseKind::Sqlite);
    for kind in ["backfill", "verify"] {
        site.proxy().done(kind);
    }
    let load = Load::start(&site.proxy().address(), 20);
    sleep(Duration::from_millis(300));
    // Away.
    site.target.stop();
    cutover_fails(&site);
    site.target.restart();
    site.proxy().settle_soon();
    site.proxy().done("backfill");
    // There, but it does not answer.
    site.target.freeze();
    let began = Instant::now();
    let answer = site.proxy().cli(&["cutover", "--force"]);
    assert_eq!(answer.code, 1, "{answer:?}");
    assert!(
        began.elapsed() < Duration::from_secs(60),
        "it took {:?} to give up",
        began.elapsed()
    );
    assert_eq!(site.proxy().status().authority, Authority::Source);
    site.target.thaw();
    let report = load.stop();
    assert!(
        report.wrong.is_empty(),
        "{:#?}",
        &report.wrong[..report.wrong.len().min(10)]
    );
    assert!(
        report.slowest < Duration::from_secs(3),
        "a client waited {:?}",
        report.slowest
    );
    site.proxy().settle();
    report.check("source", &mut site.source.connection());
    report.check("target", &mut site.target.connection());
    site.expect_same_everywhere();
}

// ---------------------------------------------------------------------------------------------- two at once

#[test]
fn of_two_cutovers_at_once_one_is_done_and_the_other_refused() {
    let site = Site::start(DatabaseKind::Sqlite);
    let keys = site.django_of("5.2").fill("proxy", 200, 5);
    for kind in ["backfill", "verify"] {
        site.proxy().done(kind);
    }
    let results: Vec<_> = scope(|threads| {
        let running: Vec<_> = (0..2)
            .map(|_| threads.spawn(|| site.proxy().operation("cutover", json!({}))))
            .collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let done = results
        .iter()
        .filter(|result| matches!(result, Ok(one) if one.state == OperationState::Done))
        .count();
    assert_eq!(done, 1, "{results:#?}");
    for refused in results.iter().filter_map(|result| result.as_ref().err()) {
        assert!(refused.starts_with("409") && refused.contains("error"), "{refused}");
    }
    assert_eq!(site.proxy().status().authority, Authority::Target);
    let held = sessions(&site.target);
    assert!(keys.iter().all(|key| held.contains_key(key)));
    assert_eq!(site.expect_same_everywhere(), 200);
}

#[test]
fn a_data_directory_in_use_is_refused_and_its_owner_goes_on() {
    let site = Site::start(DatabaseKind::Sqlite);
    let (code, log) = run_ends(ProxyOptions {
        data_dir: Some(site.proxy().data_dir()),
        ..site.options()
    });
    assert_ne!(code, 0);
    let said = log.to_lowercase();
    assert!(
        said.contains("in use") || said.contains("lock") || said.contains("another"),
        "{log}"
    );
    keeps_serving(&site, "owner");
    assert_eq!(site.expect_same_everywhere(), 20);
}

#[test]
fn a_data_directory_it_does_not_understand_is_refused_and_left_as_it_is() {
    let mut site = Site::start(DatabaseKind::Sqlite);
    keeps_serving(&site, "before");
    site.proxy().settle();
    assert!(site.proxy_mut().terminate().success());
    let dir = site.proxy().data_dir();
    let files = || -> Vec<std::path::PathBuf> {
        let mut files: Vec<_> = std::fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.retain(|file| file.is_file() && file.metadata().unwrap().len() > 0);
        files.sort();
        files
    };
    let state = files();
    assert!(!state.is_empty(), "nothing is kept in the data directory");
    // The file with the migration's state, with a version from the future.
    let (file, text) = state
        .iter()
        .filter_map(|file| Some((file, std::fs::read_to_string(file).ok()?)))
        .find(|(_, text)| text.contains("\"version\""))
        .expect("a state file that says its version");
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    value["version"] = json!(999);
    let changed = serde_json::to_vec(&value).unwrap();
    std::fs::write(file, &changed).unwrap();
    let (code, log) = run_ends(ProxyOptions {
        data_dir: Some(dir.clone()),
        ..site.options()
    });
    assert_ne!(code, 0);
    assert!(log.contains("version"), "{log}");
    assert_eq!(std::fs::read(file).unwrap(), changed, "the file was changed");
    // With its own version it goes on as before.
    std::fs::write(file, &text).unwrap();
    site.proxy_mut().restart();
    assert_eq!(site.expect_same_everywhere(), 20);
}

#[test]
fn a_value_that_is_no_session_harms_nobody() {
    let site = Site::start(DatabaseKind::Sqlite);
    let django = site.django_of("5.2");
    let mut connection = site.proxy().connection();
    let hostile: [&[u8]; 8] = [
        b"",
        b"\x80\x05",
        b"not a pickle",
        b"\x80\x05\x95\xff\xff\xff\xff\xff\xff\xff\xff}",
        b"cos\nsystem\n(S'touch /tmp/owned-by-a-pickle'\ntR.",
        b"\x80\x02]q\x00h\x00a.",
        b"\x80\x02}q\x00(U\x01ah\x00u.",
        &[b'('; 200_000],
    ];
    for (number, value) in hostile.iter().enumerate() {
        redis::cmd("SET")
            .arg(session(&format!("{number:h>32}")))
            .arg(*value)
            .arg("EX")
            .arg(500)
            .exec(&mut connection)
            .unwrap();
    }
    let good = django.save("proxy", &json!({"still": "works"}));
    site.proxy().settle();
    let held = sessions(&site.target);
    for (number, value) in hostile.iter().enumerate() {
        assert_eq!(
            held[&format!("{number:h>32}")].value,
            *value,
            "value {number} was not copied as it is"
        );
    }
    let rows = site.django.rows();
    assert_eq!(
        rows.iter().map(|row| row.key.as_str()).collect::<Vec<_>>(),
        [good.as_str()]
    );
    assert_eq!(site.proxy().status().sessions.unstorable, hostile.len() as u64);
    assert!(
        !std::path::Path::new("/tmp/owned-by-a-pickle").exists(),
        "a pickle was executed"
    );
}

#[test]
fn the_admin_address_asks_for_its_token() {
    let site = Site::prepare(DatabaseKind::Sqlite);
    let proxy = Proxy::spawn(site.options().args(&["--admin-token", "opensesame"]));
    eventually("it answers", Duration::from_secs(15), || proxy.get("/livez").is_some());
    for path in ["/api/v1/status", "/api/v1/operations/1"] {
        assert_eq!(proxy.get(path).unwrap().0, 401, "{path}");
    }
    assert_eq!(proxy.post("cutover", json!({"force": true})).0, 401);
    let file = proxy.dir().join("token");
    std::fs::write(&file, "opensesame\n").unwrap();
    let answer = proxy
        .cli(&["status", "--json", "--admin-token-file", file.to_str().unwrap()])
        .expect(0);
    assert_eq!(answer.json()["authority"], "source");
    std::fs::write(&file, "wrong\n").unwrap();
    assert_ne!(
        proxy
            .cli(&["status", "--admin-token-file", file.to_str().unwrap()])
            .code,
        0
    );
    // Not on loopback without one.
    let dir = tempfile::tempdir().unwrap();
    let mut command = binary(dir.path());
    command.args([
        "run",
        "--admin",
        "0.0.0.0:0",
        "--source",
        &site.source.url(),
        "--target",
        &site.target.url(),
    ]);
    let answer = Answer::of(
        command
            .args(["--database", "none", "--data-dir"])
            .arg(dir.path().join("data")),
    )
    .expect(2);
    assert!(answer.said().contains("token"), "{answer:#?}");
}
