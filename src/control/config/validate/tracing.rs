//! `[tracing]`: export of traces by OTLP over HTTP.

use std::sync::Arc;

use super::{address, headers, tls};
use crate::control::config::error::quoted;
use crate::control::config::place::Place;
use crate::control::config::raw::{self, Scalar};
use crate::l7::config::{Http, ServerAddress, TraceContext};
use crate::l7::tls::config::{File, Policy, Upstream};
use crate::l7::tracing::{Settings, Traces, threshold};

const ENDPOINT: &str =
    r#"write the collector's OTLP/HTTP endpoint, like "http://127.0.0.1:4318/v1/traces""#;
/// Where collectors take traces unless told otherwise.
const PATH: &str = "/v1/traces";
/// Fields that the export's requests have anyway.
const OWN: [&str; 6] =
    ["host", "connection", "content-type", "content-length", "transfer-encoding", "user-agent"];

pub(super) fn tracing(root: &Place<'_>, file: &raw::File, http: &mut Http) -> Option<Arc<Traces>> {
    let table = root.table("tracing", file.tracing.as_ref(), "write a table, `[tracing]`");
    let (place, raw) = table?;
    // Spans need a trace to stand in.
    if http.trace_context == TraceContext::Pass {
        http.trace_context = TraceContext::Start;
    }
    let endpoint = place.text("endpoint", &raw.endpoint, ENDPOINT);
    let service_name = place.text("service_name", &raw.service_name, "write a name").map(|name| {
        let (place, name) = name.ok()?;
        if name.is_empty() || name.len() > 256 {
            place.problem(format_args!("is {}: write a name of up to 256 bytes", quoted(name)));
        }
        Some(name.to_owned())
    });
    let threshold = threshold(ratio(&place, raw));
    let headers = fields(&place, raw);
    let Some(endpoint) = endpoint else {
        place.missing("endpoint", ENDPOINT);
        return None;
    };
    let (at, text) = endpoint.ok()?;
    let (server, path, secured) = split(&at, text)?;
    let ca = tls::path(&place, "ca", &raw.ca);
    if let (Some(ca), false) = (&ca, secured) {
        let why = "is for a collector asked by https: remove it, or write \"https://\"";
        place.child("ca", ca.span.clone()).problem(why);
        return None;
    }
    let authority = server.to_string();
    let service_name = service_name.unwrap_or_else(|| Some("ringgate".to_owned()))?;
    let tls = secured.then(|| Upstream {
        key: File { path: ".".into(), key: at.path().to_owned(), span: at.span() },
        server_name: Some(match server {
            ServerAddress::Socket(address) => address.ip().to_string(),
            ServerAddress::Name(name, _) => name,
        }),
        ca,
        certificate: None,
        verify: true,
        policy: Policy::Intermediate,
    });
    let settings = Settings { authority, tls, path, headers: headers?, service_name, threshold };
    Some(Arc::new(Traces::new(settings, Arc::default())))
}

fn ratio(place: &Place<'_>, raw: &raw::Tracing) -> f64 {
    let Some((place, scalar)) = place.leaf("sample_ratio", &raw.sample_ratio) else { return 1.0 };
    match scalar {
        Scalar::Float(ratio) if (0.0..=1.0).contains(ratio) => *ratio,
        Scalar::Integer(0) => 0.0,
        Scalar::Integer(1) => 1.0,
        other => {
            place.wrong(other, "write a share from 0.0 to 1.0, like 0.01");
            0.0
        }
    }
}

fn fields(place: &Place<'_>, raw: &raw::Tracing) -> Option<Vec<(String, String)>> {
    let Some(node) = &raw.headers else { return Some(Vec::new()) };
    let write = r#"write a table like { Authorization = "Bearer x" }"#;
    let (place, named) = place.wanted("headers", node, write).ok()?;
    let mut fields = Vec::new();
    for (name, leaf) in named {
        let known = headers::name(&place, name).ok()?;
        let field = place.child(name.get_ref(), leaf.span());
        let Scalar::Text(value) = leaf.get_ref() else {
            field.wrong(leaf.get_ref(), "write text");
            return None;
        };
        headers::check_value(&field, value).ok()?;
        if OWN.contains(&known.as_str()) {
            field.problem("is set by the export itself: remove it");
            return None;
        }
        fields.push((name.get_ref().clone(), value.clone()));
    }
    Some(fields)
}

