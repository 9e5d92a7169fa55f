//! Sees writes to sessions that do not come through the proxy: a forgotten worker, a shell, an expiry, an eviction.
//!
//! The authority tells of every change under the session prefixes (`CLIENT TRACKING … BCAST`, Redis 6 and later, else
//! keyspace notifications where they are on), the proxy's own clients' included; those are known by the tee. Every other
//! key is marked for a look at the authority.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::time::{sleep, timeout};

use crate::clock::now_ms;
use crate::journal::RecordedEffect;
use crate::net::Backoff;
use crate::proxy::identity::Protocol;
use crate::session::Deadline;
use crate::sink::Stored;
use crate::sink::redis::Tells;

use super::Controller;
use super::line::{Line, LineError};
use super::notice::{Notice, Notices};

/// How often the watch looks whether the authority has changed under it.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A silent connection is asked for a sign of life after this.
const PING_EVERY: Duration = Duration::from_secs(10);
/// After a refusal (an old server, a missing permission), the next try.
const REFUSED_WAIT: Duration = Duration::from_secs(60);
/// A copy that ends within this shows that the key expired rather than was deleted, ms.
const EXPIRY_TOLERANCE_MS: i64 = 2000;

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
    /// How the authority tells of writes that bypass the proxy: `tracking`, `notifications`, `off`.
    pub(super) fn watch(&self) -> &'static str {
        if self.parts.tee.is_watched() {
            *self.watch.lock().expect("no panic while locked")
        } else {
            "off"
        }
    }

    /// Watches the authority, whichever it is, for ever.
    pub async fn watch_bypassing_writes(self: Arc<Self>) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        loop {
            let wait = match self.watch_once(&mut backoff).await {
                End::AuthorityChanged => continue,
                End::Lost(error) => {
                    // Where no client is connected, this is the only connection that can tell of a restart.
                    self.parts.restore.doubt();
                    if self.parts.tee.set_watched(false) {
                        tracing::warn!(%error, "writes that bypass the proxy are not seen until the authority is back");
                    }
                    backoff.wait()
                }
                End::Refused(error) => {
                    self.parts.tee.end_watch();
                    tracing::warn!(%error, "the authority does not tell of writes that bypass the proxy; verify finds them. It would with CLIENT TRACKING (Redis 6 and later, permission +client|tracking), or with notify-keyspace-events set to KA");
                    REFUSED_WAIT
                }
            };
            sleep(wait).await;
        }
    }

    async fn watch_once(&self, backoff: &mut Backoff) -> End {
        let authority = self.parts.stores.authority();
        let limit = self.parts.stores.authority_store().endpoint().connect_timeout;
        self.parts.tee.begin_watch();
        let (mut line, mut notices) = match timeout(limit, self.open_watch()).await {
            Ok(Ok(watch)) => watch,
            Ok(Err(end)) => return end,
            Err(_) => return End::Lost(format!("no answer within {limit:?}")),
        };
        let own = &self.parts.stores.of(authority).endpoint().footprint;
        let _tracker = notices
            .prefixes(&self.parts.tee.patterns)
            .map(|count| own.tracker(count));
        backoff.reset();
        *self.watch.lock().expect("no panic while locked") = notices.name();
        if !self.parts.tee.set_watched(true) {
            // Nor was there this one meanwhile.
            self.parts.restore.doubt();
        }
        let mut heard = Instant::now();
        let mut pinged = false;
        loop {
            if self.parts.stores.authority() != authority {
                return End::AuthorityChanged;
            }
            match timeout(LOOK_EVERY, line.next()).await {
                Ok(Ok(frame)) => {
                    heard = Instant::now();
                    pinged = false;
                    self.handle(notices.read(&frame)).await;
                }
                Ok(Err(error)) => return error.into(),
                Err(_) if heard.elapsed() > 2 * PING_EVERY => return End::Lost("the authority is silent".into()),
                Err(_) if heard.elapsed() > PING_EVERY && !pinged => {
                    pinged = true;
                    if let Err(error) = line.send(b"*1\r\n$4\r\nPING\r\n").await {
                        return error.into();
                    }
                }
                Err(_) => {}
            }
        }
    }

    async fn open_watch(&self) -> Result<(Line, Notices), End> {
        let store = self.parts.stores.authority_store();
        let ask = async |protocol, notices: Notices| {
            let mut line = Line::open(store.endpoint(), protocol).await?;
            line.ask(&notices.command(&self.parts.tee.patterns)).await?;
            Ok((line, notices))
        };
        match ask(Protocol::Resp3, Notices::Tracking).await {
            Err(LineError::Refused(error)) => match store.facts(now_ms()).await {
                Ok(facts) if facts.tells == Tells::Notifications => {
                    let events = Notices::events(store.endpoint().db);
                    Ok(ask(Protocol::Resp2, events).await?)
                }
                _ => Err(End::Refused(error)),
            },
            outcome => Ok(outcome?),
        }
    }

    async fn handle(&self, notice: Notice) {
        let tee = &self.parts.tee;
        let keys = match notice {
            Notice::Nothing => return,
            Notice::Changed(keys) => keys,
            Notice::Everything => {
                if tee.pending_wipe().is_none() {
                    tee.begin_wipe();
                    tee.settle_wipe();
                }
                return;
            }
        };
        let strange: Vec<Bytes> = keys
            .into_iter()
            .filter(|key| tee.patterns.session_key(key).is_some() && !tee.told(key))
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
