//! The session table of a Django site, on SQLite, PostgreSQL or MySQL/MariaDB: read and written as Django itself does.
//!
//! Absent on purpose: any knowledge of what `session_data` holds, and any change to a table that Django made.

mod error;
pub(super) mod lanes;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use tokio::sync::Mutex;
use tokio::time::timeout;

pub use self::error::{DatabaseError, DatabaseErrorKind};
pub use self::lanes::{BUSY_LIMIT, BUSY_RETRIES, CONNECT_TIMEOUT, CONNECTIONS_MAX, OPERATION_TIMEOUT};
pub use super::schema::SESSION_KEY_MAX;

use self::lanes::{Dialect, Lanes};
use super::mysql::Mysql;
use super::postgres::Postgres;
use super::schema::{Calendar, Table};
use super::sqlite::Sqlite;

/// A session as a row.
#[derive(Clone, PartialEq, Eq)]
pub struct Row {
    pub session_key: String,
    pub session_data: String,
    /// When the session ends, ms since the epoch. Kept from 1970 to 9999; what lies outside is stored as the nearer
    /// end.
    pub expire_ms: i64,
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Row({} bytes, until {})", self.session_data.len(), self.expire_ms)
    }
}

/// A row's place among all rows, those that end last first.
#[derive(Clone, PartialEq, Eq)]
pub struct Place {
    /// As the database itself writes it: rounded, rows would be met twice or never.
    pub(super) expire_date: String,
    pub session_key: String,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Place({})", self.expire_date)
    }
}

/// How Django's settings shape the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseOptions {
    /// Letters, digits and `_`; with `schema.` (MySQL: `database.`) in front where it is not the default one.
    pub table: String,
    /// Django's USE_TZ.
    pub use_tz: bool,
    /// Django's TIME_ZONE.
    pub time_zone: chrono_tz::Tz,
}

/// What the pre-flight finds. The server was reached, or there would be an error instead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableReport {
    /// For people: `PostgreSQL 15.3`.
    pub server: String,
    pub exists: bool,
    /// What keeps rows from being written, in plain words; empty where all is well or there is no table.
    pub problems: Vec<String>,
    /// What an operator may want to know, and nothing depends on.
    pub notes: Vec<String>,
}

/// One database, connected to when first needed. A clone shares the connections.
///
/// Every method ends in bounded time: [`CONNECT_TIMEOUT`] plus [`OPERATION_TIMEOUT`] for a try, further ones only where
/// the first met a lock and [`BUSY_LIMIT`] is not over, at most [`BUSY_RETRIES`]. All may be cancelled; a transaction
/// that is cancelled or times out is undone by the server, unless its commit was already on the way.
#[derive(Clone)]
pub struct Database {
    backend: Arc<Backend>,
    /// One batch at a time: batches of ours that overlap would deadlock (PostgreSQL finds that out after a second), and
    /// what is gained side by side is less than what larger batches gain.
    writer: Arc<Mutex<()>>,
}

enum Backend {
    Sqlite(Lanes<Sqlite>),
    Postgres(Lanes<Postgres>),
    Mysql(Lanes<Mysql>),
}

/// Runs one of the dialect's operations, with its limits and retries.
macro_rules! attempt {
    ($lanes:expr, $operation:literal, $method:ident($($argument:expr),*)) => {{
        let lanes = $lanes;
        let mut tries = lanes.tries($operation).await?;
        loop {
            let on = tries.connection().await?;
            let outcome = timeout(OPERATION_TIMEOUT, lanes.dialect.$method(on, $($argument),*)).await;
            if let Some(end) = tries.settle(outcome).await {
                break end;
            }
        }
    }};
}

/// The same on whichever backend it is.
macro_rules! on_backend {
    ($self:ident, $operation:literal, $method:ident($($argument:expr),*)) => {
        match &*$self.backend {
            Backend::Sqlite(lanes) => attempt!(lanes, $operation, $method($($argument),*)),
            Backend::Postgres(lanes) => attempt!(lanes, $operation, $method($($argument),*)),
            Backend::Mysql(lanes) => attempt!(lanes, $operation, $method($($argument),*)),
        }
    };
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Database({})", self.name())
    }
}

impl Database {
    /// Takes `sqlite://path?mode=rwc`, `postgres://`, `postgresql://`, `mysql://` and `mariadb://`. Does not connect
    /// yet.
    pub fn open(url: &str, options: DatabaseOptions) -> Result<Database, DatabaseError> {
        let refuse = |name: &str, what: &str| DatabaseError::new(DatabaseErrorKind::Other, name, "open", what);
        let bad_url = |scheme: &str| {
            refuse(
                scheme,
                "the URL is not valid; percent-encode what is special in the password",
            )
        };
        let table = Table::parse(&options.table).ok_or_else(|| {
            refuse(
                "database",
                "the table's name may hold letters, digits, '_' and one '.' only",
            )
        })?;
        let calendar = Calendar::new(options.use_tz, options.time_zone);
        let url = url.trim();
        let (scheme, rest) = url.split_once(':').unwrap_or(("", url));
        let backend = match scheme.to_ascii_lowercase().as_str() {
            "sqlite" => {
                let dialect = Sqlite::new(url, table, calendar).ok_or_else(|| bad_url("sqlite"))?;
                let name = dialect.name();
                Backend::Sqlite(Lanes::new(dialect, name))
            }
            "postgres" | "postgresql" => {
                let dialect = Postgres::new(url, table).ok_or_else(|| bad_url("postgres"))?;
                let name = dialect.name();
                Backend::Postgres(Lanes::new(dialect, name))
            }
            "mysql" | "mariadb" => {
                let dialect = Mysql::new(&format!("mysql:{rest}"), table, calendar).ok_or_else(|| bad_url("mysql"))?;
                let name = dialect.name();
                Backend::Mysql(Lanes::new(dialect, name))
            }
            _ => {
                return Err(refuse(
                    "database",
                    "expected sqlite://, postgres://, mysql:// or mariadb://",
                ));
            }
        };
        Ok(Database {
            backend: Arc::new(backend),
            writer: Arc::default(),
        })
    }

