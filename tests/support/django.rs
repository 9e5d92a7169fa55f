//! Real Django, through `tests/django/driver.py`.

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::SECRET;

/// The version that tests use where the version is not the point.
pub const USUAL: &str = "5.2";

/// What Django says of one session.
#[derive(Clone, Debug, Deserialize)]
pub struct Seen {
    pub key: String,
    /// Equal for two sessions exactly if type and content are equal.
    #[serde(default)]
    pub exact: String,
    /// The same after Django's JSON; absent where a row cannot carry it.
    #[serde(default)]
    pub json: Option<String>,
    /// Loaded: whether Django found it.
    #[serde(default)]
    pub found: bool,
    /// A row: when it ends, in seconds since 1970.
    #[serde(default)]
    pub ends: Option<f64>,
    /// Written: what it is.
    #[serde(default)]
    pub name: String,
    /// Written: it was deleted again.
    #[serde(default)]
    pub gone: bool,
    /// Written: seconds that Django gives it.
    #[serde(default)]
    pub age: Option<f64>,
}

/// What `check` found; see the driver.
#[derive(Debug, Deserialize)]
pub struct Checked {
    pub checked: u64,
    pub logged_out: u64,
    pub unsure: u64,
    pub missing: Vec<Value>,
    pub behind: Vec<Value>,
    pub revived: Vec<Value>,
}

impl Checked {
    /// Every acknowledged write is there, no logout is undone, and the question was not empty.
    pub fn expect_nothing_lost(&self, place: &str) {
        let wrong = self.missing.len() + self.behind.len() + self.revived.len();
        assert_eq!(wrong, 0, "in the {place}: {self:#?}");
        assert!(self.checked > 0, "nothing was checked in the {place}: {self:#?}");
    }
}

/// The interpreter of a Django version; `None` where this machine has no Python for it.
pub fn python(version: &str) -> Option<PathBuf> {
    let venvs = match std::env::var_os("SESSIONFERRY_TEST_VENVS") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venvs"),
    };
    let python = venvs.join(format!("django-{version}/bin/python"));
    let there = python.is_file();
    assert!(
        there || version == "6",
        "{} is missing; scripts/test makes it",
        python.display()
    );
    there.then_some(python)
}

/// The driver with its settings.
fn driver(version: &str, engine: &str, caches: &[(&str, String)], database: &str, secret: &str) -> Command {
    let python = python(version).unwrap_or_else(|| panic!("no Python for Django {version}"));
    let mut command = Command::new(python);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/django/driver.py"));
    command
        .args(["--engine", engine, "--secret", secret, "--database", database])
        .env("PYTHONDONTWRITEBYTECODE", "1");
    for (name, url) in caches {
        command.args(["--cache", &format!("{name}={url}")]);
    }
    command
}

/// A Django process that answers one question after the other.
pub struct Django {
    child: Child,
    talk: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
}

impl Django {
    pub fn start(version: &str, caches: &[(&str, String)], database: &str) -> Django {
        Django::start_with(version, caches, database, SECRET, &[])
    }

    pub fn start_with(
        version: &str,
        caches: &[(&str, String)],
        database: &str,
        secret: &str,
        settings: &[&str],
    ) -> Django {
        let mut command = driver(version, "cache", caches, database, secret);
        let mut child = command
            .args(settings)
            .arg("serve")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let talk = (
            child.stdin.take().unwrap(),
            BufReader::new(child.stdout.take().unwrap()),
        );
        Django {
            child,
            talk: Mutex::new(talk),
        }
    }

    /// One request to the driver; see `answer_one` there.
    pub fn ask<T: DeserializeOwned>(&self, request: &Value) -> T {
        self.try_ask(request)
            .unwrap_or_else(|error| panic!("Django failed at {request}:\n{error}"))
    }

    pub fn try_ask<T: DeserializeOwned>(&self, request: &Value) -> Result<T, String> {
        let mut talk = self.talk.lock().unwrap();
        writeln!(talk.0, "{request}").unwrap();
        let mut line = String::new();
        talk.1.read_line(&mut line).unwrap();
        let mut answer: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        match answer.get("error") {
            Some(error) => Err(error.as_str().unwrap_or_default().to_owned()),
            None => Ok(serde_json::from_value(answer["ok"].take()).unwrap()),
        }
    }

    pub fn migrate(&self) {
        self.ask::<Value>(&json!({"do": "migrate"}));
    }

