//! Accepts clients and deals each to the worker with the fewest.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UnixListener};

use super::Proxy;
use super::worker::{Accepted, Order};

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
                    .map(Accepted::Tcp),
                Listener::Unix(listener) => listener
                    .accept()
                    .await
                    .and_then(|(stream, _)| stream.into_std())
                    .map(Accepted::Unix),
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
    fn admit(&self, accepted: Accepted) {
        if self.connected() >= self.max_clients as u64 {
            refuse(accepted);
            return;
        }
        let fewest = self
            .stats
            .iter()
            .enumerate()
            .min_by_key(|(_, stats)| stats.clients.load(Relaxed));
        let Some((index, stats)) = fewest else { return };
        stats.client_came();
        if self.orders[index].send(Order::Serve(accepted)).is_err() {
            stats.client_gone();
        }
    }
}

/// Redis's own words.
fn refuse(accepted: Accepted) {
    let message = b"-ERR max number of clients reached\r\n";
    // The socket is non-blocking and fresh: so few bytes always fit.
    let _ = match accepted {
        Accepted::Tcp(mut stream) => stream.write_all(message),
        Accepted::Unix(mut stream) => stream.write_all(message),
    };
}
