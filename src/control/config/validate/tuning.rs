//! `[tuning]`: what is set on the machine before anything listens.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::control::config::error::suggest;
use crate::control::config::place::{Place, text_item};
use crate::control::config::raw::{self, Content, Leaf, Scalar};
use crate::control::config::{Node, Shards};
use crate::l7::config::Listener;
use crate::tune::machine::sysctl_path;
use crate::tune::setting::{self, PROFILES};
use crate::tune::wanted::Wanted;
use crate::tune::{self, STATE_DIR};

/// Interface names are shorter (IFNAMSIZ of netdevice(7)).
const INTERFACE_MAX: usize = 15;

/// What is to be tuned; ports and shards come from the rest of the file.
pub(super) fn tuning(
    root: &Place<'_>,
    file: &raw::File,
    node: Option<&Node>,
    listeners: &[Listener],
    admin: Option<SocketAddr>,
) -> tune::Config {
    let binds = listeners.iter().map(|listener| listener.bind).chain(admin);
    let mut config = tune::Config {
        ports: binds.map(|bind| bind.port()).filter(|port| *port > 0).collect(),
        shards: node.map_or(tune::Shards::Auto, |node| match &node.shards {
            Shards::Auto => tune::Shards::Auto,
            Shards::Count(count) => tune::Shards::Count(*count as usize),
            Shards::Cpus(cpus) => tune::Shards::Cpus(cpus.clone()),
        }),
        ..tune::Config::default()
    };
    config.ports.sort_unstable();
    config.ports.dedup();
    let table = root.table("tuning", file.tuning.as_ref(), "write a table, `[tuning]`");
    let Some((place, raw)) = table else { return config };
    config.profiles = profiles(&place, raw);
    config.require = place.boolean("require", &raw.require, false);
    config.check_interval =
        place.duration("check_interval", &raw.check_interval, config.check_interval);
    config.interfaces = interfaces(&place, raw);
    config.root = path(&place, "root", &raw.root, "/");
    config.state_dir = path(&place, "state_dir", &raw.state_dir, STATE_DIR);
    config.allow = names(&place, "allow", &raw.allow);
    config.force = names(&place, "force", &raw.force);
    config.set = set(&place, raw, &config.allow);
    config
}

fn profiles(place: &Place<'_>, raw: &raw::Tuning) -> Vec<String> {
    const WRITE: &str =
        r#"write a profile like "edge", several like ["proxy", "director"], or "off""#;
    let Some((place, scalar)) = place.leaf("profile", &raw.profile) else { return Vec::new() };
    let known = |place: &Place<'_>, name: &str| {
        let good = PROFILES.iter().any(|(known, _)| *known == name);
        if !good {
            let names = PROFILES.iter().map(|(name, _)| *name);
            let write = suggest(name, names).replace('`', "\"");
            place.wrong(&Scalar::Text(name.to_owned()), write);
        }
        good
    };
    match scalar {
        Scalar::Text(text) if text == "off" => Vec::new(),
        Scalar::Text(text) => known(&place, text).then(|| text.clone()).into_iter().collect(),
        Scalar::List(list) => {
            let items = list.iter().enumerate().filter_map(|(index, leaf)| {
                let (place, text) =
                    text_item(place.item(index, leaf.span()), leaf.get_ref(), WRITE)?;
                known(&place, text).then(|| text.to_owned())
            });
            items.collect()
        }
        other => {
            place.wrong(other, WRITE);
            Vec::new()
        }
    }
}

fn interfaces(place: &Place<'_>, raw: &raw::Tuning) -> Vec<String> {
    const WRITE: &str = r#"write interface names like ["eth0"]"#;
    let mut names = Vec::new();
    for (place, name) in place.texts("interfaces", &raw.interfaces, WRITE) {
        let plain = |b: u8| b.is_ascii_graphic() && b != b'/';
        let good = !name.is_empty() && name.len() <= INTERFACE_MAX && name.bytes().all(plain);
        if good && !name.starts_with('.') {
            names.push(name.to_owned());
        } else {
            place.wrong(&Scalar::Text(name.to_owned()), WRITE);
        }
    }
    names
}

