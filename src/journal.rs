//! Pending session writes on disk, so that they survive `kill -9`.
//!
//! Each worker appends to a segment of its own, with one `write(2)` for all session writes of a wake-up, *before* those
//! commands leave for the authority. That order matters: a write whose reply the killed proxy never saw may have
//! happened all the same, and only a record made earlier can tell that its key must be looked at again. The page cache
//! outlives the process, so nothing is synced to the disk on this path; what a power cut may lose is said in the docs.
//!
//! State, not history: recovery takes the newest record per key. A segment is removed once every session that it names
//! has reached both stores; where a store is away for long, a compaction keeps the keys alone.
//!
//! Absent on purpose: an embedded store. It costs seven to eleven times the CPU per record (docs/performance.md), and does
//! its own merging on the cores that forward.

pub mod reader;
pub mod record;
pub mod writer;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64};

use bytes::Bytes;

use crate::histogram::{Counts, Histogram};

pub use reader::{Recovered, recover};
pub use record::{Record, RecordedEffect};
pub use writer::Writer;

/// A segment is closed at this size, bytes.
pub const SEGMENT_LEN: u64 = 16 * 1024 * 1024;
/// Closed segments beyond this many bytes are compacted to the keys that are still pending.
pub const COMPACT_AT: u64 = 256 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("cannot {action} {path}: {source}")]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
}

impl JournalError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> JournalError {
        let path = path.to_owned();
        move |source| JournalError::Io { action, path, source }
    }
}

/// A segment that nobody writes to any more.
#[derive(Debug)]
struct Closed {
    path: PathBuf,
    last_seq: u64,
    len: u64,
}

/// Upper bounds of how long a write takes, µs: into the page cache, or behind a disk that is busy.
static APPEND_BOUNDS_US: [u64; 9] = [5, 10, 25, 50, 100, 1_000, 10_000, 100_000, 1_000_000];

/// What the writers share: the folder, and the segments that are closed.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    closed: Mutex<Vec<Closed>>,
    /// Bytes in all segments.
    bytes: AtomicU64,
    /// The last write failed.
    failing: AtomicBool,
    /// Some writes could not be recorded, and still are not.
    owes: AtomicBool,
    /// How many those are; they live in memory only.
    unrecorded: AtomicU64,
    last_error: Mutex<Option<String>>,
    appends: Histogram<{ APPEND_BOUNDS_US.len() }>,
}

impl Journal {
    /// Opens the folder, making it where it is missing. Segments of an earlier run count as closed.
    ///
    /// # Errors
    /// The folder cannot be made or read.
    pub fn open(dir: &Path, recovered: &Recovered) -> Result<Journal, JournalError> {
        // Sessions are credentials: nobody else may read them.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(JournalError::io("create", dir))?;
        let closed: Vec<Closed> = recovered
            .segments
            .iter()
            .map(|(path, len)| Closed {
                path: path.clone(),
                last_seq: recovered.last_seq,
                len: *len,
            })
            .collect();
        let bytes = closed.iter().map(|segment| segment.len).sum();
        Ok(Journal {
            dir: dir.to_owned(),
            closed: Mutex::new(closed),
            bytes: AtomicU64::new(bytes),
            failing: AtomicBool::new(false),
            owes: AtomicBool::new(false),
            unrecorded: AtomicU64::new(0),
            last_error: Mutex::new(None),
            appends: Histogram::new(&APPEND_BOUNDS_US),
        })
    }

    /// Bytes in all segments.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// How long the writers' system calls took.
    pub fn append_times(&self) -> Counts {
        self.appends.counts()
    }

    /// Whether something in memory has no record because none could be written: [`Journal::catch_up`].
    pub fn owes(&self) -> bool {
        self.owes.load(Acquire)
    }

    /// Why writes cannot be recorded now, or could not be and still are not; `None` where all are.
    pub fn trouble(&self) -> Option<String> {
        if !self.failing.load(Relaxed) && !self.owes() {
            return None;
        }
        let error = self
            .last_error
            .lock()
            .expect("no panic while locked")
            .clone()
            .unwrap_or_default();
        Some(format!(
            "pending writes cannot be recorded ({error}); {} live in memory only and would be lost with the process: \
             make room in data_dir, or make it writable",
            self.unrecorded.load(Relaxed)
        ))
    }

