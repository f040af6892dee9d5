//! Received ciphertext, cut into records.

use std::io;
use std::task::{Context, Poll, ready};

use crate::protocol::tls::record::{HEADER_LEN, RecordError, record_len};
use crate::ring::{Chunk, Stream, WriteBuf};

/// The ciphertext that was received: cut into records.
#[derive(Debug, Default)]
pub(super) struct Source {
    /// Received, not looked at.
    pub(super) rest: Option<Chunk>,
    /// The beginning of a record.
    partial: Option<WriteBuf>,
}

impl Source {
    pub(super) fn new(rest: Option<Chunk>) -> Self {
        Self { rest, partial: None }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_none() && self.partial.is_none()
    }

    /// Whether the beginning of a record has come.
    pub(super) fn has_begun(&self) -> bool {
        self.partial.is_some()
    }

    /// The next bytes; `None` at the end of the stream.
    pub(super) fn poll_chunk(
        &mut self,
        stream: &Stream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Option<Chunk>>> {
        match self.rest.take() {
            Some(chunk) => Poll::Ready(Ok(Some(chunk))),
            None => stream.poll_recv(cx),
        }
    }

    /// The next whole record; `None` at the end of the stream.
    pub(super) fn poll_record(
        &mut self,
        stream: &Stream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<WriteBuf>, RecordFailure>> {
        loop {
            let have = self.partial.as_ref().map_or(0, |partial| partial.bytes.len());
            let known = match &self.partial {
                Some(partial) => record_len(&partial.bytes).map_err(RecordFailure::Record)?,
                None => None,
            };
            if known == Some(have) {
                return Poll::Ready(Ok(self.partial.take()));
            }
            let chunk = ready!(self.poll_chunk(stream, cx)).map_err(RecordFailure::Io)?;
            let Some(mut chunk) = chunk else { return Poll::Ready(Ok(None)) };
            let partial = self.partial.get_or_insert_with(|| WriteBuf::new(stream.ring()));
            let wanted = known.unwrap_or(HEADER_LEN) - have;
            let bytes = chunk.as_slice();
            let taken = &bytes[..wanted.min(bytes.len())];
            if let Some(length) = known {
                partial.bytes.reserve(length - have);
            }
            partial.bytes.extend_from_slice(taken);
            let taken = taken.len();
            chunk.advance(taken);
            self.rest = Some(chunk).filter(|chunk| !chunk.is_empty());
        }
    }
}

/// Why there is no record.
#[derive(Debug)]
pub(super) enum RecordFailure {
    Io(io::Error),
    Record(RecordError),
}
