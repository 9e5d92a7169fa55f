//! Finding where commands and replies end.
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on should panic")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sessionferry::resp::request::encode;
use sessionferry::resp::{ReplyScanner, RequestScanner};

fn requests(c: &mut Criterion) {
    let mut group = c.benchmark_group("request scanner");
    let mut one = Vec::new();
    encode(&[&b"SETEX"[..], b"session", b"1209600", &[b'v'; 300]], &mut one);
    let mut large = Vec::new();
    encode(&[&b"SET"[..], b"large", &vec![b'v'; 1 << 20]], &mut large);
    let mut wide = Vec::new();
    encode(&vec![&b"key"[..]; 10_000], &mut wide);
    for (name, bytes) in [
        ("SETEX 300 B, pipeline of 16", one.repeat(16)),
        ("SET 1 MiB", large),
        ("10,000 arguments", wide),
    ] {
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                let (mut scanner, mut at) = (RequestScanner::default(), 0);
                while let Some(request) = scanner.scan(&bytes[at..]).unwrap() {
                    at += request.len;
                }
                at
            });
        });
    }
}

fn replies(c: &mut Criterion) {
    let mut group = c.benchmark_group("reply scanner");
    let bulk = [b"$300\r\n", &[b'v'; 300][..], b"\r\n"].concat();
    let array = [b"*10000\r\n".to_vec(), b"$3\r\nkey\r\n".repeat(10_000)].concat();
    for (name, bytes) in [
        ("300 B, pipeline of 16", bulk.repeat(16)),
        ("+OK, pipeline of 16", b"+OK\r\n".repeat(16)),
        ("10,000 elements", array),
    ] {
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                let (mut scanner, mut at) = (ReplyScanner::default(), 0);
                while let Some(reply) = scanner.scan(&bytes[at..]).unwrap() {
                    at += reply.len;
                }
                at
            });
        });
    }
}

criterion_group!(benches, requests, replies);
criterion_main!(benches);
