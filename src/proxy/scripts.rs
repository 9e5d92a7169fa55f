//! Scripts that clients have loaded: a server that takes over must know them too, or EVALSHA fails there.

use std::sync::Mutex;

use bytes::Bytes;
use rustc_hash::FxHashSet;

/// Scripts remembered, and bytes of them. Past it a client gets NOSCRIPT after a cutover, and loads its script again.
const MAX_SCRIPTS: usize = 1000;
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// The `SCRIPT LOAD` commands seen, each once.
#[derive(Debug, Default)]
pub struct Scripts(Mutex<(FxHashSet<Bytes>, usize)>);

impl Scripts {
    pub(super) fn note(&self, frame: &[u8]) {
        let mut known = self.0.lock().expect("no panic while locked");
        let (scripts, bytes) = &mut *known;
        if scripts.len() < MAX_SCRIPTS
            && *bytes + frame.len() <= MAX_BYTES
            && scripts.insert(Bytes::copy_from_slice(frame))
        {
            *bytes += frame.len();
        }
    }

    /// The commands that load them.
    pub(super) fn commands(&self) -> Vec<Bytes> {
        self.0
            .lock()
            .expect("no panic while locked")
            .0
            .iter()
            .cloned()
            .collect()
    }
}
