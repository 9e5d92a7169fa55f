//! A worker's upstream connections: those that clients share, and those that stand for whoever needs one alone.

use std::rc::Rc;

use super::Worker;
use crate::proxy::client::Client;
use crate::proxy::identity::{Identity, Labels};
use crate::proxy::upstream::Upstream;
use crate::status::Authority;

/// Idle connections kept for transactions, scripts and blocking commands, of clients that speak alike.
const MAX_KEPT: usize = 128;
/// Idle connections that stand for each kind of client, so that none has to be opened while a command waits: what blocks
/// or subscribes must not be overtaken by what should wake it. No more than that: a Redis looks after five connections each
/// 100 ms, so that each idle one makes it slower for all the others.
const SPARES: usize = 2;

/// Idle connections of one kind.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) idle: Vec<Rc<Upstream>>,
    /// The fewest since the last look: so many were too many.
    fewest: usize,
}

impl Worker {
    pub(in crate::proxy) fn next_upstream_id(&self) -> u64 {
        let next = self.next_upstream.get();
        self.next_upstream.set(next + 1);
        next * self.shared.workers as u64 + self.index as u64
    }

    /// The connection that all clients of this identity share.
    pub(in crate::proxy) fn shared_upstream(self: &Rc<Self>, identity: &Identity) -> Rc<Upstream> {
        if let Some(upstream) = self.upstreams.borrow().get(identity) {
            return upstream.clone();
        }
        let upstream = Upstream::open(self, self.authority.get(), identity.clone(), None);
        self.upstreams.borrow_mut().insert(identity.clone(), upstream.clone());
        self.open_spares(identity);
        upstream
    }

    pub(super) fn open_all_spares(self: &Rc<Self>) {
        let identities: Vec<Identity> = self.upstreams.borrow().keys().cloned().collect();
        identities.iter().for_each(|identity| self.open_spares(identity));
    }

    /// Connections that stand before a client needs one of its own. A worker that has no clients gets none meanwhile, but
    /// for the first, where the next client goes: a small plan of a hosted Redis allows twenty connections in all.
    fn open_spares(self: &Rc<Self>, identity: &Identity) {
        if !self.may_open_more(identity) {
            return;
        }
        let kind = (identity.clone(), Labels::default());
        let standing = self.kept.borrow().get(&kind).map_or(0, |kept| kept.idle.len());
        for _ in standing..self.spares() {
            let labels = Some(Labels::default());
            self.keep(Upstream::open(self, self.authority.get(), identity.clone(), labels));
        }
    }

    /// Whether the server would take another connection for what those of this identity are. Where strangers are no longer let in, it
    /// would be one of a stranger, and no use to who was there before.
    fn may_open_more(&self, identity: &Identity) -> bool {
        let rights = &self.shared.rights;
        let changes = rights.changes();
        identity.credentials.is_some()
            || self.shared.servers.by_url
            || identity.rights == changes
            || (rights.are_known(changes) && !rights.asks(changes))
    }

    /// How many of them there should be, of each kind.
    fn spares(&self) -> usize {
        let needed = self.index == 0 || !self.clients.borrow().is_empty();
        if needed { SPARES } else { 0 }
    }

    /// The shared connection of this identity, if it stands: the proof that the identity is good.
    pub(in crate::proxy) fn known_upstream(&self, identity: &Identity) -> Option<Rc<Upstream>> {
        self.upstreams
            .borrow()
            .get(identity)
            .filter(|upstream| upstream.connected.get())
            .cloned()
    }

    /// Whether a connection of this identity stands that its client may share.
    pub(in crate::proxy) fn knows(&self, identity: &Identity) -> bool {
        self.known_upstream(identity).is_some()
    }

    /// One of the spares, if any stands that is of this identity, with these labels or at least without any.
    pub(in crate::proxy) fn take_standing(&self, identity: &Identity, labels: &Labels) -> Option<Rc<Upstream>> {
        let mut all = self.kept.borrow_mut();
        [labels, &Labels::default()].into_iter().find_map(|labels| {
            let kept = all.get_mut(&(identity.clone(), labels.clone()))?;
            kept.idle.retain(|upstream| !upstream.is_closed());
            let at = kept.idle.iter().rposition(|upstream| upstream.connected.get())?;
            kept.fewest = kept.fewest.min(kept.idle.len() - 1);
            Some(kept.idle.remove(at))
        })
    }

