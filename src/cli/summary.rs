//! How an operation ended, in the operator's words, and whether that counts as success.

use indicatif::HumanCount;
use serde::de::DeserializeOwned;

use crate::status::{Backfill, Operation, OperationKind, OperationState, Plan, Restored, Verify, VerifyState};

/// What is said at the end.
#[derive(Debug)]
pub(super) struct Summary {
    /// For standard output.
    pub(super) text: String,
    /// For standard error; exit code 1 where there is one.
    pub(super) failure: Option<String>,
}

/// The summary of an operation that does not run any more.
pub(super) fn of(operation: &Operation) -> Summary {
    let mut summary = match operation.kind {
        OperationKind::Backfill => result(operation, backfill),
        OperationKind::Verify => result(operation, verify),
        OperationKind::Cutover | OperationKind::Rollback => {
            result(operation, |plan: &Plan| switch(operation.kind, plan))
        }
        OperationKind::Finish if operation.state == OperationState::Done => Summary {
            text: "finish: the source is let go of; the new Redis and the database have every session\n\
                   next step: point Django at the new Redis itself, then stop the proxy; the old Redis can go"
                .into(),
            failure: None,
        },
        OperationKind::Restore if operation.state != OperationState::Failed => result(operation, restore),
        OperationKind::Restore | OperationKind::Finish => Summary {
            text: operation.message.clone(),
            failure: None,
        },
    };
    match operation.state {
        OperationState::Running | OperationState::Done => {}
        OperationState::Failed => {
            // Where it was undone, that is the reason, and it is said already.
            if summary.failure.is_none() || operation.error.is_some() {
                summary.failure = Some(
                    operation
                        .error
                        .clone()
                        .unwrap_or_else(|| "failed, without a reason".into()),
                );
            }
        }
        OperationState::Stopped => summary.failure = Some("it was stopped; what is done stays done".into()),
    }
    summary
}

/// The result as it is documented, or the operation's own words where it has none.
fn result<T: DeserializeOwned>(operation: &Operation, summary: impl FnOnce(&T) -> Summary) -> Summary {
    match operation
        .result
        .is_object()
        .then(|| serde_json::from_value(operation.result.clone()))
    {
        Some(Ok(result)) => summary(&result),
        _ => Summary {
            text: operation.message.clone(),
            failure: None,
        },
    }
}

fn backfill(result: &Backfill) -> Summary {
    let text = format!(
        "backfill: {} sessions scanned, {} copied, {} skipped (newer at their destination already, or gone), {} failed\n\
         next step: sessionferry verify",
        HumanCount(result.scanned),
        HumanCount(result.copied),
        HumanCount(result.skipped),
        HumanCount(result.failed),
    );
    let failure = (result.failed > 0).then(|| {
        format!(
            "{} sessions could not be copied; run backfill again, it copies what is missing",
            HumanCount(result.failed)
        )
    });
    Summary { text, failure }
}

fn verify(result: &Verify) -> Summary {
    let counts = differences(result);
    let total: u64 = counts.iter().map(|(_, count)| count).sum();
    let differs = total > 0 || result.state == VerifyState::Differs;
    let mut text = format!(
        "verify: {} sessions compared in {} round(s), {}",
        HumanCount(result.compared),
        result.rounds,
        if differs {
            format!("{} difference(s)", HumanCount(total))
        } else {
            "no difference".into()
        },
    );
    for (kind, count) in counts.iter().filter(|(_, count)| *count > 0) {
        text.push_str(&format!("\n  {kind}: {}", HumanCount(*count)));
    }
    if result.unstorable > 0 {
        text.push_str(&format!(
            "\n  {} session(s) hold what a database row cannot carry: they are on the target as they are, without a row",
            HumanCount(result.unstorable)
        ));
    }
    for difference in &result.differences {
        text.push_str(&format!("\n    {difference}"));
    }
    for advice in advice(result) {
        text.push_str(&format!("\nwhat to do: {advice}"));
    }
    if !differs && !result.after_cutover {
        text.push_str("\nnext step: sessionferry cutover --dry-run");
    }
    Summary {
        text,
        failure: differs.then(|| "the stores differ".to_owned()),
    }
}

