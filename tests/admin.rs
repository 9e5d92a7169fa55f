//! The admin address over a real socket: each path, and who may not ask.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod fake;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use fake::{Script, Served};
use serde_json::{Value, json};
use sessionferry::status::{OperationKind, OperationState, Phase};

const TOKEN: &str = "a-token-that-is-long-enough";

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }
}

/// One request, its headers as given, so that wrong ones can be sent too.
fn ask(served: &Served, line: &str, headers: &[&str], body: &str) -> Answer {
    let mut stream = TcpStream::connect(served.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut request = format!("{line} HTTP/1.1\r\nconnection: close\r\n");
    if !headers.iter().any(|header| header.to_lowercase().starts_with("host:")) {
        request.push_str(&format!("host: {}\r\n", served.address));
    }
    for header in headers.iter().filter(|header| **header != "host: -") {
        request.push_str(&format!("{header}\r\n"));
    }
    if !body.is_empty() {
        request.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    stream.write_all(format!("{request}\r\n{body}").as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no answer to {line}: {text}"));
    Answer {
        status: head[9..12].parse().unwrap(),
        head: head.to_lowercase(),
        body: body.to_owned(),
    }
}

fn get(served: &Served, path: &str) -> Answer {
    ask(served, &format!("GET {path}"), &[], "")
}

#[test]
fn health_status_and_page_are_served() {
    let served = Served::new(None, Script::default());
    assert_eq!(get(&served, "/livez").status, 200);
    let ready = get(&served, "/readyz");
    assert_eq!((ready.status, ready.json()["ready"].clone()), (200, json!(true)));
    served.script().unready = vec!["the source is out".into()];
    let ready = get(&served, "/readyz");
    assert_eq!(
        (ready.status, ready.json()),
        (503, json!({"ready": false, "reasons": ["the source is out"]}))
    );
    assert_eq!(get(&served, "/livez").status, 200, "not ready is still alive");
    let status = get(&served, "/api/v1/status");
    assert_eq!((status.status, status.json()["phase"].clone()), (200, json!("teeing")));
    assert!(status.head.contains("cache-control: no-store") && status.head.contains("frame-ancestors 'none'"));
    let page = get(&served, "/");
    assert!(page.status == 200 && page.head.contains("text/html") && page.body.contains("/page.js"));
    for (part, content_type) in [("/page.js", "text/javascript"), ("/page.css", "text/css")] {
        let part = get(&served, part);
        assert!(part.status == 200 && part.head.contains(content_type), "{}", part.head);
        assert!(part.head.contains("script-src 'self'"), "{}", part.head);
    }
    assert_eq!(get(&served, "/api/v1/operations").json(), json!({"operations": []}));
    assert_eq!(
        get(&served, "/api/v1/clients").json(),
        json!({"clients": [{"address": "10.0.0.7", "name": "celery", "library": "redis-py 5.0.1", "connections": 3}],
               "left_out": 0})
    );
    assert_eq!(get(&served, "/nothing").status, 404);
    assert_eq!(ask(&served, "DELETE /api/v1/status", &[], "").status, 405);
    assert_eq!(
        get(&served, "/api/v1/cutover").status,
        405,
        "a link must not switch a site over"
    );
}

#[test]
fn metrics_hold_what_the_status_holds_and_what_the_control_adds() {
    let served = Served::new(None, Script::default());
    let answer = get(&served, "/metrics");
    assert!(
        answer.head.contains("content-type: text/plain; version=0.0.4"),
        "{}",
        answer.head
    );
    for line in [
        "sessionferry_clients_connected 3.0",
        "sessionferry_tee_pending{sink=\"target\"} 2.0",
        "sessionferry_tee_lag_seconds{sink=\"database\"} 0.25",
        "# TYPE sessionferry_tee_delivered_total counter",
        "sessionferry_tee_delivered_total{sink=\"target\"} 5",
        "sessionferry_tee_retries_total{sink=\"database\"} 0",
        "sessionferry_tee_dirty{sink=\"target\"} 0.0",
        "sessionferry_backfill_sessions_total{outcome=\"copied\"} 7",
        "sessionferry_verify_differences{store=\"target\",kind=\"missing\"} 9.0",
        "sessionferry_cutover_hold_seconds 0.031",
        "sessionferry_bypassing_writes_total 0",
        "sessionferry_resurrected_total 0",
        "sessionferry_unstorable_sessions 1.0",
        "sessionferry_phase{phase=\"teeing\"} 1.0",
        "sessionferry_phase{phase=\"cut_over\"} 0.0",
        "sessionferry_build_info{version=\"0.1.0\"} 1.0",
        "sessionferry_commands_total{command=\"get\"} 1",
    ] {
        assert!(
            answer.body.lines().any(|found| found == line),
            "`{line}` is not in\n{}",
            answer.body
        );
    }
    assert!(!answer.body.contains("# EOF") && answer.body.ends_with('\n'));
    // The classic format knows a counter by the name of its samples.
    for line in answer.body.lines().filter(|line| line.ends_with(" counter")) {
        assert!(line.ends_with("_total counter"), "{line}");
    }
}

#[test]
fn each_operation_starts_is_seen_and_stops() {
    let served = Served::new(
        None,
        Script {
            polls: 1000,
            ..Script::default()
        },
    );
    for (i, kind) in OperationKind::ALL.into_iter().enumerate() {
        let answer = ask(&served, &format!("POST /api/v1/{}", kind.name()), &[], "");
        assert_eq!((answer.status, answer.json()), (202, json!({"operation": i + 1})));
        assert_eq!(served.script().started.last().unwrap().0, kind);
        let seen = get(&served, &format!("/api/v1/operations/{}", i + 1)).json();
        assert_eq!(
            (seen["kind"].clone(), seen["state"].clone()),
            (json!(kind.name()), json!("running"))
        );
        let stop = format!("DELETE /api/v1/operations/{}", i + 1);
        assert_eq!(ask(&served, &stop, &[], "").status, 202);
        assert_eq!(
            served.script().operations[&(i as u64 + 1)].state,
            OperationState::Stopped
        );
        assert_eq!(ask(&served, &stop, &[], "").status, 409, "it does not run any more");
    }
    for path in ["/api/v1/operations/99", "/api/v1/operations/x"] {
        assert_eq!(get(&served, path).status, 404);
        assert_eq!(ask(&served, &format!("DELETE {path}"), &[], "").status, 404);
    }
}

#[test]
fn options_are_read_strictly() {
    let served = Served::new(None, Script::default());
    let json_type = "content-type: application/json; charset=utf-8";
    let post = |headers: &[&str], body: &str| ask(&served, "POST /api/v1/cutover", headers, body);
    assert_eq!(post(&[json_type], r#"{"dry_run": true}"#).status, 202);
    assert!(served.script().started[0].1.dry_run);
    let unknown = post(&[json_type], r#"{"dryrun": true}"#);
    assert_eq!(unknown.status, 400);
    assert!(unknown.json()["error"].as_str().unwrap().contains("dryrun"));
    assert_eq!(post(&[json_type], "{").status, 400);
    assert_eq!(post(&["content-type: text/plain"], r#"{"force": true}"#).status, 415);
    assert_eq!(post(&[], r#"{"force": true}"#).status, 415);
    assert_eq!(
        post(&[json_type], &format!("{{\"a\": \"{}\"}}", "x".repeat(20_000))).status,
        413
    );
    assert_eq!(served.script().started.len(), 1, "what was refused started nothing");
    served.script().refuse = Some("run backfill first".into());
    let refused = post(&[], "");
    assert_eq!(
        (refused.status, refused.json()),
        (409, json!({"error": "run backfill first"}))
    );
}

#[test]
fn a_token_is_asked_for_everywhere_but_by_probes_and_the_page() {
    let served = Served::new(Some(TOKEN), Script::default());
    for (line, open) in [
        ("GET /livez", true),
        ("GET /readyz", true),
        ("GET /", true),
        ("GET /page.js", true),
        ("GET /api/v1/operations", false),
        ("GET /metrics", false),
        ("GET /api/v1/status", false),
        ("GET /api/v1/events", false),
        ("GET /api/v1/operations/1", false),
        ("DELETE /api/v1/operations/1", false),
        ("POST /api/v1/backfill", false),
        ("POST /livez", false),
        ("GET /nothing", false),
        ("GET //livez", false),
    ] {
        let without = ask(&served, line, &[], "");
        assert_eq!(
            without.status == 401,
            !open,
            "{line} without a token: {}",
            without.status
        );
        if !open {
            assert!(without.head.contains("www-authenticate: bearer"), "{line}");
        }
        for wrong in ["Bearer a-token", "Bearer ", "Basic a-token-that-is-long-enough", TOKEN] {
            let answer = ask(&served, line, &[&format!("authorization: {wrong}")], "");
            assert_eq!(answer.status == 401, !open, "{line} with {wrong}: {}", answer.status);
        }
    }
    assert!(served.script().started.is_empty());
    // With a token, any name will do for the host: the token is the proof.
    let right = format!("authorization: bearer {TOKEN}");
    let answer = ask(&served, "GET /api/v1/status", &["host: ferry.internal", &right], "");
    assert_eq!(answer.status, 200);
    assert_eq!(ask(&served, "POST /api/v1/backfill", &[&right], "").status, 202);
}

#[test]
fn a_page_of_another_site_can_neither_read_nor_act() {
    let served = Served::new(None, Script::default());
    let port = served.address.port();
    for (host, status) in [
        (format!("host: 127.0.0.1:{port}"), 200),
        (format!("host: localhost:{port}"), 200),
        (format!("host: [::1]:{port}"), 200),
        ("host: LOCALHOST".into(), 200),
        (format!("host: evil.example:{port}"), 403),
        ("host: 127.0.0.1.evil.example".into(), 403),
        ("host: localhost.evil.example".into(), 403),
        ("host: 10.0.0.1".into(), 403),
        ("host: ".into(), 403),
        ("host: -".into(), 403),
    ] {
        assert_eq!(
            ask(&served, "GET /api/v1/status", &[&host], "").status,
            status,
            "{host}"
        );
    }
    let absolute = ask(&served, "GET http://evil.example/api/v1/status", &[], "");
    assert_eq!(absolute.status, 403);
    let own = format!("origin: http://{}", served.address);
    for (origin, status) in [
        (own.as_str(), 202),
        ("origin: http://evil.example", 403),
        ("origin: null", 403),
    ] {
        assert_eq!(
            ask(&served, "POST /api/v1/backfill", &[origin], "").status,
            status,
            "{origin}"
        );
    }
    assert_eq!(
        ask(
            &served,
            "DELETE /api/v1/operations/1",
            &["origin: http://evil.example"],
            ""
        )
        .status,
        403
    );
    assert_eq!(served.script().started.len(), 1);
}

#[test]
fn events_carry_a_status_each_second_and_each_change_of_phase() {
    let served = Served::new(None, Script::default());
    let mut stream = TcpStream::connect(served.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    write!(
        stream,
        "GET /api/v1/events HTTP/1.1\r\nhost: {}\r\n\r\n",
        served.address
    )
    .unwrap();
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let mut next = |name: &str| {
        let found = lines
            .by_ref()
            .find(|line| line.starts_with("event:"))
            .unwrap_or_default();
        assert_eq!(found, format!("event: {name}"));
        let data = lines.next().unwrap();
        serde_json::from_str::<Value>(data.strip_prefix("data: ").unwrap()).unwrap()
    };
    let start = Instant::now();
    assert_eq!(next("status")["phase"], json!("teeing"));
    assert_eq!(next("status")["phase"], json!("teeing"));
    assert!(start.elapsed() >= Duration::from_millis(800), "one each second");
    served.script().phase = Some(Phase::Backfilling);
    assert_eq!(
        next("phase"),
        json!({"from": "teeing", "phase": "backfilling", "authority": "source"})
    );
    let changed = Instant::now();
    assert_eq!(next("status")["phase"], json!("backfilling"));
    assert!(
        changed.elapsed() < Duration::from_millis(500),
        "the status follows a change at once"
    );
    // A stream must not keep the process from ending.
    let end = Instant::now();
    drop(served);
    assert!(end.elapsed() < Duration::from_secs(2), "{:?}", end.elapsed());
}

#[test]
fn a_connection_that_asks_for_nothing_is_cut() {
    let served = Served::new(None, Script::default());
    let whole = format!("GET /livez HTTP/1.1\r\nhost: {}\r\n\r\n", served.address);
    // Half a head, nothing at all, and an idle connection after its answer.
    let waits = ["GET /livez HTTP/1.1\r\nx: ", "", &whole].map(|sent| {
        let mut stream = TcpStream::connect(served.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(sent.as_bytes()).unwrap();
        std::thread::spawn(move || {
            let start = Instant::now();
            let _ = stream.read_to_end(&mut Vec::new());
            start.elapsed()
        })
    });
    for wait in waits {
        let taken = wait.join().unwrap();
        assert!(
            taken > Duration::from_secs(8) && taken < Duration::from_secs(14),
            "{taken:?}"
        );
    }
}
