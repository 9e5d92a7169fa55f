//! Flag over environment over file over default; every bad value is kept, so that all are named in one go.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::keys::{KEYS, Key};
use super::secret::{self, Secret};
use super::{Inputs, parse};

/// Read where it exists and `--config` does not name another.
pub const DEFAULT_FILE: &str = "sessionferry.toml";

/// Settings whose value is itself a table or a list of tables.
const TABLES: [&str; 2] = ["client.users", "site"];

/// What each site may have for itself.
const SITE_TABLES: [&str; 2] = ["django.", "database."];

/// Where a value was found.
enum Origin {
    Flag(&'static str),
    Env(&'static str),
    File(PathBuf),
    /// The table of one site in a file, counted from 1.
    Site(PathBuf, usize),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag(flag) => write!(f, "--{flag}"),
            Origin::Env(name) => write!(f, "{name}"),
            Origin::File(path) => write!(f, "{}", path.display()),
            Origin::Site(path, number) => write!(f, "[[site]] number {number} of {}", path.display()),
        }
    }
}

/// Collects values and problems.
pub(super) struct Gather<'a> {
    inputs: &'a Inputs<'a>,
    file: Option<(PathBuf, BTreeMap<String, Value>)>,
    /// The site whose settings are asked for: its table goes before everything else.
    site: Option<(usize, BTreeMap<String, Value>)>,
    /// What is in a file that cannot be read is not known: then nothing is called missing.
    file_failed: bool,
    /// One line per setting, for the log.
    pub(super) settings: Vec<String>,
    /// One line per bad value.
    pub(super) problems: Vec<String>,
    /// What works but is better changed.
    pub(super) warnings: Vec<String>,
}

