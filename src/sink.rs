//! The stores that the tee writes to, and that backfill and verify read: one Redis, one database. Idempotent.
//!
//! Everything here may be repeated: a write says what a session *is*, not what happened to it. The caller coalesces,
//! keeps the order per key and retries; this room talks to one store, bounds every wait, and says in an error's kind
//! what went wrong.
//!
//! A write that timed out may still be on its way. It must never land on top of a newer one, so a Redis connection that
//! is given up is killed on the server before the next is used (`redis::link`), and a row is only ever written inside
//! an explicit transaction, whose row locks make the next writer wait for it.

pub mod database;
mod mysql;
mod postgres;
pub mod redis;
mod schema;
mod sqlite;

pub use self::database::{Database, DatabaseError, DatabaseErrorKind, DatabaseOptions, Place, Row, TableReport};
pub use self::redis::{NewKey, RedisStore, RedisWrite, ServerFacts, StoreError, StoreErrorKind, Stored};
