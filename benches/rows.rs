//! What a session costs on its way into a row and back: a real one, as Django leaves it in the cache after a login.
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on should panic")]

use std::hint::black_box;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sessionferry::session::RowCodec;
use sessionferry::session::signing::DEFAULT_SALT;

/// The vector that is measured; `benches/rows.py` takes the same.
const CASE: &str = "django_login";

fn session() -> Vec<u8> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/redis-dj5.2-builtin.json");
    let vectors: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let vectors = vectors["vectors"].as_array().unwrap();
    let vector = vectors.iter().find(|vector| vector["case"] == CASE).unwrap();
    STANDARD.decode(vector["redis_value_b64"].as_str().unwrap()).unwrap()
}

fn rows(c: &mut Criterion) {
    let codec = RowCodec::new(b"a key for this measurement only", &[], DEFAULT_SALT);
    let value = session();
    let row = codec.encode(&value, 1_768_478_400).unwrap();
    let mut group = c.benchmark_group("rows");
    group.throughput(Throughput::Elements(1));
    group.bench_function("encode", |b| {
        b.iter(|| codec.encode(black_box(&value), 1_768_478_400).unwrap())
    });
    group.bench_function("compare", |b| {
        b.iter(|| codec.compare(black_box(&value), black_box(&row)))
    });
    group.bench_function("value", |b| b.iter(|| codec.value(black_box(&row)).unwrap()));
    group.finish();
}

criterion_group!(benches, rows);
criterion_main!(benches);
