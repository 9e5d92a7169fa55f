//! Who may come in: whoever has not authenticated reaches nothing that a password protects, in every mode of
//! `client.auth`, by no command and in no state.
#![cfg(feature = "net")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

#[path = "access/changes.rs"]
mod changes;
mod support;

use std::{collections::BTreeSet, time::Duration};

use serde_json::json;
use sessionferry::status::Authority;
use support::{Proxy, ProxyOptions, Raw, RedisServer, command, eventually, resp::shown, session};

const NOAUTH: &[u8] = b"-NOAUTH Authentication required.\r\n";
const OK: &[u8] = b"+OK\r\n";

/// What all servers here know, under the same names and passwords.
const PASSWORD: &str = "s3cret";
const ACL: &str = "--user web on >web-pass ~* &* +@all --user reader on >reader-pass ~* &* +@read +@connection";

fn protected() -> RedisServer {
    let mut args = vec!["--requirepass", PASSWORD];
    args.extend(ACL.split(' '));
    RedisServer::start(&args)
}

fn options(source: String, target: String, config: &str) -> ProxyOptions {
    ProxyOptions {
        source,
        target,
        database: "none".to_owned(),
        config: Some(config.to_owned()),
        ..ProxyOptions::default()
    }
}

const USERS: &str = "[client]\nauth = 'users'\n[client.users]\n\
                     default = 's3cret'\nweb = 'env:WEB'\nreader = 'reader-pass'\n";

/// A door that asks for a password, and what is behind it.
struct Door {
    mode: &'static str,
    proxy: Proxy,
    behind: RedisServer,
    target: RedisServer,
}

fn same() -> Door {
    let (behind, target) = (protected(), protected());
    let proxy = Proxy::start(options(behind.url(), target.url(), ""));
    Door {
        mode: "same",
        proxy,
        behind,
        target,
    }
}

/// The proxy's users are none of the servers', whose passwords are others.
fn users() -> Door {
    let behind = RedisServer::start(&["--requirepass", "of the old"]);
    let target = RedisServer::start(&["--requirepass", "of the new"]);
    let url = |server: &RedisServer| server.url().replace(' ', "%20");
    let mut options = options(url(&behind), url(&target), USERS);
    options.env.push(("WEB".to_owned(), "web-pass".to_owned()));
    let proxy = Proxy::start(options);
    Door {
        mode: "users",
        proxy,
        behind,
        target,
    }
}

fn both() -> [Door; 2] {
    [same(), users()]
}

impl Door {
    fn connect(&self) -> Raw {
        Raw::connect(&self.proxy.address())
    }

    fn connect_as(&self, name: &str, password: &str) -> Raw {
        let mut client = self.connect();
        assert_eq!(client.ask(&["AUTH", name, password]), OK, "{}", self.mode);
        client
    }

    /// Straight to the server, with the password whatever it holds.
    fn own(&self, parts: &[&str]) -> Vec<u8> {
        let password = match self.mode {
            "same" => PASSWORD,
            _ => "of the old",
        };
        let mut own = Raw::connect(&self.behind.address());
        assert_eq!(own.ask(&["AUTH", password]), OK);
        own.ask(parts)
    }
}

/// Every command that the server knows, subcommands too, with as many arguments as it asks for.
fn every_command(server: &mut redis::Connection) -> Vec<Vec<String>> {
    let infos: Vec<redis::Value> = redis::cmd("COMMAND").query(server).unwrap();
    let mut found = Vec::new();
    for info in infos {
        add_command(&mut found, &info);
    }
    assert!(found.len() > 300, "{}", found.len());
    found
}

fn add_command(found: &mut Vec<Vec<String>>, info: &redis::Value) {
    let redis::Value::Array(fields) = info else {
        panic!("{info:?}")
    };
    let name: String = redis::from_redis_value_ref(&fields[0]).unwrap();
    let arity: i64 = redis::from_redis_value_ref(&fields[1]).unwrap();
    let mut words: Vec<String> = name.split('|').map(str::to_owned).collect();
    words.resize(words.len().max(arity.unsigned_abs() as usize), "canary".to_owned());
    match fields.get(9) {
        Some(redis::Value::Array(subcommands)) if !subcommands.is_empty() => {
            for info in subcommands {
                add_command(found, info);
            }
        }
        _ => found.push(words),
    }
}

/// Those that Redis itself lets strangers say.
const OPEN_TO_ALL: [&str; 4] = ["auth", "hello", "quit", "reset"];

// ---------------------------------------------------------------------------------------------------- strangers

