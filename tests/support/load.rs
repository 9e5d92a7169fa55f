//! Load without Django's own cost: many raw clients, each reading and writing its own session as fast as it is answered.
//!
//! A session is `{"n": COUNT}` as a pickle, so that the proxy and the database treat it as the real thing.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{command, session};

pub struct Load {
    over: Arc<AtomicBool>,
    commands: Arc<AtomicU64>,
    clients: Vec<JoinHandle<ClientReport>>,
    began: Instant,
}

#[derive(Default)]
struct ClientReport {
    sessions: Vec<Told>,
    wrong: Vec<String>,
    slowest: Duration,
}

/// What a client was told about one session.
#[derive(Clone, Debug)]
pub struct Told {
    pub key: String,
    pub acked: i32,
    pub logged_out: bool,
}

pub struct LoadReport {
    pub sessions: Vec<Told>,
    /// Errors, wrong replies, old values, sessions that were not there.
    pub wrong: Vec<String>,
    pub commands: u64,
    pub per_second: f64,
    /// The longest that any one command waited for its reply.
    pub slowest: Duration,
}

/// `{"n": count}`
pub fn pickled(count: i32) -> Vec<u8> {
    let mut bytes = b"\x80\x02}X\x01\0\0\0nJ".to_vec();
    bytes.extend_from_slice(&count.to_le_bytes());
    bytes.extend_from_slice(b"s.");
    bytes
}

pub fn unpickled(bytes: &[u8]) -> Option<i32> {
    let count = bytes.get(10..14)?;
    (bytes == pickled(i32::from_le_bytes(count.try_into().ok()?)))
        .then(|| i32::from_le_bytes(count.try_into().unwrap()))
}

impl Load {
    pub fn start(address: &str, clients: usize) -> Load {
        let over = Arc::new(AtomicBool::new(false));
        let commands = Arc::new(AtomicU64::new(0));
        let clients = (0..clients)
            .map(|number| {
                let (address, over, commands) = (address.to_owned(), over.clone(), commands.clone());
                std::thread::Builder::new()
                    .stack_size(256 * 1024)
                    .spawn(move || client(&address, number, &over, &commands))
                    .unwrap()
            })
            .collect();
        Load {
            over,
            commands,
            clients,
            began: Instant::now(),
        }
    }

    /// Commands answered so far.
    pub fn commands(&self) -> u64 {
        self.commands.load(Ordering::Relaxed)
    }

    pub fn stop(self) -> LoadReport {
        self.over.store(true, Ordering::Relaxed);
        let elapsed = self.began.elapsed();
        let mut report = LoadReport {
            sessions: Vec::new(),
            wrong: Vec::new(),
            commands: 0,
            per_second: 0.0,
            slowest: Duration::ZERO,
        };
        for client in self.clients {
            let one = client.join().unwrap();
            report.sessions.extend(one.sessions);
            report.wrong.extend(one.wrong);
            report.slowest = report.slowest.max(one.slowest);
        }
        report.commands = self.commands.load(Ordering::Relaxed);
        report.per_second = report.commands as f64 / elapsed.as_secs_f64();
        println!(
            "load: {} commands, {:.0}/s, slowest reply {:?}, {} sessions, {} wrong",
            report.commands,
            report.per_second,
            report.slowest,
            report.sessions.len(),
            report.wrong.len()
        );
        report
    }
}

impl LoadReport {
    /// Holds a Redis against what the clients were told.
    pub fn check(&self, place: &str, connection: &mut redis::Connection) {
        let mut wrong = Vec::new();
        for told in &self.sessions {
            let value: Option<Vec<u8>> = redis::cmd("GET").arg(session(&told.key)).query(connection).unwrap();
            let count = value.as_deref().map(unpickled);
            let right = if told.logged_out {
                value.is_none()
            } else {
                count == Some(Some(told.acked))
            };
            if !right {
                wrong.push(format!("{told:?} but found {count:?}"));
            }
        }
        assert!(
            wrong.is_empty(),
            "in the {place}, {} of {}: {wrong:#?}",
            wrong.len(),
            self.sessions.len()
        );
        assert!(!self.sessions.is_empty(), "no session was written");
    }
}

fn client(address: &str, number: usize, over: &AtomicBool, commands: &AtomicU64) -> ClientReport {
    let mut report = ClientReport::default();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    // What Django's client of today waits for at most, and a little.
    stream.set_read_timeout(Some(Duration::from_secs(6))).unwrap();
    let mut life = 0;
    let mut told = Told {
        key: format!("load{number:08}x{life:019}"),
        acked: 0,
        logged_out: false,
    };
    let mut ask = |parts: &[&[u8]], expected: &[u8], report: &mut ClientReport| -> bool {
        let began = Instant::now();
        let sent = stream.write_all(&command(parts));
        let mut got = vec![0; expected.len()];
        // A shorter reply than expected (nil, an error) would leave this waiting: read what there is, then compare.
        let mut length = 0;
        let mut failed = sent.err();
        while failed.is_none() && length < got.len() {
            match stream.read(&mut got[length..]) {
                Ok(0) => failed = Some(std::io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => length += read,
                Err(error) => failed = Some(error),
            }
            if !expected.starts_with(&got[..length]) {
                break;
            }
        }
        report.slowest = report.slowest.max(began.elapsed());
        commands.fetch_add(1, Ordering::Relaxed);
        if failed.is_none() && got == expected {
            return true;
        }
        report.wrong.push(format!(
            "{} expected {} got {} {failed:?} after {:?}",
            String::from_utf8_lossy(parts[0]),
            expected.escape_ascii(),
            got[..length].escape_ascii(),
            began.elapsed()
        ));
        false
    };
    while !over.load(Ordering::Relaxed) {
        let key = session(&told.key);
        let held = if told.acked == 0 {
            b"$-1\r\n".to_vec()
        } else {
            let value = pickled(told.acked);
            [format!("${}\r\n", value.len()).as_bytes(), &value, b"\r\n"].concat()
        };
        if !ask(&[b"GET", key.as_bytes()], &held, &mut report) {
            break;
        }
        if told.acked > 0 && told.acked % 40 == 0 {
            if !ask(&[b"DEL", key.as_bytes()], b":1\r\n", &mut report) {
                break;
            }
            told.logged_out = true;
            life += 1;
            let next = Told {
                key: format!("load{number:08}x{life:019}"),
                acked: 0,
                logged_out: false,
            };
            report.sessions.push(std::mem::replace(&mut told, next));
            continue;
        }
        let next = pickled(told.acked + 1);
        if !ask(
            &[b"SET", key.as_bytes(), &next, b"EX", b"3600"],
            b"+OK\r\n",
            &mut report,
        ) {
            break;
        }
        told.acked += 1;
    }
    if told.acked > 0 {
        report.sessions.push(told);
    }
    report
}
