//! Sockets: endpoints, connecting, back-off.

pub mod backoff;
pub mod endpoint;
pub mod stream;

pub use backoff::Backoff;
pub use endpoint::{Address, Endpoint};
