//! A few connections to one database, each used by one operation at a time.
//!
//! Not sqlx's pool, for two reasons seen in its code: while connecting it takes "connection refused" for "still
//! starting" and ends in a time-out that hides the reason, and it takes back a connection whose operation timed out,
//! which may hang for as long as TCP does. Here a connection whose operation did not end well is closed, and never seen
//! again.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::error::Elapsed;
use tokio::time::{sleep, timeout};

use super::error::{DatabaseError, DatabaseErrorKind};
use super::{Place, Row, TableReport};

/// Connections to one database. Delivery, backfill and verify use one each; one is left for the operator's questions.
pub const CONNECTIONS_MAX: usize = 4;
/// For the TCP handshake, TLS, the login and the set-up.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For one operation, all its statements together, and for the wait for a free connection.
pub const OPERATION_TIMEOUT: Duration = Duration::from_secs(15);
/// An operation that met a lock, a deadlock or too many connections is tried this often again before it fails. MariaDB
/// ends one of two batches that overlap at once, and with six at a time five tries were too few.
pub const BUSY_RETRIES: u32 = 8;
/// No further retry after this time: a lock that is held for long is found out slowly, and the caller wants to know.
pub const BUSY_LIMIT: Duration = OPERATION_TIMEOUT;
/// Before the first retry; twice as long before each further one. Half to one and a half times this, by chance.
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

    fn newest(
        &self,
        on: &mut Self::Connection,
        before: Option<&Place>,
        limit: u32,
        now_ms: i64,
    ) -> impl Future<Output = Result<Vec<Place>, sqlx::Error>> + Send;

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

    /// Waits for a connection to be free for `operation`.
    pub(super) async fn tries(&self, operation: &'static str) -> Result<Tries<'_, D>, DatabaseError> {
        let timed_out = || DatabaseError::timeout(&self.name, operation);
        let free = timeout(OPERATION_TIMEOUT, self.free.acquire())
            .await
            .map_err(|_| timed_out())?;
        let permit = free.map_err(|_| timed_out())?;
        Ok(Tries {
            lanes: self,
            operation,
            _permit: permit,
            connection: None,
            reused: false,
            retries: 0,
            began: Instant::now(),
        })
    }

    fn error(&self, error: &sqlx::Error, operation: &'static str) -> DatabaseError {
        DatabaseError::from_sqlx(error, D::classify, &self.name, operation)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<D::Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One operation, tried until it ends well, fails for good or has been tried too often. Dropping it closes the
/// connection.
///
/// A loop over `connection` and `settle` and not a closure: the compiler cannot yet see that a future which calls an
/// async closure with borrowed arguments may move between threads.
pub(in crate::sink) struct Tries<'l, D: Dialect> {
    lanes: &'l Lanes<D>,
    operation: &'static str,
    _permit: SemaphorePermit<'l>,
    connection: Option<D::Connection>,
    /// The connection has been used before: it may have been closed in the meantime.
    reused: bool,
    retries: u32,
    began: Instant,
}

impl<D: Dialect> Tries<'_, D> {
    /// The connection for the next try.
    pub(super) async fn connection(&mut self) -> Result<&mut D::Connection, DatabaseError> {
        let idle = self.lanes.idle().pop();
        self.reused = idle.is_some();
        let connection = match idle {
            Some(connection) => connection,
            None => {
                let connecting = timeout(CONNECT_TIMEOUT, self.lanes.dialect.connect()).await;
                let connecting = connecting.map_err(|_| DatabaseError::timeout(&self.lanes.name, "connect"))?;
                connecting.map_err(|error| self.lanes.error(&error, "connect"))?
            }
        };
        Ok(self.connection.insert(connection))
    }

    /// Takes what came of a try (an error: it took longer than `OPERATION_TIMEOUT`); `None` asks for another one.
    pub(super) async fn settle<T>(
        &mut self,
        outcome: Result<Result<T, sqlx::Error>, Elapsed>,
    ) -> Option<Result<T, DatabaseError>> {
        let connection = self.connection.take();
        let error = match outcome {
            Ok(Ok(value)) => {
                self.lanes.idle().extend(connection);
                return Some(Ok(value));
            }
            Ok(Err(error)) => self.lanes.error(&error, self.operation),
            Err(_) => return Some(Err(DatabaseError::timeout(&self.lanes.name, self.operation))),
        };
        drop(connection);
        match error.kind() {
            // The server closed it while it lay idle, most likely the others too: it was restarted, or tired of
            // waiting.
            DatabaseErrorKind::Refused if self.reused => self.lanes.idle().clear(),
            DatabaseErrorKind::Busy if self.retries < BUSY_RETRIES && self.began.elapsed() < BUSY_LIMIT => {
                // Whoever deadlocked with us tries again as well: not at the same moment.
                sleep((BUSY_PAUSE * 2_u32.pow(self.retries)).mul_f64(0.5 + rand::random::<f64>())).await;
                self.retries += 1;
            }
            _ => return Some(Err(error)),
        }
        None
    }
}
