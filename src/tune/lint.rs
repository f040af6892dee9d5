//! What a foreign sysctl.conf(5) really does: traps, lines that undo each other, ports that are swallowed.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::machine::sysctl_path;
use super::owners::lines;
use super::setting::{self, Setting};
use super::wanted::{Amount, Judged, Size, Wanted, parse_ports};

/// What there is to say about a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The line, from 1.
    pub line: usize,
    /// How bad it is.
    pub level: Level,
    /// The key as written.
    pub key: String,
    /// The value as written.
    pub value: String,
    /// What is wrong.
    pub says: String,
    /// What to write instead.
    pub instead: String,
    /// Where that is documented.
    pub source: String,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// It does harm, or does not do what people set it for.
    Trap,
    /// Worth knowing.
    Note,
}

/// Ports from which programs that listen are usually found, up to the kernel's default range.
const USUAL_LISTENERS: [(u16, &str); 14] = [
    (1433, "SQL Server"),
    (2049, "NFS"),
    (3306, "MySQL"),
    (5432, "PostgreSQL"),
    (5672, "AMQP"),
    (6379, "Redis"),
    (8080, "HTTP"),
    (8443, "HTTPS"),
    (9000, "FastCGI"),
    (9090, "Prometheus and ringgate's admin endpoint"),
    (9200, "Elasticsearch"),
    (11211, "memcached"),
    (15672, "RabbitMQ's page"),
    (27017, "MongoDB"),
];

/// Looks at a file; `ports` are those that ringgate listens on.
#[must_use]
pub fn lint(text: &str, ports: &[u16]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut seen: BTreeMap<String, (usize, String)> = BTreeMap::new();
    for line in lines(text) {
        let line = match line {
            Ok(line) => line,
            Err(number) => {
                findings.push(unreadable(number));
                continue;
            }
        };
        let key = dotted(line.key);
        let mut find = |level, says: String, instead: &str, source: &str| {
            findings.push(Finding {
                line: line.number,
                level,
                key: line.key.to_owned(),
                value: line.value.to_owned(),
                says,
                instead: instead.to_owned(),
                source: source.to_owned(),
            });
        };
        if sysctl_path(line.key).is_none() && !line.key.contains('*') {
            find(
                Level::Trap,
                "is no name of a sysctl".to_owned(),
                "a name like net.core.somaxconn",
                "sysctl.d(5)",
            );
            continue;
        }
        for trap in setting::traps().iter().filter(|t| t.concerns(&key) && t.when.holds(line.value))
        {
            let note = trap.key == "net.ipv4.tcp_tw_reuse" || trap.instead.starts_with("fine ");
            let level = if note { Level::Note } else { Level::Trap };
            find(level, trap.says.clone(), &trap.instead, &trap.source);
        }
        if key == "net.ipv4.ip_local_port_range" {
            if let Some((says, instead)) = swallowed(line.value, text, ports) {
                find(Level::Trap, says, &instead, "ip-sysctl.rst, ip_local_reserved_ports");
            }
        } else if let Some((says, instead)) =
            setting::known(&key).and_then(|s| weaker(s, line.value))
        {
            find(Level::Note, says, &instead, "tuning/ of ringgate");
        }
        if let Some((before, value)) = seen.insert(key, (line.number, line.value.to_owned()))
            && value != line.value
        {
            let says = format!("overrides line {before}, which says {value}");
            find(Level::Trap, says, "one line for each key", "sysctl.d(5)");
        }
    }
    findings.sort_by_key(|finding| (finding.line, finding.level));
    findings
}

fn unreadable(line: usize) -> Finding {
    Finding {
        line,
        level: Level::Trap,
        key: String::new(),
        value: String::new(),
        says: "is no assignment: sysctl stops here with an error".to_owned(),
        instead: "KEY = VALUE, or # before a comment".to_owned(),
        source: "sysctl.conf(5)".to_owned(),
    }
}

/// `net/ipv4/conf/eth0.1/rp_filter` as `net.ipv4.conf.eth0/1.rp_filter`.
fn dotted(key: &str) -> String {
    let slashed = key.find(['.', '/']).is_some_and(|at| key.as_bytes().get(at) == Some(&b'/'));
    let swap = |c| match c {
        '/' => '.',
        '.' => '/',
        c => c,
    };
    if slashed { key.chars().map(swap).collect() } else { key.to_owned() }
}

