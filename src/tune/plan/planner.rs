//! The checklist expanded to this machine's values, each with a verdict.

use std::io;

use super::{Item, Process, Status};
use crate::tune::Config;
use crate::tune::machine::{Access, Machine, Target, sysctl_path};
use crate::tune::owners::Owners;
use crate::tune::placement::{Placement, tidy_mask};
use crate::tune::setting::{self, Guard, Kind, Part, Risk, Scope, Setting};
use crate::tune::topology::{Irq, Nic, Topology};
use crate::tune::wanted::{Amount, Judged, Placed, Size, Wanted, selected, tidy};

/// A sysctl that the operator sets and the checklist does not know.
fn foreign(key: &str) -> Setting {
    let network = key.starts_with("net.") || key.starts_with("net/");
    Setting {
        name: key.to_owned(),
        kind: Kind::Sysctl,
        wanted: Wanted::Untouched(String::new()),
        wanted_in: Default::default(),
        profiles: Vec::new(),
        on: Vec::new(),
        scope: if network { Scope::Namespace } else { Scope::Global },
        risk: Risk::Medium,
        why: "the configuration sets it".to_owned(),
        trap: "not in the checklist: nobody has looked at it".to_owned(),
        source: "[tuning] set".to_owned(),
        danger: false,
        guard: None,
        resets: false,
        path: None,
        limit: None,
        parameter: None,
        file: None,
    }
}

/// One value that a setting stands for.
struct Spot<'a> {
    key: String,
    target: Target,
    nic: Option<&'a Nic>,
    queue: usize,
}

/// What resets a port stands last; all of one port together, so that only one is down at a time.
fn one_port_at_a_time(items: &mut [Item]) {
    let resets = |item: &Item| setting::known(&item.setting).is_some_and(|s| s.resets);
    let first = items.iter().position(resets).unwrap_or(items.len());
    let interface = |item: &Item| match &item.target {
        Target::Ethtool(interface, _) => interface.clone(),
        _ => String::new(),
    };
    if let Some(last) = items.get_mut(first..) {
        last.sort_by_key(interface);
    }
}

/// What a plan is made from.
pub(super) struct Planner<'a> {
    pub(super) config: &'a Config,
    pub(super) machine: &'a Machine,
    pub(super) process: Process,
    pub(super) size: Size,
    pub(super) initial: bool,
    pub(super) owners: Owners,
    pub(super) placement: &'a Placement,
    pub(super) topology: &'a Topology,
    pub(super) interfaces: &'a [String],
}

