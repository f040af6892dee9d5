//! Forwarding a response to the client, and what to do when it breaks off.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, Waker};

use super::failure::Failure;
use crate::l7::channel::Channel;
use crate::l7::clients::Pace;
use crate::l7::connection::After;
use crate::l7::exchange::Exchange;
use crate::l7::flow::{FlushError, has_room, throttle};
use crate::l7::headers;
use crate::l7::input::{BodyReader, Input};
use crate::l7::output::BodyWriter;
use crate::l7::pool::Lease;
use crate::l7::worker::Worker;
use crate::protocol::http1::{Framing, Version};
use crate::ring::timer::Millis;
use crate::ring::{Chunk, Timer, WriteBuf};

/// Why a response did not get through whole.
#[derive(Debug)]
pub(super) enum Cut {
    /// The server's fault, before anything of the response was sent.
    Unbegun(Failure),
    /// The server's fault, inside the body.
    Server,
    /// `read_timeout` passed inside the body.
    ServerTimeout,
    /// The client did not take it.
    Client(FlushError),
}

/// What forwards a response.
pub(super) struct Respond<'a> {
    pub(super) client: &'a Channel,
    pub(super) server: &'a Channel,
    /// Bytes of the body so far.
    pub(super) written: &'a Cell<u64>,
}

/// How long each side is waited for.
pub(super) struct Patience<'a> {
    pub(super) timer: &'a Timer,
    pub(super) read_timeout: Millis,
    pub(super) send_timeout: Millis,
    pub(super) pace: Option<Pace<'a>>,
}

/// A body that has begun to go out.
pub(super) struct Rest {
    body: BodyReader,
    writer: BodyWriter,
}

impl Respond<'_> {
    /// Sends the head and what of the body is there; the rest, if there is one. Most responses come whole, and need no more
    /// memory than this call's.
    pub(super) fn begin(
        &self,
        (framing, version): (Framing, Version),
        input: &mut Input,
        head: WriteBuf,
    ) -> Result<Option<Rest>, Cut> {
        if framing.is_empty() {
            self.client.write_head(head, true);
            return Ok(None);
        }
        let mut body = BodyReader::on(self.server, framing);
        let mut writer = BodyWriter::new(headers::response_coding(framing, version));
        let mut head = Some(head);
        // Whoever goes on with the rest asks again, and waits then.
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            match body.poll_piece(input, self.server, &mut cx) {
                Poll::Ready(Ok(Some(piece))) => {
                    self.write(&mut writer, head.take(), piece);
                    if !has_room(self.client) {
                        break;
                    }
                }
                Poll::Ready(Ok(None)) => {
                    writer.finish(self.client, head, body.trailers());
                    return Ok(None);
                }
                Poll::Ready(Err(error)) if head.is_some() => {
                    return Err(Cut::Unbegun(Failure::of_body(&error)));
                }
                Poll::Ready(Err(_)) => return Err(Cut::Server),
                Poll::Pending => break,
            }
        }
        // The head does not wait for the body.
        if let Some(head) = head {
            self.client.write_head(head, false);
        }
        Ok(Some(Rest { body, writer }))
    }

    /// Sends the rest as it comes.
    pub(super) async fn forward(
        &self,
        Rest { mut body, mut writer }: Rest,
        input: &mut Input,
        patience: &Patience<'_>,
    ) -> Result<(), Cut> {
        let Patience { timer, send_timeout, pace, .. } = patience;
        loop {
            throttle(self.client, self.server, timer, *send_timeout, pace.as_ref())
                .await
                .map_err(Cut::Client)?;
            let Some(piece) = self.piece(&mut body, input, patience).await? else { break };
            self.write(&mut writer, None, piece);
        }
        writer.finish(self.client, None, body.trailers());
        Ok(())
    }

    fn write(&self, writer: &mut BodyWriter, head: Option<WriteBuf>, piece: Chunk) {
        self.note_pace();
        writer.write(self.client, head, piece);
        self.written.set(writer.written());
    }

    /// A client that has taken all there was is not slow, however much came from the server at once:
    /// its response is not to crawl behind those that never came in a burst.
    fn note_pace(&self) {
        if self.written.get() > 0 && self.client.queued() == 0 && !self.client.is_held_back() {
            self.server.end_bulk();
        }
    }

    /// The next piece of the body; `None` at its end.
    async fn piece(
        &self,
        body: &mut BodyReader,
        input: &mut Input,
        Patience { timer, read_timeout, .. }: &Patience<'_>,
    ) -> Result<Option<Chunk>, Cut> {
        let mut timed = false;
        poll_fn(|cx| {
            if let Poll::Ready(piece) = body.poll_piece(input, self.server, cx) {
                return Poll::Ready(piece.map_err(|_| Cut::Server));
            }
            if !timed {
                timed = true;
                timer.set(*read_timeout);
            }
            if self.client.poll_reset(cx).is_ready() {
                let gone = io::Error::from_raw_os_error(libc::ECONNRESET);
                return Poll::Ready(Err(Cut::Client(FlushError::Io(gone))));
            }
            timer.poll_fired(cx).map(|()| Err(Cut::ServerTimeout))
        })
        .await
    }
}

/// The client must not take half a response for a whole one: its connection is reset, unless the
/// framing shows by itself that something is missing.
pub(super) fn cut_short(
    worker: &Worker,
    lease: &Lease,
    (x, framing): (&mut Exchange, Framing),
    cut: &Cut,
) -> After {
    match cut {
        Cut::Server | Cut::ServerTimeout => {
            worker.metrics.responses_cut.increment();
            lease.metrics().failures.increment();
            x.outcome.error = Some(match cut {
                Cut::Server => "the server closed the connection inside the response",
                _ => "the server stalled inside the response",
            });
            let shows = headers::is_delimited(framing, x.request.version);
            if shows { After::Close } else { After::Reset }
        }
        Cut::Unbegun(_) => After::Close,
        Cut::Client(FlushError::Timeout) => {
            worker.metrics.client_timeouts.increment();
            x.outcome.error = Some("send_timeout");
            After::Reset
        }
        Cut::Client(FlushError::Io(_)) => {
            worker.metrics.client_aborts.increment();
            x.outcome.error = Some("client reset the connection");
            After::Reset
        }
    }
}
