//! Where a Redis is and how to get in: `redis://[user:pass@]host:port[/db]`, `rediss://`, `unix:/path`.
//!
//! Written by hand, not with the `url` crate: a password with a `#` or a `/` in it is the commonest mistake in these
//! URLs, and the parse must never repeat it in an error.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use super::footprint::Footprint;
use super::tls::{TlsConnector, TlsError, TlsOptions};

/// The port where a Redis listens when the URL names none.
pub const DEFAULT_PORT: u16 = 6379;

/// Name look-up, TCP and TLS handshake and the set-up together, where nothing else is configured. A healthy Redis needs
/// milliseconds; under Django's own reply timeout of 5 s.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Redis's own hard limit on `databases` is an `int`; no one has more than this.
const DB_MAX: u32 = 1_000_000;

/// Address of a Redis server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// `host` is a name or an IP address; an IPv6 address stands without its brackets.
    Tcp {
        host: String,
        port: u16,
    },
    Unix(PathBuf),
}

/// A Redis server as configured. `Debug` and `Display` never show the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub address: Address,
    /// The URL asks for TLS.
    pub tls: bool,
    connector: Option<TlsConnector>,
    /// For one attempt to connect.
    pub connect_timeout: Duration,
    pub username: Option<String>,
    pub password: Option<String>,
    /// The database number that holds the sessions (`/N` in the URL), 0 where none is named.
    pub db: u32,
    /// What this process has there; shared by clones.
    pub footprint: Footprint,
}

/// Why an endpoint URL is refused. No variant carries the URL, since it may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    #[error("the URL is empty; expected redis://host:port, rediss://host:port or unix:/path")]
    Empty,
    #[error("the URL names no scheme; expected redis://host:port, rediss://host:port or unix:/path")]
    NoScheme,
    #[error("scheme {scheme:?} is not known; expected redis, rediss or unix")]
    UnknownScheme { scheme: String },
    #[error("the host is missing")]
    NoHost,
    #[error("the host is not valid; percent-encode '@', '/', '?', '#' and ':' where they are part of a password")]
    BadHost,
    #[error(
        "the port is not a number from 1 to 65535; percent-encode '@', '/', '?', '#' and ':' where they are part of a password"
    )]
    BadPort,
    #[error("the database is not a number from 0 to {DB_MAX}")]
    BadDatabase,
    #[error("the user name or password is not valid percent-encoded UTF-8; write a '%' as %25")]
    BadCredentials,
    #[error("the path of the unix socket is missing")]
    NoPath,
    #[error("the path of the unix socket is not absolute")]
    RelativePath,
    #[error("the URL has a fragment; percent-encode '#' as %23 where it is part of a password")]
    Fragment,
    #[error(
        "the URL has a parameter that is not known, only db=N is; percent-encode '?' as %3F where it is part of a password"
    )]
    UnknownParameter,
}

impl Endpoint {
    /// Parses `redis://[[user]:pass@]host[:port][/db]`, `rediss://` (TLS), `unix:/path[?db=N]` and
    /// `unix://[[user]:pass@]/path[?db=N]`. Credentials and paths are percent-decoded. `?db=N` is also taken after a
    /// host.
    pub fn parse(url: &str) -> Result<Endpoint, EndpointError> {
        let url = url.trim();
        if url.is_empty() {
            return Err(EndpointError::Empty);
        }
        let (scheme, rest) = url.split_once(':').ok_or(EndpointError::NoScheme)?;
        match scheme.to_ascii_lowercase().as_str() {
            "redis" | "valkey" => parse_tcp(authority_of(rest)?, false),
            "rediss" | "valkeys" => parse_tcp(authority_of(rest)?, true),
            "unix" | "redis+unix" => parse_unix(rest),
            // `host:port` with the scheme forgotten, or a password: neither is a scheme to repeat.
            other if rest.starts_with("//") && is_scheme(other) => Err(EndpointError::UnknownScheme {
                scheme: other.to_owned(),
            }),
            _ => Err(EndpointError::NoScheme),
        }
    }

