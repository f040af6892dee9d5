//! One request and its response: the parsed heads, the client's identity and how it went.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use crate::l7::channel::Channel;
use crate::l7::config::{HeaderEdits, Route, TraceContext};
use crate::l7::forwarded::{self, Identity};
use crate::l7::pool::Pool;
use crate::l7::router;
use crate::l7::template::{Values, Variable};
use crate::l7::tls::Info;
use crate::l7::tracing::Traces;
use crate::protocol::http1::{
    Field, FieldId, Limits, RequestError, RequestHead, ResponseHead, Span, Target, TargetError,
    encode, normalise_host,
};
use crate::protocol::trace_context::{Parent, SAMPLED, SPAN_LEN, identifier};
use crate::ring::timer::Millis;

/// Where a connection comes from and arrived.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// The client's end: the TCP peer, or what its PROXY protocol header says.
    pub peer: SocketAddr,
    /// Our end, likewise.
    pub local: SocketAddr,
}

/// Bytes of a buffer that is kept for the next request.
const KEPT_MAX: usize = 16 * 1024;

/// A response's head; recycled. It is needed from its arrival until it has been passed on, so the next one finds it still in
/// the cache.
#[derive(Debug, Default)]
pub struct Answer {
    /// As received.
    pub bytes: Vec<u8>,
    /// What it says.
    pub head: ResponseHead,
}

impl Answer {
    /// Makes it as good as new.
    pub fn clear(&mut self) {
        empty(&mut self.bytes);
    }
}

/// Keeps the memory unless it is a lot.
fn empty(bytes: &mut Vec<u8>) {
    bytes.clear();
    if bytes.capacity() > KEPT_MAX {
        *bytes = Vec::new();
    }
}

/// Everything about one request; recycled, so that a request allocates nothing.
#[derive(Debug, Default)]
pub struct Exchange {
    /// The request head as received.
    pub head: Vec<u8>,
    /// What it says.
    pub request: RequestHead,
    target: Target,
    /// Its host in lower case, where that is not what was received.
    host: Vec<u8>,
    /// The request id if the client brings none.
    id: [u8; 32],
    /// How it went.
    pub outcome: Outcome,
    /// What the connection's TLS handshake agreed on; `None` without TLS.
    pub tls: Option<Rc<Info>>,
    /// `Strict-Transport-Security` to send.
    pub hsts: Option<Arc<str>>,
    /// The trace it belongs to, when spans of ours are in it.
    pub trace: Option<Trace>,
    /// Where its span goes, if it is sampled.
    pub sampled: Option<Arc<Traces>>,
    /// The upstream that it was proxied to, if it was.
    pub pool: Option<Rc<Pool>>,
    identity: Option<Identity>,
}

/// Our part in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace {
    /// What goes upstream: the trace, and our span in it.
    pub own: Parent,
    /// The client brought the trace, and what it says in `tracestate` counts.
    pub continued: bool,
    /// The client's span then.
    pub parent: Option<[u8; SPAN_LEN]>,
}

/// How an exchange went, for the log and the metrics.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outcome {
    /// When the first byte came.
    pub started: Millis,
    /// Status sent; 0 when none was, 499 when the client left.
    pub status: u16,
    /// Bytes of the response head.
    pub head_bytes: u64,
    /// Body bytes sent.
    pub body_bytes: u64,
    /// The server tried last.
    pub server: Option<SocketAddr>,
    /// When the first attempt began.
    pub upstream_started: Option<Millis>,
    /// When the last attempt ended.
    pub upstream_ended: Option<Millis>,
    /// Status of the last server's response.
    pub upstream_status: Option<u16>,
    /// Attempts made.
    pub tries: u32,
    /// What went wrong, in a few words.
    pub error: Option<&'static str>,
}

/// Why a request cannot be served at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Its head.
    Head(RequestError),
    /// Its target.
    Target(TargetError),
}

impl Refusal {
    /// The status it is answered with.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::Head(error) => error.status(),
            Self::Target(error) => error.status(),
        }
    }
}

impl Exchange {
    /// Makes it as good as new, keeping the memory unless a request needed a lot.
    pub fn clear(&mut self) {
        empty(&mut self.head);
        self.host.clear();
        (self.outcome, self.identity) = (Outcome::default(), None);
        (self.tls, self.hsts, self.pool, self.trace) = (None, None, None, None);
        self.sampled = None;
        // A refusal may have to be written before the next head is parsed.
        self.request.clear();
    }

    /// Understands the received head.
    ///
    /// # Errors
    /// Why it is refused; the connection cannot go on after that.
    pub fn parse(&mut self, limits: &Limits) -> Result<(), Refusal> {
        self.request.parse(&self.head, limits).map_err(Refusal::Head)?;
        let raw = self.request.target.of(&self.head);
        self.target.parse(self.request.method, raw).map_err(Refusal::Target)?;
        if let Some(authority) = self.target.authority(raw) {
            let error = |error| Refusal::Head(RequestError::Host(error));
            return normalise_host(authority, &mut self.host).map_err(error);
        }
        let name = self.request.host_name.of(&self.head);
        if name.iter().any(u8::is_ascii_uppercase) {
            self.host.extend(name.iter().map(u8::to_ascii_lowercase));
        }
        Ok(())
    }

