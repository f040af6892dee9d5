//! The checklist as data: `tuning/*.toml`, embedded.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use super::wanted::Wanted;

/// The files in the order of application: what resets a port comes last.
const FILES: [(&str, &str); 5] = [
    ("sockets.toml", include_str!("../../tuning/sockets.toml")),
    ("tcp.toml", include_str!("../../tuning/tcp.toml")),
    ("addresses.toml", include_str!("../../tuning/addresses.toml")),
    ("machine.toml", include_str!("../../tuning/machine.toml")),
    ("nic.toml", include_str!("../../tuning/nic.toml")),
];
const TRAPS: &str = include_str!("../../tuning/traps.toml");

/// The profiles and what each is for.
pub const PROFILES: [(&str, &str); 5] = [
    ("edge", "director and proxy on one machine"),
    ("proxy", "layer-7 proxy alone"),
    ("director", "layer-4 director alone"),
    ("real-server", "a server behind a director in direct routing"),
    ("minimal", "what a proxy does not go without; nothing that others on the host would notice"),
];

/// One entry of the checklist.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    /// The sysctl's name, or a name of ours for other kinds.
    pub name: String,
    /// What it is a value of.
    #[serde(default)]
    pub kind: Kind,
    /// The wanted value.
    pub wanted: Wanted,
    /// Other values for some profiles.
    #[serde(default)]
    pub wanted_in: BTreeMap<String, Wanted>,
    /// The profiles that contain it.
    pub profiles: Vec<String>,
    /// What `*` in the name stands for.
    #[serde(default)]
    pub on: Vec<Part>,
    /// Whom a change concerns.
    pub scope: Scope,
    /// How likely a change does harm.
    pub risk: Risk,
    /// Why it is wanted.
    pub why: String,
    /// What may go wrong.
    pub trap: String,
    /// Where that is documented.
    pub source: String,
    /// Dangerous: left alone unless allowed by name.
    #[serde(default)]
    pub danger: bool,
    /// On which hosts it is refused unless allowed by name.
    #[serde(default)]
    pub guard: Option<Guard>,
    /// A change resets the port: left alone unless allowed by name.
    #[serde(default)]
    pub resets: bool,
    /// The file of a `file` setting.
    #[serde(default)]
    pub path: Option<String>,
    /// The limit of a `limit` setting.
    #[serde(default)]
    pub limit: Option<Limit>,
    /// The parameter of an `ethtool` setting.
    #[serde(default)]
    pub parameter: Option<Parameter>,
    /// The file of a `queue` setting, below the interface's `queues`.
    #[serde(default)]
    pub file: Option<String>,
}

/// What a setting is a value of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A file below /proc/sys.
    #[default]
    Sysctl,
    /// Another file.
    File,
    /// A process limit.
    Limit,
    /// A parameter of a network interface, by ioctl.
    Ethtool,
    /// A file of each queue of a network interface.
    Queue,
    /// The affinity of the interrupts of a network interface.
    Irq,
    /// A kernel parameter.
    Boot,
}

/// What `*` in a sysctl's name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// `all`
    All,
    /// `default`
    Default,
    /// Each network interface.
    Nics,
}

/// Whom a change concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The network namespace.
    Namespace,
    /// The whole machine.
    Global,
    /// A network interface.
    Nic,
    /// The process.
    Process,
    /// The next boot.
    Boot,
}

/// How likely a change does harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Risk {
    /// Hardly.
    Low,
    /// On some machines.
    Medium,
    /// Unless one knows what one does.
    High,
}

/// On which hosts a setting is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guard {
    /// Those that forward packets for others.
    Router,
}

/// A process limit (getrlimit(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// `RLIMIT_NOFILE`
    Nofile,
    /// `RLIMIT_MEMLOCK`
    Memlock,
}

/// A parameter of a network interface (ethtool(8)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Parameter {
    /// Large receive offload: 0 or 1.
    Lro,
    /// Generic receive offload: 0 or 1.
    Gro,
    /// Microseconds between interrupts.
    RxUsecs,
    /// Descriptors of a receive ring.
    RxRing,
    /// Descriptors of a transmit ring.
    TxRing,
    /// Queue pairs.
    Channels,
}

impl Parameter {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Lro, Self::Gro, Self::RxUsecs, Self::RxRing, Self::TxRing, Self::Channels];

    /// As the data spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Lro => "lro",
            Self::Gro => "gro",
            Self::RxUsecs => "rx_usecs",
            Self::RxRing => "rx_ring",
            Self::TxRing => "tx_ring",
            Self::Channels => "channels",
        }
    }
}

/// What should not be set, or does not do what people set it for.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trap {
    /// The sysctl; `*` stands for one part of the name.
    pub key: String,
    /// For which values.
    pub when: When,
    /// A configuration that sets it so is refused.
    #[serde(default)]
    pub refuse: bool,
    /// What is wrong.
    pub says: String,
    /// What to write instead.
    pub instead: String,
    /// Where that is documented.
    pub source: String,
}

/// For which values a trap holds.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// For all.
    Any(bool),
    /// For this one.
    Is(String),
    /// For every other.
    Not(String),
    /// If a number of it is less.
    Below(u64),
    /// If a number of it is greater.
    Above(u64),
}

impl When {
    /// True when the trap holds for `value`.
    #[must_use]
    pub fn holds(&self, value: &str) -> bool {
        let mut numbers = value.split_whitespace().filter_map(|word| word.parse::<u64>().ok());
        match self {
            Self::Any(any) => *any,
            Self::Is(bad) => value == bad,
            Self::Not(good) => value != good,
            Self::Below(bound) => numbers.any(|number| number < *bound),
            Self::Above(bound) => numbers.any(|number| number > *bound),
        }
    }
}

