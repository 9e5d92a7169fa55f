//! Replies that no two servers give alike, each with the reason. Looked at only where bytes differ, and only on a
//! connection on which such a command is open.

use super::{
    step::Words,
    value::{Value, parse},
};

struct Mask {
    /// The command's first words; several with `,`.
    commands: &'static str,
    #[allow(dead_code, reason = "for whoever reads the table")]
    reason: &'static str,
    /// What is left of each node of a reply.
    keep: fn(Value) -> Value,
    /// It brings what is left into an order, which what the others take away must not decide: it comes after them.
    sorts: bool,
}

const fn mask(commands: &'static str, reason: &'static str, keep: fn(Value) -> Value) -> Mask {
    Mask {
        commands,
        reason,
        keep,
        sorts: false,
    }
}

const fn sort(commands: &'static str, reason: &'static str, keep: fn(Value) -> Value) -> Mask {
    Mask {
        sorts: true,
        ..mask(commands, reason, keep)
    }
}

#[rustfmt::skip]
const MASKS: &[Mask] = &[
    sort("smembers,sunion,sinter,sdiff,sort,sort_ro", "a set of strings is in the order of the server's own hash seed", unordered),
    sort("keys,scan,sscan", "keys and members are in the order of the server's own hash seed", scanned),
    sort("hgetall,hkeys,hvals,hscan", "large hashes are in the order of the server's own hash seed", unordered),
    sort("pubsub channels,pubsub shardchannels,pubsub numsub", "channels are in the order of the server's own hash seed", unordered),
    sort("command", "commands are in the order of the server's own hash seed", unordered),
    sort("config get,function list,module list,acl users", "tables are in the order of the server's own hash seed", unordered),
    mask("spop,srandmember,hrandfield,zrandmember,randomkey", "drawn by lot", shape),
    mask("lolwut", "drawn by lot", shape),
    mask("acl genpass", "drawn by lot", shape),
    mask("time,lastsave", "the time", numbers),
    mask("ttl,pttl,expiretime,pexpiretime", "the time, which passed between the two", numbers),
    mask("xadd,xrange,xrevrange,xread,xreadgroup,xinfo,xpending,xclaim,xautoclaim,eval,fcall", "ids made of the time", stream_ids),
    mask("xpending,xinfo", "how long ago, in milliseconds", numbers),
    mask("xsetid,xdel,xack,xtrim,xlen", "how many entries have an id beyond a time", same),
    mask("object idletime,object freq", "how long ago", numbers),
    mask("memory usage", "a table may be about to grow on one of them", numbers),
    mask("memory stats,memory doctor,memory malloc-stats", "the server's memory, with the proxy's connections", any_length),
    mask("info", "times, ports, memory, counters, with the proxy's connections", any_length),
    mask("client id,client getredir", "the connection's number", numbers),
    mask("client trackinginfo", "the number of the connection that is redirected to", numbers),
    mask("client list", "the proxy's connections stand where the clients' would", any_length),
    mask("client info", "numbers, addresses, ages and buffer sizes of a connection", client_info),
    mask("hello", "the connection's number", hello),
    mask("slowlog get,commandlog get", "times and addresses", any_length),
    mask("acl log", "times and addresses", acl_log),
    mask("latency", "times", any_length),
    mask("debug object", "an address", any_length),
    mask("dump", "a set of strings is in the order of the server's own hash seed", shape),
    mask("acl list,acl getuser", "rights to commands are in the order of the server's own hash seed", sorted_words),
    mask("role", "nothing differs without replicas", same),
];

/// What weighs the same (as all does where no key has a weight) stays in the order of the server's own hash seed, from
/// which LIMIT cuts.
const SORTED_BY: Mask = mask("sort,sort_ro", "with BY, LIMIT cuts from what is in no order", shape);

/// In EXEC's answer, where they cannot be brought into one.
const UNSUBSCRIBED: Mask = mask(
    "unsubscribe,punsubscribe,sunsubscribe",
    "from everything, in the order of the server's own hash seed",
    any_channel,
);