impl<'a> Gather<'a> {
    pub(super) fn new(inputs: &'a Inputs<'a>) -> Gather<'a> {
        let mut gather = Gather {
            inputs,
            file: None,
            site: None,
            file_failed: false,
            settings: Vec::new(),
            problems: Vec::new(),
            warnings: Vec::new(),
        };
        for name in inputs.flags.keys().filter(|name| Key::find(name).is_none()) {
            gather.problems.push(format!("unknown setting `{name}`"));
        }
        let path = match &inputs.config_file {
            Some(path) => Some(path.clone()),
            None => inputs
                .directory
                .map(|dir| dir.join(DEFAULT_FILE))
                .filter(|path| path.exists()),
        };
        if let Some(path) = path {
            match read(&path) {
                Ok(table) => {
                    let mut values = BTreeMap::new();
                    flatten("", table, &mut values);
                    for name in values.keys() {
                        if Key::find(name).is_none() {
                            gather.problems.push(unknown(name, &path));
                        }
                    }
                    gather.file = Some((path, values));
                }
                Err(problem) => {
                    gather.file_failed = true;
                    gather.problems.push(problem);
                }
            }
        }
        gather
    }

    fn find(&self, key: &Key) -> Option<(Value, Origin)> {
        if let (Some((number, values)), Some((path, _))) = (&self.site, &self.file)
            && let Some(value) = values.get(key.toml)
        {
            return Some((value.clone(), Origin::Site(path.clone(), *number)));
        }
        if let Some(text) = self.inputs.flags.get(key.toml) {
            return Some((Value::String(text.clone()), Origin::Flag(key.flag.unwrap_or(key.toml))));
        }
        // An empty variable is what `docker compose` makes of one that is not set.
        if let Some(name) = key.env
            && let Some(text) = (self.inputs.env)(name).filter(|text| !text.is_empty())
        {
            return Some((Value::String(text), Origin::Env(name)));
        }
        let (path, values) = self.file.as_ref()?;
        values
            .get(key.toml)
            .map(|value| (value.clone(), Origin::File(path.clone())))
    }

    fn problem(&mut self, key: &Key, origin: &Origin, reason: &str) {
        self.problems
            .push(format!("{}: {reason}; found in {origin}", key.names()));
    }

    /// A setting that is no secret. `None` where it is not set, or is bad (which is noted).
    pub(super) fn optional<T>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&Value) -> Result<T, String>,
    ) -> Option<T> {
        let key = known(name);
        let Some((value, origin)) = self.find(key) else {
            if !key.default.is_empty() {
                self.settings.push(format!("{name} = {} (default)", key.default));
            }
            return None;
        };
        match parse(&value) {
            Ok(parsed) => {
                self.settings
                    .push(format!("{name} = {} ({origin})", parse::shown(&value)));
                Some(parsed)
            }
            Err(reason) => {
                self.problem(key, &origin, &reason);
                None
            }
        }
    }

    /// A secret, `file:` and `env:` followed. `shown` says how much of it may be seen.
    pub(super) fn secret(
        &mut self,
        name: &'static str,
        check: impl Fn(&str) -> Result<(), String>,
        shown: impl Fn(&str) -> String,
    ) -> Option<Secret> {
        let key = known(name);
        let Some((value, origin)) = self.find(key) else {
            if !key.default.is_empty() {
                self.settings.push(format!("{name} = {} (default)", key.default));
            }
            return None;
        };
        let resolved = parse::text(&value)
            .and_then(|text| secret::resolve(&text, self.inputs.env))
            .and_then(|(text, indirection)| match text.is_empty() {
                true => Err("it must not be empty".into()),
                false => check(&text).map(|()| (text, indirection)),
            });
        match resolved {
            Ok((text, indirection)) => {
                let through = indirection.as_ref().map(|i| format!(", from {i}")).unwrap_or_default();
                self.settings
                    .push(format!("{name} = {} ({origin}{through})", shown(&text)));
                // Anybody on the machine can read another process's arguments.
                let hidden = shown(&text).contains("***");
                if let (Origin::Flag(flag), None, true) = (&origin, &indirection, hidden) {
                    self.warnings.push(format!(
                        "--{flag} was given as it is, and other users of this machine can read command lines: \
                         give --{flag} file:PATH or env:NAME"
                    ));
                }
                Some(Secret::new(text))
            }
            Err(reason) => {
                self.problem(key, &origin, &reason);
                None
            }
        }
    }

    /// A list of secrets, each of which may be `file:PATH` or `env:NAME`.
    pub(super) fn secrets(&mut self, name: &'static str) -> Vec<Secret> {
        let key = known(name);
        let Some((value, origin)) = self.find(key) else {
            return Vec::new();
        };
        let resolved: Result<Vec<Secret>, String> = parse::list(&value).and_then(|items| {
            items
                .iter()
                .map(|item| secret::resolve(item, self.inputs.env).map(|(text, _)| Secret::new(text)))
                .collect()
        });
        match resolved {
            Ok(secrets) => {
                self.settings
                    .push(format!("{name} = {} of them, *** ({origin})", secrets.len()));
                secrets
            }
            Err(reason) => {
                self.problem(key, &origin, &reason);
                Vec::new()
            }
        }
    }

    /// A table of names and secrets.
    pub(super) fn secret_table(&mut self, name: &'static str) -> BTreeMap<String, Secret> {
        let key = known(name);
        let Some((value, origin)) = self.find(key) else {
            return BTreeMap::new();
        };
        let resolved: Result<BTreeMap<String, Secret>, String> = match &value {
            Value::Table(table) => table
                .iter()
                .map(|(user, value)| {
                    let text = parse::text(value).map_err(|reason| format!("{user}: {reason}"))?;
                    let (text, _) = secret::resolve(&text, self.inputs.env)?;
                    Ok((user.clone(), Secret::new(text)))
                })
                .collect(),
            _ => Err("expected a table of names and passwords".into()),
        };
        match resolved {
            Ok(users) => {
                self.settings
                    .push(format!("{name} = {} of them, *** ({origin})", users.len()));
                users
            }
            Err(reason) => {
                self.problem(key, &origin, &reason);
                BTreeMap::new()
            }
        }
    }

    /// The `[[site]]` tables, each with its settings by their names.
    fn site_tables(&mut self) -> Vec<BTreeMap<String, Value>> {
        let key = known("site");
        let Some((value, origin)) = self.find(key) else {
            return Vec::new();
        };
        let tables = match value {
            Value::Array(tables) if tables.iter().all(Value::is_table) => tables,
            _ => {
                self.problem(key, &origin, "write it as [[site]]");
                return Vec::new();
            }
        };
        let mut sites = Vec::new();
        for (number, table) in (1..).zip(tables) {
            let mut values = BTreeMap::new();
            if let Value::Table(table) = table {
                flatten("", table, &mut values);
            }
            for name in values.keys() {
                if Key::find(name).is_none() || !SITE_TABLES.iter().any(|table| name.starts_with(table)) {
                    self.problems.push(format!(
                        "[[site]] number {number}: {name} is no setting of a site; django.* and database.* are"
                    ));
                }
            }
            sites.push(values);
        }
        sites
    }

    /// Gathers once for each `[[site]]` table; what a site does not say is taken from outside of it.
    pub(super) fn for_each_site<T>(&mut self, gather: impl Fn(&mut Self) -> T) -> Vec<T> {
        let tables = self.site_tables();
        let gathered = (1..)
            .zip(tables)
            .map(|(number, values)| {
                self.site = Some((number, values));
                gather(self)
            })
            .collect();
        self.site = None;
        gathered
    }

    /// Notes that a setting without which nothing works is not set, unless it was already found to be bad.
    pub(super) fn require(&mut self, name: &'static str, what: &str) {
        let key = known(name);
        if self.find(key).is_none() && !self.file_failed {
            self.problems.push(format!("{}: required: {what}", key.names()));
        }
    }
}

