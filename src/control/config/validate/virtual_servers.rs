//! `[[virtual_server]]`: what the layer-4 director forwards, and to whom.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use super::check::{self, Style};
use crate::control::config::checks::UpstreamCheck;
use crate::control::config::error::quoted;
use crate::control::config::place::{Place, Reported};
use crate::control::config::raw::{self, Scalar};
use crate::ha::config::Ha;
use crate::health::check::Kind;
use crate::l4::config::{
    Forward, OnServerDown, Persistence, Protocol, RealServer, SERVERS_MAX, SERVICES_MAX, Scheduler,
    ServiceKey, VirtualServer,
};
use crate::l7::config::Listener;

const WRITE_ADDRESS: &str =
    r#"write an address and port like "192.168.1.100:80", or without port for all of them"#;
const WRITE_SERVERS: &str = r#"write a list like [{ address = "192.168.1.10" }]"#;
const WRITE_SERVER: &str = r#"write an address like "192.168.1.10""#;

const WEIGHT_MAX: u32 = 65_535;
/// A sum of weights that no virtual server reaches.
const QUORUM_MAX: u32 = 1 << 28;

/// What virtual servers are checked against.
pub(super) struct Others<'a> {
    pub(super) listeners: &'a [Listener],
    pub(super) ha: Option<&'a Ha>,
}

pub(super) fn virtual_servers(
    root: &Place<'_>,
    file: &raw::File,
    others: &Others<'_>,
) -> Result<Vec<VirtualServer>, Reported> {
    let Some(node) = &file.virtual_server else { return Ok(Vec::new()) };
    let tables = root.tables("virtual_server", node, "write it as `[[virtual_server]]`")?;
    if tables.len() > SERVICES_MAX {
        let place = root.child("virtual_server", node.span());
        return Err(place.problem(format_args!("has more than {SERVICES_MAX} tables")));
    }
    let mut seen = HashMap::new();
    let mut all = Vec::new();
    for table in tables {
        let read = table.and_then(|(place, raw)| {
            let server = virtual_server(&place, raw)?;
            if let Some(first) = seen.insert(server.key, place.path().to_owned()) {
                return Err(place.problem(format_args!(
                    "is {}, as `{first}` is: put the servers of both into one",
                    server.key
                )));
            }
            check_against(&place, &server, others);
            Ok(server)
        });
        all.push(read);
    }
    all.into_iter().collect()
}

fn virtual_server(place: &Place<'_>, raw: &raw::VirtualServer) -> Result<VirtualServer, Reported> {
    let protocols = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp), ("sctp", Protocol::Sctp)];
    let protocol = place.choice("protocol", &raw.protocol, &protocols, Protocol::Tcp);
    let address = address(place, raw);
    let forward = forward(place, raw);
    let (one_packet, persistence) = (one_packet(place, raw, protocol), persistence(place, raw));
    let downs = [
        ("drain", OnServerDown::Drain),
        ("reschedule", OnServerDown::Reschedule),
        ("reset", OnServerDown::Reset),
    ];
    let down =
        place.choice("on_server_down", &raw.on_server_down, &downs, OnServerDown::Reschedule);
    let quorum = place.integer("quorum", &raw.quorum, 1..=QUORUM_MAX, 1);
    let hysteresis = place.integer("hysteresis", &raw.hysteresis, 0..=QUORUM_MAX, 0);
    if hysteresis >= quorum {
        place.child("hysteresis", place.span()).problem(format_args!(
            "is {hysteresis}, so that a quorum of {quorum} could never be lost: write less than that"
        ));
    }
    let address = address?;
    let servers = servers(place, raw, address.ip(), forward);
    let sorry = sorry(place, raw, address.ip(), forward);
    let persistence = persistence?(address.ip())?;
    if one_packet && persistence.is_some() {
        return Err(place.child("persistence_timeout", place.span()).problem(
            "has no meaning with `one_packet`, which remembers nothing: remove one of them",
        ));
    }
    Ok(VirtualServer {
        key: ServiceKey { protocol, address: address.ip(), port: address.port() },
        scheduler: place.choice("scheduler", &raw.scheduler, &Scheduler::ALL, Scheduler::Wlc),
        one_packet,
        persistence,
        forward,
        on_server_down: down,
        quorum,
        hysteresis,
        sorry_server: sorry?,
        servers: servers?,
    })
}

