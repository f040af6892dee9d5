//! Why an attempt on a server failed, whose fault it was, and what follows.

use std::io;

use crate::l7::config::Upstream;
use crate::l7::input::{BodyReadError, HeadReadError};

/// Why an attempt failed before there was a response.
#[derive(Debug)]
pub(super) enum Failure {
    /// No connection: refused, unreachable.
    Connect,
    /// No connection for want of something here: descriptors, ports, memory.
    Exhausted,
    /// As many connections are being opened as may be.
    Pending,
    /// `connect_timeout` passed.
    ConnectTimeout,
    /// The server does not speak TLS as it should, or is not who it should be.
    Tls,
    /// A reused connection that the server had closed meanwhile.
    Stale,
    /// The server closed or reset the connection instead of answering.
    Broken,
    /// The server refused the stream before it looked at the request.
    Unprocessed,
    /// The server took nothing or said nothing for too long.
    Timeout,
    /// What it said is no response.
    Malformed,
    /// The client reset the connection.
    ClientGone,
    /// The client's body.
    Body(BodyReadError),
    /// `client_body_timeout` passed.
    BodyTimeout,
    /// More than `client_max_body_size`.
    BodyTooLarge,
    /// A 2xx where only 101 would be one, which an HTTP/2 client would take for an open WebSocket.
    NotUpgraded,
    /// A response whose status the route wants repeated elsewhere.
    Status(u16),
}

impl Failure {
    /// The status the client gets when this was the last attempt.
    pub(super) fn status(&self) -> u16 {
        match self {
            Self::Connect
            | Self::Tls
            | Self::Stale
            | Self::Broken
            | Self::Unprocessed
            | Self::NotUpgraded
            | Self::Malformed => 502,
            Self::Exhausted | Self::Pending => 503,
            Self::ConnectTimeout | Self::Timeout => 504,
            Self::ClientGone => 499,
            Self::Body(BodyReadError::Malformed(error)) => error.status(),
            Self::Body(_) => 400,
            Self::BodyTimeout => 408,
            Self::BodyTooLarge => 413,
            Self::Status(status) => *status,
        }
    }

    pub(super) fn is_clients(&self) -> bool {
        matches!(self, Self::ClientGone | Self::Body(_) | Self::BodyTimeout | Self::BodyTooLarge)
    }

    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Connect => "cannot connect to the server",
            Self::Exhausted => "out of descriptors, ports or memory",
            Self::Pending => "breaker.max_pending",
            Self::ConnectTimeout => "connect_timeout",
            Self::Tls => "TLS handshake with the server failed",
            Self::Stale => "the server closed an idle connection",
            Self::Broken => "the server closed the connection before it answered",
            Self::Unprocessed => "the server refused the stream",
            Self::Timeout => "the server did not answer in time",
            Self::Malformed => "malformed response",
            Self::ClientGone => "client reset the connection",
            Self::Body(BodyReadError::Malformed(_)) => "malformed request body",
            Self::Body(_) => "client closed inside the request body",
            Self::BodyTimeout => "client_body_timeout",
            Self::BodyTooLarge => "client_max_body_size",
            Self::NotUpgraded => "the server answered a WebSocket handshake in plain HTTP",
            Self::Status(_) => "status to be retried",
        }
    }

    /// Whether another server may be asked: nothing was sent, or repeating is harmless and wanted.
    pub(super) fn may_retry(&self, upstream: &Upstream, repeatable: bool) -> bool {
        match self {
            // Whether the body can be sent again is for the caller to see.
            Self::Connect | Self::ConnectTimeout | Self::Tls | Self::Unprocessed => true,
            Self::Stale | Self::Broken => repeatable,
            Self::Timeout => repeatable && upstream.retry.on_timeout,
            Self::Status(_) => repeatable,
            _ => false,
        }
    }
}

impl Failure {
    /// Of a connect that failed; what ran out here is not held against the server.
    pub(super) fn of_connect(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(
                libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EADDRNOTAVAIL,
            ) => Self::Exhausted,
            _ => Self::Connect,
        }
    }

    /// Of a response head that did not come.
    pub(super) fn of_head(error: &HeadReadError, reused: bool) -> Self {
        match error {
            HeadReadError::Malformed(_) => Self::Malformed,
            HeadReadError::Unprocessed => Self::Unprocessed,
            HeadReadError::Truncated | HeadReadError::Reset => Self::Broken,
            HeadReadError::Closed | HeadReadError::Io(_) if reused => Self::Stale,
            HeadReadError::Closed | HeadReadError::Io(_) => Self::Broken,
        }
    }

    /// Of a response body that is bad from its first byte, while the client has nothing of the
    /// response yet.
    pub(super) fn of_body(error: &BodyReadError) -> Self {
        match error {
            BodyReadError::Malformed(_) => Self::Malformed,
            BodyReadError::Truncated | BodyReadError::Io(_) => Self::Broken,
        }
    }
}
