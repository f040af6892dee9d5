//! Writing bodies to a stream, in the framing the receiver was promised.

use std::rc::Rc;

use crate::l7::channel::Channel;
use crate::protocol::http1::encode;
use crate::ring::{Chunk, Ring, WriteBuf};

/// Pieces up to this many bytes are copied next to their framing; larger ones are sent from where
/// they were received.
const COPY_MAX: usize = 2048;

/// How a body goes out; a stream of HTTP/2 frames it by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// As it is: the receiver knows the length, or that the end of the stream is the end.
    Identity,
    /// In chunks (RFC 9112 section 7.1).
    Chunked,
}

/// Writes one body.
#[derive(Debug)]
pub struct BodyWriter {
    coding: Coding,
    written: u64,
}

impl BodyWriter {
    /// For a body that goes out like this.
    #[must_use]
    pub fn new(coding: Coding) -> Self {
        Self { coding, written: 0 }
    }

    /// Body bytes written so far, framing not counted.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Writes a piece; `before` is output that goes out ahead of it, a head for instance.
    pub fn write(&mut self, stream: &Channel, before: Option<WriteBuf>, piece: Chunk) {
        self.written += piece.len() as u64;
        if let Some(stream) = stream.http2() {
            if let Some(head) = before {
                stream.write_head(head, false);
            }
            return stream.write(piece);
        }
        match self.coding {
            Coding::Identity => write_behind(stream, before, piece),
            Coding::Chunked => {
                let mut buffer = before.unwrap_or_else(|| WriteBuf::new(stream.ring()));
                encode::push_chunk_size(&mut buffer.bytes, piece.len());
                if piece.len() <= COPY_MAX {
                    buffer.bytes.extend_from_slice(piece.as_slice());
                    buffer.bytes.extend_from_slice(b"\r\n");
                    stream.write(buffer);
                } else {
                    stream.write_both(buffer, piece);
                    stream.write(Chunk::Shared(bytes::Bytes::from_static(b"\r\n")));
                }
            }
        }
    }

    /// Writes what ends the body.
    pub fn finish<'a>(
        &self,
        stream: &Channel,
        before: Option<WriteBuf>,
        trailers: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) {
        if let Some(stream) = stream.http2() {
            if let Some(head) = before {
                stream.write_head(head, false);
            }
            return stream.finish(trailers);
        }
        match self.coding {
            Coding::Identity => {
                if let Some(before) = before {
                    stream.write(before);
                }
            }
            Coding::Chunked => {
                let mut buffer = before.unwrap_or_else(|| WriteBuf::new(stream.ring()));
                buffer.bytes.extend_from_slice(b"0\r\n");
                for (name, value) in trailers {
                    encode::push_field(&mut buffer.bytes, name, value);
                }
                buffer.bytes.extend_from_slice(b"\r\n");
                stream.write(buffer);
            }
        }
    }
}

fn write_behind(stream: &Channel, before: Option<WriteBuf>, piece: Chunk) {
    match before {
        Some(mut before) if piece.len() <= COPY_MAX => {
            before.bytes.extend_from_slice(piece.as_slice());
            stream.write(before);
        }
        Some(before) => stream.write_both(before, piece),
        None => stream.write(piece),
    }
}

/// A write buffer with `bytes` in it.
#[must_use]
pub fn buffer_of(ring: &Rc<Ring>, bytes: &[u8]) -> WriteBuf {
    let mut buffer = WriteBuf::new(ring);
    buffer.bytes.extend_from_slice(bytes);
    buffer
}
