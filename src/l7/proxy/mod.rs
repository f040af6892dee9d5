//! One proxied request: attempts on servers until one answers, then the response.

mod failure;
mod respond;
mod wait;

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use rustls::ClientConfig;

use self::failure::Failure;
use self::respond::{Cut, Respond, cut_short};
use self::wait::{Pump, Waiting};
use crate::balance::hash::{hash, hash_ip};
use crate::balance::{Policy, Tried};
use crate::l7::channel::Channel;
use crate::l7::config::{ProxyVersion, Route, Upstream};
use crate::l7::connection::{After, Client};
use crate::l7::exchange::{Addresses, Context, Exchange, is_extended_connect};
use crate::l7::flow::{self, PumpLimits, Replay, pump_request};
use crate::l7::generation::Generation;
use crate::l7::headers;
use crate::l7::http2::client::retire;
use crate::l7::input::BodyReader;
use crate::l7::output::Coding;
use crate::l7::pool::{Connection, Kept, Lease, Pool, millis};
use crate::l7::reply;
use crate::l7::tls;
use crate::l7::tls::Application;
use crate::l7::tls::metrics::Reason;
use crate::l7::transport::Transport;
use crate::l7::worker::{Report, Worker};
use crate::protocol::http1::{FieldId, Framing};
use crate::protocol::proxy_protocol;
use crate::ring::{Stream, Timer, WriteBuf};

/// A request body up to this size is kept while another server may still have to be asked.
const REPLAY_MAX: usize = 64 * 1024;

/// One request on its way through an upstream.
struct Proxied<'a> {
    client: &'a mut Client,
    exchange: &'a mut Exchange,
    route: &'a Route,
    generation: &'a Generation,
    /// Index of the upstream in it.
    upstream: usize,
    pool: &'a Pool,
    size_max: u64,
    body: BodyReader,
    replay: Replay,
    attempt_began: u64,
}

/// Proxies the request and sends the response.
pub async fn serve(
    client: &mut Client,
    exchange: &mut Exchange,
    route: &Route,
    upstream: usize,
    size_max: u64,
) -> Served {
    let worker = Rc::clone(&client.worker);
    let framing = exchange.request.framing;
    if matches!(framing, Framing::Length(length) if size_max > 0 && length > size_max) {
        exchange.outcome.error = Some(Failure::BodyTooLarge.reason());
        reply::write_status(client, exchange, Some(route), 413, false);
        return Served::Over(After::Close);
    }
    let generation = Rc::clone(&client.generation);
    let pool = &generation.pools[upstream];
    exchange.pool = Some(Rc::clone(pool));
    if exchange.http_host.is_empty() {
        // As nginx's $proxy_host: HTTP/1.0 may do without, HTTP/1.1 servers refuse that.
        exchange.http_host.extend_from_slice(pool.upstream.config.name.as_bytes());
    }
    let body = BodyReader::on(&client.stream, framing);
    let retry = &pool.upstream.config.retry;
    let repeats =
        retry.tries > 1 && (exchange.request.method.is_idempotent() || retry.non_idempotent);
    let replay = Replay::new(if repeats { REPLAY_MAX } else { 0 });
    let generation = &*generation;
    let attempt_began = 0;
    let mut proxied = Proxied {
        client,
        exchange,
        route,
        generation,
        upstream,
        pool,
        size_max,
        body,
        replay,
        attempt_began,
    };
    proxied.run(&worker).await
}

/// How the request ended.
#[derive(Debug)]
pub enum Served {
    /// With a response, or none.
    Over(After),
    /// Both sides speak another protocol now.
    Upgraded(Box<Upgraded>),
}

/// A connection to a server that speaks another protocol now.
#[derive(Debug)]
pub struct Upgraded {
    connection: Connection,
    /// Counts as in flight: to the server, and to the upstream's circuit breaker.
    _in_flight: (Lease, Kept),
}

