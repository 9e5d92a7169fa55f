//! What an earlier run left behind.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustc_hash::FxHashMap;

use super::JournalError;
use super::record::{self, RecordedEffect};

/// The pending state of an earlier run: per key, the newest record.
#[derive(Debug, Default)]
pub struct Recovered {
    pub writes: FxHashMap<Bytes, (u64, RecordedEffect)>,
    /// The oldest wipe that is recorded.
    pub wipe: Option<u64>,
    pub last_seq: u64,
    /// Segments read, with their sizes in bytes.
    pub segments: Vec<(PathBuf, u64)>,
    /// Segments that end in a torn record, as after a kill in the middle of a write.
    pub torn: usize,
}

/// Reads every segment in `dir`; an absent folder is an empty journal.
///
/// # Errors
/// The folder or a segment cannot be read. A torn record is no error: what stands before it counts.
pub fn recover(dir: &Path) -> Result<Recovered, JournalError> {
    let mut recovered = Recovered::default();
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(recovered),
        Err(error) => return Err(JournalError::io("read", dir)(error)),
    };
    for entry in entries {
        let path = entry.map_err(JournalError::io("read", dir))?.path();
        if path.extension().is_none_or(|extension| extension != "log") {
            continue;
        }
        let mut rest = Bytes::from(fs::read(&path).map_err(JournalError::io("read", &path))?);
        recovered.segments.push((path, rest.len() as u64));
        while let Some((record, len)) = record::decode(&rest) {
            let _ = rest.split_to(len);
            recovered.last_seq = recovered.last_seq.max(record.seq);
            if record.effect == RecordedEffect::Wipe {
                recovered.wipe = Some(recovered.wipe.map_or(record.seq, |seq| seq.min(record.seq)));
                continue;
            }
            match recovered.writes.get_mut(&record.key) {
                Some(newest) if newest.0 > record.seq => {}
                Some(newest) => *newest = (record.seq, record.effect),
                None => {
                    recovered.writes.insert(record.key, (record.seq, record.effect));
                }
            }
        }
        recovered.torn += usize::from(!rest.is_empty());
    }
    Ok(recovered)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{Journal, Writer};
    use super::*;
    use crate::session::Deadline;

    fn put(value: &'static str) -> RecordedEffect {
        RecordedEffect::Put {
            value: Bytes::from_static(value.as_bytes()),
            deadline: Deadline::At(5),
        }
    }

    #[test]
    fn the_newest_record_of_a_key_counts_and_a_torn_tail_is_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Arc::new(Journal::open(dir.path(), &Recovered::default()).unwrap());
        let (mut one, mut two) = (Writer::new(journal.clone(), 0), Writer::new(journal.clone(), 1));
        two.append(2, b"a", &put("new"));
        two.flush();
        one.append(1, b"a", &put("old"));
        one.append(3, b"b", &RecordedEffect::Delete);
        one.flush();
        drop((one, two));
        let torn = dir.path().join("segment-0000000000000009-0.log");
        let mut bytes = Vec::new();
        record::encode(9, b"c", &put("x"), &mut bytes);
        fs::write(&torn, &bytes[..bytes.len() - 1]).unwrap();

        let recovered = recover(dir.path()).unwrap();
        assert_eq!(recovered.writes.len(), 2);
        assert_eq!(recovered.writes[&Bytes::from_static(b"a")], (2, put("new")));
        assert_eq!(recovered.writes[&Bytes::from_static(b"b")], (3, RecordedEffect::Delete));
        assert_eq!(
            (recovered.last_seq, recovered.torn, recovered.segments.len()),
            (3, 1, 3)
        );
    }

    #[test]
    fn segments_go_once_everything_in_them_is_delivered() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Arc::new(Journal::open(dir.path(), &Recovered::default()).unwrap());
        let mut writer = Writer::new(journal.clone(), 0);
        writer.append(1, b"a", &put("x"));
        drop(writer);
        journal.retire(1);
        assert_eq!(
            recover(dir.path()).unwrap().writes.len(),
            1,
            "record 1 is still pending"
        );
        journal.retire(2);
        assert_eq!(recover(dir.path()).unwrap().segments.len(), 0);
        assert_eq!(journal.bytes(), 0);
    }

    #[test]
    fn a_compaction_keeps_pending_keys_alone() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Arc::new(Journal::open(dir.path(), &Recovered::default()).unwrap());
        for (seq, key) in [(1, b"a"), (2, b"b")] {
            let mut writer = Writer::new(journal.clone(), 0);
            writer.append(seq, key, &put("x"));
        }
        journal.compact(|| (vec![(Bytes::from_static(b"b"), 2)], None)).unwrap();
        let recovered = recover(dir.path()).unwrap();
        assert_eq!(recovered.segments.len(), 1);
        assert_eq!(
            recovered.writes.into_iter().collect::<Vec<_>>(),
            [(Bytes::from_static(b"b"), (2, RecordedEffect::Unknown))]
        );
    }
}
