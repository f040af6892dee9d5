//! The machine that is tuned: its files below a root that can be replaced, its network interfaces, its limits.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::setting::{Limit, Parameter};
use super::wanted::Size;
use crate::sys::{ethtool, limits, socket};

/// Longest value that is read, in bytes; /proc/interrupts of a large machine is longer than any setting.
const TEXT_MAX: u64 = 4 << 20;

/// Where values live: below `root`, or in the kernel behind ioctls if `root` is `/`.
#[derive(Debug, Clone)]
pub struct Machine {
    root: PathBuf,
    replaced: bool,
}

/// Where one value lives.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// A file, by its absolute path.
    File(String),
    /// A parameter of a network interface: interface, and parameter as the checklist spells it.
    Ethtool(String, String),
    /// A limit of this process.
    Limit(String),
    /// A parameter of the kernel's command line.
    Boot(String),
}

/// Whether a value can be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Yes.
    Writable,
    /// By nobody here.
    ReadOnly(&'static str),
    /// By somebody with more privilege.
    Denied,
}

impl Machine {
    /// The machine below `root`.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        let replaced = root.components().any(|part| part != Component::RootDir);
        Self { root: root.to_owned(), replaced }
    }

    /// True when the root is not the system's.
    #[must_use]
    pub fn is_replaced(&self) -> bool {
        self.replaced
    }

    /// Where the absolute `path` is below the root.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// A file's text.
    ///
    /// # Errors
    /// What open(2) and read(2) say; text that is not UTF-8.
    pub fn text(&self, path: &str) -> io::Result<String> {
        let mut text = String::new();
        File::open(self.path(path))?.take(TEXT_MAX).read_to_string(&mut text)?;
        Ok(text)
    }

    /// A file's text without surrounding space; `None` when it cannot be read.
    #[must_use]
    pub fn word(&self, path: &str) -> Option<String> {
        self.text(path).ok().map(|text| text.trim().to_owned())
    }

    /// Names in a directory, sorted, numbers by their value.
    #[must_use]
    pub fn list(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort_by_key(|name| natural(name));
        names
    }

    /// The last part of what a symbolic link points to.
    #[must_use]
    pub fn link_name(&self, path: &str) -> Option<String> {
        let to = fs::read_link(self.path(path)).ok()?;
        to.file_name().and_then(OsStr::to_str).map(str::to_owned)
    }

    /// True when there is such a file or directory.
    #[must_use]
    pub fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// The value of a target as it stands.
    ///
    /// # Errors
    /// What the system says; ENOENT when there is no such value.
    pub fn read(&self, target: &Target) -> io::Result<String> {
        match target {
            Target::File(path) => self.text(path),
            Target::Ethtool(interface, name) => self.ethtool(interface, name).map(|now| now.0),
            Target::Limit(name) => {
                let soft = limits::read(resource(name)?)?.soft;
                let unlimited = soft == limits::UNLIMITED;
                Ok(if unlimited { "unlimited".to_owned() } else { soft.to_string() })
            }
            Target::Boot(name) => {
                let line = self.text("/proc/cmdline")?;
                let value = line.split_whitespace().find_map(|word| match word.split_once('=') {
                    Some((key, value)) if key == name => Some(value.to_owned()),
                    _ => (word == name).then(String::new),
                });
                Ok(value.unwrap_or_default())
            }
        }
    }

    /// Writes a value, all of it in one call.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&self, target: &Target, value: &str) -> io::Result<()> {
        match target {
            Target::File(path) => {
                let mut file =
                    OpenOptions::new().write(true).truncate(true).open(self.path(path))?;
                file.write_all(value.as_bytes())
            }
            Target::Ethtool(interface, name) => {
                let number = value.trim().parse().map_err(|_| invalid("not a number"))?;
                if self.replaced {
                    let file = Target::File(format!("/ethtool/{interface}/{name}"));
                    return self.write(&file, value);
                }
                ethtool::set(interface, ioctl(name)?, number)
            }
            Target::Limit(name) => {
                let number = match value {
                    "unlimited" => limits::UNLIMITED,
                    text => text.parse().map_err(|_| invalid("not a number"))?,
                };
                limits::raise_to(resource(name)?, number)
            }
            Target::Boot(_) => Err(invalid("a kernel parameter")),
        }
    }

    /// A parameter of an interface and the most it can be. A replaced root has them in files
    /// `/ethtool/INTERFACE/PARAMETER` and `…_max`.
    fn ethtool(&self, interface: &str, name: &str) -> io::Result<(String, Option<u64>)> {
        if self.replaced {
            let now = self.text(&format!("/ethtool/{interface}/{name}"))?;
            let max = self.word(&format!("/ethtool/{interface}/{name}_max"));
            return Ok((now, max.and_then(|max| max.parse().ok())));
        }
        let value = ethtool::read(interface, ioctl(name)?)?;
        Ok((value.now.to_string(), value.max.map(u64::from)))
    }

    /// The most a target can be, where the device says so.
    #[must_use]
    pub fn maximum(&self, target: &Target) -> Option<u64> {
        match target {
            Target::Ethtool(interface, name) => self.ethtool(interface, name).ok()?.1,
            _ => None,
        }
    }

    /// Whether a target can be written, as far as that can be known without writing.
    #[must_use]
    pub fn access(&self, target: &Target) -> Access {
        let Target::File(path) = target else { return Access::Writable };
        let path = self.path(path);
        let writable = fs::metadata(&path).is_ok_and(|data| data.permissions().mode() & 0o222 != 0);
        if !writable {
            return Access::ReadOnly("the kernel has it read-only here");
        }
        match OpenOptions::new().write(true).open(&path) {
            Ok(_) => Access::Writable,
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                Access::ReadOnly("its file system is mounted read-only, as containers do")
            }
            Err(_) => Access::Denied,
        }
    }

    /// CPUs online and memory.
    #[must_use]
    pub fn size(&self) -> Size {
        let online = self.word("/sys/devices/system/cpu/online");
        let cpus = online.map_or(1, |list| parse_list(&list).len().max(1)) as u64;
        let memory = self.text("/proc/meminfo").unwrap_or_default();
        let total = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let memory_kib = total.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        Size { cpus, memory_kib: memory_kib.unwrap_or(1 << 20) }
    }

    /// True unless this is a network namespace of its own: the kernel shows these keys in the initial
    /// one only.
    #[must_use]
    pub fn is_initial_namespace(&self) -> bool {
        self.exists("/proc/sys/net/core/netdev_max_backlog")
            || !self.exists("/proc/sys/net/core/somaxconn")
    }

    /// True when the host forwards packets for others.
    #[must_use]
    pub fn is_router(&self) -> bool {
        self.word("/proc/sys/net/ipv4/ip_forward").is_some_and(|value| value == "1")
    }

    /// Interfaces with hardware behind them, or else all but the loopback.
    #[must_use]
    pub fn interfaces(&self) -> Vec<String> {
        let mut all = self.list("/sys/class/net");
        // Other than in the initial namespace, /sys may show another namespace's interfaces.
        all.retain(|name| name != "lo" && self.exists(&format!("/sys/class/net/{name}/mtu")));
        if self.exists("/proc/sys/net/ipv4/conf") {
            all.retain(|name| self.exists(&format!("/proc/sys/net/ipv4/conf/{name}")));
        }
        let hardware: Vec<String> = all
            .iter()
            .filter(|name| self.exists(&format!("/sys/class/net/{name}/device")))
            .cloned()
            .collect();
        if hardware.is_empty() { all } else { hardware }
    }

    /// What tells this boot from others.
    #[must_use]
    pub fn boot_id(&self) -> String {
        self.word("/proc/sys/kernel/random/boot_id").unwrap_or_else(|| "unknown".to_owned())
    }

    /// What tells this network namespace from others of this boot; 0 below a replaced root.
    #[must_use]
    pub fn namespace(&self) -> u64 {
        if self.replaced { 0 } else { socket::namespace_cookie().unwrap_or(1) }
    }

    /// True when a process of this name (`comm`) runs.
    #[must_use]
    pub fn runs(&self, name: &str) -> bool {
        let processes = self.list("/proc");
        let mut numbered = processes.iter().filter(|pid| pid.bytes().all(|b| b.is_ascii_digit()));
        numbered.any(|pid| self.word(&format!("/proc/{pid}/comm")).is_some_and(|c| c == name))
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

fn resource(name: &str) -> io::Result<limits::Resource> {
    match name {
        "nofile" => Ok(limits::Resource::OpenFiles),
        "memlock" => Ok(limits::Resource::LockedMemory),
        _ => Err(invalid("no such limit")),
    }
}

impl Limit {
    /// As targets spell it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nofile => "nofile",
            Self::Memlock => "memlock",
        }
    }
}

