//! MySQL and MariaDB. `expire_date` is a `datetime(6)` without a zone; the key's collation usually ignores case, Redis
//! does not.

use std::collections::HashMap;
use std::str::FromStr;

use chrono::NaiveDateTime;
use sqlx::mysql::{MySqlConnectOptions, MySqlDatabaseError, MySqlRow};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, MySql as Driver, MySqlConnection, QueryBuilder, Row as _};

use super::database::lanes::Dialect;
use super::database::{DatabaseErrorKind, Place, Row, TableReport, place};
use super::schema::{Calendar, Column, Table, problems};

/// Strict: a value that does not fit is an error and not cut. READ COMMITTED: as Django has it, and with fewer locks
/// between rows. A lock that is not had in 3 s is given up (and tried again): below the time limit of the operation.
const SET_UP: &str = "SET SESSION sql_mode = 'STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION', \
                      SESSION innodb_lock_wait_timeout = 3";
const READ_COMMITTED: &str = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED";
/// Rows in one statement, of three parameters each: the protocol takes 65,535. Every statement has a power of two of
/// them, so that few are prepared, and those are kept: closing one is a message without an answer, and what is sent
/// after it would wait some 40 ms for the server's delayed acknowledgement (the driver leaves Nagle's algorithm on).
const CHUNK: usize = 512;
/// Bytes in one statement, but for a single row over it: below the smallest `max_allowed_packet` in use (1 MiB).
const CHUNK_BYTES: usize = 512 << 10;

pub(super) struct Mysql {
    options: MySqlConnectOptions,
    table: Table,
    /// The table's name, quoted.
    quoted: String,
    calendar: Calendar,
}

impl Mysql {
    pub(super) fn new(url: &str, table: Table, calendar: Calendar) -> Option<Self> {
        let options = MySqlConnectOptions::from_str(url).ok()?;
        let options = options.charset("utf8mb4").disable_statement_logging();
        let quoted = table.quoted('`');
        Some(Mysql {
            options,
            table,
            quoted,
            calendar,
        })
    }

    /// `like` is a name that [`Table`] takes.
    pub(super) async fn create_like(&self, on: &mut MySqlConnection, like: &str) -> Result<(), sqlx::Error> {
        let like = Table::parse(like).map(|table| table.quoted('`')).unwrap_or_default();
        let sql = format!("CREATE TABLE {} LIKE {like}", self.quoted);
        sqlx::query(AssertSqlSafe(sql)).execute(on).await.map(drop)
    }

    pub(super) async fn drop_table(&self, on: &mut MySqlConnection) -> Result<(), sqlx::Error> {
        let sql = format!("DROP TABLE IF EXISTS {}", self.quoted);
        sqlx::query(AssertSqlSafe(sql)).execute(on).await.map(drop)
    }

    pub(super) fn name(&self) -> String {
        let options = &self.options;
        let place = match options.get_socket() {
            Some(path) => path.display().to_string(),
            None => format!("{}:{}", options.get_host(), options.get_port()),
        };
        format!("mysql {place}/{}", options.get_database().unwrap_or(""))
    }

    fn row(&self, row: &MySqlRow) -> Result<Row, sqlx::Error> {
        let expire: NaiveDateTime = row.try_get(2)?;
        let expire_ms = self.calendar.millis(expire);
        Ok(Row {
            session_key: row.try_get(0)?,
            session_data: row.try_get(1)?,
            expire_ms,
        })
    }
}

/// How many of `rows` go into one statement: at least one.
fn chunk_len(rows: &[&Row]) -> usize {
    let mut bytes = 0_usize;
    let fits = rows.iter().take(CHUNK).take_while(|row| {
        bytes = bytes.saturating_add(row.session_key.len() + row.session_data.len() + 32);
        bytes <= CHUNK_BYTES
    });
    power_of_two(fits.count().max(1))
}

/// The largest power of two within `len`, which is at least 1.
fn power_of_two(len: usize) -> usize {
    1 << len.ilog2()
}

/// `all`, cut into pieces of at most [`CHUNK`], each with a power of two of elements.
fn pieces<T>(mut all: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let len = power_of_two(Some(all.len().min(CHUNK)).filter(|&len| len > 0)?);
        let (piece, rest) = all.split_at(len);
        all = rest;
        Some(piece)
    })
}

/// `(?, ?, …)` with `keys` for the marks.
fn push_list(sql: &mut QueryBuilder<Driver>, keys: &[&str]) {
    sql.push(" (");
    let mut list = sql.separated(", ");
    for key in keys {
        list.push_bind((*key).to_owned());
    }
    sql.push(")");
}

impl Dialect for Mysql {
    type Connection = MySqlConnection;

    async fn connect(&self) -> Result<MySqlConnection, sqlx::Error> {
        let mut connection = MySqlConnection::connect_with(&self.options).await?;
        for sql in [SET_UP, READ_COMMITTED] {
            sqlx::raw_sql(sql).execute(&mut connection).await?;
        }
        Ok(connection)
    }

