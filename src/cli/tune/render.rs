//! Answers as text for people.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::tune::apply::Undone;
use crate::tune::journal::Journal;
use crate::tune::machine::Machine;
use crate::tune::plan::{Item, Plan, Status};
use crate::tune::setting::{Risk, Scope, Setting, Trap};
use crate::tune::step::Outcome;
use crate::tune::trial::Standing;
use crate::tune::wanted::{selected, tidy};

/// Rows of cells in columns as wide as their widest cell; the last is not padded.
pub(super) fn columns(rows: &[Vec<String>], indent: &str) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        for (index, cell) in row.iter().enumerate() {
            let width = cell.chars().count();
            match widths.get_mut(index) {
                Some(widest) => *widest = width.max(*widest),
                None => widths.push(width),
            }
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = indent.to_owned();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn scope(scope: Scope) -> &'static str {
    match scope {
        Scope::Namespace => "network namespace",
        Scope::Global => "machine",
        Scope::Nic => "interface",
        Scope::Process => "process",
        Scope::Boot => "boot",
    }
}

fn risk(risk: Risk) -> &'static str {
    match risk {
        Risk::Low => "low",
        Risk::Medium => "medium",
        Risk::High => "high",
    }
}

fn owners(item: &Item) -> String {
    let mut names = Vec::new();
    for owner in &item.also_set_by {
        names.push(match owner.value.as_str() {
            "" => owner.by.clone(),
            value => format!("{} ({value})", owner.by),
        });
    }
    if names.is_empty() { "-".to_owned() } else { names.join(", ") }
}

fn row(item: &Item) -> Vec<String> {
    vec![
        item.key.clone(),
        item.now.clone().filter(|now| !now.is_empty()).unwrap_or_else(|| "-".to_owned()),
        item.to.clone().unwrap_or_else(|| item.wanted.clone()),
        risk(item.risk).to_owned(),
        scope(item.scope).to_owned(),
        owners(item),
        item.why.clone(),
    ]
}

const HEAD: [&str; 7] = ["KEY", "NOW", "WANTED", "RISK", "SCOPE", "ALSO SET BY", "WHY"];

/// The whole plan: what would change, what needs a word, what is well, what does not apply.
pub(super) fn plan(plan: &Plan) -> String {
    let groups = [
        (Status::Change, "To change:"),
        (Status::Denied, "To change, with more privilege:"),
        (Status::Refused, "Refused:"),
        (Status::Advice, "For you to do:"),
        (Status::Holds, "As wanted:"),
        (Status::Beyond, "More than wanted, left so:"),
        (Status::NotApplicable, "Not applicable:"),
    ];
    let mut text = String::new();
    for (status, title) in groups {
        let items: Vec<&Item> = plan.items.iter().filter(|item| item.status == status).collect();
        if items.is_empty() {
            continue;
        }
        let _ = writeln!(text, "{title}");
        let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
        for item in items {
            let mut row = row(item);
            // The last column is why it is not done, where it is not.
            if let (Some(reason), Some(last)) = (&item.reason, row.last_mut()) {
                last.clone_from(reason);
            }
            rows.push(row);
        }
        text.push_str(&columns(&rows, "  "));
        text.push('\n');
    }
    let parameters = plan.kernel_parameters();
    if !parameters.is_empty() {
        let _ = writeln!(text, "add to the kernel's command line: {}", parameters.join(" "));
    }
    let _ = writeln!(text, "{}", summary(plan));
    text
}

fn summary(plan: &Plan) -> String {
    let count = |status| plan.count(status);
    let well = count(Status::Holds) + count(Status::Beyond);
    let mut parts = vec![format!("{} to change", count(Status::Change) + count(Status::Denied))];
    parts.push(format!("{well} as wanted or more"));
    for (status, words) in [
        (Status::Refused, "refused"),
        (Status::Advice, "for you to do"),
        (Status::NotApplicable, "not applicable"),
    ] {
        if count(status) > 0 {
            parts.push(format!("{} {words}", count(status)));
        }
    }
    parts.join(", ")
}

/// What has drifted.
pub(super) fn drift(plan: &Plan) -> String {
    let mut text = String::new();
    for item in plan.drift() {
        let now = item.now.as_deref().unwrap_or("-");
        let _ = writeln!(text, "drift: {} is {now}, wanted {}", item.key, item.wanted);
        for owner in &item.also_set_by {
            let _ = writeln!(text, "    also set by {} {}", owner.by, owner.value);
        }
    }
    let _ = writeln!(text, "{}", summary(plan));
    text
}

