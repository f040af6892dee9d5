//! `[director]`: what all virtual servers share.

use std::net::IpAddr;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::vrrp::interface_name;
use crate::balance::siphash::Key;
use crate::control::config::place::{Place, Reported};
use crate::control::config::raw::{self, Leaf, Scalar};
use crate::control::config::units;
use crate::l4::config::{Datapath, Settings, Timeouts};

const WRITE_CPUS: &str = r#"write CPUs like "2-3", or "auto" for one director that is not pinned"#;
const WRITE_INTERFACES: &str = r#"write a list of interfaces like ["eth0"]"#;
const WRITE_PEERS: &str = r#"write a list of the other directors' addresses like ["192.168.1.3"]"#;
const WRITE_SEED: &str = "write 16 characters at least, the same on all directors: `openssl rand -base64 24` prints some";
const PUBLIC_SEED: &str = "is not set: the default is public, and who knows it can choose source ports that all go to one \
    server or into one bucket of the flow table; `openssl rand -base64 24` prints one, the same on all directors";

/// Directors at most.
const CPUS_MAX: usize = 256;
/// Interfaces and peers at most.
const LIST_MAX: usize = 64;
/// A table of flows of 3.5 GiB.
const FLOWS_MAX: u32 = 1 << 26;

pub(super) fn director(root: &Place<'_>, file: &raw::File) -> Result<Settings, Reported> {
    let empty = raw::Director::default();
    let table = root.table("director", file.director.as_ref(), "write a table, `[director]`");
    let (place, raw) = table.unwrap_or_else(|| (root.child("director", 0..0), &empty));
    let (cpus, interfaces) = (cpus(&place, raw), interfaces(&place, raw));
    let (peers, seed) = (peers(&place, raw), seed(&place, raw));
    let default = Settings::default();
    if raw.seed.is_none() && file.virtual_server.is_some() {
        place.child("seed", place.span()).warning(PUBLIC_SEED);
    }
    let rate = default.new_flows_per_second;
    let rate = place.integer("new_flows_per_second", &raw.new_flows_per_second, 0..=u32::MAX, rate);
    let syns = place.integer("syns_per_source", &raw.syns_per_source, 0..=u32::MAX, 0);
    Ok(Settings {
        datapath: place.choice("datapath", &raw.datapath, &Datapath::ALL, default.datapath),
        syns_per_source: syns,
        flows_max: place.integer("flows_max", &raw.flows_max, 1024..=FLOWS_MAX, default.flows_max),
        new_flows_per_second: rate,
        timeouts: timeouts(&place, raw),
        cpus: cpus?,
        interfaces: interfaces?,
        peers: peers?,
        seed: seed?.unwrap_or(default.seed),
    })
}

fn timeouts(place: &Place<'_>, raw: &raw::Director) -> Timeouts {
    let time = |key, leaf: &Option<Leaf>, default: Duration| place.duration(key, leaf, default);
    let default = Timeouts::default();
    Timeouts {
        tcp: time("tcp_timeout", &raw.tcp_timeout, default.tcp),
        tcp_fin: time("tcp_fin_timeout", &raw.tcp_fin_timeout, default.tcp_fin),
        tcp_syn: time("tcp_syn_timeout", &raw.tcp_syn_timeout, default.tcp_syn),
        closed: time("closed_timeout", &raw.closed_timeout, default.closed),
        udp: time("udp_timeout", &raw.udp_timeout, default.udp),
        sctp: time("sctp_timeout", &raw.sctp_timeout, default.sctp),
    }
}

fn cpus(place: &Place<'_>, raw: &raw::Director) -> Result<Vec<usize>, Reported> {
    let Some((place, scalar)) = place.leaf("cpus", &raw.cpus) else { return Ok(Vec::new()) };
    let cpus = match scalar {
        Scalar::Text(text) if text == "auto" => return Ok(Vec::new()),
        Scalar::Text(text) => {
            units::cpus(text).map_err(|_: String| place.wrong(scalar, WRITE_CPUS))?
        }
        other => return Err(place.wrong(other, WRITE_CPUS)),
    };
    if cpus.len() > CPUS_MAX {
        return Err(place.wrong(scalar, format_args!("{CPUS_MAX} are possible")));
    }
    Ok(cpus)
}

