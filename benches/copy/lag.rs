//! Writes sessions at a fixed rate and prints, as JSON, how long each of some took to arrive in the other Redis, and how
//! far behind the database is in the end.
//!
//! usage: lag PROXY_PORT TARGET_PORT ADMIN_PORT WRITES_PER_SECOND SESSIONS SECONDS
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measuring tool that cannot go on should say where"
)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

/// Connections that write.
const CLIENTS: u32 = 20;
/// Writes in one go: what a busy worker sends between two looks at its socket.
const BATCH: u32 = 5;
const PAD: usize = 240;
const PROBE_EVERY: Duration = Duration::from_millis(5);

fn main() {
    let args: Vec<u32> = std::env::args().skip(1).map(|arg| arg.parse().unwrap()).collect();
    let [proxy, target, admin, rate, sessions, seconds] = args[..] else {
        panic!("usage: lag PROXY_PORT TARGET_PORT ADMIN_PORT WRITES_PER_SECOND SESSIONS SECONDS");
    };
    let length = Duration::from_secs(seconds.into());
    let start = Instant::now();
    let writers: Vec<_> = (0..CLIENTS)
        .map(|number| thread::spawn(move || write(proxy, number, rate, sessions, start, length)))
        .collect();
    let mut took = probe(proxy, target, start + Duration::from_secs(1), start + length);
    let (pending_target, pending_database) = pending(admin);
    let ended = Instant::now();
    let written: u32 = writers.into_iter().map(|writer| writer.join().unwrap()).sum();
    while pending(admin) != (0, 0) && ended.elapsed() < Duration::from_secs(60) {
        sleep(Duration::from_millis(20));
    }
    took.sort_unstable();
    let percentile = |share: f64| took[((took.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!(
        "{{\"writes_per_second\": {:.0}, \"probes\": {}, \"lag_ms_p50\": {:.1}, \"lag_ms_p99\": {:.1}, \"lag_ms_most\": {:.1}, \
         \"pending_target\": {pending_target}, \"pending_database\": {pending_database}, \"drained_after_s\": {:.2}}}",
        f64::from(written) / length.as_secs_f64(),
        took.len(),
        percentile(0.5),
        percentile(0.99),
        percentile(1.0),
        ended.elapsed().as_secs_f64(),
    );
}

fn connect(port: u32) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", u16::try_from(port).unwrap())).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// What Django would store for a small session: a pickled dictionary.
fn setex(out: &mut Vec<u8>, session: u32, counter: u32) {
    let key = format!(":1:django.contrib.sessions.cache{session:032}");
    let mut value = b"\x80\x04}(\x8c\x01nJ".to_vec();
    value.extend_from_slice(&counter.to_le_bytes());
    value.extend_from_slice(b"\x8c\x03padX");
    value.extend_from_slice(&(PAD as u32).to_le_bytes());
    value.extend(std::iter::repeat_n(b'x', PAD));
    value.extend_from_slice(b"u.");
    for (number, word) in [b"SETEX", key.as_bytes(), b"1209600", &value].iter().enumerate() {
        if number == 0 {
            out.extend_from_slice(b"*4\r\n");
        }
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

fn write(proxy: u32, number: u32, rate: u32, sessions: u32, start: Instant, length: Duration) -> u32 {
    let mut stream = connect(proxy);
    let interval = Duration::from_secs_f64(f64::from(CLIENTS * BATCH) / f64::from(rate));
    let mut next = start + interval * number / CLIENTS;
    let (mut written, mut session, mut out, mut reply) = (0, number, Vec::new(), [0; 5]);
    while next < start + length {
        sleep(next.saturating_duration_since(Instant::now()));
        next += interval;
        out.clear();
        for _ in 0..BATCH {
            // A walk through all sessions, so that each second touches as many as there are writes.
            session = (session + CLIENTS) % sessions;
            setex(&mut out, session, written);
            written += 1;
        }
        stream.write_all(&out).unwrap();
        for _ in 0..BATCH {
            stream.read_exact(&mut reply).unwrap();
            assert_eq!(&reply, b"+OK\r\n");
        }
    }
    written
}

/// How long single writes take to arrive.
fn probe(proxy: u32, target: u32, from: Instant, to: Instant) -> Vec<Duration> {
    sleep(from.saturating_duration_since(Instant::now()));
    let (mut proxy, mut target) = (connect(proxy), connect(target));
    let key = 99_999_999;
    let mut took = Vec::new();
    let mut counter = 0;
    while Instant::now() < to {
        counter += 1;
        let mut out = Vec::new();
        setex(&mut out, key, counter);
        proxy.write_all(&out).unwrap();
        proxy.read_exact(&mut [0; 5]).unwrap();
        let acknowledged = Instant::now();
        let get = format!("*2\r\n$3\r\nGET\r\n$64\r\n:1:django.contrib.sessions.cache{key:032}\r\n");
        loop {
            target.write_all(get.as_bytes()).unwrap();
            let mut answer = vec![0; 4096];
            let read = target.read(&mut answer).unwrap();
            let wanted = [b"nJ".as_slice(), &counter.to_le_bytes()].concat();
            if answer[..read].windows(wanted.len()).any(|window| window == wanted) {
                break;
            }
            sleep(Duration::from_micros(300));
        }
        took.push(acknowledged.elapsed());
        sleep(PROBE_EVERY);
    }
    took
}

/// What waits for the other Redis and for the database.
fn pending(admin: u32) -> (u64, u64) {
    let mut stream = connect(admin);
    stream
        .write_all(b"GET /api/v1/status HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let body = answer.split("\r\n\r\n").nth(1).unwrap();
    let start = body.find('{').unwrap();
    let end = body.rfind('}').unwrap();
    let status: serde_json::Value = serde_json::from_str(&body[start..=end]).unwrap();
    let of = |sink: &str| status["tee"][sink]["pending"].as_u64().unwrap();
    (of("target"), of("database"))
}
