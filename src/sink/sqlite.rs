//! SQLite: one file, one writer at a time. `expire_date` is text, and compared as text.

use std::collections::HashMap;
use std::str::FromStr;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteRow};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, QueryBuilder, SqliteConnection};
use sqlx::{Row as _, Sqlite as Driver};

use super::database::lanes::Dialect;
use super::database::{DatabaseErrorKind, Place, Row, TableReport, place};
use super::schema::{Calendar, Column, Table, problems};

/// How long SQLite itself waits for a lock; Django's default too.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// KiB of the file that a connection keeps in memory, where the table is that large. Rows are drawn from the whole of it; with
/// SQLite's own 2 MiB most of its pages are read again for each transaction.
const CACHE_KIB: u32 = 32 * 1024;
/// Rows in one statement, of three parameters each: SQLite takes 32,766.
const CHUNK: usize = 500;
/// The name Django gives the index; the end is a digest of the table's and the column's name.
const DJANGO_INDEX: (&str, &str) = ("django_session", "django_session_expire_date_a5c62663");

pub(super) struct Sqlite {
    options: SqliteConnectOptions,
    table: Table,
    /// The table's name, quoted.
    quoted: String,
    calendar: Calendar,
}

impl Sqlite {
    pub(super) fn new(url: &str, table: Table, calendar: Calendar) -> Option<Self> {
        let options = SqliteConnectOptions::from_str(url)
            .ok()?
            .busy_timeout(BUSY_TIMEOUT)
            // Negative: KiB instead of pages.
            .pragma("cache_size", format!("-{CACHE_KIB}"))
            .disable_statement_logging();
        let quoted = table.quoted('"');
        Some(Sqlite {
            options,
            table,
            quoted,
            calendar,
        })
    }

    pub(super) fn name(&self) -> String {
        format!("sqlite {}", self.options.get_filename().display())
    }

    /// Django's own statements, so that the table is the one that `migrate` would have made.
    pub(super) async fn drop_table(&self, on: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        let sql = format!("DROP TABLE IF EXISTS {}", self.quoted);
        sqlx::query(AssertSqlSafe(sql)).execute(on).await.map(drop)
    }

    pub(super) async fn create_table(&self, on: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        let quoted = &self.quoted;
        let index = match self.table.name.as_str() {
            name if name == DJANGO_INDEX.0 => DJANGO_INDEX.1.to_owned(),
            name => format!("{name}_expire_date"),
        };
        let name = &self.table.name;
        let index = Table {
            schema: self.table.schema.clone(),
            name: index,
        }
        .quoted('"');
        let mut transaction = on.begin_with("BEGIN IMMEDIATE").await?;
        for sql in [
            format!(
                "CREATE TABLE IF NOT EXISTS {quoted} (\"session_key\" varchar(40) NOT NULL PRIMARY KEY, \
                 \"session_data\" text NOT NULL, \"expire_date\" datetime NOT NULL)"
            ),
            format!("CREATE INDEX IF NOT EXISTS {index} ON \"{name}\" (\"expire_date\")"),
        ] {
            sqlx::query(AssertSqlSafe(sql)).execute(&mut *transaction).await?;
        }
        transaction.commit().await
    }

    fn row(&self, row: &SqliteRow) -> Result<Row, sqlx::Error> {
        // Unchecked: declared `datetime`, stored as text.
        let text: String = row.try_get_unchecked(2)?;
        let unreadable = || sqlx::Error::ColumnDecode {
            index: "expire_date".into(),
            source: "not a date".into(),
        };
        let expire_ms = self.calendar.parse(&text).ok_or_else(unreadable)?;
        Ok(Row {
            session_key: row.try_get(0)?,
            session_data: row.try_get(1)?,
            expire_ms,
        })
    }
}

impl Dialect for Sqlite {
    type Connection = SqliteConnection;

    async fn connect(&self) -> Result<SqliteConnection, sqlx::Error> {
        SqliteConnection::connect_with(&self.options).await
    }

    fn classify(error: &dyn sqlx::error::DatabaseError) -> DatabaseErrorKind {
        use DatabaseErrorKind as Kind;
        let code = error.code().and_then(|code| code.parse::<u32>().ok()).unwrap_or(0);
        let message = error.message();
        // The low byte is the error, the rest its shade.
        match code & 0xff {
            1 if message.contains("no such table") => Kind::MissingTable,
            1 if message.contains("column") || message.contains("ON CONFLICT") => Kind::WrongColumns,
            3 | 23 => Kind::NoPermission,
            5 | 6 => Kind::Busy,
            8 => Kind::ReadOnly,
            7 | 13 => Kind::Full,
            14 | 26 => Kind::Refused,
            18..=20 => Kind::Rejected,
            _ => Kind::Other,
        }
    }

