//! TLS: to the two Redis servers as their client, and to clients as their server.
//!
//! The handshake is `tokio-rustls`'s; what follows is driven here, because a connection is read and written by halves
//! (see [`stream`](super::stream)) and because a byte may only count as written once its whole record has left: what
//! was sent and what was not decides which commands are repeated after a lost connection.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, BufRead, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream as ClientStream;
use tokio_rustls::rustls;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, Connection, DigitallySignedStruct, RootCertStore, ServerConfig,
    SignatureScheme,
};

/// A client that has not finished its handshake after this is let go.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Plain bytes of one record. No more is encrypted at once: then all of it has left, or none of it can be read.
const RECORD_LEN: usize = 16 * 1024;
/// Encrypted bytes taken from the socket at once.
const READ_LEN: usize = 64 * 1024;

/// How to speak TLS to a server, as configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// The authorities to trust, in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// A certificate to show, with its chain; `key_file` belongs to it.
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// The name to expect in the server's certificate, in place of the host of the address.
    pub server_name: Option<String>,
    /// Any certificate will do.
    pub insecure: bool,
}

/// Why TLS cannot be set up. Files are named, never quoted.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {what} {path}: {error}; it must be a PEM file")]
    File {
        what: &'static str,
        path: String,
        error: String,
    },
    #[error("{what} {path} holds no certificate (-----BEGIN CERTIFICATE-----)")]
    NoCertificate { what: &'static str, path: String },
    #[error("no certificate authority is known on this system: install ca-certificates, or set ca_file")]
    NoRoots,
    #[error("cert_file and key_file: give both or neither")]
    Half,
    #[error("{0:?} is no name that a certificate can have: set server_name")]
    BadName(String),
    #[error("the certificate and its key cannot be used: {0}")]
    Unusable(rustls::Error),
}

/// Makes TLS connections to one server.
#[derive(Clone)]
pub struct TlsConnector {
    config: Arc<ClientConfig>,
    server_name: ServerName<'static>,
}

impl fmt::Debug for TlsConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TlsConnector({:?})", self.server_name)
    }
}

impl PartialEq for TlsConnector {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.config, &other.config) && self.server_name == other.server_name
    }
}

impl Eq for TlsConnector {}

impl TlsConnector {
    /// Reads the files.
    ///
    /// # Errors
    /// What is wrong with which of them.
    pub fn new(options: &TlsOptions, host: &str) -> Result<TlsConnector, TlsError> {
        let name = options.server_name.as_deref().unwrap_or(host);
        let server_name = match name.parse::<IpAddr>() {
            Ok(address) => ServerName::from(address),
            Err(_) => ServerName::try_from(name.to_owned()).map_err(|_| TlsError::BadName(name.to_owned()))?,
        };
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Unusable)?;
        let builder = if options.insecure {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        } else {
            builder.with_root_certificates(roots(options.ca_file.as_deref())?)
        };
        let config = match (&options.cert_file, &options.key_file) {
            (None, None) => builder.with_no_client_auth(),
            (Some(cert), Some(key)) => builder
                .with_client_auth_cert(certificates("cert_file", cert)?, private_key("key_file", key)?)
                .map_err(TlsError::Unusable)?,
            _ => return Err(TlsError::Half),
        };
        Ok(TlsConnector {
            config: Arc::new(config),
            server_name,
        })
    }

    /// The handshake. The caller bounds the time.
    ///
    /// # Errors
    /// The connection is lost, or one side does not accept the other; [`explain`] has words for it.
    pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> io::Result<ClientStream<S>> {
        tokio_rustls::TlsConnector::from(self.config.clone())
            .connect(self.server_name.clone(), stream)
            .await
    }
}

/// Serves TLS to clients.
#[derive(Clone)]
pub struct TlsAcceptor(tokio_rustls::TlsAcceptor);

impl fmt::Debug for TlsAcceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsAcceptor")
    }
}

