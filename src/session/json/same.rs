//! Whether two JSON texts mean the same session.

use std::collections::HashMap;

use super::super::object::{Dict, Id, Object};

/// Whether two dictionaries read from JSON are the same for Django: the order of keys does not count and of equal keys
/// the last one does; numbers are the same only if Python prints them alike (`1` is not `1.0`, `0.0` is not `-0.0`).
///
/// A dictionary read from a pickle is not comparable: write it as JSON first.
pub fn same(a: &Dict, b: &Dict) -> bool {
    let mut todo = vec![(a.root, b.root)];
    while let Some((left, right)) = todo.pop() {
        let same = match (a.heap.get(left), b.heap.get(right)) {
            (Object::None, Object::None) => true,
            (Object::Bool(left), Object::Bool(right)) => left == right,
            (Object::Int(left), Object::Int(right)) => left == right,
            (Object::BigInt(left), Object::BigInt(right)) => a.heap.bytes(*left) == b.heap.bytes(*right),
            (Object::Float(left), Object::Float(right)) => {
                left.to_bits() == right.to_bits() || (left.is_nan() && right.is_nan())
            }
            (Object::Str(left), Object::Str(right)) => a.heap.bytes(*left) == b.heap.bytes(*right),
            (Object::Seq { items: left, .. }, Object::Seq { items: right, .. }) => {
                todo.extend(left.iter().copied().zip(right.iter().copied()));
                left.len() == right.len()
            }
            (Object::Dict(left), Object::Dict(right)) => {
                let (left, right) = (by_key(a, left), by_key(b, right));
                todo.extend(left.iter().filter_map(|(key, value)| Some((*value, *right.get(key)?))));
                left.len() == right.len() && left.keys().all(|key| right.contains_key(key))
            }
            _ => false,
        };
        if !same {
            return false;
        }
    }
    true
}

fn by_key<'a>(dict: &'a Dict, pairs: &[(Id, Id)]) -> HashMap<&'a [u8], Id> {
    let text = |id| match dict.heap.get(id) {
        Object::Str(span) => dict.heap.bytes(*span),
        _ => &[], // JSON has no other keys.
    };
    pairs.iter().map(|&(key, value)| (text(key), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Charset, read};
    use super::*;

    fn check(a: &str, b: &str, expected: bool) {
        let dict = |text: &str| read(text.into(), Charset::Latin1).unwrap();
        assert_eq!(same(&dict(a), &dict(b)), expected, "{a} {b}");
        assert_eq!(same(&dict(b), &dict(a)), expected, "{b} {a}");
    }

    #[test]
    fn order_and_spelling_do_not_count() {
        check(
            r#"{"a":1,"b":[true,null,"é"]}"#,
            r#"{ "b" : [ true, null, "\u00c3\u00a9" ], "a" : 1 }"#,
            true,
        );
        check(r#"{"a":1,"a":2}"#, r#"{"a":2}"#, true);
        check(r#"{"a":NaN,"b":1.50}"#, r#"{"a":NaN,"b":1.5}"#, true);
        check(
            r#"{"a":123456789012345678901234567890}"#,
            r#"{"a":123456789012345678901234567890}"#,
            true,
        );
    }

    #[test]
    fn every_difference_counts() {
        for (a, b) in [
            (r#"{"a":1}"#, r#"{"a":1.0}"#),
            (r#"{"a":1}"#, r#"{"a":true}"#),
            (r#"{"a":0.0}"#, r#"{"a":-0.0}"#),
            (r#"{"a":1}"#, r#"{"a":1,"b":1}"#),
            (r#"{"a":1}"#, r#"{"b":1}"#),
            (r#"{"a":[1]}"#, r#"{"a":[1,2]}"#),
            (r#"{"a":null}"#, r#"{}"#),
            (r#"{"a":"1"}"#, r#"{"a":1}"#),
            (
                r#"{"a":123456789012345678901234567890}"#,
                r#"{"a":123456789012345678901234567891}"#,
            ),
            (r#"{"a":{"x":[]}}"#, r#"{"a":{"x":{}}}"#),
        ] {
            check(a, b, false);
        }
    }
}
