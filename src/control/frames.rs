//! The fixtures of `tests/frames`: frames in, verdict and frames out, under tables made of a
//! configuration. They were written down by another implementation (Python's `struct`), checksums
//! included.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;

use serde::Deserialize;

use crate::control::config;
use crate::l4::registry::{Registry, ServerState};
use crate::l4::tables::Neighbour;
use crate::l4::{Director, Frame, Verdict};
use crate::protocol::ethernet::Mac;

/// This host on interface 2, the other director, and the interface that leads to servers.
const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
const PEER: Mac = Mac([2, 0, 0, 0, 0, 0x32]);
const IN: u32 = 2;
const OUT: u32 = 3;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fixture {
    config: String,
    #[serde(default)]
    local: Vec<IpAddr>,
    #[serde(default)]
    inactive: Vec<IpAddr>,
    neighbour: Vec<Known>,
    frame: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    address: IpAddr,
    mac: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    what: String,
    /// Servers that are dead from now on.
    #[serde(default)]
    down: Vec<IpAddr>,
    r#in: String,
    verdict: String,
    out: Option<String>,
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|b| *b != b':').collect();
    let pairs = digits.as_chunks::<2>().0.iter();
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn registry(fixture: &Fixture) -> Registry {
    let config = config::parse("fixture", &fixture.config).unwrap_or_else(|e| panic!("{e}"));
    let mut registry = Registry::new(config.l4, 1);
    registry.set_interfaces(HashMap::from([(IN, vec![OWN])]));
    registry.set_peers([PEER]);
    registry.set_local(fixture.local.iter().copied());
    fixture.inactive.iter().for_each(|address| registry.set_active(*address, false));
    for known in &fixture.neighbour {
        let mac = Mac(bytes(&known.mac).try_into().unwrap());
        let way = Neighbour { mac, source: OWN, ifindex: OUT, vlan: None };
        registry.set_neighbour(known.address, Some(way));
    }
    registry
}

/// The verdict in a word, and what is sent.
fn judge(director: &mut Director, mut bytes: Vec<u8>) -> (String, Option<Vec<u8>>) {
    let before = bytes.clone();
    let length = bytes.len();
    let mut frame = Frame { bytes: &mut bytes, vlan: None, ifindex: IN, length };
    let verdict = director.judge(1_000_000, &mut frame);
    let unchanged = bytes == before;
    let (word, out) = match verdict {
        Verdict::Forward { ifindex: OUT, vlan: None, .. } => ("forward".into(), Some(bytes)),
        Verdict::Encapsulate { ifindex: OUT, vlan: None, skip, .. } => {
            ("encapsulate".into(), Some([director.head(), &bytes[skip..]].concat()))
        }
        Verdict::Reply { ifindex: IN, vlan: None } => {
            ("reply".into(), Some(director.reply().to_vec()))
        }
        Verdict::Pass => ("pass".to_owned(), None),
        Verdict::Local(_) => ("local".into(), None),
        Verdict::Drop(reason) => {
            let name = crate::l4::Reason::ALL[reason.index()].1;
            (format!("drop {name}"), None)
        }
        other => (format!("{other:?}"), None),
    };
    assert!(unchanged || word == "forward", "{word} changed the frame");
    (word, out)
}

#[test]
fn fixtures() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/frames");
    let mut files = 0;
    for entry in std::fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let fixture: Fixture = toml::from_str(&text).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        let mut registry = registry(&fixture);
        let mut director = Director::new(0, registry.tables(), 100);
        for case in &fixture.frame {
            for server in &case.down {
                for service in registry.config().services.clone() {
                    let state = ServerState { up: false, weight: None };
                    registry.set_state(service.key, *server, state);
                }
                director.swap(registry.tables());
            }
            let got = judge(&mut director, bytes(&case.r#in));
            let expected = (case.verdict.clone(), case.out.as_deref().map(bytes));
            assert_eq!(got, expected, "{}: {}", path.display(), case.what);
        }
        files += 1;
    }
    assert!(files >= 5, "{files} files");
}
