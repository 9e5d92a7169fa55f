//! Through the proxy or not: the same bytes.
//!
//! Each scenario talks to a Redis directly and, with the same bytes, to an identical one behind the proxy; what came back
//! has to be equal, byte for byte, apart from the few replies that differ between any two servers (marked below).
//!
//! With `SESSIONFERRY_TEST_WITHOUT_PROXY` set the second is a plain Redis too: every scenario has to hold then.
#![cfg(feature = "net")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

#[path = "forwarding/comparison.rs"]
mod comparison;
#[path = "forwarding/passwords.rs"]
mod passwords;
mod support;
#[path = "forwarding/waiting.rs"]
mod waiting;

use std::{
    io::{Read, Write},
    net::TcpListener,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicUsize, Ordering},
    thread::{scope, sleep},
    time::{Duration, Instant},
};

use comparison::*;
use support::{Port, Proxy, ProxyOptions, Raw, RedisServer, command, eventually, resp::shown};

// ---------------------------------------------------------------------------------------------- the test of the test

#[test]
fn the_comparison_itself_finds_two_plain_servers_equal() {
    let (left, right) = (RedisServer::start(&[]), RedisServer::start(&[]));
    let all = lines(COMMANDS);
    assert!(all.len() > 300, "only {} commands", all.len());
    for protocol in [2, 3] {
        left.ask::<()>(&["FLUSHALL"]);
        right.ask::<()>(&["FLUSHALL"]);
        same(
            &talk(&left.address(), protocol, Cut::OneByOne, &all),
            &talk(&right.address(), protocol, Cut::Pieces, &all),
        );
    }
}

#[test]
fn the_comparison_itself_notices_one_changed_byte() {
    let (direct, behind) = (RedisServer::start(&[]), RedisServer::start(&[]));
    let relay = Port::free();
    let listener = TcpListener::bind(relay.address()).unwrap();
    let upstream = behind.address();
    // A proxy that is wrong: one letter of one reply.
    std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut server = std::net::TcpStream::connect(upstream).unwrap();
        let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut from_client, &mut to_server));
        let mut chunk = [0; 65_536];
        while let Ok(length @ 1..) = server.read(&mut chunk) {
            let changed: Vec<u8> = String::from_utf8_lossy(&chunk[..length])
                .replace("value", "valve")
                .into_bytes();
            if client.write_all(&changed).is_err() {
                return;
            }
        }
    });
    let asked = ["SET key value", "GET other", "GET key"];
    let left = talk(&direct.address(), 2, Cut::OneByOne, &asked);
    let right = talk(&relay.address(), 2, Cut::OneByOne, &asked);
    let verdict = catch_unwind(AssertUnwindSafe(|| same(&left, &right)));
    assert!(verdict.is_err(), "the changed byte went unnoticed");
}

// ---------------------------------------------------------------------------------------------- plain commands

#[test]
fn hundreds_of_commands_get_the_same_bytes_one_by_one() {
    let pair = Pair::start();
    for protocol in [2, 3] {
        pair.compare(|address| talk(address, protocol, Cut::OneByOne, &lines(COMMANDS)));
    }
}

#[test]
fn hundreds_of_commands_get_the_same_bytes_in_one_pipeline() {
    let pair = Pair::start();
    for protocol in [2, 3] {
        pair.compare(|address| talk(address, protocol, Cut::Pipeline, &lines(COMMANDS)));
    }
}

#[test]
fn hundreds_of_commands_get_the_same_bytes_however_the_writes_are_cut() {
    let pair = Pair::start();
    for protocol in [2, 3] {
        pair.compare(|address| talk(address, protocol, Cut::Bytes, &lines(COMMANDS)));
        pair.compare(|address| talk(address, protocol, Cut::Pieces, &lines(COMMANDS)));
    }
}

#[test]
fn inline_commands_get_the_same_bytes() {
    let pair = Pair::start();
    pair.compare(|address| {
        let mut client = Raw::connect(address);
        let mut transcript = Transcript::new();
        for line in [
            "PING\r\n",
            "PING\n",
            "set key value\r\n",
            "  get   key  \r\n",
            "SET \"quoted key\" \"\\x41\\n b\"\r\n",
            "GET 'quoted key'\r\n",
            "\r\n\r\nECHO after-empty-lines\r\n",
            "nosuchcommand a b\r\n",
            "GET\r\n",
            "SET :1:django.contrib.sessions.cacheinline0000000000000000000000000 v EX 100\r\n",
            "GET :1:django.contrib.sessions.cacheinline0000000000000000000000000\r\n",
        ] {
            client.send(line.as_bytes());
            transcript.push((line.to_owned(), client.frame()));
        }
        client.send(b"ECHO a\r\n*2\r\n$4\r\nECHO\r\n$1\r\nb\r\nECHO c\r\n*0\r\nECHO d\r\n*-1\r\nECHO e\r\n");
        transcript.extend(
            client
                .frames(5)
                .into_iter()
                .map(|frame| ("inline and not, mixed".to_owned(), frame)),
        );
        transcript.push(("nothing more".to_owned(), client.unasked(Duration::from_millis(100))));
        transcript
    });
}

