//! What the operator typed, and the commands that talk to a running proxy.
