//! The real binary: what it prints where, and its exit codes.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod fake;

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use fake::{Script, Served};
use serde_json::{Value, json};
use sessionferry::status::{OperationKind, OperationState};

/// An address that nobody listens on.
const NOWHERE: &str = "http://127.0.0.1:1";

/// The binary in a directory without a configuration file, and without this machine's environment.
fn binary(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sessionferry"));
    command
        .args(args)
        .env_clear()
        .current_dir(env!("CARGO_TARGET_TMPDIR"))
        .stdin(Stdio::null());
    command
}

struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    /// Standard output, which must be one JSON object and nothing else.
    fn json(&self) -> Value {
        assert_eq!(self.out.lines().count(), 1, "not one line: {}", self.out);
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}", self.out))
    }
}

fn ended(output: Output) -> Ran {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: text(output.stdout),
        err: text(output.stderr),
    }
}

fn run(args: &[&str]) -> Ran {
    ended(binary(args).output().unwrap())
}

/// A long command against a fake whose operation ends like this.
fn long(args: &[&str], end: (OperationState, Option<&str>, Value)) -> Ran {
    let end = Some((end.0, end.1.map(str::to_owned), end.2));
    let served = Served::new(
        None,
        Script {
            polls: 2,
            end,
            ..Script::default()
        },
    );
    run(&[args, &["--admin", &served.url()]].concat())
}

fn has(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "`{word}` is not in:\n{text}");
    }
}

#[test]
fn each_long_command_asks_for_its_operation_and_exits_0() {
    for kind in OperationKind::ALL {
        let served = Served::new(None, Script::default());
        let ran = run(&[kind.name(), "--admin", &served.url()]);
        assert_eq!(ran.code, 0, "{}: {}", kind.name(), ran.err);
        let started = served.script().started.clone();
        assert!(started.len() == 1 && started[0].0 == kind && !started[0].1.dry_run && !started[0].1.force);
    }
    let served = Served::new(None, Script::default());
    run(&["rollback", "--dry-run", "--force", "--admin", &served.url()]);
    let options = served.script().started[0].1.clone();
    assert!(options.dry_run && options.force);
}

#[test]
fn clients_are_listed() {
    let served = Served::new(None, Script::default());
    let ran = run(&["clients", "--admin", &served.url()]);
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (0, "     3  10.0.0.7  redis-py 5.0.1, named celery\n")
    );
    let ran = run(&["clients", "--json", "--admin", &served.url()]);
    assert_eq!(
        (ran.code, ran.json()["clients"][0]["connections"].clone()),
        (0, json!(3))
    );
    let ran = run(&["clients", "--json", "--admin", "http://127.0.0.1:1"]);
    assert_eq!(ran.code, 3);
    has(&ran.err, &["clients: cannot reach the proxy"]);
}

#[test]
fn backfill_says_what_it_copied() {
    let result = json!({"scanned": 12345, "copied": 12000, "skipped": 345, "failed": 0});
    let ran = long(&["backfill"], (OperationState::Done, None, result.clone()));
    assert_eq!(ran.code, 0, "{}", ran.err);
    has(
        &ran.out,
        &[
            "12,345 sessions scanned",
            "12,000 copied",
            "next step: sessionferry verify",
        ],
    );
    has(&ran.err, &["backfill: 1 of 10 (10%): at work"]);
    assert_eq!(ran.err.lines().count(), 1, "at most one line each 2 s: {}", ran.err);
    let ran = long(&["backfill", "--json"], (OperationState::Done, None, result));
    assert_eq!((ran.code, ran.json()["result"]["copied"].clone()), (0, json!(12000)));
    let ran = long(&["backfill"], (OperationState::Done, None, json!({"failed": 2})));
    assert_eq!(ran.code, 1);
    has(&ran.err, &["2 sessions could not be copied"]);
}

#[test]
fn verify_exits_1_where_the_stores_differ_and_says_what_to_do() {
    let clean = json!({"state": "clean", "compared": 50, "rounds": 1, "unstorable": 3});
    let ran = long(&["verify"], (OperationState::Done, None, clean));
    assert_eq!(ran.code, 0, "{}", ran.err);
    has(
        &ran.out,
        &[
            "50 sessions compared in 1 round(s), no difference",
            "3 session(s)",
            "cutover --dry-run",
        ],
    );
    let differs = json!({"state": "differs", "compared": 50, "rounds": 3, "missing_target": 2, "different_database": 1,
                         "extra_target": 4, "differences": [{"session": "a1b2", "found": ["missing in the other Redis"], "outcome": "differs_still"}]});
    let ran = long(&["verify"], (OperationState::Done, None, differs.clone()));
    assert_eq!(ran.code, 1);
    has(
        &ran.out,
        &[
            "7 difference(s)",
            "missing on the target: 2",
            "different in the database: 1",
            "extra on the target: 4",
        ],
    );
    has(
        &ran.out,
        &[
            "a1b2: missing in the other Redis (differs still)",
            "what to do: ",
            "sessionferry backfill",
        ],
    );
    assert!(
        !ran.out.contains("missing in the database") && !ran.out.contains("next step"),
        "{}",
        ran.out
    );
    has(&ran.err, &["verify: the stores differ"]);
    let ran = long(&["verify", "--json"], (OperationState::Done, None, differs));
    assert_eq!(
        (ran.code, ran.json()["result"]["missing_target"].clone()),
        (1, json!(2))
    );
}

