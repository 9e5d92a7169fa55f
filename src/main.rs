//! Parse, gather the configuration, start logging, do it, exit code.

use std::io::{IsTerminal, stderr};
use std::process::ExitCode;

use clap::Parser;
use sessionferry::cli::{self, CheckArgs, Cli, Command, Exit, Settings};
use sessionferry::config::{Config, Log, LogFormat};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // clap answers wrong usage with exit code 2, as the interface has it.
    let exit = match Cli::parse().command {
        Command::Run(args) => with_config(&args.settings, run),
        Command::Check(args) => with_config(&args.settings, |config| check(config, &args)),
        Command::Remote(command) => cli::remote(&command),
        Command::Completions { shell } => cli::completions(shell),
        Command::Man => cli::man(),
    };
    exit.into()
}

/// The one place where the proxy itself is wired in: `sessionferry::app::run(config)`.
fn run(config: Config) -> Result<(), String> {
    for line in config.effective() {
        tracing::info!("{line}");
    }
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    Err("run: not wired".into())
}

/// The one place where the pre-flight is wired in: `sessionferry::check::…`.
fn check(_config: Config, _args: &CheckArgs) -> Result<(), String> {
    Err("check: not wired".into())
}

fn with_config(settings: &Settings, work: impl FnOnce(Config) -> Result<(), String>) -> Exit {
    let config = match settings.load() {
        Ok(config) => config,
        Err(invalid) => {
            cli::complain(&invalid.to_string());
            return Exit::Usage;
        }
    };
    start_log(&config.log);
    match work(config) {
        Ok(()) => Exit::Done,
        Err(reason) => {
            cli::complain(&reason);
            Exit::Failed
        }
    }
}

/// Logs go to standard error, so that standard output holds results alone.
fn start_log(log: &Log) {
    let filter = EnvFilter::try_new(&log.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal());
    match log.format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().init(),
    }
}
