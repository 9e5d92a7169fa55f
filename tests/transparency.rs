//! What is large, slow, half closed or a stream: through the proxy as without it.
//!
//! What fits into a sequence of commands is in `tests/differential/kept.txt`.
#![cfg(feature = "net")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod support;

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::{Arc, Mutex},
    thread::{scope, sleep},
    time::{Duration, Instant},
};

use support::{Proxy, ProxyOptions, Raw, RedisServer, command, eventually, relay, resp::shown};

struct Pair {
    direct: RedisServer,
    behind: RedisServer,
    _target: RedisServer,
    proxy: Proxy,
}

impl Pair {
    fn start() -> Pair {
        let (direct, behind, target) = (
            RedisServer::start(&[]),
            RedisServer::start(&[]),
            RedisServer::start(&[]),
        );
        let proxy = Proxy::start(ProxyOptions::between(&behind, &target));
        Pair {
            direct,
            behind,
            _target: target,
            proxy,
        }
    }

    /// The same on both ways.
    fn compare(&self, scenario: impl Fn(&str) -> Vec<Vec<u8>>) {
        let direct = scenario(&self.direct.address());
        let proxied = scenario(&self.proxy.address());
        for (at, (a, b)) in direct.iter().zip(&proxied).enumerate() {
            assert!(a == b, "answer {at}\n  direct:  {}\n  proxied: {}", shown(a), shown(b));
        }
        assert_eq!(direct.len(), proxied.len());
        assert!(!direct.is_empty());
    }
}

/// Everything until the other side closes.
fn rest(mut stream: TcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes) {
        bytes.extend_from_slice(format!("<{error}>").as_bytes());
    }
    bytes
}

// ---------------------------------------------------------------------------------------------- large

#[test]
fn a_hundred_thousand_commands_in_one_write() {
    let pair = Pair::start();
    pair.compare(|address| {
        let mut client = TcpStream::connect(address).unwrap();
        let mut request = Vec::new();
        for number in 0..25_000 {
            request.extend(command(&["SET", &format!("k{}", number % 1_000), &number.to_string()]));
            request.extend(command(&["GET", &format!("k{}", (number + 7) % 1_000)]));
            request.extend(command(&["INCR", "counter"]));
            request.extend(command(&["NOSUCH", &number.to_string()]));
        }
        request.extend(command(&["QUIT"]));
        let mut writer = client.try_clone().unwrap();
        scope(|threads| {
            threads.spawn(move || writer.write_all(&request).unwrap());
            let mut bytes = Vec::new();
            client.read_to_end(&mut bytes).unwrap();
            vec![bytes]
        })
    });
}

/// The largest value that Redis takes, there and back.
#[test]
fn a_value_of_512_mib() {
    const LENGTH: usize = 512 << 20;
    let pair = Pair::start();
    let pattern: Vec<u8> = (0..1 << 20)
        .map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let mut client = TcpStream::connect(pair.proxy.address()).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut writer = client.try_clone().unwrap();
    let mut exactly = |expected: &[u8]| {
        let mut got = vec![0; expected.len()];
        client.read_exact(&mut got).unwrap();
        assert!(got == expected, "{} instead of {}", shown(&got), shown(expected));
    };
    scope(|threads| {
        let pattern = &pattern;
        threads.spawn(move || {
            writer
                .write_all(format!("*3\r\n$3\r\nSET\r\n$5\r\nlarge\r\n${LENGTH}\r\n").as_bytes())
                .unwrap();
            for _ in 0..LENGTH / pattern.len() {
                writer.write_all(pattern).unwrap();
            }
            writer.write_all(b"\r\n").unwrap();
            writer.write_all(&command(&["STRLEN", "large"])).unwrap();
            writer.write_all(&command(&["GET", "large"])).unwrap();
            writer.write_all(&command(&["PING"])).unwrap();
        });
        exactly(b"+OK\r\n");
        exactly(format!(":{LENGTH}\r\n").as_bytes());
        exactly(format!("${LENGTH}\r\n").as_bytes());
        for _ in 0..LENGTH / pattern.len() {
            exactly(pattern);
        }
        exactly(b"\r\n+PONG\r\n");
    });
    // And nobody else noticed.
    assert_eq!(Raw::connect(&pair.proxy.address()).ask(&["PING"]), b"+PONG\r\n");
}

