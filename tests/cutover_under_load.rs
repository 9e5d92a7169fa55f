//! Cutover and rollback while visitors are busy: nobody notices, nothing is lost, no logout is undone.
#![cfg(feature = "net")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod support;

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use sessionferry::status::{Authority, CutoverState};
use support::{DatabaseKind, Hammer, Load, Site};

/// There and back, so many times.
const CROSSINGS: usize = 10;

/// Longer than this and a client may give up; Django's own waits 5 s.
const LONGEST_REPLY: Duration = Duration::from_secs(3);

/// Crosses ten times and says how long clients were held each time.
fn cross(site: &Site) -> Vec<f64> {
    let proxy = site.proxy();
    proxy.done("backfill");
    proxy.done("verify");
    let mut holds = Vec::new();
    for number in 0..CROSSINGS {
        let (kind, authority) = if number % 2 == 0 {
            ("cutover", Authority::Target)
        } else {
            ("rollback", Authority::Source)
        };
        proxy.done(kind);
        let status = proxy.status();
        assert_eq!(status.authority, authority, "after {kind} {number}");
        assert_eq!(
            status.cutover.state,
            CutoverState::Done,
            "after {kind} {number}: {:?}",
            status.cutover
        );
        let hold = status.cutover.hold_seconds.unwrap();
        println!(
            "{kind} {number}: held clients for {:.1} ms, {} held",
            hold * 1_000.0,
            status.clients.held
        );
        holds.push(hold);
        // Some life on this side before going back.
        sleep(Duration::from_millis(500));
        if kind == "rollback" {
            proxy.done("verify");
        }
    }
    let longest = holds.iter().copied().fold(0.0, f64::max);
    println!("{CROSSINGS} crossings, the longest hold {:.1} ms", longest * 1_000.0);
    assert!(longest < 2.0, "a hold over max_hold: {holds:?}");
    holds
}

fn django_crosses_under_load(kind: DatabaseKind) {
    let site = Site::start(kind);
    let mut hammer = Hammer::start("5.2", &site.proxy().url(), 200, &[]);
    cross(&site);
    // One more, to stay on the other side.
    site.proxy().done("cutover");
    sleep(Duration::from_millis(500));
    let counts = hammer.stop();
    hammer.expect_unnoticed(&counts);
    let tries = hammer.events("try");
    let slowest = tries.len();
    assert!(slowest > 1_000, "hardly any load: {slowest} writes");
    let longest = ["write", "create", "logout"]
        .iter()
        .flat_map(|kind| hammer.events(kind))
        .map(|event| event["ended"].as_f64().unwrap() - event["began"].as_f64().unwrap())
        .fold(0.0, f64::max);
    println!("the longest save took {:.0} ms", longest * 1_000.0);
    site.proxy().settle();
    let django = site.django_of("5.2");
    django
        .check(&hammer.log(), "cache", "target")
        .expect_nothing_lost("target, the authority");
    django
        .check(&hammer.log(), "cache", "proxy")
        .expect_nothing_lost("proxy");
    django
        .check(&hammer.log(), "cache", "source")
        .expect_nothing_lost("source, teed back");
    django
        .check(&hammer.log(), "cached_db", "empty")
        .expect_nothing_lost("database");
    site.expect_same_everywhere();
}

#[test]
fn two_hundred_django_visitors_do_not_notice_ten_crossings_with_sqlite() {
    django_crosses_under_load(DatabaseKind::Sqlite);
}

#[test]
fn two_hundred_django_visitors_do_not_notice_ten_crossings_with_postgres() {
    django_crosses_under_load(DatabaseKind::Postgres);
}

