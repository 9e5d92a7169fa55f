//! A Redis as the proxy's own store.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use sessionferry::net::Endpoint;
use sessionferry::session::Deadline;
use sessionferry::sink::redis::Role;
use sessionferry::sink::{RedisStore, RedisWrite, StoreErrorKind, Stored};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::now_ms;
use super::servers::{self, Redis};

fn store(url: &str) -> RedisStore {
    RedisStore::new(Endpoint::parse(url).unwrap())
}

fn put(key: &str, value: &str, deadline: Deadline) -> RedisWrite {
    RedisWrite::Put {
        key: Bytes::from(key.to_owned()),
        value: Bytes::from(value.to_owned()),
        deadline,
    }
}

fn keys(names: &[&str]) -> Vec<Bytes> {
    names.iter().map(|name| Bytes::from((*name).to_owned())).collect()
}

async fn raw(url: &str, words: &[&str]) -> redis::Value {
    let client = redis::Client::open(url).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let mut command = redis::cmd(words[0]);
    for word in &words[1..] {
        command.arg(word);
    }
    command.query_async(&mut connection).await.unwrap()
}

/// What every Redis must do, whatever its version lets us use. Expiry comes back at most `early_ms` early, and never
/// late.
async fn check_redis_round_trip(store: &RedisStore, plain_url: &str, early_ms: i64) {
    let deadline = Deadline::At(now_ms() + 1_209_600_123);
    let mut writes: Vec<_> = (0..1200)
        .map(|n| put(&format!("s:{n}"), &format!("value {n}"), deadline))
        .collect();
    writes.push(put("s:never", "n", Deadline::Never));
    writes.push(put("s:binary", "a\0\r\nb", Deadline::At(now_ms() + 60_000)));
    store.write(&writes).await.unwrap();
    // Twice is the same as once, and the last word counts.
    store.write(&writes).await.unwrap();
    store
        .write(&[put("s:7", "old", Deadline::Never), put("s:7", "new", deadline)])
        .await
        .unwrap();

    let names: Vec<Bytes> = (0..1200).map(|n| Bytes::from(format!("s:{n}"))).collect();
    let found = store.read(&names).await.unwrap();
    assert_eq!(found.len(), 1200);
    for (n, stored) in found.into_iter().enumerate() {
        let value = if n == 7 { "new".to_owned() } else { format!("value {n}") };
        let Stored::Value {
            value: kept,
            deadline: Deadline::At(ms),
        } = stored
        else {
            panic!("{n}: {stored:?}")
        };
        assert_eq!(kept, value);
        let Deadline::At(wanted) = deadline else { unreachable!() };
        assert!(
            (wanted - early_ms..=wanted).contains(&ms),
            "expiry of {n}: {ms}, wanted {wanted}"
        );
    }

    raw(plain_url, &["RPUSH", "list", "x"]).await;
    let found = store
        .read(&keys(&["s:never", "list", "nothing", "s:binary"]))
        .await
        .unwrap();
    assert_eq!(
        found[0],
        Stored::Value {
            value: Bytes::from("n"),
            deadline: Deadline::Never
        }
    );
    assert_eq!(found[1], Stored::WrongType);
    assert_eq!(found[2], Stored::Absent);
    assert!(matches!(&found[3], Stored::Value { value, .. } if value == "a\0\r\nb"));

    // A deadline in the past leaves nothing behind, however far in the past.
    let past = [
        put("s:1", "late", Deadline::At(now_ms() - 1)),
        put("s:2", "late", Deadline::At(-5)),
    ];
    store.write(&past).await.unwrap();
    store
        .write(&[RedisWrite::Delete {
            key: Bytes::from("s:3"),
        }])
        .await
        .unwrap();
    let found = store.exists(&keys(&["s:1", "s:2", "s:3", "s:4"])).await.unwrap();
    assert_eq!(found, [false, false, false, true]);

    let mut scanned = HashSet::new();
    let mut cursor = 0;
    loop {
        let (next, page) = store.scan(cursor, "s:*", 100).await.unwrap();
        scanned.extend(page);
        cursor = next;
        if cursor == 0 {
            break;
        }
    }
    assert_eq!(scanned.len(), 1202 - 3);
    assert!(!scanned.contains(&b"list"[..]));
}

