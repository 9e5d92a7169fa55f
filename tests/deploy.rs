//! What is under deploy/, as far as it can be checked without a cluster, and what documents say of tests.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn text(path: &str) -> String {
    fs::read_to_string(root(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The metrics that a file names, without the prefix.
fn named(text: &str) -> BTreeSet<&str> {
    let end = |rest: &str| {
        rest.find(|c: char| !c.is_ascii_lowercase() && c != '_')
            .unwrap_or(rest.len())
    };
    let names = text.match_indices("sessionferry_").map(|(at, prefix)| {
        let rest = &text[at + prefix.len()..];
        let name = &rest[..end(rest)];
        name.strip_suffix("_bucket").unwrap_or(name)
    });
    names.collect()
}

/// An alert on a metric that there is not never fires.
#[test]
fn alerts_and_dashboard_name_metrics_that_there_are() {
    let documented = text("docs/metrics.md");
    let there: BTreeSet<&str> = documented
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split(['`', '{']).next())
        .collect();
    assert!(there.len() > 20, "{there:?}");
    for file in [
        "deploy/prometheus/alerts.yml",
        "deploy/grafana/dashboards/sessionferry.json",
    ] {
        let text = text(file);
        let named = named(&text);
        assert!(named.len() > 5, "{file}: {named:?}");
        let unknown: Vec<_> = named.difference(&there).collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?}");
    }
}

#[test]
fn the_dashboard_is_json_with_a_query_in_each_panel() {
    let dashboard: serde_json::Value =
        serde_json::from_str(&text("deploy/grafana/dashboards/sessionferry.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 10);
    for panel in panels {
        assert!(panel["targets"][0]["expr"].is_string(), "{}", panel["title"]);
    }
}

/// Prometheus's own checker, where it is installed.
#[test]
fn promtool_accepts_the_rules() {
    for (what, file) in [
        ("config", "deploy/prometheus/prometheus.yml"),
        ("rules", "deploy/prometheus/alerts.yml"),
    ] {
        match Command::new("promtool").args(["check", what]).arg(root(file)).output() {
            Ok(checked) => assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr)),
            Err(error) => println!("skipped: promtool: {error}"),
        }
    }
}

/// What systemd does not know it ignores.
#[test]
fn systemd_knows_every_word_of_the_unit() {
    let unit = root("deploy/systemd/sessionferry.service");
    match Command::new("systemd-analyze").arg("verify").arg(unit).output() {
        Ok(checked) => {
            let said = String::from_utf8_lossy(&checked.stderr).into_owned();
            assert!(!said.contains("ignoring"), "{said}");
        }
        Err(error) => println!("skipped: systemd-analyze: {error}"),
    }
}

/// Every variable that the examples set is one that the program knows.
#[test]
fn variables_are_those_of_the_program() {
    let configuration = text("docs/configuration.md");
    for file in [
        "docker-compose.yml",
        "Dockerfile",
        "deploy/kubernetes/sessionferry.yaml",
        "deploy/systemd/sessionferry.service",
    ] {
        let text = text(file);
        let variables: BTreeSet<&str> = text
            .split(|c: char| !c.is_ascii_uppercase() && c != '_')
            .filter(|word| word.starts_with("SESSIONFERRY_"))
            .collect();
        assert!(!variables.is_empty(), "{file}");
        for variable in variables {
            assert!(configuration.contains(&format!("`{variable}`")), "{file}: {variable}");
        }
    }
}

/// A promise whose test was renamed or removed is no promise.
#[test]
fn the_tests_that_documents_name_are_there() {
    let mut sources = String::new();
    let mut look = vec![root("src"), root("tests"), root("fuzz/src")];
    while let Some(path) = look.pop() {
        if path.is_dir() {
            look.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|end| end == "rs") {
            sources += &fs::read_to_string(path).unwrap();
        }
    }
    let document = text("docs/security.md");
    let mut named = 0;
    for name in document
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| word.matches('_').count() > 2)
    {
        assert!(sources.contains(&format!("fn {name}(")), "docs/security.md: {name}");
        named += 1;
    }
    assert!(named > 25, "{named}");
}
