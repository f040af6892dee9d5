//! The raw sockets, one for each interface and family in use.

use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, RawFd};

use crate::packet::vrrp_socket::{Buffers, Received, VrrpSocket};
use crate::protocol::vrrp::Family;

/// Batches read from one socket in a round at most. A flood beyond that waits, or is dropped by the kernel:
/// timers go first.
const BATCHES_MAX: usize = 32;

/// A socket that is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Needed {
    pub(super) interface: String,
    pub(super) index: u32,
    pub(super) family: Family,
    pub(super) multicast: bool,
}

#[derive(Debug)]
struct Open {
    needed: Needed,
    socket: VrrpSocket,
}

/// The open ones.
#[derive(Debug, Default)]
pub(super) struct Sockets(Vec<Open>);

impl Sockets {
    /// Opens what is needed and not open, and closes what is open and not needed; what could not be opened
    /// comes back as text.
    pub(super) fn reconcile(&mut self, needed: &[Needed]) -> Vec<String> {
        let needed = merged(needed);
        self.0.retain(|open| needed.contains(&open.needed));
        let mut problems = Vec::new();
        for needed in &needed {
            if self.0.iter().any(|open| open.needed == *needed) {
                continue;
            }
            let Needed { interface, index, family, multicast } = needed;
            match VrrpSocket::open(interface, *index, *family, *multicast) {
                Ok(socket) => self.0.push(Open { needed: needed.clone(), socket }),
                Err(error) => problems.push(format!("no VRRP socket on {interface}: {error}")),
            }
        }
        problems
    }

    /// Descriptors to wait for.
    pub(super) fn fds(&self) -> impl Iterator<Item = RawFd> {
        self.0.iter().map(|open| open.socket.as_raw_fd())
    }

    /// Hands over what waits on every socket, with the interface's index and the family; true when something
    /// may still wait. `batch` is called after each batch, before the next is read.
    pub(super) fn drain(
        &self,
        buffers: &mut Buffers,
        mut each: impl FnMut(u32, Family, Received<'_>),
    ) -> bool {
        let mut more = false;
        for Open { needed, socket } in &self.0 {
            let mut left = BATCHES_MAX;
            // An error is the interface's state, which netlink tells too.
            while socket
                .receive(buffers, |received| each(needed.index, needed.family, received))
                .is_ok_and(|count| count > 0)
            {
                left -= 1;
                if left == 0 {
                    more = true;
                    break;
                }
            }
        }
        more
    }

    /// Sends on the interface with this index.
    pub(super) fn send(
        &self,
        index: u32,
        source: IpAddr,
        destination: IpAddr,
        payload: &[u8],
    ) -> std::io::Result<()> {
        let family = Family::of(source);
        let open =
            self.0.iter().find(|open| (open.needed.index, open.needed.family) == (index, family));
        match open {
            Some(open) => open.socket.send(source, destination, payload),
            None => Err(std::io::Error::from_raw_os_error(libc::ENODEV)),
        }
    }
}

/// One for each interface and family, or each instance on it would be handed every datagram twice.
fn merged(needed: &[Needed]) -> Vec<Needed> {
    let mut merged: Vec<Needed> = Vec::new();
    for one in needed {
        let same = |known: &&mut Needed| (known.index, known.family) == (one.index, one.family);
        match merged.iter_mut().find(same) {
            Some(known) => known.multicast |= one.multicast,
            None => merged.push(one.clone()),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_socket_serves_all_instances_of_an_interface_and_family() {
        let needed = |index: u32, family, multicast| Needed {
            interface: format!("eth{index}"),
            index,
            family,
            multicast,
        };
        let all = [
            needed(1, Family::V4, false),
            needed(1, Family::V6, false),
            needed(1, Family::V4, true),
            needed(2, Family::V4, false),
            needed(1, Family::V4, false),
        ];
        let expected = [
            needed(1, Family::V4, true),
            needed(1, Family::V6, false),
            needed(2, Family::V4, false),
        ];
        assert_eq!(merged(&all), expected);
    }
}
