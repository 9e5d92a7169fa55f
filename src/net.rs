//! Sockets: endpoints, connecting, TLS, back-off, and what is connected.

pub mod backoff;
pub mod endpoint;
pub mod footprint;
pub mod stream;
pub mod tls;

pub use backoff::Backoff;
pub use endpoint::{Address, Endpoint};
pub use footprint::{Footprint, Presence};
