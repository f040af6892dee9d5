//! `[tls]`, `certificates`, `[upstream.NAME.tls]`: what is said about TLS. The files themselves are
//! read later (`control::certificates`).

use std::sync::Arc;
use std::time::Duration;

use super::headers;
use crate::control::config::place::Place;
use crate::control::config::raw::{self, Content, Leaf, Scalar};
use crate::l7::config::Redirect;
use crate::l7::tls::config::{Certificate, ClientAuth, File, Listener, Policy, Settings, Upstream};

const POLICIES: [(&str, Policy); 2] =
    [("intermediate", Policy::Intermediate), ("modern", Policy::Modern)];
const WRITE_CERTIFICATES: &str = r#"write a list like [{ cert = "shop.pem", key = "shop.key" }]"#;
/// Tickets must not be older (RFC 8446 section 4.6.1).
const LIFETIME_MAX: Duration = Duration::from_secs(7 * 86_400);

/// `[tls]`, and its policy, which is the listeners' unless they have their own.
pub(super) fn settings(root: &Place<'_>, file: &raw::File) -> (Settings, Policy) {
    let empty = raw::Tls::default();
    let table = root.table("tls", file.tls.as_ref(), "write a table, `[tls]`");
    let (place, raw) = table.unwrap_or_else(|| (root.child("tls", 0..0), &empty));
    let time = |key, leaf, default| place.duration(key, leaf, default);
    let lifetime = time("session_lifetime", &raw.session_lifetime, Duration::from_secs(12 * 3600));
    if !(Duration::from_secs(1)..=LIFETIME_MAX).contains(&lifetime)
        && let Some((key, scalar)) = place.leaf("session_lifetime", &raw.session_lifetime)
        && !lifetime.is_zero()
    {
        key.wrong(scalar, "write a time from \"1s\" to \"7d\"");
    }
    let settings = Settings {
        handshake_timeout: time(
            "handshake_timeout",
            &raw.handshake_timeout,
            Duration::from_secs(10),
        ),
        session_lifetime: lifetime,
        ticket_keys: path(&place, "ticket_keys", &raw.ticket_keys),
        reload_interval: time("reload_interval", &raw.reload_interval, Duration::from_secs(5)),
    };
    (settings, place.choice("policy", &raw.policy, &POLICIES, Policy::Intermediate))
}

/// TLS of a listener; `None` when it has no certificates.
pub(super) fn listener(
    place: &Place<'_>,
    raw: &raw::Listener,
    policy: Policy,
    http2: bool,
) -> Option<Listener> {
    let policy = place.choice("tls_policy", &raw.tls_policy, &POLICIES, policy);
    if let (None, Some((key, _))) = (&raw.certificates, place.leaf("tls_policy", &raw.tls_policy)) {
        key.problem("needs `certificates`: without them clients speak in the clear");
    }
    let node = raw.certificates.as_ref()?;
    if matches!(node.get_ref(), Content::Wanted(list) if list.is_empty()) {
        let list = place.child("certificates", node.span());
        list.problem(format_args!("is empty: {WRITE_CERTIFICATES}"));
    }
    let tables = place.good_tables("certificates", Some(node), WRITE_CERTIFICATES);
    let certificates = tables.iter().filter_map(|(place, raw)| certificate(place, raw));
    Some(Listener { certificates: certificates.collect(), policy, http2 })
}

fn certificate(place: &Place<'_>, raw: &raw::Certificate) -> Option<Certificate> {
    let cert = required(place, "cert", &raw.cert, "write the path of the certificate chain in PEM");
    let key = required(place, "key", &raw.key, "write the path of its private key in PEM");
    let ca = path(place, "client_ca", &raw.client_ca);
    let choices = [("off", None), ("optional", Some(false)), ("required", Some(true))];
    let given = place.choice("client_auth", &raw.client_auth, &choices, None);
    let client_auth = match (given, ca) {
        (Some(required), Some(ca)) => Some(ClientAuth { ca, required }),
        (Some(_), None) => {
            place
                .missing("client_ca", "write the path of the authorities whose clients are let in");
            None
        }
        (None, Some(_)) if raw.client_auth.is_none() => {
            place
                .missing("client_auth", "`client_ca` needs it: write \"optional\" or \"required\"");
            None
        }
        (None, _) => None,
    };
    let (Some(cert), Some(key)) = (cert, key) else { return None };
    Some(Certificate { cert, key, ocsp: path(place, "ocsp", &raw.ocsp), client_auth })
}

/// A path that has to be there.
fn required(place: &Place<'_>, key: &str, leaf: &Option<Leaf>, write: &str) -> Option<File> {
    if leaf.is_none() {
        place.missing(key, write);
    }
    path(place, key, leaf)
}

