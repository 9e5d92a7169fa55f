//! What the interface promises and this version does not do yet.

use super::{Config, Mirror};

/// Settings that are understood but not implemented, each with what to write instead; empty where all is well.
///
/// Saying so at start is kinder than a setting without effect. A line goes when its feature arrives.
pub fn unsupported(config: &Config) -> Vec<String> {
    let mut found = Vec::new();
    let mut refuse = |when: bool, setting: &str, instead: &str| {
        if when {
            found.push(format!("{setting}: not implemented in this version; {instead}"));
        }
    };
    for (side, store) in [("source", &config.source), ("target", &config.target)] {
        refuse(
            !store.sentinel.is_empty() || store.sentinel_master.is_some(),
            &format!("{side}.sentinel"),
            &format!("give the address of the present master as {side}.url"),
        );
        refuse(
            store.cluster,
            &format!("{side}.cluster"),
            "give a Redis that is no cluster",
        );
    }
    refuse(config.tee.mirror == Mirror::All, "tee.mirror", "leave it at `sessions`");
    found
}
