//! Asks at a fixed rate, however long the answers take to come, and prints the percentiles of the latency in µs as JSON.
//!
//! usage: paced PORT COMMANDS_PER_SECOND CLIENTS SECONDS
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measuring tool that cannot go on should say where"
)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [port, rate, clients, seconds] = &args[..] else {
        panic!("usage: paced PORT COMMANDS_PER_SECOND CLIENTS SECONDS");
    };
    let (rate, clients): (f64, u32) = (rate.parse().unwrap(), clients.parse().unwrap());
    let port: u16 = port.parse().unwrap();
    let length = Duration::from_secs(seconds.parse().unwrap());
    let interval = Duration::from_secs_f64(f64::from(clients) / rate);
    let start = Instant::now() + Duration::from_millis(50);
    let threads: Vec<_> = (0..clients)
        .map(|number| {
            // Evenly spread over the interval.
            let first = start + interval * number / clients;
            thread::spawn(move || client(port, first, interval, length))
        })
        .collect();
    let mut took: Vec<Duration> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    took.sort_unstable();
    let percentile = |share: f64| took[((took.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    println!("{{\"p50\": {:.1}, \"p99\": {:.1}}}", percentile(0.5), percentile(0.99));
}

fn client(port: u16, first: Instant, interval: Duration, length: Duration) -> Vec<Duration> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_nodelay(true).unwrap();
    let value = [b'v'; 300];
    let mut exchange = |request: &[u8], reply: &mut [u8]| {
        stream.write_all(request).unwrap();
        stream.read_exact(reply).unwrap();
    };
    let set = [b"*3\r\n$3\r\nSET\r\n$5\r\npaced\r\n$300\r\n", &value[..], b"\r\n"].concat();
    exchange(&set, &mut [0; 5]);
    let mut reply = [0; "$300\r\n\r\n".len() + 300];
    let mut took = Vec::new();
    let mut next = first;
    while next < first + length {
        if let Some(wait) = next.checked_duration_since(Instant::now()) {
            thread::sleep(wait);
        }
        let sent = Instant::now();
        exchange(b"*2\r\n$3\r\nGET\r\n$5\r\npaced\r\n", &mut reply);
        took.push(sent.elapsed());
        next += interval;
    }
    // The first ones find cold connections.
    took.split_off(took.len() / 10)
}
