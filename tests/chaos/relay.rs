//! A link that can be made to misbehave: a TCP relay before one server.

#![allow(unreachable_pub, reason = "a module of one test")]

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    thread::{sleep, spawn},
    time::Duration,
};

/// What the link does to what comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    Whole,
    /// Every connection is reset, and so is each new one.
    Cut,
    /// Connections stay and nothing passes, in either direction.
    Silent,
    /// Nothing comes back: commands arrive, replies do not.
    HalfOpen,
    /// Each piece takes this long, ms.
    Slow(u8),
}

impl Link {
    fn code(self) -> u8 {
        match self {
            Link::Whole => 0,
            Link::Cut => 1,
            Link::Silent => 2,
            Link::HalfOpen => 3,
            Link::Slow(ms) => ms.max(10),
        }
    }

    fn of(code: u8) -> Link {
        match code {
            0 => Link::Whole,
            1 => Link::Cut,
            2 => Link::Silent,
            3 => Link::HalfOpen,
            ms => Link::Slow(ms),
        }
    }
}

/// How often a link that passes nothing is looked at again.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// A read ends after this, so that the link's state is seen.
const READ_FOR: Duration = Duration::from_millis(20);

#[derive(Default)]
struct State {
    link: AtomicU8,
    /// Grows with each cut: connections of before are gone for good.
    cuts: AtomicU64,
    over: AtomicBool,
}

/// Listens on a free port and passes on to one server.
pub struct Relay {
    address: String,
    state: Arc<State>,
}

impl Relay {
    pub fn before(server: String) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        listener.set_nonblocking(true).unwrap();
        let state: Arc<State> = Arc::default();
        let accepting = state.clone();
        spawn(move || {
            while !accepting.over.load(Relaxed) {
                match listener.accept() {
                    Ok((client, _)) => pass(client, &server, &accepting),
                    Err(_) => sleep(LOOK_EVERY),
                }
            }
        });
        Relay { address, state }
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn set(&self, link: Link) {
        if link == Link::Cut {
            self.state.cuts.fetch_add(1, Relaxed);
        }
        self.state.link.store(link.code(), Relaxed);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.state.over.store(true, Relaxed);
        self.state.cuts.fetch_add(1, Relaxed);
    }
}

/// A connection that ends with a reset, as one does that is cut.
fn reset(stream: &TcpStream) {
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
    let _ = stream.shutdown(Shutdown::Both);
}

fn pass(client: TcpStream, server: &str, state: &Arc<State>) {
    let link = Link::of(state.link.load(Relaxed));
    let upstream = if link == Link::Cut {
        None
    } else {
        TcpStream::connect(server).ok()
    };
    let Some(upstream) = upstream else {
        reset(&client);
        return;
    };
    for stream in [&client, &upstream] {
        stream.set_nodelay(true).unwrap();
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(READ_FOR)).unwrap();
    }
    let cuts = state.cuts.load(Relaxed);
    for (from, to, back) in [
        (client.try_clone().unwrap(), upstream.try_clone().unwrap(), false),
        (upstream, client, true),
    ] {
        let state = state.clone();
        spawn(move || copy(&from, &to, back, &state, cuts));
    }
}

fn passes(state: &State, back: bool) -> bool {
    match Link::of(state.link.load(Relaxed)) {
        Link::Silent => false,
        Link::HalfOpen => !back,
        _ => true,
    }
}

fn copy(mut from: &TcpStream, mut to: &TcpStream, back: bool, state: &State, cuts: u64) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        if state.cuts.load(Relaxed) != cuts {
            reset(from);
            reset(to);
            return;
        }
        if !passes(state, back) {
            sleep(LOOK_EVERY);
            continue;
        }
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => {
                // It may have come to misbehave while this was waited for.
                while !passes(state, back) && state.cuts.load(Relaxed) == cuts {
                    sleep(LOOK_EVERY);
                }
                if let Link::Slow(ms) = Link::of(state.link.load(Relaxed)) {
                    sleep(Duration::from_millis(u64::from(ms)));
                }
                if to.write_all(&buffer[..read]).is_err() {
                    break;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => {
                reset(to);
                return;
            }
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
