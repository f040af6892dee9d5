//! What an instance's priority and fitness depend on: the process itself first, then what the
//! configuration tracks.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use super::checks::{self, ScriptState};
use super::config::{self, Script, Track, Tracked};
use super::health::Health;
use super::network::Network;
use crate::sys::notify::EventFd;

/// What tracking comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// Added to the configured priority.
    pub(super) delta: i32,
    /// Nothing says that this host cannot serve.
    pub(super) healthy: bool,
    /// Everything that is not as it should be, or changes the priority.
    pub(super) why: Vec<String>,
}

/// The sources of verdicts that instances share.
#[derive(Debug)]
pub(super) struct Sources {
    pub(super) health: Arc<Health>,
    pub(super) scripts: Vec<(Script, Arc<ScriptState>)>,
    pub(super) files: Vec<(std::path::PathBuf, Arc<AtomicI32>)>,
    /// Shards that do not answer.
    pub(super) dead_shards: Vec<usize>,
}

impl Sources {
    /// Runs the scripts and watches the files of this configuration; those that run already go on.
    ///
    /// # Errors
    /// When a thread cannot be made; nothing has changed then.
    pub(super) fn renew(&mut self, config: &config::Ha, wake: &Arc<EventFd>) -> io::Result<()> {
        let mut scripts = Vec::new();
        for script in &config.scripts {
            let known = self.scripts.iter().find(|(known, _)| known == script);
            let state = match known {
                Some((_, state)) => Arc::clone(state),
                None => checks::run_script(script.clone(), Arc::clone(wake))?,
            };
            scripts.push((script.clone(), state));
        }
        let mut paths = Vec::new();
        for track in config.instances.iter().flat_map(|instance| &instance.tracks) {
            if let Tracked::File(path) = &track.what
                && !paths.contains(path)
            {
                paths.push(path.clone());
            }
        }
        if !paths.iter().eq(self.files.iter().map(|(path, _)| path)) {
            let values = checks::watch_files(paths.clone(), Arc::clone(wake))?;
            self.files = paths.into_iter().zip(values).collect();
        }
        for (_, state) in &self.scripts {
            if !scripts.iter().any(|(_, kept)| Arc::ptr_eq(kept, state)) {
                state.over.store(true, Ordering::Relaxed);
            }
        }
        self.scripts = scripts;
        Ok(())
    }

    /// Judges the process and `tracks`.
    pub(super) fn standing(&self, tracks: &[Track], network: &Network) -> Standing {
        let mut standing = Standing { healthy: true, ..Standing::default() };
        self.judge_process(&mut standing);
        for track in tracks {
            let (state, name) = self.state(&track.what, network);
            standing.add(state, track.weight, &name);
        }
        standing
    }

    /// Every script has had its first verdict.
    pub(super) fn is_known(&self) -> bool {
        self.scripts.iter().all(|(_, state)| state.verdict.is_good().is_some())
    }

    fn judge_process(&self, standing: &mut Standing) {
        for shard in &self.dead_shards {
            standing.bad(format!("shard {shard} does not answer"));
        }
        if self.health.listeners.is_good() != Some(true) {
            standing.bad("listeners are not open".into());
        }
        if self.health.tuning.is_good() == Some(false) {
            standing.bad("tuning is not in force".into());
        }
    }

    /// How a thing stands, and what to call it.
    fn state(&self, what: &Tracked, network: &Network) -> (Seen, String) {
        match what {
            Tracked::Interface(name) => {
                (Seen::of(network.is_running(name)), format!("interface {name}"))
            }
            Tracked::Script(index) => {
                let Some((script, state)) = self.scripts.get(*index) else {
                    return (Seen::Unknown, "script".into());
                };
                let seen = state.verdict.is_good().map_or(Seen::Unknown, Seen::of);
                (seen, format!("script {}", script.name))
            }
            Tracked::File(path) => {
                let found = self.files.iter().find(|(known, _)| known == path);
                let value = found.map_or(0, |(_, value)| value.load(Ordering::Relaxed));
                (Seen::Value(value), format!("file {}", path.display()))
            }
            Tracked::Upstream { name, quorum } => {
                let counts = self.health.usable();
                let usable = counts.get(name).map_or(0, |usable| usable.load(Ordering::Relaxed));
                (Seen::of(usable >= *quorum), format!("upstream {name} with {usable} of {quorum}"))
            }
        }
    }
}

/// How a tracked thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Good,
    Bad,
    Unknown,
    /// A file's number: 0 is good; it multiplies the weight.
    Value(i32),
}

impl Seen {
    fn of(good: bool) -> Self {
        if good { Self::Good } else { Self::Bad }
    }
}

impl Standing {
    fn bad(&mut self, why: String) {
        self.healthy = false;
        self.why.push(why);
    }

    /// keepalived's rule: a weight above zero is added when good, one below zero when bad; without one, bad
    /// means that this host cannot serve.
    fn add(&mut self, seen: Seen, weight: Option<i16>, name: &str) {
        let Some(weight) = weight.map(i32::from) else {
            match seen {
                Seen::Good | Seen::Value(0) => {}
                Seen::Bad | Seen::Value(_) => self.bad(format!("{name} is down")),
                Seen::Unknown => self.bad(format!("{name} is not known yet")),
            }
            return;
        };
        let delta = match seen {
            Seen::Good if weight > 0 => weight,
            Seen::Bad | Seen::Unknown if weight < 0 => weight,
            Seen::Value(value) => value.clamp(-254, 254) * weight,
            _ => 0,
        };
        if delta != 0 {
            self.delta += delta;
            let state = if seen == Seen::Good { "up" } else { "down" };
            self.why.push(format!("{name} is {state}: {delta:+}"));
        } else if seen == Seen::Bad {
            self.why.push(format!("{name} is down: its +{weight} is missing"));
        }
    }
}

/// The configured priority with what tracking adds, within what VRRP allows to one that is no owner.
pub(super) fn effective(configured: u8, delta: i32) -> u8 {
    u8::try_from((i32::from(configured) + delta).clamp(1, 254)).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_follow_keepalived() {
        for (seen, weight, delta, healthy) in [
            (Seen::Good, Some(20), 20, true),
            (Seen::Bad, Some(20), 0, true),
            (Seen::Good, Some(-20), 0, true),
            (Seen::Bad, Some(-20), -20, true),
            (Seen::Unknown, Some(-20), -20, true),
            (Seen::Unknown, Some(20), 0, true),
            (Seen::Good, None, 0, true),
            (Seen::Bad, None, 0, false),
            (Seen::Unknown, None, 0, false),
            (Seen::Value(0), None, 0, true),
            (Seen::Value(1), None, 0, false),
            (Seen::Value(3), Some(-10), -30, true),
            (Seen::Value(i32::MAX), Some(253), 254 * 253, true),
        ] {
            let mut standing = Standing { healthy: true, ..Standing::default() };
            standing.add(seen, weight, "x");
            assert_eq!((standing.delta, standing.healthy), (delta, healthy), "{seen:?} {weight:?}");
        }
    }

    #[test]
    fn priorities_stay_between_those_with_a_meaning() {
        for (configured, delta, expected) in [
            (100, 20, 120),
            (100, -200, 1),
            (200, 100, 254),
            (100, 254 * 253, 254),
            (1, i32::from(i16::MIN), 1),
        ] {
            assert_eq!(effective(configured, delta), expected);
        }
    }
}