#[test]
fn no_command_of_a_stranger_reaches_anything() {
    for door in both() {
        assert_eq!(door.own(&["SET", "canary", "alive"]), OK);
        let key = session("0123456789abcdef0123456789abcdef");
        assert_eq!(door.own(&["SETEX", &key, "1000", "alive"]), OK);
        eventually("the session is known", Duration::from_secs(10), || {
            door.proxy.status().sessions.source == 1
        });
        door.proxy.done("backfill");
        door.proxy.settle();
        let commands = every_command(&mut knower(&door));
        let mut tried = BTreeSet::new();
        for words in &commands {
            if OPEN_TO_ALL.contains(&words[0].as_str()) {
                continue;
            }
            let said = words.join(" ");
            let frame = command(words);
            // Redis refuses some (MODULE, DEBUG) before it looks at who asks.
            let mut refusal = Raw::connect(&door.behind.address()).ask(words);
            assert_eq!(refusal[0], b'-', "{said}");
            if door.mode == "users" && refusal.starts_with(b"-ERR") {
                refusal = NOAUTH.to_vec();
            }
            // Alone, in RESP2 and by way of a failed HELLO 3; and in a pipeline, from which only what comes behind the
            // AUTH may do anything.
            let mut client = door.connect();
            client.send(&frame);
            assert_eq!(client.frame(), refusal, "{}: {said}", door.mode);
            let refused = client.ask(&["HELLO", "3"]);
            assert!(refused.starts_with(b"-NOAUTH HELLO must"), "{}", shown(&refused));
            client.send(&frame);
            assert_eq!(client.frame(), refusal, "{}: {said}, again", door.mode);
            drop(client);
            let mut client = door.connect();
            client.send(
                &[
                    command(&["AUTH", "wrong"]),
                    frame,
                    command(&["AUTH", "web", "web-pass"]),
                    command(&["GET", "canary"]),
                ]
                .concat(),
            );
            let replies = client.frames(4);
            assert!(replies[0].starts_with(b"-WRONGPASS"), "{}", shown(&replies[0]));
            assert_eq!(replies[1], refusal, "{}: {said}, in a pipeline", door.mode);
            assert_eq!(replies[2], OK, "{}: {said}, in a pipeline", door.mode);
            assert_eq!(replies[3], b"$5\r\nalive\r\n", "{}: {said}", door.mode);
            tried.insert(said);
        }
        assert!(tried.len() > 300, "{}", tried.len());
        // The sessions are where they were: no FLUSHALL, DEL or SCRIPT of a stranger got into the tee either.
        door.proxy.settle();
        assert_eq!(door.own(&["GET", &key]), b"$5\r\nalive\r\n");
        let mut target = Raw::connect(&door.target.address());
        let password = if door.mode == "same" { PASSWORD } else { "of the new" };
        assert_eq!(target.ask(&["AUTH", password]), OK);
        assert_eq!(target.ask(&["GET", &key]), b"$5\r\nalive\r\n", "{}", door.mode);
        assert_eq!(target.ask(&["EXISTS", "canary"]), b":0\r\n");
    }
}

/// A connection that may ask what commands there are.
fn knower(door: &Door) -> redis::Connection {
    let url = format!("redis://web:web-pass@{}", door.proxy.address());
    support::redis_server::connect(&url)
}

