//! All knowledge of Django: which Redis keys are sessions, what their values hold, what the database row looks like.
//!
//! Established by running Django. Nothing here does I/O or reads a clock; time is passed in.

pub mod effect;
pub mod expiry;
pub mod key;

pub use effect::Effect;
pub use expiry::Deadline;
pub use key::{KeyPattern, KeyPatterns};
