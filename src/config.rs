//! What the program needs, gathered from flags, environment and file, and validated once.
//!
//! Flag > environment > `--config FILE` > default. All bad values are found before any is reported. Nothing here
//! connects to anything, and nothing here prints: the command line does.

mod gather;
mod keys;
mod parse;
mod secret;
#[cfg(test)]
mod tests;
mod types;
mod unsupported;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::net::Endpoint;
use crate::net::tls::TlsAcceptor;
use crate::session::cached_db_name;

pub use gather::DEFAULT_FILE;
use gather::Gather;
pub use keys::{KEYS, Key};
pub use secret::Secret;
pub(crate) use secret::{read_file as read_secret_file, resolve as resolve_secret};
pub use types::{
    Ack, Admin, Client, ClientAuth, Compressor, Cutover, Database, DatabaseMode, Django, Engine, Listen, Log,
    LogFormat, Mirror, OnFlush, OnSourceLoss, Serializer, SessionSerializer, Site, Store, Tee,
};
pub use unsupported::unsupported;

/// Django's client gives up at 5 s (redis-py 8), and a hold must end well before that.
pub const MAX_HOLD: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(4));
/// How long a connect may take: at least a round trip over an ocean, at most what an operator waits for.
pub const CONNECT_TIMEOUT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(30));
/// More threads than this is a typing mistake.
pub const WORKERS_MAX: u64 = 1024;
/// More than a process can have files open.
pub const CLIENTS_MAX: u64 = 1_000_000;
/// A token that is shorter can be guessed over a network.
pub const TOKEN_CHARS_MIN: usize = 16;

/// Every setting, checked.
#[derive(Clone, Debug)]
pub struct Config {
    pub listen: Listen,
    pub source: Store,
    pub target: Store,
    pub admin: Admin,
    pub data_dir: PathBuf,
    /// Never empty: without `[[site]]` tables the top level is the one site.
    pub sites: Vec<Site>,
    pub tee: Tee,
    pub cutover: Cutover,
    pub client: Client,
    pub log: Log,
    pub workers: usize,
    /// What works but is better changed, to be logged at start.
    pub warnings: Vec<String>,
    effective: Vec<String>,
}

/// Where settings are looked for.
pub struct Inputs<'a> {
    /// Values of flags, by the setting's name in the file.
    pub flags: BTreeMap<&'static str, String>,
    /// `--config`.
    pub config_file: Option<PathBuf>,
    /// Where [`DEFAULT_FILE`] is looked for; `None`: nowhere.
    pub directory: Option<&'a Path>,
    /// The environment.
    pub env: &'a dyn Fn(&str) -> Option<String>,
}

/// Everything that is wrong with a configuration, one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid(pub Vec<String>);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Invalid {}

impl Config {
    /// Gathers and checks; names every bad value at once.
    pub fn load(inputs: &Inputs<'_>) -> Result<Config, Invalid> {
        let mut g = Gather::new(inputs);
        let config = assemble(&mut g);
        let mut problems = std::mem::take(&mut g.problems);
        problems.extend(unsupported(&config));
        problems.extend(both_engines(&config));
        match problems.is_empty() {
            true => Ok(Config {
                effective: g.settings,
                warnings: g.warnings,
                ..config
            }),
            false => Err(Invalid(problems)),
        }
    }