/// What strangers and others say, in one connection each; `~` in front: only the type of the reply is compared, `!`:
/// the connection is closed behind it.
const CONVERSATIONS: &[&[&str]] = &[
    // The ways in.
    &["PING", "AUTH s3cret", "PING"],
    &["AUTH", "AUTH a b c", "AUTH a b c d", "PING"],
    &[
        "AUTH wrong",
        "AUTH default wrong",
        "AUTH nobody s3cret",
        "AUTH default s3cret",
        "PING",
    ],
    &[
        "HELLO",
        "HELLO 2",
        "HELLO 3",
        "HELLO 1",
        "HELLO x",
        "HELLO 3 AUTH",
        "HELLO 3 AUTH web",
        "HELLO 3 JUNK",
    ],
    &[
        "HELLO 3 AUTH web wrong",
        "PING",
        "~HELLO 3 AUTH web web-pass",
        "~HELLO",
        "SET h 3",
        "HGETALL none",
    ],
    &["~HELLO 2 AUTH default s3cret SETNAME me", "CLIENT GETNAME", "PING"],
    &["~HELLO 3 SETNAME me AUTH web web-pass", "CLIENT GETNAME"],
    // Whoever is in stays in when he gets it wrong, and is out after RESET.
    &[
        "AUTH s3cret",
        "AUTH wrong",
        "PING",
        "HELLO 3 AUTH web wrong",
        "PING",
        "RESET",
        "PING",
        "AUTH s3cret",
        "PING",
    ],
    &[
        "AUTH s3cret",
        "MULTI",
        "SET a 1",
        "RESET",
        "EXEC",
        "GET a",
        "AUTH s3cret",
        "GET a",
    ],
    &["AUTH s3cret", "WATCH a", "CLIENT NO-EVICT ON", "RESET", "GET a", "PING"],
    &[
        "AUTH s3cret",
        "SUBSCRIBE news",
        "PING",
        "RESET",
        "SUBSCRIBE news",
        "PING",
    ],
    &[
        "AUTH s3cret",
        "SELECT 3",
        "SET in 3",
        "RESET",
        "SELECT 3",
        "GET in",
        "AUTH s3cret",
        "GET in",
    ],
    // In every state.
    &["MULTI", "SET a 1", "EXEC", "DISCARD", "GET a", "AUTH s3cret", "GET a"],
    &[
        "SUBSCRIBE news",
        "PSUBSCRIBE *",
        "SSUBSCRIBE s",
        "UNSUBSCRIBE",
        "PING",
        "AUTH s3cret",
        "PING",
    ],
    &[
        "AUTH s3cret",
        "SUBSCRIBE news",
        "AUTH s3cret",
        "HELLO 3",
        "GET a",
        "UNSUBSCRIBE news",
        "GET a",
    ],
    &[
        "BLPOP queue 1",
        "WATCH a",
        "MONITOR",
        "CLIENT ID",
        "CLIENT LIST",
        "CLIENT REPLY OFF",
        "PING",
    ],
    &[
        "SELECT 1",
        "SELECT 0",
        "FLUSHALL",
        "SWAPDB 0 1",
        "CONFIG GET requirepass",
        "ACL WHOAMI",
        "ACL LIST",
    ],
    &[
        "EVAL return(1) 0",
        "SCRIPT LOAD return(1)",
        "FUNCTION DUMP",
        "CLIENT SETNAME me",
        "CLIENT GETNAME",
    ],
    &["RESET", "PING", "AUTH s3cret", "PING", "QUIT"],
    &["QUIT"],
];

fn transcript(address: &str, conversation: &[&str]) -> Vec<Vec<u8>> {
    let mut client = Raw::connect(address);
    conversation
        .iter()
        .map(|line| {
            let line = line.trim_start_matches('~');
            client.ask(&line.split(' ').collect::<Vec<_>>())
        })
        .collect()
}

fn in_one_pipeline(address: &str, conversation: &[&str]) -> Vec<Vec<u8>> {
    let mut client = Raw::connect(address);
    let bytes: Vec<u8> = conversation
        .iter()
        .flat_map(|line| command(&line.trim_start_matches('~').split(' ').collect::<Vec<_>>()))
        .collect();
    client.send(&bytes);
    client.frames(conversation.len())
}

fn expect_alike(mode: &str, conversation: &[&str], direct: &[Vec<u8>], proxied: &[Vec<u8>]) {
    for (line, (left, right)) in conversation.iter().zip(direct.iter().zip(proxied)) {
        let (left, right) = match line.strip_prefix('~') {
            Some(_) => (&left[..1], &right[..1]),
            None => (&left[..], &right[..]),
        };
        assert!(
            left == right,
            "{mode}: {line} in {conversation:?}\n  direct:  {}\n  proxied: {}",
            shown(left),
            shown(right)
        );
    }
}

#[test]
fn strangers_and_users_get_redis_own_answers() {
    let direct = protected();
    for door in both() {
        for conversation in CONVERSATIONS {
            // CLIENT REPLY OFF would be silence for one who is in; strangers only hear that they are not.
            let alone = transcript(&direct.address(), conversation);
            expect_alike(
                door.mode,
                conversation,
                &alone,
                &transcript(&door.proxy.address(), conversation),
            );
            let piped = in_one_pipeline(&direct.address(), conversation);
            expect_alike(
                door.mode,
                conversation,
                &piped,
                &in_one_pipeline(&door.proxy.address(), conversation),
            );
            for address in [direct.address(), door.proxy.address()] {
                let mut own = Raw::connect(&address);
                assert_eq!(own.ask(&["AUTH", PASSWORD]), OK);
                assert_eq!(own.ask(&["FLUSHALL"]), OK);
            }
        }
        if door.mode == "users" {
            // Of whom the proxy checks itself the server never hears.
            assert_eq!(door.own(&["ACL", "LOG"]), b"*0\r\n");
        }
    }
}