#[test]
fn replies_of_a_million_elements() {
    let pair = Pair::start();
    for protocol in ["2", "3"] {
        pair.compare(|address| {
            let mut client = TcpStream::connect(address).unwrap();
            let fill = "redis.call('DEL', KEYS[1]) for i = 1, 1000000, 1000 do local t = {} for j = 0, 999 do t[#t + 1] = i + j end redis.call('RPUSH', KEYS[1], unpack(t)) end return redis.call('LLEN', KEYS[1])";
            let request = [
                command(&["EVAL", fill, "1", "list"]),
                command(&["HELLO", protocol, "AUTH", "default"]),
                command(&["LRANGE", "list", "0", "-1"]),
                command(&["EVAL", "return redis.call('LRANGE', 'list', 0, -1)", "0"]),
                command(&["MULTI"]),
                command(&["LRANGE", "list", "0", "-1"]),
                command(&["EXEC"]),
                command(&["DEL", "list"]),
                command(&["QUIT"]),
            ];
            client.write_all(&request.concat()).unwrap();
            let mut bytes = Vec::new();
            client.read_to_end(&mut bytes).unwrap();
            vec![bytes]
        });
    }
}

// ---------------------------------------------------------------------------------------------- slow

#[test]
fn a_client_that_writes_a_byte_at_a_time_holds_up_nobody() {
    let pair = Pair::start();
    pair.compare(|address| {
        let mut slow = Raw::connect(address);
        let request = [
            command(&["SET", "slow", &"s".repeat(300)]),
            command(&["GET", "slow"]),
            command(&["MULTI"]),
            command(&["INCR", "n"]),
            command(&["EXEC"]),
            b"ECHO inline\r\n".to_vec(),
        ]
        .concat();
        let mut fast = Raw::connect(address);
        for byte in request.chunks(1) {
            slow.send(byte);
            sleep(Duration::from_micros(200));
            let began = Instant::now();
            assert_eq!(fast.ask(&["PING"]), b"+PONG\r\n");
            assert!(began.elapsed() < Duration::from_secs(1));
        }
        slow.frames(6)
    });
}

/// One that asks for much and reads nothing, one that was told of much and reads nothing.
#[test]
fn clients_that_never_read_hold_up_nobody() {
    let pair = Pair::start();
    let address = pair.proxy.address();
    let mut client = Raw::connect(&address);
    client.ask(&["SET", "large", &"l".repeat(1 << 20)]);
    let mut asks = TcpStream::connect(&address).unwrap();
    asks.write_all(&command(&["GET", "large"]).repeat(200)).unwrap();
    let mut hears = Raw::connect(&address);
    hears.ask(&["SUBSCRIBE", "c"]);
    let message = "m".repeat(1 << 16);
    let mut slowest = Duration::ZERO;
    for round in 0..300 {
        let began = Instant::now();
        assert_eq!(client.ask(&["PUBLISH", "c", &message]), b":1\r\n", "in round {round}");
        slowest = slowest.max(began.elapsed());
    }
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    // They find all of it when they do read.
    let frames = hears.frames(300);
    assert!(frames.iter().all(|frame| frame.ends_with(b"mm\r\n")));
    asks.write_all(&command(&["QUIT"])).unwrap();
    assert_eq!(rest(asks).len(), 200 * ((1 << 20) + "$1048576\r\n\r\n".len()) + 5);
}

// ---------------------------------------------------------------------------------------------- in order

/// A program that subscribes on one connection and publishes on another need not wait for the confirmation between the
/// two: what left first arrives first. Neither Redis nor a proxy of several threads can promise it on a busy machine, so
/// a few may be overtaken here. Where a connection has to be opened at SUBSCRIBE, all are.
#[test]
fn a_subscription_is_not_overtaken() {
    const WANTED: usize = 20;
    const FORGIVEN: usize = 20;
    let pair = Pair::start();
    let address = pair.proxy.address();
    let mut publisher = Raw::connect(&address);
    publisher.ask(&["PING"]);
    let (mut heard, mut overtaken) = (0, 0);
    while heard < WANTED {
        let channel = format!("c{heard}-{overtaken}");
        let mut subscriber = Raw::connect(&address);
        subscriber.ask(&["PING"]);
        subscriber.send(&command(&["SUBSCRIBE", &channel]));
        if publisher.ask(&["PUBLISH", &channel, "hello"]) == b":1\r\n" {
            heard += 1;
        } else {
            overtaken += 1;
            assert!(overtaken <= FORGIVEN, "{overtaken} overtaken, {heard} heard");
            // The machine was busy: the proxy's spare connections may not stand yet.
            sleep(Duration::from_millis(100));
        }
    }
}

