//! Chunked bodies: the same outcome however the bytes arrive, and what was decoded can be encoded
//! and decoded again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringgate::protocol::http1::{
    BodyDecoder, BodyError, Framing, Step,
    encode::{LAST_CHUNK, push_chunk_size, push_field},
};

type Trailer = (Vec<u8>, Vec<u8>);

/// Data, bytes consumed if the body ended, trailers.
type Decoded = (Vec<u8>, Option<usize>, Vec<Trailer>);

fn decode(input: &[u8], size: usize) -> Result<Decoded, BodyError> {
    let mut decoder = BodyDecoder::new(Framing::Chunked);
    let (mut data, mut consumed) = (Vec::new(), 0);
    for mut piece in input.chunks(size) {
        loop {
            match decoder.step(piece)? {
                Step::Data { start, end } => {
                    assert!(start < end);
                    data.extend_from_slice(&piece[start..end]);
                    consumed += end;
                    piece = &piece[end..];
                }
                Step::More => {
                    consumed += piece.len();
                    break;
                }
                Step::End(end) => {
                    let trailers = decoder.trailers().map(|(n, v)| (n.to_vec(), v.to_vec()));
                    return Ok((data, Some(consumed + end), trailers.collect()));
                }
            }
        }
    }
    Ok((data, None, Vec::new()))
}

fuzz_target!(|input: &[u8]| {
    let whole = decode(input, input.len().max(1));
    for size in [1, 2, 7] {
        assert_eq!(decode(input, size), whole);
    }
    let Ok((data, Some(_), trailers)) = whole else { return };
    let mut again = Vec::new();
    for chunk in data.chunks(5) {
        push_chunk_size(&mut again, chunk.len());
        again.extend_from_slice(chunk);
        again.extend_from_slice(b"\r\n");
    }
    again.extend_from_slice(&LAST_CHUNK[..3]);
    for (name, value) in &trailers {
        push_field(&mut again, name, value);
    }
    again.extend_from_slice(b"\r\n");
    let fits = again.len() < 8 * 1024;
    if fits {
        assert_eq!(decode(&again, again.len()), Ok((data, Some(again.len()), trailers)));
    }
});
