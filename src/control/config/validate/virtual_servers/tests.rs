use std::time::Duration;

use crate::control::config::tests::{bad, good};
use crate::l4::config::{
    Forward, OnServerDown, Persistence, Protocol, Scheduler, ServiceKey, VirtualServer,
};

/// A virtual server with these keys from line 2 on, the required ones behind them.
fn with(keys: &str) -> String {
    let required = [
        ("address", "address = \"192.0.2.1:80\""),
        ("servers", "servers = [{ address = \"192.0.2.10\" }]"),
    ];
    let has = |key: &str| keys.lines().any(|line| line.split(' ').next() == Some(key));
    let missing: Vec<_> =
        required.iter().filter(|(key, _)| !has(key)).map(|(_, line)| *line).collect();
    format!("[[virtual_server]]\n{keys}\n{}\n", missing.join("\n"))
}

fn one(keys: &str) -> VirtualServer {
    good(&with(keys)).l4.services.remove(0)
}

#[test]
fn problems() {
    let cases = [
        ("address = \"192.0.2.1:0\"", "2:11", "write an address and port like"),
        ("address = \"shop.example:80\"", "2:11", "write an address and port like"),
        ("address = \"0.0.0.0:80\"", "2:11", "write an address and port like"),
        ("address = \"224.0.0.1:80\"", "2:11", "write an address and port like"),
        ("protocol = \"quic\"", "2:12", "write one of \"tcp\", \"udp\", \"sctp\""),
        ("scheduler = \"wrrr\"", "2:13", "did you mean \"wrr\"?"),
        ("scheduler = \"maglev\"", "2:13", "write one of \"rr\", \"wrr\", \"lc\""),
        ("forward = \"nat\"", "2:11", "write one of \"dr\", \"tunnel\""),
        ("tunnel_type = \"gue\"", "1:1", "needs `forward = \"tunnel\"`"),
        ("forward = \"tunnel\"\ntunnel_port = 6080", "1:1", "and `tunnel_type = \"gue\"`"),
        ("one_packet = true", "1:1", "is for `protocol = \"udp\"`"),
        ("persistence_granularity = 24", "1:1", "needs `persistence_timeout`"),
        (
            "persistence_timeout = \"5m\"\npersistence_granularity = \"255.0.255.0\"",
            "3:27",
            "write a length of prefix like 24",
        ),
        (
            "persistence_timeout = \"5m\"\npersistence_granularity = 33",
            "3:27",
            "write a whole number from 1 to 32",
        ),
        ("on_server_down = \"drop\"", "2:18", "write one of \"drain\", \"reschedule\", \"reset\""),
        ("quorum = 0", "2:10", "write a whole number from 1 to"),
        ("quorum = 2\nhysteresis = 2", "1:1", "could never be lost: write less than that"),
        ("sorry_server = \"192.0.2.1\"", "2:16", "is the virtual address itself"),
        ("servers = [{ weight = 1 }]", "2:12", "write an address like"),
        ("servers = [{ address = \"192.0.2.10:80\" }]", "2:24", "packets keep their port"),
        ("servers = [{ address = \"web1\" }]", "2:24", "write an address like"),
        ("servers = [{ address = \"2001:db8::1\" }]", "2:24", "not of the same IP version"),
        ("servers = [{ address = \"192.0.2.1\" }]", "2:24", "is the virtual address itself"),
        (
            "servers = [{ address = \"192.0.2.10\" }, { address = \"::ffff:192.0.2.10\" }]",
            "2:11",
            "has 192.0.2.10 twice",
        ),
        (
            "servers = [{ address = \"192.0.2.10\", uthreshold = 5, lthreshold = 5 }]",
            "2:12",
            "write less than `uthreshold`, which is 5",
        ),
        ("servers = [{ address = \"192.0.2.10\", wieght = 5 }]", "2:38", "did you mean `weight`?"),
    ];
    let full: Vec<_> = cases.iter().map(|(keys, at, says)| (with(keys), *at, *says)).collect();
    bad(&full);
    bad(&[
        ("[[virtual_server]]\nservers = []", "1:1", "`virtual_server[0].address` is missing"),
        ("[[virtual_server]]\naddress = \"192.0.2.1\"", "1:1", "`virtual_server[0].servers` is"),
        (
            &format!("{}{}", with(""), with("")),
            "5:1",
            "is TCP 192.0.2.1:80, as `virtual_server[0]` is",
        ),
    ]);
}

