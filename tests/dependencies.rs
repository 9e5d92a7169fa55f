//! What the program is built from: licences that `deny.toml` allows, and no source but crates.io. `scripts/audit` asks more,
//! where its tool and the database of advisories can be had; this runs wherever the tests run.
#![cfg(feature = "net")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use std::{collections::BTreeSet, path::Path, process::Command};

use serde_json::Value;

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

fn text(file: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

/// What is built on this machine, with its licences.
fn packages() -> Vec<Value> {
    let compiler = Command::new("rustc").arg("-vV").output().unwrap();
    let compiler = String::from_utf8(compiler.stdout).unwrap();
    let host = compiler.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let asked = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--offline",
            "--filter-platform",
            host,
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    let mut all: Value = serde_json::from_slice(&asked.stdout).unwrap();
    let used: BTreeSet<String> = all["resolve"]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| node["id"].as_str().unwrap().to_owned())
        .collect();
    let Value::Array(mut packages) = all["packages"].take() else {
        panic!("no packages")
    };
    packages.retain(|package| used.contains(package["id"].as_str().unwrap()));
    packages
}

#[test]
fn licences_are_those_that_deny_toml_allows() {
    let rules: toml::Table = text("deny.toml").parse().unwrap();
    let allowed: BTreeSet<String> = rules["licenses"]["allow"]
        .as_array()
        .unwrap()
        .iter()
        .map(|license| license.as_str().unwrap().to_owned())
        .collect();
    let packages = packages();
    assert!(packages.len() > 200, "only {}", packages.len());
    let mut wrong = Vec::new();
    for package in packages {
        let license = package["license"].as_str().unwrap_or_default();
        let fits = spdx::Expression::parse_mode(license, spdx::ParseMode::LAX)
            .is_ok_and(|expression| expression.evaluate(|wanted| allowed.contains(&wanted.to_string())));
        if !fits {
            wrong.push(format!("{}: {license}", package["name"]));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn everything_comes_from_crates_io_and_is_locked_by_its_hash() {
    for lock in ["Cargo.lock", "fuzz/Cargo.lock"] {
        let lock: toml::Table = text(lock).parse().unwrap();
        for package in lock["package"].as_array().unwrap() {
            match package.get("source").and_then(|source| source.as_str()) {
                Some(source) => {
                    assert_eq!(source, REGISTRY, "{}", package["name"]);
                    assert!(package.get("checksum").is_some(), "{}", package["name"]);
                }
                None => assert!(
                    package["name"].as_str().unwrap().starts_with("sessionferry"),
                    "{package}"
                ),
            }
        }
    }
}
