//! What `init` writes: never over a file that is there, and secrets for their owner's eyes alone.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::plan::Plan;

const OWNER_ONLY_FOLDER: u32 = 0o700;
const OWNER_ONLY_FILE: u32 = 0o600;

/// Why nothing, or not everything, was written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("{0} is there already: remove it, name another file (--output), or overwrite it (--overwrite)")]
    Exists(PathBuf),
    #[error("cannot write {path}: {error}")]
    Io { path: PathBuf, error: io::Error },
}

/// Writes the plan's secrets into `secrets` and its configuration to `config`.
///
/// # Errors
/// A file is there already (and `overwrite` is not asked for), or cannot be written.
pub fn write(plan: &Plan, config: &Path, secrets: &Path, overwrite: bool) -> Result<(), WriteError> {
    let named: Vec<_> = plan
        .secrets
        .iter()
        .map(|(name, secret)| (secrets.join(name), secret))
        .collect();
    if !overwrite {
        let mut files = named.iter().map(|(path, _)| path.as_path()).chain([config]);
        if let Some(there) = files.find(|path| path.exists()) {
            return Err(WriteError::Exists(there.to_owned()));
        }
    }
    if !named.is_empty() {
        let made = DirBuilder::new()
            .recursive(true)
            .mode(OWNER_ONLY_FOLDER)
            .create(secrets);
        made.map_err(|error| failed(secrets, error))?;
        // Such a folder is soon committed by mistake.
        put(&secrets.join(".gitignore"), "*\n", OWNER_ONLY_FILE)?;
    }
    for (path, secret) in &named {
        put(path, &format!("{}\n", secret.expose()), OWNER_ONLY_FILE)?;
    }
    put(config, &plan.toml, OWNER_ONLY_FILE)
}

/// As a whole or not at all: into a new file beside it, which takes its place.
fn put(path: &Path, text: &str, mode: u32) -> Result<(), WriteError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&new)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| fs::rename(&new, path));
    written.map_err(|error| failed(path, error))
}

fn failed(path: &Path, error: io::Error) -> WriteError {
    WriteError::Io {
        path: path.to_owned(),
        error,
    }
}
