//! Inputs and what must come of them, as tables.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;

const MINIMAL: &str = "source.url = \"redis://old:6379\"\ntarget.url = \"redis://new:6379\"\n";
const KEYED: &str = "django.secret_key = \"s3cr3t-signing\"\n";

/// Loads with a file's text, environment and flags.
fn load(file: &str, env: &[(&str, &str)], flags: &[(&'static str, &str)]) -> Result<Config, Invalid> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(DEFAULT_FILE), file).unwrap();
    let env: BTreeMap<String, String> = env.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    let flags = flags.iter().map(|(k, v)| (*k, (*v).to_owned())).collect();
    Config::load(&Inputs {
        flags,
        config_file: None,
        directory: Some(dir.path()),
        env: &|name| env.get(name).cloned(),
    })
}

/// The minimum, and `extra`: accepted.
fn good(extra: &str) -> Config {
    load(&format!("{MINIMAL}{KEYED}{extra}\n"), &[], &[]).unwrap_or_else(|e| panic!("{extra}: {e}"))
}

/// The minimum, and `extra`: refused, with these words in one line of the reasons, and nothing else said.
fn bad(extra: &str, words: &[&str]) {
    let Err(Invalid(problems)) = load(&format!("{MINIMAL}{KEYED}{extra}\n"), &[], &[]) else {
        panic!("accepted: {extra}");
    };
    assert_eq!(problems.len(), 1, "{extra}: {problems:?}");
    for word in words {
        assert!(
            problems[0].contains(word),
            "{extra}: `{word}` is not in: {}",
            problems[0]
        );
    }
    assert!(!problems[0].contains("s3cr3t"), "{}", problems[0]);
}

#[test]
fn defaults_are_those_of_the_interface() {
    let c = good("");
    assert_eq!(c.listen, Listen::Tcp("127.0.0.1:6380".into()));
    assert_eq!(
        c.sites[0].database.url.as_ref().unwrap().expose(),
        "sqlite://sessionferry.db?mode=rwc"
    );
    assert_eq!(
        (c.sites[0].database.mode, c.sites[0].database.table.as_str()),
        (DatabaseMode::Write, "django_session")
    );
    assert_eq!(
        (c.admin.listen.as_str(), c.admin.token.is_none()),
        ("127.0.0.1:9380", true)
    );
    assert_eq!(c.data_dir, Path::new("./sessionferry-data"));
    assert_eq!(
        c.sites[0].django.session_key_patterns,
        [":1:django.contrib.sessions.cache{session_key}"]
    );
    assert_eq!(c.sites[0].django.salt, "django.contrib.sessions.SessionStore");
    assert_eq!(
        (c.sites[0].django.cookie_age.as_secs(), c.sites[0].django.use_tz),
        (1_209_600, true)
    );
    assert_eq!(
        (c.tee.ack, c.tee.mirror, c.tee.on_flush),
        (Ack::Journal, Mirror::Sessions, OnFlush::Mirror)
    );
    assert_eq!(
        (c.cutover.max_hold, c.cutover.on_source_loss),
        (Duration::from_secs(2), OnSourceLoss::Hold)
    );
    assert_eq!((c.client.auth, c.client.max), (ClientAuth::Same, 10_000));
    assert_eq!((c.log.filter.as_str(), c.log.format), ("info", LogFormat::Text));
    assert!(c.workers >= 1 && c.warnings.is_empty());
}

#[test]
fn the_defaults_in_the_help_are_the_defaults_in_the_code() {
    let c = good("");
    let written: Vec<String> = KEYS
        .iter()
        .filter(|key| !key.default.is_empty() && !key.secret && key.toml != "workers")
        .map(|key| format!("{} = \"{}\"", key.toml, key.default))
        .collect();
    let spelled = good(&written.join("\n"));
    let strip = |c: &Config| {
        format!(
            "{:?}",
            Config {
                effective: vec![],
                workers: 0,
                ..c.clone()
            }
        )
    };
    assert_eq!(strip(&c), strip(&spelled));
}

#[test]
fn flag_beats_environment_beats_file_beats_default() {
    let file = format!("{MINIMAL}{KEYED}[log]\nformat = \"json\"\n[tee]\nack = \"source\"\n");
    let env = [
        ("SESSIONFERRY_LISTEN", "0.0.0.0:1"),
        ("SESSIONFERRY_ACK", "journal"),
        ("SESSIONFERRY_LOG_FORMAT", ""),
    ];
    let c = load(&file, &env, &[("listen", "0.0.0.0:2")]).unwrap();
    assert_eq!(c.listen, Listen::Tcp("0.0.0.0:2".into()), "flag over environment");
    assert_eq!(c.tee.ack, Ack::Journal, "environment over file");
    assert_eq!(c.log.format, LogFormat::Json, "an empty variable is not set");
    let lines = c.effective().join("\n");
    for line in [
        "listen = 0.0.0.0:2 (--listen)",
        "tee.ack = journal (SESSIONFERRY_ACK)",
        "cutover.max_hold = 2s (default)",
    ] {
        assert!(lines.contains(line), "{line} is not in\n{lines}");
    }
}

#[test]
fn each_good_value_is_taken() {
    assert_eq!(
        good("listen = \"unix:/run/ferry.sock\"").listen,
        Listen::Unix("/run/ferry.sock".into())
    );
    assert_eq!(good("listen = \"[::1]:7000\"").listen, Listen::Tcp("[::1]:7000".into()));
    for (written, ms) in [("100ms", 100), ("500ms", 500), ("1.5s", 1500), ("4s", 4000)] {
        assert_eq!(
            good(&format!("cutover.max_hold = \"{written}\"")).cutover.max_hold,
            Duration::from_millis(ms)
        );
    }
    assert_eq!(
        good("database.table = \"legacy.sessions\"").sites[0].database.table,
        "legacy.sessions"
    );
    assert_eq!(
        good("database.mode = \"verify\"").sites[0].database.mode,
        DatabaseMode::Verify
    );
    assert_eq!(
        good("django.key_version = 3").sites[0].django.session_key_patterns,
        [":3:django.contrib.sessions.cache{session_key}"]
    );
    let c = good("django.key_prefix = \"shop\"\ndjango.engine = \"cached_db\"");
    assert_eq!(
        c.sites[0].django.session_key_patterns,
        ["shop:1:django.contrib.sessions.cached_db{session_key}"]
    );
    let c = good("django.session_key_patterns = [\"a/{session_key}\", \"b{session_key}\"]");
    assert_eq!(c.sites[0].django.session_key_patterns.len(), 2);
    assert_eq!(
        good("django.time_zone = \"Europe/Berlin\"").sites[0].django.time_zone,
        chrono_tz::Europe::Berlin
    );
    assert_eq!(
        good("source.connect_timeout = \"2000ms\"").source.connect_timeout,
        Duration::from_secs(2)
    );
    assert_eq!(good("workers = 3\nclient.max = 7").client.max, 7);
}

#[test]
fn each_bad_value_is_refused_with_its_name_and_origin() {
    let cases: &[(&str, &[&str])] = &[
        (
            "cutover.max_hold = \"5s\"",
            &[
                "cutover.max_hold (--max-hold, SESSIONFERRY_MAX_HOLD)",
                "5s",
                "100ms to 4s",
                "gives up after 5 s",
                "sessionferry.toml",
            ],
        ),
        ("cutover.max_hold = \"99ms\"", &["100ms to 4s"]),
        ("cutover.max_hold = 2", &["no unit"]),
        ("cutover.max_hold = \"2 years\"", &["not a duration"]),
        ("cutover.max_hold = \"-2s\"", &["not a duration"]),
        ("listen = \"6380\"", &["listen (--listen", "host:port"]),
        ("listen = \":6380\"", &["names no host"]),
        ("listen = \"::1:6380\"", &["[::1]:6380"]),
        ("listen = \"localhost:66000\"", &["host:port"]),
        ("listen = \"unix:\"", &["path"]),
        ("listen = 6380", &["expected text", "a number"]),
        ("listen = \"old:6379\"", &["source.url is the proxy's own address"]),
        (
            "admin.listen = \"0.0.0.0:9380\"",
            &["admin.token", "required", "not loopback"],
        ),
        ("admin.listen = \"ferry.internal:9380\"", &["admin.token", "required"]),
        ("admin.token = \"\"", &["empty"]),
        ("admin.token = \"a b\"", &["visible ASCII"]),
        (
            "database.url = \"oracle://s3cr3t@h/d\"",
            &["database.url", "postgres://"],
        ),
        ("database.table = \"a; drop table b\"", &["not a table name"]),
        ("database.table = \"a.b.c\"", &["not a table name"]),
        ("database.mode = \"read\"", &["write, verify"]),
        (
            "tee.ack = \"later\"",
            &["`later` is none of source, journal, target, all"],
        ),
        ("workers = 0", &["from 1 to 1024"]),
        ("workers = \"many\"", &["whole number"]),
        ("client.max = -1", &["whole number"]),
        (
            "client.tls_cert = \"a.pem\"\nclient.tls_key = \"a.key\"",
            &["client: TLS: cannot read tls_cert a.pem"],
        ),
        ("client.tls_cert = \"a.pem\"", &["give both or neither"]),
        ("client.users = { ann = \"s3cr3t\" }", &["client.auth = users"]),
        ("client.auth = \"users\"", &["client.users: required"]),
        (
            "client.auth = \"users\"\nclient.users = { ann = \"\" }",
            &["client.users", "empty"],
        ),
        (
            "source.ca_file = \"ca.pem\"",
            &["source.ca_file: only used with rediss://"],
        ),
        ("target.insecure = true", &["target.insecure: only used with rediss://"]),
        (
            "source.connect_timeout = \"31s\"",
            &["source.connect_timeout", "50ms to 30s"],
        ),
        ("django.session_key_patterns = []", &["empty"]),
        ("django.session_key_patterns = [\"x\"]", &["{session_key} once"]),
        ("django.time_zone = \"Mars\"", &["Europe/Berlin"]),
        ("django.use_tz = \"maybe\"", &["neither true nor false"]),
        ("django.cookie_age = 0", &["from 1"]),
        ("log.filter = \"a=b=c\"", &["log filter"]),
        ("max_hold = \"1s\"", &["unknown key `max_hold`", "cutover.max_hold"]),
        ("sorce.insecure = true", &["sorce.insecure", "source.insecure"]),
        ("tee.akc = \"journal\"", &["tee.akc", "tee.ack"]),
        ("database = \"none\"", &["is a table", "database.url"]),
    ];
    for (extra, words) in cases {
        bad(extra, words);
    }
}

#[test]
fn each_site_has_its_own_and_the_rest_from_outside() {
    let text = "django.use_tz = false\n\
                [[site]]\ndjango.key_prefix = \"shop\"\ndatabase.url = \"sqlite://shop.db\"\n\
                [[site]]\ndjango = { key_prefix = \"blog\", secret_key = \"b\", use_tz = true }\ndatabase.url = \"none\"\n";
    let config = good(text);
    let [shop, blog] = &config.sites[..] else {
        panic!("{:?}", config.sites);
    };
    assert_eq!(
        shop.django.session_key_patterns,
        ["shop:1:django.contrib.sessions.cache{session_key}"]
    );
    assert_eq!(shop.database.url.as_ref().unwrap().expose(), "sqlite://shop.db");
    assert_eq!(blog.django.secret_key.as_ref().unwrap().expose(), "b");
    assert_ne!(shop.django.secret_key.as_ref().unwrap().expose(), "b");
    assert_eq!((shop.django.use_tz, blog.django.use_tz), (false, true));
    assert!(blog.database.url.is_none());
}

#[test]
fn what_is_wrong_with_a_site_is_said_with_its_number() {
    let first = "[[site]]\ndjango.key_prefix = \"a\"\ndatabase.url = \"none\"\n";
    bad(
        &format!("{first}[[site]]\ndjango.key_prefix = \"b\"\ntee.ack = \"all\""),
        &["number 2", "tee.ack"],
    );
    bad(
        &format!("{first}[[site]]\ndjango.key_prefix = \"b\"\ndjango.cookie_age = 0"),
        &["number 2", "cookie_age"],
    );
    bad(
        &format!("{first}[[site]]\ndjango.key_prefix = \"a\""),
        &["two sites have the same keys", "a:1:"],
    );
    bad("site = 3", &["[[site]]"]);
    bad(
        "[[site]]\ndjango.key_prefix = \"a\"\n[[site]]\ndjango.key_prefix = \"b\"",
        &["two sites have the table django_session"],
    );
    bad(
        "django.session_key_patterns = [\":1:django.contrib.sessions.cache{session_key}\", \":1:django.contrib.sessions.cached_db{session_key}\"]",
        &[
            "one session under two engines",
            "django.engine = both",
            "leave :1:django.contrib.sessions.cached_db{session_key} out",
        ],
    );
}

#[test]
fn both_engines_are_one_session() {
    let table = "tee.ack = \"all\"\ndatabase.url = \"sqlite:////d\"\n";
    let c = good(&format!("{table}django.engine = \"both\""));
    assert_eq!(
        c.sites[0].django.session_key_patterns,
        [":1:django.contrib.sessions.cache{session_key}"]
    );
    bad("django.engine = \"both\"", &["tee.ack = all"]);
    bad(
        &format!("{table}django.engine = \"both\"\ndatabase.mode = \"verify\""),
        &["database.mode = write"],
    );
    bad(
        &format!("{table}django.engine = \"both\"\ndjango.session_key_patterns = [\"p{{session_key}}\"]"),
        &["p{session_key}", "sessions.cache{session_key}"],
    );
}

#[test]
fn what_is_not_implemented_is_said() {
    for (extra, setting) in [
        ("target.sentinel = [\"a:26379\"]", "target.sentinel"),
        ("target.cluster = true", "target.cluster"),
        ("tee.mirror = \"all\"", "tee.mirror"),
    ] {
        bad(extra, &[setting, "not implemented in this version"]);
    }
}

#[test]
fn files_for_tls_are_read_before_anything_starts() {
    let file = "source.url = \"rediss://old\"\ntarget.url = \"redis://new\"\n";
    for (extra, word) in [
        ("source.ca_file = \"nowhere.pem\"", "cannot read ca_file nowhere.pem"),
        (
            "source.ca_file = \"/dev/null\"",
            "ca_file /dev/null holds no certificate",
        ),
        (
            "source.insecure = true\nsource.cert_file = \"a.pem\"",
            "cert_file and key_file: give both or neither",
        ),
        (
            "source.insecure = true\nsource.server_name = \"no name\"",
            "set server_name",
        ),
    ] {
        let Err(Invalid(problems)) = load(&format!("{file}{KEYED}{extra}"), &[], &[]) else {
            panic!("accepted: {extra}")
        };
        assert_eq!(problems.len(), 1, "{extra}: {problems:?}");
        assert!(
            problems[0].starts_with("source: TLS: ") && problems[0].contains(word),
            "{problems:?}"
        );
    }
    let c = load(&format!("{file}{KEYED}source.insecure = true"), &[], &[]).unwrap();
    assert!(
        c.warnings.len() == 1 && c.warnings[0].contains("source.insecure"),
        "{:?}",
        c.warnings
    );
}

#[test]
fn a_door_that_is_open_to_the_network_is_warned_of() {
    let open = "client.auth = \"none\"\nlisten = ";
    for (listen, warned) in [
        ("0.0.0.0:6380", true),
        ("redis.internal:6380", true),
        ("127.0.0.1:6380", false),
        ("[::1]:6380", false),
        ("unix:/run/ferry.sock", false),
    ] {
        let warnings = good(&format!("{open}\"{listen}\"")).warnings;
        assert_eq!(warnings.len(), usize::from(warned), "{listen}: {warnings:?}");
    }
    assert!(good("listen = \"0.0.0.0:6380\"").warnings.is_empty());
}

#[test]
fn users_may_be_named_by_file_and_variable() {
    let file =
        format!("{MINIMAL}{KEYED}client.auth = \"users\"\n[client.users]\nann = \"env:ANN\"\n\"b.c\" = \"plain\"\n");
    let c = load(&file, &[("ANN", "s3cr3t-of-ann")], &[]).unwrap();
    let users: Vec<(&str, &str)> = c
        .client
        .users
        .iter()
        .map(|(name, secret)| (name.as_str(), secret.expose()))
        .collect();
    assert_eq!(users, [("ann", "s3cr3t-of-ann"), ("b.c", "plain")]);
    let all = format!("{:?}\n{}", c, c.effective().join("\n"));
    assert!(!all.contains("s3cr3t-of-ann") && !all.contains("plain"), "{all}");
}

#[test]
fn all_bad_values_are_named_in_one_go() {
    let file = "listen = 1\nfoo = 2\n[cutover]\nmax_hold = \"9s\"\n[tee]\nmirror = \"all\"\n";
    let env = [
        ("SESSIONFERRY_WORKERS", "x"),
        ("SESSIONFERRY_SOURCE", "http://u:s3cr3t@h"),
    ];
    let Err(Invalid(problems)) = load(file, &env, &[("tee.ack", "never")]) else {
        panic!("accepted")
    };
    let all = problems.join("\n");
    for word in [
        "listen (",
        "`foo`",
        "found in SESSIONFERRY_SOURCE",
        "target.url (--target, SESSIONFERRY_TARGET): required",
        "django.secret_key (--secret-key, SESSIONFERRY_SECRET_KEY): required",
        "`never`",
        "found in --ack",
        "9s",
        "found in SESSIONFERRY_WORKERS",
        "tee.mirror: not implemented",
    ] {
        assert!(all.contains(word), "`{word}` is not in\n{all}");
    }
    assert_eq!(problems.len(), 9, "{all}");
    assert!(!all.contains("s3cr3t"), "{all}");
}

#[test]
fn without_a_database_no_secret_key_is_needed() {
    let c = load(&format!("{MINIMAL}database.url = \"none\""), &[], &[]).unwrap();
    assert!(c.sites[0].database.url.is_none() && c.sites[0].django.secret_key.is_none());
}

#[test]
fn secrets_come_from_files_and_variables() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        format!("file:{}", path.display())
    };
    let key = path("key", "from-a-file\n");
    let env = [
        ("SESSIONFERRY_SECRET_KEY", key.as_str()),
        ("SESSIONFERRY_SOURCE", "env:OLD"),
        ("OLD", "redis://:s3cr3t@old:1/2"),
        ("SESSIONFERRY_SECRET_KEY_FALLBACKS", "env:FIRST,second"),
        ("FIRST", "first,with,commas"),
        ("SESSIONFERRY_ADMIN_TOKEN", "env:T"),
        ("T", "a-token-that-is-long"),
    ];
    let c = load(
        "target.url = \"redis://new\"",
        &env,
        &[("admin.listen", "0.0.0.0:9380")],
    )
    .unwrap();
    assert_eq!(c.sites[0].django.secret_key.as_ref().unwrap().expose(), "from-a-file");
    assert_eq!(c.source.url.expose(), "redis://:s3cr3t@old:1/2");
    let fallbacks: Vec<&str> = c.sites[0]
        .django
        .secret_key_fallbacks
        .iter()
        .map(Secret::expose)
        .collect();
    assert_eq!(fallbacks, ["first,with,commas", "second"]);
    let all = format!("{:?}\n{}", c, c.effective().join("\n"));
    for secret in ["from-a-file", "s3cr3t", "first,with", "second", "a-token"] {
        assert!(!all.contains(secret), "{secret} is in\n{all}");
    }
    assert!(
        all.contains("source.url = redis://***@old:1/2 (SESSIONFERRY_SOURCE, from env:OLD)"),
        "{all}"
    );
    let empty = path("empty", "\n");
    for (written, word) in [
        ("file:/nowhere/at/all", "/nowhere/at/all"),
        ("env:UNSET", "UNSET is not set"),
        (empty.as_str(), "is empty"),
        ("file:/dev/zero", "over 65536 bytes"),
    ] {
        let Err(Invalid(problems)) = load(MINIMAL, &[("SESSIONFERRY_SECRET_KEY", written)], &[]) else {
            panic!("accepted")
        };
        assert!(problems.len() == 1 && problems[0].contains(word), "{problems:?}");
    }
}

