use proptest::prelude::*;

use super::*;
use crate::protocol::http1::encode::{LAST_CHUNK, push_chunk_size};

type Trailer = (Vec<u8>, Vec<u8>);

/// What a whole body comes to: its data, its length in the input, its trailers.
#[derive(Debug, PartialEq)]
struct Decoded {
    data: Vec<u8>,
    consumed: usize,
    trailers: Vec<Trailer>,
}

/// Decodes pieces of the given sizes, then the rest, then the end of the connection.
fn decode(framing: Framing, input: &[u8], sizes: &[usize]) -> Result<Decoded, BodyError> {
    let mut decoder = BodyDecoder::new(framing);
    let (mut data, mut consumed) = (Vec::new(), 0_usize);
    'pieces: for &size in sizes.iter().chain([&usize::MAX]) {
        let mut piece = &input[consumed..input.len().min(consumed.saturating_add(size))];
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
                    consumed += end;
                    assert!(decoder.is_done());
                    assert_eq!(decoder.step(b"x"), Ok(Step::End(0)));
                    break 'pieces;
                }
            }
        }
    }
    decoder.eof()?;
    let trailers = decoder.trailers().map(|(name, value)| (name.to_vec(), value.to_vec()));
    Ok(Decoded { data, consumed, trailers: trailers.collect() })
}

fn chunked(input: impl AsRef<[u8]>) -> Result<Decoded, BodyError> {
    decode(Framing::Chunked, input.as_ref(), &[])
}

#[test]
fn a_chunk_is_announced_by_its_size() {
    let mut decoder = BodyDecoder::new(Framing::Chunked);
    for (input, announced) in [
        (&b"5"[..], 0),
        (b"\r", 0),
        (b"\n", 5),
        (b"ab", 3),
        (b"cde", 0),
        (b"\r\nffffffffffffffff\r\n", u64::MAX),
        (b"x", u64::MAX - 1),
    ] {
        decoder.step(input).unwrap();
        assert_eq!(decoder.announced(), announced, "{:?}", String::from_utf8_lossy(input));
    }
    assert_eq!(BodyDecoder::new(Framing::Length(7)).announced(), 7);
    assert_eq!(BodyDecoder::new(Framing::Close).announced(), 0);
}

#[test]
fn without_body() {
    for framing in [Framing::None, Framing::Length(0)] {
        let mut decoder = BodyDecoder::new(framing);
        assert!(decoder.is_done());
        assert_eq!(decoder.remaining_hint(), Some(0));
        assert_eq!(decoder.step(b""), Ok(Step::End(0)));
        assert_eq!(decoder.step(b"GET"), Ok(Step::End(0)));
        assert_eq!(decoder.eof(), Ok(()));
    }
}

#[test]
fn length() {
    let mut decoder = BodyDecoder::new(Framing::Length(5));
    assert_eq!(decoder.remaining_hint(), Some(5));
    assert_eq!(decoder.step(b""), Ok(Step::More));
    assert_eq!(decoder.step(b"abc"), Ok(Step::Data { start: 0, end: 3 }));
    assert_eq!(decoder.remaining_hint(), Some(2));
    assert!(!decoder.is_done());
    assert_eq!(decoder.step(b"deGET"), Ok(Step::Data { start: 0, end: 2 }));
    assert!(decoder.is_done());
    assert_eq!(decoder.step(b"GET"), Ok(Step::End(0)));

    let mut decoder = BodyDecoder::new(Framing::Length(u64::MAX));
    assert_eq!(decoder.step(b"abc"), Ok(Step::Data { start: 0, end: 3 }));
    assert_eq!(decoder.eof(), Err(BodyError::Truncated));
    assert_eq!(decoder.step(b"abc"), Err(BodyError::Truncated));
}

#[test]
fn close() {
    let mut decoder = BodyDecoder::new(Framing::Close);
    assert_eq!(decoder.step(b""), Ok(Step::More));
    assert_eq!(decoder.step(b"abc"), Ok(Step::Data { start: 0, end: 3 }));
    assert_eq!(decoder.remaining_hint(), None);
    assert!(!decoder.is_done());
    assert_eq!(decoder.eof(), Ok(()));
    assert!(decoder.is_done());
}

