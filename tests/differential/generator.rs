//! Draws a sequence: the same one for the same number.

use std::collections::HashSet;

use super::{
    docs::Documented,
    left_out,
    rng::Rng,
    step::{Action, Cut, Step, Then, Words},
    vocabulary::{CHANNELS, LIBRARY, RAW, SCRIPTS},
};

pub struct Generator<'a> {
    pub(super) commands: &'a [Documented],
    pub(super) rng: Rng,
    /// Whether the server says nothing when AUTH fails behind a command whose reply is not yet written (Redis 8.0,
    /// Valkey 8): what is then missing depends on which connection the other one was on.
    mute: bool,
    connections: usize,
    /// Connections whose replies may be off. QUIT is not sent there: Redis closes such a connection only if an earlier
    /// reply happens to be still unwritten, and the two servers need not agree on that.
    silent: HashSet<usize>,
    /// A connection with commands behind one that may block. What wakes it may itself be one that blocks: whether its own
    /// next command or the woken one's comes first, Redis promises nobody.
    behind: Option<usize>,
    /// Connections that may be blocked. HTTP is not sent there: Redis ends a connection for it before what wakes it is written.
    waiting: HashSet<usize>,
    steps: Vec<Step>,
}

pub fn words(text: &str) -> Words {
    text.split(' ').map(|word| word.as_bytes().to_vec()).collect()
}

