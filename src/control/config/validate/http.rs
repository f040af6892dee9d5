//! `[http]`: limits and timeouts towards clients.

use std::time::Duration;

use super::address;
use crate::control::config::place::{BYTES_MAX, Place};
use crate::control::config::raw;
use crate::l7::config::{Http, TraceContext};

const TRACE_CONTEXTS: [(&str, TraceContext); 3] = [
    ("pass", TraceContext::Pass),
    ("continue", TraceContext::Continue),
    ("start", TraceContext::Start),
];
/// Bounds of `max_head_size` in bytes.
const HEAD_SIZES: std::ops::RangeInclusive<u64> = 1024..=65_535;

pub(super) fn http(root: &Place<'_>, file: &raw::File) -> Http {
    let empty = raw::Http::default();
    let table = root.table("http", file.http.as_ref(), "write a table, `[http]`");
    let (place, raw) = table.unwrap_or_else(|| (root.child("http", 0..0), &empty));
    let time = |key, leaf, seconds| place.duration(key, leaf, Duration::from_secs(seconds));
    let max_head_size = place.size("max_head_size", &raw.max_head_size, HEAD_SIZES, 32 << 10);
    Http {
        client_header_timeout: time("client_header_timeout", &raw.client_header_timeout, 15),
        client_body_timeout: time("client_body_timeout", &raw.client_body_timeout, 60),
        send_timeout: time("send_timeout", &raw.send_timeout, 60),
        keepalive_timeout: time("keepalive_timeout", &raw.keepalive_timeout, 75),
        keepalive_requests: place.integer(
            "keepalive_requests",
            &raw.keepalive_requests,
            1..=u32::MAX,
            10_000,
        ),
        tunnel_timeout: time("tunnel_timeout", &raw.tunnel_timeout, 3600),
        client_max_body_size: place.size(
            "client_max_body_size",
            &raw.client_max_body_size,
            0..=BYTES_MAX,
            1 << 20,
        ),
        max_head_size: usize::try_from(max_head_size).unwrap_or(usize::MAX),
        max_headers: place.integer("max_headers", &raw.max_headers, 1..=256, 100),
        http2_max_concurrent_streams: place.integer(
            "http2_max_concurrent_streams",
            &raw.http2_max_concurrent_streams,
            1..=1000,
            128,
        ),
        underscores_in_headers: place.boolean(
            "underscores_in_headers",
            &raw.underscores_in_headers,
            false,
        ),
        trusted_proxies: address::nets(&place, "trusted_proxies", &raw.trusted_proxies),
        trace_context: place.choice(
            "trace_context",
            &raw.trace_context,
            &TRACE_CONTEXTS,
            TraceContext::Pass,
        ),
    }
}

#[cfg(test)]
mod tests {
    use crate::control::config::tests::{bad, good};

    #[test]
    fn problems() {
        for key in [
            "client_header_timeout",
            "client_body_timeout",
            "send_timeout",
            "keepalive_timeout",
            "tunnel_timeout",
        ] {
            let at = format!("2:{}", key.len() + 4);
            let says = format!("`http.{key}` is \"0ms\": write a time above zero");
            bad(&[(format!("[http]\n{key} = \"0ms\""), at.as_str(), says.as_str())]);
        }
        bad(&[
            ("send_timeout = 60", "2:16", "write \"60s\" for seconds"),
            ("keepalive_requests = 0", "2:22", "`http.keepalive_requests` is 0: write a whole number from 1 to 4294967295"),
            ("client_max_body_size = \"1 MB\"", "2:24", r#"write bytes or a size like "16k""#),
            ("max_head_size = \"64k\"", "2:17", "`http.max_head_size` is \"64k\": write a size from \"1k\" to 65535"),
            ("max_head_size = 1023", "2:17", "write a size from \"1k\" to 65535"),
            ("max_headers = 0", "2:15", "`http.max_headers` is 0: write a whole number from 1 to 256"),
            ("max_headers = 257", "2:15", "write a whole number from 1 to 256"),
            ("underscores_in_headers = \"on\"", "2:26", "write true or false"),
            ("trusted_proxies = \"10.0.0.0/8\"", "2:19", "`http.trusted_proxies` is \"10.0.0.0/8\": write a list"),
            ("trusted_proxies = [\"::1\", 5]", "2:27", "`http.trusted_proxies[1]` is 5: write a list of networks"),
            ("trusted_proxies = [\"10.0.0.1/8\"]", "2:20", "beyond the prefix length: write \"10.0.0.0/8\" for the network or \"10.0.0.1\" for"),
            ("trusted_proxies = [\"10.0.0.0/33\"]", "2:20", "`http.trusted_proxies[0]` is \"10.0.0.0/33\": write a network like"),
            ("trusted_proxies = [\"proxy.example\"]", "2:20", "or an address like \"10.0.0.1\""),
        ].map(|(line, at, says)| (format!("[http]\n{line}"), at, says)));
    }

    #[test]
    fn values() {
        let http = good(
            "[http]\nclient_max_body_size = 0\nmax_head_size = \"1k\"\nmax_headers = 256\n\
             trusted_proxies = [\"10.0.0.0/8\", \"10.0.0.1\", \"::1\"]\nunderscores_in_headers = true",
        )
        .service
        .http;
        assert_eq!((http.client_max_body_size, http.max_head_size), (0, 1024));
        assert_eq!((http.max_headers, http.underscores_in_headers), (256, true));
        let nets: Vec<String> = http.trusted_proxies.iter().map(ToString::to_string).collect();
        assert_eq!(nets, ["10.0.0.0/8", "10.0.0.1/32", "::1/128"]);
    }
}
