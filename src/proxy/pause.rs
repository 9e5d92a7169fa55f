//! CLIENT PAUSE: the server holds back commands by connection, some or all. While it does, no two clients may share one,
//! or a command that is held would hold the other client's too.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use crate::clock::now_ms;

/// Until when the server may hold commands, ms since the Unix epoch; 0: it does not.
#[derive(Debug, Default)]
pub struct Pause(AtomicI64);

impl Pause {
    /// A client asked for a pause of so many milliseconds. Whether the server agrees makes no difference: it costs only
    /// a connection for each client meanwhile.
    pub(super) fn begin(&self, milliseconds: &[u8]) {
        if let Some(milliseconds) = crate::resp::parse_integer(milliseconds).filter(|&ms| ms > 0) {
            self.0.fetch_max(now_ms().saturating_add(milliseconds), Relaxed);
        }
    }

    pub(super) fn end(&self) {
        self.0.store(0, Relaxed);
    }

    #[inline]
    pub(super) fn is_on(&self) -> bool {
        let until = self.0.load(Relaxed);
        if until == 0 {
            return false;
        }
        if now_ms() > until {
            // Another pause that begins right now only costs its clients a connection less.
            let _ = self.0.compare_exchange(until, 0, Relaxed, Relaxed);
            return false;
        }
        true
    }
}
