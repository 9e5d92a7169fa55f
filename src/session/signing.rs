//! The signed envelope of a row, as `django.core.signing.dumps(…, compress=True)` makes it for a session:
//!
//! ```text
//! body ":" base62(unix seconds) ":" base64(HMAC-SHA256(key, all before))
//! body = base64(payload), or "." base64(zlib(payload)) where that saves at least two bytes
//! key  = SHA-256(salt "signer" SECRET_KEY)
//! ```
//!
//! base64 is the URL-safe alphabet without padding. The same bytes come from Django 3.2 to 6.1. Not read: rows from
//! before Django 3.1, and signatures with SHA-1, which Django 4.0 refuses as well.

use std::cell::RefCell;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use flate2::{Compress, Compression, Decompress, FlushCompress, Status};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::compress::{DecompressError, inflate};
use super::object::MAX_VALUE_BYTES;

/// The salt of Django's own session stores: the class name `SessionStore`, whatever its module.
pub const DEFAULT_SALT: &str = "django.contrib.sessions.SessionStore";

/// zlib's default, which Django uses.
const ZLIB_LEVEL: u32 = 6;

/// Length of an HMAC-SHA256 in base64 without padding.
const SIGNATURE_LEN: usize = 43;

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Why a row's envelope was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SigningError {
    #[error("the row is not signed")]
    Unsigned,
    #[error("the row has the layout from before django 3.1")]
    Legacy,
    #[error("the row's signature does not match the secret key and salt")]
    BadSignature,
    #[error("the row's timestamp is not valid")]
    Timestamp,
    #[error("the row's payload is not base64")]
    Base64,
    #[error("the row's payload is a broken zlib stream")]
    Zlib,
    #[error("the row's payload is over the limit of {limit} bytes")]
    TooLarge { limit: usize },
}

/// Signs rows with one key, and verifies them with that one and its predecessors.
#[derive(Clone)]
pub struct Signer {
    /// Keyed and ready, the first one signs. Cloning saves hashing the key for each row.
    keys: Vec<Hmac<Sha256>>,
}

// The derived keys are as good as SECRET_KEY itself for whoever wants to forge a session.
impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("keys", &self.keys.len()).finish()
    }
}

impl Signer {
    /// `secret_key` and `fallbacks` are the settings `SECRET_KEY` and `SECRET_KEY_FALLBACKS` (text as UTF-8), `salt` is
    /// `"django.contrib.sessions."` and the session store's class name: [`DEFAULT_SALT`] on a stock site.
    pub fn new(secret_key: &[u8], fallbacks: &[Vec<u8>], salt: &str) -> Signer {
        let derive = |secret: &[u8]| {
            let key = Sha256::new()
                .chain_update(salt)
                .chain_update("signer")
                .chain_update(secret)
                .finalize();
            Hmac::<Sha256>::new(&block(&key))
        };
        let secrets = std::iter::once(secret_key).chain(fallbacks.iter().map(Vec::as_slice));
        Signer {
            keys: secrets.map(derive).collect(),
        }
    }

    /// The text for `session_data`. `now_seconds` is seconds since the Unix epoch; readers only check that it is a
    /// number.
    pub fn sign(&self, payload: &[u8], now_seconds: i64) -> String {
        let packed = compress(payload);
        // Base64 turns three bytes into four characters; the rest is two colons, a dot, six or seven of timestamp.
        let mut row = String::with_capacity(payload.len().min(packed.len()) / 3 * 4 + SIGNATURE_LEN + 24);
        // Django's rule, from `signing.dumps`.
        if packed.len() + 1 < payload.len() {
            row.push('.');
            URL_SAFE_NO_PAD.encode_string(&packed, &mut row);
        } else {
            URL_SAFE_NO_PAD.encode_string(payload, &mut row);
        }
        row.push(':');
        push_base62(&mut row, now_seconds);
        let signature = self
            .keys
            .first()
            .map(|key| signature(key, row.as_bytes()))
            .unwrap_or_default();
        row.push(':');
        row.push_str(&signature);
        row
    }

    /// The payload of a `session_data`, once a key has verified it.
    ///
    /// # Errors
    /// [`SigningError`]; [`SigningError::BadSignature`] means another key, another salt, or a forged row.
    pub fn open(&self, session_data: &str) -> Result<Vec<u8>, SigningError> {
        let Some((value, signed)) = session_data.rsplit_once(':') else {
            return Err(unsigned(session_data));
        };
        let (body, timestamp) = value.rsplit_once(':').ok_or(SigningError::Unsigned)?;
        // Compared as text, as Django does: a change of the last character's spare bits is a change.
        let matches = |key| bool::from(signature(key, value.as_bytes()).as_bytes().ct_eq(signed.as_bytes()));
        if !self.keys.iter().any(matches) {
            return Err(SigningError::BadSignature);
        }
        if !is_base62(timestamp) {
            return Err(SigningError::Timestamp);
        }
        let base64 = |text| URL_SAFE_NO_PAD.decode(text).map_err(|_| SigningError::Base64);
        let too_large = SigningError::TooLarge { limit: MAX_VALUE_BYTES };
        match body.strip_prefix('.') {
            // Longer than any row of ours, compressed or not.
            _ if body.len() / 4 > MAX_VALUE_BYTES / 3 => Err(too_large),
            Some(packed) => inflate(Decompress::new(true), &base64(packed)?).map_err(|error| match error {
                DecompressError::Broken => SigningError::Zlib,
                DecompressError::TooLarge => too_large,
            }),
            None => base64(body),
        }
    }
}

