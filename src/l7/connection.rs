//! A client connection from the first byte to the last: one request after the other.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::task::Poll;

use crate::l7::channel::Channel;
use crate::l7::clients::{Clients, Seat, Verdict};
use crate::l7::config::{Action, TraceContext};
use crate::l7::exchange::{Addresses, Exchange};
use crate::l7::flow::{FlushError, flush, flush_at};
use crate::l7::generation::{Generation, Listening};
use crate::l7::input::{HeadReadError, Input};
use crate::l7::metrics::ListenerMetrics;
use crate::l7::output::buffer_of;
use crate::l7::pool::millis;
use crate::l7::proxy::{Proxied, Served};
use crate::l7::tls::metrics::Reason;
use crate::l7::tls::{Application, handshake};
use crate::l7::tracing::{Span, shortened};
use crate::l7::worker::{Worker, unix_ms};
use crate::l7::{access_log, forwarded, http2, reply};
use crate::protocol::http1::{HeadScanner, Method, Version, encode};
use crate::protocol::proxy_protocol::{self, Parsed};
use crate::ring::timer::{Elapsed, Millis};
use crate::ring::{Stream, Timer, WriteBuf};
use crate::sys::socket;

/// After a refusal the client's bytes are read and thrown away for this long, since closing with
/// unread data would reset the connection and take the response with it (RFC 9112 section 9.6).
const LINGER_MS: u64 = 30_000;
/// As long as they keep coming, with pauses of this length at most. How many they are does not matter:
/// whoever uploads a gigabyte in vain has to be able to read why.
const LINGER_PAUSE_MS: u64 = 2_000;
/// While draining, a connection that was active this recently may have a request on the way.
pub(super) const DRAIN_GRACE_MS: u64 = 1_000;
/// The answer to a connection too many, before it asks.
fn refusal(worker: &Worker, status: u16) -> WriteBuf {
    let mut buffer = WriteBuf::new(&worker.ring);
    let out = &mut buffer.bytes;
    encode::push_status_line(out, status, encode::reason(status).as_bytes());
    encode::push_field(out, b"Content-Length", b"0");
    encode::push_field(out, b"Connection", b"close");
    out.extend_from_slice(b"\r\n");
    buffer
}

/// The answer to a request in the clear on a port for TLS.
const PLAIN_HTTP: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n\
Content-Length: 56\r\nConnection: close\r\n\r\n\
400 The plain HTTP request was sent to the HTTPS port.\r\n";
/// Most bytes of a PROXY protocol header.
const PROXY_HEADER_MAX: usize = 4096;

/// What becomes of the connection after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// The next request.
    Keep,
    /// An orderly end, in which the client takes what was sent and closes too.
    Close,
    /// The same for a client that has said that this was its last request, and has sent all of it.
    Finish,
    /// An orderly end without waiting: nothing sent can still be under way.
    CloseIdle,
    /// At once, so that the client does not take what it has for whole.
    Reset,
}

/// One client connection.
#[derive(Debug)]
pub struct Client {
    /// What the shard's connections share.
    pub worker: Rc<Worker>,
    /// What it goes through.
    pub stream: Channel,
    /// Received and not consumed.
    pub input: Input,
    /// Where it was accepted.
    pub listening: Rc<Listening>,
    /// The configuration its request is served by; none while it waits for one.
    pub generation: Rc<Generation>,
    /// Index of the listener in it.
    pub listener: usize,
    /// Both ends.
    pub addresses: Addresses,
    /// For what the client has to do: send a request, a body.
    pub timer: Timer,
    /// For what is done for it: the server's part, taking the response.
    pub answer_timer: Timer,
    pub(super) requests: u32,
    /// For [`Worker::leave`]; `None` for a stream, whose connection has it.
    pub(super) key: Option<usize>,
    counted: Counted,
    last_active: Millis,
    /// Its place among the connections of its client's address.
    seat: Option<Seat>,
}

/// Bytes already added to the listener's figures.
#[derive(Debug, Default)]
struct Counted {
    received: u64,
    sent: u64,
}

