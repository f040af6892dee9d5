//! Reload in place: read the file, judge all of it, say what differs, and put that in force without touching
//! the rest. What takes time happens on a thread of its own ([`prepare`]); what cannot fail follows on the control
//! thread ([`apply`]). Whatever is wrong is found before anything has changed.

pub mod apply;
pub mod diff;
pub mod prepare;
pub mod watch;
mod words;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::rc::Rc;

use aws_lc_rs::digest::{SHA256, digest};

use self::diff::{Diff, Verdict};
use crate::ring::event::Event;

/// Reloads that wait at most.
const PENDING_MAX: usize = 16;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// `ringgate ctl reload`.
    Order,
    /// SIGHUP.
    Signal,
    /// The file has changed (`run --watch`).
    File,
}

impl Cause {
    fn name(self) -> &'static str {
        match self {
            Self::Order => "ctl",
            Self::Signal => "SIGHUP",
            Self::File => "watch",
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The file is in force.
    Applied,
    /// Nothing differs from what is in force.
    Unchanged,
    /// It would be put in force.
    WouldApply,
    /// Nothing was changed.
    Refused,
}

impl Outcome {
    /// As metrics and `/status` call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Unchanged => "unchanged",
            Self::WouldApply => "would_apply",
            Self::Refused => "refused",
        }
    }
}

/// The answer to whoever asked.
#[derive(Debug, Clone)]
pub struct Answer {
    /// What came of it.
    pub outcome: Outcome,
    /// Why, or what has changed; lines for people.
    pub text: String,
}

impl Answer {
    pub(super) fn refused(text: String) -> Self {
        Self { outcome: Outcome::Refused, text }
    }
}

#[derive(Debug)]
struct Asked {
    cause: Cause,
    dry_run: bool,
    answer: Rc<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    answer: RefCell<Option<Answer>>,
    event: Event,
}

/// How things stand with the configuration in force, and who wants another.
#[derive(Debug, Default)]
pub struct Standing {
    pending: RefCell<VecDeque<Asked>>,
    wake: Event,
    /// Counts what was put in force; 1 is the start.
    pub generation: Cell<u64>,
    /// SHA-256 of the file in force, in hexadecimal.
    pub hash: RefCell<String>,
    /// Whether the last attempt was refused, and why.
    pub refused: RefCell<Option<String>>,
    /// When a file was last found good, in milliseconds since 1970.
    pub good_ms: Cell<u64>,
    /// Attempts by outcome: applied, unchanged, refused.
    pub counts: [Cell<u64>; 3],
}

/// The outcomes that are counted, in the order of [`Standing::counts`].
pub const COUNTED: [Outcome; 3] = [Outcome::Applied, Outcome::Unchanged, Outcome::Refused];

impl Standing {
    /// Of the configuration that the process starts with.
    #[must_use]
    pub fn at_start(text: &str, now_ms: u64) -> Self {
        let standing = Self::default();
        standing.generation.set(1);
        standing.good_ms.set(now_ms);
        standing.hash.replace(hash(text));
        standing
    }

    /// Asks for a reload and waits for what comes of it.
    pub async fn ask(&self, cause: Cause, dry_run: bool) -> Answer {
        let answer = Rc::new(Pending::default());
        if !self.push(Asked { cause, dry_run, answer: Rc::clone(&answer) }) {
            return Answer::refused("other reloads are waiting: try again".to_owned());
        }
        answer.event.take().await;
        answer.answer.take().unwrap_or_else(|| Answer::refused("the process ends".to_owned()))
    }

    /// Asks for a reload; the log says what comes of it.
    pub fn request(&self, cause: Cause) {
        // Too many that wait will each read the file as it is by then.
        self.push(Asked { cause, dry_run: false, answer: Rc::default() });
    }

    fn push(&self, asked: Asked) -> bool {
        let mut pending = self.pending.borrow_mut();
        if pending.len() >= PENDING_MAX {
            return false;
        }
        pending.push_back(asked);
        self.wake.set();
        true
    }

    fn note(&self, answer: &Answer, now_ms: u64) {
        let index = COUNTED.iter().position(|counted| *counted == answer.outcome);
        if let Some(count) = index.and_then(|index| self.counts.get(index)) {
            count.set(count.get() + 1);
        }
        match answer.outcome {
            Outcome::Applied | Outcome::Unchanged => {
                self.refused.replace(None);
                self.good_ms.set(now_ms);
            }
            Outcome::Refused => {
                self.refused.replace(Some(answer.text.clone()));
            }
            Outcome::WouldApply => {}
        }
    }
}

/// SHA-256 in hexadecimal.
fn hash(text: &str) -> String {
    let mut hex = String::with_capacity(64);
    for byte in digest(&SHA256, text.as_bytes()).as_ref() {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

/// The lines of a difference and what becomes of it, for people.
fn describe(diff: &Diff, outcome: Outcome, generation: u64) -> String {
    let mut text = String::new();
    for line in &diff.lines {
        let mark = match line.verdict {
            Verdict::Applies => "",
            Verdict::NextStart => "(later) ",
            Verdict::Refused => "REFUSED: ",
        };
        let _ = writeln!(text, "{mark}{}", line.text);
    }
    let count = diff.lines.len();
    let changes = format!("{count} change{}", if count == 1 { "" } else { "s" });
    let verdict = match outcome {
        Outcome::Applied => format!("{changes} in force, generation {generation}"),
        Outcome::Unchanged => "nothing to change".to_owned(),
        Outcome::WouldApply => format!("{changes}; nothing was changed (dry run)"),
        Outcome::Refused => "nothing was changed".to_owned(),
    };
    text.push_str(&verdict);
    text
}

#[cfg(test)]
mod tests;
