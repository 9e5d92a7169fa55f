//! A Redis value to the dictionary it holds: what compressed it, what serialized it.
//!
//! Every value is looked at on its own, since a site's settings change over its life and old values stay. A format that
//! is recognised but not read is an error with the format's name; adding one is a line in `COMPRESSORS` and a function.

use flate2::{Decompress, FlushDecompress, Status};

use super::json::{self, Charset, JsonError};
use super::object::{Dict, MAX_VALUE_BYTES};
use super::pickle::{self, PickleError};

/// What the site's cache backend serializes values with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Serializer {
    /// Recognised per value: a JSON object starts with a brace, which no pickle of a dictionary does.
    #[default]
    Auto,
    /// Python's pickle, the default of every backend. Django could not read anything else there, so nothing else is
    /// read.
    Pickle,
    /// JSON in UTF-8.
    Json,
}

/// Why a Redis value was not read as a session. Names types, formats and limits, never what the value holds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Undecodable {
    #[error("the value is empty")]
    Empty,
    /// Every backend turns such a value into a number before it looks for anything else.
    #[error("the value is a plain number")]
    Number,
    #[error("the value is compressed with {format}, which is not read")]
    Compressor { format: &'static str },
    #[error("the value's {format} stream is broken")]
    Compressed { format: &'static str },
    #[error("the value is over the limit of {limit} bytes")]
    TooLarge { limit: usize },
    #[error("the value is in no known format")]
    Format,
    #[error("the value is json, which the site's serializer would not read")]
    UnexpectedJson,
    #[error("the value is a pickle, which the site's serializer would not read")]
    UnexpectedPickle,
    /// A class of the application, or an attack: not plain data either way. The name is the full Python name.
    #[error("the value holds an object of type {type_name}")]
    Opaque { type_name: String },
    #[error("the value is of type {type_name}, not dict")]
    NotDict { type_name: &'static str },
    #[error(transparent)]
    Pickle(PickleError),
    #[error(transparent)]
    Json(JsonError),
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

/// The dictionary in a Redis value, whichever serializer wrote it.
///
/// # Errors
/// [`Undecodable`] says why there is none.
pub fn decode(value: &[u8]) -> Result<Dict, Undecodable> {
    decode_as(value, Serializer::Auto)
}

/// The dictionary in a Redis value of a site whose serializer is known.
///
/// # Errors
/// [`Undecodable`] says why there is none.
pub fn decode_as(value: &[u8], serializer: Serializer) -> Result<Dict, Undecodable> {
    if value.len() > MAX_VALUE_BYTES {
        return Err(Undecodable::TooLarge { limit: MAX_VALUE_BYTES });
    }
    match COMPRESSORS.iter().find(|compressor| (compressor.recognise)(value)) {
        // What is inside is not looked at for another compressor: no backend compresses twice.
        Some(compressor) => match compressor.decompress {
            Some(decompress) => deserialize(decompress(value)?, serializer),
            None => Err(Undecodable::Compressor {
                format: compressor.format,
            }),
        },
        None => deserialize(value.to_vec(), serializer),
    }
}

fn deserialize(value: Vec<u8>, serializer: Serializer) -> Result<Dict, Undecodable> {
    let json = value.trim_ascii_start().first() == Some(&b'{');
    match value.first() {
        None => Err(Undecodable::Empty),
        // PROTO; EMPTY_DICT and MARK DICT, with which protocols 1 and 0 begin.
        Some(0x80 | b'}' | b'(') if serializer == Serializer::Json => Err(Undecodable::UnexpectedPickle),
        Some(0x80 | b'}' | b'(') => Ok(pickle::parse(value)?),
        _ if json && serializer == Serializer::Pickle => Err(Undecodable::UnexpectedJson),
        _ if json => Ok(json::read(value, Charset::Utf8)?),
        _ if is_python_int(&value) => Err(Undecodable::Number),
        _ => Err(Undecodable::Format),
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

/// The whole content of one stream, at most [`MAX_VALUE_BYTES`].
type Decompressor = fn(&[u8]) -> Result<Vec<u8>, Undecodable>;

/// A compressor that a backend may be configured with.
struct Compressor {
    format: &'static str,
    recognise: fn(&[u8]) -> bool,
    /// `None` where we know the format and do not read it.
    decompress: Option<Decompressor>,
}

/// Brotli is missing: its streams begin with no magic number, so such a value is in no known format.
const COMPRESSORS: [Compressor; 6] = [
    Compressor {
        format: "zlib",
        recognise: is_zlib,
        decompress: Some(decompress_zlib),
    },
    Compressor {
        format: "gzip",
        recognise: |v| v.starts_with(b"\x1f\x8b\x08"),
        decompress: Some(decompress_gzip),
    },
    Compressor {
        format: "lzma",
        recognise: |v| v.starts_with(b"\xfd7zX"),
        decompress: None,
    },
    Compressor {
        format: "bz2",
        recognise: |v| v.starts_with(b"BZh"),
        decompress: None,
    },
    Compressor {
        format: "lz4",
        recognise: |v| v.starts_with(b"\x04\x22\x4d\x18"),
        decompress: None,
    },
    Compressor {
        format: "zstd",
        recognise: |v| v.starts_with(b"\x28\xb5\x2f\xfd"),
        decompress: None,
    },
];

/// The two bytes of a zlib header: deflate with a 32 KiB window, and a checksum of the header itself.
fn is_zlib(value: &[u8]) -> bool {
    matches!(value, [0x78, flags, ..] if (0x7800 | u16::from(*flags)).is_multiple_of(31))
}

fn decompress_zlib(value: &[u8]) -> Result<Vec<u8>, Undecodable> {
    inflate(Decompress::new(true), value).map_err(|error| match error {
        InflateError::Broken => Undecodable::Compressed { format: "zlib" },
        InflateError::TooLarge => Undecodable::TooLarge { limit: MAX_VALUE_BYTES },
    })
}

/// One gzip member. Python writes just one, with no optional header fields but perhaps a name.
fn decompress_gzip(value: &[u8]) -> Result<Vec<u8>, Undecodable> {
    use std::io::Read as _;

    let broken = Undecodable::Compressed { format: "gzip" };
    let mut decoder = flate2::bufread::GzDecoder::new(value);
    let mut out = Vec::new();
    // One byte past the limit tells "too large" from "just fits".
    let limit = MAX_VALUE_BYTES as u64 + 1;
    if (&mut decoder).take(limit).read_to_end(&mut out).is_err() {
        return Err(broken);
    }
    if out.len() > MAX_VALUE_BYTES {
        return Err(Undecodable::TooLarge { limit: MAX_VALUE_BYTES });
    }
    if decoder.get_ref().is_empty() {
        Ok(out)
    } else {
        Err(broken)
    }
}

/// Why a zlib stream was not inflated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InflateError {
    /// Cut short, damaged, or followed by more bytes.
    Broken,
    /// More than [`MAX_VALUE_BYTES`] come out.
    TooLarge,
}

/// Inflates one whole stream, with no byte before or after it.
pub(super) fn inflate(mut stream: Decompress, input: &[u8]) -> Result<Vec<u8>, InflateError> {
    // Sessions compress to about half; the buffer grows when that is wrong.
    let mut out = Vec::with_capacity((input.len() * 4).clamp(256, MAX_VALUE_BYTES));
    loop {
        let consumed = stream.total_in() as usize;
        let rest = input.get(consumed..).unwrap_or_default();
        let before = (consumed, out.len());
        let status = stream.decompress_vec(rest, &mut out, FlushDecompress::None);
        let status = status.map_err(|_| InflateError::Broken)?;
        let consumed = stream.total_in() as usize;
        if out.len() > MAX_VALUE_BYTES {
            return Err(InflateError::TooLarge);
        }
        match status {
            Status::StreamEnd if consumed == input.len() => return Ok(out),
            Status::StreamEnd => return Err(InflateError::Broken),
            _ if out.len() == out.capacity() => out.reserve(out.len().min(MAX_VALUE_BYTES + 1 - out.len()).max(1)),
            // There is room, and nothing more comes: the stream is cut short.
            _ if (consumed, out.len()) == before => return Err(InflateError::Broken),
            _ => {}
        }
    }
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
        assert!(decode_as(pickle, Serializer::Pickle).is_ok() && decode_as(json, Serializer::Json).is_ok());
        assert_eq!(
            decode_as(pickle, Serializer::Json).unwrap_err(),
            Undecodable::UnexpectedPickle
        );
        assert_eq!(
            decode_as(json, Serializer::Pickle).unwrap_err(),
            Undecodable::UnexpectedJson
        );
        assert_eq!(decode(b"[]").unwrap_err(), Undecodable::Format);
    }

    #[test]
    fn a_stream_that_just_fits_is_read_and_one_byte_more_is_not() {
        use std::io::Write as _;
        for (len, fits) in [(MAX_VALUE_BYTES, true), (MAX_VALUE_BYTES + 1, false)] {
            let bytes = vec![b'.'; len];
            let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
            zlib.write_all(&bytes).unwrap();
            assert_eq!(
                decompress_zlib(&zlib.finish().unwrap()).is_ok_and(|out| out == bytes),
                fits
            );
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(&bytes).unwrap();
            assert_eq!(
                decompress_gzip(&gzip.finish().unwrap()).is_ok_and(|out| out == bytes),
                fits
            );
        }
    }
}
