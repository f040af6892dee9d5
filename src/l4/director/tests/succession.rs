//! One process passes its flows to another, whose directors, tables and clock are others.

use super::*;
use crate::l4::flow::Passed;

const CLIENTS: u16 = 300;

fn client(n: u16) -> String {
    format!("198.51.100.{}:{}", n % 250 + 1, 1024 + n)
}

fn passed(world: &World, from: Option<u64>) -> Vec<Passed> {
    let mut all = Vec::new();
    let places = 0..world.director.places();
    world.director.pass_on(places, from, world.now, |flow| all.push(flow));
    all
}

/// A world in the place of another: the same slots, its own seed, room and clock.
fn heir(of: &World, services: Vec<VirtualServer>) -> World {
    let director = Settings { seed: Key(7, 9), ..Settings::default() };
    let mut registry = Registry::new(L4 { director, services }, 1);
    registry.set_interfaces(HashMap::from([(IN, vec![OWN])]));
    for n in 1..=20 {
        let neighbour = Neighbour { mac: server_mac(n), source: OWN, ifindex: OUT, vlan: None };
        registry.set_neighbour(server(n), Some(neighbour));
    }
    registry.restore(&of.registry.places());
    let director = Director::new(0, registry.tables(), 5000);
    World { registry, director, now: 50 }
}

fn take_over(world: &mut World, flows: &[Passed]) -> usize {
    flows.iter().filter(|flow| world.director.take_over(flow, world.now)).count()
}

fn open(world: &mut World, clients: std::ops::Range<u16>) -> Vec<u8> {
    let begin = |n| {
        let to = world.goes_to(&tcp(&client(n), SYN)).unwrap();
        world.goes_to(&tcp(&client(n), ACK));
        to
    };
    clients.map(begin).collect()
}

#[test]
fn flows_keep_their_servers_whatever_the_scheduler() {
    for (_, scheduler) in Scheduler::ALL {
        let mut old = World::tcp(scheduler);
        let before = open(&mut old, 0..CLIENTS);
        let mut new = heir(&old, vec![service(Protocol::Tcp, 80, scheduler)]);
        new.registry.let_go();
        assert_eq!(take_over(&mut new, &passed(&old, None)), before.len());
        for n in 1..=3 {
            assert_eq!(new.load(n), old.load(n), "{scheduler:?}");
        }
        for (n, server) in (0..CLIENTS).zip(before) {
            assert_eq!(new.goes_to(&tcp(&client(n), ACK)), Some(server), "{scheduler:?}");
        }
        assert_eq!(new.director.tables().overall[0].adopted.value(), 0);
    }
}

/// What came after the first copy follows, and nothing else.
#[test]
fn what_changed_follows() {
    let mut old = World::tcp(Scheduler::Rr);
    let before = open(&mut old, 0..100);
    old.wait(10);
    let began = old.now;
    let first = passed(&old, None);
    let mut new = heir(&old, vec![service(Protocol::Tcp, 80, Scheduler::Rr)]);
    new.registry.let_go();
    take_over(&mut new, &first);
    old.wait(1);
    let later = open(&mut old, 100..130);
    old.goes_to(&tcp(&client(5), FIN | ACK));
    old.goes_to(&tcp(&client(6), RST));
    old.goes_to(&tcp(&client(7), ACK));
    let rest = passed(&old, Some(began));
    assert_eq!(rest.len(), 30 + 3);
    new.wait(1);
    assert_eq!(take_over(&mut new, &rest), rest.len());
    for n in 1..=3 {
        assert_eq!(new.load(n), old.load(n));
    }
    for (n, server) in (0..).zip([before, later].concat()).filter(|(n, _)| *n != 6) {
        assert_eq!(new.goes_to(&tcp(&client(n), ACK)), Some(server), "{n}");
    }
}

/// Round robin goes on with the server whose turn it is.
#[test]
fn turns_go_on() {
    for begun in 0..4 {
        let mut old = World::tcp(Scheduler::Rr);
        open(&mut old, 0..begun);
        let mut new = heir(&old, vec![service(Protocol::Tcp, 80, Scheduler::Rr)]);
        assert_eq!(open(&mut new, 200..206), open(&mut old, 200..206), "after {begun}");
    }
}

