//! Many clients, large values, clients that do not read, and servers that go: nobody else notices, and memory has its
//! bounds.
#![cfg(feature = "net")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod support;

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{
        Barrier, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{scope, sleep},
    time::{Duration, Instant},
};

use support::{Proxy, ProxyOptions, Raw, RedisServer, command, eventually, session};

const MIB: u64 = 1024 * 1024;
/// Far more than a command needs, far less than Django's patience.
const HELD_UP: Duration = Duration::from_secs(2);

/// A proxy in front of one Redis, with another as its target and no database.
struct Served {
    source: RedisServer,
    _target: RedisServer,
    proxy: Proxy,
}

fn served(source: &[&str], proxy: &[&str]) -> Served {
    let (source, target) = (RedisServer::start(source), RedisServer::start(&[]));
    let options = ProxyOptions::between(&source, &target);
    let proxy = Proxy::start(options.args(proxy));
    Served {
        source,
        _target: target,
        proxy,
    }
}

impl Served {
    fn client(&self) -> Raw {
        Raw::connect(&self.proxy.address())
    }

    /// Another client's commands are answered at once.
    fn expect_others_served(&self, key: &str) {
        let began = Instant::now();
        let mut other = self.client();
        assert_eq!(other.ask(&["SET", key, "1"]), b"+OK\r\n");
        assert_eq!(other.ask(&["GET", key]), b"$1\r\n1\r\n");
        assert!(began.elapsed() < HELD_UP, "held up for {:?}", began.elapsed());
    }
}

/// This process holds the other ends of all the clients.
fn allow_open_files(wanted: u64) {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(limit.maximum.map_or(wanted, |maximum| maximum.min(wanted)));
    setrlimit(Resource::Nofile, limit).unwrap();
}

#[test]
fn ten_thousand_idle_clients_fit_into_200_mib() {
    allow_open_files(12_000);
    let served = served(&[], &[]);
    let mut clients: Vec<TcpStream> = (0..9_990)
        .map(|_| TcpStream::connect(served.proxy.address()).unwrap())
        .collect();
    // Each has been active once, as Django's are.
    for client in &mut clients {
        client.write_all(&command(&["GET", &session("nobody")])).unwrap();
    }
    for client in &mut clients {
        let mut reply = [0; 5];
        client.read_exact(&mut reply).unwrap();
        assert_eq!(&reply, b"$-1\r\n");
    }
    assert_eq!(served.proxy.status().clients.connected, 9_990);
    let resident = served.proxy.resident();
    println!("{} MiB for 9,990 clients", resident / MIB);
    assert!(resident < 200 * MIB, "{} MiB", resident / MIB);
    served.expect_others_served("one more");
}

#[test]
fn a_storm_of_connections_is_served() {
    let served = served(&[], &[]);
    let address = served.proxy.address();
    scope(|scope| {
        for thread in 0..8 {
            let address = &address;
            scope.spawn(move || {
                for round in 0..200 {
                    let (key, value) = (format!("{thread}"), format!("{round:03}"));
                    let mut client = Raw::connect(address);
                    assert_eq!(client.ask(&["SET", &key, &value]), b"+OK\r\n");
                    assert_eq!(client.ask(&["GET", &key]), format!("$3\r\n{value}\r\n").as_bytes());
                }
            });
        }
    });
    eventually("all have left", Duration::from_secs(5), || {
        served.proxy.status().clients.connected == 0
    });
}

#[test]
fn one_client_too_many_is_told_what_redis_tells() {
    let served = served(&[], &["--max-clients", "3"]);
    let mut clients: Vec<Raw> = (0..3).map(|_| served.client()).collect();
    clients.iter_mut().for_each(|client| {
        client.ask(&["PING"]);
    });
    let (said, closed) = served.client().until_closed(Duration::from_secs(5));
    assert_eq!(said, b"-ERR max number of clients reached\r\n");
    assert!(closed);
    // A place that becomes free is given again.
    clients.pop();
    eventually("there is room again", Duration::from_secs(5), || {
        let mut client = served.client();
        client.send(&command(&["PING"]));
        client.until_closed(Duration::from_millis(100)).0 == b"+PONG\r\n"
    });
}

#[test]
fn what_nobody_reads_stays_at_redis() {
    let served = served(&["--save", ""], &[]);
    served.source.ask::<()>(&["SET", "megabyte", &"m".repeat(1 << 20)]);
    let before = served.proxy.resident();
    let mut greedy: Vec<Raw> = (0..4).map(|_| served.client()).collect();
    for client in &mut greedy {
        // 320 MiB of replies in all.
        client.send(&command(&["GET", "megabyte"]).repeat(80));
    }
    for number in 0..20 {
        // Redis makes all replies of a pipeline before it looks at anybody else: that is its own affair.
        served.source.ask::<String>(&["PING"]);
        served.expect_others_served(&format!("other {number}"));
        sleep(Duration::from_millis(50));
    }
    // A window of replies each, that were under way before the proxy knew, and what allocators keep.
    let grown = served.proxy.resident().saturating_sub(before);
    assert!(grown < 500 * MIB, "{} MiB", grown / MIB);
    // Whoever reads late gets everything, in order.
    let first = &mut greedy[0];
    for _ in 0..80 {
        assert_eq!(first.frame().len(), (1 << 20) + "$1048576\r\n\r\n".len());
    }
    assert_eq!(first.ask(&["PING"]), b"+PONG\r\n");
}