impl Planner<'_> {
    /// Every setting of the profiles and of the operator, in the order of application.
    pub(super) fn items(&self) -> Vec<Item> {
        let mut items: Vec<Item> = Vec::new();
        for setting in setting::settings() {
            let Some(wanted) = self.wanted(setting) else { continue };
            for spot in self.spots(setting) {
                if let Some(rule) = self.chosen(&spot.key, setting, wanted) {
                    items.push(self.item(setting, spot, rule));
                }
            }
        }
        one_port_at_a_time(&mut items);
        for (key, value) in &self.config.set {
            let Some(value) = value.as_ref() else { continue };
            let known = |item: &Item| item.key == *key || item.setting == *key;
            if items.iter().any(known) {
                continue;
            }
            let setting = setting::known(key).cloned().unwrap_or_else(|| foreign(key));
            let rule = setting.wanted.with_value(value);
            let spots = match self.spots(&setting) {
                spots if setting.name == *key && !spots.is_empty() => spots,
                _ => self.sysctl_spot(key).into_iter().collect(),
            };
            for spot in spots {
                items.push(self.item(&setting, spot, rule.clone()));
            }
        }
        items
    }

    /// What the profiles want of a setting; `None` when none contains it.
    fn wanted<'s>(&self, setting: &'s Setting) -> Option<&'s Wanted> {
        let of = |profile: &String| {
            let contains = setting.profiles.contains(profile);
            contains.then(|| setting.wanted_in.get(profile).unwrap_or(&setting.wanted))
        };
        self.config.profiles.iter().filter_map(of).next_back()
    }

    /// The rule for one value: the operator's own, or the profile's; `None` when it is left alone.
    fn chosen(&self, key: &str, setting: &Setting, wanted: &Wanted) -> Option<Wanted> {
        let set = &self.config.set;
        match set.get(key).or_else(|| set.get(&setting.name)) {
            None => Some(wanted.clone()),
            Some(None) => None,
            Some(Some(value)) => Some(wanted.with_value(value)),
        }
    }

    fn sysctl_spot(&self, key: &str) -> Option<Spot<'static>> {
        let target = Target::File(sysctl_path(key)?);
        Some(Spot { key: key.to_owned(), target, nic: None, queue: 0 })
    }

    /// The values that a setting stands for on this machine; one that does not exist stands for itself.
    fn spots<'a>(&'a self, setting: &Setting) -> Vec<Spot<'a>> {
        let spot = |key: String, target| Spot { key, target, nic: None, queue: 0 };
        let whole = |target| vec![spot(setting.name.clone(), target)];
        let file = |path: String| Target::File(path);
        match setting.kind {
            Kind::Sysctl if setting.on.is_empty() => {
                self.sysctl_spot(&setting.name).into_iter().collect()
            }
            Kind::Sysctl => self
                .parts(setting)
                .into_iter()
                .filter_map(|part| {
                    let part = part.replace('.', "/");
                    self.sysctl_spot(&setting.name.replace(".*.", &format!(".{part}.")))
                })
                .collect(),
            Kind::File => {
                let path = setting.path.clone().unwrap_or_default();
                let Some((head, tail)) = path.split_once('*') else { return whole(file(path)) };
                let (directory, prefix) = head.rsplit_once('/').unwrap_or(("", head));
                let mut names = self.machine.list(directory);
                names.retain(|name| name.starts_with(prefix));
                let one = |name: &String| {
                    spot(
                        format!("{}.{name}", setting.name),
                        file(format!("{directory}/{name}{tail}")),
                    )
                };
                if names.is_empty() { whole(file(path)) } else { names.iter().map(one).collect() }
            }
            Kind::Limit => {
                let name = setting.limit.map_or("", setting::Limit::name);
                whole(Target::Limit(name.to_owned()))
            }
            Kind::Boot => {
                let name = setting.name.trim_start_matches("boot.");
                whole(Target::Boot(name.to_owned()))
            }
            Kind::Ethtool => {
                let name = setting.parameter.map_or("", setting::Parameter::name);
                let one = |nic: &'a Nic| Spot {
                    key: self.nic_key(setting, nic, ""),
                    target: Target::Ethtool(nic.name.clone(), name.to_owned()),
                    nic: Some(nic),
                    queue: 0,
                };
                self.topology.nics.iter().map(one).collect()
            }
            Kind::Queue => {
                self.topology.nics.iter().flat_map(|nic| self.queue_spots(setting, nic)).collect()
            }
            Kind::Irq => {
                self.topology.nics.iter().flat_map(|nic| self.irq_spots(setting, nic)).collect()
            }
        }
    }

    fn parts(&self, setting: &Setting) -> Vec<String> {
        let mut parts = Vec::new();
        for part in &setting.on {
            match part {
                Part::All => parts.push("all".to_owned()),
                Part::Default => parts.push("default".to_owned()),
                Part::Nics => parts.extend_from_slice(self.interfaces),
            }
        }
        parts
    }

    fn nic_key(&self, setting: &Setting, nic: &Nic, detail: &str) -> String {
        let name = setting.name.trim_start_matches("nic.");
        format!("nic.{}{detail}.{name}", nic.name)
    }

    fn queue_spots<'a>(&'a self, setting: &Setting, nic: &'a Nic) -> Vec<Spot<'a>> {
        let file = setting.file.as_deref().unwrap_or_default();
        let Some((prefix, tail)) = file.split_once('*') else { return Vec::new() };
        let base = format!("/sys/class/net/{}/queues", nic.name);
        let queues = self.machine.list(&base);
        let ours = queues.iter().filter_map(|queue| Some((queue, queue.strip_prefix(prefix)?)));
        ours.map(|(name, number)| Spot {
            key: self.nic_key(setting, nic, &format!(".{name}")),
            target: Target::File(format!("{base}/{name}{tail}")),
            nic: Some(nic),
            queue: number.parse().unwrap_or(0),
        })
        .collect()
    }

    fn irq_spots<'a>(&'a self, setting: &Setting, nic: &'a Nic) -> Vec<Spot<'a>> {
        // Interrupts belong to the whole machine; what a namespace of its own sees of them is not its own.
        if !self.initial {
            return Vec::new();
        }
        let one = |irq: &'a Irq| Spot {
            key: self.nic_key(setting, nic, &format!(".irq{}", irq.number)),
            target: Target::File(format!("/proc/irq/{}/smp_affinity_list", irq.number)),
            nic: Some(nic),
            queue: irq.queue,
        };
        nic.irqs.iter().map(one).collect()
    }

    fn item(&self, setting: &Setting, spot: Spot<'_>, rule: Wanted) -> Item {
        let forced = Config::names(&self.config.force, &spot.key, &setting.name);
        let also_set_by = match &spot.target {
            Target::File(path) => self.owners.of_file(path),
            _ => Vec::new(),
        };
        let mut item = Item {
            wanted: rule.show(self.size, &self.config.ports),
            key: spot.key.clone(),
            setting: setting.name.clone(),
            now: None,
            status: Status::Holds,
            to: None,
            reason: None,
            why: setting.why.clone(),
            risk: setting.risk,
            trap: setting.trap.clone(),
            scope: setting.scope,
            source: setting.source.clone(),
            undo: String::new(),
            also_set_by,
            target: spot.target.clone(),
            rule,
            forced,
        };
        let verdict = self.look(&mut item, &spot).and_then(|to| self.permit(setting, &item, to));
        match verdict {
            Ok(()) => {}
            Err(Verdict { status, to, reason }) => {
                (item.status, item.to, item.reason) = (status, to, reason);
            }
        }
        item.undo = undo(&item);
        item
    }

    /// Reads the value and judges it: `Ok` with what it has to become.
    fn look(&self, item: &mut Item, spot: &Spot<'_>) -> Result<String, Verdict> {
        if let Wanted::Placement(placed) = item.rule {
            let value = self.placement.value(placed, &self.topology.nics, spot.nic, spot.queue);
            item.rule = match value {
                Ok(value) if placed == Placed::Channels => at_least(&value),
                Ok(value) => Wanted::Is(value),
                Err(reason) => return Err(Verdict::not_applicable(reason)),
            };
            item.wanted = item.rule.show(self.size, &[]);
        }
        let text = match self.machine.read(&item.target) {
            Ok(text) => text,
            Err(error) => return Err(self.unreadable(item, &error)),
        };
        item.now = Some(shown(&item.target, &text));
        if item.scope == Scope::Global && !self.initial {
            return Err(Verdict::not_applicable(
                "it concerns the whole machine, and this is a network namespace of its own".into(),
            ));
        }
        self.clamp(item);
        match judge(item, &text, self.size, &self.config.ports) {
            Judged::Holds => Err(Verdict::of(Status::Holds)),
            Judged::Beyond => Err(Verdict::of(Status::Beyond)),
            Judged::Becomes(to) => Ok(to),
            Judged::Strange => {
                Err(Verdict::not_applicable("its value has another form here".into()))
            }
        }
    }

    /// A device cannot have more than it can.
    fn clamp(&self, item: &mut Item) {
        if let (Wanted::AtLeast(amount), Some(max)) =
            (&item.rule, self.machine.maximum(&item.target))
            && amount.on(self.size) > max
        {
            item.rule = Wanted::AtLeast(Amount::Number(max));
            item.wanted = format!(">= {max}, the device's most");
        }
    }

    fn unreadable(&self, item: &Item, error: &io::Error) -> Verdict {
        let namespaced = !self.initial && item.scope == Scope::Global;
        Verdict::not_applicable(match (error.kind(), &item.target) {
            (io::ErrorKind::NotFound, _) if namespaced => {
                "this network namespace does not have it: it belongs to the initial one".to_owned()
            }
            (io::ErrorKind::NotFound, Target::Ethtool(..)) => {
                "the interface's driver does not have it".to_owned()
            }
            (io::ErrorKind::NotFound, _) => "this kernel or machine does not have it".to_owned(),
            (_, Target::Ethtool(..)) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                "the interface's driver does not have it".to_owned()
            }
            _ => format!("it cannot be read: {error}"),
        })
    }

    /// Whether a change may be made.
    fn permit(&self, setting: &Setting, item: &Item, to: String) -> Result<(), Verdict> {
        if item.scope == Scope::Boot {
            let parameter = setting.name.trim_start_matches("boot.");
            let advice = Verdict::of(Status::Advice).because(format!("boot with {parameter}={to}"));
            return Err(Verdict { to: Some(to), ..advice });
        }
        if item.scope == Scope::Process && self.process == Process::Other {
            let name = setting.limit.map_or("", setting::Limit::name).to_uppercase();
            let value = if to == "unlimited" { "infinity" } else { &to };
            let advice = format!("`ringgate run` raises its own; in a unit: Limit{name}={value}");
            return Err(Verdict::of(Status::Advice).because(advice));
        }
        let refuse = |reason: String| {
            let reason =
                format!("{reason}; to have it all the same: allow = [\"{}\"]", item.setting);
            Err(Verdict { status: Status::Refused, to: Some(to.clone()), reason: Some(reason) })
        };
        if !Config::names(&self.config.allow, &item.key, &setting.name) {
            if setting.danger {
                return refuse(setting.trap.clone());
            }
            if setting.guard == Some(Guard::Router) && self.machine.is_router() {
                return refuse("this host forwards packets (net.ipv4.ip_forward = 1)".to_owned());
            }
            if setting.resets {
                return refuse("a change resets the port".to_owned());
            }
            if let Some(trap) = setting::refused(&item.key, &to) {
                return refuse(trap.says.clone());
            }
        }
        match self.machine.access(&item.target) {
            Access::Writable => Err(Verdict { status: Status::Change, to: Some(to), reason: None }),
            Access::ReadOnly(why) => Err(Verdict::not_applicable(why.to_owned())),
            Access::Denied => Err(Verdict {
                status: Status::Denied,
                to: Some(to),
                reason: Some("it takes root, or CAP_NET_ADMIN for the network's".to_owned()),
            }),
        }
    }
}

