//! A Redis value to the dictionary it holds, and back: what compressed it, what serialized it.
//!
//! Every value is looked at on its own, since a site's settings change over its life and old values stay.

use super::compress::{Compressor, DecompressError};
use super::json::{self, Charset, JsonError, NotJson};
use super::msgpack::{self, MsgpackError};
use super::object::{Dict, MAX_VALUE_BYTES};
use super::pickle::{self, PickleError};

/// What the site's cache backend serializes values with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Serializer {
    /// Recognised per value: the three formats begin differently.
    #[default]
    Auto,
    /// Python's pickle, the default of every backend. Django could not read anything else there, so nothing else is
    /// read; the same holds for the others.
    Pickle,
    /// JSON in UTF-8.
    Json,
    Msgpack,
    /// Signed like a row. `row::RowCodec`, which has the key, reads and writes it.
    Signed,
}

/// What the site's cache backend compresses values with. Whatever it is, values that are not compressed are read: most
/// backends leave small ones alone, and all but one read them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Recognised per value.
    #[default]
    Auto,
    None,
    With(Compressor),
}

/// How the site's cache backend writes values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ValueFormat {
    pub serializer: Serializer,
    pub compression: Compression,
}

/// How one value was written, as it was recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Form {
    pub serialized: Serialized,
    pub compressed: Option<Compressor>,
}

/// What a value was serialized with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Serialized {
    Pickle,
    Json,
    Msgpack,
}

impl Serialized {
    /// The name in the configuration and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Serialized::Pickle => "pickle",
            Serialized::Json => "json",
            Serialized::Msgpack => "msgpack",
        }
    }

    /// The dictionary in a value that is not compressed.
    pub(super) fn parse(self, bytes: Vec<u8>) -> Result<Dict, Undecodable> {
        Ok(match self {
            Serialized::Pickle => pickle::parse(bytes)?,
            Serialized::Json => json::read(bytes, Charset::Utf8)?,
            Serialized::Msgpack => msgpack::read(bytes)?,
        })
    }

    /// By the first bytes. A JSON object starts with a brace, which no pickle of a dictionary does.
    fn recognise(value: &[u8]) -> Option<Serialized> {
        match value {
            _ if msgpack::is_dict(value) => Some(Serialized::Msgpack),
            // PROTO; EMPTY_DICT and MARK DICT, with which protocols 1 and 0 begin.
            [0x80 | b'}' | b'(', ..] => Some(Serialized::Pickle),
            _ if value.trim_ascii_start().first() == Some(&b'{') => Some(Serialized::Json),
            _ => None,
        }
    }
}

