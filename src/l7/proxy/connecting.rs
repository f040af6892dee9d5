//! Whom the request is sent to: a connection of the pool, a new one, or a stream of one.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;

use rustls::ClientConfig;

use super::Proxied;
use super::failure::Failure;
use crate::l7::config::ProxyVersion;
use crate::l7::exchange::{Addresses, Exchange};
use crate::l7::headers;
use crate::l7::http2::client::retire;
use crate::l7::pool::{Connection, Lease, millis};
use crate::l7::tls;
use crate::l7::tls::Application;
use crate::l7::tls::metrics::Reason;
use crate::l7::transport::Transport;
use crate::l7::worker::{Report, Worker};
use crate::protocol::http1::FieldId;
use crate::protocol::proxy_protocol;
use crate::ring::{Stream, WriteBuf};

impl Proxied<'_> {
    /// A connection to the leased server, or a stream of one, that the request's head has been written to.
    pub(super) async fn send_head(
        &mut self,
        lease: &Lease,
        fresh: bool,
    ) -> Result<Connection, Failure> {
        // Before the server is noted: to the head, `$upstream_addr` is the one that was tried before.
        let head = self.head();
        self.exchange.outcome.server = Some(lease.member().address);
        self.exchange.outcome.upstream_status = None;
        self.attempt_began = self.worker.now();
        let connection = if self.pool.upstream.config.http2 {
            self.stream(lease, &head.bytes).await?
        } else {
            self.connection(lease, fresh).await?
        };
        if connection.stream.http2().is_none() {
            connection.stream.write(head);
        }
        Ok(connection)
    }

    /// The request's head as it goes upstream.
    fn head(&self) -> WriteBuf {
        let (exchange, route) = (&*self.exchange, self.route);
        let mut head = WriteBuf::new(&self.worker.ring);
        let underscores = self.generation.service.http.underscores_in_headers;
        let addresses = &self.client.addresses;
        headers::write_request(&mut head.bytes, exchange, addresses, route, underscores);
        if self.pool.upstream.config.http2 && takes_trailers(exchange) {
            head.bytes.truncate(head.bytes.len() - 2);
            head.bytes.extend_from_slice(b"te: trailers\r\n\r\n");
        }
        head
    }

    /// A connection to the leased server: an idle one, or a new one.
    async fn connection(&mut self, lease: &Lease, fresh: bool) -> Result<Connection, Failure> {
        let config = &self.pool.upstream.config;
        if !fresh && config.proxy_protocol.is_none() {
            let (found, stale) = self.pool.take(lease, self.worker.now());
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
        let transport = Box::pin(self.connect(lease)).await?;
        Ok(Connection::new(transport.into(), self.worker.now()))
    }

    /// A new connection, handshakes included, within `connect_timeout`.
    async fn connect(&self, lease: &Lease) -> Result<Transport, Failure> {
        let config = &self.pool.upstream.config;
        let timer = &self.client.answer_timer;
        timer.set(millis(config.connect_timeout));
        let connecting = pin!(Stream::connect(&self.worker.ring, lease.member().address));
        let mut stream = match timer.guard(connecting).await {
            Ok(Ok(stream)) => Transport::from(stream),
            Ok(Err(error)) => return Err(Failure::of_connect(&error)),
            Err(_) => return Err(Failure::ConnectTimeout),
        };
        lease.metrics().connects.increment();
        if let Some(version) = config.proxy_protocol {
            stream.write(proxy_header(self.worker, version, &self.client.addresses));
        }
        if config.tls.is_some() {
            let Some(client) = self.generation.tls.client(self.upstream) else {
                // Never in the clear for want of what TLS is made with.
                self.pool.metrics().tls.failed(Reason::Internal);
                return Err(Failure::Tls);
            };
            self.secure(lease, &mut stream, client).await?;
        }
        Ok(stream)
    }

    /// A stream on a connection to the leased server, with this head sent on it; or a
    /// connection that TLS has settled on HTTP/1.1 for.
    async fn stream(&mut self, lease: &Lease, head: &[u8]) -> Result<Connection, Failure> {
        let config = &self.pool.upstream.config;
        let connections = self.pool.http2(lease);
        let end = self.exchange.request.framing.is_empty();
        let mut dialed = None;
        loop {
            let now = self.worker.now();
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
            let transport = Box::pin(self.connect(lease)).await?;
            if transport.tls().is_some_and(|tls| tls.application == Application::Http1) {
                return Ok(Connection::new(transport.into(), now));
            }
            let limits = &self.generation.limits;
            let start = Box::pin(connections.start(transport, limits, config, &self.worker.ring));
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
                if self.pool.may_report(self.worker.now()) {
                    self.worker.report(Report::ServerTls {
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
}

/// Whether the client has said so: a gRPC server wants to hear it (RFC 9110 section 10.1.4).
fn takes_trailers(exchange: &Exchange) -> bool {
    exchange.values(FieldId::Te).any(|value| {
        value
            .split(|&byte| byte == b',')
            .any(|part| part.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    })
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
