//! Host names: what routes match and servers are called.

use std::net::Ipv6Addr;

use crate::l7::config::HostMatch;

/// Longest name and longest label (RFC 1035 section 2.3.4; 253 without the length octets).
const NAME_MAX: usize = 253;
const LABEL_MAX: usize = 63;

/// Reads a DNS name into lower case. Underscores are let through: names in use have them.
///
/// # Errors
///
/// What to write instead.
pub(super) fn name(text: &str) -> Result<String, String> {
    if !text.is_ascii() {
        return Err("write the name in punycode (\"xn--…\"), as clients send it".to_owned());
    }
    if let Some(bare) = text.strip_suffix('.')
        && !bare.is_empty()
    {
        return Err("leave out the dot at the end".to_owned());
    }
    if text.len() > NAME_MAX {
        return Err(format!("a host name has at most {NAME_MAX} characters"));
    }
    let name = text.to_ascii_lowercase();
    for label in name.split('.') {
        self::label(label)?;
    }
    // No top-level domain is numeric: a last label of digits is a mistyped IPv4 address.
    let last = name.rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|b| b.is_ascii_digit()) && name.parse::<std::net::Ipv4Addr>().is_err() {
        return Err("this is neither an IPv4 address nor a host name: correct the numbers".into());
    }
    Ok(name)
}

fn label(label: &str) -> Result<(), String> {
    const WRITE: &str = "a host name is letters, digits, `-`, `_` and single dots between them";
    let known = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if label.is_empty() || !label.bytes().all(known) {
        return Err(WRITE.to_owned());
    }
    if label.starts_with('-') || label.ends_with('-') {
        return Err("no part of a host name starts or ends with `-`".to_owned());
    }
    if label.len() > LABEL_MAX {
        return Err(format!("between dots stand at most {LABEL_MAX} characters"));
    }
    Ok(())
}

/// Reads a route's host condition: a name, `*.` and a name, or an IP address literal.
///
/// # Errors
///
/// What to write instead.
pub(super) fn condition(text: &str) -> Result<HostMatch, String> {
    if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'))
        && inner.parse::<Ipv6Addr>().is_ok()
    {
        return Ok(HostMatch::Exact(text.to_ascii_lowercase()));
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err(format!("write \"[{text}]\", as clients send it"));
    }
    if text == "*" {
        return Err("leave the key out to match any host".to_owned());
    }
    if let Some((_, rest)) = text.split_once("://") {
        let host = rest.split('/').next().unwrap_or_default();
        return Err(format!("write the host alone: \"{}\"", host.escape_debug()));
    }
    if let Some((host, port)) = text.rsplit_once(':')
        && port.bytes().all(|b| b.is_ascii_digit())
    {
        let host = host.escape_debug();
        return Err(format!("hosts are matched without port: write \"{host}\""));
    }
    if let Some(suffix) = text.strip_prefix("*.")
        && !suffix.contains('*')
    {
        return name(suffix).map(HostMatch::Suffix);
    }
    if text.contains('*') {
        return Err("`*` may only stand for the front, like \"*.shop.example\"".to_owned());
    }
    name(text).map(HostMatch::Exact)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn conditions() {
        let exact = |name: &str| Ok(HostMatch::Exact(name.to_owned()));
        let suffix = |name: &str| Ok(HostMatch::Suffix(name.to_owned()));
        assert_eq!(condition("Shop.Example"), exact("shop.example"));
        assert_eq!(condition("*.Shop.example"), suffix("shop.example"));
        assert_eq!(condition("xn--bcher-kva.example"), exact("xn--bcher-kva.example"));
        assert_eq!(condition("my_host"), exact("my_host"));
        assert_eq!(condition("10.0.0.1"), exact("10.0.0.1"));
        assert_eq!(condition("[2001:DB8::1]"), exact("[2001:db8::1]"));
    }

    #[test]
    fn refused() {
        let long = format!("{}.example", "a".repeat(64));
        let longer = "a.".repeat(127) + "a";
        for (text, says) in [
            ("", "letters, digits"),
            ("*", "leave the key out"),
            ("www.*", "front"),
            ("a*.example", "front"),
            ("*.*.example", "front"),
            ("*example", "front"),
            ("*.", "letters, digits"),
            ("shop.example:80", "without port: write \"shop.example\""),
            ("*.shop.example:80", "without port: write \"*.shop.example\""),
            ("[::1]:80", "without port: write \"[::1]\""),
            ("::1", "write \"[::1]\""),
            ("http://shop.example/x", "write the host alone: \"shop.example\""),
            ("shop..example", "single dots"),
            (".example", "single dots"),
            ("shop.example.", "dot at the end"),
            (".", "letters, digits"),
            ("shop example", "letters, digits"),
            ("shop/x", "letters, digits"),
            ("-a.example", "starts or ends"),
            ("bücher.example", "punycode"),
            ("10.0.0.256", "neither"),
            ("a.b:c", "letters, digits"),
            (&long, "at most 63"),
            (&longer, "at most 253"),
        ] {
            let error = condition(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn accepted_hosts_are_lower_case_and_stable(text in "[A-Za-z0-9.*:\\[\\]_-]{0,20}|.{0,12}") {
            if let Ok(HostMatch::Exact(host) | HostMatch::Suffix(host)) = condition(&text) {
                prop_assert!(!host.is_empty() && host.is_ascii());
                prop_assert_eq!(&host, &host.to_ascii_lowercase());
                prop_assert_eq!(condition(&host), Ok(HostMatch::Exact(host)));
            }
        }
    }
}
