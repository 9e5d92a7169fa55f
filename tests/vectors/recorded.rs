//! What was recorded, and what it is held against.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use sessionferry::session::RowCodec;
use sessionferry::session::json::{Charset, read, same};
use sessionferry::session::signing::DEFAULT_SALT;

pub const SECRET: &str = "golden-secret-key-for-vectors-0123456789abcdef";
/// The frozen clock of the recordings.
pub const NOW: i64 = 1_768_478_400;
/// What any single value may take, in a build without optimizations: on an idle core the slowest takes 60 ms, and
/// without limits the bombs take seconds to forever. The rest is for a busy machine.
pub const TIME_LIMIT: Duration = Duration::from_millis(300);
/// Django's versions, each with a redis-py and a django-redis of its time.
pub const VERSIONS: [&str; 4] = ["dj4.2", "dj5.2", "dj5.2r6", "dj6.1"];
/// The same, with Django 3.2 (django-redis 5 and django-redis-cache), and django-valkey.
pub const OTHERS: [&str; 3] = ["dj3.2", "drc3.0", "valkey"];

pub fn load(file: &str) -> Value {
    let path = format!("{}/tests/vectors/{file}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub fn vectors(file: &str) -> Vec<Value> {
    load(file)["vectors"].as_array().unwrap().clone()
}

pub fn text<'a>(vector: &'a Value, key: &str) -> &'a str {
    vector[key]
        .as_str()
        .unwrap_or_else(|| panic!("no text {key} in {}", vector["id"]))
}

pub fn bytes(vector: &Value, key: &str) -> Option<Vec<u8>> {
    Some(STANDARD.decode(vector[key].as_str()?).unwrap())
}

/// Runs `work` within [`TIME_LIMIT`]. Other processes may take the core away, so the best of a few runs counts.
pub fn timed<T>(id: &str, work: impl Fn() -> T) -> T {
    let mut fastest = Duration::MAX;
    for _ in 0..5 {
        let started = Instant::now();
        let result = work();
        fastest = fastest.min(started.elapsed());
        if fastest < TIME_LIMIT {
            return result;
        }
    }
    panic!("{id}: {fastest:?}");
}

pub fn codec() -> RowCodec {
    RowCodec::new(SECRET.as_bytes(), &[], DEFAULT_SALT)
}

/// The JSON that this version's serializer made of each case, where it could. A login is not the same in all of them.
pub fn django_json(version: &str) -> HashMap<String, Vec<u8>> {
    let mut all = HashMap::new();
    for vector in vectors("sessions").iter().filter(|v| !v["json_b64"].is_null()) {
        all.insert(text(vector, "case").to_owned(), bytes(vector, "json_b64").unwrap());
    }
    for file in ["db-dj5.2".to_owned(), format!("db-{version}")] {
        for vector in vectors(&file).iter().filter(|v| !v["payload_json_b64"].is_null()) {
            all.insert(
                text(vector, "case").to_owned(),
                bytes(vector, "payload_json_b64").unwrap(),
            );
        }
    }
    all
}

/// A dictionary from the vectors as JSON text; what plain JSON has no form for is tagged with `$t` there.
fn untag(value: &Value) -> String {
    match value {
        Value::Object(map) => match map.get("$t").and_then(Value::as_str) {
            Some("float") => match text(value, "v") {
                "nan" => "NaN".to_owned(),
                "inf" => "Infinity".to_owned(),
                "-inf" => "-Infinity".to_owned(),
                other => other.to_owned(),
            },
            Some("int") => text(value, "v").to_owned(),
            Some("str") if text(value, "wtf8_b64") == "7aCA" => r#""\ud800""#.to_owned(),
            Some(tag) => panic!("{tag}"),
            None => {
                let pairs = map
                    .iter()
                    .map(|(k, v)| format!("{}:{}", untag(&Value::from(k.as_str())), untag(v)));
                format!("{{{}}}", pairs.collect::<Vec<_>>().join(","))
            }
        },
        Value::Array(items) => format!("[{}]", items.iter().map(untag).collect::<Vec<_>>().join(",")),
        other => other.to_string(),
    }
}

pub fn assert_payload(payload: &[u8], decoded: &Value, id: &str) {
    let ours = read(payload.to_vec(), Charset::Latin1).unwrap_or_else(|error| panic!("{id}: {error}"));
    let django = read(untag(decoded).into_bytes(), Charset::Utf8).unwrap();
    assert!(same(&ours, &django), "{id}: {}", String::from_utf8_lossy(payload));
}