fn ioctl(name: &str) -> io::Result<ethtool::Parameter> {
    let parameter = Parameter::ALL.into_iter().find(|parameter| parameter.name() == name);
    match parameter.ok_or_else(|| invalid("no such parameter"))? {
        Parameter::Lro => Ok(ethtool::Parameter::Lro),
        Parameter::Gro => Ok(ethtool::Parameter::Gro),
        Parameter::RxUsecs => Ok(ethtool::Parameter::RxUsecs),
        Parameter::RxRing => Ok(ethtool::Parameter::RxRing),
        Parameter::TxRing => Ok(ethtool::Parameter::TxRing),
        Parameter::Channels => Ok(ethtool::Parameter::Channels),
    }
}

/// Reads the kernel's CPU lists (`0-3,6`); what is not a number is left out.
#[must_use]
pub fn parse_list(text: &str) -> Vec<usize> {
    let mut list = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.trim().parse::<usize>(), last.trim().parse::<usize>())
        {
            // As many as the largest kernel has.
            list.extend((first..=last).take(8192));
        }
    }
    list
}

/// A sort key by which `rx-2` comes before `rx-10`.
fn natural(name: &str) -> (String, u64) {
    let digits = name.bytes().rev().take_while(u8::is_ascii_digit).count();
    let (head, tail) = name.split_at(name.len() - digits);
    (head.to_owned(), tail.parse().unwrap_or(0))
}