/// Its connection is another one then, at the proxy.
const AFTER_RESET: Mask = mask("client info", "NO-EVICT outlives RESET at a Redis", without_no_evict);

/// What is masked on one connection.
#[derive(Default)]
pub struct Masks {
    active: Vec<&'static Mask>,
    in_transaction: bool,
    /// Confirmations of an unsubscription from everything are in no order.
    unsubscribed: bool,
    /// One of them is in EXEC's answer: which, nobody knows.
    unsubscribed_within: bool,
    /// RESET has been sent.
    reset: bool,
    /// Replies to the commands so far, if each is executed.
    pub asked: usize,
}

impl Masks {
    pub fn note(&mut self, commands: &[Words]) {
        for words in commands {
            self.asked += 1;
            let Some(name) = words.first() else { continue };
            let lower = |word: &Vec<u8>| String::from_utf8_lossy(word).to_ascii_lowercase();
            let name = lower(name);
            let two = words.get(1).map(|second| format!("{name} {}", lower(second)));
            self.reset |= name == "reset";
            match name.as_str() {
                "multi" => self.in_transaction = true,
                "exec" | "discard" | "reset" => self.in_transaction = false,
                "sort" | "sort_ro" if words.iter().any(|word| lower(word) == "by") => self.active.push(&SORTED_BY),
                "client" if self.reset && two.as_deref() == Some("client info") => self.active.push(&AFTER_RESET),
                // Each channel is confirmed by itself. Were that not counted, what has not been answered would be taken to have been.
                "subscribe" | "psubscribe" | "ssubscribe" | "unsubscribe" | "punsubscribe" | "sunsubscribe"
                    if words.len() > 2 && !self.in_transaction =>
                {
                    self.asked += words.len() - 2;
                }
                "unsubscribe" | "punsubscribe" | "sunsubscribe" if words.len() == 1 => {
                    self.unsubscribed = true;
                    self.unsubscribed_within |= self.in_transaction;
                    self.active.push(&UNSUBSCRIBED);
                }
                _ => {}
            }
            for mask in MASKS {
                if mask
                    .commands
                    .split(',')
                    .any(|entry| entry == name || two.as_deref() == Some(entry))
                {
                    self.active.push(mask);
                }
            }
        }
    }

    /// After a step, its replies compared.
    pub fn answered(&mut self, all: bool) {
        if all && !self.in_transaction {
            self.active.clear();
            (self.unsubscribed, self.unsubscribed_within) = (false, false);
        }
    }

    pub fn allows(&self, a: &[u8], b: &[u8]) -> bool {
        // Part of a command that was cut can make the next one's last word a command of its own.
        if (is_time(a) && is_time(b)) || (is_info(a) && is_info(b)) {
            return true;
        }
        if self.active.is_empty() {
            return false;
        }
        let (Some(a), Some(b)) = (parse(a), parse(b)) else {
            return false;
        };
        // One alone, or several where a transaction's reply holds several.
        let alone = |mask: &&&Mask| a.clone().map(&mask.keep) == b.clone().map(&mask.keep);
        let all = |value: &Value| {
            let (sorting, others): (Vec<&Mask>, Vec<&Mask>) = self.active.iter().copied().partition(|mask| mask.sorts);
            let masks = others.into_iter().chain(sorting);
            masks.fold(value.clone(), |value, mask| value.map(&mask.keep))
        };
        self.active.iter().any(|mask| alone(&mask)) || all(&a) == all(&b)
    }

    /// The same for an array whose end will not come: CLIENT REPLY OFF in a transaction cuts EXEC's answer.
    pub fn allows_part(&self, a: &[u8], b: &[u8]) -> bool {
        matches!((completed(a), completed(b)), (Some(a), Some(b)) if self.allows(&a, &b))
    }

