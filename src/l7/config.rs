//! What the layer-7 proxy is told to do: validated values only.
//!
//! `control::config` parses the file and builds these types; nothing here can hold a value that the
//! proxy would have to refuse at run time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use regex_automata::meta::{BuildError, Regex};

use crate::balance::{Policy, outlier};
use crate::l7::clients::Clients;
use crate::l7::template::Template;
use crate::l7::tls;
use crate::l7::tracing::Traces;

/// Everything the layer-7 service needs; immutable once built.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// Limits and timeouts towards clients.
    pub http: Http,
    /// TLS as all listeners share it.
    pub tls: tls::config::Settings,
    /// Listening addresses, in file order.
    pub listeners: Vec<Listener>,
    /// Routes in file order; `l7::router` indexes them.
    pub routes: Vec<Route>,
    /// Upstreams in name order; routes refer to them by index.
    pub upstreams: Vec<Upstream>,
    /// Limits for each client address, with what is known of addresses; `None`: there are none.
    pub clients: Option<Arc<Clients>>,
    /// Which requests are traced, and the way of their spans to the exporter; `None`: no spans are made.
    pub tracing: Option<Arc<Traces>>,
}

/// Limits and timeouts towards clients (nginx's names where the meaning is nginx's).
#[derive(Debug, Clone, PartialEq)]
pub struct Http {
    /// A whole request head must arrive within this time of its first byte.
    pub client_header_timeout: Duration,
    /// Longest silence while a request body is expected.
    pub client_body_timeout: Duration,
    /// Longest time without progress while a response is sent.
    pub send_timeout: Duration,
    /// An idle keep-alive connection is closed after this time.
    pub keepalive_timeout: Duration,
    /// A connection is closed after this many requests.
    pub keepalive_requests: u32,
    /// Both directions of a tunnel silent for this long: it is closed.
    pub tunnel_timeout: Duration,
    /// Largest request body in bytes, 0 for no limit; a route may override it.
    pub client_max_body_size: u64,
    /// Largest request or response head in bytes.
    pub max_head_size: usize,
    /// Most header fields in a head.
    pub max_headers: usize,
    /// Streams a client may have open on an HTTP/2 connection.
    pub http2_max_concurrent_streams: u32,
    /// Keep header fields whose name has an underscore.
    pub underscores_in_headers: bool,
    /// Peers whose `X-Forwarded-*` values are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// What becomes of `traceparent`.
    pub trace_context: TraceContext,
}

/// What becomes of `traceparent` and `tracestate` (W3C Trace Context).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceContext {
    /// They are passed on as any other field.
    Pass,
    /// A request with a trace goes on with a span of ours.
    Continue,
    /// And a request without one begins one.
    Start,
}

/// One listening address.
#[derive(Debug, Clone, PartialEq)]
pub struct Listener {
    /// The name routes and metrics use; the address when the file gives none.
    pub name: String,
    /// Where to listen.
    pub bind: SocketAddr,
    /// Length of the accept queue of each shard's socket.
    pub backlog: u32,
    /// Take HTTP/2: over TLS by ALPN, without it by its preface.
    pub http2: bool,
    /// Peers that must send a PROXY protocol header first; empty: nobody may.
    pub proxy_protocol_from: Vec<IpNet>,
    /// TLS; `None`: clients speak in the clear.
    pub tls: Option<tls::config::Listener>,
    /// `Strict-Transport-Security` on every response (RFC 6797).
    pub hsts: Option<Arc<str>>,
    /// Where requests are sent that no route of this very listener takes.
    pub redirect_https: Option<Redirect>,
}

/// Which requests, and what happens to them.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// Indices into [`Service::listeners`]; empty means all of them.
    pub listeners: Vec<usize>,
    /// Hosts; empty means any.
    pub hosts: Vec<HostMatch>,
    /// The path condition.
    pub path: PathMatch,
    /// Methods; empty means any.
    pub methods: Vec<String>,
    /// Header conditions, all of which must hold.
    pub headers: Vec<HeaderMatch>,
    /// What to do.
    pub action: Action,
    /// Change of the path before it is forwarded.
    pub rewrite: Option<Rewrite>,
    /// Edits on the request that goes upstream.
    pub request_headers: HeaderEdits,
    /// Edits on the response that goes to the client.
    pub response_headers: HeaderEdits,
    /// Overrides [`Http::client_max_body_size`].
    pub client_max_body_size: Option<u64>,
}

/// A host condition; names are lower case and without port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostMatch {
    /// `shop.example`
    Exact(String),
    /// `*.shop.example`, stored as `shop.example`: any name with at least one label more.
    Suffix(String),
}

/// A path condition, on the normalised path (RFC 3986 section 6.2.2; see `protocol::http1::target`).
#[derive(Debug, Clone, PartialEq)]
pub enum PathMatch {
    /// The path and nothing else.
    Exact(String),
    /// The path starts with this, byte by byte as in nginx's `location /prefix`.
    Prefix(String),
    /// The path matches (unanchored, linear time).
    Regex(Pattern),
}

/// A regular expression, compared by its text.
#[derive(Debug, Clone)]
pub struct Pattern {
    regex: Regex,
    text: String,
}

impl Pattern {
    /// Compiles it.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn new(text: &str) -> Result<Self, Box<BuildError>> {
        Ok(Self { regex: Regex::new(text).map_err(Box::new)?, text: text.to_owned() })
    }
}

impl std::ops::Deref for Pattern {
    type Target = Regex;

