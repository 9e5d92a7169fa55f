//! The documents, taken at their word: each command that they show is run, in their order, and prints what they say.
#![cfg(feature = "net")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

#[path = "documents/shown.rs"]
mod shown;
mod support;
#[path = "documents/world.rs"]
mod world;

use clap::{CommandFactory, error::ErrorKind};
use sessionferry::cli::Cli;
use shown::{Shown, commands, has_line, mentions, text};
use support::{Port, certificates::Authority, proxy::Answer};
use world::World;

const DOCUMENTS: &[&str] = &[
    "README.md",
    "docs/admin.md",
    "docs/after.md",
    "docs/alternatives.md",
    "docs/compatibility.md",
    "docs/configuration.md",
    "docs/cutover.md",
    "docs/failure-modes.md",
    "docs/metrics.md",
    "docs/performance.md",
    "docs/runbook.md",
    "docs/security.md",
    "docs/sizing.md",
];

/// What takes too long for a test, or needs an engine for containers, and which line of `.ci/run` runs it.
const RUN_BY_CI: &[(&str, &str)] = &[
    ("scripts/demo", "scripts/demo "),
    ("docker compose --profile load up", "scripts/compose-test "),
    ("cargo build --release --locked", "cargo build --release --locked"),
];

/// Runs each command of a document. `before` prepares for the one that comes, and says which exit code it will have.
fn follow(world: &mut World, document: &'static str, mut before: impl FnMut(&mut World, &Shown) -> i32) {
    let mut wrong = Vec::new();
    for shown in commands(document) {
        if RUN_BY_CI.iter().any(|(command, _)| *command == shown.command) {
            continue;
        }
        let code = before(world, &shown);
        let answer = world.run(&shown);
        assert_eq!(answer.code, code, "{}: {answer:#?}", shown.place());
        wrong.extend(differences(world, &shown, &answer));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n\n"));
}

fn differences(world: &World, shown: &Shown, answer: &Answer) -> Option<String> {
    let said = format!("{}\n{}", answer.out, answer.err);
    let missing: Vec<&String> = shown
        .output
        .iter()
        .filter(|line| line.trim() != "...")
        .filter(|line| !has_line(&said, &world.here(line)))
        .collect();
    (!missing.is_empty()).then(|| format!("{} does not print {missing:#?}, but\n{said}", shown.place()))
}

#[test]
fn the_ten_steps_of_the_readme() {
    let mut world = World::new();
    world.fill(12_000);
    follow(&mut world, "README.md", |world, shown| {
        match shown.command.as_str() {
            "tail -1 sessionferry.log" => world.until_file_has("sessionferry.log", "ready for Django"),
            "kill -HUP $(cat gunicorn.pid)" => world.start_gunicorn(),
            // The step before was the way back.
            "sessionferry finish" => world.bring(&["sessionferry verify", "sessionferry cutover"]),
            "sessionferry status" => {
                world.until_file_has("reloaded", "");
                world.visit(true);
            }
            _ => {}
        }
        0
    });
}

#[test]
fn cutover_and_rollback() {
    let mut world = World::new();
    world.visit(false);
    world.start();
    world.visit(true);
    let mut refused = false;
    follow(&mut world, "docs/cutover.md", |world, shown| {
        if shown.command == "sessionferry cutover" && !refused {
            refused = true;
            return 1;
        }
        if shown.command == "sessionferry cutover" {
            world.bring(&["sessionferry backfill", "sessionferry verify"]);
        }
        0
    });
}

#[test]
fn after_the_move() {
    let mut world = World::new();
    world.visit(false);
    world.start();
    world.bring(&["sessionferry backfill", "sessionferry verify", "sessionferry cutover"]);
    follow(&mut world, "docs/after.md", |_, _| 0);
}

#[test]
fn when_something_fails() {
    let mut world = World::new();
    world.visit(false);
    world.start();
    world.bring(&["sessionferry backfill"]);
    follow(&mut world, "docs/failure-modes.md", |world, shown| {
        if shown.command == "sessionferry verify" {
            // As a writer that goes around the proxy does, where nobody tells of it.
            world.target.ask::<String>(&["FLUSHALL"]);
            world.database.sql("DELETE FROM django_session");
            return 1;
        }
        0
    });
}

#[test]
fn configuration_by_hand() {
    let mut world = World::new();
    world.visit(false);
    world.bring(&["sessionferry init --target redis://:new-password@127.0.0.1:7002/0"]);
    // A target whose certificate was made by nobody in particular.
    let authority = Authority::new("nobody in particular");
    let pair = authority.issue("127.0.0.1");
    let port = Port::free();
    let tls = pair.redis_args(&port, &authority.file(), "no");
    let tls: Vec<&str> = tls.iter().map(String::as_str).collect();
    world.target.restart_with(&tls);
    follow(&mut world, "docs/configuration.md", |world, shown| {
        world.environment.clear();
        match shown.command.as_str() {
            "sessionferry check" => {
                let url = format!("rediss://:new-password@{}/0", port.address());
                world.environment.push(("SESSIONFERRY_TARGET", url));
                1
            }
            "sessionferry check --mirror all" => 2,
            _ => 0,
        }
    });
}

/// Documents whose commands no test above runs would go stale unnoticed.
#[test]
fn every_document_with_commands_is_followed() {
    let here = include_str!("documents.rs");
    for document in DOCUMENTS {
        let followed = here.contains(&format!("follow(&mut world, {document:?}"));
        assert_eq!(followed, !commands(document).is_empty(), "{document}");
    }
    let ci = text(".ci/run");
    for (command, line) in RUN_BY_CI {
        assert!(ci.contains(line), "{command} is run by nobody");
    }
    assert!(text("scripts/compose-test").contains("--profile load"));
}

/// A command that is only mentioned is at least one that there is.
#[test]
fn commands_in_the_text_are_understood() {
    let mut seen = 0;
    for document in DOCUMENTS {
        for mention in mentions(document) {
            let words = mention.split(' ');
            let parsed = Cli::command().try_get_matches_from(words.clone());
            // A flag may be named without its value.
            let parsed = parsed.or_else(|_| Cli::command().try_get_matches_from(words.chain(["value"])));
            if let Err(error) = parsed {
                let shows = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
                assert!(shows, "{document}: `{mention}`: {error}");
            }
            seen += 1;
        }
    }
    assert!(seen > 30, "only {seen}");
}
