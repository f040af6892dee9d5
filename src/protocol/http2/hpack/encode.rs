//! Encoding field blocks.

use std::collections::VecDeque;

use super::fixed::ENTRIES;
use super::huffman;
use super::table::{OVERHEAD, Table};

/// The table we use at most, whatever the peer would allow.
const TABLE_MAX: usize = 4096;
/// A field larger than this is not worth a place in the table.
const INDEXED_MAX: usize = 512;

/// The encoding end of one direction of a connection.
///
/// Fields that tend to come again get a place in the dynamic table, Huffman-coded that one time; what
/// tells one message from another (lengths, dates of change, ids) is sent as it is, which costs bytes
/// and spares time. Credentials are never indexed (RFC 7541 section 7.1.3).
#[derive(Debug)]
pub struct Encoder {
    table: Table,
    /// Hashes of the table's fields, the newest first.
    hashes: VecDeque<u32>,
    /// What the next block has to tell of the table's size: the smallest since the last, and the last.
    resized: Option<(usize, usize)>,
}

impl Default for Encoder {
    fn default() -> Self {
        Self { table: Table::new(TABLE_MAX), hashes: VecDeque::new(), resized: None }
    }
}

/// How a field is represented.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Indexed,
    Plain,
    Never,
}

impl Encoder {
    /// The peer allows a table of this size (SETTINGS_HEADER_TABLE_SIZE).
    pub fn set_size_max(&mut self, size: u32) {
        let size = usize::try_from(size).unwrap_or(usize::MAX).min(TABLE_MAX);
        if size == self.table.max() && self.resized.is_none() {
            return;
        }
        let least = self.resized.map_or(size, |(least, _)| least.min(size));
        self.resized = Some((least, size));
        let dropped = self.table.set_max(size);
        self.hashes.truncate(self.hashes.len().saturating_sub(dropped));
    }

    /// Begins a block.
    pub fn begin(&mut self, out: &mut Vec<u8>) {
        if let Some((least, last)) = self.resized.take() {
            if least < last {
                push_integer(out, 0x20, 5, least);
            }
            push_integer(out, 0x20, 5, last);
        }
    }

    /// Appends `:status`.
    pub fn status(&mut self, status: u16, out: &mut Vec<u8>) {
        let index = match status {
            200 => 8,
            204 => 9,
            206 => 10,
            304 => 11,
            400 => 12,
            404 => 13,
            500 => 14,
            _ => {
                let digits = [status / 100 % 10, status / 10 % 10, status % 10];
                let text = digits.map(|digit| b"0123456789"[usize::from(digit)]);
                return self.field(b":status", &text, out);
            }
        };
        out.push(0x80 | index);
    }

    /// Appends a field; the name is in lower case.
    pub fn field(&mut self, name: &[u8], value: &[u8], out: &mut Vec<u8>) {
        let kind = kind(name, value);
        let hash = hash(name, value);
        if kind == Kind::Indexed
            && let Some(number) = self.find(hash, name, value)
        {
            return push_integer(out, 0x80, 7, ENTRIES.len() + 1 + number);
        }
        let name_index = match fixed(name, value) {
            (index, true) => return push_integer(out, 0x80, 7, index),
            (index, false) => index,
        };
        match kind {
            Kind::Indexed => push_integer(out, 0x40, 6, name_index),
            Kind::Plain => push_integer(out, 0, 4, name_index),
            Kind::Never => push_integer(out, 0x10, 4, name_index),
        }
        let coded = kind == Kind::Indexed;
        if name_index == 0 {
            push_string(out, name, coded);
        }
        push_string(out, value, coded);
        if coded {
            let (dropped, added) = self.table.insert(name, value);
            self.hashes.truncate(self.hashes.len().saturating_sub(dropped));
            if added {
                self.hashes.push_front(hash);
            }
        }
    }

    fn find(&self, hash: u32, name: &[u8], value: &[u8]) -> Option<usize> {
        let mut numbers = self.hashes.iter().enumerate().filter(|&(_, &known)| known == hash);
        let same = |number: &usize| self.table.dynamic(*number) == Some((name, value));
        numbers.next().map(|(number, _)| number).filter(same)
    }
}