    /// Whether some connection of this worker stands. The clients, who may be many, are looked through last.
    pub(in crate::proxy) fn is_connected_to(&self, authority: Authority) -> bool {
        let stands = |upstream: &Rc<Upstream>| upstream.connected.get() && upstream.authority == authority;
        self.upstreams.borrow().values().any(stands)
            || self.kept.borrow().values().flat_map(|kept| &kept.idle).any(stands)
            || self
                .clients
                .borrow()
                .values()
                .filter_map(|client| client.pinned_to())
                .any(|upstream| stands(&upstream))
    }

    /// A connection for one client alone.
    pub(in crate::proxy) fn exclusive_upstream(self: &Rc<Self>, identity: &Identity, labels: &Labels) -> Rc<Upstream> {
        let open = || Upstream::open(self, self.authority.get(), identity.clone(), Some(labels.clone()));
        let mut all = self.kept.borrow_mut();
        let kept = all.entry((identity.clone(), labels.clone())).or_default();
        kept.idle.retain(|upstream| !upstream.is_closed());
        // One that stands: the newest may still be on their way, and a busy script lets them wait.
        let standing = kept.idle.iter().rposition(|upstream| upstream.connected.get());
        let upstream = match standing {
            Some(at) => kept.idle.remove(at),
            None => kept.idle.pop().unwrap_or_else(open),
        };
        kept.fewest = kept.fewest.min(kept.idle.len());
        let bare = identity.is_nobody() && *labels == Labels::default();
        if bare && kept.idle.len() < SPARES && !self.shared.servers.by_url && self.may_open_more(identity) {
            // Nothing is said on it before it is needed: this one need not wait for a quiet moment.
            kept.idle.push(open());
        }
        upstream
    }

    /// Takes back a connection that no client needs any more.
    pub(in crate::proxy) fn keep(&self, upstream: Rc<Upstream>) {
        let mut kept = self.kept.borrow_mut();
        let kind = (upstream.identity.clone(), upstream.labels.clone());
        let list = &mut kept.entry(kind).or_default().idle;
        if upstream.authority == self.authority.get() && !upstream.is_closed() && list.len() < MAX_KEPT {
            list.push(upstream);
        } else {
            upstream.close();
        }
    }

    /// Opens what was taken of the spares. Not at once: a server that is asked nothing by the clients should hear
    /// nothing (MONITOR shows the SELECT of a new connection).
    pub(super) fn refill(self: &Rc<Self>) {
        let used: Vec<Identity> = self
            .upstreams
            .borrow()
            .iter()
            .filter(|(identity, upstream)| upstream.connected.get() && self.may_open_more(identity))
            .map(|(identity, _)| identity.clone())
            .collect();
        let standing = |(identity, _): &(Identity, Labels)| used.contains(identity);
        let mut wanted = Vec::new();
        for (kind, kept) in self.kept.borrow_mut().iter_mut().filter(|(kind, _)| standing(kind)) {
            kept.idle.retain(|upstream| !upstream.is_closed());
            wanted.extend((kept.idle.len()..self.spares()).map(|_| kind.clone()));
        }
        for (identity, labels) in wanted.into_iter().filter(|(_, labels)| labels.name.is_none()) {
            self.keep(Upstream::open(self, self.authority.get(), identity, Some(labels)));
        }
    }

    /// Closes connections that nobody has used since the last time.
    pub(super) fn tidy(&self) {
        let shared = self.upstreams.borrow();
        self.kept.borrow_mut().retain(|(identity, _), kept| {
            kept.idle.retain(|upstream| !upstream.is_closed());
            let spares = if shared.contains_key(identity) {
                self.spares()
            } else {
                0
            };
            let unused = kept.fewest.min(kept.idle.len()).saturating_sub(spares);
            kept.idle.drain(..unused).for_each(|upstream| upstream.close());
            kept.fewest = kept.idle.len();
            !kept.idle.is_empty()
        });
        drop(shared);
        // A shared connection whose clients have all gone is known to this map and to its own task alone.
        self.upstreams.borrow_mut().retain(|identity, upstream| {
            let used = Rc::strong_count(upstream) > 2 || !upstream.is_idle() || *identity == Identity::default();
            if !used {
                upstream.close();
            }
            used
        });
    }

    /// The server no longer accepts this identity: the connections that had it end.
    pub(in crate::proxy) fn lose_identity(&self, identity: &Identity) {
        self.upstreams.borrow_mut().remove(identity);
        let clients: Vec<Rc<Client>> = self.clients.borrow().values().cloned().collect();
        for client in clients {
            if *client.identity.borrow() == *identity {
                client.close();
            }
        }
    }
}
