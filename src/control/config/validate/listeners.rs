//! `[[listener]]`: where clients connect.

use std::collections::HashMap;
use std::net::SocketAddr;

use super::{address, tls};
use crate::control::config::place::{Place, Reported};
use crate::control::config::raw::{self, Content};
use crate::l7::config::Listener;
use crate::l7::tls::config::Policy;

const EXAMPLE: &str = "0.0.0.0:80";

/// Longest accept queue; the kernel lowers it to `net.core.somaxconn`.
const BACKLOG_MAX: u32 = 1 << 20;

/// Every listener, those with problems included so that routes can name them.
pub(super) fn listeners(
    root: &Place<'_>,
    file: &raw::File,
    admin: Option<SocketAddr>,
    policy: Policy,
) -> Vec<Listener> {
    let tables = root.good_tables("listener", file.listener.as_ref(), "write it as `[[listener]]`");
    let given = file.listener.as_ref().map(toml::Spanned::get_ref);
    let none = given.is_none_or(|list| matches!(list, Content::Wanted(list) if list.is_empty()));
    if none && file.virtual_server.is_none() {
        root.child("listener", 0..0).problem(format_args!(
            "is missing, so nothing could be reached: write `[[listener]]` and below it \
             `bind = \"{EXAMPLE}\"`"
        ));
    }
    let mut seen = Seen { names: HashMap::new(), binds: HashMap::new(), admin };
    tables.iter().map(|(place, raw)| listener(place, raw, &mut seen, policy)).collect()
}

/// What earlier listeners took, and which of them did.
struct Seen {
    names: HashMap<String, String>,
    binds: HashMap<SocketAddr, String>,
    admin: Option<SocketAddr>,
}

fn listener(place: &Place<'_>, raw: &raw::Listener, seen: &mut Seen, policy: Policy) -> Listener {
    let bind = bind(place, raw, seen);
    let name = name(place, raw, bind.as_ref().ok(), seen);
    // Browsers speak HTTP/2 over TLS only.
    let http2 = place.boolean("http2", &raw.http2, raw.certificates.is_some());
    Listener {
        name,
        // Never used: the problem is noted.
        bind: bind.unwrap_or_else(|Reported { .. }| SocketAddr::from(([0, 0, 0, 0], 0))),
        backlog: place.integer("backlog", &raw.backlog, 1..=BACKLOG_MAX, 4096),
        http2,
        proxy_protocol_from: address::nets(place, "proxy_protocol_from", &raw.proxy_protocol_from),
        tls: tls::listener(place, raw, policy, http2),
        hsts: tls::hsts(place, raw),
        redirect_https: tls::redirect(place, raw),
    }
}

fn bind(place: &Place<'_>, raw: &raw::Listener, seen: &mut Seen) -> Result<SocketAddr, Reported> {
    let Some((key, scalar)) = place.leaf("bind", &raw.bind) else {
        return Err(place.missing("bind", &format!("write an address like \"{EXAMPLE}\"")));
    };
    let write = format!("write an address and port like \"{EXAMPLE}\" or \"[::]:80\"");
    let address = address::bind(&key, scalar, EXAMPLE, write)?;
    if seen.admin == Some(address) {
        return Err(key.wrong(scalar, "`admin.bind` has this address too: write another port"));
    }
    if let Some(first) = seen.binds.insert(address, place.path().to_owned()) {
        let write = format_args!("`{first}` has this address too: write another or remove one");
        return Err(key.wrong(scalar, write));
    }
    Ok(address)
}

fn name(
    place: &Place<'_>,
    raw: &raw::Listener,
    bind: Option<&SocketAddr>,
    seen: &mut Seen,
) -> String {
    let Some(read) = place.text("name", &raw.name, "write a name like \"web\"") else {
        let Some(name) = bind.map(ToString::to_string) else { return String::new() };
        if let Some(first) = seen.names.insert(name.clone(), place.path().to_owned()) {
            let what = format_args!("is missing, and `{first}` is named \"{name}\": write a name");
            place.child("name", place.span()).problem(what);
        }
        return name;
    };
    let Ok((key, name)) = read else { return String::new() };
    if let Err(write) = check_name(name) {
        key.wrong(&raw::Scalar::Text(name.to_owned()), write);
    } else if let Some(first) = seen.names.insert(name.to_owned(), place.path().to_owned()) {
        key.problem(format_args!("is \"{name}\", like that of `{first}`: write another name"));
    }
    name.to_owned()
}

/// Longest name of a listener or upstream, in bytes.
const NAME_MAX: usize = 128;

