//! `[node]`, `[log]` and `[admin]`: the process itself.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::address;
use crate::control::config::place::{BYTES_MAX, Place, Reported};
use crate::control::config::raw::{self, Content, Scalar};
use crate::control::config::units::{self, CPUS_MAX};
use crate::control::config::{
    ADMIN_SOCKET, AdminSocket, Level, Log, LogFormat, LogTarget, Node, Sandbox, Shards, Steering,
};
use crate::l7::config::AccessLogFormat;
use crate::sys::process::{self, User};

const WRITE_SHARDS: &str = r#"write "auto", a count like 2 or a CPU list like "0-3,6""#;

/// Most shards a count may ask for: one per CPU of the largest CPU set.
const SHARDS_MAX: u32 = 1024;
/// Microseconds; who waits longer than this for the next completion has nothing to gain.
const BUSY_POLL_MAX: u32 = 1000;

pub(super) fn node(root: &Place<'_>, file: &raw::File) -> Result<Node, Reported> {
    let empty = raw::NodeKeys::default();
    let table = root.table("node", file.node.as_ref(), "write a table, `[node]`");
    let (place, raw) = table.unwrap_or_else(|| (root.child("node", 0..0), &empty));
    let shards = shards(&place, raw);
    let receive_buffers = receive_buffers(&place, raw);
    let pid_file = pid_file(&place, raw);
    let user = user(&place, raw);
    Ok(Node {
        pin: place.boolean("pin", &raw.pin, true),
        steering: place.choice(
            "steering",
            &raw.steering,
            &[("hash", Steering::Hash), ("cpu", Steering::Cpu)],
            Steering::Hash,
        ),
        max_connections: place.integer("max_connections", &raw.max_connections, 0..=u32::MAX, 0),
        drain_timeout: place.duration_or_zero(
            "drain_timeout",
            &raw.drain_timeout,
            Duration::from_secs(30),
        ),
        buffer_memory: place.size(
            "buffer_memory",
            &raw.buffer_memory,
            64 << 10..=BYTES_MAX,
            256 << 20,
        ),
        busy_poll: Duration::from_micros(u64::from(place.integer(
            "busy_poll_usec",
            &raw.busy_poll_usec,
            0..=BUSY_POLL_MAX,
            0,
        ))),
        resolve_interval: place.duration(
            "resolve_interval",
            &raw.resolve_interval,
            Duration::from_secs(10),
        ),
        upgrade_timeout: place.duration(
            "upgrade_timeout",
            &raw.upgrade_timeout,
            Duration::from_secs(30),
        ),
        upgrade_drain_timeout: place.duration_or_zero(
            "upgrade_drain_timeout",
            &raw.upgrade_drain_timeout,
            Duration::from_secs(3600),
        ),
        pid_file: pid_file?,
        user: user?,
        sandbox: place.choice(
            "sandbox",
            &raw.sandbox,
            &[("auto", Sandbox::Auto), ("on", Sandbox::On), ("off", Sandbox::Off)],
            Sandbox::Auto,
        ),
        writable: writable(&place, raw),
        shards: shards?,
        receive_buffers: receive_buffers?,
    })
}

fn shards(place: &Place<'_>, raw: &raw::NodeKeys) -> Result<Shards, Reported> {
    let Some((place, scalar)) = place.leaf("shards", &raw.shards) else { return Ok(Shards::Auto) };
    match scalar {
        Scalar::Text(text) if text == "auto" => Ok(Shards::Auto),
        Scalar::Text(text) if text.starts_with(|c: char| c.is_ascii_digit()) => {
            units::cpus(text).map(Shards::Cpus).map_err(|write| place.wrong(scalar, write))
        }
        Scalar::Integer(_) => place.number(scalar, &(1..=SHARDS_MAX)).map(Shards::Count),
        other => Err(place.wrong(other, WRITE_SHARDS)),
    }
}

// A count that passes is a number of CPUs that a list could name too.
const _: () = assert!(SHARDS_MAX as usize == CPUS_MAX);