/// The address; port 0 stands for all.
fn address(place: &Place<'_>, raw: &raw::VirtualServer) -> Result<SocketAddr, Reported> {
    let Some(read) = place.text("address", &raw.address, WRITE_ADDRESS) else {
        return Err(place.missing("address", WRITE_ADDRESS));
    };
    let (place, text) = read?;
    let wrong = || place.problem(format_args!("is {}: {WRITE_ADDRESS}", quoted(text)));
    let address = match text.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, 0),
        Err(_) => text.parse::<SocketAddr>().ok().filter(|a| a.port() != 0).ok_or_else(wrong)?,
    };
    let ip = address.ip().to_canonical();
    if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() {
        return Err(wrong());
    }
    Ok(SocketAddr::new(ip, address.port()))
}

fn forward(place: &Place<'_>, raw: &raw::VirtualServer) -> Forward {
    let tunnel = place.choice("forward", &raw.forward, &[("dr", false), ("tunnel", true)], false);
    let gue =
        place.choice("tunnel_type", &raw.tunnel_type, &[("ipip", false), ("gue", true)], false);
    let port = place.integer("tunnel_port", &raw.tunnel_port, 1..=u16::MAX, 6080);
    for (key, given, needed) in [
        ("tunnel_type", raw.tunnel_type.is_some(), tunnel),
        ("tunnel_port", raw.tunnel_port.is_some(), tunnel && gue),
    ] {
        if given && !needed {
            place.child(key, place.span()).problem(format_args!(
                "needs `forward = \"tunnel\"`{}: write that, or remove the key",
                if key == "tunnel_port" { " and `tunnel_type = \"gue\"`" } else { "" }
            ));
        }
    }
    match (tunnel, gue) {
        (false, _) => Forward::Dr,
        (true, false) => Forward::Ipip,
        (true, true) => Forward::Gue { port },
    }
}

fn one_packet(place: &Place<'_>, raw: &raw::VirtualServer, protocol: Protocol) -> bool {
    let one_packet = place.boolean("one_packet", &raw.one_packet, false);
    if one_packet && protocol != Protocol::Udp {
        place.child("one_packet", place.span()).problem(
            "is for `protocol = \"udp\"`: connections need all their packets on one server",
        );
    }
    one_packet
}

type Persist<'r> = Box<dyn Fn(IpAddr) -> Result<Option<Persistence>, Reported> + 'r>;

/// The prefix depends on the address's family, which may have its own problem.
fn persistence<'r>(
    place: &'r Place<'_>,
    raw: &'r raw::VirtualServer,
) -> Result<Persist<'r>, Reported> {
    let time = &raw.persistence_timeout;
    let timeout = place.duration_or_zero("persistence_timeout", time, Duration::ZERO);
    if timeout.is_zero() && raw.persistence_granularity.is_some() {
        return Err(place
            .child("persistence_granularity", place.span())
            .problem("needs `persistence_timeout`: write that, for example \"300s\""));
    }
    Ok(Box::new(move |address| {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let leaf = &raw.persistence_granularity;
        let prefix = match place.leaf("persistence_granularity", leaf) {
            None => bits,
            // As ipvsadm and keepalived take it for IPv4.
            Some((_, Scalar::Text(mask))) if address.is_ipv4() => netmask(place, raw, mask)?,
            Some(_) => place.integer("persistence_granularity", leaf, 1..=bits, bits),
        };
        Ok((!timeout.is_zero()).then_some(Persistence { timeout, prefix }))
    }))
}

