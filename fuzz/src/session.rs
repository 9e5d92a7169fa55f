//! Whole sessions of several clients with the real proxy, in this process, against a simulated Redis that says in each
//! reply whose command it answers, and in which state of the connection: no client ever gets a reply that is not its own,
//! in order, or one too many, and none waits for ever.
//!
//! Where the simulated Redis ends a connection, commands in flight may be answered with an error, but for reads, and
//! clients with state on that connection may lose theirs.

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use sessionferry::journal::{self, Journal};
use sessionferry::net::Endpoint;
use sessionferry::proxy::identity::Servers;
use sessionferry::proxy::{Access, Listen, Listener, Names, OnFlush, Pause, Proxy, Rights, Scripts, Shared};
use sessionferry::resp::request::encode;
use sessionferry::resp::{Args, ReplyScanner, RequestScanner};
use sessionferry::session::KeyPatterns;
use sessionferry::status::Authority;
use sessionferry::tee::Tee;

const CLIENTS: usize = 4;
/// Commands of one run; more bytes of input are not looked at.
const MAX_COMMANDS: usize = 64;
const PATIENCE: Duration = Duration::from_secs(10);
/// What ends a connection is drawn less often: only by bytes from here.
const RARE: u8 = 224;
/// More than a command may have, or a reply, that shares an upstream with other clients'.
const LARGE: usize = 300_000;
/// The proxy keeps so many bytes of a client's sent commands, to repeat them.
const KEPT: usize = 1024 * 1024;
/// Arguments that are longer are no part of a reply.
const ECHOED: usize = 64;
/// A client that is refused gets this.
const REFUSED: &[u8] = b"-ERR Protocol error: expected '$', got ':'\r\n";

/// Connections that the simulated Redis has ended in the middle.
static LOSSES: AtomicU64 = AtomicU64::new(0);
/// The commands that it did so at: the next time it answers them.
static LOST_AT: LazyLock<Mutex<HashSet<Vec<u8>>>> = LazyLock::new(Mutex::default);

struct World {
    listen: PathBuf,
    runs: AtomicU64,
    /// Losses before the last run: a client that leaves does not wait for those that it causes.
    losses: AtomicU64,
    _directory: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let directory = tempfile::tempdir().expect("a temporary folder");
    let (upstream, listen) = (directory.path().join("redis"), directory.path().join("proxy"));
    let redis = UnixListener::bind(&upstream).expect("a socket");
    thread::spawn(move || {
        for (number, stream) in redis.incoming().flatten().enumerate() {
            thread::spawn(move || simulated(stream, number));
        }
    });
    let endpoint = Endpoint::parse(&format!("unix:{}", upstream.display())).expect("an address");
    let recovered = journal::recover(&directory.path().join("journal")).expect("an empty journal");
    let journal = Journal::open(&directory.path().join("journal"), &recovered).expect("a journal");
    let patterns = KeyPatterns::parse(&["session:{session_key}".to_owned()]).expect("a pattern");
    let shared = Shared {
        names: Names::default(),
        rescue: None,
        restore: None,
        tee: Arc::new(Tee::new(patterns, 1, false, [0; 16])),
        journal: Arc::new(journal),
        servers: Servers {
            source: endpoint.clone(),
            target: endpoint,
            by_url: false,
        },
        sessions_db: 0,
        journaled: true,
        acks: Vec::new(),
        workers: 2,
        max_clients: 1000,
        on_flush: OnFlush::Mirror,
        scripts: Scripts::default(),
        pause: Pause::default(),
        rights: Rights::new(false),
        access: Access::Same,
        tls: None,
    };
    let proxy = Arc::new(Proxy::start(Arc::new(shared), Authority::Source).expect("workers"));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let listener = runtime
        .block_on(Listener::bind(&Listen::Unix(listen.clone())))
        .expect("a socket");
    runtime.spawn(listener.run(proxy));
    World {
        listen,
        runs: AtomicU64::new(0),
        losses: AtomicU64::new(0),
        _directory: directory,
        _runtime: runtime,
    }
});

