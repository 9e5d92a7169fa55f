//! Every setting, once: its names, its default and its help. The parser, the command line's flags, the "did you mean"
//! of the configuration file and the error messages all read this table.

/// One setting.
pub struct Key {
    /// Its name in the configuration file, and in messages.
    pub toml: &'static str,
    /// Its flag without the dashes.
    pub flag: Option<&'static str>,
    /// Its environment variable.
    pub env: Option<&'static str>,
    /// What the help shows for the value: `URL`, `DURATION` …
    pub value: &'static str,
    /// Help text, in the operator's words.
    pub help: &'static str,
    /// What holds where it is not set, as the help shows it; empty where there is none.
    pub default: &'static str,
    /// `file:PATH` and `env:NAME` are followed, and the value is never shown.
    pub secret: bool,
}

const fn key(toml: &'static str, value: &'static str, default: &'static str, help: &'static str) -> Key {
    Key {
        toml,
        flag: None,
        env: None,
        value,
        help,
        default,
        secret: false,
    }
}

impl Key {
    const fn flag(mut self, flag: &'static str, env: &'static str) -> Key {
        self.flag = Some(flag);
        self.env = Some(env);
        self
    }

    const fn env(mut self, env: &'static str) -> Key {
        self.env = Some(env);
        self
    }

    const fn secret(mut self) -> Key {
        self.secret = true;
        self
    }

    /// The setting with this name in the configuration file.
    pub fn find(toml: &str) -> Option<&'static Key> {
        KEYS.iter().find(|key| key.toml == toml)
    }

    /// All names of a setting, for a message: `source.url (--source, SESSIONFERRY_SOURCE)`.
    pub fn names(&self) -> String {
        let mut others: Vec<String> = Vec::new();
        others.extend(self.flag.map(|flag| format!("--{flag}")));
        others.extend(self.env.map(str::to_owned));
        match others.is_empty() {
            true => self.toml.to_owned(),
            false => format!("{} ({})", self.toml, others.join(", ")),
        }
    }
}

