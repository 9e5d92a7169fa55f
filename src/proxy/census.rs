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
    fn who_is_gone_counts_no_longer() {
        let own = Footprint::default();
        drop((own.connection(), own.tracker(2)));
        assert_eq!((own.connections(), own.trackers(), own.prefixes()), (0, 0, 0));
    }
}
