//! `[vrrp.NAME]`: one virtual router.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use rustls::pki_types::ServerName;

use super::{Names, auth, script, track};
use crate::control::config::place::{Place, Reported};
use crate::control::config::raw::{self, Leaf};
use crate::control::config::units::show_duration;
use crate::control::config::validate::tls;
use crate::ha::config::{Announcements, Instance, Trust, Vip, Webhook};
use crate::protocol::vrrp::{ADDRESSES_MAX, ChecksumPolicy, Family, Interval, OWNER, Version};

const WRITE_ADDRESSES: &str =
    r#"write a list like ["192.168.1.100/24", "192.168.1.101/24 dev eth1 label eth1:1"]"#;
const WRITE_INTERFACE: &str = r#"write the name of an interface like "eth0""#;
const WRITE_PEERS: &str = r#"write a list of the other routers' addresses like ["192.168.1.2"]"#;
const WRITE_WEBHOOK: &str =
    r#"write one like "https://hooks.example.net/vip" or "http://10.0.0.9:8080/vip""#;
const WRITE_LEASE: &str = r#"write whole seconds from "1s" to "60s", or "off""#;

/// Ways to peers beside the primary interface.
const HEARTBEATS_MAX: usize = 3;
/// Peers and more addresses at most.
const LIST_MAX: usize = 255;

pub(super) fn read(
    place: &Place<'_>,
    name: &str,
    raw: &raw::Vrrp,
    names: &Names<'_>,
) -> Result<Instance, Reported> {
    let versions = [(2, Version::V2), (3, Version::V3)];
    let number = place.integer("version", &raw.version, 2..=3, 3);
    let version = versions.iter().find(|(n, _)| *n == number).map_or(Version::V3, |(_, v)| *v);
    let interface = required_interface(place, raw);
    let addresses = addresses(place, raw, version);
    let vrid = match &raw.virtual_router_id {
        None => Err(place.missing("virtual_router_id", "write a number from 1 to 255")),
        Some(_) => Ok(place.integer("virtual_router_id", &raw.virtual_router_id, 1..=255u8, 1)),
    };
    let priority = place.integer("priority", &raw.priority, 1..=OWNER, 100);
    let interval = interval(place, raw, version);
    let checksums = [
        ("auto", ChecksumPolicy::Auto),
        ("rfc9568", ChecksumPolicy::Rfc9568),
        ("pseudo", ChecksumPolicy::Pseudo),
    ];
    let states = [
        ("backup", false),
        ("BACKUP", false),
        ("active", true),
        ("master", true),
        ("MASTER", true),
    ];
    let excluded = vips(place, "addresses_excluded", &raw.addresses_excluded);
    let auth = auth::read(place, raw, version);
    let tracks = track::read(place, raw, names);
    let lease = lease(place, raw);
    let webhook = webhook(place, raw);
    let notify = script::command(place, "notify", &raw.notify);
    let heartbeats = heartbeats(place, raw);
    let addresses = addresses?;
    let family = addresses.first().map_or(Family::V4, |vip| Family::of(vip.address));
    let (source, peers) = (source(place, raw, family), peers(place, raw, family));
    Ok(Instance {
        name: name.to_owned(),
        interface: interface?,
        vrid: vrid?,
        version,
        priority,
        interval: interval?,
        preempt: place.boolean("preempt", &raw.preempt, true),
        preempt_delay: place.duration_or_zero("preempt_delay", &raw.preempt_delay, Duration::ZERO),
        start_active: place.choice("state", &raw.state, &states, false),
        addresses,
        excluded: excluded?,
        source: source?,
        unicast_peers: peers?,
        min_ttl: place.integer("unicast_min_ttl", &raw.unicast_min_ttl, 1..=255, 255),
        auth: auth?,
        checksum: place.choice("checksum", &raw.checksum, &checksums, ChecksumPolicy::Auto),
        announce: announcements(place, raw),
        tracks: tracks?,
        nofail: place.boolean("nofail", &raw.nofail, false),
        lease: lease?,
        virtual_mac: place.boolean("use_vmac", &raw.use_vmac, false),
        heartbeat_interfaces: heartbeats?,
        notify: notify?,
        webhook: webhook?,
    })
}

