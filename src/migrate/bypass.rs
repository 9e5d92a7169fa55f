//! Sees writes to sessions that do not come through the proxy: a forgotten worker, a shell, an expiry, an eviction.
//!
//! The authority tells of every change under the session prefixes (`CLIENT TRACKING … BCAST`, Redis 6 and later), the
//! proxy's own clients' included; those are known by the tee. Every other key is marked for a look at the authority.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::time::{sleep, timeout};

use crate::clock::now_ms;
use crate::journal::RecordedEffect;
use crate::net::Backoff;
use crate::proxy::identity::Protocol;
use crate::resp::{Args, RequestScanner};
use crate::session::Deadline;
use crate::sink::Stored;

use super::Controller;
use super::line::{Line, LineError};

/// How often the watch looks whether the authority has changed under it.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A silent connection is asked for a sign of life after this.
const PING_EVERY: Duration = Duration::from_secs(10);
/// After a refusal (an old server, a missing permission), the next try.
const REFUSED_WAIT: Duration = Duration::from_secs(60);
/// A copy that ends within this shows that the key expired rather than was deleted, ms.
const EXPIRY_TOLERANCE_MS: i64 = 2000;

/// How the server tells of changed keys; their list follows.
const INVALIDATE: &[u8] = b">2\r\n$10\r\ninvalidate\r\n";

/// Why the watch ended.
enum End {
    Refused(String),
    Lost(String),
    AuthorityChanged,
}

impl From<LineError> for End {
    fn from(error: LineError) -> End {
        match error {
            LineError::Refused(error) => End::Refused(error),
            LineError::Lost(error) => End::Lost(error),
        }
    }
}

impl Controller {
    /// Watches the authority, whichever it is, for ever.
    pub async fn watch_bypassing_writes(self: Arc<Self>) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        loop {
            let wait = match self.watch_once(&mut backoff).await {
                End::AuthorityChanged => continue,
                End::Lost(error) => {
                    if self.parts.tee.set_watched(false) {
                        tracing::warn!(%error, "writes that bypass the proxy are not seen until the authority is back");
                    }
                    backoff.wait()
                }
                End::Refused(error) => {
                    self.parts.tee.set_watched(false);
                    tracing::warn!(%error, "the authority does not tell of writes that bypass the proxy; use verify to find them");
                    REFUSED_WAIT
                }
            };
            sleep(wait).await;
        }
    }

    async fn watch_once(&self, backoff: &mut Backoff) -> End {
        let authority = self.parts.stores.authority();
        let limit = self.parts.stores.authority_store().endpoint().connect_timeout;
        let mut watch = match timeout(limit, self.open_watch()).await {
            Ok(Ok(watch)) => watch,
            Ok(Err(end)) => return end,
            Err(_) => return End::Lost(format!("no answer within {limit:?}")),
        };
        backoff.reset();
        self.parts.tee.set_watched(true);
        let mut heard = Instant::now();
        let mut pinged = false;
        loop {
            if self.parts.stores.authority() != authority {
                return End::AuthorityChanged;
            }
            match timeout(LOOK_EVERY, watch.next()).await {
                Ok(Ok(frame)) => {
                    heard = Instant::now();
                    pinged = false;
                    self.handle_frame(&frame).await;
                }
                Ok(Err(error)) => return error.into(),
                Err(_) if heard.elapsed() > 2 * PING_EVERY => return End::Lost("the authority is silent".into()),
                Err(_) if heard.elapsed() > PING_EVERY && !pinged => {
                    pinged = true;
                    if let Err(error) = watch.send(b"*1\r\n$4\r\nPING\r\n").await {
                        return error.into();
                    }
                }
                Err(_) => {}
            }
        }
    }

    async fn open_watch(&self) -> Result<Line, End> {
        let mut line = Line::open(self.parts.stores.authority_store().endpoint(), Protocol::Resp3).await?;
        let mut words: Vec<&[u8]> = vec![b"CLIENT", b"TRACKING", b"ON", b"BCAST"];
        // Without a prefix the server tells of every key.
        let everything = self.parts.tee.patterns.prefixes().any(str::is_empty);
        for prefix in self.parts.tee.patterns.prefixes().filter(|_| !everything) {
            words.extend([b"PREFIX".as_slice(), prefix.as_bytes()]);
        }
        line.ask(&words).await?;
        Ok(line)
    }

    async fn handle_frame(&self, frame: &Bytes) {
        let Some(list) = frame.strip_prefix(INVALIDATE) else {
            return;
        };
        let tee = &self.parts.tee;
        let Some(keys) = keys(list) else {
            // Everything is gone (FLUSHALL and its like), or nobody knows what.
            if tee.pending_wipe().is_none() {
                tee.begin_wipe();
                tee.settle_wipe();
            }
            return;
        };
        let strange: Vec<Bytes> = keys
            .filter(|key| tee.patterns.session_key(key).is_some() && !tee.told(key))
            .map(Bytes::copy_from_slice)
            .collect();
        if strange.is_empty() {
            return;
        }
        // A copy that ends now tells an expiry from a deletion: both arrive, the one is nobody's doing.
        let copies = self.parts.stores.other_store().read(&strange).await.unwrap_or_default();
        let now = now_ms();
        for (i, key) in strange.iter().enumerate() {
            let expired = matches!(copies.get(i), Some(Stored::Value { deadline: Deadline::At(at), .. })
                if *at <= now + EXPIRY_TOLERANCE_MS);
            let nothing_left = matches!(copies.get(i), Some(Stored::Absent)) && !self.authority_has(key).await;
            if !expired && !nothing_left {
                tee.note_bypass();
            }
            let mut journal = self.journal_end();
            tee.mark_recorded(key, |seq| {
                journal.append(seq, key, &RecordedEffect::Unknown);
                journal.flush();
            });
        }
    }

    async fn authority_has(&self, key: &Bytes) -> bool {
        let exist = self
            .parts
            .stores
            .authority_store()
            .exists(std::slice::from_ref(key))
            .await;
        exist.is_ok_and(|exist| exist.first() == Some(&true))
    }
}

/// The keys in the list that follows [`INVALIDATE`], which looks like a command; `None` where there is none.
fn keys(list: &[u8]) -> Option<Args<'_>> {
    let listed = list.starts_with(b"*") && matches!(RequestScanner::default().scan(list), Ok(Some(_)));
    listed.then(|| Args::new(list))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_from_a_wipe() {
        let told = |frame: &'static [u8]| {
            let list = frame.strip_prefix(INVALIDATE).expect("an invalidation");
            keys(list).map(|keys| keys.map(<[u8]>::to_vec).collect::<Vec<_>>())
        };
        assert_eq!(
            told(b">2\r\n$10\r\ninvalidate\r\n*2\r\n$1\r\na\r\n$2\r\nbc\r\n"),
            Some(vec![b"a".to_vec(), b"bc".to_vec()])
        );
        for unlisted in [
            &b">2\r\n$10\r\ninvalidate\r\n_\r\n"[..],
            b">2\r\n$10\r\ninvalidate\r\n*1\r\n$-1\r\n",
            b">2\r\n$10\r\ninvalidate\r\n*2\r\n$1\r\na\r\n:1\r\n",
        ] {
            assert_eq!(told(unlisted), None, "{}", unlisted.escape_ascii());
        }
    }
}
