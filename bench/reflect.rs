//! `ringgate-bench reflect`: the least that a forwarder with packet sockets can do, as a floor for the director.
//!
//! The product's ring, filter, silenced kernel and `sendmmsg` out of the ring; but every frame gets the same two
//! hardware addresses, without looking at it. It ends with a signal.

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;

use ringgate::packet::netlink::nft::Silence;
use ringgate::packet::ring::filter::{self, Service};
use ringgate::packet::ring::{Fate, Judge, Received, Ring, Sender, Shape};
use ringgate::sys::poll;

use crate::args::Reflect;
use crate::xdp::index;

/// As many as the director.
const BATCH: usize = 64;
/// The director's ring too.
const MEMORY: usize = 8 << 20;

struct Constant {
    addresses: [u8; 12],
    interface: u32,
}

impl Judge for Constant {
    fn foresee<'a>(&mut self, _frames: impl Iterator<Item = &'a [u8]>) {}

    fn judge(&mut self, _place: usize, received: Received<'_>) -> Fate {
        if let Some(addresses) = received.frame.first_chunk_mut() {
            *addresses = self.addresses;
        }
        Fate::Send(self.interface, received.tag)
    }
}

/// Passes frames on for ever.
pub(crate) fn run(options: &Reflect) -> Result<u8, String> {
    let told = |error: io::Error| error.to_string();
    let service =
        Service { address: options.address.ip(), protocol: 17, port: options.address.port() };
    let mut silence = Silence::open("reflect").map_err(told)?;
    silence.set(&[service]).map_err(told)?;
    let shape = Shape {
        interface: index(&options.from)?,
        mtu: 1500,
        memory: MEMORY,
        filter: filter::services(&[service]),
    };
    let mut ring = Ring::open(&shape).map_err(told)?;
    let mut sender = Sender::new().map_err(told)?;
    let mut addresses = [0; 12];
    addresses[..6].copy_from_slice(&options.to.0.0);
    addresses[6..].copy_from_slice(&hardware(&options.out)?);
    let mut judge = Constant { addresses, interface: index(&options.out)? };
    let (mut ready, mut scratch) = (Vec::new(), Vec::new());
    let _ = writeln!(io::stdout(), "reflecting");
    loop {
        if ring.turn(BATCH, &mut sender, &mut judge).taken == 0 {
            poll::readable(&[ring.as_raw_fd()], None, &mut ready, &mut scratch).map_err(told)?;
        }
    }
}

fn hardware(interface: &str) -> Result<[u8; 6], String> {
    let text = fs::read_to_string(format!("/sys/class/net/{interface}/address"));
    let text = text.map_err(|error| format!("{interface}: {error}"))?;
    let address: crate::args::Hardware = text.trim().parse()?;
    Ok(address.0.0)
}
