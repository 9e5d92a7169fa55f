//! What a project's answer means: the configuration, the secrets beside it, the lines to change in the project's settings,
//! and what will bite. Pure: reads and writes nothing.

use std::fmt::Write as _;
use std::path::Path;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::probe::{Cache, Connection, Database, Held, Probe, SESSION_KEY};
use crate::config::Secret;

/// Django's own name of the salt, which needs no setting.
const STOCK_SALT: &str = "django.contrib.sessions.SessionStore";

/// The first redis-py that opens with `HELLO 3`.
const RESP3_REDIS_PY: u32 = 8;

/// What `init` has found out.
#[derive(Clone, Debug)]
pub struct Plan {
    /// `sessionferry.toml`.
    pub toml: String,
    /// Files with secrets: name and content.
    pub secrets: Vec<(&'static str, Secret)>,
    /// What to change in the project's settings, in this order.
    pub steps: Vec<Step>,
    /// What will bite.
    pub warnings: Vec<String>,
    /// The old Redis, for who wants to look at it.
    pub source: Secret,
}

/// A change of the project's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub when: &'static str,
    /// Lines that begin with `-`, `+` or a space.
    pub diff: String,
}

/// Why there is nothing to move.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotMovable {
    #[error("SESSION_ENGINE is {engine}: these sessions are not in a cache, and need no move")]
    Engine { engine: String },
    #[error(
        "SESSION_CACHE_ALIAS is {alias}, which is no Redis ({backend}){redis}: point it at the cache that holds the sessions"
    )]
    NoRedis {
        alias: String,
        backend: String,
        /// The aliases that are, in words.
        redis: String,
    },
    #[error("CACHES has no {alias:?}, which SESSION_CACHE_ALIAS names")]
    NoAlias { alias: String },
    #[error("the cache {alias:?} cannot be used: {error}")]
    Broken { alias: String, error: String },
    #[error(
        "the KEY_FUNCTION of the cache {alias:?} hides the session's key ({function}): a Redis key does not tell which session it is, so \
         no row can be written and nothing compared"
    )]
    HiddenKey { alias: String, function: String },
}

/// Works it out. `target` is the new Redis's URL where it is known, `listen` where the proxy will listen, `secrets` the folder
/// that the secrets will be in.
///
/// # Errors
/// [`NotMovable`] where these sessions cannot, or need not, be moved.
pub fn plan(probe: &Probe, target: Option<&str>, listen: &str, secrets: &Path) -> Result<Plan, NotMovable> {
    let cache = session_cache(probe)?;
    let connection = cache.connection.as_ref().ok_or_else(|| no_redis(probe, cache))?;
    let key = cache.key.clone().unwrap_or_default();
    if key.matches(SESSION_KEY).count() != 1 {
        return Err(NotMovable::HiddenKey {
            alias: cache.alias.clone(),
            function: cache.key_function.clone().unwrap_or_else(|| "unknown".to_owned()),
        });
    }
    let mut writer = Writer {
        toml: String::new(),
        kept: Vec::new(),
        folder: secrets,
    };
    let mut warnings = warnings(probe, cache);
    let source = url(connection, None);
    let target = target.map(|target| with_number(target, connection.db));
    let target = target.as_deref();

    writer.comment(&format!(
        "Made by `sessionferry init` from {}: Django {}, sessions on the cache {:?}.",
        probe.settings_module.as_deref().unwrap_or("the project's settings"),
        probe.django,
        cache.alias
    ));
    writer.comment("`sessionferry check --sessions` looks whether it fits.\n");
    writer.comment("Where Django connects instead of the old Redis.");
    writer.text("listen", listen);
    writer.comment("On a disk that stays: what is on its way to the other stores, and where the move stands.");
    writer.text("data_dir", "sessionferry-data");
    writer.table("source", "The old Redis.");
    writer.url("url", "source_url", &source, connection.password.is_some());
    for (key, file) in [
        ("ca_file", &connection.ca_file),
        ("cert_file", &connection.cert_file),
        ("key_file", &connection.key_file),
    ] {
        if let Some(file) = file {
            writer.text(key, file);
        }
    }
    writer.table("target", "The new Redis, with the same database number.");
    match target {
        Some(target) => writer.url("url", "target_url", target, target.contains('@')),
        None => {
            writer.comment("Not known yet: remove the mark and give its address.");
            let _ = writeln!(writer.toml, "# url = \"redis://new-redis:6379/{}\"", connection.db);
            warnings.push("target.url is yet to be filled in: the address of the new Redis".to_owned());
        }
    }
    let with_rows = write_database(&mut writer, probe, &mut warnings);
    write_django(&mut writer, probe, cache, &key, with_rows, &mut warnings);
    write_tee(&mut writer, probe);
    Ok(Plan {
        toml: writer.toml,
        secrets: writer.kept,
        steps: steps(probe, cache, connection, target, listen),
        warnings,
        source: Secret::new(source),
    })
}

