//! What a row holds, as a pickle: the value that Django would have put into the cache for that session.
//!
//! Protocol 4, without FRAME and memo: every backend and every Python in use reads it. Only what JSON and
//! msgpack can carry comes here.

use super::super::object::{Dict, Id, Object};

const HEADER: &[u8] = &[0x80, 4];
const STOP: u8 = b'.';

/// What is written next; a stack of these instead of recursion, so that nesting costs no stack.
enum Step {
    Object(Id),
    Op(u8),
}

/// The pickle of `dict`; `None` where it holds what neither JSON nor msgpack has a form for.
pub fn write(dict: &Dict) -> Option<Vec<u8>> {
    let heap = &dict.heap;
    let mut out = HEADER.to_vec();
    let mut steps = vec![Step::Object(dict.root)];
    while let Some(step) = steps.pop() {
        let id = match step {
            Step::Op(op) => {
                out.push(op);
                continue;
            }
            Step::Object(id) => id,
        };
        match heap.get(id) {
            Object::None => out.push(b'N'),
            Object::Bool(value) => out.push(if *value { 0x88 } else { 0x89 }),
            Object::Int(value) => int(*value, &mut out),
            Object::BigInt(span) => long(heap.bytes(*span), &mut out),
            Object::Float(value) => {
                out.push(b'G');
                out.extend_from_slice(&value.to_be_bytes());
            }
            Object::Str(span) => string(heap.bytes(*span), &mut out),
            Object::Bytes(span) => bytes(heap.bytes(*span), &mut out),
            Object::Seq { tuple: false, items } => {
                // EMPTY_LIST, and MARK … APPENDS around the items.
                out.push(b']');
                if !items.is_empty() {
                    out.push(b'(');
                    steps.push(Step::Op(b'e'));
                    steps.extend(items.iter().rev().map(|item| Step::Object(*item)));
                }
            }
            Object::Dict(pairs) => {
                // EMPTY_DICT, and MARK … SETITEMS around the pairs; of a key that comes twice, the last one counts.
                out.push(b'}');
                if !pairs.is_empty() {
                    out.push(b'(');
                    steps.push(Step::Op(b'u'));
                    let pairs = pairs.iter().rev();
                    steps.extend(pairs.flat_map(|(key, value)| [Step::Object(*value), Step::Object(*key)]));
                }
            }
            _ => return None,
        }
    }
    out.push(STOP);
    Some(out)
}

fn int(value: i64, out: &mut Vec<u8>) {
    if let Ok(byte) = u8::try_from(value) {
        out.extend_from_slice(&[b'K', byte]);
    } else if let Ok(short) = u16::try_from(value) {
        out.push(b'M');
        out.extend_from_slice(&short.to_le_bytes());
    } else if let Ok(word) = i32::try_from(value) {
        out.push(b'J');
        out.extend_from_slice(&word.to_le_bytes());
    } else {
        long(&value.to_le_bytes(), out);
    }
}

/// Two's complement, little-endian. At most `MAX_INT_BYTES` and so below the limit of LONG4.
fn long(bytes: &[u8], out: &mut Vec<u8>) {
    match u8::try_from(bytes.len()) {
        Ok(len) => out.extend_from_slice(&[0x8a, len]),
        Err(_) => {
            out.push(0x8b);
            out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        }
    }
    out.extend_from_slice(bytes);
}

/// Below 4 GiB, since a whole session is.
fn string(bytes: &[u8], out: &mut Vec<u8>) {
    match u8::try_from(bytes.len()) {
        Ok(len) => out.extend_from_slice(&[0x8c, len]),
        Err(_) => {
            out.push(b'X');
            out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        }
    }
    out.extend_from_slice(bytes);
}

fn bytes(bytes: &[u8], out: &mut Vec<u8>) {
    match u8::try_from(bytes.len()) {
        Ok(len) => out.extend_from_slice(&[b'C', len]),
        Err(_) => {
            out.push(b'B');
            out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        }
    }
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::super::super::json::{self, Charset};
    use super::*;

    #[test]
    fn what_json_carries_comes_back() {
        let long_text = "x".repeat(300);
        let huge = "9".repeat(700);
        for text in [
            "{}",
            r#"{"a":[],"b":{},"c":null,"d":true,"e":false}"#,
            r#"{"n":[0,255,256,65535,65536,-1,-129,2147483647,2147483648,-9223372036854775808]}"#,
            r#"{"f":[0.5,-1e300,1.0]}"#,
            r#"{"ä":"é 😀 \ud800","nested":[[[{"x":[1,[2,[3]]]}]],"y"]}"#,
            &format!(r#"{{"long":"{long_text}","huge":{huge},"huger":-{huge}}}"#),
        ] {
            let dict = json::read(text.as_bytes().to_vec(), Charset::Utf8).unwrap_or_else(|error| panic!("{error}"));
            let pickle = write(&dict).expect("plain data");
            let again = super::super::parse(pickle).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(again.to_json(), dict.to_json(), "{text}");
        }
    }
}
