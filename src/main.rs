//! Parse, gather the configuration, start logging, do it, exit code.

use std::io::{IsTerminal, stderr};
use std::process::ExitCode;

use clap::Parser;
use sessionferry::app;
use sessionferry::check::Level;
use sessionferry::cli::{self, CheckArgs, Cli, Command, Exit, InitArgs, RehearseArgs, Remote, RestoreArgs, Settings};
use sessionferry::config::{Config, Log, LogFormat};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // clap answers wrong usage with exit code 2, as the interface has it.
    let exit = match Cli::parse().command {
        Command::Run(args) => with_config(&args.settings, |config| app::run(&config)),
        Command::Check(args) => with_config(&args.settings, |config| check(&config, &args)),
        Command::Rehearse(args) => with_config(&args.settings, |config| rehearse(&config, &args)),
        Command::Init(args) => init(&args),
        Command::Remote(command) => match &command {
            Remote::Restore(args) if args.to.is_some() => restore(args),
            _ => cli::remote(&command),
        },
        Command::Completions { shell } => cli::completions(shell),
        Command::Man => cli::man(),
    };
    exit.into()
}

/// The pre-flight: every finding on standard output, and failure where one is red.
fn check(config: &Config, args: &CheckArgs) -> Result<(), String> {
    let findings = app::check(config, args.sessions)?;
    cli::print_findings(&findings, args.json);
    let red = findings.iter().filter(|finding| finding.level == Level::Red).count();
    if red > 0 {
        Err(format!("{red} of {} checks are red", findings.len()))
    } else {
        Ok(())
    }
}

/// A sample of the real sessions there and back.
fn rehearse(config: &Config, args: &RehearseArgs) -> Result<(), String> {
    let limit = (!args.all).then(|| args.sample.unwrap_or(sessionferry::rehearse::SAMPLE));
    let findings = app::rehearse(config, limit)?;
    cli::print_findings(&findings, args.json);
    let red = findings.iter().filter(|finding| finding.level == Level::Red).count();
    if red > 0 {
        Err("the rehearsal was no success: see the lines marked ERROR".into())
    } else {
        Ok(())
    }
}

/// A configuration from a project's own settings.
fn init(args: &InitArgs) -> Exit {
    let secrets = args.secrets();
    let made = app::init(&args.project(), args.target.as_deref(), &args.listen, &secrets).and_then(|plan| {
        sessionferry::init::write(&plan, &args.output, &secrets, args.overwrite)
            .map(|()| plan)
            .map_err(|error| error.to_string())
    });
    match made {
        Ok(plan) => {
            cli::print_init(args, &plan);
            Exit::Done
        }
        Err(reason) => {
            cli::complain(&format!("init: {reason}"));
            Exit::Failed
        }
    }
}

/// Without a proxy: from the rows into the Redis that is named.
fn restore(args: &RestoreArgs) -> Exit {
    let settings = args.without_proxy().unwrap_or_default();
    with_config(&settings, |config| {
        app::restore(&config).map(|restored| cli::print_restored(restored, args.long.json))
    })
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
