//! What `INFO` says of the server's clients, as it would be if each of the proxy's clients were connected there itself.

use crate::command::CommandId;
use crate::net::Footprint;

/// Whether a command's reply counts the server's clients.
pub(super) fn counts_clients(command: CommandId) -> bool {
    command.entry().name == "info"
}

/// What stands in for what in a reply.
#[derive(Debug)]
pub(super) struct Census {
    /// Name of the field, what the proxy has of it, and what its clients have instead.
    fields: [(&'static str, usize, usize); 3],
}

impl Census {
    /// `clients` are connected to the proxy.
    pub(super) fn new(own: &Footprint, clients: usize) -> Self {
        Census {
            fields: [
                ("connected_clients", own.connections(), clients),
                ("tracking_clients", own.trackers(), 0),
                ("tracking_total_prefixes", own.prefixes(), 0),
            ],
        }
    }

    /// The reply with the other numbers in it; `None` where it has none of them.
    pub(super) fn rewrite(&self, reply: &[u8]) -> Option<Vec<u8>> {
        let start = memchr::memchr(b'\n', reply)? + 1;
        // A verbatim string has its format in front.
        let kind = *reply.first().filter(|kind| b"$=".contains(kind))?;
        let text = reply.get(start..)?.strip_suffix(b"\r\n")?;
        let mut rewritten = Vec::with_capacity(text.len() + 16);
        let mut changed = false;
        for line in text.split_inclusive(|&byte| byte == b'\n') {
            match self.rewrite_line(line) {
                Some(other) => {
                    rewritten.extend_from_slice(other.as_bytes());
                    changed = true;
                }
                None => rewritten.extend_from_slice(line),
            }
        }
        let mut out = format!("{}{}\r\n", char::from(kind), rewritten.len()).into_bytes();
        out.extend_from_slice(&rewritten);
        out.extend_from_slice(b"\r\n");
        changed.then_some(out)
    }

    fn rewrite_line(&self, line: &[u8]) -> Option<String> {
        let (name, number) = std::str::from_utf8(line).ok()?.strip_suffix("\r\n")?.split_once(':')?;
        let (_, own, others) = self.fields.iter().find(|(field, _, _)| *field == name)?;
        let others = number.parse::<usize>().ok()?.saturating_sub(*own) + others;
        Some(format!("{name}:{others}\r\n"))
    }
}

/// `CLIENT KILL` of everybody, which closes the proxy's connections, and the proxy its clients'.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KillAll {
    /// `SKIPME yes`
    pub(super) spares_itself: bool,
    /// Connections that the proxy had when the command was sent, and its clients. Many are gone when the answer comes.
    pub(super) own: usize,
    pub(super) clients: usize,
}

impl KillAll {
    /// The reply with the proxy's clients counted in place of its connections, of which it has `own_now`: some may have been opened
    /// while the command was on its way. `None` where it is an error.
    pub(super) fn count(self, reply: &[u8], own_now: usize) -> Option<Vec<u8>> {
        let killed = crate::resp::parse_integer(reply.strip_prefix(b":")?.strip_suffix(b"\r\n")?)?;
        let spared = usize::from(self.spares_itself);
        let others = (usize::try_from(killed).ok()? + spared).saturating_sub(self.own.max(own_now));
        Some(format!(":{}\r\n", others + self.clients.saturating_sub(spared)).into_bytes())
    }
}

/// Whether `CLIENT KILL` with these words is one of everybody, and spares who asks.
pub(super) fn kills_everybody(words: &[&[u8]]) -> Option<bool> {
    let (pairs, []) = words.as_chunks::<2>() else {
        return None;
    };
    let mut spares = None;
    for [filter, value] in pairs {
        if !filter.eq_ignore_ascii_case(b"skipme") {
            return None;
        }
        spares = match value.to_ascii_lowercase().as_slice() {
            b"yes" => Some(true),
            b"no" => Some(false),
            _ => return None,
        };
    }
    spares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proxys_own_connections_are_not_counted_and_its_clients_are() {
        let own = Footprint::default();
        let _connections: Vec<_> = (0..12).map(|_| own.connection()).collect();
        let _tracker = own.tracker(2);
        let census = Census::new(&own, 3);
        let check = |kind, text: &str, expected: Option<&str>| {
            let reply = |text: &str| format!("{kind}{}\r\n{text}\r\n", text.len()).into_bytes();
            assert_eq!(census.rewrite(&reply(text)), expected.map(reply), "{text}");
        };
        check(
            '$',
            "# Clients\r\nconnected_clients:14\r\ncluster_connections:0\r\nmaxclients:99\r\n",
            Some("# Clients\r\nconnected_clients:5\r\ncluster_connections:0\r\nmaxclients:99\r\n"),
        );
        check(
            '=',
            "txt:# Stats\r\ntracking_clients:1\r\ntracking_total_prefixes:12\r\n",
            Some("txt:# Stats\r\ntracking_clients:0\r\ntracking_total_prefixes:10\r\n"),
        );
        // The server may not have noticed yet that one is there.
        check('$', "connected_clients:11\r\n", Some("connected_clients:3\r\n"));
        check('$', "# Server\r\nredis_version:7.0.15\r\n", None);
        check('$', "connected_clients:many\r\n", None);
        check('$', "", None);
        for reply in [
            &b"-NOPERM no\r\n"[..],
            b"+QUEUED\r\n",
            b"$-1\r\n",
            b"_\r\n",
            b":1\r\n",
            b"",
        ] {
            assert_eq!(census.rewrite(reply), None, "{}", reply.escape_ascii());
        }
    }

    #[test]
    fn killing_everybody_counts_the_clients_in_place_of_the_proxys_connections() {
        let check = |spares_itself, own_now, reply: &str, expected: Option<&str>| {
            let kill_all = KillAll {
                spares_itself,
                own: 9,
                clients: 3,
            };
            let expected = expected.map(|reply| reply.as_bytes().to_vec());
            assert_eq!(kill_all.count(reply.as_bytes(), own_now), expected, "{reply}");
        };
        check(true, 1, ":8\r\n", Some(":2\r\n"));
        check(false, 0, ":9\r\n", Some(":3\r\n"));
        // Two that are connected to the server itself.
        check(true, 1, ":10\r\n", Some(":4\r\n"));
        // The server had not noticed all of them yet; one more came just before.
        check(true, 1, ":6\r\n", Some(":2\r\n"));
        check(true, 10, ":9\r\n", Some(":2\r\n"));
        check(true, 1, "-NOPERM no\r\n", None);
        check(true, 1, "+QUEUED\r\n", None);
    }

    #[test]
    fn everybody_is_meant_where_nothing_else_is_said() {
        let check = |words: &str, expected| {
            let words: Vec<&[u8]> = words.split_whitespace().map(str::as_bytes).collect();
            assert_eq!(kills_everybody(&words), expected, "{words:?}");
        };
        check("SKIPME yes", Some(true));
        check("skipme NO", Some(false));
        check("SKIPME no SKIPME yes", Some(true));
        check("SKIPME maybe", None);
        check("SKIPME", None);
        check("", None);
        check("127.0.0.1:1", None);
        check("TYPE normal SKIPME yes", None);
        check("ID 3 SKIPME no", None);
    }

    #[test]
    fn who_is_gone_counts_no_longer() {
        let own = Footprint::default();
        drop((own.connection(), own.tracker(2)));
        assert_eq!((own.connections(), own.trackers(), own.prefixes()), (0, 0, 0));
    }
}
