//! After everything that needs them was done, privileges are given up: user, capabilities, the way back, files,
//! system calls. All of it before the first thread is started, so that every thread is in the same place. What
//! a kernel does not have is left out, and said.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::control::config::{Config, LogTarget, Sandbox};
use crate::control::logger::Logger;
use crate::health::check::Kind;
use crate::sys::landlock::{self, Files};
use crate::sys::limits::{self, Resource};
use crate::sys::privileges::{self, Capability};
use crate::sys::{process, seccomp};

/// Locked memory that rings and their buffers may need once this process is not root any more.
const LOCKED_MEMORY: u64 = 1 << 30;
/// Ports below need a capability unless the kernel says otherwise.
const LOW_PORTS: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
/// What programs and libraries are read from. Permissions of files hold besides.
const READABLE: [&str; 12] = [
    "/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/opt", "/nix", "/etc", "/proc", "/sys",
    "/run",
];
/// What is written to: devices, and settings of interfaces, for which CAP_NET_ADMIN is asked besides.
const WRITABLE: [&str; 2] = ["/dev", "/proc/sys/net"];

/// What came of it, for the status page.
static REPORT: OnceLock<Report> = OnceLock::new();

#[derive(Debug, Default)]
struct Report {
    user: Option<String>,
    capabilities: Option<Vec<&'static str>>,
    no_new_privileges: bool,
    dumpable: bool,
    landlock: String,
    seccomp: String,
}

/// For the status page.
#[must_use]
pub fn status() -> Value {
    let Some(report) = REPORT.get() else { return Value::Null };
    json!({
        "user": report.user,
        "capabilities": report.capabilities,
        "no_new_privileges": report.no_new_privileges,
        "dumpable": report.dumpable,
        "landlock": report.landlock,
        "seccomp": report.seccomp,
    })
}

/// Gives up what `config` does not need. `inherited`: an earlier process of this line has done so, whose
/// restrictions hold for this one.
///
/// # Errors
/// Text for the operator: `node.user` cannot be had.
pub fn apply(config: &Config, logger: Logger, inherited: bool) -> Result<(), String> {
    let node = &config.node;
    let mut report = Report { dumpable: true, ..Report::default() };
    let confined = is_confined(config);
    if let Some(user) = &node.user {
        become_user(config, user)?;
        report.user = Some(user.name.clone());
    }
    if node.user.is_some() || confined {
        let kept = privileges::keep_only(&needed(config))
            .map_err(|error| format!("cannot give up capabilities: {error}"))?;
        report.capabilities = Some(kept.into_iter().map(Capability::name).collect());
        report.no_new_privileges = privileges::no_new_privileges().is_ok();
        if has_keys(config) {
            report.dumpable = privileges::not_dumpable().is_err();
        }
    }
    let off = "off (node.sandbox)".to_owned();
    (report.landlock, report.seccomp) =
        if confined { confine(config, inherited) } else { (off.clone(), off) };
    if report.user.is_some() {
        warn_of_unreadable(config, logger);
    }
    if report.capabilities.is_some() {
        let kept = report.capabilities.iter().flatten().copied().collect::<Vec<_>>().join(",");
        let fields = [
            ("user", report.user.as_deref().unwrap_or("unchanged")),
            ("capabilities", if kept.is_empty() { "none" } else { &kept }),
            ("landlock", &report.landlock),
            ("seccomp", &report.seccomp),
        ];
        logger.info("privileges given up", &fields);
    }
    let _ = REPORT.set(report);
    Ok(())
}

/// Whether files and system calls are restricted.
#[must_use]
pub fn is_confined(config: &Config) -> bool {
    match config.node.sandbox {
        Sandbox::On => true,
        Sandbox::Off => false,
        Sandbox::Auto => config.node.user.is_some(),
    }
}

fn become_user(config: &Config, user: &process::User) -> Result<(), String> {
    let effective = privileges::effective_user();
    if effective == user.uid {
        return Ok(()); // a successor, or the service manager has done it
    }
    if effective != 0 {
        return Err(format!(
            "cannot become {} (node.user): only root can; start as root, or as that user",
            user.name
        ));
    }
    let scripts =
        config.ha.scripts.iter().filter_map(|script| Some((&script.name, script.user.as_ref()?)));
    for (name, other) in scripts {
        if other.uid != user.uid {
            return Err(format!(
                "vrrp_script.{name}.user is {}: with node.user scripts run as {}; remove one of them",
                other.name, user.name
            ));
        }
    }
    for directory in made_directories(config) {
        let becomes_ours = !directory.exists() || is_of_service(&directory);
        let made = fs::create_dir_all(&directory);
        if becomes_ours && made.is_ok() {
            let _ = chown(&directory, Some(user.uid), Some(user.gid));
        }
    }
    // What it cannot raise shows when a ring cannot be made.
    let _ = limits::raise_to(Resource::LockedMemory, LOCKED_MEMORY);
    privileges::become_user(user.uid, user.gid)
        .map_err(|error| format!("cannot become {} (node.user): {error}", user.name))
}

/// The service manager has made it for this service (systemd.exec(5), `RuntimeDirectory=` and the like): for root, which
/// starts it, at every start.
fn is_of_service(directory: &Path) -> bool {
    let lists = ["RUNTIME_DIRECTORY", "STATE_DIRECTORY", "LOGS_DIRECTORY"].map(std::env::var_os);
    lists.iter().flatten().any(|list| std::env::split_paths(list).any(|path| path == directory))
}

