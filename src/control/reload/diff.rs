//! What a reload would change, a line a change, and whether it can: each part of the file has a function of its
//! own. A part without one cannot be changed by reload, so that nothing is taken for applied that is not.

use toml::Table;

use super::words::{self, Pair};
use crate::control::config::Config;
use crate::ha::config::Instance;
use crate::l4::engine::directors;

/// What to do about what a reload cannot change.
const RESTART: &str = "it needs a new process: restart, or `ringgate ctl upgrade`";
/// What tells a route from others.
const ROUTE: [&str; 5] = ["listeners", "host", "path", "methods", "headers"];

/// What becomes of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is put in force.
    Applies,
    /// It is taken note of and comes into force with the next start.
    NextStart,
    /// Reload cannot do it, so nothing of the file is taken.
    Refused,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// For people.
    pub text: String,
    /// What becomes of it.
    pub verdict: Verdict,
}

/// All changes, in the order of the parts below.
#[derive(Debug, Default)]
pub struct Diff {
    /// The changes.
    pub lines: Vec<Line>,
}

/// One of the two configurations: what it says, and what that means.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// The file.
    pub file: &'a Table,
    /// Its meaning.
    pub config: &'a Config,
}

/// Compares one part of the file.
type Part = fn(&str, &Side<'_>, &Side<'_>, &mut Diff);

const PARTS: [(&str, Part); 16] = [
    ("node", node),
    ("admin", admin),
    ("log", plain),
    ("tuning", tuning),
    ("tls", plain),
    ("http", plain),
    ("limits", plain),
    ("tracing", plain),
    ("listener", listeners),
    ("route", routes),
    ("upstream", upstreams),
    ("director", director),
    ("virtual_server", virtual_servers),
    ("vrrp_script", named),
    ("vrrp_sync_group", named),
    ("vrrp", vrrp),
];

impl Diff {
    /// Everything that differs.
    #[must_use]
    pub fn new(old: &Side<'_>, new: &Side<'_>) -> Self {
        let mut diff = Self::default();
        for (name, part) in PARTS {
            part(name, old, new, &mut diff);
        }
        for key in old.file.keys().chain(new.file.keys().filter(|key| !old.file.contains_key(*key)))
        {
            if !PARTS.iter().any(|(name, _)| name == key) && old.file.get(key) != new.file.get(key)
            {
                diff.refuse(format!("{key} changed"), RESTART);
            }
        }
        diff
    }

    /// Whether nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Whether something in it cannot be done.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.lines.iter().any(|line| line.verdict == Verdict::Refused)
    }

    /// Notes what is put in force.
    pub fn apply(&mut self, text: String) {
        self.lines.push(Line { text, verdict: Verdict::Applies });
    }

    fn refuse(&mut self, text: String, why: &str) {
        let text = format!("{text}: cannot be changed by reload: {why}");
        self.lines.push(Line { text, verdict: Verdict::Refused });
    }

    fn at_next_start(&mut self, text: &str) {
        let text = format!("{text}: applies at the next start");
        self.lines.push(Line { text, verdict: Verdict::NextStart });
    }
}

/// A table all of whose keys can be changed.
fn plain(name: &str, old: &Side<'_>, new: &Side<'_>, diff: &mut Diff) {
    let none = Table::new();
    let (old, new) = (words::table(old.file, name, &none), words::table(new.file, name, &none));
    words::keys(old, new, &[]).into_iter().for_each(|line| diff.apply(format!("{name}.{line}")));
}

/// `[node]`: what the process is built on stays.
fn node(name: &str, old: &Side<'_>, new: &Side<'_>, diff: &mut Diff) {
    let (before, after) = (&old.config.node, &new.config.node);
    let (ha, new_ha) = (&old.config.ha, &new.config.ha);
    let fixed = [
        ("shards", before.shards != after.shards, "shards are threads with rings of their own"),
        ("pin", before.pin != after.pin, "shards are pinned when they start"),
        ("steering", before.steering != after.steering, "sockets are steered when they are opened"),
        (
            "receive_buffers",
            before.receive_buffers != after.receive_buffers,
            "the rings' buffers are set up when they start",
        ),
        (
            "buffer_memory",
            before.buffer_memory != after.buffer_memory,
            "the rings' buffers are set up when they start",
        ),
        (
            "busy_poll_usec",
            before.busy_poll != after.busy_poll,
            "the rings' loops are set up when they start",
        ),
        ("vrrp_rt_priority", ha.realtime != new_ha.realtime, "VRRP's thread has its priority"),
        (
            "vrrp_lock_memory",
            ha.lock_memory != new_ha.lock_memory,
            "memory is locked when VRRP starts",
        ),
    ];
    let none = Table::new();
    let (old, new) = (words::table(old.file, name, &none), words::table(new.file, name, &none));
    let free = ["max_connections", "drain_timeout", "resolve_interval", "vrrp_shard_timeout"];
    for line in words::keys(old, new, &[]) {
        let key = line.split(' ').next().unwrap_or_default().to_owned();
        let text = format!("{name}.{line}");
        match fixed.iter().find(|(fixed, ..)| *fixed == key) {
            Some((_, true, why)) => diff.refuse(text, &format!("{why}; {RESTART}")),
            // The same value in other words.
            Some((_, false, _)) => {}
            None if free.contains(&key.as_str()) => diff.apply(text),
            None => diff.refuse(text, RESTART),
        }
    }
}

