//! Which CPUs run shards, the control thread and interrupts. Pure: a topology in, a plan out.

use super::Shards;
use super::topology::{Cpu, Nic, Topology};
use super::wanted::{Placed, show_list};

/// From this many usable CPUs on, a core is kept for the control thread and everything else.
const SPARE_FROM: usize = 8;
/// Entries of the flow table, as the kernel's scaling.rst suggests for a busy server.
const FLOW_ENTRIES: usize = 32_768;

/// Who runs where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The CPU of each shard, in the order of the shards. Threads of a core follow each other.
    pub shards: Vec<usize>,
    /// CPUs of the control thread and of everything that is not ours; empty: where the shards are.
    pub housekeeping: Vec<usize>,
    /// Usable CPUs left to others.
    pub left: Vec<usize>,
    /// Why it came out so, for people.
    pub notes: Vec<String>,
}

impl Placement {
    /// Decides. Automatically: the CPUs on the network interfaces' NUMA node, all hardware threads;
    /// with eight or more of them the first core is kept free for the control thread and others.
    #[must_use]
    pub fn decide(topology: &Topology, wanted: &Shards) -> Self {
        let mut notes = Vec::new();
        let allowed: Vec<&Cpu> = topology.allowed().collect();
        let unusable = topology.cpus.len() - allowed.len();
        if unusable > 0 {
            notes.push(format!("{unusable} CPUs are outside the affinity mask or cpuset"));
        }
        let (near, far) = by_node(topology, &allowed, &mut notes);
        let (shards, housekeeping) = match wanted {
            Shards::Cpus(cpus) => {
                notes.push("the configuration names the shards' CPUs".to_owned());
                let rest = near.iter().map(|cpu| cpu.id).filter(|id| !cpus.contains(id)).collect();
                (cpus.clone(), rest)
            }
            Shards::Count(count) => {
                let (ours, spare) = split(&near, Some(*count), &mut notes);
                let ids: Vec<usize> = ours.iter().chain(&far).map(|cpu| cpu.id).collect();
                let cpu = |n: usize| ids.get(n.checked_rem(ids.len())?).copied();
                ((0..*count).filter_map(cpu).collect(), spare)
            }
            Shards::Auto => {
                let (ours, spare) = split(&near, None, &mut notes);
                (ours.iter().map(|cpu| cpu.id).collect(), spare)
            }
        };
        let taken = |id: &usize| shards.contains(id) || housekeeping.contains(id);
        let left = allowed.iter().map(|cpu| cpu.id).filter(|id| !taken(id)).collect();
        Self { shards, housekeeping, left, notes }
    }

    /// The shards' CPUs, ascending, each once.
    #[must_use]
    pub fn shard_cpus(&self) -> Vec<usize> {
        let mut cpus = self.shards.clone();
        cpus.sort_unstable();
        cpus.dedup();
        cpus
    }

    /// The CPU that queue number `queue` belongs to.
    #[must_use]
    pub fn cpu_of_queue(&self, queue: usize) -> Option<usize> {
        self.shards.get(queue.checked_rem(self.shards.len())?).copied()
    }

    /// Queue pairs wanted of an interface: as many as shards.
    #[must_use]
    pub fn queues(&self) -> usize {
        self.shard_cpus().len()
    }

    /// The value that placement gives a setting; `Err` says why it does not apply. `nic` and `queue` for
    /// those that are about a queue.
    ///
    /// # Errors
    /// The reason, for people.
    pub fn value(
        &self,
        placed: Placed,
        nics: &[Nic],
        nic: Option<&Nic>,
        queue: usize,
    ) -> Result<String, String> {
        let spread = |nic: &Nic| nic.rx < self.queues();
        let redundant = || "a queue for each shard makes it redundant".to_owned();
        let no_nic = || "no network interface with queues".to_owned();
        match placed {
            Placed::FlowEntries if nics.iter().any(spread) => Ok(FLOW_ENTRIES.to_string()),
            Placed::FlowEntries if nics.is_empty() => Err(no_nic()),
            Placed::FlowEntries => Err(redundant()),
            Placed::FlowCount | Placed::Rps if !nic.is_some_and(spread) => Err(redundant()),
            Placed::FlowCount => {
                Ok((FLOW_ENTRIES / nic.map_or(1, |nic| nic.rx.max(1))).to_string())
            }
            Placed::Rps => Ok(mask(&self.shard_cpus())),
            Placed::Xps if nic.is_none_or(|nic| nic.tx < 2) => {
                Err("a single queue has nothing to choose".to_owned())
            }
            Placed::Xps => {
                let queues = nic.map_or(1, |nic| nic.tx);
                let ours =
                    self.shards.iter().enumerate().filter(|(n, _)| n % queues == queue % queues);
                let mut cpus: Vec<usize> = ours.map(|(_, cpu)| *cpu).collect();
                cpus.sort_unstable();
                cpus.dedup();
                Ok(mask(&cpus))
            }
            Placed::Irq => self.cpu_of_queue(queue).map(|cpu| cpu.to_string()).ok_or_else(no_nic),
            Placed::Channels => Ok(self.queues().to_string()),
            Placed::NohzFull | Placed::Irqaffinity if self.housekeeping.is_empty() => {
                Err("no CPU is kept free for housekeeping".to_owned())
            }
            Placed::Irqaffinity => Ok(show_list(&self.housekeeping)),
            Placed::NohzFull => Ok(show_list(&self.shard_cpus())),
        }
    }

