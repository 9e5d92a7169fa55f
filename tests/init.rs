//! `init` on real Django projects, each made by `startproject`: what it writes is enough for a whole move.
#![cfg(feature = "net")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod support;

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use serde_json::Value;
use support::{
    Port, Postgres, Proxy, ProxyOptions, RedisServer,
    project::{DjangoProject, MAKE},
    proxy::{Answer, binary},
};

/// Reads them again.
const READ: &str = r#"
import os
from importlib import import_module
from django.conf import settings
Store = import_module(settings.SESSION_ENGINE).SessionStore
for key in os.environ["SITE_KEYS"].split(","):
    session = Store(key)
    print("session", key, sum(map(ord, repr(sorted(session.items())))) if session.session_key else "lost")
"#;

/// `sessionferry init`, and what it printed as JSON.
fn init(project: &DjangoProject, target: &str, more: &[&str]) -> (Answer, PathBuf) {
    let output = project.folder.path().join("sessionferry.toml");
    let mut command = binary(project.folder.path());
    command
        .arg("init")
        .arg("--manage")
        .arg(project.manage_py())
        .arg("--python")
        .arg(&project.python);
    command
        .args(["--target", target, "--json", "--output"])
        .arg(&output)
        .args(more);
    (Answer::of(&mut command), output)
}

fn expect_private(path: &Path) {
    let mode = std::fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "{} is open to others: {mode:o}", path.display());
}

/// Makes sessions directly, moves with the configuration as `init` wrote it, and finds all of them on the new Redis.
/// `location` gives what Django's LOCATION becomes for an address.
fn moves(project: &DjangoProject, target: &str, location: impl Fn(&str) -> String) -> (Value, String) {
    let before = project.sessions(MAKE, &[]);
    assert_eq!(before.len(), 30);
    let (answer, config) = init(project, target, &[]);
    let answer = answer.expect(0).json();
    let text = std::fs::read_to_string(&config).unwrap();
    expect_private(&config);
    for file in answer["secrets"].as_array().unwrap() {
        expect_private(Path::new(file.as_str().unwrap()));
    }

    let options = ProxyOptions::default().args(&["--config", config.to_str().unwrap()]);
    let checked = Answer::of(&mut Proxy::unstarted(options.clone()).command("check"));
    assert_eq!(checked.code, 0, "{}\n{}\n{text}", checked.out, checked.err);
    let proxy = Proxy::start(options);
    let through = location(&proxy.address());
    let through = [("SITE_LOCATION", through.as_str())];
    let mut all = before.clone();
    all.extend(project.sessions(MAKE, &through));
    for kind in ["backfill", "verify", "cutover"] {
        proxy.done(kind);
    }
    all.extend(project.sessions(MAKE, &through));
    proxy.settle();
    assert_eq!(all.len(), 90);
    let keys: Vec<&str> = all.iter().map(|line| line.split(' ').nth(1).unwrap()).collect();
    let keys = keys.join(",");
    let new = location(target.trim_start_matches("redis://"));
    let read = |more: &[(&str, &str)]| {
        let env = [&[("SITE_KEYS", keys.as_str()), ("SITE_LOCATION", &new)], more].concat();
        assert_eq!(project.sessions(READ, &env), all, "{more:?}");
    };
    // Whichever end people want: the new Redis as it is, or the table, with Redis in front of it or without.
    proxy.done("finish");
    read(&[]);
    drop(proxy);
    for engine in ["cached_db", "db"] {
        let engine = format!("django.contrib.sessions.backends.{engine}");
        read(&[("SITE_ENGINE", &engine)]);
        let more = project.sessions(MAKE, &[("SITE_ENGINE", &engine), ("SITE_LOCATION", &new)]);
        assert_eq!(more.len(), 30, "and it goes on from there");
    }
    (answer, text)
}

#[test]
fn a_stock_project_is_moved_as_init_wrote_it() {
    let (source, target) = (RedisServer::start(&[]), RedisServer::start(&[]));
    let project = DjangoProject::new(
        "5.2",
        &format!(
            "SESSION_ENGINE = \"django.contrib.sessions.backends.cache\"\nSESSION_CACHE_ALIAS = \"default\"\n\
             CACHES = {{\"default\": {{\"BACKEND\": \"django.core.cache.backends.redis.RedisCache\", \"LOCATION\": \"{}\"}}}}",
            source.url()
        ),
    );
    let (answer, text) = moves(&project, &target.url(), |address| format!("redis://{address}"));
    assert!(
        text.contains("engine = \"cache\"") && text.contains("key_prefix = \"\""),
        "{text}"
    );
    let key = project.manage(
        &[
            "shell",
            "-c",
            "from django.conf import settings; print('KEY', settings.SECRET_KEY)",
        ],
        &[],
    );
    let key = key.lines().find_map(|line| line.strip_prefix("KEY ")).unwrap();
    assert!(
        !text.contains(key) && !answer.to_string().contains(key),
        "the secret key is shown"
    );
    // Never over what is there.
    let (again, _) = init(&project, &target.url(), &[]);
    again.expect(1);
    init(&project, &target.url(), &["--overwrite"]).0.expect(0);
}