fn admin(name: &str, old: &Side<'_>, new: &Side<'_>, diff: &mut Diff) {
    let none = Table::new();
    let (old, new) = (words::table(old.file, name, &none), words::table(new.file, name, &none));
    for line in words::keys(old, new, &[]) {
        diff.refuse(format!("{name}.{line}"), &format!("the admin endpoint stays open; {RESTART}"));
    }
}

/// Settings of the machine are not touched under load.
fn tuning(name: &str, old: &Side<'_>, new: &Side<'_>, diff: &mut Diff) {
    let none = Table::new();
    let (old, new) = (words::table(old.file, name, &none), words::table(new.file, name, &none));
    for line in words::keys(old, new, &[]) {
        diff.at_next_start(&format!("{name}.{line}"));
    }
}

/// The rest is what directors and their tables are made with: an upgrade takes it over, and flows stay.
fn director(name: &str, old: &Side<'_>, new: &Side<'_>, diff: &mut Diff) {
    const LIVE: [&str; 11] = [
        "datapath",
        "syns_per_source",
        "new_flows_per_second",
        "interfaces",
        "peers",
        "tcp_timeout",
        "tcp_fin_timeout",
        "tcp_syn_timeout",
        "closed_timeout",
        "udp_timeout",
        "sctp_timeout",
    ];
    let none = Table::new();
    let (old, new) = (words::table(old.file, name, &none), words::table(new.file, name, &none));
    let fixed = words::keys(old, new, &LIVE);
    for line in words::keys(old, new, &[]) {
        if fixed.contains(&line) {
            diff.refuse(format!("{name}.{line}"), &format!("flows pass to one; {RESTART}"));
        } else {
            diff.apply(format!("{name}.{line}"));
        }
    }
}

/// Directors take other virtual servers over; they are started with the process.
fn virtual_servers(name: &str, old: &Side<'_>, new: &Side<'_>, diff: &mut Diff) {
    let (before, after) = (words::list(old.file, name), words::list(new.file, name));
    if directors(&old.config.l4) != directors(&new.config.l4) {
        return diff.refuse(
            "the first virtual server added, or the last one removed".to_owned(),
            &format!("directors are threads of their own; {RESTART}"),
        );
    }
    let called = |table: &Table| words::identity(table, &["address", "protocol"]);
    for pair in words::pair(&before, &after, called) {
        match pair {
            Pair::Added(called, _) => diff.apply(format!("virtual server {called} added")),
            Pair::Removed(called) => diff.apply(format!("virtual server {called} removed")),
            Pair::Both(called, before, after) => {
                let lines = words::keys(before, after, &[]).into_iter();
                lines.for_each(|line| diff.apply(format!("virtual server {called}: {line}")));
            }
        }
    }
}

fn listeners(name: &str, old: &Side<'_>, new: &Side<'_>, diff: &mut Diff) {
    let (old, new) = (words::list(old.file, name), words::list(new.file, name));
    let called = |table: &Table| {
        let text = |key| table.get(key).and_then(|value: &toml::Value| value.as_str());
        text("name").or_else(|| text("bind")).unwrap_or("?").to_owned()
    };
    for pair in words::pair(&old, &new, called) {
        match pair {
            Pair::Added(called, table) => {
                let bind = words::identity(table, &["bind"]);
                diff.apply(format!("listener {called} added ({bind})"));
            }
            Pair::Removed(called) => diff.apply(format!(
                "listener {called} removed: what waits and what is under way is still served"
            )),
            Pair::Both(called, before, after) => {
                let lines = words::keys(before, after, &[]).into_iter();
                lines.for_each(|line| diff.apply(format!("listener {called}: {line}")));
            }
        }
    }
}

