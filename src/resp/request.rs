//! Finds where a request ends. Follows `processMultibulkBuffer` and `processInlineBuffer` of Redis, errors included.

use std::ops::Range;

use super::limits::{MAX_ARGS, MAX_BULK_LEN, MAX_LINE_LEN, MAX_UNAUTHENTICATED_ARGS, MAX_UNAUTHENTICATED_BULK_LEN};
use super::{ProtocolError, inline, parse_integer};

/// A whole request at the start of a buffer.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// Bytes that it takes, from the start of the buffer.
    pub len: usize,
    /// Number of arguments, the command's name included; 0 for what Redis skips in silence (`*0`, an empty line).
    pub argc: usize,
    /// Where the command's name is (multibulk only; empty for an inline command).
    pub name: Range<usize>,
    /// The first argument behind the name, which most often is the key; empty where there is none, or inline.
    pub first: Range<usize>,
    /// Something other than CR LF stands where a line or an argument ends. Redis looks at the CR of a line alone, and at
    /// nothing behind an argument; Valkey 9.1 ends the connection.
    pub is_odd: bool,
}

/// Where the scan of the request at the start of the buffer stands.
#[derive(Debug, Default)]
pub struct RequestScanner {
    /// Bytes looked at and found in order.
    pos: usize,
    argc: usize,
    args_left: usize,
    name: Range<usize>,
    first: Range<usize>,
    in_multibulk: bool,
    is_odd: bool,
    /// The narrow limits apply: a password is asked for, and the client has given none.
    pub unauthenticated: bool,
}

impl RequestScanner {
    /// Looks at `buffer`, whose start is where the current request starts. `Ok(None)` means that more bytes are needed:
    /// call again with the same start and more behind it. After a request the caller drops its `len` bytes.
    ///
    /// # Errors
    /// The error that Redis answers before it closes the connection.
    pub fn scan(&mut self, buffer: &[u8]) -> Result<Option<Request>, ProtocolError> {
        if !self.in_multibulk {
            match buffer.first() {
                None => return Ok(None),
                Some(b'*') => {}
                Some(_) => return scan_inline(buffer),
            }
            let Some((count, next)) = line(buffer, 1, ProtocolError::CountTooBig)? else {
                return Ok(None);
            };
            let count = parse_integer(count)
                .filter(|&n| n <= MAX_ARGS)
                .ok_or(ProtocolError::InvalidCount)?;
            if self.unauthenticated && count > MAX_UNAUTHENTICATED_ARGS {
                return Err(ProtocolError::UnauthenticatedCount);
            }
            if count <= 0 {
                return Ok(Some(Request {
                    len: next,
                    argc: 0,
                    name: 0..0,
                    first: 0..0,
                    is_odd: false,
                }));
            }
            self.is_odd = buffer[next - 1] != b'\n';
            self.in_multibulk = true;
            self.argc = count as usize;
            self.args_left = count as usize;
            self.pos = next;
        }
        while self.args_left > 0 {
            match buffer.get(self.pos) {
                None => return Ok(None),
                Some(b'$') => {}
                Some(&other) => {
                    // Redis looks at the byte only once the whole line is there.
                    if line(buffer, self.pos, ProtocolError::BulkCountTooBig)?.is_none() {
                        return Ok(None);
                    }
                    return Err(ProtocolError::ExpectedBulk(other));
                }
            }
            let Some((digits, start)) = line(buffer, self.pos + 1, ProtocolError::BulkCountTooBig)? else {
                return Ok(None);
            };
            let len = parse_integer(digits)
                .filter(|n| (0..=MAX_BULK_LEN).contains(n))
                .ok_or(ProtocolError::InvalidBulkLength)?;
            if self.unauthenticated && len > MAX_UNAUTHENTICATED_BULK_LEN {
                return Err(ProtocolError::UnauthenticatedBulkLength);
            }
            let len = len as usize;
            if buffer.len() < start + len + 2 {
                return Ok(None);
            }
            let index = self.argc - self.args_left;
            if index == 0 {
                self.name = start..start + len;
            } else if index == 1 {
                self.first = start..start + len;
            }
            self.pos = start + len + 2;
            self.is_odd |= buffer[start - 1] != b'\n' || buffer[self.pos - 2..self.pos] != *b"\r\n";
            self.args_left -= 1;
        }
        let request = Request {
            len: self.pos,
            argc: self.argc,
            name: self.name.clone(),
            first: self.first.clone(),
            is_odd: self.is_odd,
        };
        *self = Self {
            unauthenticated: self.unauthenticated,
            ..Self::default()
        };
        Ok(Some(request))
    }

