//! The configuration as it is written, and the secrets that it names but does not hold.

use std::fmt::Write as _;
use std::path::Path;

use super::probe::Held;
use crate::config::Secret;

/// A text as TOML and Python both read it.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// `sessionferry.toml` while it grows.
pub(super) struct Document<'a> {
    pub(super) toml: String,
    /// Secrets: the names of their files, and what is in them.
    pub(super) kept: Vec<(&'static str, Secret)>,
    pub(super) folder: &'a Path,
}

impl Document<'_> {
    pub(super) fn comment(&mut self, text: &str) {
        let _ = writeln!(self.toml, "# {text}");
    }

    pub(super) fn table(&mut self, name: &str, comment: &str) {
        let _ = writeln!(self.toml, "\n# {comment}\n[{name}]");
    }

    pub(super) fn value(&mut self, key: &str, value: &str) {
        let _ = writeln!(self.toml, "{key} = {value}");
    }

    pub(super) fn text(&mut self, key: &str, text: &str) {
        self.value(key, &quoted(text));
    }

    /// A URL as it is, or in a file of its own where it holds a password.
    pub(super) fn url(&mut self, key: &str, file: &'static str, url: &str, is_secret: bool) {
        if is_secret {
            self.kept.push((file, Secret::new(url)));
            self.value(key, &self.file(file));
        } else {
            self.text(key, url);
        }
    }

    pub(super) fn secret(&mut self, key: &str, file: &'static str, held: &Held) {
        let reference = self.reference(file, held);
        self.value(key, &reference);
    }

    /// How the configuration names a secret: by the variable that holds it, else by a file.
    pub(super) fn reference(&mut self, file: &'static str, held: &Held) -> String {
        match &held.env {
            Some(name) => quoted(&format!("env:{name}")),
            None => {
                self.kept.push((file, held.value.clone()));
                self.file(file)
            }
        }
    }

    fn file(&self, name: &str) -> String {
        quoted(&format!("file:{}", self.folder.join(name).display()))
    }
}
