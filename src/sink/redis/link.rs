//! One connection to a Redis: made, set up, given up.
//!
//! The stream is our own and not the crate's client, for two reasons: each step of the set-up keeps its own error, and
//! a connection that is given up must not deliver anything any more. With `SO_LINGER` 0 the kernel throws away what it
//! has not sent, and `CLIENT KILL` on the next connection makes the server throw away what it has not read. Without
//! this, a write that timed out on a stalled server could be executed after the newer write that replaced it.

use std::io;
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, Pipeline, RedisConnectionInfo, Value, cmd};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::error::{Fault, StoreErrorKind};
use crate::net::Presence;
use crate::net::endpoint::{Address, Endpoint};

/// For the replies to one pipeline. redis-py's default under Django, so that neither side gives up first for no reason.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest answer to the first PING.
const GREETING_BYTES_MAX: usize = 1024;

/// How long a server that does not let us kill our old connection gets to read what is left on it.
const SETTLE: Duration = Duration::from_millis(250);

/// Under this name `CLIENT LIST` shows our connections.
const CLIENT_NAME: &str = "sessionferry";

/// First version with `SET … PXAT`.
const PXAT_SINCE: Version = (6, 2, 0);
/// First version with `PEXPIRETIME`.
const PEXPIRETIME_SINCE: Version = (7, 0, 0);

/// Major, minor, patch.
pub(super) type Version = (u32, u32, u32);

/// Which connection on which server process this is; `None` where the server does not say.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) run_id: Option<String>,
    client_id: Option<i64>,
}

/// A connection that is set up. The driver task ends with it.
#[derive(Debug)]
pub(super) struct Link {
    connection: MultiplexedConnection,
    driver: AbortHandle,
    pub(super) identity: Identity,
    /// `SET … PXAT` is known.
    pub(super) pxat: bool,
    /// `PEXPIRETIME` is known.
    pub(super) pexpiretime: bool,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Link {
    /// Connects within the endpoint's `connect_timeout` and makes sure that nothing of the connections in `abandoned` is still to
    /// come.
    pub(super) async fn open(endpoint: &Endpoint, abandoned: &[Identity]) -> Result<Link, Fault> {
        let opening = async {
            let link = Self::connect(endpoint).await?;
            link.bury(abandoned).await?;
            Ok(link)
        };
        timeout(endpoint.connect_timeout, opening).await.unwrap_or_else(|_| {
            let what = if endpoint.tls {
                "no connection in time; check address, firewall and server; is this its TLS port, or should it be redis://?"
            } else {
                "no connection in time; check address, firewall and server"
            };
            Err(Fault::new(StoreErrorKind::Timeout, what))
        })
    }

    async fn connect(endpoint: &Endpoint) -> Result<Link, Fault> {
        let presence = endpoint.footprint.connection();
        let mut link = match &endpoint.address {
            Address::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port))
                    .await
                    .map_err(|e| Fault::connecting(&e))?;
                let options = stream.set_nodelay(true).and_then(|()| stream.set_zero_linger());
                options.map_err(|e| Fault::connecting(&e))?;
                match endpoint.connector().map_err(|e| Fault::connecting(&e))? {
                    None => Self::over(stream, presence).await?,
                    Some(tls) => {
                        let greeting = async { greet(tls.connect(stream).await?).await };
                        Self::over(greeting.await.map_err(|e| Fault::connecting(&e))?, presence).await?
                    }
                }
            }
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(|e| Fault::connecting(&e))?;
                Self::over(stream, presence).await?
            }
        };
        match link.set_up(endpoint).await {
            // What a TLS port does with plain text.
            Err(fault) if fault.kind == StoreErrorKind::Closed && !endpoint.tls => Err(Fault::new(
                StoreErrorKind::Closed,
                "the server closed the connection at once; look into its log, and use rediss:// if it wants TLS",
            )),
            outcome => outcome.map(|()| link),
        }
    }

    /// Any stream will do, TLS included.
    async fn over<S>(stream: S, presence: Presence) -> Result<Link, Fault>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        // No credentials, no database: the crate then sends nothing by itself.
        let info = RedisConnectionInfo::default().set_skip_set_lib_name();
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(RESPONSE_TIMEOUT));
        let made = MultiplexedConnection::new_with_config(&info, stream, config).await;
        let (connection, driver) = made.map_err(|error| Fault::transport(&error))?;
        let driver = tokio::spawn(async move {
            let _presence = presence;
            driver.await;
        });
        let driver = driver.abort_handle();
        let identity = Identity {
            run_id: None,
            client_id: None,
        };
        Ok(Link {
            connection,
            driver,
            identity,
            pxat: false,
            pexpiretime: false,
        })
    }

    /// Logs in, selects the database and learns what the server can do.
    async fn set_up(&mut self, endpoint: &Endpoint) -> Result<(), Fault> {
        let mut pipeline = Pipeline::new();
        let auth = endpoint.username.is_some() || endpoint.password.is_some();
        if auth {
            let command = pipeline.cmd("AUTH");
            if let Some(username) = &endpoint.username {
                command.arg(username);
            }
            command.arg(endpoint.password.as_deref().unwrap_or(""));
        }
        pipeline.cmd("SELECT").arg(endpoint.db);
        pipeline.cmd("CLIENT").arg("SETNAME").arg(CLIENT_NAME);
        pipeline.cmd("CLIENT").arg("ID");
        pipeline.cmd("INFO").arg("server");
        let mut replies = self.exchange(&pipeline).await?.into_iter();
        let mut next = || replies.next().unwrap_or(Value::Nil);
        if auth && let Value::ServerError(error) = next() {
            return Err(Fault::auth(&error));
        }
        match next() {
            // Where SELECT is not allowed, database 0 needs none.
            Value::ServerError(error) if error.code() == "NOPERM" && endpoint.db == 0 => {}
            Value::ServerError(error) => return Err(Fault::reply(&error)),
            _ => {}
        }
        // A name is only for those who look at CLIENT LIST: that it is refused does not matter.
        let _named = next();
        if let Value::Int(id) = next() {
            self.identity.client_id = Some(id);
        }
        if let Some(info) = text(&next()) {
            let version = info_field(info, "redis_version").and_then(parse_version);
            self.pxat = version.is_some_and(|version| version >= PXAT_SINCE);
            self.pexpiretime = version.is_some_and(|version| version >= PEXPIRETIME_SINCE);
            self.identity.run_id = info_field(info, "run_id").map(str::to_owned);
        }
        Ok(())
    }

    /// Kills what is left of earlier connections on this same server process. Ids start anew with a process, so one of
    /// another process is not ours to kill, and nothing of it is left either.
    async fn bury(&self, abandoned: &[Identity]) -> Result<(), Fault> {
        let mut sure = true;
        for old in abandoned {
            match (&old.run_id, &self.identity.run_id, old.client_id) {
                (Some(old), Some(now), _) if old != now => {}
                (Some(_), Some(_), Some(id)) => {
                    let mut kill = Pipeline::new();
                    kill.add_command(cmd("CLIENT")).arg("KILL").arg("ID").arg(id);
                    let replies = self.exchange(&kill).await?;
                    let refused = |reply: &Value| matches!(reply, Value::ServerError(e) if e.code() != "ERR");
                    sure &= !replies.iter().any(refused);
                }
                _ => sure = false,
            }
        }
        if !sure {
            tokio::time::sleep(SETTLE).await;
        }
        Ok(())
    }

    /// One pipeline, one reply per command; error replies are values.
    pub(super) async fn exchange(&self, pipeline: &Pipeline) -> Result<Vec<Value>, Fault> {
        let count = pipeline.len();
        // A clone is a handle on the same connection.
        let mut connection = self.connection.clone();
        let replies = connection
            .send_packed_commands(pipeline, 0, count)
            .await
            .map_err(|error| Fault::transport(&error))?;
        if replies.len() == count {
            Ok(replies)
        } else {
            Err(Fault::unexpected("a pipeline"))
        }
    }

    /// Ends the connection now, also for those who still wait for a reply on it.
    pub(super) fn close(&self) {
        self.driver.abort();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.driver.is_finished()
    }
}

