//! A Redis that comes back empty: the other stores have what it lost, and nobody is logged out, nor logged in again.
#![cfg(feature = "net")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod support;

use std::{thread::sleep, time::Duration};

use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use sessionferry::status::Authority;
use support::{
    DatabaseKind, Hammer, Raw, SECRET, Site, command, eventually,
    moving::{Moving, PATIENCE, expect, key},
    proxy::{Answer, binary},
    resp::shown,
    seed, session,
    site::sessions,
};

/// A site with sessions that were there before, and visitors that come and go.
fn busy_site(kind: DatabaseKind) -> (Site, Vec<String>, Hammer) {
    let mut site = Site::prepare(kind);
    let before = site.django.fill("source", 300, 1);
    site.start_proxy(&[]);
    for kind in ["backfill", "verify"] {
        site.proxy().done(kind);
    }
    let hammer = Hammer::start("5.2", &site.proxy().url(), 30, &["--logout", "0.2"]);
    sleep(Duration::from_secs(1));
    (site, before, hammer)
}

fn nobody_notices_an_empty_source(kind: DatabaseKind) {
    let (mut site, before, mut hammer) = busy_site(kind);
    for _ in 0..3 {
        site.source.restart();
        sleep(Duration::from_millis(1500));
    }
    let counts = hammer.stop();
    hammer.expect_unnoticed(&counts);
    let status = site.proxy().status();
    assert_eq!(status.sessions.resurrected, 0);
    assert!(status.sessions.restored >= before.len() as u64, "{:?}", status.sessions);
    let held = sessions(&site.source);
    let missing = before.iter().filter(|key| !held.contains_key(*key)).count();
    assert_eq!(missing, 0, "of {} sessions that nobody asked for", before.len());
    site.expect_whole(&hammer);
}

#[test]
fn nobody_notices_that_the_source_came_back_empty_with_sqlite() {
    nobody_notices_an_empty_source(DatabaseKind::Sqlite);
}

#[test]
fn nobody_notices_that_the_source_came_back_empty_with_postgres() {
    nobody_notices_an_empty_source(DatabaseKind::Postgres);
}

/// Nobody is connected who could notice the second one.
#[test]
fn a_source_that_is_restarted_again_at_once_logs_nobody_out() {
    let mut site = Site::prepare(DatabaseKind::Sqlite);
    let keys = site.django.fill("source", 50, 4);
    site.start_proxy(&[]);
    for kind in ["backfill", "verify"] {
        site.proxy().done(kind);
    }
    for round in 0..6 {
        site.source.restart_empty();
        eventually("every session is back", Duration::from_secs(10), || {
            site.source.ask::<usize>(&["DBSIZE"]) == keys.len()
        });
        site.source.restart_empty();
        let name = session(&keys[round]);
        let answer = Raw::connect(&site.proxy().address()).ask(&["GET", &name]);
        assert!(!answer.starts_with(b"$-1"), "round {round}: logged out");
        assert!(answer.starts_with(b"$"), "round {round}: {}", shown(&answer));
    }
    eventually("every session is back", Duration::from_secs(10), || {
        site.source.ask::<usize>(&["DBSIZE"]) == keys.len()
    });
}

/// A session that was still on its way when the source died is in no other store.
#[test]
fn what_no_other_store_had_yet_is_back_with_the_rest() {
    const OLD: u32 = 50;
    let mut moving = Moving::start(&[], None);
    moving.filled(OLD);
    // It can be read, and takes no writes.
    moving.target.ask::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    let fresh: Vec<String> = (OLD..OLD + 20).map(key).collect();
    let mut client = moving.client();
    for name in &fresh {
        expect(&mut client, &["SETEX", name, "100", "y"], "+OK\r\n");
    }
    moving.source.restart_empty();
    eventually("what the target has is back", Duration::from_secs(10), || {
        moving.proxy.log_text().contains("sessions that it had lost are back")
    });
    sleep(Duration::from_millis(100));
    let mut client = moving.client();
    for name in &fresh {
        expect(&mut client, &["GET", name], "$1\r\ny\r\n");
    }
    moving.target.ask::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    moving.delivered();
    for server in [&moving.source, &moving.target] {
        assert_eq!(server.ask::<u32>(&["DBSIZE"]), OLD + 20);
    }
}

