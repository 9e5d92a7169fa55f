//! The two scanners against the `redis-protocol` crate, and against themselves under any split.

use bytes::Bytes;
use redis_protocol::{resp2, resp3};
use sessionferry::resp::{Args, ReplyScanner, RequestScanner};

/// The crate decodes by recursion: what is nested deeper than this is only scanned.
const MAX_NESTED: usize = 64;

/// Commands: where the crate and we both see a whole one, it ends at the same byte and has the same arguments.
///
/// Not compared is who refuses what: there Redis is the authority (`processMultibulkBuffer`), which counts on no type but
/// arrays of bulk strings, and takes inline commands.
pub fn request_scanner(data: &[u8]) {
    let Ok(Some(request)) = RequestScanner::default().scan(data) else {
        return;
    };
    assert!(request.len <= data.len() && request.len > 0);
    if data[0] != b'*' || request.argc == 0 {
        return;
    }
    let args: Vec<&[u8]> = Args::new(&data[..request.len]).collect();
    assert_eq!(args.len(), request.argc);
    assert_eq!(args[0], &data[request.name.clone()]);
    if let Some(first) = args.get(1) {
        assert_eq!(*first, &data[request.first.clone()]);
    }
    // Redis skips the two bytes behind a bulk string without a look; the crate wants them to be CR and LF.
    let Ok(Some((frame, used))) = resp2::decode::decode_bytes(&Bytes::copy_from_slice(data)) else {
        return;
    };
    assert_eq!(used, request.len);
    let resp2::types::BytesFrame::Array(frames) = frame else {
        panic!("a command is an array");
    };
    assert_eq!(frames.len(), args.len());
    for (frame, arg) in frames.iter().zip(args) {
        let resp2::types::BytesFrame::BulkString(bytes) = frame else {
            panic!("an argument is a bulk string");
        };
        assert_eq!(&bytes[..], arg);
    }
}

/// Replies: where the crate sees a whole one, so do we, and it ends at the same byte.
pub fn reply_scanner(data: &[u8]) {
    let ours = ReplyScanner::default().scan(data);
    if let Ok(Some(reply)) = &ours {
        assert!(reply.len <= data.len() && reply.len > 0);
    }
    let nested = data.iter().filter(|byte| b"*~>%|".contains(byte)).count() > MAX_NESTED;
    // Streamed values and attributes inside of others are not what Redis sends, and the crate takes them differently.
    let streamed = data.windows(2).any(|pair| pair[1] == b'?' || pair == b"|0") || data.contains(&b'|');
    if nested || streamed {
        return;
    }
    let theirs = resp3::decode::complete::decode_bytes(&Bytes::copy_from_slice(data));
    if let (Ok(Some((_, used))), Ok(Some(reply))) = (&theirs, &ours) {
        assert_eq!(*used, reply.len);
    }
    assert!(
        !matches!((&theirs, &ours), (Ok(Some(_)), Ok(None))),
        "the crate sees a whole reply, we wait for more"
    );
}

/// However the bytes come, the frames and the error are the same. The first byte says how long the pieces are.
pub fn split_reads(data: &[u8]) {
    let Some((&step, bytes)) = data.split_first() else {
        return;
    };
    let step = usize::from(step % 64) + 1;
    let requests = |step: usize| {
        let mut scanner = RequestScanner::default();
        pieces(bytes, step, |bytes| match scanner.scan(bytes) {
            Ok(Some(request)) => Ok(Some((request.len, format!("{request:?}")))),
            Ok(None) => Ok(None),
            Err(error) => Err(error.to_string()),
        })
    };
    let replies = |step: usize| {
        let mut scanner = ReplyScanner::default();
        pieces(bytes, step, |bytes| match scanner.scan(bytes) {
            Ok(Some(reply)) => Ok(Some((reply.len, format!("{reply:?}")))),
            Ok(None) => Ok(None),
            Err(error) => Err(error.to_string()),
        })
    };
    assert_eq!(requests(step), requests(usize::MAX));
    assert_eq!(replies(step), replies(usize::MAX));
}

/// What a scan finds in `bytes` that come `step` at a time: frames, then perhaps an error.
fn pieces(
    bytes: &[u8],
    step: usize,
    mut scan: impl FnMut(&[u8]) -> Result<Option<(usize, String)>, String>,
) -> (Vec<String>, Option<String>) {
    let (mut start, mut end) = (0, step.min(bytes.len()));
    let mut found = Vec::new();
    loop {
        match scan(&bytes[start..end]) {
            Ok(Some((len, what))) => {
                start += len;
                found.push(what);
            }
            Ok(None) if end == bytes.len() => return (found, None),
            Ok(None) => end = end.saturating_add(step).min(bytes.len()),
            Err(error) => return (found, Some(error)),
        }
    }
}
