//! What can go wrong with a database, as a kind (the metric label) and a text that says what to do.

use crate::net::tls::explain;

/// Why a database did not do what was asked; `label` is the metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DatabaseErrorKind {
    /// No connection, or it broke.
    Refused,
    /// No connection, no free connection or no answer in time.
    Timeout,
    /// The credentials are wrong or missing.
    Auth,
    /// The user may not do this to the table.
    NoPermission,
    MissingTable,
    /// The table is there, but not as Django made it.
    WrongColumns,
    /// The database takes no writes: a standby, a read-only file.
    ReadOnly,
    /// The disk, the quota or the memory is used up.
    Full,
    /// Locks or too many connections, also after retries.
    Busy,
    /// A row itself cannot be stored (key too long, value too large). The rest of its batch can: write it in parts.
    Rejected,
    Other,
}

impl DatabaseErrorKind {
    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::Auth => "auth",
            Self::NoPermission => "no_permission",
            Self::MissingTable => "missing_table",
            Self::WrongColumns => "wrong_columns",
            Self::ReadOnly => "read_only",
            Self::Full => "full",
            Self::Busy => "busy",
            Self::Rejected => "rejected",
            Self::Other => "other",
        }
    }

    fn advice(self) -> &'static str {
        match self {
            Self::Refused => "no connection, or it broke; check the address and that the server runs",
            Self::Timeout => "no answer in time; the server is overloaded, stopped or cut off",
            Self::Auth => "wrong user name or password; check the URL",
            Self::NoPermission => "the user may not do this; grant SELECT, INSERT, UPDATE and DELETE on the table",
            Self::MissingTable => {
                "the session table is missing; run manage.py migrate sessions, or name the right table"
            }
            Self::WrongColumns => "the table is not as Django makes it; check the table's name and columns",
            Self::ReadOnly => "the database takes no writes; name the primary, or make the file writable",
            Self::Full => "no room is left; free disk space or raise the quota",
            Self::Busy => "locked by others or too many connections; look for long transactions",
            Self::Rejected => "a row cannot be stored; its key or its data does not fit the table",
            Self::Other => "look into the server's log",
        }
    }
}

/// The parameters are those of PostgreSQL and, in brackets, of MySQL.
const TLS_ADVICE: &str = "no TLS with the server, or its certificate is not accepted; check sslmode and sslrootcert (ssl-mode, ssl-ca) in the URL, \
     and the name in the certificate";

/// A database did not do what was asked. The text holds no key, no data and no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{database}: {operation}: {what}")]
pub struct DatabaseError {
    kind: DatabaseErrorKind,
    database: String,
    operation: &'static str,
    what: String,
}

/// MySQL's own number: many of its errors share one code.
fn number(error: &dyn sqlx::error::DatabaseError) -> Option<u16> {
    let error = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>()?;
    Some(error.number())
}

impl DatabaseError {
    pub fn kind(&self) -> DatabaseErrorKind {
        self.kind
    }

    /// What was being done: `connect`, `apply`, `fetch` and so on.
    pub fn operation(&self) -> &'static str {
        self.operation
    }

    pub(in crate::sink) fn new(
        kind: DatabaseErrorKind,
        database: &str,
        operation: &'static str,
        what: impl Into<String>,
    ) -> Self {
        DatabaseError {
            kind,
            database: database.to_owned(),
            operation,
            what: what.into(),
        }
    }

    /// The server's own text is not repeated, since some hold the row; its code is enough to look it up.
    pub(in crate::sink) fn from_sqlx(
        error: &sqlx::Error,
        classify: fn(&dyn sqlx::error::DatabaseError) -> DatabaseErrorKind,
        database: &str,
        operation: &'static str,
    ) -> Self {
        use DatabaseErrorKind as Kind;
        use std::io::ErrorKind as Io;
        let (kind, detail) = match error {
            sqlx::Error::Database(error) => (
                classify(error.as_ref()),
                error.code().map(|code| match number(error.as_ref()) {
                    Some(number) => format!("code {code}, error {number}"),
                    None => format!("code {code}"),
                }),
            ),
            sqlx::Error::Io(error) if explain(error).is_some() => {
                return DatabaseError::new(Kind::Refused, database, operation, TLS_ADVICE);
            }
            sqlx::Error::Io(error) if error.kind() == Io::TimedOut => (Kind::Timeout, None),
            sqlx::Error::Io(error) => (Kind::Refused, Some(error.kind().to_string())),
            sqlx::Error::Tls(_) => return DatabaseError::new(Kind::Refused, database, operation, TLS_ADVICE),
            sqlx::Error::WorkerCrashed => (Kind::Refused, None),
            sqlx::Error::ColumnDecode { index, .. } => (Kind::WrongColumns, Some(format!("column {index}"))),
            sqlx::Error::ColumnNotFound(name) => (Kind::WrongColumns, Some(format!("column {name}"))),
            sqlx::Error::Protocol(_) => (Kind::Other, Some("protocol".to_owned())),
            sqlx::Error::Configuration(_) => (Kind::Other, Some("settings in the URL".to_owned())),
            _ => (Kind::Other, None),
        };
        let what = match detail {
            Some(detail) => format!("{} ({detail})", kind.advice()),
            None => kind.advice().to_owned(),
        };
        DatabaseError::new(kind, database, operation, what)
    }

    pub(in crate::sink) fn timeout(database: &str, operation: &'static str) -> Self {
        DatabaseError::new(
            DatabaseErrorKind::Timeout,
            database,
            operation,
            DatabaseErrorKind::Timeout.advice(),
        )
    }
}
