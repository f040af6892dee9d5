//! What an interface can do, and what stands in the way: for the choice of a datapath, and for `ringgate tune plan`.

mod facts;

pub use self::facts::{Facts, OtherEnd, kernel};
use crate::l4::config::Datapath;
use crate::packet::netlink::netdev::BASIC;
use crate::packet::xdp::Error;
use crate::sys::bpf::Mode;

/// The largest MTU with which a frame fits into a page of 4 KiB, as drivers keep frames for programs: 256 bytes of room before it, 320
/// behind it, and its Ethernet header, VLAN tag and check sequence.
pub const MTU_MAX: u32 = 4096 - 256 - 320 - 22;

/// What an interface needs for the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// What it is about, in a word.
    pub about: &'static str,
    /// Whether it is so here; `None`: it cannot be seen from here.
    pub met: Option<bool>,
    /// What is needed and how it is now.
    pub says: String,
}

/// What `auto` does on an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The modes that are tried in turn.
    pub modes: Vec<Mode>,
    /// Why the first one.
    pub why: String,
}

/// The modes to try on an interface in turn, and why the first one.
#[must_use]
pub fn choose(wanted: Datapath, facts: &Facts) -> Choice {
    let configured = |modes: &[Mode]| Choice { modes: modes.to_vec(), why: "as configured".into() };
    match wanted {
        Datapath::Packet => configured(&[]),
        Datapath::Generic => configured(&[Mode::Generic]),
        Datapath::Native => {
            let mut choice = configured(&[Mode::Native]);
            if let Some(lacks) = lacks(facts) {
                choice.why = format!("{}; {lacks}", choice.why);
            }
            choice
        }
        Datapath::Auto | Datapath::Xdp => by_itself(facts),
    }
}

/// In the driver if it can; not where that would harm frames.
fn by_itself(facts: &Facts) -> Choice {
    let generic = |why: String| Choice { modes: vec![Mode::Generic], why };
    let both = |why: String| Choice { modes: vec![Mode::Native, Mode::Generic], why };
    match facts.driver.as_str() {
        // Of a frame that a program sends from a veth driver, the kernel forgets that its checksum is still to
        // be completed; it would arrive with a wrong one.
        "veth" => generic(String::from("veth keeps partial checksums only so")),
        _ if facts.lro => generic(lro(facts).says),
        "" => both(String::from("the driver takes the program")),
        driver => both(format!("the driver {driver} takes the program")),
    }
}

/// What the driver needs to run the program itself.
#[must_use]
pub fn native(facts: &Facts) -> Vec<Need> {
    let mut needs = vec![driver(facts), lro(facts), mtu(facts)];
    needs.extend(channels(facts));
    if facts.driver == "veth" {
        needs.push(other_end(facts));
        needs.push(Need {
            about: "checksums",
            met: None,
            says: String::from(
                "clients that are reached over veth or virtio have to complete checksums themselves: ethtool -K DEV tx off \
                 there, or their frames arrive with wrong ones",
            ),
        });
    }
    needs
}

/// What is known to stand in the way of the program in the driver, in a line.
#[must_use]
pub fn lacks(facts: &Facts) -> Option<String> {
    let open = |need: &Need| need.met != Some(true);
    let lacking = |need: Need| open(&need).then_some(need.says);
    let all: Vec<String> = native(facts).into_iter().filter_map(lacking).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

fn driver(facts: &Facts) -> Need {
    let name = if facts.driver.is_empty() { "without a name" } else { &facts.driver };
    let met = facts.features.map(|features| features & BASIC != 0);
    let says = match met {
        Some(true) => format!("the driver {name} takes the program"),
        Some(false) => format!("the driver {name} runs no programs: generic mode runs it"),
        None => format!(
            "the kernel does not say whether the driver {name} runs programs (6.3 and later do): it is tried at the start"
        ),
    };
    Need { about: "driver", met, says }
}

fn lro(facts: &Facts) -> Need {
    let says = match facts.lro {
        true => "LRO is on, with which drivers run no program: ethtool -K DEV lro off",
        false => "LRO is off",
    };
    Need { about: "lro", met: Some(!facts.lro), says: says.replace("DEV", &facts.interface) }
}

fn mtu(facts: &Facts) -> Need {
    let (name, mtu) = (&facts.interface, facts.mtu);
    let met = mtu <= MTU_MAX;
    let says = if met {
        format!("an MTU of {mtu}: frames fit into one page")
    } else {
        format!(
            "an MTU of {mtu} is above {MTU_MAX}, with which a frame fits into one page of 4 KiB; the program takes frames \
             in one piece: ip link set {name} mtu {MTU_MAX}"
        )
    };
    Need { about: "mtu", met: Some(met), says }
}

/// Queues: some drivers need as many again to send on.
fn channels(facts: &Facts) -> Option<Need> {
    let (now, most) = facts.channels?;
    let (name, cpus) = (&facts.interface, facts.cpus);
    let need = |met, says| Some(Need { about: "channels", met: Some(met), says });
    match (facts.driver.as_str(), most) {
        (driver @ ("ena" | "gve"), Some(most)) => {
            let half = (most / 2).max(1);
            let says = format!("{now} queues of {most}; {driver} needs half of them to send on");
            if now <= half {
                need(true, says)
            } else {
                need(false, format!("{says}: ethtool -L {name} combined {half}"))
            }
        }
        ("virtio_net", Some(most)) if now.saturating_add(cpus) > most => {
            let says = format!(
                "{now} queues of {most}; with fewer than {} virtio_net sends under a lock: give the machine more queues",
                now.saturating_add(cpus)
            );
            need(false, says)
        }
        _ if now < facts.directors => need(
            false,
            format!(
                "{now} queues: a CPU each runs the program, of {} that forward",
                facts.directors
            ),
        ),
        _ => need(true, format!("{now} queues: a CPU each runs the program")),
    }
}

fn other_end(facts: &Facts) -> Need {
    let (met, says) = match &facts.other_end {
        Some(OtherEnd { name, program: true }) => {
            (Some(true), format!("the other end, {name}, runs an XDP program"))
        }
        Some(OtherEnd { name, program: false }) => (
            Some(false),
            format!(
                "the other end, {name}, has to run an XDP program too, which may pass everything: \
                 without one it does not take what is sent back"
            ),
        ),
        None => (
            None,
            String::from(
                "the other end of this veth pair, in another namespace, has to run an XDP program too, which may pass \
                 everything: without one it does not take what is sent back",
            ),
        ),
    };
    Need { about: "other end", met, says }
}

/// What it takes to have maps at all.
pub(super) fn hint(error: &Error) -> String {
    match error {
        Error::Map(_, cause) if cause.raw_os_error() == Some(libc::EPERM) => format!(
            "{error}: XDP needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN (systemd: \
             AmbientCapabilities=CAP_BPF CAP_PERFMON CAP_NET_ADMIN)"
        ),
        Error::Map(_, cause) if cause.raw_os_error() == Some(libc::ENOMEM) => {
            format!("{error}: `director.flows_max` takes 64 bytes a flow at once")
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