/// Directories in which this process makes files.
fn made_directories(config: &Config) -> Vec<PathBuf> {
    let log = match (&config.log.access, &config.log.access_file) {
        (Some(_), LogTarget::File(path)) => path.parent().map(Path::to_owned),
        _ => None,
    };
    let socket = config.admin_socket.as_ref().and_then(|socket| socket.path.parent());
    let pid_file = config.node.pid_file.as_deref().and_then(Path::parent);
    let paths = [socket.map(Path::to_owned), pid_file.map(Path::to_owned), log];
    paths.into_iter().flatten().filter(|path| !path.as_os_str().is_empty()).collect()
}

/// The capabilities that this configuration needs after the start: for changes at run time, for VRRP, for the
/// director, and for a reload or an upgrade that binds low ports anew.
fn needed(config: &Config) -> Vec<Capability> {
    let mut needed = Vec::new();
    let low = fs::read_to_string(LOW_PORTS).ok().and_then(|text| text.trim().parse().ok());
    let low: u16 = low.unwrap_or(1024);
    let listeners = config.service.listeners.iter().map(|listener| listener.bind);
    if listeners.chain(config.admin).any(|bind| bind.port() < low) {
        needed.push(Capability::NetBindService);
    }
    let (vrrp, director) = (!config.ha.instances.is_empty(), !config.l4.services.is_empty());
    if vrrp || director || config.real_server.is_some() {
        needed.extend([Capability::NetAdmin, Capability::NetRaw]);
    }
    if vrrp && config.ha.realtime.is_some() {
        needed.push(Capability::SysNice);
    }
    if director || vrrp && config.ha.lock_memory {
        needed.push(Capability::IpcLock);
    }
    if director {
        needed.extend([Capability::Bpf, Capability::Perfmon]);
    }
    needed
}

fn has_keys(config: &Config) -> bool {
    config.service.listeners.iter().any(|listener| listener.tls.is_some())
        || config.service.upstreams.iter().any(|upstream| upstream.tls.is_some())
}

/// Files of certificates and keys, as the configuration names them.
fn tls_files(config: &Config) -> Vec<PathBuf> {
    let mut files = crate::control::certificates::files(&config.service, &config.base);
    let traces = config.service.tracing.as_ref();
    let collector = traces.and_then(|traces| traces.settings.tls.as_ref()?.ca.as_ref());
    files.extend(collector.map(|file| config.base.join(&file.path)));
    let webhooks = config.ha.instances.iter().filter_map(|one| one.webhook.as_ref()?.tls.as_ref());
    files.extend(webhooks.filter_map(|trust| Some(config.base.join(trust.ca.as_ref()?))));
    files
}

fn confine(config: &Config, inherited: bool) -> (String, String) {
    if inherited {
        // Each restriction is added to those before; there may be sixteen.
        let text = "as of the process before this one".to_owned();
        return (text.clone(), text);
    }
    let bpf = !config.l4.services.is_empty();
    // First, since it needs calls that the filter leaves out on no kernel that has them.
    let landlock = match restrict_files(config) {
        Ok(version) => format!("in force (version {version})"),
        Err(error) => format!("not in force: {error}"),
    };
    let seccomp = match seccomp::confine_process(bpf) {
        Ok(()) => "in force".to_owned(),
        Err(error) => format!("not in force: {error}"),
    };
    (landlock, seccomp)
}

fn restrict_files(config: &Config) -> std::io::Result<u32> {
    let has_programs = !config.ha.scripts.is_empty()
        || config.ha.instances.iter().any(|instance| instance.notify.is_some())
        || config
            .checks
            .iter()
            .chain(&config.l4_checks)
            .flatten()
            .flat_map(|check| &check.servers)
            .any(|check| matches!(check.kind, Kind::Exec(_)));
    let mut read: Vec<PathBuf> = READABLE.map(PathBuf::from).to_vec();
    if has_programs {
        // What programs read is theirs to know; the permissions of files hold all the same.
        read.push("/".into());
    }
    read.extend(config.file.as_deref().and_then(Path::parent).map(Path::to_owned));
    read.push(config.base.clone());
    read.extend(tls_files(config).iter().filter_map(|path| path.parent().map(Path::to_owned)));
    read.extend(std::env::current_exe().ok().and_then(|path| path.parent().map(Path::to_owned)));
    let called = std::env::args_os().next().map(PathBuf::from);
    read.extend(called.and_then(|path| path.parent().map(Path::to_owned)));
    let mut write: Vec<PathBuf> = WRITABLE.map(PathBuf::from).to_vec();
    write.extend(made_directories(config));
    write.extend(config.node.writable.iter().cloned());
    let here = |path: &PathBuf| match path.as_os_str().is_empty() {
        true => PathBuf::from("."),
        false => path.clone(),
    };
    let (read, write): (Vec<_>, Vec<_>) =
        (read.iter().map(here).collect(), write.iter().map(here).collect());
    let files = Files {
        read: read.iter().map(PathBuf::as_path).collect(),
        write: write.iter().map(PathBuf::as_path).collect(),
    };
    landlock::restrict(&files)
}

/// Replacement of certificates, reload and upgrade read these files as the new user.
fn warn_of_unreadable(config: &Config, logger: Logger) {
    let file = config.file.clone();
    for path in tls_files(config).into_iter().chain(file) {
        if let Err(error) = fs::File::open(&path) {
            let fields = [("file", &*path.to_string_lossy()), ("error", &error.to_string())];
            logger.warn(
                "node.user cannot read this: it cannot be replaced, reloaded or upgraded with \
                 (chgrp it to node.group, chmod 640)",
                &fields,
            );
        }
    }
}
