//! `GET /metrics`: what the status holds, as Prometheus text, and behind it what [`Control::metrics`] adds.
//!
//! [`Control::metrics`]: crate::migrate::Control::metrics

use std::fmt::{self, Write};
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode_registry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::status::{Phase, Status};

/// The classic text format, which every scraper reads.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Labels are few and fixed, so a list of pairs will do.
type Labels = Vec<(&'static str, String)>;
type GaugeF64 = Gauge<f64, AtomicU64>;

/// A registry that lives for one answer: the status is the one place where the numbers are kept.
struct Sheet(Registry);

impl Sheet {
    fn gauges(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, f64)>) {
        let family = Family::<Labels, GaugeF64>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).set(value);
        }
        self.0.register(name, help, family);
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        let gauge = GaugeF64::default();
        gauge.set(value);
        self.0.register(name, help, gauge);
    }

    /// `name` is without `_total`, which the encoder adds.
    fn counters(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, u64)>) {
        let family = Family::<Labels, Counter>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).inc_by(value);
        }
        self.0.register(name, help, family);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        let counter: Counter = Counter::default();
        counter.inc_by(value);
        self.0.register(name, help, counter);
    }
}

fn label(name: &'static str, value: &str) -> Labels {
    vec![(name, value.to_owned())]
}

/// The status as Prometheus text, then `more`.
///
/// A sink's label says which store it is, not its role: after cutover the tee writes to the `source`.
pub fn render(status: &Status, more: &str) -> Result<String, fmt::Error> {
    let mut sheet = Sheet(Registry::with_prefix("sessionferry"));
    let redis = status.authority.other().name();
    let sinks = [(redis, &status.tee.target), ("database", &status.tee.database)];
    let sinks: Vec<_> = sinks.into_iter().filter(|(_, sink)| !sink.absent).collect();
    let per_sink = |value: fn(&crate::status::Sink) -> f64| {
        sinks.iter().map(move |(name, sink)| (label("sink", name), value(sink)))
    };
    let sums = |value: fn(&crate::status::Sink) -> u64| {
        sinks.iter().map(move |(name, sink)| (label("sink", name), value(sink)))
    };

    sheet.gauge(
        "clients_connected",
        "Clients connected now",
        status.clients.connected as f64,
    );
    sheet.gauges(
        "tee_pending",
        "Session writes on their way to a store",
        per_sink(|sink| sink.pending as f64),
    );
    sheet.gauges(
        "tee_lag_seconds",
        "Age of the oldest write on its way",
        per_sink(|sink| sink.lag_seconds),
    );
    sheet.counters(
        "tee_delivered",
        "Session writes that a store has taken",
        sums(|sink| sink.delivered),
    );
    sheet.counters(
        "tee_retries",
        "Deliveries that were tried again",
        sums(|sink| sink.retries),
    );
    sheet.gauges(
        "tee_dirty",
        "Sessions whose state must be read again",
        per_sink(|sink| sink.dirty as f64),
    );
    let copy = &status.backfill;
    sheet.counters(
        "backfill_sessions",
        "Sessions that backfill has looked at",
        [
            ("copied", copy.copied),
            ("skipped", copy.skipped),
            ("failed", copy.failed),
        ]
        .map(|(outcome, count)| (label("outcome", outcome), count)),
    );
    let verify = &status.verify;
    sheet.gauges(
        "verify_differences",
        "Differences that the last verify found",
        [
            ("target", "missing", verify.missing_target),
            ("target", "different", verify.different_target),
            ("target", "extra", verify.extra_target),
            ("database", "missing", verify.missing_database),
            ("database", "different", verify.different_database),
            ("database", "extra", verify.extra_database),
        ]
        .map(|(store, kind, count)| {
            (
                vec![("store", store.to_owned()), ("kind", kind.to_owned())],
                count as f64,
            )
        }),
    );
    if let Some(seconds) = status.cutover.hold_seconds {
        sheet.gauge(
            "cutover_hold_seconds",
            "How long the last cutover held clients",
            seconds,
        );
    }
    let sessions = &status.sessions;
    sheet.counter(
        "restored",
        "Sessions that the authority had lost and that were put back into it",
        sessions.restored,
    );
    sheet.counter(
        "bypassing_writes",
        "Session writes that did not come through the proxy",
        sessions.bypassing_writes,
    );
    sheet.counter(
        "resurrected",
        "Sessions that came back after their end and were removed again",
        sessions.resurrected,
    );
    sheet.gauge(
        "unstorable_sessions",
        "Sessions that a database row cannot carry",
        sessions.unstorable as f64,
    );
    sheet.gauges(
        "phase",
        "The phase of the move: 1 for the one that holds",
        Phase::ALL.map(|phase| {
            (
                label("phase", phase.name()),
                if phase == status.phase { 1.0 } else { 0.0 },
            )
        }),
    );
    sheet.gauges(
        "build_info",
        "The version that runs",
        [(label("version", &status.version), 1.0)],
    );

    let mut encoded = String::new();
    encode_registry(&mut encoded, &sheet.0)?;
    let mut text = String::with_capacity(encoded.len() + more.len() + 1);
    for line in classic(&encoded) {
        writeln!(text, "{line}")?;
    }
    for line in more.lines().filter(|line| *line != "# EOF") {
        writeln!(text, "{line}")?;
    }
    Ok(text)
}

/// OpenMetrics names a counter's family without `_total`; the classic format names what the samples are called.
fn classic(encoded: &str) -> Vec<String> {
    let counters: Vec<&str> = encoded
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    encoded
        .lines()
        .map(|line| {
            let mut words = line.splitn(4, ' ');
            match (words.next(), words.next(), words.next(), words.next()) {
                (Some("#"), Some(what), Some(name), rest) if counters.contains(&name) => {
                    format!("# {what} {name}_total {}", rest.unwrap_or_default())
                }
                _ => line.to_owned(),
            }
        })
        .collect()
}