fn known(name: &'static str) -> &'static Key {
    Key::find(name).expect("every setting that is read is in the table (a test reads them all)")
}

/// The parser's own message would quote the line, which may hold a secret: only its reason and line number are used.
fn read(path: &Path) -> Result<Table, String> {
    let text =
        std::fs::read_to_string(path).map_err(|e| format!("--config: cannot read the file {}: {e}", path.display()))?;
    text.parse::<Table>().map_err(|e| {
        let line = e
            .span()
            .map(|span| text[..span.start.min(text.len())].lines().count().max(1));
        let at = line.map(|line| format!(", line {line}")).unwrap_or_default();
        format!(
            "{}{at}: not valid TOML: {}",
            path.display(),
            e.message().lines().next().unwrap_or_default()
        )
    })
}

/// Nested tables to dotted names. Stops at what is known, so that a wrong type is found where it is parsed.
fn flatten(prefix: &str, table: Table, into: &mut BTreeMap<String, Value>) {
    for (name, value) in table {
        let dotted = if prefix.is_empty() {
            name
        } else {
            format!("{prefix}.{name}")
        };
        match value {
            Value::Table(inner)
                if !TABLES.contains(&dotted.as_str()) && !inner.is_empty() && Key::find(&dotted).is_none() =>
            {
                flatten(&dotted, inner, into);
            }
            // An empty `[source]` says nothing, which is no mistake.
            Value::Table(inner) if inner.is_empty() && is_section(&dotted) => {}
            value => {
                into.insert(dotted, value);
            }
        }
    }
}

fn is_section(name: &str) -> bool {
    KEYS.iter()
        .any(|key| key.toml.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
}

fn unknown(name: &str, path: &Path) -> String {
    if is_section(name) {
        let first = KEYS
            .iter()
            .find(|key| key.toml.starts_with(name))
            .map_or("", |key| key.toml);
        return format!("{}: `{name}` is a table; did you mean {first}?", path.display());
    }
    // `max_hold` at the top level means cutover.max_hold, so the last part alone counts too.
    let last = |dotted: &str| dotted.rsplit('.').next().unwrap_or_default().to_owned();
    let distance = |key: &&Key| {
        let whole = strsim::damerau_levenshtein(name, key.toml);
        whole.min(strsim::damerau_levenshtein(&last(name), &last(key.toml)) + 1)
    };
    let nearest = KEYS.iter().min_by_key(distance).map_or("", |key| key.toml);
    format!("{}: unknown key `{name}`; did you mean {nearest}?", path.display())
}
