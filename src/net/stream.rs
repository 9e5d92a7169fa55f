//! A TCP, unix or TLS connection, split so that reading goes on while writing waits.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::net::{TcpStream, UnixStream, tcp, unix};

use super::endpoint::{Address, Endpoint};
use super::tls::Session;

/// A silent peer is probed after this; a dead one is noticed some 30 s later.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// The reading half.
#[derive(Debug)]
pub enum ReadHalf {
    Tcp(tcp::OwnedReadHalf),
    Unix(unix::OwnedReadHalf),
    Tls(Tls),
}

/// The writing half.
#[derive(Debug)]
pub enum WriteHalf {
    Tcp(tcp::OwnedWriteHalf),
    Unix(unix::OwnedWriteHalf),
    Tls(Tls),
}

/// Both halves of a TLS connection are one session: reading may have to write, and the other way round. They are used
/// by one task, so that the lock is never waited for.
type Tls = Arc<Mutex<Session>>;

const UNLOCKED: &str = "no panic while locked";

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
            ReadHalf::Tls(session) => session.lock().expect(UNLOCKED).poll_read_buf(cx, buffer),
        }
    }
}

impl WriteHalf {
    /// The other end's address; nothing over a unix socket, or where it has gone already.
    pub fn peer(&self) -> Option<IpAddr> {
        let address = match self {
            WriteHalf::Tcp(half) => half.peer_addr(),
            WriteHalf::Unix(_) => return None,
            WriteHalf::Tls(session) => session.lock().expect(UNLOCKED).peer(),
        };
        address.ok().map(|address| address.ip())
    }

    /// Writes what the socket takes now. After `WouldBlock` the same bytes must come again.
    ///
    /// # Errors
    /// `WouldBlock` where it takes nothing; else the connection is lost.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            WriteHalf::Tcp(half) => half.try_write(bytes),
            WriteHalf::Unix(half) => half.try_write(bytes),
            WriteHalf::Tls(session) => session.lock().expect(UNLOCKED).try_write(bytes),
        }
    }

    /// Writes what the socket takes, and arranges a wake-up where it takes nothing; the same bytes must come again then.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            WriteHalf::Tcp(half) => Pin::new(half).poll_write(cx, bytes),
            WriteHalf::Unix(half) => Pin::new(half).poll_write(cx, bytes),
            WriteHalf::Tls(session) => session.lock().expect(UNLOCKED).poll_write(cx, bytes),
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

/// A connection that is no longer read or written here.
#[derive(Debug)]
pub enum Detached {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl ReadHalf {
    /// Whether [`reunite`] can give the socket back.
    pub fn can_move(&self) -> bool {
        matches!(self, ReadHalf::Tcp(_) | ReadHalf::Unix(_))
    }
}

/// Takes the two halves of one connection from this thread's runtime, for another thread's.
///
/// # Errors
/// The system does not let go of the socket, or these are not two halves of one.
pub fn reunite(reader: ReadHalf, writer: WriteHalf) -> io::Result<Detached> {
    match (reader, writer) {
        (ReadHalf::Tcp(reader), WriteHalf::Tcp(writer)) => {
            let stream = reader.reunite(writer).map_err(io::Error::other)?;
            Ok(Detached::Tcp(stream.into_std()?))
        }
        (ReadHalf::Unix(reader), WriteHalf::Unix(writer)) => {
            let stream = reader.reunite(writer).map_err(io::Error::other)?;
            Ok(Detached::Unix(stream.into_std()?))
        }
        _ => Err(io::Error::other("not two halves of one socket")),
    }
}

pub fn split_tls(session: Session) -> (ReadHalf, WriteHalf) {
    let session = Arc::new(Mutex::new(session));
    (ReadHalf::Tls(session.clone()), WriteHalf::Tls(session))
}

/// Connects to a Redis server; the caller bounds the time.
///
/// # Errors
/// As the system says.
pub async fn connect(endpoint: &Endpoint) -> io::Result<(ReadHalf, WriteHalf)> {
    match &endpoint.address {
        Address::Tcp { host, port } => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            match endpoint.connector()? {
                None => Ok(split_tcp(stream)),
                Some(tls) => {
                    tune(&stream);
                    Ok(split_tls(tls.connect(stream).await?.into()))
                }
            }
        }
        Address::Unix(path) => Ok(split_unix(UnixStream::connect(path).await?)),
    }
}
