//! Making changes, and undoing them.

use std::io;

use serde::Serialize;

use super::Config;
use super::journal::{Journal, Lock, Record, Store, Writer};
use super::machine::{Machine, Target};
use super::plan::{Item, Plan, Status, judge};
use super::wanted::{Judged, Size, selected, tidy};

/// A value that was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Changed {
    /// The key.
    pub key: String,
    /// The value before.
    pub from: String,
    /// The value since.
    pub to: String,
}

/// A value that could not be changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failed {
    /// The key.
    pub key: String,
    /// Why.
    pub reason: String,
}

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// In the order of the changes.
    pub changed: Vec<Changed>,
    /// What could not be.
    pub failed: Vec<Failed>,
}

/// Carries out the changes of `plan` and updates it to what is then. Each original is on disk before its
/// value is written; without `lock` nothing is, but limits of the process.
///
/// # Errors
/// The journal cannot be written; what was announced in it until then may have been changed.
pub fn apply(
    config: &Config,
    machine: &Machine,
    plan: &mut Plan,
    store: &Store,
    lock: Option<&Lock>,
) -> io::Result<Report> {
    let mut report = Report::default();
    let mut writer: Option<Writer> = None;
    let size = machine.size();
    for item in plan.items.iter_mut().filter(|item| item.status == Status::Change) {
        let Some(to) = item.to.clone() else { continue };
        // A limit goes with the process: there is nothing to restore.
        if !matches!(item.target, Target::Limit(_)) {
            let Some(lock) = lock else { continue };
            let original = match machine.read(&item.target) {
                Ok(original) => original,
                Err(error) => {
                    gone(item, &error, &mut report);
                    continue;
                }
            };
            let record = Record {
                key: item.key.clone(),
                target: item.target.clone(),
                original,
                written: to.clone(),
            };
            let journal = match &mut writer {
                Some(journal) => journal,
                none => none.insert(store.open(lock)?),
            };
            journal.announce(record)?;
        }
        match machine.write(&item.target, &to) {
            Ok(()) => settle(item, machine, size, config, &mut report),
            Err(error) => refused(item, &error, &mut report),
        }
    }
    report.failed.extend(plan.items.iter().filter(|i| i.status == Status::Denied).map(|item| {
        let reason = item.reason.clone().unwrap_or_default();
        Failed { key: item.key.clone(), reason }
    }));
    Ok(report)
}

/// Looks whether a write had its effect.
fn settle(item: &mut Item, machine: &Machine, size: Size, config: &Config, report: &mut Report) {
    let from = item.now.clone().unwrap_or_default();
    let text = match machine.read(&item.target) {
        Ok(text) => text,
        Err(error) => return gone(item, &error, report),
    };
    let now = if text.contains('[') { selected(&text) } else { tidy(&text) };
    item.now = Some(now.clone());
    match judge(item, &text, size, &config.ports) {
        Judged::Holds | Judged::Beyond => {
            item.status = Status::Holds;
            item.to = None;
            report.changed.push(Changed { key: item.key.clone(), from, to: now });
        }
        Judged::Becomes(_) | Judged::Strange => {
            let reason = format!("written, but the kernel has made {now} of it");
            item.reason = Some(reason.clone());
            report.failed.push(Failed { key: item.key.clone(), reason });
        }
    }
}

fn gone(item: &mut Item, error: &io::Error, report: &mut Report) {
    let reason = format!("it cannot be read: {error}");
    item.reason = Some(reason.clone());
    report.failed.push(Failed { key: item.key.clone(), reason });
}

/// What the kernel's refusal to take a value means.
fn refused(item: &mut Item, error: &io::Error, report: &mut Report) {
    let path = match &item.target {
        Target::File(path) => path.as_str(),
        _ => "",
    };
    let (status, reason) = match error.raw_os_error() {
        Some(libc::EIO) if path.starts_with("/proc/irq/") => (
            Status::NotApplicable,
            "the driver manages this interrupt's affinity itself".to_owned(),
        ),
        Some(libc::EROFS) => (Status::NotApplicable, "its file system is read-only".to_owned()),
        Some(libc::EOPNOTSUPP) => (Status::NotApplicable, "the driver cannot set it".to_owned()),
        Some(libc::EPERM) if matches!(item.target, Target::Limit(_)) => {
            let why = "it takes CAP_SYS_RESOURCE, or Limit…= in the unit that starts this";
            (Status::Denied, why.to_owned())
        }
        Some(libc::EPERM | libc::EACCES) => (Status::Denied, format!("{error}")),
        _ => (Status::Change, format!("the kernel refused {:?}: {error}", item.to)),
    };
    (item.status, item.reason) = (status, Some(reason.clone()));
    if status == Status::Change {
        report.failed.push(Failed { key: item.key.clone(), reason });
    }
}

