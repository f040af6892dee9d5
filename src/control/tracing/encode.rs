//! Spans as OTLP has them: the messages of opentelemetry-proto 1.x that are needed, with their numbers
//! (`opentelemetry/proto/{trace,common,resource}/v1`, `collector/trace/v1/trace_service.proto`).

use prost::Message;

use crate::l7::tracing::Span;

/// `SPAN_KIND_SERVER`
const KIND_SERVER: i32 = 2;
/// `STATUS_CODE_ERROR`
const CODE_ERROR: i32 = 2;
/// `SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK`, with the trace's own flag: sampled.
const FLAGS: u32 = 0x100 | 1;
/// `SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK`: the parent is another process's.
const FLAGS_REMOTE: u32 = 0x200;

#[derive(Clone, PartialEq, Message)]
struct ExportTraceServiceRequest {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<InstrumentationScope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<OtlpSpan>,
}

#[derive(Clone, PartialEq, Message)]
struct InstrumentationScope {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct OtlpSpan {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
    #[prost(fixed32, tag = "16")]
    flags: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(string, tag = "2")]
    message: String,
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(oneof = "Value", tags = "1, 3")]
    value: Option<Value>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Value {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(int64, tag = "3")]
    Number(i64),
}

#[derive(Clone, PartialEq, Message)]
struct ExportTraceServiceResponse {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, Message)]
struct PartialSuccess {
    #[prost(int64, tag = "1")]
    rejected_spans: i64,
    #[prost(string, tag = "2")]
    error_message: String,
}

/// The body of an export request.
pub(super) fn request(service_name: &str, spans: &[Span]) -> Vec<u8> {
    let own = |key: &str, value: &str| text(key, value.to_owned());
    let resource = Resource {
        attributes: vec![
            own("service.name", service_name),
            own("telemetry.sdk.name", "ringgate"),
            own("telemetry.sdk.language", "rust"),
            own("telemetry.sdk.version", env!("CARGO_PKG_VERSION")),
        ],
    };
    let scope = InstrumentationScope {
        name: "ringgate".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let spans = spans.iter().map(of).collect();
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans }];
    let resource_spans = vec![ResourceSpans { resource: Some(resource), scope_spans }];
    ExportTraceServiceRequest { resource_spans }.encode_to_vec()
}

/// How many spans the collector refused though it took the request, and what it says about them.
pub(super) fn rejected(body: &[u8]) -> (u64, String) {
    let answer = ExportTraceServiceResponse::decode(body).unwrap_or_default();
    let partial = answer.partial_success.unwrap_or_default();
    (u64::try_from(partial.rejected_spans).unwrap_or(0), partial.error_message)
}

fn of(span: &Span) -> OtlpSpan {
    let failed = span.status >= 500;
    let end = span.end_unix_ms.saturating_mul(1_000_000);
    OtlpSpan {
        trace_id: bytes(&span.trace),
        span_id: bytes(&span.span),
        parent_span_id: span.parent.as_ref().map(|parent| bytes(parent)).unwrap_or_default(),
        // Methods of one's own would make as many names (semantic conventions for HTTP spans).
        name: if is_known(&span.method) { span.method.clone() } else { "HTTP".to_owned() },
        kind: KIND_SERVER,
        start_time_unix_nano: end.saturating_sub(span.duration_ms.saturating_mul(1_000_000)),
        end_time_unix_nano: end,
        attributes: attributes(span, failed),
        status: failed.then(|| Status {
            message: span.error.unwrap_or_default().to_owned(),
            code: CODE_ERROR,
        }),
        flags: FLAGS | if span.parent.is_some() { FLAGS_REMOTE } else { 0 },
    }
}

/// By the semantic conventions for HTTP server spans, and ours as `ringgate.*`.
fn attributes(span: &Span, failed: bool) -> Vec<KeyValue> {
    let (path, query) = span.target.split_once('?').unwrap_or((&span.target, ""));
    let known = is_known(&span.method);
    let (address, port) = split_host(&span.host);
    let mut all = vec![
        text("http.request.method", if known { &span.method } else { "_OTHER" }.to_owned()),
        number("http.response.status_code", span.status.into()),
        text("url.scheme", span.scheme.to_owned()),
        text("url.path", path.to_owned()),
        text("network.protocol.version", span.version.to_owned()),
        text("client.address", span.client.to_string()),
        text("ringgate.listener", span.listener.clone()),
        number("ringgate.tries", span.tries.into()),
    ];
    let optional = [
        ("http.request.method_original", (!known).then(|| span.method.clone())),
        ("url.query", Some(query.to_owned())),
        ("server.address", Some(address.to_owned())),
        ("user_agent.original", Some(span.user_agent.clone())),
        ("ringgate.upstream", span.upstream.clone()),
        ("ringgate.server", span.server.map(|server| server.to_string())),
        ("ringgate.error", span.error.map(str::to_owned)),
        ("error.type", failed.then(|| span.status.to_string())),
    ];
    for (key, value) in optional {
        all.extend(value.filter(|value| !value.is_empty()).map(|value| text(key, value)));
    }
    all.extend(port.map(|port| number("server.port", port.into())));
    all.extend(
        span.upstream_ms.map(|time| {
            number("ringgate.upstream_time_ms", i64::try_from(time).unwrap_or(i64::MAX))
        }),
    );
    all
}

