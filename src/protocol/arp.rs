//! ARP for IPv4 over Ethernet (RFC 826): gratuitous announcements (RFC 5227 section 3) and a view
//! of what others announce.

use std::net::Ipv4Addr;

use super::ethernet::{self, Mac};

/// Length of the ARP message.
const MESSAGE: usize = 28;
/// Length of the frames built here, header included; the device pads them.
pub const FRAME: usize = ethernet::HEADER + MESSAGE;

/// Which of its two forms a gratuitous ARP has. Hosts differ in which they believe, so announcing
/// in both reaches the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// "Who has ADDRESS? Tell ADDRESS" (RFC 5227's ARP Announcement).
    Request,
    /// "ADDRESS is at MAC", asked by nobody.
    Reply,
}

/// A broadcast frame that announces `address` at `mac`.
///
/// Sender and target address are both `address`. The target hardware address is all ones, as
/// keepalived sends it; receivers ignore it.
#[must_use]
pub fn gratuitous(operation: Operation, mac: Mac, address: Ipv4Addr) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    let (header, message) = frame.split_at_mut(ethernet::HEADER);
    if let Some(header) = header.first_chunk_mut() {
        ethernet::write_header(header, Mac::BROADCAST, mac, ethernet::ARP);
    }
    let code = match operation {
        Operation::Request => 1,
        Operation::Reply => 2,
    };
    message[..8].copy_from_slice(&[0, 1, 0x08, 0x00, 6, 4, 0, code]);
    message[8..14].copy_from_slice(&mac.0);
    message[14..18].copy_from_slice(&address.octets());
    message[18..24].copy_from_slice(&Mac::BROADCAST.0);
    message[24..].copy_from_slice(&address.octets());
    frame
}

/// A frame that asks who has `target`; the answer goes to `source` at `mac`, which may be unspecified (an
/// address probe, RFC 5227 section 1.1). With `to` only that host is asked.
#[must_use]
pub fn request(mac: Mac, source: Ipv4Addr, target: Ipv4Addr, to: Option<Mac>) -> [u8; FRAME] {
    let mut frame = gratuitous(Operation::Request, mac, source);
    frame[..6].copy_from_slice(&to.unwrap_or(Mac::BROADCAST).0);
    let message = &mut frame[ethernet::HEADER..];
    message[18..24].copy_from_slice(&Mac::ZERO.0);
    message[24..].copy_from_slice(&target.octets());
    frame
}

/// The sender's claim in an ARP message: who says to be where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Hardware address of the sender.
    pub mac: Mac,
    /// Protocol address of the sender; unspecified in an address probe (RFC 5227 section 1.1).
    pub address: Ipv4Addr,
}

/// Reads the sender's claim from an ARP message (what follows the Ethernet header; padding is
/// ignored). `None` if it is not ARP for IPv4 over Ethernet.
#[must_use]
pub fn claim(message: &[u8]) -> Option<Claim> {
    let message: &[u8; MESSAGE] = message.first_chunk()?;
    let ([0, 1, 0x08, 0x00, 6, 4, 0, 1 | 2], rest) = message.split_first_chunk::<8>()? else {
        return None;
    };
    let (mac, rest) = rest.split_first_chunk::<6>()?;
    let address = rest.first_chunk::<4>()?;
    Some(Claim { mac: Mac(*mac), address: Ipv4Addr::from(*address) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([0x02, 0, 0, 0, 0, 7]);
    const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);

    #[test]
    fn request_on_the_wire() {
        let expected = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 7, 0x08, 0x06, // Ethernet
            0, 1, 8, 0, 6, 4, 0, 1, // request
            2, 0, 0, 0, 0, 7, 192, 0, 2, 100, // sender
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 192, 0, 2, 100, // target
        ];
        assert_eq!(gratuitous(Operation::Request, MAC, VIP), expected);
    }

    #[test]
    fn forms_differ_in_the_operation_only() {
        let mut reply = gratuitous(Operation::Reply, MAC, VIP);
        assert_eq!(reply[21], 2);
        reply[21] = 1;
        assert_eq!(reply, gratuitous(Operation::Request, MAC, VIP));
    }

    #[test]
    fn a_question_names_the_asker_and_the_target() {
        let own = Ipv4Addr::new(192, 0, 2, 1);
        let frame = request(MAC, own, VIP, None);
        assert_eq!(frame[..6], [0xff; 6]);
        assert_eq!(frame[20..28], [0, 1, 2, 0, 0, 0, 0, 7]);
        assert_eq!(frame[28..], [192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 192, 0, 2, 100]);
        let other = Mac([2, 0, 0, 0, 0, 9]);
        assert_eq!(request(MAC, own, VIP, Some(other))[..6], other.0);
    }

    #[test]
    fn claims_are_read_back_and_garbage_is_not() {
        let frame = gratuitous(Operation::Reply, MAC, VIP);
        let message = &frame[ethernet::HEADER..];
        assert_eq!(claim(message), Some(Claim { mac: MAC, address: VIP }));
        for cut in 0..message.len() {
            assert_eq!(claim(&message[..cut]), None);
        }
        for index in 0..8 {
            let mut wrong = message.to_vec();
            wrong[index] ^= 0x40;
            assert_eq!(claim(&wrong), None, "byte {index}");
        }
    }
}