/// Serves a connection that a listener accepted and [`Worker::enter`] gave this key. `seat` is
/// dropped when it has ended.
pub fn serve<S>(
    worker: Rc<Worker>,
    stream: Stream,
    listening: Rc<Listening>,
    key: usize,
    seat: S,
) -> impl Future<Output = ()> {
    let mut client = Client::accepted(worker, stream, listening, key);
    // It stays where it is for as long as the connection lasts: a move would be room for two.
    async move {
        if let Some(client) = &mut client {
            client.serve_connection().await;
        }
        drop((client, seat));
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.count_bytes();
            self.figures().closed.increment();
            self.worker.metrics.closed.increment();
            if self.stream.transport().is_broken() {
                self.figures().tls.broken.increment();
            }
            self.worker.leave(key);
        }
    }
}

fn acknowledge(stream: &Channel) {
    // A connection that is gone tells its receive.
    let _ = socket::acknowledge_at_once(stream.transport().as_fd());
}

fn addresses_of(stream: &Stream, bound: SocketAddr) -> Option<Addresses> {
    let peer = socket::peer_address(stream.as_fd()).ok()?;
    let is_whole = !bound.ip().is_unspecified() && bound.port() != 0;
    let local = if is_whole { bound } else { socket::local_address(stream.as_fd()).ok()? };
    Some(Addresses { peer, local })
}

impl Client {
    /// A client that has sent nothing yet; `key` is from [`Worker::enter`], `None` for a stream.
    #[must_use]
    pub fn new(
        worker: Rc<Worker>,
        stream: Channel,
        listening: Rc<Listening>,
        addresses: Addresses,
        key: Option<usize>,
    ) -> Self {
        let (generation, listener) = listening.current();
        let (timer, answer_timer) = (Timer::new(&worker.ring), Timer::new(&worker.ring));
        let last_active = worker.now();
        Self {
            worker,
            stream,
            input: Input::default(),
            listening,
            generation,
            listener,
            addresses,
            timer,
            answer_timer,
            requests: 0,
            key,
            counted: Counted::default(),
            last_active,
            seat: None,
        }
    }

    /// A client that a listener accepted; `None` if it has gone again.
    fn accepted(
        worker: Rc<Worker>,
        stream: Stream,
        listening: Rc<Listening>,
        key: usize,
    ) -> Option<Self> {
        let Some(addresses) = addresses_of(&stream, listening.bind) else {
            worker.leave(key);
            return None;
        };
        listening.figures().accepted.increment();
        worker.metrics.opened.increment();
        Some(Self::new(worker, stream.into(), listening, addresses, Some(key)))
    }

    async fn serve_connection(&mut self) {
        if !self.read_proxy_header().await || !self.sit_down() {
            return self.close(false).await; // what a refusal said, if anything
        }
        let after = match self.secure().await {
            Ok(()) => self.serve_protocol().await,
            Err(after) => after,
        };
        match after {
            After::Reset => self.stream.reset_on_close(),
            After::CloseIdle => self.say_goodbye().await,
            after => self.close(after == After::Finish).await,
        }
    }

    fn figures(&self) -> &ListenerMetrics {
        self.listening.figures()
    }

    /// Takes the configuration in force, for the request that begins.
    fn renew(&mut self) {
        (self.generation, self.listener) = self.listening.current();
    }

    /// Lets go of the configuration, for as long as nothing needs one.
    pub(super) fn park(&mut self) {
        self.generation = self.worker.parked();
    }

    /// Whether it is to end now if it is idle.
    fn closes_idle(&self) -> bool {
        self.listening.is_removed() || self.worker.closes_idle()
    }

    /// Whether the connection is to end: for good, for a hand-over, or with its listener.
    pub(super) fn is_leaving(&self) -> bool {
        self.listening.is_removed() || self.worker.draining().is_some()
    }

    fn count_bytes(&mut self) {
        if self.key.is_none() {
            return; // the connection counts them
        }
        let (received, sent) = (self.input.consumed(), self.stream.sent());
        self.figures().bytes_received.add(received - self.counted.received);
        self.figures().bytes_sent.add(sent - self.counted.sent);
        self.counted = Counted { received, sent };
    }

