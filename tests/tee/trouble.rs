//! Stores that are away or hang, writers that come at once or past the proxy.

use super::*;

#[test]
fn writes_while_the_target_is_away_arrive_when_it_is_back() {
    let mut teed = Teed::start();
    teed.send(&[
        "SET {before} @1 EX 1000",
        "SET {changed} @1 EX 1000",
        "SET {logout} @1 EX 1000",
    ]);
    teed.site.expect_same_everywhere();
    teed.site.target.stop();
    for number in 0..500 {
        teed.send(&[&format!("SET {{away{number}x}} @1 EX 1000")]);
    }
    teed.send(&["SET {changed} @2 EX 1000", "DEL {logout}", "EXPIRE {before} 5000"]);
    let tee = teed.site.proxy().status().tee;
    assert!(tee.target.pending + tee.target.dirty >= 500, "{tee:#?}");
    assert!(!tee.target.connected, "{tee:#?}");
    // It comes back empty: what was there before is the backfill's matter, what changed is the tee's.
    teed.site.target.restart();
    teed.site.proxy().settle();
    eventually("all that was written has arrived", Duration::from_secs(10), || {
        let there = sessions(&teed.site.target);
        there.len() >= 501 && there.get(&key("changed")).is_some_and(|held| held.value == teed.two)
    });
    assert!(!sessions(&teed.site.target).contains_key(&key("logout")));
    assert!(teed.site.proxy().status().tee.target.connected);
    teed.site.proxy().done("backfill");
    assert_eq!(teed.site.expect_same_everywhere(), 502);
}

#[test]
fn a_target_that_hangs_holds_up_no_client() {
    let teed = Teed::start();
    teed.send(&["SET {before} @1 EX 1000"]);
    teed.site.expect_same_everywhere();
    teed.site.target.freeze();
    for number in 0..50 {
        let began = Instant::now();
        teed.send(&[&format!("SET {{hang{number}x}} @1 EX 1000")]);
        assert!(
            began.elapsed() < Duration::from_secs(1),
            "a write took {:?}",
            began.elapsed()
        );
    }
    sleep(Duration::from_secs(3));
    teed.send(&["DEL {hang0x}", "SET {hang1x} @2 EX 1000"]);
    teed.site.target.thaw();
    assert_eq!(teed.site.expect_same_everywhere(), 50);
}

#[test]
fn writes_while_the_database_is_away_arrive_when_it_is_back() {
    for kind in [DatabaseKind::Postgres, DatabaseKind::MariaDb] {
        let mut teed = Teed::on(Site::start(kind));
        teed.send(&["SET {changed} @1 EX 1000", "SET {logout} @1 EX 1000"]);
        teed.site.expect_same_everywhere();
        teed.site.stop_database();
        let began = Instant::now();
        for number in 0..200 {
            teed.send(&[&format!("SET {{away{number}x}} @1 EX 1000")]);
        }
        teed.send(&["SET {changed} @2 EX 1000", "DEL {logout}"]);
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "clients waited for the database: {:?}",
            began.elapsed()
        );
        let tee = teed.site.proxy().status().tee;
        assert!(tee.database.pending + tee.database.dirty >= 200, "{kind:?}: {tee:#?}");
        eventually(
            "the other Redis does not wait for the database",
            Duration::from_secs(2),
            || teed.site.proxy().status().tee.target.pending == 0,
        );
        teed.site.restart_database();
        assert_eq!(teed.site.expect_same_everywhere(), 201, "{kind:?}");
    }
}

#[test]
fn clients_that_change_the_same_sessions_at_once_leave_the_stores_equal() {
    let teed = Teed::start();
    let began = Instant::now();
    scope(|threads| {
        for client in 0..16_u32 {
            let teed = &teed;
            threads.spawn(move || {
                let mut connection = teed.site.proxy().connection();
                for round in 0..300_u32 {
                    let dice = client.wrapping_mul(7_919).wrapping_add(round.wrapping_mul(104_729)) >> 3;
                    let name = format!("{{same{}x}}", dice % 10);
                    let line = match dice % 7 {
                        0 => format!("DEL {name}"),
                        1 => format!("EXPIRE {name} {}", 1_000 + dice % 50_000),
                        2 => format!("PERSIST {name}"),
                        3 => format!("SET {name} @1 NX EX 3000"),
                        4 => format!("SET {name} @1 EX {}", 1_000 + dice % 50_000),
                        5 => format!("GETDEL {name}"),
                        _ => format!("SET {name} @2 KEEPTTL"),
                    };
                    teed.words(&line).exec(&mut connection).unwrap();
                }
            });
        }
    });
    println!("4,800 writes to 10 sessions in {:?}", began.elapsed());
    // Something has to be left to compare.
    teed.send(&["SET {same0x} @1 EX 1000"]);
    teed.site.expect_same_everywhere();
}