fn session_cache(probe: &Probe) -> Result<&Cache, NotMovable> {
    if probe.kind != "cache" && probe.kind != "cached_db" {
        return Err(NotMovable::Engine {
            engine: probe.engine.clone(),
        });
    }
    let alias = || probe.session_alias.clone();
    let cache = probe
        .session_cache()
        .ok_or_else(|| NotMovable::NoAlias { alias: alias() })?;
    match (&cache.error, &cache.connection) {
        (Some(error), _) => Err(NotMovable::Broken {
            alias: alias(),
            error: error.clone(),
        }),
        _ => Ok(cache),
    }
}

fn no_redis(probe: &Probe, cache: &Cache) -> NotMovable {
    let others: Vec<&str> = probe
        .caches
        .iter()
        .filter(|other| other.connection.is_some())
        .map(|other| other.alias.as_str())
        .collect();
    NotMovable::NoRedis {
        alias: cache.alias.clone(),
        backend: cache.backend.clone(),
        redis: match (is_redis(cache), others.as_slice()) {
            (true, _) => ", or has several that are found through Sentinel or a cluster".to_owned(),
            (false, []) => ", and no other is".to_owned(),
            (false, others) => format!("; of the others, {} is", others.join(" and ")),
        },
    }
}

fn is_redis(cache: &Cache) -> bool {
    let backend = cache.backend.to_ascii_lowercase();
    backend.contains("redis") || backend.contains("valkey")
}

