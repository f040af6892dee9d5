//! `[vrrp_script.NAME]`

use std::time::Duration;

use super::{WRITE_SCRIPT, tables};
use crate::control::config::place::{Place, Reported, text_item};
use crate::control::config::raw::{self, Leaf, Scalar};
use crate::ha::config::Script;
use crate::sys::process;

pub(super) const WRITE_COMMAND: &str =
    r#"write the program and its arguments: ["/usr/local/bin/check", "-q"]"#;

pub(super) fn scripts(root: &Place<'_>, file: &raw::File) -> Result<Vec<Script>, Reported> {
    let tables = tables(root, "vrrp_script", file.vrrp_script.as_ref(), WRITE_SCRIPT)?;
    let scripts: Vec<_> = tables
        .into_iter()
        .map(|(name, table)| table.and_then(|(place, raw)| script(&place, name, raw)))
        .collect();
    scripts.into_iter().collect()
}

fn script(place: &Place<'_>, name: &str, raw: &raw::VrrpScript) -> Result<Script, Reported> {
    let interval = place.duration("interval", &raw.interval, Duration::from_secs(1));
    let command = command(place, "script", &raw.script)?;
    let user = match place.text("user", &raw.user, "write the name of a user") {
        None => None,
        Some(read) => {
            let (place, name) = read?;
            let user = process::user(name);
            Some(user.ok_or_else(|| {
                place.problem(format_args!("is \"{}\": there is no such user", name.escape_debug()))
            })?)
        }
    };
    Ok(Script {
        name: name.to_owned(),
        command: command.ok_or_else(|| place.missing("script", WRITE_COMMAND))?,
        interval,
        timeout: place.duration("timeout", &raw.timeout, interval),
        rise: place.integer("rise", &raw.rise, 1..=1000, 1),
        fall: place.integer("fall", &raw.fall, 1..=1000, 1),
        weight: Some(place.integer("weight", &raw.weight, -253..=253i16, 0)).filter(|w| *w != 0),
        user,
    })
}

/// Program and arguments: a list, or one text for a program without arguments.
pub(in crate::control::config::validate) fn command(
    place: &Place<'_>,
    key: &str,
    leaf: &Option<Leaf>,
) -> Result<Option<Vec<String>>, Reported> {
    let Some((one, scalar)) = place.leaf(key, leaf) else { return Ok(None) };
    let words: Vec<(Place<'_>, &str)> = match scalar {
        Scalar::Text(text) => vec![(one.clone(), text)],
        Scalar::List(_) => {
            let items = place.list(key, leaf, WRITE_COMMAND).unwrap_or_default();
            items
                .into_iter()
                .filter_map(|(place, item)| text_item(place, item, WRITE_COMMAND))
                .collect()
        }
        other => return Err(one.wrong(other, WRITE_COMMAND)),
    };
    match words.first() {
        Some((_, program)) if program.starts_with('/') && !program.contains(' ') => {}
        // keepalived takes one text apart at spaces; here it would be a program of that name.
        _ => return Err(one.problem(format_args!("is no command: {WRITE_COMMAND}"))),
    }
    if words.iter().any(|(_, word)| word.contains('\0')) {
        return Err(one.problem("has a NUL byte: leave it out"));
    }
    Ok(Some(words.into_iter().map(|(_, word)| word.to_owned()).collect()))
}

/// From -253 to 253.
pub(super) fn weight(text: &str) -> Option<i16> {
    text.parse().ok().filter(|weight| (-253..=253).contains(weight))
}
