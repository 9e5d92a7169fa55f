//! What will bite, as far as a project's settings and text tell.

use super::probe::{Cache, Probe};

/// The first redis-py that opens with `HELLO 3`.
const RESP3_REDIS_PY: u32 = 8;

pub(super) fn warnings(probe: &Probe, cache: &Cache) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut warn = |when: bool, text: String| {
        if when {
            warnings.push(text);
        }
    };
    warn(
        cache.alias != "default",
        format!(
            "sessions are on the cache {:?} and not on \"default\": change the LOCATION of that one",
            cache.alias
        ),
    );
    let same = |other: &&Cache| {
        other.alias != cache.alias
            && match (&other.connection, &cache.connection) {
                (Some(a), Some(b)) => (&a.host, a.port, &a.path, a.db) == (&b.host, b.port, &b.path, b.db),
                _ => false,
            }
    };
    let sharing: Vec<&str> = probe
        .caches
        .iter()
        .filter(same)
        .map(|other| other.alias.as_str())
        .collect();
    warn(
        !sharing.is_empty(),
        format!(
            "the cache {} is in the same Redis database as the sessions: point it at the proxy as well, or its clear() deletes \
             every session past the proxy",
            sharing.join(" and ")
        ),
    );
    warn(
        !probe.clears.is_empty(),
        format!(
            "the sessions' cache is emptied, which logs everybody out, at {}: tee.on_flush = \"shield\" spares the sessions",
            probe.clears.join(", ")
        ),
    );
    warn(
        probe.save_every_request,
        "SESSION_SAVE_EVERY_REQUEST is on: each request writes its session, so the other stores get as many writes as the site has \
         requests"
            .to_owned(),
    );
    let redis_py = probe
        .redis_py
        .as_deref()
        .and_then(|text| text.split('.').next()?.parse::<u32>().ok());
    warn(
        redis_py.is_some_and(|major| major >= RESP3_REDIS_PY),
        "this redis-py opens with HELLO 3: both Redis servers must be version 6 or later".to_owned(),
    );
    warn(
        cache.locations > 1,
        "LOCATION names several servers, and reads go to the others: name the proxy alone, since a replica may not have a session yet"
            .to_owned(),
    );
    warn(
        cache.client_class.as_deref().is_some_and(|class| class.contains("Herd")),
        "HerdClient keeps sessions inside an object of its own: they are copied to the new Redis, and no row can carry them".to_owned(),
    );
    warn(
        !probe.stock_store,
        format!(
            "the session store is the project's own ({}): its rows are signed with the salt that it names",
            probe.store
        ),
    );
    warnings
}