fn receive_buffers(place: &Place<'_>, raw: &raw::NodeKeys) -> Result<u16, Reported> {
    let Some((place, scalar)) = place.leaf("receive_buffers", &raw.receive_buffers) else {
        return Ok(512);
    };
    let range: std::ops::RangeInclusive<u16> = 16..=32_768;
    match scalar {
        // The kernel's buffer rings have 2^n entries.
        Scalar::Integer(number) => match u16::try_from(*number) {
            Ok(n) if range.contains(&n) && n.is_power_of_two() => Ok(n),
            Ok(n) if range.contains(&n) => {
                let (low, high) = (n.next_power_of_two() / 2, n.next_power_of_two());
                Err(place.wrong(scalar, format_args!("write a power of two: {low} or {high}")))
            }
            _ => Err(place.wrong(scalar, "write a power of two from 16 to 32768")),
        },
        other => Err(place.wrong(other, "write a power of two from 16 to 32768")),
    }
}

fn user(place: &Place<'_>, raw: &raw::NodeKeys) -> Result<Option<User>, Reported> {
    const WRITE_USER: &str = "write the name of a user of this host";
    const WRITE_GROUP: &str = "write the name of a group of this host, beside node.user";
    let user = match place.text("user", &raw.user, WRITE_USER) {
        None => None,
        Some(read) => {
            let (place, name) = read?;
            let wrong = || place.wrong(&Scalar::Text(name.to_owned()), WRITE_USER);
            Some(process::user(name).ok_or_else(wrong)?)
        }
    };
    let Some(read) = place.text("group", &raw.group, WRITE_GROUP) else { return Ok(user) };
    let (place, name) = read?;
    let wrong = || place.wrong(&Scalar::Text(name.to_owned()), WRITE_GROUP);
    let (user, gid) = user.zip(process::group(name)).ok_or_else(wrong)?;
    Ok(Some(User { gid, ..user }))
}

fn writable(place: &Place<'_>, raw: &raw::NodeKeys) -> Vec<PathBuf> {
    const WRITE: &str = r#"write a list of directories like ["/var/lib/checks"]"#;
    let items = place.list("writable", &raw.writable, WRITE).unwrap_or_default();
    let paths = items.into_iter().filter_map(|(place, item)| match item {
        Scalar::Text(path) if path.starts_with('/') && !path.contains('\0') => {
            Some(PathBuf::from(path))
        }
        other => {
            place.wrong(other, WRITE);
            None
        }
    });
    paths.collect()
}

fn pid_file(place: &Place<'_>, raw: &raw::NodeKeys) -> Result<Option<PathBuf>, Reported> {
    const WRITE: &str = r#"write a path like "/run/ringgate/ringgate.pid""#;
    match place.text("pid_file", &raw.pid_file, WRITE) {
        None => Ok(None),
        Some(read) => match read? {
            (_, path) if path.starts_with('/') && !path.contains('\0') => Ok(Some(path.into())),
            (place, path) => Err(place.wrong(&Scalar::Text(path.to_owned()), WRITE)),
        },
    }
}

pub(super) fn log(root: &Place<'_>, file: &raw::File) -> Result<Log, Reported> {
    let empty = raw::Log::default();
    let table = root.table("log", file.log.as_ref(), "write a table, `[log]`");
    let (place, raw) = table.unwrap_or_else(|| (root.child("log", 0..0), &empty));
    let levels = [
        ("error", Level::Error),
        ("warn", Level::Warn),
        ("info", Level::Info),
        ("debug", Level::Debug),
    ];
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    let access = [
        ("off", None),
        ("combined", Some(AccessLogFormat::Combined)),
        ("json", Some(AccessLogFormat::Json)),
    ];
    let access_file = access_file(&place, raw);
    let buffer = place.size("access_buffer", &raw.access_buffer, 4 << 10..=1 << 30, 256 << 10);
    Ok(Log {
        level: place.choice("level", &raw.level, &levels, Level::Info),
        format: place.choice("format", &raw.format, &formats, LogFormat::Text),
        access: place.choice("access", &raw.access, &access, None),
        access_file: access_file?,
        access_buffer: usize::try_from(buffer).unwrap_or(usize::MAX),
    })
}

