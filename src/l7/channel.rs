//! What carries one HTTP exchange at a time: a connection of its own, or a stream among others.

use std::io;
use std::rc::Rc;
use std::task::{Context, Poll};

use crate::l7::http2::{Http2Stream, Mux};
use crate::l7::tls::{Info, Session};
use crate::l7::transport::Transport;
use crate::ring::share::Pressure;
use crate::ring::{Chunk, Ring, Stream, WriteBuf};

/// Bytes that may wait for the reader of a stream before its source is no longer read: there are many streams.
const QUEUE_HIGH_STREAM: usize = 32 * 1024;

/// One end of an exchange. Over HTTP/1.1 its bytes are messages, framing included; over a stream they
/// are bodies, and heads go by [`Channel::write_head`].
#[derive(Debug)]
pub enum Channel {
    /// A connection that carries HTTP/1.1.
    Own(Transport),
    /// A connection that carries HTTP/2, to its own task.
    Shared(Rc<Mux>),
    /// A stream of one.
    Stream(Http2Stream),
}

impl From<Transport> for Channel {
    fn from(transport: Transport) -> Self {
        Self::Own(transport)
    }
}

impl From<Stream> for Channel {
    fn from(stream: Stream) -> Self {
        Self::Own(stream.into())
    }
}

/// Calls the method of the same name on whatever it is.
macro_rules! either {
    ($self:ident, $method:ident($($argument:expr),*)) => {
        match $self {
            Self::Own(transport) => transport.$method($($argument),*),
            Self::Shared(mux) => mux.transport().$method($($argument),*),
            Self::Stream(stream) => stream.$method($($argument),*),
        }
    };
}

impl Channel {
    /// The stream of HTTP/2, if it is one.
    #[inline]
    #[must_use]
    pub fn http2(&self) -> Option<&Http2Stream> {
        match self {
            Self::Stream(stream) => Some(stream),
            _ => None,
        }
    }

    /// Goes on inside TLS, after a handshake on the connection.
    pub fn secure(&mut self, session: Session) {
        if let Self::Own(transport) = self {
            transport.secure(session);
        }
    }

    /// The connection below.
    #[must_use]
    pub fn transport(&self) -> &Transport {
        match self {
            Self::Own(transport) => transport,
            Self::Shared(mux) => mux.transport(),
            Self::Stream(stream) => stream.mux().transport(),
        }
    }

    /// The next received bytes; `None` at the end.
    ///
    /// # Errors
    /// When the connection broke or the stream was reset.
    #[inline]
    pub fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Chunk>>> {
        either!(self, poll_recv(cx))
    }

    /// Appends to the output.
    #[inline]
    pub fn write(&self, chunk: impl Into<Chunk>) {
        let chunk = chunk.into();
        either!(self, write(chunk));
    }

    /// Appends a head and what follows it, best sent together.
    #[inline]
    pub fn write_both(&self, head: WriteBuf, piece: Chunk) {
        match self {
            Self::Own(transport) => transport.write_both(head, piece),
            Self::Shared(mux) => mux.transport().write_both(head, piece),
            Self::Stream(stream) => {
                stream.write_head(head, false);
                stream.write(piece);
            }
        }
    }

    /// What the TLS handshake agreed on; `None` without TLS.
    #[inline]
    #[must_use]
    pub fn tls(&self) -> Option<&Rc<Info>> {
        self.transport().tls()
    }

    /// Appends a response's head, given as HTTP/1.1 text; `end` when no body follows.
    #[inline]
    pub fn write_head(&self, head: WriteBuf, end: bool) {
        match self {
            Self::Stream(stream) => stream.write_head(head, end),
            _ => self.write(head),
        }
    }

    /// Ends the output after what is queued.
    pub fn shutdown_write(&self) {
        match self {
            Self::Own(transport) => transport.shutdown_write(),
            Self::Shared(mux) => mux.transport().shutdown_write(),
            Self::Stream(stream) => stream.finish(std::iter::empty()),
        }
    }

    /// True while nothing has been received that nobody took.
    #[inline]
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        either!(self, is_quiet())
    }

    /// See [`Stream::watch`]; streams are always watched.
    #[inline]
    pub fn watch(&self) {
        if let Self::Own(transport) = self {
            transport.watch();
        }
    }

    /// See [`Stream::end_bulk`].
    #[inline]
    pub fn end_bulk(&self) {
        if let Self::Own(transport) = self {
            transport.end_bulk();
        }
    }

    /// See [`Stream::receive_singly`]; a stream of many is bounded by its window.
    pub fn receive_singly(&self) {
        if let Self::Own(transport) = self {
            transport.receive_singly();
        }
    }

    /// True when what is written does not get out as it comes: the reader is slow, or receive buffers are scarce.
    #[inline]
    #[must_use]
    pub fn is_held_back(&self) -> bool {
        self.transport().is_slow() || self.ring().pressure() > Pressure::Low
    }

    /// Ready once the peer has reset the connection or the stream.
    #[inline]
    pub fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<io::Error> {
        either!(self, poll_reset(cx))
    }

    /// Bytes written that are still queued.
    #[inline]
    #[must_use]
    pub fn queued(&self) -> usize {
        either!(self, queued())
    }

    /// How many may be before the source should not be read. Streams share what their connection may hold once that is
    /// little; a piece at a time each of them may have.
    #[inline]
    #[must_use]
    pub fn queue_high(&self) -> usize {
        let hold = self.transport().hold();
        match self {
            Self::Stream(stream) if self.is_held_back() => hold / stream.mux().streams().max(1),
            Self::Stream(_) => hold.min(QUEUE_HIGH_STREAM),
            _ => hold,
        }
    }

    /// Pieces they are in.
    #[inline]
    #[must_use]
    pub fn queued_pieces(&self) -> usize {
        either!(self, queued_pieces())
    }

    /// Bytes that have left the queue so far; moves when there is progress.
    #[inline]
    #[must_use]
    pub fn sent(&self) -> u64 {
        either!(self, sent())
    }

    /// Ready once at most `low` bytes are queued.
    ///
    /// # Errors
    /// When the connection broke or the stream was reset.
    #[inline]
    pub fn poll_flushed(&self, cx: &mut Context<'_>, low: usize) -> Poll<io::Result<()>> {
        either!(self, poll_flushed(cx, low))
    }

    /// Makes the close a reset; a stream that has not ended is reset anyway.
    pub fn reset_on_close(&self) {
        match self {
            Self::Own(transport) => transport.reset_on_close(),
            Self::Shared(mux) => mux.transport().reset_on_close(),
            Self::Stream(_) => {}
        }
    }

    /// The ring it lives on.
    #[inline]
    #[must_use]
    pub fn ring(&self) -> &Rc<Ring> {
        either!(self, ring())
    }
}