/// The file of a sysctl: `.` and `/` change places if a `.` comes first, as sysctl(8) reads names.
/// `None` for names that would lead elsewhere.
#[must_use]
pub fn sysctl_path(key: &str) -> Option<String> {
    let dotted = key.find(['.', '/']).is_some_and(|at| key.as_bytes().get(at) == Some(&b'.'));
    let swapped: String = key
        .chars()
        .map(|c| match c {
            '.' if dotted => '/',
            '/' if dotted => '.',
            c => c,
        })
        .collect();
    let good = |part: &str| {
        !part.is_empty()
            && part != ".."
            && part != "."
            && part.bytes().all(|b| b.is_ascii_graphic() && b != b'*')
    };
    (swapped.contains('/') && swapped.split('/').all(good)).then(|| format!("/proc/sys/{swapped}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctl_names_become_paths() {
        for (key, path) in [
            ("net.core.somaxconn", Some("/proc/sys/net/core/somaxconn")),
            ("net/core/somaxconn", Some("/proc/sys/net/core/somaxconn")),
            (
                "net.ipv4.conf.eth0/100.rp_filter",
                Some("/proc/sys/net/ipv4/conf/eth0.100/rp_filter"),
            ),
            (
                "net/ipv4/conf/eth0.100/rp_filter",
                Some("/proc/sys/net/ipv4/conf/eth0.100/rp_filter"),
            ),
            ("net.core", Some("/proc/sys/net/core")),
            ("net//core", None),
            ("net/../../etc/passwd", None),
            ("somaxconn", None),
            ("", None),
            ("net.core.a b", None),
        ] {
            assert_eq!(sysctl_path(key).as_deref(), path, "{key}");
        }
    }

    #[test]
    fn lists_and_names() {
        assert_eq!(parse_list("0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(parse_list("x,1,\n"), [1]);
        assert!(parse_list("3-1").is_empty());
        let mut names = vec!["rx-10", "rx-2", "rx-1"];
        names.sort_by_key(|name| natural(name));
        assert_eq!(names, ["rx-1", "rx-2", "rx-10"]);
    }
}
