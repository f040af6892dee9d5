//! The file as written: every key known, every value with its place, nothing judged yet.
//!
//! A value of the wrong type is kept ([`Scalar`], [`Content::Other`]) instead of ending the parse,
//! so that one run reports every problem. Only unknown keys stop serde; `unknown` mends them.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use toml::Spanned;

/// A value that should be a scalar or a list of scalars.
pub(super) type Leaf = Spanned<Scalar>;

/// A value that should be a table of `T`'s keys.
pub(super) type Node<T> = Spanned<Content<T>>;

/// A value that should be a list of tables.
pub(super) type Nodes<T> = Spanned<Content<Vec<Node<T>>>>;

/// A table with names of the user's choice as keys.
pub(super) type Named<T> = BTreeMap<Spanned<String>, T>;

/// What a TOML value is, tables without their content.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Scalar {
    Text(String),
    Integer(i128),
    Float(f64),
    Boolean(bool),
    List(Vec<Leaf>),
    Table,
}

/// What was wanted, or something else.
#[derive(Debug, Clone)]
pub(super) enum Content<T> {
    Wanted(T),
    Other(Scalar),
}

/// Declares a table: each key optional, none besides them.
macro_rules! tables {
    ($($(#[$doc:meta])* $name:ident { $($key:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(super) struct $name {
            $(pub(super) $key: Option<$type>,)*
        }

        impl $name {
            /// The keys, as the file spells them.
            pub(super) const KEYS: &[&str] = &[$(stringify!($key)),*];
        }
    )*};
}

