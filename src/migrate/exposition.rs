//! The metrics that the status does not hold, as Prometheus text.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::sync::atomic::Ordering::Relaxed;

use super::Controller;
use crate::histogram::Counts;
use crate::proxy::stats::{Trouble, WorkerStats};
use crate::status::Authority;

/// Text in the making. Writing to a string cannot fail.
#[derive(Default)]
struct Text(String);

impl Text {
    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(name, value)| format!("{name}=\"{value}\""))
            .collect();
        let labels = match labels.as_slice() {
            [] => String::new(),
            _ => format!("{{{}}}", labels.join(",")),
        };
        let _ = writeln!(self.0, "sessionferry_{name}{labels} {value}");
    }

    fn kind(&mut self, name: &str, kind: &str) {
        let _ = writeln!(self.0, "# TYPE sessionferry_{name} {kind}");
    }

    fn histogram(&mut self, name: &str, labels: &[(&str, &str)], counts: &Counts) {
        self.kind(name, "histogram");
        let mut all = 0;
        for (bound, count) in counts.cumulative() {
            let bound = bound.map_or("+Inf".to_owned(), |seconds| seconds.to_string());
            self.line(&format!("{name}_bucket"), &[labels, &[("le", &bound)]].concat(), count);
            all = count;
        }
        self.line(&format!("{name}_sum"), labels, counts.sum_seconds());
        self.line(&format!("{name}_count"), labels, all);
    }
}

/// Everything that only the parts count.
pub(super) fn metrics(controller: &Controller) -> String {
    let parts = &controller.parts;
    let workers: Vec<_> = parts.proxy.stats().collect();
    let sum = |value: &dyn Fn(&WorkerStats) -> u64| workers.iter().map(|worker| value(worker)).sum::<u64>();
    let mut text = Text::default();

    let mut commands = BTreeMap::<&str, u64>::new();
    for (command, count) in workers.iter().flat_map(|worker| worker.commands()) {
        *commands.entry(command.entry().name).or_default() += count;
    }
    text.kind("commands_total", "counter");
    for (command, count) in commands.into_iter().filter(|(_, count)| *count > 0) {
        text.line("commands_total", &[("command", command)], count);
    }
    if let Some(latency) = workers
        .iter()
        .map(|worker| worker.latency())
        .reduce(|all, more| all.and(&more))
    {
        text.histogram("command_seconds", &[("route", "upstream")], &latency);
    }

    text.kind("session_writes_total", "counter");
    for (effect, count) in parts.tee.session_writes.each() {
        text.line("session_writes_total", &[("effect", effect)], count);
    }
    text.kind("rescued_reads_total", "counter");
    for (from, count) in parts.rescue.answered_from() {
        text.line("rescued_reads_total", &[("from", from)], count);
    }
    text.kind("late_acks_total", "counter");
    text.line("late_acks_total", &[], sum(&|worker| worker.late_acks.load(Relaxed)));
    text.kind("upstream_errors_total", "counter");
    for side in [Authority::Source, Authority::Target] {
        for kind in Trouble::ALL {
            let count = sum(&|worker| worker.upstream_errors(side, kind));
            text.line(
                "upstream_errors_total",
                &[("side", side.name()), ("kind", kind.name())],
                count,
            );
        }
    }

    text.kind("journal_bytes", "gauge");
    text.line("journal_bytes", &[], parts.journal.bytes());
    text.histogram("journal_append_seconds", &[], &parts.journal.append_times());
    text.0
}