#[test]
fn a_protocol_error_gets_the_same_message_and_the_same_end() {
    let pair = Pair::start();
    let long_inline = [b"SET key ".as_slice(), &[b'x'; 70_000]].concat();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("bulk length is no number", b"*1\r\n$abc\r\nPING\r\n".to_vec()),
        ("negative bulk length", b"*1\r\n$-5\r\nPING\r\n".to_vec()),
        (
            "bulk length over the limit",
            b"*2\r\n$3\r\nGET\r\n$536870913\r\n".to_vec(),
        ),
        (
            "bulk length over 64 bits",
            b"*2\r\n$3\r\nGET\r\n$99999999999999999999\r\n".to_vec(),
        ),
        ("no bulk where one must be", b"*2\r\n$3\r\nGET\r\n:1\r\n".to_vec()),
        ("array length is no number", b"*abc\r\n".to_vec()),
        ("array length over the limit", b"*2147483648\r\n".to_vec()),
        ("unbalanced quotes", b"SET \"a\r\n".to_vec()),
        ("text after a quote", b"SET \"a\"b c\r\n".to_vec()),
        ("an inline command without end", long_inline),
        (
            "a web browser's GET",
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        ),
        (
            "a web browser's POST",
            b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\nSET a b\r\n".to_vec(),
        ),
        ("a good command before", b"*1\r\n$4\r\nPING\r\n*1\r\n$x\r\n".to_vec()),
        ("a command after", b"*1\r\n$x\r\n*1\r\n$4\r\nPING\r\n".to_vec()),
    ];
    pair.compare(|address| {
        let mut transcript = Transcript::new();
        for (name, bytes) in &cases {
            let mut client = Raw::connect(address);
            client.try_send(bytes);
            let (reply, closed) = client.until_closed(Duration::from_secs(3));
            transcript.push((
                (*name).to_owned(),
                [reply.as_slice(), if closed { b"closed" } else { b"open" }].concat(),
            ));
        }
        transcript
    });
    // And nobody else was hurt by it.
    assert_eq!(Raw::connect(&pair.proxied()).ask(&["PING"]), b"+PONG\r\n");
}

#[test]
fn quit_and_reset_do_what_redis_does() {
    let pair = Pair::start();
    pair.compare(|address| {
        let mut transcript = Transcript::new();
        let mut client = Raw::connect(address);
        client.send(
            &[
                command(&["SET", "a", "1"]),
                command(&["QUIT"]),
                command(&["SET", "a", "2"]),
            ]
            .concat(),
        );
        let (bytes, closed) = client.until_closed(Duration::from_secs(3));
        transcript.push((format!("QUIT in a pipeline, closed {closed}"), bytes));
        let mut client = Raw::connect(address);
        transcript.push((
            "what came after QUIT was not done".to_owned(),
            client.ask(&["GET", "a"]),
        ));
        for line in [
            "HELLO 3",
            "SELECT 5",
            "CLIENT SETNAME me",
            "SET five 5",
            "MULTI",
            "SET five 6",
            "RESET",
            "GET five",
            "CLIENT GETNAME",
            "EXEC",
            "SELECT 5",
            "GET five",
            "GET nothing",
        ] {
            transcript.push((line.to_owned(), client.ask(&words(line))));
        }
        transcript
    });
}

// ---------------------------------------------------------------------------------------------- large

#[test]
fn a_value_of_64_mib_comes_and_goes_unchanged() {
    let pair = Pair::start();
    let value: Vec<u8> = (0..64 << 20)
        .map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let mut client = Raw::connect(&pair.proxied());
    let set = command(&[b"SET".as_slice(), b"large", &value]);
    let mut writer = client.writer();
    scope(|threads| {
        threads.spawn(move || writer.write_all(&set).unwrap());
        assert_eq!(client.frame(), b"+OK\r\n");
    });
    let stored: Vec<u8> = redis::cmd("GET")
        .arg("large")
        .query(&mut pair.behind.connection())
        .unwrap();
    assert!(stored == value, "the server got other bytes");
    client.send(&[command(&["GET", "large"]), command(&["PING"])].concat());
    let reply = client.frame();
    assert!(
        reply == [b"$67108864\r\n".as_slice(), &value, b"\r\n"].concat(),
        "other bytes came back"
    );
    assert_eq!(client.frame(), b"+PONG\r\n");
}

