//! Who the client is, and what `X-Forwarded-*` says about it upstream.
//!
//! A peer's claims count only when its address is in `trusted_proxies`. The claim of the peer
//! nearest to us stands rightmost in `X-Forwarded-For`, so the list is read from the right and only
//! as far as trust reaches: what a client wrote at the left is never believed. An incoming
//! `X-Real-IP` is not read at all; the one sent upstream is [`Identity::client`].

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::l7::request_id;

/// Most entries of `X-Forwarded-For` that are considered and forwarded.
pub const FORWARDED_ENTRIES_MAX: usize = 32;
/// Most bytes of `X-Forwarded-For`, over all lines, that are considered and forwarded.
pub const FORWARDED_BYTES_MAX: usize = 2048;

/// The outcome of [`identify`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The client's address; never an IPv4-mapped IPv6 address.
    pub client: IpAddr,
    /// The peer's claims are believed.
    pub trusted_peer: bool,
}

/// True when `ip` is in one of `nets`; an IPv4-mapped IPv6 address is compared as IPv4.
#[must_use]
pub fn is_trusted(ip: IpAddr, nets: &[IpNet]) -> bool {
    if nets.is_empty() {
        return false;
    }
    let ip = ip.to_canonical();
    nets.iter().any(|net| net.contains(&ip))
}

/// Tells the client's address from `peer`, the address of the TCP peer or of its PROXY protocol
/// header, and `lines`, the values of the request's `X-Forwarded-For` fields in order.
///
/// Of a trusted peer it is the rightmost address that is not trusted, or the leftmost when all are.
/// An entry that is no address ends the search, as do [`FORWARDED_ENTRIES_MAX`] entries and
/// [`FORWARDED_BYTES_MAX`] bytes from the right; the last address before it counts then.
pub fn identify<'a>(
    peer: IpAddr,
    trusted: &[IpNet],
    lines: impl DoubleEndedIterator<Item = &'a [u8]>,
) -> Identity {
    let peer = peer.to_canonical();
    let trusted_peer = is_trusted(peer, trusted);
    if !trusted_peer {
        return Identity { client: peer, trusted_peer };
    }
    let mut bytes_left = FORWARDED_BYTES_MAX;
    // Counted entry by entry: were a long line skipped as a whole, a client could hide behind the
    // trusted peer's own address by sending one.
    let in_reach = lines.rev().flat_map(|line| entries(line).rev()).map_while(|entry| {
        bytes_left = bytes_left.checked_sub(entry.len())?;
        Some(entry)
    });
    let mut client = peer;
    for entry in in_reach.take(FORWARDED_ENTRIES_MAX) {
        let Some(address) = parse_entry(entry) else { break };
        client = address;
        if !is_trusted(client, trusted) {
            break;
        }
    }
    Identity { client, trusted_peer }
}

/// Appends the value of the `X-Forwarded-For` that goes upstream.
///
/// A trusted peer's list is kept and the peer's address added. A list beyond
/// [`FORWARDED_ENTRIES_MAX`] or [`FORWARDED_BYTES_MAX`] is replaced by the address of the client that
/// [`identify`] found. From anyone else only the peer's address counts.
pub fn write_forwarded_for<'a>(
    out: &mut Vec<u8>,
    identity: &Identity,
    peer: IpAddr,
    lines: impl Iterator<Item = &'a [u8]> + Clone,
) {
    let peer = peer.to_canonical();
    if identity.trusted_peer {
        if is_within_bounds(lines.clone()) {
            for entry in lines.flat_map(entries) {
                out.extend_from_slice(entry);
                out.extend_from_slice(b", ");
            }
        } else if identity.client != peer {
            write_ip(out, identity.client);
            out.extend_from_slice(b", ");
        }
    }
    write_ip(out, peer);
}