/// Names stand in routes, metrics and logs unquoted, so they are plain.
///
/// # Errors
///
/// What to write instead.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:[]".contains(&b);
    if name.is_empty() || !name.bytes().all(plain) {
        return Err("a name is letters, digits, `-`, `_`, `.`, `:`: write one like \"web\"".into());
    }
    if name.len() > NAME_MAX {
        return Err(format!("write a name of at most {NAME_MAX} characters"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::control::config::parse;
    use crate::control::config::tests::{ROUTES, bad_exactly};

    #[test]
    fn problems() {
        bad_exactly(&[
            ("[[listener]]\nname = \"x\"", "1:1", "`listener[0].bind` is missing: write an address like \"0.0.0.0:80\""),
            ("[[listener]]\nbind = \"80\"", "2:8", "`listener[0].bind` is \"80\": a port needs an address: write \"0.0.0.0:80\""),
            ("[[listener]]\nbind = 8080", "2:8", "`listener[0].bind` is 8080: a port needs an address: write \"0.0.0.0:8080\""),
            ("[[listener]]\nbind = \":80\"", "2:8", "write \"0.0.0.0:80\""),
            ("[[listener]]\nbind = \"*:80\"", "2:8", "write \"0.0.0.0:80\""),
            ("[[listener]]\nbind = \"::\"", "2:8", "the port is missing: write \"[::]:80\""),
            ("[[listener]]\nbind = \"10.0.0.1\"", "2:8", "the port is missing: write \"10.0.0.1:80\""),
            ("[[listener]]\nbind = \"localhost:80\"", "2:8", "listeners need an IP address: write \"0.0.0.0:80\""),
            ("[[listener]]\nbind = \"0.0.0.0:0\"", "2:8", "port 0 stands for any: write the port"),
            ("[[listener]]\nbind = \"1.2.3.4:99999\"", "2:8", "write an address and port like \"0.0.0.0:80\" or \"[::]:80\""),
            ("[[listener]]\nbind = [\"0.0.0.0:80\"]", "2:8", "`listener[0].bind` is a list: write an address and port"),
            ("[[listener]]\nbind = \"0.0.0.0:80\"\nbacklog = 0", "3:11", "`listener[0].backlog` is 0: write a whole number from 1 to 1048576"),
            ("[[listener]]\nbind = \"0.0.0.0:80\"\nname = \"\"", "3:8", "`listener[0].name` is \"\": a name is letters"),
            ("[[listener]]\nbind = \"0.0.0.0:80\"\nname = 1", "3:8", "`listener[0].name` is 1: write a name like \"web\""),
            ("[[listener]]\nbind = \"0.0.0.0:80\"\nproxy_protocol_from = [\"x\"]", "3:24", "`listener[0].proxy_protocol_from[0]` is \"x\": write a network like"),
            ("[[listener]]\nbind = \"0.0.0.0:80\"\n[[listener]]\nbind = \"0.0.0.0:80\"", "4:8", "`listener[1].bind` is \"0.0.0.0:80\": `listener[0]` has this address too"),
            ("[[listener]]\nbind = \"127.0.0.1:9090\"", "2:8", "`admin.bind` has this address too"),
            ("[[listener]]\nname = \"a\"\nbind = \"0.0.0.0:80\"\n[[listener]]\nname = \"a\"\nbind = \"0.0.0.0:81\"", "5:8", "`listener[1].name` is \"a\", like that of `listener[0]`: write another name"),
            ("[[listener]]\nbind = \"0.0.0.0:80\"\n[[listener]]\nname = \"0.0.0.0:80\"\nbind = \"0.0.0.0:81\"", "4:8", "like that of `listener[0]`"),
            ("[[listener]]\nname = \"0.0.0.0:81\"\nbind = \"0.0.0.0:80\"\n[[listener]]\nbind = \"0.0.0.0:81\"", "4:1", "`listener[1].name` is missing, and `listener[0]` is named"),
            ("listener = [3]", "1:13", "`listener[0]` is 3: write it as `[[listener]]`"),
            ("listener = []", "1:1", "`listener` is missing"),
            ("listener = 3", "1:12", "`listener` is 3: write it as `[[listener]]`"),
            ("[listener]\nbind = \"0.0.0.0:80\"", "1:1", "`listener` is a table: write it as `[[listener]]`"),
            ("", "1:1", "`listener` is missing, so nothing could be reached: write `[[listener]]` and below it `bind = \"0.0.0.0:80\"`"),
        ].map(|(text, at, says)| (format!("{text}\n{ROUTES}"), at, says)));
    }

    #[test]
    fn values() {
        let text = "[[listener]]\nbind = \"[::]:80\"\nproxy_protocol_from = [\"10.0.0.0/8\"]\n\
                    [[listener]]\nname = \"web\"\nbind = \"10.0.0.1:80\"\nbacklog = 1";
        let listeners = parse("t", &format!("{text}\n{ROUTES}")).unwrap().service.listeners;
        assert_eq!((listeners[0].name.as_str(), listeners[0].backlog), ("[::]:80", 4096));
        assert_eq!(listeners[0].proxy_protocol_from.len(), 1);
        assert_eq!((listeners[1].name.as_str(), listeners[1].backlog), ("web", 1));
    }
}
