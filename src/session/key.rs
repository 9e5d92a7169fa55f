//! Redis key to session key and back.
//!
//! Django puts no separator between the engine's prefix and the session key, and `…sessions.cache` is a prefix of
//! `…sessions.cached_db`. What tells them apart is that no session key holds an underscore: `d_db7a22…` is none.

use super::Engine;

/// Where the session key stands in a configured pattern.
pub const PLACEHOLDER: &str = "{session_key}";

/// Length of the keys that Django itself makes (`SessionBase._get_new_session_key`).
pub const DJANGO_KEY_LEN: usize = 32;

/// Django takes a shorter cookie for no session at all (`SessionBase._validate_session_key`).
pub const MIN_KEY_LEN: usize = 8;

/// Width of the column `django_session.session_key`. A longer key can live in Redis, but no row can carry it.
pub const MAX_STORABLE_LEN: usize = 40;

/// Longest session key that a custom store's pattern recognises. What is longer is a cache entry of another kind.
pub const MAX_KEY_LEN: usize = 128;

/// Most patterns that one site may configure: each is tried on every write.
pub const MAX_PATTERNS: usize = 16;

/// Which session keys a pattern takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// Exactly what stock Django makes: 32 of `[a-z0-9]`.
    Stock,
    /// What a custom store may make: 8 to 128 of `[A-Za-z0-9-]`. Wider than stock on purpose, since taking a session
    /// for something else loses it, and taking something else for a session only copies one key too many.
    Custom,
}

/// One form of Redis key: literal text before and after the session key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPattern {
    prefix: String,
    suffix: String,
    shape: Shape,
}

/// Why a configured pattern cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("no session key pattern is given")]
    None,
    #[error("{count} session key patterns are over the limit {limit}")]
    TooMany { count: usize, limit: usize },
    #[error("session key pattern {pattern:?} must hold {{session_key}} exactly once")]
    Placeholder { pattern: String },
    #[error("session key pattern {pattern:?} has no literal text, so every key would be a session")]
    NoLiteral { pattern: String },
}

impl KeyPattern {
    /// A pattern such as `":1:django.contrib.sessions.cache{session_key}"`.
    ///
    /// # Errors
    /// [`PatternError`] where the placeholder is missing or repeated, or nothing else is there.
    pub fn parse(pattern: &str) -> Result<KeyPattern, PatternError> {
        let placeholder = || PatternError::Placeholder {
            pattern: pattern.to_owned(),
        };
        let (prefix, suffix) = pattern.split_once(PLACEHOLDER).ok_or_else(placeholder)?;
        if suffix.contains(PLACEHOLDER) {
            return Err(placeholder());
        }
        if prefix.is_empty() && suffix.is_empty() {
            return Err(PatternError::NoLiteral {
                pattern: pattern.to_owned(),
            });
        }
        Ok(KeyPattern {
            prefix: prefix.to_owned(),
            suffix: suffix.to_owned(),
            shape: Shape::Custom,
        })
    }

    pub(super) fn session_key<'a>(&self, redis_key: &'a [u8]) -> Option<&'a str> {
        let rest = redis_key.strip_prefix(self.prefix.as_bytes())?;
        let key = rest.strip_suffix(self.suffix.as_bytes())?;
        let takes = match self.shape {
            Shape::Stock => {
                key.len() == DJANGO_KEY_LEN && key.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
            }
            Shape::Custom => {
                (MIN_KEY_LEN..=MAX_KEY_LEN).contains(&key.len())
                    && key.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
            }
        };
        if takes { std::str::from_utf8(key).ok() } else { None }
    }

    pub(super) fn redis_key(&self, session_key: &str) -> Vec<u8> {
        [self.prefix.as_str(), session_key, self.suffix.as_str()]
            .concat()
            .into_bytes()
    }

    pub(super) fn may_be_in(&self, bytes: &[u8]) -> bool {
        let literal = if self.prefix.is_empty() {
            &self.suffix
        } else {
            &self.prefix
        };
        memchr::memmem::find(bytes, literal.as_bytes()).is_some()
    }
}

/// All key patterns of one site; the first is the one that new keys are made with. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPatterns(Vec<KeyPattern>);

impl KeyPatterns {
    /// The keys of a stock Django site: `KEY_PREFIX` and `VERSION` from its `CACHES` entry, and its session engine.
    ///
    /// Only session keys as stock Django makes them are recognised; a site whose store makes its own uses
    /// [`KeyPatterns::parse`].
    pub fn from_django(key_prefix: &str, version: &str, engine: Engine) -> KeyPatterns {
        let prefix = format!("{key_prefix}:{version}:django.contrib.sessions.{}", engine.key_part());
        KeyPatterns(vec![KeyPattern {
            prefix,
            suffix: String::new(),
            shape: Shape::Stock,
        }])
    }

    /// Patterns as the operator wrote them, for a custom `KEY_FUNCTION`, a custom store, or several sites.
    ///
    /// # Errors
    /// [`PatternError`] names the first pattern that cannot be used.
    pub fn parse(patterns: &[String]) -> Result<KeyPatterns, PatternError> {
        if patterns.is_empty() {
            return Err(PatternError::None);
        }
        if patterns.len() > MAX_PATTERNS {
            return Err(PatternError::TooMany {
                count: patterns.len(),
                limit: MAX_PATTERNS,
            });
        }
        patterns
            .iter()
            .map(|p| KeyPattern::parse(p))
            .collect::<Result<_, _>>()
            .map(KeyPatterns)
    }

