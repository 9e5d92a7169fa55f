//! What the operator typed, and the commands that talk to a running proxy.
//!
//! `run` and `check` are parsed here and done elsewhere. Everything for a person or a script goes to standard output,
//! everything about it (progress, reasons) to standard error, so that `--json` can be piped.

mod client;
mod clients;
mod operation;
mod screen;
mod settings;
mod summary;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use serde_json::{Value, json};

pub use client::{Client, ClientArgs, ClientError};
pub use clients::ClientsArgs;
pub use operation::LongArgs;
pub use screen::StatusArgs;
pub use settings::{RowSettings, Settings};

use crate::check::{Finding, Level};
use crate::init::{Plan, Project};
use crate::status::{OperationKind, OperationOptions, Restored, Status};

/// The exit codes that the interface promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done,
    /// It failed, found differences, or was refused; the reason is on standard error.
    Failed,
    /// Wrong usage or configuration.
    Usage,
    /// The proxy could not be reached.
    Unreachable,
    /// Ctrl-C while an operation runs, which goes on.
    Interrupted,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Unreachable => 3,
            // What shells report for a program that Ctrl-C ended.
            Exit::Interrupted => 130,
        })
    }
}

/// Moves a live Django site's sessions to a new Redis and to the database, losing none
#[derive(Parser, Debug)]
#[command(name = "sessionferry", version, max_term_width = 120, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Start the proxy
    Run(RunArgs),
    /// Pre-flight: ask every endpoint, check the settings against live keys and rows, change nothing
    Check(CheckArgs),
    /// Write sessionferry.toml from a Django project's own settings
    Init(InitArgs),
    /// Copy a sample of the real sessions, compare, measure, and remove it again
    Rehearse(RehearseArgs),
    #[command(flatten)]
    Remote(Remote),
    /// Print a completion script for a shell
    Completions { shell: clap_complete::Shell },
    /// Print the manual page
    Man,
}

/// Commands that talk to a running proxy.
#[derive(Subcommand, Debug)]
pub enum Remote {
    /// One screen: where the move stands, and what to do next
    Status(StatusArgs),
    /// Who is connected to the proxy, by address and library
    Clients(ClientsArgs),
    /// Copy the sessions that are already there
    Backfill(LongArgs),
    /// Compare source, target and database
    Verify(LongArgs),
    /// Hold Django, drain, and let the target answer; undone by itself if it takes too long
    Cutover(SwitchArgs),
    /// The same, back to the source, losing nothing
    Rollback(SwitchArgs),
    /// Put sessions back into the Redis that answers Django, from the other stores
    Restore(RestoreArgs),
    /// Let go of the source: the end of the road
    Finish(LongArgs),
    /// Stop the operation that runs; what is done stays done
    Stop(StopArgs),
}

/// `sessionferry run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    pub settings: Settings,
}

/// `sessionferry check`.
#[derive(Args, Debug)]
pub struct CheckArgs {
    #[command(flatten)]
    pub settings: Settings,
    /// Look at each session of a sample, at what the Redis users may do, and at round trips
    #[arg(long)]
    pub sessions: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `sessionferry rehearse`.
#[derive(Args, Debug)]
pub struct RehearseArgs {
    #[command(flatten)]
    pub settings: Settings,
    /// How many sessions [default: 10000]
    #[arg(long, value_name = "N", conflicts_with = "all")]
    pub sample: Option<usize>,
    /// All sessions
    #[arg(long)]
    pub all: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `sessionferry init`.
#[derive(Args, Debug)]
pub struct InitArgs {
    /// The project's manage.py
    #[arg(long, value_name = "FILE", default_value = "./manage.py")]
    pub manage: PathBuf,
    /// The settings module, where manage.py does not say or there is none
    #[arg(long, value_name = "MODULE")]
    pub settings: Option<String>,
    /// The project's Python [default: the virtual environment's that is active or beside manage.py, else python3]
    #[arg(long, value_name = "FILE")]
    pub python: Option<PathBuf>,
    /// The new Redis (redis://…), where it is known already
    #[arg(long, value_name = "URL")]
    pub target: Option<String>,
    /// Where Django will connect instead of the old Redis
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:6380")]
    pub listen: String,
    /// The file to write; secrets go into a folder beside it
    #[arg(long, value_name = "FILE", default_value = "sessionferry.toml")]
    pub output: PathBuf,
    /// Write over files that are there
    #[arg(long)]
    pub overwrite: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

impl InitArgs {
    /// Which project is asked. Without a `manage.py` at the usual place, the settings module alone will do.
    pub fn project(&self) -> Project {
        let only_settings = self.settings.is_some() && !self.manage.exists();
        Project {
            manage: (!only_settings).then(|| self.manage.clone()),
            settings: self.settings.clone(),
            python: self.python.clone(),
        }
    }

