//! Reading messages from a stream: heads into a vector, bodies piece by piece without copying.

use std::io;
use std::task::{Context, Poll, ready};

use crate::l7::channel::Channel;
use crate::protocol::http1::{
    BodyDecoder, BodyError, Framing, HeadError, HeadScanner, Limits, Scan, Step, may_trail,
};
use crate::protocol::http2::message::field_lines;
use crate::ring::Chunk;

/// The part of a connection's input that was received and not consumed yet.
#[derive(Debug, Default)]
pub struct Input {
    rest: Option<Chunk>,
    /// Bytes consumed over the connection's life.
    consumed: u64,
}

/// Why there is no head.
#[derive(Debug)]
pub enum HeadReadError {
    /// The peer closed before the first byte.
    Closed,
    /// The peer closed inside the head.
    Truncated,
    /// The connection broke.
    Io(io::Error),
    /// The bytes are no head, or too large a one.
    Malformed(HeadError),
    /// The server says that it has not looked at the request (RFC 9113 section 8.7).
    Unprocessed,
    /// The stream was reset; its connection goes on.
    Reset,
}

/// Why a body ended early.
#[derive(Debug)]
pub enum BodyReadError {
    /// The peer closed inside the body.
    Truncated,
    /// The connection broke.
    Io(io::Error),
    /// The framing is malformed.
    Malformed(BodyError),
}

