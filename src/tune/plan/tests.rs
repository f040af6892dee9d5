use std::collections::BTreeMap;

use super::*;
use crate::tune::tests::FakeRoot;
use crate::tune::topology::tests::two_nodes;

fn config(profile: &str) -> Config {
    Config { profiles: vec![profile.to_owned()], ports: vec![80, 50_000], ..Config::default() }
}

fn look(root: &FakeRoot, config: &Config) -> Plan {
    plan(config, &root.machine(), Process::Other)
}

fn item<'p>(plan: &'p Plan, key: &str) -> &'p Item {
    plan.items.iter().find(|item| item.key == key).unwrap_or_else(|| panic!("no {key}"))
}

#[test]
fn each_kind_of_verdict() {
    let root = FakeRoot::small_machine("plan");
    root.put("/etc/sysctl.conf", "net.core.somaxconn = 1024\n");
    let plan = look(&root, &config("edge"));
    let change = item(&plan, "net.core.somaxconn");
    assert_eq!((change.status, change.to.as_deref()), (Status::Change, Some("65535")));
    assert_eq!(change.also_set_by[0].by, "/etc/sysctl.conf:1");
    assert_eq!(change.undo, "sysctl -w net.core.somaxconn='4096'");
    assert_eq!(item(&plan, "net.ipv4.tcp_rmem").status, Status::Beyond);
    let reserved = item(&plan, "net.ipv4.ip_local_reserved_ports");
    assert_eq!(reserved.to.as_deref(), Some("80,50000"));
    let range = item(&plan, "net.ipv4.ip_local_port_range");
    assert_eq!(range.to.as_deref(), Some("10240 65535"));
    let missing = item(&plan, "kernel.numa_balancing");
    assert_eq!(missing.status, Status::NotApplicable);
    assert!(missing.reason.as_ref().unwrap().contains("does not have it"));
    let thp = item(&plan, "transparent_hugepage");
    assert_eq!((thp.now.as_deref(), thp.to.as_deref()), (Some("always"), Some("madvise")));
    assert_eq!(item(&plan, "limit.memlock").scope, Scope::Process);
}

#[test]
fn a_namespace_of_its_own_leaves_the_machine_alone() {
    let root = FakeRoot::small_machine("plan-ns");
    std::fs::remove_file(root.machine().path("/proc/sys/net/core/netdev_max_backlog")).unwrap();
    let plan = look(&root, &config("edge"));
    for key in ["vm.swappiness", "net.core.netdev_max_backlog", "transparent_hugepage"] {
        assert_eq!(item(&plan, key).status, Status::NotApplicable, "{key}");
    }
    assert_eq!(item(&plan, "net.core.somaxconn").status, Status::Change);
}

#[test]
fn a_namespace_of_its_own_leaves_interrupts_alone() {
    let root = two_nodes("plan-ns-irq");
    let interrupts = |plan: &Plan| {
        let of = |item: &&Item| item.setting == "nic.irq_affinity";
        plan.items.iter().filter(of).count()
    };
    assert!(interrupts(&look(&root, &config("edge"))) > 0);
    std::fs::remove_file(root.machine().path("/proc/sys/net/core/netdev_max_backlog")).unwrap();
    assert_eq!(interrupts(&look(&root, &config("edge"))), 0);
}

#[test]
fn read_only_values_do_not_apply() {
    use std::os::unix::fs::PermissionsExt as _;
    let root = FakeRoot::small_machine("plan-ro");
    let path = root.machine().path("/proc/sys/net/core/somaxconn");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o444)).unwrap();
    assert_eq!(
        item(&look(&root, &config("edge")), "net.core.somaxconn").status,
        Status::NotApplicable
    );
}

#[test]
fn profiles_combine_and_keys_are_overridden() {
    let root = FakeRoot::small_machine("plan-set");
    root.put("/proc/sys/net/ipv4/conf/all/rp_filter", "1\n");
    root.put("/proc/sys/net/ipv4/tcp_keepalive_time", "7200\n");
    let two = Config { profiles: vec!["proxy".into(), "director".into()], ..Config::default() };
    assert_eq!(item(&look(&root, &two), "net.ipv4.conf.all.rp_filter").to.as_deref(), Some("0"));
    let edge = look(&root, &config("edge"));
    assert_eq!(item(&edge, "net.ipv4.conf.all.rp_filter").to.as_deref(), Some("2"));
    let set = |key: &str, value: Option<&str>| (key.to_owned(), value.map(str::to_owned));
    let set: BTreeMap<_, _> = [
        set("net.core.somaxconn", Some("1024")),
        set("vm.swappiness", None),
        set("net.ipv4.tcp_keepalive_time", Some("600")),
        set("net.ipv4.conf.*.rp_filter", Some("1")),
        set("kernel.none", Some("1")),
    ]
    .into();
    let config = Config { set, ..config("edge") };
    let plan = look(&root, &config);
    assert_eq!(item(&plan, "net.core.somaxconn").status, Status::Beyond);
    assert!(!plan.items.iter().any(|item| item.key == "vm.swappiness"));
    assert_eq!(item(&plan, "net.ipv4.tcp_keepalive_time").to.as_deref(), Some("600"));
    assert_eq!(item(&plan, "net.ipv4.conf.all.rp_filter").status, Status::Holds);
    assert_eq!(item(&plan, "kernel.none").status, Status::NotApplicable);
    let forced = Config { force: vec!["net.core.somaxconn".into()], ..config };
    assert_eq!(item(&look(&root, &forced), "net.core.somaxconn").to.as_deref(), Some("1024"));
}

