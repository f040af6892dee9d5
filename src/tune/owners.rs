//! Who else sets a key: sysctl.d(5) files, tuned, irqbalance.

use std::collections::BTreeMap;

use serde::Serialize;

use super::machine::{Machine, sysctl_path};

/// Directories in the order in which a file name is looked for (sysctl.d(5)).
const DIRECTORIES: [&str; 5] = [
    "/etc/sysctl.d",
    "/run/sysctl.d",
    "/usr/local/lib/sysctl.d",
    "/usr/lib/sysctl.d",
    "/lib/sysctl.d",
];
/// Where tuned looks for profiles.
const TUNED: [&str; 3] = ["/etc/tuned/profiles", "/etc/tuned", "/usr/lib/tuned/profiles"];
const TUNED_OLD: &str = "/usr/lib/tuned";
/// Profiles that include each other at most.
const INCLUDES_MAX: usize = 16;

/// Somebody who also sets a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Owner {
    /// A file and line, or a program.
    pub by: String,
    /// The value it sets, where that is known.
    pub value: String,
}

/// Everybody who sets keys on a machine.
#[derive(Debug, Default)]
pub struct Owners {
    /// By file below /proc/sys, since a key has two spellings.
    sysctls: BTreeMap<String, Vec<Owner>>,
    tuned: Option<String>,
    irqbalance: bool,
}

/// A line of a sysctl.conf(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line<'a> {
    /// Its number, from 1.
    pub number: usize,
    /// The key as written.
    pub key: &'a str,
    /// The value.
    pub value: &'a str,
    /// The line begins with `-`: errors are ignored.
    pub optional: bool,
}

/// The assignments of a sysctl.conf(5), or the number of a line that is none.
pub fn lines(text: &str) -> impl Iterator<Item = Result<Line<'_>, usize>> {
    text.lines().zip(1..).filter_map(|(line, number)| {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            return None;
        }
        let (optional, line) = line.strip_prefix('-').map_or((false, line), |line| (true, line));
        let Some((key, value)) = line.split_once('=') else {
            // `-net.ipv4.conf.eth0.*` alone takes keys out of a pattern.
            return (!optional).then_some(Err(number));
        };
        Some(Ok(Line { number, key: key.trim(), value: value.trim(), optional }))
    })
}

impl Owners {
    /// Looks for them.
    #[must_use]
    pub fn find(machine: &Machine) -> Self {
        let mut owners = Self::default();
        for (directory, name) in sysctl_files(machine) {
            owners.read_sysctls(machine, &format!("{directory}/{name}"));
        }
        owners.read_sysctls(machine, "/etc/sysctl.conf");
        owners.irqbalance = machine.runs("irqbalance");
        let profile = machine.word("/etc/tuned/active_profile").filter(|name| !name.is_empty());
        if let Some(names) = profile.filter(|_| machine.runs("tuned")) {
            for name in names.split_whitespace() {
                owners.read_tuned(machine, name, 0);
            }
            owners.tuned = Some(names);
        }
        owners
    }

    /// Who sets the file at `path`.
    #[must_use]
    pub fn of_file(&self, path: &str) -> Vec<Owner> {
        let mut owners = self.sysctls.get(path).cloned().unwrap_or_default();
        let by_tuned = ["scaling_governor", "transparent_hugepage"];
        if let Some(profile) = self.tuned.as_ref()
            && by_tuned.iter().any(|part| path.contains(part))
        {
            owners.push(Owner { by: format!("tuned ({profile})"), value: String::new() });
        }
        if self.irqbalance && path.starts_with("/proc/irq/") {
            owners.push(Owner { by: "irqbalance".to_owned(), value: String::new() });
        }
        owners
    }

    fn read_sysctls(&mut self, machine: &Machine, file: &str) {
        let text = machine.text(file).unwrap_or_default();
        for line in lines(&text).flatten() {
            self.add(line.key, &format!("{file}:{}", line.number), line.value);
        }
    }

    fn add(&mut self, key: &str, by: &str, value: &str) {
        let Some(path) = sysctl_path(key) else { return };
        let owner = Owner { by: by.to_owned(), value: value.to_owned() };
        self.sysctls.entry(path).or_default().push(owner);
    }