    /// Brings frames without an order of their own into one.
    pub fn align(&self, ours: &mut [Vec<u8>], theirs: &mut [Vec<u8>]) {
        for frames in [&mut *ours, &mut *theirs] {
            // One message for each pattern that it matches, in the order of the server's own hash seed.
            for run in frames.chunk_by_mut(|a, b| matched(a).is_some() && matched(a) == matched(b)) {
                run.sort();
            }
        }
        if !self.unsubscribed {
            return;
        }
        for frames in [ours, theirs] {
            let is_one = |frame: &[u8]| {
                let kind = parse(frame.get(..200).map_or(frame, |_| b"_\r\n"));
                kind.is_some_and(|value| {
                    value
                        .items()
                        .first()
                        .and_then(Value::text)
                        .is_some_and(|text| text.ends_with(b"unsubscribe"))
                })
            };
            // The channels change places; the counts, which go down by one, stay where they are.
            let mut at: Vec<usize> = (0..frames.len()).filter(|at| is_one(&frames[*at])).collect();
            let mut channels: Vec<Value> = at
                .iter()
                .filter_map(|at| parse(&frames[*at])?.items().get(1).cloned())
                .collect();
            channels.sort();
            at.truncate(channels.len());
            for (at, mut channel) in at.into_iter().zip(channels) {
                if self.unsubscribed_within {
                    channel = shape(channel);
                }
                let count = frames[at]
                    .rsplit(|byte| *byte == b':')
                    .next()
                    .unwrap_or_default()
                    .to_vec();
                frames[at] = format!("unsubscribe {channel:?} {}", String::from_utf8_lossy(&count)).into_bytes();
            }
        }
    }
}

/// A cut array with nulls in place of what is missing.
fn completed(part: &[u8]) -> Option<Vec<u8>> {
    const MISSING: usize = 64;
    let mut whole = part.to_vec();
    for _ in 0..MISSING {
        if parse(&whole).is_some() {
            return Some(whole);
        }
        whole.extend_from_slice(b"_\r\n");
    }
    None
}

/// What TIME answers.
fn is_time(frame: &[u8]) -> bool {
    let Some(value) = parse(frame) else { return false };
    let number = |item: &Value| Some(item.text()?.iter().all(u8::is_ascii_digit) && item.text()?.len() <= 10);
    let [seconds, micros] = value.items() else { return false };
    number(seconds) == Some(true) && number(micros) == Some(true) && seconds.text().is_some_and(|text| text.len() == 10)
}

/// What INFO answers.
fn is_info(frame: &[u8]) -> bool {
    let value = parse(frame);
    value.is_some_and(|value| value.text().is_some_and(|text| text.starts_with(b"# Server\r\n")))
}

/// Channel and message of a frame that came because of a pattern.
fn matched(frame: &[u8]) -> Option<Vec<Value>> {
    let value = parse(frame)?;
    let [kind, _, rest @ ..] = value.items() else {
        return None;
    };
    (kind.text()? == b"pmessage").then(|| rest.to_vec())
}

fn same(value: Value) -> Value {
    value
}

fn unordered(value: Value) -> Value {
    match value {
        Value::Many(kind, Some(mut items)) => {
            items.sort();
            Value::Many(kind, Some(items))
        }
        other => other,
    }
}

fn any_channel(value: Value) -> Value {
    match value {
        Value::Many(kind, Some(items))
            if items.len() == 3 && items[0].text().is_some_and(|text| text.ends_with(b"unsubscribe")) =>
        {
            let channel = shape(items[1].clone());
            Value::Many(kind, Some(vec![items[0].clone(), channel, items[2].clone()]))
        }
        other => other,
    }
}

/// A cursor is a position in the table, and what a page holds depends on it.
fn scanned(value: Value) -> Value {
    match unordered(value) {
        Value::Many(kind, Some(items)) if matches!(items.as_slice(), [Value::Bulk(..), Value::Many(..)]) => {
            Value::Many(kind, None)
        }
        other => other,
    }
}

/// The types and lengths.
fn shape(value: Value) -> Value {
    match value {
        Value::Bulk(kind, Some(_)) => Value::Bulk(kind, Some(Vec::new())),
        // A score, of which one may be whole and another not.
        Value::Line(b',', _) => Value::Line(b',', Vec::new()),
        other => numbers(other),
    }
}

