//! A move between two Redis servers, and clients that are only as patient as Django's.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use sessionferry::status::Phase;

use super::{Proxy, ProxyOptions, Raw, RedisServer, command, eventually, resp::shown, session};

/// redis-py gives up at 5 s, and Django takes that for a logout.
pub const PATIENCE: Duration = Duration::from_secs(5);

pub struct Moving {
    pub source: RedisServer,
    pub target: RedisServer,
    pub proxy: Proxy,
}

impl Moving {
    /// With these arguments for the source, and this text as the configuration file.
    pub fn start(source: &[&str], config: Option<&str>) -> Moving {
        let (source, target) = (RedisServer::start(source), RedisServer::start(&[]));
        let mut options = ProxyOptions::between(&source, &target);
        options.config = config.map(str::to_owned);
        let proxy = Proxy::start(options);
        Moving { source, target, proxy }
    }

    pub fn client(&self) -> Raw {
        Raw::connect(&self.proxy.address())
    }

    /// So many sessions with the value `x`, in both servers.
    pub fn filled(&self, sessions: u32) {
        let mut client = self.client();
        let writes: Vec<u8> = (0..sessions)
            .flat_map(|number| command(&["SETEX", &key(number), "100", "x"]))
            .collect();
        client.send(&writes);
        client.frames(sessions as usize);
        self.delivered();
        self.synced();
    }

    pub fn delivered(&self) {
        eventually("the target has everything", PATIENCE, || {
            self.proxy.status().tee.target.pending == 0
        });
    }

    pub fn synced(&self) {
        self.proxy.cli(&["backfill"]).expect(0);
        self.proxy.cli(&["verify"]).expect(0);
        assert_eq!(self.proxy.status().phase, Phase::Synced);
        // The workers hear of it a moment later.
        sleep(Duration::from_secs(1));
    }
}

/// The Redis key of a session of that number.
pub fn key(number: u32) -> String {
    session(&format!("{number:032}"))
}

/// Asks, and answers how long that took.
pub fn ask(client: &mut Raw, words: &[&str]) -> (Vec<u8>, Duration) {
    let began = Instant::now();
    let answer = client.ask(words);
    (answer, began.elapsed())
}

/// Asks, and wants this answer in time.
pub fn expect(client: &mut Raw, words: &[&str], expected: &str) {
    let (answer, took) = ask(client, words);
    assert_eq!(shown(&answer), shown(expected.as_bytes()), "{words:?}");
    assert!(took < PATIENCE, "{took:?}");
}