#[test]
fn chunks() {
    let table: &[(&str, &str, usize)] = &[
        ("0\r\n\r\nGET", "", 5),
        ("000\r\n\r\n", "", 7),
        ("3\r\nabc\r\n0\r\n\r\n", "abc", 13),
        ("3\r\nabc\r\n02\r\nde\r\n0\r\n\r\nGET /", "abcde", 21),
        ("a\r\n0123456789\r\n0\r\n\r\n", "0123456789", 20),
        ("A\r\n0123456789\r\n0\r\n\r\n", "0123456789", 20),
        ("0000000000000003\r\nabc\r\n0\r\n\r\n", "abc", 28),
        ("3;a=b;c=\"d;e\"\r\nabc\r\n0;last\r\n\r\n", "abc", 30),
        ("3 \t;a = b\r\nabc\r\n0\r\n\r\n", "abc", 21),
        ("3;\u{e9}\r\nabc\r\n0\r\n\r\n", "abc", 16),
        ("2\r\n\r\n\r\n0\r\n\r\n", "\r\n", 12),
    ];
    for (input, data, consumed) in table {
        let decoded = chunked(input).unwrap();
        assert_eq!(
            (decoded.data, decoded.consumed),
            (data.as_bytes().to_vec(), *consumed),
            "{input:?}"
        );
        assert_eq!(decoded.trailers, []);
    }
}

