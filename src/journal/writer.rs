//! Appends one worker's records to its current segment.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::time::{Duration, Instant};

use super::record::{self, RecordedEffect};
use super::{Closed, Journal, SEGMENT_LEN};

/// After a failed write, the next try is not before this.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// One worker's end of the journal.
#[derive(Debug)]
pub struct Writer {
    journal: Arc<Journal>,
    worker: usize,
    /// Records of this wake-up, not yet written.
    buffer: Vec<u8>,
    buffered: u64,
    last_seq: u64,
    segment: Option<Segment>,
    failed_at: Option<Instant>,
}

#[derive(Debug)]
struct Segment {
    file: File,
    path: PathBuf,
    len: u64,
}

impl Writer {
    pub fn new(journal: Arc<Journal>, worker: usize) -> Self {
        Writer {
            journal,
            worker,
            buffer: Vec::new(),
            buffered: 0,
            last_seq: 0,
            segment: None,
            failed_at: None,
        }
    }

    /// Adds a record; it is on its way to the disk only after [`Writer::flush`].
    pub fn append(&mut self, seq: u64, key: &[u8], effect: &RecordedEffect) {
        record::encode(seq, key, effect, &mut self.buffer);
        self.last_seq = self.last_seq.max(seq);
        self.buffered += 1;
    }

    /// Writes what was appended, in one system call. A failure is counted and shown, not returned: the client is served,
    /// and the write lives in memory until it is delivered.
    #[inline]
    pub fn flush(&mut self) {
        if !self.buffer.is_empty() {
            self.write();
        }
    }

    fn write(&mut self) {
        let began = Instant::now();
        match self.try_write() {
            Ok(()) => {
                self.journal.appends.note(began.elapsed());
                if self.failed_at.take().is_some() {
                    self.journal.failing.store(false, Relaxed);
                }
            }
            Err(error) => {
                self.journal.unrecorded.fetch_add(self.buffered, Relaxed);
                self.failed(&error);
                self.journal.owes.store(true, Release);
            }
        }
        self.buffer.clear();
        self.buffered = 0;
    }

    fn try_write(&mut self) -> std::io::Result<()> {
        let failing = self.journal.failing.load(Relaxed);
        if self.failed_at.is_some_and(|at| failing && at.elapsed() < RETRY_AFTER) {
            return Err(std::io::Error::other("waiting to try again"));
        }
        if self.segment.as_ref().is_some_and(|segment| segment.len >= SEGMENT_LEN) {
            self.close();
        }
        let segment = match &mut self.segment {
            Some(segment) => segment,
            None => {
                // The sequence number makes the name unique: it never runs backwards, restarts included.
                let path = self
                    .journal
                    .dir
                    .join(format!("segment-{:016x}-{}.log", self.last_seq, self.worker));
                let file = OpenOptions::new()
                    .append(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&path)?;
                self.segment.insert(Segment { file, path, len: 0 })
            }
        };
        if let Err(error) = segment.file.write_all(&self.buffer) {
            // Recovery stops at a torn record: nothing may follow it in this segment.
            let _ = segment.file.set_len(segment.len);
            self.close();
            return Err(error);
        }
        segment.len += self.buffer.len() as u64;
        self.journal.bytes.fetch_add(self.buffer.len() as u64, Relaxed);
        Ok(())
    }

    fn failed(&mut self, error: &std::io::Error) {
        if self.failed_at.is_none() || !self.journal.failing.load(Relaxed) {
            tracing::error!(%error, "pending session writes cannot be recorded in data_dir; clients are served all the same");
            *self.journal.last_error.lock().expect("no panic while locked") = Some(error.to_string());
        }
        self.journal.failing.store(true, Relaxed);
        if self.failed_at.is_none_or(|at| at.elapsed() >= RETRY_AFTER) {
            self.failed_at = Some(Instant::now());
        }
    }

    /// Writes what was appended, and closes the segment: nothing follows.
    pub fn finish(&mut self) {
        self.flush();
        self.close();
    }

    fn close(&mut self) {
        if let Some(segment) = self.segment.take() {
            let closed = Closed {
                path: segment.path,
                last_seq: self.last_seq,
                len: segment.len,
            };
            self.journal.closed.lock().expect("no panic while locked").push(closed);
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.finish();
    }
}
