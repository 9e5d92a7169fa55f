//! The page at the admin address, in a real Chromium: a whole move is clicked through, and back.
#![cfg(feature = "net")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod support;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Mutex,
    time::Duration,
};

use serde_json::{Value, json};
use sessionferry::status::{Authority, Phase, Status, VerifyState};
use support::{DatabaseKind, Hammer, Proxy, ProxyOptions, RedisServer, Site, eventually};
use tempfile::TempDir;

const TOKEN: &str = "a-token-that-is-long-enough";

/// A browser, steered by `tests/browser/drive.py`.
struct Browser {
    child: Child,
    talk: Mutex<(Option<ChildStdin>, BufReader<ChildStdout>)>,
    folder: TempDir,
}

fn program(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let mut found = names
        .iter()
        .flat_map(|name| places.iter().map(move |place| place.join(name)));
    found.find(|file| file.is_file())
}

impl Browser {
    /// `None` where there is none on this machine.
    fn start() -> Option<Browser> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let python = root.join("target/venvs/browser/bin/python");
        let (Some(chromium), Some(driver)) = (program(&["chromium"]), program(&["chromedriver"])) else {
            println!("skipped: no chromium with a chromedriver here");
            return None;
        };
        assert!(python.exists(), "run scripts/test first: it makes {}", python.display());
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new(python)
            .arg(root.join("tests/browser/drive.py"))
            .args([&chromium, &driver])
            .arg(folder.path())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let talk = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        let browser = Browser {
            child,
            talk: Mutex::new(talk),
            folder,
        };
        browser.answer();
        Some(browser)
    }

    fn answer(&self) -> Value {
        let mut line = String::new();
        self.talk.lock().unwrap().1.read_line(&mut line).unwrap();
        let mut answer: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        assert!(answer.get("error").is_none(), "{answer}");
        answer["ok"].take()
    }

    fn ask(&self, request: &Value) -> Value {
        writeln!(self.talk.lock().unwrap().0.as_ref().unwrap(), "{request}").unwrap();
        self.answer()
    }

    fn text(&self, id: &str) -> String {
        self.ask(&json!({"do": "text", "id": id})).as_str().unwrap().to_owned()
    }

    fn press(&self, id: &str) {
        self.ask(&json!({"do": "press", "id": id}));
    }

    fn is_enabled(&self, id: &str) -> bool {
        self.ask(&json!({"do": "enabled", "id": id})) == json!(true)
    }

    fn until_shown(&self, id: &str, words: &str) {
        eventually(&format!("#{id} shows {words:?}"), Duration::from_secs(20), || {
            self.text(id).contains(words)
        });
    }

    /// Presses a button, and says yes once that is possible.
    fn go(&self, action: &str) {
        eventually(&format!("{action} can be pressed"), Duration::from_secs(20), || {
            self.is_enabled(action)
        });
        self.press(action);
        let began = std::time::Instant::now();
        while !self.is_enabled("yes") {
            let checks = self.text("confirm-checks");
            assert!(
                began.elapsed() < Duration::from_secs(20),
                "{action} cannot be confirmed: {checks}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        self.press("yes");
    }

    /// What axe-core finds wrong: contrast, labels, roles, the order of headings.
    fn expect_accessible(&self, what: &str) {
        assert_eq!(self.ask(&json!({"do": "axe"})), json!([]), "{what}");
    }

    /// Kept beside the build, for whoever wants to look.
    fn shoot(&self, name: &str) {
        self.ask(&json!({"do": "shot", "name": name}));
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page");
        fs::create_dir_all(&kept).unwrap();
        fs::copy(
            self.folder.path().join(format!("{name}.png")),
            kept.join(format!("{name}.png")),
        )
        .unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The end of its input ends it, and the browser with it.
        drop(self.talk.get_mut().unwrap().0.take());
        let _ = self.child.wait();
    }
}

#[test]
fn the_page_asks_for_the_token() {
    let Some(browser) = Browser::start() else { return };
    let (source, target) = (RedisServer::start(&[]), RedisServer::start(&[]));
    let proxy = Proxy::start(ProxyOptions::between(&source, &target).args(&["--admin-token", TOKEN]));
    browser.ask(&json!({"do": "open", "url": format!("{}/", proxy.admin_url())}));
    browser.until_shown("summary", "A token is needed");
    browser.expect_accessible("the login");
    browser.ask(&json!({"do": "type", "into": "token", "text": "a-wrong-token-that-is-long"}));
    browser.until_shown("problem", "not accepted");
    browser.ask(&json!({"do": "type", "into": "token", "text": TOKEN}));
    browser.until_shown("summary", "Teeing");
    browser.shoot("token");
}

#[test]
fn a_whole_move_is_clicked_through_and_back() {
    let Some(browser) = Browser::start() else { return };
    let mut site = Site::prepare(DatabaseKind::Sqlite);
    site.django.fill("source", 300, 12);
    // One that no visitor will write again.
    let left_alone = site.source.ask::<Vec<String>>(&["KEYS", "*"]).remove(0);
    site.start_proxy(&[]);
    let mut hammer = Hammer::start("5.2", &site.proxy().url(), 5, &["--think", "20"]);
    let url = format!("{}/", site.proxy().admin_url());

    browser.ask(&json!({"do": "open", "url": url}));
    browser.until_shown("summary", "Teeing: the source Redis answers Django");

    // What would be refused cannot be pressed, and says why.
    for (action, reason) in [
        ("cutover", "not synced"),
        ("rollback", "already"),
        ("finish", "not cut over"),
    ] {
        assert!(!browser.is_enabled(action), "{action}");
        browser.until_shown(&format!("{action}-about"), reason);
    }
    browser.expect_accessible("before the move");
    browser.shoot("teeing");

    // One thinks twice.
    browser.press("backfill");
    assert!(browser.text("confirm-text").contains("Copies every session"));
    browser.expect_accessible("the question");
    browser.press("no");
    assert_eq!(site.proxy().status().phase, Phase::Teeing);

    browser.go("backfill");
    browser.until_shown("counts", "done: ");
    browser.until_shown("log", "backfill done");
    browser.until_shown("clients", "127.0.0.1");
    browser.until_shown("clients", "redis-py");

    // What differs is shown, and what became of it.
    assert_eq!(site.target.ask::<u64>(&["DEL", &left_alone]), 1);
    browser.go("verify");
    browser.until_shown("differences", "missing in the other Redis");
    browser.until_shown("differences", "nothing yet");
    browser.expect_accessible("with a difference");
    browser.shoot("differs");
    browser.go("backfill");
    browser.until_shown("differences", "copied since");
    browser.go("verify");
    browser.until_shown("differences", "the same again");
    browser.until_shown("summary", "Synced");
    browser.press("cutover");
    browser.until_shown("confirm-checks", "Yes: ");
    browser.shoot("confirm");
    browser.press("no");
    browser.go("cutover");
    browser.until_shown("summary", "Cut over: the target Redis answers Django");
    assert_eq!(site.proxy().status().authority, Authority::Target);
    browser.expect_accessible("after the cutover");
    browser.shoot("cut-over");
    browser.go("rollback");
    browser.until_shown("summary", "the source Redis answers Django");
    assert_eq!(site.proxy().status().authority, Authority::Source);
    browser.go("verify");
    let verified = || matches!(site.proxy().status(), Status { operation: None, verify, .. } if verify.state == VerifyState::Clean);
    eventually("it was verified again", Duration::from_secs(20), verified);
    browser.go("cutover");
    browser.until_shown("summary", "Cut over");
    browser.go("finish");
    browser.until_shown("summary", "Finished");
    assert_eq!(site.proxy().status().phase, Phase::Finished);
    let counts = hammer.stop();
    hammer.expect_unnoticed(&counts);

    // In the dark, and on a phone.
    for (name, width, dark) in [("dark", 1100, true), ("phone", 400, false)] {
        browser.ask(&json!({"do": "open", "url": url, "width": width, "dark": dark}));
        browser.until_shown("summary", "Finished");
        browser.expect_accessible(name);
        let wider = browser.ask(&json!({"do": "width"}));
        assert!(
            wider.as_f64().unwrap() <= 0.0,
            "{name}: {wider} px wider than the window"
        );
        browser.shoot(name);
    }
    // By keyboard alone: each button that can be pressed is reached.
    let focused = browser.ask(&json!({"do": "tab", "times": 6}));
    for id in ["skip", "verify", "restore"] {
        let reached = focused.as_array().unwrap().contains(&json!(id));
        assert_eq!(reached, id == "skip" || browser.is_enabled(id), "{id}: {focused}");
    }
    let said = browser.ask(&json!({"do": "console"}));
    let unexpected: Vec<_> = said
        .as_array()
        .unwrap()
        .iter()
        .filter(|line| !line.to_string().contains("401"))
        .collect();
    assert!(unexpected.is_empty(), "{unexpected:?}");
}
