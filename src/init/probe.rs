//! Asking the project's Python, and what it answers.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::config::Secret;

const SCRIPT: &str = include_str!("probe.py");

/// The answer's line begins with this. What a project's settings print stands on other lines.
const MARKER: &str = "sessionferry-probe ";

/// How long a project may take to start: large ones take ten seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// More than any answer has; the rest of what is printed is not looked at.
const MAX_OUTPUT: u64 = 4 << 20;

/// How much of what Python complained about is shown.
const COMPLAINT_LINES: usize = 5;

/// Where the project is, and how to run it.
#[derive(Clone, Debug, Default)]
pub struct Project {
    /// Its `manage.py`.
    pub manage: Option<PathBuf>,
    /// Its settings module, where `manage.py` does not say or there is none.
    pub settings: Option<String>,
    /// Its Python; else the virtual environment's that is active or lies beside `manage.py`, else `python3`.
    pub python: Option<PathBuf>,
}

/// Why a project could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("{0} is not there: give the project's manage.py (--manage), or its settings module (--settings)")]
    NoManage(PathBuf),
    #[error("cannot run {python}: {error}; give the project's own Python (--python)")]
    NoPython { python: PathBuf, error: std::io::Error },
    #[error("the project did not answer within {} s", PATIENCE.as_secs())]
    Slow,
    #[error("the project's settings cannot be loaded with {python} (--python names another):\n{complaint}")]
    Failed { python: PathBuf, complaint: String },
    #[error("the project's answer is not understood: {0}")]
    Answer(#[from] serde_json::Error),
}

/// A secret of the project.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "PlainSecret")]
pub struct Held {
    pub value: Secret,
    /// The environment variable that the project has it from.
    pub env: Option<String>,
}

#[derive(Deserialize)]
struct PlainSecret {
    value: String,
    env: Option<String>,
}

impl From<PlainSecret> for Held {
    fn from(plain: PlainSecret) -> Held {
        Held {
            value: Secret::new(plain.value),
            env: plain.env,
        }
    }
}

/// What the project says of itself. See `probe.py`.
#[derive(Clone, Debug, Deserialize)]
pub struct Probe {
    pub django: String,
    pub python: String,
    pub redis_py: Option<String>,
    pub settings_module: Option<String>,
    pub engine: String,
    /// `cache`, `cached_db`, or another that is not moved.
    pub kind: String,
    pub store: String,
    pub store_prefix: String,
    pub salt: String,
    pub stock_store: bool,
    pub session_serializer: String,
    pub cookie_age: u64,
    pub save_every_request: bool,
    pub sessions_installed: bool,
    pub secret_key: Held,
    pub fallbacks: Vec<Held>,
    pub use_tz: bool,
    pub time_zone: String,
    pub routers: usize,
    pub session_alias: String,
    pub caches: Vec<Cache>,
    pub database: Option<Database>,
    /// Places in the project's text where the sessions' cache is emptied: `file.py:12`.
    pub clears: Vec<String>,
}

/// One of `CACHES`.
#[derive(Clone, Debug, Deserialize)]
pub struct Cache {
    pub alias: String,
    pub backend: String,
    pub locations: usize,
    pub key_prefix: String,
    pub version: String,
    pub key_function: Option<String>,
    pub serializer: Option<String>,
    pub compressor: Option<String>,
    pub client_class: Option<String>,
    /// The Redis key of the session [`SESSION_KEY`].
    pub key: Option<String>,
    pub connection: Option<Connection>,
    pub error: Option<String>,
}

/// The session whose key `probe.py` asks for.
pub(super) const SESSION_KEY: &str = "0123456789abcdefghijklmnopqrstuv";

/// How a cache's client connects.
#[derive(Clone, Debug, Deserialize)]
pub struct Connection {
    pub host: Option<String>,
    pub port: Option<u16>,
    pub path: Option<String>,
    pub db: u32,
    pub username: Option<String>,
    pub password: Option<Held>,
    pub tls: bool,
    pub ca_file: Option<String>,
    pub cert_file: Option<String>,
    pub key_file: Option<String>,
}