    /// Reads the PROXY protocol header if this peer has to send one; false ends the connection.
    async fn read_proxy_header(&mut self) -> bool {
        let from = &self.generation.service.listeners[self.listener].proxy_protocol_from;
        if from.is_empty() || !forwarded::is_trusted(self.addresses.peer.ip(), from) {
            return true;
        }
        self.timer.set(millis(self.generation.service.http.client_header_timeout));
        let mut bytes = Vec::new();
        loop {
            let next = poll_fn(|cx| self.input.poll_chunk(&self.stream, cx));
            let Ok(Ok(Some(chunk))) = self.timer.guard(next).await else { break };
            bytes.extend_from_slice(chunk.as_slice());
            match proxy_protocol::parse(&bytes) {
                Ok(Parsed::Incomplete) if bytes.len() < PROXY_HEADER_MAX => self.ask_for_the_rest(),
                Ok(Parsed::Complete { header, consumed }) => {
                    if let Some((peer, local)) = header.addresses {
                        self.addresses = Addresses { peer, local };
                    }
                    if bytes.len() == consumed {
                        self.ask_for_the_rest();
                    }
                    self.input.put_back(bytes.split_off(consumed));
                    return true;
                }
                _ => break,
            }
        }
        self.worker.metrics.proxy_header_errors.increment();
        false
    }

    /// Counts the connection for its client's address; false when that has too many already.
    fn sit_down(&mut self) -> bool {
        let worker = &self.worker;
        let Some(clients) = &self.generation.service.clients else { return true };
        let address = self.addresses.peer.ip();
        match Clients::connect(clients, address, worker.now()) {
            Verdict::Admitted(seat) => self.seat = Some(seat),
            Verdict::Untracked(seat) => {
                worker.metrics.clients.untracked.increment();
                self.seat = Some(seat);
            }
            Verdict::Refused => {
                worker.metrics.clients.connections_refused.increment();
                worker.report_client(address, "too many connections");
                if self.generation.service.listeners[self.listener].tls.is_none() {
                    self.stream.write(refusal(worker, clients.settings.status));
                }
                return false;
            }
        }
        true
    }

    /// Serves HTTP/2 or HTTP/1.1, as TLS has settled or the first bytes tell.
    async fn serve_protocol(&mut self) -> After {
        match self.speaks_http2().await {
            Some(true) => http2::server::serve(self).await,
            Some(false) => self.serve_requests().await,
            None => self.end_of_idleness(),
        }
    }

    /// Whether the client begins with HTTP/2's preface, where the listener takes that. No method of
    /// HTTP/1.1 is called PRI (RFC 9113 section 11.6). `None` when nothing came.
    async fn speaks_http2(&mut self) -> Option<bool> {
        const START: &[u8] = b"PRI ";
        if let Some(tls) = self.stream.tls() {
            return Some(tls.application == Application::Http2);
        }
        if !self.generation.service.listeners[self.listener].http2 {
            return Some(false);
        }
        if !self.wait_for_request().await {
            return None;
        }
        if let Some(start) = self.input.peek().get(..START.len()) {
            return Some(start == START);
        }
        self.ask_for_the_rest();
        let mut bytes = Vec::new();
        while bytes.len() < START.len() && START.starts_with(&bytes) {
            let next = poll_fn(|cx| self.input.poll_chunk(&self.stream, cx));
            let Ok(Ok(Some(chunk))) = self.timer.guard(next).await else { break };
            bytes.extend_from_slice(chunk.as_slice());
        }
        let is_http2 = bytes.starts_with(START);
        self.input.put_back(bytes);
        Some(is_http2)
    }