/// The whole table, in the order of the help.
pub const KEYS: &[Key] = &[
    key("listen", "ADDRESS", "127.0.0.1:6380", "Where Django connects instead of the old Redis: host:port, or unix:/path")
        .flag("listen", "SESSIONFERRY_LISTEN"),
    key("source.url", "URL", "", "The old Redis: redis://[user:pass@]host:port[/db] or unix:/path (also file:PATH, env:NAME)")
        .flag("source", "SESSIONFERRY_SOURCE")
        .secret(),
    key("target.url", "URL", "", "The new Redis, in the same forms")
        .flag("target", "SESSIONFERRY_TARGET")
        .secret(),
    key(
        "database.url",
        "URL",
        "sqlite://sessionferry.db?mode=rwc",
        "The database with Django's session table: postgres://, mysql:// or sqlite://, or none",
    )
    .flag("database", "SESSIONFERRY_DATABASE")
    .secret(),
    key(
        "database.mode",
        "MODE",
        "write",
        "write: the proxy writes the rows; verify: Django's cached_db already writes them, they are only compared",
    )
    .flag("database-mode", "SESSIONFERRY_DATABASE_MODE"),
    key("database.table", "NAME", "django_session", "The session table; created on SQLite where missing, never elsewhere")
        .flag("database-table", "SESSIONFERRY_DATABASE_TABLE"),
    key("admin.listen", "ADDRESS", "127.0.0.1:9380", "Where status, metrics and the commands are served; beyond loopback a token is required")
        .flag("admin", "SESSIONFERRY_ADMIN"),
    key("admin.token", "TOKEN", "", "The token that the admin address asks for; better as file:PATH or env:NAME")
        .flag("admin-token", "SESSIONFERRY_ADMIN_TOKEN")
        .secret(),
    key("data_dir", "DIR", "./sessionferry-data", "Where writes on their way and the state of the move are kept; one process at a time")
        .flag("data-dir", "SESSIONFERRY_DATA_DIR"),
    key("django.secret_key", "KEY", "", "Django's SECRET_KEY, which signs the rows; better as file:PATH or env:NAME")
        .flag("secret-key", "SESSIONFERRY_SECRET_KEY")
        .secret(),
    key("django.secret_key_fallbacks", "KEYS", "", "Django's SECRET_KEY_FALLBACKS: rows signed with them are still read")
        .env("SESSIONFERRY_SECRET_KEY_FALLBACKS")
        .secret(),
    key("django.key_prefix", "TEXT", "", "KEY_PREFIX of the cache that holds the sessions")
        .flag("key-prefix", "SESSIONFERRY_KEY_PREFIX"),
    key("django.key_version", "VERSION", "1", "VERSION of the cache that holds the sessions")
        .flag("key-version", "SESSIONFERRY_KEY_VERSION"),
    key("django.engine", "ENGINE", "cache", "Django's session engine: cache, cached_db, or both while workers change from one to the other").flag("engine", "SESSIONFERRY_ENGINE"),
    key("django.session_key_patterns", "LIST", "", "Redis keys that are sessions, with {session_key} in its place; for a custom KEY_FUNCTION"),
    key("django.value_serializer", "NAME", "auto", "How Django's cache writes values: auto, pickle, json, msgpack or signed")
        .flag("value-serializer", "SESSIONFERRY_VALUE_SERIALIZER"),
    key("django.value_compressor", "NAME", "auto", "How Django's cache compresses values: auto, none, zlib, gzip, bz2, lzma, lz4, zstd or brotli")
        .flag("value-compressor", "SESSIONFERRY_VALUE_COMPRESSOR"),
    key("django.session_serializer", "NAME", "json", "SESSION_SERIALIZER: json or pickle"),
    key("django.salt", "TEXT", "django.contrib.sessions.SessionStore", "The salt that signs the rows"),
    key("django.cookie_age", "SECONDS", "1209600", "SESSION_COOKIE_AGE, used where a key carries no expiry"),
    key("django.use_tz", "BOOL", "true", "USE_TZ: how SQLite and MySQL store expire_date"),
    key("django.time_zone", "ZONE", "UTC", "TIME_ZONE, for USE_TZ = False"),
    key(
        "tee.ack",
        "WHEN",
        "journal",
        "When Django's reply to a session write leaves: source (at once), journal (once the write is recorded in the data directory), \
         target (once the other Redis has it), all (and the database too)",
    )
    .flag("ack", "SESSIONFERRY_ACK"),
    key("tee.mirror", "WHAT", "sessions", "sessions, or all: keep every other key the same on the other Redis too")
        .flag("mirror", "SESSIONFERRY_MIRROR"),
    key(
        "tee.on_flush",
        "WHAT",
        "mirror",
        "FLUSHDB and FLUSHALL: mirror them, shield (delete all but the sessions), or refuse them",
    )
    .flag("on-flush", "SESSIONFERRY_ON_FLUSH"),
    key("cutover.max_hold", "DURATION", "2s", "A cutover that would hold Django for longer undoes itself; 100ms to 4s")
        .flag("max-hold", "SESSIONFERRY_MAX_HOLD"),
    key("cutover.on_source_loss", "WHAT", "hold", "When the source is lost: hold (wait for it) or promote (cut over by itself once synced)"),
    key("workers", "NUMBER", "the number of cores", "Threads that serve Django").flag("workers", "SESSIONFERRY_WORKERS"),
    key(
        "client.auth",
        "HOW",
        "same",
        "What clients must present: same (the source's own users and passwords), users (the table client.users), none",
    )
    .flag("client-auth", "SESSIONFERRY_CLIENT_AUTH"),
    key("client.users", "TABLE", "", "Names and passwords, for client.auth = users").secret(),
    key("client.max", "NUMBER", "10000", "Clients connected at once").flag("max-clients", "SESSIONFERRY_MAX_CLIENTS"),
    key("client.tls_cert", "FILE", "", "Certificate chain for TLS to clients").flag("tls-cert", "SESSIONFERRY_TLS_CERT"),
    key("client.tls_key", "FILE", "", "Private key for TLS to clients").flag("tls-key", "SESSIONFERRY_TLS_KEY"),
    key("log.filter", "FILTER", "info", "What is logged: a level, or per room: info,sessionferry::tee=debug")
        .flag("log", "SESSIONFERRY_LOG"),
    key("log.format", "FORMAT", "text", "text or json").flag("log-format", "SESSIONFERRY_LOG_FORMAT"),
    key("source.ca_file", "FILE", "", "Certificates to trust for the source"),
    key("source.cert_file", "FILE", "", "Client certificate for the source"),
    key("source.key_file", "FILE", "", "Client key for the source"),
    key("source.server_name", "NAME", "", "Name expected in the source's certificate"),
    key("source.insecure", "BOOL", "false", "Accept any certificate of the source"),
    key("source.connect_timeout", "DURATION", "2s", "How long connecting to the source may take; 50ms to 30s"),
    key("source.sentinel", "LIST", "", "Addresses of sentinels that know the source"),
    key("source.sentinel_master", "NAME", "", "The sentinels' name for the source"),
    key("source.cluster", "BOOL", "false", "The source is a Redis Cluster"),
    key("target.ca_file", "FILE", "", "Certificates to trust for the target"),
    key("target.cert_file", "FILE", "", "Client certificate for the target"),
    key("target.key_file", "FILE", "", "Client key for the target"),
    key("target.server_name", "NAME", "", "Name expected in the target's certificate"),
    key("target.insecure", "BOOL", "false", "Accept any certificate of the target"),
    key("target.connect_timeout", "DURATION", "2s", "How long connecting to the target may take; 50ms to 30s"),
    key("target.sentinel", "LIST", "", "Addresses of sentinels that know the target"),
    key("target.sentinel_master", "NAME", "", "The sentinels' name for the target"),
    key("target.cluster", "BOOL", "false", "The target is a Redis Cluster"),
    key("site", "TABLES", "", "Several sites on one Redis, each with its own django.* and database.*"),
];
