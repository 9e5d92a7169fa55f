//! Live sessions: what their keys and values look like, and whether rows and the target fit them.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Findings, Level, Listed, SAMPLE, Subject};
use crate::clock::now_ms;
use crate::session::{Comparison, KeyPatterns, Unstorable, ValueFormat};
use crate::sink::{DatabaseErrorKind, RedisStore, Stored};
use crate::tee::digest;
use crate::tee::{Rows, SiteRows};

/// SCAN calls spent on finding them: enough for a few hundred thousand keys of other kinds.
const MAX_SCANS: usize = 300;
const SCAN_COUNT: usize = 1000;
/// What any Django session key holds, whatever prefix and version stand in front of it.
const ANY_SESSION: &str = "*django.contrib.sessions.*";
/// Sessions that are named, one by one.
const LISTED: usize = 20;

/// What was found under the patterns.
#[derive(Default)]
struct Sample {
    /// Up to [`SAMPLE`] session keys.
    keys: Vec<Bytes>,
    /// Keys under a pattern whose rest is no session's.
    others: usize,
    /// All keys were looked at.
    all: bool,
    /// The patterns that no session was found under.
    without: Vec<String>,
}

async fn sample(store: &RedisStore, patterns: &KeyPatterns) -> Result<Sample, String> {
    let mut sample = Sample {
        all: true,
        ..Sample::default()
    };
    let globs = patterns.scan_globs();
    // Each kind of keys has its share: the first one's many sessions say nothing about the next one's.
    let share = SAMPLE.div_ceil(globs.len().max(1));
    for glob in globs {
        let (mut cursor, before) = (0, sample.keys.len());
        for _ in 0..MAX_SCANS {
            let (next, found) = store
                .scan(cursor, &glob, SCAN_COUNT)
                .await
                .map_err(|error| error.to_string())?;
            let (keys, others): (Vec<_>, Vec<_>) =
                found.into_iter().partition(|key| patterns.session_key(key).is_some());
            sample.keys.extend(keys);
            sample.others += others.len();
            cursor = next;
            if cursor == 0 || sample.keys.len() - before >= share {
                break;
            }
        }
        sample.all &= cursor == 0;
        if sample.keys.len() == before {
            sample.without.push(glob);
        }
    }
    Ok(sample)
}

pub(super) async fn live_sessions(findings: &mut Findings, subject: &Subject<'_>) {
    let Sample {
        keys,
        others,
        all,
        without,
    } = match sample(subject.source, subject.patterns).await {
        Ok(found) => found,
        Err(error) => {
            findings.add(
                Level::Red,
                "sessions",
                format!("cannot look for sessions at the source: {error}"),
            );
            return;
        }
    };
    if keys.is_empty() {
        no_sessions(findings, subject, all).await;
        return;
    }
    let stored = match subject.source.read(&keys).await {
        Ok(stored) => stored,
        Err(error) => {
            findings.add(
                Level::Red,
                "sessions",
                format!("cannot read sessions at the source: {error}"),
            );
            return;
        }
    };
    let (mut read, mut wrong_type) = (0, 0);
    let mut unstorable = BTreeMap::<String, u64>::new();
    for (key, stored) in keys.iter().zip(&stored) {
        match stored {
            Stored::Absent => {}
            Stored::WrongType => wrong_type += 1,
            Stored::Value { value, .. } => {
                read += 1;
                if let Some(Err(reason)) = site(subject, key).map(|site| site.codec.encode(value, now_ms() / 1000)) {
                    *unstorable.entry(reason.to_string()).or_default() += 1;
                }
            }
        }
    }
    let more = if all { "" } else { " (a sample)" };
    findings.add(
        Level::Green,
        "sessions",
        format!("{read} live sessions read at the source{more}"),
    );
    for glob in without {
        findings.add(
            Level::Yellow,
            "sessions",
            format!("no session at the source matches {glob}: a site without sessions yet, or under another prefix"),
        );
    }
    if others > 0 {
        findings.add(
            Level::Yellow,
            "sessions",
            format!(
                "{others} keys begin like sessions and are none{more}: they stay where they are; if they are sessions, their keys are of a \
                 custom kind (django.session_key_patterns)"
            ),
        );
    }
    if wrong_type > 0 {
        findings.add(
            Level::Yellow,
            "sessions",
            format!(
                "{wrong_type} keys look like sessions and are no strings: is django.session_key_patterns too wide?"
            ),
        );
    }
    if let Some(digest_key) = &subject.deep {
        written(findings, &keys, &stored, subject);
        let listed = keys.iter().zip(&stored).filter_map(|(key, stored)| {
            let Stored::Value { value, .. } = stored else {
                return None;
            };
            let reason = site(subject, key)?.codec.encode(value, now_ms() / 1000).err()?;
            Some(listed(digest(digest_key, key), &reason))
        });
        findings.list(listed.take(LISTED).collect());
        if let Some(rows) = subject.rows {
            compared(findings, rows, &keys, &stored).await;
        }
    }
    for (reason, count) in unstorable {
        findings.add(
            Level::Yellow,
            "sessions",
            format!(
                "{count} of {read} sessions cannot be stored in a row ({reason}); they are copied to the target alone"
            ),
        );
    }
}

/// The site of a session, where it has rows.
fn site<'a>(subject: &Subject<'a>, key: &[u8]) -> Option<&'a SiteRows> {
    subject.rows?.of(key).map(|(site, _)| site)
}

