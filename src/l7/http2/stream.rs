//! A stream, to be used like a connection of its own.

use std::io;
use std::rc::Rc;
use std::task::{Context, Poll};

use super::mux::Mux;
use super::slot::{Ending, Slot};
use crate::protocol::http1::encode;
use crate::protocol::http2::{Code, Role};
use crate::ring::{Chunk, Ring, WriteBuf};

/// One stream of a connection; dropping it gives up what has not ended.
#[derive(Debug)]
pub struct Http2Stream {
    mux: Rc<Mux>,
    id: u32,
    role: Role,
}

fn gone() -> io::Error {
    io::Error::from_raw_os_error(libc::ECONNRESET)
}

impl Http2Stream {
    /// The server's end of a stream whose head has come.
    #[must_use]
    pub fn accepted(mux: &Rc<Mux>, id: u32, end: bool) -> Self {
        let slot = Slot { incoming_end: end, ..Slot::default() };
        mux.state().insert(id, slot);
        Self { mux: Rc::clone(mux), id, role: Role::Server }
    }

    /// The client's end of a new stream; `None` when none may be opened now. The request's head goes
    /// out at once.
    #[must_use]
    pub fn open(mux: &Rc<Mux>, head: &[u8], end: bool) -> Option<Self> {
        let state = &mut *mux.state();
        let mut out = WriteBuf::new(mux.ring());
        out.bytes.append(&mut state.connection.output);
        let id = state.connection.open(head, end, &mut out.bytes)?;
        mux.transport().write(out);
        let ending = end.then_some(Ending::Plain);
        state.insert(id, Slot { ended: end, ending, ..Slot::default() });
        Some(Self { mux: Rc::clone(mux), id, role: Role::Client })
    }

    /// The connection.
    #[must_use]
    pub fn mux(&self) -> &Rc<Mux> {
        &self.mux
    }

    fn with<T>(&self, missing: T, work: impl FnOnce(&mut Slot) -> T) -> T {
        self.mux.state().slot(self.id).map_or(missing, work)
    }

    /// Queues work for the connection's task.
    fn ready(&self) {
        self.mux.state().make_ready(self.id);
        self.mux.wake();
    }

    /// Queues a head, interim or final; `end` when no body follows.
    pub fn write_head(&self, head: WriteBuf, end: bool) {
        self.with((), |slot| {
            if slot.reset.is_none() && slot.ending.is_none() {
                slot.heads.push_back((head, end));
                if end {
                    slot.ending = Some(Ending::Plain);
                }
            }
        });
        self.ready();
    }

    /// Queues a piece of the body.
    pub fn write(&self, chunk: Chunk) {
        self.with((), |slot| {
            if slot.reset.is_none() && slot.ending.is_none() && !chunk.is_empty() {
                slot.send(chunk, self.mux.ring());
            }
        });
        self.ready();
    }

