//! The flags of `run` and `check`, made from the table of settings, so that names and help are written once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use crate::config::{Config, DEFAULT_FILE, Inputs, Invalid, KEYS};

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
}

impl FromArgMatches for Settings {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Settings, clap::Error> {
        let mut settings = Settings::default();
        settings.update_from_arg_matches(matches)?;
        Ok(settings)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        if let Some(path) = matches.get_one::<PathBuf>("config") {
            self.config_file = Some(path.clone());
        }
        for key in KEYS.iter().filter(|key| key.flag.is_some()) {
            if let Some(text) = matches.get_one::<String>(key.toml) {
                self.flags.insert(key.toml, text.clone());
            }
        }
        Ok(())
    }
}

impl Args for Settings {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help_heading("Settings")
            .help(format!(
                "The configuration file [default: ./{DEFAULT_FILE} where it exists]"
            ));
        KEYS.iter().fold(command.arg(file), |command, key| {
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

    fn augment_args_for_update(command: Command) -> Command {
        Settings::augment_args(command)
    }
}