#[test]
fn django_redis_with_zlib_and_a_key_function_is_moved_as_init_wrote_it() {
    let password = ["--requirepass", "old p@ss"];
    let (source, target) = (RedisServer::start(&password), RedisServer::start(&[]));
    let postgres = Postgres::start();
    let settings = format!(
        r#"
def make_key(key, prefix, version):
    return "%s/%s/%s/end" % (prefix, version, key)

SESSION_ENGINE = "django.contrib.sessions.backends.cache"
SESSION_CACHE_ALIAS = "sessions"
SESSION_SAVE_EVERY_REQUEST = True
SESSION_COOKIE_AGE = 86400
CACHES = {{
    "default": {{"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}},
    "sessions": {{
        "BACKEND": "django_redis.cache.RedisCache",
        "LOCATION": "redis://{source}/3",
        "KEY_PREFIX": "shop",
        "KEY_FUNCTION": make_key,
        "OPTIONS": {{"PASSWORD": "old p@ss", "COMPRESSOR": "django_redis.compressors.zlib.ZlibCompressor"}},
    }},
}}
if "SITE_LOCATION" in __import__("os").environ and "{target}" in __import__("os").environ["SITE_LOCATION"]:
    del CACHES["sessions"]["OPTIONS"]["PASSWORD"]
DATABASES = {{"default": {database}}}
def somewhere():
    from django.core.cache import caches
    caches["sessions"].clear()
"#,
        source = source.address(),
        target = target.address(),
        database = postgres.django_settings(),
    );
    let project = DjangoProject::new("backends", &settings);
    let (answer, text) = moves(&project, &target.url(), |address| {
        format!("redis://{}/3", address.trim_end_matches("/0"))
    });
    let warnings = answer["warnings"].to_string();
    for word in [
        "\\\"sessions\\\" and not on",
        "SESSION_SAVE_EVERY_REQUEST",
        "is emptied",
        "settings.py:",
    ] {
        assert!(warnings.contains(word), "{word} is not in {warnings}");
    }
    for line in [
        "session_key_patterns = [\"shop/1/django.contrib.sessions.cache{session_key}/end\"]",
        "value_compressor = \"zlib\"",
        "cookie_age = 86400",
        "on_flush = \"shield\"",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("p@ss") && !text.contains("p%40ss") && !answer.to_string().contains("p%40ss"));
}

#[test]
fn cached_db_with_two_caches_is_moved_as_init_wrote_it() {
    let (source, target) = (RedisServer::start(&[]), RedisServer::start(&[]));
    let project = DjangoProject::new(
        "4.2",
        &format!(
            r#"
SESSION_ENGINE = "django.contrib.sessions.backends.cached_db"
SESSION_CACHE_ALIAS = "second"
CACHES = {{
    "default": {{"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": "{url}", "KEY_PREFIX": "pages"}},
    "second": {{"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": "{url}", "KEY_PREFIX": "people", "VERSION": 7}},
}}
"#,
            url = source.url()
        ),
    );
    let (answer, text) = moves(&project, &target.url(), |address| format!("redis://{address}"));
    let warnings = answer["warnings"].to_string();
    assert!(
        warnings.contains("the cache default is in the same Redis database"),
        "{warnings}"
    );
    for line in [
        "engine = \"cached_db\"",
        "mode = \"verify\"",
        "key_prefix = \"people\"",
        "key_version = \"7\"",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[test]
fn what_cannot_be_moved_is_said() {
    let free = Port::free();
    for (settings, words) in [
        (
            "SESSION_ENGINE = \"django.contrib.sessions.backends.db\"\nSESSION_CACHE_ALIAS = \"default\"",
            "in a cache, and need no move",
        ),
        (
            "SESSION_ENGINE = \"django.contrib.sessions.backends.cache\"\nSESSION_CACHE_ALIAS = \"default\"",
            "which is no Redis",
        ),
        (
            &format!(
                "import hashlib\nSESSION_ENGINE = \"django.contrib.sessions.backends.cache\"\nSESSION_CACHE_ALIAS = \"default\"\n\
                 CACHES = {{\"default\": {{\"BACKEND\": \"django.core.cache.backends.redis.RedisCache\", \"LOCATION\": \"redis://{}\", \
                 \"KEY_FUNCTION\": lambda key, prefix, version: hashlib.sha256(key.encode()).hexdigest()}}}}",
                free.address()
            ),
            "hides the session's key",
        ),
    ] {
        let project = DjangoProject::new("5.2", settings);
        let (answer, config) = init(&project, "redis://new", &[]);
        let answer = answer.expect(1);
        assert!(answer.err.contains(words), "{}", answer.err);
        assert!(!config.exists());
    }
    let nowhere = Answer::of(binary(Path::new("/")).args(["init", "--manage", "/nowhere/manage.py"])).expect(1);
    assert!(nowhere.err.contains("--manage"), "{}", nowhere.err);
    let project = DjangoProject::new("5.2", "SESSION_ENGINE = \"django.contrib.sessions.backends.cache\"");
    std::fs::write(
        project.folder.path().join("site_of_ours/settings.py"),
        "import no_such_module",
    )
    .unwrap();
    let broken = init(&project, "redis://new", &[]).0.expect(1);
    assert!(
        broken.err.contains("no_such_module") && broken.err.contains("--python"),
        "{}",
        broken.err
    );
}
