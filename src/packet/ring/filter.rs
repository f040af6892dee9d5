//! Which frames are copied into a ring, and which director gets them: classic BPF made from the virtual
//! services. Pure.
//!
//! The kernel takes a VLAN tag off before it looks, so the offsets hold with and without one.

use std::net::IpAddr;

use super::bpf::{PACKET_TYPE, PROTOCOL, Program, STEPS_MAX};
use crate::protocol::ethernet::{IPV4, IPV6};

const ICMP: u32 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u32 = 58;
const SCTP: u8 = 132;
/// Hop-by-hop options, routing header, fragment, destination options: what may stand before the ports.
const EXTENSIONS: [u32; 4] = [0, 43, 44, 60];
/// ICMP errors: unreachable, source quench, time exceeded, parameter problem.
const ICMP_ERRORS: [u32; 4] = [3, 4, 11, 12];
/// ICMPv6 errors: unreachable, too big, time exceeded, parameter problem.
const ICMPV6_ERRORS: [u32; 4] = [1, 2, 3, 4];
/// In IPv4's flags and offset: more fragments follow, or this is not the first.
const FRAGMENT: u32 = 0x3fff;
/// All of the frame.
const WHOLE: u32 = u32::MAX;
/// Where IP begins, and the addresses and next protocols in it.
const IP: u32 = 14;

/// What a director answers for: an address, and a port of a protocol. Without a port, all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Service {
    /// The virtual address.
    pub address: IpAddr,
    /// TCP 6, UDP 17 or SCTP 132.
    pub protocol: u8,
    /// Destination port; 0: any.
    pub port: u16,
}

/// Takes frames to the services, fragments to their addresses, and ICMP errors to them; nothing else. What
/// is not meant for this host (a bridge or a sniffer shows it) is not taken either.
///
/// With so many services that the program would be too long, ports are left out; then addresses.
#[must_use]
pub fn services(services: &[Service]) -> Program {
    let by_address = build(services, true);
    if by_address.len() <= STEPS_MAX {
        return by_address;
    }
    let coarse = build(services, false);
    if coarse.len() <= STEPS_MAX { coarse } else { every_ip_frame() }
}

/// Takes every frame of IPv4 and IPv6 for this host.
#[must_use]
pub fn every_ip_frame() -> Program {
    let mut program = Program::default();
    let (take, reject) = (program.label(), program.label());
    program.load_byte_of_type(reject);
    program.load_half(12);
    program.jump_if_equal(IPV4.into(), take);
    program.jump_if_equal(IPV6.into(), take);
    program.place(reject);
    program.give(0);
    program.place(take);
    program.give(WHOLE);
    program.finish()
}

impl Program {
    fn load_byte_of_type(&mut self, reject: super::bpf::Label) {
        self.load_word(PACKET_TYPE);
        self.jump_unless_equal(libc::PACKET_HOST.into(), reject);
    }
}

fn build(services: &[Service], ports: bool) -> Program {
    let mut program = Program::default();
    let (four, six) = (program.label(), program.label());
    let reject = program.label();
    program.load_byte_of_type(reject);
    program.load_half(12);
    program.jump_if_equal(IPV4.into(), four);
    program.jump_if_equal(IPV6.into(), six);
    program.place(reject);
    program.give(0);
    program.place(four);
    // Jumps go ahead only: each part rejects and takes by itself.
    let groups = by_address(services);
    part_four(&mut program, &groups, ports);
    program.place(six);
    part_six(&mut program, &groups, ports);
    program.finish()
}

type Group = (IpAddr, Vec<(u8, u16)>);

fn by_address(services: &[Service]) -> Vec<Group> {
    let mut sorted = services.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let mut groups: Vec<Group> = Vec::new();
    for service in sorted {
        let one = (service.protocol, service.port);
        match groups.last_mut() {
            Some((address, ports)) if *address == service.address => ports.push(one),
            _ => groups.push((service.address, vec![one])),
        }
    }
    groups
}

fn part_four(program: &mut Program, groups: &[Group], ports: bool) {
    let mut rest = Vec::new();
    program.load_word(IP + 16);
    for (address, services) in groups {
        let IpAddr::V4(address) = address else { continue };
        let label = program.label();
        program.jump_if_equal(u32::from(*address), label);
        rest.push((label, services));
    }
    program.give(0);
    for (label, services) in rest {
        program.place(label);
        if !ports {
            program.give(WHOLE);
            continue;
        }
        let (take, icmp) = (program.label(), program.label());
        program.load_half(IP + 6);
        program.jump_if_any(FRAGMENT, take);
        program.header_length(IP);
        program.load_byte(IP + 9);
        program.jump_if_equal(ICMP, icmp);
        protocols(program, services, |program| program.load_half_behind(IP + 2));
        program.place(icmp);
        program.load_byte_behind(IP);
        for kind in ICMP_ERRORS {
            program.jump_if_equal(kind, take);
        }
        program.give(0);
        program.place(take);
        program.give(WHOLE);
    }
}

