//! Which server a flow gets and keeps.

use super::*;

const DOWN: ServerState = ServerState { up: false, weight: None };

fn clients(count: u32) -> impl Iterator<Item = String> {
    (0..count).map(|n| format!("198.51.{}.{}:{}", n >> 8 & 0xff, n & 0xff, 1024 + n % 50_000))
}

/// How many of `count` new flows each of the servers 1 to 3 gets.
fn shares(world: &mut World, count: u32) -> [u32; 4] {
    let mut shares = [0; 4];
    for client in clients(count) {
        shares[usize::from(world.goes_to(&tcp(&client, SYN)).unwrap_or(0))] += 1;
    }
    shares
}

#[test]
fn a_connection_stays_on_its_server() {
    for (_, scheduler) in Scheduler::ALL {
        let mut world = World::tcp(scheduler);
        for client in clients(20) {
            let first = world.goes_to(&tcp(&client, SYN)).unwrap();
            for flags in [SYN, ACK, ACK, ACK | FIN, ACK, RST] {
                assert_eq!(world.goes_to(&tcp(&client, flags)), Some(first), "{scheduler:?}");
            }
        }
    }
}

#[test]
fn rr_takes_turns_and_weights_count_for_wrr() {
    assert_eq!(shares(&mut World::tcp(Scheduler::Rr), 30), [0, 10, 10, 10]);
    let mut weighted = service(Protocol::Tcp, 80, Scheduler::Wrr);
    weighted.servers = vec![real(server(1), 3), real(server(2), 1), real(server(3), 2)];
    assert_eq!(shares(&mut World::new(vec![weighted.clone()]), 60), [0, 30, 10, 20]);
    // Any window of a round holds everybody's share.
    let mut world = World::new(vec![weighted]);
    let order: Vec<u8> =
        clients(12).map(|client| world.goes_to(&tcp(&client, SYN)).unwrap()).collect();
    assert_eq!(order[..6], order[6..]);
    assert!(order[..3].contains(&1) && order[..4].contains(&3), "{order:?}");
}

#[test]
fn schedulers_by_load() {
    // Flows of unequal number on the servers to begin with.
    let loaded = |scheduler, weights: [u32; 3]| {
        let mut one = service(Protocol::Tcp, 80, scheduler);
        one.servers = (1..).zip(weights).map(|(n, weight)| real(server(n), weight)).collect();
        World::new(vec![one])
    };
    // Equal weights: all evenly, whatever ends meanwhile.
    for scheduler in [Scheduler::Lc, Scheduler::Wlc, Scheduler::Sed, Scheduler::Nq] {
        assert_eq!(shares(&mut loaded(scheduler, [1, 1, 1]), 30), [0, 10, 10, 10], "{scheduler:?}");
    }
    assert_eq!(shares(&mut loaded(Scheduler::Lc, [1, 1, 4]), 30), [0, 10, 10, 10]);
    assert_eq!(shares(&mut loaded(Scheduler::Wlc, [1, 1, 4]), 30), [0, 5, 5, 20]);

    // Established flows: the first of sed goes to the heaviest, of nq to whoever is idle.
    let established = |scheduler| {
        let mut world = loaded(scheduler, [1, 1, 4]);
        let mut order = Vec::new();
        for client in clients(4) {
            order.push(world.goes_to(&tcp(&client, SYN)).unwrap());
            world.goes_to(&tcp(&client, ACK));
        }
        order
    };
    assert_eq!(established(Scheduler::Sed), [3, 3, 3, 1]);
    let mut first = established(Scheduler::Nq)[..3].to_vec();
    first.sort_unstable();
    assert_eq!(first, [1, 2, 3]);
}

