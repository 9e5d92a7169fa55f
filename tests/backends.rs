//! Sessions drawn by lot, written by real Django with every backend, serializer and compressor: the new Redis and the
//! database give back the same, and rows go back into a Redis in the site's own form.
//!
//! `SESSIONFERRY_DRAWN_SESSIONS` sets how many each of the versions draws.
#![cfg(feature = "net")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod support;

use serde_json::json;
use support::{
    DatabaseKind, RedisServer, SECRET, Site,
    django::{Seen, python},
    proxy::{Answer, binary},
};

/// One way in which sites keep sessions.
#[derive(Clone, Copy, Default)]
struct Backend {
    /// The Django, or the environment that has the backend.
    django: &'static str,
    /// `BACKEND`; empty: Django's own.
    class: &'static str,
    /// `OPTIONS`, as `SERIALIZER` and `COMPRESSOR` (with their keys' names); empty: the default.
    serializer: (&'static str, &'static str),
    compressor: (&'static str, &'static str),
    session_serializer: &'static str,
    database: Option<DatabaseKind>,
    /// What is configured for the way back; empty: recognised.
    values: (&'static str, &'static str),
}

impl Backend {
    fn settings(&self) -> [String; 4] {
        let mut cache = json!({});
        if !self.class.is_empty() {
            // django-redis-cache alone takes database 1 where none is named.
            let mut options = if self.class.starts_with("redis_cache") {
                json!({"DB": 0})
            } else {
                json!({})
            };
            for (key, class) in [self.serializer, self.compressor] {
                if !key.is_empty() {
                    options[key] = class.into();
                }
            }
            cache = json!({"BACKEND": self.class, "OPTIONS": options});
        }
        let mut settings = json!({});
        if !self.session_serializer.is_empty() {
            settings["SESSION_SERIALIZER"] = self.session_serializer.into();
        }
        [
            "--cache-options".to_owned(),
            cache.to_string(),
            "--settings".to_owned(),
            settings.to_string(),
        ]
    }
}

/// Writes, moves, looks everywhere, and puts the rows back into an empty Redis.
fn there_and_back(backend: Backend, count: usize, plain: bool) {
    if python(backend.django).is_none() {
        println!("SKIPPED: no Python here that Django {} runs on", backend.django);
        return;
    }
    let seed = support::seed();
    let kind = backend.database.unwrap_or(DatabaseKind::Sqlite);
    let settings = backend.settings();
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let mut site = Site::prepare_django(kind, backend.django, &[], &[], &settings);
    let pickled = backend.session_serializer.contains("Pickle");
    let mut options = site.options();
    if pickled {
        options.config = Some("django.session_serializer = \"pickle\"\n".to_owned());
    }
    site.proxy = Some(support::Proxy::start(options));
    let empty = RedisServer::start(&[]);
    let django = site.django_with(backend.django, &[("restored", empty.url())], &settings);
    let wrote: Vec<Seen> = django.ask(&json!({
        "do": "draw", "engine": "cache", "cache": "proxy", "count": count, "seed": seed, "plain": plain,
    }));
    site.proxy().settle();
    let keys: Vec<String> = wrote.iter().map(|seen| seen.key.clone()).collect();
    let target = django.load("cache", "target", &keys);
    let rows = django.load("db", "empty", &keys);

    // Back, from the table alone.
    let mut restore = binary(site.proxy().dir());
    restore.args(["restore", "--to", &empty.url(), "--database", &site.database_url()]);
    restore.args(["--secret-key", SECRET, "--json"]);
    let mut text = String::new();
    for (name, value) in [
        ("value_serializer", backend.values.0),
        ("value_compressor", backend.values.1),
    ] {
        if !value.is_empty() {
            text.push_str(&format!("django.{name} = \"{value}\"\n"));
        }
    }
    if pickled {
        text.push_str("django.session_serializer = \"pickle\"\n");
    }
    let file = site.proxy().dir().join("restore.toml");
    std::fs::write(&file, text).unwrap();
    restore.arg("--config").arg(&file);
    let restored = Answer::of(&mut restore).expect(0).json();
    let back = django.load("cache", "restored", &keys);

    let mut with_rows = 0;
    for (at, wrote) in wrote.iter().enumerate() {
        assert!(wrote.found && target[at].found, "session {at} of seed {seed}: lost");
        assert_eq!(target[at].exact, wrote.exact, "session {at} of seed {seed}: the target");
        let carried = if pickled {
            Some(&wrote.exact)
        } else {
            wrote.json.as_ref()
        };
        assert_eq!(rows[at].found, carried.is_some(), "session {at} of seed {seed}: a row");
        assert_eq!(
            back[at].found,
            carried.is_some(),
            "session {at} of seed {seed}: put back"
        );
        if let Some(carried) = carried {
            assert_eq!(&rows[at].exact, carried, "session {at} of seed {seed}: the row");
            assert_eq!(&back[at].exact, carried, "session {at} of seed {seed}: put back");
            with_rows += 1;
        }
    }
    assert!(with_rows > count / 3, "{with_rows} of {count} had rows");
    assert_eq!(restored["restored"], with_rows);
    println!("{count} sessions of seed {seed}, {with_rows} with rows");
    assert_eq!(site.proxy().status().sessions.unstorable, (count - with_rows) as u64);
}