/// What rollback did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Undone {
    /// In the order of restoring; a key that already had its original is left out.
    pub restored: Vec<Changed>,
    /// What could not be restored; it stays in the journal.
    pub failed: Vec<Failed>,
    /// What an operator should know.
    pub notes: Vec<String>,
}

/// Restores every original of the journal, the last change first. Killed at any moment, it can be run again.
///
/// # Errors
/// The journal cannot be read or written.
pub fn rollback(machine: &Machine, store: &Store, lock: &Lock) -> io::Result<Undone> {
    let journal = store.read()?;
    let mut undone = Undone::default();
    if journal.header.is_none() {
        return Ok(undone);
    }
    if !store.is_current(&journal) {
        undone
            .notes
            .push("the journal is from before a reboot, which has undone its changes".into());
        store.keep(lock, &Journal::default())?;
        return Ok(undone);
    }
    let mut left = Journal { header: journal.header.clone(), records: Vec::new() };
    for record in journal.originals() {
        match restore(machine, record) {
            Ok(None) => {}
            Ok(Some(from)) => {
                let written = journal.written(&record.target).unwrap_or_default();
                if tidy(&from) != tidy(written) && selected(&from) != tidy(written) {
                    let (key, from) = (&record.key, tidy(&from));
                    undone.notes.push(format!("{key} had been changed to {from} by somebody else"));
                }
                let (from, to) = (selected(&from), selected(&record.original));
                undone.restored.push(Changed { key: record.key.clone(), from, to });
            }
            // An interface or a module that has gone took the setting with it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                undone.notes.push(format!("{} is no longer there", record.key));
            }
            Err(error) => {
                let failed = Failed { key: record.key.clone(), reason: error.to_string() };
                undone.failed.push(failed);
                left.records.push(record.clone());
            }
        }
    }
    left.records.reverse();
    store.keep(lock, &left)?;
    Ok(undone)
}