/// One question and its answer, whatever it is: a server that misses a client certificate says so only after the
/// handshake, and the crate would keep the reason to itself.
async fn greet<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> io::Result<S> {
    stream.write_all(b"*1\r\n$4\r\nPING\r\n").await?;
    stream.flush().await?;
    // `+PONG`, or an error of one line.
    for _ in 0..GREETING_BYTES_MAX {
        if stream.read_u8().await? == b'\n' {
            return Ok(stream);
        }
    }
    Err(io::Error::other("no answer to PING; is this a Redis?"))
}

/// The text of a bulk, simple or verbatim string.
pub(super) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text),
        Value::Okay => Some("OK"),
        _ => None,
    }
}

/// The value of `name:value` in an INFO reply.
pub(super) fn info_field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

/// `7.0.15`, also `7.2.4-rc1` and `7.0`.
pub(super) fn parse_version(text: &str) -> Option<Version> {
    let mut numbers = text.split(['.', '-', ' ']).map(|part| part.parse::<u32>().ok());
    let major = numbers.next()??;
    Some((
        major,
        numbers.next().flatten().unwrap_or(0),
        numbers.next().flatten().unwrap_or(0),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_leniently() {
        assert_eq!(parse_version("7.0.15"), Some((7, 0, 15)));
        assert_eq!(parse_version("6.2"), Some((6, 2, 0)));
        assert_eq!(parse_version("8.0.0-rc1"), Some((8, 0, 0)));
        assert_eq!(parse_version("unknown"), None);
    }

    #[test]
    fn info_fields_are_found_whole() {
        let info = "# Server\r\nredis_version:7.0.15\r\nrun_id:ab\r\nrole:master\r\n";
        assert_eq!(info_field(info, "run_id"), Some("ab"));
        assert_eq!(info_field(info, "redis"), None);
    }
}
