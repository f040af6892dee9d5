//! What the XDP datapath needs, in `ringgate tune plan`.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::render::columns;
use crate::l4::config::{Datapath, L4};
use crate::l4::engine::interfaces;
use crate::l4::offload::needs::{self, Choice, Facts, Need};
use crate::sys::bpf::Mode;
use crate::tune::Config;
use crate::tune::machine::{Machine, Target};
use crate::tune::plan::Plan;

/// What a director would find.
pub(super) struct Xdp {
    wanted: Datapath,
    kernel: Option<Need>,
    interfaces: Vec<Interface>,
}

struct Interface {
    name: String,
    driver: String,
    choice: Choice,
    needs: Vec<Need>,
}

/// For the interfaces that the director of the configuration uses, or those that are tuned as a director's. `None` without
/// a director.
pub(super) fn look(config: &Config, machine: &Machine, l4: &L4, plan: &Plan) -> Option<Xdp> {
    let profile = config.profiles.iter().any(|name| name == "director");
    let named = &l4.director.interfaces;
    let names = match () {
        () if l4.services.is_empty() && !profile => return None,
        () if !config.interfaces.is_empty() || l4.services.is_empty() => plan.interfaces.clone(),
        // What other hosts are reached by only the kernel knows.
        () if machine.is_replaced() && named.is_empty() => plan.interfaces.clone(),
        () if machine.is_replaced() => named.clone(),
        () => interfaces(l4).unwrap_or_else(|_| plan.interfaces.clone()),
    };
    let wanted = l4.director.datapath;
    // What would be, if a program is not wanted yet.
    let assumed = if wanted == Datapath::Packet { Datapath::Auto } else { wanted };
    let one = |name: String| {
        let facts = facts(machine, &name, l4);
        let (choice, needs) = (needs::choose(assumed, &facts), needs::native(&facts));
        Interface { name, driver: facts.driver, choice, needs }
    };
    let kernel = (!machine.is_replaced()).then(|| needs::kernel(l4));
    Some(Xdp { wanted, kernel, interfaces: names.into_iter().map(one).collect() })
}

/// A replaced root has an interface's facts in files as `Machine` has its ethtool parameters, and `/ethtool/NAME/driver`.
fn facts(machine: &Machine, name: &str, l4: &L4) -> Facts {
    if !machine.is_replaced() {
        return Facts::read(name, &l4.director);
    }
    let number = |text: String| text.trim().parse().ok();
    let parameter = |parameter: &str| Target::Ethtool(name.to_owned(), parameter.to_owned());
    let value = |of: &str| machine.read(&parameter(of)).ok().and_then(number);
    let most = machine.maximum(&parameter("channels")).and_then(|most| u32::try_from(most).ok());
    Facts {
        interface: name.to_owned(),
        driver: machine.word(&format!("/ethtool/{name}/driver")).unwrap_or_default(),
        lro: value("lro") == Some(1),
        mtu: machine.word(&format!("/sys/class/net/{name}/mtu")).and_then(number).unwrap_or(0),
        channels: value("channels").map(|now| (now, most)),
        cpus: u32::try_from(machine.size().cpus).unwrap_or(u32::MAX),
        directors: u32::try_from(l4.director.cpus.len().max(1)).unwrap_or(u32::MAX),
        ..Facts::default()
    }
}

impl Xdp {
    /// A table for each interface.
    pub(super) fn text(&self) -> String {
        let wanted = name(self.wanted);
        let mut text = format!("\nXDP, with `datapath = \"{wanted}\"`");
        if self.wanted == Datapath::Packet {
            text.push_str("; what `auto` would do");
        }
        text.push_str(":\n");
        let row = |need: &Need| {
            let met = match need.met {
                Some(true) => "yes",
                Some(false) => "no",
                None => "?",
            };
            vec![need.about.to_owned(), met.to_owned(), need.says.clone()]
        };
        if let Some(kernel) = &self.kernel {
            text.push_str(&columns(&[row(kernel)], "  "));
        }
        for one in &self.interfaces {
            let modes = modes(&one.choice.modes);
            let _ = writeln!(text, "  {}: {modes}: {}", one.name, one.choice.why);
            let head = ["IN THE DRIVER", "HERE", "NEEDED"].map(str::to_owned).to_vec();
            let rows: Vec<_> = std::iter::once(head).chain(one.needs.iter().map(row)).collect();
            text.push_str(&columns(&rows, "    "));
        }
        text
    }

    /// The same.
    pub(super) fn json(&self) -> Value {
        let need = |need: &Need| json!({ "about": need.about, "met": need.met, "says": need.says });
        let interface = |one: &Interface| {
            json!({
                "interface": one.name,
                "driver": one.driver,
                "modes": one.choice.modes.iter().map(|mode| mode.as_str()).collect::<Vec<_>>(),
                "why": one.choice.why,
                "native_needs": one.needs.iter().map(need).collect::<Vec<_>>(),
            })
        };
        json!({
            "datapath": name(self.wanted),
            "kernel": self.kernel.as_ref().map(need),
            "interfaces": self.interfaces.iter().map(interface).collect::<Vec<_>>(),
        })
    }
}

fn name(datapath: Datapath) -> &'static str {
    Datapath::ALL.iter().find(|(_, one)| *one == datapath).map_or("", |(name, _)| name)
}

fn modes(modes: &[Mode]) -> String {
    let words: Vec<&str> = modes.iter().map(|mode| mode.as_str()).collect();
    if words.is_empty() { "packet sockets".to_owned() } else { words.join(", then ") }
}