#[test]
fn replies_of_a_hundred_thousand_elements_are_the_same() {
    let pair = Pair::start();
    for protocol in [2, 3] {
        pair.compare(|address| {
            let mut client = Raw::connect(address);
            let fill = "for i = 1, 100000 do redis.call('RPUSH', KEYS[1], i) redis.call('ZADD', KEYS[2], i, i * 2) end";
            let mut transcript = vec![(
                "HELLO".to_owned(),
                client.ask(&["HELLO".to_owned(), protocol.to_string()]),
            )];
            transcript.push(("fill".to_owned(), client.ask(&["EVAL", fill, "2", "list", "sorted"])));
            for line in ["LRANGE list 0 -1", "ZRANGE sorted 0 -1 WITHSCORES", "LLEN list"] {
                transcript.push((line.to_owned(), client.ask(&words(line))));
            }
            let many: Vec<String> = std::iter::once("MSET".to_owned())
                .chain((0..100_000).map(|number| format!("m{number}")))
                .collect();
            transcript.push(("a command of 100,001 arguments".to_owned(), client.ask(&many)));
            let many: Vec<String> = std::iter::once("MGET".to_owned())
                .chain((0..50_000).map(|number| format!("m{}", 2 * number)))
                .collect();
            transcript.push(("MGET of 50,000 keys".to_owned(), client.ask(&many)));
            transcript
        });
    }
}

#[test]
fn a_pipeline_whose_replies_nobody_reads_yet_does_not_jam() {
    let pair = Pair::start();
    pair.behind.ask::<()>(&["SET", "kilobytes", &"k".repeat(10_000)]);
    let mut client = Raw::connect(&pair.proxied());
    // 3,000 requests and 30 MB of replies: more than every socket buffer between.
    client.send(&command(&["GET", "kilobytes"]).repeat(3_000));
    sleep(Duration::from_millis(500));
    let reply = [b"$10000\r\n".as_slice(), &[b'k'; 10_000], b"\r\n"].concat();
    for _ in 0..3_000 {
        assert!(client.frame() == reply);
    }
}

#[test]
fn a_client_that_reads_nothing_does_not_hold_up_the_others() {
    let pair = Pair::start_with(&["--client-output-buffer-limit", "normal 0 0 0"]);
    pair.behind.ask::<()>(&["SET", "megabyte", &"k".repeat(1 << 20)]);
    let mut greedy: Vec<Raw> = (0..4).map(|_| Raw::connect(&pair.proxied())).collect();
    for client in &mut greedy {
        client.send(&command(&["GET", "megabyte"]).repeat(200));
    }
    sleep(Duration::from_millis(300));
    for number in 0..50 {
        let began = Instant::now();
        let mut client = Raw::connect(&pair.proxied());
        let key = format!("other {number}");
        assert_eq!(client.ask(&["SET", &key, "1"]), b"+OK\r\n");
        assert_eq!(client.ask(&["GET", &key]), b"$1\r\n1\r\n");
        assert!(
            began.elapsed() < Duration::from_secs(2),
            "held up for {:?}",
            began.elapsed()
        );
    }
}

// ---------------------------------------------------------------------------------------------- state of a connection

#[test]
fn transactions_answer_as_redis_does() {
    let pair = Pair::start();
    for protocol in [2, 3] {
        for cut in [Cut::OneByOne, Cut::Pipeline] {
            pair.compare(|address| talk(address, protocol, cut, &lines(TRANSACTIONS)));
        }
        // WATCH, with another client who changes the key in between.
        pair.compare(|address| {
            let mut transcript = talk(address, protocol, Cut::OneByOne, &[]);
            let (mut one, mut two) = (Raw::connect(address), Raw::connect(address));
            one.ask(&["HELLO".to_owned(), protocol.to_string()]);
            for line in [
                "1 SET watched a",
                "1 WATCH watched",
                "1 MULTI",
                "1 SET watched b",
                "2 SET watched c",
                "1 EXEC",
                "1 GET watched",
                "1 WATCH watched",
                "2 GET watched",
                "1 MULTI",
                "1 SET watched d",
                "1 EXEC",
                "1 GET watched",
                "1 WATCH watched",
                "2 SET watched e",
                "1 UNWATCH",
                "1 MULTI",
                "1 SET watched f",
                "1 EXEC",
                "1 WATCH watched",
                "2 SET watched g",
                "1 MULTI",
                "1 DISCARD",
                "1 MULTI",
                "1 GET watched",
                "1 EXEC",
                "1 MULTI",
                "2 MULTI",
                "1 SET a 1",
                "2 SET a 2",
                "1 EXEC",
                "2 GET a",
                "2 EXEC",
                "1 GET a",
            ] {
                let client = if line.starts_with('1') { &mut one } else { &mut two };
                transcript.push((line.to_owned(), client.ask(&words(&line[2..]))));
            }
            transcript
        });
    }
}

