//! `apply --try`: changes that undo themselves unless they are confirmed.
//!
//! The deadline is on disk before the first change, and a watcher process of its own waits for it. When the
//! watcher dies too, the next command or start of ringgate reverts. A reboot undoes all changes anyhow; what
//! was never confirmed is then not made again by the boot step, only by hand.

use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::apply::{Undone, rollback};
use super::journal::{Journal, Lock, Store};
use super::machine::Machine;
use super::plan::{Plan, Status};

const TRIAL: &str = "trial.json";
const UNCONFIRMED: &str = "unconfirmed.json";

/// A trial under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// The boot it belongs to.
    pub boot: String,
    /// When it ends, in milliseconds of the clock of /proc/uptime.
    pub deadline_ms: u64,
    /// What it changes.
    pub changes: Vec<Wish>,
}

/// A change that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// The key.
    pub key: String,
    /// The value.
    pub to: String,
}

/// Where a trial stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// There is none.
    None,
    /// It ends in this time.
    Pending(Duration),
    /// It should have ended.
    Overdue,
}

/// Milliseconds since boot, time asleep included.
///
/// # Errors
/// /proc/uptime cannot be read.
pub fn uptime_ms() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/uptime")?;
    parse_uptime(&text).ok_or_else(|| io::Error::other("/proc/uptime has another form"))
}

fn parse_uptime(text: &str) -> Option<u64> {
    let (seconds, hundredths) = text.split_whitespace().next()?.split_once('.')?;
    let (seconds, hundredths): (u64, u64) = (seconds.parse().ok()?, hundredths.parse().ok()?);
    seconds.checked_mul(1000)?.checked_add(hundredths.checked_mul(10)?)
}

fn read<T: for<'de> Deserialize<'de>>(store: &Store, name: &str) -> io::Result<Option<T>> {
    // A file that does not read is one that a power cut has torn: as if it were not there.
    Ok(store.read_file(name)?.and_then(|text| serde_json::from_str(&text).ok()))
}

fn write(store: &Store, name: &str, value: &impl Serialize) -> io::Result<()> {
    store.write_file(name, &serde_json::to_string(value).map_err(io::Error::other)?)
}

/// Where the trial stands now.
///
/// # Errors
/// The state cannot be read.
pub fn standing(store: &Store) -> io::Result<Standing> {
    let Some(trial) = read::<Trial>(store, TRIAL)? else { return Ok(Standing::None) };
    let left = trial.deadline_ms.saturating_sub(uptime_ms()?);
    Ok(if trial.boot != store.boot() || left == 0 {
        Standing::Overdue
    } else {
        Standing::Pending(Duration::from_millis(left))
    })
}

/// Puts the deadline on disk. Changes are then made with [`Store::of_trial`].
///
/// # Errors
/// The state cannot be written; an earlier trial's changes are neither confirmed nor undone.
pub fn begin(store: &Store, lock: &Lock, plan: &Plan, time: Duration) -> io::Result<()> {
    let tried = store.of_trial().read()?;
    if read::<Trial>(store, TRIAL)?.is_some()
        && store.is_current(&tried)
        && !tried.records.is_empty()
    {
        return Err(io::Error::other("an earlier trial is neither confirmed nor wholly undone"));
    }
    // What a crash in `confirm` may have left belongs to the journal already.
    store.of_trial().keep(lock, &Journal::default())?;
    let changes = plan.items.iter().filter(|item| item.status == Status::Change);
    let wish =
        |item: &super::plan::Item| Some(Wish { key: item.key.clone(), to: item.to.clone()? });
    let time_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let trial = Trial {
        boot: store.boot().to_owned(),
        deadline_ms: uptime_ms()?.saturating_add(time_ms),
        changes: changes.filter_map(wish).collect(),
    };
    write(store, TRIAL, &trial)
}

/// Makes a trial's changes stay: they join the journal. False when there is no trial.
///
/// # Errors
/// The state cannot be read or written.
pub fn confirm(store: &Store, lock: &Lock) -> io::Result<bool> {
    if read::<Trial>(store, TRIAL)?.is_none() {
        return Ok(false);
    }
    let tried = store.of_trial().read()?;
    if store.is_current(&tried) {
        let mut all = store.read()?;
        if !store.is_current(&all) {
            all = Journal { header: tried.header.clone(), records: Vec::new() };
        }
        all.records.extend(tried.records);
        store.keep(lock, &all)?;
    }
    // The journal has it: from here on a crash leaves a trial that reverts, never one that is half kept.
    store.remove_file(TRIAL)?;
    store.of_trial().keep(lock, &Journal::default())?;
    store.remove_file(UNCONFIRMED)?;
    Ok(true)
}

/// Undoes a trial and remembers what it was about. Nothing happens without one.
///
/// # Errors
/// The state cannot be read or written.
pub fn revert(machine: &Machine, store: &Store, lock: &Lock) -> io::Result<Undone> {
    let trial = read::<Trial>(store, TRIAL)?;
    // The journal may be there without the trial: a crash came between the two removals.
    let undone = match &trial {
        Some(_) => rollback(machine, &store.of_trial(), lock)?,
        None => {
            store.of_trial().keep(lock, &Journal::default())?;
            Undone::default()
        }
    };
    if let Some(trial) = trial.filter(|_| undone.failed.is_empty()) {
        write(store, UNCONFIRMED, &trial.changes)?;
        store.remove_file(TRIAL)?;
    }
    Ok(undone)
}

/// Takes back [`begin`], before any change.
///
/// # Errors
/// The state cannot be written.
pub fn cancel(store: &Store, _: &Lock) -> io::Result<()> {
    store.remove_file(TRIAL)
}

