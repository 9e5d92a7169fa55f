//! Values that must never be shown, and where they are read from.

use std::fmt;
use std::io::Read;

/// A key, a token, or a URL that may hold a password. `Debug` and `Display` show `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Secret {
        Secret(value.into())
    }

    /// The value itself. Each caller is a place to look at when asking where secrets go.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A file with a secret holds one line. The limit stops `file:/dev/zero`.
const SECRET_FILE_BYTES_MAX: u64 = 64 * 1024;

/// Follows `file:PATH` and `env:NAME`, once; anything else is the value itself.
///
/// Gives the value and, where it came through one of the two, that indirection, which is safe to show.
pub(crate) fn resolve(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<(String, Option<String>), String> {
    let value = if let Some(path) = text.strip_prefix("file:") {
        read_file(path)?
    } else if let Some(name) = text.strip_prefix("env:") {
        env(name).ok_or_else(|| format!("the environment variable {name} is not set"))?
    } else {
        return Ok((text.to_owned(), None));
    };
    if value.is_empty() {
        return Err(format!("{text} is empty"));
    }
    Ok((value, Some(text.to_owned())))
}

/// Reads a secret from a file; the line end that editors add is no part of it.
pub(crate) fn read_file(path: &str) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|e| format!("cannot read the file {path}: {e}"))?;
    let mut value = String::new();
    file.take(SECRET_FILE_BYTES_MAX + 1)
        .read_to_string(&mut value)
        .map_err(|e| format!("cannot read the file {path}: {e}"))?;
    if value.len() as u64 > SECRET_FILE_BYTES_MAX {
        return Err(format!(
            "the file {path} is over {SECRET_FILE_BYTES_MAX} bytes: it must hold the secret alone"
        ));
    }
    let trimmed = value.trim_end_matches(['\r', '\n']).len();
    value.truncate(trimmed);
    Ok(value)
}
