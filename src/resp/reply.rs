//! Finds where a reply ends, in RESP2 and RESP3, without a stack: only the number of frames still to come counts.

use super::limits::{MAX_BULK_LEN, MAX_LINE_LEN};
use super::{ProtocolError, parse_integer};

/// A whole reply at the start of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Bytes that it takes, attributes in front of it included.
    pub len: usize,
    /// Its type byte (`+ - : $ * _ , # ! = ( % ~ >`), behind any attribute.
    pub kind: u8,
}

impl Reply {
    /// Out of band: belongs to no request.
    pub fn is_push(self) -> bool {
        self.kind == b'>'
    }

    pub fn is_error(self) -> bool {
        matches!(self.kind, b'-' | b'!')
    }
}

/// Where the scan of the reply at the start of the buffer stands.
#[derive(Debug)]
pub struct ReplyScanner {
    pos: usize,
    /// Frames still to come before the reply is whole.
    left: u64,
    /// The type of the outermost frame, once seen.
    kind: u8,
}

impl Default for ReplyScanner {
    fn default() -> Self {
        ReplyScanner {
            pos: 0,
            left: 1,
            kind: 0,
        }
    }
}

impl ReplyScanner {
    /// Looks at `buffer`, whose start is where the current reply starts. `Ok(None)` means that more bytes are needed.
    ///
    /// # Errors
    /// The bytes are no reply: nothing that follows on this connection can be trusted.
    pub fn scan(&mut self, buffer: &[u8]) -> Result<Option<Reply>, ProtocolError> {
        while self.left > 0 {
            let Some(&kind) = buffer.get(self.pos) else {
                return Ok(None);
            };
            let Some(end) = line_end(&buffer[self.pos..])? else {
                return Ok(None);
            };
            if end == 0 {
                // A line without anything has no type either.
                return Err(ProtocolError::InvalidReply(kind));
            }
            let text = &buffer[self.pos + 1..self.pos + end];
            let next = self.pos + end + 2;
            match kind {
                b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(' => self.finish(kind, next, 0),
                b'$' | b'!' | b'=' => match length(text)? {
                    None => self.finish(kind, next, 0),
                    Some(len) => {
                        let after = next + len as usize + 2;
                        if buffer.len() < after {
                            return Ok(None);
                        }
                        self.finish(kind, after, 0);
                    }
                },
                b'*' | b'~' | b'>' => self.finish(kind, next, length(text)?.unwrap_or(0)),
                b'%' => self.finish(kind, next, 2 * length(text)?.unwrap_or(0)),
                // An attribute stands in front of a frame and is none itself.
                b'|' => {
                    self.pos = next;
                    self.left += 2 * length(text)?.unwrap_or(0);
                }
                other => return Err(ProtocolError::InvalidReply(other)),
            }
        }
        let reply = Reply {
            len: self.pos,
            kind: self.kind,
        };
        *self = Self::default();
        Ok(Some(reply))
    }

    fn finish(&mut self, kind: u8, next: usize, children: u64) {
        // While an attribute is read, the frame behind it still counts as one to come.
        if self.left == 1 && self.kind == 0 {
            self.kind = kind;
        }
        self.pos = next;
        self.left = self.left - 1 + children;
    }

    /// Bytes that the reply still needs at the least, so that the caller can make room once.
    pub fn wants(&self, buffer: &[u8]) -> usize {
        match buffer.get(self.pos) {
            Some(b'$' | b'!' | b'=') => {}
            _ => return 0,
        }
        let Ok(Some(end)) = line_end(&buffer[self.pos..]) else {
            return 0;
        };
        match length(&buffer[self.pos + 1..self.pos + end]) {
            Ok(Some(len)) => (self.pos + end + 2 + len as usize + 2).saturating_sub(buffer.len()),
            _ => 0,
        }
    }
}

/// Where the CR of the line at the start of `bytes` is, once the LF is there too.
#[inline]
fn line_end(bytes: &[u8]) -> Result<Option<usize>, ProtocolError> {
    let mut from = 0;
    while let Some(at) = memchr::memchr(b'\r', &bytes[from..]) {
        match bytes.get(from + at + 1) {
            Some(b'\n') => return Ok(Some(from + at)),
            // A carriage return alone ends nothing.
            Some(_) => from += at + 1,
            None => break,
        }
    }
    match bytes.len() {
        // Simple strings and errors have no length of their own; no Redis sends one this long.
        len if len > 16 * MAX_LINE_LEN => Err(ProtocolError::InvalidReplyLength),
        _ => Ok(None),
    }
}

/// A length or count; `None` for the null of RESP2 (`-1`).
fn length(text: &[u8]) -> Result<Option<u64>, ProtocolError> {
    match parse_integer(text) {
        Some(-1) => Ok(None),
        // A reply's bulk is at most what a value can be; scripts may build longer arrays than any command has arguments.
        Some(len) if (0..=2 * MAX_BULK_LEN).contains(&len) => Ok(Some(len as u64)),
        _ => Err(ProtocolError::InvalidReplyLength),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scan_all(bytes: &[u8]) -> Vec<(usize, u8)> {
        let mut scanner = ReplyScanner::default();
        let mut start = 0;
        let mut found = Vec::new();
        while let Some(reply) = scanner.scan(&bytes[start..]).unwrap() {
            found.push((reply.len, reply.kind));
            start += reply.len;
        }
        found
    }

    #[test]
    fn finds_the_end_of_every_type() {
        for (bytes, kind) in [
            ("+OK\r\n", b'+'),
            ("-ERR x\r\n", b'-'),
            ("-ERR a\rb\r\n", b'-'),
            (":12\r\n", b':'),
            ("$-1\r\n", b'$'),
            ("$0\r\n\r\n", b'$'),
            ("$3\r\na\r\n\r\n", b'$'),
            ("*-1\r\n", b'*'),
            ("*0\r\n", b'*'),
            ("*2\r\n*1\r\n:1\r\n$1\r\na\r\n", b'*'),
            ("_\r\n", b'_'),
            (",1.5\r\n", b','),
            ("#t\r\n", b'#'),
            ("!3\r\nERR\r\n", b'!'),
            ("=7\r\ntxt:abc\r\n", b'='),
            ("(123\r\n", b'('),
            ("%1\r\n+a\r\n*2\r\n:1\r\n:2\r\n", b'%'),
            ("~2\r\n:1\r\n:2\r\n", b'~'),
            (">2\r\n+a\r\n:1\r\n", b'>'),
            ("|1\r\n+ttl\r\n:1\r\n$1\r\na\r\n", b'$'),
        ] {
            assert_eq!(
                scan_all(format!("{bytes}+X\r\n").as_bytes()),
                [(bytes.len(), kind), (4, b'+')],
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn refuses_what_is_no_reply() {
        for bad in [
            "HTTP/1.1 400\r\n",
            "\r\n",
            "*1\r\n\r\n",
            "$x\r\n",
            "*-2\r\n",
            "$99999999999\r\n",
        ] {
            assert!(ReplyScanner::default().scan(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    fn frame() -> impl Strategy<Value = Vec<u8>> {
        let leaf = prop_oneof![
            prop::collection::vec(any::<u8>(), 0..40).prop_map(|b| [
                format!("${}\r\n", b.len()).into_bytes(),
                b,
                b"\r\n".to_vec()
            ]
            .concat()),
            any::<i64>().prop_map(|n| format!(":{n}\r\n").into_bytes()),
            Just(b"_\r\n".to_vec()),
            Just(b"+OK\r\n".to_vec()),
            Just(b"#t\r\n".to_vec()),
        ];
        leaf.prop_recursive(4, 64, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(|v| [
                    format!("*{}\r\n", v.len()).into_bytes(),
                    v.concat()
                ]
                .concat()),
                prop::collection::vec((inner.clone(), inner), 0..3).prop_map(|v| {
                    let mut out = format!("%{}\r\n", v.len()).into_bytes();
                    for (i, (_, value)) in v.into_iter().enumerate() {
                        out.extend_from_slice(format!(":{i}\r\n").as_bytes());
                        out.extend_from_slice(&value);
                    }
                    out
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_split_of_the_bytes_scans_the_same_and_the_crate_agrees(
            frames in prop::collection::vec(frame(), 1..5), step in 1usize..7,
        ) {
            let bytes = frames.concat();
            let mut scanner = ReplyScanner::default();
            let (mut start, mut end) = (0, 0);
            let mut lens = Vec::new();
            while start < bytes.len() {
                match scanner.scan(&bytes[start..end]).unwrap() {
                    Some(reply) => {
                        let (_, used) = redis_protocol::resp3::decode::complete::decode_bytes(
                            &bytes::Bytes::copy_from_slice(&bytes[start..])).unwrap().unwrap();
                        prop_assert_eq!(used, reply.len);
                        lens.push(reply.len);
                        start += reply.len;
                    }
                    None => {
                        prop_assert!(end < bytes.len());
                        end = (end + step).min(bytes.len());
                    }
                }
            }
            prop_assert_eq!(lens, frames.iter().map(Vec::len).collect::<Vec<_>>());
        }
    }
}
