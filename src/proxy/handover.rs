//! A client on its way from one worker to another: its socket, and all that the proxy knows of it. Only a client that
//! waits for nothing and holds nothing changes its worker.

use std::rc::Rc;

use bytes::BytesMut;

use super::identity::{Credentials, Identity, Labels, Library, Protocol};
use crate::net::stream::Detached;

#[derive(Debug)]
pub(super) struct Handover {
    socket: Detached,
    known: Known,
}

/// All that the proxy knows of a client, but for its socket.
#[derive(Debug)]
pub(super) struct Known {
    /// Bytes of a command that is not whole yet.
    pub(super) input: BytesMut,
    db: u32,
    protocol: Protocol,
    credentials: Option<Credentials>,
    pub(super) labels: Labels,
    pub(super) library: Library,
    /// See [`Identity::rights`]; `None` for whoever has just connected.
    rights: Option<u64>,
    /// It has authenticated, where the proxy decides that itself.
    pub(super) admitted: bool,
}

impl Handover {
    pub(super) fn new(
        socket: Detached,
        input: BytesMut,
        identity: &Identity,
        (labels, library): (Labels, Library),
        admitted: bool,
    ) -> Self {
        let known = Known {
            input,
            db: identity.db,
            protocol: identity.protocol,
            credentials: identity.credentials.as_deref().cloned(),
            rights: Some(identity.rights),
            labels,
            library,
            admitted,
        };
        Handover { socket, known }
    }

    /// A client that has just connected.
    pub(super) fn of_new_client(socket: Detached) -> Self {
        let identity = Identity::default();
        let mut new = Handover::new(socket, BytesMut::new(), &identity, Default::default(), false);
        new.known.rights = None;
        new
    }

    pub(super) fn parts(self) -> (Detached, Known) {
        (self.socket, self.known)
    }
}

impl Known {
    /// `rights` is how often users have been changed by now.
    pub(super) fn identity(&self, rights: u64) -> Identity {
        Identity {
            rights: self.rights.unwrap_or(rights),
            db: self.db,
            protocol: self.protocol,
            credentials: self.credentials.clone().map(Rc::new),
        }
    }
}