#[test]
fn a_client_that_leaves_inside_multi_changes_nothing() {
    let pair = Pair::start();
    pair.compare(|address| {
        let mut leaver = Raw::connect(address);
        leaver.ask(&["MULTI"]);
        leaver.ask(&["SET", "left", "1"]);
        drop(leaver);
        sleep(Duration::from_millis(200));
        let mut client = Raw::connect(address);
        let mut transcript = Transcript::new();
        for line in ["GET left", "SET left 2", "EXEC", "MULTI", "GET left", "EXEC"] {
            transcript.push((line.to_owned(), client.ask(&words(line))));
        }
        transcript
    });
}

#[test]
fn selected_database_name_and_protocol_belong_to_the_client() {
    let pair = Pair::start();
    pair.compare(|address| {
        let mut transcript = Transcript::new();
        let mut clients: Vec<Raw> = (0..8).map(|_| Raw::connect(address)).collect();
        for (number, client) in clients.iter_mut().enumerate() {
            if number % 2 == 1 {
                client.ask(&["HELLO", "3"]);
            }
            let name = format!("client-{number}");
            for line in [
                format!("SELECT {number}"),
                format!("CLIENT SETNAME {name}"),
                format!("SET here {number}"),
            ] {
                transcript.push((line.clone(), client.ask(&words(&line))));
            }
        }
        for _ in 0..3 {
            for client in &mut clients {
                for line in [
                    "GET here",
                    "CLIENT GETNAME",
                    "GET nothing",
                    "HGETALL nothing",
                    "~ CLIENT ID",
                    "DBSIZE",
                ] {
                    transcript.push((line.to_owned(), client.ask(&words(line))));
                }
            }
        }
        transcript
    });
}

/// Bytes that only pass through are no command that waits for an answer: the connection has to be opened for them as well.
#[test]
fn replies_are_switched_off_on_a_connection_that_does_not_stand_yet() {
    let pair = Pair::start();
    let in_five = || {
        let mut client = Raw::connect(&pair.proxied());
        assert_eq!(client.ask(&["SELECT", "5"]), b"+OK\r\n");
        client
    };
    let mut silent = in_five();
    assert_eq!(silent.ask(&["SET", "a", "1"]), b"+OK\r\n");
    // They have both connections that are kept for such as they are, and new ones get no answer.
    let mut holders: Vec<Raw> = (0..2).map(|_| in_five()).collect();
    for holder in &mut holders {
        assert_eq!(holder.ask(&["MULTI"]), b"+OK\r\n");
    }
    pair.behind.freeze();
    std::thread::sleep(Duration::from_secs(4));
    pair.behind.thaw();
    for words in [
        &["CLIENT", "REPLY", "OFF"][..],
        &["SET", "a", "2"],
        &["CLIENT", "REPLY", "ON"],
    ] {
        silent.send(&command(words));
    }
    assert_eq!(silent.frame(), b"+OK\r\n");
    assert_eq!(silent.ask(&["GET", "a"]), b"$1\r\n2\r\n");
}

#[test]
fn a_client_has_one_id_and_no_other_has_it() {
    let pair = Pair::start();
    let mut clients: Vec<Raw> = (0..20).map(|_| Raw::connect(&pair.proxied())).collect();
    let ids: Vec<Vec<u8>> = clients.iter_mut().map(|client| client.ask(&["CLIENT", "ID"])).collect();
    let different: std::collections::BTreeSet<&Vec<u8>> = ids.iter().collect();
    assert_eq!(different.len(), ids.len(), "two clients have the same id: {ids:?}");
    for (client, id) in clients.iter_mut().zip(&ids) {
        client.ask(&["SET", "between", "1"]);
        assert_eq!(&client.ask(&["CLIENT", "ID"]), id, "a client's id changed");
    }
}

