//! The properties over the kept corpus, and over bytes drawn by lot. The seed is printed, and taken from
//! `SESSIONFERRY_TEST_SEED` again.

use std::path::Path;

#[allow(
    dead_code,
    reason = "it is made for the differential test, which draws more kinds of things"
)]
#[path = "../../tests/differential/rng.rs"]
mod rng;

use rng::Rng;

type Property = fn(&[u8]);

fn seed() -> u64 {
    let seed = std::env::var("SESSIONFERRY_TEST_SEED").map_or_else(
        |_| {
            std::time::SystemTime::UNIX_EPOCH
                .elapsed()
                .map_or(0, |since| since.as_nanos() as u64)
        },
        |text| text.parse().expect("SESSIONFERRY_TEST_SEED is a number"),
    );
    println!("SESSIONFERRY_TEST_SEED={seed}");
    seed
}

fn corpus(target: &str, property: Property) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    for file in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        property(&std::fs::read(file.path()).expect("a readable file"));
    }
}

/// Pieces of RESP, so that more than the first byte is reached.
fn resp(lot: &mut Rng) -> Vec<u8> {
    const PIECES: &[&[u8]] = &[
        b"*1\r\n",
        b"*2\r\n",
        b"*3\r\n",
        b"*0\r\n",
        b"*-1\r\n",
        b"$3\r\n",
        b"$0\r\n",
        b"$-1\r\n",
        b"GET",
        b"key",
        b"\r\n",
        b"+OK\r\n",
        b"-ERR x\r\n",
        b":1\r\n",
        b"_\r\n",
        b"%1\r\n",
        b"~2\r\n",
        b">2\r\n",
        b"=7\r\n",
        b"txt:abc",
        b"#t\r\n",
        b",1.5\r\n",
        b"(12\r\n",
        b"!3\r\n",
        b"PING\r\n",
        b"$",
        b"*",
        b"\r",
        b"\n",
        b"9",
        b"99999999999",
        b" ",
        b"\"",
        b"'",
        b"\0",
    ];
    let mut out = Vec::new();
    for _ in 0..lot.below(24) {
        if lot.below(8) == 0 {
            out.push(lot.below(256) as u8);
        } else {
            out.extend_from_slice(PIECES[lot.below(PIECES.len())]);
        }
    }
    out
}

fn by_lot(count: usize, property: Property, draw: fn(&mut Rng) -> Vec<u8>) {
    let mut lot = Rng::new(seed());
    for _ in 0..count {
        let data = draw(&mut lot);
        if let Err(panic) = std::panic::catch_unwind(|| property(&data)) {
            eprintln!("with {}", data.escape_ascii());
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn requests_end_where_the_crate_says() {
    corpus("request_scanner", sessionferry_fuzz::request_scanner);
    by_lot(200_000, sessionferry_fuzz::request_scanner, resp);
}

#[test]
fn replies_end_where_the_crate_says() {
    corpus("reply_scanner", sessionferry_fuzz::reply_scanner);
    by_lot(200_000, sessionferry_fuzz::reply_scanner, resp);
}

#[test]
fn no_split_of_the_bytes_matters() {
    corpus("split_reads", sessionferry_fuzz::split_reads);
    by_lot(100_000, sessionferry_fuzz::split_reads, resp);
}

/// Bytes of the kept corpus, damaged, so that more than the first byte is reached.
fn damaged(target: &str, property: Property) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .expect("a corpus")
        .flatten()
        .map(|file| file.path())
        .collect();
    files.sort();
    let kept: Vec<Vec<u8>> = files
        .iter()
        .map(|file| std::fs::read(file).expect("a readable file"))
        .collect();
    assert!(kept.len() >= 10, "{target}: {}", kept.len());
    kept.iter().for_each(|data| property(data));
    let mut lot = Rng::new(seed());
    for _ in 0..30_000 {
        let mut data = kept[lot.below(kept.len())].clone();
        let other = &kept[lot.below(kept.len())];
        for _ in 0..=lot.below(3) {
            let at = lot.below(data.len().max(1));
            match lot.below(4) {
                0 if !data.is_empty() => data[at] = lot.below(256) as u8,
                1 => data.truncate(at),
                2 if !other.is_empty() => data.insert(at.min(data.len()), other[lot.below(other.len())]),
                _ => data.extend_from_slice(&other[lot.below(other.len().max(1)).min(other.len())..]),
            }
        }
        if let Err(panic) = std::panic::catch_unwind(|| property(&data)) {
            eprintln!("with {}", data.escape_ascii());
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn pickles_are_read_or_refused_and_come_back() {
    damaged("pickle", sessionferry_fuzz::pickle);
}

#[test]
fn msgpack_is_read_or_refused_and_comes_back() {
    damaged("msgpack", sessionferry_fuzz::msgpack);
}

#[test]
fn rows_are_opened_by_their_signature_alone() {
    damaged("signed", sessionferry_fuzz::signed);
}

#[test]
fn values_of_any_backend_are_read_or_refused_and_come_back() {
    damaged("value", sessionferry_fuzz::value);
}

#[test]
fn no_reply_reaches_the_wrong_client() {
    corpus("session", sessionferry_fuzz::session);
    by_lot(1_000, sessionferry_fuzz::session, |lot| {
        (0..lot.below(80)).map(|_| lot.below(256) as u8).collect()
    });
}