    fn raw_target(&self) -> &[u8] {
        self.request.target.of(&self.head)
    }

    /// The normalised path of the target; `*` for the asterisk form.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        self.target.path(self.raw_target())
    }

    /// The query of the target without its `?`; empty and absent differ.
    #[must_use]
    pub fn query(&self) -> Option<&[u8]> {
        self.target.query(self.raw_target())
    }

    /// The target to forward, in origin form (or asterisk form).
    #[must_use]
    pub fn path_and_query(&self) -> &[u8] {
        self.target.path_and_query(self.raw_target())
    }

    /// `*`: the request is about the server as a whole.
    #[must_use]
    pub fn is_asterisk(&self) -> bool {
        self.target.is_asterisk(self.raw_target())
    }

    /// The request line, if it is to the byte what goes to a server that is sent the same target.
    #[must_use]
    pub fn plain_line(&self) -> Option<Span> {
        let line = self.request.plain_line(&self.head)?;
        self.target.is_as_received(self.raw_target()).then_some(line)
    }

    /// The host, normalised; empty when there is none.
    #[must_use]
    pub fn host(&self) -> &[u8] {
        if self.host.is_empty() { self.request.host_name.of(&self.head) } else { &self.host }
    }

    /// `Host` as received, unless an absolute target overrides it.
    fn own_host(&self) -> Option<&[u8]> {
        match self.target.authority(self.raw_target()) {
            Some(_) => None,
            None => self.request.host.map(|host| host.of(&self.head)),
        }
    }

    /// Whether the `Host` to forward is the field that was received.
    #[must_use]
    pub fn has_own_host(&self) -> bool {
        self.own_host().is_some()
    }

    /// `Host` to forward: as received, or the authority of an absolute target. Where there is neither, it is the upstream's
    /// name, as nginx's `$proxy_host`: HTTP/1.0 may do without, HTTP/1.1 servers refuse that.
    #[must_use]
    pub fn http_host(&self) -> &[u8] {
        let host = self.own_host().or_else(|| self.target.authority(self.raw_target()));
        host.unwrap_or_else(|| self.pool.as_ref().map_or(b"", |pool| pool.name().as_bytes()))
    }

    /// The request id; empty before [`Exchange::identify`].
    #[must_use]
    pub fn id(&self) -> &[u8] {
        if self.is_identified() { self.claims().request_id.unwrap_or(&self.id) } else { b"" }
    }

    /// The id that it has here, which goes upstream unless a trusted client brought one.
    #[must_use]
    pub fn own_id(&self) -> &[u8; 32] {
        &self.id
    }

    /// Whether its head has been understood, and the client is known.
    #[must_use]
    pub fn is_identified(&self) -> bool {
        self.identity.is_some()
    }

    /// Finds out who the client is.
    pub fn identify(&mut self, addresses: &Addresses, trusted: &[ipnet::IpNet], id: [u8; 32]) {
        let identity =
            forwarded::identify(addresses.peer.ip(), trusted, self.values(FieldId::XForwardedFor));
        (self.identity, self.id) = (Some(identity), id);
    }

    /// Takes part in the client's trace, or begins one; `ids` makes fresh identifiers. Whoever began the trace has
    /// decided whether it is sampled.
    pub fn follow_trace(
        &mut self,
        how: TraceContext,
        traces: Option<&Arc<Traces>>,
        ids: impl Fn() -> [u8; 32],
    ) {
        let received = self.received_trace();
        if how == TraceContext::Pass || received.is_none() && how == TraceContext::Continue {
            return;
        }
        let mut span = [b'0'; SPAN_LEN];
        span.iter_mut().zip(ids()).for_each(|(to, from)| *to = from);
        let trace = received.map_or_else(|| identifier(ids()), |received| received.trace);
        let begun = || traces.is_some_and(|traces| traces.samples(&trace));
        let flags = received.map_or_else(|| u8::from(begun()) * SAMPLED, |received| received.flags);
        let own = Parent { trace, span: identifier(span), flags };
        let parent = received.map(|received| received.span);
        self.trace = Some(Trace { own, continued: received.is_some(), parent });
        self.sampled = traces.filter(|_| flags & SAMPLED != 0).cloned();
    }

    /// The trace that the client says it belongs to, once and well.
    #[must_use]
    pub fn received_trace(&self) -> Option<Parent> {
        let named = |field: &&Field| {
            let name = field.name.of(&self.head);
            name.len() == 11 && name.eq_ignore_ascii_case(b"traceparent")
        };
        let mut values = self.request.fields.iter().filter(named);
        let first = values.next()?;
        if values.next().is_some() { None } else { Parent::parse(first.value.of(&self.head)) }
    }

    /// The client's identity; a placeholder before [`Exchange::identify`].
    #[must_use]
    pub fn identity(&self) -> Identity {
        let nobody = Identity { client: IpAddr::V4(Ipv4Addr::UNSPECIFIED), trusted_peer: false };
        self.identity.unwrap_or(nobody)
    }

    /// What the peer says about the request and is believed: nothing unless it is trusted, and each
    /// only when it is valid and said exactly once.
    #[must_use]
    pub fn claims(&self) -> forwarded::Claims<'_> {
        let identity = self.identity();
        if !identity.trusted_peer {
            return forwarded::Claims::default();
        }
        let once = |id| {
            let mut values = self.values(id);
            let first = values.next();
            if values.next().is_some() { None } else { first }
        };
        let claims = forwarded::Claims {
            proto: once(FieldId::XForwardedProto),
            host: once(FieldId::XForwardedHost),
            request_id: once(FieldId::XRequestId),
        };
        claims.believed(&identity)
    }

    /// `https` if it came through TLS, else `http`.
    #[must_use]
    pub fn scheme(&self) -> &'static [u8] {
        if self.tls.is_some() { b"https" } else { b"http" }
    }

    /// The values of the request's fields of this kind.
    pub fn values(&self, id: FieldId) -> impl DoubleEndedIterator<Item = &[u8]> + Clone {
        let of = move |field: &&Field| field.id == id;
        self.request.fields.iter().filter(of).map(|field| field.value.of(&self.head))
    }
}