/// A path under `key`; what is no path is noted.
pub(super) fn path(place: &Place<'_>, key: &str, leaf: &Option<Leaf>) -> Option<File> {
    let (place, text) = place.text(key, leaf, "write a path")?.ok()?;
    if text.is_empty() || text.contains('\0') {
        place.wrong(&Scalar::Text(text.to_owned()), "write a path");
        return None;
    }
    let key = place.path().to_owned();
    Some(File { path: text.into(), key, span: place.span() })
}

/// `hsts`: how long, as text for the header.
pub(super) fn hsts(place: &Place<'_>, raw: &raw::Listener) -> Option<Arc<str>> {
    let (key, text) = place.text("hsts", &raw.hsts, WRITE_HSTS)?.ok()?;
    let valid = text.strip_prefix("max-age=").is_some_and(|rest| {
        let (seconds, directives) = rest.split_once(';').unwrap_or((rest, ""));
        let known = |word: &str| matches!(word.trim(), "includeSubDomains" | "preload");
        !seconds.is_empty()
            && seconds.len() <= 10
            && seconds.bytes().all(|b| b.is_ascii_digit())
            && (directives.is_empty() || directives.split(';').all(known))
    });
    if !valid {
        key.wrong(&Scalar::Text(text.to_owned()), WRITE_HSTS);
        return None;
    }
    if raw.certificates.is_none() {
        key.problem("needs `certificates`: browsers ignore it in the clear (RFC 6797)");
        return None;
    }
    Some(text.into())
}

const WRITE_HSTS: &str =
    r#"write the value of the header, like "max-age=31536000; includeSubDomains""#;

/// `redirect_https`: true, or the port if it is not 443.
pub(super) fn redirect(place: &Place<'_>, raw: &raw::Listener) -> Option<Redirect> {
    let (key, scalar) = place.leaf("redirect_https", &raw.redirect_https)?;
    let port: u16 = match scalar {
        Scalar::Boolean(false) => return None,
        Scalar::Boolean(true) => 443,
        Scalar::Integer(_) => key.number(scalar, &(1..=u16::MAX)).ok()?,
        other => {
            key.wrong(other, "write true, or the port of the HTTPS listener");
            return None;
        }
    };
    if raw.certificates.is_some() {
        key.problem("is for listeners without `certificates`: this one speaks HTTPS already");
        return None;
    }
    let port = if port == 443 { String::new() } else { format!(":{port}") };
    let to = headers::template(&key, &format!("https://$host{port}$request_uri")).ok()?;
    Some(Redirect { status: 308, to })
}

/// `[upstream.NAME.tls]`
pub(super) fn upstream(place: &Place<'_>, raw: &raw::Upstream) -> Option<Upstream> {
    let (place, raw) =
        place.table("tls", raw.tls.as_ref(), "write a table like { ca = \"ca.pem\" }")?;
    let verify = place.boolean("verify", &raw.verify, true);
    if !verify {
        let key = place.child("verify", raw.verify.as_ref().map_or(0..0, Leaf::span));
        key.warning(
            "is false: whoever gets between here and the servers reads and changes everything",
        );
    }
    let (cert, key) = (path(&place, "cert", &raw.cert), path(&place, "key", &raw.key));
    let certificate = match (cert, key) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (Some(_), None) if raw.key.is_none() => {
            place.missing("key", "`cert` needs it: write the path of its private key");
            None
        }
        (None, Some(_)) if raw.cert.is_none() => {
            place.missing("cert", "`key` needs it: write the path of its certificate chain");
            None
        }
        _ => None,
    };
    Some(Upstream {
        key: File { path: ".".into(), key: place.path().to_owned(), span: place.span() },
        server_name: name(&place, &raw.server_name),
        ca: path(&place, "ca", &raw.ca),
        certificate,
        verify,
        policy: place.choice("policy", &raw.policy, &POLICIES, Policy::Intermediate),
    })
}

