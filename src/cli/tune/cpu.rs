//! `ringgate tune cpu`.

use std::fmt::Write as _;
use std::io::Write;

use serde_json::json;

use super::args::{Place, What};
use super::{Answer, DONE, Stopped, chosen};
use crate::tune::picture::draw;
use crate::tune::plan::place;
use crate::tune::wanted::show_list;

/// The picture, and the same as systemd and kernel settings.
pub(super) fn run(what: &What, at: &Place, err: &mut dyn Write) -> Result<Answer, Stopped> {
    let (config, machine) = chosen(what, at, err)?;
    let (topology, placement) = place(&machine, &config.interfaces, &config.shards);
    let mut ours: Vec<usize> =
        placement.shards.iter().chain(&placement.housekeeping).copied().collect();
    ours.sort_unstable();
    ours.dedup();
    let parameters = placement.kernel_parameters();
    let mut text = draw(&topology, &placement);
    let _ = writeln!(text, "\n# ringgate.service");
    let _ = writeln!(text, "[Service]\nCPUAffinity={}", show_list(&ours));
    if !placement.housekeeping.is_empty() {
        let keep = show_list(&placement.housekeeping);
        let _ = writeln!(text, "\n# /etc/systemd/system.conf, for everything else");
        let _ = writeln!(text, "[Manager]\nCPUAffinity={keep}");
    }
    let _ = match parameters.is_empty() {
        true => writeln!(text, "\nkernel parameters: none, no CPU is kept free for housekeeping"),
        false => writeln!(text, "\nkernel parameters: {}", parameters.join(" ")),
    };
    let cpus: Vec<_> = topology
        .cpus
        .iter()
        .map(|cpu| {
            json!({
                "cpu": cpu.id, "core": cpu.core, "node": cpu.node, "allowed": cpu.allowed,
                "isolated": cpu.isolated,
            })
        })
        .collect();
    let nics: Vec<_> = topology
        .nics
        .iter()
        .map(|nic| {
            let irqs: Vec<_> = nic
                .irqs
                .iter()
                .map(|irq| {
                    json!({
                        "irq": irq.number, "name": irq.name, "queue": irq.queue, "cpus": irq.cpus,
                        "wanted_cpu": placement.cpu_of_queue(irq.queue),
                    })
                })
                .collect();
            json!({ "name": nic.name, "node": nic.node, "rx": nic.rx, "tx": nic.tx, "irqs": irqs })
        })
        .collect();
    let json = json!({
        "shards": placement.shards,
        "housekeeping": placement.housekeeping,
        "left": placement.left,
        "notes": placement.notes,
        "cpu_affinity": show_list(&ours),
        "kernel_parameters": parameters,
        "cpus": cpus,
        "interfaces": nics,
    });
    Ok(Answer { text, json, code: DONE })
}
