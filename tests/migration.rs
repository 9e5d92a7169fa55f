//! The whole move, with each database: backfill, verify, cutover, rollback, finish; and what it refuses.
#![cfg(feature = "net")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod support;

use std::time::Duration;

use serde_json::json;
use sessionferry::status::{Authority, BackfillState, CutoverState, Phase, VerifyState};
use support::{DatabaseKind, Load, Site, eventually, redis_server, session, site::sessions};

const VISITORS: usize = 2_000;

/// A site whose visitors were there before the proxy, with something of its own in each Redis that tells them apart.
fn lived_in(kind: DatabaseKind) -> (Site, Vec<String>) {
    let site = Site::prepare(kind);
    let keys = site.django.fill("source", VISITORS, 11);
    let mut connection = site.source.connection();
    for number in 0..500 {
        redis_server::ask::<()>(&mut connection, &["SET", &format!(":1:page{number}"), "cached"]);
    }
    site.source.ask::<()>(&["SET", "who", "source"]);
    site.target.ask::<()>(&["SET", "who", "target"]);
    (site, keys)
}

fn who(site: &Site) -> String {
    site.proxy().ask(&["GET", "who"])
}

fn the_whole_move(kind: DatabaseKind) {
    let (mut site, keys) = lived_in(kind);
    site.start_proxy(&[]);
    let status = site.proxy().status();
    assert_eq!((status.phase, status.authority), (Phase::Teeing, Authority::Source));
    assert_eq!(who(&site), "source");
    assert_eq!(
        sessions(&site.target).len(),
        0,
        "something was copied before it was asked for"
    );

    // Before the backfill the stores differ, verify says so, and there is no way across.
    let answer = site.proxy().cli(&["verify"]).expect(1);
    assert!(!answer.err.is_empty(), "{answer:?}");
    let verify = site.proxy().status().verify;
    assert_eq!(verify.state, VerifyState::Differs);
    assert_eq!(
        (verify.missing_target, verify.missing_database),
        (VISITORS as u64, VISITORS as u64),
        "{verify:?}"
    );
    site.proxy().cli(&["cutover"]).expect(1);
    assert_eq!(site.proxy().status().authority, Authority::Source);

    // Visitors come, change, and leave while it runs.
    let django = site.django_of("5.2");
    let answer = site.proxy().cli(&["backfill", "--json"]).expect(0);
    answer.json();
    let backfill = site.proxy().status().backfill;
    assert_eq!(backfill.state, BackfillState::Done);
    assert!(backfill.copied + backfill.skipped >= VISITORS as u64, "{backfill:?}");
    assert_eq!(backfill.failed, 0, "{backfill:?}");
    django.delete("proxy", &keys[0]);
    let new = django.save("proxy", &json!({"arrived": "during the move"}));
    assert_eq!(site.expect_same_everywhere(), VISITORS);
    let extra: Vec<String> = site.target.ask(&["KEYS", ":1:page*"]);
    assert!(extra.is_empty(), "other keys were copied");

    site.proxy().cli(&["verify", "--json"]).expect(0).json();
    let status = site.proxy().status();
    assert_eq!((status.verify.state, status.phase), (VerifyState::Clean, Phase::Synced));
    assert!(status.verify.compared >= VISITORS as u64, "{:?}", status.verify);

    // A restart changes nothing.
    assert!(site.proxy_mut().terminate().success());
    site.proxy_mut().restart();
    assert_eq!(site.proxy().status().phase, Phase::Synced);
    assert_eq!(who(&site), "source");

    // A dry run neither.
    site.proxy().cli(&["cutover", "--dry-run"]).expect(0);
    assert_eq!(
        (site.proxy().status().authority, who(&site).as_str()),
        (Authority::Source, "source")
    );

    // Across.
    site.proxy().cli(&["cutover"]).expect(0);
    let status = site.proxy().status();
    assert_eq!((status.phase, status.authority), (Phase::CutOver, Authority::Target));
    assert_eq!(status.cutover.state, CutoverState::Done);
    assert!(
        status.cutover.hold_seconds.is_some_and(|hold| hold < 2.0),
        "{:?}",
        status.cutover
    );
    assert_eq!(who(&site), "target");

    // Every visitor is still known, on the new side and from the rows alone.
    let live: Vec<String> = keys[1..].iter().cloned().chain([new]).collect();
    for (engine, cache) in [("cache", "proxy"), ("cache", "target"), ("cached_db", "empty")] {
        let seen = django.load(engine, cache, &live);
        let before = django.load("cache", "source", &live);
        for (seen, before) in seen.iter().zip(&before) {
            assert!(
                seen.found && seen.exact == before.exact,
                "{engine} on {cache}: {seen:?}, it was {before:?}"
            );
        }
    }

    // What is written now is teed back, also after a restart, which comes up on the new side.
    let late = django.save("proxy", &json!({"written": "after the cutover"}));
    site.proxy_mut().restart();
    assert_eq!(site.proxy().status().phase, Phase::CutOver);
    assert_eq!(who(&site), "target");
    let django = site.django_of("5.2");
    django.delete("proxy", &keys[1]);
    site.expect_same_everywhere();
    assert!(sessions(&site.source).contains_key(&late), "not teed back");
    assert!(
        !sessions(&site.source).contains_key(&keys[1]),
        "the logout was not teed back"
    );

    // Back, and across again.
    site.proxy().cli(&["rollback"]).expect(0);
    let status = site.proxy().status();
    assert_eq!(status.authority, Authority::Source);
    assert!(
        [Phase::Synced, Phase::Teeing].contains(&status.phase),
        "{:?}",
        status.phase
    );
    assert_eq!(who(&site), "source");
    assert!(django.load_one("cache", "proxy", &late).found, "lost by the rollback");
    site.proxy_mut().restart();
    assert_eq!(who(&site), "source");
    site.proxy().done("verify");
    site.proxy().cli(&["cutover"]).expect(0);
    assert_eq!(who(&site), "target");

    // The end of the road: the old server can go.
    site.proxy().cli(&["finish"]).expect(0);
    assert_eq!(site.proxy().status().phase, Phase::Finished);
    site.source.stop();
    let django = site.django_of("5.2");
    let last = django.save("proxy", &json!({"written": "after the end"}));
    assert!(django.load_one("cache", "proxy", &last).found);
    site.proxy_mut().restart();
    assert_eq!(
        (site.proxy().status().phase, who(&site).as_str()),
        (Phase::Finished, "target")
    );
    let django = site.django_of("5.2");
    assert!(django.load_one("cache", "proxy", &last).found);
    site.proxy().settle();
    assert!(django.load_one("cached_db", "empty", &last).found);
    site.proxy().cli(&["rollback"]).expect(1);
}

