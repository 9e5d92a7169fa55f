//! Valkey in place of Redis: the move there is the usual one, and nobody notices.
#![cfg(feature = "net")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod support;

use std::{thread::sleep, time::Duration};

use sessionferry::status::Authority;
use support::{DatabaseKind, Hammer, RedisServer, Site, Software, django, site::sessions};

/// There, where it loses everything once, and back; all the while visitors come and go.
fn move_there_and_back(source: Software) {
    let (source, target) = (
        RedisServer::start_as(source, &[]),
        RedisServer::start_as(Software::Valkey, &[]),
    );
    let mut site = Site::between(DatabaseKind::Sqlite, django::USUAL, source, target, &[]);
    let before = site.django.fill("source", 200, 7);
    site.start_proxy(&[]);
    let mut hammer = Hammer::start("5.2", &site.proxy().url(), 30, &["--logout", "0.2"]);
    for kind in ["backfill", "verify", "cutover"] {
        site.proxy().done(kind);
    }
    assert_eq!(site.proxy().status().authority, Authority::Target);
    sleep(Duration::from_secs(1));
    site.target.restart();
    sleep(Duration::from_millis(1500));
    let status = site.proxy().status();
    assert!(status.sessions.restored >= before.len() as u64, "{:?}", status.sessions);
    for kind in ["verify", "rollback"] {
        site.proxy().done(kind);
    }
    sleep(Duration::from_secs(1));
    let counts = hammer.stop();
    hammer.expect_unnoticed(&counts);
    let held = sessions(&site.source);
    assert!(before.iter().all(|key| held.contains_key(key)));
    site.expect_whole(&hammer);
    // What the proxy did not send is noticed here, too.
    let bypassing = || site.proxy().status().sessions.bypassing_writes;
    let known = bypassing();
    let gone = &before[0];
    site.source.ask::<i64>(&["DEL", &support::session(gone)]);
    support::eventually("a write past the proxy is seen", Duration::from_secs(10), || {
        bypassing() > known
    });
    site.expect_same_everywhere();
}

#[test]
fn nobody_notices_a_move_from_redis_to_valkey_and_back() {
    if Software::Valkey.is_here() {
        move_there_and_back(Software::Redis);
    }
}

#[test]
fn nobody_notices_a_move_between_valkeys() {
    if Software::Valkey.is_here() {
        move_there_and_back(Software::Valkey);
    }
}