/// Appends the address in its usual notation, without brackets.
pub fn write_ip(out: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        // Spelled out, because formatting machinery is slow and this is on every request's path.
        IpAddr::V4(ip) => {
            let (mut text, mut len) = ([0; 16], 0);
            for octet in ip.octets() {
                let (digits, count) = OCTETS[usize::from(octet)];
                text[len..len + 4].copy_from_slice(&digits);
                len += count;
            }
            // Sixteen bytes at once are two moves, as many as there are a call.
            out.extend_from_slice(&text);
            out.truncate(out.len() + len - 1 - text.len());
        }
        // Writing into a vector cannot fail.
        IpAddr::V6(ip) => {
            let _ = write!(out, "{ip}");
        }
    }
}

/// The digits of each octet with a dot behind them, and how many bytes that is.
const OCTETS: [([u8; 4], usize); 256] = {
    let mut table = [([b'.'; 4], 0); 256];
    let mut octet = 0;
    while octet < 256 {
        let count = if octet >= 100 {
            3
        } else if octet >= 10 {
            2
        } else {
            1
        };
        let (mut rest, mut place) = (octet, count);
        while place > 0 {
            place -= 1;
            table[octet].0[place] = b"0123456789"[rest % 10];
            rest /= 10;
        }
        table[octet].1 = count + 1;
        octet += 1;
    }
    table
};

/// What a peer says about the request it passes on; each the value of a field that came exactly
/// once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Claims<'a> {
    /// `X-Forwarded-Proto`
    pub proto: Option<&'a [u8]>,
    /// `X-Forwarded-Host`
    pub host: Option<&'a [u8]>,
    /// `X-Request-Id`
    pub request_id: Option<&'a [u8]>,
}

impl Claims<'_> {
    /// What may be kept: everything valid from a trusted peer, nothing from others. A claim that is
    /// `None` afterwards is to be replaced by our own value.
    #[must_use]
    pub fn believed(self, identity: &Identity) -> Self {
        if !identity.trusted_peer {
            return Self::default();
        }
        Self {
            proto: self.proto.filter(|value| is_proto(value)),
            host: self.host.filter(|value| is_host(value)),
            request_id: self.request_id.filter(|value| request_id::is_valid(value)),
        }
    }
}

fn is_proto(value: &[u8]) -> bool {
    value.eq_ignore_ascii_case(b"https") || value.eq_ignore_ascii_case(b"http")
}

/// A host of at most 255 bytes with or without port, by its characters only.
fn is_host(value: &[u8]) -> bool {
    let is_host_byte = |byte: &u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(byte);
    (1..=255).contains(&value.len()) && value.iter().all(is_host_byte)
}

/// The elements of a list line without blanks; empty ones are left out (RFC 9110 section 5.6.1.2).
fn entries(line: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> + Clone {
    line.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|entry| !entry.is_empty())
}