/// Which listeners a range of local ports takes in that the file does not reserve.
fn swallowed(value: &str, text: &str, ports: &[u16]) -> Option<(String, String)> {
    let mut numbers = value.split_whitespace().map(str::parse::<u16>);
    let (Some(Ok(low)), Some(Ok(high)), None) = (numbers.next(), numbers.next(), numbers.next())
    else {
        let says = "is not two port numbers: the kernel refuses it".to_owned();
        return Some((says, "net.ipv4.ip_local_port_range = 10240 65535".to_owned()));
    };
    let mut reserved = BTreeSet::new();
    for line in lines(text).flatten() {
        if dotted(line.key) == "net.ipv4.ip_local_reserved_ports" {
            reserved = parse_ports(line.value).unwrap_or_default();
        }
    }
    let taken = |port: &u16| (low..=high).contains(port) && !reserved.contains(port);
    let ours: Vec<String> = ports.iter().filter(|port| taken(port)).map(u16::to_string).collect();
    let usual = USUAL_LISTENERS.iter().filter(|(port, _)| taken(port));
    let usual: Vec<String> = usual.map(|(port, name)| format!("{port} ({name})")).collect();
    if ours.is_empty() && (usual.is_empty() || low >= 10_000) {
        return None;
    }
    let whose = if ours.is_empty() { usual } else { ours };
    let says = format!(
        "outgoing connections may take ports that programs listen on, which then fail to start with \
         EADDRINUSE: {}",
        whose.join(", ")
    );
    let instead = "10240 65535, and net.ipv4.ip_local_reserved_ports with the listeners' ports";
    Some((says, instead.to_owned()))
}

/// A value that is less than the checklist wants.
fn weaker(setting: &Setting, value: &str) -> Option<(String, String)> {
    // Amounts that grow with the machine are compared with the smallest.
    let size = Size { cpus: 1, memory_kib: 0 };
    let wanted = &setting.wanted;
    let bounded = matches!(wanted, Wanted::AtLeast(Amount::Number(_)) | Wanted::EachAtLeast(_));
    match wanted.judge(value, size, &[], false) {
        Judged::Becomes(to) if bounded => Some((
            format!("less than profile {} wants: {}", setting.profiles.first()?, setting.why),
            to,
        )),
        Judged::Strange => {
            Some(("is not a value this key takes".to_owned(), wanted.show(size, &[])))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn said(text: &str) -> Vec<String> {
        let show = |f: &Finding| format!("{}:{}: {} => {}", f.line, f.key, f.says, f.instead);
        lint(text, &[8443, 50_000]).iter().map(show).collect()
    }

    #[test]
    fn the_traps_of_copied_files_are_named() {
        for (text, says) in [
            ("net.ipv4.tcp_tw_recycle = 1", "removed in Linux 4.12"),
            ("net/ipv4/tcp_tw_recycle=0", "removed in Linux 4.12"),
            ("net.ipv4.tcp_fin_timeout = 30", "does not shorten TIME_WAIT"),
            ("net.ipv4.ip_local_port_range = 1024 65535", "8443, 50000"),
            ("net.ipv4.ip_local_port_range = 1024", "is not two port numbers"),
            ("net.ipv4.tcp_mem = 786432 1048576 1572864", "is in pages, not bytes"),
            ("net.ipv4.tcp_max_tw_buckets = 5000", "destroys TIME_WAIT sockets early"),
            ("net.core.somaxconn = 128", "less than the kernel's default"),
            ("net.core.somaxconn = 8192", "less than profile edge wants"),
            ("net.ipv4.conf.eth0.rp_filter = 1", "strict"),
            ("vm.swappiness = 10\nvm.swappiness = 0", "overrides line 1"),
            ("rubbish", "is no assignment"),
            ("rub bish = 1", "is no name of a sysctl"),
            ("net.ipv4.tcp_rmem = 4096 87380", "is not a value this key takes"),
        ] {
            let said = said(text);
            assert!(said.iter().any(|said| said.contains(says)), "{text}: {said:?}");
        }
    }

    #[test]
    fn good_files_pass() {
        let text = "# comment\n; another\n-net.core.somaxconn = 65535\nnet.ipv4.tcp_syncookies=1\n\
                    net.ipv4.ip_local_reserved_ports = 8080,8443,50000\n\
                    net.ipv4.ip_local_port_range = 10240 65535\nkernel.unknown = 1\n";
        assert_eq!(said(text), Vec::<String>::new());
    }

    #[test]
    fn levels() {
        let level = |text: &str| lint(text, &[]).first().map(|finding| finding.level);
        assert_eq!(level("net.ipv4.tcp_tw_reuse = 1"), Some(Level::Note));
        assert_eq!(level("net.ipv4.tcp_tw_recycle = 1"), Some(Level::Trap));
        assert_eq!(level("net.core.somaxconn = 8192"), Some(Level::Note));
    }

    proptest! {
        #[test]
        fn any_text_is_judged(text in "(.|\n|=){0,200}") {
            let _ = lint(&text, &[80]);
        }

        #[test]
        fn any_value_of_any_key_is_judged(value in ".{0,40}", pick in 0usize..100) {
            let settings = setting::settings();
            let key = &settings[pick % settings.len()].name;
            let _ = lint(&format!("{key} = {value}\n"), &[80]);
        }
    }
}
