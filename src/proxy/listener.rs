//! Accepts clients and deals each to a worker with room for it.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UnixListener};

use super::handover::Handover;
use super::worker::{Order, Peer};
use super::{Proxy, balance};
use crate::net::stream::Detached;

/// Connections that the kernel keeps waiting (Redis: `tcp-backlog` 511; a storm after a restart needs more).
const BACKLOG: i32 = 4096;
/// After an error of `accept` (most often: no file descriptor is left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    Tcp(String),
    Unix(PathBuf),
}

/// A bound socket.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Binds.
    ///
    /// # Errors
    /// The address is no address, or in use.
    pub async fn bind(listen: &Listen) -> io::Result<Listener> {
        match listen {
            Listen::Tcp(address) => {
                let address = tokio::net::lookup_host(address)
                    .await?
                    .next()
                    .ok_or_else(|| io::Error::other("the name has no address"))?;
                let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
                socket.set_reuse_address(true)?;
                socket.set_nonblocking(true)?;
                socket.bind(&address.into())?;
                socket.listen(BACKLOG)?;
                Ok(Listener::Tcp(TcpListener::from_std(socket.into())?))
            }
            Listen::Unix(path) => {
                // A socket that an earlier run left behind answers nobody.
                if std::os::unix::net::UnixStream::connect(path).is_err() {
                    let _ = std::fs::remove_file(path);
                }
                Ok(Listener::Unix(UnixListener::bind(path)?))
            }
        }
    }

    /// The address in words.
    pub fn address(&self) -> String {
        match self {
            Listener::Tcp(listener) => listener
                .local_addr()
                .map(|address| address.to_string())
                .unwrap_or_default(),
            Listener::Unix(listener) => listener
                .local_addr()
                .ok()
                .and_then(|address| address.as_pathname().map(|path| format!("unix:{}", path.display())))
                .unwrap_or_default(),
        }
    }

    /// Accepts until dropped.
    pub async fn run(self, proxy: Arc<Proxy>) {
        loop {
            let accepted = match &self {
                Listener::Tcp(listener) => listener
                    .accept()
                    .await
                    .and_then(|(stream, _)| stream.into_std())
                    .map(Detached::Tcp),
                Listener::Unix(listener) => listener
                    .accept()
                    .await
                    .and_then(|(stream, _)| stream.into_std())
                    .map(Detached::Unix),
            };
            match accepted {
                Ok(accepted) => proxy.admit(accepted),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a client");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

impl Proxy {
    fn admit(&self, accepted: Detached) {
        if self.connected() >= self.max_clients as u64 {
            refuse(accepted, self.secure);
            return;
        }
        let index = balance::for_new_client(&self.loads());
        let Peer { orders, stats } = &self.workers[index];
        stats.client_came();
        let client = Box::new(Handover::of_new_client(accepted));
        if orders.send(Order::Serve(client)).is_err() {
            stats.client_gone();
        }
    }
}

/// Redis's own words; over TLS, as Redis does, none.
fn refuse(accepted: Detached, secure: bool) {
    let message = b"-ERR max number of clients reached\r\n";
    // The socket is non-blocking and fresh: so few bytes always fit.
    let _ = match accepted {
        Detached::Tcp(_) if secure => Ok(()),
        Detached::Tcp(mut stream) => stream.write_all(message),
        Detached::Unix(mut stream) => stream.write_all(message),
    };
}