/// The type alone.
fn any_length(value: Value) -> Value {
    match value {
        Value::Bulk(kind, Some(_)) => Value::Bulk(kind, Some(Vec::new())),
        Value::Many(kind, Some(_)) => Value::Many(kind, Some(Vec::new())),
        Value::Line(b'+', _) => Value::Line(b'+', Vec::new()),
        other => numbers(other),
    }
}

/// That there is a number, and whether it is negative.
fn numbers(value: Value) -> Value {
    let blank = |text: Vec<u8>| {
        let (sign, digits) = match text.split_first() {
            Some((b'-', rest)) => (b"-".to_vec(), rest),
            _ => (Vec::new(), &text[..]),
        };
        if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) {
            sign
        } else {
            text
        }
    };
    match value {
        Value::Line(kind @ (b':' | b','), text) => Value::Line(kind, blank(text)),
        Value::Bulk(kind, Some(text)) => Value::Bulk(kind, Some(blank(text))),
        other => other,
    }
}

/// `1795000000000-0`
fn stream_ids(value: Value) -> Value {
    match value {
        Value::Bulk(kind, Some(text)) => {
            let is_time = text.len() >= 15
                && text[0] == b'1'
                && text[..13].iter().all(u8::is_ascii_digit)
                && text[13] == b'-'
                && text[14..].iter().all(u8::is_ascii_digit);
            Value::Bulk(kind, Some(if is_time { b"ms-n".to_vec() } else { text }))
        }
        other => other,
    }
}

/// What a client is told of itself, but for where and how large it is.
fn client_info(value: Value) -> Value {
    // Valkey keeps what MULTI needed, and says 0 for none.
    const NONE_QUEUED: (&str, &str) = ("multi=0", "multi=-1");
    const OWN: &[&str] = &[
        "id",
        "addr",
        "laddr",
        "fd",
        "age",
        "idle",
        "qbuf",
        "qbuf-free",
        "argv-mem",
        "multi-mem",
        "rbs",
        "rbp",
        "obl",
        "oll",
        "omem",
        "tot-mem",
        "tot-net-in",
        "tot-net-out",
        "tot-cmds",
        "io-thread",
        "events",
        "redir",
    ];
    match value {
        Value::Bulk(kind, Some(text)) if text.starts_with(b"id=") || text.starts_with(b"txt:id=") => {
            let text = String::from_utf8_lossy(&text).replacen("txt:", "txt: ", 1);
            let kept: Vec<&str> = text
                .split(' ')
                .map(|field| if field == NONE_QUEUED.0 { NONE_QUEUED.1 } else { field })
                .filter(|field| !OWN.contains(&field.split('=').next().unwrap_or_default()))
                .collect();
            Value::Bulk(kind, Some(kept.join(" ").into_bytes()))
        }
        other => other,
    }
}

fn without_no_evict(value: Value) -> Value {
    match value {
        Value::Bulk(kind, Some(text)) => {
            let text = String::from_utf8_lossy(&text).replace(" flags=e ", " flags=N ");
            Value::Bulk(kind, Some(text.into_bytes()))
        }
        other => other,
    }
}

fn sorted_words(value: Value) -> Value {
    match value {
        Value::Bulk(kind, Some(text)) => {
            let mut words: Vec<&[u8]> = text.split(|byte| *byte == b' ').collect();
            words.sort();
            Value::Bulk(kind, Some(words.join(&b' ')))
        }
        other => other,
    }
}

fn hello(value: Value) -> Value {
    without(value, &["id"])
}

fn acl_log(value: Value) -> Value {
    without(
        value,
        &[
            "client-info",
            "age-seconds",
            "timestamp-created",
            "timestamp-last-updated",
            "entry-id",
        ],
    )
}

/// The pairs of a map but for these.
fn without(value: Value, names: &[&str]) -> Value {
    match value {
        Value::Many(kind, Some(items)) => {
            let mut kept = Vec::new();
            let mut items = items.into_iter().peekable();
            while let Some(item) = items.next() {
                let named = |name: &&str| item.text() == Some(name.as_bytes()) && matches!(item, Value::Bulk(..));
                if names.iter().any(named) {
                    items.next();
                } else {
                    kept.push(item);
                }
            }
            Value::Many(kind, Some(kept))
        }
        other => other,
    }
}
