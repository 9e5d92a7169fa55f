//! The move: phases, backfill, verify, cutover and rollback.

use crate::status::{Operation, OperationKind, OperationOptions, Status};

/// Why an operation was not started (HTTP 409), in plain words that say what to do next.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// What the admin address may ask of the move.
pub trait Control: Send + Sync + 'static {
    fn status(&self) -> Status;
    /// Starts an operation in the background.
    fn start(&self, kind: OperationKind, options: OperationOptions) -> Result<u64, Refused>;
    fn operation(&self, id: u64) -> Option<Operation>;
    /// Asks an operation to stop; what is done stays done. `false` where there is none of that id running.
    fn stop(&self, id: u64) -> bool;
    /// Reasons why the proxy is not ready; empty where it is.
    fn unready(&self) -> Vec<String>;
    /// Appends the metrics in Prometheus text form.
    fn metrics(&self) -> String;
}
