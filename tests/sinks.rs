//! The stores against real servers, which each test starts on a free loopback port and stops by its process id.

#![allow(
    clippy::unwrap_used,
    reason = "clippy allows it in test functions, but not in the helpers around them"
)]

use std::time::{SystemTime, UNIX_EPOCH};

#[path = "sinks/databases.rs"]
mod databases;
#[path = "sinks/redis.rs"]
mod redis_store;
#[path = "sinks/servers.rs"]
mod servers;

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}