/// The server ends the connection of a client that had one of its own and says QUIT. Meanwhile nobody else is given it.
#[test]
fn nobody_is_given_the_connection_of_a_client_that_quits() {
    const ROUNDS: usize = 1000;
    let pair = Pair::start();
    let address = pair.proxy.address();
    scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    let mut leaves = TcpStream::connect(&address).unwrap();
                    let says = [&["WATCH", "k"][..], &["UNWATCH"], &["QUIT"]].map(command).concat();
                    leaves.write_all(&says).unwrap();
                    assert_eq!(rest(leaves), b"+OK\r\n+OK\r\n+OK\r\n");
                }
            });
            scope.spawn(|| {
                let mut stays = Raw::connect(&address);
                for _ in 0..ROUNDS {
                    stays.send(&[command(&["MULTI"]), command(&["EXEC"])].concat());
                    assert_eq!(stays.frame(), b"+OK\r\n");
                    assert_eq!(stays.frame(), b"*0\r\n");
                }
            });
        }
    });
}

// ---------------------------------------------------------------------------------------------- shared

/// What one server lets pass, another ends the connection for, and others are on it.
#[test]
fn what_a_shared_connection_carries_is_well_formed() {
    let (behind, target) = (RedisServer::start(&[]), RedisServer::start(&[]));
    let passed = Arc::new(Mutex::new(Vec::new()));
    let keep = {
        let passed = passed.clone();
        move |bytes: &[u8]| {
            passed.lock().unwrap().extend_from_slice(bytes);
            bytes.to_vec()
        }
    };
    let proxy = Proxy::start(ProxyOptions {
        source: format!("redis://{}", relay::start(behind.address(), keep, <[u8]>::to_vec)),
        ..ProxyOptions::between(&behind, &target)
    });
    let mut client = Raw::connect(&proxy.address());
    client.send(b"*2\r\n$4\r\nECHOxy$5\r\nhelloxy*2\rx$4\ryECHO\r\n$5\rzthere\r\n");
    assert_eq!(client.frames(2), [b"$5\r\nhello\r\n", b"$5\r\nthere\r\n"]);
    let passed = passed.lock().unwrap();
    for word in ["hello", "there"] {
        let frame = command(&["ECHO", word]);
        assert!(memchr::memmem::find(&passed, &frame).is_some(), "{}", shown(&passed));
    }
}

// ---------------------------------------------------------------------------------------------- counted

/// Whoever draws a graph of the server's clients through the proxy sees those clients, and not the proxy's connections.
#[test]
fn info_counts_the_clients_that_are_connected() {
    let pair = Pair::start();
    pair.compare(|address| {
        let mut idle: Vec<Raw> = (0..30).map(|_| Raw::connect(address)).collect();
        idle.iter_mut().for_each(|client| drop(client.ask(&["PING"])));
        idle[0].ask(&["CLIENT", "SETNAME", "named"]);
        idle[1].ask(&["SUBSCRIBE", "channel"]);
        idle[2].ask(&["HELLO", "3"]);
        idle[2].ask(&[
            "CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "page:", "PREFIX", "user:",
        ]);
        let counted = |client: &mut Raw| -> Vec<String> {
            let fields = ["connected_clients:", "tracking_clients:", "tracking_total_prefixes:"];
            let wanted = |line: &&str| fields.iter().any(|field| line.starts_with(field));
            let text = ["clients", "stats", "everything"]
                .map(|section| String::from_utf8(client.ask(&["INFO", section])).unwrap())
                .concat();
            text.lines().filter(wanted).map(str::to_owned).collect()
        };
        let mut resp2 = Raw::connect(address);
        let mut resp3 = Raw::connect(address);
        resp3.ask(&["HELLO", "3"]);
        drop(idle.split_off(20));
        let expected = [
            "connected_clients:22",
            "tracking_clients:1",
            "tracking_total_prefixes:2",
        ];
        // Those who have just left are seen to leave a little later.
        eventually("all are counted", Duration::from_secs(10), || {
            counted(&mut resp2) == [expected, expected].concat()
        });
        // In a transaction the numbers are the server's.
        resp2.ask(&["MULTI"]);
        vec![
            resp2.ask(&["INFO", "clients"]),
            counted(&mut resp3).join(" ").into_bytes(),
        ]
    });
}

