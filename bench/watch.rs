//! `ringgate-bench hostile --watch`: what a director sends to a real server, each frame looked at.

use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::thread;
use std::time::Duration;

use ringgate::packet::ring::{Fate, Judge, Received, Ring, Sender, Shape, filter};
use ringgate::protocol::ethernet::{Mac, View};
use ringgate::protocol::ip::{self, Packet};
use ringgate::protocol::transport::Ports;
use ringgate::sys::poll::readable;

use crate::args::Hostile;
use crate::hostile::index;
use crate::run::Interruption;

const BATCH: usize = 256;
/// Memory of the ring: half a second of a million frames a second would be more, but they come slower than that.
const MEMORY: usize = 64 << 20;
const WAIT: Duration = Duration::from_millis(50);
/// Frames that are shown when they should not have come.
const SHOWN: usize = 3;

/// Looks until a signal comes; 1 when something came that should not have.
pub(crate) fn run(options: &Hostile, name: &str) -> Result<u8, String> {
    let failed = |error: io::Error| format!("{name}: {error}");
    let interruption = Interruption::watch()?;
    let interface = index(name)?;
    let filter = filter::every_ip_frame();
    let shape = Shape { interface, mtu: 1500, memory: MEMORY, filter };
    let mut ring = Ring::open(&shape).map_err(failed)?;
    let mut sender = Sender::new().map_err(failed)?;
    let mut watch = Watch::new(options);
    let (mut out, mut ready, mut scratch) = (io::stdout(), Vec::new(), Vec::new());
    let _ = writeln!(out, "watching {name}");
    loop {
        if ring.turn(BATCH, &mut sender, &mut watch).taken > 0 {
            continue;
        }
        // What came before the signal is in the ring by now.
        if interruption.code() != 0 {
            break;
        }
        // The interface went down or away.
        if let Some(error) = ring.take_error() {
            return Err(failed(error));
        }
        let fds = [ring.as_raw_fd()];
        if readable(&fds, Some(WAIT), &mut ready, &mut scratch).is_err() {
            thread::sleep(WAIT);
        }
    }
    let missed = ring.statistics().map_err(failed)?.drops;
    let Watch { good, bad, .. } = watch;
    let _ = writeln!(out, "{good} frames to the virtual servers, {bad} others, {missed} missed");
    Ok(u8::from(bad > 0))
}

struct Watch {
    director: Mac,
    addresses: [IpAddr; 2],
    good: u64,
    bad: u64,
}

impl Watch {
    fn new(options: &Hostile) -> Self {
        let addresses = [IpAddr::from(options.address), IpAddr::from(options.address6)];
        Self { director: options.to.0, addresses, good: 0, bad: 0 }
    }

    /// Whether a frame is to one of the virtual servers; an ICMP error or a later fragment to its address has no port.
    fn is_good(&self, bytes: &[u8], packet: &Packet) -> bool {
        if !self.addresses.contains(&packet.destination) {
            return false;
        }
        // Of a later fragment only addresses and identification count (RFC 8200 section 4.5).
        if packet.fragment.is_some_and(|one| one.offset > 0) {
            return true;
        }
        let port = || Some(Ports::parse(bytes.get(packet.payload..)?)?.destination);
        match packet.protocol {
            ip::ICMP | ip::ICMPV6 => true,
            ip::TCP | ip::SCTP => port() == Some(80),
            ip::UDP => port() == Some(8080),
            _ => false,
        }
    }
}

/// A director asks its real servers for their hardware addresses (RFC 4861: types 133 to 137).
fn is_question(bytes: &[u8], packet: &Packet) -> bool {
    packet.protocol == ip::ICMPV6
        && bytes.get(packet.payload).is_some_and(|kind| (133..=137).contains(kind))
}

impl Judge for Watch {
    fn foresee<'a>(&mut self, _: impl Iterator<Item = &'a [u8]>) {}

    fn judge(&mut self, _: usize, received: Received<'_>) -> Fate {
        let frame = &*received.frame;
        let Some(view) = View::parse(frame).filter(|view| view.source == self.director) else {
            return Fate::Release;
        };
        let bytes = frame.get(view.payload..).unwrap_or_default();
        let packet = Packet::parse(bytes, bytes.len()).ok();
        let ours = packet.is_some_and(|packet| self.addresses.contains(&packet.destination));
        if !ours && packet.is_some_and(|packet| is_question(bytes, &packet)) {
            return Fate::Release;
        }
        if packet.is_some_and(|packet| self.is_good(bytes, &packet)) {
            self.good += 1;
        } else {
            self.bad += 1;
            if self.bad <= SHOWN as u64 {
                let _ = writeln!(io::stderr(), "not to a virtual server: {frame:02x?}");
            }
        }
        Fate::Release
    }
}
