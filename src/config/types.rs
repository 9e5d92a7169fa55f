//! The settings' types: one struct per table of the configuration file.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::{Secret, parse};
use crate::net::Endpoint;
use crate::net::tls::TlsOptions;

macro_rules! choices {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_meta])* $variant),+ }

        impl $name {
            /// The value as it is written in the configuration.
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text),+ }
            }

            pub(super) fn parse(value: &toml::Value) -> Result<$name, String> {
                match parse::text(value)?.as_str() {
                    $($text => Ok($name::$variant),)+
                    other => Err(format!("`{other}` is none of {}", [$($text),+].join(", "))),
                }
            }
        }
    };
}

choices! {
    /// Who writes the rows.
    DatabaseMode {
        /// The proxy.
        Write = "write",
        /// Django's `cached_db` does; the proxy only compares, and never writes to the database.
        Verify = "verify",
    }
}
choices! {
    /// Django's session engine, which decides the keys' names.
    Engine {
        Cache = "cache", CachedDb = "cached_db",
        /// Some workers have the one and some the other: the keys are those of `cache`.
        Both = "both",
    }
}
choices! {
    /// How Django's cache writes a value.
    Serializer {
        /// Recognised per value.
        Auto = "auto",
        Pickle = "pickle", Json = "json", Msgpack = "msgpack", Signed = "signed",
    }
}
choices! {
    /// How Django's cache compresses a value.
    Compressor {
        /// Recognised per value.
        Auto = "auto",
        None = "none", Zlib = "zlib", Gzip = "gzip", Bz2 = "bz2", Lzma = "lzma", Lz4 = "lz4", Zstd = "zstd",
        Brotli = "brotli",
    }
}
choices! {
    /// Django's `SESSION_SERIALIZER`: what is inside a row.
    SessionSerializer { Json = "json", Pickle = "pickle" }
}
choices! {
    /// When Django's reply to a session write leaves.
    Ack {
        /// At once.
        Source = "source",
        /// After the write is recorded in the data directory.
        Journal = "journal",
        /// After the other Redis has it.
        Target = "target",
        /// After the database has it too.
        All = "all",
    }
}
choices! {
    /// Which keys are kept the same on the other Redis.
    Mirror { Sessions = "sessions", All = "all" }
}
choices! {
    /// What happens to FLUSHDB and FLUSHALL.
    OnFlush {
        Mirror = "mirror",
        /// They delete everything but sessions.
        Shield = "shield",
        Refuse = "refuse",
    }
}
choices! {
    /// What happens when the source is lost.
    OnSourceLoss {
        /// Wait for it, answer session reads from elsewhere.
        Hold = "hold",
        /// Cut over once `synced`.
        Promote = "promote",
    }
}
choices! {
    /// What clients must present.
    ClientAuth {
        /// The source's own users and passwords.
        Same = "same",
        /// The table `client.users`.
        Users = "users",
        None = "none",
    }
}
choices! {
    /// The form of the log.
    LogFormat { Text = "text", Json = "json" }
}

/// Where Django connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// `host:port`.
    Tcp(String),
    Unix(PathBuf),
}

/// One of the two Redis servers.
#[derive(Clone, Debug)]
pub struct Store {
    /// `redis://…`, `rediss://…` or `unix:…`; may hold a password.
    pub url: Secret,
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub server_name: Option<String>,
    pub insecure: bool,
    pub connect_timeout: Duration,
    pub sentinel: Vec<String>,
    pub sentinel_master: Option<String>,
    pub cluster: bool,
}

impl Store {
    /// Where it is and how to get in.
    ///
    /// # Errors
    /// The URL, or a file for TLS, cannot be used.
    pub fn endpoint(&self) -> Result<Endpoint, String> {
        let options = TlsOptions {
            ca_file: self.ca_file.clone(),
            cert_file: self.cert_file.clone(),
            key_file: self.key_file.clone(),
            server_name: self.server_name.clone(),
            insecure: self.insecure,
        };
        let mut endpoint = Endpoint::parse(self.url.expose()).map_err(|error| error.to_string())?;
        endpoint.connect_timeout = self.connect_timeout;
        endpoint.secured(&options).map_err(|error| error.to_string())
    }
}

/// The database with Django's session table.
#[derive(Clone, Debug)]
pub struct Database {
    /// `None` where it was given as `none`.
    pub url: Option<Secret>,
    pub mode: DatabaseMode,
    /// Checked to be a plain identifier, with `schema.` before it at most.
    pub table: String,
}

/// The admin address.
#[derive(Clone, Debug)]
pub struct Admin {
    /// `host:port`.
    pub listen: String,
    pub token: Option<Secret>,
}

/// One Django site.
#[derive(Clone, Debug)]
pub struct Site {
    pub django: Django,
    pub database: Database,
}

/// What must be the same as in Django's settings.
#[derive(Clone, Debug)]
pub struct Django {
    /// `None` only where there is no database.
    pub secret_key: Option<Secret>,
    pub secret_key_fallbacks: Vec<Secret>,
    pub key_prefix: String,
    pub key_version: String,
    pub engine: Engine,
    /// Never empty; each holds `{session_key}` once. The first is the form that new keys are made with.
    pub session_key_patterns: Vec<String>,
    pub value_serializer: Serializer,
    pub value_compressor: Compressor,
    pub session_serializer: SessionSerializer,
    pub salt: String,
    pub cookie_age: Duration,
    pub use_tz: bool,
    pub time_zone: chrono_tz::Tz,
}

/// The writing to the other stores.
#[derive(Clone, Debug)]
pub struct Tee {
    pub ack: Ack,
    pub mirror: Mirror,
    pub on_flush: OnFlush,
}

/// The switch.
#[derive(Clone, Debug)]
pub struct Cutover {
    /// Within [`MAX_HOLD`](super::MAX_HOLD).
    pub max_hold: Duration,
    pub on_source_loss: OnSourceLoss,
}

/// Django's side.
#[derive(Clone, Debug)]
pub struct Client {
    pub auth: ClientAuth,
    pub users: BTreeMap<String, Secret>,
    pub max: usize,
    pub tls_cert: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
}

/// What is logged, and how.
#[derive(Clone, Debug)]
pub struct Log {
    /// Checked to be a filter that `tracing_subscriber::EnvFilter` takes.
    pub filter: String,
    pub format: LogFormat,
}
