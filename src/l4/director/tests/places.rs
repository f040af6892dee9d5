//! What is forwarded at all: addresses, roles, neighbours, and related ICMP.

use super::*;

#[test]
fn what_is_the_kernels() {
    let mut world = World::tcp(Scheduler::Rr);
    let good = tcp("198.51.100.1:1000", SYN);
    let with = |at: usize, bytes: &[u8]| {
        let mut frame = good.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let table = [
        ("another port", tcp_to("198.51.100.1:1000", 81, SYN)),
        ("another protocol", udp("198.51.100.1:1000", 80)),
        ("another address", with(30, &[192, 0, 2, 2])),
        ("another host's MAC", with(0, &[2, 0, 0, 0, 0, 7])),
        ("broadcast", with(0, &[0xff; 6])),
        ("ARP", with(12, &[0x08, 0x06])),
        ("three tags", [&good[..12], &[0x81, 0, 0, 1].repeat(3), &good[12..]].concat()),
        ("cut off", good[..13].to_vec()),
        ("echo request", ip_frame(ip("198.51.100.1"), vip(), ip::ICMP, &[8; 16])),
    ];
    for (what, frame) in table {
        let mut bytes = frame.clone();
        assert_eq!(world.judge(&mut bytes), Verdict::Pass, "{what}");
        assert_eq!(bytes, frame, "{what}");
    }
    let mut elsewhere =
        Frame { length: good.len(), bytes: &mut good.clone(), vlan: None, ifindex: 9 };
    assert_eq!(world.director.judge(0, &mut elsewhere), Verdict::Pass);
    let bad = [("header length", with(14, &[0x41])), ("cut TCP", good[..40].to_vec())];
    for (what, mut frame) in bad {
        assert_eq!(world.judge(&mut frame), Verdict::Drop(Reason::Malformed), "{what}");
    }
}

#[test]
fn all_ports() {
    let mut any = service(Protocol::Tcp, 0, Scheduler::Rr);
    any.servers = vec![real(server(7), 1)];
    let mut world = World::new(vec![service(Protocol::Tcp, 80, Scheduler::Rr), any]);
    assert_eq!(world.goes_to(&tcp_to("198.51.100.1:1", 80, SYN)), Some(1));
    assert_eq!(world.goes_to(&tcp_to("198.51.100.1:1", 443, SYN)), Some(7));
    assert_eq!(world.goes_to(&tcp_to("198.51.100.1:1", 8443, SYN)), Some(7));
    assert_eq!(world.director.flows(), 3, "the port tells flows apart");
}

/// VLAN tags in the frame stay as they are; one that the kernel took out leaves as the way says.
#[test]
fn vlans_and_options() {
    let mut world = World::tcp(Scheduler::Rr);
    let plain = tcp("198.51.100.1:1000", SYN);
    let tagged = [&plain[..12], &[0x81, 0x00, 0x00, 0x07], &plain[12..]].concat();
    assert_eq!(world.goes_to(&tagged), Some(1));
    let mut options = plain.clone();
    options[14] = 0x46;
    options[16..18].copy_from_slice(&44_u16.to_be_bytes());
    options.splice(34..34, [0x94, 4, 0, 0]);
    assert_eq!(world.goes_to(&options), Some(1), "the same flow");
    let to = Neighbour {
        mac: server_mac(2),
        source: Mac([2, 0, 0, 0, 9, 9]),
        ifindex: 8,
        vlan: Some(40),
    };
    world.registry.set_neighbour(server(2), Some(to));
    world.swap();
    let mut bytes = tcp("198.51.100.2:1000", SYN);
    let frame = &mut Frame { length: bytes.len(), bytes: &mut bytes, vlan: Some(7), ifindex: IN };
    let verdict = world.director.judge(world.now, frame);
    assert!(matches!(verdict, Verdict::Forward { ifindex: 8, vlan: Some(40), .. }), "{verdict:?}");
    assert_eq!(&bytes[6..12], [2, 0, 0, 0, 9, 9]);
}

/// Where a VLAN is an interface of its own, the kernel shows its frames twice: tagged on the trunk, and there. One of
/// them is forwarded.
#[test]
fn frames_of_a_vlan_are_judged_once() {
    const VLAN: u32 = 9;
    let mut world = World::tcp(Scheduler::Rr);
    world.registry.set_interfaces(HashMap::from([(IN, vec![OWN]), (VLAN, vec![OWN])]));
    let judge = |world: &mut World, ifindex, vlan| {
        let mut bytes = tcp("198.51.100.1:1000", SYN);
        let length = bytes.len();
        world.director.judge(world.now, &mut Frame { bytes: &mut bytes, vlan, ifindex, length })
    };
    for (trunks, tagged) in [(vec![], false), (vec![IN], true)] {
        world.registry.set_trunks(trunks);
        world.swap();
        let on_trunk = judge(&mut world, IN, Some(0x6005));
        assert_eq!(on_trunk == Verdict::Pass, tagged, "{on_trunk:?}");
        for (ifindex, vlan) in [(VLAN, None), (IN, None), (IN, Some(0x6000))] {
            let verdict = judge(&mut world, ifindex, vlan);
            assert!(matches!(verdict, Verdict::Forward { .. }), "{ifindex} {vlan:?}");
        }
    }
}

#[test]
fn super_frames_and_cut_copies() {
    let mut world = World::tcp(Scheduler::Rr);
    let mut head = ports(1000, 80, TCP_HEADER);
    (head[12], head[13]) = (5 << 4, ACK);
    head.resize(60_000, 7);
    let large = ip_frame(ip("198.51.100.1"), vip(), ip::TCP, &head);
    let to = world.goes_to(&large);
    assert!(to.is_some());
    let mut part = large[..128].to_vec();
    let frame = &mut Frame { length: large.len(), bytes: &mut part, vlan: None, ifindex: IN };
    assert!(matches!(world.director.judge(world.now, frame), Verdict::Forward { .. }));
    assert_eq!(Some(part[5]), to);
}

#[test]
fn unknown_neighbours() {
    let mut world = World::tcp(Scheduler::Rr);
    let client = "198.51.100.1:1000";
    assert_eq!(world.goes_to(&tcp(client, SYN)), Some(1));
    world.goes_to(&tcp(client, ACK));
    world.registry.set_neighbour(server(1), None);
    world.swap();
    assert_eq!(world.judge(&mut tcp(client, ACK)), Verdict::Drop(Reason::NoNeighbour));
    for n in 2..10 {
        assert_ne!(world.goes_to(&tcp(&format!("198.51.100.{n}:1"), SYN)), Some(1));
    }
}

fn with_local(n: u8) -> World {
    let mut world = World::tcp(Scheduler::Rr);
    world.registry.set_local([server(n)]);
    world.swap();
    world
}

#[test]
fn this_host_as_a_server() {
    let mut world = with_local(2);
    let to: Vec<Option<u8>> =
        (0..3).map(|n| world.goes_to(&tcp(&format!("198.51.100.{n}:1"), SYN))).collect();
    assert_eq!(to, [Some(1), None, Some(3)]);
    let mut bytes = tcp("198.51.100.1:1", ACK);
    assert!(matches!(world.judge(&mut bytes), Verdict::Local(_)));
    assert_eq!(bytes, tcp("198.51.100.1:1", ACK), "untouched");
}

/// Directors that are each other's servers: what one forwards, the other delivers.
#[test]
fn frames_from_a_peer_never_leave_again() {
    let mut from_peer = tcp("198.51.100.1:1000", SYN);
    from_peer[6..12].copy_from_slice(&PEER.0);
    for active in [true, false] {
        let mut world = with_local(2);
        world.registry.set_active(vip(), active);
        world.swap();
        for _ in 0..4 {
            assert!(matches!(world.judge(&mut from_peer.clone()), Verdict::Local(_)));
        }
        assert_eq!(world.director.flows(), 0);
    }
    let mut world = World::tcp(Scheduler::Rr);
    assert_eq!(world.judge(&mut from_peer), Verdict::Drop(Reason::Loop));
}

#[test]
fn a_backup_never_forwards() {
    let mut world = World::tcp(Scheduler::Rr);
    world.registry.set_active(vip(), false);
    world.swap();
    let syn = tcp("198.51.100.1:1000", SYN);
    assert_eq!(world.judge(&mut syn.clone()), Verdict::Drop(Reason::Backup));
    // A server itself, it takes what others forward to it, whoever they are.
    let mut world = with_local(2);
    let client = ["198.51.100.1:1000", "198.51.100.2:1000"];
    assert_eq!(world.goes_to(&tcp(client[0], SYN)), Some(1));
    world.registry.set_active(vip(), false);
    world.swap();
    assert!(matches!(world.judge(&mut tcp(client[1], SYN)), Verdict::Local(_)));
    // But not what belongs to another server, lest it be reset.
    assert_eq!(world.judge(&mut tcp(client[0], ACK)), Verdict::Drop(Reason::Backup));
    world.registry.set_active(vip(), true);
    world.swap();
    assert_eq!(world.goes_to(&tcp(client[0], ACK)), Some(1));
}

/// Once it is known which MAC addresses the other directors have, a backup takes frames from them only: what a router
/// with a stale neighbour table sends it may be of a flow that another server has, and its own would reset that.
#[test]
fn a_backup_that_knows_its_peers_takes_frames_from_them_only() {
    let mut world = with_local(2);
    world.registry.set_active(vip(), false);
    let mut config = world.registry.config().clone();
    config.director.peers = vec![ip("10.0.0.50"), server(2)];
    world.registry.configure(config);
    let mut from_peer = tcp("198.51.100.1:1000", SYN);
    from_peer[6..12].copy_from_slice(&PEER.0);
    for (known, stray) in [(vec![], None), (vec![PEER], Some(Reason::Backup))] {
        world.registry.set_peers(known.clone());
        world.swap();
        let verdict = world.judge(&mut tcp("198.51.100.1:1000", SYN));
        match stray {
            Some(reason) => assert_eq!(verdict, Verdict::Drop(reason)),
            None => assert!(matches!(verdict, Verdict::Local(_)), "{verdict:?}"),
        }
        assert!(matches!(world.judge(&mut from_peer.clone()), Verdict::Local(_)), "{known:?}");
    }
}

/// An ICMP error about a packet from the virtual address' port 80 to a client.
fn unreachable(client: &str, port: u16) -> Vec<u8> {
    let client: SocketAddr = client.parse().unwrap();
    let about = packet(vip(), client.ip(), ip::TCP, &ports(port, client.port(), 8));
    let message = [&[3, 4, 0, 0, 0, 0, 5, 0x78], &about[..]].concat();
    ip_frame(ip("203.0.113.254"), vip(), ip::ICMP, &message)
}

#[test]
fn icmp_errors_follow_their_flow() {
    let mut world = World::tcp(Scheduler::Rr);
    for n in 1..=3 {
        let client = format!("198.51.100.{n}:1000");
        assert_eq!(world.goes_to(&tcp(&client, SYN)), Some(n));
        assert_eq!(world.goes_to(&unreachable(&client, 80)), Some(n));
    }
    assert_eq!(world.director.flows(), 3);
    // A flow that nobody remembers: where its packets would go.
    let unknown = "198.51.100.77:1000";
    let to = world.goes_to(&unreachable(unknown, 80));
    assert_eq!(world.goes_to(&tcp(unknown, ACK)), to);
    assert_eq!(world.judge(&mut unreachable("198.51.100.1:1000", 81)), Verdict::Pass);
    let mut foreign = unreachable("198.51.100.1:1000", 80);
    foreign[14 + 20 + 8 + 15] = 9;
    assert_eq!(world.judge(&mut foreign), Verdict::Pass, "about another address");
    let mut local = with_local(1);
    local.judge(&mut tcp("198.51.100.1:1000", SYN));
    assert_eq!(local.judge(&mut unreachable("198.51.100.1:1000", 80)), Verdict::Pass);
}

#[test]
fn packet_too_big_follows_its_flow() {
    let mut one = service(Protocol::Tcp, 80, Scheduler::Rr);
    let (vip, client) = (ip("2001:db8::1"), ip("2001:db8:9::1"));
    one.key.address = vip;
    one.servers = (1..=3).map(|n| real(server_v6(n), 1)).collect();
    let mut world = World::new(vec![one]);
    let mut head = ports(1000, 80, TCP_HEADER);
    (head[12], head[13]) = (5 << 4, SYN);
    assert_eq!(world.goes_to(&ip_frame(client, vip, ip::TCP, &head)), Some(1));
    let about = packet(vip, client, ip::TCP, &ports(80, 1000, TCP_HEADER));
    let message = [&[2, 0, 0, 0, 0, 0, 5, 0], &about[..]].concat();
    let error = ip_frame(ip("2001:db8:ff::1"), vip, ip::ICMPV6, &message);
    assert_eq!(world.goes_to(&error), Some(1));
}
