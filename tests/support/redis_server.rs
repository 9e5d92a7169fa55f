//! A Redis server, or a Valkey one.

use std::{path::PathBuf, process::Command, time::Duration};

use tempfile::TempDir;

use super::{eventually, port::Port, process};

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Software {
    Redis,
    Valkey,
}

impl Software {
    /// The name of its program.
    pub fn program(self) -> &'static str {
        match self {
            Software::Redis => "redis-server",
            Software::Valkey => "valkey-server",
        }
    }

    /// Where it is missing, a test says so and is over.
    pub fn is_here(self) -> bool {
        let here = process::find(&[self.program()]).is_some();
        if !here {
            println!("skipped: no {} here", self.program());
        }
        here
    }
}

pub struct RedisServer {
    software: Software,
    port: Port,
    dir: TempDir,
    args: Vec<String>,
    password: Option<String>,
    process: Option<process::Process>,
}

impl RedisServer {
    /// A server with these further arguments (`--requirepass x`, `--maxmemory 1mb`); nothing is kept on disk.
    pub fn start(args: &[&str]) -> RedisServer {
        RedisServer::start_as(Software::Redis, args)
    }

    pub fn start_as(software: Software, args: &[&str]) -> RedisServer {
        let password = args
            .iter()
            .position(|arg| *arg == "--requirepass")
            .map(|at| args[at + 1].to_owned());
        let mut server = RedisServer {
            software,
            port: Port::free(),
            dir: tempfile::tempdir().unwrap(),
            args: args.iter().map(ToString::to_string).collect(),
            password,
            process: None,
        };
        server.restart();
        server
    }

    /// Starts it again with further arguments, the last of one name counting.
    pub fn restart_with(&mut self, args: &[&str]) {
        self.args.extend(args.iter().map(ToString::to_string));
        self.restart();
    }

    /// Starts it again on the same port; what it held is gone unless it was told to keep it.
    pub fn restart(&mut self) {
        let log = self.spawn();
        eventually(
            &format!("{} answers: {}", self.software.program(), process::tail(&log, 5)),
            Duration::from_secs(10),
            || self.client().get_connection().is_ok(),
        );
    }

    /// Starts it again, with further arguments; it takes connections and may still be loading its data.
    pub fn restart_loading(&mut self, args: &[&str]) {
        self.args.extend(args.iter().map(ToString::to_string));
        self.spawn();
        eventually("the server takes connections", Duration::from_secs(10), || {
            std::net::TcpStream::connect(self.address()).is_ok()
        });
    }

    /// Where its log is.
    fn spawn(&mut self) -> PathBuf {
        self.stop();
        let log = self.dir.path().join("log");
        let name = self.software.program();
        let mut command = Command::new(process::program(&[name]));
        command
            .args([
                "--port",
                &self.port.number().to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--dir",
            ])
            .arg(self.dir.path())
            .args(["--daemonize", "no", "--databases", "16"])
            .args(&self.args);
        self.process = Some(process::Process::start(name, &mut command, &log));
        log
    }

    /// Starts it again without anything that it had on disk.
    pub fn restart_empty(&mut self) {
        self.stop();
        for name in ["appendonlydir", "dump.rdb"] {
            let path = self.dir.path().join(name);
            let _ = std::fs::remove_dir_all(&path).or_else(|_| std::fs::remove_file(&path));
        }
        self.restart();
    }

    /// Ends it at once, as a crash would: connections are reset, data is gone.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// The process stops running but its connections stay: a server that hangs.
    pub fn freeze(&self) {
        self.process.as_ref().unwrap().signal("STOP");
    }

    pub fn thaw(&self) {
        self.process.as_ref().unwrap().signal("CONT");
    }

    pub fn address(&self) -> String {
        self.port.address()
    }

    pub fn url(&self) -> String {
        match &self.password {
            Some(password) => format!("redis://:{password}@{}", self.address()),
            None => format!("redis://{}", self.address()),
        }
    }

    pub fn client(&self) -> redis::Client {
        redis::Client::open(self.url()).unwrap()
    }

    /// A connection straight to this server, past any proxy.
    pub fn connection(&self) -> redis::Connection {
        connect(&self.url())
    }

    /// One command straight to this server.
    pub fn ask<T: redis::FromRedisValue>(&self, parts: &[&str]) -> T {
        ask(&mut self.connection(), parts)
    }
}

/// A connection that gives up rather than hang.
pub fn connect(url: &str) -> redis::Connection {
    let client = redis::Client::open(url).unwrap();
    let connection = client.get_connection_with_timeout(Duration::from_secs(10)).unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    connection
}

pub fn ask<T: redis::FromRedisValue>(connection: &mut redis::Connection, parts: &[&str]) -> T {
    try_ask(connection, parts).unwrap_or_else(|error| panic!("{parts:?}: {error}"))
}

pub fn try_ask<T: redis::FromRedisValue>(connection: &mut redis::Connection, parts: &[&str]) -> redis::RedisResult<T> {
    let mut command = redis::cmd(parts[0]);
    for part in &parts[1..] {
        command.arg(*part);
    }
    command.query(connection)
}
