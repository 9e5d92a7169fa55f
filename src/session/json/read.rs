//! JSON as Python's `json.loads` reads it: `NaN` and `Infinity`, lone surrogates, integers without bounds.

use super::super::object::{Dict, Heap, HeapFull, Id, MAX_DEPTH, MAX_INT_DIGITS, MAX_OBJECTS, Object, Span};
use super::super::pickle::push_code_point;
use super::MAX_JSON_BYTES;

/// What bytes above 127 mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charset {
    /// One character each: how Django reads a row.
    Latin1,
    /// How the cache backends' JSON serializers read a Redis value.
    Utf8,
}

/// Why a JSON text was not read as a session.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    #[error("the json is broken at byte {at}")]
    Syntax { at: usize },
    #[error("an integer in the json has more than {limit} digits")]
    IntTooLong { limit: usize },
    #[error("the json is nested more than {limit} deep")]
    TooDeep { limit: usize },
    #[error("the json is over the limit of {limit} {what}")]
    TooLarge { what: &'static str, limit: usize },
    #[error("the json is of type {type_name}, not dict")]
    NotDict { type_name: &'static str },
}

impl From<HeapFull> for JsonError {
    fn from(_: HeapFull) -> JsonError {
        JsonError::TooLarge {
            what: "values",
            limit: MAX_OBJECTS,
        }
    }
}

/// Reads a JSON object.
///
/// # Errors
/// [`JsonError`] where Python's reader would fail, over a limit, or where the text is JSON but not an object.
pub fn read(text: Vec<u8>, charset: Charset) -> Result<Dict, JsonError> {
    if text.len() > MAX_JSON_BYTES {
        return Err(JsonError::TooLarge {
            what: "bytes",
            limit: MAX_JSON_BYTES,
        });
    }
    if charset == Charset::Utf8
        && let Err(error) = std::str::from_utf8(&text)
    {
        return Err(JsonError::Syntax {
            at: error.valid_up_to(),
        });
    }
    let end = text.len();
    let mut reader = Reader {
        heap: Heap {
            text,
            objects: Vec::new(),
        },
        charset,
        pos: 0,
        end,
    };
    let root = reader.document()?;
    let heap = reader.heap;
    match heap.get(root) {
        Object::Dict(_) => Ok(Dict { heap, root }),
        other => Err(JsonError::NotDict {
            type_name: other.type_name(),
        }),
    }
}

/// A container whose end has not been read yet.
enum Open {
    List(Vec<Id>),
    Dict { pairs: Vec<(Id, Id)>, key: Id },
}

struct Reader {
    heap: Heap,
    charset: Charset,
    pos: usize,
    /// End of the JSON in the heap's text; unescaped strings follow it.
    end: usize,
}

impl Reader {
    fn document(&mut self) -> Result<Id, JsonError> {
        let mut open: Vec<Open> = Vec::new();
        loop {
            let opens = matches!(self.peek(), Some(b'{' | b'['));
            if opens && open.len() >= MAX_DEPTH {
                return Err(JsonError::TooDeep { limit: MAX_DEPTH });
            }
            let object = match self.peek() {
                Some(b'{') => {
                    self.pos += 1;
                    if !self.eat(b'}') {
                        let key = self.key()?;
                        open.push(Open::Dict { pairs: Vec::new(), key });
                        continue;
                    }
                    Object::Dict(Vec::new())
                }
                Some(b'[') => {
                    self.pos += 1;
                    if !self.eat(b']') {
                        open.push(Open::List(Vec::new()));
                        continue;
                    }
                    Object::Seq {
                        tuple: false,
                        items: Vec::new(),
                    }
                }
                _ => self.scalar()?,
            };
            let mut id = self.heap.push(object)?;
            // The value is complete: put it where it belongs, and with a closing bracket the container is, too.
            loop {
                let Some(container) = open.last_mut() else {
                    return if self.peek().is_none() {
                        Ok(id)
                    } else {
                        Err(self.syntax())
                    };
                };
                let close = match container {
                    Open::List(items) => {
                        items.push(id);
                        b']'
                    }
                    Open::Dict { pairs, key } => {
                        pairs.push((*key, id));
                        b'}'
                    }
                };
                if self.eat(b',') {
                    if let Open::Dict { key, .. } = container {
                        *key = self.key()?;
                    }
                    break;
                }
                if !self.eat(close) {
                    return Err(self.syntax());
                }
                let object = match open.pop() {
                    Some(Open::List(items)) => Object::Seq { tuple: false, items },
                    Some(Open::Dict { pairs, .. }) => Object::Dict(pairs),
                    None => return Err(self.syntax()),
                };
                id = self.heap.push(object)?;
            }
        }
    }

    fn syntax(&self) -> JsonError {
        JsonError::Syntax { at: self.pos }
    }

    fn at(&self, pos: usize) -> Option<u8> {
        if pos < self.end {
            self.heap.text.get(pos).copied()
        } else {
            None
        }
    }

    /// The next byte that is no white space, which is passed over.
    fn peek(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.at(self.pos) {
            self.pos += 1;
        }
        self.at(self.pos)
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.pos += usize::from(found);
        found
    }

    fn key(&mut self) -> Result<Id, JsonError> {
        if self.peek() != Some(b'"') {
            return Err(self.syntax());
        }
        let key = self.string()?;
        if !self.eat(b':') {
            return Err(self.syntax());
        }
        Ok(self.heap.push(Object::Str(key))?)
    }

    fn scalar(&mut self) -> Result<Object, JsonError> {
        const LITERALS: [(&[u8], Object); 6] = [
            (b"null", Object::None),
            (b"true", Object::Bool(true)),
            (b"false", Object::Bool(false)),
            (b"NaN", Object::Float(f64::NAN)),
            (b"Infinity", Object::Float(f64::INFINITY)),
            (b"-Infinity", Object::Float(f64::NEG_INFINITY)),
        ];
        match self.peek() {
            Some(b'"') => return Ok(Object::Str(self.string()?)),
            Some(b'0'..=b'9') => return self.number(),
            Some(b'-') if self.at(self.pos + 1) != Some(b'I') => return self.number(),
            _ => {}
        }
        let rest = &self.heap.text[self.pos..self.end];
        for (literal, object) in LITERALS {
            if rest.starts_with(literal) {
                self.pos += literal.len();
                return Ok(object);
            }
        }
        Err(self.syntax())
    }

    fn number(&mut self) -> Result<Object, JsonError> {
        let start = self.pos;
        let digits = |reader: &Reader, mut pos: usize| {
            while let Some(b'0'..=b'9') = reader.at(pos) {
                pos += 1;
            }
            pos
        };
        let first = start + usize::from(self.at(start) == Some(b'-'));
        let mut end = match self.at(first) {
            Some(b'0') => first + 1,
            Some(b'1'..=b'9') => digits(self, first),
            _ => return Err(self.syntax()),
        };
        let whole = end;
        if self.at(end) == Some(b'.') && digits(self, end + 1) > end + 1 {
            end = digits(self, end + 1);
        }
        if let Some(b'e' | b'E') = self.at(end) {
            let exponent = end + 1 + usize::from(matches!(self.at(end + 1), Some(b'+' | b'-')));
            if digits(self, exponent) > exponent {
                end = digits(self, exponent);
            }
        }
        self.pos = end;
        let syntax = JsonError::Syntax { at: start };
        let Ok(text) = std::str::from_utf8(&self.heap.text[start..end]) else {
            return Err(syntax);
        };
        if end > whole {
            return text.parse().map(Object::Float).map_err(|_| syntax);
        }
        if let Ok(small) = text.parse() {
            return Ok(Object::Int(small));
        }
        let text = text.to_owned();
        self.heap
            .int_from_decimal(&text)
            .ok_or(JsonError::IntTooLong { limit: MAX_INT_DIGITS })
    }

    /// The string whose opening quote is at `pos`. One without escapes stays where it is; any other is unescaped to the
    /// end of the heap's text.
    fn string(&mut self) -> Result<Span, JsonError> {
        self.pos += 1;
        let start = self.pos;
        let mut out: Option<usize> = None; // where the unescaped copy starts
        loop {
            let byte = self.at(self.pos).ok_or_else(|| self.syntax())?;
            let raw = byte >= 0x20 && byte != b'"' && byte != b'\\' && (byte < 0x80 || self.charset == Charset::Utf8);
            if raw && out.is_none() {
                self.pos += 1;
                continue;
            }
            if byte < 0x20 {
                return Err(self.syntax());
            }
            if byte == b'"' {
                let span = match out {
                    None => Span { start, end: self.pos },
                    Some(start) => Span {
                        start,
                        end: self.heap.text.len(),
                    },
                };
                self.pos += 1;
                return Ok(span);
            }
            if out.is_none() {
                out = Some(self.heap.text.len());
                self.heap.text.extend_from_within(start..self.pos);
            }
            if byte == b'\\' {
                self.escape()?;
            } else {
                self.pos += 1;
                if raw {
                    self.heap.text.push(byte);
                } else {
                    push_code_point(&mut self.heap.text, u32::from(byte));
                }
            }
        }
    }

    fn escape(&mut self) -> Result<(), JsonError> {
        let plain = match self.at(self.pos + 1) {
            Some(byte @ (b'"' | b'\\' | b'/')) => byte,
            Some(b'b') => 0x08,
            Some(b'f') => 0x0c,
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'u') => {
                let high = self.unit(self.pos).ok_or_else(|| self.syntax())?;
                self.pos += 6;
                let low = if (0xd800..0xdc00).contains(&high) {
                    self.unit(self.pos)
                } else {
                    None
                };
                let code = match low {
                    Some(low @ 0xdc00..0xe000) => {
                        self.pos += 6;
                        0x10000 + ((high - 0xd800) << 10 | (low - 0xdc00))
                    }
                    _ => high,
                };
                push_code_point(&mut self.heap.text, code);
                return Ok(());
            }
            _ => return Err(self.syntax()),
        };
        self.pos += 2;
        self.heap.text.push(plain);
        Ok(())
    }

    /// The UTF-16 unit of a `\uXXXX` at `pos`.
    fn unit(&self, pos: usize) -> Option<u32> {
        if self.at(pos)? != b'\\' || self.at(pos + 1)? != b'u' {
            return None;
        }
        (2..6).try_fold(0, |unit, i| {
            Some(unit << 4 | char::from(self.at(pos + i)?).to_digit(16)?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<&str, JsonError>) {
        let written = read(text.into(), Charset::Utf8).map(|dict| String::from_utf8(dict.to_json().unwrap()).unwrap());
        assert_eq!(written.as_deref(), expected.as_ref().map(|t| *t), "{text}");
    }

    #[test]
    fn what_is_read_is_written_back() {
        check("{}", Ok("{}"));
        check(
            " { \"a\" : [ 1 , -2.50, { } , [ ] ] }\r\n",
            Ok(r#"{"a":[1,-2.5,{},[]]}"#),
        );
        check(
            r#"{"a":[NaN,Infinity,-Infinity,1e3,-0,-0.0,null,true,false]}"#,
            Ok(r#"{"a":[NaN,Infinity,-Infinity,1000.0,0,-0.0,null,true,false]}"#),
        );
        check(
            r#"{"é":"\"\\\/\b\f\n\r\t\u00e9😀\ud83d\ude00"}"#,
            Ok(r#"{"\u00e9":"\"\\/\b\f\n\r\t\u00e9\ud83d\ude00\ud83d\ude00"}"#),
        );
        check(
            r#"{"a":"\ud800","b":"\udc00\ud800x\ud800\u0041"}"#,
            Ok(r#"{"a":"\ud800","b":"\udc00\ud800x\ud800A"}"#),
        );
        check(
            r#"{"a":18446744073709551616,"b":1e999}"#,
            Ok(r#"{"a":18446744073709551616,"b":Infinity}"#),
        );
    }

    #[test]
    fn what_python_refuses_is_refused() {
        let at = |at| Err(JsonError::Syntax { at });
        for (text, expected) in [
            ("", at(0)),
            ("{", at(1)),
            ("{}x", at(2)),
            (r#"{"a"}"#, at(4)),
            (r#"{"a":}"#, at(5)),
            (r#"{"a":1,}"#, at(7)),
            (r#"{a:1}"#, at(1)),
            (r#"{"a":[1,]}"#, at(8)),
            (r#"{"a":01}"#, at(6)),
            (r#"{"a":1.}"#, at(6)),
            (r#"{"a":-}"#, at(5)),
            (r#"{"a":+1}"#, at(5)),
            (r#"{"a":nul}"#, at(5)),
            (r#"{"a":"x}"#, at(8)),
            ("{\"a\":\"\u{1}\"}", at(6)),
            (r#"{"a":"\x"}"#, at(6)),
            (r#"{"a":"\u12g4"}"#, at(6)),
            ("{\"a\":1]", at(6)),
            ("[1]", Err(JsonError::NotDict { type_name: "list" })),
            ("1", Err(JsonError::NotDict { type_name: "int" })),
        ] {
            check(text, expected);
        }
    }

    #[test]
    fn limits_hold() {
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
        assert!(read(nested(MAX_DEPTH).into(), Charset::Latin1).is_ok());
        check(&nested(MAX_DEPTH + 1), Err(JsonError::TooDeep { limit: MAX_DEPTH }));
        let digits = |count: usize| format!("{{\"a\":-{}}}", "9".repeat(count));
        assert!(read(digits(MAX_INT_DIGITS).into(), Charset::Latin1).is_ok());
        check(
            &digits(MAX_INT_DIGITS + 1),
            Err(JsonError::IntTooLong { limit: MAX_INT_DIGITS }),
        );
    }
}