    fn classify(error: &dyn sqlx::error::DatabaseError) -> DatabaseErrorKind {
        use DatabaseErrorKind as Kind;
        let number = error
            .try_downcast_ref::<MySqlDatabaseError>()
            .map_or(0, MySqlDatabaseError::number);
        match number {
            1045 | 1698 | 1251 | 1862 => Kind::Auth,
            1044 | 1142 | 1143 | 1227 => Kind::NoPermission,
            1146 => Kind::MissingTable,
            1054 | 1364 => Kind::WrongColumns,
            // --read-only, --super-read-only, a read-only transaction.
            1290 | 1792 | 1836 => Kind::ReadOnly,
            1021 | 1037 | 1038 | 1041 | 1114 => Kind::Full,
            // Too many connections, lock wait, deadlock; a row or a table that somebody else changed meanwhile.
            1040 | 1203 | 1205 | 1213 | 1020 | 1412 | 1684 => Kind::Busy,
            1317 | 1969 | 3024 => Kind::Timeout,
            1053 | 1129 | 1130 | 1927 => Kind::Refused,
            // NULL, packet too large, out of range, bad date, bad text, too long.
            1048 | 1153 | 1264 | 1292 | 1366 | 1406 => Kind::Rejected,
            _ => Kind::Other,
        }
    }

    async fn inspect(&self, on: &mut MySqlConnection) -> Result<TableReport, sqlx::Error> {
        let about = sqlx::query("SELECT VERSION(), CAST(@@global.read_only AS CHAR)")
            .fetch_one(&mut *on)
            .await?;
        let version: String = about.try_get(0)?;
        // 0 or 1, and a word in the newest versions.
        let writable = ["0", "OFF"].contains(&about.try_get_unchecked::<String, _>(1)?.as_str());
        let server = if version.contains("MariaDB") {
            version
        } else {
            format!("MySQL {version}")
        };
        let mut report = TableReport {
            server,
            ..Default::default()
        };
        let about = sqlx::query(
            "SELECT COALESCE(ENGINE, ''), COALESCE(TABLE_COLLATION, '') FROM information_schema.TABLES \
             WHERE TABLE_SCHEMA = COALESCE(?, DATABASE()) AND TABLE_NAME = ?",
        );
        let Some(about) = about
            .bind(&self.table.schema)
            .bind(&self.table.name)
            .fetch_optional(&mut *on)
            .await?
        else {
            return Ok(report);
        };
        // MySQL 8 and MariaDB give these columns different text types; their bytes are the same.
        let text = |row: &MySqlRow, at: usize| row.try_get_unchecked::<String, _>(at);
        let rows = sqlx::query(
            "SELECT COLUMN_NAME, LOWER(COLUMN_TYPE), IS_NULLABLE = 'NO' AND COLUMN_DEFAULT IS NULL \
             AND EXTRA NOT LIKE '%auto_increment%' AND EXTRA NOT LIKE '%GENERATED%', \
             EXISTS (SELECT 1 FROM information_schema.STATISTICS s WHERE s.TABLE_SCHEMA = c.TABLE_SCHEMA \
             AND s.TABLE_NAME = c.TABLE_NAME AND s.NON_UNIQUE = 0 GROUP BY s.INDEX_NAME \
             HAVING COUNT(*) = 1 AND MAX(s.COLUMN_NAME) = c.COLUMN_NAME) \
             FROM information_schema.COLUMNS c WHERE TABLE_SCHEMA = COALESCE(?, DATABASE()) AND TABLE_NAME = ?",
        );
        let rows = rows
            .bind(&self.table.schema)
            .bind(&self.table.name)
            .fetch_all(&mut *on)
            .await?;
        let mut columns = Vec::with_capacity(rows.len());
        for row in &rows {
            columns.push(Column {
                name: text(row, 0)?,
                kind: text(row, 1)?,
                required: row.try_get_unchecked(2)?,
                unique: row.try_get_unchecked(3)?,
            });
        }
        report.exists = true;
        report.problems = problems(&columns, &["datetime"]);
        if !writable {
            report
                .problems
                .push("the server is read-only, most likely a replica; name the primary".to_owned());
        }
        let engine = text(&about, 0)?;
        if !["InnoDB", "XtraDB", "RocksDB", "ndbcluster", ""].contains(&engine.as_str()) {
            report.problems.push(format!(
                "the table's engine {engine} has no transactions; convert it to InnoDB"
            ));
        }
        if columns
            .iter()
            .any(|column| column.name == "expire_date" && column.kind == "datetime")
        {
            report
                .notes
                .push("expire_date keeps whole seconds only, as Django before 1.8 made it".to_owned());
        }
        let collation = text(&about, 1)?;
        if collation.contains("_ci") {
            report.notes.push(format!(
                "collation {collation}: keys that differ only in case are one row, as for Django"
            ));
        }
        Ok(report)
    }

