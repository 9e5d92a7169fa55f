//! A connection to a Redis that listens.
//!
//! What [`crate::sink::RedisStore`] is not for: pushed frames.

use std::future::poll_fn;

use bytes::{Bytes, BytesMut};

use crate::net::stream::{ReadHalf, WriteHalf, connect};
use crate::net::tls::explain;
use crate::net::{Endpoint, Presence};
use crate::proxy::identity::{Credentials, Identity, Order, Protocol, handshake};
use crate::resp::ReplyScanner;
use crate::resp::request::encode;

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum LineError {
    /// An error reply.
    Refused(String),
    Lost(String),
}

pub(super) struct Line {
    reader: ReadHalf,
    writer: WriteHalf,
    buffer: BytesMut,
    scanner: ReplyScanner,
    _presence: Presence,
}

impl Line {
    /// Connects and logs in. Has no time limit of its own.
    pub(super) async fn open(endpoint: &Endpoint, protocol: Protocol) -> Result<Line, LineError> {
        let presence = endpoint.footprint.connection();
        let (reader, writer) = connect(endpoint)
            .await
            .map_err(|error| LineError::Lost(explain(&error).unwrap_or_else(|| error.to_string())))?;
        let mut line = Line {
            reader,
            writer,
            buffer: BytesMut::new(),
            scanner: ReplyScanner::default(),
            _presence: presence,
        };
        let credentials = endpoint.password.as_ref().map(|password| Credentials {
            username: endpoint.username.as_ref().map(|user| user.as_bytes().to_vec()),
            password: password.as_bytes().to_vec(),
        });
        let mut out = Vec::new();
        // An identity does not leave its thread: it is gone before anything is waited for.
        let replies = {
            let identity = Identity {
                protocol,
                db: endpoint.db,
                ..Identity::default()
            };
            handshake(&identity, credentials.as_ref(), Order::AuthenticateFirst, &mut out)
        };
        line.send(&out).await?;
        for _ in 0..replies {
            line.answer().await?;
        }
        Ok(line)
    }

    /// Sends a command, and waits for its answer.
    pub(super) async fn ask(&mut self, words: &[impl AsRef<[u8]>]) -> Result<Bytes, LineError> {
        let mut out = Vec::new();
        encode(words, &mut out);
        self.send(&out).await?;
        self.answer().await
    }

    /// The next frame that is not pushed.
    async fn answer(&mut self) -> Result<Bytes, LineError> {
        loop {
            let frame = self.next().await?;
            match frame.first() {
                Some(b'>') => {}
                Some(b'-') => return Err(LineError::Refused(String::from_utf8_lossy(&frame).trim().to_owned())),
                _ => return Ok(frame),
            }
        }
    }

    pub(super) async fn send(&mut self, mut bytes: &[u8]) -> Result<(), LineError> {
        while !bytes.is_empty() {
            let sent = poll_fn(|cx| self.writer.poll_write(cx, bytes))
                .await
                .map_err(|error| LineError::Lost(error.to_string()))?;
            bytes = &bytes[sent..];
        }
        Ok(())
    }

    /// The next frame. Cancel safe: half-read bytes stay here.
    pub(super) async fn next(&mut self) -> Result<Bytes, LineError> {
        let lost = |error: &dyn ToString| LineError::Lost(error.to_string());
        loop {
            if let Some(reply) = self.scanner.scan(&self.buffer).map_err(|error| lost(&error))? {
                return Ok(self.buffer.split_to(reply.len).freeze());
            }
            let read = poll_fn(|cx| self.reader.poll_read_buf(cx, &mut self.buffer))
                .await
                .map_err(|error| lost(&error))?;
            if read == 0 {
                return Err(lost(&"closed by the server"));
            }
        }
    }
}
