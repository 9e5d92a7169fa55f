//! The long commands: start, wait with progress, and say how it ended.

use std::io::IsTerminal;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressState, ProgressStyle};
use serde_json::{Value, json};

use super::client::{Client, ClientArgs, ClientError};
use super::{Exit, complain, out, summary};
use crate::status::{Operation, OperationKind, OperationOptions, OperationState};

/// How often the operation is looked at.
const POLL_EVERY: Duration = Duration::from_millis(200);
/// How often a line is written where there is no terminal: a log should not fill with progress.
const LINE_EVERY: Duration = Duration::from_secs(2);
/// How long the proxy may be silent (it restarts, the network hiccups) before the command gives up.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Until it is known how much there is to do.
const SPINNER: &str = "{prefix} {spinner} {human_pos} {msg}";
const BAR: &str = "{prefix} [{wide_bar}] {human_pos}/{human_len} {rate} {eta} left {msg}";

/// Flags of every long command.
#[derive(Args, Clone, Debug)]
pub struct LongArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    /// Print one JSON object at the end
    #[arg(long)]
    pub json: bool,
    /// Start it and return at once
    #[arg(long)]
    pub no_wait: bool,
}

/// Starts an operation and sees it through.
pub(super) fn run(args: &LongArgs, kind: OperationKind, options: &OperationOptions) -> Exit {
    let ended = Client::new(&args.client).and_then(|client| {
        let started: Value = client.post(&format!("/api/v1/{}", kind.name()), options)?;
        let id = started["operation"]
            .as_u64()
            .ok_or_else(|| ClientError::Refused(format!("{} did not say which operation it started", client.base())))?;
        if args.no_wait {
            let text = format!(
                "{} started: operation {id}; `sessionferry status` shows it, `sessionferry stop {id}` stops it",
                kind.name()
            );
            out(&if args.json {
                json!({ "operation": id }).to_string()
            } else {
                text
            });
            return Ok(Exit::Done);
        }
        wait(&client, kind, id, args.json)
    });
    ended.unwrap_or_else(|error| error.report(kind.name(), args.json))
}

fn wait(client: &Client, kind: OperationKind, id: u64, as_json: bool) -> Result<Exit, ClientError> {
    let interrupts = interrupts();
    let mut progress = Progress::new(kind);
    let mut heard = Instant::now();
    loop {
        match client.get::<Operation>(&format!("/api/v1/operations/{id}")) {
            Ok(operation) if operation.state == OperationState::Running => {
                heard = Instant::now();
                progress.show(&operation);
            }
            Ok(operation) => {
                progress.end();
                return Ok(finish(client, &operation, as_json));
            }
            // The proxy goes on without us, so a short silence is no reason to give up.
            Err(ClientError::Unreachable(_)) if heard.elapsed() < SILENCE_MAX => {}
            Err(error) => {
                progress.end();
                return Err(error);
            }
        }
        match interrupts.recv_timeout(POLL_EVERY) {
            Ok(()) => {
                progress.end();
                let text = format!(
                    "{} goes on in the proxy as operation {id}; `sessionferry status` shows it, \
                     `sessionferry stop {id}` stops it",
                    kind.name()
                );
                if as_json {
                    out(&json!({ "operation": id, "state": "running" }).to_string());
                }
                complain(&text);
                return Ok(Exit::Interrupted);
            }
            Err(RecvTimeoutError::Timeout) => {}
            // No signal handler: then Ctrl-C ends the process, as ever.
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(POLL_EVERY),
        }
    }
}

/// Ctrl-C as messages. The thread ends with the process.
fn interrupts() -> Receiver<()> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
            return;
        };
        runtime.block_on(async { while tokio::signal::ctrl_c().await.is_ok() && sender.send(()).is_ok() {} });
    });
    receiver
}