    /// The folder for secrets.
    pub fn secrets(&self) -> PathBuf {
        let beside = std::path::absolute(&self.output).unwrap_or_else(|_| self.output.clone());
        beside.with_file_name("sessionferry-secrets")
    }
}

/// What `init` wrote and found.
pub fn print_init(args: &InitArgs, plan: &Plan) {
    if args.json {
        let steps: Vec<_> = plan
            .steps
            .iter()
            .map(|step| json!({"when": step.when, "diff": step.diff}))
            .collect();
        let secrets: Vec<_> = plan.secrets.iter().map(|(name, _)| args.secrets().join(name)).collect();
        out(
            &json!({"config": args.output, "secrets": secrets, "warnings": plan.warnings, "settings": steps})
                .to_string(),
        );
        return;
    }
    out(&format!("wrote {}", args.output.display()));
    if !plan.secrets.is_empty() {
        out(&format!(
            "wrote {} secret(s) into {}, for your eyes alone",
            plan.secrets.len(),
            args.secrets().display()
        ));
    }
    for warning in &plan.warnings {
        out(&format!("WARN   {warning}"));
    }
    out("\nnext: sessionferry check --sessions, then sessionferry run\n\nWhat to change in the project's settings:");
    for step in &plan.steps {
        out(&format!("\n# {}\n{}", step.when, step.diff.trim_end()));
    }
}

/// `sessionferry cutover` and `rollback`.
#[derive(Args, Debug)]
pub struct SwitchArgs {
    #[command(flatten)]
    pub long: LongArgs,
    /// Print the plan and each check's answer, change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Go on although a check says no
    #[arg(long)]
    pub force: bool,
}

/// Where there is no other Redis, the settings still ask for one. It is never connected to.
const NO_OTHER: &str = "unix:/nowhere";

/// `sessionferry restore`.
#[derive(Args, Debug)]
pub struct RestoreArgs {
    #[command(flatten)]
    pub long: LongArgs,
    /// Put the database's rows into this Redis instead, without a proxy; what it has already stays
    #[arg(long, value_name = "URL")]
    pub to: Option<String>,
    #[command(flatten)]
    pub settings: RowSettings,
}

impl RestoreArgs {
    /// The settings of a restore without a proxy; `None` where a proxy is to do it.
    pub fn without_proxy(&self) -> Option<Settings> {
        let to = self.to.as_ref()?;
        let mut settings = self.settings.0.clone();
        settings.flags.insert("source.url", to.clone());
        settings.flags.insert("target.url", NO_OTHER.to_owned());
        Some(settings)
    }
}

/// Prints what a restore without a proxy did.
pub fn print_restored(restored: Restored, as_json: bool) {
    out(&if as_json {
        json!(restored).to_string()
    } else {
        summary::restored(&restored)
    });
}

/// `sessionferry stop`.
#[derive(Args, Debug)]
pub struct StopArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    /// The operation [default: the one that runs]
    pub id: Option<u64>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Does a command that talks to a running proxy.
pub fn remote(command: &Remote) -> Exit {
    let none = OperationOptions::default();
    match command {
        Remote::Status(args) => screen::run(args),
        Remote::Clients(args) => clients::run(args),
        Remote::Backfill(args) => operation::run(args, OperationKind::Backfill, &none),
        Remote::Verify(args) => operation::run(args, OperationKind::Verify, &none),
        Remote::Cutover(args) => switch(args, OperationKind::Cutover),
        Remote::Rollback(args) => switch(args, OperationKind::Rollback),
        Remote::Restore(args) => operation::run(&args.long, OperationKind::Restore, &none),
        Remote::Finish(args) => operation::run(args, OperationKind::Finish, &none),
        Remote::Stop(args) => stop(args),
    }
}

fn switch(args: &SwitchArgs, kind: OperationKind) -> Exit {
    operation::run(
        &args.long,
        kind,
        &OperationOptions {
            dry_run: args.dry_run,
            force: args.force,
        },
    )
}

fn stop(args: &StopArgs) -> Exit {
    let stopped = Client::new(&args.client).and_then(|client| {
        let id = match args.id {
            Some(id) => id,
            None => match client.get::<Status>("/api/v1/status")?.operation {
                Some(operation) => operation.operation,
                None => return Err(ClientError::Refused("no operation runs".into())),
            },
        };
        client.delete::<Value>(&format!("/api/v1/operations/{id}")).map(|_| id)
    });
    match stopped {
        Ok(id) if args.json => out(&json!({ "operation": id }).to_string()),
        Ok(id) => out(&format!("operation {id} was asked to stop; what is done stays done")),
        Err(error) => return error.report("stop", args.json),
    }
    Exit::Done
}

/// Writes a completion script to standard output.
pub fn completions(shell: clap_complete::Shell) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "sessionferry", &mut script);
    out(String::from_utf8_lossy(&script).trim_end());
    Exit::Done
}

/// Writes the manual to standard output: all commands in one page, as `man sessionferry` is what people type.
pub fn man() -> Exit {
    let mut page = Vec::new();
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let all = std::iter::once(command.clone()).chain(command.get_subcommands().cloned());
    for command in all {
        if clap_mangen::Man::new(command).render(&mut page).is_err() {
            return Exit::Failed;
        }
    }
    out(String::from_utf8_lossy(&page).trim_end());
    Exit::Done
}

/// Reports something on standard error.
pub fn complain(text: &str) {
    // Nobody is left to be told where standard error is closed.
    let _ = writeln!(io::stderr(), "{text}");
}

/// A result on standard output. A reader that went away (`| head`) is no failure.
fn out(text: &str) {
    let _ = try_out(text);
}

fn try_out(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}")?;
    stdout.flush()
}

/// What `check` found: a line each, or one JSON object.
pub fn print_findings(findings: &[Finding], as_json: bool) {
    let worst = findings
        .iter()
        .map(|finding| finding.level)
        .max()
        .unwrap_or(Level::Green);
    if as_json {
        out(&json!({"result": worst, "findings": findings}).to_string());
        return;
    }
    for finding in findings {
        let mark = match finding.level {
            Level::Green => "ok    ",
            Level::Yellow => "WARN  ",
            Level::Red => "ERROR ",
        };
        out(&format!("{mark} {:<11} {}", finding.about, finding.detail));
        for session in &finding.sessions {
            out(&format!("         {}  {}", session.session, session.reason));
        }
    }
}