#[test]
fn defaults() {
    let server = one("");
    let key = ServiceKey { protocol: Protocol::Tcp, address: [192, 0, 2, 1].into(), port: 80 };
    assert_eq!(server.key, key);
    assert_eq!((server.scheduler, server.forward), (Scheduler::Wlc, Forward::Dr));
    assert_eq!((server.quorum, server.hysteresis), (1, 0));
    assert_eq!(server.on_server_down, OnServerDown::Reschedule);
    assert!(server.persistence.is_none() && server.sorry_server.is_none());
    let real = &server.servers[0];
    assert_eq!((real.weight, real.uthreshold, real.lthreshold), (1, 0, 0));
}

#[test]
fn values() {
    assert_eq!(one("address = \"192.0.2.1\"").key.port, 0);
    let gue = one("forward = \"tunnel\"\ntunnel_type = \"gue\"\nservers = [{ address = \"::2\" }]");
    assert_eq!(gue.forward, Forward::Gue { port: 6080 });
    assert_eq!(one("forward = \"tunnel\"").forward, Forward::Ipip);
    let prefix = |keys: &str| one(&format!("persistence_timeout = \"5m\"\n{keys}")).persistence;
    let expected = |prefix| Some(Persistence { timeout: Duration::from_secs(300), prefix });
    assert_eq!(prefix(""), expected(32));
    assert_eq!(prefix("persistence_granularity = 24"), expected(24));
    assert_eq!(prefix("persistence_granularity = \"255.255.0.0\""), expected(16));
    let v6 = "address = \"[2001:db8::1]:80\"\nservers = []\npersistence_granularity = 64";
    assert_eq!(prefix(v6), expected(64));
    for (name, scheduler) in Scheduler::ALL {
        assert_eq!(one(&format!("scheduler = \"{name}\"")).scheduler, scheduler);
    }
    assert!(one("protocol = \"udp\"\none_packet = true").one_packet);
}

/// What fits the rest of the file badly is told, and accepted.
#[test]
fn warnings() {
    let listener = "[[listener]]\nname = \"vip\"\nbind = \"192.0.2.1:80\"\n";
    let vrrp =
        "[vrrp.V]\ninterface = \"eth0\"\nvirtual_router_id = 7\naddresses = [\"192.0.2.1/28\"]\n";
    let far = "servers = [{ address = \"192.0.2.10\" }, { address = \"198.51.100.1\" }]";
    let table = [
        (with("") + listener, "the listener \"vip\" is bound to"),
        (with("address = \"192.0.2.1\"") + listener, "the listener \"vip\" is bound to"),
        (with("protocol = \"udp\"") + listener, ""),
        (with("address = \"192.0.2.1:81\"") + listener, ""),
        (with("") + vrrp, ""),
        (with(far) + vrrp, "has the server 198.51.100.1 outside of 192.0.2.0/28"),
        (with(&format!("forward = \"tunnel\"\n{far}")) + vrrp, ""),
        (with("servers = []"), "is empty"),
    ];
    for (text, says) in table {
        let warnings = good(&(text.clone() + "[director]\nseed = \"0123456789abcdef\"\n")).warnings;
        match says {
            "" => assert!(warnings.is_empty(), "{text}\n{warnings:?}"),
            says => assert!(warnings.iter().any(|one| one.contains(says)), "{text}\n{warnings:?}"),
        }
    }
}

/// A director needs no listener.
#[test]
fn without_listener() {
    let config = crate::control::config::parse("t", &with("")).unwrap();
    assert!(config.service.listeners.is_empty() && config.l4.services.len() == 1);
}

const CHECKED: &str = "[[virtual_server]]\naddress = \"192.0.2.1:80\"\n\
                      servers = [{ address = \"192.0.2.10\" }, { address = \"192.0.2.11\", check_port = 81 }]\n";

/// Defaults are keepalived's.
#[test]
fn checks_of_virtual_servers() {
    let config =
        good(&format!("{CHECKED}check = {{ tcp = true, delay_loop = \"6s\", retry = 3 }}\n"));
    let check = config.l4_checks[0].as_ref().unwrap();
    assert_eq!((check.base.check.interval.as_secs(), check.base.check.fall), (6, 4));
    assert_eq!(check.servers[1].port, Some(81));
    assert!(
        good("[[virtual_server]]\naddress = \"192.0.2.1:80\"\nservers = []").l4_checks[0].is_none()
    );
}

#[test]
fn problems_of_checks() {
    bad(&[
        (
            "[[virtual_server]]\naddress = \"192.0.2.1\"\nservers = []\ncheck = { tcp = true }",
            "4:9",
            "needs a `port`",
        ),
        (&format!("{CHECKED}check = {{}}"), "4:9", "says nothing of what to do"),
        (CHECKED, "3:79", "needs a `check` of the virtual server"),
    ]);
}
