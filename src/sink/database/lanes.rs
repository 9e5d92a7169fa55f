//! A few connections to one database, each used by one operation at a time.
//!
//! Not sqlx's pool, for two reasons seen in its code: while connecting it takes "connection refused" for "still starting" and ends
//! in a time-out that hides the reason, and it takes back a connection whose operation timed out, which may hang for as long as
//! TCP does. Here a connection whose operation did not end well is closed, and never seen again.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::error::{DatabaseError, DatabaseErrorKind};
use super::{Row, TableReport};

/// Connections to one database. Delivery, backfill and verify use one each; one is left for the operator's questions.
pub const CONNECTIONS_MAX: usize = 4;
/// For the TCP handshake, TLS, the login and the set-up.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For one operation, all its statements together, and for the wait for a free connection.
pub const OPERATION_TIMEOUT: Duration = Duration::from_secs(15);
/// An operation that met a lock, a deadlock or a full server is tried this often again before it fails.
pub const BUSY_RETRIES: u32 = 4;
/// Before the first retry; twice as long before each further one.
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// How to talk to one kind of database. `keys`, `upserts` and `deletes` are sorted and hold no key twice.
pub(in crate::sink) trait Dialect: Send + Sync + 'static {
    type Connection: Send;

    fn connect(&self) -> impl Future<Output = Result<Self::Connection, sqlx::Error>> + Send;

    /// What the server's error means.
    fn classify(error: &dyn sqlx::error::DatabaseError) -> DatabaseErrorKind;

    fn inspect(&self, on: &mut Self::Connection) -> impl Future<Output = Result<TableReport, sqlx::Error>> + Send;

    fn apply(
        &self,
        on: &mut Self::Connection,
        upserts: &[&Row],
        deletes: &[&str],
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    fn fetch(
        &self,
        on: &mut Self::Connection,
        keys: &[&str],
    ) -> impl Future<Output = Result<HashMap<String, Row>, sqlx::Error>> + Send;

    fn page(
        &self,
        on: &mut Self::Connection,
        after: &str,
        limit: u32,
        now_ms: i64,
    ) -> impl Future<Output = Result<Vec<String>, sqlx::Error>> + Send;

    fn count(&self, on: &mut Self::Connection, now_ms: i64) -> impl Future<Output = Result<i64, sqlx::Error>> + Send;

    fn sample(
        &self,
        on: &mut Self::Connection,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<Row>, sqlx::Error>> + Send;
}

pub(in crate::sink) struct Lanes<D: Dialect> {
    pub(in crate::sink) dialect: D,
    /// For errors: where the database is, without the password.
    name: String,
    free: Semaphore,
    idle: Mutex<Vec<D::Connection>>,
}

impl<D: Dialect> Lanes<D> {
    pub(super) fn new(dialect: D, name: String) -> Self {
        Lanes {
            dialect,
            name,
            free: Semaphore::new(CONNECTIONS_MAX),
            idle: Mutex::default(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Runs `action` on a connection, within `OPERATION_TIMEOUT` for each try. Cancelling closes the connection.
    pub(super) async fn run<T>(
        &self,
        operation: &'static str,
        action: impl AsyncFn(&D, &mut D::Connection) -> Result<T, sqlx::Error>,
    ) -> Result<T, DatabaseError> {
        let too_long = |_| DatabaseError::timeout(&self.name, operation);
        let free = timeout(OPERATION_TIMEOUT, self.free.acquire())
            .await
            .map_err(too_long)?;
        let _permit = free.map_err(|_| DatabaseError::timeout(&self.name, operation))?;
        let mut retries = 0;
        loop {
            let idle = self.idle().pop();
            let reused = idle.is_some();
            let mut connection = match idle {
                Some(connection) => connection,
                None => {
                    let connecting = timeout(CONNECT_TIMEOUT, self.dialect.connect()).await;
                    let connecting = connecting.map_err(|_| DatabaseError::timeout(&self.name, "connect"))?;
                    connecting.map_err(|error| self.error(&error, "connect"))?
                }
            };
            let outcome = timeout(OPERATION_TIMEOUT, action(&self.dialect, &mut connection))
                .await
                .map_err(too_long)?;
            let error = match outcome {
                Ok(value) => {
                    self.idle().push(connection);
                    return Ok(value);
                }
                Err(error) => self.error(&error, operation),
            };
            drop(connection);
            match error.kind() {
                // The server closed it while it lay idle, most likely the others too: it was restarted, or tired of waiting.
                DatabaseErrorKind::Refused if reused => self.idle().clear(),
                DatabaseErrorKind::Busy if retries < BUSY_RETRIES => {
                    // Whoever deadlocked with us tries again as well: not at the same moment.
                    sleep(BUSY_PAUSE * 2_u32.pow(retries) + BUSY_PAUSE.mul_f64(rand::random::<f64>())).await;
                    retries += 1;
                }
                _ => return Err(error),
            }
        }
    }

    fn error(&self, error: &sqlx::Error, operation: &'static str) -> DatabaseError {
        DatabaseError::from_sqlx(error, D::classify, &self.name, operation)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<D::Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
