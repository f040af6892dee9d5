use super::*;
use crate::control::config::tests::{bad, good};

const SERVER: &str = "[upstream.a]\nservers = [{ address = \"1.2.3.4:1\" }]\n";

fn of(check: &str) -> Check {
    let config = good(&format!("{SERVER}check = {{ {check} }}"));
    config.checks.into_iter().flatten().next().expect("a check").base.check
}

#[test]
fn defaults_and_kinds() {
    let check = of("tcp = true");
    assert_eq!((check.rise, check.fall, check.jitter), (2, 3, 10));
    assert_eq!((check.interval, check.timeout), (Duration::from_secs(2), Duration::from_secs(2)));
    assert_eq!(
        (check.kind.name(), check.warm_up, check.retry_interval),
        ("tcp", Duration::ZERO, None)
    );
    let check = of(
        "http = \"/h?x=1\", status = [200, \"300-399\"], body = \"ok\", headers = { X-A = \"b\" }",
    );
    let Kind::Http(http) = check.kind else { panic!("http") };
    assert_eq!(http.status, [200..=200, 300..=399]);
    assert_eq!((http.method.as_str(), http.max_body, http.headers.len()), ("GET", 65536, 1));
    assert_eq!(of("https = \"/\"").kind.name(), "https");
    assert_eq!(of("tls = true, verify = false").kind.name(), "tls");
    let Kind::Udp(udp) = of("udp_hex = \"00 ff\", reply = \"x\"").kind else { panic!("udp") };
    assert!(udp.payload == [0, 255] && udp.require_reply);
    let Kind::Exec(exec) = of("exec = [\"/bin/true\", \"$address\"]").kind else { panic!("exec") };
    assert_eq!(exec.command, ["/bin/true", "$address"]);
}

#[test]
fn keepalived_words() {
    let check = of("tcp = true, delay_loop = \"6s\", connect_timeout = \"3s\", retry = 3, \
                    delay_before_retry = \"1s\", warmup = \"2s\", alpha = true");
    assert_eq!((check.interval, check.timeout), (Duration::from_secs(6), Duration::from_secs(3)));
    assert_eq!((check.fall, check.retry_interval), (4, Some(Duration::from_secs(1))));
    assert!(check.start_down && check.warm_up == Duration::from_secs(2));
}

#[test]
fn servers_have_a_port_and_address_of_their_own() {
    let config = good(
        "[upstream.a]\ncheck = { tcp = true, port = 9 }\nservers = [{ address = \"1.2.3.4:1\" }, \
         { address = \"1.2.3.4:2\", check_port = 10, check_address = \"::1\" }]",
    );
    let check = config.checks[0].as_ref().expect("a check");
    let own = |index: usize| (check.servers[index].port, check.servers[index].address);
    assert_eq!(own(0), (Some(9), None));
    assert_eq!(own(1), (Some(10), Some("::1".parse().expect("an address"))));
}

#[test]
fn problems() {
    bad(&[
        ("check = true", "3:9", "write a table like { http ="),
        ("check = {}", "3:9", "`upstream.a.check` says nothing of what to do: write one of"),
        ("check = { tcp = false }", "3:17", "write true"),
        ("check = { tcp = true, http = \"/\" }", "3:30", "is a check besides `tcp`"),
        ("check = { http = \"healthz\" }", "3:18", "write a path like"),
        ("check = { http = \"/a b\" }", "3:18", "write a path like"),
        ("check = { http = \"/\\r\\nX: y\" }", "3:18", "write a path like"),
        ("check = { http = \"/\", status = [100] }", "3:33", "from 200 to 599"),
        ("check = { http = \"/\", status = \"399-200\" }", "3:32", "from 200 to 599"),
        ("check = { http = \"/\", status = [] }", "3:32", "is empty"),
        (
            "check = { http = \"/\", body = \"(\" }",
            "3:30",
            "not a regular expression: unclosed group",
        ),
        ("check = { http = \"/\", method = \"G T\" }", "3:32", "write a method like"),
        ("check = { http = \"/\", host = \"a\\nb\" }", "3:30", "write a host like"),
        ("check = { http = \"/\", max_body = \"2m\" }", "3:34", "write a size from 1 to"),
        ("check = { http = \"/\", headers = { X = 1 } }", "3:39", "write text"),
        (
            "check = { http = \"/\", headers = { Connection = \"x\" } }",
            "3:48",
            "is set by the check",
        ),
        ("check = { http = \"/\", verify = false }", "3:32", "goes with `https` or `tls` only"),
        ("check = { tcp = true, body = \"x\" }", "3:30", "goes with `http` or `https` only"),
        ("check = { tcp = true, user = \"root\" }", "3:30", "goes with `exec` only"),
        ("check = { tcp = true, interval = \"0s\" }", "3:34", "write a time above zero"),
        ("check = { tcp = true, fall = 0 }", "3:30", "from 1 to 1000"),
        ("check = { tcp = true, fall = 2, retry = 2 }", "3:41", "says the same as `fall`"),
        (
            "check = { tcp = true, interval = \"1s\", delay_loop = \"1s\" }",
            "3:53",
            "says the same as `interval`",
        ),
        ("check = { tcp = true, port = 0 }", "3:30", "from 1 to 65535"),
        ("check = { tcp = true, address = \"x\" }", "3:33", "write an IP address"),
        ("check = { udp_hex = \"0g\" }", "3:21", "write hexadecimal digits"),
        ("check = { exec = \"true\" }", "3:18", "is no command"),
        ("check = { exec = [\"/bin/true\"], user = \"nobody-there\" }", "3:40", "no such user"),
        ("outlier = {}", "3:11", "finds nothing"),
        ("outlier = { latency_factor = 1 }", "3:30", "write 2 or more"),
        ("outlier = { error_percent = 101 }", "3:29", "from 0 to 100"),
        ("breaker = { max_pending = -1 }", "3:27", "write a whole number"),
        ("panic_threshold = 101", "3:19", "from 0 to 100"),
        ("slow_start = 5", "3:14", "write \"5s\" for seconds"),
    ]
    .map(|(keys, at, says)| (format!("{SERVER}{keys}"), at, says)));
    bad(&[(
        "[upstream.a]\nservers = [{ address = \"1.2.3.4:1\", check_port = 2 }]",
        "2:50",
        "needs a `check`",
    )]);
}