    /// Ends the body; what has ended already is left alone.
    pub fn finish<'a>(&self, trailers: impl Iterator<Item = (&'a [u8], &'a [u8])>) {
        let mut lines = Vec::new();
        for (name, value) in trailers {
            if lines.is_empty() {
                lines.extend_from_slice(b"\r\n"); // in the place of the start line
            }
            encode::push_field(&mut lines, name, value);
        }
        self.with((), |slot| {
            let ending = if lines.is_empty() { Ending::Plain } else { Ending::Trailers(lines) };
            slot.ending.get_or_insert(ending);
        });
        self.ready();
    }

    /// Whether all of our half was queued: nothing is missing from what the peer gets.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.with(false, |slot| slot.ended || slot.ending.is_some())
    }

    /// The next bytes of the body; `None` at its end.
    ///
    /// # Errors
    /// When the stream was reset or the connection is lost.
    pub fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Chunk>>> {
        let state = &mut *self.mux.state();
        let Some(slot) = state.slot(self.id) else { return Poll::Ready(Err(gone())) };
        if let Some(chunk) = slot.incoming.pop_front() {
            state.connection.release(self.id, chunk.len());
            if !state.connection.output.is_empty() {
                self.mux.wake();
            }
            return Poll::Ready(Ok(Some(chunk)));
        }
        if slot.incoming_end {
            return Poll::Ready(Ok(None));
        }
        if slot.reset.is_some() {
            return Poll::Ready(Err(gone()));
        }
        slot.watch(cx);
        Poll::Pending
    }

    /// Client role: the next response head, as HTTP/1.1 text.
    ///
    /// # Errors
    /// When the stream was reset or the connection is lost.
    pub fn poll_answer(&self, cx: &mut Context<'_>) -> Poll<io::Result<Vec<u8>>> {
        self.with(Poll::Ready(Err(gone())), |slot| {
            if let Some(head) = slot.answers.pop_front() {
                return Poll::Ready(Ok(head));
            }
            if slot.reset.is_some() {
                return Poll::Ready(Err(gone()));
            }
            slot.watch(cx);
            Poll::Pending
        })
    }

    /// Ready once the stream was reset or the connection is lost.
    pub fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.with(Poll::Ready(gone()), |slot| {
            if slot.reset.is_some() {
                return Poll::Ready(gone());
            }
            slot.watch(cx);
            Poll::Pending
        })
    }

    /// Client role: the server has not acted on the request (RFC 9113 section 8.7).
    #[must_use]
    pub fn is_unprocessed(&self) -> bool {
        self.with(false, |slot| slot.unprocessed)
    }

    /// The field lines behind the body.
    #[must_use]
    pub fn take_trailers(&self) -> Vec<u8> {
        self.with(Vec::new(), |slot| std::mem::take(&mut slot.trailers))
    }

    /// Nothing has come that nobody took.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.with(false, |slot| {
            slot.incoming.is_empty() && !slot.incoming_end && slot.reset.is_none()
        })
    }

    /// Bytes queued.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.with(0, |slot| slot.queued)
    }

    /// Pieces they are in.
    #[must_use]
    pub fn queued_pieces(&self) -> usize {
        self.with(0, |slot| slot.outgoing.len())
    }

    /// Bytes of body handed to the connection so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.with(0, |slot| slot.sent)
    }

    /// Ready once at most `low` bytes are queued; with 0, once the end is framed too if there is one.
    ///
    /// # Errors
    /// When the stream was reset or the connection is lost.
    pub fn poll_flushed(&self, cx: &mut Context<'_>, low: usize) -> Poll<io::Result<()>> {
        self.with(Poll::Ready(Err(gone())), |slot| {
            if slot.is_drained(low) && slot.reset.is_none() {
                return Poll::Ready(Ok(()));
            }
            if slot.reset.is_some() {
                return Poll::Ready(if slot.ended { Ok(()) } else { Err(gone()) });
            }
            slot.low = Some(low);
            slot.watch(cx);
            Poll::Pending
        })
    }

    /// Gives the stream up with this code.
    pub fn reset(&self, code: Code) {
        let state = &mut *self.mux.state();
        state.connection.reset(self.id, code);
        if let Some(slot) = state.slot(self.id) {
            slot.give_up(code);
        }
        self.mux.wake();
    }

    /// The ring it lives on.
    #[must_use]
    pub fn ring(&self) -> &Rc<Ring> {
        self.mux.ring()
    }
}

impl Drop for Http2Stream {
    fn drop(&mut self) {
        let state = &mut *self.mux.state();
        let slot = state.remove(self.id);
        // A request that was not read to its end need not be sent any further (RFC 9113 section 8.1).
        let code = match (self.role, slot.is_some_and(|slot| slot.ended)) {
            (Role::Server, true) => Code::NO_ERROR,
            (Role::Server, false) => Code::INTERNAL_ERROR,
            (Role::Client, _) => Code::CANCEL,
        };
        state.connection.reset(self.id, code); // only if it is not over
        self.mux.note_ended();
        self.mux.wake();
    }
}
