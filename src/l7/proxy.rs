//! One proxied request: attempts on servers until one answers, then the response.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::Poll;

use crate::balance::hash::{hash, hash_ip};
use crate::balance::{Policy, Tried};
use crate::l7::config::{ProxyVersion, Route, Upstream};
use crate::l7::connection::{After, Client};
use crate::l7::exchange::{Addresses, Context, Exchange};
use crate::l7::flow::{self, FlushError, PumpError, PumpLimits, Replay, pump_request, throttle};
use crate::l7::headers;
use crate::l7::input::{BodyReadError, BodyReader, HeadReadError, Input};
use crate::l7::output::{BodyWriter, Coding, buffer_of};
use crate::l7::pool::{Connection, Lease, Pool, millis};
use crate::l7::reply;
use crate::l7::worker::{Report, Worker};
use crate::protocol::http1::{Framing, HeadScanner, Version};
use crate::protocol::proxy_protocol;
use crate::ring::{Stream, Timer, WriteBuf};

/// 1xx responses a server may send before the final one.
const INTERIM_MAX: u32 = 16;
/// A request body up to this size is kept while another server may still have to be asked.
const REPLAY_MAX: usize = 64 * 1024;

/// Why an attempt failed before there was a response.
#[derive(Debug)]
enum Failure {
    /// No connection: refused, unreachable.
    Connect,
    /// No connection for want of something here: descriptors, ports, memory.
    Exhausted,
    ConnectTimeout,
    /// A reused connection that the server had closed meanwhile.
    Stale,
    /// The server closed or reset the connection instead of answering.
    Broken,
    /// The server took nothing or said nothing for too long.
    Timeout,
    /// What it said is no response.
    Malformed,
    /// The client reset the connection.
    ClientGone,
    /// The client's body.
    Body(BodyReadError),
    BodyTimeout,
    BodyTooLarge,
    /// A response whose status the route wants repeated elsewhere.
    Status(u16),
}

impl Failure {
    /// The status the client gets when this was the last attempt.
    fn status(&self) -> u16 {
        match self {
            Self::Connect | Self::Stale | Self::Broken | Self::Malformed => 502,
            Self::Exhausted => 503,
            Self::ConnectTimeout | Self::Timeout => 504,
            Self::ClientGone => 499,
            Self::Body(BodyReadError::Malformed(error)) => error.status(),
            Self::Body(_) => 400,
            Self::BodyTimeout => 408,
            Self::BodyTooLarge => 413,
            Self::Status(status) => *status,
        }
    }

    fn is_clients(&self) -> bool {
        matches!(self, Self::ClientGone | Self::Body(_) | Self::BodyTimeout | Self::BodyTooLarge)
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Connect => "cannot connect to the server",
            Self::Exhausted => "out of descriptors, ports or memory",
            Self::ConnectTimeout => "connect_timeout",
            Self::Stale => "the server closed an idle connection",
            Self::Broken => "the server closed the connection before it answered",
            Self::Timeout => "the server did not answer in time",
            Self::Malformed => "malformed response",
            Self::ClientGone => "client reset the connection",
            Self::Body(BodyReadError::Malformed(_)) => "malformed request body",
            Self::Body(_) => "client closed inside the request body",
            Self::BodyTimeout => "client_body_timeout",
            Self::BodyTooLarge => "client_max_body_size",
            Self::Status(_) => "status to be retried",
        }
    }

    /// Whether another server may be asked: nothing was sent, or repeating is harmless and wanted.
    fn may_retry(&self, upstream: &Upstream, repeatable: bool) -> bool {
        match self {
            Self::Connect | Self::ConnectTimeout => true,
            Self::Stale | Self::Broken => repeatable,
            Self::Timeout => repeatable && upstream.retry.on_timeout,
            Self::Status(_) => repeatable,
            _ => false,
        }
    }
}

/// One request on its way through an upstream.
struct Proxied<'a> {
    client: &'a mut Client,
    exchange: &'a mut Exchange,
    route: &'a Route,
    pool: &'a Pool,
    size_max: u64,
    body: BodyReader,
    replay: Replay,
}