#[test]
fn without_a_password_auth_answers_as_redis_does() {
    let direct = RedisServer::start(&[]);
    let (behind, target) = (
        RedisServer::start(&["--requirepass", "of-the-old"]),
        RedisServer::start(&["--requirepass", "of-the-new"]),
    );
    let proxy = Proxy::start(options(behind.url(), target.url(), "client.auth = 'none'\n"));
    let conversations: &[&[&str]] = &[
        &["SET a 1", "GET a", "PING"],
        &[
            "AUTH anything",
            "AUTH default anything",
            "AUTH web web-pass",
            "AUTH",
            "AUTH a b c",
            "PING",
        ],
        &[
            "~HELLO 3",
            "~HELLO 3 AUTH default anything",
            "HELLO 3 AUTH web web-pass",
            "HGETALL none",
            "PING",
        ],
        &["MULTI", "SET a 2", "EXEC", "RESET", "GET a"],
        &["SUBSCRIBE news", "RESET", "GET a"],
        &["SELECT 2", "SET a 3", "GET a", "SELECT 0", "GET a"],
    ];
    for conversation in conversations {
        let alone = transcript(&direct.address(), conversation);
        expect_alike(
            "none",
            conversation,
            &alone,
            &transcript(&proxy.address(), conversation),
        );
        let piped = in_one_pipeline(&direct.address(), conversation);
        expect_alike(
            "none",
            conversation,
            &piped,
            &in_one_pipeline(&proxy.address(), conversation),
        );
    }
    // On the other side of a cutover it is the other server's password that the proxy shows.
    let mut client = Raw::connect(&proxy.address());
    let mut owner = Raw::connect(&proxy.address());
    assert_eq!(owner.ask(&["SUBSCRIBE", "news"])[0], b'*');
    for operation in ["backfill", "verify", "cutover"] {
        proxy.done(operation);
    }
    assert_eq!(proxy.status().authority, Authority::Target);
    assert_eq!(client.ask(&["SET", "who", "target"]), OK);
    assert_eq!(target.ask::<String>(&["GET", "who"]), "target");
    assert_eq!(client.ask(&["PUBLISH", "news", "hi"]), b":1\r\n");
    assert!(owner.frame().ends_with(b"hi\r\n"));
}

// ---------------------------------------------------------------------------------------------------- states

#[test]
fn a_transaction_cannot_carry_another_users_password() {
    let door = users();
    for line in ["AUTH web wrong", "AUTH web web-pass", "HELLO 3 AUTH web web-pass"] {
        let mut client = door.connect_as("reader", "reader-pass");
        let words: Vec<&str> = line.split(' ').collect();
        client.send(
            &[
                command(&["MULTI"]),
                command(&["SET", "a", "1"]),
                command(&words),
                command(&["EXEC"]),
                command(&["GET", "a"]),
            ]
            .concat(),
        );
        let replies = client.frames(5);
        assert_eq!(
            replies[2], b"-ERR Command not allowed inside a transaction\r\n",
            "{line}"
        );
        assert!(replies[3].starts_with(b"-EXECABORT"), "{line}: {}", shown(&replies[3]));
        assert_eq!(replies[4], b"$-1\r\n", "{line}");
        assert_eq!(client.ask(&["SET", "b", "1"]), OK);
    }
    assert_eq!(door.own(&["ACL", "LOG"]), b"*0\r\n");
}

#[test]
fn users_of_the_server_keep_their_own_rights() {
    let door = same();
    let mut reader = door.connect_as("reader", "reader-pass");
    let mut web = door.connect_as("web", "web-pass");
    assert_eq!(web.ask(&["SET", "a", "1"]), OK);
    assert_eq!(reader.ask(&["GET", "a"]), b"$1\r\n1\r\n");
    for words in [
        vec!["SET", "a", "2"],
        vec!["FLUSHALL"],
        vec!["CONFIG", "GET", "requirepass"],
        vec!["MULTI"],
        vec!["EVAL", "return 1", "0"],
    ] {
        let reply = reader.ask(&words);
        assert!(reply.starts_with(b"-NOPERM"), "{words:?}: {}", shown(&reply));
    }
    assert_eq!(reader.ask(&["ACL", "WHOAMI"])[0], b'-');
    assert_eq!(web.ask(&["ACL", "WHOAMI"]), b"$3\r\nweb\r\n");
    assert_eq!(web.ask(&["GET", "a"]), b"$1\r\n1\r\n");
    // And on the other server, where they are users too.
    for operation in ["backfill", "verify", "cutover"] {
        door.proxy.done(operation);
    }
    assert_eq!(web.ask(&["ACL", "WHOAMI"]), b"$3\r\nweb\r\n");
    assert_eq!(web.ask(&["SET", "a", "3"]), OK);
    let reply = reader.ask(&["SET", "a", "4"]);
    assert!(reply.starts_with(b"-NOPERM"), "{}", shown(&reply));
    assert_eq!(reader.ask(&["GET", "a"]), b"$1\r\n3\r\n");
    assert_eq!(door.connect().ask(&["GET", "a"]), NOAUTH);
}

