//! The session table as Django makes it: its name, its columns, and how `expire_date` is written.
//!
//! Established by running Django: with `USE_TZ` SQLite and MySQL hold UTC without saying so, without it the local time
//! of `TIME_ZONE`; PostgreSQL holds the instant either way.

use chrono::{DateTime, Days, LocalResult, NaiveDateTime, Offset, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;

/// Length of `session_key` in Django's table. A longer key fits no row there.
pub const SESSION_KEY_MAX: usize = 40;

/// PostgreSQL's limit for a name; MySQL's is 64.
const NAME_MAX: usize = 63;

/// 9999-12-30, ms since the epoch: Python's and MySQL's years end with 9999, and a day is left for the time zone.
const EXPIRE_MS_MAX: i64 = 253_402_128_000_000;

/// A table name that is safe to put into SQL: letters, digits and `_`, with an optional schema in front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) schema: Option<String>,
    pub(super) name: String,
}

impl Table {
    pub(super) fn parse(text: &str) -> Option<Table> {
        let name = |part: &str| {
            let plain = part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            (plain && !part.is_empty() && part.len() <= NAME_MAX).then(|| part.to_owned())
        };
        match text.split_once('.') {
            None => Some(Table {
                schema: None,
                name: name(text)?,
            }),
            Some((schema, table)) => Some(Table {
                schema: Some(name(schema)?),
                name: name(table)?,
            }),
        }
    }

    /// Quoted as `"schema"."table"`, with `quote` for the quotes. Django quotes too, so letter case counts.
    pub(super) fn quoted(&self, quote: char) -> String {
        match &self.schema {
            None => format!("{quote}{}{quote}", self.name),
            Some(schema) => format!("{quote}{schema}{quote}.{quote}{}{quote}", self.name),
        }
    }
}

/// What Django's `USE_TZ` and `TIME_ZONE` make of an instant where the column has no zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Calendar {
    /// `None` with `USE_TZ`: UTC.
    zone: Option<Tz>,
}

impl Calendar {
    pub(super) fn new(use_tz: bool, time_zone: Tz) -> Self {
        Calendar {
            zone: (!use_tz).then_some(time_zone),
        }
    }

    /// The wall clock's reading at an instant, ms since the epoch.
    pub(super) fn naive(self, ms: i64) -> NaiveDateTime {
        let utc = instant(ms);
        match self.zone {
            None => utc.naive_utc(),
            Some(zone) => utc.with_timezone(&zone).naive_local(),
        }
    }

    /// The instant at which the wall clock reads `naive`, ms since the epoch. An hour that comes twice a year is taken
    /// the second time, so that no session ends early; in one that never comes, clocks are taken as not yet set
    /// forward, as Python does.
    pub(super) fn millis(self, naive: NaiveDateTime) -> i64 {
        let Some(zone) = self.zone else {
            return naive.and_utc().timestamp_millis();
        };
        match zone.from_local_datetime(&naive) {
            LocalResult::Single(at) => at.timestamp_millis(),
            LocalResult::Ambiguous(_, later) => later.timestamp_millis(),
            LocalResult::None => {
                // No zone sets its clocks twice within a day.
                let before = naive.checked_sub_days(Days::new(1)).unwrap_or(naive);
                let offset = zone.offset_from_utc_datetime(&before).fix().local_minus_utc();
                let utc = naive
                    .checked_sub_signed(TimeDelta::seconds(offset.into()))
                    .unwrap_or(naive);
                utc.and_utc().timestamp_millis()
            }
        }
    }

    /// As Django writes it into SQLite: Python's `str(datetime)`. A space and not a `T`: SQLite compares it as text.
    pub(super) fn text(self, ms: i64) -> String {
        let naive = self.naive(ms);
        let format = if naive.and_utc().timestamp_subsec_micros() == 0 {
            "%Y-%m-%d %H:%M:%S"
        } else {
            "%Y-%m-%d %H:%M:%S%.6f"
        };
        naive.format(format).to_string()
    }

    /// Reads what [`Calendar::text`] writes, and the forms that other tools leave there.
    pub(super) fn parse(self, text: &str) -> Option<i64> {
        if let Ok(at) = DateTime::parse_from_rfc3339(text) {
            return Some(at.timestamp_millis());
        }
        let forms = ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f"];
        let naive = forms
            .iter()
            .find_map(|form| NaiveDateTime::parse_from_str(text, form).ok())?;
        Some(self.millis(naive))
    }
}

/// An instant that every database and Python can hold.
pub(super) fn instant(ms: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(ms.clamp(0, EXPIRE_MS_MAX)).unwrap_or(DateTime::UNIX_EPOCH)
}

/// A column as the database describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: String,
    /// In lower case.
    pub(super) kind: String,
    /// A row cannot be inserted without a value for it.
    pub(super) required: bool,
    /// It alone is the primary key, or has a unique index.
    pub(super) unique: bool,
}