    /// A configuration from names and values alone, without environment or file: for tests and tools.
    pub fn from_pairs(pairs: &[(&'static str, &str)]) -> Result<Config, Invalid> {
        let flags = pairs.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Config::load(&Inputs {
            flags,
            config_file: None,
            directory: None,
            env: &|_| None,
        })
    }

    /// One line per setting that has a value, with where it came from and without secrets: to be logged at start.
    pub fn effective(&self) -> &[String] {
        &self.effective
    }
}

fn assemble(g: &mut Gather<'_>) -> Config {
    let listen = g
        .optional("listen", parse::listen)
        .unwrap_or_else(|| Listen::Tcp("127.0.0.1:6380".into()));
    let source = store(g, &SOURCE);
    let target = store(g, &TARGET);
    check_distinct(g, &listen, &source, &target);
    let admin = admin(g);
    let data_dir = g
        .optional("data_dir", parse::path)
        .unwrap_or_else(|| "./sessionferry-data".into());
    let sites = sites(g);
    let client = client(g, &listen);
    Config {
        listen,
        source,
        target,
        admin,
        data_dir,
        sites,
        tee: Tee {
            ack: g.optional("tee.ack", Ack::parse).unwrap_or(Ack::Journal),
            mirror: g.optional("tee.mirror", Mirror::parse).unwrap_or(Mirror::Sessions),
            on_flush: g.optional("tee.on_flush", OnFlush::parse).unwrap_or(OnFlush::Mirror),
        },
        cutover: Cutover {
            max_hold: g
                .optional("cutover.max_hold", max_hold)
                .unwrap_or(Duration::from_secs(2)),
            on_source_loss: g
                .optional("cutover.on_source_loss", OnSourceLoss::parse)
                .unwrap_or(OnSourceLoss::Hold),
        },
        client,
        log: Log {
            filter: g.optional("log.filter", log_filter).unwrap_or_else(|| "info".into()),
            format: g.optional("log.format", LogFormat::parse).unwrap_or(LogFormat::Text),
        },
        workers: g
            .optional("workers", |v| parse::number(v, 1, WORKERS_MAX))
            .map(|n| n as usize)
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)),
        warnings: Vec::new(),
        effective: Vec::new(),
    }
}

fn sites(g: &mut Gather<'_>) -> Vec<Site> {
    let site = |g: &mut Gather<'_>| {
        let database = database(g);
        let django = django(g, &database);
        Site { django, database }
    };
    let mut sites = g.for_each_site(site);
    if sites.is_empty() {
        sites.push(site(g));
    }
    g.problems.extend(overlaps(&sites));
    sites
}

/// A row belongs to one Redis key: where two keys had the same one, whichever is deleted would take it with it.
fn overlaps(sites: &[Site]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut keys = BTreeSet::new();
    let mut tables = BTreeSet::new();
    for site in sites {
        let patterns = &site.django.session_key_patterns;
        for pattern in patterns {
            if !keys.insert(pattern) {
                problems.push(format!(
                    "django.session_key_patterns: two sites have the same keys, {pattern}: give each its own (django.key_prefix …)"
                ));
            }
            if let Some(twin) = cached_db_name(pattern).filter(|twin| patterns.contains(twin)) {
                problems.push(format!(
                    "django.session_key_patterns: {pattern} and {twin} are one session under two engines, whose rows would undo each \
                     other: let all workers use one engine, or, while they change from one to the other, set django.engine = both and \
                     leave {twin} out"
                ));
            }
        }
        if let Some(url) = &site.database.url
            && !tables.insert((url.expose().to_owned(), &site.database.table))
        {
            problems.push(format!(
                "database.table: two sites have the table {} of one database: give each its own, or, for one site with several kinds of \
                 keys, list them in django.session_key_patterns",
                site.database.table
            ));
        }
    }
    problems
}

/// What the engines side by side need: a session that both kinds of workers find, and a logout that both hear of.
fn both_engines(config: &Config) -> Vec<String> {
    let mut problems = Vec::new();
    for site in config.sites.iter().filter(|site| site.django.engine == Engine::Both) {
        let patterns = &site.django.session_key_patterns;
        if let Some(pattern) = patterns.iter().find(|pattern| cached_db_name(pattern).is_none()) {
            problems.push(format!(
                "django.engine = both: {pattern} does not tell the engines' keys apart: it must hold sessions.cache{{session_key}}"
            ));
        }
        if site.database.url.is_none() || site.database.mode != DatabaseMode::Write {
            problems.push(
                "django.engine = both: a worker with cached_db looks for the rows of what a worker with cache has written: set database.url, \
                 and database.mode = write"
                    .into(),
            );
        }
        if config.tee.ack != Ack::All {
            problems.push(
                "django.engine = both: a worker with cached_db would find a session in the table that was logged out a moment ago: set \
                 tee.ack = all"
                    .into(),
            );
        }
    }
    problems
}