#[test]
fn redis_closes_a_subscriber_that_does_not_read() {
    let served = served(&["--client-output-buffer-limit", "pubsub 4mb 4mb 0"], &[]);
    let mut deaf = served.client();
    deaf.ask(&["SUBSCRIBE", "news"]);
    let mut publisher = served.source.connection();
    let message = "m".repeat(256 * 1024);
    let mut told = 1;
    let began = Instant::now();
    while told == 1 {
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "the subscriber is never closed"
        );
        told = support::redis_server::ask(&mut publisher, &["PUBLISH", "news", &message]);
        // Slowly: whoever reads in its place, and keeps it all, would never let it come to the limit.
        sleep(Duration::from_millis(5));
    }
    // What was on its way is still delivered; then comes the end.
    let (_, closed) = deaf.until_closed(Duration::from_secs(10));
    assert!(closed);
    served.expect_others_served("other");
}

#[test]
fn a_large_value_that_comes_slowly_holds_up_nobody() {
    let served = served(&[], &[]);
    let mut slow = served.client();
    let value = "v".repeat(32 << 20);
    let whole = command(&["SET", "large", &value]);
    let (first, last) = whole.split_at(whole.len() - 1000);
    slow.send(first);
    for number in 0..5 {
        served.expect_others_served(&format!("other {number}"));
    }
    slow.send(last);
    assert_eq!(slow.frame(), b"+OK\r\n");
    assert_eq!(served.source.ask::<usize>(&["STRLEN", "large"]), value.len());
}

#[test]
fn a_restart_of_redis_costs_only_what_cannot_be_repeated() {
    let mut served = served(&[], &[]);
    let (mut counter, mut reader, mut saver) = (served.client(), served.client(), served.client());
    let mut idle = served.client();
    let key = session("0123456789abcdefghijklmnopqrstuv");
    for client in [&mut counter, &mut reader, &mut saver, &mut idle] {
        assert_eq!(client.ask(&["PING"]), b"+PONG\r\n");
    }
    served.source.freeze();
    counter.send(&command(&["INCR", "counter"]));
    reader.send(&command(&["GET", "nothing"]));
    saver.send(&command(&["SETEX", &key, "100", "value"]));
    sleep(Duration::from_millis(200));
    served.source.stop();
    // Not sent yet: waits for the server to come back.
    let mut late = served.client();
    late.send(&command(&["INCR", "late"]));
    sleep(Duration::from_millis(300));
    served.source.restart();
    assert_eq!(reader.frame(), b"$-1\r\n");
    assert_eq!(saver.frame(), b"+OK\r\n");
    assert_eq!(late.frame(), b":1\r\n");
    let error = counter.frame();
    assert!(
        error.starts_with(b"-ERR sessionferry: the connection to the source Redis was lost before it replied"),
        "{}",
        support::resp::shown(&error)
    );
    // It was not executed a second time behind the client's back.
    assert_eq!(counter.ask(&["GET", "counter"]), b"$-1\r\n");
    assert_eq!(idle.ask(&["PING"]), b"+PONG\r\n");
}

#[test]
fn after_a_loss_no_reply_stands_in_another_ones_place() {
    let mut served = served(&[], &[]);
    let (mut piped, mut transaction) = (served.client(), served.client());
    for client in [&mut piped, &mut transaction] {
        client.ask(&["PING"]);
    }
    served.source.freeze();
    piped.send(&[command(&["GET", "a"]), command(&["INCR", "b"]), command(&["ECHO", "c"])].concat());
    transaction.send(
        &[
            command(&["MULTI"]),
            command(&["GET", "a"]),
            command(&["SET", "d", "1"]),
            command(&["EXEC"]),
        ]
        .concat(),
    );
    sleep(Duration::from_millis(200));
    served.source.stop();
    sleep(Duration::from_millis(100));
    served.source.restart();
    let lost = b"-ERR sessionferry: the connection to the source Redis was lost";
    assert_eq!(piped.frame(), b"$-1\r\n");
    assert!(piped.frame().starts_with(lost));
    assert!(piped.frame().starts_with(lost));
    assert_eq!(piped.ask(&["GET", "a"]), b"$-1\r\n");
    // Half of a transaction is never executed: its client's connection ends with Redis's.
    assert_eq!(transaction.until_closed(Duration::from_secs(5)), (Vec::new(), true));
    assert_eq!(served.source.ask::<Option<String>>(&["GET", "d"]), None);
}