/// Proxies the request and sends the response.
pub async fn serve(
    client: &mut Client,
    exchange: &mut Exchange,
    route: &Route,
    upstream: usize,
    size_max: u64,
) -> After {
    let worker = std::rc::Rc::clone(&client.worker);
    let framing = exchange.request.framing;
    if matches!(framing, Framing::Length(length) if size_max > 0 && length > size_max) {
        exchange.outcome.error = Some(Failure::BodyTooLarge.reason());
        reply::write_status(client, exchange, Some(route), 413, false);
        return After::Close;
    }
    exchange.outcome.upstream = Some(upstream);
    let pool = &worker.pools[upstream];
    if exchange.http_host.is_empty() {
        // As nginx's $proxy_host: HTTP/1.0 may do without, HTTP/1.1 servers refuse that.
        exchange.http_host.extend_from_slice(pool.upstream.config.name.as_bytes());
    }
    let underscores = worker.service.http.underscores_in_headers;
    headers::write_request(exchange, &client.addresses, route, underscores);
    let body = BodyReader::new(framing);
    let retry = &pool.upstream.config.retry;
    let repeats =
        retry.tries > 1 && (exchange.request.method.is_idempotent() || retry.non_idempotent);
    let replay = Replay::new(if repeats { REPLAY_MAX } else { 0 });
    Proxied { client, exchange, route, pool, size_max, body, replay }.run(&worker, upstream).await
}

