//! Inline commands: a line of words, as a person types them over telnet. Splits as Redis's `sdssplitargs` does.

use super::ProtocolError;

/// The words of `line` (without its line feed; a carriage return at its end counts as a space).
///
/// # Errors
/// [`ProtocolError::UnbalancedQuotes`].
pub fn split(line: &[u8]) -> Result<Vec<Vec<u8>>, ProtocolError> {
    let mut words = Vec::new();
    let mut rest = line;
    loop {
        while let [first, tail @ ..] = rest
            && is_space(*first)
        {
            rest = tail;
        }
        if rest.is_empty() || rest[0] == 0 {
            return Ok(words);
        }
        let (word, tail) = word(rest)?;
        words.push(word);
        rest = tail;
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\r' | b'\t' | 0x0b | 0x0c)
}

fn word(mut rest: &[u8]) -> Result<(Vec<u8>, &[u8]), ProtocolError> {
    let mut word = Vec::new();
    loop {
        match rest {
            [] => return Ok((word, rest)),
            [byte, ..] if is_space(*byte) || *byte == 0 => return Ok((word, rest)),
            [b'"', tail @ ..] => {
                rest = double_quoted(tail, &mut word)?;
                return closed(rest, word);
            }
            [b'\'', tail @ ..] => {
                rest = single_quoted(tail, &mut word)?;
                return closed(rest, word);
            }
            [byte, tail @ ..] => {
                word.push(*byte);
                rest = tail;
            }
        }
    }
}

/// A closing quote must be followed by a space or by nothing.
fn closed(rest: &[u8], word: Vec<u8>) -> Result<(Vec<u8>, &[u8]), ProtocolError> {
    match rest.first() {
        Some(&byte) if !is_space(byte) => Err(ProtocolError::UnbalancedQuotes),
        _ => Ok((word, rest)),
    }
}

fn double_quoted<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Result<&'a [u8], ProtocolError> {
    loop {
        match rest {
            [] => return Err(ProtocolError::UnbalancedQuotes),
            [b'"', tail @ ..] => return Ok(tail),
            [b'\\', b'x', high, low, tail @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                word.push(hex(*high) * 16 + hex(*low));
                rest = tail;
            }
            [b'\\', escaped, tail @ ..] => {
                word.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 0x08,
                    b'a' => 0x07,
                    other => *other,
                });
                rest = tail;
            }
            [byte, tail @ ..] => {
                word.push(*byte);
                rest = tail;
            }
        }
    }
}

fn single_quoted<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Result<&'a [u8], ProtocolError> {
    loop {
        match rest {
            [] => return Err(ProtocolError::UnbalancedQuotes),
            [b'\'', tail @ ..] => return Ok(tail),
            [b'\\', b'\'', tail @ ..] => {
                word.push(b'\'');
                rest = tail;
            }
            [byte, tail @ ..] => {
                word.push(*byte);
                rest = tail;
            }
        }
    }
}

fn hex(digit: u8) -> u8 {
    (digit as char).to_digit(16).map_or(0, |value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn splits_as_redis_does() {
        let check = |line: &str, expected: &[&[u8]]| assert_eq!(split(line.as_bytes()).unwrap(), expected, "{line:?}");
        check("", &[]);
        check("  PING\r", &[b"PING"]);
        check("SET k \"a b\\x41\\n\"", &[b"SET", b"k", b"a bA\n"]);
        check("SET k 'it\\'s'", &[b"SET", b"k", b"it's"]);
        check("SET k \"\"", &[b"SET", b"k", b""]);
        for bad in ["\"a", "'a", "\"a\"b", "'a'b"] {
            assert!(split(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
