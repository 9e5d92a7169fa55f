//! Whether a Redis lets its user do what the proxy will need: each command is tried where it has no effect, which asks the
//! ACL all the same, in every version.

use std::time::{Duration, Instant};

use super::{Findings, Level};
use crate::session::KeyPatterns;
use crate::sink::RedisStore;

/// A session that nobody has: of the 36^32 keys that Django draws from, this one will not come.
const NOBODY: &str = "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz";

/// What a move cannot do without.
const NEEDED: &[&[&str]] = &[
    &["GET", "KEY"],
    &["PTTL", "KEY"],
    &["EXISTS", "KEY"],
    // Without effect where the key is not there.
    &["SET", "KEY", "", "XX"],
    &["PEXPIREAT", "KEY", "99999999999999"],
    &["DEL", "KEY"],
    &["SCAN", "0", "COUNT", "1"],
    &["TIME"],
];

/// What it goes on without, and what is lost then.
const USEFUL: &[(&[&str], &str)] = &[
    (&["INFO", "server"], "a restart of this server is not noticed"),
    (
        &["CLIENT", "KILL", "ID", "0"],
        "a write that timed out may still arrive late",
    ),
    (
        &["CLIENT", "TRACKING", "OFF"],
        "writes that bypass the proxy are seen through notifications, or only by verify",
    ),
    (&["CONFIG", "GET", "maxmemory"], "nothing is known of its persistence"),
];

/// Round trips that are measured.
const PINGS: usize = 20;
/// Longer is worth a word.
const SLOW: Duration = Duration::from_millis(5);

/// Tries everything, and measures round trips.
pub(super) async fn rights(findings: &mut Findings, about: &'static str, store: &RedisStore, patterns: &KeyPatterns) {
    let key = patterns.redis_key(NOBODY);
    let mut refused = Vec::new();
    for command in NEEDED {
        match store.is_refused(command, &key).await {
            Ok(true) => refused.push(command[0]),
            Ok(false) => {}
            Err(error) => {
                findings.add(Level::Red, about, format!("cannot ask what its user may do: {error}"));
                return;
            }
        }
    }
    if refused.is_empty() {
        findings.add(Level::Green, about, "its user may do all that a move needs");
    } else {
        let allow: Vec<String> = refused
            .iter()
            .map(|command| format!("+{}", command.to_lowercase()))
            .collect();
        findings.add(
            Level::Red,
            about,
            format!(
                "its user may not {} sessions: ACL SETUSER … {} ~{}*",
                refused.join(", "),
                allow.join(" "),
                patterns.prefixes().next().unwrap_or_default()
            ),
        );
    }
    for (command, lost) in USEFUL {
        if store.is_refused(command, &key).await.unwrap_or(false) {
            findings.add(
                Level::Yellow,
                about,
                format!("its user may not {}: {lost}", command[..2.min(command.len())].join(" ")),
            );
        }
    }
    let next = "Django waits for one with each command; put the proxy nearer";
    round_trips(findings, about, next, async || store.ping().await.is_ok()).await;
}

/// How long an answer takes: the median of a few.
pub(super) async fn round_trips(findings: &mut Findings, about: &'static str, next: &str, ask: impl AsyncFn() -> bool) {
    let mut trips = Vec::with_capacity(PINGS);
    for _ in 0..PINGS {
        let began = Instant::now();
        if !ask().await {
            return;
        }
        trips.push(began.elapsed());
    }
    trips.sort_unstable();
    let trip = trips[PINGS / 2];
    let took = format!("a round trip takes {:.1} ms", trip.as_secs_f64() * 1e3);
    if trip > SLOW {
        findings.add(Level::Yellow, about, format!("{took}: {next}"));
    } else {
        findings.add(Level::Green, about, took);
    }
}