fn path(place: &Place<'_>, key: &str, leaf: &Option<Leaf>, default: &str) -> PathBuf {
    let write = format!("write an absolute path like \"{default}\"");
    match place.text(key, leaf, &write) {
        Some(Ok((place, text))) if !text.starts_with('/') || text.contains('\0') => {
            place.wrong(&Scalar::Text(text.to_owned()), write);
            PathBuf::from(default)
        }
        Some(Ok((_, text))) => PathBuf::from(text),
        Some(Err(_)) | None => PathBuf::from(default),
    }
}

/// True when a setting, a trap or a sysctl can have this name.
fn is_name(name: &str) -> bool {
    setting::known(name).is_some() || name.starts_with("nic.") || sysctl_path(name).is_some()
}

fn names(place: &Place<'_>, key: &str, leaf: &Option<Leaf>) -> Vec<String> {
    const WRITE: &str = r#"write names of settings like ["net.core.somaxconn"]"#;
    let mut names = Vec::new();
    for (place, name) in place.texts(key, leaf, WRITE) {
        if is_name(name) {
            names.push(name.to_owned());
        } else {
            place.wrong(&Scalar::Text(name.to_owned()), WRITE);
        }
    }
    names
}

fn set(place: &Place<'_>, raw: &raw::Tuning, allow: &[String]) -> BTreeMap<String, Option<String>> {
    const WRITE: &str = r#"write a table like { "net.core.somaxconn" = 32768 }"#;
    let mut all = BTreeMap::new();
    let Some(node) = &raw.set else { return all };
    let place = place.child("set", node.span());
    let table = match node.get_ref() {
        Content::Wanted(table) => table,
        Content::Other(other) => {
            place.wrong(other, WRITE);
            return all;
        }
    };
    for (key, leaf) in table {
        let name = key.get_ref();
        let value = place.child(&format!("\"{name}\""), leaf.span());
        if !is_name(name) {
            let whole = format!("write the whole name in quotes, like \"{name}.KEY\" = 1");
            place.child(name, key.span()).problem(format_args!("is no setting: {whole}"));
            continue;
        }
        match leaf.get_ref() {
            Scalar::Boolean(false) => {
                all.insert(name.clone(), None);
            }
            scalar => {
                if let Some(text) = text_of(scalar) {
                    check(&value, scalar, name, &text, allow);
                    all.insert(name.clone(), Some(text));
                } else {
                    value.wrong(scalar, "write a number, a text, or false to leave the key alone");
                }
            }
        }
    }
    all
}

