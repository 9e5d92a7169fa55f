//! A TCP or unix connection, split so that reading goes on while writing waits.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::net::{TcpStream, UnixStream, tcp, unix};

use super::endpoint::{Address, Endpoint};

/// A silent peer is probed after this; a dead one is noticed some 30 s later.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// The reading half.
#[derive(Debug)]
pub enum ReadHalf {
    Tcp(tcp::OwnedReadHalf),
    Unix(unix::OwnedReadHalf),
}

/// The writing half.
#[derive(Debug)]
pub enum WriteHalf {
    Tcp(tcp::OwnedWriteHalf),
    Unix(unix::OwnedWriteHalf),
}

impl ReadHalf {
    /// Reads what is there into the spare room of `buffer`; 0 is the end of the stream. A short read tells the runtime
    /// that the socket is empty, which saves a system call.
    ///
    /// # Errors
    /// The connection is lost.
    pub fn poll_read_buf(&mut self, cx: &mut Context<'_>, buffer: &mut BytesMut) -> Poll<io::Result<usize>> {
        // The future holds no state of its own: dropping it between polls loses nothing.
        match self {
            ReadHalf::Tcp(half) => pin!(half.read_buf(buffer)).poll(cx),
            ReadHalf::Unix(half) => pin!(half.read_buf(buffer)).poll(cx),
        }
    }
}

impl WriteHalf {
    /// Writes what the socket takes now.
    ///
    /// # Errors
    /// `WouldBlock` where it takes nothing; else the connection is lost.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            WriteHalf::Tcp(half) => half.try_write(bytes),
            WriteHalf::Unix(half) => half.try_write(bytes),
        }
    }

    /// Writes what the socket takes, and arranges a wake-up where it takes nothing.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            WriteHalf::Tcp(half) => Pin::new(half).poll_write(cx, bytes),
            WriteHalf::Unix(half) => Pin::new(half).poll_write(cx, bytes),
        }
    }
}

/// Settings that every TCP connection gets: no delay, keepalive.
pub fn tune(stream: &TcpStream) {
    // Failing to set an option is no reason to refuse a connection.
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE));
}

pub fn split_tcp(stream: TcpStream) -> (ReadHalf, WriteHalf) {
    tune(&stream);
    let (read, write) = stream.into_split();
    (ReadHalf::Tcp(read), WriteHalf::Tcp(write))
}

pub fn split_unix(stream: UnixStream) -> (ReadHalf, WriteHalf) {
    let (read, write) = stream.into_split();
    (ReadHalf::Unix(read), WriteHalf::Unix(write))
}

/// Connects to a Redis server; the caller bounds the time.
///
/// # Errors
/// As the system says.
pub async fn connect(endpoint: &Endpoint) -> io::Result<(ReadHalf, WriteHalf)> {
    match &endpoint.address {
        Address::Tcp { host, port } => Ok(split_tcp(TcpStream::connect((host.as_str(), *port)).await?)),
        Address::Unix(path) => Ok(split_unix(UnixStream::connect(path).await?)),
    }
}
