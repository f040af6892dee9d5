//! What is known of an interface and of the kernel, by looking.

use std::io;

use super::{Need, hint};
use crate::l4::config::{L4, Settings};
use crate::l4::offload::{Interface, setup};
use crate::l4::tables::Tables;
use crate::packet::netlink::Requests;
use crate::packet::netlink::netdev::xdp_features;
use crate::packet::xdp::{Error, FastPath, Limits};
use crate::protocol::ethernet::Mac;
use crate::sys::ethtool::{self, Parameter};

/// What is known of an interface.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// Its name.
    pub interface: String,
    /// Its driver's name, empty if it has none.
    pub driver: String,
    /// Large receive offload is on.
    pub lro: bool,
    /// The largest packet it takes.
    pub mtu: u32,
    /// Queues in use, and the most there can be.
    pub channels: Option<(u32, Option<u32>)>,
    /// What the kernel says of the driver (`packet::netlink::netdev`), if it does.
    pub features: Option<u64>,
    /// Of a veth pair whose other end is in this namespace.
    pub other_end: Option<OtherEnd>,
    /// CPUs of this machine.
    pub cpus: u32,
    /// CPUs that forward.
    pub directors: u32,
}

/// The other end of a veth pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherEnd {
    /// Its name.
    pub name: String,
    /// An XDP program runs there.
    pub program: bool,
}

impl Facts {
    /// Looks at an interface. What cannot be seen stays unknown.
    #[must_use]
    pub fn read(interface: &str, settings: &Settings) -> Self {
        let mut facts = Self {
            interface: interface.to_owned(),
            driver: ethtool::driver(interface).unwrap_or_default(),
            lro: ethtool::read(interface, Parameter::Lro).is_ok_and(|lro| lro.now == 1),
            channels: ethtool::read(interface, Parameter::Channels)
                .ok()
                .map(|value| (value.now, value.max)),
            cpus: std::thread::available_parallelism()
                .map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX)),
            directors: u32::try_from(settings.cpus.len().max(1)).unwrap_or(u32::MAX),
            ..Self::default()
        };
        // Without netlink there is no director either.
        let _ = facts.ask_netlink();
        facts
    }

    fn ask_netlink(&mut self) -> io::Result<()> {
        let mut requests = Requests::open()?;
        let links = requests.links()?;
        let Some(own) = links.iter().find(|link| link.name == self.interface) else {
            return Ok(());
        };
        self.mtu = own.mtu;
        self.features = xdp_features(own.index).ok();
        // Numbers are of the namespace where the other end is: it is the one that points back.
        let other = links
            .iter()
            .find(|link| Some(link.index) == own.parent && link.parent == Some(own.index));
        if let Some(other) = other.filter(|_| self.driver == "veth") {
            let program = requests.with_programs()?.contains(&other.index);
            self.other_end = Some(OtherEnd { name: other.name.clone(), program });
        }
        Ok(())
    }
}

/// Whether the kernel takes the program: it is loaded, attached nowhere and forgotten.
#[must_use]
pub fn kernel(config: &L4) -> Need {
    let need = |met, says| Need { about: "kernel", met, says };
    match load(config) {
        Ok(()) => need(Some(true), String::from("the kernel takes the program")),
        Err(error @ Error::Load(_)) => need(
            Some(false),
            format!("the kernel refuses the program: {}", first_line(&error.to_string())),
        ),
        Err(error) => need(Some(false), hint(&error)),
    }
}

fn load(config: &L4) -> Result<(), Error> {
    let syn_limit = config.director.syns_per_source != 0;
    let fast = FastPath::new(Limits { flows_v4: 0, flows_v6: 0, syn_limit })?;
    let interface = Interface { index: 1, name: String::new(), mac: Mac([0; 6]), mtu: 1500 };
    let tables = Tables::default();
    fast.program(&setup(&interface, interface.mtu, &tables, &config.director)).map(drop)
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