    /// Makes the TLS handshake, if the listener has certificates.
    async fn secure(&mut self) -> Result<(), After> {
        if self.generation.service.listeners[self.listener].tls.is_none() {
            return Ok(());
        }
        let Some(endpoint) = self.generation.tls.endpoint(self.listener) else {
            // Never in the clear for want of certificates.
            self.figures().tls.failed(Reason::Internal);
            return Err(After::Close);
        };
        let timeout = millis(self.generation.service.tls.handshake_timeout);
        self.timer.set(timeout);
        let rest = self.input.take_rest();
        let mut draining = false;
        let handshake = {
            // In memory of its own: it is large and soon over, and the task is kept for long.
            let mut accept =
                Box::pin(handshake::accept(self.stream.transport().stream(), rest, &endpoint));
            poll_fn(|cx| {
                if let Poll::Ready(done) = accept.as_mut().poll(cx) {
                    return Poll::Ready(Some(done));
                }
                if !self.closes_idle() {
                    if let Some(key) = self.key {
                        self.worker.wake_on_drain(key, cx);
                    }
                } else if !std::mem::replace(&mut draining, true) {
                    self.timer.set(timeout.min(DRAIN_GRACE_MS));
                }
                self.timer.poll_fired(cx).map(|()| None)
            })
            .await
        };
        let figures = &self.figures().tls;
        match handshake {
            Some(Ok(session)) => {
                figures.done(session.info().version, session.info().resumed);
                self.stream.secure(session);
                Ok(())
            }
            Some(Err(failure)) => {
                figures.failed(failure.reason);
                if failure.reason == Reason::PlainHttp {
                    let text = buffer_of(&self.worker.ring, PLAIN_HTTP);
                    self.stream.write(text);
                }
                Err(After::Close)
            }
            None => {
                figures.failed(Reason::Timeout);
                Err(After::Reset)
            }
        }
    }

    async fn serve_requests(&mut self) -> After {
        let worker = Rc::clone(&self.worker);
        loop {
            if !self.wait_for_request().await {
                return self.end_of_idleness();
            }
            let mut exchange = self.worker.exchange();
            exchange.outcome.started = self.worker.now();
            let memory = &raw const *exchange;
            let serving = self.serve_request(&mut exchange);
            let after = worker.serving.hold_beside(memory, serving).await;
            self.finish(&exchange);
            self.worker.recycle(exchange);
            if after != After::Keep {
                return after;
            }
            if self.is_behind() && !Box::pin(self.wait_for_reader()).await {
                return After::Reset;
            }
        }
    }

    /// Whether the client sends requests and does not take the answers.
    fn is_behind(&self) -> bool {
        let stream = &self.stream;
        stream.queued() > stream.queue_high() || stream.transport().is_full()
    }

    /// Holds back a client that is behind: the next request would need buffers of its own. False once it has taken
    /// nothing for too long.
    async fn wait_for_reader(&self) -> bool {
        let send_timeout = millis(self.generation.service.http.send_timeout);
        match flush(&self.stream, 0, &self.answer_timer, send_timeout).await {
            Ok(()) => return true,
            Err(FlushError::Timeout) => self.worker.metrics.client_timeouts.increment(),
            Err(FlushError::Io(_)) => self.worker.metrics.client_aborts.increment(),
        }
        false
    }

    /// Waits, holding next to nothing, until the client sends something; false when the connection
    /// is to be closed.
    async fn wait_for_request(&mut self) -> bool {
        let http = &self.generation.service.http;
        let idle =
            if self.requests == 0 { http.client_header_timeout } else { http.keepalive_timeout };
        self.timer.set(millis(idle));
        self.park();
        let (worker, listening) = (&self.worker, &self.listening);
        let closes_idle = || listening.is_removed() || worker.closes_idle();
        let came = poll_fn(|cx| {
            if let Poll::Ready(ready) = self.input.poll_ready(&self.stream, cx) {
                return Poll::Ready(ready.unwrap_or(false));
            }
            if self.requests == 0 && self.stream.transport().has_begun() {
                acknowledge(&self.stream);
            }
            if closes_idle() {
                let since = self.worker.now().saturating_sub(self.last_active);
                if since >= DRAIN_GRACE_MS {
                    return Poll::Ready(false);
                }
                self.timer.set(DRAIN_GRACE_MS - since);
            } else if let Some(key) = self.key {
                self.worker.wake_on_drain(key, cx);
            }
            self.timer.poll_fired(cx).map(|()| false)
        })
        .await;
        self.renew();
        came
    }

