//! The source is lost for good: the target takes its place, with every command that waits, and what is in doubt is named.
#![cfg(feature = "net")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod support;

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread::{scope, sleep},
    time::{Duration, Instant},
};

use sessionferry::status::{Authority, Phase};
use support::{
    Raw, command, eventually,
    moving::{Moving, PATIENCE, expect, key},
};

/// `cutover --force`, while these commands wait for an answer on a connection of their own.
fn forced_while_they_wait(moving: &Moving, words: &[&[&str]]) -> Vec<String> {
    let mut client = moving.client();
    let asked: Vec<u8> = words.iter().flat_map(|words| command(words)).collect();
    let began = Instant::now();
    client.send(&asked);
    sleep(Duration::from_millis(300));
    moving.proxy.cli(&["cutover", "--force"]).expect(0);
    let answers = client.frames(words.len());
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    answers.iter().map(|answer| text(answer)).collect()
}

fn text(answer: &[u8]) -> String {
    String::from_utf8_lossy(answer).into_owned()
}

fn target_answers(moving: &Moving) {
    let status = moving.proxy.status();
    assert_eq!((status.authority, status.phase), (Authority::Target, Phase::CutOver));
}

#[test]
fn commands_that_wait_for_a_lost_source_go_on_at_the_target() {
    let mut moving = Moving::start(&[], None);
    let mut client = moving.client();
    expect(&mut client, &["SETEX", &key(1), "100", "one"], "+OK\r\n");
    moving.delivered();
    moving.synced();
    moving.source.stop();
    let answers = forced_while_they_wait(
        &moving,
        &[
            &["SETEX", &key(2), "100", "two"],
            &["GET", &key(2)],
            &["GET", &key(1)],
            &["DEL", &key(1)],
            &["SET", "other", "x"],
            // These have a connection of their own.
            &["EVAL", "return redis.call('GET', KEYS[1])", "1", &key(2)],
        ],
    );
    assert_eq!(
        answers,
        [
            "+OK\r\n",
            "$3\r\ntwo\r\n",
            "$3\r\none\r\n",
            ":1\r\n",
            "+OK\r\n",
            "$3\r\ntwo\r\n"
        ]
    );
    target_answers(&moving);
    assert_eq!(
        moving.target.ask::<Option<String>>(&["GET", &key(2)]),
        Some("two".into())
    );
    // It is a cutover like any other: the source gets what it missed when it is back.
    moving.source.restart();
    eventually("the source has the session", PATIENCE, || {
        moving.source.ask::<Option<String>>(&["GET", &key(2)]).is_some()
    });
}

#[test]
fn a_source_that_hangs_can_be_left_too() {
    let moving = Moving::start(&[], None);
    let mut client = moving.client();
    expect(&mut client, &["SETEX", &key(1), "100", "one"], "+OK\r\n");
    moving.delivered();
    moving.synced();
    moving.source.freeze();
    let answers = forced_while_they_wait(&moving, &[&["GET", &key(1)], &["SETEX", &key(2), "100", "two"]]);
    assert_eq!(answers, ["$3\r\none\r\n", "+OK\r\n"]);
    target_answers(&moving);
    expect(&mut client, &["GET", &key(2)], "$3\r\ntwo\r\n");
    moving.source.thaw();
}

