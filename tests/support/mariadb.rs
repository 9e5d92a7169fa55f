//! A MariaDB server, for everyone who writes `mysql://`.

use std::{process::Command, time::Duration};

use tempfile::TempDir;

use super::{eventually, port::Port, process};

pub struct MariaDb {
    port: Port,
    dir: TempDir,
    process: Option<process::Process>,
}

const USER: &str = "site";
const PASSWORD: &str = "p@ss/word";

impl MariaDb {
    pub fn start() -> MariaDb {
        let dir = tempfile::tempdir().unwrap();
        let mut install = Command::new(process::program(&["mariadb-install-db", "mysql_install_db"]));
        install.args([
            "--no-defaults",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            "--skip-name-resolve",
        ]);
        install.arg(format!("--datadir={}/data", dir.path().display()));
        // One that starts deletes what others have in a folder that they share.
        install.env("TMPDIR", dir.path());
        if process::is_root() {
            install.arg("--user=root");
        }
        process::run(&mut install);
        let mut mariadb = MariaDb {
            port: Port::free(),
            dir,
            process: None,
        };
        mariadb.restart();
        let statements = format!(
            "CREATE DATABASE site CHARACTER SET utf8mb4; CREATE USER {USER}@127.0.0.1 IDENTIFIED BY '{PASSWORD}'; \
             GRANT ALL ON site.* TO {USER}@127.0.0.1;"
        );
        process::run(mariadb.as_root().args(["--execute", &statements]));
        mariadb
    }

    pub fn restart(&mut self) {
        self.stop();
        let dir = self.dir.path().display();
        let mut command = Command::new(process::program(&["mariadbd", "mysqld"]));
        command
            .env("TMPDIR", self.dir.path())
            .arg("--no-defaults")
            .arg(format!("--datadir={dir}/data"))
            .arg(format!("--socket={dir}/socket"));
        command
            .arg(format!("--port={}", self.port.number()))
            .arg(format!("--pid-file={dir}/pid"));
        command.args([
            "--bind-address=127.0.0.1",
            "--skip-name-resolve",
            "--innodb-flush-log-at-trx-commit=0",
        ]);
        command.args(["--innodb-buffer-pool-size=64M", "--skip-log-bin"]);
        if process::is_root() {
            command.arg("--user=root");
        }
        let log = self.dir.path().join("log");
        self.process = Some(process::Process::start("mariadbd", &mut command, &log));
        eventually("mariadbd answers", Duration::from_secs(30), || {
            self.as_root()
                .args(["--execute", "SELECT 1"])
                .output()
                .unwrap()
                .status
                .success()
        });
    }

    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.terminate(Duration::from_secs(30));
        }
    }

    pub fn url(&self) -> String {
        format!("mysql://{USER}:p%40ss%2Fword@{}/site", self.port.address())
    }

    fn as_root(&self) -> Command {
        let mut command = Command::new(process::program(&["mariadb", "mysql"]));
        command.args(["--no-defaults", "--protocol=socket", "--user=root"]);
        command.arg(format!("--socket={}/socket", self.dir.path().display()));
        command
    }
}

impl Drop for MariaDb {
    fn drop(&mut self) {
        self.stop();
    }
}