    /// The session key inside `redis_key`, or `None` where it is not a session of this site.
    ///
    /// Called for every write: all but session keys fall at the comparison with the literal prefix.
    pub fn session_key<'a>(&self, redis_key: &'a [u8]) -> Option<&'a str> {
        self.0.iter().find_map(|pattern| pattern.session_key(redis_key))
    }

    /// The Redis key of a session, made with the first pattern.
    pub fn redis_key(&self, session_key: &str) -> Vec<u8> {
        // Both constructors refuse to make an empty list, so `first` is always there.
        let first = self.0.first().map(|pattern| pattern.redis_key(session_key));
        first.unwrap_or_default()
    }

    /// Whether a session's key in Redis follows from its own.
    pub fn is_one(&self) -> bool {
        self.0.len() == 1
    }

    /// Every Redis key that the session may have, the usual one first.
    pub fn redis_keys(&self, session_key: &str) -> Vec<Vec<u8>> {
        self.0.iter().map(|pattern| pattern.redis_key(session_key)).collect()
    }

    /// Whether a session key may stand anywhere in `bytes` (one whole command): a quick no for nearly all of them.
    pub fn may_be_in(&self, bytes: &[u8]) -> bool {
        self.0.iter().any(|pattern| pattern.may_be_in(bytes))
    }

    /// `MATCH` globs for `SCAN`, one per pattern. They match more than sessions (that of `cache` also finds the keys of
    /// `cached_db`), so each key that comes back still has to pass [`KeyPatterns::session_key`].
    pub fn scan_globs(&self) -> Vec<String> {
        self.0
            .iter()
            .map(|p| format!("{}*{}", escape_glob(&p.prefix), escape_glob(&p.suffix)))
            .collect()
    }

    /// The literal texts that session keys start with, for `CLIENT TRACKING … BCAST PREFIX`. Empty text: any key.
    pub fn prefixes(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|p| p.prefix.as_str())
    }
}

/// Whether a database row can carry this session key: the column is `varchar(40)`.
pub fn is_storable(session_key: &str) -> bool {
    session_key.chars().count() <= MAX_STORABLE_LEN
}

/// Redis globs know `* ? [ ] ^ - \`; the middle three only between brackets, which escaping `[` rules out.
pub(crate) fn escape_glob(literal: &str) -> String {
    let mut out = String::with_capacity(literal.len());
    for c in literal.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "7a22ufzat5nsjs7ctohx5yu69gehdq5k";

    fn patterns(texts: &[&str]) -> Result<KeyPatterns, PatternError> {
        KeyPatterns::parse(&texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn engines_are_never_taken_for_each_other() {
        let cache = KeyPatterns::from_django("", "1", Engine::Cache);
        let cached_db = KeyPatterns::from_django("", "1", Engine::CachedDb);
        for (own, other) in [(&cache, &cached_db), (&cached_db, &cache)] {
            assert_eq!(own.session_key(&own.redis_key(KEY)), Some(KEY));
            assert_eq!(own.session_key(&other.redis_key(KEY)), None);
        }
        let custom = patterns(&[":1:django.contrib.sessions.cache{session_key}"]).unwrap();
        assert_eq!(custom.session_key(&cached_db.redis_key(KEY)), None);
        assert_eq!(custom.session_key(&cached_db.redis_key("shortkey")), None);
    }

    #[test]
    fn custom_patterns_take_what_custom_stores_make() {
        let site = patterns(&["{p}/1/s{session_key}/x", "b:{session_key}"]).unwrap();
        assert_eq!(site.session_key(b"{p}/1/s0123ABCD-9/x"), Some("0123ABCD-9"));
        assert_eq!(site.session_key(b"b:0123ABCD-9"), Some("0123ABCD-9"));
        assert_eq!(site.redis_key("0123ABCD-9"), b"{p}/1/s0123ABCD-9/x");
        let long = "a".repeat(MAX_STORABLE_LEN + 1);
        assert_eq!(site.session_key(format!("b:{long}").as_bytes()), Some(long.as_str()));
        assert!(!is_storable(&long) && is_storable(&long[1..]));
        assert_eq!(
            site.session_key(format!("b:{}", "a".repeat(MAX_KEY_LEN + 1)).as_bytes()),
            None
        );
        assert_eq!(site.session_key(b"b:1234567"), None);
        // Prefix and suffix may not overlap in the key.
        assert_eq!(patterns(&["ab{session_key}ba"]).unwrap().session_key(b"aba"), None);
    }

    #[test]
    fn unusable_patterns_are_refused() {
        assert_eq!(patterns(&[]), Err(PatternError::None));
        assert!(matches!(patterns(&["x"]), Err(PatternError::Placeholder { .. })));
        assert!(matches!(
            patterns(&["x{session_key}{session_key}"]),
            Err(PatternError::Placeholder { .. })
        ));
        assert!(matches!(
            patterns(&["{session_key}"]),
            Err(PatternError::NoLiteral { .. })
        ));
        assert!(matches!(
            patterns(&["x{session_key}"; MAX_PATTERNS + 1]),
            Err(PatternError::TooMany { .. })
        ));
    }

    #[test]
    fn globs_match_the_literal_text_only() {
        let site = patterns(&[r"a*b?[c]\{session_key}z^-"]).unwrap();
        assert_eq!(site.scan_globs(), [r"a\*b\?\[c\]\\*z^-"]);
    }
}