fn access_file(place: &Place<'_>, raw: &raw::Log) -> Result<LogTarget, Reported> {
    const WRITE: &str = r#"write "stdout" or a path like "/var/log/ringgate/access.log""#;
    let Some(read) = place.text("access_file", &raw.access_file, WRITE) else {
        return Ok(LogTarget::Stdout);
    };
    match read? {
        (_, "stdout") => Ok(LogTarget::Stdout),
        (place, path) if path.is_empty() || path.contains('\0') => {
            Err(place.wrong(&Scalar::Text(path.to_owned()), WRITE))
        }
        (_, path) => Ok(LogTarget::File(PathBuf::from(path))),
    }
}

pub(super) fn admin(root: &Place<'_>, file: &raw::File) -> Result<Option<SocketAddr>, Reported> {
    let default = Ok(Some(SocketAddr::from(([127, 0, 0, 1], 9090))));
    let table = root.table("admin", file.admin.as_ref(), "write a table, `[admin]`");
    let Some((place, raw)) = table else { return default };
    let example = "127.0.0.1:9090";
    let write = format!("write an address and port like \"{example}\", or \"off\"");
    match place.leaf("bind", &raw.bind) {
        None => default,
        Some((_, Scalar::Text(text))) if text == "off" => Ok(None),
        Some((place, scalar)) => address::bind(&place, scalar, example, &write).map(Some),
    }
}

/// The unix socket. By default there is one, but only VRRP and a path of its own insist on it.
pub(super) fn admin_socket(
    root: &Place<'_>,
    file: &raw::File,
) -> Result<Option<AdminSocket>, Reported> {
    const WRITE: &str = r#"write a path like "/run/ringgate/admin.sock", or "off""#;
    let mut socket = AdminSocket {
        path: PathBuf::from(ADMIN_SOCKET),
        required: file.vrrp.is_some(),
        mode: 0o600,
        owner: (None, None),
    };
    let Some(Content::Wanted(raw)) = file.admin.as_ref().map(raw::Node::get_ref) else {
        return Ok(Some(socket));
    };
    let place = root.child("admin", 0..0);
    let mode =
        place.text("socket_mode", &raw.socket_mode, WRITE_MODE).map(|read| read.and_then(mode));
    let owner = place.text("socket_owner", &raw.socket_owner, WRITE_OWNER);
    let owner = owner.map(|read| read.and_then(owner_of));
    let path = place.text("socket", &raw.socket, WRITE).map(|read| match read? {
        (_, "off") => Ok(None),
        (_, path) if path.starts_with('/') && !path.contains('\0') && path.len() < 108 => {
            Ok(Some(PathBuf::from(path)))
        }
        (place, path) => Err(place.wrong(&Scalar::Text(path.to_owned()), WRITE)),
    });
    socket.mode = mode.transpose()?.unwrap_or(socket.mode);
    socket.owner = owner.transpose()?.unwrap_or(socket.owner);
    match path.transpose()? {
        Some(None) => return Ok(None),
        Some(Some(path)) => (socket.path, socket.required) = (path, true),
        None => {}
    }
    Ok(Some(socket))
}

const WRITE_MODE: &str = r#"write octal permissions like "0660""#;
const WRITE_OWNER: &str = r#"write a user, a group or both, like "root:adm" or ":adm""#;

fn mode((place, text): (Place<'_>, &str)) -> Result<u32, Reported> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 && mode & 0o600 == 0o600 && text.len() <= 4 => Ok(mode),
        Ok(mode) if mode <= 0o777 => {
            Err(place.problem("keeps the owner out: write \"0600\" or more"))
        }
        _ => Err(place.wrong(&Scalar::Text(text.to_owned()), WRITE_MODE)),
    }
}

type Owner = (Option<String>, Option<String>);

