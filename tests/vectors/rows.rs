//! Rows: those that Django wrote are read, and ours are those that it would have written.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use sessionferry::session::signing::{DEFAULT_SALT, Signer, SigningError};
use sessionferry::session::value::decode;
use sessionferry::session::{
    Comparison, Compression, RowCodec, RowError, Serializer, SessionSerializer, Undecodable, Unstorable, ValueFormat,
};

use super::recorded::*;

#[test]
fn rows_are_those_that_cached_db_writes() {
    let (mut identical, mut recompressed) = (0, 0);
    for version in VERSIONS.iter().chain(&OTHERS) {
        let json = django_json(version);
        let backend = match *version {
            "dj3.2" => "django_redis",
            "drc3.0" => "django_redis_cache",
            "valkey" => "django_valkey",
            _ => "builtin",
        };
        let values: HashMap<String, Vec<u8>> = vectors(&format!("redis-{version}-{backend}"))
            .iter()
            .filter(|v| v["serializer"].is_null() && v["compressor"].is_null())
            .filter_map(|v| Some((text(v, "case").to_owned(), bytes(v, "redis_value_b64")?)))
            .collect();
        let vectors = vectors(&format!("db-{version}"));
        assert!(vectors.len() >= 54, "{version}: {}", vectors.len());
        for vector in &vectors {
            let case = text(vector, "case");
            // Large values are recorded once, beside those of the `cache` engine.
            let value = bytes(vector, "redis_value_b64").or_else(|| values.get(case).cloned());
            // What that Django does not write at all, or was not asked to write with this backend.
            let Some(value) = value else {
                continue;
            };
            let Some(row) = vector["session_data"].as_str() else {
                assert!(
                    case == "exp_datetime"
                        || case.starts_with("django_set_expiry_")
                        || codec().encode(&value, NOW).is_err(),
                    "{case}"
                );
                continue;
            };
            assert_eq!(codec().payload(row).as_ref(), Ok(&json[case]), "{case}");
            let timestamp = vector["timestamp"].as_i64().unwrap();
            let ours = match codec().encode(&value, timestamp) {
                Ok(ours) => ours,
                Err(Unstorable::Undecodable(Undecodable::Opaque { .. }))
                    if ["enum_str", "querydict"].contains(&case) =>
                {
                    continue;
                }
                Err(error) => panic!("{case}: {error}"),
            };
            assert_eq!(codec().compare(&value, row), Comparison::Same, "{case}");
            assert_eq!(codec().compare(&value, &ours), Comparison::Same, "{case}");
            if ours == row {
                identical += 1;
            } else {
                // Only the zlib stream may differ: another compressor, the same content.
                assert!(row.starts_with('.') || ours.starts_with('.'), "{case}");
                assert!(
                    ours.len() <= row.len() + row.len() / 10 + 8,
                    "{case}: {} {}",
                    ours.len(),
                    row.len()
                );
                assert_eq!(codec().payload(&ours).as_ref(), Ok(&json[case]), "{case}");
                assert_eq!(ours.rsplit(':').nth(1), row.rsplit(':').nth(1), "{case}");
                recompressed += 1;
            }
            let wrong = RowCodec::new(b"another secret", &[], DEFAULT_SALT);
            assert_eq!(wrong.payload(row), Err(RowError::BadSignature), "{case}");
        }
    }
    println!("{identical} rows byte for byte, {recompressed} with another zlib stream");
    assert!(identical >= 60, "{identical}");
}

#[test]
fn other_secrets_salts_and_timestamps_open_as_in_django() {
    for version in VERSIONS.iter().chain(&OTHERS) {
        let vectors = vectors(&format!("db-extra-{version}"));
        assert!(vectors.len() >= 20, "{version}: {}", vectors.len());
        for vector in vectors {
            let id = text(&vector, "id");
            let secret = bytes(&vector, "secret_key_b64");
            let secret = secret.unwrap_or_else(|| text(&vector, "secret_key").as_bytes().to_vec());
            let fallbacks: Vec<Vec<u8>> = vector["fallbacks"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|f| f.as_str().unwrap().as_bytes().to_vec())
                .collect();
            let row = text(&vector, "session_data");
            let salt = vector["salt"].as_str().unwrap_or(DEFAULT_SALT);
            let payload = RowCodec::new(&secret, &fallbacks, salt).payload(row);
            match text(&vector, "policy") {
                // Django 3.2 reads these as well, and writes them only where it is told to.
                "accept_if_legacy_enabled" => {
                    assert_eq!(payload, Err(RowError::Envelope(SigningError::Legacy)), "{id}")
                }
                // A row that must never be written is still read as Django reads it: as Latin-1.
                "accept" | "never_write" => {
                    let payload = payload.unwrap_or_else(|error| panic!("{id}: {error}"));
                    assert_payload(&payload, &vector["decoded"], id);
                    let ours = Signer::new(&secret, &[], text(&vector, "salt"));
                    if let Some(timestamp) = vector["timestamp"].as_i64() {
                        assert_eq!(ours.sign(&payload, timestamp), row, "{id}");
                    }
                    if let Some(compressed) = vector["compressed"].as_bool() {
                        assert_eq!(row.starts_with('.'), compressed, "{id}");
                        // Where the two streams differ in length, so may the choice; the rule stays the same.
                        let signed = ours.sign(&payload, NOW);
                        let body = signed.split(':').next().unwrap();
                        let packed = body
                            .strip_prefix('.')
                            .map(|packed| URL_SAFE_NO_PAD.decode(packed).unwrap());
                        assert!(packed.is_none_or(|packed| packed.len() + 1 < payload.len()), "{id}");
                    }
                }
                // SHA-1, of which only Django 3.2 took signatures.
                "reject" | "reject_on_4.0+" => assert_eq!(payload, Err(RowError::BadSignature), "{id}"),
                "accept_if_configured" => {
                    assert_eq!(payload, Err(RowError::Pickle), "{id}");
                    check_pickled_row(&secret, salt, row, &vector["decoded"], id);
                }
                policy => panic!("{id}: policy {policy}"),
            }
        }
    }
}

/// A row of `SESSION_SERIALIZER = PickleSerializer`: the Redis value is the payload, and the row is made of it again.
fn check_pickled_row(secret: &[u8], salt: &str, row: &str, decoded: &Value, id: &str) {
    let site = RowCodec::new(secret, &[], salt).with_serializer(SessionSerializer::Pickle);
    let value = site.value(row).unwrap_or_else(|error| panic!("{id}: {error}"));
    if let Ok(json) = decode(&value).unwrap().to_json() {
        assert_payload(&json, decoded, id);
    }
    assert_eq!(site.payload(row).as_ref(), Ok(&value), "{id}");
    assert_eq!(site.compare(&value, row), Comparison::Same, "{id}");
    let again = site.encode(&value, NOW).unwrap();
    assert_eq!(site.payload(&again).as_ref(), Ok(&value), "{id}");
    // A site whose cache writes JSON, which no such row can be byte for byte.
    let json = site.clone().with_format(ValueFormat {
        serializer: Serializer::Json,
        compression: Compression::None,
    });
    if let Ok(value) = json.value(row) {
        assert_eq!(json.compare(&value, row), Comparison::Same, "{id}");
    }
}