impl Proxied<'_> {
    async fn run(mut self, worker: &Worker, upstream: usize) -> After {
        let metrics = &worker.metrics.upstreams[upstream];
        let config = &self.pool.upstream.config;
        let began = worker.now();
        self.exchange.outcome.upstream_started = Some(began);
        self.pool.upstream.budget.request(began);
        let key = self.key(config);
        let mut tried = Tried::new();
        let mut last: Option<Failure> = None;
        let mut fresh = false;
        loop {
            let Some(lease) = self.pool.lease(key, &mut tried, worker.now()) else {
                if last.is_none() {
                    metrics.unavailable.increment();
                    self.exchange.outcome.error = Some("no server available");
                }
                return self.give_up(last.map_or(503, |failure| failure.status())).await;
            };
            self.exchange.outcome.tries += 1;
            let failure = match self.attempt(worker, &lease, fresh).await {
                Ok(after) => return after,
                Err(failure) => failure,
            };
            self.note(worker, &lease, &failure);
            if !self.goes_on(worker, began, &failure) {
                return self.give_up(failure.status()).await;
            }
            metrics.retries.increment();
            if matches!(failure, Failure::Stale) {
                metrics.stale.increment();
                fresh = true;
            } else {
                tried.insert(lease.index());
            }
            last = Some(failure);
        }
    }

    fn key(&self, config: &Upstream) -> u64 {
        match config.balance {
            Policy::Maglev => {
                let mut key = Vec::with_capacity(64);
                let context =
                    Context { exchange: self.exchange, addresses: &self.client.addresses };
                config.hash_key.render(&context, &mut key);
                hash(&key)
            }
            Policy::IpHash => hash_ip(self.exchange.identity().client),
            _ => 0,
        }
    }

    /// Counts a failed attempt and who is to blame.
    fn note(&mut self, worker: &Worker, lease: &Lease, failure: &Failure) {
        self.exchange.outcome.error = Some(failure.reason());
        self.exchange.outcome.upstream_ended = Some(worker.now());
        if failure.is_clients() {
            match failure {
                Failure::ClientGone => worker.metrics.client_aborts.increment(),
                Failure::BodyTimeout => worker.metrics.client_timeouts.increment(),
                _ => {}
            }
            return;
        }
        match failure {
            Failure::Stale => return,
            Failure::Exhausted => {
                worker.metrics.connects_exhausted.increment();
                return;
            }
            Failure::Connect | Failure::ConnectTimeout => {
                lease.metrics().connect_failures.increment();
            }
            _ => lease.metrics().failures.increment(),
        }
        let member = lease.member();
        let max_fails = self.pool.upstream.max_fails(&self.pool.set(), member);
        let fail_timeout = millis(member.config.fail_timeout);
        if member.passive.failure(worker.now(), max_fails, fail_timeout) {
            worker.report(Report::ServerOut {
                upstream: self.pool.upstream.config.name.clone(),
                server: member.label.clone(),
                reason: failure.reason(),
            });
        }
    }

    /// Whether to try again after this failure.
    fn goes_on(&self, worker: &Worker, began: u64, failure: &Failure) -> bool {
        let config = &self.pool.upstream.config;
        let retry = &config.retry;
        let idempotent = self.exchange.request.method.is_idempotent() || retry.non_idempotent;
        let repeatable = idempotent && self.replay.is_whole();
        if !failure.may_retry(config, repeatable) {
            return false;
        }
        if matches!(failure, Failure::Stale) {
            return true; // at most once: after that only fresh connections are used
        }
        let timeout = millis(retry.timeout);
        let late = timeout > 0 && worker.now().saturating_sub(began) >= timeout;
        if late || self.exchange.outcome.tries >= retry.tries {
            return false;
        }
        let allowed = self.pool.upstream.budget.try_retry(worker.now(), retry.budget_percent);
        if !allowed {
            worker.metrics.retries_over_budget.increment();
        }
        allowed
    }

    /// Answers for the servers that did not.
    async fn give_up(self, status: u16) -> After {
        let Self { client, exchange, route, mut body, .. } = self;
        if status == 499 {
            exchange.outcome.status = 499;
            return After::Reset;
        }
        // After a fault of the client's it is not known where the next request starts.
        let keep = status >= 500 && reply::discard_rest(client, exchange, &mut body).await;
        reply::write_status(client, exchange, Some(route), status, keep);
        if keep { After::Keep } else { After::Close }
    }

    async fn attempt(
        &mut self,
        worker: &Worker,
        lease: &Lease,
        fresh: bool,
    ) -> Result<After, Failure> {
        self.exchange.outcome.server = Some(lease.member().address);
        self.exchange.outcome.upstream_status = None;
        self.exchange.answer.clear();
        let mut connection = self.connection(worker, lease, fresh).await?;
        connection.stream.write(buffer_of(&worker.ring, &self.exchange.forward));
        let done = self.converse(worker, lease, &mut connection).await?;
        let now = worker.now();
        self.exchange.outcome.upstream_ended = Some(now);
        let after = match done {
            Done::Answered { after, reusable } => {
                if reusable && self.pool.upstream.config.proxy_protocol.is_none() {
                    self.pool.put(lease, connection, now);
                    worker.note_pooled();
                }
                after
            }
            Done::Upgraded => {
                let Client { stream, input, timer, .. } = &mut *self.client;
                let timeout = millis(worker.service.http.tunnel_timeout);
                let server = (&connection.stream, &mut connection.input);
                flow::tunnel((stream, input), server, timer, timeout).await;
                After::Close
            }
        };
        Ok(after)
    }

    /// A connection to the leased server: an idle one, or a new one.
    async fn connection(
        &mut self,
        worker: &Worker,
        lease: &Lease,
        fresh: bool,
    ) -> Result<Connection, Failure> {
        let config = &self.pool.upstream.config;
        if !fresh && config.proxy_protocol.is_none() {
            let (found, stale) = self.pool.take(lease, worker.now());
            if let Some(upstream) = self.exchange.outcome.upstream.filter(|_| stale > 0) {
                worker.metrics.upstreams[upstream].stale.add(stale as u64);
            }
            if let Some(connection) = found {
                lease.metrics().reuses.increment();
                return Ok(connection);
            }
        }
        let timer = &self.client.answer_timer;
        timer.set(millis(config.connect_timeout));
        let connecting = pin!(Stream::connect(&worker.ring, lease.member().address));
        let stream = match timer.guard(connecting).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(connect_failure(&error)),
            Err(_) => return Err(Failure::ConnectTimeout),
        };
        lease.metrics().connects.increment();
        if let Some(version) = config.proxy_protocol {
            stream.write(proxy_header(worker, version, &self.client.addresses));
        }
        Ok(Connection::new(stream, worker.now()))
    }

    /// Sends the request body while waiting for the response, then forwards that.
    async fn converse(
        &mut self,
        worker: &Worker,
        lease: &Lease,
        connection: &mut Connection,
    ) -> Result<Done, Failure> {
        let config = &self.pool.upstream.config;
        let reused = connection.is_reused();
        let keep_wanted = self.client.keeps(self.exchange);
        let Connection { stream: server, input: server_input, .. } = connection;
        let Client { stream, input, timer, answer_timer, addresses, .. } = &mut *self.client;
        let (stream, timer): (&Stream, &Timer) = (stream, timer);
        let limits = PumpLimits {
            client_timeout_ms: millis(worker.service.http.client_body_timeout),
            server_timeout_ms: millis(config.send_timeout),
            size_max: self.size_max,
        };
        let coding = match self.exchange.request.framing {
            Framing::Chunked => Coding::Chunked,
            _ => Coding::Identity,
        };
        let body = (&mut self.body, &mut self.replay);
        let pump = pump_request((stream, input), body, server, coding, limits, timer);
        let mut pump = Pump { future: pin!(pump), end: None };
        let waiting = Waiting { client: stream, server, timer: answer_timer, config };
        let mut interim = 0;
        loop {
            waiting
                .head(worker, &mut pump, server_input, &mut self.exchange.answer, reused)
                .await?;
            let x = &mut *self.exchange;
            let parsed = x.response.parse(&x.answer, &worker.limits, x.request.method);
            if parsed.is_err() {
                return Err(Failure::Malformed);
            }
            if !x.response.is_interim() || x.response.upgrade {
                break;
            }
            interim += 1;
            if interim > INTERIM_MAX {
                return Err(Failure::Malformed);
            }
            forward_interim(worker, stream, x, addresses);
            x.answer.clear();
        }
        let x = &mut *self.exchange;
        let status = x.response.status;
        x.outcome.upstream_status = Some(status);
        lease.metrics().responses.count(status);
        if x.response.upgrade && !x.request.upgrade_websocket {
            return Err(Failure::Malformed);
        }
        if config.retry.on_status.contains(&status)
            && pump.is_done()
            && x.request.framing.is_empty()
        {
            let tries_left = x.outcome.tries < config.retry.tries;
            let others = self.pool.set().members.len() > 1;
            if tries_left && others && x.request.method.is_idempotent() {
                return Err(Failure::Status(status));
            }
        }
        lease.member().passive.success(worker.now());
        // The client may send more of a body that the server did not wait for: the connection
        // cannot go on then, and the client is told.
        let keep = keep_wanted
            && worker.draining().is_none()
            && pump.is_done()
            && headers::is_delimited(x.response.framing, x.request.version);
        let respond = Respond {
            client: stream,
            server,
            timer: answer_timer,
            read_timeout: millis(config.read_timeout),
            send_timeout: millis(worker.service.http.send_timeout),
        };
        let head = {
            let mut head = WriteBuf::new(&worker.ring);
            let edits = &self.route.response_headers;
            let date = worker.date();
            headers::write_response(&mut head.bytes, x, addresses, edits, keep, &date);
            head
        };
        x.outcome.status = status;
        x.outcome.head_bytes = head.bytes.len() as u64;
        if x.response.upgrade {
            stream.write(head);
            return Ok(Done::Upgraded);
        }
        let written = Cell::new(0);
        let sent = {
            let forward = pin!(respond.forward(x, server_input, head, &written));
            pump.alongside(forward).await
        };
        x.outcome.body_bytes = written.get();
        let reusable = x.response.persistent && pump.is_done() && server.queued() == 0;
        match sent {
            Ok(()) => {
                let after = if keep { After::Keep } else { After::Close };
                Ok(Done::Answered { after, reusable })
            }
            Err(Cut::Unbegun(failure)) => Err(failure),
            Err(cut) => {
                Ok(Done::Answered { after: cut_short(worker, lease, x, &cut), reusable: false })
            }
        }
    }
}