/// Ends the threads that look at it, also where the test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// A small plan of a hosted Redis allows twenty connections in all.
#[test]
fn workers_without_clients_hold_one_connection_each() {
    let served = served(&[], &["--workers", "8"]);
    let count = || served.source.ask::<String>(&["CLIENT", "LIST"]).lines().count();
    // Three for the first worker, one for each of the others, two for what watches, and the one that asks.
    const IDLE: usize = 3 + 7 + 2 + 1;
    eventually("the connections stand", Duration::from_secs(5), || count() == IDLE);
    let mut clients: Vec<Raw> = (0..20).map(|_| Raw::connect(&served.proxy.address())).collect();
    clients
        .iter_mut()
        .for_each(|client| assert_eq!(client.ask(&["PING"]), b"+PONG\r\n"));
    sleep(Duration::from_secs(2));
    assert_eq!(count(), IDLE);
}

/// What the proxy says to the server itself is in its slow log, in its `MONITOR` and in its graphs.
#[test]
fn a_server_that_answers_clients_is_not_asked_whether_it_is_there() {
    let served = served(&[], &[]);
    let pings = || -> u64 {
        let stats: String = served.source.ask(&["INFO", "commandstats"]);
        let calls = stats.split("cmdstat_ping:calls=").nth(1);
        calls.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
    };
    let mut client = Raw::connect(&served.proxy.address());
    let mut talk = |for_long: Duration| {
        let began = Instant::now();
        while began.elapsed() < for_long {
            assert_eq!(client.ask(&["GET", "a"]), b"$-1\r\n");
            sleep(Duration::from_millis(20));
        }
    };
    // What it asked before it had clients is over.
    talk(Duration::from_secs(1));
    let before = pings();
    talk(Duration::from_secs(3));
    assert!(pings() <= before + 1, "{} in 3 s", pings() - before);
    eventually("it is asked again", Duration::from_secs(5), || pings() > before + 2);
}

/// Each needs a worker that is busy for most of the time, which two at once may not get.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// `meanwhile` is done when all clients are there, before some of them are passed on.
fn clients_change_their_worker(meanwhile: impl FnOnce(&mut Raw)) {
    const CLIENTS: usize = 8;
    const BUSY: usize = 4;
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let served = served(&[], &["--workers", "2", "--log", "info,sessionferry::proxy=debug"]);
    let over = AtomicBool::new(false);
    let (here, go) = (&Barrier::new(CLIENTS + BUSY + 1), &Barrier::new(CLIENTS + BUSY + 1));
    let address = served.proxy.address();
    scope(|scope| {
        for number in 0..CLIENTS {
            let (address, over) = (&address, &over);
            scope.spawn(move || {
                let key = format!("counter {number}");
                let mut client = Raw::connect(address);
                let mut expected = 0_u64;
                if number % 2 == 0 {
                    client.ask(&["HELLO", "3"]);
                    client.ask(&["SELECT", "1"]);
                }
                client.ask(&["PING"]);
                here.wait();
                go.wait();
                while !over.load(Relaxed) {
                    client.send(&command(&["INCR", &key]).repeat(16));
                    for _ in 0..16 {
                        expected += 1;
                        assert_eq!(client.frame(), format!(":{expected}\r\n").as_bytes());
                    }
                    // Half of a command waits with the client that is moved.
                    let frame = command(&["ECHO", &key]);
                    client.send(&frame[..7]);
                    sleep(Duration::from_millis(1));
                    client.send(&frame[7..]);
                    let protocol_is_kept = format!("${}\r\n{key}\r\n", key.len());
                    assert_eq!(client.frame(), protocol_is_kept.as_bytes());
                }
                let nothing: &[u8] = if number % 2 == 0 { b"_\r\n" } else { b"$-1\r\n" };
                assert_eq!(client.ask(&["GET", "nothing"]), nothing);
            });
        }
        // All came to the first worker; these make it so busy that it passes clients on.
        for _ in 0..BUSY {
            let (address, over) = (&address, &over);
            scope.spawn(move || {
                let mut client = TcpStream::connect(address).unwrap();
                let pings = command(&["PING"]).repeat(1_000);
                let mut pongs = vec![0; "+PONG\r\n".len() * 1_000];
                client.write_all(&pings).unwrap();
                client.read_exact(&mut pongs).unwrap();
                here.wait();
                go.wait();
                while !over.load(Relaxed) {
                    client.write_all(&pings).unwrap();
                    client.read_exact(&mut pongs).unwrap();
                }
            });
        }
        let _ends_the_threads = Over(&over);
        let mut one_more = Raw::connect(&address);
        one_more.ask(&["PING"]);
        here.wait();
        meanwhile(&mut one_more);
        drop(one_more);
        go.wait();
        eventually("clients have changed their worker", Duration::from_secs(30), || {
            served.proxy.log_text().contains("clients change their worker")
        });
        sleep(Duration::from_secs(1));
    });
    eventually("all have left", Duration::from_secs(5), || {
        served.proxy.status().clients.connected == 0
    });
}

#[test]
fn clients_change_their_worker_unnoticed() {
    clients_change_their_worker(|_| ());
}

/// On the other worker a connection would have to be opened in their name, which the server refuses now. At a Redis those
/// who are there go on.
#[test]
fn who_was_there_before_rights_changed_goes_on_where_it_is() {
    clients_change_their_worker(|client| {
        assert_eq!(client.ask(&["ACL", "SETUSER", "default", "off"]), b"+OK\r\n");
    });
}
