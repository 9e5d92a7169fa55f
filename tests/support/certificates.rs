//! Certificates, good and bad, and a client that speaks TLS.

use std::{
    net::{IpAddr, TcpStream},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use tempfile::TempDir;
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};

use super::{port::Port, resp::Raw};

/// An authority whose files lie in a folder of the test's own.
pub struct Authority {
    dir: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, as files.
#[derive(Clone, Debug)]
pub struct Pair {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Pair {
    pub fn cert(&self) -> &str {
        self.cert.to_str().unwrap()
    }

    pub fn key(&self) -> &str {
        self.key.to_str().unwrap()
    }

    /// What a redis-server is told so that it speaks TLS on `port`; `clients` is its `tls-auth-clients`.
    pub fn redis_args(&self, port: &Port, ca_file: &str, clients: &str) -> Vec<String> {
        [
            ("--tls-port", port.number().to_string().as_str()),
            ("--tls-cert-file", self.cert()),
            ("--tls-key-file", self.key()),
            ("--tls-ca-cert-file", ca_file),
            ("--tls-auth-clients", clients),
        ]
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value.to_owned()])
        .collect()
    }
}

impl Authority {
    pub fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), issuer.pem()).unwrap();
        Authority { dir, issuer }
    }

    pub fn file(&self) -> String {
        self.dir.path().join("ca.pem").to_str().unwrap().to_owned()
    }

    pub fn issue(&self, name: &str) -> Pair {
        self.write(name, CertificateParams::new(vec![name.to_owned()]).unwrap())
    }

    pub fn issue_expired(&self, name: &str) -> Pair {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
        self.write(&format!("expired-{name}"), params)
    }

    fn write(&self, name: &str, mut params: CertificateParams) -> Pair {
        // Recent Pythons insist on it.
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let file = |end: &str| self.dir.path().join(format!("{name}.{end}"));
        let pair = Pair {
            cert: file("pem"),
            key: file("key"),
        };
        std::fs::write(&pair.cert, certificate.pem()).unwrap();
        std::fs::write(&pair.key, key.serialize_pem()).unwrap();
        pair
    }

    /// A connection that trusts this authority alone.
    pub fn connect(&self, address: &str) -> Raw {
        let tcp = TcpStream::connect(address).unwrap();
        tcp.set_nodelay(true).unwrap();
        let mut session = self.session(None);
        // Done here, so that a read that times out later never ends in the middle of it.
        tcp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        session.complete_io(&mut (&tcp)).unwrap();
        Raw::over(StreamOwned::new(session, tcp.try_clone().unwrap()), tcp)
    }

    /// A client's session that is not connected yet.
    pub fn session(&self, client: Option<&Pair>) -> ClientConnection {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(Path::new(&self.file())) {
            roots.add(certificate).unwrap();
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match client {
            None => builder.with_no_client_auth(),
            Some(pair) => builder
                .with_client_auth_cert(
                    certificates(&pair.cert),
                    PrivateKeyDer::from_pem_file(&pair.key).unwrap(),
                )
                .unwrap(),
        };
        let name = ServerName::from("127.0.0.1".parse::<IpAddr>().unwrap());
        ClientConnection::new(Arc::new(config), name).unwrap()
    }
}

fn certificates(path: &Path) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(path)
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap()
}