#[test]
fn danger_needs_a_name() {
    let root = FakeRoot::small_machine("plan-danger");
    root.put("/proc/sys/kernel/io_uring_disabled", "2\n");
    root.put("/proc/sys/net/ipv4/conf/all/rp_filter", "1\n");
    root.put("/proc/sys/net/ipv4/ip_forward", "1\n");
    let plan = look(&root, &config("edge"));
    for key in ["kernel.io_uring_disabled", "net.ipv4.conf.all.rp_filter"] {
        let refused = item(&plan, key);
        assert_eq!(refused.status, Status::Refused, "{key}");
        assert!(refused.reason.as_ref().unwrap().contains("allow = ["), "{key}");
    }
    let allow = vec!["kernel.io_uring_disabled".into(), "net.ipv4.conf.*.rp_filter".into()];
    let plan = look(&root, &Config { allow, ..config("edge") });
    for key in ["kernel.io_uring_disabled", "net.ipv4.conf.all.rp_filter"] {
        assert_eq!(item(&plan, key).status, Status::Change, "{key}");
    }
}

#[test]
fn network_interfaces_get_queues_interrupts_and_rings() {
    let root = two_nodes("plan-nic");
    root.put("/ethtool/eth0/rx_ring", "512\n");
    root.put("/ethtool/eth0/rx_ring_max", "1024\n");
    root.put("/ethtool/eth0/channels", "4\n");
    root.put("/ethtool/eth0/lro", "1\n");
    let plan = look(&root, &config("edge"));
    assert_eq!(plan.placement.shards, [2, 6, 3, 7]);
    let to = |key: &str| item(&plan, key).to.as_deref();
    assert_eq!(to("nic.eth0.irq41.irq_affinity"), Some("6"));
    assert_eq!(to("nic.eth0.tx-3.xps_cpus"), Some("80"));
    assert_eq!(item(&plan, "nic.eth0.rx-0.rps_cpus").status, Status::NotApplicable);
    assert_eq!(to("nic.eth0.lro"), Some("0"));
    assert_eq!(item(&plan, "nic.eth0.channels").status, Status::Holds);
    let ring = item(&plan, "nic.eth0.rx_ring");
    assert_eq!((ring.status, ring.to.as_deref()), (Status::Refused, Some("1024")));
    assert_eq!(item(&plan, "nic.eth0.tx_ring").status, Status::NotApplicable);
    let allowed = Config { allow: vec!["nic.rx_ring".into()], ..config("edge") };
    let plan = look(&root, &allowed);
    let ring = item(&plan, "nic.eth0.rx_ring");
    assert_eq!((ring.status, ring.to.as_deref()), (Status::Change, Some("1024")));
    assert_eq!(plan.items.last().map(|item| item.setting.as_str()), Some("nic.channels"));
}

#[test]
fn ports_are_reset_one_after_the_other() {
    let root = two_nodes("plan-ports");
    root.put("/sys/class/net/eth1/mtu", "1500\n");
    let interfaces = vec!["eth0".to_owned(), "eth1".to_owned()];
    let plan = look(&root, &Config { interfaces, ..config("edge") });
    let last: Vec<&str> = plan.items.iter().rev().take(6).map(|item| item.key.as_str()).collect();
    assert!(last[..3].iter().all(|key| key.starts_with("nic.eth1.")), "{last:?}");
    assert!(last[3..].iter().all(|key| key.starts_with("nic.eth0.")), "{last:?}");
}

#[test]
fn boot_parameters_are_advice() {
    let root = FakeRoot::small_machine("plan-boot");
    let plan = look(&root, &config("director"));
    let skew = item(&plan, "boot.skew_tick");
    assert_eq!(
        (skew.status, skew.reason.as_deref()),
        (Status::Advice, Some("boot with skew_tick=1"))
    );
    assert_eq!(plan.kernel_parameters(), ["skew_tick=1"]);
    assert_eq!(item(&plan, "boot.mitigations").status, Status::Holds);
    assert_eq!(item(&plan, "boot.nohz_full").status, Status::NotApplicable);
    root.put("/proc/cmdline", "quiet skew_tick=1\n");
    assert_eq!(item(&look(&root, &config("director")), "boot.skew_tick").status, Status::Holds);
}
