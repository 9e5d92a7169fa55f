//! A PostgreSQL server.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use tempfile::TempDir;

use super::{certificates::Pair, eventually, port::Port, process};

pub struct Postgres {
    port: Port,
    dir: TempDir,
    settings: Vec<String>,
    process: Option<process::Process>,
}

const USER: &str = "site";
const PASSWORD: &str = "p@ss/word";

impl Postgres {
    pub fn start() -> Postgres {
        let dir = tempfile::tempdir().unwrap();
        let mut postgres = Postgres {
            port: Port::free(),
            dir,
            settings: Vec::new(),
            process: None,
        };
        if process::is_root() {
            // The server refuses to run as root: the folder and the processes are user postgres's.
            process::run(Command::new("chown").arg("postgres:").arg(postgres.dir.path()));
        }
        let secret = postgres.dir.path().join("password");
        std::fs::write(&secret, PASSWORD).unwrap();
        process::run(Command::new("chmod").arg("644").arg(&secret));
        process::run(
            as_server(&bin().join("initdb"), postgres.dir.path())
                .args([
                    "--no-sync",
                    "--auth",
                    "scram-sha-256",
                    "--encoding",
                    "UTF8",
                    "--locale",
                    "C",
                    "--username",
                    USER,
                ])
                .arg("--pwfile")
                .arg(&secret)
                .arg("--pgdata")
                .arg(postgres.data()),
        );
        postgres.restart();
        process::run(postgres.psql("postgres").args(["--command", "CREATE DATABASE site"]));
        postgres
    }

    pub fn restart(&mut self) {
        self.stop();
        let log = self.dir.path().with_extension("log");
        let _ = std::fs::remove_file(&log);
        let mut command = as_server(&bin().join("postgres"), self.dir.path());
        command
            .arg("-D")
            .arg(self.data())
            .args(["-p", &self.port.number().to_string()]);
        for setting in [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "fsync=off",
            "max_connections=100",
        ] {
            command.args(["-c", setting]);
        }
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        self.process = Some(process::Process::start("postgres", &mut command, &log));
        eventually("postgres answers", Duration::from_secs(30), || {
            self.psql("postgres")
                .args(["--command", "SELECT 1"])
                .output()
                .unwrap()
                .status
                .success()
        });
        let _ = std::fs::remove_file(&log);
    }

    /// Starts it again, with TLS.
    pub fn restart_with_tls(&mut self, pair: &Pair) {
        for (setting, name, file) in [
            ("ssl_cert_file", "server.pem", &pair.cert),
            ("ssl_key_file", "server.key", &pair.key),
        ] {
            let own = self.dir.path().join(name);
            std::fs::copy(file, &own).unwrap();
            process::run(Command::new("chmod").arg("600").arg(&own));
            if process::is_root() {
                process::run(Command::new("chown").arg("postgres:").arg(&own));
            }
            self.settings.push(format!("{setting}={}", own.display()));
        }
        self.settings.push("ssl=on".to_owned());
        self.restart();
    }

    /// A statement in the site's database.
    pub fn sql(&self, statement: &str) {
        process::run(self.psql("site").args(["--command", statement]));
    }

    /// Ends it in order, cutting its clients off.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take()
            && process.exited().is_none()
        {
            process.signal("INT"); // fast shutdown: its helper processes end with it
            process.wait(Duration::from_secs(20));
        }
    }

    /// As Django's DATABASES has it.
    pub fn django_settings(&self) -> String {
        format!(
            r#"{{"ENGINE": "django.db.backends.postgresql", "NAME": "site", "USER": "{USER}", "PASSWORD": "{PASSWORD}",
    "HOST": "127.0.0.1", "PORT": "{}"}}"#,
            self.port.number()
        )
    }

    pub fn url(&self) -> String {
        format!("postgres://{USER}:p%40ss%2Fword@{}/site", self.port.address())
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn psql(&self, database: &str) -> Command {
        let mut command = Command::new(bin().join("psql"));
        command
            .env("PGPASSWORD", PASSWORD)
            .args(["--no-psqlrc", "--quiet", "-h", "127.0.0.1", "-U", USER]);
        command.args(["-p", &self.port.number().to_string(), "-d", database]);
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}

fn bin() -> PathBuf {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|folders| folders.flatten().map(|folder| folder.path().join("bin")).collect())
        .unwrap_or_default();
    found.retain(|bin| bin.join("initdb").is_file());
    found.sort_by_key(|bin| {
        let version = bin
            .parent()
            .and_then(Path::file_name)
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        version.parse::<u32>().unwrap_or(0)
    });
    found
        .pop()
        .unwrap_or_else(|| process::program(&["initdb"]).parent().unwrap().to_owned())
}

/// The program as the user that may run it, with the same process id throughout.
fn as_server(program: &Path, dir: &Path) -> Command {
    let mut command = if process::is_root() {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", "postgres", "--regid", "postgres", "--init-groups"])
            .arg(program);
        command
    } else {
        Command::new(program)
    };
    command.current_dir(dir);
    command
}
