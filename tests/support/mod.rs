//! What the integration tests share: real servers on free ports, the proxy under test, and real Django.
//!
//! Every server is started by the test that uses it, on loopback, in a folder of its own, and ended by its process id when
//! the test ends, whether it passes or panics. Nothing is shared between tests, so they can run side by side.
#![allow(dead_code, reason = "each test file uses its own part of this")]
#![allow(unreachable_pub, reason = "shared by several test crates")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

pub mod admin;
pub mod certificates;
pub mod disk;
pub mod django;
pub mod load;
pub mod mariadb;
pub mod moving;
pub mod port;
pub mod postgres;
pub mod process;
pub mod project;
pub mod proxy;
pub mod redis_server;
pub mod relay;
pub mod resp;
pub mod site;

#[allow(unused_imports, reason = "each test file uses its own part of this")]
pub use self::{
    disk::SmallDisk,
    django::{Django, Hammer},
    load::Load,
    mariadb::MariaDb,
    port::Port,
    postgres::Postgres,
    proxy::{Proxy, ProxyOptions},
    redis_server::{RedisServer, Software},
    resp::{Raw, command},
    site::{DatabaseKind, Site},
};

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

/// What stock Django puts before the session key with engine `cache`.
pub const PREFIX: &str = ":1:django.contrib.sessions.cache";

/// The secret key that tests sign with.
pub const SECRET: &str = "a key for tests only";

/// The Redis key of a session.
pub fn session(key: &str) -> String {
    format!("{PREFIX}{key}")
}

/// Asks until the answer is yes; otherwise panics with what was waited for.
pub fn eventually(what: &str, within: Duration, mut ask: impl FnMut() -> bool) {
    let began = Instant::now();
    while !ask() {
        assert!(began.elapsed() < within, "waited {within:?} in vain until {what}");
        sleep(Duration::from_millis(20));
    }
}

/// The seed of a test that draws lots: the one given in the environment, else a new one. Printed, so that a failure can
/// be run again.
pub fn seed() -> u64 {
    let seed = match std::env::var("SESSIONFERRY_TEST_SEED") {
        Ok(text) => text.parse().expect("SESSIONFERRY_TEST_SEED is a number"),
        Err(_) => rand::random::<u32>().into(),
    };
    println!("SESSIONFERRY_TEST_SEED={seed}");
    seed
}
