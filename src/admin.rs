//! The admin address: health, status, metrics, and operations over HTTP.
//!
//! It runs beside the hot path and never on it. It knows the move through [`Control`] alone: nothing here touches a
//! store. Whoever reaches this address can switch a site over, so requests that a browser was tricked into, or that
//! carry no token where one is set, end in `guard`.

mod events;
mod guard;
pub mod metrics;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Secret;
use crate::migrate::Control;
use crate::status::{OperationKind, OperationOptions};

/// An operation's options are some 50 bytes.
pub const BODY_BYTES_MAX: usize = 16 * 1024;
/// A request's head: a token and what a browser adds.
pub const HEAD_BYTES_MAX: usize = 32 * 1024;
/// From one request's end (or the connect) to the end of the next one's head: also ends idle connections.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// From the head's end to the body's.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// A few scrapers, a few pages, a few shells. More wait in the listener's backlog.
pub const CONNECTIONS_MAX: usize = 256;
/// Streams of events stay open, so they may take only a part of the connections.
pub const STREAMS_MAX: usize = 64;
/// How long requests may still take once the process drains.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// Wait after a failed accept (out of file descriptors), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What every handler sees.
#[derive(Clone)]
struct App {
    control: Arc<dyn Control>,
    guard: Arc<guard::Guard>,
    streams: Arc<Semaphore>,
    shutdown: CancellationToken,
}

/// Serves the admin address until `shutdown`, then lets requests end for [`DRAIN_TIMEOUT`].
pub async fn serve(
    listener: TcpListener,
    control: Arc<dyn Control>,
    token: Option<Secret>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let guard = guard::Guard::new(token, listener.local_addr()?);
    let app = App {
        control,
        guard: Arc::new(guard),
        streams: Arc::new(Semaphore::new(STREAMS_MAX)),
        shutdown: shutdown.clone(),
    };
    let router = router(app);
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let tasks = TaskTracker::new();
    loop {
        // The permit comes first, so that a connection is only accepted where there is room for it.
        let accepted = async {
            let permit = Arc::clone(&connections)
                .acquire_owned()
                .await
                .map_err(io::Error::other)?;
            listener.accept().await.map(|(stream, _)| (stream, permit))
        };
        let (stream, permit) = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = accepted => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "the admin address cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone()));
        let shutdown = shutdown.clone();
        tasks.spawn(async move {
            let _permit = permit;
            let mut connection = std::pin::pin!(connection);
            // A client that leaves early, or is too slow, is its own affair.
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = shutdown.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    match tokio::time::timeout(DRAIN_TIMEOUT, connection).await {
                        Ok(ended) => ended,
                        Err(_) => Ok(()),
                    }
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "an admin connection ended early");
            }
        });
    }
    tasks.close();
    tasks.wait().await;
    Ok(())
}

fn router(app: App) -> Router {
    let mut router = Router::new()
        .route(
            "/",
            get(async || page("text/html; charset=utf-8", include_str!("admin/page/index.html"))),
        )
        .route(
            "/page.css",
            get(async || page("text/css", include_str!("admin/page/page.css"))),
        )
        .route(
            "/page.js",
            get(async || page("text/javascript", include_str!("admin/page/page.js"))),
        )
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(prometheus))
        .route("/api/v1/status", get(status))
        .route("/api/v1/clients", get(clients))
        .route("/api/v1/events", get(events::stream))
        .route("/api/v1/operations", get(operations))
        .route("/api/v1/operations/{id}", get(operation).delete(stop));
    for kind in OperationKind::ALL {
        let start = move |State(app): State<App>, request: Request| start(app, kind, request);
        router = router.route(&format!("/api/v1/{}", kind.name()), post(start));
    }
    router
        .fallback(async || failure(StatusCode::NOT_FOUND, "there is nothing at this path"))
        .method_not_allowed_fallback(async || failure(StatusCode::METHOD_NOT_ALLOWED, "not with this method"))
        .layer(middleware::from_fn_with_state(app.clone(), guarded))
        .with_state(app)
}

