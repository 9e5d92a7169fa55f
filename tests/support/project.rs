//! Real Django projects, made by `startproject`.

use std::{path::PathBuf, process::Command};

use tempfile::TempDir;

use super::{django::python, proxy::Answer};

/// Appended to the settings of each project: where its sessions are may then be changed from outside, as an operator
/// changes the file.
const FROM_OUTSIDE: &str = r#"
import os
if "SITE_LOCATION" in os.environ:
    CACHES[SESSION_CACHE_ALIAS]["LOCATION"] = os.environ["SITE_LOCATION"]
SESSION_ENGINE = os.environ.get("SITE_ENGINE", SESSION_ENGINE)
"#;

/// Makes sessions, and prints key and content of each.
pub const MAKE: &str = r#"
from importlib import import_module
from django.conf import settings
Store = import_module(settings.SESSION_ENGINE).SessionStore
for number in range(30):
    session = Store()
    session["number"], session["text"] = number, "Zoë " * number
    session.save()
    print("session", session.session_key, sum(map(ord, repr(sorted(session.items())))))
"#;

/// A project of its own.
pub struct DjangoProject {
    pub folder: TempDir,
    pub python: PathBuf,
}

impl DjangoProject {
    /// `settings` come after the stock ones.
    pub fn new(django: &str, settings: &str) -> DjangoProject {
        let project = DjangoProject {
            folder: tempfile::tempdir().unwrap(),
            python: python(django).unwrap(),
        };
        let made = Command::new(&project.python)
            .args(["-m", "django", "startproject", "site_of_ours", "."])
            .current_dir(project.folder.path())
            .status();
        assert!(made.unwrap().success());
        let file = project.folder.path().join("site_of_ours/settings.py");
        let stock = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, format!("{stock}\n{settings}\n{FROM_OUTSIDE}")).unwrap();
        project.manage(&["migrate", "--verbosity", "0"], &[]);
        project
    }

    pub fn manage_py(&self) -> PathBuf {
        self.folder.path().join("manage.py")
    }

    pub fn manage(&self, args: &[&str], env: &[(&str, &str)]) -> String {
        let mut command = Command::new(&self.python);
        command.arg(self.manage_py()).args(args).envs(env.iter().copied());
        Answer::of(command.current_dir(self.folder.path())).expect(0).out
    }

    /// Lines of `session KEY CONTENT`.
    pub fn sessions(&self, script: &str, env: &[(&str, &str)]) -> Vec<String> {
        let out = self.manage(&["shell", "-c", script], env);
        out.lines()
            .filter(|line| line.starts_with("session "))
            .map(str::to_owned)
            .collect()
    }
}