#[test]
fn the_whole_move_with_sqlite() {
    the_whole_move(DatabaseKind::Sqlite);
}

#[test]
fn the_whole_move_with_postgres() {
    the_whole_move(DatabaseKind::Postgres);
}

#[test]
fn the_whole_move_with_mysql() {
    the_whole_move(DatabaseKind::MariaDb);
}

#[test]
fn sqlite_gets_its_table_where_it_is_missing_and_django_reads_it() {
    let mut site = Site::prepare(DatabaseKind::Sqlite);
    site.django.sql("DROP TABLE django_session");
    site.start_proxy(&[]);
    let key = site.django_of("5.2").save("proxy", &json!({"a": 1}));
    site.proxy().settle();
    eventually("the row is there", Duration::from_secs(5), || {
        site.django.load_one("cached_db", "empty", &key).found
    });
}

#[test]
fn a_move_without_a_database_is_a_move() {
    let (mut site, keys) = lived_in(DatabaseKind::Sqlite);
    let mut options = site.options();
    options.database = "none".to_owned();
    site.proxy = Some(support::Proxy::start(options));
    for kind in ["backfill", "verify", "cutover"] {
        site.proxy().done(kind);
    }
    assert_eq!(who(&site), "target");
    let held = sessions(&site.target);
    assert!(keys.iter().all(|key| held.contains_key(key)));
    site.proxy().done("rollback");
    assert_eq!(who(&site), "source");
    assert!(site.django.rows().is_empty());
}

