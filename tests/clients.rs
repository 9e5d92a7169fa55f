//! Real clients at their ordinary work, through the proxy. Each does the same straight to a Redis first, so that what
//! fails is the proxy's doing.
#![cfg(feature = "net")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod support;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use redis::AsyncCommands;
use support::{Proxy, ProxyOptions, RedisServer, process};

/// How long one client may take.
const PATIENCE: Duration = Duration::from_secs(100);

struct Site {
    direct: RedisServer,
    behind: RedisServer,
    _target: RedisServer,
    proxy: Proxy,
}

impl Site {
    fn start() -> Site {
        let (direct, behind, target) = (
            RedisServer::start(&[]),
            RedisServer::start(&[]),
            RedisServer::start(&[]),
        );
        let proxy = Proxy::start(ProxyOptions::between(&behind, &target));
        Site {
            direct,
            behind,
            _target: target,
            proxy,
        }
    }

    fn addresses(&self) -> [(&'static str, String); 2] {
        [
            ("straight to Redis", self.direct.address()),
            ("through the proxy", self.proxy.address()),
        ]
    }

    /// Runs what this makes for both addresses, and returns what they wrote.
    fn both(&self, make: impl Fn(&str, &str) -> Command) -> [String; 2] {
        self.addresses().map(|(way, address)| {
            let (host, port) = address.split_once(':').unwrap();
            let mut command = make(host, port);
            let began = Instant::now();
            let output = ended(&mut command);
            let said = format!(
                "{}\n{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
            assert!(output.status.success(), "{way}, {command:?}: {}\n{said}", output.status);
            println!("{way}: {:?}", began.elapsed());
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    }

    fn python(&self, venv: &str, script: &str, args: impl Fn(&str, &str) -> Vec<String>) {
        let said = self.both(|host, port| {
            let mut command = Command::new(python(venv));
            command
                .arg(here().join(script))
                .args(args(host, port))
                .env("PYTHONDONTWRITEBYTECODE", "1")
                .env("CELERY_URL", format!("redis://{host}:{port}"));
            command
        });
        for said in said {
            assert!(said.contains("done"), "{said}");
        }
    }
}

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}

fn python(venv: &str) -> PathBuf {
    let venvs = match std::env::var_os("SESSIONFERRY_TEST_VENVS") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venvs"),
    };
    let python = venvs.join(venv).join("bin/python");
    assert!(
        python.is_file(),
        "{} is missing; scripts/test makes it",
        python.display()
    );
    python
}

/// To its end, or to the end of our patience. What it started itself it has to end too.
fn ended(command: &mut Command) -> Output {
    let (out, err) = (
        tempfile::NamedTempFile::new().unwrap(),
        tempfile::NamedTempFile::new().unwrap(),
    );
    let mut child = command
        .stdin(Stdio::null())
        .stdout(out.reopen().unwrap())
        .stderr(err.reopen().unwrap())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}; scripts/test installs it"));
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Output {
                status,
                stdout: std::fs::read(out.path()).unwrap(),
                stderr: std::fs::read(err.path()).unwrap(),
            };
        }
        if began.elapsed() > PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            panic!(
                "{command:?} hangs:\n{}\n{}",
                std::fs::read_to_string(out.path()).unwrap_or_default(),
                std::fs::read_to_string(err.path()).unwrap_or_default()
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

// ---------------------------------------------------------------------------------------------- Python

fn redis_py(venv: &str, parser: &str) {
    Site::start().python(venv, "redis_py.py", |host, port| {
        vec![format!("redis://{host}:{port}"), parser.to_owned()]
    });
}

#[test]
fn redis_py_6_with_hiredis() {
    redis_py("clients", "hiredis");
}

#[test]
fn redis_py_6_pure() {
    redis_py("clients", "pure");
}

#[test]
fn redis_py_8_with_hiredis() {
    redis_py("redis-py-8", "hiredis");
}

#[test]
fn redis_py_8_pure() {
    redis_py("redis-py-8", "pure");
}

fn django(which: &str) {
    Site::start().python("clients", "django_caches.py", |host, port| {
        vec![format!("redis://{host}:{port}"), which.to_owned()]
    });
}

#[test]
fn djangos_own_cache() {
    django("own");
}

#[test]
fn django_redis() {
    django("django_redis");
}

#[test]
fn celery_with_a_worker() {
    Site::start().python("clients", "celery_use.py", |_, _| Vec::new());
}

#[test]
fn channels_both_layers() {
    Site::start().python("clients", "channel_layers.py", |host, port| {
        vec![host.to_owned(), port.to_owned()]
    });
}

// ---------------------------------------------------------------------------------------------- Redis's own tools

/// A shell line in which `redis-cli` and `redis-benchmark` know where to go.
fn shell(host: &str, port: &str, line: &str) -> Command {
    let tool = |name: &str| format!("{} -h {host} -p {port}", process::program(&[name]).display());
    let line = line
        .replace("redis-cli", &tool("redis-cli"))
        .replace("redis-benchmark", &tool("redis-benchmark"));
    let mut command = Command::new("bash");
    command.args(["-o", "pipefail", "-c", &line]);
    command
}

#[test]
fn redis_cli_says_the_same() {
    let site = Site::start();
    for line in [
        "redis-cli SET a 1; redis-cli GET a; redis-cli INCR a; redis-cli LPUSH a x; redis-cli -n 3 SET a three; redis-cli -n 3 GET a",
        "redis-cli -3 HSET h f v; redis-cli -3 HGETALL h; redis-cli -2 HGETALL h; redis-cli -3 --json HGETALL h",
        "redis-cli -r 3 -i 0.01 INCR n",
        "printf 'SET piped 1\\nGET piped\\nMULTI\\nINCR piped\\nEXEC\\nSELECT 2\\nSET piped two\\nKEYS *\\n' | redis-cli",
        "printf 'HELLO 3\\nCONFIG GET maxmemory\\nNOSUCH\\nZADD z 1.5 m\\nZSCORE z m\\n' | redis-cli --no-auth-warning | grep -v '^id '",
        "for i in $(seq 1000); do printf '*3\\r\\n$3\\r\\nSET\\r\\n$7\\r\\npipe%03d\\r\\n$1\\r\\nv\\r\\n' $((i % 1000)); done | redis-cli --pipe",
        "for i in $(seq 1000); do echo SET inline$i $i; done | redis-cli --pipe",
        "redis-cli --scan --pattern 'pipe*' | sort | md5sum",
        "redis-cli --bigkeys | grep -v '^\\[' | grep -v '^Biggest' | grep -c keys",
        "redis-cli --memkeys | grep -c keys",
        "redis-cli --eval /dev/stdin k , v <<< 'return {KEYS[1], ARGV[1]}'",
        "echo -n 'from stdin' | redis-cli -x SET stdin; redis-cli GET stdin",
        "redis-cli --no-raw LRANGE nothing 0 -1; redis-cli --csv LRANGE nothing 0 -1",
        "timeout 1 redis-cli --latency || echo ended",
        "(timeout 1 redis-cli SUBSCRIBE c || true) & sleep 0.5; redis-cli PUBLISH c hello >/dev/null; wait",
        "(timeout 1 redis-cli -3 PSUBSCRIBE 'c*' || true) & sleep 0.5; redis-cli PUBLISH c hello >/dev/null; wait",
        "redis-cli FUNCTION LOAD \"#!lua name=l\nredis.register_function('f', function() return 7 end)\"; redis-cli FCALL f 0",
        "redis-cli DEBUG JMAP; redis-cli ACL WHOAMI; redis-cli OBJECT ENCODING a; redis-cli CLUSTER INFO",
    ] {
        let [direct, proxied] = site.both(|host, port| shell(host, port, line));
        assert_eq!(direct, proxied, "{line}");
        assert!(!direct.trim().is_empty(), "{line} says nothing");
    }
    // A copy of the data, as a replica gets it.
    for server in [&site.direct, &site.behind] {
        server.ask::<()>(&["CONFIG", "SET", "repl-diskless-sync-delay", "0"]);
    }
    let dir = tempfile::tempdir().unwrap();
    site.both(|host, port| {
        let file = dir.path().join(port);
        shell(host, port, &format!("redis-cli --rdb {}", file.display()))
    });
    for file in std::fs::read_dir(dir.path()).unwrap() {
        assert!(std::fs::read(file.unwrap().path()).unwrap().starts_with(b"REDIS"));
    }
}

#[test]
fn redis_benchmarks_whole_default_set() {
    let site = Site::start();
    for options in ["-n 500 -c 20", "-n 800 -c 10 -P 16 -r 1000", "-n 200 -c 10 -3 -d 4000"] {
        let [direct, proxied] = site.both(|host, port| shell(host, port, &format!("redis-benchmark {options} --csv")));
        let names = |said: &str| -> Vec<String> {
            said.lines()
                .map(|line| line.split(',').next().unwrap_or_default().to_owned())
                .collect()
        };
        assert_eq!(names(&direct), names(&proxied));
        assert!(names(&proxied).len() >= 20, "{proxied}");
    }
    // Both servers hold the same numbers of everything after the same work.
    for command in [&["GET", "counter:__rand_int__"][..], &["LLEN", "mylist"], &["DBSIZE"]] {
        let [direct, behind] = [&site.direct, &site.behind].map(|server| server.ask::<redis::Value>(command));
        if command[0] == "DBSIZE" {
            continue; // keys are drawn by lot
        }
        assert_eq!(direct, behind, "{command:?}");
    }
}

// ---------------------------------------------------------------------------------------------- Rust

async fn the_crate(url: &str) -> redis::RedisResult<()> {
    let client = redis::Client::open(url)?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    redis::cmd("FLUSHALL").exec_async(&mut connection).await?;
    // Many on one connection.
    let tasks: Vec<_> = (0..500_i64)
        .map(|number| {
            let mut connection = connection.clone();
            tokio::spawn(async move {
                let key = format!("k{number}");
                let () = connection.set(&key, number).await?;
                connection.get::<_, i64>(&key).await
            })
        })
        .collect();
    for (number, task) in tasks.into_iter().enumerate() {
        assert_eq!(task.await.unwrap()?, i64::try_from(number).unwrap());
    }
    let (one, two): (i64, i64) = redis::pipe()
        .atomic()
        .incr("n", 1)
        .incr("n", 1)
        .query_async(&mut connection)
        .await?;
    assert_eq!((one, two), (1, 2));
    let mut pipeline = redis::pipe();
    for number in 0..2_000 {
        pipeline.cmd("ECHO").arg(number);
    }
    let echoed: Vec<i64> = pipeline.query_async(&mut connection).await?;
    assert_eq!(echoed, (0..2_000).collect::<Vec<_>>());
    let wrong: redis::RedisResult<i64> = connection.lpush("n", 1).await;
    assert_eq!(wrong.unwrap_err().code(), Some("WRONGTYPE"));
    let mut pubsub = client.get_async_pubsub().await?;
    pubsub.subscribe("c").await?;
    pubsub.psubscribe("d*").await?;
    let heard: i64 = connection.publish("c", "hello").await?;
    assert_eq!(heard, 1);
    {
        use futures_util::StreamExt;
        let message = pubsub.on_message().next().await.unwrap();
        assert_eq!(message.get_payload::<String>()?, "hello");
    }
    pubsub.unsubscribe("c").await?;
    let heard: i64 = connection.publish("c", "unheard").await?;
    assert_eq!(heard, 0);
    Ok(())
}

fn the_crate_without_async(url: &str) -> redis::RedisResult<()> {
    let mut connection = redis::Client::open(url)?.get_connection()?;
    let script = redis::Script::new("return redis.call('INCRBY', KEYS[1], ARGV[1])");
    let sum: i64 = script.key("scripted").arg(5).invoke(&mut connection)?;
    assert_eq!(sum, 5);
    let done: Option<(i64,)> = redis::transaction(&mut connection, &["watched"], |connection, pipe| {
        let now: Option<i64> = redis::cmd("GET").arg("watched").query(connection)?;
        pipe.set("watched", now.unwrap_or(0) + 1)
            .ignore()
            .cmd("GET")
            .arg("watched")
            .query(connection)
    })
    .map(Some)?;
    assert_eq!(done, Some((1,)));
    redis::cmd("SELECT").arg(2).exec(&mut connection)?;
    let nothing: Option<i64> = redis::cmd("GET").arg("watched").query(&mut connection)?;
    assert_eq!(nothing, None);
    let popped: Option<(String, String)> = redis::cmd("BLPOP").arg("q").arg(0.05).query(&mut connection)?;
    assert_eq!(popped, None);
    Ok(())
}

#[test]
fn the_rust_crate() {
    let site = Site::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for (way, address) in site.addresses() {
        for protocol in ["", "?protocol=resp3"] {
            let url = format!("redis://{address}/{protocol}");
            runtime
                .block_on(async { tokio::time::timeout(PATIENCE, the_crate(&url)).await })
                .unwrap_or_else(|_| panic!("{way}: hangs"))
                .unwrap_or_else(|error| panic!("{way} {protocol}: {error}"));
        }
        the_crate_without_async(&format!("redis://{address}/")).unwrap_or_else(|error| panic!("{way}: {error}"));
    }
}

/// Redis before 7.2 refuses to be told of a library; who is connected is known all the same.
#[test]
fn clients_are_told_of_by_address_library_and_name() {
    let site = Site::start();
    let mut connections: Vec<redis::Connection> = (0..4).map(|_| site.proxy.connection()).collect();
    for (at, connection) in connections.iter_mut().enumerate() {
        // That of the Rust crate says it by itself.
        let _: redis::RedisResult<()> = redis::cmd("CLIENT")
            .arg(&["SETINFO", "LIB-NAME", "a-library"])
            .query(connection);
        let _: redis::RedisResult<()> = redis::cmd("CLIENT")
            .arg(&["SETINFO", "LIB-VER", "1.2"])
            .query(connection);
        if at == 3 {
            let _: () = redis::cmd("CLIENT")
                .arg(&["SETNAME", "worker"])
                .query(connection)
                .unwrap();
        }
    }
    let list = || -> serde_json::Value { serde_json::from_str(&site.proxy.get("/api/v1/clients").unwrap().1).unwrap() };
    let row = |name: Option<&str>, connections| serde_json::json!({"address": "127.0.0.1", "name": name, "library": "a-library 1.2", "connections": connections});
    assert_eq!(
        list()["clients"],
        serde_json::json!([row(None, 3), row(Some("worker"), 1)])
    );
    connections.clear();
    support::eventually("nobody is told of any more", Duration::from_secs(10), || {
        list()["clients"] == serde_json::json!([])
    });
}
