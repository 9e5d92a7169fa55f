//! What a `django_session` row holds for a session, and whether it holds the same session as a Redis value.

use std::sync::{Arc, Mutex, PoisonError};

use super::json::{self, Charset, JsonError, NotJson};
use super::object::Dict;
use super::pickle::{self, PickleError};
use super::signing::{Signer, SigningError};
use super::value::{Compression, Form, Serialized, Serializer, Undecodable, Unwritable, ValueFormat};

/// The site's `SESSION_SERIALIZER`: what a row's payload is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SessionSerializer {
    /// `JSONSerializer`, Django's default.
    #[default]
    Json,
    /// `PickleSerializer`, part of Django up to 4.2. A row then carries the same pickle as the Redis value, which is
    /// looked at and passed on, and never run.
    Pickle,
}

/// Why no row can carry a session. Its bytes are still copied to the other Redis.
///
/// Messages name types and limits, never keys or values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unstorable {
    /// The value is no session that we can read: opaque, damaged, hostile, or in another format.
    #[error("undecodable: {0}")]
    Undecodable(#[from] Undecodable),
    /// The value is a session that JSON cannot carry; Django's own `db` and `cached_db` engines fail on it as well.
    #[error("not storable as json: {0}")]
    NotJson(#[from] NotJson),
}

impl Unstorable {
    /// The Python type that stands in the way, where it is a type: what an operator has to look for in the code.
    pub fn type_name(&self) -> Option<&str> {
        match self {
            Unstorable::Undecodable(Undecodable::Opaque { type_name }) => Some(type_name),
            Unstorable::Undecodable(Undecodable::NotDict { type_name })
            | Unstorable::NotJson(NotJson::Type { type_name } | NotJson::Key { type_name }) => Some(type_name),
            _ => None,
        }
    }
}

/// Why a row cannot be read. Django, too, gives the row's user an empty session then, without an error.
///
/// Messages never hold what the row holds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// Another SECRET_KEY, another salt, or a forged row. Where it is the first two, every row fails like this: the
    /// check at start-up must not pass.
    #[error("the row's signature does not match the secret key and salt")]
    BadSignature,
    /// The envelope is broken although, or because, it is not a matter of the key.
    #[error(transparent)]
    Envelope(SigningError),
    #[error("the row's payload is a pickle, which only SESSION_SERIALIZER = PickleSerializer reads")]
    Pickle,
    #[error("the row's payload is no pickle, which SESSION_SERIALIZER = PickleSerializer expects")]
    NotPickle,
    #[error("the row's payload: {0}")]
    Json(#[from] JsonError),
    #[error("the row's payload: {0}")]
    Undecodable(#[from] Undecodable),
    /// The row is good, and the site's cache backend could not have written its session.
    #[error("the row's session as a Redis value: {0}")]
    Unwritable(#[from] Unwritable),
}

impl RowError {
    /// Whether the key or the salt is wrong, rather than the row.
    pub fn is_bad_signature(&self) -> bool {
        matches!(self, RowError::BadSignature)
    }
}

impl From<SigningError> for RowError {
    fn from(error: SigningError) -> RowError {
        match error {
            SigningError::BadSignature => RowError::BadSignature,
            error => RowError::Envelope(error),
        }
    }
}

/// How a Redis value and a row relate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// The row holds what Django would have written for the value: equal but for the order of keys.
    Same,
    /// Both were read, and differ.
    Different,
    /// No row can carry the value, so there is nothing to compare.
    Unstorable(Unstorable),
    /// The row could not be read.
    Unreadable(RowError),
}

/// Turns Redis values into rows and back, and compares the two. Keys are derived once, so keep one per site; a clone
/// shares what was learned.
#[derive(Clone, Debug)]
pub struct RowCodec {
    signer: Signer,
    format: ValueFormat,
    serializer: SessionSerializer,
    /// How values were written, for a site whose format is recognised: what is put back shall be like most of them.
    seen: Arc<Mutex<Seen>>,
}

/// How often each form was seen lately. A site has one, and two while it is being changed; a value that somebody damaged may
/// look like any other.
#[derive(Debug, Default)]
struct Seen(Vec<(Form, u32)>);

impl Seen {
    /// Older ones count half as much after so many.
    const LATELY: u32 = 1000;

    fn note(&mut self, form: Form) {
        match self.0.iter_mut().find(|(known, _)| *known == form) {
            Some((_, count)) => *count += 1,
            None => self.0.push((form, 1)),
        }
        if self.0.iter().map(|(_, count)| count).sum::<u32>() >= Self::LATELY {
            self.0.iter_mut().for_each(|(_, count)| *count /= 2);
            self.0.retain(|(_, count)| *count > 0);
        }
    }

    fn usual(&self) -> Option<Form> {
        self.0.iter().max_by_key(|(_, count)| *count).map(|(form, _)| *form)
    }
}

impl RowCodec {
    /// `secret_key` and `fallbacks` are the site's `SECRET_KEY` and `SECRET_KEY_FALLBACKS` (text as UTF-8); `salt` is
    /// [`super::signing::DEFAULT_SALT`] unless the site has a session store class of another name.
    pub fn new(secret_key: &[u8], fallbacks: &[Vec<u8>], salt: &str) -> RowCodec {
        RowCodec {
            signer: Signer::new(secret_key, fallbacks, salt),
            format: ValueFormat::default(),
            serializer: SessionSerializer::Json,
            seen: Arc::default(),
        }
    }

    /// The same with the Redis values' format fixed, instead of recognised per value.
    pub fn with_format(self, format: ValueFormat) -> RowCodec {
        RowCodec { format, ..self }
    }

    /// The same with rows of another `SESSION_SERIALIZER`.
    pub fn with_serializer(self, serializer: SessionSerializer) -> RowCodec {
        RowCodec { serializer, ..self }
    }

    /// The `session_data` that Django would write for a session whose Redis value is `value`.
    ///
    /// `now_seconds`, in seconds since the Unix epoch, becomes the row's timestamp.
    ///
    /// # Errors
    /// [`Unstorable`] where the value is not readable, or JSON cannot carry it.
    pub fn encode(&self, value: &[u8], now_seconds: i64) -> Result<String, Unstorable> {
        Ok(self.signer.sign(&self.payload_of(value)?, now_seconds))
    }

    /// The payload of a row, verified: its signature is good, and Django would read a dictionary from it.
    ///
    /// # Errors
    /// [`RowError`], with [`RowError::BadSignature`] apart from the rest.
    pub fn payload(&self, session_data: &str) -> Result<Vec<u8>, RowError> {
        let payload = self.signer.open(session_data)?;
        match self.serializer {
            SessionSerializer::Json => read(&payload).map(drop)?,
            SessionSerializer::Pickle => check_pickle(&payload)?,
        }
        Ok(payload)
    }

    /// The Redis value that Django would have written for the row's session, in the site's own format. Where that is
    /// recognised per value, like most values lately seen; before one was, a pickle that is not compressed, which every
    /// configuration of the built-in backend and every one of django-redis with pickle reads.
    ///
    /// # Errors
    /// The same as for [`RowCodec::payload`], and [`RowError::Unwritable`].
    pub fn value(&self, session_data: &str) -> Result<Vec<u8>, RowError> {
        let payload = self.payload(session_data)?;
        let form = self.form();
        if self.format.serializer == Serializer::Signed {
            return Ok(form.pack(session_data.as_bytes().to_vec()));
        }
        let dict = match self.serializer {
            SessionSerializer::Pickle if form.serialized == Serialized::Pickle => return Ok(form.pack(payload)),
            SessionSerializer::Pickle => pickle::parse(payload).map_err(Undecodable::from)?,
            SessionSerializer::Json => read(&payload)?,
        };
        Ok(form.encode(&dict)?)
    }

    /// How this value was written; `None` where it is in no format that the site reads.
    pub fn form_of(&self, value: &[u8]) -> Option<Form> {
        self.format.decode(value).ok().map(|(_, form)| form)
    }

    /// How values are written where a row is put back.
    pub fn form(&self) -> Form {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).usual();
        let usual = seen.unwrap_or(Form {
            serialized: Serialized::Pickle,
            compressed: None,
        });
        Form {
            serialized: match self.format.serializer {
                Serializer::Auto => usual.serialized,
                Serializer::Pickle => Serialized::Pickle,
                Serializer::Json | Serializer::Signed => Serialized::Json,
                Serializer::Msgpack => Serialized::Msgpack,
            },
            compressed: match self.format.compression {
                Compression::Auto => usual.compressed,
                Compression::None => None,
                Compression::With(compressor) => Some(compressor),
            },
        }
    }

    /// Whether the row holds the session that `value` holds.
    pub fn compare(&self, value: &[u8], session_data: &str) -> Comparison {
        let expected = match self.payload_of(value) {
            Ok(payload) => payload,
            Err(error) => return Comparison::Unstorable(error),
        };
        match self.signer.open(session_data).map_err(RowError::from) {
            // Rows that Django or we have written from this value are equal as text, and need no parsing.
            Ok(payload) if payload == expected => Comparison::Same,
            Ok(payload) => self.compare_payloads(&expected, payload),
            Err(error) => Comparison::Unreadable(error),
        }
    }

    fn compare_payloads(&self, expected: &[u8], payload: Vec<u8>) -> Comparison {
        let same = match self.serializer {
            SessionSerializer::Json => read(&payload).and_then(|row| Ok(json::same(&row, &read(expected)?))),
            SessionSerializer::Pickle => {
                if let Err(error) = check_pickle(&payload) {
                    return Comparison::Unreadable(error);
                }
                // Two picklers spell the same session in two ways; only what JSON can carry is comparable then.
                let json =
                    |pickle: Vec<u8>| Ok::<_, Unstorable>(pickle::parse(pickle).map_err(Undecodable::from)?.to_json()?);
                match (json(payload), json(expected.to_vec())) {
                    (Ok(row), Ok(expected)) => read(&row).and_then(|row| Ok(json::same(&row, &read(&expected)?))),
                    (Err(_), Err(error)) => return Comparison::Unstorable(error),
                    _ => Ok(false),
                }
            }
        };
        match same {
            Ok(true) => Comparison::Same,
            Ok(false) => Comparison::Different,
            Err(error) => Comparison::Unreadable(error),
        }
    }

    /// What a row of this value carries.
    fn payload_of(&self, value: &[u8]) -> Result<Vec<u8>, Unstorable> {
        if self.format.serializer == Serializer::Signed {
            return Ok(self.signed_payload(value)?);
        }
        let (payload, form) = match self.serializer {
            SessionSerializer::Json => {
                let (dict, form) = self.format.decode(value)?;
                (dict.to_json(), form)
            }
            SessionSerializer::Pickle => {
                let (pickle, form) = self.format.read(value, pickled)?;
                (Ok(pickle), form)
            }
        };
        self.learn(form);
        Ok(payload?)
    }

    fn signed_payload(&self, value: &[u8]) -> Result<Vec<u8>, Undecodable> {
        let (bytes, compressed) = self.format.compression.decompress(value)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| Undecodable::Format)?;
        let payload = self.signer.open(text).map_err(|_| Undecodable::Signature)?;
        let payload = match self.serializer {
            SessionSerializer::Json => json::read(payload.clone(), Charset::Latin1).map(|_| payload)?,
            SessionSerializer::Pickle => pickled(Serialized::Pickle, payload)?,
        };
        self.learn(Form {
            serialized: Serialized::Json,
            compressed,
        });
        Ok(payload)
    }

    fn learn(&self, form: Form) {
        if self.format.serializer == Serializer::Auto || self.format.compression == Compression::Auto {
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).note(form);
        }
    }
}

