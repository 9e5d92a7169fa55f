//! FLUSHDB, FLUSHALL and SWAPDB, where they are not simply passed on.

use std::sync::Arc;

use super::super::downstream::Downstream;
use super::super::{OnFlush, Shared};
use super::Dispatch;
use super::state::db_number;
use crate::command::CommandId;
use crate::resp::Args;
use crate::tee::Shield;
use crate::tee::shield::Flush;

const REFUSED: &[u8] = b"-ERR sessionferry: refused, it would delete every session (tee.on_flush = refuse)\r\n";
const NOT_SPARED: &[u8] = b"-ERR sessionferry: refused, it would delete every session and cannot spare them \
    (tee.on_flush = shield): send it outside of a transaction, as the user of source.url\r\n";

impl Downstream {
    /// Answers what becomes of a command that empties databases; `None` where it is passed on.
    pub(super) fn decide_on_flush(&self, command: CommandId, frame: &[u8]) -> Option<Dispatch> {
        let client = &self.client;
        let shared = client.worker.shared.clone();
        let (shield, flush) = match &shared.on_flush {
            OnFlush::Mirror => return None,
            OnFlush::Refuse => return Some(self.answer(REFUSED)),
            OnFlush::Shield(shield) => {
                let identity = client.identity.borrow();
                let flush = what_is_flushed(&shared, identity.db, command.entry().name, frame)?;
                let outside = client.pin.borrow().is_none();
                match flush {
                    Some(flush) if outside && shared.speaks_as_proxy(&identity) => (shield.clone(), flush),
                    _ => {
                        drop(identity);
                        return Some(self.answer(NOT_SPARED));
                    }
                }
            }
        };
        if client.in_flight.get() > 0 {
            return Some(Dispatch::AwaitReplies);
        }
        self.flush_but_sessions(shield, flush);
        Some(Dispatch::Done)
    }

    fn answer(&self, reply: &[u8]) -> Dispatch {
        if self.client.in_flight.get() > 0 {
            return Dispatch::AwaitReplies;
        }
        self.client.reply(reply);
        Dispatch::Done
    }

    /// Nothing else is taken from the client until it has its answer.
    fn flush_but_sessions(&self, shield: Arc<Shield>, flush: Flush) {
        let client = self.client.clone();
        client.clearing.set(true);
        client.in_flight.set(client.in_flight.get() + 1);
        // A cutover waits for it.
        client.worker.entered();
        tokio::task::spawn_local(async move {
            match shield.flush(flush).await {
                Ok(()) => client.reply(b"+OK\r\n"),
                Err(error) => {
                    let text = format!("-ERR sessionferry: not all is deleted: {error}\r\n");
                    client.reply(text.as_bytes());
                }
            }
            client.worker.left();
            client.clearing.set(false);
            client.answered();
            client.worker.flush_clients();
        });
    }
}

/// What of the sessions' database a command empties: `None` where nothing, `Some(None)` where that cannot be done without
/// the sessions.
fn what_is_flushed(shared: &Shared, db: u32, name: &str, frame: &[u8]) -> Option<Option<Flush>> {
    let args: Vec<&[u8]> = Args::new(frame).skip(1).collect();
    let plain = match &args[..] {
        [] => true,
        [how] => how.eq_ignore_ascii_case(b"async") || how.eq_ignore_ascii_case(b"sync"),
        _ => false,
    };
    match name {
        "flushdb" if db != shared.sessions_db => None,
        "flushdb" if plain => Some(Some(Flush::Sessions)),
        "flushall" if plain => Some(Some(Flush::Everything)),
        // Redis says what is wrong with it, and deletes nothing.
        "flushdb" | "flushall" => None,
        "swapdb" => {
            let touches = args
                .iter()
                .any(|arg| db_number(arg).is_none_or(|number| number == shared.sessions_db));
            touches.then_some(None)
        }
        _ => Some(None),
    }
}
