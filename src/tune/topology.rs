//! What CPUs and network queues there are (sysfs, /proc/interrupts, the process's affinity).

use super::machine::{Machine, parse_list};

/// The machine's CPUs and network interfaces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology {
    /// CPUs online, ascending.
    pub cpus: Vec<Cpu>,
    /// Network interfaces that are tuned.
    pub nics: Vec<Nic>,
}

/// A hardware thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpu {
    /// Its number.
    pub id: usize,
    /// The lowest hardware thread of its core, which names the core.
    pub core: usize,
    /// Its NUMA node.
    pub node: usize,
    /// The process may run there: affinity mask and cpusets allow it.
    pub allowed: bool,
    /// Taken from the scheduler by `isolcpus=`.
    pub isolated: bool,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// Its name.
    pub name: String,
    /// The NUMA node it is attached to; `None`: the firmware does not say, or there is only one.
    pub node: Option<usize>,
    /// Receive queues.
    pub rx: usize,
    /// Transmit queues.
    pub tx: usize,
    /// Interrupts of its queues.
    pub irqs: Vec<Irq>,
}

/// The interrupt of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Irq {
    /// Its number.
    pub number: usize,
    /// What the driver calls it.
    pub name: String,
    /// The queue it belongs to.
    pub queue: usize,
    /// CPUs it may interrupt now.
    pub cpus: Vec<usize>,
}

impl Topology {
    /// Reads it; `interfaces` are those that are tuned.
    #[must_use]
    pub fn read(machine: &Machine, interfaces: &[String]) -> Self {
        let nics = interfaces.iter().map(|name| nic(machine, name)).collect();
        Self { cpus: cpus(machine), nics }
    }

    /// CPUs the process may use.
    pub fn allowed(&self) -> impl Iterator<Item = &Cpu> {
        self.cpus.iter().filter(|cpu| cpu.allowed)
    }
}

const CPU: &str = "/sys/devices/system/cpu";

fn cpus(machine: &Machine) -> Vec<Cpu> {
    let list = |path: &str| machine.word(path).map(|text| parse_list(&text));
    let online = list(&format!("{CPU}/online")).unwrap_or_else(|| vec![0]);
    let allowed = allowed(machine);
    let isolated = list(&format!("{CPU}/isolated")).unwrap_or_default();
    let nodes = nodes(machine);
    let cpu = |id: usize| {
        let siblings = list(&format!("{CPU}/cpu{id}/topology/thread_siblings_list"));
        let core = siblings.and_then(|list| list.into_iter().min()).unwrap_or(id);
        let node = nodes.iter().find(|(_, cpus)| cpus.contains(&id)).map_or(0, |(node, _)| *node);
        let allowed = allowed.as_ref().is_none_or(|list| list.contains(&id));
        Cpu { id, core, node, allowed, isolated: isolated.contains(&id) }
    };
    online.into_iter().map(cpu).collect()
}

/// What the process was started with: the main thread's mask, from which cpusets are taken off.
fn allowed(machine: &Machine) -> Option<Vec<usize>> {
    let status = machine.text("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    Some(parse_list(line))
}

fn nodes(machine: &Machine) -> Vec<(usize, Vec<usize>)> {
    let number = |name: String| name.strip_prefix("node")?.parse::<usize>().ok();
    let read = |node: usize| {
        let cpus = machine.word(&format!("/sys/devices/system/node/node{node}/cpulist"))?;
        Some((node, parse_list(&cpus)))
    };
    let names = machine.list("/sys/devices/system/node");
    names.into_iter().filter_map(number).filter_map(read).collect()
}

fn nic(machine: &Machine, name: &str) -> Nic {
    let queues = machine.list(&format!("/sys/class/net/{name}/queues"));
    let count = |kind: &str| queues.iter().filter(|queue| queue.starts_with(kind)).count();
    let node = machine.word(&format!("/sys/class/net/{name}/device/numa_node"));
    Nic {
        name: name.to_owned(),
        node: node.and_then(|node| node.parse().ok()),
        rx: count("rx-"),
        tx: count("tx-"),
        irqs: irqs(machine, name),
    }
}

/// Interrupts whose name says that they are the interface's or its device's, in the order of
/// /proc/interrupts.
fn irqs(machine: &Machine, interface: &str) -> Vec<Irq> {
    let device = machine.link_name(&format!("/sys/class/net/{interface}/device"));
    let table = machine.text("/proc/interrupts").unwrap_or_default();
    let mut found: Vec<Irq> = Vec::new();
    for line in table.lines() {
        let Some((number, rest)) = line.split_once(':') else { continue };
        let (Ok(number), Some(name)) = (number.trim().parse(), rest.split_whitespace().last())
        else {
            continue;
        };
        let Some(part) = queue_part(name, interface, device.as_deref()) else { continue };
        let queue = last_number(part).unwrap_or_else(|| same_kind(&found, part));
        let cpus = machine.word(&format!("/proc/irq/{number}/smp_affinity_list"));
        let cpus = parse_list(&cpus.unwrap_or_default());
        found.push(Irq { number, name: name.to_owned(), queue, cpus });
    }
    found
}

/// `TxRx-0` of `eth0-TxRx-0`, `input.0` of `virtio2-input.0`, `mlx5_comp0` of
/// `mlx5_comp0@pci:0000:03:00.0`; `None` for interrupts of others, and for those that no packet raises.
fn queue_part<'n>(name: &'n str, interface: &str, device: Option<&str>) -> Option<&'n str> {
    let after = |owner: &str| {
        let rest = name.strip_prefix(owner)?;
        if rest.is_empty() { Some(rest) } else { rest.strip_prefix(['-', '@', ':']) }
    };
    let before = |owner: &str| name.strip_suffix(owner)?.strip_suffix("@pci:");
    let part = after(interface).or_else(|| after(device?)).or_else(|| before(device?))?;
    let control = ["config", "control", "event", "async", "asy", "misc", "mgmt", "admin", "aq"];
    let plain = part.trim_end_matches(|c: char| c.is_ascii_digit() || c == '-');
    (!control.iter().any(|word| plain.ends_with(word))).then_some(part)
}