/// A flow is forgotten when it would have been.
#[test]
fn time_goes_on() {
    let mut old = World::new(vec![service(Protocol::Udp, 53, Scheduler::Rr)]);
    let first = old.goes_to(&udp("198.51.100.7:4000", 53));
    old.wait(250);
    let mut new = heir(&old, vec![service(Protocol::Udp, 53, Scheduler::Rr)]);
    assert_eq!(take_over(&mut new, &passed(&old, None)), 1);
    new.wait(49);
    assert_eq!(new.goes_to(&udp("198.51.100.7:4000", 53)), first);
    let mut late = heir(&old, vec![service(Protocol::Udp, 53, Scheduler::Rr)]);
    assert_eq!(take_over(&mut late, &passed(&old, None)), 1);
    late.wait(51);
    late.director.expire(late.now);
    assert_eq!(late.director.flows(), 1, "looked at later");
    late.goes_to(&udp("198.51.100.7:4000", 53));
    let flows = |world: &World| {
        let tables = world.director.tables();
        tables.services.iter().flatten().map(|one| one.figures.totals().flows).sum::<u64>()
    };
    assert_eq!((flows(&new), flows(&late)), (0, 1), "one goes on, the other began anew");
    old.wait(51);
    assert!(passed(&old, None).is_empty(), "what is over is not passed");
}

/// A server that the new configuration does not have keeps its flows; another virtual server never gets them.
#[test]
fn slots_stay_with_whoever_had_them() {
    let mut old = World::tcp(Scheduler::Rr);
    let before = open(&mut old, 0..30);
    let flows = passed(&old, None);
    let mut smaller = service(Protocol::Tcp, 80, Scheduler::Rr);
    smaller.servers.remove(1);
    smaller.on_server_down = OnServerDown::Drain;
    let mut new = heir(&old, vec![smaller]);
    assert_eq!(take_over(&mut new, &flows), flows.len());
    new.registry.let_go();
    new.swap();
    for (n, server) in (0..).zip(&before) {
        assert_eq!(new.goes_to(&tcp(&client(n), ACK)), Some(*server), "{n}");
    }
    assert!(!open(&mut new, 200..230).contains(&2), "but gets no new ones");

    let mut other = service(Protocol::Tcp, 443, Scheduler::Rr);
    other.servers.reverse();
    let mut new = heir(&old, vec![other]);
    assert_eq!(take_over(&mut new, &flows), 0);
    assert!(new.director.tables().services.iter().flatten().all(|one| one.key.port == 443));

    // A slot whose occupant has gone is told by its generation.
    let all = old.registry.config().services.clone();
    let mut fewer = all.clone();
    fewer[0].servers.truncate(1);
    let mut gone = World::new(all);
    gone.registry.configure(L4 { services: fewer.clone(), ..gone.registry.config().clone() });
    gone.swap();
    let mut new = heir(&gone, old.registry.config().services.clone());
    assert_eq!(take_over(&mut new, &flows), before.iter().filter(|server| **server == 1).count());
}

#[test]
fn any_record_is_taken_or_left() {
    let mut world =
        heir(&World::tcp(Scheduler::Wlc), vec![service(Protocol::Tcp, 80, Scheduler::Wlc)]);
    let mut old = World::tcp(Scheduler::Wlc);
    open(&mut old, 0..1);
    let flow = passed(&old, None)[0];
    for (slot, generation, service) in
        [(0, 1, 0), (9, 0, 0), (0, 0, 9), (u16::MAX, u16::MAX, u16::MAX)]
    {
        let bad = Passed {
            server: ServerId { slot, generation },
            key: crate::l4::flow::Key { service, ..flow.key },
            ..flow
        };
        assert!(!world.director.take_over(&bad, 0), "{bad:?}");
    }
    let odd = Passed { rested: u32::MAX, ..flow };
    assert!(world.director.take_over(&odd, 0) && world.director.take_over(&flow, 0));
    assert_eq!(world.director.flows(), 1);
}
