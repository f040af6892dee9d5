use std::time::Duration;

use crate::control::config::tests::{bad, good};
use crate::ha::config::{Tracked, Vip};
use crate::protocol::vrrp::{Auth, Version};

/// A [vrrp.V] with these keys from line 2 on, the required ones behind them.
fn router(keys: &str) -> String {
    let required = [
        ("interface", "interface = \"eth0\""),
        ("virtual_router_id", "virtual_router_id = 7"),
        ("addresses", "addresses = [\"192.0.2.1\"]"),
    ];
    let has = |key: &str| keys.lines().any(|line| line.split(' ').next() == Some(key));
    let missing: Vec<_> =
        required.iter().filter(|(key, _)| !has(key)).map(|(_, line)| *line).collect();
    format!("[vrrp.V]\n{keys}\n{}\n", missing.join("\n"))
}

#[test]
fn problems_of_an_instance() {
    bad(&[
        ("interface = \"much-too-long-a-name\"", "2:13", "write the name of an interface"),
        ("interface = \"\"", "2:13", "write the name of an interface"),
        ("virtual_router_id = 0", "2:21", "write a whole number from 1 to 255"),
        ("priority = 256", "2:12", "write a whole number from 1 to 255"),
        ("version = 4", "2:11", "write a whole number from 2 to 3"),
        (
            "advertise = \"15ms\"",
            "2:13",
            "is 15ms: write \"10ms\" to \"40950ms\", in steps of 10 ms",
        ),
        ("version = 2\nadvertise = \"100ms\"", "3:13", "version 2 counts in seconds"),
        ("addresses = []", "1:1", "is missing: write a list like"),
        ("addresses = [\"192.0.2.1/33\"]", "2:14", "write a list like"),
        ("addresses = [\"192.0.2.1/0\"]", "2:14", "write a list like"),
        ("addresses = [\"224.0.0.1\"]", "2:14", "write a list like"),
        ("addresses = [\"192.0.2.1 dev\"]", "2:14", "write a list like"),
        ("addresses = [\"192.0.2.1\", \"192.0.2.1/24\"]", "2:27", "names 192.0.2.1 a second time"),
        ("addresses = [\"192.0.2.1\", \"2001:db8::1\"]", "2:13", "mixes IPv4 and IPv6"),
        ("version = 2\naddresses = [\"fe80::1\"]", "3:13", "need `version = 3`"),
        ("source_address = \"fe80::1\"", "2:18", "write an address like \"192.168.1.2\""),
        ("unicast_peers = [\"peer\"]", "2:18", "write an address like"),
        ("auth_pass = \"secret\"", "2:13", "is of version 2 only"),
        ("version = 2\nauth_pass = \"ninechars\"", "3:13", "write 1 to 8 characters"),
        ("auth_hmac_keys = [\"1:00\"]", "2:19", "is no key"),
        ("lease = \"1500ms\"", "2:9", "write whole seconds"),
        ("lease = \"0s\"", "2:9", "write whole seconds"),
        ("track_interface = [\"eth1 weight\"]", "2:20", "write a list like"),
        ("track_interface = [\"eth1 weight 254\"]", "2:20", "write a list like"),
        ("track_interface = [\"eth1 quorum 2\"]", "2:20", "write a list like"),
        (
            "track_script = [\"nope\"]",
            "2:17",
            "there is no such [vrrp_script.NAME] (there are: there is none)",
        ),
        ("track_upstream = [\"nope\"]", "2:19", "there is no such [upstream.NAME]"),
        ("track_file = [\"relative\"]", "2:15", "is no path from the root"),
        (
            "notify = \"/bin/echo hello\"",
            "2:10",
            "is no command: write the program and its arguments",
        ),
        ("notify_webhook = \"ftp://a/\"", "2:18", "write one like"),
        ("notify_webhook = \"http://a:0/\"", "2:18", "write one like"),
        ("notify_webhook = \"http://me@a/\"", "2:18", "write one like"),
        ("notify_webhook = \"https://[::1/\"", "2:18", "write one like"),
        ("notify_webhook = \"https://a/ b\"", "2:18", "write one like"),
        ("notify_webhook_ca = \"/a.pem\"", "1:1", "notify_webhook` is missing"),
        ("notify_webhook = \"http://a/\"\nnotify_webhook_ca = \"/a.pem\"", "2:18", "is not https"),
        ("state = \"MASTERS\"", "2:9", "did you mean \"master\"?"),
        ("heartbeat_interfaces = [\"a\", \"b\", \"c\", \"d\"]", "2:40", "is one too many"),
    ]
    .map(|(keys, at, says)| (router(keys), at, says)));
}

