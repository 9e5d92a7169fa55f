//! Dates as Python pickles them, and as `isoformat()` prints them.

use std::fmt::Write as _;

use super::super::object::Zone;

const US_PER_SECOND: i64 = 1_000_000;
const US_PER_DAY: i64 = 86_400 * US_PER_SECOND;

/// Days, seconds and microseconds of a timedelta as microseconds; `None` where they do not fit in 64 bits.
fn micros(days: i64, seconds: i64, us: i64) -> Option<i64> {
    days.checked_mul(US_PER_DAY)?
        .checked_add(seconds.checked_mul(US_PER_SECOND)?)?
        .checked_add(us)
}

/// The zone `datetime.timezone(timedelta(..))`, whose offset Python keeps strictly within a day.
pub(super) fn zone(days: i64, seconds: i64, us: i64) -> Option<Zone> {
    micros(days, seconds, us)
        .filter(|offset| offset.abs() < US_PER_DAY)
        .map(Zone::Offset)
}

/// Whether four bytes are a date: year (big-endian), month, day. Bit 7 of the month is a datetime's `fold`.
pub(super) fn is_date(bytes: &[u8], fold_allowed: bool) -> bool {
    let &[high, low, month, day] = bytes else { return false };
    let year = u16::from_be_bytes([high, low]);
    let month = if fold_allowed { month & 0x7f } else { month };
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return false,
    };
    (1..=9999).contains(&year) && (1..=days).contains(&day)
}

/// Whether six bytes are a time: hour, minute, second, microsecond (big-endian). Bit 7 of a lone time's hour is `fold`.
pub(super) fn is_time(bytes: &[u8], fold_allowed: bool) -> bool {
    let &[hour, minute, second, a, b, c] = bytes else {
        return false;
    };
    let hour = if fold_allowed { hour & 0x7f } else { hour };
    hour < 24 && minute < 60 && second < 60 && u32::from_be_bytes([0, a, b, c]) < 1_000_000
}

/// `datetime.isoformat()` of the ten bytes, or `None` where the zone is a named one.
pub(crate) fn isoformat(bytes: [u8; 10], zone: Zone) -> Option<String> {
    let [y1, y2, month, day, hour, minute, second, a, b, c] = bytes;
    let (year, us) = (u16::from_be_bytes([y1, y2]), u32::from_be_bytes([0, a, b, c]));
    let mut out = format!(
        "{year:04}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}",
        month & 0x7f
    );
    // Writing to a String cannot fail, here and below.
    if us != 0 {
        let _ = write!(out, ".{us:06}");
    }
    match zone {
        Zone::Naive => {}
        Zone::Named => return None,
        Zone::Offset(offset) => {
            let size = offset.abs();
            let (seconds, us) = (size / US_PER_SECOND, size % US_PER_SECOND);
            let sign = if offset < 0 { '-' } else { '+' };
            let _ = write!(out, "{sign}{:02}:{:02}", seconds / 3600, seconds / 60 % 60);
            if seconds % 60 != 0 || us != 0 {
                let _ = write!(out, ":{:02}", seconds % 60);
            }
            if us != 0 {
                let _ = write!(out, ".{us:06}");
            }
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATE: [u8; 10] = [7, 234, 0x80 | 1, 2, 3, 4, 5, 10, 91, 245];

    #[test]
    fn isoformat_is_that_of_python() {
        let check = |bytes, zone: Option<Zone>, expected: &str| {
            assert_eq!(isoformat(bytes, zone.unwrap()).as_deref(), Some(expected));
        };
        check(DATE, Some(Zone::Naive), "2026-01-02T03:04:05.678901");
        check(DATE, zone(0, 0, 0), "2026-01-02T03:04:05.678901+00:00");
        check(
            [0, 1, 12, 31, 0, 0, 0, 0, 0, 0],
            zone(-1, 66_600, 0),
            "0001-12-31T00:00:00-05:30",
        );
        check(DATE, zone(0, 3_601, 5), "2026-01-02T03:04:05.678901+01:00:01.000005");
        assert_eq!(isoformat(DATE, Zone::Named), None);
    }

    #[test]
    fn what_is_no_date_or_time_is_refused() {
        assert!(is_date(&[7, 234, 12, 31], false) && is_date(&[7, 208, 2, 29], false));
        for bad in [
            [7, 234, 13, 1],
            [7, 234, 0, 1],
            [7, 234, 2, 29],
            [0, 0, 1, 1],
            [0xff, 0, 1, 1],
            [7, 234, 0x81, 1],
        ] {
            assert!(!is_date(&bad, false), "{bad:?}");
        }
        assert!(is_date(&DATE[..4], true) && is_time(&DATE[4..], false) && is_time(&[0x97, 0, 0, 0, 0, 0], true));
        assert!(!is_time(&[24, 0, 0, 0, 0, 0], false) && !is_time(&[0, 0, 0, 15, 66, 64], false));
        assert!(zone(1, 0, 0).is_none() && zone(i64::MAX, 0, 0).is_none());
    }
}