fn interfaces(place: &Place<'_>, raw: &raw::Director) -> Result<Vec<String>, Reported> {
    let mut names: Vec<String> = Vec::new();
    for (place, name) in place.texts("interfaces", &raw.interfaces, WRITE_INTERFACES) {
        interface_name(&place, name)?;
        room(&place, names.len())?;
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn peers(place: &Place<'_>, raw: &raw::Director) -> Result<Vec<IpAddr>, Reported> {
    let mut peers = Vec::new();
    for (place, text) in place.texts("peers", &raw.peers, WRITE_PEERS) {
        let peer: IpAddr = text.parse().map_err(|_| {
            place.problem(format_args!("is \"{}\": {WRITE_PEERS}", text.escape_debug()))
        })?;
        room(&place, peers.len())?;
        peers.push(peer.to_canonical());
    }
    Ok(peers)
}

fn room(place: &Place<'_>, taken: usize) -> Result<(), Reported> {
    match taken < LIST_MAX {
        true => Ok(()),
        false => Err(place.problem(format_args!("is one too many: {LIST_MAX} are possible"))),
    }
}

/// The key is derived, so that any text will do.
fn seed(place: &Place<'_>, raw: &raw::Director) -> Result<Option<Key>, Reported> {
    let Some(read) = place.text("seed", &raw.seed, WRITE_SEED) else { return Ok(None) };
    let (place, text) = read?;
    if text.len() < 16 {
        return Err(place.problem(format_args!("is too short: {WRITE_SEED}")));
    }
    let digest = Sha256::digest([b"ringgate director ", text.as_bytes()].concat());
    let word = |at: usize| {
        digest.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b))
    };
    Ok(Some(Key(word(0), word(8))))
}

#[cfg(test)]
mod tests {
    use crate::control::config::tests::{bad, good};
    use crate::l4::config::Settings;

    #[test]
    fn problems() {
        bad(&[
            ("[director]\ncpus = \"two\"", "2:8", "write CPUs like"),
            ("[director]\ncpus = 2", "2:8", "write CPUs like"),
            ("[director]\ninterfaces = [\"a b\"]", "2:15", "write the name of an interface"),
            ("[director]\npeers = [\"eth0\"]", "2:10", "write a list of the other directors'"),
            ("[director]\nflows_max = 10", "2:13", "write a whole number from 1024 to"),
            ("[director]\ndatapath = \"dpdk\"", "2:12", "generic"),
            ("[director]\nseed = \"short\"", "2:8", "is too short: write 16 characters"),
            ("[director]\nudp_timeout = \"0s\"", "2:15", "`director.udp_timeout`"),
            ("[director]\nudp_timout = \"1s\"", "2:1", "did you mean `udp_timeout`?"),
        ]);
    }

    #[test]
    fn values() {
        let of = |keys: &str| good(&format!("[director]\n{keys}")).l4.director;
        assert_eq!(of(""), Settings::default());
        let set = of("cpus = \"1,4-5\"\npeers = [\"::ffff:10.0.0.2\", \"2001:db8::1\"]");
        assert_eq!(set.cpus, [1, 4, 5]);
        assert_eq!(
            set.peers.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.0.0.2", "2001:db8::1"]
        );
        let seeds = ["0123456789abcdef", "0123456789abcdeg"]
            .map(|seed| of(&format!("seed = \"{seed}\"")).seed);
        assert_ne!(seeds[0], seeds[1]);
        assert_eq!(seeds[0], of("seed = \"0123456789abcdef\"").seed);
    }

    #[test]
    fn a_public_seed_is_told() {
        let server = "[[virtual_server]]\naddress = \"192.0.2.1:80\"\nservers = []\n";
        let told = |director: &str| {
            let warnings = good(&format!("{director}{server}")).warnings;
            warnings.into_iter().any(|one| one.contains("`director.seed` is not set"))
        };
        assert!(told("") && told("[director]\n"));
        assert!(!told("[director]\nseed = \"0123456789abcdef\"\n"));
        let alone = good("[director]").warnings;
        assert!(!alone.iter().any(|one| one.contains("seed")), "nobody is aimed at: {alone:?}");
    }
}
