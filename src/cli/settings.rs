//! The flags of `run` and `check`, made from the table of settings, so that names and help are written once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use crate::config::{Config, DEFAULT_FILE, Inputs, Invalid, KEYS, Key};

/// Flags as typed. They stay text here, because the configuration checks all sources alike and names all bad values at
/// once, which clap would not.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// `--config`.
    pub config_file: Option<PathBuf>,
    /// By the setting's name in the file.
    pub flags: BTreeMap<&'static str, String>,
}

impl Settings {
    /// Flags, the process's environment, and the file.
    pub fn load(&self) -> Result<Config, Invalid> {
        Config::load(&Inputs {
            flags: self.flags.clone(),
            config_file: self.config_file.clone(),
            directory: Some(Path::new(".")),
            env: &|name| std::env::var(name).ok(),
        })
    }

    fn take(&mut self, matches: &ArgMatches, wanted: fn(&Key) -> bool) {
        if let Some(path) = matches.get_one::<PathBuf>("config") {
            self.config_file = Some(path.clone());
        }
        for key in KEYS.iter().filter(|key| key.flag.is_some() && wanted(key)) {
            if let Some(text) = matches.get_one::<String>(key.toml) {
                self.flags.insert(key.toml, text.clone());
            }
        }
    }
}

/// Adds `--config` and the flags of the settings that are wanted.
fn with_flags(command: Command, wanted: fn(&Key) -> bool) -> Command {
    let file = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .value_parser(clap::value_parser!(PathBuf))
        .help_heading("Settings")
        .help(format!(
            "The configuration file [default: ./{DEFAULT_FILE} where it exists]"
        ));
    let keys = KEYS.iter().filter(|key| wanted(key));
    keys.fold(command.arg(file), |command, key| {
        let Some(flag) = key.flag else { return command };
        let mut short = key.help.to_owned();
        if !key.default.is_empty() {
            short.push_str(&format!(" [default: {}]", key.default));
        }
        let env = key.env.map(|env| format!("[env: {env}] ")).unwrap_or_default();
        let long = format!("{short}\n{env}[file: {}]", key.toml);
        command.arg(
            Arg::new(key.toml)
                .long(flag)
                .value_name(key.value)
                // Django's generated keys may begin with a dash.
                .allow_hyphen_values(key.secret)
                .help_heading("Settings")
                .help(short)
                .long_help(long),
        )
    })
}

/// The settings that say what a session is and where its row: all that work without a proxy needs.
#[derive(Clone, Debug, Default)]
pub struct RowSettings(pub Settings);

fn is_of_rows(key: &Key) -> bool {
    ["database.", "django.", "log."]
        .iter()
        .any(|table| key.toml.starts_with(table))
}

impl FromArgMatches for RowSettings {
    fn from_arg_matches(matches: &ArgMatches) -> Result<RowSettings, clap::Error> {
        let mut settings = RowSettings::default();
        settings.update_from_arg_matches(matches)?;
        Ok(settings)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.take(matches, is_of_rows);
        Ok(())
    }
}

impl Args for RowSettings {
    fn augment_args(command: Command) -> Command {
        with_flags(command, is_of_rows)
    }

    fn augment_args_for_update(command: Command) -> Command {
        RowSettings::augment_args(command)
    }
}

impl FromArgMatches for Settings {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Settings, clap::Error> {
        let mut settings = Settings::default();
        settings.update_from_arg_matches(matches)?;
        Ok(settings)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.take(matches, |_| true);
        Ok(())
    }
}

impl Args for Settings {
    fn augment_args(command: Command) -> Command {
        with_flags(command, |_| true)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Settings::augment_args(command)
    }
}
