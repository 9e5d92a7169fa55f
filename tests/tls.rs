//! TLS on every side, and unix sockets: the same bytes, and words for whoever has to mend it.
#![cfg(feature = "net")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod support;

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixStream,
    process::Command,
    time::{Duration, Instant},
};

use sessionferry::status::{Authority as Side, Phase};
use tokio_rustls::rustls::StreamOwned;

use support::{
    Port, Postgres, Proxy, ProxyOptions, Raw, RedisServer,
    certificates::{Authority, Pair},
    command, django, eventually, process,
    proxy::Answer,
    redis_server, session,
};

const OK: &[u8] = b"+OK\r\n";

/// A Redis with a TLS port beside its plain one, which only the test itself uses.
struct Secure {
    server: RedisServer,
    port: Port,
}

/// Whether the server asks for client certificates.
enum Demand {
    Certificate,
    Nothing,
}

impl Secure {
    fn start(authority: &Authority, pair: &Pair, demand: &Demand, more: &[&str]) -> Secure {
        let port = Port::free();
        let clients = match demand {
            Demand::Certificate => "yes",
            Demand::Nothing => "no",
        };
        let own = pair.redis_args(&port, &authority.file(), clients);
        let mut args: Vec<&str> = own.iter().map(String::as_str).collect();
        args.extend_from_slice(more);
        let server = RedisServer::start(&args);
        Secure { server, port }
    }

    /// `rediss://`, with the password that the server asks for.
    fn url(&self) -> String {
        let url = self.server.url().replace("redis://", "rediss://");
        url.replace(&self.server.address(), &self.port.address())
    }
}

fn options(source: String, target: String, config: String) -> ProxyOptions {
    ProxyOptions {
        source,
        target,
        database: "none".to_owned(),
        config: Some(config),
        ..ProxyOptions::default()
    }
}

fn bulk(text: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", text.len()).as_bytes(), text, b"\r\n"].concat()
}

// ---------------------------------------------------------------------------------------------------- the move

#[test]
fn a_whole_move_with_tls_on_every_connection() {
    let authority = Authority::new("ours");
    let own = authority.issue("127.0.0.1");
    let visitor = authority.issue("sessionferry");
    // One asks for certificates, the other has a password and a certificate for a name of its own.
    let source = Secure::start(&authority, &own, &Demand::Certificate, &[]);
    let named = authority.issue("new.example.com");
    let target = Secure::start(&authority, &named, &Demand::Nothing, &["--requirepass", "s3cret"]);
    for number in 0..300 {
        source
            .server
            .ask::<()>(&["SETEX", &session(&format!("{number:032}")), "1000", "before"]);
    }
    let ca = authority.file();
    let proxy = Proxy::start(
        options(
            source.url(),
            target.url(),
            format!(
                "[source]\nca_file = '{ca}'\ncert_file = '{}'\nkey_file = '{}'\n\
                 [target]\nca_file = '{ca}'\nserver_name = 'new.example.com'\n",
                visitor.cert(),
                visitor.key()
            ),
        )
        .args(&["--tls-cert", own.cert(), "--tls-key", own.key()]),
    );
    let mut client = authority.connect(&proxy.address());
    for number in 300..400 {
        let key = session(&format!("{number:032}"));
        assert_eq!(client.ask(&["SETEX", &key, "1000", "through"]), OK);
    }
    // A client with a connection of its own, and one that speaks RESP3.
    let mut blocked = authority.connect(&proxy.address());
    blocked.send(&command(&["BLPOP", "queue", "60"]));
    let mut subscriber = authority.connect(&proxy.address());
    assert_eq!(subscriber.ask(&["HELLO", "3"])[0], b'%');
    assert_eq!(subscriber.ask(&["SUBSCRIBE", "news"])[0], b'>');
    proxy.done("backfill");
    proxy.done("verify");
    // What goes past the proxy is seen over TLS too.
    let late = session(&format!("{:032}", 400));
    source.server.ask::<()>(&["SETEX", &late, "1000", "past the proxy"]);
    eventually("it is seen", Duration::from_secs(10), || {
        target.server.ask::<Option<String>>(&["GET", &late]).as_deref() == Some("past the proxy")
    });
    proxy.done("cutover");
    assert_eq!(proxy.status().authority, Side::Target);

    // The very connections go on with the other server.
    let first = session(&format!("{:032}", 0));
    assert_eq!(client.ask(&["GET", &first]), bulk(b"before"));
    assert_eq!(client.ask(&["SET", "only-on", "target"]), OK);
    assert_eq!(target.server.ask::<String>(&["GET", "only-on"]), "target");
    assert_eq!(client.ask(&["RPUSH", "queue", "x"]), b":1\r\n");
    assert_eq!(blocked.frame(), [&b"*2\r\n"[..], &bulk(b"queue"), &bulk(b"x")].concat());
    assert_eq!(client.ask(&["PUBLISH", "news", "hi"]), b":1\r\n");
    assert!(subscriber.frame().ends_with(&bulk(b"hi")));
    for server in [&source.server, &target.server] {
        let pattern = session("*");
        assert_eq!(server.ask::<Vec<String>>(&["KEYS", &pattern]).len(), 401);
    }
    proxy.done("rollback");
    assert_eq!(proxy.status().phase, Phase::Synced);
    // Nothing of the proxy's came over a port that is not encrypted: all but the test's own connection are on the other.
    let plain = source.server.address();
    let list: String = source.server.ask(&["CLIENT", "LIST"]);
    assert!(list.lines().count() > 2, "{list}");
    let over_plain: Vec<&str> = list
        .lines()
        .filter(|line| line.contains(&format!("laddr={plain} ")))
        .collect();
    assert_eq!(over_plain.len(), 1, "{list}");
}

