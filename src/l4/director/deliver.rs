//! A decision into bytes.

use super::fragments::Fate;
use super::{Core, Reason, Verdict};
use crate::l4::config::Forward;
use crate::l4::tables::{Neighbour, Path, Server, Tables};

impl Core {
    /// Rewrites a frame for where it goes; `length` is that of its IP packet.
    pub(super) fn carry_out(
        &mut self,
        tables: &Tables,
        fate: Fate,
        bytes: &mut [u8],
        length: usize,
    ) -> Verdict {
        let id = match fate {
            Fate::Pass => return Verdict::Pass,
            Fate::Drop(reason) => return Verdict::Drop(reason),
            Fate::To(id) => id,
        };
        // Gone since its first fragment was seen.
        let Some(server) = tables.server(id) else { return Verdict::Drop(Reason::NoServer) };
        let service = tables.services.get(usize::from(server.service)).and_then(Option::as_ref);
        let forward = service.map_or(Forward::Dr, |service| service.forward);
        match (server.path, forward) {
            (Path::Local, _) => Verdict::Local(id),
            (Path::Unknown, _) => Verdict::Drop(Reason::NoNeighbour),
            (Path::Via(to), Forward::Dr) => rewrite(bytes, server, to),
            (Path::Via(_), _) => {
                let _ = length;
                Verdict::Drop(Reason::TooBig)
            }
        }
    }
}

/// Direct routing: the two MAC addresses, and nothing else.
fn rewrite(bytes: &mut [u8], server: &Server, to: Neighbour) -> Verdict {
    let Some(addresses) = bytes.first_chunk_mut::<12>() else {
        return Verdict::Drop(Reason::Malformed);
    };
    addresses[..6].copy_from_slice(&to.mac.0);
    addresses[6..].copy_from_slice(&to.source.0);
    Verdict::Forward { ifindex: to.ifindex, vlan: to.vlan, server: server.id }
}