impl<'a> Generator<'a> {
    pub fn new(commands: &'a [Documented], number: u64, mute: bool) -> Generator<'a> {
        let mut rng = Rng::new(number);
        let connections = rng.between(1, 4);
        Generator {
            commands,
            rng,
            mute,
            connections,
            silent: HashSet::new(),
            behind: None,
            waiting: HashSet::new(),
            steps: Vec::new(),
        }
    }

    pub fn sequence(mut self) -> Vec<Step> {
        for connection in 0..self.connections {
            match self.rng.below(5) {
                0 | 1 => self.one(connection, "HELLO 3"),
                2 => self.one(connection, "HELLO 2"),
                _ => {}
            }
        }
        if self.rng.percent(70) {
            self.fill();
        }
        let length = self.rng.between(3, 25);
        while self.steps.len() < length {
            let connection = self.rng.below(self.connections);
            match self.rng.below(100) {
                0..38 => self.plain(connection),
                38..50 => self.transaction(connection),
                50..58 => self.blocking(connection),
                58..68 => self.publishing(connection),
                68..76 => self.client(connection),
                76..81 => self.scripts(connection),
                81..85 => {
                    let raw = self.rng.pick(RAW).to_vec();
                    let http = raw.starts_with(b"Host:") || raw.starts_with(b"POST");
                    if !(http && self.waiting.contains(&connection)) {
                        self.push(connection, Action::Raw(raw), Then::Quiet);
                    }
                }
                85..88 => {
                    let action = if self.rng.percent(50) {
                        Action::Close
                    } else {
                        Action::Half
                    };
                    self.push(connection, action, Then::Quiet);
                }
                88..95 => self.state(connection),
                _ => self.burst(),
            }
        }
        self.steps
    }

    fn push(&mut self, connection: usize, action: Action, then: Then) {
        self.steps.push(Step {
            connection,
            action,
            then,
        });
    }

    fn send(&mut self, connection: usize, mut commands: Vec<Words>, mut then: Then) {
        commands.retain(|words| {
            let is = |at: usize, word: &[u8]| words.get(at).is_some_and(|is: &Vec<u8>| is.eq_ignore_ascii_case(word));
            if is(0, b"client") && is(1, b"reply") {
                self.silent.insert(connection);
            }
            let unsure = is(0, b"quit") && self.silent.contains(&connection);
            !unsure && left_out::reason(words).is_none()
        });
        let lower = |word: Option<&Vec<u8>>| word.map(|word| word.to_ascii_lowercase()).unwrap_or_default();
        if self.mute && commands.len() > 1 {
            commands.retain(|words| {
                lower(words.first()) != b"auth" && !words.iter().any(|word| word.eq_ignore_ascii_case(b"auth"))
            });
        }
        const WAITING: &[&[u8]] = &[
            b"blpop",
            b"brpop",
            b"blmove",
            b"blmpop",
            b"bzpopmin",
            b"bzpopmax",
            b"bzmpop",
            b"brpoplpush",
            b"wait",
            b"xread",
            b"xreadgroup",
        ];
        let may_block = |words: &Words| WAITING.contains(&&lower(words.first())[..]);
        if commands.iter().any(may_block) {
            self.waiting.insert(connection);
        }
        if let Some(at) = commands.iter().position(may_block)
            && at + 1 < commands.len()
            && *self.behind.get_or_insert(connection) != connection
        {
            commands.truncate(at + 1);
        }
        let waits = |words: &Words| {
            may_block(words)
                && words
                    .iter()
                    .any(|word| [b"0.02".as_slice(), b"0.05", b"10", b"20", b"30"].contains(&&word[..]))
        };
        if commands.iter().any(waits) {
            then = Then::Answered; // a time that runs out later would do so at another moment on each side
        }
        let pauses = |words: &Words| lower(words.first()) == b"client" && lower(words.get(1)) == b"pause";
        let paused = commands.iter().any(pauses);
        if paused {
            commands.retain(pauses);
            then = Then::AtOnce;
        }
        if commands.is_empty() {
            return;
        }
        let cut = match self.rng.below(10) {
            0 => Cut::Bytes,
            1 | 2 => Cut::Pieces,
            _ => Cut::Whole,
        };
        self.push(connection, Action::Commands(commands, cut), then);
        if paused {
            let other = (connection + 1) % self.connections;
            let meanwhile = vec![words(&format!("SET paused{other} 1")), words("GET s1")];
            self.push(other, Action::Commands(meanwhile, Cut::Whole), Then::AtOnce);
            self.push(connection, Action::Sleep(60), Then::Quiet);
        }
    }

    fn one(&mut self, connection: usize, line: &str) {
        self.send(connection, vec![words(line)], Then::Quiet);
    }

    /// Keys of every type, so that most commands find what they are about.
    fn fill(&mut self) {
        let all = [
            "SET s1 value",
            "SET n1 10",
            "RPUSH l1 a b c",
            "HSET h1 f1 v1 f2 2",
            "SADD t1 1 2 3",
            "SADD t2 2 3 4",
            "SADD t3 a",
            "ZADD z1 1 a 2 b 3 c",
            "ZADD z2 1.5 b 2.5 d",
            "XADD x1 1-1 f v",
            "XADD x1 2-1 f w",
            "XGROUP CREATE x1 group1 0",
            "SETBIT b1 7 1",
            "PFADD p1 a b c",
            "GEOADD g1 13.361389 38.115556 m1 15.087269 37.502669 m2",
        ];
        self.send(0, all.iter().map(|line| words(line)).collect(), Then::Quiet);
    }

    fn plain(&mut self, connection: usize) {
        let count = match self.rng.below(20) {
            0 => self.rng.between(30, 200),
            1..6 => self.rng.between(5, 12),
            _ => self.rng.between(1, 3),
        };
        let commands = (0..count).map(|_| self.command()).collect();
        self.send(connection, commands, Then::Quiet);
    }

    fn transaction(&mut self, connection: usize) {
        let mut commands = Vec::new();
        if self.rng.percent(40) {
            let key = String::from_utf8(self.key("string")).unwrap();
            commands.push(words(&format!("WATCH {key}")));
            if self.rng.percent(50) {
                self.send(connection, std::mem::take(&mut commands), Then::Quiet);
                if self.rng.percent(60) {
                    let other = self.rng.below(self.connections);
                    self.one(other, &format!("SET {key} changed"));
                }
            }
        }
        commands.push(words("MULTI"));
        for _ in 0..self.rng.below(5) {
            commands.push(if self.rng.percent(20) {
                let odd = [
                    "MULTI",
                    "WATCH s1",
                    "BLPOP l9 0",
                    "SUBSCRIBE c1",
                    "SELECT 2",
                    "HELLO 3",
                    "RESET",
                    "NOSUCH",
                    "GET",
                    "CLIENT ID",
                    "CLIENT REPLY OFF",
                    "UNWATCH",
                    "INCR l1",
                    "PING",
                    "XREAD BLOCK 0 STREAMS x9 $",
                    "FLUSHALL",
                    "EVAL error('x') 0",
                    "SELECT 99",
                    "UNSUBSCRIBE",
                    "WAIT 1 0",
                    "AUTH x",
                    "QUIT",
                    "CLIENT SETNAME in-multi",
                    "CLIENT GETNAME",
                ];
                words(self.rng.pick(&odd))
            } else {
                self.command()
            });
            if self.rng.percent(20) {
                self.send(connection, std::mem::take(&mut commands), Then::Quiet);
                if self.rng.percent(40) {
                    let other = self.rng.below(self.connections);
                    self.plain(other);
                }
            }
        }
        match self.rng.below(12) {
            0 => commands.push(words("DISCARD")),
            1 => commands.push(words("EXEC now")),
            2 => {}
            3 => commands.extend([words("EXEC"), words("EXEC")]),
            _ => commands.push(words("EXEC")),
        }
        if self.rng.percent(30) {
            commands.push(self.command());
        }
        self.send(connection, commands, Then::Quiet);
    }

    fn blocking(&mut self, connection: usize) {
        let forever = self.rng.percent(60) && self.connections > 1;
        let time = if forever {
            "0"
        } else {
            self.rng.pick(&["0.02", "0.05", "-1", "abc"])
        };
        let milliseconds = if time == "0" { "0" } else { "30" };
        let choices = [
            format!("BLPOP l8 l9 {time}"),
            format!("BRPOP l9 {time}"),
            format!("BLMOVE l8 l9 LEFT RIGHT {time}"),
            format!("BRPOPLPUSH l8 l9 {time}"),
            format!("BLMPOP {time} 2 l8 l9 LEFT COUNT 2"),
            format!("BZPOPMIN z8 z9 {time}"),
            format!("BZPOPMAX z8 {time}"),
            format!("BZMPOP {time} 1 z8 MAX"),
            format!("XREAD BLOCK {milliseconds} STREAMS x8 $"),
            format!("XREAD COUNT 1 BLOCK {milliseconds} STREAMS x8 x9 0 0"),
            format!("XREADGROUP GROUP group1 me BLOCK {milliseconds} STREAMS x1 >"),
            format!("WAIT 1 {}", if forever { "0" } else { "20" }),
        ];
        let mut commands = vec![words(&choices[self.rng.below(choices.len())])];
        for _ in 0..self.rng.below(3) {
            commands.push(self.command());
        }
        self.send(connection, commands, if forever { Then::Quiet } else { Then::Answered });
        if !forever {
            return;
        }
        if self.rng.percent(15) {
            let action = if self.rng.percent(50) {
                Action::Close
            } else {
                Action::Half
            };
            self.push(connection, action, Then::Quiet);
            return;
        }
        let other = (connection + 1 + self.rng.below(self.connections - 1)) % self.connections;
        let wakes = [
            "RPUSH l8 one two three",
            "LPUSH l9 x",
            "ZADD z8 1 low 2 high",
            "ZADD z9 5 five",
            "XADD x8 5-1 f v",
            "XADD x1 77-1 f v",
            "SET l8 wrong-type",
            "RENAME l1 l8",
            "DEL x1",
            "FLUSHALL",
            "SWAPDB 0 1",
            "COPY l1 l9",
            "LPUSHX l8 none",
        ];
        for _ in 0..self.rng.between(1, 3) {
            let wake = words(self.rng.pick(&wakes));
            if self.rng.percent(20) {
                self.send(
                    other,
                    vec![words("MULTI"), wake, words("RPUSH l8 in-exec"), words("EXEC")],
                    Then::Quiet,
                );
            } else {
                self.send(other, vec![wake], Then::Quiet);
            }
        }
        if self.rng.percent(30) {
            // Learned before it blocks, or it cannot be named.
            let how = self.rng.pick(&["", " TIMEOUT", " ERROR"]);
            self.one(other, &format!("CLIENT UNBLOCK @id:{connection}@{how}"));
        }
    }

    fn publishing(&mut self, connection: usize) {
        let mut commands = Vec::new();
        for _ in 0..self.rng.between(1, 3) {
            let channel = self.rng.pick(CHANNELS).to_owned();
            let all = [
                format!("SUBSCRIBE {channel}"),
                format!("SUBSCRIBE {channel} c2 c2"),
                "PSUBSCRIBE news.* c?".to_owned(),
                format!("SSUBSCRIBE {channel}"),
                format!("UNSUBSCRIBE {channel}"),
                "UNSUBSCRIBE".to_owned(),
                "PUNSUBSCRIBE".to_owned(),
                "PUNSUBSCRIBE news.*".to_owned(),
                format!("SUNSUBSCRIBE {channel}"),
                "SUNSUBSCRIBE".to_owned(),
                "PING".to_owned(),
                "PING text".to_owned(),
                "PING a b".to_owned(),
                "GET s1".to_owned(),
                "SUBSCRIBE".to_owned(),
                format!("PUBLISH {channel} own"),
                "PUBSUB CHANNELS".to_owned(),
                "PUBSUB NUMPAT".to_owned(),
                format!("PUBSUB NUMSUB {channel}"),
                "MULTI".to_owned(),
                "QUIT".to_owned(),
                "RESET".to_owned(),
                "HELLO 3".to_owned(),
                "HELLO 2".to_owned(),
                "SELECT 1".to_owned(),
                "CLIENT INFO".to_owned(),
            ];
            let likely = if self.rng.percent(60) { 10 } else { all.len() };
            commands.push(words(&all[self.rng.below(likely)]));
        }
        self.send(connection, commands, Then::Quiet);
        for _ in 0..self.rng.below(3) {
            let other = self.rng.below(self.connections);
            let channel = self.rng.pick(CHANNELS);
            let publish = if self.rng.percent(75) { "PUBLISH" } else { "SPUBLISH" };
            let times = self.rng.between(1, 3);
            self.send(
                other,
                vec![words(&format!("{publish} {channel} message")); times],
                Then::Quiet,
            );
        }
    }

    fn client(&mut self, connection: usize) {
        let other = self.rng.below(self.connections);
        let all = [
            "CLIENT ID".to_owned(),
            "CLIENT ID".to_owned(),
            "CLIENT GETNAME".to_owned(),
            "CLIENT SETNAME me".to_owned(),
            "CLIENT SETNAME with\u{a0}bytes".to_owned(),
            "CLIENT SETNAME two\nlines".to_owned(),
            "CLIENT INFO".to_owned(),
            "CLIENT LIST".to_owned(),
            format!("CLIENT LIST ID @id:{other}@"),
            format!("CLIENT KILL ID @id:{other}@"),
            format!("CLIENT UNBLOCK @id:{other}@"),
            "CLIENT REPLY OFF".to_owned(),
            "CLIENT REPLY ON".to_owned(),
            "CLIENT REPLY SKIP".to_owned(),
            "CLIENT REPLY NONSENSE".to_owned(),
            "CLIENT NO-EVICT ON".to_owned(),
            "CLIENT NO-EVICT OFF".to_owned(),
            "CLIENT TRACKING ON".to_owned(),
            "CLIENT TRACKING OFF".to_owned(),
            "CLIENT TRACKING ON OPTIN".to_owned(),
            "CLIENT TRACKING ON OPTOUT NOLOOP".to_owned(),
            format!("CLIENT TRACKING ON REDIRECT @id:{other}@"),
            "CLIENT CACHING YES".to_owned(),
            "CLIENT CACHING NO".to_owned(),
            "CLIENT TRACKINGINFO".to_owned(),
            "CLIENT GETREDIR".to_owned(),
            "CLIENT PAUSE 15 WRITE".to_owned(),
            "CLIENT PAUSE 15".to_owned(),
            "CLIENT UNPAUSE".to_owned(),
            "CLIENT SETINFO LIB-NAME test".to_owned(),
            "CLIENT NO-TOUCH ON".to_owned(),
            "CLIENT".to_owned(),
            "CLIENT SETNAME".to_owned(),
            "CLIENT HELP".to_owned(),
            "DEBUG PROTOCOL push".to_owned(),
            "DEBUG PROTOCOL attrib".to_owned(),
            "DEBUG PROTOCOL map".to_owned(),
            "DEBUG PROTOCOL set".to_owned(),
            "DEBUG PROTOCOL bignum".to_owned(),
            "DEBUG PROTOCOL verbatim".to_owned(),
            "DEBUG PROTOCOL true".to_owned(),
            "DEBUG PROTOCOL double".to_owned(),
            "DEBUG PROTOCOL null".to_owned(),
            "READONLY".to_owned(),
            "ASKING".to_owned(),
        ];
        let mut commands = vec![words(&all[self.rng.below(all.len())])];
        for _ in 0..self.rng.below(3) {
            commands.push(if self.rng.percent(30) {
                words(&all[self.rng.below(all.len())])
            } else {
                self.command()
            });
        }
        self.send(connection, commands, Then::Quiet);
        if self.rng.percent(50) {
            let mut more = vec![words("MGET s1 s2")];
            more.push(self.command());
            self.send(connection, more, Then::Quiet);
            self.send(other, vec![words("SET s1 tracked"), words("DEL l1 s2")], Then::Quiet);
        }
    }

    fn scripts(&mut self, connection: usize) {
        let mut commands = Vec::new();
        for _ in 0..self.rng.between(1, 4) {
            let script = self.rng.pick(SCRIPTS).as_bytes().to_vec();
            let key = self.key("string");
            commands.push(match self.rng.below(9) {
                0 => vec![b"SCRIPT".to_vec(), b"LOAD".to_vec(), script],
                1 => vec![b"FUNCTION".to_vec(), b"LOAD".to_vec(), LIBRARY.as_bytes().to_vec()],
                2 => vec![b"FCALL".to_vec(), b"f1".to_vec(), b"1".to_vec(), key, b"v".to_vec()],
                3 => vec![b"FCALL_RO".to_vec(), b"f2".to_vec(), b"1".to_vec(), key],
                4 => words("EVALSHA e0e1f9fabfc9d4800c877a703b823ac0578ff8db 0"),
                5 => vec![b"EVAL_RO".to_vec(), script, b"1".to_vec(), key, b"5".to_vec()],
                6 => words("SCRIPT EXISTS e0e1f9fabfc9d4800c877a703b823ac0578ff8db 0000"),
                _ => vec![b"EVAL".to_vec(), script, b"1".to_vec(), key, b"5".to_vec()],
            });
        }
        self.send(connection, commands, Then::Quiet);
    }

    /// What belongs to the connection.
    fn state(&mut self, connection: usize) {
        let all = [
            "SELECT 1",
            "SELECT 0",
            "SELECT 15",
            "SELECT 16",
            "SELECT abc",
            "SELECT 01",
            "SELECT -1",
            "SELECT",
            "SELECT 1 2",
            "SELECT 4294967296",
            "SELECT +1",
            "SELECT \u{a0}1",
            "HELLO",
            "HELLO 2",
            "HELLO 3",
            "HELLO 4",
            "HELLO 1",
            "HELLO abc",
            "HELLO 03",
            "HELLO 3 SETNAME named",
            "HELLO 3 AUTH default x",
            "HELLO 2 NOSUCH",
            "HELLO 3 AUTH ann pw",
            "HELLO 3 SETNAME two\nlines",
            "HELLO 3 AUTH ann pw SETNAME as-ann",
            "RESET",
            "RESET now",
            "QUIT",
            "QUIT now",
            "AUTH x",
            "AUTH ann pw",
            "AUTH ann wrong",
            "AUTH",
            "AUTH a b c",
            "ACL SETUSER ann on >pw ~* +@all",
            "ACL SETUSER ann on >pw ~s* +get +set +auth +hello",
            "ACL WHOAMI",
            "ACL DELUSER ann",
            "SWAPDB 0 1",
            "MOVE s1 1",
            "CLIENT GETNAME",
            "CLIENT INFO",
            "UNWATCH",
            "DISCARD",
            "EXEC",
            "MULTI",
        ];
        let mut commands = Vec::new();
        for _ in 0..self.rng.between(1, 4) {
            commands.push(words(self.rng.pick(&all)));
            if self.rng.percent(50) {
                commands.push(self.command());
            }
        }
        self.send(connection, commands, Then::Quiet);
    }

    /// All at once, each with keys of its own, so that no order among them matters.
    fn burst(&mut self) {
        for connection in 0..self.connections {
            let count = self.rng.between(1, 60);
            let commands = (0..count)
                .map(|number| match self.rng.below(8) {
                    0 => words(&format!("SET own{connection} {number}")),
                    1 => words(&format!("APPEND own{connection} {number}")),
                    2 => words(&format!("INCR count{connection}")),
                    3 => words(&format!("ECHO {connection}-{number}")),
                    4 => words(&format!("GET own{connection}")),
                    5 => words(&format!("RPUSH list{connection} {number}")),
                    6 => words(&format!("LRANGE list{connection} 0 -1")),
                    _ => words(&format!("GETT {connection} {number}")),
                })
                .collect();
            let last = connection + 1 == self.connections;
            self.send(connection, commands, if last { Then::Quiet } else { Then::AtOnce });
        }
    }
}