#[test]
fn cutover_says_how_long_it_held_or_why_it_was_undone() {
    let done = json!({"checks": [{"name": "backfill", "passed": true, "detail": "done"}], "hold_seconds": 0.0314});
    let ran = long(&["cutover"], (OperationState::Done, None, done));
    assert_eq!(ran.code, 0, "{}", ran.err);
    has(
        &ran.out,
        &[
            "ok  backfill: done",
            "the target answers Django now",
            "held for 31 ms",
            "rollback",
        ],
    );
    let undone = json!({"hold_seconds": 2.0, "undone": "the tee did not drain"});
    let ran = long(&["cutover"], (OperationState::Failed, None, undone));
    assert_eq!(ran.code, 1);
    has(
        &ran.err,
        &["undone, everything is as it was before: the tee did not drain; clients were held for 2000 ms"],
    );
    let plan = json!({"dry_run": true, "steps": ["hold"], "checks": [{"name": "verify", "passed": false, "detail": "run it"}]});
    let ran = long(&["cutover", "--dry-run"], (OperationState::Done, None, plan));
    assert_eq!(ran.code, 1, "a script may ask with --dry-run whether it may go on");
    has(&ran.out, &["NO  verify: run it", "1. hold"]);
    has(&ran.err, &["1 check(s) say no; nothing was changed"]);
    let ran = long(
        &["rollback"],
        (OperationState::Done, None, json!({"hold_seconds": 0.01})),
    );
    has(&ran.out, &["the source answers Django again", "10 ms"]);
}

#[test]
fn what_failed_was_stopped_or_refused_exits_1_with_its_reason() {
    let ran = long(
        &["restore"],
        (OperationState::Failed, Some("the database is out"), Value::Null),
    );
    assert_eq!(ran.code, 1);
    has(&ran.err, &["restore: the database is out"]);
    let ran = long(&["finish"], (OperationState::Stopped, None, Value::Null));
    assert_eq!(ran.code, 1);
    has(&ran.err, &["it was stopped; what is done stays done"]);
    let served = Served::new(
        None,
        Script {
            refuse: Some("run backfill first".into()),
            ..Script::default()
        },
    );
    let ran = run(&["cutover", "--admin", &served.url()]);
    assert_eq!(
        (ran.code, ran.out.as_str(), ran.err.as_str()),
        (1, "", "cutover: run backfill first\n")
    );
    let ran = run(&["cutover", "--json", "--admin", &served.url()]);
    assert_eq!((ran.code, ran.json()), (1, json!({"error": "run backfill first"})));
}

#[test]
fn a_proxy_that_cannot_be_reached_is_exit_3() {
    for args in [
        vec!["status"],
        vec!["verify"],
        vec!["cutover", "--json"],
        vec!["stop"],
        vec!["status", "--watch", "--json"],
    ] {
        let ran = run(&[args.as_slice(), &["--admin", NOWHERE]].concat());
        assert_eq!(ran.code, 3, "{args:?}: {}", ran.err);
        has(
            &ran.err,
            &["cannot reach the proxy at http://127.0.0.1:1", "sessionferry run"],
        );
        if args.contains(&"--json") {
            has(ran.json()["error"].as_str().unwrap(), &["cannot reach"]);
        }
    }
    let ran = ended(
        binary(&["status"])
            .env("SESSIONFERRY_ADMIN_URL", "http://127.0.0.1:2")
            .output()
            .unwrap(),
    );
    assert_eq!(ran.code, 3);
    has(&ran.err, &["http://127.0.0.1:2"]);
}