impl Trap {
    /// True when this trap is about `key`.
    #[must_use]
    pub fn concerns(&self, key: &str) -> bool {
        matches(&self.key, key)
    }
}

/// True when `key` is `pattern`, where `*` stands for one part.
#[must_use]
pub fn matches(pattern: &str, key: &str) -> bool {
    match pattern.split_once(".*.") {
        None => pattern == key,
        Some((head, tail)) => {
            let middle = key.strip_prefix(head).and_then(|rest| rest.strip_suffix(tail));
            let middle = middle.and_then(|rest| rest.strip_prefix('.')?.strip_suffix('.'));
            middle.is_some_and(|name| !name.is_empty() && !name.contains('.'))
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SettingsFile {
    setting: Vec<Setting>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TrapsFile {
    trap: Vec<Trap>,
}

fn read_settings() -> Result<Vec<Setting>, String> {
    let mut settings = Vec::new();
    for (name, text) in FILES {
        let file: SettingsFile =
            toml::from_str(text).map_err(|error| format!("tuning/{name}: {error}"))?;
        settings.extend(file.setting);
    }
    Ok(settings)
}

/// The settings, in the order of application.
#[must_use]
pub fn settings() -> &'static [Setting] {
    static SETTINGS: OnceLock<Vec<Setting>> = OnceLock::new();
    // Embedded, and read by a unit test: it cannot fail in a binary that was tested.
    SETTINGS.get_or_init(|| read_settings().unwrap_or_default())
}

/// The traps.
#[must_use]
pub fn traps() -> &'static [Trap] {
    static CELL: OnceLock<Vec<Trap>> = OnceLock::new();
    CELL.get_or_init(|| toml::from_str::<TrapsFile>(TRAPS).map_or_else(|_| Vec::new(), |f| f.trap))
}

/// Why a configuration may not set `key` to `value` unless it allows that by name.
#[must_use]
pub fn refused(key: &str, value: &str) -> Option<&'static Trap> {
    traps().iter().find(|trap| trap.refuse && trap.concerns(key) && trap.when.holds(value))
}

/// True when `name` is a key that the catalogue has, with `*` for one part.
#[must_use]
pub fn known(name: &str) -> Option<&'static Setting> {
    settings().iter().find(|setting| matches(&setting.name, name))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_embedded_files_are_whole() {
        let settings = read_settings().unwrap();
        let traps: TrapsFile = toml::from_str(TRAPS).unwrap();
        assert!(settings.len() > 30 && traps.trap.len() > 20);
        let mut names = HashSet::new();
        for setting in &settings {
            let name = &setting.name;
            assert!(names.insert(name.clone()), "{name} twice");
            for text in [&setting.why, &setting.trap, &setting.source] {
                assert!(text.len() > 5 && !text.ends_with('.'), "{name}: {text}");
            }
            for profile in setting.profiles.iter().chain(setting.wanted_in.keys()) {
                assert!(PROFILES.iter().any(|(known, _)| known == profile), "{name}: {profile}");
            }
            assert!(!setting.profiles.is_empty(), "{name}");
            assert_eq!(name.contains(".*."), !setting.on.is_empty(), "{name}");
            assert_eq!(setting.kind == Kind::File, setting.path.is_some(), "{name}");
            assert_eq!(setting.kind == Kind::Limit, setting.limit.is_some(), "{name}");
            assert_eq!(setting.kind == Kind::Ethtool, setting.parameter.is_some(), "{name}");
            assert_eq!(setting.kind == Kind::Queue, setting.file.is_some(), "{name}");
        }
        for trap in &traps.trap {
            for text in [&trap.says, &trap.instead, &trap.source] {
                assert!(text.len() > 3 && !text.ends_with('.'), "{}: {text}", trap.key);
            }
        }
    }

    #[test]
    fn the_checklist_does_not_set_what_the_traps_refuse() {
        for setting in settings() {
            for wanted in std::iter::once(&setting.wanted).chain(setting.wanted_in.values()) {
                if let (Wanted::Is(value), false) = (wanted, setting.danger) {
                    assert!(refused(&setting.name, value).is_none(), "{}", setting.name);
                }
            }
        }
    }

    #[test]
    fn ports_are_reserved_before_the_range_grows_and_resets_come_last() {
        let at = |name: &str| settings().iter().position(|setting| setting.name == name);
        assert!(
            at("net.ipv4.ip_local_reserved_ports").unwrap()
                < at("net.ipv4.ip_local_port_range").unwrap()
        );
        let first = settings().iter().position(|setting| setting.resets).unwrap();
        assert!(settings()[first..].iter().all(|setting| setting.resets));
    }

    #[test]
    fn names_match_patterns() {
        let pattern = "net.ipv4.conf.*.rp_filter";
        assert!(matches(pattern, "net.ipv4.conf.eth0.rp_filter"));
        assert!(matches(pattern, pattern));
        for other in
            ["net.ipv4.conf.rp_filter", "net.ipv4.conf..rp_filter", "net.ipv4.conf.a.b.rp_filter"]
        {
            assert!(!matches(pattern, other), "{other}");
        }
    }

    #[test]
    fn refusals() {
        assert!(refused("net.ipv4.tcp_tw_recycle", "1").is_some());
        assert!(refused("net.ipv4.tcp_mem", "1 2 3").is_some());
        assert!(refused("net.ipv4.tcp_max_tw_buckets", "1000").is_some());
        assert!(refused("net.ipv4.tcp_max_tw_buckets", "1000000").is_none());
        assert!(refused("net.core.somaxconn", "65535").is_none());
    }
}
