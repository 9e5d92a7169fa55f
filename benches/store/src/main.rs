//! What a record of a pending session write costs: the journal beside two embedded stores, in one run.
//!
//! Each gets the same: batches of writes over a number of sessions, each batch recorded with what outlives the process
//! (not the machine), and forgotten when a later one has been delivered. See scripts/bench-store.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measuring tool that cannot go on should say where"
)]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions};
use redb::{Durability, TableDefinition};
use sessionferry::journal::{Journal, RecordedEffect, Recovered, Writer};
use sessionferry::session::Deadline;

const RECORDS: usize = 400_000;
/// Session writes of one wake-up.
const BATCH: usize = 16;
const SESSIONS: usize = 100_000;
const VALUE_LEN: usize = 264;
/// What has been delivered is forgotten after so many batches.
const DELIVERED_EVERY: usize = 500;
const ROUNDS: usize = 3;

trait Store {
    fn record(&mut self, batch: &[(u64, Bytes, Bytes)]);
    /// Everything so far is delivered.
    fn forget(&mut self, batches: &[Vec<(u64, Bytes, Bytes)>]);
}

struct Own {
    journal: Arc<Journal>,
    writer: Writer,
}

impl Own {
    fn open(dir: &Path) -> Own {
        let journal = Arc::new(Journal::open(dir, &Recovered::default()).unwrap());
        Own {
            writer: Writer::new(journal.clone(), 0),
            journal,
        }
    }
}

impl Store for Own {
    fn record(&mut self, batch: &[(u64, Bytes, Bytes)]) {
        for (seq, key, value) in batch {
            let effect = RecordedEffect::Put {
                value: value.clone(),
                deadline: Deadline::At(1_800_000_000_000),
            };
            self.writer.append(*seq, key, &effect);
        }
        self.writer.flush();
    }

    fn forget(&mut self, batches: &[Vec<(u64, Bytes, Bytes)>]) {
        self.journal.retire(batches.last().unwrap().last().unwrap().0 + 1);
    }
}

struct Fjall {
    database: Database,
    sessions: Keyspace,
}

impl Fjall {
    fn open(dir: &Path) -> Fjall {
        let database = Database::builder(dir).open().unwrap();
        let sessions = database.keyspace("pending", KeyspaceCreateOptions::default).unwrap();
        Fjall { database, sessions }
    }
}

impl Store for Fjall {
    fn record(&mut self, batch: &[(u64, Bytes, Bytes)]) {
        let mut write = self.database.batch();
        for (_, key, value) in batch {
            write.insert(&self.sessions, &key[..], &value[..]);
        }
        write.commit().unwrap();
    }

    fn forget(&mut self, batches: &[Vec<(u64, Bytes, Bytes)>]) {
        let mut write = self.database.batch();
        for (_, key, _) in batches.iter().flatten() {
            write.remove(&self.sessions, &key[..]);
        }
        write.commit().unwrap();
    }
}

const PENDING: TableDefinition<&[u8], &[u8]> = TableDefinition::new("pending");

struct Redb(redb::Database);

impl Redb {
    fn change(&self, change: impl FnOnce(&mut redb::Table<&[u8], &[u8]>)) {
        let mut write = self.0.begin_write().unwrap();
        // Weaker than the others: even the end of the process alone loses what no later commit has made durable.
        write.set_durability(Durability::None).unwrap();
        change(&mut write.open_table(PENDING).unwrap());
        write.commit().unwrap();
    }
}

impl Store for Redb {
    fn record(&mut self, batch: &[(u64, Bytes, Bytes)]) {
        self.change(|table| {
            for (_, key, value) in batch {
                table.insert(&key[..], &value[..]).unwrap();
            }
        });
    }

    fn forget(&mut self, batches: &[Vec<(u64, Bytes, Bytes)>]) {
        self.change(|table| {
            for (_, key, _) in batches.iter().flatten() {
                table.remove(&key[..]).unwrap();
            }
        });
    }
}

/// User and system time of this process, all its threads.
fn cpu() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    // USER_HZ, which is 100 wherever Linux runs.
    Duration::from_millis(ticks * 10)
}

fn size(dir: &Path) -> u64 {
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let data = entry.metadata().unwrap();
            if data.is_dir() { size(&entry.path()) } else { data.len() }
        })
        .sum()
}

/// µs of CPU per record, µs that a batch takes (p99), MiB on disk in the end.
fn measure(open: &dyn Fn(&Path) -> Box<dyn Store>) -> [f64; 3] {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("store");
    fs::create_dir(&place).unwrap();
    let mut store = open(&place);
    let value = Bytes::from(vec![b'v'; VALUE_LEN]);
    let mut took = Vec::new();
    let mut undelivered = Vec::new();
    let began = cpu();
    let mut number = 0_u64;
    for batch in 0..RECORDS / BATCH {
        let batch_of: Vec<(u64, Bytes, Bytes)> = (0..BATCH)
            .map(|_| {
                number += 1;
                // A walk that looks drawn by lot, and is the same for all.
                let session = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) as usize % SESSIONS;
                let key = Bytes::from(format!(":1:django.contrib.sessions.cache{session:032}"));
                (number, key, value.clone())
            })
            .collect();
        let asked = Instant::now();
        store.record(&batch_of);
        took.push(asked.elapsed());
        undelivered.push(batch_of);
        if batch % DELIVERED_EVERY == DELIVERED_EVERY - 1 {
            store.forget(&undelivered);
            undelivered.clear();
        }
    }
    let used = cpu() - began;
    took.sort_unstable();
    let p99 = took[took.len() * 99 / 100];
    let disk = size(&place) as f64 / f64::from(1 << 20);
    [used.as_secs_f64() * 1e6 / RECORDS as f64, p99.as_secs_f64() * 1e6, disk]
}

fn main() {
    let stores: [(&str, Box<dyn Fn(&Path) -> Box<dyn Store>>); 3] = [
        ("journal", Box::new(|dir| Box::new(Own::open(dir)))),
        ("fjall", Box::new(|dir| Box::new(Fjall::open(dir)))),
        (
            "redb, nothing durable",
            Box::new(|dir| Box::new(Redb(redb::Database::create(dir.join("file")).unwrap()))),
        ),
    ];
    let mut found = vec![Vec::new(); stores.len()];
    for round in 0..ROUNDS {
        for at in 0..stores.len() {
            // Another order each time.
            let at = (at + round) % stores.len();
            found[at].push(measure(&*stores[at].1));
        }
    }
    println!("{RECORDS} records of {VALUE_LEN} bytes in batches of {BATCH}, medians of {ROUNDS} rounds");
    println!(
        "{:24} {:>16} {:>18} {:>10}",
        "", "µs CPU/record", "µs/batch, p99", "MiB on disk"
    );
    for ((name, _), rounds) in stores.iter().zip(found) {
        let median = |at: usize| {
            let mut values: Vec<f64> = rounds.iter().map(|round| round[at]).collect();
            values.sort_unstable_by(f64::total_cmp);
            values[ROUNDS / 2]
        };
        println!("{name:24} {:16.2} {:18.1} {:10.1}", median(0), median(1), median(2));
    }
}