tables! {
    /// The whole file.
    File {
        node: Node<NodeKeys>,
        log: Node<Log>,
        tls: Node<Tls>,
        tuning: Node<Tuning>,
        admin: Node<Admin>,
        http: Node<Http>,
        limits: Node<Limits>,
        tracing: Node<Tracing>,
        listener: Nodes<Listener>,
        route: Nodes<Route>,
        upstream: Node<Named<Node<Upstream>>>,
        director: Node<Director>,
        virtual_server: Nodes<VirtualServer>,
        real_server: Node<RealServerRole>,
        vrrp: Node<Named<Node<Vrrp>>>,
        vrrp_script: Node<Named<Node<VrrpScript>>>,
        vrrp_sync_group: Node<Named<Node<VrrpSyncGroup>>>,
    }
    /// `[director]`
    Director {
        cpus: Leaf,
        interfaces: Leaf,
        peers: Leaf,
        seed: Leaf,
        flows_max: Leaf,
        new_flows_per_second: Leaf,
        datapath: Leaf,
        syns_per_source: Leaf,
        tcp_timeout: Leaf,
        tcp_fin_timeout: Leaf,
        tcp_syn_timeout: Leaf,
        closed_timeout: Leaf,
        udp_timeout: Leaf,
        sctp_timeout: Leaf,
    }
    /// `[[virtual_server]]`
    VirtualServer {
        address: Leaf,
        protocol: Leaf,
        scheduler: Leaf,
        forward: Leaf,
        tunnel_type: Leaf,
        tunnel_port: Leaf,
        one_packet: Leaf,
        persistence_timeout: Leaf,
        persistence_granularity: Leaf,
        on_server_down: Leaf,
        quorum: Leaf,
        hysteresis: Leaf,
        sorry_server: Leaf,
        check: Node<Check>,
        servers: Nodes<RealServer>,
    }
    /// An element of a virtual server's `servers`
    RealServer {
        address: Leaf,
        weight: Leaf,
        uthreshold: Leaf,
        lthreshold: Leaf,
        inhibit_on_failure: Leaf,
        check_port: Leaf,
        check_address: Leaf,
    }
    /// `[real_server]`
    RealServerRole {
        addresses: Leaf,
        lease: Leaf,
    }
    /// `[vrrp.NAME]`
    Vrrp {
        interface: Leaf,
        virtual_router_id: Leaf,
        version: Leaf,
        priority: Leaf,
        advertise: Leaf,
        preempt: Leaf,
        preempt_delay: Leaf,
        state: Leaf,
        addresses: Leaf,
        addresses_excluded: Leaf,
        source_address: Leaf,
        unicast_peers: Leaf,
        unicast_min_ttl: Leaf,
        use_vmac: Leaf,
        heartbeat_interfaces: Leaf,
        auth_pass: Leaf,
        auth_hmac_keys: Leaf,
        auth_hmac_mode: Leaf,
        checksum: Leaf,
        lease: Leaf,
        nofail: Leaf,
        garp_master_repeat: Leaf,
        garp_master_delay: Leaf,
        garp_master_refresh: Leaf,
        track_interface: Leaf,
        track_script: Leaf,
        track_file: Leaf,
        track_upstream: Leaf,
        notify: Leaf,
        notify_webhook: Leaf,
        notify_webhook_ca: Leaf,
    }
    /// `[vrrp_script.NAME]`
    VrrpScript {
        script: Leaf,
        interval: Leaf,
        timeout: Leaf,
        rise: Leaf,
        fall: Leaf,
        weight: Leaf,
        user: Leaf,
    }
    /// `[vrrp_sync_group.NAME]`
    VrrpSyncGroup {
        group: Leaf,
    }
    /// `[node]`
    NodeKeys {
        shards: Leaf,
        pin: Leaf,
        steering: Leaf,
        max_connections: Leaf,
        drain_timeout: Leaf,
        receive_buffers: Leaf,
        buffer_memory: Leaf,
        busy_poll_usec: Leaf,
        resolve_interval: Leaf,
        upgrade_timeout: Leaf,
        upgrade_drain_timeout: Leaf,
        pid_file: Leaf,
        user: Leaf,
        group: Leaf,
        sandbox: Leaf,
        writable: Leaf,
        vrrp_rt_priority: Leaf,
        vrrp_lock_memory: Leaf,
        vrrp_shard_timeout: Leaf,
    }
    /// `[log]`
    Log {
        level: Leaf,
        format: Leaf,
        access: Leaf,
        access_file: Leaf,
        access_buffer: Leaf,
    }
    /// `[tls]`
    Tls {
        policy: Leaf,
        handshake_timeout: Leaf,
        session_lifetime: Leaf,
        ticket_keys: Leaf,
        reload_interval: Leaf,
    }
    /// `[tuning]`
    Tuning {
        profile: Leaf,
        set: Node<Named<Leaf>>,
        force: Leaf,
        allow: Leaf,
        require: Leaf,
        interfaces: Leaf,
        check_interval: Leaf,
        root: Leaf,
        state_dir: Leaf,
    }
    /// `[admin]`
    Admin {
        bind: Leaf,
        token_file: Leaf,
        socket: Leaf,
        socket_mode: Leaf,
        socket_owner: Leaf,
    }
    /// `[http]`
    Http {
        client_header_timeout: Leaf,
        client_body_timeout: Leaf,
        send_timeout: Leaf,
        keepalive_timeout: Leaf,
        keepalive_requests: Leaf,
        tunnel_timeout: Leaf,
        client_max_body_size: Leaf,
        max_head_size: Leaf,
        max_headers: Leaf,
        http2_max_concurrent_streams: Leaf,
        underscores_in_headers: Leaf,
        trusted_proxies: Leaf,
        trace_context: Leaf,
    }
    /// `[limits]`
    Limits {
        connections: Leaf,
        request_rate: Leaf,
        request_burst: Leaf,
        status: Leaf,
        min_upload_rate: Leaf,
        min_download_rate: Leaf,
        rate_grace: Leaf,
        exempt: Leaf,
        table_size: Leaf,
    }
    /// `[tracing]`
    Tracing {
        endpoint: Leaf,
        ca: Leaf,
        sample_ratio: Leaf,
        service_name: Leaf,
        headers: Node<Named<Leaf>>,
    }
    /// `[[listener]]`
    Listener {
        name: Leaf,
        bind: Leaf,
        backlog: Leaf,
        http2: Leaf,
        proxy_protocol_from: Leaf,
        certificates: Nodes<Certificate>,
        tls_policy: Leaf,
        hsts: Leaf,
        redirect_https: Leaf,
    }
    /// An element of `certificates`
    Certificate {
        cert: Leaf,
        key: Leaf,
        ocsp: Leaf,
        client_auth: Leaf,
        client_ca: Leaf,
    }
    /// `[[route]]`
    Route {
        listeners: Leaf,
        host: Leaf,
        path: Node<Path>,
        methods: Leaf,
        headers: Node<Named<Node<Header>>>,
        upstream: Leaf,
        respond: Node<Respond>,
        redirect: Node<Redirect>,
        strip_prefix: Leaf,
        rewrite: Node<Rewrite>,
        client_max_body_size: Leaf,
        request_headers: Node<Edits>,
        response_headers: Node<Edits>,
    }
    /// `path = { … }`
    Path {
        exact: Leaf,
        regex: Leaf,
    }
    /// `headers = { NAME = { … } }`
    Header {
        present: Leaf,
        regex: Leaf,
    }
    /// `respond = { … }`
    Respond {
        status: Leaf,
        body: Leaf,
        content_type: Leaf,
    }
    /// `redirect = { … }`
    Redirect {
        status: Leaf,
        to: Leaf,
    }
    /// `rewrite = { … }`
    Rewrite {
        regex: Leaf,
        to: Leaf,
    }
    /// `[route.request_headers]` and `[route.response_headers]`
    Edits {
        set: Node<Named<Leaf>>,
        add: Node<Named<Leaf>>,
        remove: Leaf,
    }
    /// `[upstream.NAME]`
    Upstream {
        balance: Leaf,
        hash_key: Leaf,
        keepalive: Leaf,
        keepalive_timeout: Leaf,
        keepalive_requests: Leaf,
        keepalive_time: Leaf,
        connect_timeout: Leaf,
        send_timeout: Leaf,
        read_timeout: Leaf,
        http2: Leaf,
        proxy_protocol: Leaf,
        tls: Node<UpstreamTls>,
        retry: Node<Retry>,
        servers: Nodes<Server>,
        check: Node<Check>,
        slow_start: Leaf,
        panic_threshold: Leaf,
        outlier: Node<Outlier>,
        breaker: Node<Breaker>,
    }
    /// `[upstream.NAME.check]`, and `check = { … }` of others
    Check {
        tcp: Leaf,
        http: Leaf,
        https: Leaf,
        tls: Leaf,
        udp: Leaf,
        udp_hex: Leaf,
        exec: Leaf,
        method: Leaf,
        host: Leaf,
        headers: Node<Named<Leaf>>,
        status: Leaf,
        body: Leaf,
        max_body: Leaf,
        require_reply: Leaf,
        reply: Leaf,
        user: Leaf,
        server_name: Leaf,
        verify: Leaf,
        ca: Leaf,
        interval: Leaf,
        delay_loop: Leaf,
        jitter: Leaf,
        timeout: Leaf,
        connect_timeout: Leaf,
        rise: Leaf,
        fall: Leaf,
        retry: Leaf,
        delay_before_retry: Leaf,
        warmup: Leaf,
        alpha: Leaf,
        port: Leaf,
        address: Leaf,
    }
    /// `[upstream.NAME.outlier]`
    Outlier {
        interval: Leaf,
        error_percent: Leaf,
        latency_factor: Leaf,
        min_requests: Leaf,
        ejection_time: Leaf,
        max_ejected: Leaf,
    }
    /// `breaker = { … }`
    Breaker {
        max_in_flight: Leaf,
        max_pending: Leaf,
    }
    /// `retry = { … }`
    Retry {
        tries: Leaf,
        timeout: Leaf,
        budget_percent: Leaf,
        on_timeout: Leaf,
        on_status: Leaf,
        non_idempotent: Leaf,
    }
    /// `[upstream.NAME.tls]`
    UpstreamTls {
        server_name: Leaf,
        verify: Leaf,
        ca: Leaf,
        cert: Leaf,
        key: Leaf,
        policy: Leaf,
    }
    /// An element of `servers`
    Server {
        address: Leaf,
        weight: Leaf,
        max_fails: Leaf,
        fail_timeout: Leaf,
        backup: Leaf,
        max_conns: Leaf,
        down: Leaf,
        check_port: Leaf,
        check_address: Leaf,
    }
}

