//! A Redis-protocol proxy that moves a live Django site's sessions to a new Redis, and to the database, losing none.
//!
//! Rooms, in reading order. The first four are pure: no sockets, no clock, no configuration files.

pub mod command;
pub mod resp;
pub mod session;

#[cfg(feature = "net")]
pub mod admin;
#[cfg(feature = "net")]
pub mod app;
#[cfg(feature = "net")]
pub mod check;
#[cfg(feature = "net")]
pub mod cli;
#[cfg(feature = "net")]
pub mod clock;
#[cfg(feature = "net")]
pub mod config;
#[cfg(feature = "net")]
pub mod histogram;
#[cfg(feature = "net")]
pub mod init;
#[cfg(feature = "net")]
pub mod journal;
#[cfg(feature = "net")]
pub mod migrate;
#[cfg(feature = "net")]
pub mod net;
#[cfg(feature = "net")]
pub mod proxy;
#[cfg(feature = "net")]
pub mod rehearse;
#[cfg(feature = "net")]
pub mod sink;
#[cfg(feature = "net")]
pub mod status;
#[cfg(feature = "net")]
pub mod tee;
