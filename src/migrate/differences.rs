//! What verify found to differ, and what became of each since. No socket, no clock.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::status::{Difference, Outcome};

/// Sessions that are told of one by one.
const MAX_TOLD: usize = 20;

/// What is wrong with a session in a store that is not the authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    MissingTarget,
    DifferentTarget,
    ExtraTarget,
    MissingDatabase,
    DifferentDatabase,
    ExtraDatabase,
}

impl Kind {
    fn text(self) -> &'static str {
        match self {
            Kind::MissingTarget => "missing in the other Redis",
            Kind::DifferentTarget => "different in the other Redis",
            Kind::ExtraTarget => "only in the other Redis",
            Kind::MissingDatabase => "missing in the database",
            Kind::DifferentDatabase => "different in the database",
            Kind::ExtraDatabase => "only in the database",
        }
    }

    /// The authority has it, so that a backfill copies it again.
    fn is_copied(self) -> bool {
        !matches!(self, Kind::ExtraTarget | Kind::ExtraDatabase)
    }
}

/// What is wrong with each session, by its key.
pub(super) type Differences = BTreeMap<Bytes, Vec<Kind>>;

/// What to tell after a verify that found `now`, where `before` was told until then. `digest` names a session without
/// giving it away.
pub(super) fn follow(before: &[Difference], now: &Differences, digest: impl Fn(&[u8]) -> String) -> Vec<Difference> {
    let told = |session: &str| before.iter().find(|difference| difference.session == session);
    let (mut known, mut new) = (Vec::new(), Vec::new());
    for (key, kinds) in now {
        let full = new.len() == MAX_TOLD;
        if full && before.is_empty() {
            break;
        }
        let session = digest(key);
        let earlier = told(&session).map(|difference| difference.outcome);
        if full && earlier.is_none() {
            continue;
        }
        let outcome = match earlier {
            _ if !kinds.iter().any(|kind| kind.is_copied()) => Outcome::NoCopyRemovesIt,
            Some(Outcome::CopiedSince | Outcome::DiffersStill) => Outcome::DiffersStill,
            _ => Outcome::NothingYet,
        };
        let list = if earlier.is_some() { &mut known } else { &mut new };
        list.push(Difference {
            session,
            found: kinds.iter().map(|kind| kind.text().to_owned()).collect(),
            outcome,
        });
    }
    let mended: Vec<Difference> = before
        .iter()
        .filter(|earlier| earlier.outcome != Outcome::TheSameAgain)
        .filter(|earlier| !known.iter().any(|difference| difference.session == earlier.session))
        .map(|earlier| Difference {
            outcome: Outcome::TheSameAgain,
            ..earlier.clone()
        })
        .collect();
    let mut all = known;
    all.extend(mended);
    all.extend(new);
    all.truncate(MAX_TOLD);
    all
}

/// A backfill has copied what the authority has.
pub(super) fn note_backfill(told: &mut [Difference]) {
    for difference in told {
        if matches!(difference.outcome, Outcome::NothingYet | Outcome::DiffersStill) {
            difference.outcome = Outcome::CopiedSince;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(sessions: &[(&str, &[Kind])]) -> Differences {
        let owned = |(key, kinds): &(&str, &[Kind])| (Bytes::copy_from_slice(key.as_bytes()), kinds.to_vec());
        sessions.iter().map(owned).collect()
    }

    fn name(key: &[u8]) -> String {
        String::from_utf8_lossy(key).into_owned()
    }

    fn outcomes(told: &[Difference]) -> Vec<(&str, Outcome)> {
        told.iter()
            .map(|difference| (difference.session.as_str(), difference.outcome))
            .collect()
    }

    #[test]
    fn each_difference_is_followed_until_it_is_gone() {
        let mut told = follow(
            &[],
            &found(&[
                ("a", &[Kind::MissingTarget, Kind::MissingDatabase]),
                ("b", &[Kind::DifferentDatabase]),
                ("c", &[Kind::ExtraTarget]),
            ]),
            name,
        );
        assert_eq!(
            outcomes(&told),
            [
                ("a", Outcome::NothingYet),
                ("b", Outcome::NothingYet),
                ("c", Outcome::NoCopyRemovesIt)
            ]
        );
        assert_eq!(told[0].found, ["missing in the other Redis", "missing in the database"]);
        note_backfill(&mut told);
        assert_eq!(told[0].outcome, Outcome::CopiedSince);
        assert_eq!(told[2].outcome, Outcome::NoCopyRemovesIt);
        let now = found(&[("a", &[Kind::MissingDatabase]), ("d", &[Kind::MissingTarget])]);
        told = follow(&told, &now, name);
        assert_eq!(
            outcomes(&told),
            [
                ("a", Outcome::DiffersStill),
                ("b", Outcome::TheSameAgain),
                ("c", Outcome::TheSameAgain),
                ("d", Outcome::NothingYet)
            ]
        );
        told = follow(&told, &found(&[]), name);
        assert_eq!(
            outcomes(&told),
            [("a", Outcome::TheSameAgain), ("d", Outcome::TheSameAgain)]
        );
        assert!(follow(&told, &found(&[]), name).is_empty());
    }

    #[test]
    fn what_is_told_has_a_limit_and_begins_with_what_was_told_before() {
        let many = |from: usize| -> Differences {
            (from..from + 50)
                .map(|number| (Bytes::from(format!("{number:03}")), vec![Kind::MissingTarget]))
                .collect()
        };
        let first = follow(&[], &many(10), name);
        assert_eq!((first.len(), first[0].session.as_str()), (MAX_TOLD, "010"));
        let second = follow(&first, &many(0), name);
        assert_eq!((second.len(), second[0].session.as_str()), (MAX_TOLD, "010"));
    }
}
