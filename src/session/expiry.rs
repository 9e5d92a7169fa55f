//! When a session ends: one absolute instant, computed once.

/// When a session ends, in milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// The instant at which Redis drops the key, ms since the epoch (as `PXAT` and `PEXPIRETIME` have it).
    At(i64),
    /// The key carries no expiry.
    Never,
}
