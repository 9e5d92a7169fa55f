//! Session writes on their way through a worker: to the journal, to the tee, and what their replies wait for.

use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::time::sleep;

use super::{Worker, now_ms};
use crate::journal::RecordedEffect;
use crate::proxy::rights::Change;
use crate::proxy::upstream::SessionWrite;
use crate::resp::{Args, RequestScanner};
use crate::session::Effect;
use crate::tee::Ack;

/// A reply within this tells when its command was executed, well within the two seconds that the stores may differ about
/// the end of a session.
const PROMPT: Duration = Duration::from_millis(500);
/// A write whose reply will never come (CLIENT REPLY OFF) is read again after this.
const SETTLE_LATER: Duration = Duration::from_millis(100);

impl Worker {
    /// Registers what is about to be sent, and puts it on its way to the journal.
    pub(in crate::proxy) fn begin(&self, upstream: u64, write: &SessionWrite) {
        let tee = &self.shared.tee;
        let mut journal = self.journal.borrow_mut();
        match write {
            SessionWrite::Keys(planned) => {
                for (key, hope) in planned.hopes(now_ms()) {
                    let seq = tee.begin(upstream, key);
                    if hope == Effect::Delete {
                        self.note_delete(key);
                    }
                    if self.shared.journaled {
                        journal.append(seq, key, &RecordedEffect::from(&hope));
                    }
                }
            }
            SessionWrite::Wipe => {
                let seq = tee.begin_wipe();
                if self.shared.journaled {
                    journal.append(seq, b"", &RecordedEffect::Wipe);
                }
            }
        }
    }

    fn note_delete(&self, key: &Bytes) {
        if let Some(restore) = &self.shared.restore {
            restore.note_delete(key);
        }
        self.shared.names.note_delete(key);
    }

    #[inline]
    pub(in crate::proxy) fn flush_journal(&self) {
        self.journal.borrow_mut().flush();
    }

    /// The reply is there: what changed goes to the sinks. `sent` is when the command was queued: where that was long ago,
    /// nobody here knows from when on a time to live was counted.
    pub(in crate::proxy) fn settle(&self, write: &SessionWrite, reply: &[u8], sent: Instant) {
        let late = sent.elapsed() > PROMPT;
        match write {
            SessionWrite::Keys(planned) => {
                for (key, effect) in planned.settle(reply, now_ms()) {
                    let effect = match effect {
                        Some(Effect::Put { .. } | Effect::Expire(_)) if late => Some(Effect::Unknown),
                        effect => effect,
                    };
                    self.shared.tee.settle(key, effect);
                }
            }
            SessionWrite::Wipe => self.shared.tee.settle_wipe(),
        }
    }

    /// What the reply to a settled write has to wait for.
    pub(in crate::proxy) fn acks(&self, write: &SessionWrite) -> Vec<Ack> {
        let (SessionWrite::Keys(planned), false) = (write, self.shared.acks.is_empty()) else {
            return Vec::new();
        };
        let sinks = self.shared.acks.iter().map(|name| self.shared.tee.sink(*name));
        sinks
            .flat_map(|sink| planned.keys().filter_map(|key| sink.ack(key)))
            .collect()
    }

    /// The reply will never come.
    pub(in crate::proxy) fn abandon(&self, write: &SessionWrite) {
        match write {
            SessionWrite::Keys(planned) => planned.keys().for_each(|key| self.shared.tee.abandon(key)),
            SessionWrite::Wipe => self.shared.tee.settle_wipe(),
        }
    }

    /// For a command that gets no reply.
    pub(in crate::proxy) fn settle_later(self: &Rc<Self>, write: SessionWrite) {
        let worker = self.clone();
        tokio::task::spawn_local(async move {
            sleep(SETTLE_LATER).await;
            worker.abandon(&write);
        });
    }

    /// Users are changed on a connection whose replies tell nothing: now, or a little later.
    pub(in crate::proxy) fn note_unanswered_change_of_rights(self: &Rc<Self>, change: Change) {
        if change == Change::Nobodys {
            return;
        }
        self.shared.rights.note(change);
        let worker = self.clone();
        tokio::task::spawn_local(async move {
            sleep(SETTLE_LATER).await;
            worker.shared.rights.note(change);
        });
    }

    /// The session keys that a command names.
    pub(in crate::proxy) fn sessions_in(&self, frame: &[u8]) -> Vec<Bytes> {
        let patterns = &self.shared.tee.patterns;
        if !patterns.may_be_in(frame) || !matches!(RequestScanner::default().scan(frame), Ok(Some(_))) {
            return Vec::new();
        }
        Args::new(frame)
            .skip(1)
            .filter(|arg| patterns.session_key(arg).is_some())
            .map(Bytes::copy_from_slice)
            .collect()
    }
}