    /// While draining, nobody waits for the client to close an idle connection as well: it took its
    /// last response long ago.
    fn end_of_idleness(&self) -> After {
        if self.closes_idle() { After::CloseIdle } else { After::Close }
    }

    async fn serve_request(&mut self, exchange: &mut Exchange) -> After {
        if let Err(after) = self.read_head(exchange).await {
            return after;
        }
        self.requests += 1;
        self.serve_head(exchange).await
    }

    /// Serves the request whose head the exchange holds.
    pub(super) async fn serve_head(&mut self, exchange: &mut Exchange) -> After {
        let (worker, generation) = (Rc::clone(&self.worker), Rc::clone(&self.generation));
        exchange.tls = self.stream.tls().cloned();
        if let Err(refusal) = exchange.parse(&generation.limits) {
            return self.refuse(exchange, refusal.status());
        }
        let trusted = &generation.service.http.trusted_proxies;
        exchange.identify(&self.addresses, trusted, worker.request_id());
        let how = generation.service.http.trace_context;
        if how != TraceContext::Pass {
            let traces = generation.service.tracing.as_ref();
            exchange.follow_trace(how, traces, || worker.request_id());
        }
        if let Some(clients) = &generation.service.clients {
            let address = exchange.identity().client;
            match clients.request(address, worker.now()) {
                Verdict::Admitted(()) => {}
                Verdict::Untracked(()) => worker.metrics.clients.untracked.increment(),
                Verdict::Refused => {
                    worker.metrics.clients.requests_refused.increment();
                    worker.report_client(address, "too many requests");
                    exchange.outcome.error = Some("limits.request_rate");
                    return reply::status(self, exchange, None, clients.settings.status).await;
                }
            }
        }
        if exchange.request.method == Method::Connect {
            return self.refuse(exchange, 405);
        }
        if let Some(tls) = &exchange.tls {
            exchange.hsts.clone_from(&generation.service.listeners[self.listener].hsts);
            if !tls.serves(exchange.host()) {
                return reply::status(self, exchange, None, 421).await;
            }
        }
        let routes = &generation.service.routes;
        let found = generation.router.find(routes, self.listener, exchange);
        if let Some(redirect) = &generation.service.listeners[self.listener].redirect_https
            && !found.is_some_and(|index| routes[index].listeners.contains(&self.listener))
        {
            if exchange.host().is_empty() {
                return reply::status(self, exchange, None, 400).await;
            }
            return reply::redirect(self, exchange, None, redirect).await;
        }
        let Some(index) = found else {
            return reply::status(self, exchange, None, 404).await;
        };
        let route = &routes[index];
        let upgraded = match &route.action {
            Action::Proxy(upstream) => {
                let shared = (&*worker, &*generation);
                let mut proxied = Proxied::new(shared, (route, *upstream), self, exchange);
                match proxied.serve().await {
                    Served::Over(after) => return after,
                    Served::Upgraded(upgraded) => upgraded,
                }
            }
            Action::Respond(respond) => {
                return reply::respond(self, exchange, route, respond).await;
            }
            Action::Redirect(redirect) => {
                return reply::redirect(self, exchange, Some(route), redirect).await;
            }
        };
        // A tunnel lasts, and needs no configuration any more.
        let timeout = millis(generation.service.http.tunnel_timeout);
        drop(generation);
        self.park();
        upgraded.tunnel(self, timeout).await;
        After::Close
    }

