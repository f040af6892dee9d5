//! Boot tuning: the settings that decide what the machine can carry, applied before anything listens, each
//! with a reason, verifiable and reversible.
//!
//! The checklist is data (`tuning/*.toml`). [`plan`] compares it with the machine and changes nothing,
//! [`apply`] writes what differs behind a journal of originals, [`trial`] undoes that by itself unless
//! confirmed. All access goes through [`machine::Machine`], below a root directory that can be replaced.

pub mod apply;
pub mod journal;
pub mod lint;
pub mod machine;
pub mod owners;
pub mod picture;
pub mod placement;
pub mod plan;
pub mod setting;
pub mod step;
pub mod topology;
pub mod trial;
pub mod wanted;

use std::collections::BTreeMap;
use std::path::PathBuf;

/// Where journals are kept, below the root directory.
pub const STATE_DIR: &str = "/var/lib/ringgate/tune";

/// What is to be tuned, validated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Profiles, each known; empty: only `set`. Where two disagree, the later one counts.
    pub profiles: Vec<String>,
    /// Values of the operator's own, by key; `None` leaves the key alone.
    pub set: BTreeMap<String, Option<String>>,
    /// Keys that may be lowered.
    pub force: Vec<String>,
    /// Keys whose danger is accepted.
    pub allow: Vec<String>,
    /// Not to serve unless everything that applies is in force.
    pub require: bool,
    /// How often a serving process looks for drift.
    pub check_interval: std::time::Duration,
    /// Network interfaces; empty: those with hardware, or else all but the loopback.
    pub interfaces: Vec<String>,
    /// Below which /proc, /sys, /etc and the journal are looked for.
    pub root: PathBuf,
    /// Where the journal is kept, below the root.
    pub state_dir: PathBuf,
    /// Ports of the listeners, to be reserved.
    pub ports: Vec<u16>,
    /// CPUs of the shards, if the operator chose them.
    pub shards: Shards,
}

/// How many shards run, as far as placement has to know.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Shards {
    /// As placement sees fit.
    #[default]
    Auto,
    /// This many.
    Count(usize),
    /// On these CPUs.
    Cpus(Vec<usize>),
}

impl Default for Config {
    fn default() -> Self {
        Self {
            profiles: Vec::new(),
            set: BTreeMap::new(),
            force: Vec::new(),
            allow: Vec::new(),
            require: false,
            check_interval: std::time::Duration::from_secs(60),
            interfaces: Vec::new(),
            root: PathBuf::from("/"),
            state_dir: PathBuf::from(STATE_DIR),
            ports: Vec::new(),
            shards: Shards::Auto,
        }
    }
}

impl Config {
    /// True when there is nothing to do.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.profiles.is_empty() && self.set.is_empty()
    }

    /// True when `key` (or the catalogue's name for it) is in `names`.
    fn names(names: &[String], key: &str, setting: &str) -> bool {
        names.iter().any(|name| name == key || name == setting)
    }
}

#[cfg(test)]
mod tests;
