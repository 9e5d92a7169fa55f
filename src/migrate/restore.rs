//! Puts every session back that the authority lacks and another store has: the whole of it, where `tee::restore` does it
//! for those that are asked for.

use bytes::Bytes;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{Controller, End};
use crate::status::Restored;
use crate::tee::restore::BATCH;

impl Controller {
    pub(super) async fn run_restore(&self, stop: &CancellationToken) -> End {
        let restored = self
            .restore_all(|done| {
                self.progress(done, None, "putting sessions back");
                !stop.is_cancelled()
            })
            .await;
        let outcome = match restored {
            Ok(outcome) => outcome,
            Err(error) => return End::Failed(error, serde_json::Value::Null),
        };
        let result = json!(outcome);
        if stop.is_cancelled() {
            End::Stopped(result)
        } else {
            End::Done(result)
        }
    }

    /// From the other Redis, whose values are Django's own, then from the rows. `goes_on` is told how many were looked at.
    ///
    /// # Errors
    /// The authority cannot be reached, or no store that could have them.
    pub(super) async fn restore_all(&self, goes_on: impl Fn(u64) -> bool) -> Result<Restored, String> {
        let parts = &self.parts;
        let restore = &parts.restore;
        // What is deleted from here on is remembered until the last is back.
        let _remembering = restore.remember();
        let mut total = Restored::default();
        let (mut looked_at, mut reached, mut errors) = (0, false, Vec::new());
        if parts.tee.redis.is_enabled() {
            let mut scan = self.scan(parts.stores.other_store());
            loop {
                match scan.next().await {
                    Ok(Some(keys)) => {
                        let mut keys: Vec<Bytes> = keys.iter().map(|key| Bytes::copy_from_slice(key)).collect();
                        keys.sort_unstable();
                        keys.dedup();
                        looked_at += keys.len() as u64;
                        for batch in keys.chunks(BATCH) {
                            total += restore.put_back(batch).await?;
                        }
                        if !goes_on(looked_at) {
                            return Ok(total);
                        }
                    }
                    Ok(None) => {
                        reached = true;
                        break;
                    }
                    Err(error) => {
                        errors.push(error.to_string());
                        break;
                    }
                }
            }
        }
        if restore.has_rows() {
            let (found, ended) = restore.put_rows_back(|done| goes_on(looked_at + done)).await?;
            total += found;
            match ended {
                Ok(()) => reached = true,
                Err(error) => errors.push(error),
            }
        }
        if !reached {
            return Err(format!(
                "no store could be read from beginning to end: {}",
                errors.join("; ")
            ));
        }
        Ok(total)
    }
}
