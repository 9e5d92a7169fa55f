//! Every supported Django writes through the proxy and reads the same from the new Redis and from the database.
#![cfg(feature = "net")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod support;

use serde_json::json;
use support::{
    DatabaseKind, Hammer, Site,
    django::{Seen, python},
    site::now,
};

fn reads_back_what_it_wrote(version: &str) {
    if python(version).is_none() {
        println!("SKIPPED: no Python here that Django {version} runs on");
        return;
    }
    let site = Site::start(DatabaseKind::Sqlite);
    let django = site.django_of(version);
    let began = now();
    let written: Vec<Seen> = django.ask(&json!({"do": "write", "engine": "cache", "cache": "proxy"}));
    site.proxy().settle();
    let keys: Vec<String> = written.iter().map(|seen| seen.key.clone()).collect();
    let target = django.load("cache", "target", &keys);
    let cached_db = django.load("cached_db", "empty", &keys);
    let db = django.load("db", "empty", &keys);
    let rows = django.rows();
    let mut compared = 0;
    for (at, wrote) in written.iter().enumerate() {
        let name = &wrote.name;
        if wrote.gone {
            for (place, seen) in [("target", &target[at]), ("cached_db", &cached_db[at]), ("db", &db[at])] {
                assert!(!seen.found, "{name}: still in {place}");
            }
            continue;
        }
        assert!(target[at].found, "{name}: not on the target");
        assert_eq!(target[at].exact, wrote.exact, "{name}: the target holds something else");
        match &wrote.json {
            Some(content) => {
                for (place, seen) in [("cached_db", &cached_db[at]), ("db", &db[at])] {
                    assert!(seen.found, "{name}: {place} does not find it");
                    assert_eq!(&seen.exact, content, "{name}: {place} reads something else");
                }
                let row = rows.iter().find(|row| row.key == wrote.key).unwrap();
                let seconds = row.ends.unwrap() - wrote.age.unwrap();
                assert!(
                    (began - 2.0..now() + 2.0).contains(&seconds),
                    "{name}: the row ends at another time"
                );
            }
            None => assert!(
                !cached_db[at].found && !db[at].found,
                "{name}: a row for what no row can carry"
            ),
        }
        compared += 1;
    }
    assert!(compared > 30, "only {compared} sessions were compared");
    assert_eq!(site.expect_same_everywhere(), compared);
    // And after the move the site that was switched to cached_db goes on from there.
    for kind in ["backfill", "verify", "cutover"] {
        site.proxy().done(kind);
    }
    let after = django.load("cached_db", "proxy", &keys);
    for (wrote, after) in written.iter().zip(&after) {
        assert_eq!(
            after.found,
            !wrote.gone && wrote.json.is_some(),
            "{}: after the move",
            wrote.name
        );
    }
}

#[test]
fn django_4_2_reads_the_same_from_the_new_redis_and_from_the_database() {
    reads_back_what_it_wrote("4.2");
}

#[test]
fn django_5_2_reads_the_same_from_the_new_redis_and_from_the_database() {
    reads_back_what_it_wrote("5.2");
}

#[test]
fn django_6_reads_the_same_from_the_new_redis_and_from_the_database() {
    reads_back_what_it_wrote("6");
}

#[test]
fn the_new_django_speaking_resp3_with_its_timeout_notices_no_crossing() {
    if python("6").is_none() {
        println!("SKIPPED: no Python here that Django 6 runs on");
        return;
    }
    let site = Site::start(DatabaseKind::Sqlite);
    let mut hammer = Hammer::start("6", &site.proxy().url(), 40, &[]);
    for kind in ["backfill", "verify", "cutover", "rollback", "verify", "cutover"] {
        site.proxy().done(kind);
    }
    let counts = hammer.stop();
    hammer.expect_unnoticed(&counts);
    site.proxy().settle();
    let django = site.django_of("6");
    django
        .check(&hammer.log(), "cache", "target")
        .expect_nothing_lost("target");
    django
        .check(&hammer.log(), "cached_db", "empty")
        .expect_nothing_lost("database");
}