fn is_known(method: &str) -> bool {
    ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"]
        .contains(&method)
}

fn split_host(host: &str) -> (&str, Option<u16>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => match port.parse() {
            Ok(port) => (name, Some(port)),
            Err(_) => (host, None),
        },
        _ => (host, None),
    }
}

fn text(key: &str, value: String) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(Value::Text(value)) }) }
}

fn number(key: &str, value: i64) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(Value::Number(value)) }) }
}

/// Hexadecimal digits as the bytes they stand for.
fn bytes(digits: &[u8]) -> Vec<u8> {
    let value = |digit: &u8| char::from(*digit).to_digit(16).unwrap_or(0);
    let byte = |pair: &[u8]| pair.iter().fold(0, |number, digit| number << 4 | value(digit));
    digits.chunks(2).map(|pair| u8::try_from(byte(pair)).unwrap_or(0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::l7::tracing::tests::span;

    fn attribute<'a>(span: &'a OtlpSpan, key: &str) -> Option<&'a Value> {
        let found = span.attributes.iter().find(|one| one.key == key)?;
        found.value.as_ref()?.value.as_ref()
    }

    #[test]
    fn what_a_collector_reads() {
        let remote =
            Span { parent: Some(*b"0000000000000001"), status: 200, error: None, ..span() };
        let body = request("edge", &[span(), remote]);
        let read = ExportTraceServiceRequest::decode(&body[..]).expect("our own");
        let [of_edge] = &read.resource_spans[..] else { panic!("one resource") };
        let named = &of_edge.resource.as_ref().expect("it has one").attributes[0];
        assert_eq!(named, &text("service.name", "edge".to_owned()));
        let [first, second] = &of_edge.scope_spans[0].spans[..] else { panic!("two spans") };
        assert_eq!(first.trace_id[..3], [0x4b, 0xf9, 0x2f]);
        assert_eq!((first.trace_id.len(), first.span_id.len()), (16, 8));
        assert!(first.parent_span_id.is_empty());
        assert_eq!(second.parent_span_id, [0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!((first.flags, second.flags), (0x101, 0x301));
        assert_eq!(first.end_time_unix_nano - first.start_time_unix_nano, 250_000_000);
        assert_eq!(first.status.as_ref().map(|status| status.code), Some(CODE_ERROR));
        assert_eq!(second.status, None);
        let text = |value: &str| Some(Value::Text(value.to_owned()));
        for (key, value) in [
            ("url.path", text("/a/b")),
            ("url.query", text("c=d")),
            ("server.address", text("shop.example")),
            ("server.port", Some(Value::Number(8443))),
            ("http.response.status_code", Some(Value::Number(502))),
            ("error.type", text("502")),
            ("user_agent.original", None),
        ] {
            assert_eq!(attribute(first, key), value.as_ref(), "{key}");
        }
    }

    #[test]
    fn methods_of_ones_own_make_no_names() {
        let own = of(&Span { method: "BREW".to_owned(), ..span() });
        assert_eq!(own.name, "HTTP");
        assert_eq!(attribute(&own, "http.request.method"), Some(&Value::Text("_OTHER".to_owned())));
    }

    #[test]
    fn hosts() {
        assert_eq!(split_host("a:1"), ("a", Some(1)));
        assert_eq!(split_host("[::1]:80"), ("[::1]", Some(80)));
        assert_eq!(split_host("[::1]"), ("[::1]", None));
        assert_eq!(split_host("a"), ("a", None));
    }

    #[test]
    fn partial_success() {
        assert_eq!(rejected(b""), (0, String::new()));
        assert_eq!(rejected(b"no such thing"), (0, String::new()));
        let partial = PartialSuccess { rejected_spans: 3, error_message: "full".to_owned() };
        let body = ExportTraceServiceResponse { partial_success: Some(partial) }.encode_to_vec();
        assert_eq!(rejected(&body), (3, "full".to_owned()));
    }
}
