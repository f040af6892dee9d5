//! Packets in pieces.

use super::*;

fn world() -> World {
    World::new(vec![service(Protocol::Udp, 53, Scheduler::Rr)])
}

/// The pieces of a datagram of 24 bytes of payload behind the UDP header.
fn pieces(client: &str, id: u16) -> [Vec<u8>; 3] {
    let whole = udp(client, 53);
    let piece = |offset: u16, more| {
        let mut bytes = whole.clone();
        bytes.truncate(14 + 20);
        bytes.extend_from_slice(&if offset == 0 { whole[34..42].to_vec() } else { vec![9; 8] });
        bytes[16..18].copy_from_slice(&28_u16.to_be_bytes());
        as_fragment(&mut bytes, id, offset, more);
        bytes
    };
    [piece(0, true), piece(8, true), piece(16, false)]
}

#[test]
fn later_ones_follow_the_first() {
    let mut world = world();
    for (n, expected) in [(1, 1), (2, 2), (3, 3), (4, 1)] {
        let pieces = pieces(&format!("198.51.100.{n}:1000"), 77);
        for piece in &pieces {
            assert_eq!(world.goes_to(piece), Some(expected));
        }
    }
    // The whole flow's packets go the same way.
    assert_eq!(world.goes_to(&udp("198.51.100.2:1000", 53)), Some(2));
}

#[test]
fn those_that_come_first_wait() {
    let mut world = world();
    let [first, second, third] = pieces("198.51.100.1:1000", 77);
    assert_eq!(world.judge(&mut third.clone()), Verdict::Hold);
    assert_eq!(world.judge(&mut second.clone()), Verdict::Hold);
    assert!(world.director.release(world.now).is_none());
    assert_eq!(world.goes_to(&first), Some(1));
    for expected in [third, second] {
        let (verdict, bytes) = world.director.release(world.now).unwrap();
        assert!(matches!(verdict, Verdict::Forward { ifindex: OUT, .. }), "{verdict:?}");
        assert_eq!((&bytes[..6], &bytes[12..]), (&server_mac(1).0[..], &expected[12..]));
    }
    assert!(world.director.release(world.now).is_none());
}

#[test]
fn without_a_first_they_are_dropped() {
    let mut world = world();
    let [_, second, _] = pieces("198.51.100.1:1000", 77);
    assert_eq!(world.judge(&mut second.clone()), Verdict::Hold);
    world.wait(6);
    let (verdict, _) = world.director.release(world.now).unwrap();
    assert_eq!(verdict, Verdict::Drop(Reason::Fragment));
}

/// What is the kernel's stays the kernel's, whole.
#[test]
fn of_other_ports() {
    let mut world = world();
    let mut pieces = pieces("198.51.100.1:1000", 77);
    pieces[0][36..38].copy_from_slice(&54_u16.to_be_bytes());
    for piece in &mut pieces {
        assert_eq!(world.judge(piece), Verdict::Pass);
    }
}

#[test]
fn of_ipv6() {
    let mut one = service(Protocol::Udp, 53, Scheduler::Rr);
    let vip = ip("2001:db8::1");
    one.key.address = vip;
    one.servers = (1..=3).map(|n| real(server_v6(n), 1)).collect();
    let mut world = World::new(vec![one]);
    let piece = |client: &str, field: u16, payload: &[u8]| {
        let [a, b] = field.to_be_bytes();
        let header = [&[ip::UDP, 0, a, b, 0, 0, 0, 5], payload].concat();
        ip_frame(ip(client), vip, 44, &header)
    };
    let head = ports(1000, 53, 16);
    for (client, expected) in [("2001:db8:9::1", 1), ("2001:db8:9::2", 2)] {
        assert_eq!(world.goes_to(&piece(client, 1, &head)), Some(expected));
        assert_eq!(world.goes_to(&piece(client, 16, &[1; 8])), Some(expected));
    }
}

/// A first fragment that holds no whole header is an attack (RFC 1858), or nothing of use.
#[test]
fn tiny_first_fragment() {
    let mut world = World::tcp(Scheduler::Rr);
    let mut bytes = tcp("198.51.100.1:1000", SYN);
    bytes.truncate(14 + 20 + 8);
    bytes[16..18].copy_from_slice(&28_u16.to_be_bytes());
    as_fragment(&mut bytes, 5, 0, true);
    assert_eq!(world.judge(&mut bytes), Verdict::Drop(Reason::Malformed));
    as_fragment(&mut bytes, 5, 8, false);
    assert_eq!(world.judge(&mut bytes), Verdict::Drop(Reason::Malformed), "and so is the rest");
}