fn part_six(program: &mut Program, groups: &[Group], ports: bool) {
    for (address, services) in groups {
        let IpAddr::V6(address) = address else { continue };
        let (take, icmp, other) = (program.label(), program.label(), program.label());
        for (at, word) in (0u32..).zip(address.octets().as_chunks::<4>().0) {
            program.load_word(IP + 24 + 4 * at);
            program.jump_unless_equal(u32::from_be_bytes(*word), other);
        }
        if ports {
            program.load_byte(IP + 6);
            for extension in EXTENSIONS {
                program.jump_if_equal(extension, take);
            }
            program.jump_if_equal(ICMPV6, icmp);
            protocols(program, services, |program| program.load_half(IP + 42));
            program.place(icmp);
            program.load_byte(IP + 40);
            for kind in ICMPV6_ERRORS {
                program.jump_if_equal(kind, take);
            }
            program.give(0);
        }
        program.place(take);
        program.give(WHOLE);
        program.place(other);
    }
    program.give(0);
}

/// With the protocol in A: takes the service's protocols and ports, rejects others. Always ends.
fn protocols(program: &mut Program, services: &[(u8, u16)], load_port: impl Fn(&mut Program)) {
    let labels = [TCP, UDP, SCTP].map(|protocol| {
        let label = program.label();
        if services.iter().any(|(of, _)| *of == protocol) {
            program.jump_if_equal(protocol.into(), label);
        }
        (protocol, label)
    });
    program.give(0);
    for (protocol, label) in labels {
        let mut ports = services.iter().filter(|(of, _)| *of == protocol).peekable();
        program.place(label);
        if ports.peek().is_none() {
            continue;
        }
        let take = program.label();
        load_port(program);
        for (_, port) in ports {
            match port {
                0 => program.jump(take),
                port => program.jump_if_equal((*port).into(), take),
            }
        }
        program.give(0);
        program.place(take);
        program.give(WHOLE);
    }
}

/// Spreads frames by the client's address (PACKET_FANOUT with a program): the flows of a client, its fragments
/// and ICMP errors about what it was sent all come to the same director. It sees IP without the Ethernet header.
///
/// The kernel's own hash takes the ports in, and so parts fragments and ICMP errors from their flows.
#[must_use]
pub fn by_client() -> Program {
    let mut program = Program::default();
    let (four, six, hash) = (program.label(), program.label(), program.label());
    program.load_half_protocol();
    program.jump_if_equal(IPV4.into(), four);
    program.jump_if_equal(IPV6.into(), six);
    program.give(0);
    program.place(four);
    let (icmp, direct) = (program.label(), program.label());
    program.load_byte(9);
    program.jump_if_equal(ICMP, icmp);
    program.jump(direct);
    program.place(icmp);
    program.header_length(0);
    program.load_byte_behind(0);
    let error = program.label();
    for kind in ICMP_ERRORS {
        program.jump_if_equal(kind, error);
    }
    program.jump(direct);
    program.place(error);
    // Embedded is what was sent to the client.
    program.load_word_behind(8 + 16);
    program.jump(hash);
    program.place(direct);
    program.load_word(12);
    program.jump(hash);
    program.place(six);
    six_client(&mut program);
    program.place(hash);
    program.copy_to_x();
    program.shift_right(16);
    program.xor_x();
    program.multiply(0x9e37_79b1);
    program.shift_right(12);
    program.give_a();
    program.finish()
}

/// What [`by_client`] gives for frames of this client; modulo the number of directors it is the one they go to.
#[must_use]
pub fn of_client(client: IpAddr) -> u32 {
    let word = match client {
        IpAddr::V4(v4) => v4.to_bits(),
        IpAddr::V6(v6) => v6
            .octets()
            .as_chunks::<4>()
            .0
            .iter()
            .fold(0, |sum, part| sum ^ u32::from_be_bytes(*part)),
    };
    ((word >> 16) ^ word).wrapping_mul(0x9e37_79b1) >> 12
}

