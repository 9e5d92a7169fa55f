//! Whatever is drawn: through the proxy the bytes are those that Redis gives.
//!
//! Sequences are drawn from the server's own `COMMAND DOCS`, played to two servers at once, one of them behind the proxy,
//! and what each connection got is compared. A sequence belongs to its number, so that a failure can be run again; it is
//! shrunk, and printed as a text that can be played again:
//!
//! - `scripts/differential --seed N --minutes M` runs longer
//! - `SESSIONFERRY_DIFFERENTIAL_PLAY=FILE` plays a written sequence instead
//!
//! The rooms: `generator` draws, from the `vocabulary` and with `arguments` that fit, `step` writes down and reads, `servers` plays, `masks` says what may differ and why,
//! `left_out` what is never sent and why, `shrink` shortens.
#![cfg(feature = "net")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]
#![allow(unreachable_pub, reason = "rooms of one test crate")]

#[path = "differential/arguments.rs"]
mod arguments;
#[path = "differential/docs.rs"]
mod docs;
#[path = "differential/generator.rs"]
mod generator;
#[path = "differential/left_out.rs"]
mod left_out;
#[path = "differential/masks.rs"]
mod masks;
#[path = "differential/rng.rs"]
mod rng;
#[path = "differential/servers.rs"]
mod servers;
#[path = "differential/shrink.rs"]
mod shrink;
#[path = "differential/step.rs"]
mod step;
mod support;
#[path = "differential/value.rs"]
mod value;
#[path = "differential/vocabulary.rs"]
mod vocabulary;

use std::time::{Duration, Instant};

use generator::Generator;
use servers::{Pair, Proxied};
use step::Step;

const SHRINKING: Duration = Duration::from_secs(60);
/// A difference is looked for again so often.
const PLAYS: u32 = 3;
/// So many may not be seen again: what two connections send at once has no order that anybody promises, and on a busy machine an
/// answer may come too late.
const MAX_SEEN_ONCE: u32 = 2;

/// What a sequence did.
struct Found {
    number: u64,
    report: String,
    again: bool,
}

/// Plays until the time is over, and stops at the first difference with a short sequence that shows it.
fn draw(pair: &mut Pair, seed: u64, time: Duration) -> Result<u64, Found> {
    let (described, list) = pair.commands();
    let commands = docs::read(&described, &list);
    assert!(commands.len() > 300, "only {} commands", commands.len());
    let mute = pair.is_mute();
    let began = Instant::now();
    let mut number = seed;
    while began.elapsed() < time {
        let steps = Generator::new(&commands, number, mute).sequence();
        if let Err(difference) = pair.play(&steps) {
            return Err(report(pair, number, steps, &difference));
        }
        number += 1;
    }
    Ok(number - seed)
}

fn report(pair: &mut Pair, number: u64, steps: Vec<Step>, first: &servers::Difference) -> Found {
    let cut = steps[..=first.step].to_vec();
    let again = (0..PLAYS).any(|_| pair.play(&cut).is_err());
    let within = if again { SHRINKING } else { Duration::ZERO };
    let short = shrink::shrink(cut, within, |steps| pair.play(steps).is_err());
    let shown = match pair.play(&short) {
        Err(difference) => difference,
        Ok(()) => servers::Difference {
            step: first.step,
            text: format!("not every time; at first: {}", first.text),
        },
    };
    let report = format!(
        "sequence {number} (SESSIONFERRY_TEST_SEED={number} begins with it) is not the same through the proxy.\n\
         At step {} of:\n\n{}\n{}\n",
        shown.step + 1,
        step::written(&short),
        shown.text
    );
    Found { number, report, again }
}

fn time(name: &str, usual: u64) -> Duration {
    Duration::from_secs(std::env::var(name).map_or(usual, |text| text.parse().unwrap()))
}

#[test]
fn whatever_is_drawn_gets_the_same_bytes() {
    play_or_hunt(Pair::start, 40);
}

#[test]
fn whatever_is_drawn_gets_the_same_bytes_of_valkey() {
    if support::Software::Valkey.is_here() {
        play_or_hunt(Pair::valkey, 20);
    }
}

