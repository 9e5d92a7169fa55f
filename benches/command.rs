//! The command table, and what a command and its reply do to a session.
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on should panic")]

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use sessionferry::command::CommandId;
use sessionferry::resp::Args;
use sessionferry::resp::request::encode;
use sessionferry::session::KeyPatterns;
use sessionferry::session::effect::{Plan, plan};

fn table(c: &mut Criterion) {
    let mut group = c.benchmark_group("command table");
    for name in ["GET", "setex", "ZRANGEBYSCORE", "no-such-command"] {
        group.bench_function(name, |b| b.iter(|| CommandId::lookup(black_box(name.as_bytes()))));
    }
}

fn effect(c: &mut Criterion) {
    let pattern = ":1:django.contrib.sessions.cache{session_key}".to_owned();
    let patterns = KeyPatterns::parse(&[pattern]).unwrap();
    let mut group = c.benchmark_group("effect");
    for (name, key) in [
        (
            "SETEX of a session",
            ":1:django.contrib.sessions.cache0123456789abcdefghijklmnopqrstuv",
        ),
        (
            "SETEX of another key",
            ":1:views.decorators.cache.cache_page.0123456789abcdefghijklmno",
        ),
    ] {
        let mut frame = Vec::new();
        encode(&[&b"SETEX"[..], key.as_bytes(), b"1209600", &[b'v'; 300]], &mut frame);
        let command = CommandId::lookup(b"setex");
        group.bench_function(name, |b| {
            b.iter(|| {
                // As on the hot path: most writes are no sessions, which a look at the key tells.
                if patterns.session_key(key.as_bytes()).is_none() && !patterns.may_be_in(&frame) {
                    return 0;
                }
                let frame = Bytes::copy_from_slice(&frame);
                let args: Vec<&[u8]> = Args::new(&frame).collect();
                match plan(command, &frame, &args, &patterns) {
                    Plan::Keys(planned) => planned.settle(b"+OK\r\n", 1_700_000_000_000).count(),
                    _ => 0,
                }
            });
        });
    }
}

criterion_group!(benches, table, effect);
criterion_main!(benches);
