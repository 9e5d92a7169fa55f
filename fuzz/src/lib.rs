//! Properties that hold for any bytes. The same functions run under libFuzzer (`scripts/fuzz`) and, over the kept corpus
//! and by lot, as ordinary tests. Each panics where its property does not hold.

mod scanners;
mod session;
mod values;

pub use scanners::{reply_scanner, request_scanner, split_reads};
pub use session::session;
pub use values::{msgpack, pickle, signed, value};
