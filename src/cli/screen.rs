//! `sessionferry status`: one screen, and what to do next in plain words.

use std::fmt::Write;
use std::io::{IsTerminal, stdout};
use std::time::Duration;

use clap::Args;
use indicatif::{HumanCount, HumanDuration};
use serde_json::{Value, json};

use super::client::{Client, ClientArgs, ClientError};
use super::{Exit, summary, try_out};
use crate::status::{Authority, BackfillState, CutoverState, Phase, Sink, Status, VerifyState};

/// How often `--watch` draws.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// `sessionferry status`.
#[derive(Args, Clone, Debug)]
pub struct StatusArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    /// Print the status as JSON; with --watch one object a line
    #[arg(long)]
    pub json: bool,
    /// Draw again each second, until Ctrl-C
    #[arg(long)]
    pub watch: bool,
}

/// Shows the status once, or until Ctrl-C.
pub(super) fn run(args: &StatusArgs) -> Exit {
    let client = match Client::new(&args.client) {
        Ok(client) => client,
        Err(error) => return error.report("status", args.json),
    };
    let clear = if args.watch && !args.json && stdout().is_terminal() {
        "\x1b[H\x1b[2J"
    } else {
        ""
    };
    let mut seen = false;
    loop {
        let shown = look(&client, args.json);
        let text = match shown {
            Ok(text) => {
                seen = true;
                text
            }
            // A watched proxy that restarts comes back; one that never answered was asked for wrongly.
            Err(error) if args.watch && seen => match args.json {
                true => json!({ "error": error.to_string() }).to_string(),
                false => error.to_string(),
            },
            Err(error) => return error.report("status", args.json),
        };
        if try_out(&format!("{clear}{text}")).is_err() || !args.watch {
            return Exit::Done;
        }
        std::thread::sleep(WATCH_EVERY);
    }
}

fn look(client: &Client, as_json: bool) -> Result<String, ClientError> {
    if as_json {
        // As it came, so that what a newer proxy adds is not lost.
        return Ok(client.get::<Value>("/api/v1/status")?.to_string());
    }
    Ok(render(&client.get("/api/v1/status")?, client.base()))
}

fn n(count: u64) -> HumanCount {
    HumanCount(count)
}

/// The screen. Pure, so that it can be tested.
fn render(s: &Status, admin: &str) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut text, s, admin);
    text.trim_end().to_owned()
}

fn write(to: &mut String, s: &Status, admin: &str) -> std::fmt::Result {
    let up = HumanDuration(Duration::try_from_secs_f64(s.uptime_seconds).unwrap_or_default());
    writeln!(to, "sessionferry {}  {admin}  up {up}\n", s.version)?;
    writeln!(to, "  {}\n", stations(s.phase))?;
    let (answers, since) = (describe(s.authority), &s.since);
    writeln!(to, "  answering   {answers}; in this phase since {since}")?;
    let (c, k) = (&s.clients, &s.commands);
    writeln!(
        to,
        "  clients     {} connected, {} held, {} in all",
        n(c.connected),
        n(c.held),
        n(c.total)
    )?;
    writeln!(
        to,
        "  commands    {} forwarded, {} session writes, {} errors\n",
        n(k.forwarded),
        n(k.session_writes),
        n(k.errors)
    )?;
    writeln!(
        to,
        "  {:<10}{:>10}{:>10}{:>14}{:>9}{:>8}",
        "writes to", "pending", "lag", "delivered", "retries", "dirty"
    )?;
    sink(to, s.authority.other().name(), &s.tee.target)?;
    sink(to, "database", &s.tee.database)?;
    let x = &s.sessions;
    writeln!(
        to,
        "\n  sessions    source {}, target {}, database {}; {} that no row can carry",
        n(x.source),
        n(x.target),
        n(x.database),
        n(x.unstorable)
    )?;
    let watch = match x.bypass_watch.as_str() {
        "" | "off" => "not watched".to_owned(),
        how => format!("watched by {how}"),
    };
    writeln!(
        to,
        "              {} bypassing writes ({watch}), {} rescued reads, {} put back, {} resurrected",
        n(x.bypassing_writes),
        n(x.rescued_reads),
        n(x.restored),
        n(x.resurrected)
    )?;
    let b = &s.backfill;
    let state = match b.state {
        BackfillState::Idle => "not run yet",
        BackfillState::Running => "running",
        BackfillState::Done => "done",
        BackfillState::Failed => "failed",
    };
    write!(to, "  backfill    {state}")?;
    if b.state != BackfillState::Idle {
        write!(
            to,
            ": {} scanned, {} copied, {} skipped, {} failed",
            n(b.scanned),
            n(b.copied),
            n(b.skipped),
            n(b.failed)
        )?;
    }
    if b.state == BackfillState::Running {
        write!(to, " of about {}, {:.0}/s", n(b.expected), b.per_second)?;
    }
    writeln!(to)?;
    verify(to, s)?;
    let held = s
        .cutover
        .hold_seconds
        .map(|seconds| format!(", clients held for {:.0} ms", seconds * 1000.0));
    let reason = s.cutover.reason.as_ref().map(|reason| format!(": {reason}"));
    let state = match s.cutover.state {
        CutoverState::Idle => "not run yet",
        CutoverState::Holding => "holding clients",
        CutoverState::Draining => "draining",
        CutoverState::Switching => "switching",
        CutoverState::Done => "done",
        CutoverState::Undone => "undone",
    };
    writeln!(
        to,
        "  cutover     {state}{}{}",
        held.unwrap_or_default(),
        reason.unwrap_or_default()
    )?;
    if let Some(o) = &s.operation {
        let total = o.total.map(|total| format!(" of {}", n(total))).unwrap_or_default();
        writeln!(
            to,
            "  running     {} (operation {}): {}{total} {}",
            o.kind.name(),
            o.operation,
            n(o.done),
            o.message
        )?;
    }
    if !s.warnings.is_empty() {
        writeln!(to, "\n  warnings")?;
    }
    for warning in &s.warnings {
        writeln!(to, "    ! {warning}")?;
    }
    writeln!(to, "\n  next step   {}", next_step(s))
}

