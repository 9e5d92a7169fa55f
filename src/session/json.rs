//! JSON exactly as Python's `json.dumps(…, separators=(",", ":"))` writes it, and read as `json.loads` reads it.
//!
//! `serde_json` reads none of `NaN`, `Infinity`, lone surrogates and Latin-1, all of which Django's rows may hold, and
//! prints floats differently. The text written is pure ASCII: Django reads a row's payload as Latin-1.
//!
//! Neither direction recurses, and the size written is bounded: shared references let a pickle of four hundred bytes
//! stand for 2^60 elements.

mod number;
mod read;
mod same;

pub use read::{Charset, JsonError, read};
pub use same::same;

use super::object::{Dict, Heap, Id, MAX_DEPTH, MAX_INT_DIGITS, MAX_OBJECTS, Object, Zone};
use super::pickle::{is_printable_int, isoformat};
use rustc_hash::FxHashSet;

/// Most bytes of JSON that a row is made of, before compression.
pub const MAX_JSON_BYTES: usize = super::object::MAX_VALUE_BYTES;

/// The one key under which a datetime is written: Django up to 4.0 keeps a datetime there, later versions keep its
/// `isoformat()` text, and either reads what stands for the other.
const EXPIRY_KEY: &[u8] = b"_session_expiry";

