//! Two servers, one of them behind the proxy, and a sequence played to both at once.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    thread::sleep,
    time::{Duration, Instant},
};

use super::{
    masks::Masks,
    step::{Action, Cut, Step, Then, Words, line},
    support::{Proxy, ProxyOptions, Raw, RedisServer, Software, resp::shown},
    value,
};

/// How long a reply through the proxy may come after the direct one.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How long a command that was to be awaited may take: more than the longest timeout that the generator gives.
const LONGEST_WAIT: Duration = Duration::from_millis(500);
/// How long bytes through the proxy may need to have their effect, where no reply tells.
const UNTOLD: Duration = Duration::from_millis(4);

/// Users that sequences make.
pub const USERS: &[&str] = &["ann", "bob"];

/// Where the two sides parted.
pub struct Difference {
    pub step: usize,
    pub text: String,
}

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    frames: Vec<Vec<u8>>,
    /// Frames found equal so far.
    compared: usize,
    closed: bool,
}

impl Connection {
    fn open(address: &str) -> Connection {
        let stream = TcpStream::connect(address).unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"));
        stream.set_nodelay(true).unwrap();
        stream.set_nonblocking(true).unwrap();
        Connection {
            stream,
            buffer: Vec::new(),
            frames: Vec::new(),
            compared: 0,
            closed: false,
        }
    }

    fn write(&mut self, mut bytes: &[u8]) {
        let began = Instant::now();
        while !bytes.is_empty() && !self.closed {
            match self.stream.write(bytes) {
                Ok(length) => bytes = &bytes[length..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.drain();
                    if began.elapsed() > PATIENCE {
                        return; // a server that takes no more: what it answered so far is compared
                    }
                    sleep(Duration::from_micros(100));
                }
                Err(_) => {
                    self.drain();
                    return;
                }
            }
        }
    }

    /// Takes what is there; true where that was anything.
    fn drain(&mut self) -> bool {
        let mut chunk = [0; 1 << 16];
        let mut any = false;
        while !self.closed {
            match self.stream.read(&mut chunk) {
                Ok(0) => (self.closed, any) = (true, true),
                Ok(length) => {
                    self.buffer.extend_from_slice(&chunk[..length]);
                    any = true;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => (self.closed, any) = (true, true),
            }
        }
        let mut start = 0;
        while let Ok(Some(end)) = value::end(&self.buffer[start..]) {
            self.frames.push(self.buffer[start..start + end].to_vec());
            start += end;
        }
        self.buffer.drain(..start);
        any
    }

    /// Whole replies, bytes of one that is not whole, and the end.
    fn state(&self) -> (usize, usize, bool) {
        (self.frames.len(), self.buffer.len(), self.closed)
    }
}

#[derive(Default)]
struct Side {
    connections: Vec<Option<Connection>>,
    ids: Vec<Option<Vec<u8>>>,
}

impl Side {
    fn drain(&mut self) -> bool {
        let mut any = false;
        for connection in self.connections.iter_mut().flatten() {
            any |= connection.drain();
        }
        any
    }

    fn states(&self) -> Vec<Option<(usize, usize, bool)>> {
        self.connections
            .iter()
            .map(|connection| connection.as_ref().map(Connection::state))
            .collect()
    }

    fn at(&mut self, number: usize, address: &str) -> &mut Connection {
        if self.connections.len() <= number {
            self.connections.resize_with(number + 1, || None);
            self.ids.resize(number + 1, None);
        }
        let slot = &mut self.connections[number];
        if slot.as_ref().is_some_and(|connection| connection.closed) {
            *slot = None;
        }
        slot.get_or_insert_with(|| Connection::open(address))
    }

    /// The words with the ids of this side in them.
    fn named(&self, words: &Words) -> Words {
        let name = |word: &Vec<u8>| {
            let number: usize = std::str::from_utf8(word.strip_prefix(b"@id:")?.strip_suffix(b"@")?)
                .ok()?
                .parse()
                .ok()?;
            self.ids.get(number).cloned().flatten()
        };
        words
            .iter()
            .map(|word| name(word).unwrap_or_else(|| word.clone()))
            .collect()
    }