fn is_within_bounds<'a>(lines: impl Iterator<Item = &'a [u8]> + Clone) -> bool {
    let bytes = lines.clone().fold(0_usize, |sum, line| sum.saturating_add(line.len()));
    bytes <= FORWARDED_BYTES_MAX && lines.flat_map(entries).nth(FORWARDED_ENTRIES_MAX).is_none()
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:80`.
fn parse_entry(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?;
    if let Some(bracketed) = text.strip_prefix('[') {
        let (address, port) = bracketed.split_once(']')?;
        let address: Ipv6Addr = address.parse().ok()?;
        let port_is_valid = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return port_is_valid.then(|| IpAddr::V6(address).to_canonical());
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address.to_canonical());
    }
    let (address, port) = text.split_once(':')?;
    let address: Ipv4Addr = address.parse().ok()?;
    is_port(port).then_some(IpAddr::V4(address))
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn nets() -> Vec<IpNet> {
        ["10.0.0.0/8", "fd00::/8"].map(|net| net.parse().unwrap()).to_vec()
    }

    fn bytes<'a>(lines: &'a [&'a str]) -> impl DoubleEndedIterator<Item = &'a [u8]> + Clone {
        lines.iter().map(|line| line.as_bytes())
    }

    fn client(peer: &str, lines: &[&str]) -> String {
        identify(ip(peer), &nets(), bytes(lines)).client.to_string()
    }

    fn forwarded(peer: &str, lines: &[&str]) -> String {
        let identity = identify(ip(peer), &nets(), bytes(lines));
        let mut out = Vec::new();
        write_forwarded_for(&mut out, &identity, ip(peer), bytes(lines));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn trust_compares_mapped_addresses_as_ipv4() {
        for (address, expected) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("fd00::1", true),
            ("11.0.0.1", false),
            ("::ffff:11.0.0.1", false),
            ("::10.1.2.3", false),
            ("fe00::1", false),
        ] {
            assert_eq!(is_trusted(ip(address), &nets()), expected, "{address}");
        }
        assert!(!is_trusted(ip("10.1.2.3"), &[]));
        assert!(!is_trusted(ip("::ffff:10.1.2.3"), &["::/0".parse().unwrap()]));
    }

    #[test]
    fn the_client_is_the_rightmost_untrusted_address() {
        for (peer, lines, expected) in [
            ("192.0.2.9", &["198.51.100.1"][..], "192.0.2.9"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &[""], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.1"], "198.51.100.1"),
            ("::ffff:10.0.0.1", &["::ffff:198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &["203.0.113.5, 198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &["203.0.113.5 ,198.51.100.1,\t10.2.2.2 "], "198.51.100.1"),
            ("10.0.0.1", &["203.0.113.5", "198.51.100.1, 10.2.2.2", "fd00::5"], "198.51.100.1"),
            ("10.0.0.1", &["10.3.3.3, 10.2.2.2"], "10.3.3.3"),
            ("10.0.0.1", &["198.51.100.1, unknown, 10.2.2.2"], "10.2.2.2"),
            ("10.0.0.1", &["198.51.100.1, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.1,, ,"], "198.51.100.1"),
            ("10.0.0.1", &["198.51.100.1:4711"], "198.51.100.1"),
            ("10.0.0.1", &["[2001:db8::1]:4711, [fd00::5]"], "2001:db8::1"),
            ("fd00::1", &["2001:DB8::1"], "2001:db8::1"),
        ] {
            assert_eq!(client(peer, lines), expected, "{peer} {lines:?}");
        }
    }

    #[test]
    fn entries_that_are_no_addresses_are_refused() {
        for entry in [
            "_hidden",
            "198.51.100",
            "198.51.100.1:",
            "198.51.100.1:x",
            "198.51.100.1:65536",
            "198.51.100.1:+80",
            "[198.51.100.1]",
            "[::1",
            "[::1]80",
            "[::1]:",
            "fe80::1%eth0",
            "\"198.51.100.1\"",
            "198.51.100.01",
            "198.51.100.1 80",
        ] {
            assert_eq!(parse_entry(entry.as_bytes()), None, "{entry}");
        }
        assert_eq!(parse_entry(b"\xff\xfe"), None);
    }

    #[test]
    fn the_list_is_extended_for_trusted_peers_and_replaced_for_others() {
        for (peer, lines, expected) in [
            ("192.0.2.9", &["198.51.100.1"][..], "192.0.2.9"),
            ("::ffff:192.0.2.9", &[], "192.0.2.9"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.1"], "198.51.100.1, 10.0.0.1"),
            ("10.0.0.1", &["a,b ,", "", "198.51.100.1"], "a, b, 198.51.100.1, 10.0.0.1"),
            ("fd00::1", &["2001:db8::1"], "2001:db8::1, fd00::1"),
        ] {
            assert_eq!(forwarded(peer, lines), expected, "{peer} {lines:?}");
        }
    }

    #[test]
    fn a_list_beyond_the_bounds_is_cut_to_the_client() {
        let of =
            |count: usize, entry: &str| [&vec!["1.1.1.1"; count][..], &[entry]].concat().join(",");
        let fits = of(FORWARDED_ENTRIES_MAX - 1, "198.51.100.1");
        assert_eq!(forwarded("10.0.0.1", &[&fits]).split(", ").count(), FORWARDED_ENTRIES_MAX + 1);
        let too_many = of(FORWARDED_ENTRIES_MAX, "198.51.100.1");
        assert_eq!(forwarded("10.0.0.1", &[&too_many]), "198.51.100.1, 10.0.0.1");

        let long = "x".repeat(FORWARDED_BYTES_MAX);
        assert_eq!(forwarded("10.0.0.1", &[&long]), long.clone() + ", 10.0.0.1");
        assert_eq!(forwarded("10.0.0.1", &[&long, "198.51.100.1"]), "198.51.100.1, 10.0.0.1");
        assert_eq!(forwarded("10.0.0.1", &["198.51.100.1", &(long.clone() + "x")]), "10.0.0.1");

        // However much a client sends, what its proxy appended to the same line is found.
        assert_eq!(client("10.0.0.1", &[&(long + "x, 198.51.100.1")]), "198.51.100.1");
        assert_eq!(client("10.0.0.1", &[&(",".repeat(9000) + "198.51.100.1")]), "198.51.100.1");

        let trusted_only = vec!["10.2.2.2"; FORWARDED_ENTRIES_MAX].join(",");
        assert_eq!(client("10.0.0.1", &["198.51.100.1", &trusted_only]), "10.2.2.2");
    }

    #[test]
    fn claims_are_kept_from_trusted_peers_when_valid() {
        let trusted = Identity { client: ip("198.51.100.1"), trusted_peer: true };
        let stranger = Identity { trusted_peer: false, ..trusted };
        let claims = Claims {
            proto: Some(b"https"),
            host: Some(b"shop.example:8443"),
            request_id: Some(b"abc-1"),
        };
        assert_eq!(claims.believed(&trusted), claims);
        assert_eq!(claims.believed(&stranger), Claims::default());
        for (proto, host, id) in [
            ("", "", ""),
            ("ftp", "a,b", "a b"),
            ("https,http", "user@host", "a\"b"),
            ("https ", "a/b", "\u{e9}"),
        ] {
            let [proto, host, request_id] = [proto, host, id].map(|value| Some(value.as_bytes()));
            let claims = Claims { proto, host, request_id };
            assert_eq!(claims.believed(&trusted), Claims::default(), "{claims:?}");
        }
        assert!(is_proto(b"HTTP") && is_host(b"[::1]:80"));
        assert!(is_host(&[b'a'; 255]) && !is_host(&[b'a'; 256]));
    }

    proptest! {
        /// Whatever a client puts to the left of what its trusted proxy appended changes nothing.
        #[test]
        fn what_stands_left_of_the_client_is_not_believed(
            forged in "[0-9a-f.:, \\[\\]]{0,60}",
            hops in proptest::collection::vec("10[.]0[.]0[.][1-9]", 0..5),
        ) {
            let tail = [vec!["198.51.100.1".to_owned()], hops].concat().join(", ");
            for lines in [vec![format!("{forged},{tail}")], vec![forged, tail]] {
                let lines = lines.iter().map(|line| line.as_bytes());
                let identity = identify(ip("10.0.0.1"), &nets(), lines);
                prop_assert_eq!(identity.client, ip("198.51.100.1"));
            }
        }

        #[test]
        fn addresses_are_read_back_in_every_notation(v4: [u8; 4], v6: [u16; 8], port: u16) {
            let (v4, v6) = (IpAddr::from(v4), IpAddr::from(v6));
            for (text, expected) in [
                (format!("{v4}"), v4), (format!("{v4}:{port}"), v4),
                (format!("{v6}"), v6), (format!("[{v6}]"), v6), (format!("[{v6}]:{port}"), v6),
            ] {
                prop_assert_eq!(parse_entry(text.as_bytes()), Some(expected.to_canonical()));
            }
        }

        #[test]
        fn the_forwarded_list_is_bounded_and_ends_in_the_peer(
            lines in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..900), 0..6),
        ) {
            let lines = lines.iter().map(Vec::as_slice);
            let identity = identify(ip("10.0.0.1"), &nets(), lines.clone());
            let mut out = Vec::new();
            write_forwarded_for(&mut out, &identity, ip("10.0.0.1"), lines);
            prop_assert!(out.ends_with(b"10.0.0.1"));
            // A separator may grow from `,` to `, `, and two addresses are added.
            prop_assert!(out.len() <= FORWARDED_BYTES_MAX + FORWARDED_ENTRIES_MAX + 96);
        }
    }
}
