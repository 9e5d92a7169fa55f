//! The whole way of a command: a client, the proxy's workers in this process, and a Redis that has its answers ready.
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on should panic")]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sessionferry::journal::{self, Journal};
use sessionferry::net::Endpoint;
use sessionferry::proxy::identity::Servers;
use sessionferry::proxy::{Access, Listen, Listener, Names, OnFlush, Pause, Proxy, Rights, Scripts, Shared};
use sessionferry::resp::RequestScanner;
use sessionferry::resp::request::encode;
use sessionferry::session::KeyPatterns;
use sessionferry::status::Authority;
use sessionferry::tee::Tee;

/// Answers `+OK` to whatever comes.
fn ready(mut stream: UnixStream) {
    let (mut input, mut scanner, mut chunk) = (Vec::new(), RequestScanner::default(), [0; 64 * 1024]);
    while let Ok(read @ 1..) = stream.read(&mut chunk) {
        input.extend_from_slice(&chunk[..read]);
        let (mut at, mut count) = (0, 0);
        while let Ok(Some(request)) = scanner.scan(&input[at..]) {
            at += request.len;
            count += 1;
        }
        input.drain(..at);
        if stream.write_all(&b"+OK\r\n".repeat(count)).is_err() {
            return;
        }
    }
}

fn pipeline(c: &mut Criterion) {
    let directory = tempfile::tempdir().unwrap();
    let redis = UnixListener::bind(directory.path().join("redis")).unwrap();
    thread::spawn(move || {
        for stream in redis.incoming().flatten() {
            thread::spawn(move || ready(stream));
        }
    });
    let endpoint = Endpoint::parse(&format!("unix:{}/redis", directory.path().display())).unwrap();
    let recovered = journal::recover(&directory.path().join("journal")).unwrap();
    let journal = Journal::open(&directory.path().join("journal"), &recovered).unwrap();
    let patterns = KeyPatterns::parse(&["session:{session_key}".to_owned()]).unwrap();
    let shared = Shared {
        names: Names::default(),
        rescue: None,
        restore: None,
        tee: Arc::new(Tee::new(patterns, 1, false, [0; 16])),
        journal: Arc::new(journal),
        servers: Servers {
            source: endpoint.clone(),
            target: endpoint,
            by_url: false,
        },
        sessions_db: 0,
        journaled: true,
        acks: Vec::new(),
        workers: 1,
        max_clients: 100,
        on_flush: OnFlush::Mirror,
        scripts: Scripts::default(),
        pause: Pause::default(),
        rights: Rights::new(false),
        access: Access::Same,
        tls: None,
    };
    let proxy = Arc::new(Proxy::start(Arc::new(shared), Authority::Source).unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listen = directory.path().join("proxy");
    let listener = runtime.block_on(Listener::bind(&Listen::Unix(listen.clone()))).unwrap();
    runtime.spawn(listener.run(proxy));
    let mut client = UnixStream::connect(&listen).unwrap();

    let mut group = c.benchmark_group("pipeline");
    let session = format!("session:{:0<32}", "abc");
    for (name, key) in [
        ("SETEX of a session", session.as_str()),
        ("SETEX of another key", "other"),
    ] {
        let mut frame = Vec::new();
        encode(&[&b"SETEX"[..], key.as_bytes(), b"100", &[b'v'; 300]], &mut frame);
        for count in [1, 16, 1000] {
            let (request, mut reply) = (frame.repeat(count), vec![0; 5 * count]);
            group.throughput(Throughput::Elements(count as u64));
            group.bench_function(format!("{name}, {count} at once"), |b| {
                b.iter(|| {
                    client.write_all(&request).unwrap();
                    client.read_exact(&mut reply).unwrap();
                });
            });
        }
    }
}

criterion_group!(benches, pipeline);
criterion_main!(benches);