impl TlsAcceptor {
    /// Reads the certificate (with its chain) and the key.
    ///
    /// # Errors
    /// What is wrong with which of them.
    pub fn new(cert: &Path, key: &Path) -> Result<TlsAcceptor, TlsError> {
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Unusable)?
            .with_no_client_auth()
            .with_single_cert(certificates("tls_cert", cert)?, private_key("tls_key", key)?)
            .map_err(TlsError::Unusable)?;
        Ok(TlsAcceptor(Arc::new(config).into()))
    }

    /// The handshake, within [`HANDSHAKE_TIMEOUT`].
    ///
    /// # Errors
    /// The client was too slow, is gone, or speaks something else; the text is for the operator.
    pub async fn accept(&self, stream: TcpStream) -> Result<Session, String> {
        match timeout(HANDSHAKE_TIMEOUT, self.0.accept(stream)).await {
            Ok(Ok(stream)) => {
                let (socket, connection) = stream.into_inner();
                Ok(Session::new(socket, connection.into()))
            }
            Ok(Err(error)) => Err(match tls_error(&error) {
                Some(rustls::Error::InvalidMessage(_)) => {
                    "it does not speak TLS: have it use rediss://, or ssl=True".to_owned()
                }
                Some(rustls::Error::AlertReceived(
                    AlertDescription::UnknownCA
                    | AlertDescription::BadCertificate
                    | AlertDescription::CertificateUnknown
                    | AlertDescription::CertificateExpired,
                )) => "it does not accept the certificate of client.tls_cert: give it the authority, and check the \
                       name and the dates"
                    .to_owned(),
                _ => error.to_string(),
            }),
            Err(_) => Err(format!("no handshake within {} s", HANDSHAKE_TIMEOUT.as_secs())),
        }
    }
}

/// An established connection: the socket and what is encrypted and decrypted on it.
pub struct Session {
    socket: TcpStream,
    connection: Connection,
    /// Bytes that are encrypted and have not left; not yet counted as written.
    owed: usize,
    /// The peer said that no more will come.
    ended: bool,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({:?})", self.socket)
    }
}

thread_local! {
    /// Encrypted bytes between the socket and the session: one buffer per thread rather than one per connection.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_LEN]);
}

impl Session {
    pub(super) fn peer(&self) -> io::Result<SocketAddr> {
        self.socket.peer_addr()
    }

    fn new(socket: TcpStream, connection: Connection) -> Session {
        Session {
            socket,
            connection,
            owed: 0,
            ended: false,
        }
    }

    /// Appends what can be had; 0 is the end of the stream.
    pub(super) fn poll_read_buf(&mut self, cx: &mut Context<'_>, buffer: &mut BytesMut) -> Poll<io::Result<usize>> {
        // What is decrypted already: the socket may never become readable again.
        let taken = self.take(buffer)?;
        if taken > 0 || self.ended {
            return Poll::Ready(Ok(taken));
        }
        SCRATCH.with_borrow_mut(|scratch| {
            loop {
                let mut filled = ReadBuf::new(scratch);
                ready!(Pin::new(&mut self.socket).poll_read(cx, &mut filled))?;
                let mut rest = filled.filled();
                if rest.is_empty() {
                    self.ended = true;
                    return Poll::Ready(Ok(0));
                }
                let mut taken = 0;
                while !rest.is_empty() && !self.ended {
                    self.connection.read_tls(&mut rest)?;
                    match self.connection.process_new_packets() {
                        Ok(state) => self.ended = state.peer_has_closed(),
                        Err(error) => {
                            // The alert tells the peer why.
                            let _ = self.push(&mut Now);
                            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
                        }
                    }
                    taken += self.take(buffer)?;
                }
                // What the protocol itself has to say; data that is owed is only ever sent by who counts it.
                if self.owed == 0 && self.connection.wants_write() {
                    let _ = self.push(&mut Now);
                }
                if taken > 0 || self.ended {
                    return Poll::Ready(Ok(taken));
                }
            }
        })
    }

