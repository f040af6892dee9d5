//! Moving bytes with back-pressure: never more than a bounded amount waits for a slow reader.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use bytes::Bytes;

use crate::l7::channel::Channel;
use crate::l7::clients::Pace;
use crate::l7::input::{BodyReadError, BodyReader, Input};
use crate::l7::output::{BodyWriter, Coding};
use crate::protocol::http1::Framing;
use crate::ring::Timer;

/// Pieces that may wait: tiny chunks make many buffers of few bytes.
const PIECES_HIGH: usize = 128;

/// Why output did not get out.
#[derive(Debug)]
pub enum FlushError {
    /// No progress for too long.
    Timeout,
    /// The connection broke.
    Io(io::Error),
}

/// Waits until at most `low` bytes are queued, as long as there is progress within `timeout_ms`.
///
/// # Errors
/// See [`FlushError`].
pub async fn flush(
    stream: &Channel,
    low: usize,
    timer: &Timer,
    timeout_ms: u64,
) -> Result<(), FlushError> {
    flush_at(stream, low, timer, timeout_ms, None).await
}

/// The same towards a client that has to keep a pace.
///
/// # Errors
/// See [`FlushError`].
pub async fn flush_at(
    stream: &Channel,
    low: usize,
    timer: &Timer,
    timeout_ms: u64,
    pace: Option<&Pace<'_>>,
) -> Result<(), FlushError> {
    loop {
        let (sent, began) = (stream.sent(), stream.ring().now());
        let left = pace.map_or(u64::MAX, |pace| pace.left_ms(sent));
        timer.set(timeout_ms.min(left));
        let flushed = timer.guard(poll_fn(|cx| stream.poll_flushed(cx, low))).await;
        if let Some(pace) = pace {
            pace.note(stream.ring().now().saturating_sub(began));
        }
        match flushed {
            Ok(result) => return result.map_err(FlushError::Io),
            Err(_) if pace.is_some_and(|pace| pace.left_ms(stream.sent()) == 0) => {
                pace.inspect(|pace| pace.give_up());
                return Err(FlushError::Timeout);
            }
            Err(_) if stream.sent() > sent || left < timeout_ms => {}
            Err(_) => return Err(FlushError::Timeout),
        }
    }
}

/// Bytes that are to be queued at most before more is; `None` when there is room already.
fn too_much_beyond(stream: &Channel) -> Option<usize> {
    let high = stream.queue_high();
    let low = if stream.queued_pieces() > PIECES_HIGH { 0 } else { high / 4 };
    (low == 0 || stream.queued() > high).then_some(low)
}

/// Whether more may be queued without waiting; see [`throttle`].
#[must_use]
pub fn has_room(stream: &Channel) -> bool {
    too_much_beyond(stream).is_none()
}

/// Waits only if more is queued than may be. Meanwhile `source` receives little: the kernel is not to go on filling
/// buffers for a reader that does not keep up.
///
/// # Errors
/// See [`FlushError`].
pub async fn throttle(
    stream: &Channel,
    source: &Channel,
    timer: &Timer,
    timeout_ms: u64,
    pace: Option<&Pace<'_>>,
) -> Result<(), FlushError> {
    let Some(low) = too_much_beyond(stream) else { return Ok(()) };
    if stream.is_held_back() {
        source.receive_singly();
    }
    flush_at(stream, low, timer, timeout_ms, pace).await
}

/// Why a request body did not reach the server whole.
#[derive(Debug)]
pub enum PumpError {
    /// The client's doing: its framing, its end, its connection.
    Client(BodyReadError),
    /// The client sent nothing for too long.
    ClientTimeout,
    /// The body is larger than allowed.
    TooLarge,
    /// The server does not take it.
    Server(FlushError),
}

/// What a request body is held to.
#[derive(Debug, Clone, Copy)]
pub struct PumpLimits {
    /// Longest silence of the client.
    pub client_timeout_ms: u64,
    /// Longest time the server takes nothing.
    pub server_timeout_ms: u64,
    /// Most body bytes, 0 for no limit.
    pub size_max: u64,
}

/// A request body on its way to one server after the other.
#[derive(Debug)]
pub struct Upload {
    /// Takes it off the client's input.
    pub body: BodyReader,
    replay: Replay,
}

impl Upload {
    /// For a body framed like this; `None` when there is none. It is boxed because most requests have none, and
    /// need not carry the room for one. Up to `replay_max` bytes are kept for another attempt.
    #[must_use]
    pub fn on(client: &Channel, framing: Framing, replay_max: usize) -> Option<Box<Self>> {
        if framing.is_empty() {
            return None;
        }
        let body = BodyReader::on(client, framing);
        let replay = Replay { bytes: Vec::new(), max: replay_max, whole: true };
        Some(Box::new(Self { body, replay }))
    }

    /// True while all that was read can be sent again.
    #[must_use]
    pub fn is_repeatable(&self) -> bool {
        self.replay.whole
    }
}

/// A copy of a request body as far as it was read; given up when the body gets too long for it.
#[derive(Debug)]
struct Replay {
    bytes: Vec<u8>,
    max: usize,
    whole: bool,
}

impl Replay {
    fn keep(&mut self, piece: &[u8]) {
        self.whole = self.whole && piece.len() <= self.max - self.bytes.len();
        if self.whole {
            self.bytes.extend_from_slice(piece);
        } else {
            self.bytes = Vec::new();
        }
    }
}

