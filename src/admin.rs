//! The admin address: health, status, metrics, and operations over HTTP.
