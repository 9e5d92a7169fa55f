//! Sockets: endpoints, connecting, back-off.

pub mod endpoint;
pub use endpoint::Endpoint;
