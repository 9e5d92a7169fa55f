//! `tee.ack`: when the reply to a session write leaves.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use super::support::{
    DatabaseKind, Proxy, ProxyOptions, Raw, RedisServer, Site, command, eventually, resp::shown, session,
    site::sessions,
};

fn key(number: u32) -> String {
    session(&format!("{number:032}"))
}

#[test]
fn with_target_a_reply_means_that_the_other_redis_has_it() {
    let (source, target) = (RedisServer::start(&[]), RedisServer::start(&[]));
    let proxy = Proxy::start(ProxyOptions::between(&source, &target).args(&["--ack", "target"]));
    let mut client = Raw::connect(&proxy.address());
    for number in 0..200 {
        assert_eq!(
            shown(&client.ask(&["SETEX", &key(number), "100", "x"])),
            shown(b"+OK\r\n")
        );
        assert!(target.ask::<bool>(&["EXISTS", &key(number)]), "{number}");
    }
    assert_eq!(client.ask(&["DEL", &key(0)]), b":1\r\n");
    assert!(!target.ask::<bool>(&["EXISTS", &key(0)]));
    // What is no session, or changes none, does not wait.
    target.freeze();
    let mut other = Raw::connect(&proxy.address());
    assert_eq!(client.ask(&["SET", "x", "y"]), b"+OK\r\n");
    assert_eq!(client.ask(&["SET", &key(1), "x", "NX"]), b"$-1\r\n");
    // Nothing overtakes what waits on its own connection; other connections go on.
    let began = Instant::now();
    client.send(&[command(&["SETEX", &key(300), "100", "x"]), command(&["GET", "x"])].concat());
    sleep(Duration::from_millis(300));
    assert_eq!(other.ask(&["GET", &key(300)]), b"$1\r\nx\r\n", "the source has it");
    assert!(client.unasked(Duration::from_millis(300)).is_empty());
    target.thaw();
    assert_eq!(client.frames(2), [b"+OK\r\n".to_vec(), b"$1\r\ny\r\n".to_vec()]);
    assert!(began.elapsed() > Duration::from_millis(500));
    assert!(target.ask::<bool>(&["EXISTS", &key(300)]));
}

#[test]
fn django_is_not_made_to_wait_until_it_gives_up() {
    let (source, mut target) = (RedisServer::start(&[]), RedisServer::start(&[]));
    let proxy = Proxy::start(ProxyOptions::between(&source, &target).args(&["--ack", "target"]));
    target.stop();
    let mut client = Raw::connect(&proxy.address());
    let began = Instant::now();
    assert_eq!(client.ask(&["SETEX", &key(1), "100", "x"]), b"+OK\r\n");
    let waited = began.elapsed();
    assert!(
        (Duration::from_millis(3500)..Duration::from_millis(4800)).contains(&waited),
        "{waited:?}"
    );
    let (_, metrics) = proxy.get("/metrics").unwrap();
    assert!(metrics.contains("sessionferry_late_acks_total 1\n"), "{metrics}");
    target.restart();
    eventually("it arrives all the same", Duration::from_secs(5), || {
        target.ask::<bool>(&["EXISTS", &key(1)])
    });
}

#[test]
fn with_all_the_database_has_it_too() {
    let mut site = Site::prepare(DatabaseKind::Postgres);
    site.start_proxy(&["--ack", "all"]);
    let proxied = site.django_of("5.2");
    for number in 0..30 {
        let key = proxied.save("proxy", &serde_json::json!({"number": number}));
        assert!(sessions(&site.target).contains_key(&key), "{number}");
        let seen = site.django.load_one("cached_db", "empty", &key);
        assert_eq!(
            seen.json,
            Some(format!("dict{{str:'number':int:{number}}}")),
            "{seen:?}"
        );
    }
}
