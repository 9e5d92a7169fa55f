//! The authority is away: sessions are still read, from wherever they are, and nothing is answered that is not certain.
#![cfg(feature = "net")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod support;

use std::{thread::sleep, time::Duration};

use support::{
    DatabaseKind, Raw, Site, command,
    django::Seen,
    eventually,
    moving::{Moving, PATIENCE, expect, key},
    resp::shown,
    session,
};

const AWAY: &str = "-ERR sessionferry: the source Redis cannot be reached; gave up after 4 s\r\n";

#[test]
fn sessions_are_read_from_the_target_while_the_source_is_away() {
    let mut moving = Moving::start(&[], None);
    let mut client = moving.client();
    expect(&mut client, &["SETEX", &key(1), "100", "one"], "+OK\r\n");
    expect(&mut client, &["SETEX", &key(2), "100", "two"], "+OK\r\n");
    expect(&mut client, &["SET", "other", "x"], "+OK\r\n");
    expect(&mut client, &["DEL", &key(2)], ":1\r\n");
    moving.delivered();
    moving.synced();
    let mut newer = moving.client();
    newer.ask(&["HELLO", "3"]);
    expect(&mut newer, &["GET", &key(1)], "$3\r\none\r\n");

    moving.source.stop();
    expect(&mut client, &["GET", &key(1)], "$3\r\none\r\n");
    expect(&mut client, &["EXISTS", &key(1)], ":1\r\n");
    expect(&mut client, &["GET", &key(2)], "$-1\r\n");
    expect(&mut newer, &["GET", &key(1)], "$3\r\none\r\n");
    expect(&mut newer, &["GET", &key(3)], "_\r\n");
    // Many at once, in their order.
    let asked: Vec<u8> = (0..3).flat_map(|_| command(&["GET", &key(1)])).collect();
    client.send(&[asked, command(&["GET", &key(2)])].concat());
    let answers = client.frames(4);
    assert_eq!(answers.concat(), b"$3\r\none\r\n$3\r\none\r\n$3\r\none\r\n$-1\r\n");
    let status = moving.proxy.status();
    assert_eq!(status.sessions.rescued_reads, 9);
    // What is no session is only in the source.
    expect(&mut client, &["GET", "other"], AWAY);

    moving.source.restart();
    moving.source.ask::<()>(&["SETEX", &key(1), "100", "from the source"]);
    eventually("the source answers again", PATIENCE, || {
        moving.client().ask(&["GET", &key(1)]) == b"$15\r\nfrom the source\r\n"
    });
}

/// Of two writes at once Redis tells once, so these sessions are to be looked at again when they have been quiet: while the
/// source is away.
#[test]
fn what_is_only_looked_at_again_to_be_sure_is_certain_enough() {
    let mut moving = Moving::start(&[], None);
    let mut client = moving.client();
    let twice = [
        command(&["SETEX", &key(1), "100", "two"]),
        command(&["SETEX", &key(1), "100", "one"]),
    ];
    client.send(&twice.concat());
    client.frames(2);
    let gone = [command(&["SETEX", &key(2), "100", "two"]), command(&["DEL", &key(2)])];
    client.send(&gone.concat());
    client.frames(2);
    moving.delivered();
    moving.synced();
    moving.source.stop();
    sleep(Duration::from_secs(4));
    let mut newer = moving.client();
    expect(&mut newer, &["GET", &key(1)], "$3\r\none\r\n");
    expect(&mut newer, &["GET", &key(2)], "$-1\r\n");
}

#[test]
fn what_is_not_certain_is_not_answered() {
    let mut moving = Moving::start(&[], None);
    let mut client = moving.client();
    expect(&mut client, &["SETEX", &key(1), "100", "one"], "+OK\r\n");
    moving.delivered();
    // The target lacks a change that only the source can tell of.
    moving.target.freeze();
    expect(&mut client, &["SETEX", &key(2), "100", "two"], "+OK\r\n");
    expect(&mut client, &["APPEND", &key(1), "+"], ":4\r\n");
    moving.source.stop();
    // On its way to the target, and known.
    expect(&mut client, &["GET", &key(2)], "$3\r\ntwo\r\n");
    expect(&mut client, &["GET", &key(1)], AWAY);
    moving.target.thaw();
    // Not copied yet, perhaps.
    expect(&mut client, &["GET", &key(3)], AWAY);
    // Behind a write of the same client: its answer must not come first, nor be older.
    client.send(&[command(&["SETEX", &key(2), "100", "new"]), command(&["GET", &key(2)])].concat());
    let answers = client.frames(2);
    assert_eq!(shown(&answers[0]), shown(AWAY.as_bytes()));
}

