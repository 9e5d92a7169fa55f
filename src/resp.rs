//! RESP2 and RESP3: where a frame ends and what it holds. Bytes in, facts out; nothing here reads a socket.
//!
//! The hot path only asks where a frame ends: the bytes themselves are forwarded as they came. Both scanners are
//! *resumable*: a large bulk or array is never rescanned from its start, however the bytes were split.

pub mod inline;
pub mod limits;
pub mod reply;
pub mod request;

pub use reply::{Reply, ReplyScanner};
pub use request::{Args, Request, RequestScanner};

/// Why a stream of bytes is no RESP; the message is the one that Redis itself answers before it closes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error("Protocol error: too big mbulk count string")]
    CountTooBig,
    #[error("Protocol error: invalid multibulk length")]
    InvalidCount,
    #[error("Protocol error: too big bulk count string")]
    BulkCountTooBig,
    #[error("Protocol error: expected '$', got '{}'", char::from(*.0))]
    ExpectedBulk(u8),
    #[error("Protocol error: invalid bulk length")]
    InvalidBulkLength,
    #[error("Protocol error: unauthenticated multibulk length")]
    UnauthenticatedCount,
    #[error("Protocol error: unauthenticated bulk length")]
    UnauthenticatedBulkLength,
    #[error("Protocol error: too big inline request")]
    InlineTooBig,
    #[error("Protocol error: unbalanced quotes in request")]
    UnbalancedQuotes,
    /// A reply of the upstream that is no RESP2 or RESP3.
    #[error("the reply is no RESP: unexpected byte {0:#04x}")]
    InvalidReply(u8),
    #[error("the reply has an invalid length")]
    InvalidReplyLength,
}

impl ProtocolError {
    /// The message as Redis sends it: the byte that was found stands there as it is, unless it would end the line.
    pub fn message(&self) -> Vec<u8> {
        match self {
            ProtocolError::ExpectedBulk(byte) => {
                let shown = if matches!(byte, b'\r' | b'\n') { b' ' } else { *byte };
                [b"Protocol error: expected '$', got '", &[shown][..], b"'"].concat()
            }
            other => other.to_string().into_bytes(),
        }
    }
}

/// A decimal integer as Redis's `string2ll` takes it: no sign but `-`, no leading zeros, no spaces.
pub(crate) fn parse_integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    match digits {
        [] => return None,
        [b'0'] => return (!negative).then_some(0),
        [b'0', ..] => return None,
        _ => {}
    }
    let mut value: i64 = 0;
    for &digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        value = value.checked_mul(10)?.checked_sub(i64::from(digit - b'0'))?;
    }
    if negative { Some(value) } else { value.checked_neg() }
}

#[cfg(test)]
mod tests {
    use super::parse_integer;

    #[test]
    fn integers_are_read_as_redis_reads_them() {
        for (text, expected) in [
            ("0", Some(0)),
            ("12", Some(12)),
            ("-1", Some(-1)),
            ("9223372036854775807", Some(i64::MAX)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("9223372036854775808", None),
            ("", None),
            ("-", None),
            ("-0", None),
            ("01", None),
            ("+1", None),
            (" 1", None),
            ("1x", None),
        ] {
            assert_eq!(parse_integer(text.as_bytes()), expected, "{text:?}");
        }
    }
}