/// Why a Redis value was not read as a session. Names types, formats and limits, never what the value holds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Undecodable {
    #[error("the value is empty")]
    Empty,
    /// Every backend turns such a value into a number before it looks for anything else.
    #[error("the value is a plain number")]
    Number,
    #[error("the value is compressed with {format}, which the site's backend would not read")]
    UnexpectedCompressor { format: &'static str },
    #[error("the value's {format} stream is broken")]
    Compressed { format: &'static str },
    #[error("the value is over the limit of {limit} bytes")]
    TooLarge { limit: usize },
    #[error("the value is in no known format")]
    Format,
    #[error("the value is {format}, which the site's serializer would not read")]
    Unexpected { format: &'static str },
    #[error("the value is not signed with the site's secret key and salt")]
    Signature,
    /// A class of the application, or an attack: not plain data either way. The name is the full Python name.
    #[error("the value holds an object of type {type_name}")]
    Opaque { type_name: String },
    #[error("the value is of type {type_name}, not dict")]
    NotDict { type_name: &'static str },
    #[error(transparent)]
    Pickle(PickleError),
    #[error(transparent)]
    Json(JsonError),
    #[error(transparent)]
    Msgpack(MsgpackError),
}

impl From<PickleError> for Undecodable {
    fn from(error: PickleError) -> Undecodable {
        match error {
            PickleError::Opaque { type_name } => Undecodable::Opaque { type_name },
            PickleError::NotDict { type_name } => Undecodable::NotDict { type_name },
            error => Undecodable::Pickle(error),
        }
    }
}

impl From<JsonError> for Undecodable {
    fn from(error: JsonError) -> Undecodable {
        match error {
            JsonError::NotDict { type_name } => Undecodable::NotDict { type_name },
            error => Undecodable::Json(error),
        }
    }
}

impl From<MsgpackError> for Undecodable {
    fn from(error: MsgpackError) -> Undecodable {
        match error {
            MsgpackError::NotDict { type_name } => Undecodable::NotDict { type_name },
            error => Undecodable::Msgpack(error),
        }
    }
}

/// Why a session cannot be written in a format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unwritable {
    #[error("pickle has no form here for what it holds")]
    Pickle,
    #[error(transparent)]
    Json(#[from] NotJson),
    #[error(transparent)]
    Msgpack(#[from] MsgpackError),
}

/// The dictionary in a Redis value, whatever wrote it.
///
/// # Errors
/// [`Undecodable`] says why there is none.
pub fn decode(value: &[u8]) -> Result<Dict, Undecodable> {
    ValueFormat::default().decode(value).map(|(dict, _)| dict)
}

impl ValueFormat {
    /// The dictionary in a Redis value, and how it was written.
    ///
    /// # Errors
    /// [`Undecodable`] says why there is none.
    pub fn decode(self, value: &[u8]) -> Result<(Dict, Form), Undecodable> {
        self.read(value, Serialized::parse)
    }

    /// What `parse` makes of the serialized session, no longer compressed; and how it was written.
    ///
    /// # Errors
    /// [`Undecodable`] where it cannot be one, where Django would not read it, or from `parse`.
    pub(super) fn read<T>(
        self,
        value: &[u8],
        parse: impl Fn(Serialized, Vec<u8>) -> Result<T, Undecodable>,
    ) -> Result<(T, Form), Undecodable> {
        let read = |bytes: Vec<u8>, compressed| {
            let serialized = self.recognise(&bytes)?;
            Ok((parse(serialized, bytes)?, Form { serialized, compressed }))
        };
        let (bytes, compressed) = self.compression.decompress(value)?;
        match read(bytes, compressed) {
            // Brotli's streams begin with no magic number, and may begin like a dictionary in msgpack.
            Err(error @ (Undecodable::Format | Undecodable::Unexpected { .. } | Undecodable::Msgpack(_)))
                if compressed.is_none() && self.compression == Compression::Auto =>
            {
                let plain = Compressor::Brotli.decompress(value).map_err(|_| error.clone())?;
                read(plain, Some(Compressor::Brotli)).map_err(|_| error)
            }
            outcome => outcome,
        }
    }

    fn recognise(self, bytes: &[u8]) -> Result<Serialized, Undecodable> {
        let expected = match self.serializer {
            Serializer::Auto => None,
            Serializer::Pickle => Some(Serialized::Pickle),
            Serializer::Json | Serializer::Signed => Some(Serialized::Json),
            Serializer::Msgpack => Some(Serialized::Msgpack),
        };
        match Serialized::recognise(bytes) {
            Some(found) if expected.is_none_or(|expected| expected == found) => Ok(found),
            Some(found) => Err(Undecodable::Unexpected { format: found.name() }),
            None if bytes.is_empty() => Err(Undecodable::Empty),
            None if is_python_int(bytes) => Err(Undecodable::Number),
            None => Err(Undecodable::Format),
        }
    }
}

impl Compression {
    /// What was compressed, with what; as it is where it was not. What is inside is not looked at for another
    /// compressor: no backend compresses twice.
    pub(super) fn decompress(self, value: &[u8]) -> Result<(Vec<u8>, Option<Compressor>), Undecodable> {
        if value.len() > MAX_VALUE_BYTES {
            return Err(Undecodable::TooLarge { limit: MAX_VALUE_BYTES });
        }
        match (self, Compressor::recognise(value)) {
            (Compression::With(Compressor::Brotli), None) => match Compressor::Brotli.decompress(value) {
                Ok(bytes) => Ok((bytes, Some(Compressor::Brotli))),
                Err(DecompressError::Broken) => Ok((value.to_vec(), None)),
                Err(DecompressError::TooLarge) => Err(Undecodable::TooLarge { limit: MAX_VALUE_BYTES }),
            },
            (_, None) => Ok((value.to_vec(), None)),
            (Compression::With(expected), Some(found)) if expected != found => {
                Err(Undecodable::UnexpectedCompressor { format: found.name() })
            }
            (Compression::None, Some(found)) => Err(Undecodable::UnexpectedCompressor { format: found.name() }),
            (_, Some(found)) => match found.decompress(value) {
                Ok(bytes) => Ok((bytes, Some(found))),
                Err(DecompressError::Broken) => Err(Undecodable::Compressed { format: found.name() }),
                Err(DecompressError::TooLarge) => Err(Undecodable::TooLarge { limit: MAX_VALUE_BYTES }),
            },
        }
    }
}

impl Form {
    /// `dict` as a backend of this form would have written it.
    ///
    /// # Errors
    /// [`Unwritable`] where the serializer has no form for what the session holds.
    pub fn encode(self, dict: &Dict) -> Result<Vec<u8>, Unwritable> {
        let bytes = match self.serialized {
            Serialized::Pickle => pickle::write(dict).ok_or(Unwritable::Pickle)?,
            Serialized::Json => dict.to_json()?,
            Serialized::Msgpack => msgpack::write(dict)?,
        };
        Ok(self.pack(bytes))
    }

    /// What was serialized already, compressed. A backend that compresses reads whatever is compressed, small values too.
    pub fn pack(self, bytes: Vec<u8>) -> Vec<u8> {
        match self.compressed {
            Some(compressor) => compressor.compress(&bytes),
            None => bytes,
        }
    }
}

/// Whether Python's `int()` takes these bytes: white space around, a sign, digits with single underscores between them.
fn is_python_int(value: &[u8]) -> bool {
    let space = |b: &u8| b.is_ascii_whitespace() || *b == 0x0b;
    let Some(start) = value.iter().position(|b| !space(b)) else {
        return false;
    };
    let end = value.iter().rposition(|b| !space(b)).map_or(start, |last| last + 1);
    let digits = &value[start..end];
    let digits = digits
        .strip_prefix(b"-")
        .or_else(|| digits.strip_prefix(b"+"))
        .unwrap_or(digits);
    digits
        .split(|b| *b == b'_')
        .all(|group| !group.is_empty() && group.iter().all(u8::is_ascii_digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_recognised_as_python_does() {
        for number in ["123", "-5", "+7", " 12 \n", "1_000", "0007", "\u{b}1\u{c}"] {
            assert_eq!(
                decode(number.as_bytes()).unwrap_err(),
                Undecodable::Number,
                "{number:?}"
            );
        }
        for other in ["1__0", "_1", "1_", "-", "", " ", "1.5e3", "1 2", "--1"] {
            assert_ne!(decode(other.as_bytes()).unwrap_err(), Undecodable::Number, "{other:?}");
        }
    }

    #[test]
    fn a_value_is_read_only_as_what_the_site_would_read() {
        let (pickle, json) = (&b"\x80\x05}\x94."[..], &b" {}"[..]);
        assert!(decode(pickle).is_ok() && decode(json).is_ok());
        let msgpack = &b"\x81\xa1a\x01"[..];
        for (serializer, own) in [
            (Serializer::Pickle, pickle),
            (Serializer::Json, json),
            (Serializer::Msgpack, msgpack),
        ] {
            let format = ValueFormat {
                serializer,
                ..ValueFormat::default()
            };
            for value in [pickle, json, msgpack] {
                match format.decode(value) {
                    Ok(_) => assert_eq!(value, own, "{serializer:?}"),
                    Err(error) => assert!(
                        matches!(error, Undecodable::Unexpected { .. }),
                        "{serializer:?} {error}"
                    ),
                }
            }
        }
        assert_eq!(decode(b"[]").unwrap_err(), Undecodable::Format);
    }

    #[test]
    fn a_value_is_decompressed_only_as_the_site_would() {
        let plain = &b"\x80\x04}\x94\x8c\x01a\x94K\x01s."[..];
        let compressors = [Compressor::Zlib, Compressor::Brotli, Compressor::Zstd];
        for with in compressors {
            let packed = with.compress(plain);
            let form = Form {
                serialized: Serialized::Pickle,
                compressed: Some(with),
            };
            assert_eq!(
                ValueFormat::default().decode(&packed).map(|(_, form)| form).ok(),
                Some(form)
            );
            for compression in [
                Compression::None,
                Compression::With(compressors[0]),
                Compression::With(Compressor::Brotli),
            ] {
                let format = ValueFormat {
                    compression,
                    ..ValueFormat::default()
                };
                assert_eq!(
                    format.decode(&packed).is_ok(),
                    compression == Compression::With(with),
                    "{with:?} {compression:?}"
                );
                assert!(format.decode(plain).is_ok(), "what is not compressed is always read");
            }
        }
    }
}
