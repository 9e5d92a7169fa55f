//! What a project's answer means: the configuration, the secrets beside it, the lines to change in the project's settings,
//! and what will bite. Pure: reads and writes nothing.

use std::fmt::Write as _;
use std::path::Path;

use super::address::{database_url, shown, url, with_number};
use super::document::{Document, quoted};
use super::probe::{Cache, Connection, Probe, SESSION_KEY};
use super::warning::warnings;
use crate::config::Secret;

/// Django's own name of the salt, which needs no setting.
const STOCK_SALT: &str = "django.contrib.sessions.SessionStore";

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
    let mut document = Document {
        toml: String::new(),
        kept: Vec::new(),
        folder: secrets,
    };
    let mut warnings = warnings(probe, cache);
    let source = url(connection, None);
    let target = target.map(|target| with_number(target, connection.db));
    let target = target.as_deref();

    document.comment(&format!(
        "Made by `sessionferry init` from {}: Django {}, sessions on the cache {:?}.",
        probe.settings_module.as_deref().unwrap_or("the project's settings"),
        probe.django,
        cache.alias
    ));
    document.comment("`sessionferry check --sessions` looks whether it fits.\n");
    document.comment("Where Django connects instead of the old Redis.");
    document.text("listen", listen);
    document.comment("On a disk that stays: what is on its way to the other stores, and where the move stands.");
    document.text("data_dir", "sessionferry-data");
    document.table("source", "The old Redis.");
    document.url("url", "source_url", &source, connection.password.is_some());
    for (key, file) in [
        ("ca_file", &connection.ca_file),
        ("cert_file", &connection.cert_file),
        ("key_file", &connection.key_file),
    ] {
        if let Some(file) = file {
            document.text(key, file);
        }
    }
    document.table("target", "The new Redis, with the same database number.");
    match target {
        Some(target) => document.url("url", "target_url", target, target.contains('@')),
        None => {
            document.comment("Not known yet: remove the mark and give its address.");
            let _ = writeln!(document.toml, "# url = \"redis://new-redis:6379/{}\"", connection.db);
            warnings.push("target.url is yet to be filled in: the address of the new Redis".to_owned());
        }
    }
    let with_rows = write_database(&mut document, probe, &mut warnings);
    write_django(&mut document, probe, cache, &key, with_rows, &mut warnings);
    write_tee(&mut document, probe);
    Ok(Plan {
        toml: document.toml,
        secrets: document.kept,
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

/// Whether there are rows at all.
fn write_database(document: &mut Document<'_>, probe: &Probe, warnings: &mut Vec<String>) -> bool {
    document.table("database", "The database with Django's session table.");
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
        document.text("url", "none");
        return false;
    };
    if !probe.sessions_installed {
        warnings.push(
            "django.contrib.sessions is not in INSTALLED_APPS, so there may be no session table: add it and run \
             `manage.py migrate sessions`, or set database.url to \"none\""
                .to_owned(),
        );
    }
    document.url("url", "database_url", &url, database.password.is_some());
    if database.table != "django_session" {
        document.text("table", &database.table);
    }
    if probe.kind == "cached_db" {
        document.comment("Django's cached_db writes the rows itself: they are compared, not written.");
        document.text("mode", "verify");
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

fn write_django(
    document: &mut Document<'_>,
    probe: &Probe,
    cache: &Cache,
    key: &str,
    with_rows: bool,
    warnings: &mut Vec<String>,
) {
    document.table("django", "What Django's settings say of sessions.");
    if with_rows {
        document.secret("secret_key", "secret_key", &probe.secret_key);
        let names: Vec<String> = FALLBACKS
            .into_iter()
            .zip(&probe.fallbacks)
            .map(|(name, held)| document.reference(name, held))
            .collect();
        if !names.is_empty() {
            let _ = writeln!(document.toml, "secret_key_fallbacks = [{}]", names.join(", "));
        }
        if probe.fallbacks.len() > FALLBACKS.len() {
            warnings.push(format!(
                "only the first {} SECRET_KEY_FALLBACKS are taken over",
                FALLBACKS.len()
            ));
        }
    }
    document.text("engine", &probe.kind);
    let stock = format!(
        "{}:{}:django.contrib.sessions.{}{SESSION_KEY}",
        cache.key_prefix, cache.version, probe.kind
    );
    if key == stock {
        document.text("key_prefix", &cache.key_prefix);
        document.text("key_version", &cache.version);
    } else {
        document.comment(
            "This site builds its keys in a way of its own (KEY_FUNCTION, or a session store with another prefix).",
        );
        let pattern = quoted(&key.replace(SESSION_KEY, "{session_key}"));
        let _ = writeln!(document.toml, "session_key_patterns = [{pattern}]");
    }
    write_values(document, cache, warnings);
    match probe.session_serializer.as_str() {
        "django.contrib.sessions.serializers.JSONSerializer" => {}
        "django.contrib.sessions.serializers.PickleSerializer" => document.text("session_serializer", "pickle"),
        other if with_rows => warnings.push(format!(
            "SESSION_SERIALIZER is {other}, which is not known here: rows are written as Django's JSONSerializer writes them. If that \
             one reads other rows, set database.url to \"none\""
        )),
        _ => {}
    }
    if probe.salt != STOCK_SALT {
        document.text("salt", &probe.salt);
    }
    document.value("cookie_age", &probe.cookie_age.to_string());
    document.value("use_tz", if probe.use_tz { "true" } else { "false" });
    document.text("time_zone", &probe.time_zone);
}

/// As many old keys as anybody keeps.
const FALLBACKS: [&str; 4] = [
    "secret_key_fallback_1",
    "secret_key_fallback_2",
    "secret_key_fallback_3",
    "secret_key_fallback_4",
];

/// What the cache's backend serializes and compresses with.
fn write_values(document: &mut Document<'_>, cache: &Cache, warnings: &mut Vec<String>) {
    let class = |path: &Option<String>| {
        path.as_deref()
            .map(|path| path.rsplit('.').next().unwrap_or(path).to_lowercase())
    };
    let known = |class: &str, names: &[&'static str]| names.iter().copied().find(|name| class.starts_with(name));
    if let Some(class) = class(&cache.serializer) {
        match known(&class, &["pickle", "json", "msgpack"]) {
            Some(name) => document.text("value_serializer", name),
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
        Some("bzip2") => document.text("value_compressor", "bz2"),
        Some(name) => document.text("value_compressor", name),
        None => warnings.push(format!(
            "the cache's compressor {} is not known here: no row can be written for what it writes",
            cache.compressor.as_deref().unwrap_or_default()
        )),
    }
}

fn write_tee(document: &mut Document<'_>, probe: &Probe) {
    if probe.clears.is_empty() {
        return;
    }
    document.table("tee", "What becomes of writes.");
    document
        .comment("The project empties this cache (see the warning of `init`): with `shield` that spares the sessions.");
    document.text("on_flush", "shield");
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