fn netmask(place: &Place<'_>, raw: &raw::VirtualServer, text: &str) -> Result<u8, Reported> {
    let mask = text.parse().ok().map(std::net::Ipv4Addr::to_bits);
    let prefix = mask.filter(|mask| mask.count_zeros() == mask.trailing_zeros() && *mask != 0);
    let prefix = prefix.and_then(|mask| u8::try_from(mask.count_ones()).ok());
    prefix.ok_or_else(|| {
        let leaf = &raw.persistence_granularity;
        let place =
            place.leaf("persistence_granularity", leaf).map_or_else(|| place.clone(), |(p, _)| p);
        place.problem(format_args!(
            "is {}: write a length of prefix like 24, or a netmask like \"255.255.255.0\"",
            quoted(text)
        ))
    })
}

fn servers(
    place: &Place<'_>,
    raw: &raw::VirtualServer,
    vip: IpAddr,
    forward: Forward,
) -> Result<Vec<RealServer>, Reported> {
    let Some(node) = &raw.servers else { return Err(place.missing("servers", WRITE_SERVERS)) };
    let list = place.child("servers", node.span());
    let tables = place.tables("servers", node, WRITE_SERVERS)?;
    if tables.len() > SERVERS_MAX {
        return Err(list.problem(format_args!("has more than {SERVERS_MAX} servers")));
    }
    let read = |table: Result<(Place<'_>, _), _>| {
        table.and_then(|(place, raw)| real_server(&place, raw, vip, forward))
    };
    let servers: Vec<_> = tables.into_iter().map(read).collect();
    let servers = servers.into_iter().collect::<Result<Vec<RealServer>, Reported>>()?;
    let mut seen = HashSet::new();
    if let Some(twice) = servers.iter().find(|server| !seen.insert(server.address)) {
        return Err(list.problem(format_args!(
            "has {} twice: write it once, with the weights added up",
            twice.address
        )));
    }
    if servers.is_empty() {
        list.warning("is empty: every new flow is dropped until servers are added");
    }
    Ok(servers)
}

fn real_server(
    place: &Place<'_>,
    raw: &raw::RealServer,
    vip: IpAddr,
    forward: Forward,
) -> Result<RealServer, Reported> {
    let address = match place.text("address", &raw.address, WRITE_SERVER) {
        None => Err(place.missing("address", WRITE_SERVER)),
        Some(read) => read.and_then(|(place, text)| server_address(&place, text, vip, forward)),
    };
    let upper = place.integer("uthreshold", &raw.uthreshold, 0..=u32::MAX, 0);
    let lower = place.integer("lthreshold", &raw.lthreshold, 0..=u32::MAX, 0);
    if lower > 0 && lower >= upper {
        place
            .child("lthreshold", place.span())
            .problem(format_args!("is {lower}: write less than `uthreshold`, which is {upper}"));
    }
    Ok(RealServer {
        address: address?,
        weight: place.integer("weight", &raw.weight, 0..=WEIGHT_MAX, 1),
        uthreshold: upper,
        lthreshold: lower,
        inhibit_on_failure: place.boolean("inhibit_on_failure", &raw.inhibit_on_failure, false),
    })
}

fn sorry(
    place: &Place<'_>,
    raw: &raw::VirtualServer,
    vip: IpAddr,
    forward: Forward,
) -> Result<Option<IpAddr>, Reported> {
    let Some(read) = place.text("sorry_server", &raw.sorry_server, WRITE_SERVER) else {
        return Ok(None);
    };
    let (place, text) = read?;
    server_address(&place, text, vip, forward).map(Some)
}