/// The database that the session table is in.
#[derive(Clone, Debug, Deserialize)]
pub struct Database {
    pub alias: String,
    pub table: String,
    pub engine: String,
    pub name: String,
    pub user: String,
    pub host: String,
    pub port: String,
    pub password: Option<Held>,
    /// Names of what `OPTIONS` holds.
    pub options: Vec<String>,
    pub sslmode: Option<String>,
}

impl Probe {
    /// The cache that holds the sessions.
    pub fn session_cache(&self) -> Option<&Cache> {
        self.caches.iter().find(|cache| cache.alias == self.session_alias)
    }
}

impl Project {
    /// Runs the project's Python and asks.
    ///
    /// # Errors
    /// [`ProbeError`] says what to give instead.
    pub fn ask(&self) -> Result<Probe, ProbeError> {
        let python = self.python();
        let mut command = Command::new(&python);
        match &self.manage {
            Some(manage) => {
                let manage = manage
                    .canonicalize()
                    .map_err(|_| ProbeError::NoManage(manage.clone()))?;
                command.arg(&manage).args(["shell", "-c", SCRIPT]);
                if let Some(settings) = &self.settings {
                    command.args(["--settings", settings]);
                }
                command.current_dir(manage.parent().unwrap_or(Path::new(".")));
            }
            None => {
                let start = "import os, sys; sys.path.insert(0, os.getcwd()); import django; django.setup()\n";
                command.arg("-c").arg(format!("{start}{SCRIPT}"));
                if let Some(settings) = &self.settings {
                    command.env("DJANGO_SETTINGS_MODULE", settings);
                }
            }
        }
        let child = command
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("PYTHONIOENCODING", "utf-8:surrogateescape")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let child = child.map_err(|error| ProbeError::NoPython {
            python: python.clone(),
            error,
        })?;
        let (status, out, err) = finish(child)?;
        let answer = out.lines().rev().find_map(|line| line.strip_prefix(MARKER));
        match answer {
            Some(answer) if status.success() => Ok(serde_json::from_str(answer)?),
            _ => {
                let lines: Vec<&str> = err.trim_end().lines().collect();
                let last = lines.len().saturating_sub(COMPLAINT_LINES);
                Err(ProbeError::Failed {
                    python,
                    complaint: lines[last..].join("\n"),
                })
            }
        }
    }

    fn python(&self) -> PathBuf {
        if let Some(python) = &self.python {
            // Looked for from here, and not from where manage.py lies.
            return if python.components().count() > 1 {
                std::path::absolute(python).unwrap_or_else(|_| python.clone())
            } else {
                python.clone()
            };
        }
        let active = std::env::var_os("VIRTUAL_ENV").map(PathBuf::from);
        let beside = self
            .manage
            .as_ref()
            .and_then(|manage| manage.canonicalize().ok()?.parent().map(Path::to_owned));
        let beside = beside
            .into_iter()
            .flat_map(|folder| [folder.join(".venv"), folder.join("venv")]);
        active
            .into_iter()
            .chain(beside)
            .map(|venv| venv.join("bin/python"))
            .find(|python| python.is_file())
            .unwrap_or_else(|| "python3".into())
    }
}

/// Waits for the end, and gives what was printed.
fn finish(mut child: Child) -> Result<(ExitStatus, String, String), ProbeError> {
    fn reader(stream: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(stream) = stream {
                let mut limited = stream.take(MAX_OUTPUT);
                let _ = limited.read_to_end(&mut bytes);
                // Read on, so that nobody waits for a full pipe.
                let _ = std::io::copy(&mut limited.into_inner(), &mut std::io::sink());
            }
            String::from_utf8_lossy(&bytes).into_owned()
        })
    }
    let (out, err) = (reader(child.stdout.take()), reader(child.stderr.take()));
    let began = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if began.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(20)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(ProbeError::Slow);
            }
        }
    };
    Ok((status, out.join().unwrap_or_default(), err.join().unwrap_or_default()))
}