/// Why JSON cannot carry a session. Type names are Python's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotJson {
    #[error("json has no form for a value of type {type_name}")]
    Type { type_name: &'static str },
    #[error("json has no form for a dictionary key of type {type_name}")]
    Key { type_name: &'static str },
    #[error("two keys of one dictionary are equal in python and differ in json")]
    EqualKeys,
    #[error("an integer has more than {limit} digits")]
    IntTooLong { limit: usize },
    #[error("a container holds itself")]
    Cyclic,
    #[error("containers are nested more than {limit} deep")]
    TooDeep { limit: usize },
    #[error("the json is over the limit of {limit} {what}")]
    TooLarge { what: &'static str, limit: usize },
}

/// The JSON text of a session's dictionary.
pub(crate) fn write(dict: &Dict) -> Result<Vec<u8>, NotJson> {
    let heap = &dict.heap;
    let mut writer = Writer {
        heap,
        out: Vec::with_capacity(heap.text.len() + 16),
        path: Vec::new(),
        open: vec![0; heap.objects.len() / 64 + 1],
        written: 0,
    };
    writer.value(dict.root)?;
    writer.finish()?;
    Ok(writer.out)
}

/// A container that is being written: its id, and what is still to come.
enum Frame<'a> {
    Seq(Id, std::slice::Iter<'a, Id>),
    Dict(Id, std::slice::Iter<'a, (Id, Id)>),
}

struct Writer<'a> {
    heap: &'a Heap,
    out: Vec<u8>,
    path: Vec<Frame<'a>>,
    /// One bit per object: whether it is on the path, so that a cycle shows at its first closing.
    open: Vec<u64>,
    written: usize,
}

impl Writer<'_> {
    fn finish(&mut self) -> Result<(), NotJson> {
        while let Some(frame) = self.path.last_mut() {
            if self.out.len() > MAX_JSON_BYTES {
                return Err(NotJson::TooLarge {
                    what: "bytes",
                    limit: MAX_JSON_BYTES,
                });
            }
            match frame {
                Frame::Seq(id, items) => match items.next() {
                    Some(&item) => {
                        comma(&mut self.out, b'[');
                        self.value(item)?;
                    }
                    None => {
                        let id = *id;
                        self.close(id, b']');
                    }
                },
                Frame::Dict(id, pairs) => match pairs.next() {
                    Some(&(key, value)) => {
                        comma(&mut self.out, b'{');
                        self.key(key)?;
                        self.out.push(b':');
                        if !self.write_expiry(key, value) {
                            self.value(value)?;
                        }
                    }
                    None => {
                        let id = *id;
                        self.close(id, b'}');
                    }
                },
            }
        }
        if self.out.len() > MAX_JSON_BYTES {
            return Err(NotJson::TooLarge {
                what: "bytes",
                limit: MAX_JSON_BYTES,
            });
        }
        Ok(())
    }

    fn open(&mut self, id: Id, bracket: u8) -> Result<(), NotJson> {
        let (word, bit) = (id as usize / 64, 1 << (id % 64));
        if self.open[word] & bit != 0 {
            return Err(NotJson::Cyclic);
        }
        if self.path.len() >= MAX_DEPTH {
            return Err(NotJson::TooDeep { limit: MAX_DEPTH });
        }
        self.open[word] |= bit;
        self.out.push(bracket);
        Ok(())
    }

    fn close(&mut self, id: Id, bracket: u8) {
        self.open[id as usize / 64] &= !(1 << (id % 64));
        self.path.pop();
        self.out.push(bracket);
    }

    /// Writes a scalar, or opens a container that `finish` goes on with.
    fn value(&mut self, id: Id) -> Result<(), NotJson> {
        self.written += 1;
        if self.written > MAX_OBJECTS {
            // A row of more values would be refused when it is read back.
            return Err(NotJson::TooLarge {
                what: "values",
                limit: MAX_OBJECTS,
            });
        }
        let heap = self.heap;
        match heap.get(id) {
            Object::Str(span) => write_str(&mut self.out, heap.bytes(*span)),
            Object::Seq { items, .. } => {
                self.open(id, b'[')?;
                self.path.push(Frame::Seq(id, items.iter()));
            }
            Object::Dict(pairs) => {
                check_keys(heap, pairs)?;
                self.open(id, b'{')?;
                self.path.push(Frame::Dict(id, pairs.iter()));
            }
            other => {
                if !self.plain(other)? {
                    return Err(NotJson::Type {
                        type_name: other.type_name(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Writes what has the same text as a value and, in quotes, as a key; `false` where it is none of these.
    fn plain(&mut self, object: &Object) -> Result<bool, NotJson> {
        match object {
            Object::None => self.out.extend_from_slice(b"null"),
            Object::Bool(true) => self.out.extend_from_slice(b"true"),
            Object::Bool(false) => self.out.extend_from_slice(b"false"),
            Object::Int(small) => number::write_int(&mut self.out, *small),
            Object::BigInt(span) => {
                let too_long = NotJson::IntTooLong { limit: MAX_INT_DIGITS };
                if !is_printable_int(*span) {
                    return Err(too_long);
                }
                let text = num_bigint::BigInt::from_signed_bytes_le(self.heap.bytes(*span)).to_string();
                if text.trim_start_matches('-').len() > MAX_INT_DIGITS {
                    return Err(too_long);
                }
                self.out.extend_from_slice(text.as_bytes());
            }
            Object::Float(float) => number::write_float(&mut self.out, *float),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Python writes int, float, bool and None keys as their JSON text in quotes. Keys that collide by this are all
    /// written; Django, like every reader of JSON in Python, then takes the last one.
    fn key(&mut self, id: Id) -> Result<(), NotJson> {
        let heap = self.heap;
        match heap.get(id) {
            Object::Str(span) => write_str(&mut self.out, heap.bytes(*span)),
            other => {
                self.out.push(b'"');
                if !self.plain(other)? {
                    return Err(NotJson::Key {
                        type_name: other.type_name(),
                    });
                }
                self.out.push(b'"');
            }
        }
        Ok(())
    }

    /// Writes a datetime under the session's own expiry key; `false` where this pair is not that.
    fn write_expiry(&mut self, key: Id, value: Id) -> bool {
        if self.path.len() != 1 {
            return false;
        }
        let (Object::Str(key), Object::Datetime(state, zone)) = (self.heap.get(key), self.heap.get(value)) else {
            return false;
        };
        // A zone by name is left to fail: its offset depends on rules that the site's Python knows, not we.
        let text = match zone {
            Zone::Named => None,
            zone if self.heap.bytes(*key) == EXPIRY_KEY => isoformat(*state, *zone),
            _ => None,
        };
        let Some(text) = text else { return false };
        write_str(&mut self.out, text.as_bytes());
        true
    }
}

/// The comma before every element but the first. An element never ends in an opening bracket, so the last byte tells.
fn comma(out: &mut Vec<u8>, bracket: u8) {
    if out.last() != Some(&bracket) {
        out.push(b',');
    }
}

/// Python takes `1`, `1.0` and `True` for one key, and JSON for three. A pickler never writes two such keys, since the
/// dictionary that it was given had only one of them.
fn check_keys(heap: &Heap, pairs: &[(Id, Id)]) -> Result<(), NotJson> {
    let is_str = |(key, _): &(Id, Id)| matches!(heap.get(*key), Object::Str(_));
    if pairs.iter().all(is_str) {
        return Ok(());
    }
    let mut seen = FxHashSet::default();
    for (key, _) in pairs {
        let number = match heap.get(*key) {
            Object::Bool(bool) => f64::from(u8::from(*bool)),
            // An integer that is no exact float equals no other key's float.
            Object::Int(int) if (*int as f64) as i128 == i128::from(*int) => *int as f64,
            Object::Float(float) => *float + 0.0,
            _ => continue,
        };
        if !seen.insert(number.to_bits()) {
            return Err(NotJson::EqualKeys);
        }
    }
    Ok(())
}

/// A string with every character outside printable ASCII as `\uXXXX`, an astral one as two of them.
fn write_str(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    let mut rest = text;
    loop {
        let run = plain_prefix(rest);
        out.extend_from_slice(&rest[..run]);
        rest = &rest[run..];
        let Some(&first) = rest.first() else { break };
        let (code, len) = if first < 0x80 {
            (u32::from(first), 1)
        } else {
            code_point(rest)
        };
        rest = &rest[len..];
        match code {
            0x22 | 0x5c => out.extend_from_slice(&[b'\\', first]),
            0x08 => out.extend_from_slice(b"\\b"),
            0x09 => out.extend_from_slice(b"\\t"),
            0x0a => out.extend_from_slice(b"\\n"),
            0x0c => out.extend_from_slice(b"\\f"),
            0x0d => out.extend_from_slice(b"\\r"),
            0x10000.. => {
                let astral = code - 0x10000;
                write_escape(out, 0xd800 | astral >> 10);
                write_escape(out, 0xdc00 | astral & 0x3ff);
            }
            code => write_escape(out, code),
        }
    }
    out.push(b'"');
}

/// How many bytes at the start are written as they are: printable ASCII but for quote and backslash.
///
/// Eight at a time, for most of a session is plain text.
fn plain_prefix(text: &[u8]) -> usize {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES * 0x80;
    let plain = |b: &u8| (b' '..=b'~').contains(b) && !matches!(b, b'"' | b'\\');
    let (words, _) = text.as_chunks::<8>();
    // A borrow out of one byte may disturb the next, but only where that one byte is not plain itself.
    let has_zero = |word: u64| word.wrapping_sub(ONES) & !word & HIGH != 0;
    let plain_word = |bytes: &[u8; 8]| {
        let word = u64::from_ne_bytes(*bytes);
        word & HIGH == 0
            && word.wrapping_add(ONES) & HIGH == 0 // no 0x7f
            && word.wrapping_sub(ONES * 0x20) & HIGH == 0 // none below a space
            && !has_zero(word ^ (ONES * 0x22))
            && !has_zero(word ^ (ONES * 0x5c))
    };
    let start = words.iter().take_while(|word| plain_word(word)).count() * 8;
    start + text[start..].iter().take_while(|b| plain(b)).count()
}

fn write_escape(out: &mut Vec<u8>, unit: u32) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let digit = |shift: u32| HEX[(unit >> shift & 15) as usize];
    out.extend_from_slice(&[b'\\', b'u', digit(12), digit(8), digit(4), digit(0)]);
}

/// The code point at the start of checked UTF-8 (surrogates included), and its length.
fn code_point(bytes: &[u8]) -> (u32, usize) {
    let (lead, len) = match bytes[0] {
        b @ 0xf0.. => (b & 0x07, 4),
        b @ 0xe0.. => (b & 0x0f, 3),
        b => (b & 0x1f, 2),
    };
    // The readers have checked the text, so the continuation bytes are there.
    let len = len.min(bytes.len());
    let code = bytes[1..len]
        .iter()
        .fold(u32::from(lead), |code, b| code << 6 | u32::from(b & 0x3f));
    (code, len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_that_needs_an_escape_ends_the_plain_prefix() {
        for byte in 0..=255u8 {
            for at in 0..20 {
                let mut text = [b'x'; 20];
                text[at] = byte;
                let plain = (b' '..=b'~').contains(&byte) && byte != b'"' && byte != b'\\';
                assert_eq!(plain_prefix(&text), if plain { 20 } else { at }, "{byte:#x} at {at}");
            }
        }
    }

    /// Pickles by hand, for what no pickler writes or what the recordings do not hold.
    fn check(pickle: &[u8], expected: Result<&str, NotJson>) {
        let written = super::super::pickle::parse(pickle.to_vec()).unwrap().to_json();
        assert_eq!(
            written.as_deref(),
            expected.as_ref().map(|text| text.as_bytes()),
            "{pickle:?}"
        );
    }

    #[test]
    fn keys_are_written_as_text_and_the_last_of_two_comes_last() {
        check(b"}(K\x01K\x02U\x011K\x03u.", Ok(r#"{"1":2,"1":3}"#));
        check(
            b"}(NK\x02\x88K\x03G?\xf8\0\0\0\0\0\0K\x04u.",
            Ok(r#"{"null":2,"true":3,"1.5":4}"#),
        );
        check(b"}(K\x01N\x88Nu.", Err(NotJson::EqualKeys));
        check(b"}(K\0NG\x80\0\0\0\0\0\0\0Nu.", Err(NotJson::EqualKeys));
        check(b"})Ns.", Err(NotJson::Key { type_name: "tuple" }));
    }

    #[test]
    fn only_the_sessions_own_expiry_may_be_a_datetime() {
        const DATETIME: &[u8] = b"cdatetime\ndatetime\nC\x0a\x07\xea\x01\x02\x03\x04\x05\0\0\0\x85R";
        let datetime = NotJson::Type {
            type_name: "datetime.datetime",
        };
        let key = b"U\x0f_session_expiry";
        check(
            &[b"}", &key[..], DATETIME, b"s."].concat(),
            Ok(r#"{"_session_expiry":"2026-01-02T03:04:05"}"#),
        );
        check(&[b"}U\x01x", DATETIME, b"s."].concat(), Err(datetime.clone()));
        check(
            &[b"}U\x01x}", &key[..], DATETIME, b"ss."].concat(),
            Err(datetime.clone()),
        );
        check(&[b"}", &key[..], b"]", DATETIME, b"as."].concat(), Err(datetime));
    }

    #[test]
    fn what_is_shared_is_written_twice_and_what_is_cyclic_not_at_all() {
        check(b"}U\x01a](]q\0h\0es.", Ok(r#"{"a":[[],[]]}"#));
        check(b"}q\0U\x01ah\0s.", Err(NotJson::Cyclic));
    }
}