    /// Kernel parameters that go with the placement, for a machine that does nothing else.
    #[must_use]
    pub fn kernel_parameters(&self) -> Vec<String> {
        let pairs = [("nohz_full", Placed::NohzFull), ("irqaffinity", Placed::Irqaffinity)];
        let value = |placed| self.value(placed, &[], None, 0).ok();
        pairs
            .into_iter()
            .filter_map(|(key, placed)| Some(format!("{key}={}", value(placed)?)))
            .collect()
    }
}

/// The usable CPUs of the interfaces' node, and the others.
fn by_node<'a>(
    topology: &Topology,
    allowed: &[&'a Cpu],
    notes: &mut Vec<String>,
) -> (Vec<&'a Cpu>, Vec<&'a Cpu>) {
    let mut nodes: Vec<usize> = topology.nics.iter().filter_map(|nic| nic.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    let is_near = |cpu: &&'a Cpu| nodes.is_empty() || nodes.contains(&cpu.node);
    let (near, far): (Vec<_>, Vec<_>) = allowed.iter().copied().partition(is_near);
    if near.is_empty() {
        if !far.is_empty() {
            notes.push("no usable CPU is on the network interface's NUMA node".to_owned());
        }
        return (far, near);
    }
    if !far.is_empty() {
        let names: Vec<String> = topology.nics.iter().map(|nic| nic.name.clone()).collect();
        notes.push(format!(
            "shards stay on NUMA node {} with {}; the other {} CPUs are left to others",
            show_list(&nodes),
            names.join(", "),
            far.len()
        ));
    }
    (near, far)
}

/// CPUs for shards, by core, and the core kept free. Isolated CPUs are never housekeeping.
fn split<'a>(
    usable: &[&'a Cpu],
    count: Option<usize>,
    notes: &mut Vec<String>,
) -> (Vec<&'a Cpu>, Vec<usize>) {
    let mut cpus = usable.to_vec();
    // Threads of a core stand together, so that a count uses whole cores and queues spread by core.
    cpus.sort_by_key(|cpu| (cpu.core, cpu.id));
    let first = cpus.iter().find(|cpu| !cpu.isolated).map(|cpu| cpu.core);
    let room = count.is_none_or(|count| count < cpus.len());
    let spare = match first {
        Some(core) if cpus.len() >= SPARE_FROM && room => core,
        _ => {
            if count.is_none() && cpus.len() > 1 {
                notes.push(format!(
                    "fewer than {SPARE_FROM} CPUs: each runs a shard, the control thread shares them"
                ));
            }
            return (cpus, Vec::new());
        }
    };
    let (kept, ours): (Vec<_>, Vec<_>) = cpus.into_iter().partition(|cpu| cpu.core == spare);
    notes.push(format!("core {spare} is kept for the control thread and everything else"));
    (ours, kept.iter().map(|cpu| cpu.id).collect())
}

/// A CPU mask as the kernel writes it: hexadecimal, a comma before each 32 bits but the first.
#[must_use]
pub fn mask(cpus: &[usize]) -> String {
    let words = cpus.iter().max().map_or(1, |last| last / 32 + 1);
    let mut mask = vec![0u32; words];
    for cpu in cpus {
        if let Some(word) = mask.get_mut(cpu / 32) {
            *word |= 1 << (cpu % 32);
        }
    }
    let mut parts = mask.iter().rev();
    let first = parts.next().map_or_else(String::new, |word| format!("{word:x}"));
    parts.fold(first, |text, word| format!("{text},{word:08x}"))
}

/// Masks without the zeroes in front, so that `00000000,00000003` is `3`.
#[must_use]
pub fn tidy_mask(text: &str) -> String {
    let digits = text.trim().replace(',', "");
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() { "0".to_owned() } else { digits.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::topology::tests::two_nodes;

    fn flat(count: usize) -> Topology {
        let cpu = |id| Cpu { id, core: id, node: 0, allowed: true, isolated: false };
        Topology { cpus: (0..count).map(cpu).collect(), nics: Vec::new() }
    }

    #[test]
    fn small_machines_run_a_shard_on_each_cpu() {
        let placement = Placement::decide(&flat(2), &Shards::Auto);
        assert_eq!((placement.shards, placement.housekeeping), (vec![0, 1], vec![]));
    }

    #[test]
    fn larger_ones_keep_a_core_free() {
        let placement = Placement::decide(&flat(8), &Shards::Auto);
        assert_eq!((placement.shards, placement.housekeeping), ((1..8).collect(), vec![0]));
        let placement = Placement::decide(&flat(8), &Shards::Count(8));
        assert_eq!((placement.shards, placement.housekeeping), ((0..8).collect(), vec![]));
        let placement = Placement::decide(&flat(8), &Shards::Count(3));
        assert_eq!((placement.shards, placement.housekeeping), (vec![1, 2, 3], vec![0]));
        assert_eq!(placement.left, [4, 5, 6, 7]);
        let placement = Placement::decide(&flat(2), &Shards::Count(3));
        assert_eq!(placement.shards, [0, 1, 0]);
        let placement = Placement::decide(&flat(0), &Shards::Count(3));
        assert!(placement.shards.is_empty());
    }

    #[test]
    fn shards_stay_on_the_interfaces_node_and_cores_stand_together() {
        let root = two_nodes("placement");
        let topology = Topology::read(&root.machine(), &["eth0".to_owned()]);
        let placement = Placement::decide(&topology, &Shards::Auto);
        assert_eq!(placement.shards, [2, 6, 3, 7]);
        assert_eq!(placement.left, [0, 1, 4, 5]);
        let chosen = Placement::decide(&topology, &Shards::Cpus(vec![3, 0]));
        assert_eq!((chosen.shards, chosen.housekeeping), (vec![3, 0], vec![2, 6, 7]));
    }

    #[test]
    fn cpusets_and_isolation_are_respected() {
        let mut topology = flat(10);
        topology.cpus[9].allowed = false;
        topology.cpus[0].isolated = true;
        let placement = Placement::decide(&topology, &Shards::Auto);
        assert_eq!(placement.housekeeping, [1]);
        assert!(placement.shards.contains(&0) && !placement.shards.contains(&9));
    }

    #[test]
    fn queues_get_the_cpus_of_their_shards() {
        let nic = |rx, tx| Nic { name: "e".into(), node: None, rx, tx, irqs: Vec::new() };
        let placement = Placement::decide(&flat(4), &Shards::Auto);
        let (one, four) = (nic(1, 1), nic(4, 4));
        let value = |placed, nic: &Nic, queue| {
            placement.value(placed, std::slice::from_ref(nic), Some(nic), queue)
        };
        assert_eq!(value(Placed::Rps, &one, 0).as_deref(), Ok("f"));
        assert_eq!(value(Placed::FlowEntries, &one, 0).as_deref(), Ok("32768"));
        assert_eq!(value(Placed::FlowCount, &nic(2, 2), 0).as_deref(), Ok("16384"));
        assert!(value(Placed::Rps, &four, 0).is_err());
        assert!(value(Placed::Xps, &one, 0).is_err());
        assert_eq!(value(Placed::Xps, &four, 2).as_deref(), Ok("4"));
        assert_eq!(value(Placed::Xps, &nic(2, 2), 1).as_deref(), Ok("a"));
        assert_eq!(value(Placed::Irq, &four, 5).as_deref(), Ok("1"));
        assert_eq!(value(Placed::Channels, &one, 0).as_deref(), Ok("4"));
        assert!(value(Placed::NohzFull, &four, 0).is_err());
        assert!(placement.kernel_parameters().is_empty());
        let placement = Placement::decide(&flat(8), &Shards::Auto);
        assert_eq!(placement.kernel_parameters(), ["nohz_full=1-7", "irqaffinity=0"]);
    }

    #[test]
    fn masks() {
        for (cpus, text) in [
            (&[0usize, 1][..], "3"),
            (&[], "0"),
            (&[31], "80000000"),
            (&[32], "1,00000000"),
            (&[0, 65], "2,00000000,00000001"),
        ] {
            assert_eq!(mask(cpus), text);
        }
        assert_eq!(tidy_mask("00000000,00000003\n"), "3");
        assert_eq!(tidy_mask("00"), "0");
        assert_eq!(tidy_mask(&mask(&[32])), tidy_mask("0001,00000000"));
    }
}