/// What is written to the kernel for a value of the file.
fn text_of(scalar: &Scalar) -> Option<String> {
    match scalar {
        Scalar::Text(text) => {
            let good = !text.trim().is_empty() && text.len() < 4096;
            (good && !text.contains(|c: char| c.is_control())).then(|| text.trim().to_owned())
        }
        Scalar::Integer(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Notes a value that cannot be meant, or is dangerous and not allowed.
fn check(place: &Place<'_>, scalar: &Scalar, name: &str, text: &str, allow: &[String]) {
    if let Some(setting) = setting::known(name) {
        let strange = matches!(setting.wanted.with_value(text), Wanted::Is(_));
        match setting.wanted {
            Wanted::AtLeast(_) | Wanted::AtMost(_) if strange => {
                place.wrong(scalar, "write a number");
            }
            Wanted::EachAtLeast(_) if strange => {
                place.wrong(
                    scalar,
                    r#"write as many numbers as the key has, like "4096 131072 16777216""#,
                );
            }
            Wanted::PortRange(_) if strange => {
                place.wrong(scalar, r#"write the first and the last port, like "10240 65535""#);
            }
            Wanted::Ports(_) if strange => {
                place.wrong(scalar, r#"write ports like "8080,9000-9010""#);
            }
            Wanted::Untouched(_) => {
                place.wrong(scalar, "it is never changed: delete the line");
            }
            _ => {}
        }
    }
    if let Some(trap) = setting::refused(name, text)
        && !allow.iter().any(|allowed| allowed == name)
    {
        place.wrong(
            scalar,
            format_args!("dangerous: {}; {} (or: allow = [\"{name}\"])", trap.says, trap.instead),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::tests::{bad, good};

    #[test]
    fn problems() {
        bad(&[
            ("profile = \"egde\"", "2:11", r#"`tuning.profile` is "egde": did you mean "edge"?"#),
            (
                "profile = [\"proxy\", \"fast\"]",
                "2:21",
                r#"`tuning.profile[1]` is "fast": write one of "edge""#,
            ),
            ("profile = true", "2:11", r#"`tuning.profile` is true: write a profile like "edge""#),
            ("set = 1", "2:7", "`tuning.set` is 1: write a table"),
            (
                "set.net.core.somaxconn = 1",
                "2:5",
                "`tuning.set.net` is no setting: write the whole name in quotes",
            ),
            ("set = { \"net.core.somaxconn\" = \"lots\" }", "2:32", "is \"lots\": write a number"),
            (
                "set = { \"net.core.somaxconn\" = [1] }",
                "2:32",
                "is a list: write a number, a text, or false",
            ),
            (
                "set = { \"net.ipv4.tcp_rmem\" = \"1 2\" }",
                "2:31",
                "write as many numbers as the key has",
            ),
            (
                "set = { \"net.ipv4.ip_local_port_range\" = 1024 }",
                "2:42",
                "write the first and the last port",
            ),
            ("set = { \"net.ipv4.ip_local_reserved_ports\" = \"x\" }", "2:46", "write ports like"),
            (
                "set = { \"net.ipv4.tcp_tw_recycle\" = 1 }",
                "2:37",
                "dangerous: removed in Linux 4.12",
            ),
            (
                "set = { \"net.ipv4.tcp_max_tw_buckets\" = 5000 }",
                "2:41",
                "(or: allow = [\"net.ipv4.tcp_max_tw_buckets\"])",
            ),
            ("set = { \"boot.mitigations\" = \"off\" }", "2:30", "it is never changed"),
            ("set = { \"net/../../etc/passwd\" = 1 }", "2:9", "is no setting"),
            ("allow = [\"x\"]", "2:10", r#"`tuning.allow[0]` is "x": write names of settings"#),
            ("force = \"x\"", "2:9", "write names of settings"),
            ("require = 1", "2:11", "write true or false"),
            ("interfaces = [\"eth0/1\"]", "2:15", "write interface names like"),
            ("root = \"tmp\"", "2:8", "write an absolute path like \"/\""),
            ("state_dir = 1", "2:13", "write an absolute path"),
        ]
        .map(|(line, at, says)| (format!("[tuning]\n{line}"), at, says)));
    }

    #[test]
    fn values() {
        let config = good(
            "[node]\nshards = \"1,3\"\n[tuning]\nprofile = [\"proxy\", \"director\"]\nrequire = true\n\
             interfaces = [\"eth0\"]\nforce = [\"net.core.somaxconn\"]\nroot = \"/tmp/x\"\n\
             allow = [\"net.ipv4.tcp_mem\", \"nic.rx_ring\"]\nset = { \"net.ipv4.tcp_mem\" = \"1 2 3\", \
             \"vm.swappiness\" = false, \"net.ipv4.tcp_keepalive_time\" = 600 }",
        );
        let tuning = config.tuning;
        assert_eq!(tuning.profiles, ["proxy", "director"]);
        assert_eq!(tuning.set["net.ipv4.tcp_mem"].as_deref(), Some("1 2 3"));
        assert_eq!(tuning.set["vm.swappiness"], None);
        assert_eq!(tuning.set["net.ipv4.tcp_keepalive_time"].as_deref(), Some("600"));
        assert_eq!((tuning.require, tuning.ports), (true, vec![80, 9090]));
        assert_eq!(tuning.shards, tune::Shards::Cpus(vec![1, 3]));
        assert_eq!(tuning.root, PathBuf::from("/tmp/x"));
        assert!(good("").tuning.is_off());
        assert!(good("[tuning]\nprofile = \"off\"").tuning.is_off());
    }
}
