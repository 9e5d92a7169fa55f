//! The three ways in which pickles spell text.

use super::PickleError;

/// Checks UTF-8 in which lone surrogates may stand (`ED A0..BF xx`): what Python's `surrogatepass` reads and writes.
pub(super) fn check_utf8(mut bytes: &[u8]) -> Result<(), PickleError> {
    loop {
        let Err(error) = std::str::from_utf8(bytes) else {
            return Ok(());
        };
        let rest = &bytes[error.valid_up_to()..];
        match rest {
            [0xed, 0xa0..=0xbf, 0x80..=0xbf, ..] => bytes = &rest[3..],
            _ => return Err(PickleError::Text),
        }
    }
}

/// Appends one code point, a surrogate included, in that same encoding.
pub(crate) fn push_code_point(out: &mut Vec<u8>, code: u32) {
    match char::from_u32(code) {
        Some(c) => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        // Only surrogates and what is above U+10FFFF are no `char`; callers rule out the latter.
        None => out.extend_from_slice(&[0xed, 0x80 | (code >> 6 & 0x3f) as u8, 0x80 | (code & 0x3f) as u8]),
    }
}

/// The argument of STRING: Python's `repr` of a Python 2 `str`, which Python 3 reads as ASCII.
pub(super) fn unquote(line: &[u8], out: &mut Vec<u8>) -> Result<(), PickleError> {
    let line = line.trim_ascii_end();
    let inner = match line {
        [b'\'', inner @ .., b'\''] | [b'"', inner @ .., b'"'] => inner,
        _ => return Err(PickleError::Text),
    };
    let mut bytes = inner.iter().copied();
    while let Some(byte) = bytes.next() {
        let plain = if byte != b'\\' {
            byte
        } else {
            match bytes.next().ok_or(PickleError::Text)? {
                b'\n' => continue,
                b @ (b'\\' | b'\'' | b'"') => b,
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'b' => 0x08,
                b'f' => 0x0c,
                b'v' => 0x0b,
                b'a' => 0x07,
                b'x' => hex(&mut bytes, 2)? as u8,
                first @ b'0'..=b'7' => {
                    let mut value = u32::from(first - b'0');
                    for _ in 0..2 {
                        match bytes.clone().next() {
                            Some(digit @ b'0'..=b'7') => value = value * 8 + u32::from(digit - b'0'),
                            _ => break,
                        }
                        bytes.next();
                    }
                    value as u8
                }
                other => {
                    out.push(b'\\');
                    other
                }
            }
        };
        if !plain.is_ascii() {
            return Err(PickleError::Text);
        }
        out.push(plain);
    }
    Ok(())
}

/// The argument of UNICODE: Latin-1 with `\uXXXX` and `\UXXXXXXXX` (Python's `raw-unicode-escape`).
pub(super) fn unescape(line: &[u8], out: &mut Vec<u8>) -> Result<(), PickleError> {
    let mut bytes = line.iter().copied();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            push_code_point(out, u32::from(byte));
            continue;
        }
        let digits = match bytes.next() {
            Some(b'u') => 4,
            Some(b'U') => 8,
            other => {
                out.push(b'\\');
                if let Some(other) = other {
                    push_code_point(out, u32::from(other));
                }
                continue;
            }
        };
        let code = hex(&mut bytes, digits)?;
        if code > u32::from(char::MAX) {
            return Err(PickleError::Text);
        }
        push_code_point(out, code);
    }
    Ok(())
}

/// The number in the next `digits` hexadecimal digits.
fn hex(bytes: &mut impl Iterator<Item = u8>, digits: usize) -> Result<u32, PickleError> {
    let mut value = 0;
    for _ in 0..digits {
        let digit = bytes
            .next()
            .and_then(|b| char::from(b).to_digit(16))
            .ok_or(PickleError::Text)?;
        value = value << 4 | digit;
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn surrogates_pass_and_other_bad_utf8_does_not() {
        for good in [
            &b"a\xed\xa0\x80b"[..],
            b"\xed\xa0\xbd\xed\xb8\x80",
            "é😀".as_bytes(),
            b"",
        ] {
            assert_eq!(check_utf8(good), Ok(()), "{good:?}");
        }
        for bad in [&b"\xff\xfe"[..], b"\xc0\x80", b"\xed\xa0", b"a\xf4\x90\x80\x80"] {
            assert_eq!(check_utf8(bad), Err(PickleError::Text), "{bad:?}");
        }
    }

    #[test]
    fn a_quoted_string_is_unescaped_as_python_2_wrote_it() {
        let check = |line: &[u8]| {
            let mut out = Vec::new();
            unquote(line, &mut out).map(|()| out)
        };
        assert_eq!(check(br#"'it\'s \x41\101\n\\\q'"#), Ok(b"it's AA\n\\\\q".to_vec()));
        assert_eq!(check(br#""x""#), Ok(b"x".to_vec()));
        for bad in [&b"abc"[..], b"'", b"'abc", b"'\\x4'", b"'\\xe9'", b"'\xc3\xa9'", b"'\\"] {
            assert_eq!(check(bad), Err(PickleError::Text), "{bad:?}");
        }
    }

    #[test]
    fn raw_unicode_escapes_become_code_points() {
        let check = |line: &[u8]| {
            let mut out = Vec::new();
            unescape(line, &mut out).map(|()| out)
        };
        assert_eq!(
            check(b"\xe9 \\u65e5 \\U0001f600 \\u005c \\ud800"),
            Ok(["é 日 😀 \\ ".as_bytes(), b"\xed\xa0\x80",].concat())
        );
        assert_eq!(check(b"\\U00110000"), Err(PickleError::Text));
        assert_eq!(check(b"\\u12"), Err(PickleError::Text));
    }
}
