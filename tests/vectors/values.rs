//! Redis values: whatever wrote them, they become the session that Django has, and can be written again.

use std::collections::HashMap;

use serde_json::Value;
use sessionferry::session::json::NotJson;
use sessionferry::session::signing::DEFAULT_SALT;
use sessionferry::session::value::{Serialized, decode};
use sessionferry::session::{
    Compression, Compressor, Form, RowCodec, Serializer, Undecodable, Unstorable, ValueFormat,
};

use super::recorded::*;

/// Checks one pickled case against Django's JSON, or against the error that Django raised.
fn check_case(case: &str, value: &[u8], policy: &str, json_error: Option<&str>, json: &HashMap<String, Vec<u8>>) {
    let result = decode(value)
        .map_err(Unstorable::from)
        .and_then(|dict| Ok(dict.to_json()?));
    let encoded = codec().encode(value, NOW);
    assert_eq!(encoded.is_ok(), result.is_ok(), "{case}");
    match (case, policy) {
        // The one exception to Django's own failure: later versions write this datetime as text.
        ("exp_datetime", _) => {
            let json = r#"{"a":1,"_session_expiry":"2026-01-16T12:00:00.123456+00:00"}"#;
            assert_eq!(result.as_deref(), Ok(json.as_bytes()), "{case}");
        }
        // The same, as `set_expiry` left it up to Django 4.0.
        (_, "no_db") if case.starts_with("django_set_expiry_") => {
            let json = String::from_utf8(result.unwrap()).unwrap();
            assert!(json.contains(r#""_session_expiry":"2026-01-"#), "{case}: {json}");
        }
        // Classes that we know, although a reader might take them for opaque.
        ("ordered", "opaque") | (_, "accept" | "accept_lossy") => {
            let result = result.unwrap_or_else(|error| panic!("{case}: {error}"));
            assert!(
                result == json[case],
                "{case}: {}",
                String::from_utf8_lossy(&result[..result.len().min(200)])
            );
        }
        ("zoneinfo", "opaque") | (_, "no_db") => {
            let error = result.unwrap_err();
            let Unstorable::NotJson(error) = error else {
                panic!("{case}: {error}")
            };
            let django = json_error.unwrap();
            let agrees = match error {
                NotJson::Type { type_name } => {
                    let class = type_name.rsplit('.').next().unwrap();
                    django == format!("TypeError: Object of type {class} is not JSON serializable")
                }
                NotJson::Key { type_name } => django.ends_with(&format!("not {type_name}")),
                NotJson::IntTooLong { .. } => django.contains("Exceeds the limit (4300 digits)"),
                NotJson::Cyclic => django.contains("Circular reference"),
                _ => false,
            };
            assert!(agrees, "{case}: {error:?}, Django: {django}");
        }
        (_, "opaque") => {
            let error = result.unwrap_err();
            let name = match case {
                "enum_str" => "__main__.Colour",
                "querydict" => "django.http.request.QueryDict",
                "lazy_string" => "django.utils.functional._lazy_proxy_unpickle",
                _ => panic!("{case}"),
            };
            assert_eq!(
                error,
                Unstorable::Undecodable(Undecodable::Opaque {
                    type_name: name.to_owned()
                }),
                "{case}"
            );
        }
        _ => panic!("{case}: policy {policy}"),
    }
}

#[test]
fn values_of_the_builtin_backend_become_djangos_json() {
    for version in VERSIONS {
        let json = django_json(version);
        let vectors = vectors(&format!("redis-{version}-builtin"));
        assert_eq!(vectors.len(), 56);
        for vector in vectors {
            let value = bytes(&vector, "redis_value_b64").unwrap();
            check_case(
                text(&vector, "case"),
                &value,
                text(&vector, "policy"),
                vector["json_error"].as_str(),
                &json,
            );
        }
    }
}

/// How the vector's value was written, and the format of a site that writes such values.
fn form_of(vector: &Value) -> (Form, ValueFormat) {
    let named = |key: &str, names: &[&'static str]| {
        let class = vector[key].as_str()?.to_lowercase();
        Some(
            *names
                .iter()
                .find(|name| class.contains(**name))
                .unwrap_or_else(|| panic!("{class}")),
        )
    };
    let (serialized, serializer) = match named("serializer", &["json", "msgpack"]) {
        None => (Serialized::Pickle, Serializer::Pickle),
        Some("json") => (Serialized::Json, Serializer::Json),
        Some(_) => (Serialized::Msgpack, Serializer::Msgpack),
    };
    let compressors = [
        ("zlib", Compressor::Zlib),
        ("gzip", Compressor::Gzip),
        ("bzip2", Compressor::Bz2),
        ("bz2", Compressor::Bz2),
        ("lzma", Compressor::Lzma),
        ("lz4", Compressor::Lz4),
        ("zstd", Compressor::Zstd),
        ("brotli", Compressor::Brotli),
    ];
    let compressor = named("compressor", &compressors.map(|(name, _)| name))
        .and_then(|found| compressors.iter().find(|(name, _)| *name == found))
        .map(|(_, compressor)| *compressor);
    let form = Form {
        serialized,
        compressed: compressor.filter(|_| vector["stored_compressed"] == true),
    };
    let format = ValueFormat {
        serializer,
        compression: compressor.map_or(Compression::None, Compression::With),
    };
    (form, format)
}

#[test]
fn values_of_every_other_backend_are_recognised_and_can_be_written_again() {
    let mut checked = Checked::new();
    for version in VERSIONS.iter().chain(&OTHERS) {
        let backend = match *version {
            "drc3.0" => "django_redis_cache",
            "valkey" => "django_valkey",
            _ => "django_redis",
        };
        let django = django_json(version);
        for vector in vectors(&format!("redis-{version}-{backend}")) {
            check_way_and_back(&vector, &django, &mut checked);
        }
    }
    println!("{checked:?}");
    assert_eq!(
        checked.len(),
        3 + 7 + 2,
        "pickle, json and msgpack as they are, seven compressors, zlib under the others"
    );
    assert!(checked.values().sum::<u32>() > 700, "{checked:?}");
}

/// How many values of each form were read.
type Checked = HashMap<Form, u32>;

fn check_way_and_back(vector: &Value, django: &HashMap<String, Vec<u8>>, checked: &mut Checked) {
    let id = text(vector, "id");
    // What the backend itself refused to write.
    let Some(value) = bytes(vector, "redis_value_b64") else {
        return;
    };
    let (form, format) = form_of(vector);
    let (found, configured) = (ValueFormat::default().decode(&value), format.decode(&value));
    assert_eq!(found.as_ref().err(), configured.as_ref().err(), "{id}");
    if id.contains("/herd/") {
        let type_name = "django_redis.client.herd.Marker".to_owned();
        assert_eq!(found.err(), Some(Undecodable::Opaque { type_name }), "{id}");
        return;
    }
    if form.serialized == Serialized::Pickle {
        check_case(
            text(vector, "case"),
            &value,
            text(vector, "policy"),
            vector["json_error"].as_str(),
            django,
        );
    } else {
        assert_eq!(found.is_err(), vector["load_error"].is_string(), "{id}");
    }
    let Ok((dict, seen)) = found else {
        return;
    };
    assert_eq!((seen, configured.unwrap().1), (form, form), "{id}");
    *checked.entry(form).or_default() += 1;
    let Ok(json) = dict.to_json() else {
        return;
    };
    if form.serialized != Serialized::Pickle {
        // Noted where it is not what was put in.
        match &vector["decoded"] {
            Value::Null => assert!(json == django[text(vector, "case")], "{id}"),
            decoded => assert_payload(&json, decoded, id),
        }
    }
    // The way back, in the site's own form.
    let site = RowCodec::new(SECRET.as_bytes(), &[], DEFAULT_SALT).with_format(format);
    let written = site.value(&site.encode(&value, NOW).unwrap()).unwrap();
    let (again, form) = format.decode(&written).unwrap();
    assert_eq!(again.to_json().as_ref(), Ok(&json), "{id}");
    assert_eq!(form, site.form(), "{id}");
    // And in the same where that had to be recognised.
    let site = codec();
    let written = site.value(&site.encode(&value, NOW).unwrap()).unwrap();
    assert_eq!(ValueFormat::default().decode(&written).unwrap().1, seen, "{id}");
}

#[test]
fn every_protocol_reads_the_same() {
    let json = django_json("dj5.2");
    let mut checked = 0;
    for vector in vectors("pickle-protocols") {
        for (protocol, pickle) in vector["pickles"].as_object().unwrap() {
            // SafeString recurses in Python's own protocols 0 and 1, so there is nothing to read.
            let Some(value) = bytes(pickle, "b64") else { continue };
            println!("{} at protocol {protocol}", text(&vector, "case")); // shown where the check fails
            check_case(
                text(&vector, "case"),
                &value,
                text(pickle, "policy"),
                vector["json_error"].as_str(),
                &json,
            );
            checked += 1;
        }
    }
    assert!(checked > 270, "{checked}");
}