/// `server_name`
pub(super) fn name(place: &Place<'_>, leaf: &Option<Leaf>) -> Option<String> {
    let write = r#"write a host name like "app.internal""#;
    let (key, text) = place.text("server_name", leaf, write)?.ok()?;
    let name = text.to_ascii_lowercase();
    if rustls::pki_types::ServerName::try_from(name.as_str()).is_err() {
        key.wrong(&Scalar::Text(text.to_owned()), write);
        return None;
    }
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::parse;
    use crate::control::config::tests::{ROUTES, bad, bad_exactly, good};

    const PAIR: &str = r#"cert = "a.pem", key = "a.key""#;

    #[test]
    fn problems_of_listeners() {
        for (keys, at, says) in [
            ("certificates = []", "3:16", "is empty: write a list like [{ cert ="),
            ("certificates = 1", "3:16", "write a list like [{ cert ="),
            (
                "certificates = [{ key = \"a\" }]",
                "3:17",
                "`listener[0].certificates[0].cert` is missing: write the path",
            ),
            (
                "certificates = [{ cert = \"a\" }]",
                "3:17",
                "`listener[0].certificates[0].key` is missing",
            ),
            ("certificates = [{ cert = \"\", key = \"k\" }]", "3:26", "write a path"),
            ("tls_policy = \"modern\"", "3:14", "needs `certificates`"),
            ("hsts = \"max-age=1\"", "3:8", "needs `certificates`"),
            ("hsts = \"1y\"", "3:8", "write the value of the header"),
            ("hsts = \"max-age=1\\r\\nX: y\"", "3:8", "write the value of the header"),
            ("redirect_https = \"yes\"", "3:18", "write true, or the port"),
            ("redirect_https = 0", "3:18", "from 1 to 65535"),
        ] {
            let listener = format!("[[listener]]\nbind = \"1.2.3.4:443\"\n{keys}\n{ROUTES}");
            let Err(errors) = parse("t", &listener) else { panic!("accepted: {keys}") };
            let first = &errors.errors()[0];
            let place = first.position.map(|p| format!("{}:{}", p.line, p.column));
            assert_eq!(place.as_deref(), Some(at), "{keys}\n{errors}");
            assert!(first.message.contains(says), "{keys}\n{errors}");
        }
        let with = |keys: &str| format!("[[listener]]\nbind = \"1.2.3.4:443\"\n{keys}\n{ROUTES}");
        bad_exactly(&[
            (
                with(&format!("certificates = [{{ {PAIR} }}]\nredirect_https = true")),
                "4:18",
                "speaks HTTPS already",
            ),
            (
                with(&format!("certificates = [{{ {PAIR}, client_auth = \"required\" }}]")),
                "3:17",
                "`listener[0].certificates[0].client_ca` is missing",
            ),
            (
                with(&format!("certificates = [{{ {PAIR}, client_ca = \"ca\" }}]")),
                "3:17",
                "write \"optional\" or \"required\"",
            ),
            (
                with(&format!(
                    "certificates = [{{ {PAIR}, client_auth = \"yes\", client_ca = \"c\" }}]"
                )),
                "3:64",
                "write one of",
            ),
            (
                with(&format!("certificates = [{{ {PAIR} }}]\ntls_policy = \"old\"")),
                "4:14",
                "write one of \"intermediate\", \"modern\"",
            ),
        ]);
    }

    #[test]
    fn problems_elsewhere() {
        bad(&[
            ("[tls]\nsession_lifetime = \"8d\"", "2:20", "write a time from \"1s\" to \"7d\""),
            ("[tls]\nhandshake_timeout = \"0s\"", "2:21", "write a time above zero"),
            ("[tls]\npolicy = \"ancient\"", "2:10", "write one of"),
            ("[tls]\nticket_keys = 5", "2:15", "write a path"),
        ]);
        let server = "[upstream.a]\nservers = [{ address = \"b:1\" }]\n";
        bad(&[
            ("tls = true", "3:7", "write a table like"),
            ("tls = { cert = \"c\" }", "3:7", "`upstream.a.tls.key` is missing"),
            ("tls = { key = \"c\" }", "3:7", "`upstream.a.tls.cert` is missing"),
            ("tls = { server_name = \"a b\" }", "3:23", "write a host name"),
            ("tls = { verify = \"no\" }", "3:18", "write true or false"),
        ]
        .map(|(keys, at, says)| (format!("{server}{keys}"), at, says)));
    }

    #[test]
    fn values() {
        let config = good(&format!(
            "[tls]\npolicy = \"modern\"\nticket_keys = \"t\"\n[[listener]]\nbind = \"1.2.3.4:443\"\n\
             certificates = [{{ {PAIR} }}, {{ {PAIR}, ocsp = \"o\", client_auth = \"optional\", client_ca = \"c\" }}]\n\
             hsts = \"max-age=60; includeSubDomains; preload\"\n\
             [[listener]]\nbind = \"1.2.3.4:80\"\nredirect_https = 8443\n\
             [upstream.a]\nservers = [{{ address = \"b:1\" }}]\ntls = {{ server_name = \"B.test\", verify = false }}"
        ));
        let tls = config.service.listeners[0].tls.as_ref().expect("certificates");
        assert_eq!((tls.policy, tls.certificates.len()), (Policy::Modern, 2));
        let asked = tls.certificates[1].client_auth.as_ref().expect("asked for");
        assert_eq!(
            (asked.required, asked.ca.key.as_str()),
            (false, "listener[0].certificates[1].client_ca")
        );
        assert!(config.service.listeners[0].hsts.is_some());
        let redirect = config.service.listeners[1].redirect_https.as_ref().expect("a redirect");
        assert_eq!(redirect.status, 308);
        let upstream = config.service.upstreams[0].tls.as_ref().expect("a table");
        assert_eq!((upstream.server_name.as_deref(), upstream.verify), (Some("b.test"), false));
        assert_eq!(config.warnings.len(), 2, "unused, unverified: {:?}", config.warnings);
    }
}
