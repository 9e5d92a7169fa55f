//! Talks to the admin address of a running proxy.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use ureq::Agent;
use ureq::http::Response;

use crate::config::{Secret, read_secret_file, resolve_secret};

use super::{Exit, complain, out};

/// The admin address answers from memory; longer than this means that nobody is there.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// A status has at most some 20 differences and a few warnings.
const ANSWER_BYTES_MAX: u64 = 4 * 1024 * 1024;
const DEFAULT_URL: &str = "http://127.0.0.1:9380";

/// How to reach the proxy.
#[derive(Args, Clone, Debug)]
pub struct ClientArgs {
    /// The admin address of the running proxy
    #[arg(long, value_name = "URL", env = "SESSIONFERRY_ADMIN_URL", default_value = DEFAULT_URL)]
    pub admin: String,
    /// File that holds the admin token [else: SESSIONFERRY_ADMIN_TOKEN, which may be file:PATH too]
    #[arg(long, value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Wrong flags.
    #[error("{0}")]
    Usage(String),
    /// Nobody answers.
    #[error("{0}")]
    Unreachable(String),
    /// The proxy says no.
    #[error("{0}")]
    Refused(String),
}

impl ClientError {
    /// Says it for `command`, on standard error and, where JSON is wanted, as JSON too.
    pub(super) fn report(&self, command: &str, as_json: bool) -> Exit {
        if as_json {
            out(&json!({ "error": self.to_string() }).to_string());
        }
        complain(&format!("{command}: {self}"));
        self.exit()
    }

    /// The exit code that the interface promises.
    pub fn exit(&self) -> Exit {
        match self {
            ClientError::Usage(_) => Exit::Usage,
            ClientError::Unreachable(_) => Exit::Unreachable,
            ClientError::Refused(_) => Exit::Failed,
        }
    }
}

/// One admin address and its token.
pub struct Client {
    agent: Agent,
    base: String,
    token: Option<Secret>,
}

impl Client {
    /// Reads the token, connects to nothing yet.
    pub fn new(args: &ClientArgs) -> Result<Client, ClientError> {
        // An empty variable is one that is not set.
        let base = if args.admin.is_empty() {
            DEFAULT_URL
        } else {
            args.admin.trim_end_matches('/')
        };
        if base.strip_prefix("http://").is_none_or(str::is_empty) {
            return Err(ClientError::Usage(format!(
                "--admin: `{base}` is not a URL such as {DEFAULT_URL}"
            )));
        }
        let token = match &args.admin_token_file {
            Some(path) => Some(
                read_secret_file(&path.to_string_lossy())
                    .map_err(|reason| ClientError::Usage(format!("--admin-token-file: {reason}")))?,
            ),
            None => match std::env::var("SESSIONFERRY_ADMIN_TOKEN")
                .ok()
                .filter(|text| !text.is_empty())
            {
                Some(text) => Some(
                    resolve_secret(&text, &|name| std::env::var(name).ok())
                        .map(|(token, _)| token)
                        .map_err(|reason| ClientError::Usage(format!("SESSIONFERRY_ADMIN_TOKEN: {reason}")))?,
                ),
                None => None,
            },
        };
        let agent = Agent::config_builder()
            .timeout_global(Some(REQUEST_TIMEOUT))
            // The reason of a refusal is in the body.
            .http_status_as_error(false)
            .max_redirects(0)
            // A proxy from the environment would be asked for loopback addresses too, and would see the token.
            .proxy(None)
            .build()
            .new_agent();
        Ok(Client {
            agent,
            base: base.to_owned(),
            token: token.map(Secret::new),
        })
    }

    /// What the operator gave as `--admin`.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// `GET`.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let mut request = self.agent.get(format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {}", token.expose()));
        }
        self.answer(request.call())
    }

    /// `POST` with a JSON body.
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let mut request = self.agent.post(format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {}", token.expose()));
        }
        self.answer(request.send_json(body))
    }

    /// `DELETE`.
    pub fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let mut request = self.agent.delete(format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {}", token.expose()));
        }
        self.answer(request.call())
    }

    fn answer<T: DeserializeOwned>(&self, answer: Result<Response<ureq::Body>, ureq::Error>) -> Result<T, ClientError> {
        let base = &self.base;
        let mut response = answer.map_err(|error| match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => ClientError::Usage(format!(
                "the request cannot be made: {error}; check --admin ({base}) and the token"
            )),
            error => ClientError::Unreachable(format!(
                "cannot reach the proxy at {base}: {error}; is `sessionferry run` running, and is --admin right?"
            )),
        })?;
        let status = response.status();
        let text = response
            .body_mut()
            .with_config()
            .limit(ANSWER_BYTES_MAX)
            .read_to_string()
            .map_err(|error| {
                ClientError::Unreachable(format!("the proxy at {base} did not finish its answer: {error}"))
            })?;
        if status.is_success() {
            return serde_json::from_str(&text).map_err(|error| {
                ClientError::Refused(format!(
                    "the answer of {base} cannot be read: {error}; is it the admin address of this version?"
                ))
            });
        }
        if status == 401 {
            let what = if self.token.is_some() {
                "does not accept this token"
            } else {
                "asks for a token"
            };
            return Err(ClientError::Refused(format!(
                "the proxy at {base} {what}; give --admin-token-file, or set SESSIONFERRY_ADMIN_TOKEN"
            )));
        }
        #[derive(serde::Deserialize)]
        struct Failure {
            error: String,
        }
        Err(ClientError::Refused(match serde_json::from_str::<Failure>(&text) {
            Ok(failure) => failure.error,
            Err(_) => format!("{base} answered {status}; is it the admin address of a sessionferry?"),
        }))
    }
}