/// A status with what belongs to it.
struct Verdict {
    status: Status,
    to: Option<String>,
    reason: Option<String>,
}

impl Verdict {
    fn of(status: Status) -> Self {
        Self { status, to: None, reason: None }
    }

    fn not_applicable(reason: String) -> Self {
        Self::of(Status::NotApplicable).because(reason)
    }

    fn because(self, reason: String) -> Self {
        Self { reason: Some(reason), ..self }
    }
}

fn at_least(value: &str) -> Wanted {
    value.parse().map_or_else(
        |_| Wanted::Is(value.to_owned()),
        |number| Wanted::AtLeast(Amount::Number(number)),
    )
}

/// Judges a value; masks are compared without leading zeroes.
#[must_use]
pub(in crate::tune) fn judge(item: &Item, text: &str, size: Size, ports: &[u16]) -> Judged {
    match (&item.rule, &item.target) {
        (Wanted::Is(value), Target::File(path)) if path.ends_with("ps_cpus") => {
            if tidy_mask(text) == tidy_mask(value) {
                Judged::Holds
            } else {
                Judged::Becomes(value.clone())
            }
        }
        (rule, _) => rule.judge(text, size, ports, item.forced),
    }
}

/// A value for people.
fn shown(target: &Target, text: &str) -> String {
    match target {
        Target::File(path) if path.starts_with("/sys/") => selected(text),
        _ => tidy(text),
    }
}

/// How to undo a change by hand.
fn undo(item: &Item) -> String {
    let Some(now) = &item.now else { return String::new() };
    match &item.target {
        Target::File(path) if path.starts_with("/proc/sys/") => {
            format!("sysctl -w {}='{now}'", item.key)
        }
        Target::File(path) => format!("echo {now} > {path}"),
        Target::Ethtool(interface, name) => {
            let option = match name.as_str() {
                "rx_ring" => "-G {} rx",
                "tx_ring" => "-G {} tx",
                "channels" => "-L {} combined",
                "rx_usecs" => "-C {} rx-usecs",
                "lro" | "gro" => return format!("ethtool -K {interface} {name} {}", on_off(now)),
                _ => "",
            };
            format!("ethtool {} {now}", option.replace("{}", interface))
        }
        Target::Limit(_) => "ends with the process".to_owned(),
        Target::Boot(name) => format!("boot without {name}="),
    }
}

fn on_off(now: &str) -> &'static str {
    if now == "0" { "off" } else { "on" }
}
