//! PostgreSQL. `expire_date` is an instant, so no time zone setting matters.
//!
//! Every operation is one transaction with its own limits and no named statement: that works through PgBouncer's
//! transaction mode too, where the next transaction may run on another server connection, and startup parameters are
//! refused.

use std::collections::HashMap;
use std::str::FromStr;

use chrono::{DateTime, SecondsFormat, Utc};
use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, QueryBuilder, Row as _};

use super::database::lanes::Dialect;
use super::database::{DatabaseErrorKind, Place, Row, TableReport};
use super::schema::{Column, Table, instant, problems};

/// A lock that is not had in 3 s is given up (and tried again): below the time limit of the operation. A transaction
/// whose client vanished must not keep its locks.
const BEGIN: &str = "BEGIN; SET LOCAL lock_timeout = '3s'; SET LOCAL statement_timeout = '12s'; \
                     SET LOCAL idle_in_transaction_session_timeout = '20s'";
/// Rows in one statement; arrays have no limit, messages of 1 GB do.
const CHUNK: usize = 1000;

const COLUMNS: &str = "SELECT a.attname::text, lower(format_type(a.atttypid, a.atttypmod)), \
     a.attnotnull AND NOT a.atthasdef AND a.attidentity = '', \
     EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = a.attrelid AND i.indisunique AND i.indpred IS NULL \
             AND i.indnkeyatts = 1 AND i.indkey[0] = a.attnum) \
     FROM pg_attribute a WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped";

pub(super) struct Postgres {
    options: PgConnectOptions,
    /// The table's name, quoted.
    quoted: String,
}

impl Postgres {
    pub(super) fn new(url: &str, table: Table) -> Option<Self> {
        let options = PgConnectOptions::from_str(url).ok()?;
        // PgBouncer refuses this parameter, and we read no floats.
        let options = options
            .extra_float_digits(None)
            .application_name("sessionferry")
            .disable_statement_logging();
        Some(Postgres {
            options,
            quoted: table.quoted('"'),
        })
    }

    /// `like` is a name that [`Table`] takes.
    pub(super) async fn create_like(&self, on: &mut PgConnection, like: &str) -> Result<(), sqlx::Error> {
        let like = Table::parse(like).map(|table| table.quoted('"')).unwrap_or_default();
        let sql = format!("CREATE TABLE {} (LIKE {like} INCLUDING ALL)", self.quoted);
        sqlx::query(AssertSqlSafe(sql)).execute(on).await.map(drop)
    }

    pub(super) async fn drop_table(&self, on: &mut PgConnection) -> Result<(), sqlx::Error> {
        let sql = format!("DROP TABLE IF EXISTS {}", self.quoted);
        sqlx::query(AssertSqlSafe(sql)).execute(on).await.map(drop)
    }

    pub(super) fn name(&self) -> String {
        let options = &self.options;
        let place = match options.get_socket() {
            Some(path) => path.display().to_string(),
            None => format!("{}:{}", options.get_host(), options.get_port()),
        };
        format!(
            "postgres {place}/{}",
            options.get_database().unwrap_or(options.get_username())
        )
    }
}

fn row(row: &PgRow) -> Result<Row, sqlx::Error> {
    let expire: DateTime<Utc> = row.try_get(2)?;
    Ok(Row {
        session_key: row.try_get(0)?,
        session_data: row.try_get(1)?,
        expire_ms: expire.timestamp_millis(),
    })
}

impl Dialect for Postgres {
    type Connection = PgConnection;