fn owner_of((place, text): (Place<'_>, &str)) -> Result<Owner, Reported> {
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    let plain = |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if user.is_empty() && group.is_empty() || !plain(user) || !plain(group) {
        return Err(place.wrong(&Scalar::Text(text.to_owned()), WRITE_OWNER));
    }
    let name = |name: &str| (!name.is_empty()).then(|| name.to_owned());
    Ok((name(user), name(group)))
}

/// The file with the token for the loopback listener.
pub(super) fn admin_token(root: &Place<'_>, file: &raw::File) -> Result<Option<PathBuf>, Reported> {
    const WRITE: &str = r#"write a path like "/etc/ringgate/admin.token""#;
    let Some(Content::Wanted(raw)) = file.admin.as_ref().map(raw::Node::get_ref) else {
        return Ok(None);
    };
    let place = root.child("admin", 0..0);
    match place.text("token_file", &raw.token_file, WRITE).transpose()? {
        None => Ok(None),
        Some((_, path)) if !path.is_empty() && !path.contains('\0') => {
            Ok(Some(PathBuf::from(path)))
        }
        Some((place, path)) => Err(place.wrong(&Scalar::Text(path.to_owned()), WRITE)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::tests::{bad, good};

    #[test]
    fn problems() {
        bad(&[
            ("shards = \"all\"", "2:10", r#"`node.shards` is "all": write "auto", a count like 2 or a CPU list like "0-3,6""#),
            ("shards = true", "2:10", r#"`node.shards` is true: write "auto", a count"#),
            ("shards = 0", "2:10", "`node.shards` is 0: write a whole number from 1 to 1024"),
            ("shards = \"3-0\"", "2:10", "`node.shards` is \"3-0\": the range 3-0 runs backwards: write 0-3"),
            ("pin = 1", "2:7", "`node.pin` is 1: write true or false"),
            ("pin = \"yes\"", "2:7", "`node.pin` is \"yes\": write true or false"),
            ("steering = \"irq\"", "2:12", "`node.steering` is \"irq\": write one of \"hash\", \"cpu\""),
            ("max_connections = -1", "2:19", "`node.max_connections` is -1: write a whole number from 0 to 4294967295"),
            ("max_connections = 4294967296", "2:19", "write a whole number from 0 to 4294967295"),
            ("max_connections = 1.5", "2:19", "`node.max_connections` is 1.5: write a whole number"),
            ("max_connections = [1]", "2:19", "`node.max_connections` is a list: write a whole number"),
            ("max_connections = {}", "2:19", "`node.max_connections` is a table: write a whole number"),
            ("drain_timeout = 30", "2:17", r#"`node.drain_timeout` is 30: a time needs a unit: write "30s" for seconds, "30ms" for milliseconds"#),
            ("drain_timeout = \"30\"", "2:17", r#"`node.drain_timeout` is "30": a time needs a unit: write a whole number and a unit, like "500ms", "30s""#),
            ("drain_timeout = -5", "2:17", r#"`node.drain_timeout` is -5: write a whole number and a unit, like "500ms""#),
            ("receive_buffers = 500", "2:19", "`node.receive_buffers` is 500: write a power of two: 256 or 512"),
            ("receive_buffers = 8", "2:19", "`node.receive_buffers` is 8: write a power of two from 16 to 32768"),
            ("receive_buffers = 65536", "2:19", "write a power of two from 16 to 32768"),
            ("receive_buffers = 32769", "2:19", "write a power of two from 16 to 32768"),
            ("receive_buffers = \"512\"", "2:19", "`node.receive_buffers` is \"512\": write a power of two"),
            ("buffer_memory = \"1k\"", "2:17", "`node.buffer_memory` is \"1k\": write at least \"64k\""),
            ("buffer_memory = \"lots\"", "2:17", r#"`node.buffer_memory` is "lots": write bytes or a size like "16k""#),
            ("busy_poll_usec = 1001", "2:18", "`node.busy_poll_usec` is 1001: write a whole number from 0 to 1000"),
            ("buffer_memory = -1", "2:17", r#"`node.buffer_memory` is -1: write bytes or a size like "16k""#),
            ("upgrade_timeout = \"0s\"", "2:19", r#"`node.upgrade_timeout` is "0s": write a time above zero"#),
            ("pid_file = \"run.pid\"", "2:12", r#"`node.pid_file` is "run.pid": write a path like"#),
            ("user = \"no such user\"", "2:8", r#"`node.user` is "no such user": write the name of a user"#),
            ("group = \"root\"", "2:9", r#"`node.group` is "root": write the name of a group of this host, beside node.user"#),
            ("sandbox = true", "2:11", r#"`node.sandbox` is true: write one of "auto", "on", "off""#),
            ("writable = [\"tmp\"]", "2:13", r#"write a list of directories"#),
            ("resolve_interval = \"0s\"", "2:20", r#"`node.resolve_interval` is "0s": write a time above zero (the default is "10s")"#),
        ].map(|(line, at, says)| (format!("[node]\n{line}"), at, says)));
        bad(&[
            ("level = \"warning\"", "2:9", r#"`log.level` is "warning": did you mean "warn"?"#),
            (
                "level = 3",
                "2:9",
                r#"`log.level` is 3: write one of "error", "warn", "info", "debug""#,
            ),
            ("format = \"xml\"", "2:10", r#"`log.format` is "xml": write one of "text", "json""#),
            (
                "access = true",
                "2:10",
                r#"`log.access` is true: write one of "off", "combined", "json""#,
            ),
            ("access_file = \"\"", "2:15", r#"`log.access_file` is "": write "stdout" or a path"#),
            ("access_file = 1", "2:15", r#"`log.access_file` is 1: write "stdout" or a path"#),
            (
                "access_buffer = 10",
                "2:17",
                r#"`log.access_buffer` is 10: write a size from "4k" to "1g""#,
            ),
        ]
        .map(|(line, at, says)| (format!("[log]\n{line}"), at, says)));
        bad(&[
            ("bind = 9090", "2:8", r#"`admin.bind` is 9090: a port needs an address: write "127.0.0.1:9090""#),
            ("bind = \"of\"", "2:8", r#"`admin.bind` is "of": write an address and port like "127.0.0.1:9090", or "off""#),
            ("bind = false", "2:8", r#"or "off""#),
        ].map(|(line, at, says)| (format!("[admin]\n{line}"), at, says)));
        bad(&[
            ("node = 1", "1:8", "`node` is 1: write a table, `[node]`"),
            ("[[log]]", "1:1", "`log` is a list: write a table, `[log]`"),
            ("admin = []", "1:9", "`admin` is a list: write a table, `[admin]`"),
        ]
        .map(|(text, at, says)| (text.to_owned(), at, says)));
    }

    #[test]
    fn values() {
        let config = good(
            "[node]\nshards = \"0-1,3\"\npin = false\nmax_connections = 5\ndrain_timeout = \"0s\"\n\
             receive_buffers = 32768\nbuffer_memory = 65536\nresolve_interval = \"1m\"\nbusy_poll_usec = 50\n\
             [log]\nlevel = \"debug\"\nformat = \"json\"\naccess = \"combined\"\n\
             access_file = \"/tmp/a\"\naccess_buffer = \"4k\"\n[admin]\nbind = \"off\"",
        );
        let Node { shards, pin, max_connections, drain_timeout, .. } = config.node;
        assert_eq!((shards, pin), (Shards::Cpus(vec![0, 1, 3]), false));
        assert_eq!((max_connections, drain_timeout), (5, Duration::ZERO));
        assert_eq!((config.node.receive_buffers, config.node.buffer_memory), (32_768, 65_536));
        assert_eq!(config.node.resolve_interval, Duration::from_secs(60));
        assert_eq!(config.node.busy_poll, Duration::from_micros(50));
        assert_eq!((config.log.level, config.log.format), (Level::Debug, LogFormat::Json));
        assert_eq!(config.log.access, Some(AccessLogFormat::Combined));
        assert_eq!(config.log.access_file, LogTarget::File("/tmp/a".into()));
        assert_eq!((config.log.access_buffer, config.admin), (4096, None));
        assert_eq!(good("[node]\nshards = 2").node.shards, Shards::Count(2));
        assert_eq!(good("admin = { bind = \"[::1]:1\" }").admin, "[::1]:1".parse().ok());
    }
}