impl Input {
    /// True when nothing is left over.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rest.is_none()
    }

    /// Bytes consumed so far.
    #[must_use]
    pub fn consumed(&self) -> u64 {
        self.consumed
    }

    /// What is left over, without taking it.
    #[must_use]
    pub fn peek(&self) -> &[u8] {
        self.rest.as_ref().map_or(&[], Chunk::as_slice)
    }

    /// Puts back bytes that were taken off with [`Input::poll_chunk`] and belong to what follows.
    pub fn put_back(&mut self, bytes: Vec<u8>) {
        self.consumed -= bytes.len() as u64;
        self.unread(Chunk::Shared(bytes.into()));
    }

    /// Gives back what was put back, to somebody who reads the stream below.
    pub fn take_rest(&mut self) -> Option<Chunk> {
        self.rest.take()
    }

    /// Puts back what was not consumed.
    fn unread(&mut self, chunk: Chunk) {
        if !chunk.is_empty() {
            self.rest = Some(chunk);
        }
    }

    /// The next bytes, whatever they are; `None` at the end.
    pub fn poll_chunk(
        &mut self,
        stream: &Channel,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Option<Chunk>>> {
        let chunk = self.poll_unconsumed(stream, cx);
        if let Poll::Ready(Ok(Some(chunk))) = &chunk {
            self.consumed += chunk.len() as u64;
        }
        chunk
    }

    fn poll_unconsumed(
        &mut self,
        stream: &Channel,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Option<Chunk>>> {
        match self.rest.take() {
            Some(chunk) => Poll::Ready(Ok(Some(chunk))),
            None => stream.poll_recv(cx),
        }
    }

    /// Ready once there is input, the end or an error; nothing is consumed.
    pub fn poll_ready(&mut self, stream: &Channel, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.rest.is_some() {
            return Poll::Ready(Ok(true));
        }
        match ready!(stream.poll_recv(cx))? {
            Some(chunk) => {
                self.rest = Some(chunk);
                Poll::Ready(Ok(true))
            }
            None => Poll::Ready(Ok(false)),
        }
    }

    /// Collects the bytes of one head into `head`. `take` may find one that came whole and takes it apart at once;
    /// `scanner` finds the others, and carries the progress between calls.
    pub fn poll_head(
        &mut self,
        stream: &Channel,
        (take, scanner): (impl FnOnce(&[u8]) -> Option<usize>, &mut HeadScanner),
        limits: &Limits,
        head: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), HeadReadError>> {
        if let Some(stream) = stream.http2() {
            let unprocessed = stream.is_unprocessed();
            let answer = ready!(stream.poll_answer(cx)).map_err(|error| match error {
                _ if unprocessed => HeadReadError::Unprocessed,
                _ if !stream.mux().is_closed() => HeadReadError::Reset,
                error => HeadReadError::Io(error),
            })?;
            head.extend_from_slice(&answer);
            return Poll::Ready(Ok(()));
        }
        let mut take = Some(take).filter(|_| scanner.is_new());
        loop {
            let chunk = ready!(self.poll_unconsumed(stream, cx)).map_err(HeadReadError::Io)?;
            let Some(mut chunk) = chunk else {
                let closed = head.is_empty();
                let error = if closed { HeadReadError::Closed } else { HeadReadError::Truncated };
                return Poll::Ready(Err(error));
            };
            let bytes = chunk.as_slice();
            let scan = match take.take().and_then(|take| take(bytes)) {
                Some(length) => Ok(Scan::Complete(length)),
                None => scanner.scan(bytes, limits),
            };
            match scan.map_err(HeadReadError::Malformed)? {
                Scan::Partial => {
                    head.extend_from_slice(bytes);
                    self.consumed += bytes.len() as u64;
                }
                Scan::Complete(n) => {
                    head.extend_from_slice(&bytes[..n]);
                    self.consumed += n as u64;
                    chunk.advance(n);
                    self.unread(chunk);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

/// Takes a body off the input.
#[derive(Debug)]
pub struct BodyReader {
    decoder: BodyDecoder,
    received: u64,
    over: bool,
    /// Trailers of a stream, as field lines.
    lines: Vec<u8>,
}

impl BodyReader {
    /// For a body framed like this.
    #[must_use]
    pub fn new(framing: Framing) -> Self {
        let over = matches!(framing, Framing::None | Framing::Length(0));
        Self { decoder: BodyDecoder::new(framing), received: 0, over, lines: Vec::new() }
    }

    /// For a body of a message that came like this over `channel`: a stream's end is the body's end,
    /// and the stream has held it to the length that was announced.
    #[must_use]
    pub fn on(channel: &Channel, framing: Framing) -> Self {
        match framing {
            Framing::None | Framing::Length(0) => Self::new(framing),
            _ if channel.http2().is_some() => Self::new(Framing::Close),
            _ => Self::new(framing),
        }
    }

    /// True once the whole body has been read.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Body bytes read so far, framing not counted.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received
    }

    /// The trailer fields, once the body is over.
    pub fn trailers(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let streams = field_lines(&self.lines).filter(|(name, _)| may_trail(name));
        self.decoder.trailers().chain(streams)
    }

    /// The next piece of the body; `None` when it is over.
    pub fn poll_piece(
        &mut self,
        input: &mut Input,
        stream: &Channel,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Chunk>, BodyReadError>> {
        while !self.over {
            let chunk = ready!(input.poll_unconsumed(stream, cx)).map_err(BodyReadError::Io)?;
            let Some(mut chunk) = chunk else {
                self.decoder.eof().map_err(|_| BodyReadError::Truncated)?;
                self.over = true;
                if let Some(stream) = stream.http2() {
                    self.lines = stream.take_trailers();
                }
                break;
            };
            let step = self.decoder.step(chunk.as_slice()).map_err(BodyReadError::Malformed)?;
            match step {
                Step::Data { start, end } => {
                    input.consumed += end as u64;
                    self.received += (end - start) as u64;
                    // The end of a known length is known without further input.
                    self.over = matches!(self.decoder.step(&[]), Ok(Step::End(_)));
                    chunk.advance(start);
                    let piece = if chunk.len() == end - start {
                        chunk
                    } else {
                        let piece = chunk.split_to(end - start);
                        input.unread(chunk);
                        piece
                    };
                    return Poll::Ready(Ok(Some(piece)));
                }
                Step::More => input.consumed += chunk.len() as u64,
                Step::End(n) => {
                    input.consumed += n as u64;
                    chunk.advance(n);
                    input.unread(chunk);
                    self.over = true;
                }
            }
        }
        Poll::Ready(Ok(None))
    }

    /// Body bytes read so far and those that a length or the current chunk's size has announced.
    #[must_use]
    pub fn announced(&self) -> u64 {
        self.received.saturating_add(self.decoder.announced())
    }

    /// Body bytes still to come, when the framing tells.
    #[must_use]
    pub fn remaining(&self) -> Option<u64> {
        self.decoder.remaining_hint()
    }
}