/// Every table of fixed keys: how it is written, and its keys.
pub(super) const TABLES: &[(&str, &[&str])] = &[
    ("the top of the file", File::KEYS),
    ("[node]", NodeKeys::KEYS),
    ("[limits]", Limits::KEYS),
    ("[tracing]", Tracing::KEYS),
    ("[log]", Log::KEYS),
    ("[tuning]", Tuning::KEYS),
    ("[tls]", Tls::KEYS),
    ("[admin]", Admin::KEYS),
    ("[http]", Http::KEYS),
    ("[[listener]]", Listener::KEYS),
    ("certificates", Certificate::KEYS),
    ("[[route]]", Route::KEYS),
    ("path", Path::KEYS),
    ("headers", Header::KEYS),
    ("respond", Respond::KEYS),
    ("redirect", Redirect::KEYS),
    ("rewrite", Rewrite::KEYS),
    ("[route.request_headers]", Edits::KEYS),
    ("[upstream.NAME]", Upstream::KEYS),
    ("[upstream.NAME.tls]", UpstreamTls::KEYS),
    ("retry", Retry::KEYS),
    ("servers", Server::KEYS),
    ("[director]", Director::KEYS),
    ("[[virtual_server]]", VirtualServer::KEYS),
    ("servers of a virtual server", RealServer::KEYS),
    ("[real_server]", RealServerRole::KEYS),
    ("check", Check::KEYS),
    ("[upstream.NAME.outlier]", Outlier::KEYS),
    ("breaker", Breaker::KEYS),
    ("[vrrp.NAME]", Vrrp::KEYS),
    ("[vrrp_script.NAME]", VrrpScript::KEYS),
    ("[vrrp_sync_group.NAME]", VrrpSyncGroup::KEYS),
];

