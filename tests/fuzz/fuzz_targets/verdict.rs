//! The layer-4 verdict: whatever comes, nothing but frames for a virtual server is forwarded, with
//! nothing but MAC addresses changed, and every frame is counted once.
//!
//! The input is a run of frames: two bytes of length and flags, then the frame. A flag puts the
//! headers of a frame for us in front, so that the fuzzer need not find them.

#![no_main]

use std::collections::HashMap;
use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use ringgate::l4::config::{
    Forward, L4, OnServerDown, Protocol, RealServer, Scheduler, ServiceKey, Settings, VirtualServer,
};
use ringgate::l4::registry::{Registry, ServerState};
use ringgate::l4::tables::Neighbour;
use ringgate::l4::{Director, Frame, Verdict};
use ringgate::protocol::ethernet::{Mac, View};
use ringgate::protocol::ip::Packet;

const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
const IN: u32 = 2;

fn addresses() -> [IpAddr; 2] {
    [IpAddr::from([192, 0, 2, 1]), IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1])]
}

fn service(address: IpAddr, protocol: Protocol, port: u16, forward: Forward) -> VirtualServer {
    let server = |n: u8| {
        let address = match address {
            IpAddr::V4(_) => IpAddr::from([10, 0, 0, n]),
            IpAddr::V6(_) => IpAddr::from([0x2001, 0xdb8, 1, 0, 0, 0, 0, n.into()]),
        };
        RealServer::new(address, 1)
    };
    let scheduler = if port == 80 { Scheduler::Wlc } else { Scheduler::Mh };
    let key = ServiceKey { protocol, address, port };
    VirtualServer {
        forward,
        on_server_down: OnServerDown::Reset,
        ..VirtualServer::new(key, scheduler, (1..=3).map(server).collect())
    }
}

fn registry() -> Registry {
    let mut services = Vec::new();
    for address in addresses() {
        services.push(service(address, Protocol::Tcp, 80, Forward::Dr));
        services.push(service(address, Protocol::Udp, 53, Forward::Dr));
        services.push(service(address, Protocol::Sctp, 0, Forward::Dr));
        services.push(service(address, Protocol::Udp, 443, Forward::Gue { port: 6080 }));
        services.push(service(address, Protocol::Tcp, 443, Forward::Ipip));
    }
    let mut registry = Registry::new(L4 { director: Settings::default(), services }, 1);
    registry.set_interfaces(HashMap::from([(IN, vec![OWN])]));
    registry.set_peers([Mac([2, 0, 0, 0, 0, 50])]);
    let own = [IpAddr::from([10, 0, 0, 3]), IpAddr::from([0x2001, 0xdb8, 1, 0, 0, 0, 0, 9])];
    registry.set_local(own);
    for n in 1..=2_u8 {
        let way = Neighbour { mac: Mac([2, 0, 0, 0, 1, n]), source: OWN, ifindex: 3, vlan: None };
        registry.set_neighbour(IpAddr::from([10, 0, 0, n]), Some(way));
        registry.set_neighbour(IpAddr::from([0x2001, 0xdb8, 1, 0, 0, 0, 0, n.into()]), Some(way));
    }
    registry
}

/// A frame with sensible headers in front of what the fuzzer made up.
fn framed(v6: bool, flags: u8, rest: &[u8]) -> Vec<u8> {
    let mut bytes = [&OWN.0[..], &[2, 0, 0, 0, 0, 49 + (flags & 1)]].concat();
    let protocol = [6, 17, 132, 44, 1, 58, 0, 60][usize::from(flags >> 1 & 7)];
    let length = u16::try_from(rest.len()).unwrap_or_default();
    if v6 {
        bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        bytes.extend(length.to_be_bytes());
        bytes.extend([protocol, 64]);
        bytes.extend([0x20, 1, 0x0d, 0xb8, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, flags >> 4]);
        bytes.extend([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    } else {
        bytes.extend([0x08, 0, 0x45, 0]);
        bytes.extend((length + 20).to_be_bytes());
        bytes.extend([0, flags & 3, 0x40 * (flags >> 7), 0, 64, protocol, 0, 0]);
        bytes.extend([198, 51, 100, flags >> 4, 192, 0, 2, 1]);
    }
    bytes.extend_from_slice(rest);
    bytes
}

fuzz_target!(|input: &[u8]| {
    let mut registry = registry();
    let tables = registry.tables();
    let mut director = Director::new(0, tables.clone(), 8);
    let (mut rest, mut now, mut judged) = (input, 1_000_000, 0_u64);
    while let Some(([length, flags], more)) = rest.split_first_chunk().map(|(h, m)| (*h, m)) {
        let cut = usize::from(length).min(more.len());
        let (body, behind) = more.split_at(cut);
        rest = behind;
        now += u64::from(flags) * 16;
        let mut bytes = match length % 3 {
            0 => body.to_vec(),
            kind => framed(kind == 2, flags, body),
        };
        if length == 255 {
            let key = registry.config().services[0].key;
            let state = ServerState { up: flags & 1 == 0, weight: None };
            registry.set_state(key, IpAddr::from([10, 0, 0, 1]), state);
            director.swap(registry.tables());
        }
        let before = bytes.clone();
        let length = bytes.len();
        if flags & 2 == 0 {
            director.foresee([&before[..]].into_iter());
        }
        director.select(usize::from(flags & 1));
        let mut frame = Frame { bytes: &mut bytes, vlan: None, ifindex: IN, length };
        let verdict = director.judge(now, &mut frame);
        judged += 1;
        match verdict {
            Verdict::Forward { .. } | Verdict::Encapsulate { .. } => {
                assert_eq!(bytes[12..], before[12..]);
                let view = View::parse(&before).expect("a header");
                assert_eq!(view.destination, OWN);
                let packet = Packet::parse(&before[view.payload..], before.len() - view.payload);
                let packet = packet.expect("a packet");
                assert!(addresses().contains(&packet.destination));
                if let Verdict::Encapsulate { skip, .. } = verdict {
                    assert_eq!(skip, view.payload);
                    let outer = director.head().get(14..).expect("an IP header");
                    let outer = Packet::parse(outer, usize::MAX).expect("an IP header");
                    assert!(outer.length > packet.length);
                }
            }
            Verdict::Reply { .. } => assert!(director.reply().len() >= 54),
            _ => assert_eq!(bytes, before),
        }
        while director.release(now).is_some() {
            judged += 1;
        }
        assert!(director.flows() <= 8);
    }
    let all = &tables.overall[0];
    let some =
        [&all.passed, &all.local, &all.forwarded, &all.encapsulated, &all.replied, &all.held];
    let counted: u64 = some.into_iter().chain(&all.dropped).map(|one| one.value()).sum();
    assert_eq!(counted, judged);
});