#[tokio::test]
async fn redis_keeps_values_and_expiry_to_the_millisecond() {
    let redis = Redis::start(&[]);
    let store = store(&format!("{}/3", redis.url()));
    check_redis_round_trip(&store, &format!("{}/3", redis.url()), 0).await;
}

#[tokio::test]
async fn redis_of_unknown_version_keeps_them_too() {
    // INFO is refused, so the version is not known and only what the oldest servers have is used.
    let redis = Redis::start(&[
        "--user",
        "old",
        "on",
        ">pw",
        "~*",
        "+@all",
        "-info",
        "-pexpiretime",
        "-client|kill",
    ]);
    let store = store(&redis.url().replace("redis://", "redis://old:pw@"));
    check_redis_round_trip(&store, &redis.url(), 20).await;
    // Written to the millisecond all the same: another connection that may ask the server sees it.
    let deadline = Deadline::At(now_ms() + 1_209_600_123);
    store.write(&[put("exact", "1", deadline)]).await.unwrap();
    let found = RedisStore::new(Endpoint::parse(&redis.url()).unwrap())
        .read(&keys(&["exact"]))
        .await
        .unwrap();
    assert_eq!(
        found,
        [Stored::Value {
            value: Bytes::from("1"),
            deadline
        }]
    );
    let facts = store.facts(now_ms()).await.unwrap();
    assert_eq!((facts.version, facts.role), (None, None));
    assert!(facts.dbsize.is_some());
}

#[tokio::test]
async fn redis_over_a_unix_socket() {
    let redis = Redis::start(&[]);
    let store = store(&format!("unix:{}?db=1", redis.socket().display()));
    store.write(&[put("a", "1", Deadline::Never)]).await.unwrap();
    let found = store.read(&keys(&["a"])).await.unwrap();
    assert_eq!(
        found,
        [Stored::Value {
            value: Bytes::from("1"),
            deadline: Deadline::Never
        }]
    );
    assert_eq!(
        raw(&format!("{}/1", redis.url()), &["DBSIZE"]).await,
        redis::Value::Int(1)
    );
}

#[tokio::test]
async fn redis_tells_its_facts() {
    let redis = Redis::start(&[
        "--maxmemory",
        "64mb",
        "--maxmemory-policy",
        "allkeys-lru",
        "--appendonly",
        "yes",
    ]);
    let store = store(&redis.url());
    store.write(&[put("a", "1", Deadline::Never)]).await.unwrap();
    let facts = store.facts(now_ms()).await.unwrap();
    assert!(facts.version >= Some((6, 0, 0)), "{facts:?}");
    assert!(facts.version_text.as_deref().unwrap().starts_with("redis "));
    assert_eq!((facts.role, facts.read_only), (Some(Role::Master), Some(false)));
    assert_eq!(
        (facts.maxmemory, facts.maxmemory_policy.as_deref()),
        (Some(64 << 20), Some("allkeys-lru"))
    );
    assert!(facts.used_memory > Some(100_000));
    assert_eq!((facts.aof, facts.rdb), (Some(true), Some(false)));
    assert_eq!(
        (facts.dbsize, facts.cluster_enabled, facts.loading),
        (Some(1), Some(false), Some(false))
    );
    assert_eq!(facts.run_id.unwrap().len(), 40);
    assert!(facts.skew_ms.unwrap().abs() < 500, "{:?}", facts.skew_ms);
    let late = store.facts(now_ms() - 90_000).await.unwrap();
    assert!((89_000..91_000).contains(&late.skew_ms.unwrap()), "{:?}", late.skew_ms);
}

#[tokio::test]
async fn a_read_only_replica_is_named_as_such() {
    let redis = Redis::start(&["--replicaof", "127.0.0.1 1"]);
    let store = store(&redis.url());
    let facts = store.facts(now_ms()).await.unwrap();
    assert_eq!((facts.role, facts.read_only), (Some(Role::Replica), Some(true)));
    let error = store.write_probe("probe").await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::ReadOnly, "{error}");
    let error = store.write(&[put("a", "1", Deadline::Never)]).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::ReadOnly, "{error}");
    // Reading goes on over the same connection.
    assert_eq!(store.read(&keys(&["a"])).await.unwrap(), [Stored::Absent]);
}

