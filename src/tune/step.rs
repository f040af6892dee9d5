//! The whole step: lock, what is left of a trial, plan, changes, verification.

use std::io;
use std::time::Duration;

use super::Config;
use super::apply::{Changed, Failed, apply};
use super::journal::{Lock, Store};
use super::machine::{Machine, Target};
use super::plan::{Plan, Process, Status, plan};
use super::trial::{self, Standing};

/// Keys that the kernel refused for good, until the next boot.
const FIXED: &str = "fixed.json";

/// On whose word changes are made.
pub enum How<'a> {
    /// The operator's: what was tried and never confirmed is set too.
    ByHand,
    /// Nobody's, as at boot.
    Boot,
    /// The operator's, for this time unless confirmed. The function starts who waits for the deadline; it
    /// runs after the deadline is on disk and before the first change.
    Try(Duration, &'a mut dyn FnMut() -> io::Result<()>),
}

impl std::fmt::Debug for How<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ByHand => "ByHand",
            Self::Boot => "Boot",
            Self::Try(..) => "Try",
        })
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// Where everything stands afterwards.
    pub plan: Plan,
    /// What was changed.
    pub changed: Vec<Changed>,
    /// What could not be set.
    pub failed: Vec<Failed>,
    /// What an operator should know.
    pub notes: Vec<String>,
}

/// Applies and verifies a configuration.
///
/// # Errors
/// Another applier does not end, a trial is under way or cannot be reverted, or the journal cannot be written in mid-apply; for
/// people. Nothing else is a failure of the whole.
pub fn carry_out(
    config: &Config,
    machine: &Machine,
    process: Process,
    how: How<'_>,
) -> Result<Outcome, String> {
    let store = Store::new(machine, &config.state_dir);
    let mut notes = Vec::new();
    let lock = match store.lock() {
        Ok(lock) => Some(lock),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error.to_string()),
        Err(error) => {
            let directory = store.directory().display();
            notes.push(format!("no journal can be kept in {directory}: {error}"));
            None
        }
    };
    if let Some(lock) = &lock
        && let Some(outcome) =
            settle_trial(config, machine, process, &how, &store, lock, &mut notes)?
    {
        return Ok(outcome);
    }
    let mut plan = look(config, machine, process, &store, matches!(how, How::Boot))?;
    if lock.is_none() {
        deny(&mut plan);
    }
    let store_used = match (&lock, how) {
        (Some(lock), How::Try(time, arm)) if plan.count(Status::Change) > 0 => {
            begin_trial(&store, lock, &plan, time, arm)?;
            store.of_trial()
        }
        (Some(lock), How::ByHand) => {
            trial::forget(&store, lock).map_err(|error| state_error(&store, &error))?;
            store.clone()
        }
        _ => store.clone(),
    };
    let done = apply(config, machine, &mut plan, &store_used, lock.as_ref())
        .map_err(|error| format!("stopped: {}", state_error(&store, &error)))?;
    if lock.is_some() {
        remember_fixed(&store, &plan).map_err(|error| state_error(&store, &error))?;
    }
    verify(config, machine, process, &mut plan);
    Ok(Outcome { plan, changed: done.changed, failed: done.failed, notes })
}

/// Where everything stands, with what earlier runs have learnt. `withhold`: what was tried and never
/// confirmed is refused.
///
/// # Errors
/// The state cannot be read; for people.
pub fn look(
    config: &Config,
    machine: &Machine,
    process: Process,
    store: &Store,
    withhold: bool,
) -> Result<Plan, String> {
    let mut plan = plan(config, machine, process);
    // Without the privilege to read the state there is nothing learnt.
    if let Some(text) = store.read_file(FIXED).ok().flatten()
        && let Ok((boot, keys)) = serde_json::from_str::<(String, Vec<String>)>(&text)
        && boot == store.boot()
    {
        for item in plan.items.iter_mut().filter(|item| item.status == Status::Change) {
            if keys.contains(&item.key) {
                item.status = Status::NotApplicable;
                item.reason = Some("the kernel refused it on this boot".to_owned());
            }
        }
    }
    if withhold {
        trial::withhold(store, &mut plan).map_err(|error| state_error(store, &error))?;
    }
    Ok(plan)
}

fn remember_fixed(store: &Store, plan: &Plan) -> io::Result<()> {
    let fixed = plan.items.iter().filter(|item| {
        item.status == Status::NotApplicable && item.to.is_some() && item.reason.is_some()
    });
    let mut keys: Vec<String> = fixed.map(|item| item.key.clone()).collect();
    if keys.is_empty() {
        return Ok(());
    }
    keys.sort_unstable();
    let text = serde_json::to_string(&(store.boot(), &keys)).map_err(io::Error::other)?;
    store.write_file(FIXED, &text)
}