/// Each of the proxy's clients is one of the server's to whoever ends them all, whether it has a connection there or not.
#[test]
fn everybody_is_killed_and_counted() {
    let pair = Pair::start();
    pair.compare(|address| {
        let mut answers = Vec::new();
        for (words, spares_itself) in [("yes", true), ("no", false)] {
            let mut plain = Raw::connect(address);
            let mut named = Raw::connect(address);
            let mut subscribed = Raw::connect(address);
            let mut blocked = Raw::connect(address);
            let mut killer = Raw::connect(address);
            plain.ask(&["PING"]);
            named.ask(&["CLIENT", "SETNAME", "named"]);
            subscribed.ask(&["SUBSCRIBE", "channel"]);
            blocked.send(&command(&["BLPOP", "nothing", "0"]));
            let counted = |client: &mut Raw| client.ask(&["INFO", "clients"]);
            eventually("all are there, and only these", Duration::from_secs(10), || {
                let text = String::from_utf8(counted(&mut killer)).unwrap();
                text.contains("connected_clients:5\r") && text.contains("blocked_clients:1\r")
            });
            answers.push(killer.ask(&["CLIENT", "KILL", "SKIPME", words]));
            for client in [&mut plain, &mut named, &mut subscribed, &mut blocked] {
                let (left, closed) = client.until_closed(Duration::from_secs(5));
                assert!(closed);
                answers.push(left);
            }
            if spares_itself {
                answers.push(killer.ask(&["CLIENT", "KILL", "SKIPME", "yes"]));
                answers.push(killer.ask(&["PING"]));
            } else {
                assert_eq!(killer.until_closed(Duration::from_secs(5)), (Vec::new(), true));
            }
        }
        answers
    });
}

// ---------------------------------------------------------------------------------------------- half closed

/// Redis takes the end of a connection for the client's end, and drops what it has not yet answered.
#[test]
fn what_was_answered_before_the_end_of_the_input_arrives() {
    let pair = Pair::start();
    pair.compare(|address| {
        let mut answers = Vec::new();
        for request in [
            command(&["ECHO", "one"]),
            [command(&["MULTI"]), command(&["SET", "half", "1"])].concat(),
            command(&["SUBSCRIBE", "c"]),
            command(&["BLPOP", "none", "0"]),
            b"*2\r\n$4\r\nECHO\r\n$5\r\nab".to_vec(),
            Vec::new(),
        ] {
            let mut client = TcpStream::connect(address).unwrap();
            client.write_all(&request).unwrap();
            sleep(Duration::from_millis(100));
            client.shutdown(Shutdown::Write).unwrap();
            answers.push(rest(client));
        }
        let mut client = Raw::connect(address);
        answers.push(client.ask(&["GET", "half"]));
        answers.push(client.ask(&["PUBSUB", "CHANNELS"]));
        answers.push(client.ask(&["RPUSH", "none", "x"]));
        answers.push(client.ask(&["LPOP", "none"]));
        answers
    });
}

// ---------------------------------------------------------------------------------------------- streams

#[test]
fn monitor_is_the_same_but_for_times_and_addresses() {
    let pair = Pair::start();
    pair.compare(|address| {
        let mut watcher = Raw::connect(address);
        let mut lines = vec![watcher.ask(&["MONITOR"])];
        let mut client = Raw::connect(address);
        client.ask(&["SELECT", "2"]);
        client.ask(&["SET", "a key", "\r\n\"x\""]);
        client.ask(&["EVAL", "return redis.call('GET', 'a key')", "0"]);
        client.ask(&["NOSUCH"]);
        client.ask(&["PING", "last"]);
        // `1700000000.123456 [0 127.0.0.1:5000] "PING"`; the proxy's own handshakes stand among them.
        loop {
            let line = String::from_utf8_lossy(&watcher.frame()).into_owned();
            let (head, words) = line.split_once(" [").unwrap();
            assert!(head.starts_with('+') && head.contains('.'), "{line}");
            let (place, words) = words.split_once("] ").unwrap();
            let place = if place.ends_with("lua") { "lua" } else { "tcp" };
            if words.contains("\"last\"") {
                break;
            }
            if ["\"SET\"", "\"EVAL\"", "\"GET\""]
                .iter()
                .any(|name| words.starts_with(name))
            {
                lines.push(format!("{place} {words}").into_bytes());
            }
        }
        // In RESP2 a monitor still talks.
        watcher.send(&command(&["QUIT"]));
        let (_, closed) = watcher.until_closed(Duration::from_secs(3));
        lines.push(format!("closed {closed}").into_bytes());
        lines
    });
}