#[test]
fn problems_between_tables() {
    let two = format!(
        "{}{}",
        router(""),
        router("addresses = [\"192.0.2.2\"]").replace("vrrp.V", "vrrp.W")
    );
    let vmacs = format!(
        "{}{}",
        router("use_vmac = true"),
        router("use_vmac = true\ninterface = \"eth1\"\naddresses = [\"192.0.2.2\"]")
            .replace("vrrp.V", "vrrp.W")
    );
    good(&vmacs.replacen("use_vmac = true", "", 1));
    bad(&[
        (vmacs.as_str(), "6:7", "has `use_vmac` and the virtual_router_id of `vrrp.V`"),
        (two.as_str(), "6:7", "has the interface and virtual_router_id of `vrrp.V`"),
        (
            &two.replacen("= 7", "= 8", 1).replace(".2.2\"", ".2.1\""),
            "6:7",
            "has the address 192.0.2.1",
        ),
        (
            &format!("{}[vrrp_sync_group.G]\ngroup = [\"V\"]", router("")),
            "6:1",
            "needs two members",
        ),
        (
            &format!("{}[vrrp_sync_group.G]\ngroup = [\"X\"]", router("")),
            "7:10",
            "there is no such [vrrp.NAME]",
        ),
        ("[vrrp_script.s]\nscript = \"relative\"", "2:10", "is no command"),
        (
            "[vrrp_script.s]\nscript = \"/bin/true\"\nuser = \"no such\"",
            "3:8",
            "there is no such user",
        ),
        ("[vrrp.\"a b\"]", "1:7", "has a name that cannot stand unquoted"),
    ]);
}

#[test]
fn values() {
    let text = router(
        "version = 2\nauth_pass = \"12345678\"\npreempt = false\nlease = \"off\"\n\
         addresses = [\"192.0.2.1/24 dev eth1 label eth1:v\", \"192.0.2.2\"]\n\
         track_script = [\"s\", \"s weight 5\"]\ntrack_interface = [\"eth1 weight 0\"]",
    );
    let script =
        "[vrrp_script.s]\nscript = [\"/bin/true\", \"-x\"]\nweight = -3\ninterval = \"3s\"";
    let ha = good(&format!("{text}{script}")).ha;
    let [one] = ha.instances.as_slice() else { panic!("one instance") };
    assert_eq!((one.version, one.preempt, one.lease), (Version::V2, false, None));
    assert_eq!(one.interval.duration(), Duration::from_secs(1));
    assert!(matches!(one.auth, Auth::Pass(_)));
    let vip = |address: &str, prefix, device: Option<&str>, label: Option<&str>| Vip {
        address: address.parse().expect("a literal"),
        prefix,
        device: device.map(str::to_owned),
        label: label.map(str::to_owned),
    };
    let expected =
        [vip("192.0.2.1", 24, Some("eth1"), Some("eth1:v")), vip("192.0.2.2", 32, None, None)];
    assert_eq!(one.addresses, expected);
    let tracks: Vec<_> = one.tracks.iter().map(|track| (&track.what, track.weight)).collect();
    let interface = Tracked::Interface("eth1".into());
    let script = Tracked::Script(0);
    assert_eq!(tracks, [(&interface, None), (&script, Some(-3)), (&script, Some(5))]);
    assert_eq!(ha.scripts[0].timeout, Duration::from_secs(3));
    let six = good(&router("addresses = [\"2001:db8::1\", \"fe80::1/64\"]"));
    assert_eq!(six.ha.instances[0].addresses[0], vip("fe80::1", 64, None, None));
    let socket = six.admin_socket.unwrap();
    assert_eq!(socket.path, std::path::Path::new("/run/ringgate/admin.sock"));
    assert!(socket.required && !good("").admin_socket.unwrap().required);
    assert_eq!(good("[admin]\nsocket = \"off\"").admin_socket, None);
    let warned = good(&router("addresses = [\"2001:db8::1\"]"));
    assert!(warned.warnings[0].contains("no link-local address"), "{:?}", warned.warnings);
}
