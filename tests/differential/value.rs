//! Replies as trees, only where two differ: what is equal byte for byte is never taken apart.

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// `+` `-` `:` `,` `(` `#` `_`, and what follows on the line.
    Line(u8, Vec<u8>),
    /// `$` `!` `=`; nothing for the null of RESP2.
    Bulk(u8, Option<Vec<u8>>),
    /// `*` `~` `>` `%` `|`, the pairs of a map one after the other; nothing for the null of RESP2.
    Many(u8, Option<Vec<Value>>),
}

/// Where the first frame ends; `None` while it is not whole, and an error where this is no reply at all.
pub fn end(bytes: &[u8]) -> Result<Option<usize>, ()> {
    let mut at = 0;
    let mut open = 1_usize;
    while open > 0 {
        let Some((kind, text, after)) = line(bytes, at) else {
            return Ok(None);
        };
        open -= 1;
        at = match kind {
            b'+' | b'-' | b':' | b',' | b'(' | b'#' | b'_' => after,
            b'$' | b'!' | b'=' => match number(text)? {
                ..0 => after,
                length => after + length as usize + 2,
            },
            b'*' | b'~' | b'>' => {
                open += number(text)?.max(0) as usize;
                after
            }
            b'%' => {
                open += 2 * number(text)?.max(0) as usize;
                after
            }
            b'|' => {
                open += 2 * number(text)?.max(0) as usize + 1;
                after
            }
            _ => return Err(()),
        };
        if at > bytes.len() {
            return Ok(None);
        }
    }
    Ok(Some(at))
}

/// The frame as a tree.
pub fn parse(frame: &[u8]) -> Option<Value> {
    let (value, end) = parse_at(frame, 0)?;
    (end == frame.len()).then_some(value)
}

fn parse_at(bytes: &[u8], at: usize) -> Option<(Value, usize)> {
    let (kind, text, after) = line(bytes, at)?;
    match kind {
        b'$' | b'!' | b'=' => match number(text).ok()? {
            ..0 => Some((Value::Bulk(kind, None), after)),
            length => {
                let end = after + length as usize;
                Some((Value::Bulk(kind, Some(bytes.get(after..end)?.to_vec())), end + 2))
            }
        },
        b'*' | b'~' | b'>' | b'%' | b'|' => {
            let count = number(text).ok()?;
            if count < 0 {
                return Some((Value::Many(kind, None), after));
            }
            let count = match kind {
                b'%' => 2 * count,
                b'|' => 2 * count + 1, // what is annotated comes last
                _ => count,
            };
            let (mut values, mut at) = (Vec::new(), after);
            for _ in 0..count {
                let (value, next) = parse_at(bytes, at)?;
                values.push(value);
                at = next;
            }
            Some((Value::Many(kind, Some(values)), at))
        }
        _ => Some((Value::Line(kind, text.to_vec()), after)),
    }
}

fn line(bytes: &[u8], at: usize) -> Option<(u8, &[u8], usize)> {
    let length = bytes.get(at..)?.windows(2).position(|pair| pair == b"\r\n")?;
    let text = &bytes[at..at + length];
    let (kind, rest) = text.split_first()?;
    Some((*kind, rest, at + length + 2))
}

fn number(text: &[u8]) -> Result<i64, ()> {
    std::str::from_utf8(text).map_err(drop)?.parse().map_err(drop)
}

impl Value {
    pub fn text(&self) -> Option<&[u8]> {
        match self {
            Value::Bulk(_, Some(text)) | Value::Line(_, text) => Some(text),
            _ => None,
        }
    }

    pub fn items(&self) -> &[Value] {
        match self {
            Value::Many(_, Some(items)) => items,
            _ => &[],
        }
    }

    /// Every node, the leaves first, as `change` would have it.
    pub fn map(self, change: &dyn Fn(Value) -> Value) -> Value {
        change(match self {
            Value::Many(kind, Some(items)) => {
                Value::Many(kind, Some(items.into_iter().map(|item| item.map(change)).collect()))
            }
            other => other,
        })
    }
}