/// `redis://user:password@host:port/db`, with everything percent-encoded.
fn url(connection: &Connection, shown: Option<&str>) -> String {
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
fn with_number(target: &str, db: u32) -> String {
    let after_host = target.split_once("://").map_or(target, |(_, rest)| rest);
    if db == 0 || target.starts_with("unix") || after_host.contains(['/', '?']) {
        return target.to_owned();
    }
    format!("{target}/{db}")
}

/// Whether there are rows at all.
fn write_database(writer: &mut Writer<'_>, probe: &Probe, warnings: &mut Vec<String>) -> bool {
    writer.table("database", "The database with Django's session table.");
    let found = probe
        .database
        .as_ref()
        .and_then(|database| Some((database, database_url(database)?)));
    let Some((database, url)) = found else {
        let why = match &probe.database {
            Some(database) => format!("{} is not supported", database.engine),
            None => "the project has no session table".to_owned(),
        };
        warnings.push(format!(
            "no rows are written ({why}): sessions are moved to the new Redis alone"
        ));
        writer.text("url", "none");
        return false;
    };
    if !probe.sessions_installed {
        warnings.push(
            "django.contrib.sessions is not in INSTALLED_APPS, so there may be no session table: add it and run \
             `manage.py migrate sessions`, or set database.url to \"none\""
                .to_owned(),
        );
    }
    writer.url("url", "database_url", &url, database.password.is_some());
    if database.table != "django_session" {
        writer.text("table", &database.table);
    }
    if probe.kind == "cached_db" {
        writer.comment("Django's cached_db writes the rows itself: they are compared, not written.");
        writer.text("mode", "verify");
    }
    if probe.routers > 0 {
        warnings.push(format!(
            "a database router decides where rows are: those of sessions go to {:?} now, and {} is what is used",
            database.alias, database.engine
        ));
    }
    let carried = [
        "sslmode",
        "timeout",
        "init_command",
        "charset",
        "isolation_level",
        "transaction_mode",
        "pool",
    ];
    let lost: Vec<&str> = database
        .options
        .iter()
        .map(String::as_str)
        .filter(|option| !carried.contains(option))
        .collect();
    if !lost.is_empty() {
        warnings.push(format!(
            "OPTIONS of the database {:?} that are not taken over: {}",
            database.alias,
            lost.join(", ")
        ));
    }
    true
}

/// `None` for what is not supported.
fn database_url(database: &Database) -> Option<String> {
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

fn write_django(
    writer: &mut Writer<'_>,
    probe: &Probe,
    cache: &Cache,
    key: &str,
    with_rows: bool,
    warnings: &mut Vec<String>,
) {
    writer.table("django", "What Django's settings say of sessions.");
    if with_rows {
        writer.secret("secret_key", "secret_key", &probe.secret_key);
        let names: Vec<String> = FALLBACKS
            .into_iter()
            .zip(&probe.fallbacks)
            .map(|(name, held)| writer.reference(name, held))
            .collect();
        if !names.is_empty() {
            let _ = writeln!(writer.toml, "secret_key_fallbacks = [{}]", names.join(", "));
        }
        if probe.fallbacks.len() > FALLBACKS.len() {
            warnings.push(format!(
                "only the first {} SECRET_KEY_FALLBACKS are taken over",
                FALLBACKS.len()
            ));
        }
    }
    writer.text("engine", &probe.kind);
    let stock = format!(
        "{}:{}:django.contrib.sessions.{}{SESSION_KEY}",
        cache.key_prefix, cache.version, probe.kind
    );
    if key == stock {
        writer.text("key_prefix", &cache.key_prefix);
        writer.text("key_version", &cache.version);
    } else {
        writer.comment(
            "This site builds its keys in a way of its own (KEY_FUNCTION, or a session store with another prefix).",
        );
        let pattern = quoted(&key.replace(SESSION_KEY, "{session_key}"));
        let _ = writeln!(writer.toml, "session_key_patterns = [{pattern}]");
    }
    write_values(writer, cache, warnings);
    match probe.session_serializer.as_str() {
        "django.contrib.sessions.serializers.JSONSerializer" => {}
        "django.contrib.sessions.serializers.PickleSerializer" => writer.text("session_serializer", "pickle"),
        other if with_rows => warnings.push(format!(
            "SESSION_SERIALIZER is {other}, which is not known here: rows are written as Django's JSONSerializer writes them. If that \
             one reads other rows, set database.url to \"none\""
        )),
        _ => {}
    }
    if probe.salt != STOCK_SALT {
        writer.text("salt", &probe.salt);
    }
    writer.value("cookie_age", &probe.cookie_age.to_string());
    writer.value("use_tz", if probe.use_tz { "true" } else { "false" });
    writer.text("time_zone", &probe.time_zone);
}

/// As many old keys as anybody keeps.
const FALLBACKS: [&str; 4] = [
    "secret_key_fallback_1",
    "secret_key_fallback_2",
    "secret_key_fallback_3",
    "secret_key_fallback_4",
];

/// What the cache's backend serializes and compresses with.
fn write_values(writer: &mut Writer<'_>, cache: &Cache, warnings: &mut Vec<String>) {
    let class = |path: &Option<String>| {
        path.as_deref()
            .map(|path| path.rsplit('.').next().unwrap_or(path).to_lowercase())
    };
    let known = |class: &str, names: &[&'static str]| names.iter().copied().find(|name| class.starts_with(name));
    if let Some(class) = class(&cache.serializer) {
        match known(&class, &["pickle", "json", "msgpack"]) {
            Some(name) => writer.text("value_serializer", name),
            None => warnings.push(format!(
                "the cache's serializer {} is not known here: no row can be written for what it writes",
                cache.serializer.as_deref().unwrap_or_default()
            )),
        }
    }
    let Some(class) = class(&cache.compressor) else {
        return;
    };
    match known(
        &class,
        &[
            "zlib", "gzip", "bz2", "bzip2", "lzma", "lz4", "zstd", "brotli", "identity",
        ],
    ) {
        Some("identity") => {}
        Some("bzip2") => writer.text("value_compressor", "bz2"),
        Some(name) => writer.text("value_compressor", name),
        None => warnings.push(format!(
            "the cache's compressor {} is not known here: no row can be written for what it writes",
            cache.compressor.as_deref().unwrap_or_default()
        )),
    }
}

fn write_tee(writer: &mut Writer<'_>, probe: &Probe) {
    if probe.clears.is_empty() {
        return;
    }
    writer.table("tee", "What becomes of writes.");
    writer
        .comment("The project empties this cache (see the warning of `init`): with `shield` that spares the sessions.");
    writer.text("on_flush", "shield");
}

fn warnings(probe: &Probe, cache: &Cache) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut warn = |when: bool, text: String| {
        if when {
            warnings.push(text);
        }
    };
    warn(
        cache.alias != "default",
        format!(
            "sessions are on the cache {:?} and not on \"default\": change the LOCATION of that one",
            cache.alias
        ),
    );
    let same = |other: &&Cache| {
        other.alias != cache.alias
            && match (&other.connection, &cache.connection) {
                (Some(a), Some(b)) => (&a.host, a.port, &a.path, a.db) == (&b.host, b.port, &b.path, b.db),
                _ => false,
            }
    };
    let sharing: Vec<&str> = probe
        .caches
        .iter()
        .filter(same)
        .map(|other| other.alias.as_str())
        .collect();
    warn(
        !sharing.is_empty(),
        format!(
            "the cache {} is in the same Redis database as the sessions: point it at the proxy as well, or its clear() deletes \
             every session past the proxy",
            sharing.join(" and ")
        ),
    );
    warn(
        !probe.clears.is_empty(),
        format!(
            "the sessions' cache is emptied, which logs everybody out, at {}: tee.on_flush = \"shield\" spares the sessions",
            probe.clears.join(", ")
        ),
    );
    warn(
        probe.save_every_request,
        "SESSION_SAVE_EVERY_REQUEST is on: each request writes its session, so the other stores get as many writes as the site has \
         requests"
            .to_owned(),
    );
    let redis_py = probe
        .redis_py
        .as_deref()
        .and_then(|text| text.split('.').next()?.parse::<u32>().ok());
    warn(
        redis_py.is_some_and(|major| major >= RESP3_REDIS_PY),
        "this redis-py opens with HELLO 3: both Redis servers must be version 6 or later".to_owned(),
    );
    warn(
        cache.locations > 1,
        "LOCATION names several servers, and reads go to the others: name the proxy alone, since a replica may not have a session yet"
            .to_owned(),
    );
    warn(
        cache.client_class.as_deref().is_some_and(|class| class.contains("Herd")),
        "HerdClient keeps sessions inside an object of its own: they are copied to the new Redis, and no row can carry them".to_owned(),
    );
    warn(
        !probe.stock_store,
        format!(
            "the session store is the project's own ({}): its rows are signed with the salt that it names",
            probe.store
        ),
    );
    warnings
}

fn steps(probe: &Probe, cache: &Cache, connection: &Connection, target: Option<&str>, listen: &str) -> Vec<Step> {
    let old = url(connection, Some("***"));
    let proxy = match listen.rsplit_once(':') {
        Some((host, port)) if !listen.starts_with("unix:") => {
            let at = Connection {
                host: Some(host.trim_matches(['[', ']']).to_owned()),
                port: port.parse().ok(),
                path: None,
                tls: false,
                ..connection.clone()
            };
            url(&at, Some("***"))
        }
        _ => listen.to_owned(),
    };
    let new = match target {
        Some(target) => shown(target),
        None => format!("redis://new-redis:6379/{}", connection.db),
    };
    let location = |before: &str, after: &str| {
        format!(
            " CACHES = {{\n     {alias}: {{\n-        \"LOCATION\": {before},\n+        \"LOCATION\": {after},\n",
            alias = quoted(&cache.alias),
            before = quoted(before),
            after = quoted(after),
        )
    };
    let mut steps = vec![
        Step {
            when: "When the proxy runs: let Django use it, one process after the other. Undo it at any time before the cutover.",
            diff: location(&old, &proxy),
        },
        Step {
            when: "After the cutover, before `sessionferry finish` and the proxy's end: let Django use the new Redis.",
            diff: location(&proxy, &new),
        },
    ];
    if probe.kind == "cache" && probe.stock_store && probe.database.is_some() {
        steps.push(Step {
            when: "Or end with every session in the database too, which outlives any Redis. Needs nothing else: the rows are there.",
            diff: format!(
                "-SESSION_ENGINE = {}\n+SESSION_ENGINE = \"django.contrib.sessions.backends.cached_db\"\n",
                quoted(&probe.engine)
            ),
        });
    }
    steps
}

/// A URL without what may be a password.
fn shown(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://***@{rest}"),
        _ => url.to_owned(),
    }
}

/// A text as TOML and Python both read it.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

struct Writer<'a> {
    toml: String,
    kept: Vec<(&'static str, Secret)>,
    folder: &'a Path,
}

impl Writer<'_> {
    fn comment(&mut self, text: &str) {
        let _ = writeln!(self.toml, "# {text}");
    }

    fn table(&mut self, name: &str, comment: &str) {
        let _ = writeln!(self.toml, "\n# {comment}\n[{name}]");
    }

    fn value(&mut self, key: &str, value: &str) {
        let _ = writeln!(self.toml, "{key} = {value}");
    }

    fn text(&mut self, key: &str, text: &str) {
        self.value(key, &quoted(text));
    }

    /// A URL as it is, or in a file of its own where it holds a password.
    fn url(&mut self, key: &str, file: &'static str, url: &str, is_secret: bool) {
        if is_secret {
            self.kept.push((file, Secret::new(url)));
            self.value(key, &self.file(file));
        } else {
            self.text(key, url);
        }
    }

    fn secret(&mut self, key: &str, file: &'static str, held: &Held) {
        let reference = self.reference(file, held);
        self.value(key, &reference);
    }

    /// How the configuration names a secret: by the variable that holds it, else by a file.
    fn reference(&mut self, file: &'static str, held: &Held) -> String {
        match &held.env {
            Some(name) => quoted(&format!("env:{name}")),
            None => {
                self.kept.push((file, held.value.clone()));
                self.file(file)
            }
        }
    }

    fn file(&self, name: &str) -> String {
        quoted(&format!("file:{}", self.folder.join(name).display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
