//! Two names of one session: workers with the engine `cache` and workers with `cached_db` side by side.
//!
//! Django puts the engine's name into the Redis key, so that each kind of worker goes on with what it knows when the other
//! kind has changed the session. Here a command that names the one is made to name the other: there is one session.

use super::{KeyPattern, PatternError};
use crate::resp::Args;
use crate::resp::request::encode;

/// What the engines' names stand between in a pattern.
const NAMES: [&str; 2] = ["sessions.cached_db{session_key}", "sessions.cache{session_key}"];

/// The name that `cached_db` has for the sessions of a pattern of `cache`; `None` where the pattern does not tell.
pub fn cached_db_name(pattern: &str) -> Option<String> {
    let [other, own] = NAMES;
    pattern.contains(own).then(|| pattern.replace(own, other))
}

/// Names that are not used in Redis, each with the one that is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aliases(Vec<(KeyPattern, KeyPattern)>);

impl Aliases {
    /// For sites with these patterns of `cache`; `None` where there are none.
    ///
    /// # Errors
    /// A pattern that cannot be used.
    pub fn of_engines<'a>(patterns: impl IntoIterator<Item = &'a String>) -> Result<Option<Aliases>, PatternError> {
        let mut pairs = Vec::new();
        for pattern in patterns {
            if let Some(alias) = cached_db_name(pattern) {
                pairs.push((KeyPattern::parse(&alias)?, KeyPattern::parse(pattern)?));
            }
        }
        Ok((!pairs.is_empty()).then_some(Aliases(pairs)))
    }

    /// The whole multibulk command with the names that are used; `None` where it has no other.
    ///
    /// A value for a session that `has_ended`, by the name that is used, is only to replace one: Django ignores that it did not.
    pub fn rename(&self, frame: &[u8], has_ended: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        if !self.0.iter().any(|(alias, _)| alias.may_be_in(frame)) {
            return None;
        }
        let mut renamed = false;
        let mut args: Vec<Vec<u8>> = Args::new(frame)
            .map(|arg| {
                let name = self.name(arg);
                renamed |= name.is_some();
                name.unwrap_or_else(|| arg.to_vec())
            })
            .collect();
        if renamed && args.get(1).is_some_and(|key| has_ended(key)) {
            args = only_replacing(args);
        }
        let mut out = Vec::with_capacity(frame.len());
        encode(&args, &mut out);
        renamed.then_some(out)
    }

    fn name(&self, key: &[u8]) -> Option<Vec<u8>> {
        let mut pairs = self.0.iter();
        pairs.find_map(|(alias, pattern)| Some(pattern.redis_key(alias.session_key(key)?)))
    }
}

/// SET, as Django's caches write a value, with the option that makes no new key.
fn only_replacing(mut args: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let is = |arg: &[u8], word: &str| arg.eq_ignore_ascii_case(word.as_bytes());
    let unit = |name: &[u8]| match name.len() {
        5 if is(name, "SETEX") => Some("EX"),
        6 if is(name, "PSETEX") => Some("PX"),
        _ => None,
    };
    let plain = args.len() >= 3 && is(&args[0], "SET") && !args[3..].iter().any(|arg| is(arg, "NX") || is(arg, "XX"));
    if plain {
        args.push(b"XX".to_vec());
    } else if let (4, Some(unit)) = (args.len(), args.first().and_then(|name| unit(name))) {
        let (time, value) = (args.remove(2), args.remove(2));
        args[0] = b"SET".to_vec();
        args.extend([value, unit.into(), time, b"XX".to_vec()]);
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "7a22ufzat5nsjs7ctohx5yu69gehdq5k";

    fn renamed(words: &[&str]) -> Option<Vec<String>> {
        renamed_where(words, false)
    }

    fn renamed_where(words: &[&str], ended: bool) -> Option<Vec<String>> {
        let patterns = [
            ":1:django.contrib.sessions.cache{session_key}".to_owned(),
            "b-{session_key}".to_owned(),
        ];
        let aliases = Aliases::of_engines(&patterns).unwrap().unwrap();
        let mut frame = Vec::new();
        encode(words, &mut frame);
        let renamed = aliases.rename(&frame, |_| ended)?;
        let text = |arg: &[u8]| String::from_utf8(arg.to_vec()).unwrap();
        Some(Args::new(&renamed).map(text).collect())
    }

    #[test]
    fn commands_name_the_session_as_cache_does() {
        let (own, other) = (
            format!(":1:django.contrib.sessions.cache{KEY}"),
            format!(":1:django.contrib.sessions.cached_db{KEY}"),
        );
        assert_eq!(renamed(&["GET", &other]).unwrap(), ["GET", &own]);
        assert_eq!(
            renamed(&["MSET", "a", "1", &other, "2", &own, "3"]).unwrap(),
            ["MSET", "a", "1", &own, "2", &own, "3"]
        );
        assert_eq!(renamed(&["GET", &own]), None);
        // No session, only alike.
        for name in [
            format!("{other}_"),
            format!("x{other}"),
            other[..other.len() - 28].to_owned(),
        ] {
            assert_eq!(renamed(&["GET", &name]), None, "{name}");
        }
    }

    #[test]
    fn what_has_ended_is_not_made_again() {
        let (own, other) = (
            format!(":1:django.contrib.sessions.cache{KEY}"),
            format!(":1:django.contrib.sessions.cached_db{KEY}"),
        );
        for (words, expected) in [
            (
                vec!["set", &other, "v", "EX", "9"],
                vec!["set", &own, "v", "EX", "9", "XX"],
            ),
            (vec!["SET", &other, "v"], vec!["SET", &own, "v", "XX"]),
            (vec!["SET", &other, "v", "nx"], vec!["SET", &own, "v", "nx"]),
            (vec!["SETEX", &other, "9", "v"], vec!["SET", &own, "v", "EX", "9", "XX"]),
            (
                vec!["psetex", &other, "9", "v"],
                vec!["SET", &own, "v", "PX", "9", "XX"],
            ),
            (vec!["SETEX", &other, "9"], vec!["SETEX", &own, "9"]),
            (vec!["DEL", &other], vec!["DEL", &own]),
        ] {
            assert_eq!(renamed_where(&words, true).unwrap(), expected);
        }
    }

    #[test]
    fn what_has_no_other_name_has_no_alias() {
        assert_eq!(Aliases::of_engines(&["b-{session_key}".to_owned()]), Ok(None));
        assert_eq!(
            cached_db_name("{p}:sessions.cache{session_key}:x").as_deref(),
            Some("{p}:sessions.cached_db{session_key}:x")
        );
    }
}
