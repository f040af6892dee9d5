//! Packets below TCP: raw VRRP sockets, link-layer frames, and the kernel's routing netlink.

pub mod claims;
pub mod frames;
pub mod neighbour_socket;
pub mod netlink;
mod options;
pub mod ring;
pub mod vrrp_socket;
pub mod xdp;