/// What an apply did.
pub(super) fn applied(outcome: &Outcome) -> String {
    let mut text = String::new();
    for note in &outcome.notes {
        let _ = writeln!(text, "note: {note}");
    }
    for change in &outcome.changed {
        let _ = writeln!(text, "set {}: {} -> {}", change.key, shown(&change.from), change.to);
    }
    for failed in &outcome.failed {
        let _ = writeln!(text, "not set {}: {}", failed.key, failed.reason);
    }
    for item in outcome.plan.items.iter().filter(|item| item.status == Status::Refused) {
        let reason = item.reason.as_deref().unwrap_or_default();
        let _ = writeln!(text, "refused {}: {reason}", item.key);
    }
    let _ = writeln!(text, "{} changed; {}", outcome.changed.len(), summary(&outcome.plan));
    text
}

fn shown(value: &str) -> &str {
    if value.is_empty() { "(empty)" } else { value }
}

/// What a rollback did.
pub(super) fn undone(undone: &Undone) -> String {
    let mut text = String::new();
    for note in &undone.notes {
        let _ = writeln!(text, "note: {note}");
    }
    for change in &undone.restored {
        let _ = writeln!(text, "restored {}: {} -> {}", change.key, change.from, shown(&change.to));
    }
    for failed in &undone.failed {
        let _ = writeln!(text, "not restored {}: {}", failed.key, failed.reason);
    }
    let (restored, failed) = (undone.restored.len(), undone.failed.len());
    let _ = match (restored, failed) {
        (0, 0) => writeln!(text, "nothing to restore"),
        (_, 0) => writeln!(text, "{restored} restored"),
        _ => writeln!(text, "{restored} restored, {failed} not: they stay in the journal"),
    };
    text
}

/// A change of the journal and what became of it.
pub(super) struct Change {
    pub(super) key: String,
    pub(super) original: String,
    pub(super) written: String,
    pub(super) now: Option<String>,
}

/// The changes of a journal, in their order.
pub(super) fn changes(journal: &Journal, machine: &Machine) -> Vec<Change> {
    let mut originals = journal.originals();
    originals.reverse();
    let change = |record: &crate::tune::journal::Record| Change {
        key: record.key.clone(),
        original: selected(&record.original),
        written: journal.written(&record.target).unwrap_or_default().to_owned(),
        now: machine
            .read(&record.target)
            .ok()
            .map(|text| if text.contains('[') { selected(&text) } else { tidy(&text) }),
    };
    originals.into_iter().map(change).collect()
}

/// What has been changed here.
pub(super) fn journal(journal: &Journal, machine: &Machine, directory: &Path) -> String {
    let mut text = String::new();
    let changes = changes(journal, machine);
    if changes.is_empty() {
        let _ = writeln!(text, "nothing is changed (journal: {})", directory.display());
        return text;
    }
    let head = ["KEY", "BEFORE", "SET TO", "NOW"].map(str::to_owned).to_vec();
    let mut rows = vec![head];
    for change in changes {
        let now = change.now.unwrap_or_else(|| "gone".to_owned());
        let drifted = if now == change.written { "" } else { "changed since" };
        rows.push(vec![
            change.key,
            shown(&change.original).to_owned(),
            change.written,
            now,
            drifted.to_owned(),
        ]);
    }
    text.push_str(&columns(&rows, ""));
    let _ = writeln!(text, "journal: {}; undo: ringgate tune rollback", directory.display());
    text
}

/// A line about a trial, if there is one.
pub(super) fn standing(standing: &Standing) -> String {
    match standing {
        Standing::None => String::new(),
        Standing::Pending(left) => {
            let left = left.as_secs();
            format!("a trial is under way: undone in {left} s unless `ringgate tune confirm`\n")
        }
        Standing::Overdue => {
            "a trial was never confirmed: `ringgate tune rollback` undoes it\n".to_owned()
        }
    }
}

pub(super) fn standing_json(standing: &Standing) -> Value {
    match standing {
        Standing::None => Value::Null,
        Standing::Pending(left) => {
            json!({ "state": "pending", "seconds_left": left.as_secs_f64() })
        }
        Standing::Overdue => json!({ "state": "overdue" }),
    }
}

/// All about one key.
pub(super) fn explanation(key: &str, setting: Option<&Setting>, traps: &[&Trap]) -> String {
    let mut text = format!("{key}\n");
    if let Some(setting) = setting {
        let _ = writeln!(text, "  why      {}", setting.why);
        let _ = writeln!(text, "  risk     {}: {}", risk(setting.risk), setting.trap);
        let _ = writeln!(text, "  scope    {}", scope(setting.scope));
        let _ = writeln!(text, "  profiles {}", setting.profiles.join(", "));
        let _ = writeln!(text, "  source   {}", setting.source);
    }
    for trap in traps {
        let refused = if trap.refuse { " (refused unless allowed by name)" } else { "" };
        let _ = writeln!(text, "  trap     {}{refused}", trap.says);
        let _ = writeln!(text, "           instead: {} [{}]", trap.instead, trap.source);
    }
    text
}