#[test]
fn sh_sees_the_address_and_mh_the_port_too() {
    let spread = |scheduler| {
        let mut world = World::tcp(scheduler);
        let mut seen: Vec<u8> = (1000..1050)
            .map(|port| world.goes_to(&tcp(&format!("198.51.100.7:{port}"), SYN)).unwrap())
            .collect();
        seen.sort_unstable();
        seen.dedup();
        seen.len()
    };
    assert_eq!((spread(Scheduler::Sh), spread(Scheduler::Mh)), (1, 3));
    let shares = shares(&mut World::tcp(Scheduler::Mh), 900);
    assert!(shares[1..].iter().all(|n| (240..360).contains(n)), "{shares:?}");
}

#[test]
fn maglev_follows_weights() {
    let mut one = service(Protocol::Tcp, 80, Scheduler::Mh);
    one.servers = vec![real(server(1), 1), real(server(2), 3), real(server(3), 0)];
    let mut registry = registry(vec![one]);
    let tables = registry.tables();
    let table = &tables.services[0].as_ref().unwrap().maglev;
    assert_eq!(table.len(), 65_537);
    let mut places = [0_usize; 3];
    table.iter().for_each(|slot| places[usize::from(*slot)] += 1);
    assert!(places[0].abs_diff(16_384) < 3 && places[2] == 0, "{places:?}");
}

#[test]
fn active_and_inactive_are_counted() {
    let mut world = World::tcp(Scheduler::Rr);
    let client = "198.51.100.1:1000";
    assert_eq!(world.goes_to(&tcp(client, SYN)), Some(1));
    assert_eq!(world.load(1), (0, 1));
    world.goes_to(&tcp(client, ACK));
    assert_eq!(world.load(1), (1, 0));
    world.goes_to(&tcp(client, ACK | FIN));
    assert_eq!(world.load(1), (0, 1));
    world.wait(600);
    world.director.expire(world.now);
    assert_eq!((world.load(1), world.director.flows()), ((0, 0), 0));
}