/// What is wrong with `columns`, in plain words; empty where rows can be kept there. `dates` are the types that hold
/// `expire_date` as Django does.
pub(super) fn problems(columns: &[Column], dates: &[&str]) -> Vec<String> {
    let texts = ["varchar", "character varying", "char", "text", "longtext", "mediumtext"];
    let mut problems = Vec::new();
    for (name, kinds) in [
        ("session_key", &texts[..]),
        ("session_data", &texts[..]),
        ("expire_date", dates),
    ] {
        match columns.iter().find(|column| column.name == name) {
            None => problems.push(format!("column {name} is missing")),
            Some(column)
                if !kinds
                    .iter()
                    .any(|kind| base(&column.kind) == *kind || column.kind == *kind) =>
            {
                problems.push(format!("column {name} is {}, expected {}", column.kind, kinds[0]));
            }
            Some(column) if name == "session_key" && !column.unique => {
                problems.push("column session_key is neither the primary key nor unique".to_owned());
            }
            Some(_) => {}
        }
    }
    for column in columns {
        if column.required && !["session_key", "session_data", "expire_date"].contains(&column.name.as_str()) {
            problems.push(format!(
                "column {} must have a value that sessionferry does not know",
                column.name
            ));
        }
    }
    problems
}

/// The type without its length: `varchar(40)` is a `varchar`.
fn base(kind: &str) -> &str {
    kind.split('(').next().unwrap_or(kind).trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-07-15 12:34:56.789 UTC.
    const SUMMER: i64 = 1_784_118_896_789;

    fn new_york() -> Calendar {
        Calendar::new(false, Tz::America__New_York)
    }

    #[test]
    fn dates_are_written_as_django_writes_them() {
        let utc = Calendar::new(true, Tz::America__New_York);
        assert_eq!(utc.text(SUMMER), "2026-07-15 12:34:56.789000");
        assert_eq!(new_york().text(SUMMER), "2026-07-15 08:34:56.789000");
        assert_eq!(utc.text(1_784_118_896_000), "2026-07-15 12:34:56");
    }

    #[test]
    fn dates_come_back_as_they_went() {
        for calendar in [
            Calendar::new(true, Tz::UTC),
            new_york(),
            Calendar::new(false, Tz::Asia__Kathmandu),
        ] {
            for ms in [0, 1, SUMMER, 1_767_225_600_000, EXPIRE_MS_MAX] {
                assert_eq!(calendar.parse(&calendar.text(ms)), Some(ms), "{calendar:?} {ms}");
            }
        }
    }

    #[test]
    fn dates_out_of_range_are_brought_into_it() {
        assert_eq!(new_york().text(i64::MAX).get(..4), Some("9999"));
        assert_eq!(Calendar::new(true, Tz::UTC).text(i64::MIN), "1970-01-01 00:00:00");
    }

    #[test]
    fn an_hour_that_comes_twice_is_the_later_and_one_that_never_comes_is_as_python_has_it() {
        // datetime(2026, 11, 1, 1, 30, fold=1) and datetime(2026, 3, 8, 2, 30) in America/New_York.
        assert_eq!(new_york().parse("2026-11-01 01:30:00"), Some(1_793_514_600_000));
        assert_eq!(new_york().parse("2026-03-08 02:30:00"), Some(1_772_955_000_000));
    }

    #[test]
    fn other_forms_of_a_date_are_read() {
        let utc = Calendar::new(true, Tz::UTC);
        for text in [
            "2026-07-15T12:34:56.789",
            "2026-07-15T12:34:56.789Z",
            "2026-07-15 14:34:56.789+02:00",
        ] {
            assert_eq!(utc.parse(text), Some(SUMMER), "{text}");
        }
        assert_eq!(utc.parse("tomorrow"), None);
    }

    #[test]
    fn only_plain_table_names_are_taken() {
        assert_eq!(
            Table::parse("django_session").map(|t| t.quoted('`')),
            Some("`django_session`".into())
        );
        assert_eq!(
            Table::parse("web.Sessions2").map(|t| t.quoted('"')),
            Some("\"web\".\"Sessions2\"".into())
        );
        for bad in ["", ".", "a.", ".b", "a.b.c", "a b", "a\"b", "a;b", "é", &"x".repeat(64)] {
            assert_eq!(Table::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_table_is_said() {
        let column = |name: &str, kind: &str| Column {
            name: name.into(),
            kind: kind.into(),
            required: true,
            unique: name == "session_key",
        };
        let good = vec![
            column("session_key", "varchar(40)"),
            column("session_data", "text"),
            column("expire_date", "datetime(6)"),
        ];
        assert_eq!(problems(&good, &["datetime"]), Vec::<String>::new());
        let mut bad = good.clone();
        bad[0].unique = false;
        bad[2].kind = "bigint".into();
        bad.remove(1);
        bad.push(column("account_id", "integer"));
        assert_eq!(
            problems(&bad, &["datetime"]).len(),
            4,
            "{:?}",
            problems(&bad, &["datetime"])
        );
    }
}
