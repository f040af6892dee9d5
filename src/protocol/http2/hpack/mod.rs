//! HPACK (RFC 7541): field blocks to fields and back, with the table of each direction.

mod decode;
mod encode;
mod fixed;
mod huffman;
mod table;

pub use decode::{DecodeError, Decoder};
pub use encode::Encoder;
