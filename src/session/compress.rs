//! What a cache backend compresses values with: recognised by the first bytes, read within bounds, and written again.
//!
//! Bounds hold for what comes out and for what a decoder sets aside, whatever the stream asks for. A stream that is cut
//! short, damaged, or followed by other bytes is refused: what Python would still make of it, no backend has written.

use std::io::Read;

use brotli::enc::BrotliEncoderParams;
use flate2::{Compression, Decompress, FlushDecompress, Status};
use lz4_flex::frame::{BlockMode, FrameDecoder as Lz4Decoder, FrameEncoder as Lz4Encoder, FrameInfo};
use lzma_rust2::{XzOptions, XzReader, XzWriter};
use ruzstd::decoding::StreamingDecoder as ZstdDecoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::object::MAX_VALUE_BYTES;

/// What a decoder may set aside for its window. The presets in use ask for 4 MiB; brotli's own limit is the same.
const MAX_WINDOW_KIB: u32 = 16 << 10;

/// A fair middle; Python's own is slow.
const BROTLI_QUALITY: i32 = 5;
/// What the decoder reads and writes at once.
const BROTLI_BUFFER: usize = 4096;

/// What django-redis compresses with: `LzmaCompressor.preset`.
const LZMA_PRESET: u32 = 4;

/// Something that values are compressed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compressor {
    Zlib,
    Gzip,
    Bz2,
    Lzma,
    Lz4,
    Zstd,
    Brotli,
}

/// Why a stream was not decompressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DecompressError {
    /// Cut short, damaged, or followed by more bytes.
    Broken,
    /// More than [`MAX_VALUE_BYTES`] come out.
    TooLarge,
}

impl Compressor {
    /// The name in the configuration and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Compressor::Zlib => "zlib",
            Compressor::Gzip => "gzip",
            Compressor::Bz2 => "bz2",
            Compressor::Lzma => "lzma",
            Compressor::Lz4 => "lz4",
            Compressor::Zstd => "zstd",
            Compressor::Brotli => "brotli",
        }
    }

    /// What has compressed this value, as far as its first bytes tell. Never brotli, which begins with no magic number.
    pub fn recognise(value: &[u8]) -> Option<Compressor> {
        match value {
            // Deflate with a 32 KiB window, and a checksum of the two bytes themselves.
            [0x78, flags, ..] if (0x7800 | u16::from(*flags)).is_multiple_of(31) => Some(Compressor::Zlib),
            [0x1f, 0x8b, 8, ..] => Some(Compressor::Gzip),
            [b'B', b'Z', b'h', ..] => Some(Compressor::Bz2),
            [0xfd, b'7', b'z', b'X', ..] => Some(Compressor::Lzma),
            [0x04, 0x22, 0x4d, 0x18, ..] => Some(Compressor::Lz4),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Compressor::Zstd),
            _ => None,
        }
    }

    /// The whole content of one stream.
    pub(super) fn decompress(self, value: &[u8]) -> Result<Vec<u8>, DecompressError> {
        let mut rest = value;
        let out = match self {
            Compressor::Zlib => return inflate(Decompress::new(true), value),
            Compressor::Gzip => read(flate2::bufread::GzDecoder::new(&mut rest))?,
            Compressor::Bz2 => read(bzip2::bufread::BzDecoder::new(&mut rest))?,
            Compressor::Lzma => read(XzReader::new_mem_limit(&mut rest, false, MAX_WINDOW_KIB))?,
            Compressor::Lz4 => {
                let out = read(Lz4Decoder::new(&mut rest))?;
                if !is_whole_lz4(value.strip_suffix(rest).unwrap_or_default(), out.len()) {
                    return Err(DecompressError::Broken);
                }
                out
            }
            Compressor::Zstd => {
                let window = u64::from(MAX_WINDOW_KIB) << 10;
                let decoder = ZstdDecoder::new_with_max_window_size(&mut rest, window);
                let mut decoder = decoder.map_err(|_| DecompressError::Broken)?;
                let out = read(&mut decoder)?;
                let decoder = decoder.into_frame_decoder();
                let checksum = decoder.get_checksum_from_data();
                if checksum.is_some() && checksum != decoder.get_calculated_checksum() {
                    return Err(DecompressError::Broken);
                }
                out
            }
            // Reads ahead, so that bytes behind the stream go unnoticed.
            Compressor::Brotli => read(brotli::Decompressor::new(&mut rest, BROTLI_BUFFER))?,
        };
        if rest.is_empty() {
            Ok(out)
        } else {
            Err(DecompressError::Broken)
        }
    }

    /// One stream that every reader of this format takes.
    pub fn compress(self, value: &[u8]) -> Vec<u8> {
        let out = match self {
            Compressor::Zlib => write(
                flate2::write::ZlibEncoder::new(Vec::new(), Compression::default()),
                value,
            )
            .and_then(flate2::write::ZlibEncoder::finish),
            Compressor::Gzip => write(flate2::write::GzEncoder::new(Vec::new(), Compression::default()), value)
                .and_then(flate2::write::GzEncoder::finish),
            Compressor::Bz2 => write(
                bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::default()),
                value,
            )
            .and_then(bzip2::write::BzEncoder::finish),
            Compressor::Lzma => XzWriter::new(Vec::new(), XzOptions::with_preset(LZMA_PRESET))
                .and_then(|encoder| write(encoder, value))
                .and_then(XzWriter::finish),
            Compressor::Lz4 => {
                let info = FrameInfo::new()
                    .content_size(Some(value.len() as u64))
                    .block_mode(BlockMode::Independent);
                write(Lz4Encoder::with_frame_info(info, Vec::new()), value)
                    .and_then(|encoder| encoder.finish().map_err(std::io::Error::other))
            }
            Compressor::Zstd => Ok(compress_to_vec(value, CompressionLevel::Fastest)),
            Compressor::Brotli => {
                let mut out = Vec::new();
                let params = BrotliEncoderParams {
                    quality: BROTLI_QUALITY,
                    ..BrotliEncoderParams::default()
                };
                brotli::BrotliCompress(&mut &*value, &mut out, &params).map(|_| out)
            }
        };
        // A vector takes whatever is written to it.
        out.unwrap_or_default()
    }
}