fn connect_failure(error: &io::Error) -> Failure {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EADDRNOTAVAIL) => {
            Failure::Exhausted
        }
        _ => Failure::Connect,
    }
}

/// How a conversation with a server ended.
enum Done {
    /// With a response.
    Answered { after: After, reusable: bool },
    /// Both sides speak another protocol now.
    Upgraded,
}

/// The request body on its way, polled along with whatever else happens.
struct Pump<'a, F> {
    future: Pin<&'a mut F>,
    end: Option<Result<(), PumpError>>,
}

impl<F: Future<Output = Result<(), PumpError>>> Pump<'_, F> {
    fn poll(&mut self, cx: &mut std::task::Context<'_>) {
        if self.end.is_none()
            && let Poll::Ready(end) = self.future.as_mut().poll(cx)
        {
            self.end = Some(end);
        }
    }

    /// The whole body went to the server.
    fn is_done(&self) -> bool {
        matches!(self.end, Some(Ok(())))
    }

    /// The client's part in a failure, if it failed.
    fn take_client_failure(&mut self) -> Option<Failure> {
        match self.end.take() {
            Some(Err(PumpError::Client(BodyReadError::Io(_)))) => Some(Failure::ClientGone),
            Some(Err(PumpError::Client(error))) => Some(Failure::Body(error)),
            Some(Err(PumpError::ClientTimeout)) => Some(Failure::BodyTimeout),
            Some(Err(PumpError::TooLarge)) => Some(Failure::BodyTooLarge),
            Some(Err(PumpError::Server(FlushError::Timeout))) => Some(Failure::Timeout),
            other => {
                self.end = other;
                None
            }
        }
    }

    /// Runs `forward` to its end while the body goes on as long as it can.
    async fn alongside<T>(&mut self, mut forward: Pin<&mut impl Future<Output = T>>) -> T {
        poll_fn(|cx| {
            self.poll(cx);
            forward.as_mut().poll(cx)
        })
        .await
    }
}

