//! What a forwarder reads of TCP, UDP and SCTP: ports, and whether a packet begins or ends a flow.

/// Source and destination port, which all three protocols have in front.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ports {
    /// From.
    pub source: u16,
    /// To.
    pub destination: u16,
}

impl Ports {
    /// Reads them; `None` if there are fewer than four bytes.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, d] = *bytes.first_chunk()?;
        let (source, destination) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        Some(Self { source, destination })
    }
}

/// TCP's flags that matter here (RFC 9293 section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    const FIN: u8 = 1;
    const SYN: u8 = 2;
    const RST: u8 = 4;
    const ACK: u8 = 16;

    /// Reads them; `None` if the header is cut off before the end of its fixed part.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        bytes.first_chunk::<TCP_HEADER>().map(|head| Self(head[13]))
    }

    /// Asks for a new connection: SYN, and none of ACK, FIN and RST.
    #[must_use]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST | Self::FIN) == Self::SYN
    }

    /// Ends the sender's direction.
    #[must_use]
    pub const fn fin(self) -> bool {
        self.0 & Self::FIN != 0
    }

    /// Ends the connection.
    #[must_use]
    pub const fn rst(self) -> bool {
        self.0 & Self::RST != 0
    }

    /// Carries an acknowledgement.
    #[must_use]
    pub const fn ack(self) -> bool {
        self.0 & Self::ACK != 0
    }

    /// Carries SYN.
    #[must_use]
    pub const fn syn(self) -> bool {
        self.0 & Self::SYN != 0
    }
}

/// Length of a TCP header without options.
pub const TCP_HEADER: usize = 20;
/// Length of a UDP header.
pub const UDP_HEADER: usize = 8;
/// Length of SCTP's common header.
pub const SCTP_HEADER: usize = 12;

/// What an SCTP packet's first chunk does to its association (RFC 9260 section 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sctp {
    /// INIT: asks for a new association; always alone in its packet.
    Init,
    /// ABORT or SHUTDOWN COMPLETE: over.
    End,
    /// SHUTDOWN or SHUTDOWN ACK: about to be over.
    Shutdown,
    /// Anything else.
    Other,
}

impl Sctp {
    /// Looks at the first chunk; `None` if there is none.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        Some(match bytes.get(SCTP_HEADER)? {
            1 => Self::Init,
            6 | 14 => Self::End,
            7 | 8 => Self::Shutdown,
            _ => Self::Other,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports() {
        assert_eq!(
            Ports::parse(&[0x1f, 0x90, 0, 80, 7]),
            Some(Ports { source: 8080, destination: 80 })
        );
        assert_eq!(Ports::parse(&[1, 2, 3]), None);
    }

    #[test]
    fn tcp_flags() {
        let flags = |byte: u8| {
            let mut head = [0; TCP_HEADER];
            head[13] = byte;
            TcpFlags::parse(&head).unwrap()
        };
        assert!(flags(0x02).opens() && flags(0xc2).opens(), "ECN set-up is a SYN too");
        for other in [0x12, 0x10, 0x06, 0x03, 0x00, 0x04] {
            assert!(!flags(other).opens(), "{other:#x}");
        }
        assert!(flags(0x11).fin() && flags(0x14).rst() && flags(0x10).ack() && flags(0x12).syn());
        assert_eq!(TcpFlags::parse(&[0; TCP_HEADER - 1]), None);
    }

    #[test]
    fn sctp_chunks() {
        let first = |kind: u8| {
            let mut packet = [0; 16];
            packet[12] = kind;
            Sctp::parse(&packet)
        };
        assert_eq!(first(1), Some(Sctp::Init));
        assert_eq!((first(6), first(14)), (Some(Sctp::End), Some(Sctp::End)));
        assert_eq!((first(7), first(8)), (Some(Sctp::Shutdown), Some(Sctp::Shutdown)));
        assert_eq!((first(0), first(10)), (Some(Sctp::Other), Some(Sctp::Other)));
        assert_eq!(Sctp::parse(&[0; SCTP_HEADER]), None);
    }
}
