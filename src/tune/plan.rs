//! What is, what should be, and what would have to be done. Changes nothing.

mod planner;

use serde::Serialize;

use self::planner::Planner;
pub(super) use self::planner::judge;
use super::machine::{Machine, Target};
use super::owners::{Owner, Owners};
use super::placement::Placement;
use super::setting::{Risk, Scope};
use super::topology::Topology;
use super::wanted::Wanted;
use super::{Config, Shards};

/// Where one setting of the checklist stands on this machine.
#[derive(Debug, Clone, Serialize)]
pub struct Item {
    /// The sysctl, or our name with the interface and queue in it.
    pub key: String,
    /// The checklist's name.
    pub setting: String,
    /// The value now; `None`: there is none.
    pub now: Option<String>,
    /// The wanted value, for people.
    pub wanted: String,
    /// The verdict.
    pub status: Status,
    /// What would be written, or what to boot with; `None` when nothing is to be done.
    pub to: Option<String>,
    /// Why it is not applicable, refused, denied or advice.
    pub reason: Option<String>,
    /// Why it is wanted.
    pub why: String,
    /// How likely a change does harm.
    pub risk: Risk,
    /// What may go wrong.
    pub trap: String,
    /// Whom a change concerns.
    pub scope: Scope,
    /// Where that is documented.
    pub source: String,
    /// How to undo it by hand.
    pub undo: String,
    /// Who else sets it.
    pub also_set_by: Vec<Owner>,
    /// Where the value lives.
    pub target: Target,
    /// What decides whether a value is good.
    #[serde(skip)]
    pub rule: Wanted,
    /// A value beyond what is wanted is brought back.
    #[serde(skip)]
    pub forced: bool,
}

/// Where a setting stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// As wanted.
    Holds,
    /// More than wanted, and left so.
    Beyond,
    /// To be changed.
    Change,
    /// It cannot apply here.
    NotApplicable,
    /// It would be dangerous here, and is not allowed by name.
    Refused,
    /// It takes more privilege.
    Denied,
    /// For the operator to do: it cannot be done now.
    Advice,
}

impl Status {
    /// As JSON and metrics spell it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::Beyond => "beyond",
            Self::Change => "change",
            Self::NotApplicable => "not_applicable",
            Self::Refused => "refused",
            Self::Denied => "denied",
            Self::Advice => "advice",
        }
    }

    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Holds,
        Self::Beyond,
        Self::Change,
        Self::NotApplicable,
        Self::Refused,
        Self::Denied,
        Self::Advice,
    ];

    /// True when the machine is not as it should be.
    #[must_use]
    pub fn is_drift(self) -> bool {
        matches!(self, Self::Change | Self::Denied)
    }
}

/// Where all settings of a configuration stand.
#[derive(Debug, Clone)]
pub struct Plan {
    /// In the order of application.
    pub items: Vec<Item>,
    /// The CPUs that go with it.
    pub placement: Placement,
    /// What the placement was decided from.
    pub topology: Topology,
    /// The interfaces that are tuned.
    pub interfaces: Vec<String>,
}

impl Plan {
    /// How many items have this status.
    #[must_use]
    pub fn count(&self, status: Status) -> usize {
        self.items.iter().filter(|item| item.status == status).count()
    }

    /// Parameters that the kernel's command line lacks.
    #[must_use]
    pub fn kernel_parameters(&self) -> Vec<String> {
        let missing = |item: &Item| match (&item.target, &item.to) {
            (Target::Boot(name), Some(to)) => Some(format!("{name}={to}")),
            _ => None,
        };
        self.items.iter().filter_map(missing).collect()
    }

    /// Items that are not as they should be.
    pub fn drift(&self) -> impl Iterator<Item = &Item> {
        self.items.iter().filter(|item| item.status.is_drift())
    }
}

/// Whose limits are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    /// This process serves: its limits are settings like others.
    Serves,
    /// Another process will serve: limits are advice for its unit.
    Other,
}

/// Looks at the machine.
#[must_use]
pub fn plan(config: &Config, machine: &Machine, process: Process) -> Plan {
    let interfaces =
        if config.interfaces.is_empty() { machine.interfaces() } else { config.interfaces.clone() };
    let topology = Topology::read(machine, &interfaces);
    let placement = Placement::decide(&topology, &config.shards);
    let planner = Planner {
        config,
        machine,
        process,
        size: machine.size(),
        initial: machine.is_initial_namespace(),
        // The serving process does not search others' files and processes.
        owners: match process {
            Process::Serves => Owners::default(),
            Process::Other => Owners::find(machine),
        },
        placement: &placement,
        topology: &topology,
        interfaces: &interfaces,
    };
    let items = planner.items();
    Plan { items, placement, topology, interfaces }
}

/// How the shards of a configuration are placed, with nothing else looked at.
#[must_use]
pub fn place(machine: &Machine, interfaces: &[String], shards: &Shards) -> (Topology, Placement) {
    let found = machine.interfaces();
    let interfaces = if interfaces.is_empty() { &found[..] } else { interfaces };
    let topology = Topology::read(machine, interfaces);
    let placement = Placement::decide(&topology, shards);
    (topology, placement)
}

#[cfg(test)]
mod tests;
