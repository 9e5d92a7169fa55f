//! What the configuration means, in the rooms' own types.

use std::sync::Arc;

use crate::config::{self, Config, DatabaseMode};
use crate::net::Endpoint;
use crate::session::row::RowCodec;
use crate::session::{Aliases, Compression, Compressor, KeyPatterns, Serializer, SessionSerializer, ValueFormat};
use crate::sink::{Database, DatabaseOptions};
use crate::tee::{Rows, SiteRows};

/// The servers, the sessions and their rows.
pub(super) struct Setup {
    pub(super) source: Endpoint,
    pub(super) target: Endpoint,
    pub(super) patterns: KeyPatterns,
    pub(super) aliases: Option<Aliases>,
    pub(super) rows: Option<Arc<Rows>>,
}

pub(super) fn setup(config: &Config) -> Result<Setup, String> {
    let endpoint = |side: &str, store: &config::Store| store.endpoint().map_err(|error| format!("{side}: {error}"));
    let source = endpoint("source", &config.source)?;
    let target = endpoint("target", &config.target)?;
    if source.db != target.db {
        return Err(format!(
            "source.url names database {} and target.url database {}: Django keeps its number at a cutover, so give the same",
            source.db, target.db
        ));
    }
    let all: Vec<String> = config
        .sites
        .iter()
        .flat_map(|site| site.django.session_key_patterns.clone())
        .collect();
    let patterns = KeyPatterns::parse(&all).map_err(|error| error.to_string())?;
    let mixed = config.sites.iter().map(|site| &site.django);
    let mixed = mixed.filter(|django| django.engine == config::Engine::Both);
    let aliases = Aliases::of_engines(mixed.flat_map(|django| &django.session_key_patterns));
    let rows = config.sites.iter().filter_map(|site| rows_of(site).transpose());
    Ok(Setup {
        source,
        target,
        patterns,
        aliases: aliases.map_err(|error| error.to_string())?,
        rows: Rows::new(rows.collect::<Result<_, String>>()?),
    })
}

/// A site's rows; `None` where it has no database.
fn rows_of(site: &config::Site) -> Result<Option<Arc<SiteRows>>, String> {
    rows_in(site, &site.database.table)
}

/// The same in another table of that database.
pub(super) fn rows_in(site: &config::Site, table: &str) -> Result<Option<Arc<SiteRows>>, String> {
    let (django, database) = (&site.django, &site.database);
    let (Some(url), Some(secret_key)) = (&database.url, &django.secret_key) else {
        return Ok(None);
    };
    let options = DatabaseOptions {
        table: table.to_owned(),
        use_tz: django.use_tz,
        time_zone: django.time_zone,
    };
    let are_djangos = database.mode == DatabaseMode::Verify;
    let is_sqlite = url.expose().trim_start().to_ascii_lowercase().starts_with("sqlite");
    let fallbacks: Vec<Vec<u8>> = django
        .secret_key_fallbacks
        .iter()
        .map(|key| key.expose().as_bytes().to_vec())
        .collect();
    let codec = RowCodec::new(secret_key.expose().as_bytes(), &fallbacks, &django.salt)
        .with_format(value_format(django))
        .with_serializer(match django.session_serializer {
            config::SessionSerializer::Json => SessionSerializer::Json,
            config::SessionSerializer::Pickle => SessionSerializer::Pickle,
        });
    Ok(Some(Arc::new(SiteRows {
        patterns: KeyPatterns::parse(&django.session_key_patterns).map_err(|error| error.to_string())?,
        database: Database::open(url.expose(), options).map_err(|error| format!("database.url: {error}"))?,
        table: table.to_owned(),
        codec,
        cookie_age: django.cookie_age.as_secs() as i64,
        are_djangos,
        may_be_made: is_sqlite && !are_djangos,
    })))
}

/// How the site's cache backend writes values.
fn value_format(django: &config::Django) -> ValueFormat {
    let with = |compressor| Compression::With(compressor);
    ValueFormat {
        serializer: match django.value_serializer {
            config::Serializer::Auto => Serializer::Auto,
            config::Serializer::Pickle => Serializer::Pickle,
            config::Serializer::Json => Serializer::Json,
            config::Serializer::Msgpack => Serializer::Msgpack,
            config::Serializer::Signed => Serializer::Signed,
        },
        compression: match django.value_compressor {
            config::Compressor::Auto => Compression::Auto,
            config::Compressor::None => Compression::None,
            config::Compressor::Zlib => with(Compressor::Zlib),
            config::Compressor::Gzip => with(Compressor::Gzip),
            config::Compressor::Bz2 => with(Compressor::Bz2),
            config::Compressor::Lzma => with(Compressor::Lzma),
            config::Compressor::Lz4 => with(Compressor::Lz4),
            config::Compressor::Zstd => with(Compressor::Zstd),
            config::Compressor::Brotli => with(Compressor::Brotli),
        },
    }
}