fn announcements(place: &Place<'_>, raw: &raw::Vrrp) -> Announcements {
    let time = |key, leaf, seconds| place.duration_or_zero(key, leaf, Duration::from_secs(seconds));
    Announcements {
        repeat: place.integer("garp_master_repeat", &raw.garp_master_repeat, 1..=60, 5),
        delay: time("garp_master_delay", &raw.garp_master_delay, 5),
        refresh: time("garp_master_refresh", &raw.garp_master_refresh, 60),
    }
}

fn required_interface(place: &Place<'_>, raw: &raw::Vrrp) -> Result<String, Reported> {
    match place.text("interface", &raw.interface, WRITE_INTERFACE) {
        None => Err(place.missing("interface", WRITE_INTERFACE)),
        Some(read) => {
            let (place, name) = read?;
            interface_name(&place, name)?;
            Ok(name.to_owned())
        }
    }
}

/// A name that the kernel would give an interface; whether there is one is seen at run time.
pub(in crate::control::config::validate) fn interface_name(
    place: &Place<'_>,
    name: &str,
) -> Result<(), Reported> {
    let bad = |c: char| c == '/' || c.is_whitespace() || c.is_control();
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(bad) {
        let name = name.escape_debug();
        return Err(place.problem(format_args!("is \"{name}\": {WRITE_INTERFACE}")));
    }
    Ok(())
}

fn heartbeats(place: &Place<'_>, raw: &raw::Vrrp) -> Result<Vec<String>, Reported> {
    let write = r#"write a list of other interfaces like ["eth1"]"#;
    let mut names = Vec::new();
    for (place, name) in place.texts("heartbeat_interfaces", &raw.heartbeat_interfaces, write) {
        interface_name(&place, name)?;
        if names.len() >= HEARTBEATS_MAX {
            return Err(place.problem(format_args!("is one too many: {HEARTBEATS_MAX} are enough")));
        }
        names.push(name.to_owned());
    }
    Ok(names)
}

fn interval(place: &Place<'_>, raw: &raw::Vrrp, version: Version) -> Result<Interval, Reported> {
    let (default, write) = match version {
        Version::V2 => (
            Interval::SECOND,
            "version 2 counts in seconds: write \"1s\" to \"255s\", or `version = 3`",
        ),
        Version::V3 => (Interval::TENTH, "write \"10ms\" to \"40950ms\", in steps of 10 ms"),
    };
    let wanted = place.duration("advertise", &raw.advertise, default.duration());
    Interval::from_duration(wanted, version).ok_or_else(|| {
        let place =
            place.leaf("advertise", &raw.advertise).map_or_else(|| place.clone(), |(p, _)| p);
        place.problem(format_args!("is {}: {write}", show_duration(wanted)))
    })
}

fn addresses(place: &Place<'_>, raw: &raw::Vrrp, version: Version) -> Result<Vec<Vip>, Reported> {
    let mut vips = vips(place, "addresses", &raw.addresses)?;
    let at = |key: &str| place.leaf(key, &raw.addresses).map_or_else(|| place.clone(), |(p, _)| p);
    let Some(first) = vips.first() else {
        return Err(place.missing("addresses", WRITE_ADDRESSES));
    };
    let family = Family::of(first.address);
    if vips.iter().any(|vip| Family::of(vip.address) != family) {
        return Err(at("addresses").problem(
            "mixes IPv4 and IPv6: write those of the other family to addresses_excluded, or to a \
             [vrrp.NAME] of their own in the same [vrrp_sync_group.NAME]",
        ));
    }
    if family == Family::V6 && version == Version::V2 {
        return Err(at("addresses").problem("has IPv6 addresses, which need `version = 3`"));
    }
    // RFC 9568 section 5.2.9: a link-local address comes first.
    let link_local = |vip: &Vip| matches!(vip.address, IpAddr::V6(a) if a.is_unicast_link_local());
    if family == Family::V6 && !vips.iter().any(link_local) {
        at("addresses").warning(
            "has no link-local address, which RFC 9568 wants first: add one like \"fe80::100/64\"",
        );
    }
    vips.sort_by_key(|vip| !link_local(vip));
    Ok(vips)
}

