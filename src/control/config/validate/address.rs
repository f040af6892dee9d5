//! Addresses: where to listen, where servers are, which peers are meant.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::host;
use crate::control::config::error::quoted;
use crate::control::config::place::{Place, Reported, text_item};
use crate::control::config::raw::{Leaf, Scalar};
use crate::l7::config::ServerAddress;

const WRITE_NETS: &str = r#"write a list of networks or addresses like ["10.0.0.0/8", "::1"]"#;

/// An address to listen on; `example` has the address that suits a bare port.
pub(super) fn bind(
    place: &Place<'_>,
    value: &Scalar,
    example: &str,
    write: impl Display,
) -> Result<SocketAddr, Reported> {
    let ip = example.rsplit_once(':').map_or("0.0.0.0", |(ip, _)| ip);
    let bare = |port: &dyn Display| {
        place.wrong(value, format_args!("a port needs an address: write \"{ip}:{port}\""))
    };
    let text = match value {
        Scalar::Text(text) => text.as_str(),
        Scalar::Integer(port) if u16::try_from(*port).is_ok() => return Err(bare(port)),
        other => return Err(place.wrong(other, write)),
    };
    if let Ok(address) = text.parse::<SocketAddr>() {
        if address.port() == 0 {
            return Err(place.wrong(value, "port 0 stands for any: write the port"));
        }
        return Ok(address);
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        let full = SocketAddr::new(ip, 80);
        return Err(place.wrong(value, format_args!("the port is missing: write \"{full}\"")));
    }
    let port = text.strip_prefix('*').unwrap_or(text);
    let port = port.strip_prefix(':').unwrap_or(port);
    match text.rsplit_once(':') {
        _ if port.parse::<u16>().is_ok() => Err(bare(&port)),
        Some((name, port)) if port.parse::<u16>().is_ok() && host::name(name).is_ok() => {
            let why = format_args!("listeners need an IP address: write \"{ip}:{port}\"");
            Err(place.wrong(value, why))
        }
        _ => Err(place.wrong(value, write)),
    }
}

/// Where a server is: an IP address or a name, with port.
pub(super) fn server(place: &Place<'_>, text: &str) -> Result<ServerAddress, Reported> {
    let wrong = |write: &dyn Display| place.problem(format_args!("is {}: {write}", quoted(text)));
    if let Ok(address) = text.parse::<SocketAddr>() {
        if address.port() == 0 {
            return Err(wrong(&"no server listens on port 0: write its port"));
        }
        return Ok(ServerAddress::Socket(address));
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        let full = SocketAddr::new(ip, 8080);
        return Err(wrong(&format_args!("the port is missing: write for example \"{full}\"")));
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        let rest = rest.split('/').next().unwrap_or_default();
        return Err(wrong(&format_args!(
            "leave out \"{}://\" and any path: write {}",
            scheme.escape_debug(),
            quoted(rest)
        )));
    }
    let Some((name, port)) = text.rsplit_once(':') else {
        let write = match host::name(text) {
            Ok(name) => format!("the port is missing: write for example \"{name}:8080\""),
            Err(_) => {
                r#"write an address and port like "10.0.1.11:8080" or "app.internal:8080""#.into()
            }
        };
        return Err(wrong(&write));
    };
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let port = port.parse::<u16>().ok().filter(|port| digits && *port > 0);
    let Some(port) = port else { return Err(wrong(&"write a port from 1 to 65535")) };
    let name = host::name(name).map_err(|write| wrong(&write))?;
    Ok(ServerAddress::Name(name, port))
}

/// Networks in CIDR notation, or bare addresses; none when the key is missing.
pub(super) fn nets(place: &Place<'_>, key: &str, leaf: &Option<Leaf>) -> Vec<IpNet> {
    let items = place.list(key, leaf, WRITE_NETS).unwrap_or_default();
    let texts = items.into_iter().filter_map(|(place, item)| text_item(place, item, WRITE_NETS));
    texts.filter_map(|(place, text)| net(&place, text).ok()).collect()
}

fn net(place: &Place<'_>, text: &str) -> Result<IpNet, Reported> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(ip));
    }
    let shown = quoted(text);
    match text.parse::<IpNet>() {
        Ok(net) if net.trunc() == net => Ok(net),
        // Guessing whether the address or the length is the slip would guess whom to trust.
        Ok(net) => Err(place.problem(format_args!(
            "is {shown}: the address has bits beyond the prefix length: write \"{}\" for the \
             network or \"{}\" for the one address",
            net.trunc(),
            net.addr()
        ))),
        Err(_) => Err(place.problem(format_args!(
            r#"is {shown}: write a network like "10.0.0.0/8" or an address like "10.0.0.1""#
        ))),
    }
}