/// Forgets what was tried and never confirmed: the operator has decided.
///
/// # Errors
/// The state cannot be written.
pub fn forget(store: &Store, _: &Lock) -> io::Result<()> {
    store.remove_file(UNCONFIRMED)
}

/// Marks the changes of `plan` that were tried and never confirmed as refused.
///
/// # Errors
/// The state cannot be read.
pub fn withhold(store: &Store, plan: &mut Plan) -> io::Result<()> {
    let wishes: Vec<Wish> = read(store, UNCONFIRMED)?.unwrap_or_default();
    for item in plan.items.iter_mut().filter(|item| item.status == Status::Change) {
        if wishes.iter().any(|wish| wish.key == item.key && Some(&wish.to) == item.to.as_ref()) {
            item.status = Status::Refused;
            item.reason =
                Some("it was tried and never confirmed: `ringgate tune apply` sets it".to_owned());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::tune::Config;
    use crate::tune::apply::apply;
    use crate::tune::plan::{Process, plan};
    use crate::tune::tests::FakeRoot;

    const KEY: &str = "/proc/sys/net/core/somaxconn";

    fn config(value: &str) -> Config {
        let set = [("net.core.somaxconn".to_owned(), Some(value.to_owned()))].into();
        Config { set, ..Config::default() }
    }

    fn store(root: &FakeRoot) -> Store {
        Store::new(&root.machine(), Path::new("/state"))
    }

    fn change(root: &FakeRoot, value: &str, time: Option<Duration>) {
        let (machine, config) = (root.machine(), config(value));
        let (store, mut plan) = (store(root), plan(&config, &machine, Process::Other));
        let lock = store.lock().unwrap();
        let store = match time {
            Some(time) => {
                begin(&store, &lock, &plan, time).unwrap();
                store.of_trial()
            }
            None => store,
        };
        apply(&config, &machine, &mut plan, &store, Some(&lock)).unwrap();
    }

    #[test]
    fn a_trial_returns_to_what_was_before_it_not_before_everything() {
        let root = FakeRoot::small_machine("trial");
        change(&root, "10000", None);
        change(&root, "20000", Some(Duration::from_secs(60)));
        assert_eq!(root.text(KEY), "20000");
        let (machine, store) = (root.machine(), store(&root));
        assert!(matches!(standing(&store), Ok(Standing::Pending(_))));
        let lock = store.lock().unwrap();
        assert_eq!(revert(&machine, &store, &lock).unwrap().restored.len(), 1);
        assert_eq!(root.text(KEY), "10000");
        assert_eq!(standing(&store).unwrap(), Standing::None);
        let mut again = plan(&config("20000"), &machine, Process::Other);
        withhold(&store, &mut again).unwrap();
        assert_eq!(again.items[0].status, Status::Refused);
        rollback(&machine, &store, &lock).unwrap();
        assert_eq!(root.text(KEY), "4096\n");
    }

    #[test]
    fn a_confirmed_trial_joins_the_journal() {
        let root = FakeRoot::small_machine("trial-confirm");
        change(&root, "20000", Some(Duration::from_secs(60)));
        let (machine, store) = (root.machine(), store(&root));
        let lock = store.lock().unwrap();
        assert!(confirm(&store, &lock).unwrap());
        assert!(!confirm(&store, &lock).unwrap());
        assert_eq!(revert(&machine, &store, &lock).unwrap(), Undone::default());
        assert_eq!(root.text(KEY), "20000");
        rollback(&machine, &store, &lock).unwrap();
        assert_eq!(root.text(KEY), "4096\n");
    }

    #[test]
    fn a_trial_of_an_earlier_boot_is_overdue_and_withheld() {
        let root = FakeRoot::small_machine("trial-boot");
        change(&root, "20000", Some(Duration::from_secs(60)));
        root.put("/proc/sys/kernel/random/boot_id", "boot-2\n");
        root.put(KEY, "4096\n");
        let (machine, store) = (root.machine(), store(&root));
        assert_eq!(standing(&store).unwrap(), Standing::Overdue);
        revert(&machine, &store, &store.lock().unwrap()).unwrap();
        let mut again = plan(&config("20000"), &machine, Process::Other);
        withhold(&store, &mut again).unwrap();
        assert_eq!(again.items[0].status, Status::Refused);
        forget(&store, &store.lock().unwrap()).unwrap();
        let mut again = plan(&config("20000"), &machine, Process::Other);
        withhold(&store, &mut again).unwrap();
        assert_eq!(again.items[0].status, Status::Change);
    }

    #[test]
    fn another_trial_does_not_begin_before_the_first_has_ended() {
        let root = FakeRoot::small_machine("trial-twice");
        change(&root, "20000", Some(Duration::ZERO));
        let (machine, store) = (root.machine(), store(&root));
        let lock = store.lock().unwrap();
        let next = plan(&config("30000"), &machine, Process::Other);
        let error = begin(&store, &lock, &next, Duration::from_secs(60)).unwrap_err();
        assert!(error.to_string().contains("neither confirmed nor wholly undone"), "{error}");
        assert_eq!(store.of_trial().read().unwrap().records.len(), 1);
        revert(&machine, &store, &lock).unwrap();
        begin(&store, &lock, &next, Duration::from_secs(60)).unwrap();
    }

    #[test]
    fn uptime_is_read() {
        assert_eq!(parse_uptime("12.34 56.78\n"), Some(12_340));
        assert_eq!(parse_uptime("x"), None);
        assert!(uptime_ms().is_ok_and(|now| now > 0));
    }
}
