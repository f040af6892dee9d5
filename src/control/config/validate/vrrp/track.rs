//! What a priority depends on: `"NAME"` or `"NAME weight N"`, as keepalived writes it.

use super::{Names, unknown};
use crate::control::config::place::{Place, Reported};
use crate::control::config::raw::{self, Leaf};
use crate::ha::config::{Instance, Script, Track, Tracked};

const WRITE: &str = r#"write a list like ["NAME", "NAME weight -20"]"#;
const WRITE_UPSTREAM: &str =
    r#"write a list like ["api", "api quorum 2", "api quorum 2 weight -20"]"#;

/// All tracks of an instance.
pub(super) fn read(
    place: &Place<'_>,
    raw: &raw::Vrrp,
    names: &Names<'_>,
) -> Result<Vec<Track>, Reported> {
    let mut tracks = Vec::new();
    each(
        place,
        "track_interface",
        &raw.track_interface,
        WRITE,
        |place, name, _| {
            super::instance::interface_name(place, name)?;
            Ok(Tracked::Interface(name.to_owned()))
        },
        &mut tracks,
    )?;
    each(
        place,
        "track_script",
        &raw.track_script,
        WRITE,
        |place, name, _| {
            let index = names.scripts.iter().position(|known| *known == name);
            let index =
                index.ok_or_else(|| unknown(place, name, &names.scripts, "[vrrp_script.NAME]"))?;
            Ok(Tracked::Script(index))
        },
        &mut tracks,
    )?;
    each(
        place,
        "track_file",
        &raw.track_file,
        WRITE,
        |place, path, _| {
            if !path.starts_with('/') {
                return Err(place
                    .problem("is no path from the root: write one like \"/run/ringgate/drain\""));
            }
            Ok(Tracked::File(path.into()))
        },
        &mut tracks,
    )?;
    each(
        place,
        "track_upstream",
        &raw.track_upstream,
        WRITE_UPSTREAM,
        |place, name, quorum| {
            let known: Vec<&str> = names.upstreams.iter().map(|(name, _)| *name).collect();
            if !known.contains(&name) {
                return Err(unknown(place, name, &known, "[upstream.NAME]"));
            }
            Ok(Tracked::Upstream { name: name.to_owned(), quorum: quorum.unwrap_or(1) })
        },
        &mut tracks,
    )?;
    Ok(tracks)
}

fn each<'r>(
    place: &Place<'r>,
    key: &str,
    leaf: &Option<Leaf>,
    write: &str,
    make: impl Fn(&Place<'r>, &str, Option<u32>) -> Result<Tracked, Reported>,
    tracks: &mut Vec<Track>,
) -> Result<(), Reported> {
    for (place, text) in place.texts(key, leaf, write) {
        let (name, quorum, weight) = parse(text, key == "track_upstream").ok_or_else(|| {
            place.problem(format_args!("is \"{}\": {write}", text.escape_debug()))
        })?;
        tracks.push(Track { what: make(&place, name, quorum)?, weight });
    }
    Ok(())
}

/// Name, quorum and weight; a weight of 0 is keepalived's way to say "none".
fn parse(text: &str, takes_quorum: bool) -> Option<(&str, Option<u32>, Option<i16>)> {
    let mut words = text.split_ascii_whitespace();
    let name = words.next()?;
    let (mut quorum, mut weight) = (None, None);
    while let Some(word) = words.next() {
        let value = words.next()?;
        match word {
            "weight" if weight.is_none() => weight = Some(super::script::weight(value)?),
            "quorum" if takes_quorum && quorum.is_none() => {
                quorum = Some(value.parse().ok().filter(|quorum| *quorum > 0)?);
            }
            _ => return None,
        }
    }
    Some((name, quorum, weight.filter(|weight| *weight != 0)))
}

/// A track of a script that names no weight has the script's.
pub(super) fn default_weights(instance: &mut Instance, scripts: &[Script]) {
    for track in &mut instance.tracks {
        if let (Tracked::Script(index), None) = (&track.what, track.weight) {
            track.weight = scripts.get(*index).and_then(|script| script.weight);
        }
    }
}
