//! A raw RESP connection: bytes out, whole frames in, nothing interpreted.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

/// How long a reply may take before the test gives up.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a raw connection runs over.
trait Wire: Read + Write + Send {}

impl<W: Read + Write + Send> Wire for W {}

pub struct Raw {
    stream: Box<dyn Wire>,
    tcp: TcpStream,
    /// Received and not yet handed out.
    buffer: Vec<u8>,
}

/// A command as clients send it.
pub fn command<P: AsRef<[u8]>>(parts: &[P]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", parts.len()).into_bytes();
    for part in parts {
        let part = part.as_ref();
        bytes.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
        bytes.extend_from_slice(part);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

impl Raw {
    pub fn connect(address: &str) -> Raw {
        let stream = TcpStream::connect(address).unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"));
        stream.set_nodelay(true).unwrap();
        let tcp = stream.try_clone().unwrap();
        Raw::over(stream, tcp)
    }

    /// Over anything that runs on this TCP connection.
    pub fn over(stream: impl Read + Write + Send + 'static, tcp: TcpStream) -> Raw {
        tcp.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        Raw {
            stream: Box::new(stream),
            tcp,
            buffer: Vec::new(),
        }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The TCP connection below.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Sends even if the other side has closed.
    pub fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// A second handle on the same connection, to write while this one reads.
    pub fn writer(&self) -> TcpStream {
        self.tcp.try_clone().unwrap()
    }

    /// One command, one reply.
    pub fn ask<P: AsRef<[u8]>>(&mut self, parts: &[P]) -> Vec<u8> {
        self.send(&command(parts));
        self.frame()
    }

    pub fn frame(&mut self) -> Vec<u8> {
        let mut scan = Scan::default();
        let began = Instant::now();
        loop {
            if let Some(end) = scan.resume(&self.buffer) {
                let rest = self.buffer.split_off(end);
                return std::mem::replace(&mut self.buffer, rest);
            }
            match self.receive() {
                Received::Bytes => {}
                Received::Nothing if began.elapsed() < PATIENCE => {}
                Received::Nothing => panic!("no whole reply within {PATIENCE:?}, only {:?}", shown(&self.buffer)),
                Received::Closed => panic!("closed before a whole reply, after {:?}", shown(&self.buffer)),
            }
        }
    }

    pub fn frames(&mut self, count: usize) -> Vec<Vec<u8>> {
        (0..count).map(|_| self.frame()).collect()
    }

    /// Everything until the other side closes, and whether it did.
    pub fn until_closed(&mut self, within: Duration) -> (Vec<u8>, bool) {
        let began = Instant::now();
        let closed = loop {
            match self.receive() {
                Received::Closed => break true,
                _ if began.elapsed() > within => break false,
                _ => {}
            }
        };
        (std::mem::take(&mut self.buffer), closed)
    }

    /// What arrives although nothing was asked.
    pub fn unasked(&mut self, during: Duration) -> Vec<u8> {
        let began = Instant::now();
        while began.elapsed() < during {
            if let Received::Closed = self.receive() {
                break;
            }
        }
        std::mem::take(&mut self.buffer)
    }

    fn receive(&mut self) -> Received {
        let mut chunk = [0; 1 << 16];
        match self.stream.read(&mut chunk) {
            Ok(0) => Received::Closed,
            Ok(length) => {
                self.buffer.extend_from_slice(&chunk[..length]);
                Received::Bytes
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Received::Nothing,
            Err(_) => Received::Closed,
        }
    }
}

enum Received {
    Bytes,
    Nothing,
    Closed,
}

/// Finds where a frame ends, without starting over when more bytes come.
#[derive(Default)]
struct Scan {
    at: usize,
    /// Frames that are still to come beside the first.
    open: usize,
    begun: bool,
}

impl Scan {
    fn resume(&mut self, bytes: &[u8]) -> Option<usize> {
        if !self.begun {
            self.begun = true;
            self.open = 1;
        }
        while self.open > 0 {
            let line = bytes[self.at..].windows(2).position(|pair| pair == b"\r\n")?;
            let header = &bytes[self.at..self.at + line];
            let after = self.at + line + 2;
            let count = || -> i64 { std::str::from_utf8(&header[1..]).unwrap().parse().unwrap() };
            match header[0] {
                b'+' | b'-' | b':' | b',' | b'(' | b'#' | b'_' => self.at = after,
                b'$' | b'!' | b'=' => {
                    let end = match usize::try_from(count()) {
                        Ok(length) => after + length + 2,
                        Err(_) => after,
                    };
                    if bytes.len() < end {
                        return None;
                    }
                    self.at = end;
                }
                b'*' | b'~' | b'>' => {
                    self.open += usize::try_from(count()).unwrap_or(0);
                    self.at = after;
                }
                b'%' => {
                    self.open += 2 * usize::try_from(count()).unwrap_or(0);
                    self.at = after;
                }
                b'|' => {
                    self.open += 2 * usize::try_from(count()).unwrap_or(0) + 1;
                    self.at = after;
                }
                other => panic!(
                    "not a RESP reply: {:?} in {:?}",
                    other as char,
                    shown(&bytes[self.at..])
                ),
            }
            self.open -= 1;
        }
        Some(self.at)
    }
}

/// Bytes for a message: escaped, and cut where they are long.
pub fn shown(bytes: &[u8]) -> String {
    let cut = &bytes[..bytes.len().min(300)];
    let more = if bytes.len() > 300 {
        format!("… ({} bytes)", bytes.len())
    } else {
        String::new()
    };
    format!("{}{more}", cut.escape_ascii())
}
