//! One value at a time: from text or TOML to a type, or a reason in the operator's words.
//!
//! Messages quote a value only where the setting is no secret; functions that may see a secret quote nothing.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use toml::Value;

use super::Listen;

/// Flags and variables arrive as text; the file may also write numbers and booleans as such.
pub(super) fn text(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        other => Err(format!("expected text in quotes, found {}", kind(other))),
    }
}

pub(super) fn text_or_number(value: &Value) -> Result<String, String> {
    match value {
        Value::Integer(number) => Ok(number.to_string()),
        other => text(other),
    }
}

pub(super) fn non_empty(value: &Value) -> Result<String, String> {
    let text = text(value)?;
    if text.is_empty() {
        Err("it must not be empty".into())
    } else {
        Ok(text)
    }
}

pub(super) fn path(value: &Value) -> Result<PathBuf, String> {
    non_empty(value).map(PathBuf::from)
}

pub(super) fn number(value: &Value, min: u64, max: u64) -> Result<u64, String> {
    let found = match value {
        Value::Integer(number) => u64::try_from(*number).ok(),
        other => text(other)?.trim().parse().ok(),
    };
    match found {
        Some(number) if (min..=max).contains(&number) => Ok(number),
        _ => Err(format!("`{}` is not a whole number from {min} to {max}", shown(value))),
    }
}

pub(super) fn boolean(value: &Value) -> Result<bool, String> {
    match value {
        Value::Boolean(flag) => Ok(*flag),
        Value::String(text) if text.eq_ignore_ascii_case("true") => Ok(true),
        Value::String(text) if text.eq_ignore_ascii_case("false") => Ok(false),
        other => Err(format!("`{}` is neither true nor false", shown(other))),
    }
}

/// A list in the file; separated by commas elsewhere.
pub(super) fn list(value: &Value) -> Result<Vec<String>, String> {
    match value {
        Value::Array(items) => items.iter().map(text).collect(),
        other => Ok(text(other)?
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .map(str::to_owned)
            .collect()),
    }
}

/// `2s`, `500ms`, `1.5s`, `1m`: always with a unit, because 500 alone reads as seconds to one and as ms to another.
pub(super) fn duration(value: &Value, min: Duration, max: Duration) -> Result<Duration, String> {
    let written = shown(value);
    let unit_at = written.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(written.len());
    let (amount, unit) = written.split_at(unit_at);
    let factor = match unit.trim() {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "" => return Err(format!("`{written}` has no unit; write 2s or 500ms")),
        _ => return Err(format!("`{written}` is not a duration; write 2s or 500ms")),
    };
    let amount: f64 = amount
        .trim()
        .parse()
        .map_err(|_| format!("`{written}` is not a duration; write 2s or 500ms"))?;
    let found = Duration::try_from_secs_f64(amount * factor)
        .map_err(|_| format!("`{written}` is not a duration; write 2s or 500ms"))?;
    if found < min || found > max {
        return Err(format!("{written} is not within {min:?} to {max:?}"));
    }
    Ok(found)
}

/// `host:port`, `[v6]:port` or `unix:/path`.
pub(super) fn listen(value: &Value) -> Result<Listen, String> {
    let text = text(value)?;
    if let Some(path) = text.strip_prefix("unix:") {
        return match path.is_empty() {
            true => Err("a path must follow unix:".into()),
            false => Ok(Listen::Unix(path.into())),
        };
    }
    split_host_port(&text)?;
    Ok(Listen::Tcp(text))
}

/// `host:port` alone.
pub(super) fn tcp_address(value: &Value) -> Result<String, String> {
    let text = text(value)?;
    split_host_port(&text)?;
    Ok(text)
}

fn split_host_port(text: &str) -> Result<(&str, u16), String> {
    let wrong = || format!("`{text}` is not host:port, such as 127.0.0.1:6380");
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let host = match host.strip_prefix('[') {
        Some(v6) => v6.strip_suffix(']').ok_or_else(wrong)?,
        None if host.contains(':') => return Err(format!("`{text}`: write an IPv6 address as [::1]:6380")),
        None => host,
    };
    if host.is_empty() {
        return Err(format!(
            "`{text}` names no host; write 0.0.0.0{text} to listen on all addresses"
        ));
    }
    if host.contains(['/', '@', ' ']) {
        return Err(wrong());
    }
    Ok((host, port.parse().map_err(|_| wrong())?))
}

/// Whether only this machine can reach the address. A name other than `localhost` may mean anything, so it is not.
pub(super) fn is_loopback(address: &str) -> bool {
    match split_host_port(address) {
        Ok((host, _)) => host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()),
        Err(_) => false,
    }
}

/// The one place that says what a Redis URL is.
pub(super) fn redis_url(url: &str) -> Result<(), String> {
    crate::net::Endpoint::parse(url)
        .map(drop)
        .map_err(|error| error.to_string())
}

/// The one place that says what a database URL is.
pub(super) fn database_url(url: &str) -> Result<(), String> {
    let schemes = ["postgres://", "postgresql://", "mysql://", "mariadb://", "sqlite:"];
    match schemes.iter().find_map(|scheme| url.strip_prefix(scheme)) {
        Some(rest) if !rest.is_empty() => Ok(()),
        _ => Err("it does not begin with postgres://, mysql:// or sqlite://; write `none` for no database".into()),
    }
}

/// A table name goes into SQL text, so it is a plain identifier, with a schema before it at most.
pub(super) fn table(value: &Value) -> Result<String, String> {
    let text = text(value)?;
    let plain = |part: &str| {
        (1..=63).contains(&part.len())
            && !part.starts_with(|c: char| c.is_ascii_digit())
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    if text.split('.').count() <= 2 && text.split('.').all(plain) {
        Ok(text)
    } else {
        Err(format!(
            "`{text}` is not a table name: letters, digits and _, with `schema.` before it at most"
        ))
    }
}

/// What may be shown of a URL: never the user part, never the query (both may hold a password).
pub(super) fn redacted(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once(':') else {
        return "***".into();
    };
    let (slashes, rest) = match rest.strip_prefix("//") {
        Some(rest) => ("//", rest),
        None => ("", rest),
    };
    // An `@` behind a `?` may belong to a password on either side: show nothing of it then.
    let bare_query_at = rest.find('?').unwrap_or(rest.len());
    if rest[bare_query_at..].contains('@') {
        return format!("{scheme}:{slashes}***");
    }
    let rest = &rest[..bare_query_at];
    match rest.rfind('@') {
        Some(at) => format!("{scheme}:{slashes}***@{}", &rest[at + 1..]),
        None => format!("{scheme}:{slashes}{rest}"),
    }
}

/// A value as the operator wrote it.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "text",
        Value::Integer(_) | Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}
