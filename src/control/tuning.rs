//! The tuning step of `run`: before anything listens, and watched from then on.

use std::io;
use std::path::Path;
use std::time::Instant;

use crate::control::logger::Logger;
use crate::tune::journal::Store;
use crate::tune::machine::Machine;
use crate::tune::placement::Placement;
use crate::tune::plan::{Plan, Process, Status};
use crate::tune::step::{How, Outcome, carry_out, look};
use crate::tune::{Config, Shards};

/// Settings named in one log line; more are counted.
const NAMED_MAX: usize = 40;

/// What the step came to.
#[derive(Debug)]
pub struct Tuned {
    /// What was tuned, with the shards' CPUs as decided at the start.
    pub config: Config,
    /// Who runs where.
    pub placement: Placement,
    /// Settings changed at the start.
    pub changed: usize,
    /// Where the settings stood at the start.
    pub standing: Standing,
}

/// Where the settings stood when they were last looked at.
#[derive(Debug, Clone)]
pub struct Standing {
    /// When.
    pub checked: Instant,
    /// How many there are of each status.
    pub counts: Vec<(Status, usize)>,
    /// Those that are not as they should be.
    pub drift: Vec<Drift>,
}

/// A setting that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drift {
    /// The setting.
    pub key: String,
    /// Its value.
    pub now: String,
    /// The wanted value.
    pub wanted: String,
    /// Why it was not set, if that is known.
    pub reason: String,
}

impl Standing {
    /// As a plan finds them.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        let drift = |item: &crate::tune::plan::Item| Drift {
            key: item.key.clone(),
            now: item.now.clone().unwrap_or_default(),
            wanted: item.wanted.clone(),
            reason: item.reason.clone().unwrap_or_default(),
        };
        Self {
            checked: Instant::now(),
            counts: Status::ALL.iter().map(|status| (*status, plan.count(*status))).collect(),
            drift: plan.drift().map(drift).collect(),
        }
    }
}

/// Applies and verifies the configured settings, and says in a line what it changed; `None` when there
/// are none.
///
/// # Errors
/// What to do, when `tuning.require` is set and something that applies is not in force.
pub fn first(config: &Config, logger: Logger) -> Result<Option<Tuned>, String> {
    if config.is_off() {
        return Ok(None);
    }
    let machine = Machine::new(&config.root);
    let outcome = match carry_out(config, &machine, Process::Serves, How::Boot) {
        Ok(outcome) => outcome,
        Err(error) if config.require => {
            return Err(format!("tuning.require is set, but the settings cannot be made: {error}"));
        }
        Err(error) => {
            logger.warn("tuning: nothing is changed", &[("error", &error)]);
            let store = Store::new(&machine, &config.state_dir);
            let plan = look(config, &machine, Process::Serves, &store, true)?;
            Outcome { plan, changed: Vec::new(), failed: Vec::new(), notes: Vec::new() }
        }
    };
    tell(config, &outcome, logger);
    let standing = Standing::of(&outcome.plan);
    if config.require && !standing.drift.is_empty() {
        return Err(format!(
            "tuning.require is set, but these are not in force: {}: run as root, or once `ringgate tune \
             apply FILE` (deploy/ringgate-tune.service), or name them in tuning.set with false",
            drifted(&standing.drift)
        ));
    }
    let placement = outcome.plan.placement;
    let shards = Shards::Cpus(placement.shards.clone());
    let config = Config { shards, interfaces: outcome.plan.interfaces, ..config.clone() };
    Ok(Some(Tuned { config, placement, changed: outcome.changed.len(), standing }))
}