    /// The `[sysctl]` section of a tuned profile, and of those it includes.
    fn read_tuned(&mut self, machine: &Machine, profile: &str, depth: usize) {
        let safe = !profile.contains('/') && !profile.starts_with('.');
        if depth > INCLUDES_MAX || !safe {
            return;
        }
        let mut places = TUNED.into_iter().chain([TUNED_OLD]);
        let file = places.find_map(|place| {
            let file = format!("{place}/{profile}/tuned.conf");
            machine.text(&file).ok().map(|text| (file, text))
        });
        let Some((file, text)) = file else { return };
        let mut section = String::new();
        for (line, number) in text.lines().zip(1..) {
            let line = line.trim();
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                section = name.to_owned();
            }
            let Some((key, value)) = line.split_once('=').filter(|_| !line.starts_with('#')) else {
                continue;
            };
            match (section.as_str(), key.trim()) {
                ("main", "include") => {
                    for name in value.split(',') {
                        self.read_tuned(machine, name.trim(), depth + 1);
                    }
                }
                ("sysctl", key) => {
                    self.add(
                        key,
                        &format!("tuned ({file}:{number})"),
                        value.trim_start_matches('>').trim(),
                    );
                }
                _ => {}
            }
        }
    }
}

/// Directory and name of each file, in the order in which they are read: by name; of one name, only
/// that in the first directory.
fn sysctl_files(machine: &Machine) -> Vec<(&'static str, String)> {
    let mut files: BTreeMap<String, &'static str> = BTreeMap::new();
    for directory in DIRECTORIES {
        for name in machine.list(directory) {
            if name.ends_with(".conf") {
                files.entry(name).or_insert(directory);
            }
        }
    }
    files.into_iter().map(|(name, directory)| (directory, name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::tests::FakeRoot;

    #[test]
    fn sysctl_files_are_read_as_sysctl_reads_them() {
        let text = "# c\n; c\n\nnet.core.somaxconn=1\n - net.a.b = x y \nrubbish\n-net.c.*\n";
        let read: Vec<_> = lines(text).collect();
        let line = |number, key, value, optional| Ok(Line { number, key, value, optional });
        // A space after `-` is trimmed away with those around the key.
        assert_eq!(
            read,
            [line(4, "net.core.somaxconn", "1", false), line(5, "net.a.b", "x y", true), Err(6),]
        );
    }

    #[test]
    fn owners_are_found_with_file_and_line() {
        let root = FakeRoot::new("owners");
        root.put("/etc/sysctl.d/50-a.conf", "net.core.somaxconn = 1\n");
        root.put("/usr/lib/sysctl.d/50-a.conf", "net.core.somaxconn = 2\n");
        root.put("/usr/lib/sysctl.d/60-b.conf", "\nnet/core/somaxconn = 3\n");
        root.put("/etc/sysctl.conf", "vm.swappiness = 1\n");
        root.put("/etc/tuned/active_profile", "mine\n");
        root.put(
            "/etc/tuned/mine/tuned.conf",
            "[main]\ninclude=base,mine\n[sysctl]\nvm.swappiness=5\n",
        );
        root.put("/usr/lib/tuned/base/tuned.conf", "[cpu]\na=b\n[sysctl]\nvm.swappiness=>10\n");
        root.put("/proc/77/comm", "tuned\n");
        root.put("/proc/78/comm", "irqbalance\n");
        let owners = Owners::find(&root.machine());
        let by = |path: &str| -> Vec<String> {
            owners.of_file(path).iter().map(|o| format!("{}={}", o.by, o.value)).collect()
        };
        assert_eq!(
            by("/proc/sys/net/core/somaxconn"),
            ["/etc/sysctl.d/50-a.conf:1=1", "/usr/lib/sysctl.d/60-b.conf:2=3"]
        );
        assert_eq!(
            by("/proc/sys/vm/swappiness")[..2],
            ["/etc/sysctl.conf:1=1", "tuned (/usr/lib/tuned/base/tuned.conf:4)=10"]
        );
        assert_eq!(by("/proc/irq/30/smp_affinity_list"), ["irqbalance="]);
        assert_eq!(by("/sys/kernel/mm/transparent_hugepage/enabled"), ["tuned (mine)="]);
    }
}
