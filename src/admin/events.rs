//! `GET /api/v1/events`: the status each second, and each change of phase as it happens.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use super::{App, failure};
use crate::status::Phase;

/// How often the phase is looked at: a cutover's phases are shorter than a second.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often the status is sent.
const SEND_EVERY: Duration = Duration::from_secs(1);

struct Stream {
    app: App,
    ticks: Interval,
    phase: Option<Phase>,
    sent: Option<Instant>,
    _permit: OwnedSemaphorePermit,
}

pub(super) async fn stream(State(app): State<App>) -> Response {
    let Ok(permit) = std::sync::Arc::clone(&app.streams).try_acquire_owned() else {
        return failure(
            StatusCode::SERVICE_UNAVAILABLE,
            "too many event streams are open; close one",
        );
    };
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let start = Stream {
        app,
        ticks,
        phase: None,
        sent: None,
        _permit: permit,
    };
    let events = stream::unfold(start, |mut stream| async {
        let event = stream.next().await?;
        Some((Ok::<Event, Infallible>(event), stream))
    });
    Sse::new(events).into_response()
}

impl Stream {
    /// The next event; `None` ends the stream, once the process drains.
    async fn next(&mut self) -> Option<Event> {
        loop {
            let shutdown = self.app.shutdown.clone();
            tokio::select! {
                () = shutdown.cancelled() => return None,
                _ = self.ticks.tick() => {}
            }
            let status = self.app.control.status();
            let before = self.phase.replace(status.phase);
            if let Some(before) = before.filter(|before| *before != status.phase) {
                // The status follows at once, with what the new phase brought.
                self.sent = None;
                let change = json!({ "from": before, "phase": status.phase, "authority": status.authority });
                return Some(Event::default().event("phase").data(change.to_string()));
            }
            if self.sent.is_none_or(|sent| sent.elapsed() >= SEND_EVERY) {
                self.sent = Some(Instant::now());
                let data = serde_json::to_string(&status).unwrap_or_else(|_| "{}".to_owned());
                return Some(Event::default().event("status").data(data));
            }
        }
    }
}