/// Reads everything again: a later write may have changed what an earlier one had set.
fn verify(config: &Config, machine: &Machine, process: Process, plan: &mut Plan) {
    let after = super::plan::plan(config, machine, process);
    for (item, now) in plan.items.iter_mut().zip(after.items) {
        let same = item.key == now.key;
        if same && item.status == Status::Holds && now.status == Status::Change {
            item.status = now.status;
            (item.now, item.to) = (now.now, now.to);
            item.reason = Some("set, and changed again by somebody else".to_owned());
        }
    }
}

/// Without a journal nothing is written that would need one.
fn deny(plan: &mut Plan) {
    for item in &mut plan.items {
        if item.status == Status::Change && !matches!(item.target, Target::Limit(_)) {
            item.status = Status::Denied;
            item.reason = Some("no journal can be kept, so nothing is changed".to_owned());
        }
    }
}

/// Deals with a trial: an overdue one is reverted. `Some`: one is under way, and nothing is changed.
fn settle_trial(
    config: &Config,
    machine: &Machine,
    process: Process,
    how: &How<'_>,
    store: &Store,
    lock: &Lock,
    notes: &mut Vec<String>,
) -> Result<Option<Outcome>, String> {
    let failed = |error: io::Error| state_error(store, &error);
    match trial::standing(store).map_err(failed)? {
        Standing::None => Ok(None),
        Standing::Overdue => {
            let undone = trial::revert(machine, store, lock).map_err(failed)?;
            if !undone.failed.is_empty() {
                return Err(not_reverted(&undone.failed));
            }
            notes.push(format!(
                "a trial was never confirmed: {} settings reverted",
                undone.restored.len()
            ));
            Ok(None)
        }
        Standing::Pending(left) if matches!(how, How::Boot) => {
            notes.push(format!("a trial is under way for {left:?}: nothing is changed"));
            let plan = look(config, machine, process, store, true)?;
            let (changed, failed, notes) = (Vec::new(), Vec::new(), std::mem::take(notes));
            Ok(Some(Outcome { plan, changed, failed, notes }))
        }
        Standing::Pending(left) => Err(format!(
            "a trial is under way and ends in {} s: `ringgate tune confirm` or `ringgate tune rollback` first",
            left.as_secs()
        )),
    }
}

/// Its journal still has them; the next run tries again.
fn not_reverted(failed: &[Failed]) -> String {
    let each: Vec<String> =
        failed.iter().map(|one| format!("{} ({})", one.key, one.reason)).collect();
    format!(
        "a trial was never confirmed, and these settings could not be reverted: {}; nothing else is \
         changed until they are: `ringgate tune rollback` tries again",
        each.join(", ")
    )
}

fn begin_trial(
    store: &Store,
    lock: &Lock,
    plan: &Plan,
    time: Duration,
    arm: &mut dyn FnMut() -> io::Result<()>,
) -> Result<(), String> {
    trial::begin(store, lock, plan, time).map_err(|error| state_error(store, &error))?;
    arm().map_err(|error| {
        let _ = trial::cancel(store, lock);
        format!("nothing is changed, because nobody would revert it: {error}")
    })
}

fn state_error(store: &Store, error: &io::Error) -> String {
    format!("{}: {error}", store.directory().display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::tests::FakeRoot;

    const KEY: &str = "/proc/sys/net/core/somaxconn";

    #[test]
    fn a_trial_that_cannot_be_reverted_is_an_error_and_keeps_its_journal() {
        let root = FakeRoot::small_machine("step-trial");
        let config = |value: &str| Config {
            set: [("net.core.somaxconn".to_owned(), Some(value.to_owned()))].into(),
            state_dir: "/state".into(),
            ..Config::default()
        };
        let machine = root.machine();
        let store = Store::new(&machine, std::path::Path::new("/state"));
        let mut arm = || Ok(());
        let how = How::Try(Duration::ZERO, &mut arm);
        carry_out(&config("20000"), &machine, Process::Other, how).unwrap();
        assert_eq!(trial::standing(&store).unwrap(), Standing::Overdue);
        // A directory can neither be read nor written as a value.
        let path = machine.path(KEY);
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        let mut arm = || Ok(());
        let again = How::Try(Duration::from_secs(60), &mut arm);
        for how in [How::ByHand, How::Boot, again] {
            let error = carry_out(&config("30000"), &machine, Process::Other, how).unwrap_err();
            assert!(error.contains("net.core.somaxconn"), "{error}");
            assert_eq!(store.of_trial().read().unwrap().records.len(), 1);
            assert_eq!(trial::standing(&store).unwrap(), Standing::Overdue);
        }
        std::fs::remove_dir(&path).unwrap();
        root.put(KEY, "20000");
        let done = carry_out(&config("30000"), &machine, Process::Other, How::ByHand).unwrap();
        assert!(done.notes.iter().any(|note| note.contains("1 settings reverted")), "{done:?}");
        assert_eq!(root.text(KEY), "30000");
        assert!(store.of_trial().read().unwrap().records.is_empty());
    }
}