// ---------------------------------------------------------------------------------------------------- the words

/// The first thing that `check` found about this.
fn finding(answer: &Answer, about: &str) -> serde_json::Value {
    let findings = answer.json();
    findings
        .as_array()
        .or_else(|| findings["findings"].as_array())
        .and_then(|findings| findings.iter().find(|finding| finding["about"] == about))
        .unwrap_or_else(|| panic!("nothing about {about}: {answer:?}"))
        .clone()
}

#[test]
fn what_is_wrong_with_tls_to_a_server_is_said_in_words() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let local = ours.issue("127.0.0.1");
    let named = ours.issue("redis.example.com");
    let expired = ours.issue_expired("127.0.0.1");
    let stranger = theirs.issue("stranger");
    let open = Secure::start(&ours, &local, &Demand::Nothing, &[]);
    let renamed = Secure::start(&ours, &named, &Demand::Nothing, &[]);
    let stale = Secure::start(&ours, &expired, &Demand::Nothing, &[]);
    let strict = Secure::start(&ours, &local, &Demand::Certificate, &[]);
    let plain = RedisServer::start(&[]);
    let no_tls = plain.url().replace("redis://", "rediss://");
    let not_encrypted = open.url().replace("rediss://", "redis://");
    let ca = format!("ca_file = '{}'\n", ours.file());
    let with = |pair: &Pair| format!("{ca}cert_file = '{}'\nkey_file = '{}'\n", pair.cert(), pair.key());
    let cases = [
        ("own authority", open.url(), ca.clone(), None),
        (
            "the system's authorities",
            open.url(),
            String::new(),
            Some("set ca_file"),
        ),
        (
            "another authority",
            open.url(),
            format!("ca_file = '{}'\n", theirs.file()),
            Some("set ca_file"),
        ),
        ("insecure", open.url(), "insecure = true\n".to_owned(), None),
        ("another name", renamed.url(), ca.clone(), Some("set server_name")),
        (
            "the name it has",
            renamed.url(),
            format!("{ca}server_name = 'redis.example.com'\n"),
            None,
        ),
        (
            "a name it has not",
            renamed.url(),
            format!("{ca}server_name = 'example.com'\n"),
            Some("set server_name"),
        ),
        ("expired", stale.url(), ca.clone(), Some("has expired")),
        (
            "no client certificate",
            strict.url(),
            ca.clone(),
            Some("set cert_file and key_file"),
        ),
        ("a client certificate", strict.url(), with(&local), None),
        (
            "a stranger's certificate",
            strict.url(),
            with(&stranger),
            Some("check cert_file and key_file"),
        ),
        ("no TLS there", no_tls, ca.clone(), Some("is this its TLS port")),
        (
            "TLS there and not here",
            not_encrypted,
            String::new(),
            Some("use rediss:// if it wants TLS"),
        ),
    ];
    for side in ["source", "target"] {
        for (name, url, settings, wrong) in &cases {
            let (source, target) = match side {
                "source" => (url.clone(), plain.url()),
                _ => (plain.url(), url.clone()),
            };
            let config = format!("[{side}]\nconnect_timeout = '700ms'\n{settings}");
            let answer = Proxy::unstarted(options(source, target, config)).configured("check", &["--json"]);
            let finding = finding(&answer, side);
            let detail = finding["detail"].as_str().unwrap();
            match wrong {
                None => assert!(
                    finding["level"] == "green" && detail.contains("answers"),
                    "{side}, {name}: {detail}"
                ),
                Some(words) => assert!(
                    finding["level"] == "red" && detail.contains(words),
                    "{side}, {name}: `{words}` is not in: {detail}"
                ),
            }
        }
    }
}

