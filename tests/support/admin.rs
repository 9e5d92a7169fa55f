//! The admin address and the command line that talks to it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sessionferry::status::{Operation, OperationState, Status};

use super::proxy::{Answer, Proxy, binary};

/// How long an operation may take in a test.
const PATIENCE: Duration = Duration::from_secs(120);

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(30)))
        .proxy(None)
        .build()
        .into()
}

impl Proxy {
    /// `GET`: the status and the body; nothing where the address does not answer.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut response = agent().get(format!("{}{path}", self.admin_url())).call().ok()?;
        let body = response.body_mut().with_config().limit(1 << 30).read_to_string().ok()?;
        Some((response.status().as_u16(), body))
    }

    pub fn status(&self) -> Status {
        let (code, body) = self
            .get("/api/v1/status")
            .unwrap_or_else(|| panic!("no status\n{}", self.log_tail()));
        assert_eq!(code, 200, "{body}");
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"))
    }

    pub fn metrics(&self) -> String {
        self.get("/metrics").unwrap().1
    }

    /// `POST /api/v1/KIND`: the status and the body.
    pub fn post(&self, kind: &str, body: Value) -> (u16, Value) {
        let mut response = agent()
            .post(format!("{}/api/v1/{kind}", self.admin_url()))
            .send_json(body)
            .unwrap();
        let text = response.body_mut().read_to_string().unwrap();
        (
            response.status().as_u16(),
            serde_json::from_str(&text).unwrap_or(Value::String(text)),
        )
    }

    /// Asks an operation to stop.
    pub fn stop_operation(&self, id: &str) -> bool {
        let url = format!("{}/api/v1/operations/{id}", self.admin_url());
        agent().delete(url).call().unwrap().status().is_success()
    }

    /// An operation from its start to its end; refused ones are an error.
    pub fn operation(&self, kind: &str, body: Value) -> Result<Operation, String> {
        let (code, answer) = self.post(kind, body);
        if code != 202 {
            return Err(format!("{code}: {answer}"));
        }
        let id = answer["operation"].to_string().trim_matches('"').to_owned();
        let began = Instant::now();
        loop {
            let (code, body) = self.get(&format!("/api/v1/operations/{id}")).unwrap();
            assert_eq!(code, 200, "{body}");
            let operation: Operation = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"));
            if operation.state != OperationState::Running {
                return Ok(operation);
            }
            assert!(began.elapsed() < PATIENCE, "{kind} did not end: {body}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// An operation that has to work.
    pub fn done(&self, kind: &str) -> Operation {
        let operation = self
            .operation(kind, json!({}))
            .unwrap_or_else(|error| panic!("{kind} was refused: {error}"));
        assert_eq!(
            operation.state,
            OperationState::Done,
            "{kind}: {operation:#?}\n{}",
            self.log_tail()
        );
        operation
    }

    /// The command line against this proxy.
    pub fn cli(&self, args: &[&str]) -> Answer {
        Answer::of(binary(self.dir()).args(args).args(["--admin", &self.admin_url()]))
    }

    /// Waits a little for the tee to catch up with visitors who do not pause.
    pub fn settle_soon(&self) {
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(5) && self.status().tee.target.pending > 100 {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until nothing is on its way to the other stores.
    pub fn settle(&self) {
        let began = Instant::now();
        loop {
            let tee = self.status().tee;
            let quiet = [&tee.target, &tee.database]
                .iter()
                .all(|sink| sink.pending == 0 && sink.dirty == 0);
            if quiet {
                return;
            }
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "the tee did not empty: {tee:#?}\n{}",
                self.log_tail()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
