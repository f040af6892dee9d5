//! The placement as a picture in text.

use std::fmt::Write as _;

use super::placement::Placement;
use super::topology::{Cpu, Topology};
use super::wanted::show_list;

/// What a CPU does.
fn role(cpu: &Cpu, placement: &Placement) -> String {
    let shards: Vec<usize> = placement
        .shards
        .iter()
        .enumerate()
        .filter(|(_, id)| **id == cpu.id)
        .map(|(shard, _)| shard)
        .collect();
    match &shards[..] {
        [] if placement.housekeeping.contains(&cpu.id) => "control, system".to_owned(),
        [] if !cpu.allowed => "not ours".to_owned(),
        [] => "left to others".to_owned(),
        [shard] => format!("shard {shard}"),
        several => format!("shards {}", show_list(several)),
    }
}

/// One line a CPU, by NUMA node and core; then each interface's queues.
#[must_use]
pub fn draw(topology: &Topology, placement: &Placement) -> String {
    let mut text = String::new();
    let mut nodes: Vec<usize> = topology.cpus.iter().map(|cpu| cpu.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    for node in nodes {
        let on = |nic: &&super::topology::Nic| nic.node.unwrap_or(0) == node;
        let nics: Vec<&str> =
            topology.nics.iter().filter(on).map(|nic| nic.name.as_str()).collect();
        let nics = if nics.is_empty() { String::new() } else { format!("  [{}]", nics.join(", ")) };
        let _ = writeln!(text, "NUMA node {node}{nics}");
        let mut cpus: Vec<&Cpu> = topology.cpus.iter().filter(|cpu| cpu.node == node).collect();
        cpus.sort_by_key(|cpu| (cpu.core, cpu.id));
        let mut core = None;
        for (index, cpu) in cpus.iter().enumerate() {
            let last = cpus.get(index + 1).is_none_or(|next| next.core != cpu.core);
            let edge = match (core == Some(cpu.core), last) {
                (false, true) => "[",
                (false, false) => "┌",
                (true, false) => "│",
                (true, true) => "└",
            };
            core = Some(cpu.core);
            let irqs = irqs_on(topology, placement, cpu.id);
            let isolated = if cpu.isolated { "  isolated" } else { "" };
            let line =
                format!("  {edge} cpu {:<4} {:<16}{irqs}{isolated}", cpu.id, role(cpu, placement));
            let _ = writeln!(text, "{}", line.trim_end());
        }
    }
    for nic in &topology.nics {
        let _ = write!(text, "{}: {} receive, {} transmit queues", nic.name, nic.rx, nic.tx);
        let wanted = placement.queues();
        let _ = match nic.rx {
            rx if rx < wanted => {
                writeln!(text, "; fewer than {wanted} shards: RPS spreads packets")
            }
            _ => writeln!(text, "; queue n belongs to shard n"),
        };
    }
    for note in &placement.notes {
        let _ = writeln!(text, "{note}");
    }
    text
}

/// The interrupts that belong on a CPU, with `*` where they are not there yet.
fn irqs_on(topology: &Topology, placement: &Placement, cpu: usize) -> String {
    let mut words = Vec::new();
    for nic in &topology.nics {
        for irq in nic.irqs.iter().filter(|irq| placement.cpu_of_queue(irq.queue) == Some(cpu)) {
            let moved = if irq.cpus == [cpu] { "" } else { "*" };
            words.push(format!("{} q{} irq {}{moved}", nic.name, irq.queue, irq.number));
        }
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::Shards;
    use crate::tune::topology::tests::two_nodes;

    #[test]
    fn nodes_cores_queues_and_roles_are_drawn() {
        let root = two_nodes("picture");
        root.put("/proc/irq/41/smp_affinity_list", "6\n");
        let topology = Topology::read(&root.machine(), &["eth0".to_owned()]);
        let placement = Placement::decide(&topology, &Shards::Auto);
        let picture = draw(&topology, &placement);
        let expected = "\
NUMA node 0
  ┌ cpu 0    left to others
  └ cpu 4    left to others
  ┌ cpu 1    left to others
  └ cpu 5    left to others
NUMA node 1  [eth0]
  ┌ cpu 2    shard 0         eth0 q0 irq 40*
  └ cpu 6    shard 1         eth0 q1 irq 41
  ┌ cpu 3    shard 2         eth0 q2 irq 42*
  └ cpu 7    shard 3         eth0 q3 irq 43*
eth0: 4 receive, 4 transmit queues; queue n belongs to shard n
shards stay on NUMA node 1 with eth0; the other 4 CPUs are left to others
fewer than 8 CPUs: each runs a shard, the control thread shares them
";
        assert_eq!(picture, expected);
    }
}
