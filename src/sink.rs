//! The stores that the tee writes to, and that backfill and verify read: one Redis, one database. Idempotent.