#[test]
fn clients_park_and_the_log_says_why_while_a_certificate_is_wrong() {
    let authority = Authority::new("ours");
    let pair = authority.issue("127.0.0.1");
    let mut source = Secure::start(&authority, &pair, &Demand::Nothing, &[]);
    let target = RedisServer::start(&[]);
    let config = format!("[source]\nca_file = '{}'\n", authority.file());
    let proxy = Proxy::start(options(source.url(), target.url(), config));
    let mut client = Raw::connect(&proxy.address());
    assert_eq!(client.ask(&["SET", "a", "1"]), OK);
    // It comes back asking for certificates that the proxy has not got; what is asked now has to wait, but not for ever.
    let demand = ["--tls-auth-clients", "yes"];
    source.server.stop();
    source.server.restart_with(&demand);
    let began = Instant::now();
    let reply = client.ask(&["GET", "a"]);
    assert!(
        reply.starts_with(b"-ERR sessionferry: the source Redis cannot be reached"),
        "{}",
        reply.escape_ascii()
    );
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    eventually("the log says why", Duration::from_secs(5), || {
        proxy.log_text().contains("set cert_file and key_file")
    });
    let said = proxy.log_text().matches("cannot connect upstream").count();
    assert!(said < 20, "said {said} times");
    source.server.restart_with(&["--tls-auth-clients", "no"]);
    eventually("it goes on", Duration::from_secs(10), || {
        Raw::connect(&proxy.address()).ask(&["PING"]) == b"+PONG\r\n"
    });
}

#[test]
fn a_server_that_says_nothing_is_given_up_after_the_configured_time() {
    // It accepts, as the kernel does for it, and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let target = RedisServer::start(&[]);
    for scheme in ["redis", "rediss"] {
        // Longer than the default, so that a busy machine cannot be mistaken for it.
        let config = "[source]\nconnect_timeout = '2600ms'\n".to_owned();
        let insecure = if scheme == "rediss" { "insecure = true\n" } else { "" };
        let proxy = Proxy::unstarted(options(
            format!("{scheme}://{address}"),
            target.url(),
            format!("{config}{insecure}"),
        ));
        let began = Instant::now();
        let answer = proxy.configured("check", &[]).expect(1);
        assert!(answer.said().contains("no connection in time"), "{answer:?}");
        let took = began.elapsed();
        assert!(
            took >= Duration::from_millis(2600) && took < Duration::from_secs(20),
            "{took:?}"
        );
    }
}

// ---------------------------------------------------------------------------------------------------- to clients

struct Served {
    authority: Authority,
    source: RedisServer,
    _target: RedisServer,
    proxy: Proxy,
}

