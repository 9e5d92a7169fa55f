//! A worker while the authority changes: commands are held, wait, and go on at whichever it is then.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::Worker;
use crate::command::CommandId;
use crate::proxy::client::Client;
use crate::proxy::identity::Identity;
use crate::proxy::upstream::{InFlight, Upstream};
use crate::resp::{Args, RequestScanner};
use crate::status::Authority;

/// How long connections to the other server may take before a cutover is refused.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(2);

impl Worker {
    pub(in crate::proxy) fn entered(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
    }

    pub(in crate::proxy) fn left(&self) {
        self.in_flight.set(self.in_flight.get() - 1);
        if self.in_flight.get() == 0 {
            self.report_hold();
        }
    }

    fn report_hold(&self) {
        if self.held.get()
            && let Some(done) = self.hold_done.take()
        {
            let _ = done.send(());
        }
    }

    pub(in crate::proxy) fn park(&self, client: &Rc<Client>) {
        self.parked.borrow_mut().insert(client.id, client.clone());
        self.stats.held.store(self.parked.borrow().len() as u64, Relaxed);
    }

    /// The client goes on once these sessions may be read.
    pub(in crate::proxy) fn park_until_cleared(&self, client: &Rc<Client>, keys: Vec<Bytes>) {
        let Some(restore) = self.shared.restore.clone() else {
            return;
        };
        let client = client.clone();
        client.clearing.set(true);
        tokio::task::spawn_local(async move {
            restore.clear(keys).await;
            client.clearing.set(false);
            client.wake();
        });
    }

    pub(in crate::proxy) fn park_backlogged(&self, client: &Rc<Client>) {
        self.backlogged.borrow_mut().insert(client.id, client.clone());
    }

    pub(in crate::proxy) fn wake_backlogged(&self) {
        if !self.backlogged.borrow().is_empty() {
            self.backlogged.take().values().for_each(|client| client.wake());
        }
    }

    pub(super) fn hold(&self, gives_up: bool, done: oneshot::Sender<()>) {
        self.held.set(true);
        if gives_up {
            self.all_upstreams().iter().for_each(|upstream| upstream.lift());
        }
        self.hold_done.set(Some(done));
        if self.in_flight.get() == 0 {
            self.report_hold();
        }
    }

    /// Those that clients wait for.
    fn all_upstreams(&self) -> Vec<Rc<Upstream>> {
        let mut all: Vec<Rc<Upstream>> = self.upstreams.borrow().values().cloned().collect();
        let clients = self.clients.borrow();
        let pinned = clients.values().filter_map(|client| client.pinned_to());
        all.extend(pinned);
        all
    }

    pub(super) fn prepare(self: &Rc<Self>, authority: Authority, done: oneshot::Sender<Result<(), String>>) {
        let identities: Vec<Identity> = self.upstreams.borrow().keys().cloned().collect();
        let prepared: HashMap<_, _> = identities
            .into_iter()
            .map(|identity| (identity.clone(), Upstream::open(self, authority, identity, None)))
            .collect();
        for (_, old) in self.prepared.replace(prepared.clone()) {
            old.close();
        }
        // Scripts belong to a server: one worker loads them for all. The hold waits for their replies.
        let servers = &self.shared.servers;
        let known = |identity: &&Identity| servers.are_the_sources(identity.credentials.as_deref());
        let upstream = prepared.keys().find(known).and_then(|identity| prepared.get(identity));
        if let (0, Some(upstream)) = (self.index, upstream) {
            for frame in self.shared.scripts.commands() {
                upstream.send(&frame, InFlight::unowned(CommandId::lookup(b"script"), frame.len()));
            }
        }
        let patience = PREPARE_TIMEOUT.max(self.shared.servers.endpoint(authority).connect_timeout);
        tokio::task::spawn_local(async move {
            let start = Instant::now();
            // A client that speaks as nobody may be refused there as it is here: one good identity is enough.
            while !prepared.values().any(|upstream| upstream.connected.get()) {
                if start.elapsed() > patience {
                    let _ = done.send(Err(format!(
                        "cannot connect to the {authority} Redis within {patience:?}"
                    )));
                    return;
                }
                sleep(Duration::from_millis(2)).await;
            }
            // The others get a moment to stand too.
            let patience = Instant::now() + Duration::from_millis(50);
            while !prepared.values().all(|upstream| upstream.connected.get()) && Instant::now() < patience {
                sleep(Duration::from_millis(2)).await;
            }
            let _ = done.send(Ok(()));
        });
    }

    pub(super) fn release(self: &Rc<Self>, authority: Authority) {
        if authority != self.authority.get() {
            self.authority.set(authority);
            self.generation.set(self.generation.get() + 1);
            let old = self.upstreams.replace(self.prepared.take());
            for (identity, old) in &old {
                if old.has_lifted() {
                    self.shared_upstream(identity).land(old);
                }
            }
            let kept = self.kept.take();
            old.values()
                .chain(kept.values().flat_map(|kept| &kept.idle))
                .for_each(|upstream| upstream.close());
            let clients: Vec<Rc<Client>> = self.clients.borrow().values().cloned().collect();
            for client in clients {
                client.move_to(authority);
            }
            self.open_all_spares();
        } else {
            self.prepared.take().values().for_each(|upstream| upstream.close());
            self.all_upstreams().iter().for_each(|upstream| upstream.land(upstream));
        }
        self.held.set(false);
        self.hold_done.set(None);
        self.stats.held.store(0, Relaxed);
        self.parked.take().values().for_each(|client| client.wake());
    }
}

/// A blocked command with what is left of its timeout, in place of the whole.
pub(in crate::proxy) fn shorten_timeout(frame: &Bytes, sent: Option<Instant>) -> Bytes {
    let waited = sent.map_or(Duration::ZERO, |sent| sent.elapsed()).as_secs_f64();
    let Ok(Some(_)) = RequestScanner::default().scan(frame) else {
        return frame.clone();
    };
    let mut args: Vec<Vec<u8>> = Args::new(frame).map(<[u8]>::to_vec).collect();
    let name = args[0].to_ascii_lowercase();
    // Where the timeout stands, and how many of its units a second has.
    let (position, unit) = match name.as_slice() {
        b"blpop" | b"brpop" | b"brpoplpush" | b"blmove" | b"bzpopmin" | b"bzpopmax" => (args.len() - 1, 1.0),
        b"blmpop" | b"bzmpop" => (1, 1.0),
        b"wait" if args.len() == 3 => (2, 1000.0),
        b"waitaof" if args.len() == 4 => (3, 1000.0),
        b"xread" | b"xreadgroup" => match args.iter().position(|arg| arg.eq_ignore_ascii_case(b"block")) {
            Some(block) if block + 1 < args.len() => (block + 1, 1000.0),
            _ => return frame.clone(),
        },
        _ => return frame.clone(),
    };
    let Some(timeout) = std::str::from_utf8(&args[position])
        .ok()
        .and_then(|text| text.parse::<f64>().ok())
    else {
        return frame.clone();
    };
    // 0 means for ever; what is left must not become that.
    if timeout <= 0.0 {
        return frame.clone();
    }
    let left = (timeout - waited * unit).max(0.001 * unit);
    args[position] = if unit > 1.0 {
        format!("{left:.0}")
    } else {
        format!("{left:.3}")
    }
    .into_bytes();
    let mut out = Vec::new();
    crate::resp::request::encode(&args, &mut out);
    out.into()
}
