//! A client's connection that speaks HTTP/2: the task that reads it, and a task for each request.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use super::mux::{Mux, News};
use super::stream::Http2Stream;
use crate::l7::channel::Channel;
use crate::l7::connection::{After, Client, DRAIN_GRACE_MS};
use crate::l7::exchange::{Addresses, Exchange};
use crate::l7::flow::{FlushError, flush};
use crate::l7::generation::Listening;
use crate::l7::pool::millis;
use crate::l7::worker::Worker;
use crate::protocol::http2::{Code, ConnectionError, Limits, Role};
use crate::ring::Chunk;
use crate::ring::executor::spawn;

/// How long a client that was asked to go away gets to say that it has heard.
const PONG_MS: u64 = 1_000;
/// Chunks read before other tasks get their turn.
const CHUNKS_MAX: usize = 16;

/// What the connection waits for, with the deadline that belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The preface, or the rest of a field block.
    Head,
    /// A request.
    Idle,
    /// The client's answer to the first GOAWAY.
    Leaving,
    /// Its streams.
    Busy,
}

/// Why the connection ends.
enum End {
    /// The client closed, or the connection broke.
    Lost,
    /// The client broke a rule or a limit.
    Error(ConnectionError),
    /// Nothing happened for too long, or it was drained.
    Over,
    /// The client takes nothing.
    Stalled,
}

struct Driver<'a> {
    client: &'a mut Client,
    mux: Rc<Mux>,
    /// As the client was told.
    streams_max: u32,
    phase: Option<Phase>,
    /// Output that the transport had taken when the stall deadline was set.
    stalled_at: Option<u64>,
}

/// Serves the requests of a connection that begins with the preface.
pub async fn serve(client: &mut Client) -> After {
    let worker = Rc::clone(&client.worker);
    worker.metrics.http2.connections.increment();
    let generation = Rc::clone(&client.generation);
    let http = &generation.service.http;
    let limits = Limits {
        head_bytes: http.max_head_size,
        fields: http.max_headers,
        ..Limits::for_streams(http.http2_max_concurrent_streams)
    };
    let streams_max = http.http2_max_concurrent_streams;
    let mux = Mux::new(&worker.ring, Role::Server, limits);
    drop(generation);
    client.park();
    if let Channel::Own(own) =
        std::mem::replace(&mut client.stream, Channel::Shared(Rc::clone(&mux)))
    {
        mux.attach(own);
    }
    let mux_of_driver = Rc::clone(&mux);
    let mut driver =
        Driver { client, mux: mux_of_driver, streams_max, phase: None, stalled_at: None };
    let end = poll_fn(|cx| driver.poll(cx)).await;
    driver.client.timer.clear();
    driver.client.answer_timer.clear();
    match end {
        End::Error(ConnectionError(reason)) => {
            worker.metrics.http2.count_error(reason);
            mux.with(|connection| connection.go_away(Some(reason), true));
        }
        End::Over => mux.with(|connection| connection.go_away(None, true)),
        End::Stalled => worker.metrics.client_timeouts.increment(),
        End::Lost => {}
    }
    mux.pump();
    mux.close(Code::CANCEL);
    match end {
        End::Lost | End::Stalled => After::Reset,
        End::Over if client.is_leaving() && !mux.has_sent_lately(DRAIN_GRACE_MS) => {
            After::CloseIdle
        }
        _ => After::Close,
    }
}