    /// Bytes that the request still needs at the least, so that the caller can make room once.
    pub fn wants(&self, buffer: &[u8]) -> usize {
        if !self.in_multibulk || buffer.get(self.pos) != Some(&b'$') {
            return 0;
        }
        let Ok(Some((digits, start))) = line(buffer, self.pos + 1, ProtocolError::BulkCountTooBig) else {
            return 0;
        };
        match parse_integer(digits) {
            Some(len) if (0..=MAX_BULK_LEN).contains(&len) => (start + len as usize + 2).saturating_sub(buffer.len()),
            _ => 0,
        }
    }
}

/// Where `byte` is. As Redis looks for the end of a line: not beyond a NUL.
#[inline]
fn find(byte: u8, text: &[u8]) -> Option<usize> {
    memchr::memchr2(byte, 0, text).filter(|&at| text[at] == byte)
}

/// The text from `start` up to the next CR, and where the next line starts. `None` while the line is not whole.
#[inline]
fn line(buffer: &[u8], start: usize, too_long: ProtocolError) -> Result<Option<(&[u8], usize)>, ProtocolError> {
    let rest = &buffer[start..];
    // Lengths are short: a plain loop beats a vectorised search.
    let window = &rest[..rest.len().min(24)];
    let end = match window.iter().position(|&b| b == b'\r' || b == 0) {
        Some(end) => Some(end).filter(|&end| rest[end] != 0),
        None => find(b'\r', rest),
    };
    match end {
        Some(end) if end + 1 < rest.len() => Ok(Some((&rest[..end], start + end + 2))),
        Some(_) => Ok(None),
        None if rest.len() > MAX_LINE_LEN => Err(too_long),
        None => Ok(None),
    }
}

fn scan_inline(buffer: &[u8]) -> Result<Option<Request>, ProtocolError> {
    let Some(end) = find(b'\n', buffer) else {
        return if buffer.len() > MAX_LINE_LEN {
            Err(ProtocolError::InlineTooBig)
        } else {
            Ok(None)
        };
    };
    let argc = inline::split(&buffer[..end])?.len();
    Ok(Some(Request {
        len: end + 1,
        argc,
        name: 0..0,
        first: 0..0,
        is_odd: false,
    }))
}

/// The arguments of one whole multibulk request, as slices of its bytes.
#[derive(Clone, Debug)]
pub struct Args<'a> {
    frame: &'a [u8],
    pos: usize,
}

impl<'a> Args<'a> {
    /// `frame` must be a whole multibulk request that [`RequestScanner`] has found.
    pub fn new(frame: &'a [u8]) -> Self {
        // As Redis and the scanner: a line ends with a carriage return and whatever byte comes next.
        let pos = memchr::memchr(b'\r', frame).map_or(frame.len(), |end| end + 2);
        Args { frame, pos }
    }
}

impl<'a> Iterator for Args<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.frame.get(self.pos + 1..)?;
        let mut len = 0usize;
        let mut digits = 0;
        for &byte in rest {
            if byte == b'\r' {
                break;
            }
            len = len * 10 + usize::from(byte - b'0');
            digits += 1;
        }
        let start = self.pos + 1 + digits + 2;
        let argument = self.frame.get(start..start + len)?;
        self.pos = start + len + 2;
        Some(argument)
    }
}

