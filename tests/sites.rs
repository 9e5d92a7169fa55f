//! Several sites on one Redis: each with its keys, its SECRET_KEY and its own table.
#![cfg(feature = "net")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod support;

use std::time::Duration;

use serde_json::json;
use support::{
    DatabaseKind, Django, Postgres, Proxy, ProxyOptions, RedisServer, SECRET, Site,
    django::{Seen, USUAL},
    eventually,
};
use tempfile::TempDir;

/// The SECRET_KEYs of the shop and of the blog.
const SECRETS: [&str; 2] = ["the shop's own key", "the blog's own key"];

struct Sites {
    proxy: Proxy,
    source: RedisServer,
    target: RedisServer,
    postgres: Postgres,
    folder: TempDir,
}

impl Sites {
    /// A shop with engine `cache` and a table on SQLite, and a blog with another prefix and a table on PostgreSQL.
    fn start() -> Sites {
        let (source, target) = (RedisServer::start(&[]), RedisServer::start(&[]));
        let (postgres, folder) = (Postgres::start(), tempfile::tempdir().unwrap());
        let sqlite = format!("sqlite://{}?mode=rwc", folder.path().join("shop.db").display());
        let config = format!(
            "source.url = \"{}\"\ntarget.url = \"{}\"\n\
             [[site]]\ndjango = {{ key_prefix = \"shop\", secret_key = \"{}\" }}\ndatabase.url = \"{sqlite}\"\n\
             [[site]]\ndjango = {{ key_prefix = \"blog\", secret_key = \"{}\" }}\ndatabase.url = \"{}\"\n",
            source.url(),
            target.url(),
            SECRETS[0],
            SECRETS[1],
            postgres.url(),
        );
        for (secret, database) in SECRETS.iter().zip([&sqlite, &postgres.url()]) {
            Django::start_with(USUAL, &[], database, secret, &[]).migrate();
        }
        let proxy = Proxy::start(ProxyOptions {
            config: Some(config),
            ..ProxyOptions::default()
        });
        Sites {
            proxy,
            source,
            target,
            postgres,
            folder,
        }
    }

    fn django(&self, site: usize) -> Django {
        let caches = [
            ("proxy", format!("redis://{}", self.proxy.address())),
            ("source", self.source.url()),
            ("target", self.target.url()),
        ];
        let database = match site {
            0 => format!("sqlite://{}", self.folder.path().join("shop.db").display()),
            _ => self.postgres.url(),
        };
        let prefix = ["shop", "blog"][site];
        Django::start_with(USUAL, &caches, &database, SECRETS[site], &["--key-prefix", prefix])
    }
}

fn keys(seen: &[Seen]) -> Vec<String> {
    seen.iter().map(|seen| seen.key.clone()).collect()
}

#[test]
fn each_site_is_moved_into_its_own_table() {
    let mut sites = Sites::start();
    let djangos = [sites.django(0), sites.django(1)];
    let draw = |django: &Django, cache: &str, seed: u64| -> Vec<Seen> {
        django.ask(&json!({"do": "draw", "engine": "cache", "cache": cache, "count": 40, "seed": seed, "plain": true}))
    };
    // Some before the proxy knows of them, some through it.
    let mut wrote: Vec<Vec<Seen>> = djangos.iter().map(|django| draw(django, "source", 1)).collect();
    for (wrote, django) in wrote.iter_mut().zip(&djangos) {
        wrote.extend(draw(django, "proxy", 2));
    }
    for kind in ["backfill", "verify", "cutover"] {
        sites.proxy.done(kind);
    }
    sites.proxy.settle();
    for (wrote, django) in wrote.iter().zip(&djangos) {
        assert_eq!(django.rows().len(), wrote.len(), "rows of this site alone");
        for (engine, cache) in [("cache", "target"), ("db", "empty")] {
            for (wrote, seen) in wrote.iter().zip(django.load(engine, cache, &keys(wrote))) {
                assert!(seen.found, "{engine}: lost");
                assert_eq!(&seen.exact, wrote.json.as_ref().unwrap(), "{engine}");
            }
        }
    }
    // What the new Redis loses comes back from the other one, and from the rows where both have lost it.
    sites.target.restart_empty();
    let all: usize = wrote.iter().map(Vec::len).sum();
    let count = |server: &RedisServer| server.ask::<usize>(&["DBSIZE"]);
    eventually("the new Redis is whole again", Duration::from_secs(10), || {
        count(&sites.target) == all
    });
    let _: () = sites.source.ask(&["FLUSHALL"]);
    sites.target.restart_empty();
    eventually("it is whole again from the rows", Duration::from_secs(10), || {
        count(&sites.target) == all
    });
    for (wrote, django) in wrote.iter().zip(&djangos) {
        let back = django.load("cache", "target", &keys(wrote));
        assert!(
            wrote
                .iter()
                .zip(&back)
                .all(|(wrote, seen)| wrote.json.as_ref() == Some(&seen.exact))
        );
    }
}

#[test]
fn one_sites_database_that_is_away_does_not_hold_up_the_others() {
    let mut sites = Sites::start();
    let shop = sites.django(0);
    let blog = sites.django(1);
    sites.postgres.stop();
    blog.save("proxy", &json!({"waits": true}));
    for number in 0..5 {
        let key = shop.save("proxy", &json!({"number": number}));
        eventually("the shop's row is there", Duration::from_secs(10), || {
            shop.rows().iter().any(|row| row.key == key)
        });
    }
    sites.postgres.restart();
    sites.proxy.settle();
    assert_eq!(blog.rows().len(), 1);
}

/// One table for several kinds of keys: a row is the key's under which its session is.
#[test]
fn keys_of_several_kinds_share_a_table() {
    let mut site = Site::prepare(DatabaseKind::Sqlite);
    let patterns =
        ["shop", "blog"].map(|prefix| format!("\"{prefix}:1:django.contrib.sessions.cache{{session_key}}\""));
    site.proxy = Some(Proxy::start(ProxyOptions {
        config: Some(format!("django.session_key_patterns = [{}]\n", patterns.join(", "))),
        ..site.options()
    }));
    let caches = [("proxy", site.proxy().url()), ("source", site.source.url())];
    let mut all = 0;
    for prefix in ["shop", "blog"] {
        let django = Django::start_with(USUAL, &caches, &site.database_url(), SECRET, &["--key-prefix", prefix]);
        django.fill("source", 30, 1);
        django.fill("proxy", 30, 2);
        all += 60;
    }
    for kind in ["backfill", "verify"] {
        site.proxy().done(kind);
    }
    site.proxy().settle();
    let status = site.proxy().status();
    assert_eq!(status.verify.extra_database, 0, "{:?}", status.verify);
    assert_eq!(site.django.rows().len(), all);
    assert_eq!(site.target.ask::<usize>(&["DBSIZE"]), all);
    let _: () = site.proxy().ask(&["FLUSHDB"]);
    eventually("the rows are gone as well", Duration::from_secs(10), || {
        site.django.rows().is_empty()
    });
}
