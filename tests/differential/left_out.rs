//! What is never sent, each with the reason. Everything else of `COMMAND LIST` is, with any arguments.

use super::step::Words;

struct LeftOut {
    /// The command's first words.
    command: &'static str,
    reason: &'static str,
    /// Which of its forms.
    form: fn(&[String]) -> bool,
}

const fn left_out(command: &'static str, reason: &'static str, form: fn(&[String]) -> bool) -> LeftOut {
    LeftOut { command, reason, form }
}

#[rustfmt::skip]
const LEFT_OUT: &[LeftOut] = &[
    left_out("shutdown", "ends the server", any),
    left_out("debug", "most of it crashes, stops or restarts the server", |words| !safe_debug(words)),
    left_out("replicaof", "makes the server a replica of another", |words| words.len() == 3 && words[1..] != ["no", "one"]),
    left_out("slaveof", "makes the server a replica of another", |words| words.len() == 3 && words[1..] != ["no", "one"]),
    left_out("sync", "the connection becomes a stream; tested by itself", any),
    left_out("psync", "the connection becomes a stream; tested by itself", any),
    left_out("monitor", "shows what this test itself asks the servers; tested by itself", any),
    left_out("save", "forks and writes; whether one is running already depends on time", any),
    left_out("bgsave", "forks and writes; whether one is running already depends on time", any),
    left_out("bgrewriteaof", "forks and writes; whether one is running already depends on time", any),
    left_out("pfselftest", "takes seconds", any),
    left_out("script debug", "forks a debugger", any),
    left_out("config set", "what another setting would do to the server stays for all that follows", |words| !safe_setting(words)),
    left_out("config get", "ports and folders are each server's own", |words| words[2..].iter().any(|word| word.contains(['*', '?', '[']))),
    left_out("acl setuser", "another right of the default user locks this test out", |words| words.get(2).is_some_and(|user| !super::servers::USERS.contains(&user.as_str()))),
    left_out("client kill", "kills connections of the proxy, or of this test; one client by its number is tested", |words| !(words.len() >= 4 && words[2] == "id" && words[3].starts_with("@id:"))),
    left_out("client pause", "a longer pause only makes the test slow", |words| words.get(2).is_some_and(|time| time.parse::<u64>().is_ok_and(|time| time > 30))),
    left_out("migrate", "to a port where a server may be", |words| words.get(2).is_some_and(|port| port != "1")),
    left_out("spop", "what is drawn by lot makes the servers differ from there on", any),
    left_out("sort", "what BY sorts alike is in the order of the server's own hash seed, and so what STORE keeps of it", |words| ["by", "store"].iter().all(|word| words.iter().any(|other| other == word))),
    left_out("xadd", "an id made of the time is another on each server, and so is what follows", |words| words[1..].iter().any(|word| word.contains('*'))),
    left_out("cluster", "off in these servers: one answer is enough", |words| words.len() > 3),
    left_out("client tracking", "the connection of a number that is drawn need not be the same on both sides, nor be there", |words| words.windows(2).any(|pair| pair[0] == "redirect" && !pair[1].starts_with("@id:"))),
    left_out("client tracking", "broadcasts are gathered for as long as the server finds something to do; tested by itself", |words| words.iter().any(|word| word == "bcast")),
];

/// Commands whose arguments may be ends of keys, and where a small number among them is one that comes while a sequence runs.
const WITH_ENDS: &[&str] = &[
    "expire",
    "pexpire",
    "expireat",
    "pexpireat",
    "set",
    "setex",
    "psetex",
    "getex",
    "restore",
    "restore-asking",
];

fn any(_: &[String]) -> bool {
    true
}

fn safe_debug(words: &[String]) -> bool {
    match words.get(1).map(String::as_str) {
        Some("protocol" | "help" | "stringmatch-len" | "object" | "no-such-thing") | None => true,
        Some("sleep") => words.get(2).is_some_and(|time| time == "0"),
        _ => false,
    }
}

/// Those that [`super::servers::Pair`] sets back, and what is no setting.
fn safe_setting(words: &[String]) -> bool {
    words.len() < 4
        || words[2..].chunks(2).all(|pair| {
            matches!(pair[0].as_str(), "maxmemory" if pair.get(1).is_none_or(|value| value == "0"))
                || pair[0].starts_with("no-such")
                || pair[0] == "maxmemory-policy"
        })
}

/// Why a command is left out.
pub fn reason(words: &Words) -> Option<&'static str> {
    let lower: Vec<String> = words
        .iter()
        .map(|word| String::from_utf8_lossy(word).to_ascii_lowercase())
        .collect();
    let name = lower.first()?;
    // For whoever hunts: commands whose difference is known and has bred enough reports.
    if let Ok(skip) = std::env::var("SESSIONFERRY_DIFFERENTIAL_SKIP")
        && skip.split(',').any(|start| lower.join(" ").starts_with(start))
    {
        return Some("known");
    }
    let two = lower.get(1).map(|second| format!("{name} {second}"));
    let found = LEFT_OUT
        .iter()
        .find(|entry| (entry.command == name || two.as_deref() == Some(entry.command)) && (entry.form)(&lower));
    if let Some(entry) = found {
        return Some(entry.reason);
    }
    let soon = |word: &String| word.parse::<i64>().is_ok_and(|number| (1..100_000).contains(&number));
    let comes = WITH_ENDS.contains(&name.as_str()) && lower.iter().skip(2).any(soon) && may_end(name, &lower);
    if comes || is_past(name, &lower) {
        return Some("a key that ends while the sequence runs ends at another moment on each server");
    }
    None
}

/// `SET` keeps a key whose end is past, until the server comes across it; other commands delete it at once.
fn is_past(name: &str, words: &[String]) -> bool {
    const AHEAD: i64 = 4_000_000_000; // in 2096, s
    let before = |at: &str, end: i64| at.parse::<i64>().is_ok_and(|at| (1..end).contains(&at));
    name == "set"
        && words.windows(2).any(|pair| match pair[0].as_str() {
            "exat" => before(&pair[1], AHEAD),
            "pxat" => before(&pair[1], AHEAD * 1000),
            _ => false,
        })
}

/// A number is only an end where the command has a place for one.
fn may_end(name: &str, words: &[String]) -> bool {
    match name {
        "set" | "getex" => words
            .iter()
            .any(|word| matches!(word.as_str(), "ex" | "px" | "exat" | "pxat")),
        _ => true,
    }
}