/// TLS to clients alone.
fn served(args: &[&str]) -> Served {
    let authority = Authority::new("ours");
    let pair = authority.issue("127.0.0.1");
    let (source, target) = (RedisServer::start(&[]), RedisServer::start(&[]));
    let proxy = Proxy::start(
        options(source.url(), target.url(), String::new())
            .args(&["--tls-cert", pair.cert(), "--tls-key", pair.key()])
            .args(args),
    );
    Served {
        authority,
        source,
        _target: target,
        proxy,
    }
}

#[test]
fn the_wrong_protocol_on_either_port_ends_with_a_word_in_the_log() {
    let served = served(&[]);
    for first in [command(&["PING"]), b"PING\r\n".to_vec()] {
        let mut plain = Raw::connect(&served.proxy.address());
        plain.send(&first);
        let (said, closed) = plain.until_closed(Duration::from_secs(3));
        // An alert at most, and nothing that looks like a reply.
        assert!(
            closed && !said.contains(&b'+') && said.len() < 16,
            "{}",
            said.escape_ascii()
        );
    }
    assert!(
        served
            .proxy
            .log_text()
            .contains("it does not speak TLS: have it use rediss://"),
        "{}",
        served.proxy.log_text()
    );
    let refused = Authority::new("another");
    let tcp = TcpStream::connect(served.proxy.address()).unwrap();
    assert!(refused.session(None).complete_io(&mut (&tcp)).is_err());
    eventually("the log says so", Duration::from_secs(5), || {
        served
            .proxy
            .log_text()
            .contains("does not accept the certificate of client.tls_cert")
    });
    // Those who do it right are still served.
    assert_eq!(
        served.authority.connect(&served.proxy.address()).ask(&["PING"]),
        b"+PONG\r\n"
    );

    let plain = Proxy::start(options(served.source.url(), served._target.url(), String::new()));
    for _ in 0..20 {
        // The bytes differ each time, and some look like the end of a line.
        let mut tcp = TcpStream::connect(plain.address()).unwrap();
        tcp.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut hello = Vec::new();
        refused.session(None).write_tls(&mut hello).unwrap();
        tcp.write_all(&hello).unwrap();
        let mut said = Vec::new();
        tcp.read_to_end(&mut said).unwrap();
        assert!(said.is_empty(), "{}", said.escape_ascii());
    }
    assert!(
        plain
            .log_text()
            .contains("a client speaks TLS to an address that does not"),
        "{}",
        plain.log_text()
    );
}

#[test]
fn a_client_can_tell_the_end_from_a_cut() {
    let served = served(&[]);
    let tcp = TcpStream::connect(served.proxy.address()).unwrap();
    tcp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut client = StreamOwned::new(served.authority.session(None), tcp);
    client
        .write_all(&[command(&["PING"]), command(&["QUIT"])].concat())
        .unwrap();
    let mut said = Vec::new();
    // Without the closing message this is an error.
    client.read_to_end(&mut said).unwrap();
    assert_eq!(said, b"+PONG\r\n+OK\r\n");
}

#[test]
fn a_client_that_never_finishes_its_handshake_holds_up_nobody_counts_and_is_let_go() {
    let served = served(&["--max-clients", "3", "--workers", "1"]);
    let address = served.proxy.address();
    let mut silent = Raw::connect(&address);
    let mut halting = Raw::connect(&address);
    let mut hello = Vec::new();
    served.authority.session(None).write_tls(&mut hello).unwrap();
    halting.send(&hello[..hello.len() / 2]);
    eventually("both are counted", Duration::from_secs(3), || {
        served.proxy.status().clients.connected == 2
    });
    let mut third = served.authority.connect(&address);
    assert_eq!(third.ask(&["PING"]), b"+PONG\r\n");
    assert_eq!(served.proxy.status().clients.connected, 3, "it waited for the others");
    // Without a handshake nothing can be said to one too many, as with Redis.
    let (said, closed) = Raw::connect(&address).until_closed(Duration::from_secs(3));
    assert!(said.is_empty() && closed, "{}", said.escape_ascii());
    for slow in [&mut silent, &mut halting] {
        assert!(slow.until_closed(Duration::from_secs(10)).1, "it was never let go");
    }
    eventually("they are no longer counted", Duration::from_secs(3), || {
        served.proxy.status().clients.connected == 1
    });
    assert_eq!(third.ask(&["PING"]), b"+PONG\r\n");
}