/// Waiting for a response head.
struct Waiting<'a> {
    client: &'a Stream,
    server: &'a Stream,
    timer: &'a Timer,
    config: &'a Upstream,
}

impl Waiting<'_> {
    /// Collects the next response head, pumping the request body meanwhile.
    async fn head<F: Future<Output = Result<(), PumpError>>>(
        &self,
        worker: &Worker,
        pump: &mut Pump<'_, F>,
        input: &mut Input,
        head: &mut Vec<u8>,
        reused: bool,
    ) -> Result<(), Failure> {
        let mut scanner = HeadScanner::for_response();
        let read_timeout = millis(self.config.read_timeout);
        let mut timed = false;
        poll_fn(|cx| {
            pump.poll(cx);
            let read = input.poll_head(self.server, &mut scanner, &worker.limits, head, cx);
            if let Poll::Ready(read) = read {
                return Poll::Ready(read.map_err(|error| read_failure(&error, reused)));
            }
            if let Some(failure) = pump.take_client_failure() {
                return Poll::Ready(Err(failure));
            }
            if pump.end.is_none() {
                return Poll::Pending; // its own deadlines apply
            }
            if !timed {
                timed = true;
                self.timer.set(read_timeout);
            }
            if self.client.poll_reset(cx).is_ready() {
                return Poll::Ready(Err(Failure::ClientGone));
            }
            self.timer.poll_fired(cx).map(|()| Err(Failure::Timeout))
        })
        .await
    }
}

fn read_failure(error: &HeadReadError, reused: bool) -> Failure {
    match error {
        HeadReadError::Malformed(_) => Failure::Malformed,
        HeadReadError::Truncated => Failure::Broken,
        HeadReadError::Closed | HeadReadError::Io(_) if reused => Failure::Stale,
        HeadReadError::Closed | HeadReadError::Io(_) => Failure::Broken,
    }
}

/// A body that is bad from its first byte, while the client has nothing of the response yet.
fn body_failure(error: &BodyReadError) -> Failure {
    match error {
        BodyReadError::Malformed(_) => Failure::Malformed,
        BodyReadError::Truncated | BodyReadError::Io(_) => Failure::Broken,
    }
}

/// Passes a 1xx response on; HTTP/1.0 clients do not know them.
fn forward_interim(worker: &Worker, client: &Stream, x: &Exchange, addresses: &Addresses) {
    if x.request.version == Version::Http10 {
        return;
    }
    let mut head = WriteBuf::new(&worker.ring);
    let edits = crate::l7::exchange::response_edits(None);
    headers::write_response(&mut head.bytes, x, addresses, edits, true, &worker.date());
    client.write(head);
}