/// A 32-byte key as the block that HMAC makes of it: padded with zeros to SHA-256's block size.
fn block(key: &[u8]) -> hmac::digest::Key<Hmac<Sha256>> {
    let mut block = hmac::digest::Key::<Hmac<Sha256>>::default();
    block[..key.len()].copy_from_slice(key);
    block
}

fn signature(key: &Hmac<Sha256>, value: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(key.clone().chain_update(value).finalize().into_bytes())
}

/// Tells a row from before Django 3.1, `base64(hex(HMAC-SHA1) ":" payload)`, from what is no row at all.
fn unsigned(session_data: &str) -> SigningError {
    const HEX_SHA1: usize = 40;
    // 56 characters hold the hash and the colon; the payload behind them is not looked at.
    let head = session_data
        .get(..56)
        .and_then(|head| STANDARD.decode(head).ok())
        .unwrap_or_default();
    match head.split_at_checked(HEX_SHA1) {
        Some((hash, [b':', ..])) if hash.iter().all(u8::is_ascii_hexdigit) => SigningError::Legacy,
        _ => SigningError::Unsigned,
    }
}

thread_local! {
    /// Its tables are a few hundred KiB: making them anew took as long as compressing a session.
    static DEFLATE: RefCell<Compress> = RefCell::new(Compress::new(Compression::new(ZLIB_LEVEL), true));
}

/// One zlib stream. Other compressors give other bytes for the same level; Django reads them all.
fn compress(payload: &[u8]) -> Vec<u8> {
    DEFLATE.with_borrow_mut(|stream| {
        stream.reset();
        // zlib's own bound, generously: stored blocks cost five bytes per 16 KiB, header and checksum six.
        let mut out = Vec::with_capacity(payload.len() + payload.len() / 1024 + 64);
        loop {
            let rest = payload.get(stream.total_in() as usize..).unwrap_or_default();
            match stream.compress_vec(rest, &mut out, FlushCompress::Finish) {
                Ok(Status::StreamEnd) => return out,
                Ok(_) => out.reserve(out.capacity()),
                // Compressing into memory cannot fail; were it to, an uncompressed row is as good.
                Err(_) => return payload.to_vec(),
            }
        }
    })
}

fn push_base62(row: &mut String, number: i64) {
    if number < 0 {
        row.push('-');
    }
    let mut digits = [0; 11]; // 62^11 > 2^63
    let mut at = digits.len();
    let mut rest = number.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = BASE62[(rest % 62) as usize];
        rest /= 62;
        if rest == 0 {
            break;
        }
    }
    row.extend(digits[at..].iter().map(|b| char::from(*b)));
}

/// Whether Django's `b62_decode` takes it: any number of digits, a minus sign before them, but not nothing.
fn is_base62(text: &str) -> bool {
    !text.is_empty()
        && text
            .strip_prefix('-')
            .unwrap_or(text)
            .bytes()
            .all(|b| b.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signer() -> Signer {
        Signer::new(b"golden-secret-key-for-vectors-0123456789abcdef", &[], DEFAULT_SALT)
    }

    #[test]
    fn a_row_is_signed_as_django_signs_it() {
        let row = "eyJhIjoxfQ:1vgM1A:tNyM0NccKKf1GKU66rHoAOT2OWl_qm72yKxFynfyGyU";
        assert_eq!(signer().sign(br#"{"a":1}"#, 1_768_478_400), row);
        assert_eq!(signer().open(row).as_deref(), Ok(&br#"{"a":1}"#[..]));
    }

    #[test]
    fn timestamps_are_base62() {
        let check = |number, expected: &str| {
            let mut text = String::new();
            push_base62(&mut text, number);
            assert_eq!(text, expected);
            assert!(is_base62(&text));
        };
        check(0, "0");
        check(61, "z");
        check(62, "10");
        check(-1, "-1");
        check(1_768_478_400, "1vgM1A");
        check(i64::MAX, "AzL8n0Y58m7");
        check(i64::MIN, "-AzL8n0Y58m8");
        assert!(!is_base62("") && !is_base62("1_") && !is_base62("é"));
    }

    #[test]
    fn large_and_random_payloads_come_back() {
        let mut state = 1u32;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .take(300_000)
        .collect();
        for payload in [&noise[..], &[b'x'; 300_000], b""] {
            assert_eq!(signer().open(&signer().sign(payload, 1)).as_deref(), Ok(payload));
        }
    }

    #[test]
    fn debug_output_holds_no_key() {
        assert_eq!(format!("{:?}", signer()), "Signer { keys: 1 }");
    }
}