/// `✔ teeing ─ ● backfilling ─ ○ synced …`: behind, here, ahead.
fn stations(now: Phase) -> String {
    let at = Phase::ALL.iter().position(|phase| *phase == now).unwrap_or_default();
    let marked = Phase::ALL.iter().enumerate().map(|(i, phase)| {
        let mark = match i.cmp(&at) {
            std::cmp::Ordering::Less => '✔',
            std::cmp::Ordering::Equal => '●',
            std::cmp::Ordering::Greater => '○',
        };
        format!("{mark} {}", phase.name().replace('_', " "))
    });
    marked.collect::<Vec<_>>().join(" ─ ")
}

fn describe(authority: Authority) -> &'static str {
    match authority {
        Authority::Source => "source, the old Redis",
        Authority::Target => "target, the new Redis",
    }
}

fn sink(to: &mut String, name: &str, sink: &Sink) -> std::fmt::Result {
    if sink.absent {
        return writeln!(to, "  {name:<10}      none");
    }
    write!(
        to,
        "  {name:<10}{:>10}{:>10}{:>14}{:>9}{:>8}  {}",
        n(sink.pending).to_string(),
        format!("{:.1} s", sink.lag_seconds),
        n(sink.delivered).to_string(),
        n(sink.retries).to_string(),
        n(sink.dirty).to_string(),
        if sink.connected { "connected" } else { "NOT CONNECTED" },
    )?;
    if sink.rejected > 0 {
        write!(to, ", {} rejected", n(sink.rejected))?;
    }
    // Once it is connected again, the last error is history.
    if let Some(error) = sink.last_error.as_ref().filter(|_| !sink.connected) {
        write!(to, ": {error}")?;
    }
    writeln!(to)
}

fn verify(to: &mut String, s: &Status) -> std::fmt::Result {
    let v = &s.verify;
    let state = match v.state {
        VerifyState::Idle => "not run yet",
        VerifyState::Running => "running",
        VerifyState::Clean => "clean",
        VerifyState::Differs => "DIFFERS",
        VerifyState::Failed => "failed",
    };
    write!(to, "  verify      {state}")?;
    if let Some(at) = &v.at {
        write!(to, " at {at}")?;
    }
    if v.state == VerifyState::Idle {
        return writeln!(to);
    }
    writeln!(
        to,
        ": {} compared, {} round(s), {} unstorable",
        n(v.compared),
        v.rounds,
        n(v.unstorable)
    )?;
    for kinds in summary::differences(v).chunks(3) {
        let kinds: Vec<String> = kinds
            .iter()
            .map(|(kind, count)| format!("{} {kind}", n(*count)))
            .collect();
        writeln!(to, "              {}", kinds.join(", "))?;
    }
    v.differences
        .iter()
        .try_for_each(|difference| writeln!(to, "              {difference}"))
}

