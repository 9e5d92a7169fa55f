//! What outlives a restart: phase, authority, and the results that a cutover asks for. One small file, replaced whole.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::scan::Position;
use crate::status::{Authority, Backfill, BackfillState, Cutover, CutoverState, Phase, Verify, VerifyState};

/// Version of the folder's layout. Another version is refused rather than guessed at.
pub const VERSION: u32 = 1;

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("cannot {action} {path}: {source}; data_dir must be a folder that this user may write to")]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(
        "the data directory {0} is in use by another sessionferry; one process at a time (stop the other one, or give this one a data_dir of its own)"
    )]
    InUse(PathBuf),
    #[error(
        "the data directory {path} is of version {found}, this program knows version {VERSION}; \
         start the program that wrote it, or give this one a data_dir of its own"
    )]
    Version { path: PathBuf, found: u64 },
    #[error("{path} is damaged ({reason}); restore it from a copy: it says which Redis is the authority")]
    Damaged { path: PathBuf, reason: String },
}

/// The state as it is saved.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    pub version: u32,
    pub phase: Phase,
    pub authority: Authority,
    /// When the phase was entered, RFC 3339.
    pub since: String,
    /// The servers without secrets, to notice when a folder of another move is used.
    pub source: String,
    pub target: String,
    /// Key of the digests in logs and lists, so that they mean the same after a restart.
    pub digest_key: [u8; 16],
    pub backfill: Backfill,
    /// How far a backfill that has not ended came.
    #[serde(default)]
    pub checkpoint: Option<Checkpoint>,
    pub verify: Verify,
    /// When the last verify ended, ms since the epoch.
    pub verified_at_ms: Option<i64>,
    pub cutover: Cutover,
    /// Which process each server was, to notice one that was restarted.
    #[serde(default)]
    pub runs: Runs,
}

/// Up to here every session has been delivered to every sink.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The server process that the position belongs to.
    pub run_id: String,
    /// The database that has the rows, without secrets.
    pub database: Option<String>,
    pub position: Position,
    pub scanned: u64,
    pub copied: u64,
    pub skipped: u64,
}

/// The run ids of the servers; `None` where not known yet.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Runs {
    source: Option<String>,
    target: Option<String>,
}

impl Runs {
    pub fn of(&mut self, server: Authority) -> &mut Option<String> {
        match server {
            Authority::Source => &mut self.source,
            Authority::Target => &mut self.target,
        }
    }
}

impl State {
    fn new(source: String, target: String) -> Self {
        State {
            version: VERSION,
            phase: Phase::Teeing,
            authority: Authority::Source,
            since: crate::clock::now_rfc3339(),
            source,
            target,
            digest_key: rand::random(),
            backfill: Backfill::default(),
            checkpoint: None,
            verify: Verify::default(),
            verified_at_ms: None,
            cutover: Cutover::default(),
            runs: Runs::default(),
        }
    }

    /// The servers have other names: what was copied and compared before proves nothing about them.
    pub fn begin_anew(&mut self, source: String, target: String) {
        self.source = source;
        self.target = target;
        self.enter(Phase::Teeing);
        self.backfill = Backfill::default();
        self.checkpoint = None;
        self.verify = Verify::default();
    }

    /// Enters a phase.
    pub fn enter(&mut self, phase: Phase) {
        if self.phase != phase {
            tracing::info!(from = ?self.phase, to = ?phase, "phase");
            self.phase = phase;
            self.since = crate::clock::now_rfc3339();
        }
    }
}

/// The data directory, locked for this process.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Held for the lock that it carries.
    _lock: File,
    /// Nothing was here before.
    pub fresh: bool,
}

/// The key of the digests that the proxy with this folder shows; `None` where there is none yet. Takes no lock.
pub fn digest_key(path: &Path) -> Option<[u8; 16]> {
    let file = path.join("state.json");
    let bytes = fs::read(&file).ok()?;
    parse(&file, path, &bytes).ok().map(|state| state.digest_key)
}