/// The summary, on standard output; reasons of a failure on standard error.
fn finish(client: &Client, operation: &Operation, as_json: bool) -> Exit {
    let summary = summary::of(operation);
    if as_json {
        match serde_json::to_string(operation) {
            Ok(text) => out(&text),
            Err(error) => complain(&format!("the result cannot be written: {error}")),
        }
    } else if !summary.text.is_empty() {
        out(&summary.text);
    }
    if let Some(reason) = &summary.failure {
        complain(&format!("{}: {reason}", operation.kind.name()));
        complain(&format!(
            "`sessionferry status --admin {}` shows where the move stands",
            client.base()
        ));
    }
    if summary.failure.is_some() {
        Exit::Failed
    } else {
        Exit::Done
    }
}

/// A bar on a terminal, else lines.
enum Progress {
    Bar(ProgressBar),
    Lines {
        kind: OperationKind,
        started: Instant,
        first: Option<u64>,
        last: Option<Instant>,
    },
}

impl Progress {
    fn new(kind: OperationKind) -> Progress {
        if !std::io::stderr().is_terminal() {
            return Progress::Lines {
                kind,
                started: Instant::now(),
                first: None,
                last: None,
            };
        }
        let bar = ProgressBar::no_length().with_style(style(SPINNER));
        bar.set_prefix(kind.name());
        Progress::Bar(bar)
    }

    fn show(&mut self, operation: &Operation) {
        match self {
            Progress::Bar(bar) => {
                if let Some(total) = operation.total {
                    if bar.length() != Some(total) {
                        bar.set_style(style(BAR));
                        bar.set_length(total);
                    }
                } else {
                    bar.tick();
                }
                bar.set_message(operation.message.clone());
                bar.set_position(operation.done);
            }
            Progress::Lines {
                kind,
                started,
                first,
                last,
            } => {
                let first = *first.get_or_insert(operation.done);
                if last.is_some_and(|last| last.elapsed() < LINE_EVERY) {
                    return;
                }
                *last = Some(Instant::now());
                let seconds = started.elapsed().as_secs_f64();
                // Over less than a second a rate says nothing.
                let rate = if seconds < 1.0 {
                    0.0
                } else {
                    operation.done.saturating_sub(first) as f64 / seconds
                };
                complain(&format!("{}: {}", kind.name(), line(operation, rate)));
            }
        }
    }

    fn end(&self) {
        if let Progress::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .with_key("rate", |state: &ProgressState, to: &mut dyn std::fmt::Write| {
            // Nothing can be done about a terminal that does not take a number.
            let _ = write!(to, "{:.0}/s", state.per_sec());
        })
        .progress_chars("=> ")
}

/// `400 of 1,000 (40%), 200/s, 3 seconds left: copying`.
fn line(operation: &Operation, rate: f64) -> String {
    let mut text = HumanCount(operation.done).to_string();
    if let Some(total) = operation.total.filter(|total| *total > 0) {
        let percent = operation.done.min(total) as f64 * 100.0 / total as f64;
        text.push_str(&format!(" of {} ({percent:.0}%)", HumanCount(total)));
    }
    if rate > 0.0 {
        text.push_str(&format!(", {rate:.0}/s"));
        let left = operation
            .total
            .map(|total| total.saturating_sub(operation.done) as f64 / rate);
        if let Some(left) = left.and_then(|left| Duration::try_from_secs_f64(left).ok()) {
            text.push_str(&format!(", {} left", HumanDuration(left)));
        }
    }
    if !operation.message.is_empty() {
        text.push_str(&format!(": {}", operation.message));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_of_the_bar_are_valid() {
        for template in [SPINNER, BAR] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }

    #[test]
    fn a_line_of_progress_says_how_much_how_fast_and_how_long() {
        let operation = Operation {
            operation: 1,
            kind: OperationKind::Backfill,
            state: OperationState::Running,
            started: String::new(),
            finished: None,
            done: 400,
            total: Some(1000),
            message: "copying".into(),
            error: None,
            result: Value::Null,
        };
        assert_eq!(
            line(&operation, 200.0),
            "400 of 1,000 (40%), 200/s, 3 seconds left: copying"
        );
        let unknown = Operation {
            total: None,
            message: String::new(),
            ..operation
        };
        assert_eq!(line(&unknown, 0.0), "400");
    }
}