fn vips(place: &Place<'_>, key: &str, leaf: &Option<Leaf>) -> Result<Vec<Vip>, Reported> {
    let mut vips: Vec<Vip> = Vec::new();
    for (place, text) in place.texts(key, leaf, WRITE_ADDRESSES) {
        let vip = vip(text).ok_or_else(|| {
            place.problem(format_args!("is \"{}\": {WRITE_ADDRESSES}", text.escape_debug()))
        })?;
        if vips.iter().any(|known| known.address == vip.address) {
            return Err(place.problem(format_args!("names {} a second time", vip.address)));
        }
        if vips.len() >= ADDRESSES_MAX.min(LIST_MAX) {
            return Err(place.problem(format_args!("is one too many: {LIST_MAX} are possible")));
        }
        vips.push(vip);
    }
    Ok(vips)
}

/// `ADDRESS[/PREFIX] [dev NAME] [label NAME]`; without prefix it is a host address, as in keepalived.
fn vip(text: &str) -> Option<Vip> {
    let mut words = text.split_ascii_whitespace();
    let first = words.next()?;
    let (address, prefix) = match first.split_once('/') {
        Some((address, prefix)) => (address.parse::<IpAddr>().ok()?, Some(prefix.parse().ok()?)),
        None => (first.parse().ok()?, None),
    };
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.unwrap_or(longest);
    let unusable = address.is_unspecified() || address.is_multicast() || address.is_loopback();
    if prefix == 0 || prefix > longest || unusable {
        return None;
    }
    let mut vip = Vip { address, prefix, device: None, label: None };
    while let Some(word) = words.next() {
        let value = words.next().filter(|value| value.len() < libc::IFNAMSIZ)?.to_owned();
        match word {
            "dev" if vip.device.is_none() => vip.device = Some(value),
            "label" if vip.label.is_none() && address.is_ipv4() => vip.label = Some(value),
            _ => return None,
        }
    }
    Some(vip)
}

fn address(place: &Place<'_>, text: &str, family: Family) -> Result<IpAddr, Reported> {
    let parsed = text.parse::<IpAddr>().ok().filter(|address| Family::of(*address) == family);
    parsed.ok_or_else(|| {
        let example = if family == Family::V4 { "192.168.1.2" } else { "fe80::2" };
        let text = text.escape_debug();
        place.problem(format_args!("is \"{text}\": write an address like \"{example}\""))
    })
}

fn source(place: &Place<'_>, raw: &raw::Vrrp, family: Family) -> Result<Option<IpAddr>, Reported> {
    let write = "write one of the interface's own addresses";
    match place.text("source_address", &raw.source_address, write) {
        None => Ok(None),
        Some(read) => read.and_then(|(place, text)| address(&place, text, family)).map(Some),
    }
}

fn peers(place: &Place<'_>, raw: &raw::Vrrp, family: Family) -> Result<Vec<IpAddr>, Reported> {
    let mut peers = Vec::new();
    for (place, text) in place.texts("unicast_peers", &raw.unicast_peers, WRITE_PEERS) {
        if peers.len() >= LIST_MAX {
            return Err(place.problem(format_args!("is one too many: {LIST_MAX} are possible")));
        }
        peers.push(address(&place, text, family)?);
    }
    Ok(peers)
}

fn lease(place: &Place<'_>, raw: &raw::Vrrp) -> Result<Option<Duration>, Reported> {
    let Some(read) = place.text("lease", &raw.lease, WRITE_LEASE) else {
        return Ok(Some(Duration::from_secs(2)));
    };
    let (at, text) = read?;
    if text == "off" {
        return Ok(None);
    }
    let time = crate::control::config::units::duration(text).ok();
    let time = time.filter(|time| time.subsec_nanos() == 0 && (1..=60).contains(&time.as_secs()));
    time.map(Some)
        .ok_or_else(|| at.problem(format_args!("is \"{}\": {WRITE_LEASE}", text.escape_debug())))
}

