//! The same conversation with a Redis and, through the proxy, with its twin.

use super::*;

/// What was asked and what came back.
pub(super) type Transcript = Vec<(String, Vec<u8>)>;

pub(super) struct Pair {
    pub(super) proxy: Option<Proxy>,
    pub(super) direct: RedisServer,
    pub(super) behind: RedisServer,
    _target: RedisServer,
}

impl Pair {
    pub(super) fn start() -> Pair {
        Pair::start_with(&[])
    }

    pub(super) fn start_with(args: &[&str]) -> Pair {
        let (direct, behind, target) = (
            RedisServer::start(args),
            RedisServer::start(args),
            RedisServer::start(&[]),
        );
        let options = ProxyOptions::between(&behind, &target);
        let proxy = std::env::var_os("SESSIONFERRY_TEST_WITHOUT_PROXY")
            .is_none()
            .then(|| Proxy::start(options));
        Pair {
            proxy,
            direct,
            behind,
            _target: target,
        }
    }

    pub(super) fn proxied(&self) -> String {
        self.proxy
            .as_ref()
            .map_or_else(|| self.behind.address(), Proxy::address)
    }

    pub(super) fn flush(&self) {
        for server in [&self.direct, &self.behind] {
            server.ask::<()>(&["FLUSHALL"]);
            server.ask::<()>(&["FUNCTION", "FLUSH"]);
            server.ask::<()>(&["SCRIPT", "FLUSH"]);
        }
    }

    pub(super) fn compare(&self, scenario: impl Fn(&str) -> Transcript) {
        self.flush();
        same(&scenario(&self.direct.address()), &scenario(&self.proxied()));
    }
}

pub(super) fn same(direct: &Transcript, proxied: &Transcript) {
    for ((asked, left), (_, right)) in direct.iter().zip(proxied) {
        let (left, right) = (masked(asked, left), masked(asked, right));
        assert!(
            left == right,
            "asked {asked}\n  direct:  {}\n  proxied: {}",
            shown(&left),
            shown(&right)
        );
    }
    assert_eq!(direct.len(), proxied.len(), "one of them answered more often");
    assert!(!direct.is_empty(), "nothing was compared");
}

/// Replies that differ between any two servers: only their type is compared. A `~` before a command says so.
pub(super) fn masked(asked: &str, reply: &[u8]) -> Vec<u8> {
    if asked.starts_with('~') {
        return reply[..1].to_vec();
    }
    if asked.to_ascii_uppercase().starts_with("HELLO") {
        let mark = b"$2\r\nid\r\n:";
        if let Some(at) = reply.windows(mark.len()).position(|window| window == mark) {
            let number = at + mark.len();
            let length = reply[number..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            return [&reply[..number], &reply[number + length..]].concat();
        }
    }
    reply.to_vec()
}

/// `SET "a b" c` as the arguments of a command; `\xHH`, `\r` and `\n` inside quotes.
pub(super) fn words(line: &str) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut rest = line.trim_start_matches('~').trim();
    while !rest.is_empty() {
        let mut word = Vec::new();
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut bytes = quoted.bytes().enumerate();
            loop {
                match bytes.next().expect("a closing quote") {
                    (at, b'"') => {
                        rest = quoted[at + 1..].trim_start();
                        break;
                    }
                    (_, b'\\') => match bytes.next().unwrap() {
                        (_, b'r') => word.push(b'\r'),
                        (_, b'n') => word.push(b'\n'),
                        (at, b'x') => {
                            word.push(u8::from_str_radix(&quoted[at + 1..at + 3], 16).unwrap());
                            bytes.nth(1);
                        }
                        (_, other) => word.push(other),
                    },
                    (_, byte) => word.push(byte),
                }
            }
        } else {
            let end = rest.find(' ').unwrap_or(rest.len());
            word.extend_from_slice(&rest.as_bytes()[..end]);
            rest = rest[end..].trim_start();
        }
        words.push(word);
    }
    words
}

pub(super) fn lines(text: &str) -> Vec<&str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect()
}

/// How the bytes of a conversation are cut into writes.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Cut {
    /// Each command alone, its reply awaited.
    OneByOne,
    /// All in one write.
    Pipeline,
    /// Every byte a write of its own.
    Bytes,
    /// Writes of a few bytes that end anywhere.
    Pieces,
}

/// A conversation of one client in which every command has one reply.
pub(super) fn talk(address: &str, protocol: u8, cut: Cut, asked: &[&str]) -> Transcript {
    let mut client = Raw::connect(address);
    let mut transcript = Transcript::new();
    let hello = format!("HELLO {protocol}");
    transcript.push((hello.clone(), client.ask(&words(&hello))));
    let commands: Vec<Vec<u8>> = asked.iter().map(|line| command(&words(line))).collect();
    if cut == Cut::OneByOne {
        for (line, bytes) in asked.iter().zip(&commands) {
            client.send(bytes);
            transcript.push(((*line).to_owned(), client.frame()));
        }
    } else {
        let all = commands.concat();
        let mut writer = client.writer();
        scope(|threads| {
            threads.spawn(move || match cut {
                Cut::Bytes => all.chunks(1).for_each(|byte| writer.write_all(byte).unwrap()),
                Cut::Pieces => {
                    let mut rest = &all[..];
                    let mut size = 1;
                    while !rest.is_empty() {
                        let (piece, after) = rest.split_at(size.min(rest.len()));
                        writer.write_all(piece).unwrap();
                        rest = after;
                        size = size * 7 % 61 + 1;
                        if size % 9 == 0 {
                            sleep(Duration::from_micros(300));
                        }
                    }
                }
                _ => writer.write_all(&all).unwrap(),
            });
            for line in asked {
                transcript.push(((*line).to_owned(), client.frame()));
            }
        });
    }
    transcript.push((
        "what nobody asked for".to_owned(),
        client.unasked(Duration::from_millis(100)),
    ));
    transcript
}