/// Asks the guard, and adds the headers that keep answers out of caches and frames.
async fn guarded(State(app): State<App>, request: Request, next: middleware::Next) -> Response {
    const HEADERS: [(HeaderName, &str); 3] = [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // The page has its own script and style, and its own address to ask.
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    ];
    let mut response = match app.guard.check(&request) {
        Ok(()) => next.run(request).await,
        Err(refusal) => {
            let mut response = failure(refusal.status, refusal.reason);
            if refusal.status == StatusCode::UNAUTHORIZED {
                response
                    .headers_mut()
                    .insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
            }
            response
        }
    };
    for (name, value) in HEADERS {
        response
            .headers_mut()
            .insert(name, header::HeaderValue::from_static(value));
    }
    response
}

fn failure(status: StatusCode, reason: impl Into<String>) -> Response {
    (status, Json(json!({ "error": reason.into() }))).into_response()
}

/// A part of the page; it holds no data.
fn page(content_type: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, content_type)], text).into_response()
}

async fn livez() -> &'static str {
    "ok\n"
}

async fn readyz(State(app): State<App>) -> Response {
    let reasons = app.control.unready();
    let status = if reasons.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(json!({ "ready": reasons.is_empty(), "reasons": reasons }))).into_response()
}

async fn prometheus(State(app): State<App>) -> Response {
    match metrics::render(&app.control.status(), &app.control.metrics()) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => failure(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the metrics cannot be written: {error}"),
        ),
    }
}

async fn status(State(app): State<App>) -> Response {
    Json(app.control.status()).into_response()
}

async fn clients(State(app): State<App>) -> Response {
    Json(app.control.clients().await).into_response()
}

async fn start(app: App, kind: OperationKind, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let options = match options(&head.headers, body).await {
        Ok(options) => options,
        Err(refusal) => return failure(refusal.status, refusal.reason),
    };
    match app.control.start(kind, options) {
        Ok(id) => {
            tracing::info!(operation = id, kind = kind.name(), "started over the admin address");
            (StatusCode::ACCEPTED, Json(json!({ "operation": id }))).into_response()
        }
        Err(refused) => failure(StatusCode::CONFLICT, refused.0),
    }
}

/// The options in a body, which may be empty.
async fn options(headers: &header::HeaderMap, body: Body) -> Result<OperationOptions, guard::Refusal> {
    let refuse = |status, reason: String| Err(guard::Refusal { status, reason });
    let bytes = match tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, BODY_BYTES_MAX)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) => {
            let reason = format!("the body is cut short, or longer than {BODY_BYTES_MAX} bytes");
            return refuse(StatusCode::PAYLOAD_TOO_LARGE, reason);
        }
        Err(_) => return refuse(StatusCode::REQUEST_TIMEOUT, "the body took too long".into()),
    };
    if bytes.is_empty() {
        return Ok(OperationOptions::default());
    }
    // A page of another site can send text/plain without asking; for application/json the browser asks first.
    if !guard::is_json(headers) {
        let reason = "send the options with content-type: application/json";
        return refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, reason.into());
    }
    match serde_json::from_slice(&bytes) {
        Ok(options) => Ok(options),
        Err(error) => refuse(StatusCode::BAD_REQUEST, format!("the options cannot be read: {error}")),
    }
}

fn no_operation() -> Response {
    failure(
        StatusCode::NOT_FOUND,
        "there is no such operation; GET /api/v1/status shows the one that runs",
    )
}

async fn operation(State(app): State<App>, Path(id): Path<String>) -> Response {
    match id.parse().ok().and_then(|id| app.control.operation(id)) {
        Some(operation) => Json(operation).into_response(),
        None => no_operation(),
    }
}

async fn operations(State(app): State<App>) -> Response {
    Json(json!({ "operations": app.control.operations() })).into_response()
}

/// Answers 202, as the end of what runs is seen at the operation itself.
async fn stop(State(app): State<App>, Path(id): Path<String>) -> Response {
    let Ok(id) = id.parse::<u64>() else {
        return no_operation();
    };
    if app.control.stop(id) {
        tracing::info!(operation = id, "stopped over the admin address");
        return (StatusCode::ACCEPTED, Json(json!({ "operation": id }))).into_response();
    }
    match app.control.operation(id) {
        Some(_) => failure(
            StatusCode::CONFLICT,
            "the operation does not run any more, or cannot be stopped now",
        ),
        None => no_operation(),
    }
}