fn server_address(
    place: &Place<'_>,
    text: &str,
    vip: IpAddr,
    forward: Forward,
) -> Result<IpAddr, Reported> {
    if let Ok(full) = text.parse::<SocketAddr>() {
        return Err(place.problem(format_args!(
            "is {}: packets keep their port, so that only addresses are written: \"{}\"",
            quoted(text),
            full.ip()
        )));
    }
    let parsed = text.parse::<IpAddr>().map(|ip| ip.to_canonical());
    let address = parsed
        .ok()
        .filter(|ip| !ip.is_unspecified() && !ip.is_multicast())
        .ok_or_else(|| place.problem(format_args!("is {}: {WRITE_SERVER}", quoted(text))))?;
    if address == vip {
        return Err(place.problem(
            "is the virtual address itself: write the server's own, which differs from it also \
             when the server is this host",
        ));
    }
    if forward == Forward::Dr && address.is_ipv4() != vip.is_ipv4() {
        return Err(place.problem(format_args!(
            "is not of the same IP version as {vip}, which only `forward = \"tunnel\"` can reach: \
             write the server's address of that version"
        )));
    }
    Ok(address)
}

/// What the rest of the file says about the same addresses.
fn check_against(place: &Place<'_>, server: &VirtualServer, others: &Others<'_>) {
    let ServiceKey { protocol, address, port } = server.key;
    if protocol == Protocol::Tcp {
        let same = |listener: &&Listener| {
            let bind = listener.bind;
            bind.ip().to_canonical() == address && (port == 0 || bind.port() == port)
        };
        for listener in others.listeners.iter().filter(same) {
            place.warning(format_args!(
                "forwards what the listener \"{}\" is bound to: that one gets only what is \
                 scheduled to this host as one of the servers",
                listener.name
            ));
        }
    }
    let Some(ha) = others.ha.filter(|_| server.forward == Forward::Dr) else { return };
    let vips = ha.instances.iter().flat_map(|one| one.addresses.iter().chain(&one.excluded));
    let host = if address.is_ipv4() { 32 } else { 128 };
    let net = vips
        .filter(|vip| vip.address == address && vip.prefix < host)
        .find_map(|vip| IpNet::new(vip.address, vip.prefix).ok());
    let Some(net) = net.map(|net| net.trunc()) else { return };
    if let Some(outside) = server.servers.iter().find(|server| !net.contains(&server.address)) {
        place.warning(format_args!(
            "has the server {} outside of {net}: behind a router it needs `forward = \"tunnel\"`; \
             on another link of this host nothing",
            outside.address
        ));
    }
}

/// The checks of virtual servers, in the order of their tables.
pub(super) fn checks(root: &Place<'_>, file: &raw::File) -> Vec<Option<UpstreamCheck>> {
    let write = "write it as `[[virtual_server]]`";
    let tables = root.good_tables("virtual_server", file.virtual_server.as_ref(), write);
    tables.iter().map(|(place, raw)| check(place, raw)).collect()
}

fn check(place: &Place<'_>, raw: &raw::VirtualServer) -> Option<UpstreamCheck> {
    let servers = place.good_tables("servers", raw.servers.as_ref(), WRITE_SERVERS).into_iter();
    let servers = servers.map(|(place, raw)| check::Own {
        place,
        port: &raw.check_port,
        address: &raw.check_address,
    });
    let Some(node) = &raw.check else {
        servers.for_each(|own| own.refuse("virtual server"));
        return None;
    };
    let (table, checked) = place.wanted("check", node, "write a table like { tcp = true }").ok()?;
    let base = check::check(&table, checked, Style::VirtualServer, None).ok()?;
    let all_ports = address(place, raw).is_ok_and(|address| address.port() == 0);
    let probes = !matches!(base.check.kind, Kind::Exec(_));
    if all_ports && probes && base.check.port.is_none() {
        table.problem("needs a `port`, since the virtual server has them all");
    }
    let servers = servers.map(|own| own.apply(&base.check)).collect();
    Some(UpstreamCheck { base, servers })
}

#[cfg(test)]
mod tests;