/// What an operator should do now: the first thing that stands in the way, else the next station.
fn next_step(s: &Status) -> String {
    if let Some(o) = &s.operation {
        return format!(
            "wait for the {} to end; `sessionferry stop {}` stops it",
            o.kind.name(),
            o.operation
        );
    }
    let sinks = [
        (s.authority.other().name(), &s.tee.target),
        ("database", &s.tee.database),
    ];
    if s.phase != Phase::Finished
        && let Some((name, _)) = sinks.iter().find(|(_, sink)| !sink.absent && !sink.connected)
    {
        return format!("make the {name} reachable; until then its writes are kept, and nothing is lost");
    }
    let step = match (s.phase, s.backfill.state, s.verify.state) {
        (Phase::CuttingOver, ..) => "wait: the cutover ends or undoes itself within max_hold",
        (Phase::CutOver, ..) => {
            "watch the site; `sessionferry rollback` goes back without loss, \
             `sessionferry finish` lets go of the source once you are sure"
        }
        (Phase::Finished, ..) => "let Django connect to the target itself, then stop this proxy",
        (Phase::Synced, ..) => "`sessionferry cutover --dry-run`, then `sessionferry cutover`",
        (_, BackfillState::Failed, _) => "`sessionferry backfill` again: it copies what is missing",
        (_, BackfillState::Done, VerifyState::Differs) => {
            "`sessionferry verify` again; where the difference stays, `sessionferry backfill` first"
        }
        (_, BackfillState::Done, _) => "`sessionferry verify` compares the stores",
        (..) => "`sessionferry backfill` copies the sessions that are already there",
    };
    step.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{Backfill, Clients, Commands, Cutover, Sessions, Tee, Verify};

    fn status(phase: Phase) -> Status {
        let up = Sink {
            connected: true,
            ..Sink::default()
        };
        Status {
            version: "0.1.0".into(),
            phase,
            authority: if phase == Phase::CutOver {
                Authority::Target
            } else {
                Authority::Source
            },
            since: "2026-01-01T00:00:00Z".into(),
            uptime_seconds: 90.0,
            clients: Clients::default(),
            commands: Commands::default(),
            tee: Tee {
                target: up.clone(),
                database: up,
            },
            sessions: Sessions::default(),
            backfill: Backfill::default(),
            verify: Verify::default(),
            cutover: Cutover::default(),
            operation: None,
            refused: Default::default(),
            warnings: vec!["clients write past the proxy".into()],
        }
    }

    #[test]
    fn one_screen_says_where_the_move_stands() {
        let mut s = status(Phase::Synced);
        s.verify = Verify {
            state: VerifyState::Differs,
            extra_database: 1234,
            rounds: 3,
            ..Verify::default()
        };
        s.cutover = Cutover {
            state: CutoverState::Undone,
            hold_seconds: Some(0.031),
            reason: Some("the target is full".into()),
        };
        s.tee.database = Sink {
            pending: 7,
            last_error: Some("refused".into()),
            ..Sink::default()
        };
        let screen = render(&s, "http://a");
        for words in [
            "✔ teeing ─ ✔ backfilling ─ ● synced ─ ○ cutting over ─ ○ cut over ─ ○ finished",
            "source, the old Redis",
            "NOT CONNECTED: refused",
            "verify      DIFFERS",
            "1,234 extra in the database",
            "undone, clients held for 31 ms: the target is full",
            "! clients write past the proxy",
            "next step   make the database reachable",
        ] {
            assert!(screen.contains(words), "`{words}` is not in\n{screen}");
        }
        assert!(screen.lines().count() <= 24, "more than one screen:\n{screen}");
    }

    #[test]
    fn the_next_step_follows_the_phase() {
        let with = |phase, backfill, verify, words: &str| {
            let mut s = status(phase);
            s.backfill.state = backfill;
            s.verify.state = verify;
            let step = next_step(&s);
            assert!(step.contains(words), "{phase:?}: `{words}` is not in: {step}");
        };
        with(
            Phase::Teeing,
            BackfillState::Idle,
            VerifyState::Idle,
            "sessionferry backfill",
        );
        with(
            Phase::Backfilling,
            BackfillState::Failed,
            VerifyState::Idle,
            "backfill` again",
        );
        with(
            Phase::Backfilling,
            BackfillState::Done,
            VerifyState::Idle,
            "sessionferry verify",
        );
        with(
            Phase::Backfilling,
            BackfillState::Done,
            VerifyState::Differs,
            "verify` again",
        );
        with(
            Phase::Synced,
            BackfillState::Done,
            VerifyState::Clean,
            "cutover --dry-run",
        );
        with(Phase::CutOver, BackfillState::Done, VerifyState::Clean, "rollback");
        with(
            Phase::Finished,
            BackfillState::Done,
            VerifyState::Clean,
            "stop this proxy",
        );
    }

    #[test]
    fn a_store_that_is_not_there_is_no_alarm() {
        let mut s = status(Phase::Teeing);
        s.tee.database = Sink {
            absent: true,
            ..Sink::default()
        };
        let screen = render(&s, "http://a");
        assert!(
            !screen.contains("NOT CONNECTED") && !screen.contains("reachable"),
            "{screen}"
        );
    }
}