#[test]
fn large_values_deep_pipelines_and_slow_readers_cross_tls_unchanged() {
    let authority = Authority::new("ours");
    let pair = authority.issue("127.0.0.1");
    let source = Secure::start(&authority, &pair, &Demand::Nothing, &[]);
    let target = RedisServer::start(&[]);
    let proxy = Proxy::start(
        options(
            source.url(),
            target.url(),
            format!("[source]\nca_file = '{}'\n", authority.file()),
        )
        .args(&["--tls-cert", pair.cert(), "--tls-key", pair.key()]),
    );
    let mut client = authority.connect(&proxy.address());
    // Around the length of a record, of a buffer, and far above what sockets hold.
    for length in [0, 1, 16_383, 16_384, 16_385, 65_535, 65_537, 1 << 20, 24 << 20] {
        let value: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
        assert_eq!(client.ask(&[b"SET".as_slice(), b"large", &value]), OK, "{length}");
        assert!(client.ask(&["GET", "large"]) == bulk(&value), "{length}");
    }
    // More replies than the sockets hold are under way before the first is read, and other clients notice nothing.
    let count = 60;
    assert_eq!(client.ask(&["SET", "page", &"p".repeat(1 << 20)]), OK);
    let pipeline: Vec<u8> = (0..count).flat_map(|_| command(&["GET", "page"])).collect();
    let mut slow = authority.connect(&proxy.address());
    slow.send(&pipeline);
    for number in 0..2_000 {
        let text = number.to_string();
        assert_eq!(client.ask(&["ECHO", &text]), bulk(text.as_bytes()));
    }
    let page = bulk("p".repeat(1 << 20).as_bytes());
    for number in 0..count {
        assert!(slow.frame() == page, "reply {number}");
    }
    let many: Vec<u8> = (0..20_000)
        .flat_map(|number| command(&["ECHO", &number.to_string()]))
        .collect();
    slow.send(&many);
    for number in 0..20_000 {
        assert_eq!(slow.frame(), bulk(number.to_string().as_bytes()));
    }
    // Byte by byte, each in a record of its own.
    for byte in command(&["ECHO", "bits"]) {
        slow.send(&[byte]);
    }
    assert_eq!(slow.frame(), bulk(b"bits"));
}