/// A replica that was told the proxy's address gets the whole data and what is written from then on.
#[test]
fn a_script_is_debugged_through_the_proxy() {
    let pair = Pair::start();
    pair.compare(|address| {
        let mut client = Raw::connect(address);
        let mut answers = vec![client.ask(&["SCRIPT", "DEBUG", "YES"])];
        // Stopped at the first line, a step, a value, then on to the end, where the server closes.
        answers.push(client.ask(&["EVAL", "local a = 40\nlocal b = a + 2\nreturn b", "0"]));
        // One after the other: the debugger forgets what else has come with a command.
        answers.extend([&["step"][..], &["print"]].map(|words| client.ask(words)));
        client.send(&command(&["continue"]));
        let (said, closed) = client.until_closed(Duration::from_secs(1));
        answers.extend([said, vec![u8::from(closed)]]);
        answers
    });
}

#[test]
fn a_replica_attaches_through_the_proxy() {
    let pair = Pair::start();
    let mut client = pair.proxy.connection();
    for number in 0..1_000 {
        support::redis_server::ask::<()>(&mut client, &["SET", &format!("before{number}"), "b"]);
    }
    pair.behind
        .ask::<()>(&["CONFIG", "SET", "repl-diskless-sync-delay", "0"]);
    let replica = RedisServer::start(&[]);
    let address = pair.proxy.address();
    let (host, port) = address.split_once(':').unwrap();
    replica.ask::<()>(&["REPLICAOF", host, port]);
    eventually("the replica is in step", Duration::from_secs(20), || {
        replica
            .ask::<String>(&["INFO", "replication"])
            .contains("master_link_status:up")
    });
    assert_eq!(
        replica.ask::<Option<String>>(&["GET", "before999"]),
        Some("b".to_owned())
    );
    support::redis_server::ask::<()>(&mut client, &["SET", "after", "a"]);
    eventually("a write arrives", Duration::from_secs(5), || {
        replica.ask::<Option<String>>(&["GET", "after"]).is_some()
    });
    // Redis counts it, and knows how far it is.
    let acknowledged: i64 = pair.behind.ask(&["WAIT", "1", "3000"]);
    assert_eq!(acknowledged, 1);
    // Through the proxy it counts for what this client wrote.
    let mut client = Raw::connect(&address);
    assert_eq!(client.ask(&["SET", "waited-for", "1"]), b"+OK\r\n");
    assert_eq!(client.ask(&["WAIT", "1", "3000"]), b":1\r\n");
    assert_eq!(
        replica.ask::<Option<String>>(&["GET", "waited-for"]),
        Some("1".to_owned()),
        "WAIT answered before the write that it was to wait for had arrived"
    );
}

// ---------------------------------------------------------------------------------------------- a busy server

#[test]
fn a_busy_script_is_killed_by_another_client() {
    let pair = Pair::start();
    pair.compare(|address| {
        support::redis_server::connect(&format!("redis://{address}"));
        let mut owner = Raw::connect(address);
        let mut other = Raw::connect(address);
        let mut answers = vec![other.ask(&["CONFIG", "SET", "busy-reply-threshold", "50"])];
        owner.send(&command(&["EVAL", "while true do end", "0"]));
        let began = Instant::now();
        // Until the script is slow, others wait; then they are told so.
        loop {
            let answer = other.ask(&["GET", "a"]);
            if answer.starts_with(b"-BUSY") {
                answers.push(answer);
                break;
            }
            assert!(
                began.elapsed() < Duration::from_secs(5),
                "never busy: {}",
                shown(&answer)
            );
            sleep(Duration::from_millis(20));
        }
        answers.push(Raw::connect(address).ask(&["PING"]));
        answers.push(Raw::connect(address).ask(&["SCRIPT", "KILL"]));
        answers.push(owner.frame());
        answers.push(other.ask(&["GET", "a"]));
        answers.push(owner.ask(&["SCRIPT", "KILL"]));
        answers
    });
}
