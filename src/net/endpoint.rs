//! Where a Redis is and how to get in: `redis://[user:pass@]host:port[/db]`, `unix:/path`.

use std::path::PathBuf;

/// Address of a Redis server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// A Redis server as configured. `Debug` and `Display` never show the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub address: Address,
    pub tls: bool,
    pub username: Option<String>,
    pub password: Option<String>,
    /// The database number that holds the sessions (`/N` in the URL), 0 where none is named.
    pub db: u32,
}
