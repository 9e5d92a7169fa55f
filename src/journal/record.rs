//! One session write as bytes: length, checksum, sequence number, key, effect. Little-endian throughout.

use bytes::Bytes;

use crate::session::{Deadline, Effect};

/// What is recorded of a write: what it will have done, if it succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordedEffect {
    Put {
        value: Bytes,
        deadline: Deadline,
    },
    Delete,
    /// Only that the key was touched.
    Unknown,
    /// Every key of the database was touched (FLUSHDB and its like); the key is empty.
    Wipe,
}

impl From<&Effect> for RecordedEffect {
    fn from(effect: &Effect) -> Self {
        match effect {
            Effect::Put { value, deadline } => RecordedEffect::Put {
                value: value.clone(),
                deadline: *deadline,
            },
            Effect::Delete => RecordedEffect::Delete,
            Effect::Expire(_) | Effect::Unknown => RecordedEffect::Unknown,
        }
    }
}

/// A record as read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub seq: u64,
    pub key: Bytes,
    pub effect: RecordedEffect,
}

const PUT: u8 = 1;
const DELETE: u8 = 2;
const UNKNOWN: u8 = 3;
const WIPE: u8 = 4;
/// Length and checksum in front of each record's body, bytes.
const HEADER_LEN: usize = 8;
/// Sequence number, kind, key length, deadline.
const FIXED_LEN: usize = 8 + 1 + 4 + 8;

/// Appends one record to `out`.
pub fn encode(seq: u64, key: &[u8], effect: &RecordedEffect, out: &mut Vec<u8>) {
    let (kind, deadline, value): (u8, i64, &[u8]) = match effect {
        RecordedEffect::Put {
            value,
            deadline: Deadline::At(at),
        } => (PUT, *at, value),
        RecordedEffect::Put {
            value,
            deadline: Deadline::Never,
        } => (PUT, i64::MAX, value),
        RecordedEffect::Delete => (DELETE, 0, &[]),
        RecordedEffect::Unknown => (UNKNOWN, 0, &[]),
        RecordedEffect::Wipe => (WIPE, 0, &[]),
    };
    let start = out.len();
    out.extend_from_slice(&((FIXED_LEN + key.len() + value.len()) as u32).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&seq.to_le_bytes());
    out.push(kind);
    out.extend_from_slice(&(key.len() as u32).to_le_bytes());
    out.extend_from_slice(&deadline.to_le_bytes());
    out.extend_from_slice(key);
    out.extend_from_slice(value);
    let checksum = crc32fast::hash(&out[start + HEADER_LEN..]);
    out[start + 4..start + HEADER_LEN].copy_from_slice(&checksum.to_le_bytes());
}

/// The record at the start of `bytes` and its length; `None` where it is torn or no record.
pub fn decode(bytes: &Bytes) -> Option<(Record, usize)> {
    let number = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let len = number(0)? as usize;
    let checksum = number(4)?;
    let end = HEADER_LEN.checked_add(len)?;
    let body = bytes.get(HEADER_LEN..end)?;
    if len < FIXED_LEN || crc32fast::hash(body) != checksum {
        return None;
    }
    let seq = u64::from_le_bytes(body[..8].try_into().ok()?);
    let key_len = u32::from_le_bytes(body[9..13].try_into().ok()?) as usize;
    let deadline = i64::from_le_bytes(body[13..FIXED_LEN].try_into().ok()?);
    let key_end = FIXED_LEN.checked_add(key_len).filter(|&end| end <= len)?;
    let key = bytes.slice(HEADER_LEN + FIXED_LEN..HEADER_LEN + key_end);
    let effect = match body[8] {
        PUT => RecordedEffect::Put {
            value: bytes.slice(HEADER_LEN + key_end..end),
            deadline: if deadline == i64::MAX {
                Deadline::Never
            } else {
                Deadline::At(deadline)
            },
        },
        DELETE => RecordedEffect::Delete,
        UNKNOWN => RecordedEffect::Unknown,
        WIPE => RecordedEffect::Wipe,
        _ => return None,
    };
    Some((Record { seq, key, effect }, end))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn effects() -> impl Strategy<Value = RecordedEffect> {
        prop_oneof![
            (prop::collection::vec(any::<u8>(), 0..50), any::<i64>()).prop_map(|(value, at)| RecordedEffect::Put {
                value: value.into(),
                deadline: if at == i64::MAX {
                    Deadline::Never
                } else {
                    Deadline::At(at)
                },
            }),
            Just(RecordedEffect::Delete),
            Just(RecordedEffect::Unknown),
            Just(RecordedEffect::Wipe),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(seq: u64, key in prop::collection::vec(any::<u8>(), 0..50), effect in effects()) {
            let mut bytes = Vec::new();
            encode(seq, &key, &effect, &mut bytes);
            let (record, len) = decode(&Bytes::from(bytes.clone())).unwrap();
            prop_assert_eq!(len, bytes.len());
            prop_assert_eq!(record, Record { seq, key: key.into(), effect });
        }

        #[test]
        fn a_torn_or_flipped_record_is_none(effect in effects(), cut in 0usize..20, flip in 0usize..200) {
            let mut bytes = Vec::new();
            encode(7, b"key", &effect, &mut bytes);
            let torn = Bytes::copy_from_slice(&bytes[..bytes.len().saturating_sub(1 + cut)]);
            prop_assert_eq!(decode(&torn), None);
            let at = flip % bytes.len();
            bytes[at] ^= 0x10;
            prop_assert_eq!(decode(&Bytes::from(bytes)), None);
        }
    }
}