impl Driver<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        self.mux.watch(cx);
        let end = self.read(cx);
        self.write(cx);
        if let Some(end) = end {
            return Poll::Ready(end);
        }
        if self.poll_stalled(cx).is_ready() {
            return Poll::Ready(End::Stalled);
        }
        self.poll_deadline(cx)
    }

    fn read(&mut self, cx: &mut Context<'_>) -> Option<End> {
        let mut chunks = 0;
        while !self.mux.is_congested() {
            let chunk = match self.client.input.poll_chunk(&self.client.stream, cx) {
                Poll::Ready(Ok(Some(chunk))) => chunk,
                Poll::Ready(_) => return Some(End::Lost),
                Poll::Pending => return None,
            };
            if let Err(error) = self.take(chunk) {
                return Some(End::Error(error));
            }
            chunks += 1;
            if chunks >= CHUNKS_MAX {
                cx.waker().wake_by_ref();
                return None;
            }
        }
        None
    }

    fn write(&self, cx: &mut Context<'_>) {
        self.mux.pump();
        while self.mux.poll_room(cx).is_ready() {
            self.mux.pump();
        }
    }

    /// A client whose requests pile up answers that it does not take; streams that it does not take
    /// have deadlines of their own.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let transport = self.mux.transport();
        if !self.mux.is_congested() {
            self.stalled_at = None;
            return Poll::Pending;
        }
        if transport.poll_flushed(cx, 0).is_ready() {
            cx.waker().wake_by_ref();
        }
        let timer = &self.client.answer_timer;
        if self.stalled_at != Some(transport.sent())
            && (self.stalled_at.is_none() || timer.has_fired())
        {
            self.stalled_at = Some(transport.sent());
            timer.set(millis(self.client.listening.current().0.service.http.send_timeout));
        }
        timer.poll_fired(cx)
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let worker = &self.client.worker;
        let (generation, _) = self.client.listening.current();
        let served_enough = self.client.requests >= generation.service.http.keepalive_requests;
        let worn = self.client.stream.transport().is_nearly_worn();
        let leaving = self.client.is_leaving() || served_enough || worn;
        if leaving && !self.mux.with(|connection| connection.is_going_away()) {
            self.mux.with(|connection| {
                connection.go_away(None, false);
                connection.ping();
            });
            self.phase = None;
            self.mux.pump();
        } else if let Some(key) = self.client.key.filter(|_| !leaving) {
            worker.wake_on_drain(key, cx);
        }
        let phase = self.current_phase();
        if self.phase != Some(phase) {
            self.phase = Some(phase);
            self.set_deadline(phase);
        }
        if self.client.timer.poll_fired(cx).is_pending() {
            return Poll::Pending;
        }
        match phase {
            Phase::Leaving => {
                self.leave();
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Phase::Head => {
                self.client.worker.metrics.client_timeouts.increment();
                Poll::Ready(End::Over)
            }
            Phase::Idle => Poll::Ready(End::Over),
            Phase::Busy => Poll::Pending,
        }
    }

    fn current_phase(&self) -> Phase {
        let (head, leaving) =
            self.mux.with(|connection| (connection.is_inside_head(), connection.is_leaving()));
        match self.mux.streams() {
            _ if head => Phase::Head,
            _ if leaving => Phase::Leaving,
            0 => Phase::Idle,
            _ => Phase::Busy,
        }
    }

    fn set_deadline(&self, phase: Phase) {
        let (generation, _) = self.client.listening.current();
        let (http, timer) = (&generation.service.http, &self.client.timer);
        let going_away = self.mux.with(|connection| connection.is_going_away());
        match phase {
            Phase::Head => timer.set(millis(http.client_header_timeout)),
            Phase::Leaving => timer.set(PONG_MS),
            // The client knows that nothing further is served.
            Phase::Idle if going_away => timer.set(0),
            Phase::Idle => timer.set(millis(http.keepalive_timeout)),
            Phase::Busy => timer.clear(),
        }
    }

    /// The second GOAWAY, which names the last stream.
    fn leave(&mut self) {
        self.mux.with(|connection| connection.go_away(None, true));
        self.mux.pump();
        self.phase = None;
    }

    fn take(&mut self, mut chunk: Chunk) -> Result<(), ConnectionError> {
        let now = self.client.worker.now();
        while let Some(news) = self.mux.receive(&mut chunk, now)? {
            let metrics = &self.client.worker.metrics.http2;
            match news {
                News::Request(id) => self.begin(id, false)?,
                News::TooLarge(id) => {
                    metrics.heads_too_large.increment();
                    self.begin(id, true)?;
                }
                News::Fault => metrics.stream_errors.increment(),
                News::Reset => metrics.resets_received.increment(),
                News::Pong if self.phase == Some(Phase::Leaving) => self.leave(),
                News::Pong | News::GoAway => {}
            }
        }
        Ok(())
    }

    /// Starts the task of a request.
    fn begin(&mut self, id: u32, too_large: bool) -> Result<(), ConnectionError> {
        let worker = Rc::clone(&self.client.worker);
        // A reset stream counts until its task has noticed: it still holds what it was given.
        let served = u32::try_from(self.mux.streams()).unwrap_or(u32::MAX);
        if served >= self.streams_max {
            worker.metrics.http2.streams_refused.increment();
            let now = worker.now();
            self.mux.with(|connection| connection.reset_faulty(id, Code::REFUSED_STREAM, now))?;
            return Ok(());
        }
        worker.metrics.http2.streams.increment();
        self.client.requests += 1;
        let mut exchange = worker.exchange();
        exchange.outcome.started = worker.now();
        let end = self.mux.with(|connection| {
            std::mem::swap(&mut exchange.head, &mut connection.head);
            if !too_large && connection.summary().websocket {
                push_websocket_key(&mut exchange.head, worker.request_id());
            }
            connection.has_received_end(id)
        });
        let stream = Http2Stream::accepted(&self.mux, id, end);
        let (listening, addresses) = (Rc::clone(&self.client.listening), self.client.addresses);
        let request = Request { worker, stream, id, listening, addresses, too_large };
        spawn(self.mux.ring(), request.serve(exchange));
        Ok(())
    }
}