#[test]
fn writes_that_go_past_the_proxy_are_seen() {
    see_what_goes_past(&Teed::start(), "tracking");
}

/// An old server has no tracking; here the proxy may not use it.
const NO_TRACKING: [&str; 8] = [
    "--user",
    "default",
    "on",
    "nopass",
    "~*",
    "&*",
    "+@all",
    "-client|tracking",
];

fn without_tracking(events: &str) -> Teed {
    let source = [&NO_TRACKING[..], &["--notify-keyspace-events", events]].concat();
    let mut site = Site::prepare_with(DatabaseKind::Sqlite, "5.2", &source, &[]);
    site.start_proxy(&[]);
    Teed::on(site)
}

#[test]
fn notifications_tell_of_them_where_tracking_is_refused() {
    let teed = without_tracking("KA");
    see_what_goes_past(&teed, "notifications");
    // What comes through the proxy is not taken for it: SET with a deadline is told of twice.
    let bypassing = || teed.site.proxy().status().sessions.bypassing_writes;
    let before = bypassing();
    for line in [
        "SET {a} @1 EX 1000",
        "EXPIRE {a} 500",
        "SET {a} @2",
        "DEL {a}",
        "SETEX {a} 1000 @1",
    ] {
        teed.send(&[line]);
    }
    sleep(Duration::from_secs(1));
    assert_eq!(bypassing(), before);
    assert_eq!(teed.site.expect_same_everywhere(), 3);
}

#[test]
fn it_is_said_where_the_source_tells_of_nothing() {
    let teed = without_tracking("K$");
    assert_eq!(teed.site.proxy().status().sessions.bypass_watch, "off");
    // What `check` would say.
    let said = teed.site.proxy().log_text();
    assert!(
        said.contains("it does not tell of writes that bypass the proxy"),
        "{said}"
    );
}

fn see_what_goes_past(teed: &Teed, watch: &str) {
    teed.send(&["SET {known} @1 EX 1000", "SET {logout} @1 EX 1000"]);
    teed.site.expect_same_everywhere();
    assert_eq!(teed.site.proxy().status().sessions.bypass_watch, watch);
    let mut past = teed.site.source.connection();
    redis::cmd("SET")
        .arg(session(&key("known")))
        .arg(&teed.two)
        .arg("EX")
        .arg(1_000)
        .exec(&mut past)
        .unwrap();
    redis::cmd("SET")
        .arg(session(&key("new")))
        .arg(&teed.two)
        .arg("EX")
        .arg(1_000)
        .exec(&mut past)
        .unwrap();
    redis::cmd("DEL").arg(session(&key("logout"))).exec(&mut past).unwrap();
    eventually("they are counted", Duration::from_secs(5), || {
        teed.site.proxy().status().sessions.bypassing_writes >= 3
    });
    assert_eq!(teed.site.expect_same_everywhere(), 2);
    teed.expect_gone(&["logout"]);
}

#[test]
fn a_session_that_ends_by_itself_ends_everywhere() {
    let teed = Teed::start();
    teed.send(&["SET {short} @1 PX 1500", "SET {long} @1 EX 1000"]);
    eventually("it was on the target", Duration::from_secs(1), || {
        sessions(&teed.site.target).contains_key(&key("short"))
    });
    sleep(Duration::from_secs(4));
    assert!(!sessions(&teed.site.target).contains_key(&key("short")));
    assert!(
        !teed.site.django.load_one("cached_db", "empty", &key("short")).found,
        "Django still finds its row"
    );
    assert_eq!(teed.site.expect_same_everywhere(), 1);
}

#[test]
fn everything_django_writes_reaches_every_database() {
    for kind in [DatabaseKind::Postgres, DatabaseKind::MariaDb] {
        let site = Site::start(kind);
        let django = site.django_of("5.2");
        let written: Vec<support::django::Seen> =
            django.ask(&json!({"do": "write", "engine": "cache", "cache": "proxy"}));
        let stay = written.iter().filter(|seen| !seen.gone).count();
        assert!(stay > 30);
        assert_eq!(site.expect_same_everywhere(), stay, "{kind:?}");
    }
}

#[test]
fn a_client_speaking_resp3_is_teed_as_well() {
    let teed = Teed::start();
    let url = format!("{}/?protocol=resp3", teed.site.proxy().url());
    let mut connection = redis_server::connect(&url);
    teed.send(&["SET {logout} @1 EX 1000", "SET {held} @1 EX 1000"]);
    for line in [
        "SET {three} @1 EX 1000",
        "SET {held} @2 NX EX 5",
        "DEL {logout}",
        "SET {three} @2 XX GET KEEPTTL",
    ] {
        teed.words(line).exec(&mut connection).unwrap();
    }
    teed.expect("three", &teed.two, about(1_000.0));
    teed.expect("held", &teed.one, about(1_000.0));
    assert_eq!(teed.site.expect_same_everywhere(), 2);
    teed.expect_gone(&["logout"]);
}