    /// Prepares TLS, where the URL asks for it.
    ///
    /// # Errors
    /// A file cannot be used, or the name of the server.
    pub fn secured(mut self, options: &TlsOptions) -> Result<Endpoint, TlsError> {
        if let (true, Address::Tcp { host, .. }) = (self.tls, &self.address) {
            self.connector = Some(TlsConnector::new(options, host)?);
        }
        Ok(self)
    }

    /// Whether it is on this machine, as far as the URL tells.
    pub fn is_local(&self) -> bool {
        match &self.address {
            Address::Unix(_) => true,
            Address::Tcp { host, .. } => {
                host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
            }
        }
    }

    /// What makes the connection secure; `None` where it shall be plain.
    ///
    /// # Errors
    /// It shall be secure and was not prepared for that: it must not go out in plain text.
    pub fn connector(&self) -> io::Result<Option<&TlsConnector>> {
        match (self.tls, &self.connector) {
            (false, _) => Ok(None),
            (true, Some(connector)) => Ok(Some(connector)),
            (true, None) => Err(io::Error::other("TLS was not prepared")),
        }
    }
}

fn is_scheme(text: &str) -> bool {
    text.len() <= 16
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

fn authority_of(rest: &str) -> Result<&str, EndpointError> {
    rest.strip_prefix("//").ok_or(EndpointError::NoScheme)
}

fn parse_tcp(rest: &str, tls: bool) -> Result<Endpoint, EndpointError> {
    let (rest, query) = split_query(rest)?;
    // The last '@' ends the credentials: a host holds none, a password typed as it is may.
    let (credentials, location) = match rest.rsplit_once('@') {
        Some((credentials, location)) => (Some(credentials), location),
        None => (None, rest),
    };
    let (authority, path) = location.split_once('/').unwrap_or((location, ""));
    let (username, password) = parse_credentials(credentials)?;
    let address = parse_host(authority)?;
    let db = match (path.trim_end_matches('/'), query) {
        ("", query) => query.unwrap_or(0),
        (_, Some(_)) => return Err(EndpointError::BadDatabase),
        (number, None) => parse_db(number)?,
    };
    Ok(Endpoint {
        address,
        tls,
        connector: None,
        connect_timeout: CONNECT_TIMEOUT,
        username,
        password,
        db,
        footprint: Footprint::default(),
    })
}

fn parse_host(authority: &str) -> Result<Address, EndpointError> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or(EndpointError::BadHost)?;
        host.parse::<std::net::Ipv6Addr>().map_err(|_| EndpointError::BadHost)?;
        match after.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if after.is_empty() => (host, None),
            None => return Err(EndpointError::BadHost),
        }
    } else {
        match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    if host.is_empty() {
        return Err(EndpointError::NoHost);
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    if !host.bytes().all(plain) {
        return Err(EndpointError::BadHost);
    }
    let port = match port {
        None => DEFAULT_PORT,
        Some(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or(EndpointError::BadPort)?,
        Some(_) => return Err(EndpointError::BadPort),
    };
    Ok(Address::Tcp {
        host: host.to_owned(),
        port,
    })
}

fn parse_unix(rest: &str) -> Result<Endpoint, EndpointError> {
    let (rest, query) = split_query(rest)?;
    let (credentials, path) = match rest.strip_prefix("//") {
        None => (None, rest),
        Some(rest) => match rest.split_once('@') {
            // An '@' behind the first '/' is part of the path.
            Some((credentials, path)) if !credentials.contains('/') => (Some(credentials), path),
            _ => (None, rest),
        },
    };
    let path = decode(path).map_err(|_| EndpointError::NoPath)?;
    match path.as_str() {
        "" | "/" => return Err(EndpointError::NoPath),
        path if !path.starts_with('/') => return Err(EndpointError::RelativePath),
        _ => {}
    }
    let (username, password) = parse_credentials(credentials)?;
    let address = Address::Unix(PathBuf::from(path));
    Ok(Endpoint {
        address,
        tls: false,
        connector: None,
        connect_timeout: CONNECT_TIMEOUT,
        username,
        password,
        db: query.unwrap_or(0),
        footprint: Footprint::default(),
    })
}

/// Takes `?db=N` off the end. Its value is `None` where there is no query.
fn split_query(rest: &str) -> Result<(&str, Option<u32>), EndpointError> {
    if rest.contains('#') {
        return Err(EndpointError::Fragment);
    }
    match rest.split_once('?') {
        None => Ok((rest, None)),
        Some((rest, "")) => Ok((rest, None)),
        Some((rest, query)) => {
            let number = query.strip_prefix("db=").ok_or(EndpointError::UnknownParameter)?;
            Ok((rest, Some(parse_db(number)?)))
        }
    }
}

fn parse_db(text: &str) -> Result<u32, EndpointError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(EndpointError::BadDatabase);
    }
    text.parse()
        .ok()
        .filter(|db| *db <= DB_MAX)
        .ok_or(EndpointError::BadDatabase)
}

