//! A decision into bytes.

use super::fragments::Fate;
use super::{Core, REPLIES_MAX, Reason, Verdict, reply, tunnel};
use crate::l4::config::Forward;
use crate::l4::tables::{Neighbour, Path, Server, Tables};

/// Where a frame came in: interface and VLAN tag.
pub(super) type Origin = (u32, Option<u16>);

impl Core {
    /// Rewrites a frame for where it goes. `origin` is where an answer would go; `None`: there is
    /// none.
    pub(super) fn carry_out(
        &mut self,
        tables: &Tables,
        fate: Fate,
        bytes: &mut [u8],
        origin: Option<Origin>,
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
            (Path::Via(to), _) => self.encapsulate((server, to, forward), bytes, origin),
        }
    }

    fn encapsulate(
        &mut self,
        (server, to, forward): (&Server, Neighbour, Forward),
        bytes: &[u8],
        origin: Option<Origin>,
    ) -> Verdict {
        let Some(source) = server.tunnel_source else {
            return Verdict::Drop(Reason::NoNeighbour);
        };
        let Some(inner) = tunnel::Inner::of(bytes) else {
            return Verdict::Drop(Reason::Malformed);
        };
        let tunnel = tunnel::Tunnel { forward, to, source, destination: server.address };
        let room = usize::from(server.mtu).saturating_sub(tunnel.overhead());
        if inner.packet.length > room {
            return self.too_big(bytes, &inner, room, origin);
        }
        match tunnel.write(&inner, &mut self.head) {
            Some(()) => Verdict::Encapsulate {
                ifindex: to.ifindex,
                vlan: to.vlan,
                server: server.id,
                skip: inner.at,
            },
            None => Verdict::Drop(Reason::Malformed),
        }
    }

    /// The sender is told what fits, if it asked for that by forbidding fragments.
    fn too_big(
        &mut self,
        bytes: &[u8],
        inner: &tunnel::Inner,
        room: usize,
        origin: Option<Origin>,
    ) -> Verdict {
        let Some((ifindex, vlan)) = origin.filter(|_| inner.packet.dont_fragment) else {
            return Verdict::Drop(Reason::TooBig);
        };
        if self.replies >= REPLIES_MAX {
            return Verdict::Drop(Reason::ReplyLimit);
        }
        match reply::too_big(bytes, inner.at, &inner.packet, room, &mut self.reply) {
            Some(()) => {
                self.replies += 1;
                Verdict::Reply { ifindex, vlan }
            }
            None => Verdict::Drop(Reason::TooBig),
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
