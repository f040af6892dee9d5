//! What holds for any frames.

use proptest::prelude::*;

use super::*;

fn everything() -> World {
    let mut tcp = service(Protocol::Tcp, 80, Scheduler::Wlc);
    tcp.on_server_down = OnServerDown::Reset;
    let mut v6 = service(Protocol::Tcp, 443, Scheduler::Mh);
    v6.key.address = ip("2001:db8::1");
    v6.servers = (1..=3).map(|n| real(server_v6(n), 1)).collect();
    let udp = service(Protocol::Udp, 53, Scheduler::Rr);
    let sctp = service(Protocol::Sctp, 0, Scheduler::Nq);
    World::with_room(vec![tcp, v6, udp, sctp], 16)
}

fn frames() -> impl Strategy<Value = Vec<u8>> {
    let client = (1_u8..6, 1000_u16..1004).prop_map(|(n, port)| format!("198.51.100.{n}:{port}"));
    let v6 =
        (any::<u8>(), prop::collection::vec(any::<u8>(), 0..60)).prop_map(|(next, payload)| {
            ip_frame(ip("2001:db8:9::1"), ip("2001:db8::1"), next, &payload)
        });
    let valid = (client, 0..5_u8, any::<u8>()).prop_map(|(client, kind, value)| match kind {
        0 => tcp(&client, value),
        1 => udp(&client, 53),
        2 => sctp(&client, u16::from(value), value % 16),
        3 => {
            let mut bytes = udp(&client, 53);
            as_fragment(
                &mut bytes,
                u16::from(value % 4),
                u16::from(value / 64) * 8,
                value & 1 == 0,
            );
            bytes
        }
        _ => tcp_to(&client, u16::from(value), SYN),
    });
    let valid = prop_oneof![4 => valid, 1 => v6];
    let mutation = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (valid, mutation, prop::option::of(0_usize..80)).prop_map(|(mut bytes, mutations, cut)| {
        for (at, value) in mutations {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        cut.into_iter().for_each(|cut| bytes.truncate(cut));
        bytes
    })
}

/// Sum of the outcomes of director 0.
fn outcomes(world: &mut World) -> u64 {
    let tables = world.registry.tables();
    let all = &tables.overall[0];
    let some =
        [&all.passed, &all.local, &all.forwarded, &all.encapsulated, &all.replied, &all.held];
    some.into_iter().chain(&all.dropped).map(crate::counter::Counter::value).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// What was foreseen changes no verdict, whether it is about this frame or about another.
    #[test]
    fn foresight_changes_nothing(
        frames in prop::collection::vec(frames(), 1..60),
        places in prop::collection::vec(0_usize..9, 60),
    ) {
        let (mut looks, mut blind) = (everything(), everything());
        let mut places = places.into_iter();
        for batch in frames.chunks(7) {
            looks.director.foresee(batch.iter().map(Vec::as_slice));
            for (place, frame) in batch.iter().enumerate() {
                let place = places.next().filter(|wrong| *wrong > 6).unwrap_or(place);
                looks.director.select(place);
                let (mut one, mut other) = (frame.clone(), frame.clone());
                prop_assert_eq!(looks.judge(&mut one), blind.judge(&mut other));
                prop_assert_eq!(one, other);
            }
        }
        prop_assert_eq!(looks.director.flows(), blind.director.flows());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Nothing but frames for a virtual server is forwarded, with nothing but MAC addresses
    /// changed; every frame is counted once; what servers hold is what the table holds.
    #[test]
    fn any_frames(
        frames in prop::collection::vec((frames(), 0_u16..2000), 1..120),
        states in prop::collection::vec((0_usize..120, 1_u8..4, any::<bool>()), 0..4),
    ) {
        let mut world = everything();
        let mut judged = 0;
        for (step, (frame, wait)) in frames.into_iter().enumerate() {
            for (_, n, up) in states.iter().filter(|(at, ..)| *at == step) {
                world.state(*n, ServerState { up: *up, weight: None });
            }
            world.now += u64::from(wait);
            let mut bytes = frame.clone();
            let verdict = world.judge(&mut bytes);
            judged += 1;
            if let Verdict::Forward { ifindex, .. } = verdict {
                prop_assert_eq!(ifindex, OUT);
                prop_assert_eq!(&bytes[12..], &frame[12..]);
                let view = View::parse(&frame).unwrap();
                prop_assert_eq!(view.destination, OWN);
                let packet = Packet::parse(&frame[view.payload..], frame.len() - view.payload);
                let packet = packet.unwrap();
                let ours = [vip(), ip("2001:db8::1")].contains(&packet.destination);
                prop_assert!(ours, "{:?}", packet);
            } else {
                prop_assert_eq!(&bytes, &frame);
            }
            while let Some((verdict, _)) = world.director.release(world.now) {
                prop_assert_ne!(verdict, Verdict::Hold);
                judged += 1;
            }
            prop_assert!(world.director.flows() <= 16);
        }
        prop_assert_eq!(outcomes(&mut world), judged);
        let tables = world.registry.tables();
        let held: u32 = tables.servers.iter().flatten()
            .map(|server| server.figures.load.active() + server.figures.load.inactive())
            .sum();
        prop_assert_eq!(held as usize, world.director.flows());
        for service in tables.services.iter().flatten() {
            let of_servers = service.servers.iter().filter_map(|slot| tables.occupant(*slot));
            let of_servers = of_servers.map(|server| server.figures.totals().packets).sum::<u64>();
            // Answered packets reach no server.
            prop_assert!(service.figures.totals().packets >= of_servers);
            prop_assert!(service.figures.totals().packets <= of_servers + tables.overall[0].replied.value()
                + tables.overall[0].dropped[Reason::ReplyLimit.index()].value()
                + tables.overall[0].dropped[Reason::NoServer.index()].value());
        }
    }
}