#[test]
fn users_of_the_proxy_do_not_notice_a_cutover() {
    let door = users();
    let mut before = door.connect_as("web", "web-pass");
    let mut stranger = door.connect();
    let mut pinned = door.connect_as("default", PASSWORD);
    assert_eq!(pinned.ask(&["SUBSCRIBE", "news"])[0], b'*');
    assert_eq!(stranger.ask(&["PING"]), NOAUTH);
    for operation in ["backfill", "verify", "cutover"] {
        door.proxy.done(operation);
    }
    assert_eq!(before.ask(&["SET", "who", "target"]), OK);
    let mut target = Raw::connect(&door.target.address());
    assert_eq!(target.ask(&["AUTH", "of the new"]), OK);
    assert_eq!(target.ask(&["GET", "who"]), b"$6\r\ntarget\r\n");
    assert_eq!(before.ask(&["PUBLISH", "news", "hi"]), b":1\r\n");
    assert!(pinned.frame().ends_with(b"hi\r\n"));
    assert_eq!(stranger.ask(&["GET", "who"]), NOAUTH);
    for password in ["of the old", "of the new"] {
        assert!(stranger.ask(&["AUTH", password]).starts_with(b"-WRONGPASS"));
    }
    assert_eq!(
        door.connect_as("reader", "reader-pass").ask(&["GET", "who"]),
        b"$6\r\ntarget\r\n"
    );
    let refused = door.proxy.operation("rollback", json!({}));
    assert!(refused.is_ok(), "{refused:?}");
}

// ---------------------------------------------------------------------------------------------------- limits

#[test]
fn a_stranger_gets_no_room() {
    for door in both() {
        for (bytes, error) in [
            (&b"*11\r\n"[..], "unauthenticated multibulk length"),
            (b"*2\r\n$3\r\nGET\r\n$16385\r\n", "unauthenticated bulk length"),
        ] {
            let mut stranger = door.connect();
            stranger.send(bytes);
            let (said, closed) = stranger.until_closed(Duration::from_secs(5));
            let wanted = format!("-ERR Protocol error: {error}\r\n");
            assert!(closed && said == wanted.as_bytes(), "{}: {}", door.mode, shown(&said));
            // Behind an AUTH in the same write they are good.
            let mut client = door.connect();
            client.send(&[command(&["AUTH", "web", "web-pass"]), bytes.to_vec()].concat());
            assert_eq!(client.frame(), OK, "{}", door.mode);
            let rest = client.unasked(Duration::from_millis(100));
            assert!(rest.is_empty(), "{}: {}", door.mode, shown(&rest));
        }
        // Asking without ever reading is ended before it takes memory.
        let mut deaf = door.connect();
        let flood = command(&["PING"]).repeat(1000);
        let mut sent = 0;
        while sent < 200_000_000 && deaf.try_send(&flood) {
            sent += flood.len();
        }
        assert!(sent < 200_000_000, "{}: it was let go on", door.mode);
        eventually("it is gone", Duration::from_secs(10), || {
            door.proxy.status().clients.connected == 0
        });
        assert_eq!(door.connect_as("web", "web-pass").ask(&["PING"]), b"+PONG\r\n");
    }
}

#[test]
fn a_browser_is_cut_off_before_it_is_asked_who_it_is() {
    let door = users();
    let mut browser = door.connect();
    browser.send(b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let (said, closed) = browser.until_closed(Duration::from_secs(5));
    assert!(closed && said.is_empty(), "{}", shown(&said));
}

#[test]
fn no_password_is_ever_logged() {
    let door = users();
    let mut client = door.connect();
    for password in ["web-pass", "gue55-one"] {
        let _ = client.ask(&["AUTH", "web", password]);
        let _ = client.ask(&["HELLO", "3", "AUTH", "web", password]);
    }
    let _ = client.ask(&["AUTH", "gue55-two"]);
    eventually("the guess is logged", Duration::from_secs(5), || {
        door.proxy.log_text().contains("wrong user name or password")
    });
    for secret in ["web-pass", "gue55", PASSWORD, "reader-pass", "of the old", "of%20the"] {
        assert!(!door.proxy.log_text().contains(secret), "{secret} was logged");
    }
}