#[tokio::test]
async fn a_full_redis_is_named_as_such() {
    let redis = Redis::start(&["--maxmemory", "1mb", "--maxmemory-policy", "noeviction"]);
    let store = store(&redis.url());
    let big = "x".repeat(1 << 20);
    let mut kinds = Vec::new();
    for n in 0..4 {
        let outcome = store.write(&[put(&format!("k{n}"), &big, Deadline::Never)]).await;
        kinds.push(outcome.err().map(|error| error.kind()));
    }
    assert_eq!(kinds.last(), Some(&Some(StoreErrorKind::OutOfMemory)), "{kinds:?}");
    assert_eq!(
        store.write_probe("probe").await.unwrap_err().kind(),
        StoreErrorKind::OutOfMemory
    );
}

/// Which is when a site has every reason to move.
#[tokio::test]
async fn a_full_redis_can_be_read() {
    let redis = Redis::start(&[]);
    let store = store(&redis.url());
    let names: Vec<String> = (0..300).map(|n| format!("k{n}")).collect();
    let deadline = |n: usize| match n % 3 {
        0 => Deadline::Never,
        _ => Deadline::At(now_ms() + 100_000 + n as i64),
    };
    let writes: Vec<RedisWrite> = names
        .iter()
        .enumerate()
        .map(|(n, name)| put(name, name, deadline(n)))
        .collect();
    store.write(&writes).await.unwrap();
    raw(&redis.url(), &["RPUSH", "list", "1"]).await;
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.extend(["list", "none"]);
    let before = store.read(&keys(&names)).await.unwrap();
    raw(&redis.url(), &["CONFIG", "SET", "maxmemory", "1"]).await;
    assert_eq!(
        store.write_probe("probe").await.unwrap_err().kind(),
        StoreErrorKind::OutOfMemory
    );
    assert_eq!(store.read(&keys(&names)).await.unwrap(), before);
    assert_eq!(before[300..], [Stored::WrongType, Stored::Absent]);
}

#[tokio::test]
async fn credentials_and_permissions_are_told_apart() {
    let redis = Redis::start(&[
        "--requirepass",
        "hunter2",
        "--user",
        "reader",
        "on",
        ">pw",
        "~s:*",
        "+@read",
        "+@connection",
        "+@transaction",
        "+time",
    ]);
    let url = |who: &str| redis.url().replace("redis://", &format!("redis://{who}"));
    for (who, kind) in [
        ("", StoreErrorKind::Auth),
        (":wrong@", StoreErrorKind::Auth),
        ("reader:hunter2@", StoreErrorKind::Auth),
    ] {
        let error = store(&url(who)).ping().await.unwrap_err();
        assert_eq!(error.kind(), kind, "{who}: {error}");
        let text = format!("{error} {error:?}");
        assert!(!text.contains("hunter2") && !text.contains("wrong@"), "{text}");
    }
    store(&url(":hunter2@")).ping().await.unwrap();
    let reader = store(&url("reader:pw@"));
    assert_eq!(reader.read(&keys(&["s:1"])).await.unwrap(), [Stored::Absent]);
    let error = reader
        .write(&[put("s:secret", "1", Deadline::Never)])
        .await
        .unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::NoPermission, "{error}");
    assert!(!error.to_string().contains("s:secret"));
    assert_eq!(
        reader.read(&keys(&["other"])).await.unwrap_err().kind(),
        StoreErrorKind::NoPermission
    );
    // A password for a server that has none.
    let open = Redis::start(&[]);
    let error = store(&open.url().replace("redis://", "redis://web:pw@"))
        .ping()
        .await
        .unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Auth, "{error}");
    let error = store(&format!("{}/9999", open.url())).ping().await.unwrap_err();
    assert!(error.to_string().contains("database number"), "{error}");
}