fn routes(name: &str, old: &Side<'_>, new: &Side<'_>, diff: &mut Diff) {
    let (old, new) = (words::list(old.file, name), words::list(new.file, name));
    let called = |table: &Table| match words::identity(table, &ROUTE) {
        empty if empty.is_empty() => "for everything".to_owned(),
        identity => identity,
    };
    for pair in words::pair(&old, &new, called) {
        match pair {
            Pair::Added(called, table) => {
                let goes = words::identity(table, &["upstream", "respond", "redirect"]);
                diff.apply(format!("route ({called}) added: {goes}"));
            }
            Pair::Removed(called) => diff.apply(format!("route ({called}) removed")),
            Pair::Both(called, before, after) => {
                let lines = words::keys(before, after, &[]).into_iter();
                lines.for_each(|line| diff.apply(format!("route ({called}): {line}")));
            }
        }
    }
    if words::is_reordered(&old, &new, called) {
        diff.apply("routes stand in another order".to_owned());
    }
}

fn upstreams(name: &str, old: &Side<'_>, new: &Side<'_>, diff: &mut Diff) {
    let none = Table::new();
    let (old, new) = (words::table(old.file, name, &none), words::table(new.file, name, &none));
    for pair in words::pair_named(old, new) {
        match pair {
            Pair::Added(called, table) => {
                let count = words::list(table, "servers").len();
                let plural = if count == 1 { "" } else { "s" };
                diff.apply(format!("upstream {called} added with {count} server{plural}"));
            }
            Pair::Removed(called) => diff.apply(format!("upstream {called} removed")),
            Pair::Both(called, before, after) => {
                let lines = words::keys(before, after, &["servers"]).into_iter();
                lines.for_each(|line| diff.apply(format!("upstream {called}: {line}")));
                servers(&called, before, after, diff);
            }
        }
    }
}

fn servers(upstream: &str, before: &Table, after: &Table, diff: &mut Diff) {
    let (old, new) = (words::list(before, "servers"), words::list(after, "servers"));
    let called = |table: &Table| {
        let address = table.get("address").and_then(toml::Value::as_str);
        address.unwrap_or("?").to_owned()
    };
    for pair in words::pair(&old, &new, called) {
        match pair {
            Pair::Added(server, _) => {
                diff.apply(format!("server {server} added to upstream {upstream}"));
            }
            Pair::Removed(server) => {
                diff.apply(format!("server {server} removed from upstream {upstream}"));
            }
            Pair::Both(server, before, after) => {
                let lines = words::keys(before, after, &[]).into_iter();
                lines.for_each(|line| {
                    diff.apply(format!("upstream {upstream}: server {server}: {line}"));
                });
            }
        }
    }
    if words::is_reordered(&old, &new, called) {
        diff.apply(format!("upstream {upstream}: servers stand in another order"));
    }
}

/// Tables with names, all of whose keys can be changed.
fn named(name: &str, old: &Side<'_>, new: &Side<'_>, diff: &mut Diff) {
    let none = Table::new();
    let (old, new) = (words::table(old.file, name, &none), words::table(new.file, name, &none));
    for pair in words::pair_named(old, new) {
        match pair {
            Pair::Added(called, _) => diff.apply(format!("{name} {called} added")),
            Pair::Removed(called) => diff.apply(format!("{name} {called} removed")),
            Pair::Both(called, before, after) => {
                let lines = words::keys(before, after, &[]).into_iter();
                lines.for_each(|line| diff.apply(format!("{name} {called}: {line}")));
            }
        }
    }
}

/// Says of each instance whether it goes on or begins anew.
fn vrrp(name: &str, old: &Side<'_>, new: &Side<'_>, diff: &mut Diff) {
    let none = Table::new();
    let find = |side: &Side<'_>, called: &str| -> Option<(Instance, bool)> {
        let ha = &side.config.ha;
        let place = ha.instances.iter().position(|one| one.name == called)?;
        Some((ha.instances[place].clone(), ha.grouped(place)))
    };
    let goes_on = |called: &str| match (find(old, called), find(new, called)) {
        (Some((before, grouped)), Some((after, still))) => {
            grouped == still && after.continues(&before)
        }
        _ => false,
    };
    let (old_tables, new_tables) =
        (words::table(old.file, name, &none), words::table(new.file, name, &none));
    for pair in words::pair_named(old_tables, new_tables) {
        match pair {
            Pair::Added(called, _) => diff.apply(format!("vrrp {called} added")),
            Pair::Removed(called) => {
                diff.apply(format!("vrrp {called} removed: it resigns and its addresses go"));
            }
            Pair::Both(called, before, after) => {
                let lines = words::keys(before, after, &[]);
                let how = if goes_on(&called) {
                    "in place"
                } else {
                    "this instance resigns and begins anew"
                };
                lines
                    .into_iter()
                    .for_each(|line| diff.apply(format!("vrrp {called}: {line} ({how})")));
            }
        }
    }
}
