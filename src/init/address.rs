//! Where stores are, as URLs: what a project's settings come to, in the forms that the configuration reads.

use std::fmt::Write as _;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::probe::{Connection, Database};

/// `redis://user:password@host:port/db`, with everything percent-encoded.
pub(super) fn url(connection: &Connection, shown: Option<&str>) -> String {
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let password = connection.password.as_ref().map(|held| match shown {
        Some(shown) => shown.to_owned(),
        None => encode(held.value.expose()),
    });
    let credentials = match (&connection.username, password) {
        (_, None) => String::new(),
        (None, Some(password)) => format!(":{password}@"),
        (Some(user), Some(password)) => format!("{}:{password}@", encode(user)),
    };
    match (&connection.path, &connection.host) {
        (Some(path), _) => format!("unix://{credentials}{path}?db={}", connection.db),
        (None, host) => {
            let host = host.as_deref().unwrap_or("localhost");
            let host = if host.contains(':') {
                format!("[{host}]")
            } else {
                host.to_owned()
            };
            let scheme = if connection.tls { "rediss" } else { "redis" };
            let port = connection.port.unwrap_or(6379);
            format!("{scheme}://{credentials}{host}:{port}/{}", connection.db)
        }
    }
}

/// The new Redis's URL, with the old one's database number where it names none: Django keeps its number.
pub(super) fn with_number(target: &str, db: u32) -> String {
    let after_host = target.split_once("://").map_or(target, |(_, rest)| rest);
    if db == 0 || target.starts_with("unix") || after_host.contains(['/', '?']) {
        return target.to_owned();
    }
    format!("{target}/{db}")
}

/// `None` for what is not supported.
pub(super) fn database_url(database: &Database) -> Option<String> {
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let engine = database.engine.to_ascii_lowercase();
    if engine.contains("sqlite") {
        return Some(format!("sqlite://{}", database.name)).filter(|_| database.name != ":memory:");
    }
    let (scheme, usual_host) = if engine.contains("postg") {
        ("postgres", "%2Fvar%2Frun%2Fpostgresql")
    } else if engine.contains("mysql") || engine.contains("mariadb") {
        ("mysql", "localhost")
    } else {
        return None;
    };
    let mut url = format!("{scheme}://");
    if !database.user.is_empty() || database.password.is_some() {
        url.push_str(&encode(&database.user));
        if let Some(password) = &database.password {
            let _ = write!(url, ":{}", encode(password.value.expose()));
        }
        url.push('@');
    }
    let socket = database.host.starts_with('/');
    match database.host.as_str() {
        "" => url.push_str(usual_host),
        _ if socket && scheme == "mysql" => url.push_str("localhost"),
        host if socket => url.push_str(&encode(host)),
        host if host.contains(':') => {
            let _ = write!(url, "[{host}]");
        }
        host => url.push_str(host),
    }
    if !database.port.is_empty() {
        let _ = write!(url, ":{}", database.port);
    }
    let _ = write!(url, "/{}", encode(&database.name));
    if socket && scheme == "mysql" {
        let _ = write!(url, "?socket={}", encode(&database.host));
    } else if let Some(mode) = &database.sslmode {
        let _ = write!(url, "?sslmode={}", encode(mode));
    }
    Some(url)
}

/// A URL without what may be a password.
pub(super) fn shown(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://***@{rest}"),
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::probe::Held;
    use super::*;
    use crate::config::Secret;

    fn held(value: &str) -> Held {
        Held {
            value: Secret::new(value),
            env: None,
        }
    }

    #[test]
    fn urls_are_those_that_the_backends_connect_to() {
        let connection = Connection {
            host: Some("redis.example".to_owned()),
            port: Some(7000),
            path: None,
            db: 2,
            username: None,
            password: None,
            tls: false,
            ca_file: None,
            cert_file: None,
            key_file: None,
        };
        assert_eq!(url(&connection, None), "redis://redis.example:7000/2");
        let secured = Connection {
            username: Some("site".to_owned()),
            password: Some(held("p@ss:/")),
            tls: true,
            host: Some("::1".to_owned()),
            ..connection.clone()
        };
        assert_eq!(url(&secured, None), "rediss://site:p%40ss%3A%2F@[::1]:7000/2");
        assert_eq!(url(&secured, Some("***")), "rediss://site:***@[::1]:7000/2");
        let local = Connection {
            path: Some("/run/redis.sock".to_owned()),
            password: Some(held("x")),
            ..connection
        };
        assert_eq!(url(&local, None), "unix://:x@/run/redis.sock?db=2");
    }

    #[test]
    fn the_new_redis_gets_the_old_ones_database_number() {
        for (given, db, expected) in [
            ("redis://new", 3, "redis://new/3"),
            ("redis://u:p@new:1", 3, "redis://u:p@new:1/3"),
            ("redis://new/3", 3, "redis://new/3"),
            ("redis://new", 0, "redis://new"),
            ("unix:/run/new.sock?db=3", 3, "unix:/run/new.sock?db=3"),
        ] {
            assert_eq!(with_number(given, db), expected);
        }
    }

    #[test]
    fn databases_are_named_as_sqlx_reads_them() {
        let database = |engine: &str, host: &str, port: &str| Database {
            alias: "default".to_owned(),
            table: "django_session".to_owned(),
            engine: format!("django.db.backends.{engine}"),
            name: "my site".to_owned(),
            user: "u@".to_owned(),
            host: host.to_owned(),
            port: port.to_owned(),
            password: Some(held("p/")),
            options: Vec::new(),
            sslmode: None,
        };
        for (engine, host, port, expected) in [
            (
                "postgresql",
                "db.example",
                "5433",
                "postgres://u%40:p%2F@db.example:5433/my%20site",
            ),
            (
                "postgresql",
                "",
                "",
                "postgres://u%40:p%2F@%2Fvar%2Frun%2Fpostgresql/my%20site",
            ),
            ("mysql", "", "", "mysql://u%40:p%2F@localhost/my%20site"),
            (
                "mysql",
                "/run/mysqld/mysqld.sock",
                "",
                "mysql://u%40:p%2F@localhost/my%20site?socket=%2Frun%2Fmysqld%2Fmysqld%2Esock",
            ),
        ] {
            assert_eq!(database_url(&database(engine, host, port)).as_deref(), Some(expected));
        }
        assert_eq!(database_url(&database("oracle", "x", "1")), None);
    }

    #[test]
    fn passwords_of_urls_are_not_shown() {
        assert_eq!(shown("redis://u:p@host:1/0"), "redis://***@host:1/0");
        assert_eq!(shown("redis://host:1/0"), "redis://host:1/0");
    }
}