/// Encodes a command the way every client does: an array of bulk strings.
pub fn encode<A: AsRef<[u8]>>(args: &[A], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{}\r\n", args.len()).as_bytes());
    for arg in args {
        let arg = arg.as_ref();
        out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scan_all(bytes: &[u8]) -> Result<Vec<(usize, usize)>, ProtocolError> {
        let mut scanner = RequestScanner::default();
        let mut start = 0;
        let mut found = Vec::new();
        while let Some(request) = scanner.scan(&bytes[start..])? {
            found.push((request.len, request.argc));
            start += request.len;
        }
        Ok(found)
    }

    #[test]
    fn finds_the_end_the_name_and_the_key() {
        let bytes = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$2\r\nvv\r\n*1\r\n$4\r\nPING\r\n";
        let request = RequestScanner::default().scan(bytes).unwrap().unwrap();
        assert_eq!(&bytes[request.name.clone()], b"SET");
        assert_eq!(&bytes[request.first.clone()], b"k");
        assert_eq!(request.argc, 3);
        assert_eq!(
            Args::new(&bytes[..request.len]).collect::<Vec<_>>(),
            [&b"SET"[..], b"k", b"vv"]
        );
        assert_eq!(scan_all(bytes).unwrap(), [(request.len, 3), (14, 1)]);
    }

    #[test]
    fn answers_protocol_errors_as_redis_does() {
        let check = |bytes: &[u8], message: &str| {
            assert_eq!(
                scan_all(bytes).unwrap_err().to_string(),
                message,
                "{:?}",
                String::from_utf8_lossy(bytes)
            );
        };
        check(b"*x\r\n", "Protocol error: invalid multibulk length");
        check(b"*3000000000\r\n", "Protocol error: invalid multibulk length");
        check(b"*1\r\n:1\r\n", "Protocol error: expected '$', got ':'");
        check(b"*1\r\n$-1\r\n", "Protocol error: invalid bulk length");
        check(b"*1\r\n$600000000\r\n", "Protocol error: invalid bulk length");
        check(b"SET \"a\r\n", "Protocol error: unbalanced quotes in request");
        check(&vec![b'a'; 70_000], "Protocol error: too big inline request");
        check(
            &[b"*".as_slice(), &[b'1'; 70_000]].concat(),
            "Protocol error: too big mbulk count string",
        );
        check(
            &[b"*1\r\n$".as_slice(), &[b'1'; 70_000]].concat(),
            "Protocol error: too big bulk count string",
        );
    }

    #[test]
    fn skips_what_redis_skips() {
        assert_eq!(
            scan_all(b"*0\r\n*-1\r\n\r\n\nPING\r\n").unwrap(),
            [(4, 0), (5, 0), (2, 0), (1, 0), (6, 1)]
        );
    }

    /// Its C strings end there: no line ends beyond a NUL, and more may come for ever.
    #[test]
    fn waits_at_a_nul_as_redis_does() {
        for bytes in [
            &b"PI\0NG\r\nPING\r\n"[..],
            b"*1\0\r\n$4\r\nPING\r\n",
            b"*1\r\n$4\0\r\nPING\r\n",
        ] {
            assert_eq!(scan_all(bytes).unwrap(), []);
        }
        assert_eq!(scan_all(b"*1\r\n$1\r\n\0\r\nPING\r\n").unwrap(), [(11, 1), (6, 1)]);
        let error = scan_all(&[b"\0\n".as_slice(), &[b'a'; 70_000]].concat()).unwrap_err();
        assert_eq!(error.to_string(), "Protocol error: too big inline request");
    }

    #[test]
    fn arguments_are_found_where_the_scanner_found_them() {
        // Redis looks at the carriage return of a line alone.
        for frame in [
            &b"*1\r\n$4\r\nPING\r\n"[..],
            b"*1\r\r$4\rxPING\r\n",
            b"*1\rx$4\r\nPING\xec\r",
        ] {
            let request = RequestScanner::default().scan(frame).unwrap().unwrap();
            assert_eq!((request.len, &frame[request.name]), (frame.len(), &b"PING"[..]));
            assert_eq!(request.is_odd, !frame.ends_with(b"$4\r\nPING\r\n"), "{frame:?}");
            assert_eq!(Args::new(frame).collect::<Vec<_>>(), [b"PING"]);
        }
    }

    proptest! {
        #[test]
        fn any_split_of_the_bytes_scans_the_same(
            commands in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..6), 1..6),
            step in 1usize..9,
        ) {
            let mut bytes = Vec::new();
            for command in &commands {
                encode(command, &mut bytes);
            }
            let mut scanner = RequestScanner::default();
            let (mut start, mut end) = (0, 0);
            let mut seen = Vec::new();
            while start < bytes.len() {
                match scanner.scan(&bytes[start..end]).unwrap() {
                    Some(request) => {
                        let frame = &bytes[start..start + request.len];
                        seen.push(Args::new(frame).map(<[u8]>::to_vec).collect::<Vec<_>>());
                        // The crate must agree on where the frame ends.
                        let (_, used) = redis_protocol::resp2::decode::decode_bytes(
                            &bytes::Bytes::copy_from_slice(&bytes[start..])).unwrap().unwrap();
                        prop_assert_eq!(used, request.len);
                        start += request.len;
                    }
                    None => {
                        prop_assert!(end < bytes.len());
                        end = (end + step).min(bytes.len());
                    }
                }
            }
            prop_assert_eq!(seen, commands);
        }
    }
}
