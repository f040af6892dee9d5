//! A piece of the byte stream, wherever its bytes are.

use std::rc::Rc;

use bytes::{Buf, Bytes};

use super::Ring;
use super::buffers::RecvBuf;

/// Bytes on their way in or out. They do not move while a chunk is moved, which is what lets the
/// kernel read them from a queue of chunks.
#[derive(Debug)]
pub enum Chunk {
    /// Received, still in the kernel-filled buffer.
    Received(RecvBuf),
    /// Written here; the vector goes back to the ring's free list.
    Written(WriteBuf),
    /// Shared, for instance a fixed response body.
    Shared(Bytes),
}

impl Chunk {
    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Received(buffer) => buffer.as_slice(),
            Self::Written(buffer) => &buffer.bytes[buffer.start..],
            Self::Shared(bytes) => bytes,
        }
    }

    /// How many bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// True when nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }

    /// Drops the first `n` bytes (all of them when there are fewer).
    pub fn advance(&mut self, n: usize) {
        match self {
            Self::Received(buffer) => buffer.advance(n),
            Self::Written(buffer) => {
                buffer.start = buffer.start.saturating_add(n).min(buffer.bytes.len());
            }
            Self::Shared(bytes) => bytes.advance(n.min(bytes.len())),
        }
    }

    /// Takes off the first `n` bytes (all of them when there are fewer); copies only what was
    /// written here.
    #[must_use]
    pub fn split_to(&mut self, n: usize) -> Self {
        match self {
            Self::Received(buffer) => Self::Received(buffer.split_to(n)),
            Self::Written(_) => {
                let n = n.min(self.len());
                let front = Bytes::copy_from_slice(&self.as_slice()[..n]);
                self.advance(n);
                Self::Shared(front)
            }
            Self::Shared(bytes) => Self::Shared(bytes.split_to(n.min(bytes.len()))),
        }
    }
}

impl From<Bytes> for Chunk {
    fn from(bytes: Bytes) -> Self {
        Self::Shared(bytes)
    }
}

impl From<WriteBuf> for Chunk {
    fn from(buffer: WriteBuf) -> Self {
        Self::Written(buffer)
    }
}

/// A byte vector from the ring's free list, to which it returns when dropped.
#[derive(Debug)]
pub struct WriteBuf {
    /// What is written.
    pub bytes: Vec<u8>,
    start: usize,
    ring: Rc<Ring>,
}

impl WriteBuf {
    /// An empty buffer.
    #[must_use]
    pub fn new(ring: &Rc<Ring>) -> Self {
        Self { bytes: ring.write_buffers.take(), start: 0, ring: Rc::clone(ring) }
    }
}

impl Drop for WriteBuf {
    fn drop(&mut self) {
        self.ring.write_buffers.put(std::mem::take(&mut self.bytes));
    }
}