/// What is the same from message to message gets a place in the table.
fn kind(name: &[u8], value: &[u8]) -> Kind {
    match name {
        b"authorization" | b"proxy-authorization" | b"cookie" | b"set-cookie" => Kind::Never,
        b":path" | b"content-length" | b"etag" | b"last-modified" | b"location" | b"age"
        | b"x-request-id" | b"content-range" | b"range" | b"if-none-match" | b"grpc-timeout"
        | b"if-modified-since" | b"x-forwarded-for" | b"x-real-ip" => Kind::Plain,
        _ if name.len() + value.len() + OVERHEAD > INDEXED_MAX => Kind::Plain,
        _ => Kind::Indexed,
    }
}

/// FNV-1a over length, name and value; only tells candidates apart.
fn hash(name: &[u8], value: &[u8]) -> u32 {
    let mut hash = 0x811c_9dc5_u32 ^ u32::try_from(name.len()).unwrap_or(0);
    for &byte in name.iter().chain(value) {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    hash
}

/// The static entry of this name, 0 if there is none, and whether its value is this one too.
fn fixed(name: &[u8], value: &[u8]) -> (usize, bool) {
    let mut found = 0;
    for (index, (known, known_value)) in ENTRIES.iter().enumerate() {
        if *known == name {
            if *known_value == value && !value.is_empty() {
                return (index + 1, true);
            }
            if found == 0 {
                found = index + 1;
            }
        } else if found > 0 {
            break; // entries of one name stand together
        }
    }
    (found, false)
}

#[allow(clippy::cast_possible_truncation)] // cut to bytes on purpose
fn push_integer(out: &mut Vec<u8>, pattern: u8, prefix: u32, value: usize) {
    let mask = (1_usize << prefix) - 1;
    if value < mask {
        return out.push(pattern | value as u8);
    }
    out.push(pattern | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn push_string(out: &mut Vec<u8>, text: &[u8], coded: bool) {
    if coded {
        let len = huffman::coded_len(text);
        if len < text.len() {
            push_integer(out, 0x80, 7, len);
            return huffman::encode(text, out);
        }
    }
    push_integer(out, 0, 7, text.len());
    out.extend_from_slice(text);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Decoder;
    use super::*;

    type Fields = Vec<(Vec<u8>, Vec<u8>)>;

    fn round(encoder: &mut Encoder, decoder: &mut Decoder, fields: &Fields) -> (Fields, usize) {
        let mut block = Vec::new();
        encoder.begin(&mut block);
        for (name, value) in fields {
            encoder.field(name, value, &mut block);
        }
        let mut decoded = Vec::new();
        let collect = |name: &[u8], value: &[u8]| decoded.push((name.to_vec(), value.to_vec()));
        decoder.decode(&block, collect).unwrap();
        (decoded, block.len())
    }

    #[test]
    fn what_comes_again_takes_a_byte() {
        let (mut encoder, mut decoder) = (Encoder::default(), Decoder::new(4096));
        let field = |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
        let fields = vec![field("server", "ringgate"), field(":status", "200"), field("x-a", "b")];
        assert!(round(&mut encoder, &mut decoder, &fields).1 > 3);
        assert_eq!(round(&mut encoder, &mut decoder, &fields), (fields, 3));
        let secret = vec![field("set-cookie", "a=b")];
        for _ in 0..2 {
            assert_eq!(round(&mut encoder, &mut decoder, &secret), (secret.clone(), 6));
        }
    }

    #[test]
    fn statuses() {
        let (mut encoder, mut decoder) = (Encoder::default(), Decoder::new(4096));
        for status in 100..=599_u16 {
            let mut block = Vec::new();
            encoder.status(status, &mut block);
            let check = |name: &[u8], value: &[u8]| {
                assert_eq!((name, value), (&b":status"[..], status.to_string().as_bytes()));
            };
            decoder.decode(&block, check).unwrap();
        }
    }

    proptest! {
        #[test]
        fn our_decoder_reads_what_we_write(
            messages in prop::collection::vec(
                (prop::collection::vec(("[a-c]{1,3}|cookie|:path", "[ -~]{0,12}|[a]{0,600}"), 0..8),
                    prop::option::of(0..5000_u32)),
                1..20,
            )
        ) {
            let (mut encoder, mut decoder) = (Encoder::default(), Decoder::new(4096));
            for (fields, size) in messages {
                if let Some(size) = size {
                    encoder.set_size_max(size);
                }
                let bytes = |(name, value): (String, String)| (name.into_bytes(), value.into_bytes());
                let fields: Fields = fields.into_iter().map(bytes).collect();
                prop_assert_eq!(round(&mut encoder, &mut decoder, &fields).0, fields);
            }
        }
    }
}
