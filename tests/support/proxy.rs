//! The proxy under test.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{RedisServer, SECRET, port::Port, process};

#[derive(Clone, Default)]
pub struct ProxyOptions {
    pub source: String,
    pub target: String,
    pub database: String,
    /// Absent: `SECRET`, unless there is no database.
    pub secret_key: Option<String>,
    /// Further flags.
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// The text of a configuration file.
    pub config: Option<String>,
    /// Absent: a folder of its own.
    pub data_dir: Option<PathBuf>,
}

impl ProxyOptions {
    /// From one Redis to the other, without a database.
    pub fn between(source: &RedisServer, target: &RedisServer) -> ProxyOptions {
        ProxyOptions {
            source: source.url(),
            target: target.url(),
            database: "none".to_owned(),
            ..ProxyOptions::default()
        }
    }

    pub fn args(mut self, args: &[&str]) -> ProxyOptions {
        self.args.extend(args.iter().map(ToString::to_string));
        self
    }
}

pub struct Proxy {
    options: ProxyOptions,
    listen: Port,
    /// Where it listens instead.
    socket: Option<String>,
    admin: Port,
    dir: TempDir,
    process: Option<process::Process>,
}

impl Proxy {
    /// A proxy that is ready.
    pub fn start(options: ProxyOptions) -> Proxy {
        let proxy = Proxy::spawn(options);
        proxy.wait_ready();
        proxy
    }

    /// A proxy that was started, ready or not.
    pub fn spawn(options: ProxyOptions) -> Proxy {
        let mut proxy = Proxy::unstarted(options);
        proxy.start_process();
        proxy
    }

    /// A proxy that listens elsewhere than on a port, and is ready.
    pub fn start_listening(options: ProxyOptions, listen: &str) -> Proxy {
        let mut proxy = Proxy::unstarted(options);
        proxy.socket = Some(listen.to_owned());
        proxy.start_process();
        proxy.wait_ready();
        proxy
    }

    /// One that only lends its configuration to other commands.
    pub fn unstarted(options: ProxyOptions) -> Proxy {
        let dir = tempfile::tempdir().unwrap();
        Proxy {
            options,
            listen: Port::free(),
            socket: None,
            admin: Port::free(),
            dir,
            process: None,
        }
    }

    fn start_process(&mut self) {
        let mut command = self.command("run");
        let listen = self.socket.clone().unwrap_or_else(|| self.listen.address());
        command.args(["--listen", &listen, "--admin", &self.admin.address()]);
        command.arg("--data-dir").arg(self.data_dir());
        self.process = Some(process::Process::start("sessionferry", &mut command, &self.log()));
    }

    /// A command that reads the configuration, with this proxy's.
    pub fn command(&self, name: &str) -> Command {
        let mut command = binary(self.dir.path());
        command.arg(name);
        let options = &self.options;
        for (flag, value) in [
            ("--source", &options.source),
            ("--target", &options.target),
            ("--database", &options.database),
        ] {
            if !value.is_empty() {
                command.args([flag, value]);
            }
        }
        match &options.secret_key {
            Some(key) => {
                command.env("SESSIONFERRY_SECRET_KEY", key);
            }
            // Without a source here, a configuration file says everything.
            None if options.database != "none" && !options.source.is_empty() => {
                command.env("SESSIONFERRY_SECRET_KEY", SECRET);
            }
            None => {}
        }
        if let Some(text) = &options.config {
            let file = self.dir.path().join("test.toml");
            std::fs::write(&file, text).unwrap();
            command.arg("--config").arg(file);
        }
        command
            .envs(options.env.iter().map(|(name, value)| (name, value)))
            .args(&options.args);
        command
    }

    /// `sessionferry NAME` with this proxy's configuration, run to its end.
    pub fn configured(&self, name: &str, args: &[&str]) -> Answer {
        Answer::of(self.command(name).args(args))
    }

    pub fn wait_ready(&self) {
        self.wait_ready_within(Duration::from_secs(20));
    }

    pub fn wait_ready_within(&self, within: Duration) {
        let began = Instant::now();
        loop {
            if let Some((200, _)) = self.get("/readyz") {
                return;
            }
            if let Some(status) = self.exited() {
                panic!(
                    "the proxy ended instead of becoming ready: {status}\n{}",
                    self.log_tail()
                );
            }
            if began.elapsed() > within {
                let reason = self
                    .get("/readyz")
                    .map_or("no answer".to_owned(), |(status, body)| format!("{status} {body}"));
                panic!(
                    "the proxy was not ready within {within:?}: {reason}\n{}",
                    self.log_tail()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn address(&self) -> String {
        self.listen.address()
    }

    /// The proxy as Django sees it; with the source's own credentials where it has some.
    pub fn url(&self) -> String {
        let source = url::Url::parse(&self.options.source).unwrap();
        let user = source.username();
        match source.password() {
            Some(password) => format!("redis://{user}:{password}@{}", self.address()),
            None => format!("redis://{}", self.address()),
        }
    }

    pub fn admin_url(&self) -> String {
        format!("http://{}", self.admin.address())
    }

    pub fn data_dir(&self) -> PathBuf {
        self.options
            .data_dir
            .clone()
            .unwrap_or_else(|| self.dir.path().join("data"))
    }

    pub fn connection(&self) -> redis::Connection {
        super::redis_server::connect(&self.url())
    }

    /// One command through the proxy.
    pub fn ask<T: redis::FromRedisValue>(&self, parts: &[&str]) -> T {
        super::redis_server::ask(&mut self.connection(), parts)
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().unwrap().id()
    }

    /// Memory that the process has in use, bytes.
    pub fn resident(&self) -> u64 {
        let status = format!("/proc/{}/status", self.pid());
        let status = std::fs::read_to_string(status).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib * 1024
    }

    pub fn kill9(&mut self) {
        self.process = None;
    }

    pub fn terminate(&mut self) -> ExitStatus {
        self.process.as_mut().unwrap().terminate(Duration::from_secs(30))
    }

    /// Ends it as a kill would where it still runs, and starts it with the same ports and data.
    pub fn restart(&mut self) {
        self.restart_unready();
        self.wait_ready();
    }

    pub fn restart_unready(&mut self) {
        self.kill9();
        self.start_process();
    }

    pub fn exited(&self) -> Option<ExitStatus> {
        self.process.as_ref().unwrap().exited()
    }

    pub fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log()).unwrap_or_default()).into_owned()
    }

    pub fn log_tail(&self) -> String {
        format!("--- the proxy's log, its end:\n{}\n---", process::tail(&self.log(), 60))
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let status = self.get("/api/v1/status").map(|(_, body)| body).unwrap_or_default();
            eprintln!("{}\n--- status: {status}", self.log_tail());
        }
    }
}

/// The program in a folder where no configuration file lies, free of what the environment might say.
pub fn binary(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sessionferry"));
    command.current_dir(dir);
    for (name, _) in std::env::vars() {
        if name.starts_with("SESSIONFERRY_") {
            command.env_remove(name);
        }
    }
    command
}

/// What a command of the program said.
#[derive(Debug)]
pub struct Answer {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Answer {
    pub fn of(command: &mut Command) -> Answer {
        let output = command.stdin(std::process::Stdio::null()).output().unwrap();
        Answer {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    pub fn expect(self, code: i32) -> Answer {
        assert_eq!(self.code, code, "{self:#?}");
        self
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("not one JSON object: {error}: {self:#?}"))
    }

    /// Both outputs, in small letters, to look for a word.
    pub fn said(&self) -> String {
        format!("{}\n{}", self.out, self.err).to_lowercase()
    }
}
