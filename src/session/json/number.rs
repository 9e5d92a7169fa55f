//! Numbers as Python's `repr` prints them.

use std::io::Write as _;

/// Decimal digits. Writing to a Vec cannot fail, here and below.
pub(super) fn write_int(out: &mut Vec<u8>, number: i64) {
    let _ = write!(out, "{number}");
}

/// The shortest digits that read back as the same float, laid out as Python does it: an exponent below 1e-4 and from
/// 1e16 on, of at least two digits, and a point or an exponent always, so that the float comes back as a float.
pub(super) fn write_float(out: &mut Vec<u8>, number: f64) {
    if number.is_nan() {
        out.extend_from_slice(b"NaN");
        return;
    }
    if number.is_sign_negative() {
        out.push(b'-');
    }
    if number.is_infinite() {
        out.extend_from_slice(b"Infinity");
        return;
    }
    // Rust's `{:e}` gives the same shortest digits, `d.ddde-5`, but for ties.
    let mut buffer = [0; 32];
    let mut text = digits(&mut buffer, number, None);
    let mut rounded = [0; 32];
    let count = text
        .iter()
        .take_while(|b| **b != b'e')
        .filter(|b| b.is_ascii_digit())
        .count();
    if count >= TIE_DIGITS {
        // Of two equally near, Python takes the even one, as rounding to that many digits does.
        let even = digits(&mut rounded, number, Some(count - 1));
        if std::str::from_utf8(even).is_ok_and(|even| even.parse() == Ok(number.abs())) {
            text = even;
        }
    }
    let at = text.iter().position(|b| *b == b'e').unwrap_or(text.len());
    let exponent: i32 = text
        .get(at + 1..)
        .and_then(|e| std::str::from_utf8(e).ok()?.parse().ok())
        .unwrap_or(0);
    let (first, fraction) = (&text[..1], text.get(2..at).unwrap_or(&[]));

    if !(-4..16).contains(&exponent) {
        out.extend_from_slice(first);
        if !fraction.is_empty() {
            out.push(b'.');
            out.extend_from_slice(fraction);
        }
        let sign = if exponent < 0 { '-' } else { '+' };
        let _ = write!(out, "e{sign}{:02}", exponent.abs());
    } else if exponent < 0 {
        out.extend_from_slice(b"0.");
        out.extend(std::iter::repeat_n(b'0', (-exponent - 1) as usize));
        out.extend_from_slice(first);
        out.extend_from_slice(fraction);
    } else {
        let whole = exponent as usize;
        out.extend_from_slice(first);
        out.extend_from_slice(&fraction[..whole.min(fraction.len())]);
        out.extend(std::iter::repeat_n(b'0', whole.saturating_sub(fraction.len())));
        out.push(b'.');
        match fraction.get(whole..) {
            Some(rest) if !rest.is_empty() => out.extend_from_slice(rest),
            _ => out.push(b'0'),
        }
    }
}

/// Fewest digits at which two shortest texts may be equally near: every text of 15 digits is a float of its own.
const TIE_DIGITS: usize = 16;

/// The digits of a float's size in scientific form: the shortest, or with so many of them after the point.
fn digits(buffer: &mut [u8; 32], number: f64, after_point: Option<usize>) -> &[u8] {
    let mut cursor = std::io::Cursor::new(&mut buffer[..]);
    let _ = match after_point {
        None => write!(cursor, "{:e}", number.abs()),
        Some(count) => write!(cursor, "{:.*e}", count, number.abs()),
    };
    let len = cursor.position() as usize;
    &buffer[..len]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_printed_as_python_prints_them() {
        for (number, expected) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (100.0, "100.0"),
            (1.5, "1.5"),
            (0.1, "0.1"),
            (12.75, "12.75"),
            (0.0001, "0.0001"),
            (0.00012345, "0.00012345"),
            (0.00001, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (123456789.12345679, "123456789.12345679"),
            (1e15, "1000000000000000.0"),
            (9999999999999998.0, "9999999999999998.0"),
            (1e16, "1e+16"),
            (1.2345e22, "1.2345e+22"),
            // Halfway between two texts of 17 digits.
            (-1626873471000000.0 - 0.25, "-1626873471000000.2"),
            (1626873471000000.0 + 0.75, "1626873471000000.8"),
            (-1649712460322059.0 - 0.25, "-1649712460322059.2"),
            (1e300, "1e+300"),
            (5e-324, "5e-324"),
            (f64::MAX, "1.7976931348623157e+308"),
            (f64::NAN, "NaN"),
            (-f64::NAN, "NaN"),
            (f64::INFINITY, "Infinity"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            let mut out = Vec::new();
            write_float(&mut out, number);
            assert_eq!(String::from_utf8_lossy(&out), expected);
        }
    }
}
