//! One proxied request: attempts on servers until one answers, then the response.

mod connecting;
mod conversation;
mod failure;
mod respond;

use std::rc::Rc;

use self::conversation::Answered;
use self::failure::Failure;
use crate::balance::hash::{hash, hash_ip};
use crate::balance::{Policy, Tried};
use crate::l7::config::{Route, Upstream};
use crate::l7::connection::{After, Client};
use crate::l7::exchange::{Context, Exchange};
use crate::l7::flow::{self, Upload};
use crate::l7::generation::Generation;
use crate::l7::http2::client::retire;
use crate::l7::pool::{Connection, Kept, Lease, Pool, millis};
use crate::l7::reply;
use crate::l7::worker::{Report, Worker};
use crate::protocol::http1::Framing;
use crate::ring::timer::Millis;

/// A request body up to this size is kept while another server may still have to be asked.
const REPLAY_MAX: usize = 64 * 1024;

/// One request on its way through an upstream.
#[derive(Debug)]
pub struct Proxied<'a> {
    worker: &'a Worker,
    generation: &'a Generation,
    route: &'a Route,
    /// Index of the upstream in the generation.
    upstream: usize,
    pool: &'a Pool,
    client: &'a mut Client,
    exchange: &'a mut Exchange,
    upload: Option<Box<Upload>>,
    attempt_began: Millis,
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