/// Restores one value and returns what it was in the meantime; `None` when nothing was to be done.
fn restore(machine: &Machine, record: &Record) -> io::Result<Option<String>> {
    let now = machine.read(&record.target)?;
    if now == record.original {
        return Ok(None);
    }
    let word = selected(&record.original);
    if !record.original.contains('[') {
        machine.write(&record.target, &record.original)?;
    } else {
        machine.write(&record.target, &word)?;
        // The kernel lists the choices again; a plain file holds what was written.
        if machine.read(&record.target)? == word {
            machine.write(&record.target, &record.original)?;
        }
    }
    let after = machine.read(&record.target)?;
    if tidy(&after) != tidy(&record.original) && selected(&after) != word {
        return Err(io::Error::other(format!("written, but it is {}", tidy(&after))));
    }
    Ok(Some(now))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::tune::plan::{Process, plan};
    use crate::tune::tests::FakeRoot;

    fn config() -> Config {
        Config { profiles: vec!["edge".into()], ports: vec![80], ..Config::default() }
    }

    /// Every file below the root's proc and sys.
    fn snapshot(root: &FakeRoot) -> Vec<(String, String)> {
        fn walk(root: &FakeRoot, path: &str, all: &mut Vec<(String, String)>) {
            let machine = root.machine();
            for name in machine.list(path) {
                let path = format!("{path}/{name}");
                match machine.text(&path) {
                    Ok(text) => all.push((path, text)),
                    Err(_) => walk(root, &path, all),
                }
            }
        }
        let mut all = Vec::new();
        walk(root, "/proc", &mut all);
        walk(root, "/sys", &mut all);
        walk(root, "/ethtool", &mut all);
        all
    }

    fn run(root: &FakeRoot, config: &Config) -> Report {
        let machine = root.machine();
        let store = Store::new(&machine, Path::new("/state"));
        let lock = store.lock().unwrap();
        let mut plan = plan(config, &machine, Process::Other);
        let report = apply(config, &machine, &mut plan, &store, Some(&lock)).unwrap();
        assert_eq!(plan.drift().count(), report.failed.len());
        report
    }

    fn undo(root: &FakeRoot) -> Undone {
        let store = Store::new(&root.machine(), Path::new("/state"));
        rollback(&root.machine(), &store, &store.lock().unwrap()).unwrap()
    }

    #[test]
    fn apply_is_idempotent_and_rollback_restores_every_byte() {
        let root = FakeRoot::small_machine("apply");
        let before = snapshot(&root);
        let report = run(&root, &config());
        assert!(report.changed.len() >= 6 && report.failed.is_empty(), "{report:?}");
        assert_eq!(root.text("/proc/sys/net/core/somaxconn"), "65535");
        assert_eq!(run(&root, &config()), Report::default());
        let undone = undo(&root);
        assert_eq!(undone.restored.len(), report.changed.len());
        assert_eq!(snapshot(&root), before);
        assert_eq!(undo(&root), Undone::default());
    }

    #[test]
    fn rollback_returns_to_what_was_before_the_first_of_several() {
        let root = FakeRoot::small_machine("apply-twice");
        let before = snapshot(&root);
        run(&root, &config());
        let more = Config {
            set: [("net.core.somaxconn".to_owned(), Some("100000".to_owned()))].into(),
            ..config()
        };
        run(&root, &more);
        root.put("/proc/sys/vm/swappiness", "33\n");
        run(&root, &more);
        root.put("/proc/sys/net/ipv4/tcp_tw_reuse", "7\n");
        let undone = undo(&root);
        assert_eq!(snapshot(&root), before);
        assert_eq!(undone.notes, ["net.ipv4.tcp_tw_reuse had been changed to 7 by somebody else"]);
    }

    #[test]
    fn what_cannot_be_restored_stays_in_the_journal() {
        let root = FakeRoot::small_machine("apply-left");
        run(&root, &config());
        let path = root.machine().path("/proc/sys/vm/swappiness");
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        let undone = undo(&root);
        assert_eq!(undone.failed.len(), 1);
        std::fs::remove_dir(&path).unwrap();
        root.put("/proc/sys/vm/swappiness", "10");
        assert_eq!(undo(&root).restored.len(), 1);
        assert_eq!(root.text("/proc/sys/vm/swappiness"), "60\n");
    }

    #[test]
    fn a_reboot_has_undone_everything() {
        let root = FakeRoot::small_machine("apply-boot");
        run(&root, &config());
        root.put("/proc/sys/kernel/random/boot_id", "boot-2\n");
        root.put("/proc/sys/net/core/somaxconn", "5000\n");
        let undone = undo(&root);
        assert_eq!((undone.restored.len(), undone.notes.len()), (0, 1));
        assert_eq!(root.text("/proc/sys/net/core/somaxconn"), "5000\n");
    }

    #[test]
    fn what_a_refusal_of_the_kernel_means() {
        let root = crate::tune::topology::tests::two_nodes("apply-refused");
        let plan = plan(&config(), &root.machine(), Process::Other);
        let of = |key: &str, errno| {
            let mut item = plan.items.iter().find(|item| item.key == key).unwrap().clone();
            let mut report = Report::default();
            refused(&mut item, &io::Error::from_raw_os_error(errno), &mut report);
            assert!(item.reason.is_some());
            (item.status, report.failed.len())
        };
        let irq = "nic.eth0.irq40.irq_affinity";
        assert_eq!(of(irq, libc::EIO), (Status::NotApplicable, 0));
        assert_eq!(of("net.core.somaxconn", libc::EIO), (Status::Change, 1));
        assert_eq!(of("net.core.somaxconn", libc::EINVAL), (Status::Change, 1));
        assert_eq!(of("net.core.somaxconn", libc::EROFS), (Status::NotApplicable, 0));
        assert_eq!(of("net.core.somaxconn", libc::EPERM), (Status::Denied, 0));
    }

    #[test]
    fn nothing_is_written_without_a_journal() {
        let root = FakeRoot::small_machine("apply-nojournal");
        let machine = root.machine();
        let store = Store::new(&machine, Path::new("/state"));
        let lock = store.lock().unwrap();
        // A directory where the journal should be.
        std::fs::create_dir_all(store.directory().join("journal")).unwrap();
        let before = snapshot(&root);
        let mut plan = plan(&config(), &machine, Process::Other);
        assert!(apply(&config(), &machine, &mut plan, &store, Some(&lock)).is_err());
        assert_eq!(snapshot(&root), before);
    }
}
