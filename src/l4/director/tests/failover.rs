//! One director dies, and another that knows none of its flows takes over.

use super::*;

const CLIENTS: u16 = 2000;

fn client(n: u16) -> String {
    let [a, b] = n.to_be_bytes();
    format!("198.51.{a}.{b}:{}", 1024 + n)
}

/// Connections open on the first director; how many stay on their server on the second.
fn kept(scheduler: Scheduler, change: impl Fn(&mut World, u8)) -> usize {
    let world = || World::with_room(vec![service(Protocol::Tcp, 80, scheduler)], 4000);
    let mut worlds = [world(), world()];
    let open: Vec<u8> = (0..CLIENTS)
        .map(|n| {
            let to = worlds[0].goes_to(&tcp(&client(n), SYN)).unwrap();
            worlds[0].goes_to(&tcp(&client(n), ACK));
            to
        })
        .collect();
    worlds.iter_mut().for_each(|world| change(world, 3));
    let mut kept = 0;
    for (n, before) in (0..CLIENTS).zip(open) {
        let after = worlds[1].goes_to(&tcp(&client(n), ACK));
        kept += usize::from(after == Some(before));
        assert_eq!(worlds[1].goes_to(&tcp(&client(n), ACK)), after, "and it stays there");
    }
    kept
}

/// With Maglev all flows are where they were, from the first packet on.
#[test]
fn maglev_keeps_every_flow() {
    for scheduler in [Scheduler::Mh, Scheduler::Sh] {
        assert_eq!(kept(scheduler, |_, _| ()), usize::from(CLIENTS), "{scheduler:?}");
    }
}

/// A dead server's flows move, and no others.
#[test]
fn and_all_but_a_dead_servers() {
    let down = |world: &mut World, n| world.state(n, ServerState { up: false, weight: None });
    let kept = kept(Scheduler::Mh, down);
    let survivors = usize::from(CLIENTS) * 2 / 3;
    assert!(kept.abs_diff(survivors) < 100, "{kept} of {survivors}");
}

/// Other schedulers' choices cannot be found again by another director: a third is there by luck.
#[test]
fn others_need_the_memory() {
    let kept = kept(Scheduler::Rr, |_, _| ());
    assert!(kept < usize::from(CLIENTS) / 2, "{kept}");
}

/// A server is added, and the director restarts: few flows have moved.
#[test]
fn one_more_server() {
    let add = |world: &mut World, _| {
        let mut config = world.registry.config().clone();
        config.services[0].servers.push(real(server(4), 1));
        world.registry.configure(config);
        world.swap();
    };
    let kept = kept(Scheduler::Mh, add);
    let share = kept as f64 / f64::from(CLIENTS);
    assert!((0.70..0.80).contains(&share), "three quarters stay: {share}");
}

/// Directors that were started in different order of servers, and with other figures, agree.
#[test]
fn order_does_not_matter() {
    let mut one = service(Protocol::Tcp, 80, Scheduler::Mh);
    let mut first = World::new(vec![one.clone()]);
    one.servers.reverse();
    let mut second = World::new(vec![service(Protocol::Udp, 53, Scheduler::Rr), one]);
    for n in 0..CLIENTS {
        let packet = tcp(&client(n), ACK);
        assert_eq!(first.goes_to(&packet), second.goes_to(&packet));
    }
}
