//! What sessions hold, whoever wrote it: read or refused, and what is read comes back the same.

use sessionferry::session::json::{Charset, read, same};
use sessionferry::session::signing::{DEFAULT_SALT, Signer};
use sessionferry::session::value::{Serialized, Serializer, ValueFormat};
use sessionferry::session::{Comparison, Compression, Form, RowCodec, SessionSerializer};

const SECRET: &[u8] = b"a key for these properties only";

fn codec() -> RowCodec {
    RowCodec::new(SECRET, &[], DEFAULT_SALT)
}

/// A value of a site with this serializer: its row holds the same, and is made into a value that is the same session.
fn there_and_back(data: &[u8], format: ValueFormat) {
    let site = codec().with_format(format);
    let Ok(row) = site.encode(data, 7) else {
        return;
    };
    assert_eq!(site.compare(data, &row), Comparison::Same);
    let Ok(value) = site.value(&row) else {
        return;
    };
    assert_eq!(site.compare(&value, &row), Comparison::Same);
}

/// A pickle, as the value of a site that pickles, and as the row of one that pickles there, too.
pub fn pickle(data: &[u8]) {
    let format = ValueFormat {
        serializer: Serializer::Pickle,
        compression: Compression::None,
    };
    there_and_back(data, format);
    let rows = codec().with_serializer(SessionSerializer::Pickle);
    if let Ok(row) = rows.encode(data, 7) {
        assert_eq!(rows.compare(data, &row), Comparison::Same);
    }
}

/// The same for msgpack, whose texts have one form only: what is written again is read as the same.
pub fn msgpack(data: &[u8]) {
    let format = ValueFormat {
        serializer: Serializer::Msgpack,
        compression: Compression::None,
    };
    there_and_back(data, format);
    let Ok((dict, _)) = format.decode(data) else {
        return;
    };
    let form = Form {
        serialized: Serialized::Msgpack,
        compressed: None,
    };
    if let Ok(again) = form.encode(&dict) {
        let (again, _) = format.decode(&again).expect("what was written is read");
        assert_eq!(again.to_json(), dict.to_json());
    }
}

/// Whatever a site with any serializer and compressor may have left.
pub fn value(data: &[u8]) {
    there_and_back(data, ValueFormat::default());
}

/// A row: as it is, which is no one's signature, and signed.
pub fn signed(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    assert!(codec().payload(&text).is_err(), "nobody has signed it");
    let signer = Signer::new(SECRET, &[], DEFAULT_SALT);
    let row = signer.sign(data, i64::from(data.first().copied().unwrap_or_default()));
    assert_eq!(signer.open(&row).as_deref(), Ok(data));
    let Ok(value) = codec().value(&row) else {
        return;
    };
    let session = read(data.to_vec(), Charset::Latin1).expect("it became a value");
    let json = codec().payload(&row).expect("it became a value");
    assert!(same(
        &session,
        &read(json, Charset::Latin1).expect("it is what was signed")
    ));
    assert_eq!(codec().compare(&value, &row), Comparison::Same);
}
