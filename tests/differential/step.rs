//! A sequence, and how it is written down: one line a step, to be pasted back.
//!
//! ```text
//! 0 whole: HELLO 3 | SET "a key" "\x00"      connection 0, one write, two commands
//! 1 bytes await: BLPOP q 0.05                every byte a write of its own; go on when each command is answered
//! 1 pieces at-once: GET a                    writes of a few bytes; the next step follows at once
//! 2 raw: "*1\r\n$x\r\n"                      bytes as they are
//! 2 half                                     no more from this side
//! 2 close
//! 0 sleep: 50                                milliseconds
//! ```
//!
//! `@id:1@` stands for what `CLIENT ID` answered to connection 1, which is not the same on both sides.

use std::fmt::Write as _;

pub type Words = Vec<Vec<u8>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    Whole,
    Bytes,
    Pieces,
}

/// When the next step follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// When both servers are quiet.
    Quiet,
    /// When each command has an answer too (or has had time for one).
    Answered,
    /// At once.
    AtOnce,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Commands(Vec<Words>, Cut),
    Raw(Vec<u8>),
    Half,
    Close,
    Sleep(u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub connection: usize,
    pub action: Action,
    pub then: Then,
}

impl Step {
    pub fn commands(&self) -> &[Words] {
        match &self.action {
            Action::Commands(commands, _) => commands,
            _ => &[],
        }
    }
}

pub fn written(steps: &[Step]) -> String {
    let mut out = String::new();
    for step in steps {
        let then = match step.then {
            Then::Quiet => "",
            Then::Answered => " await",
            Then::AtOnce => " at-once",
        };
        let (how, rest) = match &step.action {
            Action::Commands(commands, cut) => {
                let cut = match cut {
                    Cut::Whole => "whole",
                    Cut::Bytes => "bytes",
                    Cut::Pieces => "pieces",
                };
                let commands: Vec<String> = commands.iter().map(|words| line(words)).collect();
                (cut, commands.join(" | "))
            }
            Action::Raw(bytes) => ("raw", quoted(bytes)),
            Action::Half => ("half", String::new()),
            Action::Close => ("close", String::new()),
            Action::Sleep(time) => ("sleep", time.to_string()),
        };
        let colon = if rest.is_empty() { "" } else { ": " };
        writeln!(out, "{} {how}{then}{colon}{rest}", step.connection).unwrap();
    }
    out
}

pub fn line(words: &[Vec<u8>]) -> String {
    let shown: Vec<String> = words
        .iter()
        .map(|word| {
            let plain = |byte: &u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'|' | b'\\' | b'\'');
            if !word.is_empty() && word.iter().all(plain) {
                String::from_utf8_lossy(word).into_owned()
            } else {
                quoted(word)
            }
        })
        .collect();
    shown.join(" ")
}

fn quoted(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes.escape_ascii()).replace("\\'", "'")
}

/// What [`written`] writes; empty lines and `#` are skipped.
pub fn read(text: &str) -> Vec<Step> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let (head, rest) = line.split_once(':').unwrap_or((line, ""));
            let mut head = head.split_whitespace();
            let connection = head
                .next()
                .unwrap()
                .parse()
                .unwrap_or_else(|_| panic!("no step: {line}"));
            let how = head.next().unwrap_or_else(|| panic!("no step: {line}"));
            let then = match head.next() {
                None => Then::Quiet,
                Some("await") => Then::Answered,
                Some("at-once") => Then::AtOnce,
                Some(other) => panic!("{other}? in {line}"),
            };
            let commands = || split(rest, line);
            let action = match how {
                "whole" => Action::Commands(commands(), Cut::Whole),
                "bytes" => Action::Commands(commands(), Cut::Bytes),
                "pieces" => Action::Commands(commands(), Cut::Pieces),
                "raw" => Action::Raw(commands().remove(0).remove(0)),
                "half" => Action::Half,
                "close" => Action::Close,
                "sleep" => Action::Sleep(rest.trim().parse().unwrap()),
                other => panic!("{other}? in {line}"),
            };
            Step {
                connection,
                action,
                then,
            }
        })
        .collect()
}

/// Commands between bars, words between blanks, `"` around what holds either.
fn split(text: &str, line: &str) -> Vec<Words> {
    let mut commands = vec![Words::new()];
    let mut bytes = text.bytes().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b' ' => {}
            b'|' => commands.push(Words::new()),
            b'"' => {
                let mut word = Vec::new();
                loop {
                    match bytes.next().unwrap_or_else(|| panic!("no closing quote: {line}")) {
                        b'"' => break,
                        b'\\' => word.push(match bytes.next().unwrap() {
                            b'r' => b'\r',
                            b'n' => b'\n',
                            b't' => b'\t',
                            b'x' => {
                                let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
                                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
                            }
                            other => other,
                        }),
                        other => word.push(other),
                    }
                }
                commands.last_mut().unwrap().push(word);
            }
            first => {
                let mut word = vec![first];
                while let Some(byte) = bytes.next_if(|byte| *byte != b' ') {
                    word.push(byte);
                }
                commands.last_mut().unwrap().push(word);
            }
        }
    }
    commands.retain(|words| !words.is_empty());
    commands
}
