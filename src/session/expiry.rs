//! When a session ends: one absolute instant, computed once.
//!
//! The TTL in Django's SET is its own expiry, whatever form `_session_expiry` has, so a deadline taken from Redis is
//! right for the row too, within a second. Nothing here reads a clock; the caller passes the time.

/// The last instant that a row can hold: a day before the year 10000, so that the local time which SQLite and MySQL
/// store where `USE_TZ` is off still has four digits for the year. In ms since the epoch.
pub const MAX_EXPIRE_MS: i64 = 253_402_214_400_000;

/// When a session ends, in milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// The instant at which Redis drops the key, ms since the epoch (as `PXAT` and `PEXPIRETIME` have it).
    At(i64),
    /// The key carries no expiry.
    Never,
}

impl Deadline {
    /// Whether the session has ended at `now_ms`. At its very deadline a session is gone, in Redis as in Django's query
    /// (`expire_date > now`).
    pub fn is_past(self, now_ms: i64) -> bool {
        matches!(self, Deadline::At(at) if at <= now_ms)
    }

    /// Milliseconds left at `now_ms`, negative where the deadline is past; `None` where there is no deadline.
    pub fn remaining_ms(self, now_ms: i64) -> Option<i64> {
        match self {
            Deadline::At(at) => Some(at.saturating_sub(now_ms)),
            Deadline::Never => None,
        }
    }

    /// The deadline of a row, from its `expire_date` in ms since the epoch.
    pub fn from_expire_ms(expire_ms: i64) -> Deadline {
        Deadline::At(expire_ms)
    }
}

/// The `expire_date` of a row, in ms since the epoch.
///
/// A row always has one, so a key without expiry gets the age that Django itself would give it: `cookie_age_s`
/// (`SESSION_COOKIE_AGE`, in seconds) from `now_ms`. What lies past the year 9999 is cut to [`MAX_EXPIRE_MS`].
pub fn expire_ms(deadline: Deadline, now_ms: i64, cookie_age_s: i64) -> i64 {
    let at = match deadline {
        Deadline::At(at) => at,
        Deadline::Never => now_ms.saturating_add(cookie_age_s.saturating_mul(1000)),
    };
    at.min(MAX_EXPIRE_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_768_478_400_000;

    #[test]
    fn a_row_ends_when_its_key_does() {
        assert_eq!(expire_ms(Deadline::At(NOW + 300_000), NOW, 1_209_600), NOW + 300_000);
        assert_eq!(
            Deadline::from_expire_ms(expire_ms(Deadline::At(NOW), NOW + 5, 7)),
            Deadline::At(NOW)
        );
    }

    #[test]
    fn a_key_without_expiry_gets_the_cookie_age() {
        assert_eq!(expire_ms(Deadline::Never, NOW, 1_209_600), NOW + 1_209_600_000);
    }

    #[test]
    fn a_far_deadline_is_cut_to_what_a_row_can_hold() {
        // `set_expiry(10**12)`: Redis takes it, Django's own date arithmetic overflows.
        assert_eq!(
            expire_ms(Deadline::At(NOW + 1_000_000_000_000_000), NOW, 1),
            MAX_EXPIRE_MS
        );
        assert_eq!(expire_ms(Deadline::Never, NOW, i64::MAX), MAX_EXPIRE_MS);
    }

    #[test]
    fn a_session_is_gone_at_its_deadline() {
        assert!(Deadline::At(NOW).is_past(NOW) && !Deadline::At(NOW + 1).is_past(NOW));
        assert!(!Deadline::Never.is_past(i64::MAX));
        assert_eq!(Deadline::At(NOW).remaining_ms(NOW + 2), Some(-2));
        assert_eq!(Deadline::Never.remaining_ms(NOW), None);
    }
}