impl DataDir {
    /// Opens and locks the folder, making it where it is missing, and reads what an earlier run left.
    ///
    /// # Errors
    /// Another process has it, it is of another version, or it cannot be read or written.
    pub fn open(path: &Path, source: String, target: String) -> Result<(DataDir, State), StateError> {
        let io = |action: &'static str, path: &Path| {
            let path = path.to_owned();
            move |source| StateError::Io { action, path, source }
        };
        // Sessions are credentials: nobody else may read them.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(io("create", path))?;
        let lock_path = path.join("lock");
        let lock = create(&lock_path).map_err(io("create", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StateError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => return Err(io("lock", &lock_path)(source)),
        }
        let mut dir = DataDir {
            path: path.to_owned(),
            _lock: lock,
            fresh: false,
        };
        let file = dir.file();
        let state = match fs::read(&file) {
            Ok(bytes) => parse(&file, path, &bytes)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                dir.fresh = true;
                State::new(source, target)
            }
            Err(error) => return Err(io("read", &file)(error)),
        };
        Ok((dir, state))
    }

    fn file(&self) -> PathBuf {
        self.path.join("state.json")
    }

    /// Where the journal's segments are.
    pub fn journal(&self) -> PathBuf {
        self.path.join("journal")
    }

    /// Makes `state` durable: after this returns, a crash of the machine comes back in it.
    ///
    /// # Errors
    /// It is not durable; the file on disk is the old state or the new one, never a mixture.
    pub fn save(&self, state: &State) -> Result<(), StateError> {
        let file = self.file();
        let part = file.with_extension("part");
        let io = |action: &'static str| {
            let path = file.clone();
            move |source| StateError::Io { action, path, source }
        };
        let bytes = serde_json::to_vec_pretty(state).map_err(|error| io("write")(error.into()))?;
        let mut out = create(&part).map_err(io("write"))?;
        out.write_all(&bytes).map_err(io("write"))?;
        out.sync_all().map_err(io("sync"))?;
        fs::rename(&part, &file).map_err(io("replace"))?;
        File::open(&self.path)
            .and_then(|dir| dir.sync_all())
            .map_err(io("sync"))
    }
}

/// Whether a proxy that runs has this folder.
pub fn is_in_use(path: &Path) -> bool {
    let lock = File::open(path.join("lock"));
    lock.is_ok_and(|lock| matches!(lock.try_lock(), Err(TryLockError::WouldBlock)))
}

/// For its owner alone, wherever the folder came from.
fn create(path: &Path) -> std::io::Result<File> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path)
}

fn parse(file: &Path, dir: &Path, bytes: &[u8]) -> Result<State, StateError> {
    let damaged = |reason: String| StateError::Damaged {
        path: file.to_owned(),
        reason,
    };
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
    match value.get("version").and_then(serde_json::Value::as_u64) {
        Some(version) if version == u64::from(VERSION) => {}
        Some(found) => {
            return Err(StateError::Version {
                path: dir.to_owned(),
                found,
            });
        }
        None => return Err(damaged("it names no version".into())),
    }
    let mut state: State = serde_json::from_value(value).map_err(|error| damaged(error.to_string()))?;
    // What was under way when the process ended is not under way now.
    if state.backfill.state == BackfillState::Running {
        state.backfill.state = BackfillState::Failed;
    }
    if state.verify.state == VerifyState::Running {
        state.verify.state = VerifyState::Failed;
    }
    if !matches!(
        state.cutover.state,
        CutoverState::Idle | CutoverState::Done | CutoverState::Undone
    ) {
        state.cutover.state = CutoverState::Undone;
        state.cutover.reason = Some("the proxy ended while commands were held".into());
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> Result<(DataDir, State), StateError> {
        DataDir::open(path, "redis://a".into(), "redis://b".into())
    }

    #[test]
    fn phase_and_authority_are_there_again_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let (data, mut state) = open(dir.path()).unwrap();
        assert!(data.fresh);
        state.enter(Phase::CutOver);
        state.authority = Authority::Target;
        data.save(&state).unwrap();
        drop(data);
        let (data, again) = open(dir.path()).unwrap();
        assert!(!data.fresh);
        assert_eq!(
            (again.phase, again.authority, again.digest_key),
            (Phase::CutOver, Authority::Target, state.digest_key)
        );
    }

    #[test]
    fn nothing_that_was_copied_counts_for_other_servers() {
        let dir = tempfile::tempdir().unwrap();
        let (_, mut state) = open(dir.path()).unwrap();
        let position = serde_json::from_str(r#"{"globs": ["*"], "cursor": 7}"#).unwrap();
        state.checkpoint = Some(Checkpoint {
            run_id: "r".into(),
            database: None,
            position,
            scanned: 1,
            copied: 1,
            skipped: 0,
        });
        state.backfill.state = BackfillState::Done;
        state.enter(Phase::Synced);
        state.begin_anew("redis://a".into(), "redis://c".into());
        assert_eq!(
            (state.phase, state.backfill.state),
            (Phase::Teeing, BackfillState::Idle)
        );
        assert!(state.checkpoint.is_none());
    }

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let _first = open(dir.path()).unwrap();
        assert!(matches!(open(dir.path()), Err(StateError::InUse(_))));
    }

    #[test]
    fn another_version_and_damage_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (text, expected) in [
            ("{\"version\": 2}", "is of version 2"),
            ("{", "is damaged"),
            ("{}", "is damaged"),
        ] {
            fs::write(dir.path().join("state.json"), text).unwrap();
            let error = open(dir.path()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