    async fn apply(&self, on: &mut MySqlConnection, upserts: &[&Row], deletes: &[&str]) -> Result<(), sqlx::Error> {
        let mut transaction = on.begin().await?;
        let mut rest = upserts;
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(chunk_len(rest));
            rest = after;
            let mut sql = QueryBuilder::<Driver>::new("INSERT INTO ");
            sql.push(&self.quoted)
                .push(" (session_key, session_data, expire_date) ");
            sql.push_values(chunk, |mut values, row| {
                values.push_bind(&row.session_key).push_bind(&row.session_data);
                values.push_bind(self.calendar.naive(row.expire_ms));
            });
            // VALUES() is what MariaDB has; MySQL 8 would rather have an alias, but takes it.
            sql.push(" ON DUPLICATE KEY UPDATE session_data = VALUES(session_data), expire_date = VALUES(expire_date)");
            sql.build().execute(&mut *transaction).await?;
        }
        for chunk in pieces(deletes) {
            let mut sql = QueryBuilder::<Driver>::new("DELETE FROM ");
            sql.push(&self.quoted).push(" WHERE session_key IN");
            push_list(&mut sql, chunk);
            // The first condition finds the rows by their index, the second keeps those that differ in case.
            sql.push(" AND CAST(session_key AS BINARY) IN");
            push_list(&mut sql, chunk);
            sql.build().execute(&mut *transaction).await?;
        }
        transaction.commit().await
    }

    async fn fetch(&self, on: &mut MySqlConnection, keys: &[&str]) -> Result<HashMap<String, Row>, sqlx::Error> {
        let mut found = HashMap::with_capacity(keys.len());
        for chunk in pieces(keys) {
            let mut sql = QueryBuilder::<Driver>::new("SELECT session_key, session_data, expire_date FROM ");
            sql.push(&self.quoted).push(" WHERE session_key IN");
            push_list(&mut sql, chunk);
            for row in sql.build().fetch_all(&mut *on).await? {
                let row = self.row(&row)?;
                // The collation may give a key in other letter case: another session.
                if chunk.binary_search(&row.session_key.as_str()).is_ok() {
                    found.insert(row.session_key.clone(), row);
                }
            }
        }
        Ok(found)
    }

    async fn page(
        &self,
        on: &mut MySqlConnection,
        after: &str,
        limit: u32,
        now_ms: i64,
    ) -> Result<Vec<String>, sqlx::Error> {
        // Comparison and order both use the column's collation, under which the primary key is unique: no key is
        // skipped.
        let sql = format!(
            "SELECT session_key FROM {} WHERE session_key > ? AND expire_date > ? ORDER BY session_key LIMIT ?",
            self.quoted
        );
        let query = sqlx::query_scalar(AssertSqlSafe(sql));
        query
            .bind(after)
            .bind(self.calendar.naive(now_ms))
            .bind(limit)
            .fetch_all(on)
            .await
    }

    async fn newest(
        &self,
        on: &mut MySqlConnection,
        before: Option<&Place>,
        limit: u32,
        now_ms: i64,
    ) -> Result<Vec<Place>, sqlx::Error> {
        let mut sql = QueryBuilder::<Driver>::new("SELECT CAST(expire_date AS char), session_key FROM ");
        sql.push(&self.quoted).push(" WHERE expire_date > ");
        sql.push_bind(self.calendar.naive(now_ms));
        if let Some(before) = before {
            // The first half is what the index on expire_date answers.
            for (start, end) in [
                (" AND expire_date <= CAST(", ""),
                (" AND (expire_date < CAST(", " OR session_key < "),
            ] {
                sql.push(start)
                    .push_bind(&before.expire_date)
                    .push(" AS datetime(6))")
                    .push(end);
            }
            sql.push_bind(&before.session_key).push(")");
        }
        sql.push(" ORDER BY expire_date DESC, session_key DESC LIMIT ")
            .push_bind(limit);
        let rows = sql.build_query_as().persistent(false).fetch_all(on).await?;
        Ok(rows.into_iter().map(place).collect())
    }

    async fn count(&self, on: &mut MySqlConnection, now_ms: i64) -> Result<i64, sqlx::Error> {
        let sql = format!("SELECT COUNT(*) FROM {} WHERE expire_date > ?", self.quoted);
        sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(self.calendar.naive(now_ms))
            .fetch_one(on)
            .await
    }

    async fn sample(&self, on: &mut MySqlConnection, limit: u32) -> Result<Vec<Row>, sqlx::Error> {
        let sql = format!(
            "SELECT session_key, session_data, expire_date FROM {} ORDER BY expire_date DESC LIMIT ?",
            self.quoted
        );
        let rows = sqlx::query(AssertSqlSafe(sql)).bind(limit).fetch_all(on).await?;
        rows.iter().map(|row| self.row(row)).collect()
    }
}