    fn deref(&self) -> &Regex {
        &self.regex
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

/// A condition on one header field.
#[derive(Debug, Clone, PartialEq)]
pub struct HeaderMatch {
    /// Field name in lower case.
    pub name: String,
    /// Condition on the value.
    pub value: ValueMatch,
}

/// A condition on a header value.
#[derive(Debug, Clone, PartialEq)]
pub enum ValueMatch {
    /// The field is there, whatever its value.
    Present,
    /// One of the field's lines has exactly this value.
    Exact(String),
    /// One of the field's lines matches.
    Regex(Pattern),
}

/// What a route does with a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Proxy to the upstream of this index in [`Service::upstreams`].
    Proxy(usize),
    /// Answer here.
    Respond(Respond),
    /// Send the client elsewhere.
    Redirect(Redirect),
}

/// A fixed response.
#[derive(Debug, Clone, PartialEq)]
pub struct Respond {
    /// Status code, 200 to 599.
    pub status: u16,
    /// Body bytes.
    pub body: bytes::Bytes,
    /// Value of `Content-Type`.
    pub content_type: String,
}

/// A redirect response.
#[derive(Debug, Clone, PartialEq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// Value of `Location`.
    pub to: Template,
}

/// How the path changes before it is forwarded.
#[derive(Debug, Clone, PartialEq)]
pub enum Rewrite {
    /// Remove this prefix; what is left starts with `/`.
    StripPrefix(String),
    /// Replace the first match; `$1` … `$9` are its groups.
    Regex {
        /// What to look for.
        regex: Pattern,
        /// What to put in its place.
        to: String,
    },
}

/// Header edits, applied in the order remove, set, add.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HeaderEdits {
    /// Lower-case names whose fields are removed.
    pub remove: Vec<String>,
    /// Fields that replace all of the same name.
    pub set: Vec<(String, Template)>,
    /// Fields that are added to those of the same name.
    pub add: Vec<(String, Template)>,
}

impl HeaderEdits {
    /// True when nothing is edited, which lets the hot path skip the work.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }
}

/// A named group of servers.
#[derive(Debug, Clone, PartialEq)]
pub struct Upstream {
    /// The name in `[upstream.NAME]`.
    pub name: String,
    /// How a server is chosen.
    pub balance: Policy,
    /// What [`Policy::Maglev`] hashes; the client address otherwise.
    pub hash_key: Template,
    /// Idle connections kept, over all shards.
    pub keepalive: u32,
    /// An idle connection is closed after this time.
    pub keepalive_timeout: Duration,
    /// A connection is closed after this many requests.
    pub keepalive_requests: u32,
    /// A connection is not reused when older than this.
    pub keepalive_time: Duration,
    /// Time for the TCP handshake, and that of TLS.
    pub connect_timeout: Duration,
    /// Longest time without progress while a request is sent.
    pub send_timeout: Duration,
    /// Longest silence while a response is expected.
    pub read_timeout: Duration,
    /// When to try another server.
    pub retry: Retry,
    /// Speak HTTP/2 to the servers, by prior knowledge.
    pub http2: bool,
    /// PROXY protocol header sent on every new connection (which is then used for one client only).
    pub proxy_protocol: Option<ProxyVersion>,
    /// TLS to the servers; `None`: in the clear.
    pub tls: Option<tls::config::Upstream>,
    /// Members in file order, at least one.
    pub servers: Vec<Server>,
    /// How long a server that comes back takes to get its full share; zero: it gets it at once.
    pub slow_start: Duration,
    /// With fewer usable members than this share, in percent, health checks and ejections are ignored; 0: never.
    pub panic_threshold: u32,
    /// Ejection of members that do worse than the others.
    pub outlier: Option<outlier::Settings>,
    /// Bounds beyond which requests are refused at once.
    pub breaker: Breaker,
}

/// Bounds of an upstream over all shards; 0: none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Breaker {
    /// Requests being served.
    pub max_in_flight: u32,
    /// Connections to servers being opened, each with a request waiting for it.
    pub max_pending: u32,
}

/// When a failed attempt is repeated on the next server.
#[derive(Debug, Clone, PartialEq)]
pub struct Retry {
    /// Attempts a request may make in all, at least 1.
    pub tries: u32,
    /// No new attempt once this much time has passed since the first; zero: no limit.
    pub timeout: Duration,
    /// Retries allowed in percent of requests, over a sliding window.
    pub budget_percent: u32,
    /// Repeat after an attempt that timed out waiting for the response (idempotent methods only).
    pub on_timeout: bool,
    /// Repeat on these statuses (idempotent methods only).
    pub on_status: Vec<u16>,
    /// Treat POST, LOCK and PATCH like idempotent methods.
    pub non_idempotent: bool,
}

/// PROXY protocol version to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyVersion {
    /// The text form.
    V1,
    /// The binary form.
    V2,
}

/// A member of an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Where it is.
    pub address: ServerAddress,
    /// Share of requests relative to the other members, at least 1.
    pub weight: u32,
    /// Failures within `fail_timeout` that take it out; 0: never.
    pub max_fails: u32,
    /// The window for `max_fails`, and how long it stays out.
    pub fail_timeout: Duration,
    /// Used only when no other member is available.
    pub backup: bool,
    /// Most requests in flight over all shards, 0 for no limit.
    pub max_conns: u32,
    /// Taken out by hand.
    pub down: bool,
}

/// The address of a [`Server`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ServerAddress {
    /// An address literal.
    Socket(SocketAddr),
    /// A name and port; every address it resolves to is a member, refreshed in the background.
    Name(String, u16),
}

impl std::fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

/// Format of the access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLogFormat {
    /// nginx's and Apache's `combined`, plus nothing.
    Combined,
    /// One JSON object a line.
    Json,
}
