//! What the program needs, gathered from flags, environment and file, and validated once.