#[test]
fn a_secret_in_the_arguments_is_warned_of() {
    let flags = [
        ("source.url", "redis://u:p@old"),
        ("target.url", "redis://new"),
        ("database.url", "none"),
    ];
    let c = Config::from_pairs(&flags).unwrap();
    assert!(
        c.warnings.len() == 1 && c.warnings[0].contains("--source"),
        "{:?}",
        c.warnings
    );
}

#[test]
fn one_redis_in_two_roles_is_refused() {
    let flags = [
        ("source.url", "redis://u:p@h:1"),
        ("target.url", "redis://h:1"),
        ("database.url", "none"),
    ];
    let Err(Invalid(problems)) = Config::from_pairs(&flags) else {
        panic!("accepted")
    };
    assert!(
        problems.len() == 1 && problems[0].contains("both redis://h:1"),
        "{problems:?}"
    );
}

#[test]
fn a_broken_file_is_named_by_line_and_never_quoted() {
    let Err(Invalid(problems)) = load("\ndjango.secret_key = s3cr3t\n", &[], &[]) else {
        panic!("accepted")
    };
    assert!(
        problems[0].contains("sessionferry.toml, line 2: not valid TOML"),
        "{problems:?}"
    );
    assert!(!problems.join("").contains("s3cr3t"), "{problems:?}");
}

#[test]
fn urls_are_shown_without_what_may_be_a_password() {
    for (url, shown) in [
        ("redis://h:1/2", "redis://h:1/2"),
        ("redis://u:p@h:1", "redis://***@h:1"),
        ("redis://:p/a@ss@h", "redis://***@h"),
        ("redis://:p?a@h", "redis://***"),
        ("postgres://u:p@h/d?sslpassword=x", "postgres://***@h/d"),
        ("postgres://u@h/d?password=x@y", "postgres://***"),
        ("sqlite://a.db?mode=rwc", "sqlite://a.db"),
        ("unix:/run/r.sock?password=x", "unix:/run/r.sock"),
        ("hunter2", "***"),
    ] {
        assert_eq!(parse::redacted(url), shown);
    }
}

#[test]
fn every_setting_of_the_table_is_read() {
    let c = good("");
    let read: Vec<&str> = c
        .effective()
        .iter()
        .map(|line| line.split(' ').next().unwrap_or_default())
        .collect();
    for key in KEYS.iter().filter(|key| !key.default.is_empty()) {
        assert!(read.contains(&key.toml), "{} is in the table and never read", key.toml);
    }
    let mut names: Vec<&str> = KEYS.iter().map(|key| key.toml).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), KEYS.len());
}