fn read(payload: &[u8]) -> Result<Dict, RowError> {
    if payload.first() == Some(&0x80) {
        return Err(RowError::Pickle);
    }
    Ok(json::read(payload.to_vec(), Charset::Latin1)?)
}

/// A session as the pickle that a row of `PickleSerializer` carries: the same where it is one already, with whatever objects
/// are in it.
fn pickled(serialized: Serialized, bytes: Vec<u8>) -> Result<Vec<u8>, Undecodable> {
    if serialized == Serialized::Pickle {
        return match pickle::parse(bytes.clone()) {
            Ok(_) | Err(PickleError::Opaque { .. }) => Ok(bytes),
            Err(error) => Err(error.into()),
        };
    }
    // Neither JSON nor msgpack holds what this has no form for.
    pickle::write(&serialized.parse(bytes)?).ok_or(Undecodable::Format)
}

/// Whether it is a dictionary's pickle, as far as one can tell without knowing the site's classes.
fn check_pickle(payload: &[u8]) -> Result<(), RowError> {
    if payload.first() != Some(&0x80) {
        return Err(RowError::NotPickle);
    }
    Ok(pickled(Serialized::Pickle, payload.to_vec()).map(drop)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::compress::Compressor;
    use crate::session::signing::DEFAULT_SALT;

    /// `{"a": 1, "b": 2}`
    const VALUE: &[u8] = b"\x80\x04}\x94(\x8c\x01a\x94K\x01\x8c\x01b\x94K\x02u.";

    fn codec() -> RowCodec {
        RowCodec::new(b"secret", &[b"older".to_vec()], DEFAULT_SALT)
    }

    fn row(payload: &str) -> String {
        Signer::new(b"older", &[], DEFAULT_SALT).sign(payload.as_bytes(), 7)
    }

    #[test]
    fn what_is_encoded_compares_as_the_same() {
        let row = codec().encode(VALUE, 1_768_478_400).unwrap();
        assert_eq!(codec().payload(&row).unwrap(), br#"{"a":1,"b":2}"#);
        assert_eq!(codec().compare(VALUE, &row), Comparison::Same);
    }

    #[test]
    fn rows_are_compared_by_meaning() {
        assert_eq!(codec().compare(VALUE, &row(r#"{ "b": 2, "a": 1 }"#)), Comparison::Same);
        assert_eq!(
            codec().compare(VALUE, &row(r#"{"a":1,"b":2.0}"#)),
            Comparison::Different
        );
        assert_eq!(codec().compare(VALUE, &row(r#"{"a":1}"#)), Comparison::Different);
    }

    #[test]
    fn a_wrong_key_or_salt_is_told_from_a_broken_row() {
        let good = row(r#"{"a":1,"b":2}"#);
        for wrong in [
            RowCodec::new(b"other", &[], DEFAULT_SALT),
            RowCodec::new(b"older", &[], "django.contrib.sessions.X"),
        ] {
            assert_eq!(
                wrong.compare(VALUE, &good),
                Comparison::Unreadable(RowError::BadSignature)
            );
        }
        assert_eq!(
            codec().payload(&row("[1]")),
            Err(RowError::Json(JsonError::NotDict { type_name: "list" }))
        );
        assert_eq!(
            codec().payload(&row("{")),
            Err(RowError::Json(JsonError::Syntax { at: 1 }))
        );
        assert_eq!(codec().payload("x"), Err(RowError::Envelope(SigningError::Unsigned)));
    }

    #[test]
    fn what_is_put_back_is_like_most_of_what_was_seen() {
        let json = |codec: &RowCodec| codec.form().serialized == Serialized::Json;
        let site = codec();
        assert!(!json(&site), "nothing seen yet");
        for _ in 0..10 {
            site.encode(br#"{"a": 1}"#, 7).unwrap();
        }
        site.encode(VALUE, 7).unwrap();
        assert!(json(&site));
        // The site changes: old values are read for a while.
        for _ in 0..3000 {
            site.encode(VALUE, 7).unwrap();
        }
        assert!(!json(&site) && !json(&site.clone()));
    }

    #[test]
    fn signed_values_are_read_and_written_with_the_sites_key() {
        let format = |compression| ValueFormat {
            serializer: Serializer::Signed,
            compression,
        };
        let site = codec().with_format(format(Compression::With(Compressor::Zlib)));
        let row = row(r#"{"a":1,"b":2}"#);
        let value = site.value(&row).unwrap();
        assert_eq!(site.compare(&value, &row), Comparison::Same);
        assert_eq!(site.payload(&site.encode(&value, 7).unwrap()), site.payload(&row));
        let other = RowCodec::new(b"other", &[], DEFAULT_SALT).with_format(format(Compression::Auto));
        assert_eq!(
            other.encode(&value, 7),
            Err(Unstorable::Undecodable(Undecodable::Signature))
        );
        assert!(codec().encode(&value, 7).is_err(), "it is nothing that is recognised");
    }

    #[test]
    fn a_pickled_row_carries_what_json_cannot_and_nothing_broken() {
        let site = codec().with_serializer(SessionSerializer::Pickle);
        // {"a": shop.models.Basket()}
        let opaque = &b"\x80\x04}\x8c\x01a\x8c\x0bshop.models\x8c\x06Basket\x93)\x81s."[..];
        let row = site.encode(opaque, 7).unwrap();
        assert_eq!(site.value(&row).as_deref(), Ok(opaque));
        assert_eq!(site.compare(opaque, &row), Comparison::Same);
        assert!(matches!(site.compare(VALUE, &row), Comparison::Different));
        // The same session from another pickler: protocol 2.
        let again = site
            .encode(b"\x80\x02}(X\x01\x00\x00\x00aK\x01X\x01\x00\x00\x00bK\x02u.", 7)
            .unwrap();
        assert_eq!(site.compare(VALUE, &again), Comparison::Same);
        assert!(site.encode(&opaque[..10], 7).is_err());
        assert_eq!(site.payload(&super::tests::row("{}")), Err(RowError::NotPickle));
        assert_eq!(codec().payload(&row), Err(RowError::Pickle));
    }

    #[test]
    fn unstorable_values_name_the_type() {
        // {"a": b"x"} and {"a": shop.models.Basket()}
        for (value, name) in [
            (&b"\x80\x04}\x8c\x01aC\x01xs."[..], "bytes"),
            (
                b"\x80\x04}\x8c\x01a\x8c\x0bshop.models\x8c\x06Basket\x93)\x81s.",
                "shop.models.Basket",
            ),
        ] {
            let error = codec().encode(value, 0).unwrap_err();
            assert_eq!(error.type_name(), Some(name), "{error}");
            assert!(error.to_string().contains(name));
        }
    }
}
