//! What a connection's bytes go through: TCP, with or without TLS on it.
//!
//! Everything above reads and writes plain bytes here and does not know the difference. Without TLS
//! each call is the stream's own, behind one branch that is always taken the same way. What is
//! queued, sent or flushed is counted as it goes over the wire.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::task::{Context, Poll};

use crate::l7::tls::{Info, Session};
use crate::ring::{Chunk, Ring, Stream, WriteBuf};

/// A connection to a client or a server.
#[derive(Debug)]
pub struct Transport {
    stream: Stream,
    tls: Option<Box<Session>>,
}

impl From<Stream> for Transport {
    /// Without TLS.
    fn from(stream: Stream) -> Self {
        Self { stream, tls: None }
    }
}

impl Transport {
    /// The socket below.
    #[must_use]
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Goes on inside TLS, after a handshake on [`Transport::stream`].
    pub fn secure(&mut self, session: Session) {
        self.tls = Some(Box::new(session));
    }

    /// What the TLS handshake agreed on; `None` without TLS.
    #[must_use]
    pub fn tls(&self) -> Option<&Rc<Info>> {
        self.tls.as_ref().map(|session| session.info())
    }

    /// True when the peer broke the TLS protocol, or somebody on the way damaged it.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.tls.as_ref().is_some_and(|session| session.is_broken())
    }

    /// True when the connection should take no more requests: its keys are nearly worn.
    #[must_use]
    pub fn is_nearly_worn(&self) -> bool {
        self.tls.as_ref().is_some_and(|session| session.is_nearly_worn())
    }

    /// The next received bytes; `None` at the end of the stream.
    #[inline]
    pub fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Chunk>>> {
        match &self.tls {
            None => self.stream.poll_recv(cx),
            Some(session) => session.poll_recv(&self.stream, cx),
        }
    }

    /// Appends to the output. What cannot be sent because the connection is broken is dropped; the
    /// error shows in [`Transport::poll_flushed`] and [`Transport::poll_recv`].
    #[inline]
    pub fn write(&self, chunk: impl Into<Chunk>) {
        match &self.tls {
            None => self.stream.write(chunk),
            Some(session) => session.write(&self.stream, [chunk.into().as_slice(), &[]]),
        }
    }

    /// Appends two pieces that belong together: TLS puts them into one record if they fit.
    #[inline]
    pub fn write_both(&self, first: WriteBuf, second: Chunk) {
        match &self.tls {
            None => {
                self.stream.write(first);
                self.stream.write(second);
            }
            Some(session) => {
                session.write(&self.stream, [&first.bytes, second.as_slice()]);
            }
        }
    }

    /// Sends the end of the stream after what is queued.
    pub fn shutdown_write(&self) {
        match &self.tls {
            None => self.stream.shutdown_write(),
            Some(session) => session.shutdown_write(&self.stream),
        }
    }

    /// See [`Stream::shutdown_both`]; false inside TLS, whose peer answers the end with one of its own.
    pub fn shutdown_both(&self) -> bool {
        if self.tls.is_none() {
            self.stream.shutdown_both();
        }
        self.tls.is_none()
    }

    /// True while nothing has been received that nobody took: no data, no end, no error.
    #[inline]
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        match &self.tls {
            None => self.stream.is_quiet(),
            Some(session) => session.is_quiet(&self.stream),
        }
    }

    /// Whether a part of a TLS record has come.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.tls.as_ref().is_some_and(|session| session.has_begun())
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

    /// See [`Stream::receive_singly`].
    pub fn receive_singly(&self) {
        self.stream.receive_singly();
    }

    /// See [`Stream::is_full`].
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.stream.is_full()
    }

    /// See [`Stream::is_slow`].
    #[inline]
    #[must_use]
    pub fn is_slow(&self) -> bool {
        self.stream.is_slow()
    }

    /// See [`Stream::hold`].
    #[inline]
    #[must_use]
    pub fn hold(&self) -> usize {
        self.stream.hold()
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
