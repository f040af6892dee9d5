//! What an interface can do, and what stands in the way.

use crate::l4::config::Datapath;
use crate::packet::xdp::Error;
use crate::sys::bpf::Mode;
use crate::sys::ethtool::{self, Parameter};

/// The modes to try on an interface in turn, and why the first one.
pub(super) fn modes(wanted: Datapath, interface: &str) -> (Vec<Mode>, String) {
    let configured = || String::from("as configured");
    match wanted {
        Datapath::Packet => (Vec::new(), configured()),
        Datapath::Native => (vec![Mode::Native], configured()),
        Datapath::Generic => (vec![Mode::Generic], configured()),
        Datapath::Auto | Datapath::Xdp => {
            let driver = ethtool::driver(interface).unwrap_or_default();
            choose(&driver, ethtool::read(interface, Parameter::Lro).is_ok_and(|lro| lro.now == 1))
        }
    }
}

/// In the driver if it can; not where that would harm frames.
fn choose(driver: &str, lro: bool) -> (Vec<Mode>, String) {
    match driver {
        // Of a frame that a program sends from a veth driver, the kernel forgets that its checksum is still to
        // be completed; it would arrive with a wrong one.
        "veth" => (vec![Mode::Generic], String::from("veth keeps partial checksums only so")),
        _ if lro => (
            vec![Mode::Generic],
            String::from("LRO is on, with which drivers run no program: ethtool -K DEV lro off"),
        ),
        "" => (vec![Mode::Native, Mode::Generic], String::from("the driver takes the program")),
        driver => {
            (vec![Mode::Native, Mode::Generic], format!("the driver {driver} takes the program"))
        }
    }
}

/// What it takes to have maps at all.
pub(super) fn hint(error: &Error) -> String {
    match error {
        Error::Map(_, cause) if cause.raw_os_error() == Some(libc::EPERM) => format!(
            "{error}: XDP needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN (systemd: \
             AmbientCapabilities=CAP_BPF CAP_PERFMON CAP_NET_ADMIN)"
        ),
        Error::Map(_, cause) if cause.raw_os_error() == Some(libc::ENOMEM) => {
            format!("{error}: `director.flows_max` takes about 100 bytes a flow at once")
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn veth_and_lro_are_left_to_the_kernel() {
        assert_eq!(choose("veth", false).0, [Mode::Generic]);
        assert_eq!(choose("ixgbe", true).0, [Mode::Generic]);
        assert_eq!(choose("ixgbe", false).0, [Mode::Native, Mode::Generic]);
        assert_eq!(modes(Datapath::Packet, "lo").0, []);
        assert_eq!(modes(Datapath::Native, "lo").0, [Mode::Native]);
    }
}