/// The names of one Redis's settings: they are the same for both, but for the first part.
struct StoreKeys {
    url: &'static str,
    ca_file: &'static str,
    cert_file: &'static str,
    key_file: &'static str,
    server_name: &'static str,
    insecure: &'static str,
    connect_timeout: &'static str,
    sentinel: &'static str,
    sentinel_master: &'static str,
    cluster: &'static str,
}

macro_rules! store_keys {
    ($side:literal) => {
        StoreKeys {
            url: concat!($side, ".url"),
            ca_file: concat!($side, ".ca_file"),
            cert_file: concat!($side, ".cert_file"),
            key_file: concat!($side, ".key_file"),
            server_name: concat!($side, ".server_name"),
            insecure: concat!($side, ".insecure"),
            connect_timeout: concat!($side, ".connect_timeout"),
            sentinel: concat!($side, ".sentinel"),
            sentinel_master: concat!($side, ".sentinel_master"),
            cluster: concat!($side, ".cluster"),
        }
    };
}
const SOURCE: StoreKeys = store_keys!("source");
const TARGET: StoreKeys = store_keys!("target");

fn store(g: &mut Gather<'_>, keys: &StoreKeys) -> Store {
    g.require(keys.url, "redis://[user:pass@]host:port, rediss://… or unix:/path");
    let store = Store {
        url: g
            .secret(keys.url, parse::redis_url, parse::redacted)
            .unwrap_or_else(|| Secret::new("")),
        ca_file: g.optional(keys.ca_file, parse::path),
        cert_file: g.optional(keys.cert_file, parse::path),
        key_file: g.optional(keys.key_file, parse::path),
        server_name: g.optional(keys.server_name, parse::non_empty),
        insecure: g.optional(keys.insecure, parse::boolean).unwrap_or(false),
        connect_timeout: g
            .optional(keys.connect_timeout, |v| {
                parse::duration(v, CONNECT_TIMEOUT.0, CONNECT_TIMEOUT.1)
            })
            .unwrap_or(Duration::from_secs(2)),
        sentinel: g.optional(keys.sentinel, parse::list).unwrap_or_default(),
        sentinel_master: g.optional(keys.sentinel_master, parse::non_empty),
        cluster: g.optional(keys.cluster, parse::boolean).unwrap_or(false),
    };
    check_tls(g, keys, &store);
    store
}

/// Settings for TLS that are without effect may mean that a connection thought secure is not.
fn check_tls(g: &mut Gather<'_>, keys: &StoreKeys, store: &Store) {
    let Ok(endpoint) = Endpoint::parse(store.url.expose()) else {
        return;
    };
    if !endpoint.tls {
        for (set, name) in [
            (store.ca_file.is_some(), keys.ca_file),
            (store.cert_file.is_some(), keys.cert_file),
            (store.key_file.is_some(), keys.key_file),
            (store.server_name.is_some(), keys.server_name),
            (store.insecure, keys.insecure),
        ] {
            if set {
                let text = format!(
                    "{name}: only used with rediss:// in {}; write that, or remove it",
                    keys.url
                );
                g.problems.push(text);
            }
        }
        return;
    }
    if let Err(error) = store.endpoint() {
        let side = keys.url.trim_end_matches(".url");
        g.problems.push(format!("{side}: TLS: {error}"));
    }
    if store.insecure {
        g.warnings.push(format!(
            "{}: any certificate is accepted, so that another server can pose as this one: set {} instead",
            keys.insecure, keys.ca_file
        ));
    }
}

/// Two roles on one address would tee a write to where it came from, or the proxy to itself.
fn check_distinct(g: &mut Gather<'_>, listen: &Listen, source: &Store, target: &Store) {
    let address = |store: &Store| parse::redacted(store.url.expose()).replace("***@", "");
    let (old, new) = (address(source), address(target));
    if !source.url.expose().is_empty() && old == new {
        g.problems.push(format!(
            "source.url and target.url are both {old}: the target must be another Redis"
        ));
    }
    let own = match listen {
        Listen::Tcp(address) => format!("redis://{address}"),
        Listen::Unix(path) => format!("unix:{}", path.display()),
    };
    for (name, url) in [("source.url", old), ("target.url", new)] {
        if url == own || url.strip_prefix(&own).is_some_and(|rest| rest.starts_with('/')) {
            g.problems.push(format!(
                "{name} is the proxy's own address (listen): give the address of the Redis itself"
            ));
        }
    }
}