/// Visits whatever stands there; `T` gets the tables or lists it wants.
struct Any<T>(PhantomData<T>);

/// The visits that every kind of value shares; `$wrap` makes the visitor's value of a [`Scalar`].
macro_rules! visit_scalars {
    ($wrap:expr) => {
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a value")
        }

        fn visit_bool<E>(self, v: bool) -> Result<Self::Value, E> {
            Ok($wrap(Scalar::Boolean(v)))
        }

        fn visit_i64<E>(self, v: i64) -> Result<Self::Value, E> {
            Ok($wrap(Scalar::Integer(v.into())))
        }

        fn visit_u64<E>(self, v: u64) -> Result<Self::Value, E> {
            Ok($wrap(Scalar::Integer(v.into())))
        }

        fn visit_i128<E>(self, v: i128) -> Result<Self::Value, E> {
            Ok($wrap(Scalar::Integer(v)))
        }

        fn visit_u128<E>(self, v: u128) -> Result<Self::Value, E> {
            Ok($wrap(Scalar::Integer(i128::try_from(v).unwrap_or(i128::MAX))))
        }

        fn visit_f64<E>(self, v: f64) -> Result<Self::Value, E> {
            Ok($wrap(Scalar::Float(v)))
        }

        fn visit_str<E>(self, v: &str) -> Result<Self::Value, E> {
            Ok($wrap(Scalar::Text(v.to_owned())))
        }

        fn visit_string<E>(self, v: String) -> Result<Self::Value, E> {
            Ok($wrap(Scalar::Text(v)))
        }
    };
}

fn list<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(mut seq: A) -> Result<Vec<T>, A::Error> {
    let mut list = Vec::new();
    while let Some(item) = seq.next_element()? {
        list.push(item);
    }
    Ok(list)
}

fn skip<'de, A: MapAccess<'de>>(mut map: A) -> Result<Scalar, A::Error> {
    while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
    Ok(Scalar::Table)
}

impl<'de> Visitor<'de> for Any<Scalar> {
    type Value = Scalar;

    visit_scalars!(std::convert::identity);

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Scalar, A::Error> {
        list(seq).map(Scalar::List)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Scalar, A::Error> {
        skip(map)
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any::<Self>(PhantomData))
    }
}

/// Which of TOML's two containers a type is read from.
pub(super) trait Wanted<'de>: Deserialize<'de> {
    /// A list when true, else a table.
    const LIST: bool = false;
}

macro_rules! wanted {
    ($($name:ident)*) => {$(impl Wanted<'_> for $name {})*};
}

wanted!(NodeKeys Log Tuning Admin Http Listener Route Path Header Respond Redirect);
wanted!(Rewrite Edits Upstream Retry Server Tls Certificate UpstreamTls);
wanted!(Vrrp VrrpScript VrrpSyncGroup);
wanted!(Director VirtualServer RealServer RealServerRole);
wanted!(Check Outlier Breaker Limits Tracing);

impl<'de, T: Deserialize<'de>> Wanted<'de> for Named<T> {}

impl<'de, T: Deserialize<'de>> Wanted<'de> for Vec<T> {
    const LIST: bool = true;
}

impl<'de, T: Wanted<'de>> Visitor<'de> for Any<Content<T>> {
    type Value = Content<T>;

    visit_scalars!(Content::Other);

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Content<T>, A::Error> {
        if T::LIST {
            let deserializer = serde::de::value::SeqAccessDeserializer::new(seq);
            return T::deserialize(deserializer).map(Content::Wanted);
        }
        list(seq).map(|list| Content::Other(Scalar::List(list)))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Content<T>, A::Error> {
        if T::LIST {
            return skip(map).map(Content::Other);
        }
        T::deserialize(MapAccessDeserializer::new(map)).map(Content::Wanted)
    }
}

impl<'de, T: Wanted<'de>> Deserialize<'de> for Content<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any::<Self>(PhantomData))
    }
}
