//! What the interface promises and this version does not do yet.

use std::time::Duration;

use super::{Ack, ClientAuth, Compressor, Config, Mirror, OnFlush, OnSourceLoss, Serializer, SessionSerializer, Store};

/// The one that connections have.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

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
            uses_tls(store),
            &format!("{side}: TLS (rediss://, ca_file …)"),
            "use redis:// or unix:",
        );
        refuse(
            !store.sentinel.is_empty() || store.sentinel_master.is_some(),
            &format!("{side}.sentinel"),
            &format!("give the address of the present master as {side}.url"),
        );
        refuse(
            store.connect_timeout != DEFAULT_CONNECT_TIMEOUT,
            &format!("{side}.connect_timeout"),
            "leave it at 2s",
        );
        refuse(
            store.cluster,
            &format!("{side}.cluster"),
            "give a Redis that is no cluster",
        );
    }
    let client = &config.client;
    refuse(
        client.tls_cert.is_some() || client.tls_key.is_some(),
        "client.tls_cert, client.tls_key",
        "leave them out",
    );
    refuse(client.auth != ClientAuth::Same, "client.auth", "leave it at `same`");
    refuse(
        config.sites > 0,
        "[[site]]",
        "list the keys of all sites in django.session_key_patterns",
    );
    refuse(
        matches!(config.tee.ack, Ack::Target | Ack::All),
        "tee.ack",
        "use `journal` or `source`",
    );
    refuse(config.tee.mirror == Mirror::All, "tee.mirror", "leave it at `sessions`");
    refuse(
        config.tee.on_flush == OnFlush::Shield,
        "tee.on_flush = shield",
        "use `mirror` or `refuse`",
    );
    refuse(
        config.cutover.on_source_loss == OnSourceLoss::Promote,
        "cutover.on_source_loss",
        "leave it at `hold`",
    );
    let django = &config.django;
    refuse(
        !matches!(django.value_serializer, Serializer::Auto | Serializer::Pickle),
        "django.value_serializer",
        "use `auto` or `pickle`",
    );
    refuse(
        !matches!(django.value_compressor, Compressor::Auto | Compressor::None),
        "django.value_compressor",
        "use `auto` or `none`",
    );
    refuse(
        django.session_serializer == SessionSerializer::Pickle,
        "django.session_serializer",
        "with `json`, what a row cannot carry is listed as unstorable; or use database = none",
    );
    found
}

fn uses_tls(store: &Store) -> bool {
    store.url.expose().starts_with("rediss://")
        || store.ca_file.is_some()
        || store.cert_file.is_some()
        || store.key_file.is_some()
        || store.server_name.is_some()
        || store.insecure
}