/// A Redis that has no room left, and evicts nothing, refuses whatever could make it grow: a good reason to move.
#[test]
fn a_source_that_is_full_is_copied() {
    let mut site = Site::prepare(DatabaseKind::Sqlite);
    let keys = site.django.fill("source", 300, 11);
    site.source.ask::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    site.start_proxy(&[]);
    for kind in ["backfill", "verify"] {
        site.proxy().done(kind);
    }
    assert_eq!(site.expect_same_everywhere(), keys.len());
}

#[test]
fn backfill_never_overwrites_what_is_newer_and_never_brings_a_logout_back() {
    let (mut site, keys) = lived_in(DatabaseKind::Sqlite);
    site.start_proxy(&[]);
    let load = Load::start(&site.proxy().address(), 20);
    let django = site.django_of("5.2");
    std::thread::scope(|threads| {
        let visitors = threads.spawn(|| {
            for (number, key) in keys.iter().enumerate().take(200) {
                if number % 2 == 0 {
                    django.delete("proxy", key);
                } else {
                    let request = json!({"do": "save", "engine": "cache", "cache": "proxy", "key": key, "data": {"newer": number}});
                    django.ask::<String>(&request);
                }
            }
        });
        // As long as they are busy, and once more.
        while !visitors.is_finished() {
            site.proxy().done("backfill");
        }
    });
    site.proxy().done("backfill");
    let report = load.stop();
    assert!(report.wrong.is_empty(), "{:#?}", report.wrong);
    site.expect_same_everywhere();
    report.check("target", &mut site.target.connection());
    let held = sessions(&site.target);
    for (number, key) in keys.iter().enumerate().take(200) {
        assert_eq!(held.contains_key(key), number % 2 == 1, "session {number}");
    }
    let rows = site.django.load("cached_db", "empty", &keys[..200]);
    for (number, row) in rows.iter().enumerate() {
        assert_eq!(row.found, number % 2 == 1, "row {number}");
        assert!(
            !row.found || row.exact.contains("'newer'"),
            "row {number} is an old one: {}",
            row.exact
        );
    }
    site.proxy().done("verify");
    assert_eq!(site.proxy().status().verify.state, VerifyState::Clean);
}

#[test]
fn a_backfill_that_is_killed_goes_on_after_the_restart() {
    let (mut site, _) = lived_in(DatabaseKind::Sqlite);
    site.start_proxy(&[]);
    let (code, answer) = site.proxy().post("backfill", json!({}));
    assert_eq!(code, 202, "{answer}");
    site.proxy_mut().restart();
    eventually(
        "it is done, by itself or by being asked again",
        Duration::from_secs(60),
        || {
            let status = site.proxy().status();
            match status.backfill.state {
                BackfillState::Done => true,
                BackfillState::Running => false,
                BackfillState::Idle | BackfillState::Failed => {
                    let _ = site.proxy().operation("backfill", json!({}));
                    false
                }
            }
        },
    );
    site.proxy().done("verify");
    assert_eq!(site.expect_same_everywhere(), VISITORS);
}

/// How many values the proxy has read of the source's sessions: nobody else asks for this.
fn read_of(source: &support::RedisServer) -> u64 {
    let stats: String = source.ask(&["INFO", "commandstats"]);
    let calls = stats
        .lines()
        .find_map(|line| line.strip_prefix("cmdstat_pexpiretime:calls="));
    calls.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
}

