//! The originals of everything that was changed, on disk before each change.
//!
//! One JSON object a line, appended and fsynced. The first line says which boot and network namespace the
//! values belong to. The first original of a target is the one that counts. A last line that a crash has
//! torn announces a write that never happened.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::machine::{Machine, Target};

/// How long an applier waits for another.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// Longest journal that is read, in bytes: far more than all keys of a kernel.
const JOURNAL_MAX: u64 = 16 << 20;

/// Which boot and network namespace a journal is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// `/proc/sys/kernel/random/boot_id`
    pub boot: String,
    /// The network namespace's cookie.
    pub namespace: u64,
    /// When it was begun, in seconds since 1970.
    pub begun: u64,
}

/// A change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The key, for people.
    pub key: String,
    /// Where the value lives.
    pub target: Target,
    /// The value before, byte for byte.
    pub original: String,
    /// What was then written.
    pub written: String,
}

/// The directory of journal, trial and lock of one network namespace.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
    file: &'static str,
    boot: String,
    namespace: u64,
}

/// Proof that no other applier is at work, until dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// A journal as read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Journal {
    /// `None`: there is none.
    pub header: Option<Header>,
    /// In the order of the changes; the first of a target has its original.
    pub records: Vec<Record>,
}

impl Store {
    /// Where `state_dir` below the machine's root has the files of this network namespace.
    #[must_use]
    pub fn new(machine: &Machine, state_dir: &Path) -> Self {
        let base = machine.path(&state_dir.to_string_lossy());
        let namespace = machine.namespace();
        let directory = base.join(format!("netns-{namespace}"));
        Self { directory, file: "journal", boot: machine.boot_id(), namespace }
    }

    /// The same with the journal of a trial, which is undone by itself.
    #[must_use]
    pub fn of_trial(&self) -> Self {
        Self { file: "trial-journal", ..self.clone() }
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The boot that is running.
    #[must_use]
    pub fn boot(&self) -> &str {
        &self.boot
    }

    fn journal_path(&self) -> PathBuf {
        self.directory.join(self.file)
    }

    /// Waits for other appliers, ten seconds at most.
    ///
    /// # Errors
    /// The directory cannot be made; or who holds the lock, with kind `WouldBlock`.
    pub fn lock(&self) -> io::Result<Lock> {
        self.lock_within(LOCK_PATIENCE)
    }

    fn lock_within(&self, patience: Duration) -> io::Result<Lock> {
        fs::create_dir_all(&self.directory)?;
        let path = self.directory.join("lock");
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        let until = Instant::now() + patience;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) if Instant::now() >= until => {
                    let mut holder = String::new();
                    let _ = (&file).take(20).read_to_string(&mut holder);
                    let message = format!(
                        "process {} is tuning already (it holds {})",
                        holder.trim(),
                        path.display()
                    );
                    return Err(io::Error::new(io::ErrorKind::WouldBlock, message));
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        file.set_len(0)?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Lock { _file: file })
    }

    /// The journal, whatever boot it is of.
    ///
    /// # Errors
    /// What read(2) says, and a line in the middle that is no record.
    pub fn read(&self) -> io::Result<Journal> {
        let mut text = Vec::new();
        match File::open(self.journal_path()) {
            Ok(file) => file.take(JOURNAL_MAX).read_to_end(&mut text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Journal::default()),
            Err(error) => return Err(error),
        };
        let text = String::from_utf8_lossy(&text);
        parse(&text)
            .or_else(|line| {
                // A power cut may leave anything behind, and has undone what it was about.
                let first = text.lines().next().and_then(|line| serde_json::from_str(line).ok());
                let older = Journal { header: first, records: Vec::new() };
                if older.header.is_some() && !self.is_current(&older) {
                    Ok(older)
                } else {
                    Err(line)
                }
            })
            .map_err(|line| {
                let path = self.journal_path();
                let message = format!("{}:{line}: not a journal record", path.display());
                io::Error::new(io::ErrorKind::InvalidData, message)
            })
    }

    /// True when the journal's values belong to this boot and network namespace.
    #[must_use]
    pub fn is_current(&self, journal: &Journal) -> bool {
        let current =
            |header: &Header| header.boot == self.boot && header.namespace == self.namespace;
        journal.header.as_ref().is_some_and(current)
    }