    /// Moves what is decrypted into `buffer`.
    fn take(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        let mut reader = self.connection.reader();
        let mut taken = 0;
        loop {
            let length = match reader.fill_buf() {
                Ok(bytes) => {
                    buffer.extend_from_slice(bytes);
                    bytes.len()
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error),
            };
            if length == 0 {
                return Ok(taken);
            }
            reader.consume(length);
            taken += length;
        }
    }

    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.write(&mut Later(cx), bytes)
    }

    pub(super) fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.write(&mut Now, bytes) {
            Poll::Ready(result) => result,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Encrypts and sends one record. Where the socket does not take all of it, nothing counts as written, and the next
    /// call, which must bring the same bytes again, goes on with it.
    fn write(&mut self, way: &mut impl Way, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.push(way))?;
        if self.owed > 0 {
            debug_assert!(self.owed <= bytes.len(), "the same bytes come again");
            return Poll::Ready(Ok(std::mem::take(&mut self.owed)));
        }
        let accepted = self.connection.writer().write(&bytes[..bytes.len().min(RECORD_LEN)])?;
        match self.push(way)? {
            Poll::Ready(()) => Poll::Ready(Ok(accepted)),
            Poll::Pending => {
                self.owed = accepted;
                Poll::Pending
            }
        }
    }

    /// Sends what is encrypted.
    fn push(&mut self, way: &mut impl Way) -> Poll<io::Result<()>> {
        while self.connection.wants_write() {
            let mut sink = Sink {
                socket: &mut self.socket,
                way,
            };
            match self.connection.write_tls(&mut sink) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl From<ClientStream<TcpStream>> for Session {
    fn from(stream: ClientStream<TcpStream>) -> Session {
        let (socket, connection) = stream.into_inner();
        Session::new(socket, connection.into())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // So that the peer knows the end from a cut. It may have gone, or take nothing more.
        self.connection.send_close_notify();
        let _ = self.push(&mut Now);
    }
}

/// How the socket is written to: with a wake-up where it takes nothing, or without.
trait Way {
    fn write(&mut self, socket: &mut TcpStream, bytes: &[u8]) -> io::Result<usize>;
}

struct Now;

struct Later<'a, 'b>(&'a mut Context<'b>);

impl Way for Now {
    fn write(&mut self, socket: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
        socket.try_write(bytes)
    }
}

impl Way for Later<'_, '_> {
    fn write(&mut self, socket: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
        match Pin::new(socket).poll_write(self.0, bytes) {
            Poll::Ready(result) => result,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

struct Sink<'a, W> {
    socket: &'a mut TcpStream,
    way: &'a mut W,
}

impl<W: Way> Write for Sink<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.way.write(self.socket, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

// --- files ---

fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(path) => {
            for certificate in certificates("ca_file", path)? {
                roots.add(certificate).map_err(TlsError::Unusable)?;
            }
        }
        None => {
            // A single broken file in the system's folder is no reason to trust none of the others.
            let (_, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(TlsError::NoRoots);
            }
        }
    }
    Ok(roots)
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, PemError> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let found = found.map_err(|error| unreadable(what, path, &error))?;
    if found.is_empty() {
        let path = path.display().to_string();
        return Err(TlsError::NoCertificate { what, path });
    }
    Ok(found)
}

fn private_key(what: &'static str, path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| unreadable(what, path, &error))
}

/// The parser's own errors may repeat a line of the file, which may be the key.
fn unreadable(what: &'static str, path: &Path, error: &PemError) -> TlsError {
    let error = match error {
        PemError::Io(error) => error.to_string(),
        PemError::NoItemsFound => "nothing of the kind is in it".to_owned(),
        _ => "it is damaged".to_owned(),
    };
    TlsError::File {
        what,
        path: path.display().to_string(),
        error,
    }
}

// --- insecure ---

/// Takes any certificate, as `insecure` asks for. That the peer holds its key is still checked.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

// --- words ---

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// What a failed connection to a server means and what to do, where TLS is the reason.
pub fn explain(error: &io::Error) -> Option<String> {
    use CertificateError as Cert;
    use rustls::Error as Tls;
    let text = match tls_error(error)? {
        Tls::InvalidCertificate(Cert::UnknownIssuer) => {
            "TLS: its certificate is signed by no authority that is trusted here; set ca_file".to_owned()
        }
        Tls::InvalidCertificate(Cert::NotValidForName | Cert::NotValidForNameContext { .. }) => {
            "TLS: its certificate is for another name; connect by that name, or set server_name".to_owned()
        }
        Tls::InvalidCertificate(Cert::Expired | Cert::ExpiredContext { .. }) => {
            "TLS: its certificate has expired; renew it, and check this machine's clock".to_owned()
        }
        Tls::InvalidCertificate(Cert::NotValidYet | Cert::NotValidYetContext { .. }) => {
            "TLS: its certificate is not valid yet; check this machine's clock".to_owned()
        }
        Tls::InvalidCertificate(reason) => format!("TLS: its certificate is not accepted ({reason})"),
        Tls::AlertReceived(AlertDescription::CertificateRequired) => {
            "TLS: it asks for a client certificate; set cert_file and key_file".to_owned()
        }
        Tls::AlertReceived(
            alert @ (AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired
            | AlertDescription::DecryptError
            | AlertDescription::AccessDenied),
        ) => format!("TLS: it does not accept the client certificate ({alert:?}); check cert_file and key_file"),
        // Before TLS 1.3 a server that misses a certificate says no more than this.
        Tls::AlertReceived(AlertDescription::HandshakeFailure) => {
            "TLS: it refuses the handshake; does it ask for a client certificate (cert_file, key_file)?".to_owned()
        }
        Tls::InvalidMessage(_) => {
            "TLS: what it answers is no TLS; is this its TLS port, or should it be redis://?".to_owned()
        }
        Tls::PeerIncompatible(_) | Tls::AlertReceived(AlertDescription::ProtocolVersion) => {
            "TLS: it speaks no version or cipher in common; TLS 1.2 and 1.3 are spoken here".to_owned()
        }
        other => format!("TLS: {other}"),
    };
    Some(text)
}

/// What a client sends first when it speaks TLS: a handshake record.
pub fn looks_like_tls(bytes: &[u8]) -> bool {
    // RESP begins with none of it, and no name of a command does.
    bytes.first() == Some(&0x16)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::net::TcpListener;

    use super::*;

    /// A session on each end of one connection.
    async fn pair() -> (Session, Session) {
        let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("cert"), dir.path().join("key"));
        std::fs::write(&cert, certificate.cert.pem()).unwrap();
        std::fs::write(&key, certificate.signing_key.serialize_pem()).unwrap();
        let acceptor = TlsAcceptor::new(&cert, &key).unwrap();
        let options = TlsOptions {
            ca_file: Some(cert),
            ..TlsOptions::default()
        };
        let connector = TlsConnector::new(&options, "localhost").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let (client, server) = tokio::join!(connector.connect(stream), acceptor.accept(accepted));
        (client.unwrap().into(), server.unwrap())
    }

    /// What counts as written is what the other side can read, whatever the sockets hold: upstream connections decide
    /// from it what was sent.
    #[tokio::test]
    async fn a_byte_counts_as_written_once_its_record_has_left_and_never_before() {
        let (mut writer, mut reader) = pair().await;
        let bytes: Vec<u8> = (0..64 << 20).map(|at: u32| (at % 251) as u8).collect();
        let (mut sent, mut received) = (0, BytesMut::new());
        for round in 0..50 {
            // As much as the sockets take. A length that fits no buffer moves the place where they are full.
            loop {
                let end = (sent + 5000 + round * 97).min(bytes.len());
                match writer.try_write(&bytes[sent..end]) {
                    Ok(written) => sent += written,
                    Err(error) => {
                        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                        break;
                    }
                }
            }
            while received.len() < sent {
                let read = timeout(
                    Duration::from_secs(10),
                    poll_fn(|cx| reader.poll_read_buf(cx, &mut received)),
                );
                assert!(read.await.expect("what counts as written arrives").unwrap() > 0);
            }
            assert_eq!(received.len(), sent, "more arrived than counts as written");
        }
        assert!(sent > 1 << 20, "{sent}");
        assert!(received[..] == bytes[..sent]);
    }
}