#[test]
fn a_backfill_that_was_stopped_goes_on_where_it_was() {
    const MANY: usize = 6_000;
    let mut site = Site::prepare(DatabaseKind::Sqlite);
    let fill = "for i = 1, tonumber(ARGV[1]) do redis.call('SET', KEYS[1] .. string.format('%032d', i), ARGV[2], 'EX', 9000) end";
    let value = site.django.pickle(&json!({"some": "body"}));
    redis::cmd("EVAL")
        .arg(fill)
        .arg(1)
        .arg(session(""))
        .arg(MANY)
        .arg(value)
        .exec(&mut site.source.connection())
        .unwrap();
    site.start_proxy(&[]);
    // Others use the source: it takes its time, and can be stopped in the middle.
    let load = Load::start(&site.proxy().address(), 2);
    let (code, answer) = site.proxy().post("backfill", json!({}));
    assert_eq!(code, 202, "{answer}");
    let copied = || site.proxy().status().backfill.copied;
    eventually("some are copied", Duration::from_secs(30), || copied() > 1_200);
    let id = answer["operation"].to_string();
    assert!(site.proxy().stop_operation(id.trim_matches('"')));
    eventually("it has stopped", Duration::from_secs(30), || {
        site.proxy().status().backfill.state == BackfillState::Failed
    });
    load.stop();
    let copied = copied();
    assert!((1_200..5_000).contains(&copied), "{copied}");

    // What it reads of itself when it starts.
    site.proxy_mut().restart();
    eventually("what was recorded is delivered", Duration::from_secs(30), || {
        let tee = site.proxy().status().tee;
        tee.target.pending + tee.database.pending == 0
    });
    let read = read_of(&site.source);
    site.proxy().done("backfill");
    let backfill = site.proxy().status().backfill;
    assert!(
        backfill.scanned >= MANY as u64 && backfill.copied >= MANY as u64,
        "{backfill:?}"
    );
    let again = read_of(&site.source) - read;
    assert!(
        again < MANY as u64 - copied + 300,
        "{again} were read again of {MANY}, {copied} were there"
    );
    site.proxy().done("verify");
    assert_eq!(site.proxy().status().verify.state, VerifyState::Clean);
    // The load's two sessions are there as well.
    assert!(site.expect_same_everywhere() >= MANY);

    // One that came to its end is not gone on with.
    let read = read_of(&site.source);
    site.proxy().done("backfill");
    assert!(read_of(&site.source) - read >= MANY as u64);
}

#[test]
fn verify_finds_every_kind_of_difference_and_cutover_is_refused() {
    let (mut site, keys) = lived_in(DatabaseKind::Sqlite);
    site.start_proxy(&[]);
    site.proxy().done("backfill");
    site.proxy().done("verify");
    assert_eq!(site.proxy().status().phase, Phase::Synced);
    let mut target = site.target.connection();
    let other = site.django.pickle(&json!({"other": 1}));
    redis_server::ask::<()>(&mut target, &["DEL", &session(&keys[0])]);
    redis::cmd("SET")
        .arg(session(&keys[1]))
        .arg(&other)
        .arg("KEEPTTL")
        .exec(&mut target)
        .unwrap();
    redis_server::ask::<()>(&mut target, &["EXPIRE", &session(&keys[2]), "77"]);
    redis::cmd("SET")
        .arg(session(&"f".repeat(32)))
        .arg(&other)
        .arg("EX")
        .arg(500)
        .exec(&mut target)
        .unwrap();
    site.django
        .sql(&format!("DELETE FROM django_session WHERE session_key = '{}'", keys[3]));
    site.django.sql(&format!(
        "UPDATE django_session SET session_data = 'broken' WHERE session_key = '{}'",
        keys[4]
    ));
    site.django.sql(&format!(
        "INSERT INTO django_session SELECT '{}', session_data, expire_date FROM django_session WHERE session_key = '{}'",
        "e".repeat(32),
        keys[5]
    ));
    let answer = site.proxy().cli(&["verify", "--json"]).expect(1);
    let verify = site.proxy().status().verify;
    assert_eq!(verify.state, VerifyState::Differs);
    let found = [
        verify.missing_target,
        verify.different_target,
        verify.extra_target,
        verify.missing_database,
        verify.different_database,
        verify.extra_database,
    ];
    assert_eq!(found, [1, 2, 1, 1, 1, 1], "{verify:#?}\n{answer:#?}");
    for key in &keys[..6] {
        assert!(
            !answer.out.contains(key) && !answer.err.contains(key),
            "a session key was printed"
        );
    }
    assert_ne!(site.proxy().status().phase, Phase::Synced);
    let answer = site.proxy().cli(&["cutover"]).expect(1);
    assert!(!answer.err.trim().is_empty(), "refused without a reason");
    assert_eq!(
        (site.proxy().status().authority, who(&site).as_str()),
        (Authority::Source, "source")
    );
}