    /// Whether any segment is closed: only then is there something to retire or to compact.
    pub fn has_closed(&self) -> bool {
        !self.closed.lock().expect("no panic while locked").is_empty()
    }

    /// Removes the closed segments in which every record is older than `low_watermark`.
    pub fn retire(&self, low_watermark: u64) {
        let mut closed = self.closed.lock().expect("no panic while locked");
        closed.retain(|segment| {
            if segment.last_seq >= low_watermark {
                return true;
            }
            if let Err(error) = fs::remove_file(&segment.path) {
                tracing::warn!(%error, path = %segment.path.display(), "cannot remove a journal segment");
            }
            self.bytes.fetch_sub(segment.len, Relaxed);
            false
        });
    }

    /// Whether the closed segments are worth compacting.
    pub fn wants_compaction(&self) -> bool {
        let closed = self.closed.lock().expect("no panic while locked");
        closed.len() > 1 && closed.iter().map(|segment| segment.len).sum::<u64>() > COMPACT_AT
    }

    /// Records what could not be recorded, and is still pending; as [`Journal::compact`] does.
    ///
    /// # Errors
    /// It still cannot be written.
    pub fn catch_up(&self, pending: impl FnOnce() -> (Vec<(Bytes, u64)>, Option<u64>)) -> Result<(), JournalError> {
        // First: a write that fails from now on is owed again.
        self.owes.store(false, Release);
        let unrecorded = self.unrecorded.swap(0, Relaxed);
        self.compact(pending).inspect_err(|_| {
            self.unrecorded.fetch_add(unrecorded, Relaxed);
            self.owes.store(true, Release);
        })?;
        self.failing.store(false, Relaxed);
        tracing::info!("pending writes are recorded again");
        Ok(())
    }

    /// Replaces all segments closed so far by one that names `pending` keys alone.
    ///
    /// `pending` must be read after this is called (it is a function for that reason), so that it holds every key that
    /// a closed segment names and that is not delivered, and the wipe that is not dealt with.
    ///
    /// # Errors
    /// The new segment cannot be written; the old ones are kept then.
    pub fn compact(&self, pending: impl FnOnce() -> (Vec<(Bytes, u64)>, Option<u64>)) -> Result<(), JournalError> {
        let old: Vec<PathBuf> = self
            .closed
            .lock()
            .expect("no panic while locked")
            .iter()
            .map(|segment| segment.path.clone())
            .collect();
        let mut bytes = Vec::new();
        let mut last_seq = 0;
        let (keys, wipe) = pending();
        if let Some(seq) = wipe {
            record::encode(seq, b"", &RecordedEffect::Wipe, &mut bytes);
            last_seq = seq;
        }
        for (key, seq) in keys {
            record::encode(seq, &key, &RecordedEffect::Unknown, &mut bytes);
            last_seq = last_seq.max(seq);
        }
        let path = self.dir.join(format!("compact-{last_seq:016x}.log"));
        let part = path.with_extension("part");
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&part)
            .map_err(JournalError::io("create", &part))?;
        if let Err(error) = file.write_all(&bytes) {
            let _ = fs::remove_file(&part);
            return Err(JournalError::io("write", &part)(error));
        }
        fs::rename(&part, &path).map_err(JournalError::io("rename", &part))?;
        let mut closed = self.closed.lock().expect("no panic while locked");
        closed.retain(|segment| {
            let gone = old.contains(&segment.path) && segment.path != path;
            if gone {
                let _ = fs::remove_file(&segment.path);
                self.bytes.fetch_sub(segment.len, Relaxed);
            }
            !gone
        });
        closed.retain(|segment| segment.path != path);
        self.bytes.fetch_add(bytes.len() as u64, Relaxed);
        closed.push(Closed {
            path,
            last_seq,
            len: bytes.len() as u64,
        });
        Ok(())
    }
}