/// After the move only the database could have it, and what it is still to be told is known.
#[test]
fn what_waits_for_the_database_is_back_after_the_move_too() {
    let mut site = Site::prepare(DatabaseKind::Postgres);
    let keys = site.django.fill("source", 3, 7);
    site.start_proxy(&[]);
    for kind in ["backfill", "verify", "cutover", "finish"] {
        site.proxy().done(kind);
    }
    let value = sessions(&site.target)[&keys[0]].value.clone();
    site.stop_database();
    let mut client = Raw::connect(&site.proxy().address());
    let name = key(1);
    let words = [b"SET".as_slice(), name.as_bytes(), &value, b"EX", b"5000"];
    assert_eq!(client.ask(&words), b"+OK\r\n");
    site.target.restart_empty();
    let answer = Raw::connect(&site.proxy().address()).ask(&["GET", &name]);
    assert!(
        answer.windows(value.len()).any(|part| part == value),
        "{}",
        shown(&answer)
    );
    site.restart_database();
}

/// Of two writes at once Redis tells once, so that these sessions are looked at again when they have been quiet: just
/// while the source is away, which then comes back without them.
#[test]
fn what_is_to_be_looked_at_again_is_not_lost_with_the_source() {
    let mut site = Site::prepare(DatabaseKind::Sqlite);
    let keys = site.django.fill("source", 200, 3);
    site.start_proxy(&[]);
    for kind in ["backfill", "verify"] {
        site.proxy().done(kind);
    }
    let values = sessions(&site.source);
    let mut client = Raw::connect(&site.proxy().address());
    for key in &keys {
        let name = session(key);
        let words = [b"SET".as_slice(), name.as_bytes(), &values[key].value, b"EX", b"5000"];
        client.send(&command(&words).repeat(2));
        client.frames(2);
    }
    site.proxy().settle();
    site.source.stop();
    sleep(Duration::from_secs(4));
    site.source.restart_empty();
    let back = || sessions(&site.source).len() == keys.len();
    eventually("every session is back", Duration::from_secs(10), back);
    // And is still there once everything that waited has been looked at.
    sleep(Duration::from_secs(1));
    site.proxy().settle();
    assert!(back(), "{} of {}", sessions(&site.source).len(), keys.len());
    assert_eq!(site.expect_same_everywhere(), keys.len());
}

#[test]
fn a_target_that_came_back_empty_is_filled_again_by_itself() {
    let (mut site, before, mut hammer) = busy_site(DatabaseKind::Sqlite);
    site.target.restart();
    let filled = || {
        let held = sessions(&site.target);
        before.iter().all(|key| held.contains_key(key))
    };
    eventually("the target has what was there before", Duration::from_secs(10), filled);
    let counts = hammer.stop();
    hammer.expect_unnoticed(&counts);
    site.expect_whole(&hammer);
}

#[test]
fn one_that_somebody_emptied_is_filled_too() {
    let moving = Moving::start(&[], None);
    moving.filled(100);
    moving.target.ask::<()>(&["FLUSHALL"]);
    eventually("the target has them again", Duration::from_secs(10), || {
        moving.target.ask::<u32>(&["DBSIZE"]) == 100
    });
}

#[test]
fn one_that_came_back_empty_while_the_proxy_was_not_there_is_filled_too() {
    let mut moving = Moving::start(&[], None);
    let mut client = moving.client();
    expect(&mut client, &["SETEX", &key(1), "100", "one"], "+OK\r\n");
    moving.delivered();
    moving.synced();
    moving.proxy.terminate();
    moving.target.restart();
    moving.proxy.restart();
    eventually("the target has it again", Duration::from_secs(5), || {
        moving.target.ask::<Option<String>>(&["GET", &key(1)]).is_some()
    });
}

#[test]
fn there_is_no_crossing_to_a_target_before_it_is_filled_again() {
    const SESSIONS: u32 = 2_000;
    let mut moving = Moving::start(&[], None);
    moving.filled(SESSIONS);
    moving.target.restart();
    // Until the proxy lets it.
    let answers: Vec<_> = std::iter::repeat_with(|| moving.proxy.cli(&["cutover"]))
        .take(100)
        .take_while(|answer| answer.code != 0)
        .collect();
    assert_eq!(moving.proxy.status().authority, Authority::Target);
    assert_eq!(moving.target.ask::<u32>(&["DBSIZE"]), SESSIONS);
    assert!(
        answers
            .iter()
            .any(|answer| answer.said().contains("was restarted and is being filled again"))
    );
}