    async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        PgConnection::connect_with(&self.options).await
    }

    fn classify(error: &dyn sqlx::error::DatabaseError) -> DatabaseErrorKind {
        use DatabaseErrorKind as Kind;
        let code = error.code().unwrap_or_default();
        match code.as_ref() {
            "28P01" | "28000" => Kind::Auth,
            "42501" => Kind::NoPermission,
            "42P01" | "3F000" => Kind::MissingTable,
            // A column, its type, or the unique index that ON CONFLICT needs.
            "42703" | "42804" | "42P10" | "23502" => Kind::WrongColumns,
            "25006" => Kind::ReadOnly,
            "53100" | "53200" => Kind::Full,
            // Deadlock, serialization, lock timeout, too many connections.
            "40001" | "40P01" | "55P03" | "53300" => Kind::Busy,
            "57014" => Kind::Timeout,
            // Shutting down, crashed, starting, idle for too long.
            "57P01" | "57P02" | "57P03" | "25P03" | "57P05" => Kind::Refused,
            "54000" => Kind::Rejected,
            code if code.starts_with("08") => Kind::Refused,
            code if code.starts_with("22") || code.starts_with("23") => Kind::Rejected,
            _ => Kind::Other,
        }
    }

    async fn inspect(&self, on: &mut PgConnection) -> Result<TableReport, sqlx::Error> {
        let mut transaction = on.begin_with(BEGIN).await?;
        let about = sqlx::query(
            "SELECT current_setting('server_version'), to_regclass($1)::oid::bigint, pg_is_in_recovery(), \
             CASE WHEN to_regclass($1) IS NULL THEN true \
             ELSE has_table_privilege(to_regclass($1)::oid, 'SELECT') AND has_table_privilege(to_regclass($1)::oid, 'INSERT') \
             AND has_table_privilege(to_regclass($1)::oid, 'UPDATE') AND has_table_privilege(to_regclass($1)::oid, 'DELETE') END",
        );
        let about = about
            .bind(&self.quoted)
            .persistent(false)
            .fetch_one(&mut *transaction)
            .await?;
        let table: Option<i64> = about.try_get(1)?;
        let mut report = TableReport {
            server: format!("PostgreSQL {}", about.try_get::<String, _>(0)?),
            ..Default::default()
        };
        if let Some(table) = table {
            let rows = sqlx::query(COLUMNS)
                .bind(table)
                .persistent(false)
                .fetch_all(&mut *transaction)
                .await?;
            let mut columns = Vec::with_capacity(rows.len());
            for row in &rows {
                columns.push(Column {
                    name: row.try_get(0)?,
                    kind: row.try_get(1)?,
                    required: row.try_get(2)?,
                    unique: row.try_get(3)?,
                });
            }
            report.exists = true;
            report.problems = problems(&columns, &["timestamp with time zone"]);
        }
        if about.try_get(2)? {
            report
                .problems
                .push("the server is a standby and takes no writes; name the primary".to_owned());
        }
        if !about.try_get::<bool, _>(3)? {
            report
                .problems
                .push("the user lacks SELECT, INSERT, UPDATE or DELETE on the table".to_owned());
        }
        transaction.commit().await?;
        Ok(report)
    }

    async fn apply(&self, on: &mut PgConnection, upserts: &[&Row], deletes: &[&str]) -> Result<(), sqlx::Error> {
        let table = &self.quoted;
        let mut transaction = on.begin_with(BEGIN).await?;
        let upsert = format!(
            "INSERT INTO {table} (session_key, session_data, expire_date) \
             SELECT * FROM UNNEST($1::text[], $2::text[], $3::timestamptz[]) \
             ON CONFLICT (session_key) DO UPDATE SET session_data = EXCLUDED.session_data, expire_date = EXCLUDED.expire_date"
        );
        for chunk in upserts.chunks(CHUNK) {
            let keys: Vec<&str> = chunk.iter().map(|row| row.session_key.as_str()).collect();
            let data: Vec<&str> = chunk.iter().map(|row| row.session_data.as_str()).collect();
            let ends: Vec<DateTime<Utc>> = chunk.iter().map(|row| instant(row.expire_ms)).collect();
            let query = sqlx::query(AssertSqlSafe(upsert.as_str()))
                .bind(keys)
                .bind(data)
                .bind(ends);
            query.persistent(false).execute(&mut *transaction).await?;
        }
        // DELETE alone locks in the order in which it finds the rows. "C" is the byte order in which the upserts came.
        let delete = format!(
            "DELETE FROM {table} WHERE session_key IN (SELECT session_key FROM {table} WHERE session_key = ANY($1::text[]) \
             ORDER BY session_key COLLATE \"C\" FOR UPDATE)"
        );
        for chunk in deletes.chunks(CHUNK) {
            let query = sqlx::query(AssertSqlSafe(delete.as_str())).bind(chunk);
            query.persistent(false).execute(&mut *transaction).await?;
        }
        transaction.commit().await
    }

    async fn fetch(&self, on: &mut PgConnection, keys: &[&str]) -> Result<HashMap<String, Row>, sqlx::Error> {
        let sql = format!(
            "SELECT session_key::text, session_data, expire_date FROM {} WHERE session_key = ANY($1::text[])",
            self.quoted
        );
        let mut transaction = on.begin_with(BEGIN).await?;
        let mut found = HashMap::with_capacity(keys.len());
        for chunk in keys.chunks(CHUNK) {
            let query = sqlx::query(AssertSqlSafe(sql.as_str())).bind(chunk);
            for found_row in query.persistent(false).fetch_all(&mut *transaction).await? {
                let row = row(&found_row)?;
                found.insert(row.session_key.clone(), row);
            }
        }
        transaction.commit().await?;
        Ok(found)
    }

    async fn page(
        &self,
        on: &mut PgConnection,
        after: &str,
        limit: u32,
        now_ms: i64,
    ) -> Result<Vec<String>, sqlx::Error> {
        let sql = format!(
            "SELECT session_key::text FROM {} AS t WHERE t.session_key > $1::text AND expire_date > $2 \
             ORDER BY t.session_key LIMIT $3",
            self.quoted
        );
        let mut transaction = on.begin_with(BEGIN).await?;
        let query = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(after)
            .bind(instant(now_ms))
            .bind(i64::from(limit));
        let keys = query.persistent(false).fetch_all(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(keys)
    }

    async fn newest(
        &self,
        on: &mut PgConnection,
        before: Option<&Place>,
        limit: u32,
        now_ms: i64,
    ) -> Result<Vec<Place>, sqlx::Error> {
        let mut sql = QueryBuilder::<sqlx::Postgres>::new("SELECT t.expire_date, t.session_key::text FROM ");
        sql.push(&self.quoted)
            .push(" AS t WHERE t.expire_date > ")
            .push_bind(instant(now_ms));
        if let Some(before) = before {
            // The first half is what the index on expire_date answers.
            for (start, end) in [
                (" AND t.expire_date <= ", ""),
                (" AND (t.expire_date < ", " OR t.session_key < "),
            ] {
                sql.push(start)
                    .push_bind(&before.expire_date)
                    .push("::text::timestamptz")
                    .push(end);
            }
            sql.push_bind(&before.session_key).push("::text)");
        }
        sql.push(" ORDER BY t.expire_date DESC, t.session_key DESC LIMIT ")
            .push_bind(i64::from(limit));
        let mut transaction = on.begin_with(BEGIN).await?;
        let rows: Vec<(DateTime<Utc>, String)> = sql
            .build_query_as()
            .persistent(false)
            .fetch_all(&mut *transaction)
            .await?;
        transaction.commit().await?;
        let place = |(at, session_key): (DateTime<Utc>, String)| Place {
            // In a form that no DateStyle reads otherwise.
            expire_date: at.to_rfc3339_opts(SecondsFormat::Micros, true),
            session_key,
        };
        Ok(rows.into_iter().map(place).collect())
    }

    async fn count(&self, on: &mut PgConnection, now_ms: i64) -> Result<i64, sqlx::Error> {
        let sql = format!("SELECT count(*) FROM {} WHERE expire_date > $1", self.quoted);
        let mut transaction = on.begin_with(BEGIN).await?;
        let query = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(instant(now_ms))
            .persistent(false);
        let count = query.fetch_one(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(count)
    }

    async fn sample(&self, on: &mut PgConnection, limit: u32) -> Result<Vec<Row>, sqlx::Error> {
        let sql = format!(
            "SELECT session_key::text, session_data, expire_date FROM {} ORDER BY expire_date DESC LIMIT $1",
            self.quoted
        );
        let mut transaction = on.begin_with(BEGIN).await?;
        let query = sqlx::query(AssertSqlSafe(sql)).bind(i64::from(limit)).persistent(false);
        let rows = query.fetch_all(&mut *transaction).await?;
        transaction.commit().await?;
        rows.iter().map(row).collect()
    }
}