fn last_number(part: &str) -> Option<usize> {
    let digits = part.bytes().rev().take_while(u8::is_ascii_digit).count();
    part.get(part.len() - digits..)?.parse().ok()
}

/// Interrupts without a number belong to one queue after the other.
fn same_kind(found: &[Irq], part: &str) -> usize {
    found.iter().filter(|irq| irq.name.ends_with(part)).count()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::tune::tests::FakeRoot;

    /// Two nodes of two cores with two hardware threads; eth0 with four queues on node 1.
    pub(in crate::tune) fn two_nodes(name: &str) -> FakeRoot {
        let root = FakeRoot::small_machine(name);
        root.put("/sys/devices/system/cpu/online", "0-7\n");
        for (cpu, siblings) in ["0,4", "1,5", "2,6", "3,7"].iter().cycle().take(8).enumerate() {
            let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
            root.put(&path, &format!("{siblings}\n"));
        }
        root.put("/sys/devices/system/node/node0/cpulist", "0-1,4-5\n");
        root.put("/sys/devices/system/node/node1/cpulist", "2-3,6-7\n");
        root.put("/sys/class/net/lo/mtu", "65536\n");
        root.put("/sys/class/net/eth0/mtu", "1500\n");
        root.put("/sys/devices/pci/0000:03:00.0/numa_node", "1\n");
        let link = root.machine().path("/sys/class/net/eth0/device");
        std::os::unix::fs::symlink("../../../devices/pci/0000:03:00.0", link).unwrap();
        let mut table =
            "            CPU0       CPU1\n  1:   5   5  IO-APIC 1-edge i8042\n".to_owned();
        for queue in 0..4 {
            let (irq, path) = (40 + queue, "/sys/class/net/eth0/queues");
            table.push_str(&format!(" {irq}:  0  0 PCI-MSI {queue}-edge eth0-TxRx-{queue}\n"));
            root.put(&format!("/proc/irq/{irq}/smp_affinity_list"), "0-7\n");
            root.put(&format!("{path}/rx-{queue}/rps_cpus"), "00\n");
            root.put(&format!("{path}/rx-{queue}/rps_flow_cnt"), "0\n");
            root.put(&format!("{path}/tx-{queue}/xps_cpus"), "00\n");
        }
        table.push_str(" 50:  0  0 PCI-MSI 9-edge eth0-misc\nNMI: 0 0 Non-maskable interrupts\n");
        root.put("/proc/interrupts", &table);
        root
    }

    #[test]
    fn cores_nodes_and_queues_are_read() {
        let root = two_nodes("topology");
        root.put("/proc/self/status", "Name:\tx\nCpus_allowed_list:\t1-7\n");
        let topology = Topology::read(&root.machine(), &["eth0".to_owned()]);
        let shown: Vec<_> =
            topology.cpus.iter().map(|c| (c.id, c.core, c.node, c.allowed)).collect();
        assert_eq!(shown[0], (0, 0, 0, false));
        assert_eq!(shown[6], (6, 2, 1, true));
        assert_eq!(shown.len(), 8);
        let [nic] = &topology.nics[..] else { panic!("{topology:?}") };
        assert_eq!((nic.node, nic.rx, nic.tx), (Some(1), 4, 4));
        let irqs: Vec<_> = nic.irqs.iter().map(|irq| (irq.number, irq.queue)).collect();
        assert_eq!(irqs, [(40, 0), (41, 1), (42, 2), (43, 3)]);
        assert_eq!(nic.irqs[0].cpus.len(), 8);
    }

    #[test]
    fn drivers_name_their_interrupts_differently() {
        let part = |name| queue_part(name, "eth0", Some("virtio2"));
        assert_eq!(part("virtio2-input.3"), Some("input.3"));
        assert_eq!(part("virtio2-config"), None);
        assert_eq!(part("virtio21-input.3"), None);
        assert_eq!(part("eth0"), Some(""));
        assert_eq!(part("eth0-rx-1"), Some("rx-1"));
        assert_eq!(part("eth01-rx-1"), None);
        let mlx = |name| queue_part(name, "ens1", Some("0000:03:00.0"));
        assert_eq!(mlx("mlx5_comp7@pci:0000:03:00.0"), Some("mlx5_comp7"));
        assert_eq!(mlx("mlx5_async0@pci:0000:03:00.0"), None);
        assert_eq!(last_number("mlx5_comp17"), Some(17));
        assert_eq!(last_number("rx"), None);
    }
}