type Credentials = (Option<String>, Option<String>);

fn parse_credentials(text: Option<&str>) -> Result<Credentials, EndpointError> {
    let Some(text) = text else { return Ok((None, None)) };
    let (username, password) = match text.split_once(':') {
        Some((username, password)) => (username, Some(password)),
        None => (text, None),
    };
    let some = |text: &str| (!text.is_empty()).then(|| decode(text)).transpose();
    Ok((some(username)?, password.map(some).transpose()?.flatten()))
}

/// Percent-decodes; a `%` that starts no escape is refused, so that a raw password is not silently changed.
fn decode(text: &str) -> Result<String, EndpointError> {
    let bytes = text.as_bytes();
    for (at, _) in text.match_indices('%') {
        let escape = bytes.get(at + 1..at + 3).ok_or(EndpointError::BadCredentials)?;
        if !escape.iter().all(u8::is_ascii_hexdigit) {
            return Err(EndpointError::BadCredentials);
        }
    }
    let text = percent_decode_str(text)
        .decode_utf8()
        .map_err(|_| EndpointError::BadCredentials)?;
    Ok(text.into_owned())
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (&self.address, self.tls) {
            (Address::Unix(_), _) => "unix://",
            (Address::Tcp { .. }, false) => "redis://",
            (Address::Tcp { .. }, true) => "rediss://",
        })?;
        if self.username.is_some() || self.password.is_some() {
            f.write_str(self.username.as_deref().unwrap_or(""))?;
            f.write_str(if self.password.is_some() { ":***@" } else { "@" })?;
        }
        match &self.address {
            Address::Unix(path) => {
                write!(f, "{}", path.display())?;
                if self.db == 0 {
                    Ok(())
                } else {
                    write!(f, "?db={}", self.db)
                }
            }
            Address::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}/{}", self.db),
            Address::Tcp { host, port } => write!(f, "{host}:{port}/{}", self.db),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str, shown: &str, username: Option<&str>, password: Option<&str>) {
        let endpoint = Endpoint::parse(url).unwrap_or_else(|error| panic!("{url}: {error}"));
        assert_eq!(endpoint.to_string(), shown, "{url}");
        assert_eq!(endpoint.username.as_deref(), username, "{url}");
        assert_eq!(endpoint.password.as_deref(), password, "{url}");
        assert_eq!(endpoint.tls, url.starts_with("rediss"), "{url}");
    }

    #[test]
    fn every_form_is_read_and_shown_without_its_secret() {
        check("redis://localhost", "redis://localhost:6379/0", None, None);
        check("redis://10.0.0.1:6380/3", "redis://10.0.0.1:6380/3", None, None);
        check("redis://10.0.0.1:6380/", "redis://10.0.0.1:6380/0", None, None);
        check("redis://h?db=4", "redis://h:6379/4", None, None);
        check("redis://:s3cret@h", "redis://:***@h:6379/0", None, Some("s3cret"));
        check(
            "redis://web:s3cret@h:1/2",
            "redis://web:***@h:1/2",
            Some("web"),
            Some("s3cret"),
        );
        check("redis://web@h", "redis://web@h:6379/0", Some("web"), None);
        check(
            "redis://:p%40%2F%3A%25%C3%A9@h",
            "redis://:***@h:6379/0",
            None,
            Some("p@/:%é"),
        );
        check("redis://:a/b@c:d@h:7", "redis://:***@h:7/0", None, Some("a/b@c:d"));
        check(
            "rediss://web:s3cret@[::1]:6390/1",
            "rediss://web:***@[::1]:6390/1",
            Some("web"),
            Some("s3cret"),
        );
        check("redis://[fe80::1]", "redis://[fe80::1]:6379/0", None, None);
        check("unix:/run/redis.sock", "unix:///run/redis.sock", None, None);
        check("unix:/run/redis.sock?db=2", "unix:///run/redis.sock?db=2", None, None);
        check("unix:///run/re%20dis.sock", "unix:///run/re dis.sock", None, None);
        check("unix:///run/a@b.sock", "unix:///run/a@b.sock", None, None);
        check(
            "unix://web:x@/run/r.sock?db=1",
            "unix://web:***@/run/r.sock?db=1",
            Some("web"),
            Some("x"),
        );
    }

    #[test]
    fn an_ipv6_host_loses_its_brackets() {
        let endpoint = Endpoint::parse("redis://[::1]:7000").unwrap();
        assert_eq!(
            endpoint.address,
            Address::Tcp {
                host: "::1".into(),
                port: 7000
            }
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (url, error) in [
            ("", EndpointError::Empty),
            ("localhost", EndpointError::NoScheme),
            ("localhost:6379", EndpointError::NoScheme),
            ("redis:localhost", EndpointError::NoScheme),
            ("http://h", EndpointError::UnknownScheme { scheme: "http".into() }),
            ("redis://", EndpointError::NoHost),
            ("redis://:s3cret@", EndpointError::NoHost),
            ("redis://h:port", EndpointError::BadPort),
            ("redis://h:0", EndpointError::BadPort),
            ("redis://h:+1", EndpointError::BadPort),
            ("redis://h:70000", EndpointError::BadPort),
            ("redis://[::1", EndpointError::BadHost),
            ("redis://[nothex]", EndpointError::BadHost),
            ("redis://h st", EndpointError::BadHost),
            ("redis://h/x", EndpointError::BadDatabase),
            ("redis://h/1?db=1", EndpointError::BadDatabase),
            ("redis://h?timeout=1", EndpointError::UnknownParameter),
            ("redis://:s3c%zzret@h", EndpointError::BadCredentials),
            ("redis://:s3cret%@h", EndpointError::BadCredentials),
            ("redis://:s3#cret@h", EndpointError::Fragment),
            ("unix:", EndpointError::NoPath),
            ("unix:run/redis.sock", EndpointError::RelativePath),
        ] {
            assert_eq!(Endpoint::parse(url), Err(error), "{url}");
        }
    }

    #[test]
    fn no_error_and_no_debug_text_repeats_a_password() {
        for url in [
            "redis://web:hunter2@",
            "redis://web:hunter2@h:x",
            "redis://web:hunter2%zz@h",
            "redis://web:hunter2#@h",
            "redis://web:hunter2/@h:99999",
            "web:hunter2@h",
            "hunter2://h:1@x",
        ] {
            let text = match Endpoint::parse(url) {
                Ok(endpoint) => format!("{endpoint} {endpoint:?}"),
                Err(error) => format!("{error} {error:?}"),
            };
            // A scheme is no secret; it is the one part that is repeated.
            assert!(!text.contains("hunter2") || url.starts_with("hunter2"), "{text}");
        }
        let endpoint = Endpoint::parse("redis://web:hunter2@h").unwrap();
        assert_eq!(format!("{endpoint:?}"), "Endpoint(redis://web:***@h:6379/0)");
    }
}
