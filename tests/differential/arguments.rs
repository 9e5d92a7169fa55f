//! Draws one command with arguments that fit its documentation, mostly.

use super::{
    docs::{Argument, Documented},
    generator::{Generator, words},
    left_out,
    step::Words,
    vocabulary::*,
};

impl Generator<'_> {
    /// Any command of the server, or none of its.
    pub fn command(&mut self) -> Words {
        loop {
            if self.rng.percent(3) {
                let unknown = [
                    "NOSUCH a b",
                    "GETT s1",
                    "",
                    "client nosuch",
                    "CONFIG NOSUCH x",
                    "a\r\nb",
                    "OBJECT",
                    "XINFO",
                    "SESSIONFERRY",
                ];
                return words(self.rng.pick(&unknown));
            }
            let command = &self.commands[self.rng.below(self.commands.len())];
            // Those that wait or change the connection have scenarios of their own, and turn up here now and then.
            let rare = matches!(
                command.name[0].as_str(),
                "multi"
                    | "exec"
                    | "watch"
                    | "subscribe"
                    | "psubscribe"
                    | "ssubscribe"
                    | "quit"
                    | "reset"
                    | "client"
                    | "hello"
                    | "auth"
                    | "blpop"
                    | "brpop"
                    | "blmove"
                    | "blmpop"
                    | "bzpopmin"
                    | "bzpopmax"
                    | "bzmpop"
                    | "brpoplpush"
                    | "wait"
                    | "config"
                    | "cluster"
                    | "debug"
                    | "acl"
                    | "latency"
                    | "memory"
                    | "command"
                    | "info"
                    | "select"
                    | "swapdb"
                    | "flushall"
                    | "flushdb"
            );
            if rare && self.rng.percent(75) {
                continue;
            }
            let command = self.filled(command);
            if left_out::reason(&command).is_none() {
                return command;
            }
        }
    }

    fn filled(&mut self, command: &Documented) -> Words {
        let mut out: Words = command.name.iter().map(|word| word.clone().into_bytes()).collect();
        if self.rng.percent(50) {
            out[0].make_ascii_uppercase();
        }
        let group = command.group.clone();
        self.list(&command.arguments, &group, &command.name[0], &mut out);
        if self.rng.percent(15) {
            self.spoil(&mut out);
        }
        out
    }

    fn spoil(&mut self, words: &mut Words) {
        let at = self.rng.between(1, words.len());
        match self.rng.below(4) {
            0 if at < words.len() => drop(words.remove(at)),
            1 if at < words.len() => words[at] = self.rng.pick(WRONG).to_vec(),
            2 => words.truncate(at),
            _ => words.insert(at, self.rng.pick(WRONG).to_vec()),
        }
    }

    fn list(&mut self, arguments: &[Argument], group: &str, name: &str, out: &mut Words) {
        let mut count = 0;
        for (at, argument) in arguments.iter().enumerate() {
            if argument.name == "numkeys" {
                count = self.rng.between(1, 3);
                if let Some(token) = &argument.token {
                    out.push(token.clone().into_bytes());
                }
                out.push(count.to_string().into_bytes());
                continue;
            }
            if argument.optional && !(self.rng.percent(35)) {
                continue;
            }
            let counted = at > 0 && arguments[at - 1].name == "numkeys" && argument.multiple;
            let times = match (counted, argument.multiple) {
                (true, _) => count,
                (false, true) => self.rng.between(1, 3),
                (false, false) => 1,
            };
            for time in 0..times {
                if let Some(token) = &argument.token
                    && (time == 0 || argument.repeats_token)
                    && !token.is_empty()
                {
                    out.push(token.clone().into_bytes());
                }
                self.argument(argument, group, name, out);
            }
        }
    }

    fn argument(&mut self, argument: &Argument, group: &str, name: &str, out: &mut Words) {
        let lower = argument.name.to_ascii_lowercase();
        let word: Vec<u8> = match argument.kind.as_str() {
            "pure-token" => return,
            "oneof" => {
                let one = &argument.arguments[self.rng.below(argument.arguments.len())];
                if let Some(token) = &one.token {
                    out.push(token.clone().into_bytes());
                }
                return self.argument(one, group, name, out);
            }
            "block" => return self.list(&argument.arguments, group, name, out),
            "key" => self.key(group),
            "unix-time" => self
                .rng
                .pick(&["4102444800000", "99999999999", "4102444800", "1000000", "0", "-5"])
                .as_bytes()
                .to_vec(),
            "integer" | "double" if lower.contains("seconds") || lower == "ttl" => {
                // XREAD has a time to wait here.
                let times: &[&str] = if name.starts_with("xread") {
                    &["20"]
                } else {
                    &["1000000", "99999999", "0", "-1"]
                };
                self.rng.pick(times).as_bytes().to_vec()
            }
            "integer" | "double" if lower == "timeout" => self
                .rng
                .pick(if name == "wait" { &["10"] } else { &["0.02"] })
                .as_bytes()
                .to_vec(),
            "integer" if lower == "index" && name == "select" => {
                self.rng.pick(&["0", "1", "9", "15", "16", "-1"]).as_bytes().to_vec()
            }
            "integer" => self.rng.pick(INTEGERS).as_bytes().to_vec(),
            "double" => self
                .rng
                .pick(&["1", "2.5", "-0.5", "inf", "0", "13.4", "38.1"])
                .as_bytes()
                .to_vec(),
            "pattern" => self
                .rng
                .pick(&["*", "s*", "[lz]?", "news.*", "none"])
                .as_bytes()
                .to_vec(),
            _ => match lower.as_str() {
                "channel" | "shardchannel" => self.rng.pick(CHANNELS).as_bytes().to_vec(),
                "script" => self.rng.pick(SCRIPTS).as_bytes().to_vec(),
                "function-code" => LIBRARY.as_bytes().to_vec(),
                "function" | "function-name" => self.rng.pick(&["f1", "f2", "f3"]).as_bytes().to_vec(),
                "library-name" => b"lib1".to_vec(),
                "username" => self.rng.pick(super::servers::USERS).as_bytes().to_vec(),
                "group" | "groupname" => b"group1".to_vec(),
                "consumer" | "consumername" => self.rng.pick(&["me", "you"]).as_bytes().to_vec(),
                "id" | "start" | "end" | "min-id" | "id-or-" | "last-id" if group == "stream" => self
                    .rng
                    .pick(&["0", "1-1", "2-1", "3-1", "9-9", "$", ">", "-", "+"])
                    .as_bytes()
                    .to_vec(),
                "min" | "max" => self
                    .rng
                    .pick(&["-inf", "+inf", "1", "(2", "[a", "-", "+"])
                    .as_bytes()
                    .to_vec(),
                "rule" => self
                    .rng
                    .pick(&[
                        "on",
                        "off",
                        ">pw",
                        "~*",
                        "~s*",
                        "+@all",
                        "-@dangerous",
                        "+get",
                        "nopass",
                        "&*",
                        "nosuchrule",
                    ])
                    .as_bytes()
                    .to_vec(),
                _ => self.rng.pick(TEXTS).to_vec(),
            },
        };
        out.push(word);
    }

    pub fn key(&mut self, group: &str) -> Vec<u8> {
        let own = KEYS.iter().find(|(of, _)| *of == group);
        let keys = match own {
            Some((_, keys)) if self.rng.percent(85) => keys,
            _ => KEYS[self.rng.below(KEYS.len())].1,
        };
        self.rng.pick(keys).as_bytes().to_vec()
    }
}
