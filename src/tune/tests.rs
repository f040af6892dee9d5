//! What the tests of this module share: a machine made of files.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::machine::Machine;

/// A root directory that lives as long as the value.
pub(super) struct FakeRoot(pub(super) PathBuf);

impl FakeRoot {
    pub(super) fn new(name: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("ringgate-tune-{}-{number}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// With the keys of a two-CPU machine of 8 GiB.
    pub(super) fn small_machine(name: &str) -> Self {
        let root = Self::new(name);
        for (path, text) in [
            ("/proc/meminfo", "MemTotal:        8388608 kB\n"),
            ("/proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/vda quiet\n"),
            ("/proc/sys/kernel/random/boot_id", "boot-1\n"),
            ("/sys/devices/system/cpu/online", "0-1\n"),
            ("/proc/sys/net/core/somaxconn", "4096\n"),
            ("/proc/sys/net/core/netdev_max_backlog", "1000\n"),
            ("/proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n"),
            ("/proc/sys/net/ipv4/ip_local_reserved_ports", "\n"),
            ("/proc/sys/net/ipv4/tcp_max_syn_backlog", "2048\n"),
            ("/proc/sys/net/ipv4/tcp_tw_reuse", "2\n"),
            ("/proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t33554432\n"),
            ("/proc/sys/vm/swappiness", "60\n"),
            ("/sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never\n"),
        ] {
            root.put(path, text);
        }
        root
    }

    pub(super) fn put(&self, path: &str, text: &str) {
        let path = self.machine().path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(super) fn text(&self, path: &str) -> String {
        fs::read_to_string(self.machine().path(path)).unwrap()
    }

    pub(super) fn machine(&self) -> Machine {
        Machine::new(&self.0)
    }
}

impl Drop for FakeRoot {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