fn database(g: &mut Gather<'_>) -> Database {
    let check = |url: &str| {
        if url == "none" {
            Ok(())
        } else {
            parse::database_url(url)
        }
    };
    let shown = |url: &str| {
        if url == "none" {
            url.to_owned()
        } else {
            parse::redacted(url)
        }
    };
    let url = g
        .secret("database.url", check, shown)
        .unwrap_or_else(|| Secret::new(Key::find("database.url").map_or("", |key| key.default)));
    Database {
        url: (url.expose() != "none").then_some(url),
        mode: g
            .optional("database.mode", DatabaseMode::parse)
            .unwrap_or(DatabaseMode::Write),
        table: g
            .optional("database.table", parse::table)
            .unwrap_or_else(|| "django_session".into()),
    }
}

fn admin(g: &mut Gather<'_>) -> Admin {
    let listen = g
        .optional("admin.listen", parse::tcp_address)
        .unwrap_or_else(|| "127.0.0.1:9380".into());
    let problems = g.problems.len();
    let token = g.secret("admin.token", token, |_| "***".into());
    // A token that could not be read has been reported already.
    if token.is_none() && problems == g.problems.len() && !parse::is_loopback(&listen) {
        let key = Key::find("admin.token").map_or_else(String::new, Key::names);
        g.problems.push(format!(
            "{key}: required, because admin.listen ({listen}) is not loopback; give a token, or listen on 127.0.0.1"
        ));
    }
    if token
        .as_ref()
        .is_some_and(|token| token.expose().len() < TOKEN_CHARS_MIN)
    {
        g.warnings.push(format!(
            "admin.token is shorter than {TOKEN_CHARS_MIN} characters and can be guessed: use a longer one"
        ));
    }
    Admin { listen, token }
}

/// A token travels in an HTTP header.
fn token(token: &str) -> Result<(), String> {
    match token.bytes().all(|b| b.is_ascii_graphic()) {
        true => Ok(()),
        false => Err("a token is made of visible ASCII characters, without spaces".into()),
    }
}

fn django(g: &mut Gather<'_>, database: &Database) -> Django {
    if database.url.is_some() {
        g.require(
            "django.secret_key",
            "Django's SECRET_KEY, which signs the rows (or database = none)",
        );
    }
    let secret_key = g.secret("django.secret_key", |_| Ok(()), |_| "***".into());
    let secret_key_fallbacks = g.secrets("django.secret_key_fallbacks");
    let key_prefix = g.optional("django.key_prefix", parse::text).unwrap_or_default();
    let key_version = g
        .optional("django.key_version", parse::text_or_number)
        .unwrap_or_else(|| "1".into());
    let engine = g.optional("django.engine", Engine::parse).unwrap_or(Engine::Cache);
    let session_key_patterns = g.optional("django.session_key_patterns", patterns).unwrap_or_else(|| {
        let engine = match engine {
            Engine::Both => Engine::Cache.as_str(),
            engine => engine.as_str(),
        };
        let pattern = format!("{key_prefix}:{key_version}:django.contrib.sessions.{engine}{{session_key}}");
        // A wrong one makes every session invisible, so the log shows it, whatever it was made from.
        g.settings.push(format!(
            "django.session_key_patterns = {pattern} (from prefix, version and engine)"
        ));
        vec![pattern]
    });
    Django {
        secret_key,
        secret_key_fallbacks,
        key_prefix,
        key_version,
        engine,
        session_key_patterns,
        value_serializer: g
            .optional("django.value_serializer", Serializer::parse)
            .unwrap_or(Serializer::Auto),
        value_compressor: g
            .optional("django.value_compressor", Compressor::parse)
            .unwrap_or(Compressor::Auto),
        session_serializer: g
            .optional("django.session_serializer", SessionSerializer::parse)
            .unwrap_or(SessionSerializer::Json),
        salt: g
            .optional("django.salt", parse::non_empty)
            .unwrap_or_else(|| "django.contrib.sessions.SessionStore".into()),
        // Up to 100 years: beyond that the deadline's arithmetic is a typing mistake.
        cookie_age: Duration::from_secs(
            g.optional("django.cookie_age", |v| parse::number(v, 1, 3_155_760_000))
                .unwrap_or(1_209_600),
        ),
        use_tz: g.optional("django.use_tz", parse::boolean).unwrap_or(true),
        time_zone: g.optional("django.time_zone", time_zone).unwrap_or(chrono_tz::UTC),
    }
}

