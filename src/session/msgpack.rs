//! Values that a backend wrote as msgpack, with `msgpack.dumps(value)` and read with `msgpack.loads(value, raw=False)`:
//! texts in strict UTF-8, keys that are texts (or bytes), no extension types.
//!
//! Reading recurses nowhere and sets aside no more than the value has bytes for, or bounds allow.

use rmp::Marker;

use super::object::{Dict, Heap, HeapFull, Id, MAX_DEPTH, MAX_OBJECTS, Object, Span};

/// Deepest nesting of what is read: that of Python's own reader. What JSON carries is less.
const MAX_NESTING: usize = 1024;

/// Why a value was not read as msgpack, or not written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MsgpackError {
    #[error("the msgpack value is cut short")]
    Truncated,
    #[error("the msgpack value goes on after its end")]
    Trailing,
    #[error("the msgpack value holds a text that is not valid")]
    Text,
    /// Python's reader refuses it as well.
    #[error("the msgpack value has a dictionary key of type {type_name}")]
    Key { type_name: &'static str },
    #[error("the msgpack value holds an extension type")]
    Extension,
    #[error("the msgpack value is over the limit of {limit} {what}")]
    Limit { what: &'static str, limit: usize },
    #[error("the msgpack value is of type {type_name}, not dict")]
    NotDict { type_name: &'static str },
    #[error("msgpack has no form for type {type_name}")]
    Type { type_name: &'static str },
    #[error("msgpack has no form for an integer of more than 64 bits")]
    BigInt,
}

impl From<HeapFull> for MsgpackError {
    fn from(_: HeapFull) -> MsgpackError {
        MsgpackError::Limit {
            what: "objects",
            limit: MAX_OBJECTS,
        }
    }
}

/// Whether a value that begins like this is a dictionary in msgpack. `{}` is the one byte that a pickle begins with.
pub(super) fn is_dict(value: &[u8]) -> bool {
    matches!(value, [0x80] | [0x81..=0x8f | 0xde | 0xdf, ..])
}

/// A container whose items are still being read.
enum Open {
    List {
        items: Vec<Id>,
        missing: u32,
    },
    Dict {
        pairs: Vec<(Id, Id)>,
        key: Option<Id>,
        missing: u32,
    },
}

/// Reads a session.
///
/// # Errors
/// [`MsgpackError`] where Python would not read it either, or where it is over a limit.
pub(super) fn read(value: Vec<u8>) -> Result<Dict, MsgpackError> {
    let end = value.len();
    let mut reader = Reader {
        heap: Heap {
            text: value,
            objects: Vec::new(),
        },
        at: 0,
        end,
    };
    let root = reader.object()?;
    if reader.at != end {
        return Err(MsgpackError::Trailing);
    }
    let heap = reader.heap;
    match heap.get(root) {
        Object::Dict(_) => Ok(Dict { heap, root }),
        other => Err(MsgpackError::NotDict {
            type_name: other.type_name(),
        }),
    }
}

struct Reader {
    heap: Heap,
    at: usize,
    end: usize,
}

impl Reader {
    /// One object with all that is in it. What is open is bounded: a byte opens a container.
    fn object(&mut self) -> Result<Id, MsgpackError> {
        let mut open: Vec<Open> = Vec::new();
        loop {
            let mut done = self.next(&mut open)?;
            if open.len() > MAX_NESTING {
                return Err(MsgpackError::Limit {
                    what: "levels",
                    limit: MAX_NESTING,
                });
            }
            // What is complete completes what holds it.
            while let Some(id) = done {
                let Some(container) = open.last_mut() else {
                    return Ok(id);
                };
                done = match container {
                    Open::List { items, missing } => {
                        items.push(id);
                        *missing -= 1;
                        (*missing == 0).then(|| Object::Seq {
                            tuple: false,
                            items: std::mem::take(items),
                        })
                    }
                    Open::Dict { pairs, key, missing } => match key.take() {
                        None => {
                            check_key(self.heap.get(id))?;
                            *key = Some(id);
                            None
                        }
                        Some(key) => {
                            pairs.push((key, id));
                            *missing -= 1;
                            (*missing == 0).then(|| Object::Dict(std::mem::take(pairs)))
                        }
                    },
                }
                .map(|object| {
                    open.pop();
                    self.heap.push(object)
                })
                .transpose()?;
            }
        }
    }

    /// A whole object, or a container that is now open.
    fn next(&mut self, open: &mut Vec<Open>) -> Result<Option<Id>, MsgpackError> {
        let object = match Marker::from_u8(u8::from_be_bytes(self.take()?)) {
            Marker::Null => Object::None,
            Marker::True => Object::Bool(true),
            Marker::False => Object::Bool(false),
            Marker::FixPos(value) => Object::Int(value.into()),
            Marker::FixNeg(value) => Object::Int(value.into()),
            Marker::U8 => Object::Int(u8::from_be_bytes(self.take()?).into()),
            Marker::U16 => Object::Int(u16::from_be_bytes(self.take()?).into()),
            Marker::U32 => Object::Int(u32::from_be_bytes(self.take()?).into()),
            Marker::U64 => self.unsigned()?,
            Marker::I8 => Object::Int(i8::from_be_bytes(self.take()?).into()),
            Marker::I16 => Object::Int(i16::from_be_bytes(self.take()?).into()),
            Marker::I32 => Object::Int(i32::from_be_bytes(self.take()?).into()),
            Marker::I64 => Object::Int(i64::from_be_bytes(self.take()?)),
            Marker::F32 => Object::Float(f32::from_be_bytes(self.take()?).into()),
            Marker::F64 => Object::Float(f64::from_be_bytes(self.take()?)),
            Marker::FixStr(len) => self.text(len.into())?,
            Marker::Str8 => self.len8().and_then(|len| self.text(len))?,
            Marker::Str16 => self.len16().and_then(|len| self.text(len))?,
            Marker::Str32 => self.len32().and_then(|len| self.text(len))?,
            Marker::Bin8 => Object::Bytes(self.len8().and_then(|len| self.span(len))?),
            Marker::Bin16 => Object::Bytes(self.len16().and_then(|len| self.span(len))?),
            Marker::Bin32 => Object::Bytes(self.len32().and_then(|len| self.span(len))?),
            Marker::FixArray(len) => return self.list(len.into(), open),
            Marker::Array16 => return self.len16().and_then(|len| self.list(len, open)),
            Marker::Array32 => return self.len32().and_then(|len| self.list(len, open)),
            Marker::FixMap(len) => return self.dict(len.into(), open),
            Marker::Map16 => return self.len16().and_then(|len| self.dict(len, open)),
            Marker::Map32 => return self.len32().and_then(|len| self.dict(len, open)),
            _ => return Err(MsgpackError::Extension),
        };
        Ok(Some(self.heap.push(object)?))
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], MsgpackError> {
        let bytes = self.heap.text[self.at..self.end].first_chunk();
        let bytes = *bytes.ok_or(MsgpackError::Truncated)?;
        self.at += N;
        Ok(bytes)
    }

    fn len8(&mut self) -> Result<u32, MsgpackError> {
        Ok(u8::from_be_bytes(self.take()?).into())
    }

    fn len16(&mut self) -> Result<u32, MsgpackError> {
        Ok(u16::from_be_bytes(self.take()?).into())
    }

    fn len32(&mut self) -> Result<u32, MsgpackError> {
        Ok(u32::from_be_bytes(self.take()?))
    }

    fn unsigned(&mut self) -> Result<Object, MsgpackError> {
        let value = u64::from_be_bytes(self.take()?);
        Ok(match i64::try_from(value) {
            Ok(small) => Object::Int(small),
            Err(_) => {
                let start = self.heap.text.len();
                self.heap.text.extend_from_slice(&value.to_le_bytes());
                self.heap.text.push(0);
                let end = self.heap.text.len();
                self.heap.int_object(Span { start, end })
            }
        })
    }

    fn span(&mut self, len: u32) -> Result<Span, MsgpackError> {
        let (start, len) = (self.at, len as usize);
        if self.end - start < len {
            return Err(MsgpackError::Truncated);
        }
        self.at = start + len;
        Ok(Span { start, end: self.at })
    }

    fn text(&mut self, len: u32) -> Result<Object, MsgpackError> {
        let span = self.span(len)?;
        match std::str::from_utf8(self.heap.bytes(span)) {
            Ok(_) => Ok(Object::Str(span)),
            Err(_) => Err(MsgpackError::Text),
        }
    }

    /// `len` says what follows, and no more is set aside than what can follow.
    fn list(&mut self, len: u32, open: &mut Vec<Open>) -> Result<Option<Id>, MsgpackError> {
        self.check_room(len)?;
        if len == 0 {
            let empty = Object::Seq {
                tuple: false,
                items: Vec::new(),
            };
            return Ok(Some(self.heap.push(empty)?));
        }
        open.push(Open::List {
            items: Vec::new(),
            missing: len,
        });
        Ok(None)
    }

    fn dict(&mut self, len: u32, open: &mut Vec<Open>) -> Result<Option<Id>, MsgpackError> {
        self.check_room(len.saturating_mul(2))?;
        if len == 0 {
            return Ok(Some(self.heap.push(Object::Dict(Vec::new()))?));
        }
        open.push(Open::Dict {
            pairs: Vec::new(),
            key: None,
            missing: len,
        });
        Ok(None)
    }

    fn check_room(&self, objects: u32) -> Result<(), MsgpackError> {
        if self.end - self.at < objects as usize {
            Err(MsgpackError::Truncated)
        } else {
            Ok(())
        }
    }
}

fn check_key(object: &Object) -> Result<(), MsgpackError> {
    match object {
        Object::Str(_) | Object::Bytes(_) => Ok(()),
        other => Err(MsgpackError::Key {
            type_name: other.type_name(),
        }),
    }
}

/// `dict` as a backend would have written it.
///
/// # Errors
/// [`MsgpackError`] names what msgpack has no form for.
pub(super) fn write(dict: &Dict) -> Result<Vec<u8>, MsgpackError> {
    let heap = &dict.heap;
    let mut out = Vec::new();
    // What is written next, and how deep it is: a stack instead of recursion.
    let mut steps = vec![(dict.root, 1)];
    while let Some((id, depth)) = steps.pop() {
        if depth > MAX_DEPTH {
            return Err(MsgpackError::Limit {
                what: "levels",
                limit: MAX_DEPTH,
            });
        }
        let object = heap.get(id);
        // Nothing that a vector takes fails.
        let _written = match object {
            Object::None => rmp::encode::write_nil(&mut out).is_ok(),
            Object::Bool(value) => rmp::encode::write_bool(&mut out, *value).is_ok(),
            Object::Int(value) => rmp::encode::write_sint(&mut out, *value).is_ok(),
            Object::BigInt(span) => match heap.bytes(*span) {
                // Nine bytes, the last one for the sign alone.
                [bytes @ .., 0] if bytes.len() == 8 => {
                    let mut wide = [0; 8];
                    wide.copy_from_slice(bytes);
                    rmp::encode::write_uint(&mut out, u64::from_le_bytes(wide)).is_ok()
                }
                _ => return Err(MsgpackError::BigInt),
            },
            Object::Float(value) => rmp::encode::write_f64(&mut out, *value).is_ok(),
            Object::Str(span) => match std::str::from_utf8(heap.bytes(*span)) {
                Ok(text) => rmp::encode::write_str(&mut out, text).is_ok(),
                Err(_) => return Err(MsgpackError::Text),
            },
            Object::Bytes(span) => rmp::encode::write_bin(&mut out, heap.bytes(*span)).is_ok(),
            Object::Seq { items, .. } => {
                steps.extend(items.iter().rev().map(|item| (*item, depth + 1)));
                rmp::encode::write_array_len(&mut out, items.len() as u32).is_ok()
            }
            Object::Dict(pairs) => {
                for (key, value) in pairs.iter().rev() {
                    check_key(heap.get(*key))?;
                    steps.push((*value, depth + 1));
                    steps.push((*key, depth + 1));
                }
                rmp::encode::write_map_len(&mut out, pairs.len() as u32).is_ok()
            }
            other => {
                return Err(MsgpackError::Type {
                    type_name: other.type_name(),
                });
            }
        };
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::super::json::{self, Charset};
    use super::*;

    fn dict(json: &str) -> Dict {
        json::read(json.as_bytes().to_vec(), Charset::Utf8).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn what_json_carries_comes_back() {
        let long = "x".repeat(70_000);
        let many = (0..70_000).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
        for text in [
            "{}",
            r#"{"a":[],"b":{},"c":null,"d":true,"e":false}"#,
            r#"{"n":[0,127,128,255,256,65535,65536,4294967296,-1,-32,-33,-129,-9223372036854775808,18446744073709551615]}"#,
            r#"{"f":[0.5,-1e300,1.0],"ä":"é 😀"}"#,
            &format!(r#"{{"long":"{long}","many":[{many}],"short":"{}"}}"#, &long[..300]),
        ] {
            let packed = write(&dict(text)).unwrap_or_else(|error| panic!("{error}"));
            assert!(is_dict(&packed));
            let again = read(packed).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(again.to_json(), dict(text).to_json());
        }
    }

    #[test]
    fn what_python_would_not_write_is_refused() {
        for text in [r#"{"n":18446744073709551616}"#, r#"{"n":-9223372036854775809}"#] {
            assert_eq!(write(&dict(text)), Err(MsgpackError::BigInt));
        }
        assert_eq!(write(&dict(r#"{"a":"\ud800"}"#)), Err(MsgpackError::Text));
        let mut cyclic = dict(r#"{"a":[1]}"#);
        let list = cyclic.pairs()[0].1;
        if let Some(Object::Seq { items, .. }) = cyclic.heap.objects.get_mut(list as usize) {
            items[0] = list;
        }
        assert!(matches!(write(&cyclic), Err(MsgpackError::Limit { .. })));
    }

    #[test]
    fn what_python_would_not_read_is_refused() {
        for (value, error) in [
            (&[0x81][..], MsgpackError::Truncated),
            (&[0x81, 0xa1, b'a'], MsgpackError::Truncated),
            (&[0x80, 0xc0], MsgpackError::Trailing),
            (&[0x81, 0x01, 0x01], MsgpackError::Key { type_name: "int" }),
            (&[0x81, 0xa1, 0xff, 0xc0], MsgpackError::Text),
            (&[0x81, 0xa1, b'a', 0xd4, 0x01, 0x00], MsgpackError::Extension),
            (&[0x81, 0xa1, b'a', 0xc1], MsgpackError::Extension),
            (&[0xdf, 0xff, 0xff, 0xff, 0xff], MsgpackError::Truncated),
            (
                &[0x81, 0xa1, b'a', 0xdd, 0xff, 0xff, 0xff, 0xff],
                MsgpackError::Truncated,
            ),
            (&[0x90], MsgpackError::NotDict { type_name: "list" }),
        ] {
            assert_eq!(read(value.to_vec()).map(|dict| dict.len()), Err(error), "{value:?}");
        }
        let nested = |levels: usize| [&[0x81, 0xa1, b'a'][..], &vec![0x91; levels - 1], &[0xc0]].concat();
        assert!(read(nested(MAX_NESTING)).is_ok());
        let limit = MAX_NESTING;
        assert_eq!(
            read(nested(MAX_NESTING + 1)).map(|dict| dict.len()),
            Err(MsgpackError::Limit { what: "levels", limit })
        );
    }
}