    fn act(&mut self, step: &Step, address: &str) {
        match &step.action {
            Action::Commands(commands, cut) => {
                let bytes: Vec<u8> = commands
                    .iter()
                    .flat_map(|words| super::support::command(&self.named(words)))
                    .collect();
                let connection = self.at(step.connection, address);
                match cut {
                    Cut::Whole => connection.write(&bytes),
                    Cut::Bytes => bytes.chunks(1).for_each(|byte| connection.write(byte)),
                    Cut::Pieces => {
                        let (mut rest, mut size) = (&bytes[..], 1);
                        while !rest.is_empty() {
                            let (piece, after) = rest.split_at(size.min(rest.len()));
                            connection.write(piece);
                            rest = after;
                            size = size * 7 % 61 + 1;
                        }
                    }
                }
            }
            Action::Raw(bytes) => self.at(step.connection, address).write(bytes),
            Action::Half => {
                let _ = self.at(step.connection, address).stream.shutdown(Shutdown::Write);
            }
            Action::Close => {
                if let Some(slot) = self.connections.get_mut(step.connection) {
                    *slot = None;
                }
            }
            Action::Sleep(_) => {}
        }
    }
}

pub struct Pair {
    direct: RedisServer,
    behind: RedisServer,
    _target: RedisServer,
    proxy: Option<Proxy>,
    /// Instead of the proxy, for tests of the test.
    instead: Option<String>,
    control: [Raw; 2],
}

impl Pair {
    pub fn start() -> Pair {
        Pair::start_with(Proxied::Yes)
    }

    pub fn valkey() -> Pair {
        Pair::start_as(Software::Valkey, Proxied::Yes)
    }

    pub fn start_with(proxied: Proxied) -> Pair {
        Pair::start_as(Software::Redis, proxied)
    }

    fn start_as(software: Software, proxied: Proxied) -> Pair {
        let args = ["--enable-debug-command", "local", "--slowlog-log-slower-than", "-1"];
        let (direct, behind, target) = (
            RedisServer::start_as(software, &args),
            RedisServer::start_as(software, &args),
            RedisServer::start_as(software, &[]),
        );
        let proxy = matches!(proxied, Proxied::Yes).then(|| Proxy::start(ProxyOptions::between(&behind, &target)));
        let instead = match proxied {
            Proxied::Yes => None,
            Proxied::No => Some(behind.address()),
            Proxied::Through(relay) => Some(relay(behind.address())),
        };
        let control = [Raw::connect(&direct.address()), Raw::connect(&behind.address())];
        Pair {
            direct,
            behind,
            _target: target,
            proxy,
            instead,
            control,
        }
    }

    fn proxied(&self) -> String {
        match (&self.instead, &self.proxy) {
            (Some(address), _) => address.clone(),
            (None, Some(proxy)) => proxy.address(),
            (None, None) => self.behind.address(),
        }
    }

    /// One command past the proxy, for both servers.
    fn both(&mut self, words: &[&str]) -> [Vec<u8>; 2] {
        let [direct, behind] = &mut self.control;
        [direct.ask(words), behind.ask(words)]
    }

    /// What `COMMAND DOCS` and `COMMAND` of the server itself say.
    pub fn commands(&mut self) -> (Vec<u8>, Vec<u8>) {
        let control = &mut self.control[0];
        (control.ask(&["COMMAND", "DOCS"]), control.ask(&["COMMAND", "LIST"]))
    }

    /// Whether the server says nothing when AUTH fails behind a command whose reply is not yet written.
    pub fn is_mute(&mut self) -> bool {
        let control = &mut self.control[0];
        control.send(b"PING\r\nAUTH nobody wrong\r\nECHO last\r\n");
        let second = control.frames(2).remove(1);
        let mute = !second.starts_with(b"-");
        if !mute {
            control.frame();
        }
        mute
    }

    /// Both servers as they were at first.
    fn reset(&mut self) {
        self.both(&["FLUSHALL"]);
        self.both(&["FUNCTION", "FLUSH"]);
        self.both(&["SCRIPT", "FLUSH"]);
        self.both(&[&["ACL", "DELUSER"], USERS].concat());
        self.both(&["ACL", "LOG", "RESET"]);
        self.both(&["CONFIG", "SET", "maxmemory", "0", "maxmemory-policy", "noeviction"]);
    }

