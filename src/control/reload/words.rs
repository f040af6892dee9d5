//! Differences between two configuration files, in words: by key, in the file's own spelling. What a difference
//! does is not decided here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use toml::{Table, Value};

/// Longest value that is shown, in characters.
const VALUE_MAX: usize = 80;

/// A value as the file would have it, shortened.
pub(super) fn show(value: &Value) -> String {
    let text = value.to_string().replace('\n', " ");
    match text.char_indices().nth(VALUE_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// `key changed from … to …` for each key of two tables that differs, tables below them included.
/// `except`: keys that are compared in another way.
pub(super) fn keys(old: &Table, new: &Table, except: &[&str]) -> Vec<String> {
    let mut lines = Vec::new();
    collect(old, new, except, "", &mut lines);
    lines
}

fn collect(old: &Table, new: &Table, except: &[&str], path: &str, lines: &mut Vec<String>) {
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for key in keys {
        if path.is_empty() && except.contains(&key.as_str()) {
            continue;
        }
        let name = format!("{path}{key}");
        match (old.get(key), new.get(key)) {
            (Some(before), Some(after)) if before == after => {}
            (Some(Value::Table(before)), Some(Value::Table(after))) => {
                collect(before, after, &[], &format!("{name}."), lines);
            }
            (Some(before), Some(after)) => {
                lines.push(format!("{name} changed from {} to {}", show(before), show(after)));
            }
            (Some(before), None) => {
                lines.push(format!("{name} changed from {} to its default", show(before)));
            }
            (None, Some(after)) => {
                lines.push(format!("{name} changed from its default to {}", show(after)));
            }
            (None, None) => {}
        }
    }
}

/// The table under `key`, empty when there is none.
pub(super) fn table<'a>(file: &'a Table, key: &str, none: &'a Table) -> &'a Table {
    file.get(key).and_then(Value::as_table).unwrap_or(none)
}

/// The tables in the list under `key`.
pub(super) fn list<'a>(file: &'a Table, key: &str) -> Vec<&'a Table> {
    let items = file.get(key).and_then(Value::as_array).into_iter().flatten();
    items.filter_map(Value::as_table).collect()
}

/// What happened to something that both files may have.
#[derive(Debug)]
pub(super) enum Pair<'a> {
    Added(String, &'a Table),
    Removed(String),
    Both(String, &'a Table, &'a Table),
}

/// Pairs the tables of two lists by what `name` calls them; the same name is paired in order. In the order of
/// the new list, removed ones at the end.
pub(super) fn pair<'a>(
    old: &[&'a Table],
    new: &[&'a Table],
    name: impl Fn(&Table) -> String,
) -> Vec<Pair<'a>> {
    let mut known: BTreeMap<String, VecDeque<&Table>> = BTreeMap::new();
    for table in old {
        known.entry(name(table)).or_default().push_back(table);
    }
    let mut pairs = Vec::new();
    for &table in new {
        let called = name(table);
        pairs.push(match known.get_mut(&called).and_then(VecDeque::pop_front) {
            Some(before) => Pair::Both(called, before, table),
            None => Pair::Added(called, table),
        });
    }
    for (called, left) in known {
        pairs.extend(left.iter().map(|_| Pair::Removed(called.clone())));
    }
    pairs
}

/// Pairs the tables of two tables by their keys.
pub(super) fn pair_named<'a>(old: &'a Table, new: &'a Table) -> Vec<Pair<'a>> {
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let table = |value: &'a Value| value.as_table();
    let pair = |key: &String| match (old.get(key).and_then(table), new.get(key).and_then(table)) {
        (Some(before), Some(after)) => Some(Pair::Both(key.clone(), before, after)),
        (Some(_), None) => Some(Pair::Removed(key.clone())),
        (None, Some(after)) => Some(Pair::Added(key.clone(), after)),
        (None, None) => None,
    };
    keys.into_iter().filter_map(pair).collect()
}

/// The values of these keys, as `key = value, …`; what tells one table of a list from others.
pub(super) fn identity(table: &Table, keys: &[&str]) -> String {
    let part = |key: &&str| table.get(*key).map(|value| format!("{key} = {}", show(value)));
    keys.iter().filter_map(part).collect::<Vec<_>>().join(", ")
}

/// Whether what both lists have stands in another order in the new one.
pub(super) fn is_reordered(
    old: &[&Table],
    new: &[&Table],
    name: impl Fn(&Table) -> String,
) -> bool {
    let names = |tables: &[&Table]| tables.iter().map(|table| name(table)).collect::<Vec<_>>();
    let (old, new) = (names(old), names(new));
    let (in_old, in_new): (BTreeSet<_>, BTreeSet<_>) = (old.iter().collect(), new.iter().collect());
    let common = |names: &[String], others: &BTreeSet<&String>| {
        names.iter().filter(|name| others.contains(name)).cloned().collect::<Vec<_>>()
    };
    common(&old, &in_new) != common(&new, &in_old)
}