    /// Reads a head within the time a whole head may take.
    async fn read_head(&mut self, exchange: &mut Exchange) -> Result<(), After> {
        let mut scanner = HeadScanner::new();
        let (limits, mut timed) = (self.generation.limits, false);
        let read = poll_fn(|cx| {
            let Exchange { head, request, .. } = &mut *exchange;
            let take = |bytes: &[u8]| request.take(bytes, &limits);
            let read = self.input.poll_head(&self.stream, (take, &mut scanner), &limits, head, cx);
            if let Poll::Ready(read) = read {
                return Poll::Ready(Ok(read));
            }
            // Most heads arrive whole: only the others need the deadline.
            if !std::mem::replace(&mut timed, true) {
                self.timer.set(millis(self.generation.service.http.client_header_timeout));
                self.ask_for_the_rest();
            }
            self.timer.poll_fired(cx).map(|()| Err(Elapsed))
        })
        .await;
        match read {
            Ok(Ok(())) => Ok(()),
            Ok(Err(HeadReadError::Malformed(error))) => Err(self.refuse(exchange, error.status())),
            Ok(Err(HeadReadError::Truncated)) if scanner.has_begun() => {
                exchange.outcome.error = Some("client closed inside the request head");
                Err(self.refuse(exchange, 400))
            }
            Ok(Err(_)) => {
                exchange.outcome.error = Some("client closed inside the request head");
                Err(After::Close)
            }
            Err(Elapsed) => {
                self.worker.metrics.client_timeouts.increment();
                exchange.outcome.error = Some("client_header_timeout");
                Err(self.refuse(exchange, 408))
            }
        }
    }

    /// Acknowledges the beginning of a first message. A listener's connections do so with the first response only,
    /// and a client may send the rest of its request when it knows that the beginning has arrived.
    pub(super) fn ask_for_the_rest(&self) {
        if self.requests <= 1 && self.key.is_some() {
            acknowledge(&self.stream);
        }
    }

    /// Answers what cannot be served; the connection ends, since where the next request starts is
    /// not known.
    pub(super) fn refuse(&mut self, exchange: &mut Exchange, status: u16) -> After {
        self.worker.metrics.requests_refused.increment();
        reply::write_status(self, exchange, None, status, false);
        After::Close
    }

    /// Whether the connection may go on after this request.
    #[must_use]
    pub fn keeps(&self, exchange: &Exchange) -> bool {
        self.key.is_some()
            && exchange.request.persistent
            && self.requests < self.generation.service.http.keepalive_requests
            && !self.is_leaving()
            && !self.stream.transport().is_nearly_worn()
    }

    /// Counts and logs a request.
    pub(super) fn finish(&mut self, exchange: &Exchange) {
        self.last_active = self.worker.now();
        let outcome = &exchange.outcome;
        if outcome.status == 0 {
            return; // nothing was asked and nothing answered
        }
        self.count_bytes();
        self.figures().requests.count(outcome.status);
        self.figures().latency.record(self.last_active.saturating_sub(outcome.started));
        if let Some(pool) = &exchange.pool {
            let figures = pool.metrics();
            figures.requests.count(outcome.status);
            figures.latency.record(self.last_active.saturating_sub(outcome.started));
        }
        if let Some(log) = self.worker.log() {
            self.listening.with(|listener| log.append(&self.log_entry(exchange, &listener.name)));
        }
        if let Some(traces) = &exchange.sampled {
            self.listening.with(|listener| traces.offer(self.span(exchange, &listener.name)));
        }
    }

    /// What a trace shows of the request.
    #[cold]
    fn span(&self, exchange: &Exchange, listener: &str) -> Span {
        let entry = self.log_entry(exchange, listener);
        Span {
            trace: entry.trace.unwrap_or_default(),
            span: entry.span.unwrap_or_default(),
            parent: exchange.trace.as_ref().and_then(|trace| trace.parent),
            end_unix_ms: entry.unix_ms,
            duration_ms: entry.request_time_us / 1000,
            method: shortened(entry.method),
            scheme: if exchange.tls.is_some() { "https" } else { "http" },
            target: shortened(entry.uri),
            version: match entry.protocol {
                b"HTTP/2.0" => "2",
                b"HTTP/1.0" => "1.0",
                _ => "1.1",
            },
            host: shortened(entry.host.unwrap_or_default()),
            user_agent: shortened(entry.user_agent.unwrap_or_default()),
            client: entry.client,
            status: entry.status,
            listener: listener.to_owned(),
            upstream: exchange.pool.as_ref().map(|pool| pool.name().to_owned()),
            server: entry.upstream,
            upstream_ms: entry.upstream_time_us.map(|time| time / 1000),
            tries: entry.tries,
            error: exchange.outcome.error,
        }
    }

