//! What the pre-flight asks of a Redis.

use std::time::Instant;

use ::redis::{Pipeline, Value};

use super::link::{info_field, parse_version, text};
use super::{RedisStore, StoreError};

/// What a server says it is. A replica is asked as well as a master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Master,
    Replica,
}

/// How a server can tell of writes, whosever they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Tells {
    /// `CLIENT TRACKING … BCAST`, since Redis 6.
    Tracking,
    /// Keyspace notifications, which are on.
    Notifications,
    #[default]
    Nothing,
}

/// What a server says about itself. `None`: it does not tell, or the ACL does not let it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerFacts {
    /// The version of Redis that it is, or (Valkey and others) that it is compatible with.
    pub version: Option<(u32, u32, u32)>,
    /// For people: `redis 7.0.15`, `valkey 8.0.1`.
    pub version_text: Option<String>,
    pub role: Option<Role>,
    /// A replica that refuses writes.
    pub read_only: Option<bool>,
    /// Bytes; 0 is no limit.
    pub maxmemory: Option<u64>,
    /// Bytes.
    pub used_memory: Option<u64>,
    /// `noeviction`, `allkeys-lru` and so on.
    pub maxmemory_policy: Option<String>,
    /// The append-only file is on.
    pub aof: Option<bool>,
    /// Snapshots are on (`save` is not empty).
    pub rdb: Option<bool>,
    /// Changes with each start of the server.
    pub run_id: Option<String>,
    /// The server's clock less ours, ms; the time on the way is taken as the same both ways.
    pub skew_ms: Option<i64>,
    pub cluster_enabled: Option<bool>,
    /// Keys in the database that the endpoint names.
    pub dbsize: Option<u64>,
    pub loading: Option<bool>,
    pub tells: Tells,
}

impl RedisStore {
    /// Asks the server about itself. `now_ms` is our clock, ms since the epoch. What the ACL refuses is `None`, not an
    /// error.
    pub async fn facts(&self, now_ms: i64) -> Result<ServerFacts, StoreError> {
        const OPERATION: &str = "facts";
        // The connection first, so that only one round trip lies within the time that is measured.
        let began = Instant::now();
        self.ping().await.or_else(|error| {
            if error.kind() == super::StoreErrorKind::Loading {
                Ok(())
            } else {
                Err(error)
            }
        })?;
        let mut pipeline = Pipeline::new();
        pipeline.cmd("TIME");
        pipeline.cmd("INFO");
        pipeline.cmd("CONFIG").arg("GET").arg("save");
        pipeline.cmd("DBSIZE");
        pipeline.cmd("CLIENT").arg("TRACKING").arg("OFF");
        pipeline.cmd("CONFIG").arg("GET").arg("notify-keyspace-events");
        let sent_ms = now_ms.saturating_add(millis(began));
        let sent = Instant::now();
        let replies = self.exchange(OPERATION, &pipeline).await?;
        let received_half_ms = millis(sent) / 2;
        let mut facts = ServerFacts::default();
        let mut replies = replies.iter();
        let mut next = || replies.next().unwrap_or(&Value::Nil);
        facts.skew_ms = time_ms(next()).map(|server| server - sent_ms - received_half_ms);
        if let Some(info) = text(next()) {
            facts.read_info(info);
        }
        // Snapshots are on while any `save` line is; INFO does not tell.
        facts.rdb = setting(next()).map(|save| !save.is_empty());
        if let Value::Int(count) = next() {
            facts.dbsize = u64::try_from(*count).ok();
        }
        let tracks = !matches!(next(), Value::ServerError(_));
        let notifies = setting(next()).is_some_and(tells_of_strings);
        facts.tells = match (tracks, notifies) {
            (true, _) => Tells::Tracking,
            (false, true) => Tells::Notifications,
            (false, false) => Tells::Nothing,
        };
        Ok(facts)
    }
}

/// The value in the reply to `CONFIG GET name`.
fn setting(reply: &Value) -> Option<&str> {
    match reply {
        Value::Array(pair) => pair.get(1).and_then(text),
        Value::Map(pairs) => pairs.first().and_then(|(_, value)| text(value)),
        _ => None,
    }
}

/// Whether these `notify-keyspace-events` make a message of all that can happen to a string, by its key.
fn tells_of_strings(classes: &str) -> bool {
    let on = |class: char| classes.contains(class);
    on('K') && (on('A') || "g$xe".chars().all(on))
}

impl ServerFacts {
    fn read_info(&mut self, info: &str) {
        let number = |name: &str| info_field(info, name).and_then(|value| value.parse::<u64>().ok());
        let flag = |name: &str| number(name).map(|value| value != 0);
        let redis = info_field(info, "redis_version");
        self.version = redis.and_then(parse_version);
        self.version_text = match info_field(info, "valkey_version") {
            Some(version) => Some(format!("valkey {version}")),
            None => redis.map(|version| format!("redis {version}")),
        };
        self.role = match info_field(info, "role") {
            Some("master") => Some(Role::Master),
            Some("slave" | "replica") => Some(Role::Replica),
            _ => None,
        };
        self.read_only = match self.role {
            Some(Role::Master) => Some(false),
            _ => flag("slave_read_only").or_else(|| flag("replica_read_only")),
        };
        self.maxmemory = number("maxmemory");
        self.used_memory = number("used_memory");
        self.maxmemory_policy = info_field(info, "maxmemory_policy").map(str::to_owned);
        self.aof = flag("aof_enabled");
        self.run_id = info_field(info, "run_id").map(str::to_owned);
        self.cluster_enabled = flag("cluster_enabled");
        self.loading = flag("loading");
    }
}

fn millis(since: Instant) -> i64 {
    i64::try_from(since.elapsed().as_millis()).unwrap_or(i64::MAX)
}

/// The reply to TIME: seconds and microseconds.
pub(super) fn time_ms(value: &Value) -> Option<i64> {
    let Value::Array(parts) = value else { return None };
    let number = |at: usize| parts.get(at).and_then(text).and_then(|part| part.parse::<i64>().ok());
    number(0)?.checked_mul(1000)?.checked_add(number(1)? / 1000)
}