fn play_or_hunt(start: fn() -> Pair, usual: u64) {
    let Some(file) = std::env::var_os("SESSIONFERRY_DIFFERENTIAL_PLAY") else {
        return hunt(start, time("SESSIONFERRY_DIFFERENTIAL_SECONDS", usual));
    };
    let steps = step::read(&std::fs::read_to_string(file).unwrap());
    if let Err(difference) = start().play(&steps) {
        panic!("at step {}: {}", difference.step + 1, difference.text);
    }
}

#[test]
fn two_plain_servers_are_found_equal() {
    hunt(
        || Pair::start_with(Proxied::No),
        time("SESSIONFERRY_DIFFERENTIAL_PLAIN_SECONDS", 5),
    );
}

/// The test of the test: a relay that is wrong in one reply is found out, and what shows it is one command.
#[test]
fn a_wrong_byte_is_noticed_and_shrunk() {
    let mut pair = Pair::start_with(Proxied::Through(wrong_relay));
    let steps = step::read(
        "0 whole: HELLO 3\n\
         1 pieces: SET s1 v | GET s1 | LPUSH l1 a b c\n\
         0 bytes: MULTI | INCR n1 | EXEC | TYPE l1\n\
         1 whole: PING | LRANGE l1 0 -1 | STRLEN s1 | ECHO value | LLEN l1\n\
         0 whole: GET s1\n",
    );
    let Err(difference) = pair.play(&steps) else {
        panic!("the wrong byte went unnoticed");
    };
    assert_eq!(difference.step, 3, "{}", difference.text);
    let report = report(&mut pair, 1, steps, &difference);
    assert!(
        report.again && report.report.contains("\n\n1 whole: ECHO value\n\n"),
        "{}",
        report.report
    );
}

/// A proxy that says `valve` for `value`.
fn wrong_relay(server: String) -> String {
    let wrong = |reply: &[u8]| String::from_utf8_lossy(reply).replace("value", "valve").into_bytes();
    support::relay::start(server, <[u8]>::to_vec, wrong)
}

#[test]
fn kept_sequences_get_the_same_bytes() {
    play_kept(Pair::start());
}

#[test]
fn kept_sequences_get_the_same_bytes_of_valkey() {
    if support::Software::Valkey.is_here() {
        play_kept(Pair::valkey());
    }
}

fn play_kept(mut pair: Pair) {
    let mut played = 0;
    let mut failures = Vec::new();
    for part in include_str!("differential/kept.txt").split("\n== ").skip(1) {
        let (name, text) = part.split_once('\n').unwrap();
        let steps = step::read(text);
        assert_eq!(
            step::read(&step::written(&steps)),
            steps,
            "{name} is not what was written"
        );
        if let Err(difference) = pair.play(&steps) {
            failures.push(format!(
                "{name}, at `{}`\n{}",
                step::written(&steps[difference.step..=difference.step]).trim(),
                difference.text
            ));
        }
        played += 1;
    }
    assert!(played > 40, "only {played} sequences");
    assert!(
        failures.is_empty(),
        "{} of {played}:\n\n{}",
        failures.len(),
        failures.join("\n\n")
    );
}

fn hunt(start: fn() -> Pair, time: Duration) {
    let seed = support::seed();
    let mut pair = start();
    // Goes on after a failure, for whoever wants to see them all.
    let go_on = std::env::var_os("SESSIONFERRY_DIFFERENTIAL_GO_ON").is_some();
    let (began, mut from, mut failures, mut once) = (Instant::now(), seed, 0, 0);
    while began.elapsed() < time {
        match draw(&mut pair, from, time.saturating_sub(began.elapsed())) {
            Ok(count) => {
                println!("{} sequences, from {seed}", from - seed + count);
                break;
            }
            Err(found) if go_on || (!found.again && once < MAX_SEEN_ONCE) => {
                from = found.number + 1;
                let count = if found.again { &mut failures } else { &mut once };
                *count += 1;
                println!("{}", found.report);
                pair = start();
            }
            Err(found) => panic!("{}", found.report),
        }
    }
    println!("{once} differences that were not seen again");
    assert_eq!(failures, 0, "see above");
}
