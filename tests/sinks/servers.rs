//! Real servers on free loopback ports, in directories that go with them. Each is stopped by its process id.

use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Of the database users that the tests log in as.
pub(super) const PASSWORD: &str = "pass";
const START_LIMIT: Duration = Duration::from_secs(60);

pub(super) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn signal(child: &Child, name: &str) {
    Command::new("kill")
        .arg(format!("-{name}"))
        .arg(child.id().to_string())
        .status()
        .unwrap();
}

fn wait_for_port(port: u16, child: &mut Child) {
    let began = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(child.try_wait().unwrap().is_none(), "the server ended while it started");
        assert!(began.elapsed() < START_LIMIT, "the server did not start");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().unwrap();
    id.stdout.trim_ascii() == b"0"
}

/// Runs as `user` where we are root: PostgreSQL refuses to run as root.
fn command_as(user: &str, program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", user, "--regid", user, "--clear-groups"])
        .arg(program);
    command
}

fn dir_for(user: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    if is_root() {
        assert!(
            Command::new("chown")
                .arg(user)
                .arg(dir.path())
                .status()
                .unwrap()
                .success()
        );
    }
    dir
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn shared<T>(slot: &Mutex<Weak<T>>, start: impl FnOnce() -> T) -> Arc<T> {
    let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
    slot.upgrade().unwrap_or_else(|| {
        let server = Arc::new(start());
        *slot = Arc::downgrade(&server);
        server
    })
}

pub(super) struct Redis {
    child: Child,
    port: u16,
    args: Vec<String>,
    dir: TempDir,
}

impl Redis {
    pub(super) fn start(args: &[&str]) -> Redis {
        let (port, dir) = (free_port(), tempfile::tempdir().unwrap());
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let child = Self::spawn(port, &dir, &args);
        Redis { child, port, args, dir }
    }

    fn spawn(port: u16, dir: &TempDir, args: &[String]) -> Child {
        let mut command = Command::new("redis-server");
        command.args([
            "--port",
            &port.to_string(),
            "--save",
            "",
            "--enable-debug-command",
            "yes",
        ]);
        command
            .arg("--dir")
            .arg(dir.path())
            .arg("--unixsocket")
            .arg(dir.path().join("r.sock"))
            .args(args);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_for_port(port, &mut child);
        child
    }

    pub(super) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.dir.path().join("r.sock")
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn stop(&mut self) {
        let _ended = self.child.kill();
        self.child.wait().unwrap();
    }

    pub(super) fn start_again(&mut self) {
        self.child = Self::spawn(self.port, &self.dir, &self.args);
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.stop();
    }
}

pub(super) struct Postgres {
    child: Child,
    port: u16,
    _dir: TempDir,
}

impl Postgres {
    /// One server for all tests that run at this time.
    pub(super) fn shared() -> Arc<Postgres> {
        static SLOT: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());
        shared(&SLOT, Postgres::start)
    }

    fn start() -> Postgres {
        let versions = std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed");
        let bin = versions
            .map(|version| version.unwrap().path().join("bin"))
            .max()
            .unwrap();
        let dir = dir_for("postgres");
        let (data, password) = (dir.path().join("data"), dir.path().join("password"));
        std::fs::write(&password, PASSWORD).unwrap();
        let mut init = command_as("postgres", &bin.join("initdb"));
        init.arg("-D")
            .arg(&data)
            .args(["-U", "postgres", "--auth=scram-sha-256", "--no-sync", "-E", "UTF8"]);
        run(init.arg(format!("--pwfile={}", password.display())));
        let port = free_port();
        let mut command = command_as("postgres", &bin.join("postgres"));
        command
            .arg("-D")
            .arg(&data)
            .args(["-p", &port.to_string(), "-h", "127.0.0.1", "-k", "", "-F"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_for_port(port, &mut child);
        // The port is open before anyone may log in.
        let ready = || {
            Command::new(bin.join("pg_isready"))
                .args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()])
                .status()
        };
        let began = Instant::now();
        while !ready().unwrap().success() {
            assert!(began.elapsed() < START_LIMIT, "PostgreSQL did not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        Postgres { child, port, _dir: dir }
    }

    pub(super) fn url(&self) -> String {
        format!("postgres://postgres:{PASSWORD}@127.0.0.1:{}/postgres", self.port)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Immediate shutdown: the directory goes as well.
        signal(&self.child, "QUIT");
        let _ended = self.child.wait();
    }
}

pub(super) struct Mariadb {
    child: Child,
    port: u16,
    _dir: TempDir,
}

impl Mariadb {
    /// One server for all tests that run at this time.
    pub(super) fn shared() -> Arc<Mariadb> {
        static SLOT: Mutex<Weak<Mariadb>> = Mutex::new(Weak::new());
        shared(&SLOT, Mariadb::start)
    }

    /// A server for one test, which changes it as a whole.
    pub(super) fn alone() -> Mariadb {
        Mariadb::start()
    }

    fn start() -> Mariadb {
        let dir = dir_for("mysql");
        let data = dir.path().join("data");
        let mut install = command_as("mysql", Path::new("mariadb-install-db"));
        // One that starts deletes what others have in a folder that they share.
        install.env("TMPDIR", dir.path());
        install
            .arg("--no-defaults")
            .arg(format!("--datadir={}", data.display()));
        run(install.args(["--auth-root-authentication-method=normal", "--skip-test-db"]));
        let init = dir.path().join("init.sql");
        let sql = format!(
            "CREATE DATABASE site;\nCREATE USER 'ferry'@'%' IDENTIFIED BY '{PASSWORD}';\nGRANT ALL ON *.* TO 'ferry'@'%' WITH GRANT OPTION;\n"
        );
        std::fs::write(&init, sql).unwrap();
        let port = free_port();
        let mut command = command_as("mysql", Path::new("/usr/sbin/mariadbd"));
        command.env("TMPDIR", dir.path());
        command
            .arg("--no-defaults")
            .arg(format!("--datadir={}", data.display()));
        command
            .arg(format!("--init-file={}", init.display()))
            .arg(format!("--socket={}/m.sock", dir.path().display()));
        command.args([
            &format!("--port={port}"),
            "--bind-address=127.0.0.1",
            "--innodb-flush-log-at-trx-commit=0",
        ]);
        command.args(["--skip-name-resolve", "--innodb-buffer-pool-size=32M"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_for_port(port, &mut child);
        Mariadb { child, port, _dir: dir }
    }

    pub(super) fn url(&self) -> String {
        format!("mysql://ferry:{PASSWORD}@127.0.0.1:{}/site", self.port)
    }
}

impl Drop for Mariadb {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}