impl Upgraded {
    /// Passes bytes in both directions until one side ends, or nothing came for `timeout`.
    pub async fn tunnel(mut self: Box<Self>, client: &mut Client, timeout: u64) {
        let Client { stream, input, timer, .. } = client;
        let server = (&self.connection.stream, &mut self.connection.input);
        flow::tunnel((stream, input), server, timer, timeout).await;
    }
}

impl Proxied<'_> {
    async fn run(&mut self, worker: &Worker) -> Served {
        let metrics = self.pool.metrics();
        let config = &self.pool.upstream.config;
        let began = worker.now();
        self.exchange.outcome.upstream_started = Some(began);
        self.pool.count_request(began);
        let pool = self.pool;
        let Some(place) = pool.admit() else {
            metrics.refused_in_flight.increment();
            self.exchange.outcome.error = Some("breaker.max_in_flight");
            return Served::Over(self.give_up(503).await);
        };
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
                let status = last.map_or(503, |failure| failure.status());
                return Served::Over(self.give_up(status).await);
            };
            self.exchange.outcome.tries += 1;
            let failure = match self.attempt(worker, &lease, fresh).await {
                Ok(Attempted::Over(after)) => return Served::Over(after),
                Ok(Attempted::Upgraded(connection)) => {
                    let in_flight = (lease, pool.keep(place));
                    return Served::Upgraded(Box::new(Upgraded {
                        connection,
                        _in_flight: in_flight,
                    }));
                }
                // Streams share connections whatever was asked for: no second time without a budget.
                Err(Failure::Stale) if fresh => Failure::Broken,
                Err(failure) => failure,
            };
            self.note(worker, &lease, &failure);
            if !self.goes_on(worker, began, &failure) {
                return Served::Over(self.give_up(failure.status()).await);
            }
            metrics.retries.increment();
            if matches!(failure, Failure::Stale) {
                metrics.stale.increment();
                fresh = true;
            } else if !matches!(failure, Failure::Unprocessed) || self.pool.set().members.len() > 1
            {
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
            Failure::Stale | Failure::Unprocessed | Failure::NotUpgraded => return,
            Failure::Exhausted => {
                worker.metrics.connects_exhausted.increment();
                return;
            }
            Failure::Pending => {
                self.pool.metrics().refused_pending.increment();
                return;
            }
            Failure::Connect | Failure::ConnectTimeout | Failure::Tls => {
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
        if matches!(failure, Failure::Unprocessed) && !self.replay.is_whole() {
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
        let allowed = self.pool.may_retry(worker.now());
        if !allowed {
            worker.metrics.retries_over_budget.increment();
        }
        allowed
    }

    /// Answers for the servers that did not.
    async fn give_up(&mut self, status: u16) -> After {
        let Self { client, exchange, route, body, .. } = self;
        if status == 499 {
            exchange.outcome.status = 499;
            return After::Reset;
        }
        // After a fault of the client's it is not known where the next request starts.
        let keep = status >= 500 && reply::discard_rest(client, exchange, body).await;
        reply::write_status(client, exchange, Some(route), status, keep);
        if keep { After::Keep } else { After::Close }
    }

    /// The request's head as it goes upstream.
    fn head(&self, worker: &Worker) -> WriteBuf {
        let (exchange, route) = (&*self.exchange, self.route);
        let mut head = WriteBuf::new(&worker.ring);
        let underscores = self.generation.service.http.underscores_in_headers;
        let addresses = &self.client.addresses;
        headers::write_request(&mut head.bytes, exchange, addresses, route, underscores);
        if self.pool.upstream.config.http2 && takes_trailers(exchange) {
            head.bytes.truncate(head.bytes.len() - 2);
            head.bytes.extend_from_slice(b"te: trailers\r\n\r\n");
        }
        head
    }

    async fn attempt(
        &mut self,
        worker: &Worker,
        lease: &Lease,
        fresh: bool,
    ) -> Result<Attempted, Failure> {
        // Before the server is noted: to the head, `$upstream_addr` is the one that was tried before.
        let head = self.head(worker);
        self.exchange.outcome.server = Some(lease.member().address);
        self.exchange.outcome.upstream_status = None;
        self.attempt_began = worker.now();
        let mut connection = if self.pool.upstream.config.http2 {
            self.stream(worker, lease, &head.bytes).await?
        } else {
            self.connection(worker, lease, fresh).await?
        };
        if connection.stream.http2().is_none() {
            connection.stream.write(head);
        }
        let done = match self.converse(worker, lease, &mut connection).await {
            Err(Failure::Timeout) => {
                // Nobody knows whether the connection still leads anywhere.
                if let Some(stream) = connection.stream.http2() {
                    retire(stream.mux());
                }
                return Err(Failure::Timeout);
            }
            done => done?,
        };
        let now = worker.now();
        self.exchange.outcome.upstream_ended = Some(now);
        match done {
            Done::Answered { after, reusable } => {
                let own = connection.stream.http2().is_none();
                if own && reusable && self.pool.upstream.config.proxy_protocol.is_none() {
                    self.keep(worker, lease, connection, now);
                }
                Ok(Attempted::Over(after))
            }
            Done::Upgraded => Ok(Attempted::Upgraded(connection)),
        }
    }

    /// Puts a connection into the pool; after a reload into the one that has succeeded it.
    fn keep(&self, worker: &Worker, lease: &Lease, connection: Connection, now: u64) {
        if self.pool.is_replaced() {
            let generation = worker.generation();
            let successor = generation.pool(&self.pool.upstream.config.name);
            if let Some(pool) = successor.filter(|pool| self.pool.connects_as(pool)) {
                pool.put(lease, connection, now);
            }
        } else {
            self.pool.put(lease, connection, now);
        }
        worker.note_pooled();
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
            if stale > 0 {
                self.pool.metrics().stale.add(stale as u64);
            }
            if let Some(connection) = found {
                lease.metrics().reuses.increment();
                return Ok(connection);
            }
        }
        let Some(_place) = self.pool.admit_connect() else { return Err(Failure::Pending) };
        // In memory of its own, not in every request's.
        let transport = Box::pin(self.connect(worker, lease)).await?;
        Ok(Connection::new(transport.into(), worker.now()))
    }

    /// A new connection, handshakes included, within `connect_timeout`.
    async fn connect(&self, worker: &Worker, lease: &Lease) -> Result<Transport, Failure> {
        let config = &self.pool.upstream.config;
        let timer = &self.client.answer_timer;
        timer.set(millis(config.connect_timeout));
        let connecting = pin!(Stream::connect(&worker.ring, lease.member().address));
        let mut stream = match timer.guard(connecting).await {
            Ok(Ok(stream)) => Transport::from(stream),
            Ok(Err(error)) => return Err(Failure::of_connect(&error)),
            Err(_) => return Err(Failure::ConnectTimeout),
        };
        lease.metrics().connects.increment();
        if let Some(version) = config.proxy_protocol {
            stream.write(proxy_header(worker, version, &self.client.addresses));
        }
        if config.tls.is_some() {
            let Some(client) = self.generation.tls.client(self.upstream) else {
                // Never in the clear for want of what TLS is made with.
                self.pool.metrics().tls.failed(Reason::Internal);
                return Err(Failure::Tls);
            };
            self.secure(worker, lease, &mut stream, client).await?;
        }
        Ok(stream)
    }

    /// A stream on a connection to the leased server, with this head sent on it; or a
    /// connection that TLS has settled on HTTP/1.1 for.
    async fn stream(
        &mut self,
        worker: &Worker,
        lease: &Lease,
        head: &[u8],
    ) -> Result<Connection, Failure> {
        let config = &self.pool.upstream.config;
        let connections = self.pool.http2(lease);
        let end = self.exchange.request.framing.is_empty();
        let mut dialed = None;
        loop {
            let now = worker.now();
            let sent = connections.send(head, end, config, now);
            if let Some((stream, reused)) = sent {
                if reused {
                    lease.metrics().reuses.increment();
                }
                return Ok(Connection::of_stream(stream, reused, now));
            }
            if let Some(mux) = dialed {
                retire(&mux); // a server that takes no stream on a new connection will not on the next
                return Err(Failure::Connect);
            }
            if let (Some(connection), _) = self.pool.take(lease, now) {
                lease.metrics().reuses.increment();
                return Ok(connection);
            }
            let Some(_place) = self.pool.admit_connect() else { return Err(Failure::Pending) };
            let timer = &self.client.answer_timer;
            timer.set(millis(config.connect_timeout));
            let mut waited = false;
            let dial = poll_fn(|cx| connections.poll_dial(&mut waited, cx));
            let Ok(dialing) = timer.guard(dial).await else {
                return Err(Failure::ConnectTimeout);
            };
            let Some(_dialing) = dialing else { continue };
            let transport = Box::pin(self.connect(worker, lease)).await?;
            if transport.tls().is_some_and(|tls| tls.application == Application::Http1) {
                return Ok(Connection::new(transport.into(), now));
            }
            let limits = &self.generation.limits;
            let start = Box::pin(connections.start(transport, limits, config, &worker.ring));
            match timer.guard(start).await {
                Ok(Ok(mux)) => dialed = Some(mux),
                Ok(Err(_)) => return Err(Failure::Connect),
                Err(_) => return Err(Failure::ConnectTimeout),
            }
        }
    }

    /// Makes the TLS handshake with a server, within what is left of `connect_timeout`.
    async fn secure(
        &self,
        worker: &Worker,
        lease: &Lease,
        stream: &mut Transport,
        client: Arc<ClientConfig>,
    ) -> Result<(), Failure> {
        let config = &self.pool.upstream.config;
        let configured = config.tls.as_ref().and_then(|tls| tls.server_name.as_deref());
        let figures = &self.pool.metrics().tls;
        let name = tls::client::server_name(configured, &lease.member().config.address);
        let name = name.map_err(|_| Failure::Tls)?;
        let made = {
            // Not in the memory of connections without TLS.
            let connecting = Box::pin(tls::handshake::connect(stream.stream(), client, name));
            self.client.answer_timer.guard(connecting).await
        };
        match made {
            Ok(Ok(session)) => {
                figures.done(session.info().version, session.info().resumed);
                stream.secure(session);
                Ok(())
            }
            Ok(Err(failure)) => {
                figures.failed(failure.reason);
                if self.pool.may_report(worker.now()) {
                    worker.report(Report::ServerTls {
                        upstream: config.name.clone(),
                        server: lease.member().label.clone(),
                        error: failure.text,
                    });
                }
                Err(Failure::Tls)
            }
            Err(_) => {
                figures.failed(Reason::Timeout);
                Err(Failure::ConnectTimeout)
            }
        }
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
        let listening = Rc::clone(&self.client.listening);
        if !self.body.is_over() && self.client.input.is_empty() {
            self.client.ask_for_the_rest();
        }
        let Connection { stream: server, input: server_input, .. } = connection;
        let Client { stream, input, timer, answer_timer, addresses, .. } = &mut *self.client;
        let (stream, timer, addresses): (&Channel, &Timer, &Addresses) = (stream, timer, addresses);
        let (read_timeout, x) = (millis(config.read_timeout), &mut *self.exchange);
        let coding = match x.request.framing {
            Framing::Chunked => Coding::Chunked,
            _ => Coding::Identity,
        };
        let body = (&mut self.body, &mut self.replay);
        let rest = flow::resume_request(&body, server, coding);
        let slow = &worker.metrics.clients.slow;
        let upload =
            rest.as_ref().and_then(|_| self.generation.upload_pace(addresses.peer.ip(), slow));
        let mut pump = Pump::new(rest.map(|writer| {
            let limits = PumpLimits {
                client_timeout_ms: millis(self.generation.service.http.client_body_timeout),
                server_timeout_ms: millis(config.send_timeout),
                size_max: self.size_max,
            };
            let limits = (limits, upload.as_ref());
            worker.pumping.hold(pump_request(
                (stream, input),
                body,
                (server, writer),
                limits,
                timer,
            ))
        }));
        let timer = &*answer_timer;
        let limits = self.generation.limits;
        Waiting { worker, limits, client: stream, addresses, server, timer, read_timeout, reused }
            .response(&mut pump, server_input, x)
            .await?;
        x.outcome.upstream_status = Some(x.response.status);
        lease.metrics().responses.count(x.response.status);
        lease.metrics().response_ms.add(worker.now().saturating_sub(self.attempt_began));
        if pump.is_done() && self.pool.wants_repeated(x) {
            return Err(Failure::Status(x.response.status));
        }
        lease.member().passive.success(worker.now());
        if (200..300).contains(&x.response.status) && is_extended_connect(stream, x) {
            return Err(Failure::NotUpgraded);
        }
        // The client may send more of a body that the server did not wait for: the connection
        // cannot go on then, and the client is told.
        let keep = keep_wanted
            && worker.draining().is_none()
            && !listening.is_removed()
            && pump.is_done()
            && headers::is_delimited(x.response.framing, x.request.version);
        let mut head = WriteBuf::new(&worker.ring);
        let edits = &self.route.response_headers;
        headers::write_response(&mut head.bytes, x, addresses, edits, keep, &worker.date());
        x.outcome.status = x.response.status;
        x.outcome.head_bytes = head.bytes.len() as u64;
        if x.response.upgrade {
            stream.write_head(head, false);
            return Ok(Done::Upgraded);
        }
        let send_timeout = millis(self.generation.service.http.send_timeout);
        let pace = self.generation.download_pace(addresses.peer.ip(), slow);
        let pace = pace.as_ref();
        let respond = Respond { client: stream, server, timer, read_timeout, send_timeout, pace };
        let written = Cell::new(0);
        let sent = match respond.begin(x, server_input, head, &written) {
            Ok(None) => Ok(()),
            Ok(Some(rest)) => {
                let forward = respond.forward(rest, server_input, &written);
                pump.alongside(worker.forwarding.hold(forward)).await
            }
            Err(cut) => Err(cut),
        };
        x.outcome.body_bytes = written.get();
        let reusable = x.response.persistent && pump.is_done() && server.queued() == 0;
        match sent {
            Ok(()) if keep => Ok(Done::Answered { after: After::Keep, reusable }),
            // Of a body the client may send more than was read.
            Ok(()) if !x.request.persistent && x.request.framing.is_empty() => {
                Ok(Done::Answered { after: After::Finish, reusable })
            }
            Ok(()) => Ok(Done::Answered { after: After::Close, reusable }),
            Err(Cut::Unbegun(failure)) => Err(failure),
            Err(cut) => {
                Ok(Done::Answered { after: cut_short(worker, lease, x, &cut), reusable: false })
            }
        }
    }
}

/// Whether the client has said so: a gRPC server wants to hear it (RFC 9110 section 10.1.4).
fn takes_trailers(exchange: &Exchange) -> bool {
    exchange.values(FieldId::Te).any(|value| {
        value
            .split(|&byte| byte == b',')
            .any(|part| part.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    })
}

/// How an attempt ended.
enum Attempted {
    /// With a response.
    Over(After),
    /// Both sides speak another protocol now.
    Upgraded(Connection),
}

/// How a conversation with a server ended.
enum Done {
    /// With a response.
    Answered { after: After, reusable: bool },
    /// Both sides speak another protocol now.
    Upgraded,
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