    /// Each key as this engine loads it from this cache. `("cached_db", "empty")` is what a site sees that lost its cache.
    pub fn load(&self, engine: &str, cache: &str, keys: &[String]) -> Vec<Seen> {
        self.ask(&json!({"do": "load", "engine": engine, "cache": cache, "keys": keys}))
    }

    pub fn load_one(&self, engine: &str, cache: &str, key: &str) -> Seen {
        self.load(engine, cache, &[key.to_owned()]).remove(0)
    }

    pub fn rows(&self) -> Vec<Seen> {
        self.ask(&json!({"do": "rows"}))
    }

    pub fn fill(&self, cache: &str, count: usize, seed: u64) -> Vec<String> {
        self.ask(&json!({"do": "fill", "engine": "cache", "cache": cache, "count": count, "seed": seed}))
    }

    /// A new session with this content, through Django.
    pub fn save(&self, cache: &str, data: &Value) -> String {
        self.ask(&json!({"do": "save", "engine": "cache", "cache": cache, "data": data}))
    }

    pub fn delete(&self, cache: &str, key: &str) {
        self.ask::<Value>(&json!({"do": "delete", "engine": "cache", "cache": cache, "key": key}));
    }

    /// The bytes that Django's Redis cache stores for this session.
    pub fn pickle(&self, data: &Value) -> Vec<u8> {
        unhex(&self.ask::<String>(&json!({"do": "pickle", "data": data})))
    }

    /// The bytes of a session that no row can carry: one of `object_cases` of the driver.
    pub fn pickle_object(&self, name: &str) -> Vec<u8> {
        unhex(&self.ask::<String>(&json!({"do": "pickle_object", "name": name})))
    }

    pub fn check(&self, log: &Path, engine: &str, cache: &str) -> Checked {
        self.ask(&json!({"do": "check", "path": log, "engine": engine, "cache": cache}))
    }

    pub fn sql(&self, statement: &str) -> Option<Vec<Vec<String>>> {
        self.ask(&json!({"do": "sql", "statement": statement}))
    }
}

impl Drop for Django {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

/// How many of each event the hammer saw.
#[derive(Debug, Deserialize)]
pub struct Counts {
    pub create: u64,
    pub write: u64,
    pub logout: u64,
    /// What a visitor would have seen as an error, or Django swallowed as one.
    pub error: u64,
    /// A session that was answered nil although nobody deleted it.
    pub lost: u64,
    /// A session that was older than what its visitor had been told.
    pub stale: u64,
    pub crashed: u64,
}

/// Many visitors at once, each changing its own session through Django, until stopped.
pub struct Hammer {
    child: Child,
    dir: TempDir,
}

impl Hammer {
    pub fn start(version: &str, url: &str, visitors: usize, more: &[&str]) -> Hammer {
        Hammer::start_with(version, url, "", visitors, more)
    }

    /// With the session table, for the engines that use it.
    pub fn start_with(version: &str, url: &str, database: &str, visitors: usize, more: &[&str]) -> Hammer {
        let dir = tempfile::tempdir().unwrap();
        let mut command = driver(version, "cache", &[("proxy", url.to_owned())], database, SECRET);
        command
            .arg("hammer")
            .arg("--log")
            .arg(dir.path().join("log"))
            .args(["--sessions", &visitors.to_string()])
            .args(more);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let hammer = Hammer { child, dir };
        super::eventually(
            "the hammer's first writes are acknowledged",
            Duration::from_secs(20),
            || hammer.events("write").len() >= visitors,
        );
        hammer
    }

    pub fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// The events of one kind so far.
    pub fn events(&self, kind: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        let wanted = format!("{{\"kind\": \"{kind}\"");
        text.lines()
            .filter(|line| line.starts_with(&wanted))
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// Lets every visitor finish what it is doing.
    pub fn stop(&mut self) -> Counts {
        drop(self.child.stdin.take());
        let began = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(began.elapsed() < Duration::from_secs(90), "the hammer does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut line = String::new();
        BufReader::new(self.child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let counts: Counts = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        println!("hammer: {counts:?}");
        counts
    }

    /// No visitor noticed anything.
    pub fn expect_unnoticed(&self, counts: &Counts) {
        let noticed = counts.error + counts.lost + counts.stale + counts.crashed;
        let mut examples = Vec::new();
        for kind in ["error", "lost", "stale", "crashed"] {
            examples.extend(self.events(kind).into_iter().take(5));
        }
        assert_eq!(noticed, 0, "visitors noticed: {counts:?}\n{examples:#?}");
        assert!(counts.write > 0, "the hammer wrote nothing");
    }
}

impl Drop for Hammer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
