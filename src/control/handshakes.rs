//! TCP handshakes that a client has not completed yet. Before the addresses go to another node these are waited for: their
//! clients' answers would find nobody there who knows them, and be reset.

use std::fs::File;
use std::io::Read as _;

/// The kernel's lists of this network namespace's sockets (`proc_net_tcp` in the kernel's documentation).
const LISTS: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];
/// So much of a list is looked at: some 50,000 sockets.
const LIST_MAX: u64 = 8 << 20;
/// `TCP_SYN_RECV`, as it stands there.
const SYN_RECEIVED: &str = "03";

/// Whether any is under way to one of these ports, as far as the kernel tells.
pub(super) fn are_under_way(ports: &[u16]) -> bool {
    LISTS.iter().any(|list| {
        let mut text = Vec::new();
        // What cannot be read says nothing, and nobody waits for it.
        let read = File::open(list).and_then(|file| file.take(LIST_MAX).read_to_end(&mut text));
        read.is_ok() && lists_one(&String::from_utf8_lossy(&text), ports)
    })
}

fn lists_one(list: &str, ports: &[u16]) -> bool {
    list.lines().skip(1).any(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (local, state) = (fields.nth(1), fields.nth(1));
        let port = local.and_then(|local| local.rsplit_once(':'));
        let port = port.and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
        state == Some(SYN_RECEIVED) && port.is_some_and(|port| ports.contains(&port))
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    const HEAD: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when\n";

    #[test]
    fn only_half_open_connections_to_our_ports_count() {
        for (line, expected) in [
            ("   0: 0100007F:0050 0200007F:C350 03 00000000:00000000 01:00000064", true),
            ("   1: 00000000000000000000000001000000:01BB 0:C350 03 0:0 01:64", true),
            ("   2: 0100007F:0050 0200007F:C350 01 00000000:00000000 00:00000000", false),
            ("   3: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000", false),
            ("   4: 0100007F:0016 0200007F:C350 03 00000000:00000000 01:00000064", false),
            ("   5: 0100007F 0200007F:C350 03", false),
            ("   6:", false),
            ("", false),
        ] {
            assert_eq!(lists_one(&format!("{HEAD}{line}\n"), &[80, 443]), expected, "{line}");
        }
        assert!(!lists_one("", &[80]));
    }

    #[test]
    fn the_kernels_own_lists_are_read() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let _client = TcpStream::connect(address).expect("a connection");
        let _server = listener.accept().expect("its last packet has come");
        assert!(!are_under_way(&[address.port()]), "complete");
        let list = std::fs::read_to_string(LISTS[0]).expect("readable");
        let listed = format!(":{:04X} ", address.port());
        assert!(list.lines().next().is_some_and(|head| head.contains("local_address")));
        assert!(list.contains(&listed), "listed as it is looked for");
    }
}
