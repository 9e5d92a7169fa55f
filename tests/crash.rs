//! The proxy is killed at moments nobody chose, and comes back with all it had acknowledged.
#![cfg(feature = "net")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod support;

use std::{thread::sleep, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use sessionferry::status::Authority;
use support::{DatabaseKind, Hammer, Proxy, ProxyOptions, Site, SmallDisk, eventually, seed};

const ROUNDS: usize = 6;

/// After a kill: what was acknowledged is delivered from the journal alone, without a new backfill.
fn expect_whole(site: &Site, hammer: &Hammer, authority: Authority) {
    site.proxy().settle();
    let now = site.proxy().status().authority;
    assert_eq!(now, authority, "it came back on the other side");
    site.expect_whole(hammer);
}

/// No visitor found its session gone or older than it had been told; that connections broke is what a kill does.
fn expect_no_loss_noticed(hammer: &mut Hammer) {
    let counts = hammer.stop();
    let noticed: Vec<_> = ["lost", "stale", "crashed"]
        .iter()
        .flat_map(|kind| hammer.events(kind))
        .take(10)
        .collect();
    assert_eq!(
        counts.lost + counts.stale + counts.crashed,
        0,
        "{counts:?} {noticed:#?}"
    );
    assert!(counts.error > 0, "the kills hit nobody");
}

fn killed_under_load(kind: DatabaseKind, cut_over: bool) {
    let mut dice = StdRng::seed_from_u64(seed());
    let mut site = Site::start(kind);
    for kind in ["backfill", "verify"] {
        site.proxy().done(kind);
    }
    let authority = if cut_over {
        site.proxy().done("cutover");
        Authority::Target
    } else {
        Authority::Source
    };
    let url = site.proxy().url();
    let mut hammer = Hammer::start("5.2", &url, 50, &["--logout", "0.1"]);
    for round in 0..ROUNDS {
        let alive = Duration::from_micros(dice.random_range(1_000..1_500_000));
        sleep(alive);
        println!("round {round}: killed after {alive:?}");
        site.proxy_mut().kill9();
        sleep(Duration::from_micros(dice.random_range(0..300_000)));
        if dice.random_bool(0.3) {
            // Killed again while it is still coming up.
            site.proxy_mut().restart_unready();
            sleep(Duration::from_micros(dice.random_range(0..200_000)));
        }
        site.proxy_mut().restart();
    }
    sleep(Duration::from_millis(500));
    expect_no_loss_noticed(&mut hammer);
    expect_whole(&site, &hammer, authority);
}

#[test]
fn killed_while_teeing_it_loses_no_acknowledged_write_with_sqlite() {
    killed_under_load(DatabaseKind::Sqlite, false);
}

#[test]
fn killed_while_teeing_it_loses_no_acknowledged_write_with_postgres() {
    killed_under_load(DatabaseKind::Postgres, false);
}

#[test]
fn killed_while_cut_over_it_loses_no_acknowledged_write() {
    killed_under_load(DatabaseKind::Sqlite, true);
}

/// Nothing is left to chance about the last writes: visitors stop with the kill, not after it.
#[test]
fn what_was_acknowledged_just_before_the_kill_is_delivered_after_the_restart() {
    let mut dice = StdRng::seed_from_u64(seed());
    let mut site = Site::start(DatabaseKind::Sqlite);
    for round in 0..ROUNDS {
        let mut hammer = Hammer::start(
            "5.2",
            &site.proxy().url(),
            30,
            &["--logout", "0.1", "--seed", &round.to_string()],
        );
        sleep(Duration::from_micros(dice.random_range(1_000..800_000)));
        // The stores stand still first, so that what is acknowledged cannot have been delivered.
        site.target.freeze();
        sleep(Duration::from_micros(dice.random_range(1_000..400_000)));
        site.proxy_mut().kill9();
        site.target.thaw();
        hammer.stop();
        site.proxy_mut().restart();
        expect_whole(&site, &hammer, Authority::Source);
    }
}

/// What could not be recorded is recorded when there is room, and outlives the process then.
#[test]
fn a_full_disk_is_said_and_costs_nobody_a_session() {
    let Some(disk) = SmallDisk::mount() else {
        println!("left out: nothing may be mounted here");
        return;
    };
    let mut site = Site::prepare(DatabaseKind::Sqlite);
    site.proxy = Some(Proxy::start(ProxyOptions {
        data_dir: Some(disk.path().join("data")),
        ..site.options()
    }));
    site.proxy().done("backfill");
    let mut hammer = Hammer::start("5.2", &site.proxy().url(), 30, &["--logout", "0.1", "--think", "10"]);
    sleep(Duration::from_millis(300));
    let unrecorded = || {
        let warnings = site.proxy().status().warnings;
        warnings.iter().any(|warning| warning.contains("cannot be recorded"))
    };
    disk.fill();
    eventually("it is said", Duration::from_secs(10), unrecorded);
    let (code, answer) = site.proxy().get("/readyz").unwrap();
    assert_eq!(code, 503, "{answer}");
    // It goes on without a record, and what nobody has yet is kept.
    site.target.freeze();
    sleep(Duration::from_secs(1));
    disk.empty();
    eventually("all is recorded", Duration::from_secs(10), || !unrecorded());
    let counts = hammer.stop();
    assert_eq!(
        counts.error + counts.lost + counts.stale + counts.crashed,
        0,
        "{counts:?}"
    );
    site.proxy_mut().kill9();
    site.target.thaw();
    site.proxy_mut().restart();
    expect_whole(&site, &hammer, Authority::Source);
    // Nor does it keep the site down, where the proxy has to start again.
    disk.fill();
    site.proxy_mut().restart();
    assert_eq!(site.proxy().ask::<String>(&["SET", "page", "cached"]), "OK");
    disk.empty();
}

#[test]
fn killed_while_crossing_it_comes_back_on_one_side_with_everything() {
    let mut dice = StdRng::seed_from_u64(seed());
    let mut site = Site::start(DatabaseKind::Sqlite);
    for kind in ["backfill", "verify"] {
        site.proxy().done(kind);
    }
    let mut hammer = Hammer::start("5.2", &site.proxy().url(), 50, &["--logout", "0.1"]);
    for round in 0..ROUNDS {
        let kind = match site.proxy().status().authority {
            Authority::Source => "cutover",
            Authority::Target => "rollback",
        };
        site.proxy().settle_soon();
        let _ = site.proxy().operation("verify", serde_json::json!({}));
        let (code, answer) = site.proxy().post(kind, serde_json::json!({"force": true}));
        assert_eq!(code, 202, "{kind}: {answer}");
        let into = Duration::from_micros(dice.random_range(0..80_000));
        sleep(into);
        site.proxy_mut().kill9();
        site.proxy_mut().restart();
        println!(
            "round {round}: killed {into:?} into {kind}, came back with the {:?}",
            site.proxy().status().authority
        );
        sleep(Duration::from_millis(300));
    }
    expect_no_loss_noticed(&mut hammer);
    let authority = site.proxy().status().authority;
    expect_whole(&site, &hammer, authority);
}

#[test]
fn terminated_in_order_it_leaves_no_request_unanswered() {
    let mut site = Site::start(DatabaseKind::Sqlite);
    let mut hammer = Hammer::start("5.2", &site.proxy().url(), 20, &["--think", "20"]);
    for _ in 0..3 {
        sleep(Duration::from_millis(500));
        assert!(site.proxy_mut().terminate().success());
        site.proxy_mut().restart();
    }
    sleep(Duration::from_millis(500));
    let counts = hammer.stop();
    // New connections are refused while it is away; an answer that had been asked for is never cut off.
    let cut: Vec<_> = hammer
        .events("error")
        .into_iter()
        .filter(|event| !event["error"].to_string().contains("refused"))
        .collect();
    assert_eq!(counts.lost + counts.stale + counts.crashed, 0, "{counts:?}");
    println!("{} of {} errors were not refusals: {cut:#?}", cut.len(), counts.error);
    expect_whole(&site, &hammer, Authority::Source);
}