/// Why a response did not get through whole.
#[derive(Debug)]
enum Cut {
    /// The server's fault, before anything of the response was sent.
    Unbegun(Failure),
    /// The server's fault, inside the body.
    Server,
    ServerTimeout,
    /// The client did not take it.
    Client(FlushError),
}

/// What forwards a response.
struct Respond<'a> {
    client: &'a Stream,
    server: &'a Stream,
    timer: &'a Timer,
    read_timeout: u64,
    send_timeout: u64,
}

impl Respond<'_> {
    /// Sends the head and then the body as it comes.
    async fn forward(
        &self,
        x: &Exchange,
        input: &mut Input,
        head: WriteBuf,
        written: &Cell<u64>,
    ) -> Result<(), Cut> {
        let mut body = BodyReader::new(x.response.framing);
        let coding = headers::response_coding(x.response.framing, x.request.version);
        let mut writer = BodyWriter::new(coding);
        if x.response.framing.is_empty() {
            self.client.write(head);
            return Ok(());
        }
        let mut head = Some(head);
        loop {
            let Some(piece) = self.piece(&mut body, input, head.is_some()).await? else {
                // Nothing there yet: the head does not wait for it.
                if let Some(head) = head.take() {
                    self.client.write(head);
                }
                continue;
            };
            match piece {
                Some(piece) => {
                    writer.write(self.client, head.take(), piece);
                    written.set(writer.written());
                }
                None => break,
            }
            throttle(self.client, self.timer, self.send_timeout).await.map_err(Cut::Client)?;
        }
        writer.finish(self.client, head, body.trailers());
        Ok(())
    }

    /// The next piece of the body, `Some(None)` at its end; `None` when there is nothing yet and
    /// `only_ready` is set, that is, while nothing of the response was sent.
    async fn piece(
        &self,
        body: &mut BodyReader,
        input: &mut Input,
        only_ready: bool,
    ) -> Result<Option<Option<crate::ring::Chunk>>, Cut> {
        let mut timed = false;
        poll_fn(|cx| {
            match body.poll_piece(input, self.server, cx) {
                Poll::Ready(Ok(piece)) => return Poll::Ready(Ok(Some(piece))),
                Poll::Ready(Err(error)) if only_ready => {
                    return Poll::Ready(Err(Cut::Unbegun(body_failure(&error))));
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Cut::Server)),
                Poll::Pending if only_ready => return Poll::Ready(Ok(None)),
                Poll::Pending => {}
            }
            if !timed {
                timed = true;
                self.timer.set(self.read_timeout);
            }
            if self.client.poll_reset(cx).is_ready() {
                let gone = io::Error::from_raw_os_error(libc::ECONNRESET);
                return Poll::Ready(Err(Cut::Client(FlushError::Io(gone))));
            }
            self.timer.poll_fired(cx).map(|()| Err(Cut::ServerTimeout))
        })
        .await
    }
}

/// The client must not take half a response for a whole one: its connection is reset, unless the
/// framing shows by itself that something is missing.
fn cut_short(worker: &Worker, lease: &Lease, x: &mut Exchange, cut: &Cut) -> After {
    match cut {
        Cut::Server | Cut::ServerTimeout => {
            worker.metrics.responses_cut.increment();
            lease.metrics().failures.increment();
            x.outcome.error = Some(match cut {
                Cut::Server => "the server closed the connection inside the response",
                _ => "the server stalled inside the response",
            });
            let shows = headers::is_delimited(x.response.framing, x.request.version);
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

fn proxy_header(worker: &Worker, version: ProxyVersion, addresses: &Addresses) -> WriteBuf {
    let mut header = WriteBuf::new(&worker.ring);
    let (peer, local) = (addresses.peer, addresses.local);
    match version {
        ProxyVersion::V1 => proxy_protocol::encode_v1(&mut header.bytes, peer, local),
        ProxyVersion::V2 => proxy_protocol::encode_v2(&mut header.bytes, peer, local),
    }
    header
}