    /// How many clients are blocked.
    fn waiting(&mut self) -> [String; 2] {
        self.both(&["INFO", "clients"]).map(|info| {
            let text = String::from_utf8_lossy(&info).into_owned();
            let (_, rest) = text.split_once("blocked_clients:").unwrap();
            rest.lines().next().unwrap().to_owned()
        })
    }

    /// Clients that have left block nothing.
    fn left(&mut self) -> Result<(), String> {
        let began = Instant::now();
        loop {
            let [direct, proxied] = self.waiting();
            if direct == "0" && proxied == "0" {
                return Ok(());
            }
            if began.elapsed() > Duration::from_secs(1) {
                for control in &mut self.control {
                    let list = control.ask(&["CLIENT", "LIST"]);
                    let list = String::from_utf8_lossy(&list).into_owned();
                    for blocked in list.lines().filter(|line| line.contains(" flags=b ")) {
                        let id = blocked.split(' ').find_map(|field| field.strip_prefix("id=")).unwrap();
                        control.ask(&["CLIENT", "KILL", "ID", id]);
                    }
                }
                return Err(format!(
                    "every client has left, and still blocked are {direct} directly, {proxied} through the proxy"
                ));
            }
            sleep(Duration::from_micros(200));
        }
    }

    /// Plays the sequence; what came first on any connection that was not the same is an error.
    pub fn play(&mut self, steps: &[Step]) -> Result<(), Difference> {
        self.reset();
        let result = self.played(steps);
        if result.is_err() {
            self.both(&["CLIENT", "UNPAUSE"]);
            let _ = self.left();
        }
        result
    }

    fn played(&mut self, steps: &[Step]) -> Result<(), Difference> {
        let addresses = [self.direct.address(), self.proxied()];
        let mut sides = [Side::default(), Side::default()];
        let mut masks: Vec<Masks> = Vec::new();
        for (number, step) in steps.iter().enumerate() {
            let before: Vec<usize> = sides[0].states().iter().map(|state| state.map_or(0, |s| s.0)).collect();
            if masks.len() <= step.connection {
                masks.resize_with(step.connection + 1, Masks::default);
            }
            let gone = matches!(step.action, Action::Close)
                || sides[0]
                    .connections
                    .get(step.connection)
                    .is_none_or(|slot| slot.as_ref().is_none_or(|connection| connection.closed));
            if gone {
                masks[step.connection] = Masks::default();
            }
            masks[step.connection].note(step.commands());
            if let Action::Raw(bytes) = &step.action {
                let inline: Vec<Words> = bytes
                    .split(|byte| *byte == b'\n')
                    .map(|line| line.split(u8::is_ascii_whitespace).map(<[u8]>::to_vec).collect())
                    .collect();
                masks[step.connection].note(&inline);
            }
            for (side, address) in sides.iter_mut().zip(&addresses) {
                side.act(step, address);
            }
            if let Action::Sleep(time) = step.action {
                sleep(Duration::from_millis(time));
            }
            if step.then == Then::AtOnce {
                continue;
            }
            let fail = |text| Difference { step: number, text };
            let had = if gone {
                0
            } else {
                before.get(step.connection).copied().unwrap_or(0)
            };
            self.settle(&mut sides, step, had);
            compare(&mut sides, &masks).map_err(fail)?;
            if let [only] = step.commands()
                && line(only).eq_ignore_ascii_case("CLIENT ID")
            {
                for side in &mut sides {
                    let frame = side.connections[step.connection].as_ref().and_then(|c| c.frames.last());
                    side.ids[step.connection] = frame
                        .filter(|frame| frame.starts_with(b":"))
                        .map(|frame| frame[1..frame.len() - 2].to_vec());
                }
            }
            for (number, masks) in masks.iter_mut().enumerate() {
                let quiet = sides[0]
                    .connections
                    .get(number)
                    .and_then(Option::as_ref)
                    .is_none_or(|connection| connection.frames.len() >= masks.asked);
                masks.answered(quiet);
            }
        }
        // What nobody asked for would come late.
        sleep(UNTOLD);
        self.ping();
        sides[0].drain();
        alike(&mut sides);
        let late = compare(&mut sides, &masks);
        drop(sides);
        self.both(&["CLIENT", "UNPAUSE"]);
        late.and(self.left()).map_err(|text| Difference {
            step: steps.len() - 1,
            text: format!("after the last step: {text}"),
        })
    }

