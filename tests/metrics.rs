//! The metrics of a real proxy: each that the documents name is there, and counts what it says.
#![cfg(feature = "net")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod support;

use std::{collections::BTreeSet, time::Duration};

use support::{Proxy, ProxyOptions, RedisServer, eventually, session};

/// Only there once something has happened.
const LATER: &[&str] = &["cutover_hold_seconds"];

fn value(metrics: &str, series: &str) -> f64 {
    let line = format!("sessionferry_{series} ");
    let found = metrics.lines().find_map(|each| each.strip_prefix(&line));
    found
        .unwrap_or_else(|| panic!("no {series} in\n{metrics}"))
        .parse()
        .unwrap()
}

#[test]
fn what_clients_do_is_counted_by_what_it_does() {
    let (mut source, target) = (RedisServer::start(&[]), RedisServer::start(&[]));
    let proxy = Proxy::start(ProxyOptions::between(&source, &target));
    let (first, second) = (session(&"a".repeat(32)), session(&"b".repeat(32)));
    let mut connection = proxy.connection();
    for words in [
        &["SET", &first, "value", "EX", "1000"][..],
        &["SET", &second, "value", "EX", "1000"],
        &["SET", "no session", "value"],
        &["EXPIRE", &first, "2000"],
        &["APPEND", &first, "more"],
        &["DEL", &second],
        &["GET", &first],
    ] {
        let _: redis::Value = support::redis_server::ask(&mut connection, words);
    }
    proxy.settle();
    let metrics = proxy.metrics();
    for (effect, count) in [("put", 2.0), ("expire", 1.0), ("delete", 1.0), ("read_again", 1.0)] {
        let series = format!("session_writes_total{{effect=\"{effect}\"}}");
        assert_eq!(value(&metrics, &series), count, "{effect}");
    }
    assert_eq!(value(&metrics, "commands_total{command=\"set\"}"), 3.0);
    let recorded = value(&metrics, "journal_append_seconds_count");
    assert!((1.0..=5.0).contains(&recorded), "{recorded}");
    assert_eq!(value(&metrics, "journal_append_seconds_bucket{le=\"+Inf\"}"), recorded);
    assert!(value(&metrics, "command_seconds_count{route=\"upstream\"}") >= 7.0);

    // Every metric of the document is there, and none besides.
    let document = include_str!("../docs/metrics.md");
    let table = document.split("## All of them").nth(1).unwrap();
    let named: BTreeSet<&str> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split(['`', '{']).next())
        .filter(|name| !LATER.contains(name))
        .collect();
    let served: BTreeSet<&str> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE sessionferry_")?.split(' ').next())
        .collect();
    assert_eq!(named, served);

    // While the source is away.
    source.stop();
    let answered: String = support::redis_server::ask(&mut connection, &["GET", &first]);
    assert_eq!(answered, "valuemore");
    let metrics = proxy.metrics();
    assert_eq!(value(&metrics, "rescued_reads_total{from=\"redis\"}"), 1.0);
    eventually("broken connections are counted", Duration::from_secs(10), || {
        let metrics = proxy.metrics();
        let errors = |side: &str, kind: &str| {
            value(
                &metrics,
                &format!("upstream_errors_total{{side=\"{side}\",kind=\"{kind}\"}}"),
            )
        };
        errors("source", "lost") > 0.0 && errors("source", "unreachable") > 0.0 && errors("target", "lost") == 0.0
    });
}