impl<'a> Proxied<'a> {
    /// What the exchange holds, to go to one of the route's upstreams.
    #[must_use]
    pub fn new(
        (worker, generation): (&'a Worker, &'a Generation),
        (route, upstream): (&'a Route, usize),
        client: &'a mut Client,
        exchange: &'a mut Exchange,
    ) -> Self {
        let pool = &generation.pools[upstream];
        let retry = &pool.upstream.config.retry;
        let repeats =
            retry.tries > 1 && (exchange.request.method.is_idempotent() || retry.non_idempotent);
        let replay_max = if repeats { REPLAY_MAX } else { 0 };
        let upload = Upload::on(&client.stream, exchange.request.framing, replay_max);
        let attempt_began = 0;
        Self { worker, generation, route, upstream, pool, client, exchange, upload, attempt_began }
    }

    /// Sends it and its response.
    pub async fn serve(&mut self) -> Served {
        let pool = self.pool;
        if self.is_too_large() {
            self.exchange.outcome.error = Some(Failure::BodyTooLarge.reason());
            return Served::Over(self.give_up(413).await);
        }
        self.exchange.pool = Some(Rc::clone(&self.generation.pools[self.upstream]));
        let began = self.worker.now();
        self.exchange.outcome.upstream_started = Some(began);
        pool.count_request(began);
        let Some(place) = pool.admit() else {
            pool.metrics().refused_in_flight.increment();
            self.exchange.outcome.error = Some("breaker.max_in_flight");
            return Served::Over(self.give_up(503).await);
        };
        let key = self.key(&pool.upstream.config);
        let mut tried = Tried::new();
        let mut last: Option<Failure> = None;
        let mut fresh = false;
        loop {
            let Some(lease) = pool.lease(key, &mut tried, self.worker.now()) else {
                if last.is_none() {
                    pool.metrics().unavailable.increment();
                    self.exchange.outcome.error = Some("no server available");
                }
                let status = last.map_or(503, |failure| failure.status());
                return Served::Over(self.give_up(status).await);
            };
            self.exchange.outcome.tries += 1;
            let failure = match self.attempt(&lease, fresh).await {
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
            self.note(&lease, &failure);
            if !self.goes_on(began, &failure) {
                return Served::Over(self.give_up(failure.status()).await);
            }
            pool.metrics().retries.increment();
            if matches!(failure, Failure::Stale) {
                pool.metrics().stale.increment();
                fresh = true;
            } else if !matches!(failure, Failure::Unprocessed) || pool.set().members.len() > 1 {
                tried.insert(lease.index());
            }
            last = Some(failure);
        }
    }

    /// Most bytes of a request body, 0 for no limit.
    fn size_max(&self) -> u64 {
        let general = self.generation.service.http.client_max_body_size;
        self.route.client_max_body_size.unwrap_or(general)
    }

    fn is_too_large(&self) -> bool {
        let Framing::Length(length) = self.exchange.request.framing else { return false };
        let size_max = self.size_max();
        size_max > 0 && length > size_max
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
    fn note(&mut self, lease: &Lease, failure: &Failure) {
        self.exchange.outcome.error = Some(failure.reason());
        self.exchange.outcome.upstream_ended = Some(self.worker.now());
        if failure.is_clients() {
            match failure {
                Failure::ClientGone => self.worker.metrics.client_aborts.increment(),
                Failure::BodyTimeout => self.worker.metrics.client_timeouts.increment(),
                _ => {}
            }
            return;
        }
        match failure {
            Failure::Stale | Failure::Unprocessed | Failure::NotUpgraded => return,
            Failure::Exhausted => {
                self.worker.metrics.connects_exhausted.increment();
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
        if member.passive.failure(self.worker.now(), max_fails, fail_timeout) {
            self.worker.report(Report::ServerOut {
                upstream: self.pool.upstream.config.name.clone(),
                server: member.label.clone(),
                reason: failure.reason(),
            });
        }
    }

    /// Whether to try again after this failure.
    fn goes_on(&self, began: Millis, failure: &Failure) -> bool {
        let config = &self.pool.upstream.config;
        let retry = &config.retry;
        let idempotent = self.exchange.request.method.is_idempotent() || retry.non_idempotent;
        let whole = self.upload.as_ref().is_none_or(|upload| upload.is_repeatable());
        if !failure.may_retry(config, idempotent && whole) {
            return false;
        }
        if matches!(failure, Failure::Unprocessed) && !whole {
            return false;
        }
        if matches!(failure, Failure::Stale) {
            return true; // at most once: after that only fresh connections are used
        }
        let timeout = millis(retry.timeout);
        let late = timeout > 0 && self.worker.now().saturating_sub(began) >= timeout;
        if late || self.exchange.outcome.tries >= retry.tries {
            return false;
        }
        let allowed = self.pool.may_retry(self.worker.now());
        if !allowed {
            self.worker.metrics.retries_over_budget.increment();
        }
        allowed
    }

    /// Answers for the servers that did not.
    async fn give_up(&mut self, status: u16) -> After {
        let Self { client, exchange, route, upload, .. } = self;
        if status == 499 {
            exchange.outcome.status = 499;
            return After::Reset;
        }
        // After a fault of the client's it is not known where the next request starts.
        let keep = status >= 500
            && match upload {
                Some(upload) => reply::discard_rest(client, exchange, &mut upload.body).await,
                None => client.keeps(exchange),
            };
        reply::write_status(client, exchange, Some(route), status, keep);
        if keep { After::Keep } else { After::Close }
    }

    async fn attempt(&mut self, lease: &Lease, fresh: bool) -> Result<Attempted, Failure> {
        let mut connection = self.send_head(lease, fresh).await?;
        let answered = self.converse(lease, &mut connection).await;
        if matches!(answered, Err(Failure::Timeout)) {
            // Nobody knows whether the connection still leads anywhere.
            if let Some(stream) = connection.stream.http2() {
                retire(stream.mux());
            }
        }
        let answered = answered?;
        let now = self.worker.now();
        self.exchange.outcome.upstream_ended = Some(now);
        match answered {
            Answered::Over { after, reusable } => {
                let own = connection.stream.http2().is_none();
                if own && reusable && self.pool.upstream.config.proxy_protocol.is_none() {
                    self.keep(lease, connection, now);
                }
                Ok(Attempted::Over(after))
            }
            Answered::Upgraded => Ok(Attempted::Upgraded(connection)),
        }
    }

    /// Puts a connection into the pool; after a reload into the one that has succeeded it.
    fn keep(&self, lease: &Lease, connection: Connection, now: Millis) {
        if self.pool.is_replaced() {
            let generation = self.worker.generation();
            let successor = generation.pool(&self.pool.upstream.config.name);
            if let Some(pool) = successor.filter(|pool| self.pool.connects_as(pool)) {
                pool.put(lease, connection, now);
            }
        } else {
            self.pool.put(lease, connection, now);
        }
        self.worker.note_pooled();
    }
}

/// How an attempt ended.
enum Attempted {
    /// With a response.
    Over(After),
    /// Both sides speak another protocol now.
    Upgraded(Connection),
}