#[test]
fn where_both_redis_are_away_django_reads_the_rows() {
    let mut site = Site::start(DatabaseKind::Sqlite);
    let django = site.django_of("5.2");
    let keys = django.fill("proxy", 20, 1);
    site.proxy().settle();
    for kind in ["backfill", "verify"] {
        site.proxy().done(kind);
    }
    sleep(Duration::from_secs(1));
    let before = django.load("cache", "proxy", &keys);
    site.source.stop();
    site.target.stop();
    let after = django.load("cache", "proxy", &keys);
    let content = |seen: &[Seen]| {
        seen.iter()
            .map(|seen| (seen.found, seen.exact.clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(content(&before), content(&after));
    assert!(after.iter().all(|seen| seen.found));
    // Who has no session is told so, and does not wait.
    let mut client = Raw::connect(&site.proxy().address());
    expect(&mut client, &["GET", &session(&"a".repeat(32))], "$-1\r\n");
}

#[test]
fn a_source_that_still_loads_its_data_logs_nobody_out() {
    const SESSIONS: u32 = 600;
    let mut moving = Moving::start(&[], None);
    moving.filled(SESSIONS);
    let mut client = moving.client();
    moving.source.ask::<()>(&["SAVE"]);
    // Three seconds to load, answering meanwhile.
    let slowly = [
        "--key-load-delay",
        "5000",
        "--loading-process-events-interval-bytes",
        "1024",
    ];
    moving.source.restart_loading(&slowly);
    let mut direct = Raw::connect(&moving.source.address());
    assert!(
        direct.ask(&["GET", &key(1)]).starts_with(b"-LOADING"),
        "it is not loading"
    );
    expect(&mut client, &["GET", &key(1)], "$1\r\nx\r\n");
    assert!(moving.proxy.status().sessions.rescued_reads > 0);
    expect(&mut client, &["SETEX", &key(1), "100", "new"], "+OK\r\n");
    assert_eq!(direct.ask(&["GET", &key(1)]), b"$3\r\nnew\r\n");
    // What is no session hears what Redis says.
    moving.source.restart_loading(&[]);
    assert!(direct_reply(&moving).starts_with(b"-LOADING"));
    let answer = moving.client().ask(&["GET", "other"]);
    assert!(answer.starts_with(b"-LOADING"), "{}", shown(&answer));
}

fn direct_reply(moving: &Moving) -> Vec<u8> {
    Raw::connect(&moving.source.address()).ask(&["GET", "other"])
}

#[test]
fn a_stranger_is_told_nothing() {
    let mut moving = Moving::start(&["--requirepass", "secret"], None);
    let mut known = moving.client();
    expect(&mut known, &["AUTH", "secret"], "+OK\r\n");
    expect(&mut known, &["SETEX", &key(1), "100", "one"], "+OK\r\n");
    moving.delivered();
    let mut stranger = moving.client();
    assert!(stranger.ask(&["GET", &key(1)]).starts_with(b"-NOAUTH"));
    moving.source.stop();
    expect(&mut known, &["GET", &key(1)], "$3\r\none\r\n");
    expect(&mut stranger, &["GET", &key(1)], AWAY);
}

#[test]
fn a_user_of_the_servers_is_told_nothing_that_only_the_server_could_allow() {
    let mut moving = Moving::start(&[], None);
    let mut admin = moving.client();
    expect(&mut admin, &["SETEX", &key(1), "100", "one"], "+OK\r\n");
    let user = ["ACL", "SETUSER", "cache", "on", ">cache-pass", "~cache:*", "+@all"];
    expect(&mut admin, &user, "+OK\r\n");
    moving.delivered();
    let mut cache = moving.client();
    expect(&mut cache, &["AUTH", "cache", "cache-pass"], "+OK\r\n");
    assert!(cache.ask(&["GET", &key(1)]).starts_with(b"-NOPERM"));
    moving.source.stop();
    expect(&mut cache, &["GET", &key(1)], AWAY);
    expect(&mut admin, &["GET", &key(1)], "$3\r\none\r\n");
}

#[test]
fn who_came_after_a_password_was_set_is_told_nothing() {
    let mut moving = Moving::start(&[], None);
    let mut admin = moving.client();
    expect(&mut admin, &["SETEX", &key(1), "100", "one"], "+OK\r\n");
    moving.delivered();
    expect(&mut admin, &["CONFIG", "SET", "requirepass", "secret"], "+OK\r\n");
    // Before anybody can ask it what it does with strangers now.
    moving.source.stop();
    let mut stranger = moving.client();
    expect(&mut stranger, &["GET", &key(1)], AWAY);
    // Who was let in stays in.
    expect(&mut admin, &["GET", &key(1)], "$3\r\none\r\n");
}
