//! What a `django_session` row holds for a session, and whether it holds the same session as a Redis value.

use super::json::{self, Charset, JsonError, NotJson};
use super::object::Dict;
use super::pickle;
use super::signing::{Signer, SigningError};
use super::value::{self, Serializer, Undecodable};

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
    #[error("the row's payload is a pickle (SESSION_SERIALIZER = PickleSerializer), which is not read")]
    Pickle,
    #[error("the row's payload: {0}")]
    Json(#[from] JsonError),
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

/// Turns Redis values into rows and compares the two. Keys are derived once, so keep one per site.
#[derive(Clone, Debug)]
pub struct RowCodec {
    signer: Signer,
    serializer: Serializer,
}

impl RowCodec {
    /// `secret_key` and `fallbacks` are the site's `SECRET_KEY` and `SECRET_KEY_FALLBACKS` (text as UTF-8); `salt` is
    /// [`super::signing::DEFAULT_SALT`] unless the site has a session store class of another name.
    pub fn new(secret_key: &[u8], fallbacks: &[Vec<u8>], salt: &str) -> RowCodec {
        RowCodec {
            signer: Signer::new(secret_key, fallbacks, salt),
            serializer: Serializer::Auto,
        }
    }

    /// The same with the Redis values' serializer fixed, instead of recognised per value.
    pub fn with_serializer(self, serializer: Serializer) -> RowCodec {
        RowCodec { serializer, ..self }
    }

    /// The `session_data` that Django would write for a session whose Redis value is `value`.
    ///
    /// `now_seconds`, in seconds since the Unix epoch, becomes the row's timestamp.
    ///
    /// # Errors
    /// [`Unstorable`] where the value is not readable, or JSON cannot carry it.
    pub fn encode(&self, value: &[u8], now_seconds: i64) -> Result<String, Unstorable> {
        Ok(self.signer.sign(&self.json(value)?, now_seconds))
    }

    /// The JSON payload of a row, verified: its signature is good, and Django would read an object from it.
    ///
    /// # Errors
    /// [`RowError`], with [`RowError::BadSignature`] apart from the rest.
    pub fn payload(&self, session_data: &str) -> Result<Vec<u8>, RowError> {
        let payload = self.signer.open(session_data)?;
        read(&payload)?;
        Ok(payload)
    }

    /// The Redis value that Django would have written for the row's session: a pickle, not compressed, which every
    /// configuration of the built-in backend and every one of django-redis with pickle reads.
    ///
    /// # Errors
    /// The same as for [`RowCodec::payload`].
    pub fn value(&self, session_data: &str) -> Result<Vec<u8>, RowError> {
        let payload = self.signer.open(session_data)?;
        let dict = read(&payload)?;
        pickle::write(&dict).ok_or(RowError::Pickle)
    }

    /// Whether the row holds the session that `value` holds.
    pub fn compare(&self, value: &[u8], session_data: &str) -> Comparison {
        let expected = match self.json(value) {
            Ok(json) => json,
            Err(error) => return Comparison::Unstorable(error),
        };
        let compared = self
            .signer
            .open(session_data)
            .map_err(RowError::from)
            .and_then(|payload| {
                // Rows that Django or we have written from this value are equal as text, and need no parsing.
                Ok(payload == expected || json::same(&read(&payload)?, &read(&expected)?))
            });
        match compared {
            Ok(true) => Comparison::Same,
            Ok(false) => Comparison::Different,
            Err(error) => Comparison::Unreadable(error),
        }
    }

    fn json(&self, value: &[u8]) -> Result<Vec<u8>, Unstorable> {
        Ok(value::decode_as(value, self.serializer)?.to_json()?)
    }
}

fn read(payload: &[u8]) -> Result<Dict, RowError> {
    if payload.first() == Some(&0x80) {
        return Err(RowError::Pickle);
    }
    Ok(json::read(payload.to_vec(), Charset::Latin1)?)
}

#[cfg(test)]
mod tests {
    use super::*;
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
