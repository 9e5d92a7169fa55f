//! The machine that the documents speak of: two Redis servers with passwords, a PostgreSQL, a Django project, and a folder
//! for what would be installed.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::{
    shown::Shown,
    support::{
        Port, Postgres, RedisServer, eventually,
        project::{DjangoProject, MAKE},
        proxy::Answer,
    },
};

/// What `sudo` does: installs below a folder of the test's own, and looks at the rest.
const SUDO: &str = r#"#!/bin/bash
set -eu
case $1 in
  install)
    shift
    words=()
    while [ $# -gt 0 ]; do
      case $1 in
        -g) [ "$2" = sessionferry ]; shift 2 ;;
        /*) words+=("$STAGE$1"); mkdir -p "$(dirname "$STAGE$1")"; [ "${1%/}" = "$1" ] || mkdir -p "$STAGE$1"; shift ;;
        *) words+=("$1"); shift ;;
      esac
    done
    install "${words[@]}" ;;
  useradd) [ "${!#}" = sessionferry ] ;;
  chown) [ "$2 $3" = "-R sessionferry" ] && [ -e "$4" ] ;;
  systemctl)
    [ "$2 $3 $4" = "enable --now sessionferry" ]
    unit=$STAGE/etc/systemd/system/sessionferry.service
    read -r program rest < <(sed -n 's/^ExecStart=//p' "$unit")
    [ -x "$STAGE/usr/local/bin/$program" ]
    config=${rest##*--config }
    [ -r "$STAGE${config%% *}" ] ;;
  *) echo "sudo $*: not known to this test"; exit 1 ;;
esac
"#;

/// A session as most are, and one with what JSON does not know.
const MAKE_TWO: &str = r#"
from datetime import datetime
from importlib import import_module
from django.conf import settings
Store = import_module(settings.SESSION_ENGINE).SessionStore
for value in ["then", datetime(2026, 11, 1)]:
    session = Store()
    session["seen"] = value
    session.save()
    print("session", session.session_key)
"#;

fn redis_key(session_key: &str) -> String {
    format!("shop:1:django.contrib.sessions.cache{session_key}")
}

pub(crate) struct World {
    // Dropped in this order: those who speak before those who are spoken to.
    running: Vec<Running>,
    pub(crate) project: DjangoProject,
    pub(crate) source: RedisServer,
    pub(crate) target: RedisServer,
    /// Further variables for the commands.
    pub(crate) environment: Vec<(&'static str, String)>,
    pub(crate) database: Postgres,
    listen: Port,
    admin: Port,
}

/// A process of the test's own, ended with it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl World {
    pub(crate) fn new() -> World {
        let source = RedisServer::start(&[
            "--requirepass",
            "old-password",
            "--maxmemory",
            "200mb",
            "--maxmemory-policy",
            "allkeys-lru",
        ]);
        let target = RedisServer::start(&["--requirepass", "new-password"]);
        let database = Postgres::start();
        let settings = format!(
            r#"
SESSION_ENGINE = "django.contrib.sessions.backends.cache"
SESSION_CACHE_ALIAS = "default"
SECRET_KEY = "that of the site"
SECRET_KEY_FALLBACKS = ["the one before"]
CACHES = {{"default": {{
    "BACKEND": "django.core.cache.backends.redis.RedisCache",
    "LOCATION": "redis://:old-password@{}/0",
    "KEY_PREFIX": "shop",
}}}}
DATABASES = {{"default": {}}}
"#,
            source.address(),
            database.django_settings(),
        );
        let project = DjangoProject::new("5.2", &settings);
        let folder = project.folder.path();
        let bin = folder.join("bin");
        fs::create_dir_all(&bin).unwrap();
        fs::write(bin.join("sudo"), SUDO).unwrap();
        fs::set_permissions(bin.join("sudo"), fs::Permissions::from_mode(0o755)).unwrap();
        let program = env!("CARGO_BIN_EXE_sessionferry");
        symlink(program, bin.join("sessionferry")).unwrap();
        // What the repository has, and the build.
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        symlink(root.join("deploy"), folder.join("deploy")).unwrap();
        fs::create_dir_all(folder.join("target/release")).unwrap();
        symlink(program, folder.join("target/release/sessionferry")).unwrap();
        fs::write(folder.join("secret"), "that of the site").unwrap();
        World {
            running: Vec::new(),
            project,
            source,
            target,
            environment: Vec::new(),
            database,
            listen: Port::free(),
            admin: Port::free(),
        }
    }

    fn folder(&self) -> &Path {
        self.project.folder.path()
    }

    fn stage(&self) -> PathBuf {
        self.folder().join("stage")
    }

    /// The places of the documents as they are here.
    pub(crate) fn here(&self, text: &str) -> String {
        let port = |server: &RedisServer| format!("-p {}", server.address().rsplit(':').next().unwrap());
        text.replace("127.0.0.1:7001", &self.source.address())
            .replace("127.0.0.1:7002", &self.target.address())
            .replace("-p 7001", &port(&self.source))
            .replace("/srv/shop", &self.folder().display().to_string())
            .replace(
                "/run/secrets/django",
                &self.folder().join("secret").display().to_string(),
            )
            .replace("postgres://site@127.0.0.1/site", &self.database.url())
    }

    fn shell(&self, command: &str) -> Command {
        let venv = self.project.python.parent().unwrap();
        let mut shell = Command::new("bash");
        shell
            .args(["-c", &self.here(command)])
            .current_dir(self.folder())
            .env_clear()
            .env(
                "PATH",
                format!(
                    "{}/bin:{}:/usr/local/bin:/usr/bin:/bin:/usr/sbin",
                    self.folder().display(),
                    venv.display()
                ),
            )
            .env("HOME", self.folder())
            .env("VIRTUAL_ENV", venv.parent().unwrap())
            .envs(self.environment.iter().cloned())
            .env("STAGE", self.stage())
            .env("SESSIONFERRY_LISTEN", format!("127.0.0.1:{}", self.listen.number()))
            .env("SESSIONFERRY_ADMIN", format!("127.0.0.1:{}", self.admin.number()))
            .env(
                "SESSIONFERRY_ADMIN_URL",
                format!("http://127.0.0.1:{}", self.admin.number()),
            );
        shell
    }

    /// Runs a command as it is shown; one with `&` goes on until the test ends.
    pub(crate) fn run(&mut self, shown: &Shown) -> Answer {
        let Some(command) = shown.command.strip_suffix(" &") else {
            return Answer::of(&mut self.shell(&shown.command));
        };
        let child = self
            .shell(&format!("exec {command}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        self.running.push(Running(child.unwrap()));
        Answer {
            code: 0,
            out: String::new(),
            err: String::new(),
        }
    }

    pub(crate) fn until_file_has(&self, file: &str, words: &str) {
        eventually(&format!("{file} has {words:?}"), Duration::from_secs(20), || {
            fs::read_to_string(self.folder().join(file)).is_ok_and(|text| text.contains(words))
        });
    }

    /// Something that a HUP reloads, and its pid in a file.
    pub(crate) fn start_gunicorn(&mut self) {
        let child = self
            .shell("trap 'touch reloaded' HUP; echo $$ >gunicorn.pid; while sleep 0.1; do :; done")
            .spawn();
        self.running.push(Running(child.unwrap()));
        self.until_file_has("gunicorn.pid", "\n");
    }

    /// The site's visitors make sessions, through the proxy or around it.
    pub(crate) fn visit(&self, through_the_proxy: bool) {
        let location = format!("redis://:old-password@127.0.0.1:{}/0", self.listen.number());
        let through = [("SITE_LOCATION", location.as_str())];
        let made = self
            .project
            .sessions(MAKE, if through_the_proxy { &through } else { &[] });
        assert_eq!(made.len(), 30);
    }

    /// Many sessions at the old Redis: copies of two, of which one holds what no row can carry.
    pub(crate) fn fill(&self, count: usize) {
        let made = self.project.sessions(MAKE_TWO, &[]);
        let mut connection = self.source.connection();
        let values: Vec<Vec<u8>> = made
            .iter()
            .map(|line| {
                let key = line.split(' ').nth(1).unwrap();
                redis::cmd("GET").arg(redis_key(key)).query(&mut connection).unwrap()
            })
            .collect();
        let mut pipe = redis::pipe();
        for number in 0..count {
            let value = &values[usize::from(number % 50 == 0)];
            let key = redis_key(&format!("{number:032x}"));
            pipe.cmd("SET").arg(key).arg(value).arg("EX").arg(86_400).ignore();
        }
        pipe.query::<()>(&mut connection).unwrap();
    }

    /// Has a configuration made, and starts the proxy with it.
    pub(crate) fn start(&mut self) {
        self.bring(&[
            "sessionferry init --target redis://:new-password@127.0.0.1:7002/0",
            "sessionferry run 2>> sessionferry.log &",
        ]);
    }

    /// Runs these before anything that is shown.
    pub(crate) fn bring(&mut self, commands: &[&str]) {
        for command in commands {
            let shown = Shown {
                document: "(before)",
                line: 0,
                command: (*command).into(),
                output: Vec::new(),
            };
            let answer = self.run(&shown);
            assert_eq!(answer.code, 0, "{command}: {answer:#?}");
            if command.starts_with("sessionferry run") {
                self.until_file_has("sessionferry.log", "ready for Django");
            }
        }
    }
}