fn listed(session: String, reason: &Unstorable) -> Listed {
    Listed {
        session,
        reason: reason.to_string(),
        type_name: reason.type_name().map(str::to_owned),
    }
}

/// What the values were serialized and compressed with.
fn written(findings: &mut Findings, keys: &[Bytes], stored: &[Stored], subject: &Subject<'_>) {
    let mut forms = BTreeMap::<String, u64>::new();
    for (key, stored) in keys.iter().zip(stored) {
        let Stored::Value { value, .. } = stored else {
            continue;
        };
        let form = match site(subject, key) {
            Some(site) => site.codec.form_of(value),
            None => ValueFormat::default().decode(value).ok().map(|(_, form)| form),
        };
        if let Some(form) = form {
            let compressed = form.compressed.map(|with| format!(" compressed with {}", with.name()));
            *forms
                .entry(format!("{}{}", form.serialized.name(), compressed.unwrap_or_default()))
                .or_default() += 1;
        }
    }
    let forms: Vec<String> = forms.iter().map(|(form, count)| format!("{count} as {form}")).collect();
    if !forms.is_empty() {
        findings.add(
            Level::Green,
            "sessions",
            format!("values are written {}", forms.join(", ")),
        );
    }
}

/// Whether the rows that are there already hold the same.
async fn compared(findings: &mut Findings, rows: &Rows, keys: &[Bytes], stored: &[Stored]) {
    let found = match rows.fetch(keys).await {
        Ok(found) => found,
        // Said already, with what to do about it.
        Err(error) if error.kind() == DatabaseErrorKind::MissingTable => return,
        Err(error) => {
            findings.add(
                Level::Red,
                "rows",
                format!("cannot read the rows of these sessions: {error}"),
            );
            return;
        }
    };
    let (mut same, mut different, mut missing) = (0, 0, 0);
    for (key, stored) in keys.iter().zip(stored) {
        let (Some((site, _)), Stored::Value { value, .. }) = (rows.of(key), stored) else {
            continue;
        };
        match found.get(key).map(|row| site.codec.compare(value, &row.session_data)) {
            // No row is to be expected for these.
            None if site.codec.encode(value, 0).is_err() => {}
            None => missing += 1,
            Some(Comparison::Same) => same += 1,
            Some(Comparison::Different | Comparison::Unreadable(_)) => different += 1,
            Some(Comparison::Unstorable(_)) => {}
        }
    }
    // Where Django writes the rows they must be there; else backfill makes them.
    let djangos = rows.written().is_none();
    let level = match (djangos, different, missing) {
        (_, 0, 0) | (false, 0, _) => Level::Green,
        _ => Level::Yellow,
    };
    let next = match (djangos, different) {
        (true, _) => "Django's cached_db writes them",
        (false, 0) => "backfill writes those that are missing",
        (false, _) => "backfill writes them anew",
    };
    findings.add(
        level,
        "rows",
        format!("of these sessions {same} have a row that holds the same, {different} another, {missing} none: {next}"),
    );
}

/// Nothing matches: what is there instead?
async fn no_sessions(findings: &mut Findings, subject: &Subject<'_>, all: bool) {
    let wanted = subject.patterns.scan_globs().join(", ");
    let other = other_prefix(subject.source).await;
    let level = if other.is_none() { Level::Yellow } else { Level::Red };
    let detail = match other {
        Some(prefix) => format!(
            "no key at the source matches {wanted}, but others start with {prefix}: set django.key_prefix, \
             django.key_version and django.engine to match"
        ),
        None if all => format!(
            "no key at the source matches {wanted}: a site without sessions yet, or sessions in another database number \
             (redis://…/N), or under another prefix"
        ),
        None => format!("no key that matches {wanted} was found among many others at the source"),
    };
    findings.add(level, "sessions", detail);
}

/// How Django session keys of any site start there, if some are found: the text up to the engine's name, which is no
/// secret.
pub async fn other_prefix(store: &RedisStore) -> Option<String> {
    const MIDDLE: &str = "django.contrib.sessions.";
    let (_, found) = store.scan(0, ANY_SESSION, 100 * SCAN_COUNT).await.ok()?;
    let text = String::from_utf8_lossy(found.first()?).into_owned();
    let end = text.find(MIDDLE)? + MIDDLE.len();
    let engine = if text[end..].starts_with("cached_db") {
        "cached_db"
    } else {
        "cache"
    };
    Some(format!("{}{engine}", &text[..end]))
}

/// Sessions at the target that the source does not have.
pub(super) async fn strangers(findings: &mut Findings, subject: &Subject<'_>) {
    let result = async {
        let Sample { keys, all, .. } = sample(subject.target, subject.patterns).await?;
        let known = subject.source.exists(&keys).await.map_err(|error| error.to_string())?;
        Ok::<_, String>((keys.len(), known.iter().filter(|known| !**known).count(), all))
    };
    match result.await {
        Ok((0, _, _)) => findings.add(Level::Green, "target", "holds no sessions yet"),
        Ok((seen, 0, _)) => findings.add(Level::Green, "target", format!("{seen} sessions there, all known to the source")),
        Ok((seen, strange, all)) => findings.add(
            Level::Red,
            "target",
            format!(
                "it holds {strange}{} sessions that the source does not have (of {seen} looked at): another site's, or left from \
                 an earlier attempt; use an empty Redis or another database number, or delete them there first",
                if all { "" } else { " or more" }
            ),
        ),
        Err(error) => findings.add(Level::Red, "target", format!("cannot look for sessions there: {error}")),
    }
}