    async fn inspect(&self, on: &mut SqliteConnection) -> Result<TableReport, sqlx::Error> {
        let version: String = sqlx::query_scalar("SELECT sqlite_version()")
            .fetch_one(&mut *on)
            .await?;
        let schema = self.table.schema.as_deref().unwrap_or("main");
        let rows = sqlx::query(
            "SELECT name, lower(type), \"notnull\" AND dflt_value IS NULL, pk, (SELECT count(*) FROM pragma_table_info(?1, ?2) \
             WHERE pk > 0) FROM pragma_table_info(?1, ?2)",
        );
        let rows = rows.bind(&self.table.name).bind(schema).fetch_all(&mut *on).await?;
        let mut columns = Vec::new();
        for row in &rows {
            let (part, parts): (i64, i64) = (row.try_get(3)?, row.try_get(4)?);
            columns.push(Column {
                name: row.try_get(0)?,
                kind: row.try_get(1)?,
                required: row.try_get(2)?,
                unique: part == 1 && parts == 1,
            });
        }
        let exists = !columns.is_empty();
        let problems = if exists {
            problems(&columns, &["datetime", "timestamp", "text"])
        } else {
            Vec::new()
        };
        Ok(TableReport {
            server: format!("SQLite {version}"),
            exists,
            problems,
            notes: Vec::new(),
        })
    }

    async fn apply(&self, on: &mut SqliteConnection, upserts: &[&Row], deletes: &[&str]) -> Result<(), sqlx::Error> {
        // IMMEDIATE takes the write lock now and waits for it; a lock wanted later fails at once where another writer
        // is ahead.
        let mut transaction = on.begin_with("BEGIN IMMEDIATE").await?;
        for chunk in upserts.chunks(CHUNK) {
            let mut sql = QueryBuilder::<Driver>::new("INSERT INTO ");
            sql.push(&self.quoted)
                .push(" (session_key, session_data, expire_date) ");
            sql.push_values(chunk, |mut values, row| {
                values.push_bind(&row.session_key).push_bind(&row.session_data);
                values.push_bind(self.calendar.text(row.expire_ms));
            });
            sql.push(
                " ON CONFLICT (session_key) DO UPDATE SET session_data = excluded.session_data, \
                 expire_date = excluded.expire_date",
            );
            sql.build().persistent(false).execute(&mut *transaction).await?;
        }
        for chunk in deletes.chunks(CHUNK) {
            let mut sql = QueryBuilder::<Driver>::new("DELETE FROM ");
            sql.push(&self.quoted).push(" WHERE session_key IN (");
            let mut list = sql.separated(", ");
            for key in chunk {
                list.push_bind(*key);
            }
            sql.push(")");
            sql.build().persistent(false).execute(&mut *transaction).await?;
        }
        transaction.commit().await
    }

    async fn fetch(&self, on: &mut SqliteConnection, keys: &[&str]) -> Result<HashMap<String, Row>, sqlx::Error> {
        let mut found = HashMap::with_capacity(keys.len());
        for chunk in keys.chunks(CHUNK) {
            let mut sql = QueryBuilder::<Driver>::new("SELECT session_key, session_data, expire_date FROM ");
            sql.push(&self.quoted).push(" WHERE session_key IN (");
            let mut list = sql.separated(", ");
            for key in chunk {
                list.push_bind(*key);
            }
            sql.push(")");
            for row in sql.build().persistent(false).fetch_all(&mut *on).await? {
                let row = self.row(&row)?;
                found.insert(row.session_key.clone(), row);
            }
        }
        Ok(found)
    }

    async fn page(
        &self,
        on: &mut SqliteConnection,
        after: &str,
        limit: u32,
        now_ms: i64,
    ) -> Result<Vec<String>, sqlx::Error> {
        let sql = format!(
            "SELECT session_key FROM {} WHERE session_key > ? AND expire_date > ? ORDER BY session_key LIMIT ?",
            self.quoted
        );
        let query = sqlx::query_scalar(AssertSqlSafe(sql));
        query
            .bind(after)
            .bind(self.calendar.text(now_ms))
            .bind(limit)
            .fetch_all(on)
            .await
    }

    async fn newest(
        &self,
        on: &mut SqliteConnection,
        before: Option<&Place>,
        limit: u32,
        now_ms: i64,
    ) -> Result<Vec<Place>, sqlx::Error> {
        let mut sql = QueryBuilder::<Driver>::new("SELECT CAST(expire_date AS text), session_key FROM ");
        sql.push(&self.quoted).push(" WHERE expire_date > ");
        sql.push_bind(self.calendar.text(now_ms));
        if let Some(before) = before {
            // The first half is what the index on expire_date answers.
            sql.push(" AND expire_date <= ").push_bind(&before.expire_date);
            sql.push(" AND (expire_date < ").push_bind(&before.expire_date);
            sql.push(" OR session_key < ").push_bind(&before.session_key).push(")");
        }
        sql.push(" ORDER BY expire_date DESC, session_key DESC LIMIT ")
            .push_bind(limit);
        let rows = sql.build_query_as().persistent(false).fetch_all(on).await?;
        Ok(rows.into_iter().map(place).collect())
    }

    async fn count(&self, on: &mut SqliteConnection, now_ms: i64) -> Result<i64, sqlx::Error> {
        let sql = format!("SELECT count(*) FROM {} WHERE expire_date > ?", self.quoted);
        sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(self.calendar.text(now_ms))
            .fetch_one(on)
            .await
    }

    async fn sample(&self, on: &mut SqliteConnection, limit: u32) -> Result<Vec<Row>, sqlx::Error> {
        let sql = format!(
            "SELECT session_key, session_data, expire_date FROM {} ORDER BY expire_date DESC LIMIT ?",
            self.quoted
        );
        let rows = sqlx::query(AssertSqlSafe(sql)).bind(limit).fetch_all(on).await?;
        rows.iter().map(|row| self.row(row)).collect()
    }
}
