//! Servers in other subnets.

use super::*;
use crate::protocol::checksum::Sum;

fn world(forward: Forward, servers: fn(u8) -> IpAddr, local: &[&str]) -> World {
    let mut one = service(Protocol::Tcp, 80, Scheduler::Rr);
    one.forward = forward;
    one.servers = (1..=3).map(|n| real(servers(n), 1)).collect();
    let mut world = World::new(vec![one]);
    world.registry.set_local(local.iter().map(|text| ip(text)));
    world.swap();
    world
}

/// What is sent for a frame.
fn sent(world: &mut World, frame: &[u8]) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    match world.judge(&mut bytes) {
        Verdict::Encapsulate { ifindex: OUT, vlan: None, skip, .. } => {
            assert_eq!(bytes, frame, "the frame itself stays");
            [world.director.head(), &bytes[skip..]].concat()
        }
        other => panic!("{other:?}"),
    }
}

fn segment(length: usize, flags: u8) -> Vec<u8> {
    let mut head = ports(1000, 80, TCP_HEADER);
    (head[12], head[13]) = (5 << 4, flags);
    head.resize(length - ip::V4_HEADER, 7);
    let mut bytes = ip_frame(ip("198.51.100.1"), vip(), ip::TCP, &head);
    bytes[15] = 0xb8;
    bytes
}

#[test]
fn ip_in_ip() {
    let mut world = world(Forward::Ipip, server, &["10.9.0.1", "10.0.0.200", "192.0.2.1", "::5"]);
    let frame = segment(100, SYN);
    let out = sent(&mut world, &frame);
    let view = View::parse(&out).unwrap();
    assert_eq!(
        (view.destination, view.source, view.ether_type),
        (server_mac(1), OWN, ethernet::IPV4)
    );
    let outer = Packet::parse(&out[14..], out.len() - 14).unwrap();
    assert_eq!((outer.source, outer.destination), (ip("10.0.0.200"), server(1)));
    assert_eq!((outer.protocol, outer.length), (ip::IPIP, 120));
    assert_eq!(out[15], 0xb8, "the type of service");
    assert_eq!(Sum::new().bytes(&out[14..34]).finish(), 0);
    assert_eq!(&out[34..], &frame[14..]);
}

#[test]
fn ipv4_in_ipv6() {
    let mut world = world(Forward::Ipip, server_v6, &["2001:db8::100", "2001:db9::1", "10.0.0.9"]);
    let frame = segment(100, SYN);
    let out = sent(&mut world, &frame);
    let outer = Packet::parse(&out[14..], out.len() - 14).unwrap();
    assert_eq!((outer.source, outer.destination), (ip("2001:db8::100"), server_v6(1)));
    assert_eq!((outer.protocol, outer.length), (ip::IPIP, 140));
    assert_eq!(out[14..16], [0x6b, 0x80]);
    assert_eq!(&out[54..], &frame[14..]);
}

#[test]
fn gue() {
    let mut world = world(Forward::Gue { port: 6080 }, server, &["10.0.0.200"]);
    let frame = segment(100, SYN);
    let out = sent(&mut world, &frame);
    let outer = Packet::parse(&out[14..], out.len() - 14).unwrap();
    assert_eq!((outer.protocol, outer.length), (ip::UDP, 132));
    let ports = Ports::parse(&out[34..]).unwrap();
    assert!(ports.source >= 49_152 && ports.destination == 6080);
    assert_eq!(out[38..46], [0, 112, 0, 0, 0, 4, 0, 0]);
    assert_eq!(&out[46..], &frame[14..]);
    // A flow keeps its source port; flows differ.
    let again = sent(&mut world, &segment(60, ACK));
    assert_eq!(again[34..36], out[34..36]);
    let other = sent(&mut world, &tcp("198.51.100.77:2000", SYN));
    assert_ne!(other[34..36], out[34..36]);
}

#[test]
fn too_big_is_answered() {
    let mut world = world(Forward::Ipip, server, &["10.0.0.200"]);
    sent(&mut world, &segment(1480, SYN));
    let large = segment(1481, ACK);
    let verdict = world.judge(&mut large.clone());
    assert_eq!(verdict, Verdict::Reply { ifindex: IN, vlan: None });
    let reply = world.director.reply().to_vec();
    let view = View::parse(&reply).unwrap();
    assert_eq!((view.destination, view.source), (CLIENT, OWN));
    let packet = Packet::parse(&reply[14..], reply.len() - 14).unwrap();
    assert_eq!((packet.source, packet.destination), (vip(), ip("198.51.100.1")));
    assert_eq!((packet.protocol, packet.length), (ip::ICMP, 576));
    let message = &reply[34..];
    assert_eq!((message[0], message[1], &message[6..8]), (3, 4, &1480_u16.to_be_bytes()[..]));
    assert_eq!(Sum::new().bytes(message).finish(), 0);
    assert_eq!(message[8..], large[14..14 + 548]);
    // Not asked for: without DF it is dropped.
    let mut fragmentable = large;
    fragmentable[20] = 0;
    assert_eq!(world.judge(&mut fragmentable), Verdict::Drop(Reason::TooBig));
}

#[test]
fn too_big_for_ipv6() {
    let vip = ip("2001:db8::1");
    let mut one = service(Protocol::Tcp, 80, Scheduler::Rr);
    (one.key.address, one.forward) = (vip, Forward::Gue { port: 6080 });
    one.servers = vec![real(server_v6(1), 1)];
    let mut world = World::new(vec![one]);
    world.registry.set_local([ip("2001:db8::100")]);
    world.registry.set_mtus(HashMap::from([(OUT, 1400)]));
    world.swap();
    let mut head = ports(1000, 80, TCP_HEADER);
    (head[12], head[13]) = (5 << 4, SYN);
    head.resize(1400 - 52 - 40 + 1, 0);
    let client = ip("2001:db8:9::1");
    let large = ip_frame(client, vip, ip::TCP, &head);
    assert!(matches!(world.judge(&mut large.clone()), Verdict::Reply { .. }));
    let reply = world.director.reply().to_vec();
    let message = &reply[54..];
    assert_eq!((message[0], &message[4..8]), (2, &1348_u32.to_be_bytes()[..]));
    assert_eq!(reply.len(), 14 + 1280);
    let length = u16::try_from(message.len()).unwrap();
    assert_eq!(Sum::new().pseudo(vip, client, ip::ICMPV6, length).bytes(message).finish(), 0);
    head.pop();
    assert!(matches!(
        world.judge(&mut ip_frame(client, vip, ip::TCP, &head)),
        Verdict::Encapsulate { .. }
    ));
}

/// Without an address of this host to send from there is no way.
#[test]
fn no_source() {
    let mut world = world(Forward::Ipip, server, &["2001:db8::100", "192.0.2.1", "127.0.0.1"]);
    assert_eq!(world.judge(&mut segment(100, SYN)), Verdict::Drop(Reason::NoNeighbour));
}