    fn log_entry<'a>(&'a self, exchange: &'a Exchange, listener: &'a str) -> access_log::Entry<'a> {
        let (request, head, outcome) = (&exchange.request, &exchange.head, &exchange.outcome);
        let parsed = exchange.is_identified();
        let micros = |from: u64, to: u64| to.saturating_sub(from) * 1000;
        let client = if parsed { exchange.identity().client } else { self.addresses.peer.ip() };
        access_log::Entry {
            unix_ms: unix_ms(),
            client,
            method: if parsed { request.method_span.of(head) } else { b"" },
            uri: if parsed { request.target.of(head) } else { first_line(head) },
            protocol: match request.version {
                _ if !parsed => b"",
                _ if self.stream.http2().is_some() => b"HTTP/2.0",
                Version::Http10 => b"HTTP/1.0",
                Version::Http11 => b"HTTP/1.1",
            },
            host: parsed.then(|| exchange.http_host()),
            status: outcome.status,
            bytes_sent: outcome.body_bytes + outcome.head_bytes,
            body_bytes_sent: outcome.body_bytes,
            referer: if parsed { request.header(head, "referer") } else { None },
            user_agent: if parsed { request.header(head, "user-agent") } else { None },
            request_id: exchange.id(),
            request_time_us: micros(outcome.started, self.last_active),
            upstream: outcome.server,
            upstream_time_us: outcome
                .upstream_started
                .map(|began| micros(began, outcome.upstream_ended.unwrap_or(self.last_active))),
            upstream_status: outcome.upstream_status,
            tries: outcome.tries,
            tls: exchange.tls.as_deref().map(|tls| access_log::Tls {
                protocol: tls.protocol(),
                cipher: tls.cipher,
                server_name: tls.server_name.as_deref().unwrap_or_default(),
                resumed: tls.resumed,
            }),
            trace: match &exchange.trace {
                Some(trace) => Some(trace.own.trace),
                None if parsed => exchange.received_trace().map(|received| received.trace),
                None => None,
            },
            span: exchange.trace.as_ref().map(|trace| trace.own.span),
            listener,
            error: outcome.error,
        }
    }

    /// Ends an idle connection, on which nothing is under way: inside TLS the client is told.
    async fn say_goodbye(&mut self) {
        if self.stream.tls().is_some() {
            self.stream.shutdown_write();
            let _ = flush(&self.stream, 0, &self.answer_timer, DRAIN_GRACE_MS).await;
        }
    }

    /// Ends the connection so that the client gets everything that was written: flush, FIN, and
    /// reading until the client has closed too, unless it has said that nothing more comes.
    async fn close(&mut self, finished: bool) {
        self.renew();
        let generation = Rc::clone(&self.generation);
        let send_timeout = millis(generation.service.http.send_timeout);
        let slow = &self.worker.metrics.clients.slow;
        let pace = generation.download_pace(self.addresses.peer.ip(), slow);
        let pace = pace.as_ref();
        if self.stream.sent() == 0 && self.stream.queued() == 0 {
            return;
        }
        // Before the flush: the FIN rides on the last segment.
        let finished = finished && self.input.is_empty() && self.stream.is_quiet();
        let finished = finished && self.stream.transport().shutdown_both();
        if !finished {
            self.stream.shutdown_write();
        }
        let flushed = flush_at(&self.stream, 0, &self.answer_timer, send_timeout, pace).await;
        if finished || flushed.is_err() {
            return;
        }
        let end = self.worker.now() + LINGER_MS;
        while self.worker.now() < end {
            self.timer.set(LINGER_PAUSE_MS);
            let next = poll_fn(|cx| self.input.poll_chunk(&self.stream, cx));
            match self.timer.guard(next).await {
                Ok(Ok(Some(_))) => {}
                _ => return,
            }
        }
    }
}

/// As much of a request line as came.
fn first_line(head: &[u8]) -> &[u8] {
    const SHOWN_MAX: usize = 2048;
    let end = memchr::memchr2(b'\r', b'\n', head).unwrap_or(head.len());
    &head[..end.min(SHOWN_MAX)]
}