#[test]
fn a_lost_tls_connection_is_made_anew_and_what_can_be_repeated_is() {
    let authority = Authority::new("ours");
    let pair = authority.issue("127.0.0.1");
    let source = Secure::start(&authority, &pair, &Demand::Nothing, &[]);
    let target = RedisServer::start(&[]);
    let config = format!("[source]\nca_file = '{}'\n", authority.file());
    let proxy = Proxy::start(options(source.url(), target.url(), config));
    let mut client = Raw::connect(&proxy.address());
    assert_eq!(client.ask(&["SET", "a", "1"]), OK);
    for _ in 0..20 {
        source
            .server
            .ask::<i64>(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        assert_eq!(client.ask(&["GET", "a"]), bulk(b"1"));
        assert_eq!(client.ask(&["SET", "a", "1"]), OK);
    }
}

#[test]
fn real_redis_py_speaks_tls_to_the_proxy() {
    let served = served(&[]);
    for version in ["5.2", "6"] {
        let Some(python) = django::python(version) else {
            eprintln!("SKIPPED: no Python for Django {version}");
            continue;
        };
        let said = process::run(
            Command::new(python)
                .arg("-c")
                .arg(REDIS_PY)
                .arg(served.proxy.address())
                .arg(served.authority.file()),
        );
        assert_eq!(said.trim(), "done", "{version}");
    }
    assert_eq!(served.source.ask::<String>(&["GET", "py"]), "value");
}

const REDIS_PY: &str = r#"
import asyncio, sys, redis, redis.asyncio
url, ca = "rediss://" + sys.argv[1], sys.argv[2]
for protocol in (2, 3):
    with redis.Redis.from_url(url, ssl_ca_certs=ca, protocol=protocol, decode_responses=True) as r:
        assert r.set("py", "value") and r.get("py") == "value"
        with r.pipeline(transaction=True) as p:
            assert p.set("n", 1).incr("n").get("n").execute() == [True, 2, "2"]
        big = "x" * 3_000_000
        assert r.set("big", big, ex=60) and r.get("big") == big
        s = r.pubsub()
        s.subscribe("news")
        assert s.get_message(timeout=5)["type"] == "subscribe"
        r.publish("news", "hi")
        assert s.get_message(timeout=5)["data"] == "hi"
        s.close()

    async def more():
        async with redis.asyncio.Redis.from_url(url, ssl_ca_certs=ca, protocol=protocol, decode_responses=True) as r:
            assert await r.get("py") == "value"
            assert (await asyncio.gather(*(r.incr("count") for _ in range(50))))

    asyncio.run(more())
try:
    redis.Redis.from_url(url, retry=None).ping()
    raise SystemExit("a certificate of an unknown authority was accepted")
except redis.exceptions.ConnectionError:
    print("done")
"#;

// ---------------------------------------------------------------------------------------------------- the database

#[test]
fn a_database_is_reached_over_tls_and_only_over_the_right_one() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let mut database = Postgres::start();
    database.restart_with_tls(&ours.issue("127.0.0.1"));
    database.sql(
        "CREATE TABLE django_session (session_key varchar(40) PRIMARY KEY, session_data text NOT NULL, \
         expire_date timestamptz NOT NULL)",
    );
    let (source, target) = (RedisServer::start(&[]), RedisServer::start(&[]));
    for (authority, level) in [(&ours, "green"), (&theirs, "red")] {
        let proxy = Proxy::unstarted(ProxyOptions {
            source: source.url(),
            target: target.url(),
            database: format!(
                "{}?sslmode=verify-full&sslrootcert={}",
                database.url(),
                authority.file()
            ),
            ..ProxyOptions::default()
        });
        let answer = proxy.configured("check", &["--json"]);
        let finding = finding(&answer, "database");
        assert_eq!(finding["level"], level, "{answer:?}");
        let detail = finding["detail"].as_str().unwrap();
        assert!(level == "green" || detail.contains("sslrootcert"), "{detail}");
    }
}

// ---------------------------------------------------------------------------------------------------- unix sockets

#[test]
fn unix_sockets_on_all_three_sides() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (old, new, own) = (path("old.sock"), path("new.sock"), path("ferry.sock"));
    let source = RedisServer::start(&["--unixsocket", &old]);
    let target = RedisServer::start(&["--unixsocket", &new, "--requirepass", "s3cret"]);
    // What an earlier run left behind is no hindrance.
    drop(std::os::unix::net::UnixListener::bind(&own).unwrap());
    let proxy = Proxy::start_listening(
        options(format!("unix:{old}"), format!("unix://:s3cret@{new}"), String::new()),
        &format!("unix:{own}"),
    );
    let key = session("0123456789abcdef0123456789abcdef");
    source.ask::<()>(&["SETEX", &key, "1000", "before"]);
    let mut client = redis::Client::open(format!("unix:{own}"))
        .unwrap()
        .get_connection()
        .unwrap();
    let ask = |client: &mut redis::Connection, parts: &[&str]| -> String { redis_server::ask(client, parts) };
    assert_eq!(ask(&mut client, &["GET", &key]), "before");
    let other = session("1123456789abcdef0123456789abcdef");
    assert_eq!(ask(&mut client, &["SETEX", &other, "1000", "through"]), "OK");
    for operation in ["backfill", "verify", "cutover"] {
        proxy.done(operation);
    }
    assert_eq!(ask(&mut client, &["GET", &key]), "before");
    assert_eq!(ask(&mut client, &["SET", "who", "target"]), "OK");
    assert_eq!(target.ask::<String>(&["GET", "who"]), "target");
    assert_eq!(target.ask::<String>(&["GET", &other]), "through");
    let mut proxy = proxy;
    assert!(proxy.terminate().success());
    assert!(UnixStream::connect(&own).is_err());
    assert!(!std::path::Path::new(&own).exists(), "the socket was left behind");
}