/// Sends what is kept of a request body from an earlier attempt, and its end if it was read to there. What writes the
/// rest otherwise, for [`pump_request`].
pub fn resume_request(upload: &Upload, server: &Channel, coding: Coding) -> Option<BodyWriter> {
    let Upload { body, replay } = upload;
    let mut writer = BodyWriter::new(coding);
    if !replay.bytes.is_empty() {
        writer.write(server, None, Bytes::copy_from_slice(&replay.bytes).into());
    }
    if !body.is_over() {
        return Some(writer);
    }
    if coding == Coding::Chunked || server.http2().is_some() {
        writer.finish(server, None, body.trailers());
    }
    None
}

/// Forwards the rest of a request body from the client to the server.
///
/// # Errors
/// See [`PumpError`].
pub async fn pump_request(
    (client, input): (&Channel, &mut Input),
    Upload { body, replay }: &mut Upload,
    (server, mut writer): (&Channel, BodyWriter),
    (limits, pace): (PumpLimits, Option<&Pace<'_>>),
    timer: &Timer,
) -> Result<(), PumpError> {
    loop {
        let left = pace.map_or(u64::MAX, |pace| pace.left_ms(body.received()));
        timer.set(limits.client_timeout_ms.min(left));
        let began = pace.map(|_| client.ring().now());
        let next = poll_fn(|cx| {
            let piece = body.poll_piece(input, client, cx).map_err(PumpError::Client);
            // A chunk that is too large is refused when its size is known, not when it has come.
            if limits.size_max > 0 && body.announced() > limits.size_max {
                return Poll::Ready(Err(PumpError::TooLarge));
            }
            piece
        });
        let next = timer.guard(next).await;
        if let Some((pace, began)) = pace.zip(began) {
            pace.note(client.ring().now().saturating_sub(began));
            if next.is_err() && left < limits.client_timeout_ms {
                pace.give_up();
            }
        }
        let Some(piece) = next.map_err(|_| PumpError::ClientTimeout)?? else {
            break;
        };
        replay.keep(piece.as_slice());
        writer.write(server, None, piece);
        let timeout = limits.server_timeout_ms;
        throttle(server, client, timer, timeout, None).await.map_err(PumpError::Server)?;
    }
    timer.clear();
    client.end_bulk();
    writer.finish(server, None, body.trailers());
    Ok(())
}

/// Copies bytes one way until the source ends; then ends the sink.
async fn copy(
    from: (&Channel, &mut Input),
    to: &Channel,
    idle: &Timer,
    timeout_ms: u64,
) -> io::Result<()> {
    let (stream, input) = from;
    loop {
        let Some(chunk) = poll_fn(|cx| input.poll_chunk(stream, cx)).await? else {
            to.shutdown_write();
            return Ok(());
        };
        idle.set(timeout_ms);
        to.write(chunk);
        while to.queued() > to.queue_high() {
            if to.is_held_back() {
                stream.receive_singly();
            }
            poll_fn(|cx| to.poll_flushed(cx, to.queue_high() / 4)).await?;
            idle.set(timeout_ms);
        }
    }
}

/// Joins two connections until both directions have ended, one breaks, or nothing moves for
/// `timeout_ms`. What is still queued at an orderly end is flushed.
pub async fn tunnel(
    a: (&Channel, &mut Input),
    b: (&Channel, &mut Input),
    idle: &Timer,
    timeout_ms: u64,
) {
    idle.set(timeout_ms);
    let (a_stream, b_stream) = (a.0, b.0);
    let mut there = std::pin::pin!(copy(a, b_stream, idle, timeout_ms));
    let mut back = std::pin::pin!(copy(b, a_stream, idle, timeout_ms));
    let (mut there_over, mut back_over) = (false, false);
    let orderly = poll_fn(|cx| {
        let ways = [(&mut there_over, there.as_mut()), (&mut back_over, back.as_mut())];
        for (over, way) in ways {
            if !*over {
                match way.poll(cx) {
                    Poll::Ready(Ok(())) => *over = true,
                    Poll::Ready(Err(_)) => return Poll::Ready(false),
                    Poll::Pending => {}
                }
            }
        }
        if there_over && back_over {
            return Poll::Ready(true);
        }
        idle.poll_fired(cx).map(|()| false)
    })
    .await;
    if orderly {
        let _ = flush(a_stream, 0, idle, timeout_ms).await;
        let _ = flush(b_stream, 0, idle, timeout_ms).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replay(max: usize) -> Replay {
        Replay { bytes: Vec::new(), max, whole: true }
    }

    #[test]
    fn a_body_is_kept_whole_or_not_at_all() {
        let mut replay = replay(5);
        replay.keep(b"abc");
        replay.keep(b"de");
        assert!(replay.whole && replay.bytes == b"abcde");
        replay.keep(b"f");
        assert!(!replay.whole && replay.bytes.is_empty());
        replay.keep(b"g");
        assert!(!replay.whole && replay.bytes.is_empty(), "a gap stays one");
    }

    #[test]
    fn nothing_is_kept_for_who_may_not_repeat() {
        let mut replay = replay(0);
        assert!(replay.whole, "nothing was read yet");
        replay.keep(b"a");
        assert!(!replay.whole);
    }
}