#[test]
fn a_cutover_that_cannot_be_leaves_those_who_wait_where_they_are() {
    let mut moving = Moving::start(&[], None);
    let mut client = moving.client();
    moving.synced();
    // What is recorded cannot be delivered.
    moving
        .target
        .ask::<()>(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    expect(&mut client, &["SETEX", &key(1), "100", "one"], "+OK\r\n");
    moving.source.stop();
    let mut waits = moving.client();
    waits.send(&command(&["SETEX", &key(2), "100", "two"]));
    moving.proxy.cli(&["cutover", "--force"]).expect(1);
    assert_eq!(moving.proxy.status().authority, Authority::Source);
    moving.source.restart();
    assert_eq!(text(&waits.frame()), "+OK\r\n");
    assert_eq!(
        moving.source.ask::<Option<String>>(&["GET", &key(2)]),
        Some("two".into())
    );
}

#[test]
fn sessions_in_doubt_are_named() {
    let mut moving = Moving::start(&[], None);
    let mut client = moving.client();
    expect(&mut client, &["SETEX", &key(1), "100", "one"], "+OK\r\n");
    moving.delivered();
    moving.synced();
    moving.target.freeze();
    expect(&mut client, &["SETEX", &key(2), "100", "two"], "+OK\r\n");
    expect(&mut client, &["APPEND", &key(1), "+"], ":4\r\n");
    moving.source.stop();
    moving.target.thaw();
    let answer = moving.proxy.cli(&["cutover", "--force", "--json"]).expect(0);
    let result: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!(result["result"]["doubtful"], 1, "{}", answer.out);
    let digests = result["result"]["doubtful_sessions"].as_array().unwrap();
    assert_eq!(digests.len(), 1);
    assert!(!answer.out.contains(&key(1)), "{}", answer.out);
    // What was recorded has arrived; the other is as the target had it.
    expect(&mut client, &["GET", &key(2)], "$3\r\ntwo\r\n");
    expect(&mut client, &["GET", &key(1)], "$3\r\none\r\n");
}

/// Clients that read and save their sessions without a pause, until told to stop. Answers what was not as it should be.
fn nobody_notices(moving: &mut Moving, lose: impl FnOnce(&mut Moving)) -> Vec<String> {
    const CLIENTS: u32 = 20;
    let stop = AtomicBool::new(false);
    let address = moving.proxy.address();
    scope(|scope| {
        let visit = |number: u32| {
            let (stop, address) = (&stop, address.as_str());
            move || {
                let mut client = Raw::connect(address);
                let mut trouble = Vec::new();
                let mut round: u32 = 0;
                while !stop.load(Relaxed) && trouble.is_empty() {
                    round += 1;
                    let value = round.to_string();
                    let expected = format!("${}\r\n{value}\r\n", value.len());
                    for (words, expected) in [
                        (&["SETEX", &key(number), "100", &value][..], "+OK\r\n"),
                        (&["GET", &key(number)], &expected),
                    ] {
                        let began = Instant::now();
                        let answer = text(&client.ask(words));
                        if answer != expected || began.elapsed() > PATIENCE {
                            trouble.push(format!(
                                "{answer:?} instead of {expected:?} after {:?}",
                                began.elapsed()
                            ));
                        }
                    }
                    sleep(Duration::from_millis(5));
                }
                trouble
            }
        };
        let visitors: Vec<_> = (0..CLIENTS).map(|number| scope.spawn(visit(number))).collect();
        sleep(Duration::from_millis(300));
        lose(moving);
        eventually("the target answers", Duration::from_secs(10), || {
            moving.proxy.status().authority == Authority::Target
        });
        sleep(Duration::from_millis(500));
        stop.store(true, Relaxed);
        visitors
            .into_iter()
            .flat_map(|visitor| visitor.join().unwrap())
            .collect()
    })
}

const PROMOTE: &str = "[cutover]\non_source_loss = \"promote\"\n";

#[test]
fn the_target_takes_the_place_of_a_lost_source_by_itself() {
    let mut moving = Moving::start(&[], Some(PROMOTE));
    moving.synced();
    let trouble = nobody_notices(&mut moving, |moving| moving.source.stop());
    assert!(trouble.is_empty(), "{trouble:#?}");
    target_answers(&moving);
}

#[test]
fn and_of_one_that_hangs() {
    let mut moving = Moving::start(&[], Some(PROMOTE));
    moving.synced();
    let trouble = nobody_notices(&mut moving, |moving| moving.source.freeze());
    assert!(trouble.is_empty(), "{trouble:#?}");
    target_answers(&moving);
    moving.source.thaw();
}

#[test]
fn a_short_absence_changes_no_authority_nor_does_one_before_all_is_copied() {
    let mut moving = Moving::start(&[], Some(PROMOTE));
    moving.source.stop();
    sleep(Duration::from_secs(3));
    moving.source.restart();
    assert_eq!(moving.proxy.status().authority, Authority::Source);
    moving.synced();
    moving.source.restart();
    sleep(Duration::from_secs(3));
    assert_eq!(moving.proxy.status().authority, Authority::Source);
}