/// Each kind of difference in the interface's words.
pub(super) fn differences(verify: &Verify) -> [(&'static str, u64); 6] {
    [
        ("missing on the target", verify.missing_target),
        ("different on the target", verify.different_target),
        ("extra on the target", verify.extra_target),
        ("missing in the database", verify.missing_database),
        ("different in the database", verify.different_database),
        ("extra in the database", verify.extra_database),
    ]
}

fn advice(verify: &Verify) -> Vec<&'static str> {
    let mut advice = Vec::new();
    if verify.missing_target + verify.different_target + verify.missing_database + verify.different_database > 0 {
        advice.push(
            "wait until `sessionferry status` shows nothing pending, run `sessionferry backfill`, and verify again",
        );
    }
    if verify.different_target + verify.different_database > 0 {
        advice.push(
            "where it stays different, something writes past the proxy: see `bypassing writes` in `sessionferry status`",
        );
    }
    if verify.extra_target + verify.extra_database > 0 {
        advice.push(
            "extra sessions are logouts that have not arrived, or were there before the move: \
             verify again, and look into those that stay (they are named above)",
        );
    }
    advice
}

fn restore(result: &Restored) -> Summary {
    Summary {
        text: restored(result),
        failure: None,
    }
}

pub(super) fn restored(restored: &Restored) -> String {
    let skipped = match restored.skipped {
        0 => String::new(),
        skipped => {
            format!("; {skipped} skipped: they were being changed, or their row cannot be read (the log names them)")
        }
    };
    format!(
        "restore: {} session(s) put back; {} were there, {} are logged out or have ended{skipped}",
        restored.restored, restored.present, restored.absent
    )
}

fn switch(kind: OperationKind, plan: &Plan) -> Summary {
    let mut text = String::new();
    for check in &plan.checks {
        let mark = if check.passed { "ok" } else { "NO" };
        text.push_str(&format!("  {mark}  {}", check.name));
        if !check.detail.is_empty() {
            text.push_str(&format!(": {}", check.detail));
        }
        text.push('\n');
    }
    if plan.dry_run {
        for (number, step) in plan.steps.iter().enumerate() {
            text.push_str(&format!("  {}. {step}\n", number + 1));
        }
    }
    let held = plan
        .hold_seconds
        .map(|seconds| format!("clients were held for {:.0} ms", seconds * 1000.0));
    let refused = plan.checks.iter().filter(|check| !check.passed).count();
    let failure = match (&plan.undone, refused > 0) {
        (Some(reason), _) => {
            let held = held.as_ref().map(|held| format!("; {held}")).unwrap_or_default();
            Some(format!("undone, everything is as it was before: {reason}{held}"))
        }
        (None, true) => Some(format!("{refused} check(s) say no; nothing was changed")),
        (None, false) => None,
    };
    if failure.is_none() {
        let name = kind.name();
        let (done, next) = match (plan.dry_run, kind) {
            (true, _) => ("every check says yes; nothing was changed".to_owned(), format!("sessionferry {name}")),
            (false, OperationKind::Rollback) => {
                ("the source answers Django again".to_owned(), "sessionferry verify, before another cutover".into())
            }
            (false, _) => (
                "the target answers Django now, and writes go back to the source as well".to_owned(),
                "watch the site; sessionferry rollback goes back without loss, sessionferry finish lets go of the source"
                    .into(),
            ),
        };
        if plan.doubtful > 0 {
            text.push_str(&format!(
                "{} session(s) whose last change only the lost Redis knew; they are as the other one had them:\n  {}\n",
                plan.doubtful,
                plan.doubtful_sessions.join(" ")
            ));
        }
        text.push_str(&format!("{name}: {done}"));
        if let Some(held) = held.filter(|_| !plan.dry_run) {
            text.push_str(&format!("; {held}"));
        }
        text.push_str(&format!("\nnext step: {next}"));
    }
    Summary {
        text: text.trim_end().to_owned(),
        failure,
    }
}