fn webhook(place: &Place<'_>, raw: &raw::Vrrp) -> Result<Option<Webhook>, Reported> {
    let ca = tls::path(place, "notify_webhook_ca", &raw.notify_webhook_ca);
    let Some(read) = place.text("notify_webhook", &raw.notify_webhook, WRITE_WEBHOOK) else {
        return match ca {
            Some(_) => Err(place.missing("notify_webhook", WRITE_WEBHOOK)),
            None => Ok(None),
        };
    };
    let (at, text) = read?;
    let webhook = parse_webhook(text).ok_or_else(|| {
        at.problem(format_args!("is \"{}\": {WRITE_WEBHOOK}", text.escape_debug()))
    })?;
    if webhook.tls.is_none() && ca.is_some() {
        return Err(at.problem("is not https, for which `notify_webhook_ca` is: remove that"));
    }
    let span = ca.as_ref().map_or_else(|| at.span(), |ca| ca.span.clone());
    let trust = Trust { ca: ca.map(|ca| ca.path), span, ..Trust::default() };
    Ok(Some(Webhook { tls: webhook.tls.map(|_| trust), ..webhook }))
}

/// `http://` or `https://`, a name or an address, a port unless it is the scheme's, a path.
fn parse_webhook(text: &str) -> Option<Webhook> {
    let (scheme, rest) = text.split_once("://")?;
    let (port, tls) = match scheme {
        "http" => (80, None),
        "https" => (443, Some(Trust::default())),
        _ => return None,
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    // What stands behind the brackets of an IPv6 address, or the colon of anything else.
    let (host, written) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']')?;
            address.parse::<Ipv6Addr>().ok()?;
            (address, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let port = written.map_or(Some(port), |text| text.parse().ok().filter(|port| *port > 0))?;
    let sound =
        ServerName::try_from(host).is_ok() && path.bytes().all(|byte| byte.is_ascii_graphic());
    sound.then(|| Webhook {
        authority: authority.to_owned(),
        host: host.to_owned(),
        port,
        target: format!("/{path}"),
        tls,
    })
}

/// What only shows when all instances are known.
pub(super) fn check_together(
    root: &Place<'_>,
    file: &raw::File,
    instances: &[Instance],
) -> Result<(), Reported> {
    let place = |instance: &Instance| {
        let span = file.vrrp.as_ref().and_then(|node| match node.get_ref() {
            raw::Content::Wanted(named) => {
                named.keys().find(|key| *key.get_ref() == instance.name).map(toml::Spanned::span)
            }
            raw::Content::Other(_) => None,
        });
        root.child("vrrp", 0..0).child(&instance.name, span.unwrap_or(0..0))
    };
    for (index, one) in instances.iter().enumerate() {
        for other in instances.iter().take(index) {
            let same_router = (&one.interface, one.vrid, one.family())
                == (&other.interface, other.vrid, other.family());
            if same_router {
                return Err(place(one).problem(format_args!(
                    "has the interface and virtual_router_id of `vrrp.{}`: write another id",
                    other.name
                )));
            }
            let macs = (one.virtual_mac, one.vrid, one.family())
                == (other.virtual_mac, other.vrid, other.family());
            if macs && one.virtual_mac {
                return Err(place(one).problem(format_args!(
                    "has `use_vmac` and the virtual_router_id of `vrrp.{}`, so that both would have the \
                     same MAC address and interface: write another id",
                    other.name
                )));
            }
            let all = |instance: &Instance| {
                let vips = instance.addresses.iter().chain(&instance.excluded);
                vips.map(|vip| vip.address).collect::<Vec<_>>()
            };
            if let Some(shared) = all(one).iter().find(|address| all(other).contains(address)) {
                return Err(place(one).problem(format_args!(
                    "has the address {shared}, as `vrrp.{}` has: one router must hold it",
                    other.name
                )));
            }
        }
        if one.priority == OWNER && !one.tracks.is_empty() {
            place(one).warning(
                "has the owner's priority 255, which weights do not change: write 254 or less",
            );
        }
    }
    Ok(())
}
