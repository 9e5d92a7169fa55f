//! Measures what the authority's clients feel while it is read, and says how fast to read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::line::{Line, LineError};
use super::pace::Pace;
use crate::net::Backoff;
use crate::proxy::identity::Protocol;
use crate::sink::RedisStore;

/// From one measured round trip to the next.
const MEASURE_EVERY: Duration = Duration::from_millis(2);
/// From one look at others' load to the next; the first two are nearer.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const FIRST_LOOK: Duration = Duration::from_millis(200);

/// Measures until it is dropped.
pub(super) struct Governor {
    rate: Arc<AtomicU64>,
    _stop: DropGuard,
}

impl Governor {
    /// `reader` is what reads, so that its own commands are not taken for others'.
    pub(super) fn start(reader: RedisStore) -> Governor {
        let rate = Arc::new(AtomicU64::new(Pace::new().rate().to_bits()));
        let stop = CancellationToken::new();
        let measured = measure(reader, rate.clone());
        let stopped = stop.clone();
        // A thread of its own: on the control runtime it would measure what else that has to do.
        let work = move || {
            if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() {
                runtime.block_on(stopped.run_until_cancelled(measured));
            }
        };
        if let Err(error) = thread::Builder::new().name("governor".into()).spawn(work) {
            tracing::warn!(%error, "what the copy costs others is not measured; it goes slowly");
        }
        Governor {
            rate,
            _stop: stop.drop_guard(),
        }
    }

    /// Keys per second; see [`Pace::rate`].
    pub(super) fn rate(&self) -> f64 {
        f64::from_bits(self.rate.load(Relaxed))
    }
}

async fn measure(reader: RedisStore, rate: Arc<AtomicU64>) {
    let mut pace = Pace::new();
    let mut backoff = Backoff::new(MEASURE_EVERY, LOOK_EVERY);
    loop {
        let endpoint = reader.endpoint();
        if let Ok(Ok(line)) = timeout(endpoint.connect_timeout, Line::open(endpoint, Protocol::Resp2)).await {
            backoff.reset();
            measure_on(line, &reader, &mut pace, &rate).await;
        }
        sleep(backoff.wait()).await;
    }
}

/// Until the connection is lost.
async fn measure_on(mut line: Line, reader: &RedisStore, pace: &mut Pace, rate: &AtomicU64) {
    // The commands of others so far, and when.
    let mut last: Option<(Instant, u64)> = None;
    let mut next_look = Instant::now();
    let mut own = 0;
    loop {
        let asked = Instant::now();
        own += 1;
        if asked >= next_look {
            let ours = reader.sent() + own;
            next_look = asked + if last.is_some() { LOOK_EVERY } else { FIRST_LOOK };
            match line.ask(&["INFO", "stats"]).await {
                Ok(stats) => {
                    let others = executed(&stats).map(|all| all.saturating_sub(ours));
                    if let (Some(now), Some((at, before))) = (others, last) {
                        let others = now.saturating_sub(before) as f64 / (asked - at).as_secs_f64();
                        pace.load(Some(others));
                        tracing::debug!(others, keys_per_second = pace.rate(), "pace");
                    }
                    last = others.map(|others| (asked, others));
                }
                Err(LineError::Refused(_)) => pace.load(None),
                Err(LineError::Lost(_)) => return,
            }
        } else {
            match line.ask(&["PING"]).await {
                Ok(_) | Err(LineError::Refused(_)) => pace.round_trip(asked.elapsed()),
                Err(LineError::Lost(_)) => return,
            }
        }
        rate.store(pace.rate().to_bits(), Relaxed);
        sleep(MEASURE_EVERY).await;
    }
}

/// How many commands the server has executed.
fn executed(stats: &[u8]) -> Option<u64> {
    let stats = std::str::from_utf8(stats).ok()?;
    let mut lines = stats.lines();
    lines
        .find_map(|line| line.strip_prefix("total_commands_processed:"))?
        .trim()
        .parse()
        .ok()
}
