//! A `Control` that plays a script, served on a real socket.

#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "a helper of tests")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use sessionferry::admin;
use sessionferry::config::Secret;
use sessionferry::migrate::{Control, Refused};
use sessionferry::status::*;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// How operations go, and what was asked for.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) refuse: Option<String>,
    pub(crate) unready: Vec<String>,
    pub(crate) phase: Option<Phase>,
    /// How often an operation is seen running before it ends.
    pub(crate) polls: u64,
    pub(crate) end: Option<(OperationState, Option<String>, serde_json::Value)>,
    pub(crate) started: Vec<(OperationKind, OperationOptions)>,
    pub(crate) operations: BTreeMap<u64, Operation>,
}

#[derive(Default)]
pub(crate) struct Fake(pub(crate) Mutex<Script>);

impl Control for Fake {
    fn status(&self) -> Status {
        let script = self.0.lock().unwrap();
        let up = Sink {
            connected: true,
            delivered: 5,
            pending: 2,
            lag_seconds: 0.25,
            ..Sink::default()
        };
        Status {
            version: "0.1.0".into(),
            phase: script.phase.unwrap_or(Phase::Teeing),
            authority: Authority::Source,
            since: "2026-01-01T00:00:00Z".into(),
            uptime_seconds: 1.5,
            clients: Clients {
                connected: 3,
                total: 4,
                held: 0,
            },
            commands: Commands::default(),
            tee: Tee {
                target: up.clone(),
                database: up,
            },
            sessions: Sessions {
                unstorable: 1,
                ..Sessions::default()
            },
            backfill: Backfill {
                copied: 7,
                ..Backfill::default()
            },
            verify: Verify {
                state: VerifyState::Differs,
                missing_target: 9,
                ..Verify::default()
            },
            cutover: Cutover {
                hold_seconds: Some(0.031),
                ..Cutover::default()
            },
            operation: script
                .operations
                .values()
                .find(|o| o.state == OperationState::Running)
                .cloned(),
            refused: BTreeMap::new(),
            warnings: vec![],
        }
    }

    fn start(&self, kind: OperationKind, options: OperationOptions) -> Result<u64, Refused> {
        let mut script = self.0.lock().unwrap();
        if let Some(reason) = &script.refuse {
            return Err(Refused(reason.clone()));
        }
        script.started.push((kind, options));
        let id = script.operations.len() as u64 + 1;
        let operation = Operation {
            operation: id,
            kind,
            state: OperationState::Running,
            started: "2026-01-01T00:00:00Z".into(),
            finished: None,
            done: 0,
            total: Some(10),
            message: "at work".into(),
            error: None,
            result: serde_json::Value::Null,
        };
        script.operations.insert(id, operation);
        Ok(id)
    }

    fn operations(&self) -> Vec<Operation> {
        self.0.lock().unwrap().operations.values().rev().cloned().collect()
    }

    fn operation(&self, id: u64) -> Option<Operation> {
        let mut script = self.0.lock().unwrap();
        let (polls, end) = (script.polls, script.end.clone());
        let operation = script.operations.get_mut(&id)?;
        if operation.state == OperationState::Running {
            operation.done += 1;
            if operation.done > polls {
                let (state, error, result) = end.unwrap_or((OperationState::Done, None, serde_json::Value::Null));
                (operation.state, operation.error, operation.result) = (state, error, result);
                operation.message = "over".into();
            }
        }
        Some(operation.clone())
    }

    fn stop(&self, id: u64) -> bool {
        let mut script = self.0.lock().unwrap();
        match script.operations.get_mut(&id) {
            Some(operation) if operation.state == OperationState::Running => {
                operation.state = OperationState::Stopped;
                true
            }
            _ => false,
        }
    }

    fn unready(&self) -> Vec<String> {
        self.0.lock().unwrap().unready.clone()
    }

    fn clients(&self) -> BoxFuture<'_, ClientList> {
        let clients = vec![ClientGroup {
            address: "10.0.0.7".into(),
            name: Some("celery".into()),
            library: Some("redis-py 5.0.1".into()),
            connections: 3,
        }];
        Box::pin(std::future::ready(ClientList { clients, left_out: 0 }))
    }

    fn metrics(&self) -> String {
        "# TYPE sessionferry_commands_total counter\nsessionferry_commands_total{command=\"get\"} 1\n# EOF\n".into()
    }
}

/// The fake on an address of its own, with its own runtime, until it is dropped.
pub(crate) struct Served {
    pub(crate) fake: Arc<Fake>,
    pub(crate) address: SocketAddr,
    pub(crate) shutdown: CancellationToken,
    pub(crate) thread: Option<std::thread::JoinHandle<()>>,
}

impl Served {
    pub(crate) fn new(token: Option<&str>, script: Script) -> Served {
        let fake = Arc::new(Fake(Mutex::new(script)));
        let shutdown = CancellationToken::new();
        let (send, receive) = std::sync::mpsc::channel();
        let (control, stop, token) = (Arc::clone(&fake), shutdown.clone(), token.map(Secret::new));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                send.send(listener.local_addr().unwrap()).unwrap();
                admin::serve(listener, control, token, stop).await.unwrap();
            });
        });
        Served {
            fake,
            address: receive.recv().unwrap(),
            shutdown,
            thread: Some(thread),
        }
    }

    pub(crate) fn script(&self) -> std::sync::MutexGuard<'_, Script> {
        self.fake.0.lock().unwrap()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}
