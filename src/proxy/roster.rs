//! Who is connected: clients by where they come from and what they say of themselves. No socket, no clock.

use std::net::IpAddr;

use rustc_hash::FxHashMap;

use super::identity::Library;
use crate::status::{ClientGroup, ClientList};

/// Kinds of clients that are told of; a site has some machines with a few libraries each.
const MAX_GROUPS: usize = 200;
/// Of a name that a client gave itself, characters: Redis has no limit.
const MAX_NAME_LEN: usize = 64;

/// Address, name and library.
type Kind = (Option<IpAddr>, Option<Vec<u8>>, Library);

/// How many clients there are of each kind.
#[derive(Debug, Default)]
pub(super) struct Roster(FxHashMap<Kind, u64>);

impl Roster {
    /// `from` is nothing where the client came over a unix socket.
    pub(super) fn add(&mut self, from: Option<IpAddr>, name: Option<&Vec<u8>>, library: &Library) {
        *self.0.entry((from, name.cloned(), library.clone())).or_default() += 1;
    }

    pub(super) fn merge(&mut self, other: Roster) {
        for (kind, count) in other.0 {
            *self.0.entry(kind).or_default() += count;
        }
    }

    /// The largest groups first.
    pub(super) fn list(self) -> ClientList {
        let mut groups: Vec<ClientGroup> = self
            .0
            .into_iter()
            .map(|((from, name, library), connections)| ClientGroup {
                address: from.map_or("unix socket".into(), |address| address.to_canonical().to_string()),
                name: name.as_deref().map(shown),
                library: Some(library.text()).filter(|text| !text.is_empty()),
                connections,
            })
            .collect();
        groups.sort_by(|a, b| {
            let rest = |group: &ClientGroup| (group.address.clone(), group.name.clone(), group.library.clone());
            b.connections.cmp(&a.connections).then_with(|| rest(a).cmp(&rest(b)))
        });
        let left_out = groups.len().saturating_sub(MAX_GROUPS) as u64;
        groups.truncate(MAX_GROUPS);
        ClientList {
            clients: groups,
            left_out,
        }
    }
}

fn shown(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    let mut short: String = text.chars().take(MAX_NAME_LEN).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(roster: &mut Roster, from: Option<&str>, name: &str, library: &str) {
        let mut its = Library::default();
        if let Some((name, version)) = library.split_once(' ') {
            its.set_name(name.as_bytes());
            its.set_version(version.as_bytes());
        }
        let name = name.as_bytes().to_vec();
        let from = from.map(|address| address.parse().unwrap());
        roster.add(from, Some(&name).filter(|name| !name.is_empty()), &its);
    }

    #[test]
    fn clients_of_a_kind_are_counted_over_all_workers() {
        let (mut first, mut second) = (Roster::default(), Roster::default());
        add(&mut first, Some("10.0.0.7"), "", "redis-py 5.0.1");
        add(&mut first, None, "", "");
        add(&mut second, Some("::ffff:10.0.0.7"), "celery", "");
        add(&mut second, Some("10.0.0.7"), "", "redis-py 5.0.1");
        first.merge(second);
        let list = first.list();
        let shown: Vec<_> = list
            .clients
            .iter()
            .map(|group| {
                let text = |value: &Option<String>| value.clone().unwrap_or_default();
                (
                    group.address.clone(),
                    text(&group.name),
                    text(&group.library),
                    group.connections,
                )
            })
            .collect();
        let row = |address: &str, name: &str, library: &str, count| {
            (address.to_owned(), name.to_owned(), library.to_owned(), count)
        };
        assert_eq!(
            shown,
            [
                row("10.0.0.7", "", "redis-py 5.0.1", 2),
                row("10.0.0.7", "celery", "", 1),
                row("unix socket", "", "", 1)
            ]
        );
    }

    #[test]
    fn names_and_groups_have_limits() {
        let mut roster = Roster::default();
        for number in 0..MAX_GROUPS + 5 {
            add(&mut roster, None, &format!("{number:0>100}"), "");
        }
        let list = roster.list();
        assert_eq!((list.clients.len(), list.left_out), (MAX_GROUPS, 5));
        let name = list.clients[0].name.as_deref().unwrap();
        assert!(
            name.chars().count() == MAX_NAME_LEN + 1 && name.ends_with('…'),
            "{name}"
        );
    }
}
