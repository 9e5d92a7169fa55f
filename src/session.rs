//! All knowledge of Django: which Redis keys are sessions, what their values hold, what the database row looks like.
//!
//! Established by running Django. Nothing here does I/O or reads a clock; time is passed in. Nothing here executes what
//! a session holds: a pickle is read as data, and what is not plain data makes the session unstorable, with the name
//! of its type as the reason. Messages name types and limits, never keys or values: a session is a credential.
//!
//! [`row::RowCodec`] is what the rest of the program uses; under it lie [`value`] (Redis value to dictionary, through
//! [`compress`], and [`pickle`], [`json`] or msgpack), and [`signing`] (the signed envelope of a row).

mod alias;
pub mod compress;
pub mod effect;
pub mod expiry;
pub mod json;
pub mod key;
mod msgpack;
pub mod object;
pub mod pickle;
pub mod row;
pub mod signing;
pub mod value;

pub use alias::{Aliases, cached_db_name};
pub use compress::Compressor;
pub use effect::Effect;
pub use expiry::Deadline;
pub use key::{KeyPattern, KeyPatterns, PatternError};
pub use object::Dict;
pub use row::{Comparison, RowCodec, RowError, SessionSerializer, Unstorable};
pub use value::{Compression, Form, Serializer, Undecodable, ValueFormat};

/// The session engine of the site, as in `SESSION_ENGINE = "django.contrib.sessions.backends.<engine>"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// `cache`: sessions live in Redis alone.
    Cache,
    /// `cached_db`: Redis in front of the database's rows.
    CachedDb,
}

impl Engine {
    /// What the engine's Redis keys hold after `django.contrib.sessions.`.
    fn key_part(self) -> &'static str {
        match self {
            Engine::Cache => "cache",
            Engine::CachedDb => "cached_db",
        }
    }
}