/// The collector, the path, and whether TLS is spoken.
fn split(place: &Place<'_>, text: &str) -> Option<(ServerAddress, String, bool)> {
    let (secured, rest) = match text.split_once("://") {
        Some(("http", rest)) => (false, rest),
        Some(("https", rest)) => (true, rest),
        _ => {
            place.problem(format_args!("is {}: {ENDPOINT}", quoted(text)));
            return None;
        }
    };
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let server = address::server(place, authority).ok()?;
    if !path.bytes().all(|byte| byte.is_ascii_graphic()) {
        place.problem(format_args!("is {}: write a path of visible ASCII", quoted(text)));
        return None;
    }
    let path = if path.len() > 1 { path } else { PATH };
    Some((server, path.to_owned(), secured))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::tests::{bad, good};

    #[test]
    fn problems() {
        bad(&[
            ("", "1:1", "`tracing.endpoint` is missing: write the collector's"),
            ("endpoint = 4318", "2:12", "`tracing.endpoint` is 4318: write the collector's"),
            ("endpoint = \"127.0.0.1:4318\"", "2:12", "write the collector's OTLP/HTTP endpoint"),
            ("endpoint = \"grpc://otel:4317\"", "2:12", "write the collector's OTLP/HTTP endpoint"),
            ("endpoint = \"https://otel\"", "2:12", "write for example \"otel:8080\""),
            (
                "endpoint = \"http://otel:1\"\nca = \"ca.pem\"",
                "3:6",
                "`tracing.ca` is for a collector asked by https: remove it",
            ),
            ("endpoint = \"https://otel:1\"\nca = \"\"", "3:6", "write a path"),
            (
                "endpoint = \"http://otel\"",
                "2:12",
                "the port is missing: write for example \"otel:8080\"",
            ),
            ("endpoint = \"http://otel:1/a b\"", "2:12", "write a path of visible ASCII"),
            (
                "endpoint = \"http://o:1\"\nsample_ratio = 1.5",
                "3:16",
                "`tracing.sample_ratio` is 1.5: write a share from 0.0 to 1.0",
            ),
            ("endpoint = \"http://o:1\"\nsample_ratio = 10", "3:16", "write a share"),
            (
                "endpoint = \"http://o:1\"\nservice_name = \"\"",
                "3:16",
                "write a name of up to 256 bytes",
            ),
            (
                "endpoint = \"http://o:1\"\nheaders = { Host = \"x\" }",
                "3:20",
                "is set by the export itself",
            ),
            (
                "endpoint = \"http://o:1\"\nheaders = { \"a b\" = \"x\" }",
                "3:13",
                "names no header field",
            ),
            ("endpoint = \"http://o:1\"\nheaders = { A = 1 }", "3:17", "write text"),
        ]
        .map(|(line, at, says)| (format!("[tracing]\n{line}"), at, says)));
    }

    #[test]
    fn values() {
        assert!(good("").service.tracing.is_none());
        let service = good("[tracing]\nendpoint = \"http://127.0.0.1:4318\"").service;
        assert_eq!(service.http.trace_context, TraceContext::Start);
        let settings = service.tracing.expect("configured").settings.clone();
        assert_eq!((settings.authority.as_str(), settings.path.as_str()), ("127.0.0.1:4318", PATH));
        assert_eq!((settings.service_name.as_str(), settings.threshold), ("ringgate", 1 << 56));
        let service = good(
            "[http]\ntrace_context = \"continue\"\n[tracing]\nendpoint = \"http://otel:1/x\"\nsample_ratio = 0.25\n\
             service_name = \"edge\"\nheaders = { Authorization = \"Bearer x\" }",
        )
        .service;
        assert_eq!(service.http.trace_context, TraceContext::Continue);
        let settings = service.tracing.expect("configured").settings.clone();
        assert_eq!((settings.authority.as_str(), settings.path.as_str()), ("otel:1", "/x"));
        assert_eq!(settings.threshold, 1 << 54);
        assert_eq!(settings.headers, [("Authorization".to_owned(), "Bearer x".to_owned())]);
        assert_eq!(settings.tls, None);
        for (endpoint, name) in [("otel.test:1", "otel.test"), ("[::1]:1", "::1")] {
            let text = format!("[tracing]\nendpoint = \"https://{endpoint}\"\nca = \"ca.pem\"");
            let settings = good(&text).service.tracing.expect("configured").settings.clone();
            let tls = settings.tls.expect("https");
            assert_eq!(
                (settings.authority.as_str(), tls.server_name.as_deref()),
                (endpoint, Some(name))
            );
            assert!(tls.verify && tls.ca.is_some_and(|ca| ca.path.ends_with("ca.pem")));
        }
    }
}
