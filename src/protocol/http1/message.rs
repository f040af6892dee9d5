//! Methods and versions.

/// A request method (RFC 9110 section 9, RFC 5789, RFC 4918); names are case-sensitive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Method {
    /// `GET`
    #[default]
    Get,
    /// `HEAD`
    Head,
    /// `POST`
    Post,
    /// `PUT`
    Put,
    /// `DELETE`
    Delete,
    /// `OPTIONS`
    Options,
    /// `PATCH`
    Patch,
    /// `TRACE`
    Trace,
    /// `CONNECT`
    Connect,
    /// `LOCK`
    Lock,
    /// Any other token.
    Other,
}

impl Method {
    /// The method of this name.
    pub fn of(name: &[u8]) -> Self {
        match name {
            b"GET" => Self::Get,
            b"HEAD" => Self::Head,
            b"POST" => Self::Post,
            b"PUT" => Self::Put,
            b"DELETE" => Self::Delete,
            b"OPTIONS" => Self::Options,
            b"PATCH" => Self::Patch,
            b"TRACE" => Self::Trace,
            b"CONNECT" => Self::Connect,
            b"LOCK" => Self::Lock,
            _ => Self::Other,
        }
    }

    /// Whether sending it twice is meant to do the same as once (RFC 9110 section 9.2.2), so that it
    /// may be retried. False for methods not known.
    pub const fn is_idempotent(self) -> bool {
        self.is_safe() || matches!(self, Self::Put | Self::Delete)
    }

    /// Whether it asks for nothing to change (RFC 9110 section 9.2.1).
    pub const fn is_safe(self) -> bool {
        matches!(self, Self::Get | Self::Head | Self::Options | Self::Trace)
    }
}

/// A version this codec speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Version {
    /// HTTP/1.0 (RFC 1945)
    Http10,
    /// HTTP/1.1 (RFC 9112)
    #[default]
    Http11,
}

impl Version {
    /// From httparse's minor version.
    pub(super) fn from_minor(minor: Option<u8>) -> Option<Self> {
        match minor {
            Some(0) => Some(Self::Http10),
            Some(1) => Some(Self::Http11),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods() {
        let table = [
            (&b"GET"[..], Method::Get, true),
            (b"HEAD", Method::Head, true),
            (b"PUT", Method::Put, true),
            (b"DELETE", Method::Delete, true),
            (b"OPTIONS", Method::Options, true),
            (b"TRACE", Method::Trace, true),
            (b"POST", Method::Post, false),
            (b"PATCH", Method::Patch, false),
            (b"CONNECT", Method::Connect, false),
            (b"LOCK", Method::Lock, false),
            (b"get", Method::Other, false),
            (b"PROPFIND", Method::Other, false),
        ];
        for (name, method, idempotent) in table {
            assert_eq!(Method::of(name), method);
            assert_eq!(method.is_idempotent(), idempotent, "{method:?}");
        }
    }
}