fn tell(config: &Config, outcome: &Outcome, logger: Logger) {
    for note in &outcome.notes {
        logger.warn("tuning", &[("note", note)]);
    }
    let changed: Vec<String> = outcome
        .changed
        .iter()
        .map(|change| format!("{} {} -> {}", change.key, change.from, change.to))
        .collect();
    let fields = [
        ("profile", &config.profiles.join("+")[..]),
        ("changed", &changed.len().to_string()),
        ("settings", &short(&changed)),
    ];
    logger.info("tuned", &fields);
    let drift = Standing::of(&outcome.plan).drift;
    if !drift.is_empty() {
        let fields = [("count", &drift.len().to_string()[..]), ("settings", &drifted(&drift))];
        logger.warn("tuning: could not set", &fields);
    }
}

/// Keys and reasons, each reason once for all its keys in a row.
fn drifted(drift: &[Drift]) -> String {
    let mut parts: Vec<String> = Vec::new();
    for (index, one) in drift.iter().enumerate() {
        let last = drift.get(index + 1).is_none_or(|next| next.reason != one.reason);
        parts.push(match one.reason.as_str() {
            reason if last && !reason.is_empty() => format!("{} ({reason})", one.key),
            _ => one.key.clone(),
        });
    }
    short(&parts)
}

fn short(parts: &[String]) -> String {
    let mut text = parts.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
    if parts.len() > NAMED_MAX {
        text.push_str(&format!(" and {} more", parts.len() - NAMED_MAX));
    }
    text
}

/// Looks for drift in a thread of its own, since files are read; `tell` returns false to end it.
///
/// # Errors
/// The thread cannot be started.
pub fn watch(
    config: Config,
    mut tell: impl FnMut(Standing) -> bool + Send + 'static,
) -> io::Result<()> {
    let look_again = move || {
        let machine = Machine::new(&config.root);
        let store = Store::new(&machine, Path::new(&config.state_dir));
        loop {
            std::thread::sleep(config.check_interval);
            if let Ok(plan) = look(&config, &machine, Process::Serves, &store, true)
                && !tell(Standing::of(&plan))
            {
                return;
            }
        }
    };
    std::thread::Builder::new().name("tuning".into()).spawn(look_again).map(drop)
}

/// What is new in `now` against `before`: settings that have drifted, and settings that are well again.
#[must_use]
pub fn news<'a>(before: &'a Standing, now: &'a Standing) -> (Vec<&'a Drift>, Vec<&'a Drift>) {
    let lacks = |list: &[Drift], key: &str| list.iter().all(|drift| drift.key != key);
    let gone = now.drift.iter().filter(|drift| lacks(&before.drift, &drift.key)).collect();
    let back = before.drift.iter().filter(|drift| lacks(&now.drift, &drift.key)).collect();
    (gone, back)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(keys: &[(&str, &str)]) -> Standing {
        let drift = |(key, reason): &(&str, &str)| Drift {
            key: (*key).to_owned(),
            now: String::new(),
            wanted: String::new(),
            reason: (*reason).to_owned(),
        };
        Standing {
            checked: Instant::now(),
            counts: Vec::new(),
            drift: keys.iter().map(drift).collect(),
        }
    }

    #[test]
    fn only_what_is_new_is_news() {
        let (before, now) = (standing(&[("a", ""), ("b", "")]), standing(&[("b", ""), ("c", "")]));
        let (gone, back) = news(&before, &now);
        assert_eq!((gone[0].key.as_str(), back[0].key.as_str()), ("c", "a"));
        assert_eq!((gone.len(), back.len()), (1, 1));
    }

    #[test]
    fn reasons_are_told_once() {
        let drift = standing(&[("a", "x"), ("b", "x"), ("c", "y"), ("d", "")]).drift;
        assert_eq!(drifted(&drift), "a, b (x), c (y), d");
        let many: Vec<(String, &str)> = (0..50).map(|n| (n.to_string(), "")).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|(key, why)| (key.as_str(), *why)).collect();
        assert!(drifted(&standing(&many).drift).ends_with("39 and 10 more"));
    }

    #[test]
    fn without_a_profile_nothing_is_done() {
        let logger = Logger::new(
            crate::control::config::Level::Error,
            crate::control::config::LogFormat::Text,
        );
        assert!(first(&Config::default(), logger).unwrap().is_none());
    }
}
