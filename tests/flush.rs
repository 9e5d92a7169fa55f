//! `tee.on_flush`: what FLUSHDB and its like do to the sessions.
#![cfg(feature = "net")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod support;

use std::time::Duration;

use support::{
    DatabaseKind, Raw, Site, command, eventually,
    moving::{Moving, PATIENCE, expect, key},
    resp::shown,
    site::sessions,
};

const SHIELD: &str = "[tee]\non_flush = \"shield\"\n";

fn filled(client: &mut Raw) {
    for number in 0..100 {
        expect(client, &["SETEX", &key(number), "100", "x"], "+OK\r\n");
        expect(client, &["SET", &format!("other{number}"), "x"], "+OK\r\n");
    }
}

fn counts(moving: &Moving) -> [u32; 2] {
    [&moving.source, &moving.target].map(|server| server.ask(&["DBSIZE"]))
}

#[test]
fn a_shield_spares_the_sessions_and_nothing_else() {
    let moving = Moving::start(&[], Some(SHIELD));
    let mut client = moving.client();
    filled(&mut client);
    moving.delivered();
    // In their order, with what comes before and after.
    let asked = [
        &["GET", "other1"][..],
        &["FLUSHDB"],
        &["GET", "other1"],
        &["GET", &key(1)],
    ];
    client.send(&asked.map(command).concat());
    let answers: Vec<String> = client.frames(4).iter().map(|answer| shown(answer)).collect();
    assert_eq!(
        answers,
        ["$1\r\nx\r\n", "+OK\r\n", "$-1\r\n", "$1\r\nx\r\n"].map(|text| shown(text.as_bytes()))
    );
    assert_eq!(counts(&moving), [100, 100]);

    filled(&mut client);
    expect(&mut client, &["SELECT", "3"], "+OK\r\n");
    expect(&mut client, &["SET", "there", "x"], "+OK\r\n");
    expect(&mut client, &["flushall", "ASYNC"], "+OK\r\n");
    expect(&mut client, &["GET", "there"], "$-1\r\n");
    assert_eq!(counts(&moving), [100, 100]);
    // A database without sessions is emptied by Redis itself.
    expect(&mut client, &["SET", "there", "x"], "+OK\r\n");
    expect(&mut client, &["FLUSHDB"], "+OK\r\n");
    expect(&mut client, &["DBSIZE"], ":0\r\n");
    assert_eq!(counts(&moving), [100, 100]);
    expect(&mut client, &["FLUSHDB", "SLOWLY"], "-ERR syntax error\r\n");
}

#[test]
fn what_cannot_be_spared_is_refused() {
    let moving = Moving::start(&[], Some(SHIELD));
    let mut client = moving.client();
    filled(&mut client);
    let refused = |client: &mut Raw, words: &[&str]| {
        let answer = shown(&client.ask(words));
        assert!(answer.starts_with("-ERR sessionferry: refused"), "{words:?}: {answer}");
    };
    refused(&mut client, &["SWAPDB", "0", "1"]);
    expect(&mut client, &["SWAPDB", "2", "3"], "+OK\r\n");
    expect(&mut client, &["MULTI"], "+OK\r\n");
    refused(&mut client, &["FLUSHALL"]);
    expect(&mut client, &["DISCARD"], "+OK\r\n");
    // Another user's rights are not the proxy's.
    let user = ["ACL", "SETUSER", "cache", "on", ">pass", "~cache:*", "+@all"];
    expect(&mut client, &user, "+OK\r\n");
    let mut cache = moving.client();
    expect(&mut cache, &["AUTH", "cache", "pass"], "+OK\r\n");
    refused(&mut cache, &["FLUSHDB"]);
    assert_eq!(moving.source.ask::<u32>(&["DBSIZE"]), 200);
}

#[test]
fn clearing_djangos_cache_logs_nobody_out() {
    let mut site = Site::prepare(DatabaseKind::Sqlite);
    site.start_proxy(&["--on-flush", "shield"]);
    let django = site.django_of("5.2");
    let keys = django.fill("proxy", 50, 1);
    let mut client = Raw::connect(&site.proxy().address());
    assert_eq!(client.ask(&["SET", ":1:page", "x"]), b"+OK\r\n");
    // What `cache.clear()` sends.
    assert_eq!(client.ask(&["FLUSHDB"]), b"+OK\r\n");
    assert_eq!(client.ask(&["EXISTS", ":1:page"]), b":0\r\n");
    let held = sessions(&site.source);
    assert!(keys.iter().all(|key| held.contains_key(key)));
    site.expect_same_everywhere();
}

#[test]
fn without_a_shield_they_are_gone_everywhere() {
    let moving = Moving::start(&[], None);
    let mut client = moving.client();
    filled(&mut client);
    moving.delivered();
    expect(&mut client, &["FLUSHALL"], "+OK\r\n");
    eventually("the target has none", PATIENCE.min(Duration::from_secs(5)), || {
        counts(&moving) == [0, 0]
    });
}