#[test]
fn a_proxy_that_vanishes_in_the_middle_is_exit_3() {
    let served = Served::new(
        None,
        Script {
            polls: 1000,
            ..Script::default()
        },
    );
    let child = binary(&["backfill", "--admin", &served.url()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while served
        .script()
        .operations
        .get(&1)
        .is_none_or(|operation| operation.done == 0)
    {
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(served);
    let ran = ended(child.wait_with_output().unwrap());
    assert_eq!(ran.code, 3, "{}", ran.err);
}

#[test]
fn no_wait_returns_at_once_and_stop_stops() {
    let served = Served::new(
        None,
        Script {
            polls: 20,
            ..Script::default()
        },
    );
    let url = served.url();
    let ran = run(&["backfill", "--no-wait", "--json", "--admin", &url]);
    assert_eq!((ran.code, ran.json()), (0, json!({"operation": 1})));
    let ran = run(&["verify", "--no-wait", "--admin", &url]);
    has(&ran.out, &["operation 2", "sessionferry stop 2"]);
    let ran = run(&["stop", "--admin", &url]);
    has(&ran.out, &["operation 1 was asked to stop"]);
    assert_eq!(run(&["stop", "2", "--admin", &url]).code, 0);
    let ran = run(&["stop", "--admin", &url]);
    assert_eq!((ran.code, ran.err.as_str()), (1, "stop: no operation runs\n"));
    assert_eq!(run(&["stop", "9", "--admin", &url]).code, 1);
}

#[test]
fn an_interrupt_leaves_the_operation_running_and_says_how_to_stop_it() {
    let served = Served::new(
        None,
        Script {
            polls: 1000,
            ..Script::default()
        },
    );
    let child = binary(&["backfill", "--admin", &served.url()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while served
        .script()
        .operations
        .get(&1)
        .is_none_or(|operation| operation.done == 0)
    {
        std::thread::sleep(Duration::from_millis(20));
    }
    // Without unsafe code, kill(1) is how a test sends a signal.
    assert!(
        Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
    let ran = ended(child.wait_with_output().unwrap());
    assert_eq!(ran.code, 130, "{}", ran.err);
    has(
        &ran.err,
        &["goes on in the proxy as operation 1", "sessionferry stop 1"],
    );
    assert_eq!(served.script().operations[&1].state, OperationState::Running);
}

#[test]
fn status_is_one_screen_or_one_object() {
    let served = Served::new(None, Script::default());
    let ran = run(&["status", "--admin", &served.url()]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    has(
        &ran.out,
        &[
            "● teeing",
            "3 connected",
            "next step   `sessionferry backfill`",
            "9 missing on the target",
        ],
    );
    let ran = run(&["status", "--json", "--admin", &served.url()]);
    assert_eq!(ran.json()["phase"], json!("teeing"));
}

#[test]
fn the_token_comes_from_a_file_or_the_environment() {
    let token = "a-token-that-is-long-enough";
    let served = Served::new(Some(token), Script::default());
    let url = served.url();
    let ran = run(&["status", "--admin", &url]);
    assert_eq!(ran.code, 1);
    has(&ran.err, &["asks for a token", "--admin-token-file"]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, format!("{token}\n")).unwrap();
    assert_eq!(
        run(&["status", "--admin", &url, "--admin-token-file", path.to_str().unwrap()]).code,
        0
    );
    let with = |value: &str| {
        ended(
            binary(&["verify", "--admin", &url])
                .env("SESSIONFERRY_ADMIN_TOKEN", value)
                .output()
                .unwrap(),
        )
    };
    assert_eq!(with(token).code, 0);
    assert_eq!(with(&format!("file:{}", path.display())).code, 0);
    let ran = with("not-the-token");
    assert_eq!(ran.code, 1);
    has(&ran.err, &["does not accept this token"]);
    assert!(!ran.err.contains("not-the-token"), "{}", ran.err);
    assert_eq!(run(&["status", "--admin-token-file", "/nowhere/at/all"]).code, 2);
}

#[test]
fn wrong_usage_and_configuration_are_exit_2_with_every_value_named() {
    let ran = run(&[
        "run",
        "--listen",
        "6380",
        "--source",
        "http://u:s3cr3t@h",
        "--max-hold",
        "9s",
        "--ack",
        "never",
        "--mirror",
        "all",
    ]);
    assert_eq!(ran.code, 2);
    has(
        &ran.err,
        &[
            "listen (--listen",
            "source.url (--source",
            "target.url (--target",
            "9s",
            "`never`",
            "tee.mirror",
        ],
    );
    has(&ran.err, &["django.secret_key (--secret-key"]);
    assert!(!ran.err.contains("s3cr3t"), "{}", ran.err);
    let ran = ended(
        binary(&["check", "--database", "none"])
            .env("SESSIONFERRY_WORKERS", "x")
            .output()
            .unwrap(),
    );
    assert_eq!(ran.code, 2);
    has(&ran.err, &["found in SESSIONFERRY_WORKERS", "source.url", "target.url"]);
    for args in [
        vec![],
        vec!["fly"],
        vec!["run", "--fly"],
        vec!["stop", "x"],
        vec!["status", "--admin", "ftp://h"],
    ] {
        assert_eq!(run(&args).code, 2, "{args:?}");
    }
    assert_eq!(run(&["run", "--config", "/nowhere.toml"]).code, 2);
}

#[test]
fn help_names_every_flag_with_its_variable_and_default() {
    let ran = run(&["run", "--help"]);
    assert_eq!(ran.code, 0);
    // Long help wraps; words are compared.
    let help = ran.out.split_whitespace().collect::<Vec<_>>().join(" ");
    for key in sessionferry::config::KEYS.iter().filter(|key| key.flag.is_some()) {
        has(
            &help,
            &[
                &format!("--{}", key.flag.unwrap()),
                &format!("[env: {}]", key.env.unwrap()),
            ],
        );
    }
    has(&help, &["[default: 127.0.0.1:6380]", "--config <FILE>"]);
    assert_eq!(
        run(&["--version"]).out,
        format!("sessionferry {}\n", env!("CARGO_PKG_VERSION"))
    );
    has(&run(&["completions", "bash"]).out, &["--max-hold"]);
    has(&run(&["man"]).out, &["sessionferry", r"\-\-max\-hold", r"\-\-dry\-run"]);
    has(&run(&["run", "-h"]).out, &["--ack <WHEN>"]);
}
