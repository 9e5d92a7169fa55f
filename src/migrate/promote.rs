//! Leaves a lost source by itself (`cutover.on_source_loss = promote`): as an operator would with `cutover --force`, but
//! soon enough that nobody who waits is given up on.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Controller;
use crate::sink::StoreErrorKind;
use crate::status::{Authority, OperationKind, OperationOptions, Phase};

const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A source that has refused connections for so long is lost: longer than a restart or a failover behind one address takes …
const GONE_FOR: Duration = Duration::from_millis(1500);
/// … and one that takes them and is silent, which a slow script can also cause. A command that has waited for so long still
/// gets its answer in time: Django's client gives up at 5 s.
const SILENT_FOR: Duration = Duration::from_millis(2500);

impl Controller {
    /// Watches the source for ever, and switches to the target when it is lost. Only where every session is known to be
    /// there.
    pub async fn promote_on_loss(self: Arc<Self>) {
        let mut away: Option<Instant> = None;
        loop {
            sleep(LOOK_EVERY).await;
            let asked = Instant::now();
            let ready = self.state().phase == Phase::Synced && self.parts.stores.authority() == Authority::Source;
            let absence = if ready {
                self.absence(Authority::Source).await
            } else {
                None
            };
            let Some(absence) = absence else {
                away = None;
                continue;
            };
            let limit = if absence == StoreErrorKind::Timeout {
                SILENT_FOR
            } else {
                GONE_FOR
            };
            let since = *away.get_or_insert(asked);
            if since.elapsed() < limit || self.parts.stores.target.ping().await.is_err() {
                continue;
            }
            tracing::error!("the source is lost: the target takes its place (cutover.on_source_loss = promote)");
            let options = OperationOptions {
                force: true,
                ..OperationOptions::default()
            };
            if let Err(error) = self.launch(OperationKind::Cutover, options) {
                tracing::warn!(%error, "the target cannot take the source's place yet; trying again");
            }
            away = None;
        }
    }
}
