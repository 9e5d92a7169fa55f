//! What can go wrong with a Redis, as a kind (the metric label) and a text that says what to do.

use ::redis::{RedisError, ServerError};

use crate::net::tls::explain;

/// Why a Redis did not do what was asked; `label` is the metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreErrorKind {
    /// No connection: refused, no such host, no such socket.
    Refused,
    /// The server is there and turns us away: too many clients, protected mode.
    Denied,
    /// No connection or no reply in time.
    Timeout,
    /// The credentials are wrong or missing.
    Auth,
    /// The server is a read-only replica, or refuses writes to protect its data.
    ReadOnly,
    /// `maxmemory` is reached and nothing may be evicted.
    OutOfMemory,
    /// The server is still loading its data from disk.
    Loading,
    /// The user's ACL does not allow a command or a key.
    NoPermission,
    /// The connection broke while a reply was awaited.
    Closed,
    /// Another process answers than the one that was trusted.
    Restarted,
    Other,
}

impl StoreErrorKind {
    /// Whether nothing is there that could answer.
    pub fn is_absence(self) -> bool {
        matches!(self, Self::Refused | Self::Timeout | Self::Closed)
    }

    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Denied => "denied",
            Self::Timeout => "timeout",
            Self::Auth => "auth",
            Self::ReadOnly => "read_only",
            Self::OutOfMemory => "out_of_memory",
            Self::Loading => "loading",
            Self::NoPermission => "no_permission",
            Self::Closed => "closed",
            Self::Restarted => "restarted",
            Self::Other => "other",
        }
    }
}

/// A Redis did not do what was asked. The text holds no key, no value and no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{endpoint}: {operation}: {what}")]
pub struct StoreError {
    kind: StoreErrorKind,
    endpoint: String,
    operation: &'static str,
    what: String,
}

impl StoreError {
    pub fn kind(&self) -> StoreErrorKind {
        self.kind
    }

    /// What was being done: `connect`, `read`, `write`, `scan` and so on.
    pub fn operation(&self) -> &'static str {
        self.operation
    }

    pub(super) fn new(fault: Fault, endpoint: &impl ToString, operation: &'static str) -> Self {
        StoreError {
            kind: fault.kind,
            endpoint: endpoint.to_string(),
            operation,
            what: fault.what,
        }
    }
}

/// A `StoreError` that does not know yet where and during what it happened.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) kind: StoreErrorKind,
    pub(super) what: String,
}

impl Fault {
    pub(super) fn new(kind: StoreErrorKind, what: impl Into<String>) -> Self {
        Fault {
            kind,
            what: what.into(),
        }
    }

    pub(super) fn unexpected(what: &str) -> Self {
        Fault::new(
            StoreErrorKind::Other,
            format!("unexpected reply to {what}; is this a Redis?"),
        )
    }

    /// The connection could not be made.
    pub(super) fn connecting(error: &std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        if let Some(words) = explain(error) {
            return Fault::new(StoreErrorKind::Refused, words);
        }
        match error.kind() {
            Io::TimedOut => Fault::new(
                StoreErrorKind::Timeout,
                "no connection in time; check address and firewall",
            ),
            Io::PermissionDenied => Fault::new(
                StoreErrorKind::Refused,
                "no permission to use the socket; check its owner and mode",
            ),
            Io::NotFound => Fault::new(
                StoreErrorKind::Refused,
                "no such socket; check the path and that Redis is running",
            ),
            Io::ConnectionRefused => Fault::new(
                StoreErrorKind::Refused,
                "connection refused; check the address and that Redis is running",
            ),
            kind => Fault::new(
                StoreErrorKind::Refused,
                format!("no connection ({kind}); check host name and network"),
            ),
        }
    }

    /// The connection failed while it was in use.
    pub(super) fn transport(error: &RedisError) -> Self {
        if error.is_timeout() {
            Fault::new(
                StoreErrorKind::Timeout,
                "no reply in time; the server is overloaded, stopped or cut off",
            )
        } else if error.is_io_error() || error.is_connection_dropped() {
            Fault::new(StoreErrorKind::Closed, "the connection broke; it is made anew")
        } else {
            Fault::new(StoreErrorKind::Other, format!("{}; is this a Redis?", error.category()))
        }
    }

    /// An error reply. Its text is read but not repeated: Redis puts arguments into some (`unknown command … with
    /// args`).
    pub(super) fn reply(error: &ServerError) -> Self {
        let details = error.details().unwrap_or("");
        let (kind, what) = match error.code() {
            "NOAUTH" => (StoreErrorKind::Auth, "a password is required; put it into the URL"),
            "WRONGPASS" => (StoreErrorKind::Auth, "wrong user name or password; check the URL"),
            "NOPERM" => (
                StoreErrorKind::NoPermission,
                "the user's ACL does not allow this; extend it (ACL SETUSER)",
            ),
            "READONLY" => (
                StoreErrorKind::ReadOnly,
                "the server is a read-only replica; name its master instead",
            ),
            "MISCONF" => (
                StoreErrorKind::ReadOnly,
                "the server refuses writes as it cannot save to disk; look into its log",
            ),
            "NOREPLICAS" => (
                StoreErrorKind::ReadOnly,
                "the server refuses writes as it has too few replicas",
            ),
            "OOM" => (
                StoreErrorKind::OutOfMemory,
                "the server is out of memory; raise maxmemory",
            ),
            "LOADING" | "BUSY" => (StoreErrorKind::Loading, "the server is loading its data or busy; wait"),
            "MASTERDOWN" => (
                StoreErrorKind::Loading,
                "the replica has lost its master; wait, or name the master",
            ),
            "DENIED" => (
                StoreErrorKind::Denied,
                "protected mode; set a password or bind the server's address",
            ),
            "MOVED" | "ASK" | "CROSSSLOT" | "CLUSTERDOWN" | "TRYAGAIN" => (
                StoreErrorKind::Other,
                "the server is part of a cluster; it cannot be used as a single server",
            ),
            _ if details.contains("max number of clients") => (
                StoreErrorKind::Denied,
                "the server has too many clients; raise maxclients",
            ),
            _ if details.contains("invalid password") => (StoreErrorKind::Auth, "wrong password; check the URL"),
            _ if details.contains("operation not permitted") => {
                (StoreErrorKind::Auth, "a password is required; put it into the URL")
            }
            _ if details.contains("DB index is out of range") => (
                StoreErrorKind::Other,
                "the server has no such database number; check the end of the URL",
            ),
            _ if details.starts_with("unknown command") || details.starts_with("unknown subcommand") => (
                StoreErrorKind::Other,
                "the server does not know a command that is needed; is it older than 2.8?",
            ),
            code => {
                let plain = code.len() <= 24 && code.bytes().all(|byte| byte.is_ascii_uppercase());
                let code = if plain { code } else { "an error" };
                return Fault::new(
                    StoreErrorKind::Other,
                    format!("the server answered {code}; look into its log"),
                );
            }
        };
        Fault::new(kind, what)
    }

    /// An error reply to AUTH: whatever its words, the credentials do not fit.
    pub(super) fn auth(error: &ServerError) -> Self {
        let fault = Fault::reply(error);
        match fault.kind {
            StoreErrorKind::Other => Fault::new(
                StoreErrorKind::Auth,
                "the server does not take these credentials; check the URL",
            ),
            _ => fault,
        }
    }
}