    /// Redis has taken, done and answered what was sent before when it has answered twice to somebody else.
    fn ping(&mut self) {
        let control = &mut self.control[0];
        control.ask(&["PING"]);
        control.ask(&["PING"]);
    }

    fn settle(&mut self, sides: &mut [Side; 2], step: &Step, had: usize) {
        let began = Instant::now();
        loop {
            self.ping();
            if sides[0].drain() {
                continue;
            }
            let answered = sides[0].connections.get(step.connection).is_none_or(|slot| {
                slot.as_ref().is_none_or(|connection| {
                    connection.closed || connection.frames.len() >= had + step.commands().len()
                })
            });
            if answered {
                break;
            }
            if step.then == Then::Answered && began.elapsed() < LONGEST_WAIT {
                sleep(Duration::from_millis(1));
                continue;
            }
            break;
        }
        if !alike(sides) {
            return;
        }
        // No reply tells when the proxy has passed these on.
        let untold = match &step.action {
            Action::Commands(commands, _) => {
                let connection = sides[0].connections[step.connection].as_ref();
                connection.is_none_or(|connection| connection.closed || connection.frames.len() < had + commands.len())
            }
            Action::Sleep(_) => false,
            Action::Raw(_) | Action::Half | Action::Close => true,
        };
        if untold {
            sleep(UNTOLD);
            let began = Instant::now();
            loop {
                let [direct, behind] = self.waiting();
                if direct == behind || began.elapsed() > Duration::from_millis(300) {
                    break;
                }
                sleep(Duration::from_millis(1));
            }
        }
    }
}

/// Waits until both sides have got as much; false when they have not for as long as is waited. A blocked command may end
/// between a look at the one and a look at the other.
fn alike(sides: &mut [Side; 2]) -> bool {
    let began = Instant::now();
    loop {
        sides[1].drain();
        if sides[0].states() == sides[1].states() {
            return true;
        }
        if began.elapsed() > PATIENCE {
            return false;
        }
        sleep(Duration::from_micros(50));
        sides[0].drain();
    }
}

/// What stands between the client and the second server.
pub enum Proxied {
    Yes,
    No,
    /// Given the server's address, the address to talk to.
    Through(fn(String) -> String),
}

fn compare(sides: &mut [Side; 2], masks: &[Masks]) -> Result<(), String> {
    let [direct, proxied] = sides;
    for (number, (left, right)) in direct.connections.iter_mut().zip(&mut proxied.connections).enumerate() {
        let (Some(left), Some(right)) = (left, right) else {
            continue;
        };
        let news = |connection: &Connection| connection.frames[connection.compared..].to_vec();
        let (mut ours, mut theirs) = (news(left), news(right));
        masks[number].align(&mut ours, &mut theirs);
        for (at, (a, b)) in ours.iter().zip(&theirs).enumerate() {
            if a != b && !masks[number].allows(a, b) {
                return Err(format!(
                    "connection {number}, reply {} of the step\n  direct:  {}\n  proxied: {}",
                    at + 1,
                    shown(a),
                    shown(b)
                ));
            }
        }
        let more = |frames: &[Vec<u8>], than: usize| {
            frames
                .iter()
                .skip(than)
                .map(|frame| shown(frame))
                .collect::<Vec<_>>()
                .join(" ")
        };
        if ours.len() != theirs.len() {
            return Err(format!(
                "connection {number}, {} and {} replies\n  direct has more:  {}\n  proxied has more: {}",
                ours.len(),
                theirs.len(),
                more(&ours, theirs.len()),
                more(&theirs, ours.len())
            ));
        }
        if left.closed != right.closed {
            return Err(format!(
                "connection {number} is closed: {} directly, {} through the proxy",
                left.closed, right.closed
            ));
        }
        if left.buffer != right.buffer && !masks[number].allows_part(&left.buffer, &right.buffer) {
            return Err(format!(
                "connection {number}, part of a reply\n  direct:  {}\n  proxied: {}",
                shown(&left.buffer),
                shown(&right.buffer)
            ));
        }
        left.compared = left.frames.len();
        right.compared = right.frames.len();
    }
    Ok(())
}
