//! The limits of the protocol, as Redis has them.

/// Longest bulk string, bytes (Redis: `proto-max-bulk-len`).
pub const MAX_BULK_LEN: i64 = 512 * 1024 * 1024;
/// Most arguments of one command (Redis: `INT_MAX`).
pub const MAX_ARGS: i64 = i32::MAX as i64;
/// Longest line: an inline command, or the digits of a length, bytes (Redis: `PROTO_INLINE_MAX_SIZE`).
pub const MAX_LINE_LEN: usize = 64 * 1024;
/// The same for clients that have not authenticated where they must: nobody may fill memory without a password.
pub const MAX_UNAUTHENTICATED_BULK_LEN: i64 = 16 * 1024;
pub const MAX_UNAUTHENTICATED_ARGS: i64 = 10;