fn write<W: std::io::Write>(mut encoder: W, value: &[u8]) -> std::io::Result<W> {
    encoder.write_all(value)?;
    Ok(encoder)
}

/// Everything that comes out, at most [`MAX_VALUE_BYTES`].
fn read(decoder: impl Read) -> Result<Vec<u8>, DecompressError> {
    let mut out = Vec::new();
    // One byte past the limit tells "too large" from "just fits".
    let limit = MAX_VALUE_BYTES as u64 + 1;
    if decoder.take(limit).read_to_end(&mut out).is_err() {
        return Err(DecompressError::Broken);
    }
    if out.len() > MAX_VALUE_BYTES {
        Err(DecompressError::TooLarge)
    } else {
        Ok(out)
    }
}

/// Whether an LZ4 frame has its end mark, and the size that it declares: its decoder takes the end of the bytes for the
/// end of the frame.
fn is_whole_lz4(frame: &[u8], len: usize) -> bool {
    const HAS_SIZE: u8 = 1 << 3;
    const HAS_CHECKSUM: u8 = 1 << 2;
    let Some(flags) = frame.get(4) else {
        return false;
    };
    let size = frame
        .get(6..14)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u64::from_le_bytes);
    let checksum = if flags & HAS_CHECKSUM == 0 { 0 } else { 4 };
    let end = frame.len().checked_sub(checksum).map_or(&[][..], |end| &frame[..end]);
    end.ends_with(&[0; 4]) && (flags & HAS_SIZE == 0 || size == Some(len as u64))
}

/// Inflates one whole stream, with no byte before or after it. Rows, which are many, come here too.
pub(super) fn inflate(mut stream: Decompress, input: &[u8]) -> Result<Vec<u8>, DecompressError> {
    // Sessions compress to about half; the buffer grows when that is wrong.
    let mut out = Vec::with_capacity((input.len() * 4).clamp(256, MAX_VALUE_BYTES));
    loop {
        let consumed = stream.total_in() as usize;
        let rest = input.get(consumed..).unwrap_or_default();
        let before = (consumed, out.len());
        let status = stream.decompress_vec(rest, &mut out, FlushDecompress::None);
        let status = status.map_err(|_| DecompressError::Broken)?;
        let consumed = stream.total_in() as usize;
        if out.len() > MAX_VALUE_BYTES {
            return Err(DecompressError::TooLarge);
        }
        match status {
            Status::StreamEnd if consumed == input.len() => return Ok(out),
            Status::StreamEnd => return Err(DecompressError::Broken),
            _ if out.len() == out.capacity() => out.reserve(out.len().min(MAX_VALUE_BYTES + 1 - out.len()).max(1)),
            // There is room, and nothing more comes: the stream is cut short.
            _ if (consumed, out.len()) == before => return Err(DecompressError::Broken),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Compressor; 7] = [
        Compressor::Zlib,
        Compressor::Gzip,
        Compressor::Bz2,
        Compressor::Lzma,
        Compressor::Lz4,
        Compressor::Zstd,
        Compressor::Brotli,
    ];

    #[test]
    fn what_is_compressed_is_recognised_and_comes_back() {
        let text: Vec<u8> = (0..3000_u32).flat_map(|n| n.to_string().into_bytes()).collect();
        for compressor in ALL {
            for value in [&b""[..], b"x", &text, &[0; 100_000]] {
                let packed = compressor.compress(value);
                let seen = Compressor::recognise(&packed);
                assert_eq!(
                    seen,
                    (compressor != Compressor::Brotli).then_some(compressor),
                    "{compressor:?}"
                );
                assert_eq!(compressor.decompress(&packed).as_deref(), Ok(value), "{compressor:?}");
            }
            assert!(compressor.compress(&text).len() < text.len(), "{compressor:?}");
        }
    }

    #[test]
    fn a_stream_that_is_cut_short_is_refused() {
        let text: Vec<u8> = (0..300_u32).flat_map(|n| n.to_string().into_bytes()).collect();
        for compressor in ALL {
            let packed = compressor.compress(&text);
            for end in 0..packed.len() {
                assert!(
                    compressor.decompress(&packed[..end]).is_err(),
                    "{compressor:?} {end} of {}",
                    packed.len()
                );
            }
            let more = [&packed[..], b"more"].concat();
            assert!(
                compressor == Compressor::Brotli || compressor.decompress(&more).is_err(),
                "{compressor:?}"
            );
        }
    }

    #[test]
    fn a_stream_that_just_fits_is_read_and_one_byte_more_is_not() {
        for compressor in ALL {
            for (len, expected) in [
                (MAX_VALUE_BYTES, Ok(MAX_VALUE_BYTES)),
                (MAX_VALUE_BYTES + 1, Err(DecompressError::TooLarge)),
            ] {
                let out = compressor.decompress(&compressor.compress(&vec![b'.'; len]));
                assert_eq!(out.map(|out| out.len()), expected, "{compressor:?}");
            }
        }
    }
}