fn patterns(value: &toml::Value) -> Result<Vec<String>, String> {
    let patterns = parse::list(value)?;
    if patterns.is_empty() {
        return Err("the list is empty; leave it out for Django's own key names".into());
    }
    match patterns
        .iter()
        .find(|pattern| pattern.matches("{session_key}").count() != 1)
    {
        Some(pattern) => Err(format!(
            "`{pattern}` must hold {{session_key}} once, as in `:1:prefix{{session_key}}`"
        )),
        None => Ok(patterns),
    }
}

fn time_zone(value: &toml::Value) -> Result<chrono_tz::Tz, String> {
    let name = parse::text(value)?;
    name.parse()
        .map_err(|_| format!("`{name}` is not a time zone such as Europe/Berlin"))
}

fn max_hold(value: &toml::Value) -> Result<Duration, String> {
    parse::duration(value, MAX_HOLD.0, MAX_HOLD.1).map_err(|reason| {
        format!("{reason} (Django's Redis client gives up after 5 s, and its user is logged out then)")
    })
}

fn log_filter(value: &toml::Value) -> Result<String, String> {
    let filter = parse::non_empty(value)?;
    match tracing_subscriber::EnvFilter::try_new(&filter) {
        Ok(_) => Ok(filter),
        Err(_) => Err(format!(
            "`{filter}` is not a log filter such as info or info,sessionferry::tee=debug"
        )),
    }
}

fn client(g: &mut Gather<'_>, listen: &Listen) -> Client {
    let already = g.problems.len();
    let client = Client {
        auth: g.optional("client.auth", ClientAuth::parse).unwrap_or(ClientAuth::Same),
        users: g.secret_table("client.users"),
        max: g
            .optional("client.max", |v| parse::number(v, 1, CLIENTS_MAX))
            .unwrap_or(10_000) as usize,
        tls_cert: g.optional("client.tls_cert", parse::path),
        tls_key: g.optional("client.tls_key", parse::path),
    };
    if client.tls_cert.is_some() != client.tls_key.is_some() {
        g.problems
            .push("client.tls_cert and client.tls_key: give both or neither".into());
    }
    if let (Some(cert), Some(key)) = (&client.tls_cert, &client.tls_key)
        && let Err(error) = TlsAcceptor::new(cert, key)
    {
        g.problems.push(format!("client: TLS: {error}"));
    }
    if client.tls_cert.is_some() && matches!(listen, Listen::Unix(_)) {
        g.problems
            .push("client.tls_cert: a unix socket is not encrypted; listen on host:port, or remove it".into());
    }
    if client.auth == ClientAuth::Users && client.users.is_empty() && already == g.problems.len() {
        g.problems.push(
            "client.users: required with client.auth = users: a table of names and passwords ([client.users])".into(),
        );
    }
    if client
        .users
        .iter()
        .any(|(name, secret)| name.is_empty() || secret.expose().is_empty())
    {
        g.problems
            .push("client.users: a name or a password is empty, which anybody could guess".into());
    }
    if let (ClientAuth::None, Listen::Tcp(address)) = (client.auth, listen)
        && !parse::is_loopback(address)
    {
        g.warnings.push(format!(
            "client.auth = none on {address}, which is not loopback: whoever reaches it can read and write everything"
        ));
    }
    if !client.users.is_empty() && client.auth != ClientAuth::Users {
        g.problems
            .push("client.users: only used with client.auth = users; set that, or remove the table".into());
    }
    client
}
