//! Decoding field blocks.

use super::huffman;
use super::table::Table;

/// Why a field block was refused: the table is out of step after that, so the connection ends with
/// COMPRESSION_ERROR (RFC 9113 section 4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeError {
    /// The block ends inside a field.
    Truncated,
    /// An integer beyond what any length or index can be.
    Integer,
    /// An index beyond the tables.
    Index,
    /// Bad Huffman code.
    Huffman,
    /// A table size update above the agreed size, behind a field, or one too many.
    SizeUpdate,
}

/// Size updates at the start of a block: the smallest in between, and the last (RFC 7541 section 4.2).
const SIZE_UPDATES_MAX: u32 = 2;

/// The decoding end of one direction of a connection.
#[derive(Debug)]
pub struct Decoder {
    table: Table,
    /// What we told the peer its table may be at most.
    size_max: usize,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Decoder {
    /// With a dynamic table of this size at most.
    #[must_use]
    pub fn new(size_max: usize) -> Self {
        Self { table: Table::new(size_max), size_max, name: Vec::new(), value: Vec::new() }
    }

    /// Decodes a whole block, handing each field to `field`. What `field` does not want is decoded all
    /// the same, since later blocks build on it.
    ///
    /// # Errors
    /// See [`DecodeError`].
    pub fn decode(
        &mut self,
        block: &[u8],
        mut field: impl FnMut(&[u8], &[u8]),
    ) -> Result<(), DecodeError> {
        let mut rest = block;
        let mut updates = 0;
        while let Some(&first) = rest.first() {
            if first & 0x80 != 0 {
                let index = integer(&mut rest, 7)?;
                let (name, value) = self.table.get(index).ok_or(DecodeError::Index)?;
                field(name, value);
                updates = SIZE_UPDATES_MAX;
            } else if first & 0xe0 == 0x20 {
                updates += 1;
                let size = integer(&mut rest, 5)?;
                if size > self.size_max || updates > SIZE_UPDATES_MAX {
                    return Err(DecodeError::SizeUpdate);
                }
                self.table.set_max(size);
            } else {
                let indexed = first & 0xc0 == 0x40;
                self.literal(&mut rest, if indexed { 6 } else { 4 })?;
                field(&self.name, &self.value);
                if indexed {
                    self.table.insert(&self.name, &self.value);
                }
                updates = SIZE_UPDATES_MAX;
            }
        }
        Ok(())
    }

    fn literal(&mut self, rest: &mut &[u8], prefix: u32) -> Result<(), DecodeError> {
        self.name.clear();
        self.value.clear();
        match integer(rest, prefix)? {
            0 => string(rest, &mut self.name)?,
            index => {
                let (name, _) = self.table.get(index).ok_or(DecodeError::Index)?;
                self.name.extend_from_slice(name);
            }
        }
        string(rest, &mut self.value)
    }
}

/// RFC 7541 section 5.1; nothing in a block is longer than four further bytes can say.
fn integer(rest: &mut &[u8], prefix: u32) -> Result<usize, DecodeError> {
    let mask = (1_usize << prefix) - 1;
    let (&first, mut tail) = rest.split_first().ok_or(DecodeError::Truncated)?;
    let mut value = usize::from(first) & mask;
    if value == mask {
        let mut shift = 0;
        loop {
            let (&byte, behind) = tail.split_first().ok_or(DecodeError::Truncated)?;
            tail = behind;
            value += usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
            if shift > 21 {
                return Err(DecodeError::Integer);
            }
        }
    }
    *rest = tail;
    Ok(value)
}

/// RFC 7541 section 5.2.
fn string(rest: &mut &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let huffman = rest.first().ok_or(DecodeError::Truncated)? & 0x80 != 0;
    let len = integer(rest, 7)?;
    let (bytes, behind) = rest.split_at_checked(len).ok_or(DecodeError::Truncated)?;
    *rest = behind;
    if huffman {
        huffman::decode(bytes, out).map_err(|_| DecodeError::Huffman)
    } else {
        out.extend_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Fields = Vec<(String, String)>;

    fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Fields, DecodeError> {
        let mut fields = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        decoder.decode(block, |name, value| fields.push((text(name), text(value)))).map(|()| fields)
    }

    fn fields(of: &[(&str, &str)]) -> Fields {
        of.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn requests_of_the_rfc() {
        // RFC 7541 appendix C.3 without and C.4 with Huffman coding.
        for blocks in [
            [
                &b"\x82\x86\x84\x41\x0fwww.example.com"[..],
                b"\x82\x86\x84\xbe\x58\x08no-cache",
                b"\x82\x87\x85\xbf\x40\x0acustom-key\x0ccustom-value",
            ],
            [
                b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff",
                b"\x82\x86\x84\xbe\x58\x86\xa8\xeb\x10\x64\x9c\xbf",
                b"\x82\x87\x85\xbf\x40\x88\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f\x89\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf",
            ],
        ] {
            let mut decoder = Decoder::new(4096);
            let common = [(":method", "GET"), (":scheme", "http"), (":path", "/")];
            let authority = (":authority", "www.example.com");
            let mut expected = fields(&common);
            expected.extend(fields(&[authority]));
            assert_eq!(decode(&mut decoder, blocks[0]), Ok(expected.clone()));
            expected.extend(fields(&[("cache-control", "no-cache")]));
            assert_eq!(decode(&mut decoder, blocks[1]), Ok(expected));
            let third = [
                (":method", "GET"),
                (":scheme", "https"),
                (":path", "/index.html"),
                authority,
                ("custom-key", "custom-value"),
            ];
            assert_eq!(decode(&mut decoder, blocks[2]), Ok(fields(&third)));
        }
    }

    #[test]
    fn what_is_refused() {
        for (block, error) in [
            (&b"\x80"[..], DecodeError::Index),
            (b"\xbe", DecodeError::Index),
            (b"\x7f\xff\xff\xff\xff\x7f", DecodeError::Integer),
            (b"\xff", DecodeError::Truncated),
            (b"\x40\x01", DecodeError::Truncated),
            (b"\x40\x01a", DecodeError::Truncated),
            (b"\x40\x01a\x05b", DecodeError::Truncated),
            (b"\x40\x81\xff\x01b", DecodeError::Huffman),
            (b"\x3f\xe2\x1f", DecodeError::SizeUpdate),
            (b"\x82\x20", DecodeError::SizeUpdate),
            (b"\x20\x20\x20", DecodeError::SizeUpdate),
            (b"\x7e\x01b", DecodeError::Index),
        ] {
            assert_eq!(decode(&mut Decoder::new(4096), block), Err(error), "{block:x?}");
        }
    }

    #[test]
    fn a_size_update_empties_the_table() {
        let mut decoder = Decoder::new(4096);
        assert!(decode(&mut decoder, b"\x40\x01a\x01b").is_ok());
        assert_eq!(decode(&mut decoder, b"\x20\x3f\xe1\x1f\x82").map(|fields| fields.len()), Ok(1));
        assert_eq!(decode(&mut decoder, b"\xbe"), Err(DecodeError::Index));
    }
}
