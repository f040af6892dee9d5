//! `[vrrp.NAME]`, `[vrrp_script.NAME]` and `[vrrp_sync_group.NAME]`: virtual addresses and what they depend on.

mod auth;
mod instance;
mod script;
mod track;

pub(super) use instance::interface_name;

use std::ops::Range;
use std::time::Duration;

pub(super) use self::script::command;
use super::listeners;
use crate::control::config::place::{Place, Reported, Table};
use crate::control::config::raw::{self, Content, Named, Node};
use crate::ha::config::{Ha, SyncGroup};

const WRITE_VRRP: &str = "write it as `[vrrp.NAME]`";
const WRITE_SCRIPT: &str = "write it as `[vrrp_script.NAME]`";
const WRITE_GROUP: &str = "write it as `[vrrp_sync_group.NAME]`";
const WRITE_MEMBERS: &str = r#"write a list of [vrrp.NAME] names like ["VI_4", "VI_6"]"#;

/// Names that tracks refer to, those of tables with problems included.
struct Names<'a> {
    upstreams: &'a [(&'a str, Range<usize>)],
    scripts: Vec<&'a str>,
}

/// The whole HA part.
pub(super) fn ha(
    root: &Place<'_>,
    file: &raw::File,
    upstreams: &[(&str, Range<usize>)],
) -> Result<Ha, Reported> {
    let scripts = script::scripts(root, file);
    let names = Names { upstreams, scripts: keys(file.vrrp_script.as_ref()) };
    let instances = tables(root, "vrrp", file.vrrp.as_ref(), WRITE_VRRP)?
        .into_iter()
        .map(|(name, table)| {
            table.and_then(|(place, raw)| instance::read(&place, name, raw, &names))
        })
        .collect::<Vec<_>>();
    let mut instances = instances.into_iter().collect::<Result<Vec<_>, _>>();
    if let (Ok(instances), Ok(scripts)) = (&mut instances, &scripts) {
        instances.iter_mut().for_each(|instance| track::default_weights(instance, scripts));
    }
    if let Ok(instances) = &instances {
        instance::check_together(root, file, instances)?;
    }
    let groups = groups(root, file)?;
    let (realtime, lock_memory, shard_timeout) = process(root, file);
    Ok(Ha {
        instances: instances?,
        groups,
        scripts: scripts?,
        realtime,
        lock_memory,
        shard_timeout,
    })
}

/// The keys of `[node]` that are about VRRP.
fn process(root: &Place<'_>, file: &raw::File) -> (Option<u8>, bool, Duration) {
    let empty = raw::NodeKeys::default();
    let raw = match file.node.as_ref().map(Node::get_ref) {
        Some(Content::Wanted(raw)) => raw,
        _ => &empty,
    };
    let place = root.child("node", 0..0);
    let realtime = place.integer("vrrp_rt_priority", &raw.vrrp_rt_priority, 0..=99u8, 50);
    let timeout = Duration::from_secs(1);
    (
        (realtime > 0).then_some(realtime),
        place.boolean("vrrp_lock_memory", &raw.vrrp_lock_memory, true),
        place.duration("vrrp_shard_timeout", &raw.vrrp_shard_timeout, timeout),
    )
}

fn groups(root: &Place<'_>, file: &raw::File) -> Result<Vec<SyncGroup>, Reported> {
    let names = keys(file.vrrp.as_ref());
    let mut taken: Vec<usize> = Vec::new();
    let read = |(name, table): (&str, Table<'_, '_, raw::VrrpSyncGroup>)| {
        let (place, raw) = table?;
        if raw.group.is_none() {
            return Err(place.missing("group", WRITE_MEMBERS));
        }
        let mut members = Vec::new();
        for (place, member) in place.texts("group", &raw.group, WRITE_MEMBERS) {
            let Some(index) = names.iter().position(|name| *name == member) else {
                return Err(unknown(&place, member, &names, "[vrrp.NAME]"));
            };
            if taken.contains(&index) {
                return Err(
                    place.problem(format_args!("is \"{member}\", which is in a group already"))
                );
            }
            taken.push(index);
            members.push(index);
        }
        if members.len() < 2 {
            return Err(place.child("group", place.span()).problem("needs two members at least"));
        }
        Ok(SyncGroup { name: name.to_owned(), members })
    };
    let tables = tables(root, "vrrp_sync_group", file.vrrp_sync_group.as_ref(), WRITE_GROUP)?;
    let groups: Vec<Result<SyncGroup, Reported>> = tables.into_iter().map(read).collect();
    groups.into_iter().collect()
}

/// The tables under a name of the user's choice, each name checked.
fn tables<'a, 'r, T>(
    root: &Place<'r>,
    key: &str,
    node: Option<&'a Node<Named<Node<T>>>>,
    write: &str,
) -> Result<Vec<(&'a str, Table<'r, 'a, T>)>, Reported> {
    let Some(node) = node else { return Ok(Vec::new()) };
    let (place, named) = root.wanted(key, node, write)?;
    let read = |(name, node): (&'a toml::Spanned<String>, &'a Node<T>)| {
        let text = name.get_ref().as_str();
        let checked = listeners::check_name(text).map_err(|write| {
            let place = place.child(text, name.span());
            place.problem(format_args!("has a name that cannot stand unquoted: {write}"))
        });
        (text, checked.and_then(|()| place.wanted(text, node, write)))
    };
    Ok(named.iter().map(read).collect())
}

fn keys<T>(node: Option<&Node<Named<Node<T>>>>) -> Vec<&str> {
    match node.map(Node::get_ref) {
        Some(Content::Wanted(named)) => named.keys().map(|name| name.get_ref().as_str()).collect(),
        _ => Vec::new(),
    }
}

fn unknown(place: &Place<'_>, name: &str, known: &[&str], what: &str) -> Reported {
    let known = if known.is_empty() { "there is none".to_owned() } else { known.join(", ") };
    place.problem(format_args!(
        "is \"{}\", but there is no such {what} (there are: {known})",
        name.escape_debug()
    ))
}

#[cfg(test)]
mod tests;