    /// Where the database is, without the password.
    pub fn name(&self) -> &str {
        match &*self.backend {
            Backend::Sqlite(lanes) => lanes.name(),
            Backend::Postgres(lanes) => lanes.name(),
            Backend::Mysql(lanes) => lanes.name(),
        }
    }

    /// Connects, and looks at the table's columns.
    pub async fn inspect(&self) -> Result<TableReport, DatabaseError> {
        on_backend!(self, "inspect", inspect())
    }

    /// Makes Django's table with its index, where it is missing, on SQLite. Elsewhere it is Django's to make: an error.
    pub async fn create_table(&self) -> Result<(), DatabaseError> {
        match &*self.backend {
            Backend::Sqlite(lanes) => attempt!(lanes, "create table", create_table()),
            Backend::Postgres(_) | Backend::Mysql(_) => Err(DatabaseError::new(
                DatabaseErrorKind::MissingTable,
                self.name(),
                "create table",
                "this table is Django's to make; run manage.py migrate sessions",
            )),
        }
    }

    /// Makes this table, empty, with the columns of Django's table `like`. One that is there is dropped first.
    pub async fn create_like(&self, like: &str) -> Result<(), DatabaseError> {
        self.drop_table().await?;
        match &*self.backend {
            Backend::Sqlite(lanes) => attempt!(lanes, "create table", create_table()),
            Backend::Postgres(lanes) => attempt!(lanes, "create table", create_like(like)),
            Backend::Mysql(lanes) => attempt!(lanes, "create table", create_like(like)),
        }
    }

    /// Removes this table, where it is there.
    pub async fn drop_table(&self) -> Result<(), DatabaseError> {
        on_backend!(self, "drop table", drop_table())
    }

    /// Writes and deletes rows in one transaction: all or nothing. May be repeated. Batches wait for each other.
    ///
    /// No key may come twice, neither among `upserts` nor among `deletes` nor in both: which one would win differs
    /// between the databases, and PostgreSQL refuses it.
    pub async fn apply(&self, upserts: &[Row], deletes: &[String]) -> Result<(), DatabaseError> {
        if upserts.is_empty() && deletes.is_empty() {
            return Ok(());
        }
        let _writer = self.writer.lock().await;
        // Rows are locked in the same order by every process, so that two of them rarely deadlock.
        let mut upserts: Vec<&Row> = upserts.iter().collect();
        upserts.sort_unstable_by(|a, b| a.session_key.cmp(&b.session_key));
        let deletes = sorted(deletes);
        on_backend!(self, "apply", apply(&upserts, &deletes))
    }

    /// The rows of `keys`, those that have expired as well, by `session_key`.
    pub async fn fetch(&self, keys: &[String]) -> Result<HashMap<String, Row>, DatabaseError> {
        if keys.is_empty() {
            return Ok(HashMap::new());
        }
        let mut keys = sorted(keys);
        keys.dedup();
        on_backend!(self, "fetch", fetch(&keys))
    }

    /// Up to `limit` keys of rows that end after `now_ms`, behind `after` (empty: from the start). Shorter than
    /// `limit`: the end.
    ///
    /// The order is the database's own (a collation's, without regard to case on MySQL): pass the last key of one page
    /// to get the next, and compare keys in no other way.
    pub async fn page(&self, after: &str, limit: u32, now_ms: i64) -> Result<Vec<String>, DatabaseError> {
        on_backend!(self, "page", page(after, limit, now_ms))
    }

    /// Up to `limit` rows that end after `now_ms`, those that end last first, behind `before` (`None`: from the first).
    /// Shorter than `limit`: the end. A row that is renewed meanwhile is passed over where it moves to the front.
    pub async fn newest(&self, before: Option<&Place>, limit: u32, now_ms: i64) -> Result<Vec<Place>, DatabaseError> {
        on_backend!(self, "newest", newest(before, limit, now_ms))
    }

    /// How many rows end after `now_ms`.
    pub async fn count(&self, now_ms: i64) -> Result<u64, DatabaseError> {
        let count = on_backend!(self, "count", count(now_ms))?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// Up to `limit` rows, those that end last first: Django's own writing, to check the secret key against.
    pub async fn sample(&self, limit: u32) -> Result<Vec<Row>, DatabaseError> {
        on_backend!(self, "sample", sample(limit))
    }
}

/// From the columns expire_date, as text, and session_key.
pub(super) fn place((expire_date, session_key): (String, String)) -> Place {
    Place {
        expire_date,
        session_key,
    }
}

fn sorted(keys: &[String]) -> Vec<&str> {
    let mut keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}