#[test]
fn scripts_and_functions_answer_as_redis_does() {
    let pair = Pair::start();
    for protocol in [2, 3] {
        for cut in [Cut::OneByOne, Cut::Pipeline] {
            pair.compare(|address| talk(address, protocol, cut, &lines(SCRIPTS)));
        }
    }
}

#[test]
fn client_reply_off_and_skip_are_kept() {
    let pair = Pair::start();
    pair.compare(|address| {
        let mut client = Raw::connect(address);
        let all = [
            "CLIENT REPLY OFF",
            "SET a 1",
            "GET a",
            "CLIENT REPLY ON",
            "GET a",
            "CLIENT REPLY SKIP",
            "SET a 2",
            "GET a",
        ];
        client.send(&all.iter().flat_map(|line| command(&words(line))).collect::<Vec<u8>>());
        let replies = client.frames(3).concat();
        vec![
            (all.join("; "), replies),
            ("nothing more".to_owned(), client.unasked(Duration::from_millis(200))),
        ]
    });
}

// ---------------------------------------------------------------------------------------------- many at once

#[test]
fn no_reply_reaches_the_wrong_client() {
    let pair = Pair::start();
    let address = pair.proxied();
    let began = Instant::now();
    scope(|threads| {
        for number in 0..100_usize {
            let address = &address;
            threads.spawn(move || {
                let mut client = Raw::connect(address);
                let three = number % 3 == 0;
                if three {
                    client.ask(&["HELLO", "3"]);
                }
                let mut visit = 0;
                for round in 0..40_usize {
                    let key = format!("own:{number}:{visit}");
                    let value = format!("{number}/{round}/{}", "v".repeat((number * 37 + round * 101) % 3_000));
                    let mut request = Vec::new();
                    let mut expected = Vec::new();
                    for step in 0..(number + round) % 12 + 1 {
                        request.extend(command(&["SET", &key, &value]));
                        expected.extend_from_slice(b"+OK\r\n");
                        request.extend(command(&["GET", &key]));
                        expected.extend(format!("${}\r\n{value}\r\n", value.len()).into_bytes());
                        if step % 3 == 0 {
                            request.extend(command(&["GET", "nothing here"]));
                            expected.extend_from_slice(if three { b"_\r\n" } else { b"$-1\r\n" });
                        }
                        if step % 5 == 1 {
                            request.extend(command(&["MULTI"]));
                            request.extend(command(&["ECHO", &key]));
                            request.extend(command(&["EXEC"]));
                            expected
                                .extend(format!("+OK\r\n+QUEUED\r\n*1\r\n${}\r\n{key}\r\n", key.len()).into_bytes());
                        }
                    }
                    client.send(&request);
                    let mut got = Vec::new();
                    while got.len() < expected.len() {
                        let from = got.len();
                        got.extend(client.frame());
                        let right = expected.starts_with(&got);
                        assert!(right, "client {number} in round {round} got {}", shown(&got[from..]));
                    }
                    // Some leave in the middle of their replies and come again. What they left behind may be executed
                    // after what they say next, so that they have another key then.
                    if (number + round) % 17 == 0 {
                        client.send(&request);
                        client = Raw::connect(address);
                        visit += 1;
                        if three {
                            client.ask(&["HELLO", "3"]);
                        }
                    }
                }
            });
        }
    });
    println!("100 clients took {:?}", began.elapsed());
}

#[test]
fn connections_are_not_kept_after_their_clients_left() {
    let pair = Pair::start();
    let connected = || -> usize {
        let list: String = pair.behind.ask(&["CLIENT", "LIST"]);
        list.lines().count()
    };
    let before = connected();
    for _ in 0..10 {
        let mut clients: Vec<Raw> = (0..50).map(|_| Raw::connect(&pair.proxied())).collect();
        for client in &mut clients {
            client.ask(&["MULTI"]);
            client.send(&command(&["BLPOP", "q", "0"]));
        }
    }
    eventually(
        "pinned connections go with their clients",
        Duration::from_secs(10),
        || connected() <= before + 20,
    );
    if let Some(proxy) = &pair.proxy {
        eventually("the proxy counts no client", Duration::from_secs(5), || {
            proxy.status().clients.connected == 0
        });
    }
}

// ---------------------------------------------------------------------------------------------- the commands

/// Each with one reply; in this order; a `~` where any two servers differ.
const COMMANDS: &str = include_str!("forwarding/commands.txt");
const TRANSACTIONS: &str = include_str!("forwarding/transactions.txt");
const SCRIPTS: &str = include_str!("forwarding/scripts.txt");