/// What a Redis knows of a connection. Both sides keep it: the simulated server, and what a client expects.
#[derive(Clone, Debug, Default)]
struct State {
    db: u8,
    resp3: bool,
    name: Vec<u8>,
    queued: Option<Vec<Vec<u8>>>,
    /// What is watched has changed.
    dirty: bool,
    channels: Vec<Vec<u8>>,
    silent: bool,
    skip: bool,
}

fn bulk(bytes: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

impl State {
    /// The frames with which a command is answered.
    fn run(&mut self, args: &[&[u8]]) -> Vec<Vec<u8>> {
        let skip = std::mem::take(&mut self.skip);
        let replies = self.replies(args);
        if self.silent || skip || self.skip {
            Vec::new()
        } else {
            replies
        }
    }

    fn replies(&mut self, args: &[&[u8]]) -> Vec<Vec<u8>> {
        let name = args[0].to_ascii_lowercase();
        let ok = || vec![b"+OK\r\n".to_vec()];
        let null = |array: bool| match (self.resp3, array) {
            (true, _) => b"_\r\n".to_vec(),
            (_, true) => b"*-1\r\n".to_vec(),
            _ => b"$-1\r\n".to_vec(),
        };
        match (
            name.as_slice(),
            args.get(1).map(|arg| arg.to_ascii_lowercase()).as_deref(),
        ) {
            (b"reset", _) => {
                *self = State::default();
                vec![b"+RESET\r\n".to_vec()]
            }
            (b"quit", _) => ok(),
            (b"multi", _) => {
                self.queued = Some(Vec::new());
                ok()
            }
            (b"exec" | b"discard", _) if self.queued.is_none() => {
                vec![[b"-ERR ", &name[..], b" without MULTI\r\n"].concat()]
            }
            (b"exec", _) => {
                let nothing = null(true);
                let replies = self.queued.take().unwrap_or_default();
                if std::mem::take(&mut self.dirty) {
                    return vec![nothing];
                }
                vec![[format!("*{}\r\n", replies.len()).into_bytes(), replies.concat()].concat()]
            }
            (b"discard", _) => {
                (self.queued, self.dirty) = (None, false);
                ok()
            }
            _ if self.queued.is_some() => {
                let reply = self.echo(&name, args);
                self.queued.get_or_insert_default().push(reply);
                vec![b"+QUEUED\r\n".to_vec()]
            }
            (b"watch", Some(key)) => {
                self.dirty |= key.ends_with(b"dirty");
                ok()
            }
            (b"unwatch", _) => {
                self.dirty = false;
                ok()
            }
            (b"select", Some(db)) => {
                self.db = db[0] - b'0';
                ok()
            }
            (b"hello", Some(version)) => {
                self.resp3 = version == b"3";
                let start: &[u8] = if self.resp3 { b"%1\r\n" } else { b"*2\r\n" };
                vec![[start, &bulk(b"proto"), b":", version, b"\r\n"].concat()]
            }
            (b"client", Some(b"setname")) => {
                self.name = args[2].to_vec();
                ok()
            }
            (b"client", Some(b"getname")) if self.name.is_empty() => vec![null(false)],
            (b"client", Some(b"getname")) => vec![bulk(&self.name)],
            (b"client", Some(b"reply")) => {
                self.silent = args[2] == b"OFF";
                self.skip = args[2] == b"SKIP";
                ok()
            }
            (b"client", _) => ok(),
            (b"ping", text) if !self.resp3 && !self.channels.is_empty() => {
                vec![[b"*2\r\n", &bulk(b"pong")[..], &bulk(text.unwrap_or_default())].concat()]
            }
            (b"subscribe" | b"psubscribe", Some(channel)) => {
                self.channels.push([&name[..1], channel].concat());
                let confirmed = self.message(&name, channel, &format!(":{}\r\n", self.channels.len()));
                // A message follows at once.
                let message: &[u8] = if name[0] == b's' { b"message" } else { b"pmessage" };
                vec![confirmed, self.message(message, channel, "$2\r\nhi\r\n")]
            }
            (b"unsubscribe" | b"punsubscribe", Some(channel)) => {
                let kind = if name[0] == b'u' { b's' } else { b'p' };
                let channels = [&[kind][..], channel].concat();
                self.channels.retain(|known| *known != channels);
                vec![self.message(&name, channel, &format!(":{}\r\n", self.channels.len()))]
            }
            _ => vec![self.echo(&name, args)],
        }
    }

    fn message(&self, kind: &[u8], channel: &[u8], rest: &str) -> Vec<u8> {
        let start: &[u8] = if self.resp3 { b">3\r\n" } else { b"*3\r\n" };
        [start, &bulk(kind), &bulk(channel), rest.as_bytes()].concat()
    }

    fn echo(&self, name: &[u8], args: &[&[u8]]) -> Vec<u8> {
        let mut text: Vec<u8> = Vec::new();
        args[1..]
            .iter()
            .for_each(|arg| text.extend_from_slice(&arg[..arg.len().min(ECHOED)]));
        text.extend_from_slice(format!("@{}/{}", self.db, u8::from(self.resp3) + 2).as_bytes());
        match name {
            b"incr" => [b"-ERR ", &text[..], b"\r\n"].concat(),
            b"strlen" => bulk(&text.repeat(LARGE / text.len() + 1)),
            _ => bulk(&text),
        }
    }
}

/// One connection of the simulated Redis.
fn simulated(mut stream: UnixStream, number: usize) {
    let (mut input, mut scanner, mut state) = (Vec::new(), RequestScanner::default(), State::default());
    let mut chunk = [0; 4096];
    loop {
        let Ok(read @ 1..) = stream.read(&mut chunk) else {
            return;
        };
        input.extend_from_slice(&chunk[..read]);
        let (mut out, mut used, mut last) = (Vec::new(), 0, false);
        while !last {
            match scanner.scan(&input[used..]) {
                Ok(None) => break,
                Ok(Some(request)) => {
                    let args: Vec<&[u8]> = Args::new(&input[used..used + request.len]).collect();
                    used += request.len;
                    if args.iter().any(|arg| arg.ends_with(b"never")) {
                        continue;
                    }
                    if args.iter().any(|arg| arg.ends_with(b"lost")) && lose(args[args.len() - 1]) {
                        // In the middle of a reply, where there is one.
                        let _ = stream.write_all(&out[..out.len() - out.len().min(number % 4)]);
                        LOSSES.fetch_add(1, Relaxed);
                        return;
                    }
                    last = args[0] == b"QUIT";
                    out.extend(state.run(&args).concat());
                }
                Err(_) => {
                    out.extend_from_slice(REFUSED);
                    last = true;
                }
            }
        }
        input.drain(..used);
        // Every third connection writes in small pieces.
        let piece = if number.is_multiple_of(3) { 7 } else { out.len().max(1) };
        for piece in out.chunks(piece) {
            if stream.write_all(piece).is_err() {
                return;
            }
        }
        if last {
            return;
        }
    }
}

/// Whether the connection is to end here: only the first time.
fn lose(text: &[u8]) -> bool {
    LOST_AT.lock().expect("no thread panicked").insert(text.to_vec())
}

#[derive(Debug)]
struct Expected {
    frame: Vec<u8>,
    /// An error may come in its place, where a connection was lost.
    may_fail: bool,
}

struct Client {
    stream: UnixStream,
    sent: Vec<u8>,
    queued: usize,
    got: Vec<u8>,
    expected: Vec<Expected>,
    state: State,
    /// Nothing more comes: QUIT, or a protocol error.
    over: bool,
    /// It left without a word.
    gone: bool,
}

impl Client {
    fn new(world: &World) -> Self {
        let stream = UnixStream::connect(&world.listen).expect("the proxy listens");
        stream.set_nonblocking(true).expect("a socket that does not block");
        Client {
            stream,
            sent: Vec::new(),
            queued: 0,
            got: Vec::new(),
            expected: Vec::new(),
            state: State::default(),
            over: false,
            gone: false,
        }
    }

    fn queue(&mut self, args: &[&str]) {
        let start = self.sent.len();
        encode(args, &mut self.sent);
        self.queued += self.sent.len() - start;
        // What the proxy keeps no more of is not repeated.
        let may_fail = self.queued > KEPT || !matches!(args[0], "GET" | "STRLEN");
        let args: Vec<&[u8]> = args.iter().map(|arg| arg.as_bytes()).collect();
        let frames = self.state.run(&args);
        self.expected
            .extend(frames.into_iter().map(|frame| Expected { frame, may_fail }));
    }

    fn command(&mut self, kind: u8, tag: &str) {
        let session = format!("session:{:0<32}", tag.replace(':', "z"));
        let in_transaction = self.state.queued.is_some();
        let subscriber = !self.state.channels.is_empty();
        match kind % 32 {
            28 if kind >= RARE => {
                self.queue(&["QUIT"]);
                self.over = true;
            }
            29 if kind >= RARE && !self.state.silent => {
                self.sent.extend_from_slice(b"*1\r\n:1\r\n");
                let frame = REFUSED.to_vec();
                self.expected.push(Expected { frame, may_fail: true });
                self.over = true;
            }
            30 if kind >= RARE => {
                if !subscriber && !in_transaction {
                    self.queue(&["BLPOP", "never", "0"]);
                }
                self.gone = true;
            }
            27 => self.queue(&["RESET"]),
            // A subscriber of RESP2 may do little else.
            11 if subscriber => {
                let channel = self.state.channels[0].clone();
                let command = if channel[0] == b's' {
                    "UNSUBSCRIBE"
                } else {
                    "PUNSUBSCRIBE"
                };
                self.queue(&[command, &String::from_utf8_lossy(&channel[1..])]);
            }
            11 | 23 if !in_transaction && !self.state.silent => {
                self.queue(&[if kind & 32 == 0 { "SUBSCRIBE" } else { "PSUBSCRIBE" }, tag]);
            }
            _ if subscriber => self.queue(&["PING", tag]),
            3 => self.queue(&["SETEX", &session, "100", tag]),
            4 => self.queue(&["DEL", &session]),
            5 => self.queue(&["INCR", tag]),
            6 => self.queue(&["EVAL", "return 1", "0", tag]),
            7 => self.queue(&["BLPOP", tag, "0"]),
            8 => self.queue(&["no-such-command", tag]),
            9 => self.queue(&["PING", tag]),
            12 if in_transaction => self.queue(&["EXEC"]),
            13 => self.queue(&["STRLEN", tag]),
            14 => self.queue(&["DISCARD"]),
            15 if !in_transaction => self.queue(&["EXEC"]),
            22 => self.queue(&["SET", tag, &"v".repeat(LARGE)]),
            26 if kind >= RARE => self.queue(&["GET", &format!("{tag}lost")]),
            _ if in_transaction => self.queue(&["GET", tag]),
            10 => self.queue(&["SELECT", if kind & 32 == 0 { "1" } else { "0" }]),
            12 => self.queue(&["MULTI"]),
            16 => self.queue(&["CLIENT", "SETNAME", &tag.replace(':', "-")]),
            17 => self.queue(&["CLIENT", "GETNAME"]),
            18 => self.queue(&["HELLO", if kind & 32 == 0 { "3" } else { "2" }]),
            19 => self.queue(&["WATCH", &format!("{tag}{}", if kind & 32 == 0 { "dirty" } else { "" })]),
            20 => self.queue(&["UNWATCH"]),
            21 => self.queue(&["CLIENT", "REPLY", if kind & 32 == 0 { "OFF" } else { "ON" }]),
            24 => {
                self.queue(&["CLIENT", "REPLY", "SKIP"]);
                self.queue(&["ECHO", tag]);
            }
            25 => self.queue(&["ECHO", tag]),
            _ => self.queue(&["GET", tag]),
        }
    }

    /// Sends, and reads what is there, so that neither side has to wait for the other's buffers. `false` where the
    /// connection has ended.
    fn send(&mut self, cut: usize) -> bool {
        let bytes: Vec<u8> = self.sent.drain(..cut).collect();
        let (mut rest, began) = (&bytes[..], Instant::now());
        while !rest.is_empty() {
            match self.stream.write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !self.read_some() {
                        return false;
                    }
                    thread::sleep(Duration::from_micros(50));
                    assert!(began.elapsed() < PATIENCE, "the proxy takes no more bytes");
                }
                Err(_) => return false,
            }
        }
        true
    }

    /// Reads what is there; `false` where the connection has ended.
    fn read_some(&mut self) -> bool {
        let mut chunk = [0; 64 * 1024];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return false,
                Ok(read) => self.got.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(_) => return false,
            }
        }
    }

    /// Reads until as many frames as expected are there, or the end of the connection: the frames, and whether it ended.
    fn frames(&mut self, until_the_end: bool) -> (Vec<Vec<u8>>, bool) {
        let (mut frames, mut used, mut scanner) = (Vec::new(), 0, ReplyScanner::default());
        let began = Instant::now();
        self.stream.set_nonblocking(false).expect("a socket that blocks");
        let short = Some(Duration::from_millis(100));
        self.stream.set_read_timeout(short).expect("a timeout");
        loop {
            while let Some(reply) = scanner.scan(&self.got[used..]).expect("replies are RESP") {
                frames.push(self.got[used..used + reply.len].to_vec());
                used += reply.len;
            }
            if frames.len() >= self.expected.len() && !until_the_end {
                self.stream.set_nonblocking(true).expect("a socket that does not block");
                return (frames, false);
            }
            let mut chunk = [0; 64 * 1024];
            match self.stream.read(&mut chunk) {
                Ok(read @ 1..) => self.got.extend_from_slice(&chunk[..read]),
                // libFuzzer's own alarm.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => assert!(
                    began.elapsed() < PATIENCE,
                    "nothing within {PATIENCE:?}, after {} replies of {}",
                    frames.len(),
                    self.expected.len()
                ),
                _ => return (frames, true),
            }
        }
    }

    /// Every reply must be this client's own.
    fn check(&mut self, stormy: impl Fn() -> bool) {
        if self.gone {
            return;
        }
        let mut alive = self.send(self.sent.len());
        if alive && !self.over {
            if self.frames(false).1 {
                alive = false;
            } else {
                // One more command and its reply: nothing may stand between, and nothing follow.
                if self.state.silent {
                    self.queue(&["CLIENT", "REPLY", "ON"]);
                }
                self.queue(&["PING", "the-end"]);
                alive = self.send(self.sent.len()) && !self.frames(false).1;
            }
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        let (frames, _) = self.frames(true);
        let stormy = stormy();
        for (number, frame) in frames.iter().enumerate() {
            let Some(expected) = self.expected.get(number) else {
                panic!("a reply that nobody asked for: {}", frame.escape_ascii());
            };
            let failed = stormy && expected.may_fail && frame.starts_with(b"-ERR sessionferry:");
            assert!(
                *frame == expected.frame || failed,
                "reply {number} of {}: got\n{}\nand not\n{}",
                self.expected.len(),
                shown(frame),
                shown(&expected.frame)
            );
        }
        assert!(
            frames.len() == self.expected.len() && (alive || self.over) || stormy,
            "the connection ended after {} replies of {}",
            frames.len(),
            self.expected.len()
        );
    }
}

fn shown(bytes: &[u8]) -> String {
    bytes[..bytes.len().min(200)].escape_ascii().to_string()
}

/// Two bytes a command: who sends what, and how the bytes are cut.
pub fn session(data: &[u8]) {
    let world = &*WORLD;
    let run = world.runs.fetch_add(1, Relaxed);
    let losses = world.losses.swap(LOSSES.load(Relaxed), Relaxed);
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::new(world)).collect();
    for (number, pair) in data.chunks_exact(2).take(MAX_COMMANDS).enumerate() {
        let who = usize::from(pair[0]) % CLIENTS;
        let client = &mut clients[who];
        if client.over || client.gone {
            continue;
        }
        client.command(pair[1], &format!("r{run}:c{who}:n{number}"));
        // The whole, a part, or nothing yet; the rest goes with the next, or at the end.
        let cut = match pair[0] >> 5 {
            0..=3 => client.sent.len(),
            4 | 5 => client.sent.len() / 2,
            6 => client.sent.len().min(1),
            _ => 0,
        };
        client.send(cut);
        if client.gone {
            let _ = client.stream.shutdown(Shutdown::Both);
        }
    }
    for client in &mut clients {
        client.check(|| LOSSES.load(Relaxed) != losses);
    }
}
