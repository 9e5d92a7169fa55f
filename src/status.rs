//! What `GET /api/v1/status` answers: the one definition, shared by the server and the command line.
//!
//! Counts are numbers, durations are seconds, times are RFC 3339, absent things are `null`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Where the move stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Teeing,
    Backfilling,
    Synced,
    CuttingOver,
    CutOver,
    Finished,
}

impl Phase {
    pub const ALL: [Phase; 6] = [
        Phase::Teeing,
        Phase::Backfilling,
        Phase::Synced,
        Phase::CuttingOver,
        Phase::CutOver,
        Phase::Finished,
    ];

    /// The word in JSON and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Teeing => "teeing",
            Phase::Backfilling => "backfilling",
            Phase::Synced => "synced",
            Phase::CuttingOver => "cutting_over",
            Phase::CutOver => "cut_over",
            Phase::Finished => "finished",
        }
    }
}

/// Which Redis answers Django now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Authority {
    Source,
    Target,
}

impl std::fmt::Display for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Authority::Source => "source",
            Authority::Target => "target",
        })
    }
}

impl Authority {
    /// The word in JSON and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Authority::Source => "source",
            Authority::Target => "target",
        }
    }

    /// The other Redis: the one that the tee writes to.
    pub fn other(self) -> Authority {
        match self {
            Authority::Source => Authority::Target,
            Authority::Target => Authority::Source,
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub phase: Phase,
    pub authority: Authority,
    /// When the phase was entered.
    pub since: String,
    pub uptime_seconds: f64,
    pub clients: Clients,
    pub commands: Commands,
    pub tee: Tee,
    pub sessions: Sessions,
    pub backfill: Backfill,
    pub verify: Verify,
    pub cutover: Cutover,
    /// The operation that runs now.
    pub operation: Option<Operation>,
    /// Operations that would be refused if they were asked for now, and why.
    #[serde(default)]
    pub refused: BTreeMap<OperationKind, String>,
    /// What an operator should know and act on, in plain words.
    #[serde(default)]
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Clients {
    pub connected: u64,
    pub total: u64,
    pub held: u64,
}

/// `GET /api/v1/clients`: who is connected, the largest groups first.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ClientList {
    pub clients: Vec<ClientGroup>,
    /// Groups beyond those told of.
    pub left_out: u64,
}

/// Connections from one address that say the same of themselves.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ClientGroup {
    pub address: String,
    /// `CLIENT SETNAME`.
    pub name: Option<String>,
    /// `CLIENT SETINFO`: name and version of the client's library.
    pub library: Option<String>,
    pub connections: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Commands {
    pub forwarded: u64,
    pub session_writes: u64,
    pub errors: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Tee {
    /// The Redis that is not the authority: after cutover this is the source.
    pub target: Sink,
    pub database: Sink,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sink {
    pub connected: bool,
    pub pending: u64,
    pub lag_seconds: f64,
    pub delivered: u64,
    pub retries: u64,
    pub dirty: u64,
    /// Sessions that this store cannot hold (database: a key over 40 characters).
    #[serde(default)]
    pub rejected: u64,
    pub last_error: Option<String>,
    /// There is no such store (`database = none`, or the source after `finish`): nothing to show or to alarm on.
    #[serde(default)]
    pub absent: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sessions {
    pub source: u64,
    pub target: u64,
    pub database: u64,
    pub unstorable: u64,
    pub bypassing_writes: u64,
    pub bypass_watch: String,
    pub rescued_reads: u64,
    /// Sessions that the authority had lost and that were put back into it.
    #[serde(default)]
    pub restored: u64,
    pub resurrected: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackfillState {
    #[default]
    Idle,
    Running,
    Done,
    Failed,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Backfill {
    pub state: BackfillState,
    pub scanned: u64,
    pub copied: u64,
    pub skipped: u64,
    pub failed: u64,
    pub per_second: f64,
    /// Session keys at the authority when they were last counted (0: not yet): what a progress bar counts to.
    #[serde(default)]
    pub expected: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerifyState {
    #[default]
    Idle,
    Running,
    Clean,
    Differs,
    Failed,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Verify {
    pub state: VerifyState,
    pub at: Option<String>,
    pub compared: u64,
    pub missing_target: u64,
    pub different_target: u64,
    pub extra_target: u64,
    pub missing_database: u64,
    pub different_database: u64,
    pub extra_database: u64,
    pub unstorable: u64,
    pub rounds: u64,
    /// The target was the authority already.
    #[serde(default)]
    pub after_cutover: bool,
    /// Up to 20 sessions that differ, or did at the verify before, for a person to look into.
    #[serde(default)]
    pub differences: Vec<Difference>,
}

/// A session that was found to differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Its digest.
    pub session: String,
    /// What is wrong, and where, in plain words.
    pub found: Vec<String>,
    pub outcome: Outcome,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let outcome = self.outcome.name().replace('_', " ");
        write!(f, "{}: {} ({outcome})", self.session, self.found.join(", "))
    }
}

/// What was done about a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A backfill copies it.
    NothingYet,
    /// It is no longer, or was never, in the authority.
    NoCopyRemovesIt,
    /// By a backfill.
    CopiedSince,
    /// Although a backfill copied it.
    DiffersStill,
    TheSameAgain,
}

impl Outcome {
    /// The word in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::NothingYet => "nothing_yet",
            Outcome::NoCopyRemovesIt => "no_copy_removes_it",
            Outcome::CopiedSince => "copied_since",
            Outcome::DiffersStill => "differs_still",
            Outcome::TheSameAgain => "the_same_again",
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CutoverState {
    #[default]
    Idle,
    Holding,
    Draining,
    Switching,
    Done,
    Undone,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Cutover {
    pub state: CutoverState,
    pub hold_seconds: Option<f64>,
    pub reason: Option<String>,
}

/// What an operator can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    Backfill,
    Verify,
    Cutover,
    Rollback,
    Restore,
    Finish,
}

impl OperationKind {
    pub const ALL: [OperationKind; 6] = [
        OperationKind::Backfill,
        OperationKind::Verify,
        OperationKind::Cutover,
        OperationKind::Rollback,
        OperationKind::Restore,
        OperationKind::Finish,
    ];

    /// The word in JSON, in paths and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            OperationKind::Backfill => "backfill",
            OperationKind::Verify => "verify",
            OperationKind::Cutover => "cutover",
            OperationKind::Rollback => "rollback",
            OperationKind::Restore => "restore",
            OperationKind::Finish => "finish",
        }
    }
}

/// The JSON body of `POST /api/v1/…`; the same options as the flags.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OperationOptions {
    /// Print the plan and each check's answer, change nothing.
    pub dry_run: bool,
    /// Go on although a check says no.
    pub force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    Running,
    Done,
    Failed,
    Stopped,
}

/// `GET /api/v1/operations/ID`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Operation {
    pub operation: u64,
    pub kind: OperationKind,
    pub state: OperationState,
    pub started: String,
    pub finished: Option<String>,
    /// Steps done so far, for a progress bar; `total` is null where it is not known.
    pub done: u64,
    pub total: Option<u64>,
    /// What it is doing, in plain words.
    pub message: String,
    /// Why it failed.
    pub error: Option<String>,
    /// The plan with each check's answer (cutover, rollback), the counts (backfill, verify).
    pub result: serde_json::Value,
}

/// The `result` of a cutover or rollback: what the command line's summary reads.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Plan {
    /// The plan was only made, nothing was changed.
    pub dry_run: bool,
    pub checks: Vec<Check>,
    /// What is done in which order, in plain words.
    pub steps: Vec<String>,
    /// How long Django waited.
    pub hold_seconds: Option<f64>,
    /// Why it was undone; the authority is the same as before then.
    pub undone: Option<String>,
    /// Sessions of which a lost authority may have known something newer, and the first of their digests.
    pub doubtful: u64,
    pub doubtful_sessions: Vec<String>,
}

/// The `result` of a restore: what became of the sessions that another store has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Restored {
    /// The authority has them.
    pub present: u64,
    pub restored: u64,
    /// They were deleted meanwhile, or have ended.
    pub absent: u64,
    /// A client is changing them, or no value can be made of their row.
    pub skipped: u64,
}

impl std::ops::AddAssign for Restored {
    fn add_assign(&mut self, other: Restored) {
        self.present += other.present;
        self.restored += other.restored;
        self.absent += other.absent;
        self.skipped += other.skipped;
    }
}

/// One question that was asked before a switch.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Check {
    /// The question, such as `backfill done`.
    pub name: String,
    pub passed: bool,
    /// The answer, and what to do where it did not pass.
    pub detail: String,
}