    /// Opens the journal for appending; one of an earlier boot is thrown away, since the reboot has undone
    /// what it is about. A torn last line is cut off.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(&self, _: &Lock) -> io::Result<Writer> {
        let journal = self.read()?;
        if !self.is_current(&journal) {
            let begun = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |since| since.as_secs());
            let header = Header { boot: self.boot.clone(), namespace: self.namespace, begun };
            self.replace(&Journal { header: Some(header), records: Vec::new() })?;
            return self.append(Journal::default());
        }
        // Whole lines only, whatever a crash has left.
        self.replace(&journal)?;
        self.append(journal)
    }

    fn append(&self, journal: Journal) -> io::Result<Writer> {
        let file = OpenOptions::new().append(true).open(self.journal_path())?;
        Ok(Writer { file, records: journal.records })
    }

    /// Puts another journal in place of this, at once or not at all; one without records is removed.
    ///
    /// # Errors
    /// What the file system says.
    fn replace(&self, journal: &Journal) -> io::Result<()> {
        let mut text = String::new();
        if let Some(header) = &journal.header {
            text.push_str(&line(header)?);
        }
        for record in &journal.records {
            text.push_str(&line(record)?);
        }
        self.write_file(self.file, &text)
    }

    /// Leaves only these records; none: the journal is removed.
    ///
    /// # Errors
    /// What the file system says.
    pub fn keep(&self, _: &Lock, journal: &Journal) -> io::Result<()> {
        if journal.records.is_empty() { self.remove_file(self.file) } else { self.replace(journal) }
    }

    /// Writes a whole file of the directory, durably, at once or not at all.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write_file(&self, name: &str, text: &str) -> io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        let (path, new) = (self.directory.join(name), self.directory.join(format!("{name}.new")));
        let mut file = File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        self.sync_directory()
    }

    /// Reads a whole file of the directory; `None` when there is none.
    ///
    /// # Errors
    /// What the file system says.
    pub fn read_file(&self, name: &str) -> io::Result<Option<String>> {
        match fs::read_to_string(self.directory.join(name)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes a file of the directory, durably; one that is not there is removed already.
    ///
    /// # Errors
    /// What the file system says.
    pub fn remove_file(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.directory.join(name)) {
            Ok(()) => self.sync_directory(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn sync_directory(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }
}

/// Appends to a journal.
#[derive(Debug)]
pub struct Writer {
    file: File,
    records: Vec<Record>,
}

impl Writer {
    /// Puts a change on disk, unless the journal has the target's original and this very write already.
    ///
    /// # Errors
    /// What the file system says: then nothing may be written.
    pub fn announce(&mut self, record: Record) -> io::Result<()> {
        let last = self.records.iter().rev().find(|known| known.target == record.target);
        if last.is_some_and(|known| known.written == record.written) {
            return Ok(());
        }
        self.file.write_all(line(&record)?.as_bytes())?;
        self.file.sync_all()?;
        self.records.push(record);
        Ok(())
    }
}

fn line(value: &impl Serialize) -> io::Result<String> {
    Ok(serde_json::to_string(value).map_err(io::Error::other)? + "\n")
}

/// Reads a journal; `Err` has the number of a line that is no record. A last line without its end, or that
/// does not read, is left out.
///
/// # Errors
/// The line's number, from 1.
pub fn parse(text: &str) -> Result<Journal, usize> {
    let whole = text.rfind('\n').map_or("", |end| text.get(..=end).unwrap_or_default());
    let lines: Vec<&str> = whole.lines().collect();
    let mut journal = Journal::default();
    for (index, line) in lines.iter().enumerate() {
        let read = if index == 0 {
            serde_json::from_str(line).map(|header| journal.header = Some(header))
        } else {
            serde_json::from_str(line).map(|record| journal.records.push(record))
        };
        if read.is_err() {
            return Err(index + 1);
        }
    }
    Ok(journal)
}

impl Journal {
    /// What rollback has to restore: the first record of each target, the last first.
    #[must_use]
    pub fn originals(&self) -> Vec<&Record> {
        let mut originals: Vec<&Record> = Vec::new();
        for record in &self.records {
            if !originals.iter().any(|known| known.target == record.target) {
                originals.push(record);
            }
        }
        originals.reverse();
        originals
    }

    /// What was written to a target last.
    #[must_use]
    pub fn written(&self, target: &Target) -> Option<&str> {
        let last = self.records.iter().rev().find(|record| record.target == *target);
        last.map(|record| record.written.as_str())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tune::tests::FakeRoot;

    fn record(path: &str, original: &str, written: &str) -> Record {
        Record {
            key: path.to_owned(),
            target: Target::File(path.to_owned()),
            original: original.to_owned(),
            written: written.to_owned(),
        }
    }

    #[test]
    fn the_first_original_counts_and_torn_lines_do_not() {
        let root = FakeRoot::small_machine("journal");
        let store = Store::new(&root.machine(), Path::new("/state"));
        let lock = store.lock().unwrap();
        let mut writer = store.open(&lock).unwrap();
        writer.announce(record("/a", "1\n", "2")).unwrap();
        writer.announce(record("/b", "x", "y")).unwrap();
        writer.announce(record("/a", "2\n", "3")).unwrap();
        writer.announce(record("/a", "2\n", "3")).unwrap();
        let path = store.journal_path();
        let mut text = fs::read_to_string(&path).unwrap();
        text.push_str("{\"key\":\"/c\",\"tar");
        fs::write(&path, text).unwrap();
        let journal = store.read().unwrap();
        assert_eq!(journal.records.len(), 3);
        let originals: Vec<_> = journal.originals().iter().map(|r| r.original.as_str()).collect();
        assert_eq!(originals, ["x", "1\n"]);
        assert_eq!(journal.written(&Target::File("/a".into())), Some("3"));
        drop(store.open(&lock).unwrap());
        assert!(!fs::read_to_string(&path).unwrap().contains("/c"));
    }

    #[test]
    fn another_boot_begins_another_journal() {
        let root = FakeRoot::small_machine("journal-boot");
        let store = Store::new(&root.machine(), Path::new("/state"));
        let lock = store.lock().unwrap();
        store.open(&lock).unwrap().announce(record("/a", "1", "2")).unwrap();
        root.put("/proc/sys/kernel/random/boot_id", "boot-2\n");
        let store = Store::new(&root.machine(), Path::new("/state"));
        assert!(!store.is_current(&store.read().unwrap()));
        let _ = store.open(&lock).unwrap();
        assert_eq!(store.read().unwrap().records, []);
        assert!(store.is_current(&store.read().unwrap()));
    }

    #[test]
    fn a_second_applier_waits_and_then_says_who_is_at_work() {
        let root = FakeRoot::small_machine("journal-lock");
        let store = Store::new(&root.machine(), Path::new("/state"));
        let lock = store.lock().unwrap();
        let error = store.lock_within(Duration::from_millis(30)).unwrap_err();
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        drop(lock);
        // A child that another test has just forked has it too until it runs its program.
        store.lock_within(Duration::from_secs(60)).unwrap();
    }

    #[test]
    fn a_line_that_is_no_record_is_not_passed_over() {
        assert_eq!(parse("{}\n"), Err(1));
        let header = "{\"boot\":\"b\",\"namespace\":1,\"begun\":0}\n";
        assert_eq!(parse(&format!("{header}rubbish\n")), Err(2));
        assert!(parse(header).is_ok_and(|journal| journal.header.is_some()));
    }

    proptest! {
        #[test]
        fn any_prefix_of_a_journal_reads(cut in 0usize..400) {
            let header = Header { boot: "b".into(), namespace: 1, begun: 0 };
            let mut text = line(&header).unwrap();
            for n in 0..4 {
                text.push_str(&line(&record(&format!("/{n}"), "1\t2\n", "3")).unwrap());
            }
            let cut = cut.min(text.len());
            let journal = parse(&text[..cut]).unwrap();
            prop_assert!(journal.records.len() <= 4);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "(.|\n){0,200}") {
            let _ = parse(&text);
        }
    }
}