#[test]
fn a_syn_on_a_finished_flow_is_a_new_one() {
    let mut world = World::tcp(Scheduler::Rr);
    let client = "198.51.100.1:1000";
    let pass = |world: &mut World, flags: &[u8]| {
        flags.iter().map(|flags| world.goes_to(&tcp(client, *flags)).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(pass(&mut world, &[SYN, ACK, ACK | FIN, ACK, SYN]), [1, 1, 1, 1, 2]);
    assert_eq!(pass(&mut world, &[ACK, RST, SYN]), [2, 2, 3]);
    // A repeated SYN, and one within a connection, are not.
    assert_eq!(pass(&mut world, &[SYN, ACK, SYN]), [3, 3, 3]);
    assert_eq!((world.load(1), world.load(2), world.load(3)), ((0, 0), (0, 0), (1, 0)));
}

#[test]
fn timeouts_begin_a_flow_anew() {
    let mut world = World::tcp(Scheduler::Rr);
    let client = "198.51.100.1:1000";
    world.goes_to(&tcp(client, SYN));
    world.wait(59);
    assert_eq!(world.goes_to(&tcp(client, SYN)), Some(1));
    world.wait(61);
    assert_eq!(world.goes_to(&tcp(client, SYN)), Some(2));
    world.goes_to(&tcp(client, ACK));
    world.wait(899);
    assert_eq!(world.goes_to(&tcp(client, ACK)), Some(2));
}

#[test]
fn weight_zero_drains() {
    let mut world = World::tcp(Scheduler::Rr);
    let client = "198.51.100.1:1000";
    assert_eq!(world.goes_to(&tcp(client, SYN)), Some(1));
    world.state(1, ServerState { up: true, weight: Some(0) });
    assert_eq!(world.goes_to(&tcp(client, ACK)), Some(1));
    assert_eq!(shares(&mut world, 30), [0, 0, 15, 15]);
    world.goes_to(&tcp(client, ACK | FIN));
    assert!(world.goes_to(&tcp(client, SYN)).unwrap() > 1);
}

#[test]
fn dead_servers() {
    let table = [
        (OnServerDown::Drain, Some(1)),
        (OnServerDown::Reschedule, Some(2)),
        (OnServerDown::Reset, None),
    ];
    for (policy, expected) in table {
        let mut one = service(Protocol::Tcp, 80, Scheduler::Rr);
        one.on_server_down = policy;
        let mut world = World::new(vec![one]);
        let (client, other) = ("198.51.100.1:1000", "198.51.100.2:1000");
        world.goes_to(&tcp(client, SYN));
        world.goes_to(&tcp(client, ACK));
        world.state(1, DOWN);
        let mut bytes = tcp(client, ACK);
        let verdict = world.judge(&mut bytes.clone());
        match expected {
            Some(1) => assert_eq!(world.goes_to(&bytes), Some(1)),
            Some(_) => assert!(world.goes_to(&bytes).unwrap() > 1),
            None => assert_eq!(verdict, Verdict::Reply { ifindex: IN, vlan: None }),
        }
        // A new connection never goes there, also on the same ports.
        assert!(world.goes_to(&tcp(other, SYN)).unwrap() > 1, "{policy:?}");
        assert!(world.goes_to(&tcp(client, SYN)).unwrap() > 1, "{policy:?}");
        bytes[47] = RST;
        world.judge(&mut bytes);
    }
}

#[test]
fn inhibited_on_failure_keeps_its_flows() {
    let mut one = service(Protocol::Tcp, 80, Scheduler::Rr);
    one.servers[0].inhibit_on_failure = true;
    let mut world = World::new(vec![one]);
    let client = "198.51.100.1:1000";
    assert_eq!(world.goes_to(&tcp(client, SYN)), Some(1));
    world.state(1, DOWN);
    assert_eq!(world.goes_to(&tcp(client, ACK)), Some(1));
    assert_eq!(shares(&mut world, 10)[1], 0);
}

#[test]
fn the_reset_is_one_that_the_client_believes() {
    let mut one = service(Protocol::Tcp, 80, Scheduler::Rr);
    one.on_server_down = OnServerDown::Reset;
    let mut world = World::new(vec![one]);
    let client = "198.51.100.1:1000";
    world.goes_to(&tcp(client, SYN));
    world.goes_to(&tcp(client, ACK));
    world.state(1, DOWN);
    let mut bytes = tcp(client, ACK);
    bytes[38..42].copy_from_slice(&7_u32.to_be_bytes());
    bytes[42..46].copy_from_slice(&9_u32.to_be_bytes());
    assert!(matches!(world.judge(&mut bytes), Verdict::Reply { .. }));
    let reply = world.director.reply().to_vec();
    let view = View::parse(&reply).unwrap();
    assert_eq!((view.destination, view.source), (CLIENT, OWN));
    let packet = Packet::parse(&reply[14..], reply.len() - 14).unwrap();
    assert_eq!((packet.source, packet.destination), (vip(), ip("198.51.100.1")));
    let tcp = &reply[34..];
    assert_eq!(Ports::parse(tcp), Some(Ports { source: 80, destination: 1000 }));
    assert_eq!((&tcp[4..8], &tcp[8..12], tcp[13]), (&[0, 0, 0, 9][..], &[0; 4][..], RST));
    let sum = |sum: crate::protocol::checksum::Sum, bytes: &[u8]| sum.bytes(bytes).finish();
    assert_eq!(sum(crate::protocol::checksum::Sum::new(), &reply[14..34]), 0);
    let pseudo = crate::protocol::checksum::Sum::new().pseudo(vip(), packet.destination, 6, 20);
    assert_eq!(sum(pseudo, tcp), 0);
    // A second one does not come: the flow is gone, and Maglev's choice answers for itself.
    assert!(matches!(world.judge(&mut bytes), Verdict::Forward { .. }));
}

#[test]
fn replies_are_limited() {
    let mut one = service(Protocol::Tcp, 80, Scheduler::Rr);
    one.on_server_down = OnServerDown::Reset;
    let mut world = World::with_room(vec![one], 4000);
    let all: Vec<String> = clients(3600).collect();
    all.iter().for_each(|client| assert!(world.goes_to(&tcp(client, SYN)).is_some()));
    (1..=2).for_each(|n| world.state(n, DOWN));
    let mut count = |reply: bool| {
        let judged = all.iter().map(|client| world.judge(&mut tcp(client, ACK)));
        judged.filter(|v| matches!(v, Verdict::Reply { .. }) == reply).count()
    };
    assert_eq!(count(true), 1000);
}

#[test]
fn removed_servers() {
    let mut world = World::tcp(Scheduler::Rr);
    let client = "198.51.100.1:1000";
    assert_eq!(world.goes_to(&tcp(client, SYN)), Some(1));
    world.goes_to(&tcp(client, ACK));
    let mut config = world.registry.config().clone();
    config.services[0].servers.remove(0);
    config.services[0].on_server_down = OnServerDown::Drain;
    world.registry.configure(config.clone());
    world.swap();
    assert_eq!(world.goes_to(&tcp(client, ACK)), Some(1), "it drains");
    config.services[0].on_server_down = OnServerDown::Reschedule;
    world.registry.configure(config.clone());
    world.swap();
    assert!(world.goes_to(&tcp(client, ACK)).unwrap() > 1, "its flows go elsewhere");
    // Its slot is another server's from then on, and the flow does not follow.
    config.services[0].servers.push(real(server(7), 1));
    let before = world.goes_to(&tcp(client, ACK));
    world.registry.configure(config);
    world.swap();
    world.swap();
    assert_eq!(world.goes_to(&tcp(client, ACK)), before);
    let tables = world.registry.tables();
    assert_eq!(tables.servers.iter().flatten().count(), 3);
}

#[test]
fn a_server_added_gets_its_share_and_others_keep_their_flows() {
    let mut world = World::tcp(Scheduler::Rr);
    let kept: Vec<(String, u8)> = clients(30)
        .map(|client| (client.clone(), world.goes_to(&tcp(&client, SYN)).unwrap()))
        .collect();
    let mut config = world.registry.config().clone();
    config.services[0].servers.push(real(server(4), 1));
    world.registry.configure(config);
    world.swap();
    for (client, server) in &kept {
        assert_eq!(world.goes_to(&tcp(client, ACK)), Some(*server));
    }
    let new: Vec<u8> =
        (0..8).map(|n| world.goes_to(&tcp(&format!("203.0.113.{n}:5"), SYN)).unwrap()).collect();
    assert_eq!(new.iter().filter(|n| **n == 4).count(), 2);
    let totals = |world: &mut World| {
        let tables = world.registry.tables();
        tables.services[0].as_ref().unwrap().figures.totals()
    };
    assert_eq!((totals(&mut world).flows, totals(&mut world).packets), (38, 68));
}

#[test]
fn thresholds() {
    let mut one = service(Protocol::Tcp, 80, Scheduler::Rr);
    one.servers.truncate(2);
    (one.servers[0].uthreshold, one.servers[0].lthreshold) = (4, 2);
    let mut world = World::new(vec![one]);
    assert_eq!(shares(&mut world, 12), [0, 4, 8, 0]);
    // Two of its flows end: three, then two are left, and it takes none before it has fewer.
    let mut own = clients(12).filter(|client| {
        let mut probe = tcp(client, ACK);
        world.judge(&mut probe);
        probe[5] == 1
    });
    let own: Vec<String> = own.by_ref().collect();
    assert_eq!(own.len(), 4);
    let close = |world: &mut World, client: &str| {
        world.goes_to(&tcp(client, RST));
        world.wait(11);
        (0..8).for_each(|_| world.director.expire(world.now));
    };
    let takes = |world: &mut World, n: u8| {
        (0..3).any(|port| world.goes_to(&tcp(&format!("203.0.113.{n}:{port}"), SYN)) == Some(1))
    };
    close(&mut world, &own[0]);
    close(&mut world, &own[1]);
    assert_eq!(world.load(1), (2, 0));
    assert!(!takes(&mut world, 1));
    close(&mut world, &own[2]);
    assert!(takes(&mut world, 2));
}

#[test]
fn everybody_full_or_gone() {
    let mut one = service(Protocol::Tcp, 80, Scheduler::Rr);
    one.servers.truncate(1);
    one.servers[0].uthreshold = 1;
    let mut world = World::new(vec![one]);
    assert_eq!(world.goes_to(&tcp("198.51.100.1:1", SYN)), Some(1));
    let refused = Verdict::Drop(Reason::NoServer);
    assert_eq!(world.judge(&mut tcp("198.51.100.2:1", SYN)), refused);
    world.state(1, DOWN);
    assert_eq!(world.judge(&mut tcp("198.51.100.3:1", ACK)), refused);
    let tables = world.registry.tables();
    let figures = &tables.services[0].as_ref().unwrap().figures;
    assert_eq!(figures.totals().dropped[Reason::NoServer.index()], 2);
}

#[test]
fn persistent_clients() {
    let mut one = service(Protocol::Tcp, 80, Scheduler::Rr);
    one.persistence = persistence(300, 24);
    let mut world = World::new(vec![one]);
    let at = |world: &mut World, client: &str| world.goes_to(&tcp(client, SYN)).unwrap();
    assert_eq!(at(&mut world, "198.51.100.1:1"), 1);
    assert_eq!(at(&mut world, "198.51.101.1:1"), 2);
    world.wait(299);
    assert_eq!(at(&mut world, "198.51.100.1:2"), 1);
    assert_eq!(at(&mut world, "198.51.100.250:1"), 1, "the same /24");
    world.wait(299);
    assert_eq!(at(&mut world, "198.51.100.9:9"), 1, "counted from the latest flow");
    world.wait(301);
    assert_ne!(at(&mut world, "198.51.100.1:3"), 1, "its turn is server 3's or later");
    // Weight 0: clients go elsewhere, and stay there.
    let now = at(&mut world, "198.51.100.1:4");
    world.state(now, ServerState { up: true, weight: Some(0) });
    let next = at(&mut world, "198.51.100.1:5");
    assert_ne!(next, now);
    world.state(now, ServerState::default());
    assert_eq!(at(&mut world, "198.51.100.1:6"), next);
}

#[test]
fn persistence_by_ipv6_prefix() {
    let mut one = service(Protocol::Tcp, 80, Scheduler::Rr);
    one.key.address = ip("2001:db8::1");
    one.servers = (1..=3).map(|n| real(server_v6(n), 1)).collect();
    one.persistence = persistence(300, 64);
    let mut world = World::new(vec![one]);
    let mut at = |client: &str| {
        let mut head = ports(1000, 80, TCP_HEADER);
        (head[12], head[13]) = (5 << 4, SYN);
        world.goes_to(&ip_frame(ip(client), ip("2001:db8::1"), ip::TCP, &head)).unwrap()
    };
    assert_eq!((at("2001:db8:5:6::1"), at("2001:db8:5:6:7::2"), at("2001:db8:5:7::1")), (1, 1, 2));
}

#[test]
fn udp_and_one_packet() {
    let mut world = World::new(vec![service(Protocol::Udp, 53, Scheduler::Rr)]);
    let client = "198.51.100.1:1000";
    let mut one_packet = service(Protocol::Udp, 53, Scheduler::Rr);
    assert_eq!([0; 3].map(|_| world.goes_to(&udp(client, 53)).unwrap()), [1, 1, 1]);
    assert_eq!(world.load(1), (0, 1));
    world.wait(301);
    assert_eq!(world.goes_to(&udp(client, 53)), Some(2));
    one_packet.one_packet = true;
    let mut world = World::new(vec![one_packet]);
    assert_eq!([0; 4].map(|_| world.goes_to(&udp(client, 53)).unwrap()), [1, 2, 3, 1]);
    assert_eq!(world.director.flows(), 0);
}

#[test]
fn sctp_associations() {
    let mut world = World::new(vec![service(Protocol::Sctp, 5000, Scheduler::Rr)]);
    let client = "198.51.100.1:1000";
    let mut pass = |chunk| world.goes_to(&sctp(client, 5000, chunk)).unwrap();
    // INIT, COOKIE ECHO, DATA, SHUTDOWN, and another INIT.
    assert_eq!([1, 10, 0, 7, 1].map(&mut pass), [1, 1, 1, 1, 2]);
    assert_eq!(pass(6), 2);
    assert_eq!(pass(1), 3);
    assert_eq!(world.load(3), (0, 1));
}

#[test]
fn sorry_server_without_quorum() {
    let mut one = service(Protocol::Tcp, 80, Scheduler::Wlc);
    (one.quorum, one.sorry_server) = (2, Some(server(9)));
    let mut world = World::new(vec![one]);
    let client = "198.51.100.1:1000";
    let kept = world.goes_to(&tcp(client, SYN)).unwrap();
    world.goes_to(&tcp(client, ACK));
    let others: Vec<u8> = (1..=3).filter(|n| *n != kept).collect();
    world.state(others[0], DOWN);
    assert_ne!(world.goes_to(&tcp("198.51.100.2:1", SYN)), Some(9));
    world.state(others[1], DOWN);
    assert_eq!(world.goes_to(&tcp("198.51.100.3:1", SYN)), Some(9));
    assert_eq!(world.goes_to(&tcp(client, ACK)), Some(kept), "who lives keeps its flows");
    world.state(others[0], ServerState::default());
    assert_ne!(world.goes_to(&tcp("198.51.100.4:1", SYN)), Some(9));
}

/// No room: what never began leaves; with none such, new flows go by hash and no old one leaves.
#[test]
fn full_table() {
    let mut world = World::with_room(vec![service(Protocol::Tcp, 80, Scheduler::Rr)], 20);
    let old: Vec<(String, u8)> = clients(10)
        .map(|client| {
            let server = world.goes_to(&tcp(&client, SYN)).unwrap();
            world.goes_to(&tcp(&client, ACK));
            (client, server)
        })
        .collect();
    for n in 0..5000 {
        let flood = format!("203.0.{}.{}:7", 1 + n / 250, n % 250);
        assert!(world.goes_to(&tcp(&flood, SYN)).is_some());
    }
    assert_eq!(world.director.flows(), 20);
    for (client, server) in &old {
        assert_eq!(world.goes_to(&tcp(client, ACK)), Some(*server));
    }
    // All established now: a newcomer is served without an entry, and consistently.
    for n in 4990..5000 {
        let flood = format!("203.0.{}.{}:7", 1 + n / 250, n % 250);
        world.goes_to(&tcp(&flood, ACK));
    }
    let stateless = world.registry.tables().overall[0].stateless.value();
    let new = "192.0.2.200:1";
    let first = world.goes_to(&tcp(new, SYN)).unwrap();
    assert!((0..5).all(|_| world.goes_to(&tcp(new, ACK)) == Some(first)));
    assert_eq!(world.registry.tables().overall[0].stateless.value(), stateless + 6);
}

#[test]
fn limit_of_new_flows() {
    let mut world = World::tcp(Scheduler::Rr);
    let mut config = world.registry.config().clone();
    config.director.new_flows_per_second = 10;
    world.registry.configure(config);
    world.swap();
    let before: Vec<_> =
        clients(50).map(|client| (world.goes_to(&tcp(&client, SYN)), client)).collect();
    assert_eq!(world.director.flows(), 10);
    assert_eq!(world.registry.tables().overall[0].stateless.value(), 40);
    world.wait(1);
    // Once there is time to remember them they are where they were.
    for (server, client) in before {
        assert_eq!(world.goes_to(&tcp(&client, ACK)), server);
    }
    assert_eq!(world.director.flows(), 20);
}