#[test]
fn refused_chunks() {
    use BodyError::*;
    let long_extension = format!("3;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(256));
    let many_extensions = format!("1;{}\r\na\r\n", "x".repeat(255)).repeat(65);
    let table: &[(&str, BodyError)] = &[
        ("", Truncated),
        ("3\r\nab", Truncated),
        ("3\r\nabc\r\n0\r\n", Truncated),
        ("3\r\nabc\r\n0\r\n\r", Truncated),
        ("\r\n", ChunkSize),
        ("\n", ChunkSize),
        ("-3\r\n", ChunkSize),
        ("+3\r\n", ChunkSize),
        (" 3\r\n", ChunkSize),
        ("0x3\r\n", ChunkSize),
        ("3g\r\n", ChunkSize),
        ("3_0\r\n", ChunkSize),
        (";a\r\n", ChunkSize),
        ("\u{ff13}\r\n", ChunkSize),
        ("3\0\r\n", ChunkSize),
        ("00000000000000003\r\n", ChunkSizeTooLong),
        ("10000000000000000\r\n", ChunkSizeTooLong),
        ("3\nabc\r\n", BareLf),
        ("3;a\nabc\r\n", BareLf),
        ("3 \nabc", BareLf),
        ("3\rabc\r\n", BareCr),
        ("3;a\rb\r\nabc\r\n", BareCr),
        ("3\r\r\nabc\r\n", BareCr),
        ("3 \r\nabc\r\n", ChunkExtension),
        ("3 3\r\nabc\r\n", ChunkExtension),
        ("3;\0\r\nabc\r\n", ChunkExtension),
        ("3;\x7f\r\nabc\r\n", ChunkExtension),
        ("3;\x0b\r\nabc\r\n", ChunkExtension),
        ("3\r\nabcd\r\n", ChunkEnd),
        ("3\r\nabc\n0\r\n\r\n", ChunkEnd),
        ("3\r\nabc0\r\n\r\n", ChunkEnd),
        ("3\r\nabc\rx", BareCr),
        ("0\r\n\n", Trailers),
        ("0\r\n\rx", BareCr),
        (&long_extension, ChunkExtensionsTooLong),
        (&many_extensions, ChunkExtensionsTooLong),
    ];
    for (input, error) in table {
        assert_eq!(chunked(input), Err(*error), "{input:?}");
    }
    assert!(chunked(long_extension.replacen('x', "", 1)).is_ok());
    let fewer = format!("1;{}\r\na\r\n", "x".repeat(255)).repeat(64) + "0\r\n\r\n";
    assert!(chunked(fewer).is_ok());
    assert_eq!(ChunkSize.status(), 400);
    assert_eq!(ChunkSizeTooLong.status(), 413);
    assert_eq!(TrailersTooLarge.status(), 431);
}

#[test]
fn largest_chunk() {
    let mut decoder = BodyDecoder::new(Framing::Chunked);
    let step = decoder.step(b"ffffffffffffffff\r\nabc");
    assert_eq!(step, Ok(Step::Data { start: 18, end: 21 }));
    assert_eq!(decoder.step(b"defg"), Ok(Step::Data { start: 0, end: 4 }));
}

#[test]
fn trailers() {
    let input = "3\r\nabc\r\n0\r\nX-Sum:\t 1 \r\nContent-Length: 5\r\ntransfer-encoding: chunked\r\n\
        Host: a\r\nConnection: close\r\nTrailer: x\r\nAuthorization: x\r\nSet-Cookie: x\r\n\
        Content-Type: x\r\nIf-Match: x\r\nX-Forwarded-For: x\r\nServer-Timing: \r\nIf: y\r\n\r\nGET";
    let decoded = chunked(input).unwrap();
    assert_eq!(decoded.data, b"abc");
    assert_eq!(decoded.consumed, input.len() - 3);
    let trailers: Vec<_> = decoded.trailers.iter().map(|(n, v)| (&n[..], &v[..])).collect();
    let expected: [(&[u8], &[u8]); 3] = [(b"X-Sum", b"1"), (b"Server-Timing", b""), (b"If", b"y")];
    assert_eq!(trailers, expected);
}

#[test]
fn refused_trailers() {
    for lines in [
        "A : b\r\n",
        " A: b\r\n",
        "A: b\r\n c\r\n",
        "A\r\n",
        ": b\r\n",
        "A: \x01\r\n",
        "A: b\n",
        "A: b\rc\r\n",
        "A: \0\r\n",
        "GET / HTTP/1.1\r\n",
    ] {
        assert_eq!(chunked(format!("0\r\n{lines}\r\n")), Err(BodyError::Trailers), "{lines:?}");
    }
    let many = |count| format!("0\r\n{}\r\n", "A: b\r\n".repeat(count));
    assert_eq!(chunked(many(64)).unwrap().trailers.len(), 64);
    assert_eq!(chunked(many(65)), Err(BodyError::TrailersTooLarge));
    let long = |len| format!("0\r\nA: {}\r\n\r\n", "b".repeat(len));
    assert_eq!(chunked(long(8 * 1024 - 7)).unwrap().trailers.len(), 1);
    assert_eq!(chunked(long(8 * 1024 - 6)), Err(BodyError::TrailersTooLarge));
}

#[test]
fn no_trailers_before_the_end() {
    let mut decoder = BodyDecoder::new(Framing::Chunked);
    assert_eq!(decoder.step(b"0\r\nA: b\r\n"), Ok(Step::More));
    assert_eq!(decoder.trailers().count(), 0);
    assert_eq!(decoder.step(b"\r\n"), Ok(Step::End(2)));
    assert_eq!(decoder.trailers().count(), 1);
}

#[test]
fn errors_last() {
    let mut decoder = BodyDecoder::new(Framing::Chunked);
    assert_eq!(decoder.step(b"x"), Err(BodyError::ChunkSize));
    assert_eq!(decoder.step(b"0\r\n\r\n"), Err(BodyError::ChunkSize));
    assert_eq!(decoder.eof(), Err(BodyError::ChunkSize));
    assert!(!decoder.is_done());
}

fn encode(chunks: &[Vec<u8>], tail: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for chunk in chunks.iter().filter(|chunk| !chunk.is_empty()) {
        push_chunk_size(&mut out, chunk.len());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(tail);
    out
}

proptest! {
    #[test]
    fn pieces_do_not_matter(
        parts in prop::collection::vec(prop::sample::select(vec![
            "0\r\n", "1\r\na\r\n", "3\r\nabc\r\n", "2;x=y\r\nab\r\n", "\r\n", "\r", "\n", "A: b\r\n",
            "Host: c\r\n", "4\r\n", "x", "0", ";", " ",
        ]), 0..10),
        sizes in prop::collection::vec(0_usize..6, 0..30),
        framing in prop::sample::select(vec![
            Framing::Chunked, Framing::Chunked, Framing::Length(7), Framing::Close, Framing::None,
        ]),
    ) {
        let input = parts.concat().into_bytes();
        let expected = decode(framing, &input, &[]);
        prop_assert_eq!(&decode(framing, &input, &sizes), &expected);
        prop_assert_eq!(&decode(framing, &input, &vec![1; input.len()]), &expected);
    }

    #[test]
    fn encoded_body_comes_back(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8),
        sizes in prop::collection::vec(1_usize..50, 0..10),
    ) {
        let input = encode(&chunks, LAST_CHUNK);
        let decoded = decode(Framing::Chunked, &input, &sizes).unwrap();
        prop_assert_eq!(decoded.data, chunks.concat());
        prop_assert_eq!(decoded.consumed, input.len());
    }

    #[test]
    fn any_bytes(input in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = chunked(&input);
        let _ = chunked([b"0\r\n", &input[..]].concat());
    }
}