/// One request.
struct Request {
    worker: Rc<Worker>,
    stream: Http2Stream,
    id: u32,
    listening: Rc<Listening>,
    addresses: Addresses,
    too_large: bool,
}

impl Request {
    async fn serve(self, mut exchange: Box<Exchange>) {
        let Self { worker, stream, id, listening, addresses, too_large } = self;
        let mux = Rc::clone(stream.mux());
        let channel = Channel::Stream(stream);
        let mut client = Client::new(Rc::clone(&worker), channel, listening, addresses, None);
        let after = {
            let mut work = pin!(async {
                if too_large {
                    exchange.head.clear();
                    return client.refuse(&mut exchange, 431);
                }
                client.serve_head(&mut exchange).await
            });
            // A reset drops whatever is being done for the request, wherever that stands.
            poll_fn(|cx| match work.as_mut().poll(cx) {
                Poll::Ready(after) => Poll::Ready(Some(after)),
                Poll::Pending => mux.poll_reset(id, cx).map(|()| None),
            })
            .await
        };
        let Some(stream) = client.stream.http2() else { return };
        match after {
            None => {
                worker.metrics.client_aborts.increment();
                exchange.outcome.error = Some("client reset the stream");
                if exchange.outcome.status == 0 {
                    exchange.outcome.status = 499;
                }
                exchange.outcome.body_bytes = stream.sent();
            }
            Some(After::Reset) => stream.reset(Code::INTERNAL_ERROR),
            Some(_) => {}
        }
        client.finish(&exchange);
        worker.recycle(exchange);
        let send_timeout = millis(client.listening.current().0.service.http.send_timeout);
        let flushed = flush(&client.stream, 0, &client.answer_timer, send_timeout).await;
        let Some(stream) = client.stream.http2() else { return };
        match flushed {
            Err(FlushError::Timeout) => {
                worker.metrics.client_timeouts.increment();
                stream.reset(Code::CANCEL);
            }
            // What there is of an answer that broke off has got out; the client has to learn that.
            Ok(()) if !stream.is_finished() => stream.reset(Code::INTERNAL_ERROR),
            Ok(()) | Err(FlushError::Io(_)) => {}
        }
    }
}

/// HTTP/1.1's handshake has a key (RFC 6455 section 4.1), HTTP/2's has none.
fn push_websocket_key(head: &mut Vec<u8>, random: [u8; 32]) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    head.truncate(head.len().saturating_sub(2));
    head.extend_from_slice(b"sec-websocket-key: ");
    // 16 bytes: five groups of three, and one byte that is padded.
    for group in random[..16].chunks(3) {
        let bits = group.iter().fold(0_usize, |bits, &byte| bits << 8 | usize::from(byte));
        let bits = bits << (8 * (3 - group.len()));
        for place in 0..4 {
            let digit = ALPHABET[bits >> (18 - 6 * place) & 63];
            head.push(if place > group.len() { b'=' } else { digit });
        }
    }
    head.extend_from_slice(b"\r\n\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_websocket_key_is_base64_of_sixteen_bytes() {
        let mut head = b"GET / HTTP/1.1\r\n\r\n".to_vec();
        let mut random = [b'x'; 32];
        random[..16].copy_from_slice(b"the sample nonce");
        push_websocket_key(&mut head, random);
        let expected = "GET / HTTP/1.1\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        assert_eq!(String::from_utf8(head).unwrap(), expected);
    }
}
