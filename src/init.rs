//! `sessionferry init`: a configuration from a Django project's own settings.
//!
//! The project's own Python is asked (`probe.py`), since only it knows what its settings come to. What the answer means is
//! worked out without any I/O (`plan`, with `address`, `document` and `warning`), and then written (`files`): a commented `sessionferry.toml`, and a folder with the
//! secrets that are not in the environment already.
//!
//! Absent on purpose: any change to the project. The lines to change there are printed.

mod address;
mod document;
mod files;
mod plan;
mod probe;
mod warning;

pub use files::{WriteError, write};
pub use plan::{NotMovable, Plan, Step, plan};
pub use probe::{Probe, ProbeError, Project};
