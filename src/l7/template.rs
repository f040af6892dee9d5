//! Header values with variables, in nginx's notation: `$host`, `${host}`, `$$`.

/// A value that may refer to the request: compiled once, rendered without allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    Variable(Variable),
}

/// What a template may refer to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Variable {
    /// `$remote_addr`: the client's address, after PROXY protocol and `trusted_proxies`.
    RemoteAddr,
    /// `$remote_port`
    RemotePort,
    /// `$host`: the request's host in lower case, without port.
    Host,
    /// `$http_host`: the `Host` field as it came.
    HttpHost,
    /// `$scheme`: `http` or `https`.
    Scheme,
    /// `$request_id`: 32 hexadecimal digits, or the trusted peer's own.
    RequestId,
    /// `$request_method`
    RequestMethod,
    /// `$request_uri`: normalised path and query.
    RequestUri,
    /// `$uri`: normalised path.
    Uri,
    /// `$query_string`: the query without `?`, empty when there is none.
    QueryString,
    /// `$server_addr`: the address the client connected to.
    ServerAddr,
    /// `$server_port`
    ServerPort,
    /// `$upstream_addr`: the server that was tried last; empty before the first.
    UpstreamAddr,
    /// `$http_NAME`: the first value of a request header field; lower case, `-` for `_`.
    Header(String),
}
