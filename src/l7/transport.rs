//! What a connection's bytes go through: TCP, with or without TLS on it.
//!
//! Everything above reads and writes plain bytes here and does not know the difference. Without TLS
//! each call is the stream's own, behind one branch that is always taken the same way. What is
//! queued, sent or flushed is counted as it goes over the wire.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::task::{Context, Poll};

use crate::ring::{Chunk, Ring, Stream};

/// A connection to a client or a server.
#[derive(Debug)]
pub struct Transport {
    stream: Stream,
}

impl From<Stream> for Transport {
    /// Without TLS.
    fn from(stream: Stream) -> Self {
        Self { stream }
    }
}

impl Transport {
    /// The socket below.
    #[must_use]
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// The next received bytes; `None` at the end of the stream.
    #[inline]
    pub fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Chunk>>> {
        self.stream.poll_recv(cx)
    }

    /// Appends to the output. What cannot be sent because the connection is broken is dropped; the
    /// error shows in [`Transport::poll_flushed`] and [`Transport::poll_recv`].
    #[inline]
    pub fn write(&self, chunk: impl Into<Chunk>) {
        self.stream.write(chunk);
    }

    /// Sends the end of the stream after what is queued.
    pub fn shutdown_write(&self) {
        self.stream.shutdown_write();
    }

    /// True while nothing has been received that nobody took: no data, no end, no error.
    #[inline]
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.stream.is_quiet()
    }

    /// See [`Stream::watch`].
    #[inline]
    pub fn watch(&self) {
        self.stream.watch();
    }

    /// See [`Stream::end_bulk`].
    #[inline]
    pub fn end_bulk(&self) {
        self.stream.end_bulk();
    }

    /// See [`Stream::poll_reset`].
    #[inline]
    pub fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.stream.poll_reset(cx)
    }

    /// See [`Stream::queued`].
    #[inline]
    #[must_use]
    pub fn queued(&self) -> usize {
        self.stream.queued()
    }

    /// See [`Stream::queued_pieces`].
    #[inline]
    #[must_use]
    pub fn queued_pieces(&self) -> usize {
        self.stream.queued_pieces()
    }

    /// See [`Stream::sent`].
    #[inline]
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.stream.sent()
    }

    /// See [`Stream::poll_flushed`].
    #[inline]
    pub fn poll_flushed(&self, cx: &mut Context<'_>, low: usize) -> Poll<io::Result<()>> {
        self.stream.poll_flushed(cx, low)
    }

    /// See [`Stream::reset_on_close`].
    pub fn reset_on_close(&self) {
        self.stream.reset_on_close();
    }

    /// See [`Stream::ring`].
    #[inline]
    #[must_use]
    pub fn ring(&self) -> &Rc<Ring> {
        self.stream.ring()
    }
}

impl AsFd for Transport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