#[tokio::test]
async fn a_server_that_is_away_or_mute_is_told_apart_in_time() {
    let error = store(&format!("redis://127.0.0.1:{}", servers::free_port()))
        .ping()
        .await
        .unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Refused, "{error}");
    assert_eq!(
        store("unix:/nowhere/r.sock").ping().await.unwrap_err().kind(),
        StoreErrorKind::Refused
    );

    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mute_store = store(&format!("redis://{}", mute.local_addr().unwrap()));
    let began = std::time::Instant::now();
    // All who wait for the connection fail together, not one after the other.
    let pings = futures_util::future::join_all((0..5).map(|_| mute_store.ping())).await;
    assert!(
        pings
            .into_iter()
            .all(|ping| ping.unwrap_err().kind() == StoreErrorKind::Timeout)
    );
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_restarted_redis_is_connected_to_again() {
    let mut redis = Redis::start(&[]);
    let store = store(&redis.url());
    store.write(&[put("a", "1", Deadline::Never)]).await.unwrap();
    redis.stop();
    let kind = store.ping().await.unwrap_err().kind();
    assert!(
        matches!(kind, StoreErrorKind::Closed | StoreErrorKind::Refused),
        "{kind:?}"
    );
    redis.start_again();
    assert_eq!(store.read(&keys(&["a"])).await.unwrap(), [Stored::Absent]);
    // Where nothing was asked while it was away, no error is seen at all.
    redis.stop();
    redis.start_again();
    tokio::time::sleep(Duration::from_millis(50)).await;
    store.write(&[put("a", "1", Deadline::Never)]).await.unwrap();
}

/// What another process does not have, only a process that was told of it can have lost.
#[tokio::test]
async fn what_is_not_there_is_gone_only_where_the_trusted_process_says_so() {
    let mut redis = Redis::start(&[]);
    let store = store(&redis.url());
    store.write(&[put("a", "1", Deadline::Never)]).await.unwrap();
    let there = store.read_trusted(&keys(&["a"])).await.unwrap();
    assert!(
        matches!(&there[..], [Stored::Value { .. }]),
        "none is trusted more than another yet"
    );
    store.trust(store.run_id().await.unwrap());
    assert_eq!(store.read_trusted(&keys(&["a", "b"])).await.unwrap().len(), 2);
    redis.stop();
    redis.start_again();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let error = store.read_trusted(&keys(&["a"])).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Restarted, "{error}");
    assert_eq!(store.read(&keys(&["a"])).await.unwrap(), [Stored::Absent]);
    store.trust(store.run_id().await.unwrap());
    assert_eq!(store.read_trusted(&keys(&["a"])).await.unwrap(), [Stored::Absent]);
}

/// A network that holds back what its first connection sends, once told to, until it is told to let go.
struct Relay {
    url: String,
    hold: tokio::sync::watch::Sender<bool>,
}

impl Relay {
    async fn start(port: u16) -> Relay {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        let (hold, held) = tokio::sync::watch::channel(false);
        tokio::spawn(async move {
            let mut held = Some(held);
            while let Ok((client, _)) = listener.accept().await {
                let server = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                tokio::spawn(Self::carry(client, server, held.take()));
            }
        });
        Relay { url, hold }
    }

    async fn carry(
        client: tokio::net::TcpStream,
        server: tokio::net::TcpStream,
        mut held: Option<tokio::sync::watch::Receiver<bool>>,
    ) {
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
        let mut buffer = vec![0; 1 << 16];
        while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
            if let Some(held) = &mut held {
                held.wait_for(|held| !held).await.unwrap();
            }
            let _late = to_server.write_all(&buffer[..count]).await;
        }
    }
}

#[tokio::test]
async fn a_write_that_timed_out_never_lands_on_a_newer_one() {
    let redis = Redis::start(&[]);
    let relay = Relay::start(redis.port()).await;
    let store = store(&relay.url);
    store.connect().await.unwrap();
    relay.hold.send(true).unwrap();
    let error = store.write(&[put("a", "older", Deadline::Never)]).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Timeout, "{error}");
    store.write(&[put("a", "newer", Deadline::Never)]).await.unwrap();
    relay.hold.send(false).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let found = store.read(&keys(&["a"])).await.unwrap();
    assert_eq!(
        found,
        [Stored::Value {
            value: Bytes::from("newer"),
            deadline: Deadline::Never
        }]
    );
}