fn six_client(program: &mut Program) {
    let (icmp, direct, over) = (program.label(), program.label(), program.label());
    program.load_byte(6);
    program.jump_if_equal(ICMPV6, icmp);
    program.jump(direct);
    program.place(icmp);
    program.load_byte(40);
    // Errors are below 128 (RFC 4443 section 2.1).
    program.jump_if_any(0x80, direct);
    fold(program, 40 + 8 + 24);
    program.jump(over);
    program.place(direct);
    fold(program, 8);
    program.place(over);
}

/// Takes Neighbour Advertisements (ICMPv6 type 136) to this host or a group.
pub(in crate::packet) fn neighbour_advertisements() -> Program {
    let mut program = Program::default();
    let reject = program.label();
    program.load_byte(IP + 6);
    program.jump_unless_equal(ICMPV6, reject);
    program.load_byte(IP + 40);
    program.jump_unless_equal(136, reject);
    program.give(WHOLE);
    program.place(reject);
    program.give(0);
    program.finish()
}

/// The four words of an IPv6 address as one.
fn fold(program: &mut Program, at: u32) {
    program.load_word(at);
    for word in 1..4 {
        program.copy_to_x();
        program.load_word(at + 4 * word);
        program.xor_x();
    }
}

impl Program {
    fn load_half_protocol(&mut self) {
        self.load_half(PROTOCOL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: u32 = 0;
    const OTHER: u32 = 3;

    fn service(address: &str, protocol: u8, port: u16) -> Service {
        Service { address: address.parse().expect("a literal"), protocol, port }
    }

    fn all() -> Vec<Service> {
        vec![
            service("10.0.0.1", TCP, 80),
            service("10.0.0.1", TCP, 443),
            service("10.0.0.1", UDP, 53),
            service("10.0.0.2", UDP, 0),
            service("2001:db8::1", TCP, 80),
            service("2001:db8::2", SCTP, 5060),
        ]
    }

    fn four(to: [u8; 4], protocol: u8, offset: u16, port: u16, options: usize) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0]);
        let mut ip = vec![0; 20 + options];
        ip[0] = 0x45 + u8::try_from(options / 4).expect("short");
        ip[6..8].copy_from_slice(&offset.to_be_bytes());
        ip[9] = protocol;
        ip[12..16].copy_from_slice(&[192, 0, 2, 9]);
        ip[16..20].copy_from_slice(&to);
        frame.extend(ip);
        frame.extend(2000u16.to_be_bytes());
        frame.extend(port.to_be_bytes());
        frame.extend([0; 40]);
        frame
    }

    fn six(to: &str, next: u8, port: u16) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, next, 64]);
        frame.extend([7; 16]);
        frame.extend(to.parse::<std::net::Ipv6Addr>().expect("a literal").octets());
        frame.extend(2000u16.to_be_bytes());
        frame.extend(port.to_be_bytes());
        frame.extend([0; 80]);
        frame
    }

    #[test]
    fn only_frames_to_services_pass() {
        let program = services(&all());
        let passes = |frame: &[u8]| program.run(frame, HOST, 0) != 0;
        let (one, two) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        for (frame, expected, what) in [
            (four(one, TCP, 0, 80, 0), true, "a service"),
            (four(one, TCP, 0x4000, 443, 12), true, "options, don't fragment"),
            (four(one, TCP, 0, 81, 0), false, "another port"),
            (four(one, UDP, 0, 80, 0), false, "another protocol"),
            (four(one, UDP, 0, 53, 0), true, "UDP"),
            (four([10, 0, 0, 3], TCP, 0, 80, 0), false, "another address"),
            (four(two, UDP, 0, 999, 0), true, "any port"),
            (four(two, TCP, 0, 999, 0), false, "any port of another protocol"),
            (four(one, TCP, 0x2000, 99, 0), true, "a first fragment"),
            (four(one, TCP, 100, 99, 0), true, "a later fragment"),
            (four(one, 1, 0, 0, 0), false, "an echo reply"),
            (six("2001:db8::1", TCP, 80), true, "IPv6"),
            (six("2001:db8::1", TCP, 81), false, "IPv6, another port"),
            (six("2001:db8::3", TCP, 80), false, "IPv6, another address"),
            (six("2001:db8::2", SCTP, 5060), true, "SCTP"),
            (six("2001:db8::1", 44, 0), true, "IPv6 fragment"),
            (six("2001:db8::1", 0, 0), true, "hop-by-hop options"),
            (six("2001:db8::1", 59, 0), false, "no next header"),
            (vec![0xff; 60], false, "another EtherType"),
            (four(one, TCP, 0, 80, 0)[..30].to_vec(), false, "torn"),
        ] {
            assert_eq!(passes(&frame), expected, "{what}");
            assert_eq!(program.run(&frame, OTHER, 0), 0, "{what} to another host");
        }
    }

    #[test]
    fn icmp_errors_pass_and_other_icmp_does_not() {
        let program = services(&all());
        for kind in 0..=255u8 {
            let mut frame = four([10, 0, 0, 1], 1, 0, 0, 4);
            frame[14 + 24] = kind;
            let expected = ICMP_ERRORS.contains(&kind.into());
            assert_eq!(program.run(&frame, HOST, 0) != 0, expected, "ICMP {kind}");
            let mut frame = six("2001:db8::1", 58, 0);
            frame[14 + 40] = kind;
            let expected = ICMPV6_ERRORS.contains(&kind.into());
            assert_eq!(program.run(&frame, HOST, 0) != 0, expected, "ICMPv6 {kind}");
        }
    }

    #[test]
    fn many_services_become_coarse_and_never_too_long() {
        let many = |count: u16| -> Vec<Service> {
            (0..count).map(|n| service("10.0.0.1", TCP, n + 1)).collect()
        };
        assert!(services(&many(1500)).len() <= STEPS_MAX);
        let coarse = services(&many(3000));
        assert!(coarse.len() <= STEPS_MAX);
        assert_ne!(coarse.run(&four([10, 0, 0, 1], TCP, 0, 9999, 0), HOST, 0), 0);
        assert_eq!(coarse.run(&four([10, 0, 0, 2], TCP, 0, 1, 0), HOST, 0), 0);
        let hosts: Vec<Service> = (0..5000u32)
            .map(|n| Service { address: IpAddr::from(n.to_be_bytes()), protocol: TCP, port: 80 })
            .collect();
        let coarsest = services(&hosts);
        assert!(coarsest.len() <= STEPS_MAX);
        assert_ne!(coarsest.run(&four([9, 9, 9, 9], TCP, 0, 1, 0), HOST, 0), 0);
        assert_eq!(services(&[]).run(&four([9, 9, 9, 9], TCP, 0, 1, 0), HOST, 0), 0);
    }

    #[test]
    fn a_client_its_fragments_and_errors_about_it_go_the_same_way() {
        let program = by_client();
        let run = |frame: &[u8], ether: u16| program.run(&frame[14..], HOST, ether.into());
        let direct = run(&four([10, 0, 0, 1], TCP, 0, 80, 0), IPV4);
        assert_eq!(direct, of_client([192, 0, 2, 9].into()));
        assert_eq!(run(&four([10, 0, 0, 1], UDP, 100, 7, 8), IPV4), direct);
        let mut error = four([10, 0, 0, 1], 1, 0, 0, 4);
        error[14 + 24] = 3;
        error[14 + 24 + 8 + 16..][..4].copy_from_slice(&[192, 0, 2, 9]);
        error[14 + 12..][..4].copy_from_slice(&[203, 0, 113, 1]);
        assert_eq!(run(&error, IPV4), direct);
        let direct = run(&six("2001:db8::1", TCP, 80), IPV6);
        assert_eq!(direct, of_client([7; 16].into()));
        let client: IpAddr = "2001:db8:1:2:3:4:5:6".parse().expect("a literal");
        let IpAddr::V6(v6) = client else { panic!("IPv6") };
        let mut other = six("2001:db8::1", TCP, 80);
        other[14 + 8..][..16].copy_from_slice(&v6.octets());
        assert_eq!(run(&other, IPV6), of_client(client));
        let mut error = six("2001:db8::1", 58, 0);
        error[14 + 8..][..16].copy_from_slice(&[1; 16]);
        error[14 + 40] = 2;
        error[14 + 40 + 8 + 24..][..16].copy_from_slice(&[7; 16]);
        assert_eq!(run(&error, IPV6), direct);
    }

    #[test]
    fn clients_spread_evenly() {
        let program = by_client();
        let mut counts = [0u32; 4];
        for client in 0..4000u16 {
            let mut frame = four([10, 0, 0, 1], TCP, 0, 80, 0);
            let [high, low] = client.to_be_bytes();
            frame[14 + 12..][..4].copy_from_slice(&[10, 1, high, low]);
            counts[program.run(&frame[14..], HOST, IPV4.into()) as usize % 4] += 1;
        }
        assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
    }
}
