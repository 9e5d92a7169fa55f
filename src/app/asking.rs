//! What is asked of the servers again and again, as long as the proxy runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::sleep;

use crate::net::Endpoint;
use crate::proxy::{Proxy, Shared};
use crate::sink::{RedisStore, StoreErrorKind};
use crate::tee::delivery::Stores;
use crate::tee::{Rows, SinkName, Tee};

/// How often.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// Whether the server refuses those who have not authenticated; `None` where it does not say.
pub(super) async fn asks_password(endpoint: &Endpoint) -> Option<bool> {
    let mut nobody = endpoint.clone();
    (nobody.username, nobody.password) = (None, None);
    match RedisStore::new(nobody).ping().await {
        Ok(()) => Some(false),
        Err(error) => (error.kind() == StoreErrorKind::Auth).then_some(true),
    }
}

/// Looks again whether the source lets strangers in, each time users have been changed.
pub(super) async fn keep_asking_for_password(shared: Arc<Shared>, source: Endpoint) {
    let mut seen = shared.rights.changes();
    loop {
        sleep(ASK_EVERY).await;
        let changes = shared.rights.changes();
        if changes != seen
            && let Some(asks) = asks_password(&source).await
        {
            seen = changes;
            shared.rights.set_asks(asks, changes);
        }
    }
}

/// Keeps asking whether the stores are there, so that an idle proxy knows too. Of an authority that answers clients it is known.
pub(super) async fn ask_stores(
    proxy: Arc<Proxy>,
    stores: Stores,
    tee: Arc<Tee>,
    rows: Option<Arc<Rows>>,
    reachable: Arc<AtomicBool>,
) {
    let mut last = None;
    loop {
        let authority = stores.authority();
        let heard: u64 = proxy.stats().map(|stats| stats.heard(authority)).sum();
        let answers_clients = last
            .replace((authority, heard))
            .is_some_and(|(of, before)| of == authority && before != heard);
        let answers = answers_clients || stores.of(authority).ping().await.is_ok();
        reachable.store(answers, Relaxed);
        for sink in tee.sinks() {
            if !sink.is_enabled() || !sink.is_empty() {
                continue;
            }
            let asked = match (sink.name, &rows) {
                (SinkName::Redis, _) => stores.other_store().ping().await.map_err(|error| error.to_string()),
                (SinkName::Database, Some(rows)) => rows.ping().await.map_err(|error| error.to_string()),
                (SinkName::Database, None) => Ok(()),
            };
            if let Err(error) = &asked {
                *sink.last_error.lock().expect("no panic while locked") = Some(error.clone());
            }
            sink.connected.store(asked.is_ok(), Relaxed);
        }
        sleep(ASK_EVERY).await;
    }
}
