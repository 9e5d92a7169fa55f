//! The session room against what Django itself wrote and read.
//!
//! `vectors/*.json` were recorded from real Django versions, a real Redis and a real database: session dictionaries,
//! the Redis values and rows that Django made of them, and input that a reader must survive. Each vector carries a
//! policy: `accept` and `accept_lossy` become the row that Django writes, `no_db` and `opaque` have no row, `reject` is
//! refused.

#![allow(clippy::unwrap_used)] // a test fails by panicking
#![allow(unreachable_pub, reason = "rooms of one test crate")]

#[path = "vectors/hostile.rs"]
mod hostile;
#[path = "vectors/recorded.rs"]
mod recorded;
#[path = "vectors/rows.rs"]
mod rows;
#[path = "vectors/values.rs"]
mod values;

use recorded::{bytes, load, text};
use serde_json::Value;
use sessionferry::session::{Engine, KeyPatterns};

#[test]
fn keys_are_built_and_recognised_as_django_builds_them() {
    let keys = load("keys");
    let version = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let engines = [("cache", Engine::Cache), ("cached_db", Engine::CachedDb)];
    let mut checked = 0;
    for vector in keys["build"].as_array().unwrap() {
        for (name, engine) in engines {
            let patterns = KeyPatterns::from_django(text(vector, "key_prefix"), &version(&vector["version"]), engine);
            let redis_key = bytes(vector, "redis_key_b64").unwrap();
            let own = text(vector, "engine") == name;
            let session_key = text(vector, "session_key");
            assert_eq!(patterns.session_key(&redis_key), own.then_some(session_key), "{vector}");
            assert_eq!(patterns.redis_key(session_key) == redis_key, own, "{vector}");
            checked += 1;
        }
    }
    for vector in keys["parse"].as_array().unwrap() {
        for (name, engine) in engines {
            let config = &vector["config"];
            let patterns = KeyPatterns::from_django(text(config, "key_prefix"), &version(&config["version"]), engine);
            let redis_key = bytes(vector, "redis_key_b64").unwrap();
            let expected = if vector["engine"] == name {
                vector["session_key"].as_str()
            } else {
                None
            };
            assert_eq!(patterns.session_key(&redis_key), expected, "{vector}");
            checked += 1;
        }
    }
    assert_eq!(checked, 58);
}
