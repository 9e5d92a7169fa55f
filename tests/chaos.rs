//! Django under faults that nobody chose: servers killed, frozen and emptied, links cut, slow and half-open, the proxy
//! killed, its disk full, cutovers and rollbacks in between. Afterwards everything that visitors were told must be true in all stores.
//!
//! `SESSIONFERRY_TEST_SEED` draws the same schedule again; how it falls in with the visitors is another matter.
#![cfg(feature = "net")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod support;

#[path = "chaos/fault.rs"]
mod fault;
#[path = "chaos/relay.rs"]
mod relay;

use std::{
    thread::sleep,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use fault::{Event, Fault, Store};
use rand::{SeedableRng, rngs::StdRng};
use relay::{Link, Relay};
use serde_json::Value;
use sessionferry::status::{Authority, Phase, VerifyState};
use support::{
    DatabaseKind, Hammer, Proxy, ProxyOptions, Raw, RedisServer, Site, SmallDisk, command, eventually, seed, session,
};

const VISITORS: usize = 30;
/// An error this long after what may cause one is still its doing.
const AFTERMATH: f64 = 6.0;
/// On disk at once: a server that is killed has what it acknowledged.
const DURABLE: &[&str] = &["--appendonly", "yes", "--appendfsync", "always"];

struct Chaos {
    site: Site,
    source: Relay,
    target: Relay,
    database: Option<Relay>,
    /// The data directory's, where one could be had.
    disk: Option<SmallDisk>,
    /// When visitors may see errors, seconds since 1970.
    excused: Vec<(f64, f64)>,
    story: Vec<String>,
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// The same address with another host and port.
fn through(url: &str, relay: &Relay) -> String {
    let mut url = url::Url::parse(url).unwrap();
    let (host, port) = relay.address().split_once(':').unwrap();
    url.set_host(Some(host)).unwrap();
    url.set_port(Some(port.parse().unwrap())).unwrap();
    url.to_string()
}

fn address(url: &str) -> String {
    let url = url::Url::parse(url).unwrap();
    format!("{}:{}", url.host_str().unwrap(), url.port().unwrap())
}

impl Chaos {
    fn start(kind: DatabaseKind) -> Chaos {
        let mut site = Site::prepare_with(kind, "5.2", DURABLE, DURABLE);
        let (source, target) = (
            Relay::before(site.source.address()),
            Relay::before(site.target.address()),
        );
        let url = site.database_url();
        let database = (kind != DatabaseKind::Sqlite).then(|| Relay::before(address(&url)));
        let disk = SmallDisk::mount();
        site.proxy = Some(Proxy::start(ProxyOptions {
            data_dir: disk.as_ref().map(|disk| disk.path().join("data")),
            source: format!("redis://{}", source.address()),
            target: format!("redis://{}", target.address()),
            database: database.as_ref().map_or(url.clone(), |relay| through(&url, relay)),
            // In a build that breaks writes on purpose (scripts/chaos --prove).
            env: std::env::vars()
                .filter(|(name, _)| name == "SESSIONFERRY_SABOTAGE")
                .collect(),
            ..ProxyOptions::default()
        }));
        Chaos {
            site,
            source,
            target,
            database,
            disk,
            excused: Vec::new(),
            story: Vec::new(),
        }
    }

    fn authority(&self) -> Authority {
        self.site.proxy().status().authority
    }

    fn server_of(&self, store: Store) -> Authority {
        match store {
            Store::Other => self.authority().other(),
            _ => self.authority(),
        }
    }

    fn redis(&mut self, server: Authority) -> &mut RedisServer {
        match server {
            Authority::Source => &mut self.site.source,
            Authority::Target => &mut self.site.target,
        }
    }

    fn relay(&self, store: Store) -> &Relay {
        match (store, self.server_of(store)) {
            (Store::Database, _) => self.database.as_ref().unwrap(),
            (_, Authority::Source) => &self.source,
            (_, Authority::Target) => &self.target,
        }
    }

    /// Only what was settled before has no excuse to be lost with a store.
    fn is_settled(&self) -> bool {
        let status = self.site.proxy().status();
        status.phase != Phase::CuttingOver
            && status.tee.target.connected
            && status.tee.target.dirty == 0
            && status.tee.target.lag_seconds < 1.0
    }

    fn happen(&mut self, event: Event) {
        let began = now();
        self.story.push(format!("{began:.3} {event}"));
        println!("{began:.3} {event}");
        self.make(event);
        if event.may_be_noticed() {
            self.excused.push((began, now() + AFTERMATH));
        }
        sleep(event.then);
    }

    fn make(&mut self, event: Event) {
        let lasts = event.lasts;
        match event.fault {
            Fault::KillProxy => {
                self.site.proxy_mut().kill9();
                sleep(lasts);
                self.site.proxy_mut().restart();
            }
            Fault::FullDisk => match &self.disk {
                Some(disk) => {
                    disk.fill();
                    sleep(lasts);
                    disk.empty();
                }
                None => self.story.push("  no disk of its own: left out".to_owned()),
            },
            Fault::Kill(Store::Database) => {
                self.site.stop_database();
                sleep(lasts);
                self.site.restart_database();
            }
            Fault::Kill(store) => {
                let server = self.server_of(store);
                self.redis(server).stop();
                sleep(lasts);
                self.redis(server).restart();
            }
            Fault::Freeze(store) => {
                let server = self.server_of(store);
                self.redis(server).freeze();
                sleep(lasts);
                self.redis(server).thaw();
            }
            Fault::Link(store, link) => {
                let before = self.server_of(store);
                self.relay(store).set(link);
                sleep(lasts);
                // Which it was is known from before.
                match (store, before) {
                    (Store::Database, _) => self.database.as_ref().unwrap(),
                    (_, Authority::Source) => &self.source,
                    (_, Authority::Target) => &self.target,
                }
                .set(Link::Whole);
            }
            Fault::Empty(store) => {
                if !self.is_settled() {
                    self.story.push("  not settled: left out".to_owned());
                    return;
                }
                let server = self.server_of(store);
                self.redis(server).restart_empty();
                sleep(lasts);
            }
            Fault::Refusing(from, to) => {
                let server = self.server_of(Store::Other);
                self.redis(server).ask::<()>(&words(from));
                sleep(lasts);
                self.redis(server).ask::<()>(&words(to));
            }
            Fault::Cutover => self.cross(OperationName::Cutover),
            Fault::Rollback => self.cross(OperationName::Rollback),
            Fault::Leave => {
                if !self.is_settled() || self.site.proxy().status().phase == Phase::Backfilling {
                    return;
                }
                let lost = self.authority();
                self.redis(lost).stop();
                sleep(Duration::from_millis(300));
                let name = match lost {
                    Authority::Source => "cutover",
                    Authority::Target => "rollback",
                };
                let answer = self.site.proxy().cli(&[name, "--force"]);
                self.story.push(format!("  {name} --force: {}", answer.said()));
                self.redis(lost).restart();
            }
            Fault::Backfill => {
                // Refused after a cutover; what matters is that it harms nothing.
                let _ = self.site.proxy().cli(&["backfill"]);
            }
        }
    }

    /// A crossing as an operator does it: with what it asks for done before, where that is possible.
    fn cross(&mut self, name: OperationName) {
        let proxy = self.site.proxy();
        if matches!(name, OperationName::Cutover) && proxy.status().phase != Phase::Synced {
            let _ = proxy.cli(&["backfill"]);
            let _ = proxy.cli(&["verify"]);
        }
        let answer = proxy.cli(&[name.text()]);
        let said = answer.said();
        self.story.push(format!(
            "  {}: {}",
            name.text(),
            said.lines().last().unwrap_or_default()
        ));
    }

    /// All is well again; then what was told must be true, without any repair by hand.
    fn judge(mut self, mut hammer: Hammer) -> Verdict {
        for relay in [Some(&self.source), Some(&self.target), self.database.as_ref()]
            .into_iter()
            .flatten()
        {
            relay.set(Link::Whole);
        }
        sleep(Duration::from_millis(1_500));
        let counts = hammer.stop();
        let proxy = self.site.proxy();
        proxy.settle();
        let mut broken = Vec::new();
        for kind in ["lost", "stale", "crashed"] {
            broken.extend(hammer.events(kind).into_iter().map(|event| event.to_string()));
        }
        let excused = |event: &Value| {
            let (began, ended) = (event["began"].as_f64().unwrap(), event["ended"].as_f64().unwrap());
            self.excused.iter().any(|(from, to)| ended >= *from && began <= *to)
        };
        broken.extend(
            hammer
                .events("error")
                .iter()
                .filter(|event| !excused(event))
                .map(ToString::to_string),
        );
        let _ = proxy.cli(&["verify"]);
        let verify = proxy.status().verify;
        if verify.state != VerifyState::Clean {
            broken.push(format!("verify: {verify:?}"));
        }
        let sessions = proxy.status().sessions;
        self.story.push(format!("{counts:?} {sessions:?}"));
        let django = self.site.django_of("5.2");
        for (engine, cache) in [("cache", "source"), ("cache", "target"), ("cached_db", "empty")] {
            let checked = django.check(&hammer.log(), engine, cache);
            if checked.missing.len() + checked.behind.len() + checked.revived.len() > 0 {
                broken.push(format!("{engine} of {cache}: {checked:?}"));
            }
            assert!(checked.checked > 0, "nothing to check");
        }
        if let Err(differences) = self.site.differences() {
            broken.extend(differences);
        }
        let log = proxy.log_tail();
        Verdict {
            story: self.story,
            broken,
            log,
        }
    }
}

fn words(command: [&'static str; 3]) -> Vec<&'static str> {
    command.iter().flat_map(|words| words.split(' ')).collect()
}

enum OperationName {
    Cutover,
    Rollback,
}

impl OperationName {
    fn text(&self) -> &'static str {
        match self {
            OperationName::Cutover => "cutover",
            OperationName::Rollback => "rollback",
        }
    }
}

struct Verdict {
    story: Vec<String>,
    broken: Vec<String>,
    log: String,
}

/// One schedule, for so long.
fn suffer(kind: DatabaseKind, seed: u64, time: Duration) -> Verdict {
    let mut dice = StdRng::seed_from_u64(seed);
    let mut chaos = Chaos::start(kind);
    let url = chaos.site.proxy().url();
    let hammer = Hammer::start(
        "5.2",
        &url,
        VISITORS,
        &["--logout", "0.1", "--leave", "0.2", "--think", "10"],
    );
    for kind in ["backfill", "verify"] {
        chaos.site.proxy().done(kind);
    }
    let end = Instant::now() + time;
    while Instant::now() < end {
        chaos.happen(Event::draw(&mut dice, chaos.database.is_some()));
    }
    chaos.judge(hammer)
}

fn run(kind: DatabaseKind) {
    let setting = |name: &str, usual: u64| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(usual)
    };
    let (seeds, seconds) = (
        setting("SESSIONFERRY_CHAOS_SEEDS", 1),
        setting("SESSIONFERRY_CHAOS_SECONDS", 25),
    );
    let first = seed();
    for seed in first..first + seeds {
        println!("SESSIONFERRY_TEST_SEED={seed}");
        let verdict = suffer(kind, seed, Duration::from_secs(seconds));
        println!("{}", verdict.story.last().unwrap());
        assert!(
            verdict.broken.is_empty(),
            "with SESSIONFERRY_TEST_SEED={seed} these are broken ({}):\n{}\nthe story:\n{}\n{}",
            verdict.broken.len(),
            verdict.broken[..verdict.broken.len().min(20)].join("\n"),
            verdict.story.join("\n"),
            verdict.log
        );
    }
}

#[test]
fn what_visitors_were_told_stays_true_with_sqlite() {
    run(DatabaseKind::Sqlite);
}

#[test]
fn what_visitors_were_told_stays_true_with_postgres() {
    run(DatabaseKind::Postgres);
}

#[test]
fn what_visitors_were_told_stays_true_with_mariadb() {
    run(DatabaseKind::MariaDb);
}

#[test]
fn a_reply_that_comes_late_does_not_move_the_end_of_a_session() {
    let (source, target) = (RedisServer::start(&[]), RedisServer::start(&[]));
    let relay = Relay::before(source.address());
    let mut options = ProxyOptions::between(&source, &target);
    options.source = format!("redis://{}", relay.address());
    let proxy = Proxy::start(options);
    let mut client = Raw::connect(&proxy.address());
    let key = session("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
    assert_eq!(client.ask(&["SETEX", &key, "1000", "before"]), b"+OK\r\n");
    relay.set(Link::HalfOpen);
    client.send(&command(&["SETEX", &key, "100", "after"]));
    sleep(Duration::from_secs(3));
    relay.set(Link::Whole);
    assert_eq!(client.frame(), b"+OK\r\n");
    eventually("the target has it", Duration::from_secs(5), || {
        target.ask::<Option<String>>(&["GET", &key]).as_deref() == Some("after")
    });
    let ends = [&source, &target].map(|server| server.ask::<i64>(&["PTTL", &key]));
    assert!((ends[0] - ends[1]).abs() < 500, "{ends:?}");
}
