//! What machine it ran on, for the report.

use std::fs;

use serde::{Deserialize, Serialize};

/// A host that made load.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    /// CPUs that the process may use.
    pub(crate) cpus: usize,
    pub(crate) threads: usize,
}

impl Machine {
    /// This one; what cannot be read is empty.
    pub(crate) fn this(threads: usize) -> Self {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            kernel: kernel.trim().to_owned(),
            cpu: model(&info).to_owned(),
            cpus: ringgate::sys::cpu::allowed().len(),
            threads,
        }
    }
}

fn model(info: &str) -> &str {
    let value = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    value.map(|(_, name)| name.trim()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_is_found() {
        assert_eq!(model("processor\t: 0\nmodel name\t: A CPU\nmodel name\t: B\n"), "A CPU");
        assert_eq!(model("BogoMIPS\t: 50.00\n"), "");
        assert!(!Machine::this(1).kernel.is_empty());
    }
}