#[test]
fn two_hundred_clients_at_full_speed_do_not_notice_ten_crossings() {
    let site = Site::start(DatabaseKind::Postgres);
    let load = Load::start(&site.proxy().address(), 200);
    sleep(Duration::from_millis(500));
    cross(&site);
    let report = load.stop();
    assert!(
        report.wrong.is_empty(),
        "{} clients noticed: {:#?}",
        report.wrong.len(),
        &report.wrong[..report.wrong.len().min(10)]
    );
    assert!(report.slowest < LONGEST_REPLY, "a reply took {:?}", report.slowest);
    site.proxy().settle();
    report.check("source, the authority", &mut site.source.connection());
    report.check("target", &mut site.target.connection());
    site.expect_same_everywhere();
}

#[test]
fn open_transactions_blocked_and_subscribed_clients_come_along() {
    let site = Site::start(DatabaseKind::Sqlite);
    let proxy = site.proxy();
    proxy.done("backfill");
    proxy.done("verify");
    let address = proxy.address();
    let [mut queued, mut watching, mut blocked, mut subscribed, mut named] =
        std::array::from_fn(|_| support::Raw::connect(&address));
    assert_eq!(queued.ask(&["MULTI"]), b"+OK\r\n");
    assert_eq!(queued.ask(&["SET", "queued", "1"]), b"+QUEUED\r\n");
    named.ask(&["SET", "watched", "1"]);
    watching.ask(&["WATCH", "watched"]);
    watching.ask(&["MULTI"]);
    watching.ask(&["SET", "watched", "2"]);
    blocked.send(&support::command(&["BLPOP", "queue", "20"]));
    subscribed.ask(&["SUBSCRIBE", "news"]);
    named.ask(&["HELLO", "3"]);
    named.ask(&["SELECT", "4"]);
    named.ask(&["CLIENT", "SETNAME", "me"]);
    named.ask(&["SET", "there", "4"]);
    let sha = named.ask(&["SCRIPT", "LOAD", "return 'loaded'"]);
    let sha = String::from_utf8(sha).unwrap().lines().nth(1).unwrap().to_owned();
    let began = Instant::now();
    proxy.done("cutover");
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "the cutover waited for a blocked client"
    );
    // The transaction is executed on the new side.
    assert_eq!(queued.ask(&["EXEC"]), b"*1\r\n+OK\r\n");
    assert_eq!(
        site.target.ask::<Option<String>>(&["GET", "queued"]).as_deref(),
        Some("1")
    );
    // A watch cannot be kept: the client is told what Redis tells whose key was changed, and tries again.
    let reply = watching.ask(&["EXEC"]);
    assert!(
        [b"*-1\r\n".as_slice(), b"*1\r\n+OK\r\n"].contains(&reply.as_slice()),
        "{}",
        support::resp::shown(&reply)
    );
    // State that was set is still set.
    assert_eq!(named.ask(&["CLIENT", "GETNAME"]), b"$2\r\nme\r\n");
    named.ask(&["SET", "here", "4"]);
    let mut target = site.target.connection();
    support::redis_server::ask::<()>(&mut target, &["SELECT", "4"]);
    assert_eq!(
        support::redis_server::ask::<Option<String>>(&mut target, &["GET", "here"]).as_deref(),
        Some("4")
    );
    assert_eq!(named.ask(&["GET", "nothing"]), b"_\r\n");
    assert_eq!(named.ask(&["EVALSHA", &sha, "0"]), b"$6\r\nloaded\r\n");
    // Who waits and who listens does so on the new side.
    let mut other = support::Raw::connect(&address);
    assert_eq!(other.ask(&["PUBLISH", "news", "moved"]), b":1\r\n");
    assert_eq!(
        subscribed.frame(),
        b"*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$5\r\nmoved\r\n"
    );
    assert_eq!(other.ask(&["RPUSH", "queue", "job"]), b":1\r\n");
    assert_eq!(blocked.frame(), b"*2\r\n$5\r\nqueue\r\n$3\r\njob\r\n");
    for client in [&mut queued, &mut watching, &mut blocked, &mut subscribed, &mut named] {
        assert!(
            client.unasked(Duration::from_millis(50)).is_empty(),
            "a client got what it had not asked for"
        );
    }
}