impl router::Request for Exchange {
    fn host(&self) -> &[u8] {
        self.host()
    }

    fn path(&self) -> &[u8] {
        self.path()
    }

    fn method(&self) -> &[u8] {
        self.request.method_span.of(&self.head)
    }

    fn header_matches(&self, name: &str, test: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        let named =
            |field: &&Field| field.name.of(&self.head).eq_ignore_ascii_case(name.as_bytes());
        let mut fields = self.request.fields.iter().filter(named);
        fields.any(|field| test(field.value.of(&self.head)))
    }
}

/// The values of variables while a request is served.
#[derive(Debug)]
pub struct Context<'a> {
    /// The request.
    pub exchange: &'a Exchange,
    /// Its connection.
    pub addresses: &'a Addresses,
}

impl Values for Context<'_> {
    fn append(&self, variable: &Variable, out: &mut Vec<u8>) {
        let x = self.exchange;
        match variable {
            Variable::RemoteAddr => forwarded::write_ip(out, x.identity().client),
            Variable::RemotePort => {
                encode::push_decimal(out, u64::from(self.addresses.peer.port()));
            }
            Variable::Host => out.extend_from_slice(x.host()),
            Variable::HttpHost => out.extend_from_slice(x.http_host()),
            Variable::Scheme => out.extend_from_slice(x.scheme()),
            Variable::RequestId => out.extend_from_slice(x.id()),
            Variable::RequestMethod => out.extend_from_slice(x.request.method_span.of(&x.head)),
            Variable::RequestUri => out.extend_from_slice(x.path_and_query()),
            Variable::Uri => out.extend_from_slice(x.path()),
            Variable::QueryString => out.extend_from_slice(x.query().unwrap_or_default()),
            Variable::ServerAddr => forwarded::write_ip(out, self.addresses.local.ip()),
            Variable::ServerPort => {
                encode::push_decimal(out, u64::from(self.addresses.local.port()));
            }
            Variable::UpstreamAddr => {
                if let Some(server) = x.outcome.server {
                    forwarded::write_ip(out, server.ip());
                    out.push(b':');
                    encode::push_decimal(out, u64::from(server.port()));
                }
            }
            Variable::SslProtocol
            | Variable::SslCipher
            | Variable::SslServerName
            | Variable::SslSessionReused
            | Variable::SslClientSubject => {
                if let Some(tls) = &x.tls {
                    out.extend_from_slice(tls_value(tls, variable).as_bytes());
                }
            }
            Variable::Header(name) => {
                if let Some(value) = x.request.header(&x.head, name) {
                    out.extend_from_slice(value);
                }
            }
        }
    }
}

fn tls_value<'a>(tls: &'a Info, variable: &Variable) -> &'a str {
    match variable {
        Variable::SslProtocol => tls.protocol(),
        Variable::SslCipher => tls.cipher,
        Variable::SslServerName => tls.server_name.as_deref().unwrap_or_default(),
        Variable::SslSessionReused if tls.resumed => "r",
        Variable::SslSessionReused => ".",
        Variable::SslClientSubject => &tls.client_subject,
        _ => "",
    }
}

/// Whether the request is an extended CONNECT (RFC 8441), which every 2xx accepts: it must not get the
/// one of an ordinary response.
#[must_use]
pub fn is_extended_connect(client: &Channel, exchange: &Exchange) -> bool {
    exchange.request.upgrade_websocket && client.http2().is_some()
}

/// The edits a route makes on responses, none without a route.
#[must_use]
pub fn response_edits(route: Option<&Route>) -> &HeaderEdits {
    static NONE: HeaderEdits = HeaderEdits { remove: Vec::new(), set: Vec::new(), add: Vec::new() };
    route.map_or(&NONE, |route| &route.response_headers)
}