/// How many sessions each version of Django draws.
fn many() -> usize {
    std::env::var("SESSIONFERRY_DRAWN_SESSIONS").map_or(10_000, |text| text.parse().unwrap())
}

const OWN: Backend = Backend {
    django: "",
    class: "",
    serializer: ("", ""),
    compressor: ("", ""),
    session_serializer: "",
    database: None,
    values: ("", ""),
};

#[test]
fn whatever_django_3_2_writes_comes_back() {
    let backend = Backend {
        django: "3.2",
        class: "django_redis.cache.RedisCache",
        ..OWN
    };
    there_and_back(backend, many(), false);
}

#[test]
fn whatever_django_4_2_writes_comes_back() {
    let backend = Backend {
        django: "4.2",
        database: Some(DatabaseKind::Postgres),
        ..OWN
    };
    there_and_back(backend, many(), false);
}

#[test]
fn whatever_django_5_2_writes_comes_back() {
    let backend = Backend {
        django: "5.2",
        database: Some(DatabaseKind::MariaDb),
        ..OWN
    };
    there_and_back(backend, many(), false);
}

#[test]
fn whatever_django_6_writes_comes_back() {
    there_and_back(Backend { django: "6", ..OWN }, many(), false);
}

#[test]
fn rows_of_the_pickle_serializer_carry_everything() {
    let backend = Backend {
        django: "4.2",
        session_serializer: "django.contrib.sessions.serializers.PickleSerializer",
        ..OWN
    };
    there_and_back(backend, 300, false);
}

#[test]
fn django_redis_with_every_serializer_and_compressor() {
    let (json, msgpack) = (
        ("django_redis.serializers.json.JSONSerializer", "json"),
        ("django_redis.serializers.msgpack.MSGPackSerializer", "msgpack"),
    );
    let (zlib, lz4) = (
        ("django_redis.compressors.zlib.ZlibCompressor", "zlib"),
        ("django_redis.compressors.lz4.Lz4Compressor", "lz4"),
    );
    let none = ("", "");
    for (serializer, compressor) in [
        (none, zlib),
        (none, ("django_redis.compressors.gzip.GzipCompressor", "gzip")),
        (none, ("django_redis.compressors.lzma.LzmaCompressor", "lzma")),
        (none, lz4),
        (none, ("django_redis.compressors.zstd.ZStdCompressor", "zstd")),
        (json, none),
        (json, zlib),
        (msgpack, none),
        (msgpack, lz4),
    ] {
        let named = |key, class: &'static str| if class.is_empty() { none } else { (key, class) };
        let backend = Backend {
            django: "backends",
            class: "django_redis.cache.RedisCache",
            serializer: named("SERIALIZER", serializer.0),
            compressor: named("COMPRESSOR", compressor.0),
            values: (serializer.1, compressor.1),
            ..OWN
        };
        there_and_back(backend, 100, serializer != none);
    }
}

#[test]
fn django_valkey_with_its_own_compressors() {
    for (compressor, packed) in [
        ("django_valkey.compressors.bz2.Bz2Compressor", "bz2"),
        ("django_valkey.compressors.brotli.BrotliCompressor", "brotli"),
        ("django_valkey.compressors.zstd.ZStdCompressor", "zstd"),
    ] {
        let backend = Backend {
            django: "backends",
            class: "django_valkey.cache.ValkeyCache",
            compressor: ("COMPRESSOR", compressor),
            values: ("", packed),
            ..OWN
        };
        there_and_back(backend, 100, false);
    }
}

/// The one that refuses a value which is not compressed.
#[test]
fn django_redis_cache_with_its_own_compressors() {
    for (compressor, packed) in [
        ("", ""),
        ("redis_cache.compressors.ZLibCompressor", "zlib"),
        ("redis_cache.compressors.BZip2Compressor", "bz2"),
    ] {
        let backend = Backend {
            django: "3.2",
            class: "redis_cache.RedisCache",
            compressor: if packed.is_empty() {
                ("", "")
            } else {
                ("COMPRESSOR_CLASS", compressor)
            },
            values: ("", packed),
            ..OWN
        };
        there_and_back(backend, 100, false);
    }
}