#[test]
fn a_logout_that_waits_for_the_source_is_not_undone_by_putting_back() {
    const SESSIONS: u32 = 200;
    let mut moving = Moving::start(&[], None);
    moving.filled(SESSIONS);
    moving.source.stop();
    // Each on a connection of its own: those who read, and those who log out.
    let mut clients: Vec<_> = (0..SESSIONS)
        .map(|number| {
            let mut client = moving.client();
            let word = if number % 2 == 0 { "DEL" } else { "GET" };
            client.send(&command(&[word, &key(number)]));
            client
        })
        .collect();
    sleep(Duration::from_millis(300));
    moving.source.restart();
    for (number, client) in clients.iter_mut().enumerate() {
        let answer = shown(&client.frame());
        if number % 2 == 1 {
            assert_eq!(answer, shown(b"$1\r\nx\r\n"));
        }
    }
    moving.delivered();
    eventually("the source is trusted again", PATIENCE, || {
        moving.proxy.log_text().contains("sessions that it had lost are back")
    });
    moving.delivered();
    for number in 0..SESSIONS {
        let expected = (number % 2 == 1).then(|| "x".to_owned());
        for server in [&moving.source, &moving.target] {
            assert_eq!(
                server.ask::<Option<String>>(&["GET", &key(number)]),
                expected,
                "{number}"
            );
        }
    }
}

#[test]
fn who_logs_out_during_a_restore_stays_logged_out() {
    const SESSIONS: u32 = 20_000;
    let mut moving = Moving::start(&[], None);
    let mut client = moving.client();
    let all: Vec<u8> = (0..SESSIONS)
        .flat_map(|number| command(&["SETEX", &key(number), "100", "x"]))
        .collect();
    client.send(&all);
    client.frames(SESSIONS as usize);
    moving.delivered();
    moving.proxy.terminate();
    moving.source.restart();
    moving.proxy.restart();
    let mut dice = StdRng::seed_from_u64(seed());
    let mut leaving: Vec<u32> = (0..SESSIONS).collect();
    leaving.shuffle(&mut dice);
    leaving.truncate(SESSIONS as usize / 4);
    let mut client = moving.client();
    moving.proxy.cli(&["restore", "--no-wait"]).expect(0);
    for number in &leaving {
        client.ask(&["DEL", &key(*number)]);
    }
    eventually("the restore is over", Duration::from_secs(20), || {
        moving.proxy.status().operation.is_none()
    });
    moving.delivered();
    for server in [&moving.source, &moving.target] {
        let back = leaving
            .iter()
            .filter(|number| server.ask::<bool>(&["EXISTS", &key(**number)]));
        assert_eq!(back.count(), 0, "came back");
        assert_eq!(server.ask::<u32>(&["DBSIZE"]), SESSIONS - leaving.len() as u32);
    }
}

fn rows_go_back(kind: DatabaseKind) {
    let mut site = Site::prepare(kind);
    let keys = site.django.fill("source", 200, 2);
    site.start_proxy(&[]);
    site.proxy().done("backfill");
    site.proxy().settle();
    let unstorable = site.proxy().status().sessions.unstorable as usize;
    let before = site.django.load("cache", "source", &keys);
    site.proxy_mut().terminate();
    site.source.restart();
    site.target.restart();
    // Without a proxy, into any Redis.
    let expected = keys.len() - unstorable;
    let mut restore = binary(site.proxy().dir());
    restore.args([
        "restore",
        "--to",
        &site.target.url(),
        "--database",
        &site.database_url(),
    ]);
    restore.args(["--secret-key", SECRET, "--json"]);
    let restored = Answer::of(&mut restore).expect(0).json();
    assert_eq!(
        (&restored["restored"], &restored["present"]),
        (&expected.into(), &0.into())
    );
    assert_eq!(sessions(&site.target).len(), expected);
    let again = Answer::of(&mut restore).expect(0).json();
    assert_eq!((&again["restored"], &again["present"]), (&0.into(), &expected.into()));
    site.target.restart();

    site.proxy_mut().restart();
    assert_eq!(
        sessions(&site.source).len(),
        0,
        "what went around the proxy is not known"
    );
    let answer = site.proxy().cli(&["restore"]).expect(0);
    assert!(
        answer.out.contains(&format!("restore: {expected} session(s) put back")),
        "{}",
        answer.out
    );
    // Real Django finds every session as it was.
    let mut same = 0;
    for (before, after) in before.iter().zip(site.django.load("cache", "source", &keys)) {
        same += usize::from(format!("{before:?}") == format!("{after:?}"));
    }
    assert_eq!(same, expected);
    site.proxy().settle();
    assert_eq!(sessions(&site.target).len(), expected);
    // Nothing more to do.
    let again = site.proxy().cli(&["restore"]).expect(0);
    assert!(again.out.contains("restore: 0 session(s) put back"), "{}", again.out);
}

#[test]
fn rows_become_sessions_that_django_reads_with_sqlite() {
    rows_go_back(DatabaseKind::Sqlite);
}

#[test]
fn rows_become_sessions_that_django_reads_with_postgres() {
    rows_go_back(DatabaseKind::Postgres);
}

#[test]
fn rows_become_sessions_that_django_reads_with_mariadb() {
    rows_go_back(DatabaseKind::MariaDb);
}
