//! Frames at packet speed (packet(7), `Documentation/networking/packet_mmap.rst`): a receive ring shared with the
//! kernel, and frames sent straight out of it.
//!
//! A [`Ring`] receives what its filter lets through on one interface, as TPACKET_V2. Slots hold an ordinary frame;
//! what is larger (GRO makes up to 64 KiB of several) is queued whole by the kernel beside the ring and
//! read from there. In front of each frame is a `virtio_net_hdr`, which keeps partial checksums and segmentation
//! as they are from one interface to the other.

pub mod bpf;
pub mod filter;
mod map;
mod sender;

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use self::bpf::Program;
use self::map::Map;
pub use self::sender::{Refusal, Sender, Sent};
use super::options::{bind, check, check_len, set, set_receive_buffer, socket, zeroed};

/// Bytes of `struct virtio_net_hdr`.
const VNET: usize = 10;
/// Bytes of a VLAN tag.
const TAG: usize = 4;
/// Room that the kernel leaves in front of each frame, for a tag to be put back.
const RESERVE: u32 = 16;
/// The largest frame: 64 KiB of IP behind its header and a tag.
const LARGEST: usize = (64 << 10) + 64;
/// Large frames handled in one turn.
const LARGE_MAX: usize = 16;
/// What may wait beside the ring.
const QUEUE_BYTES: i32 = 16 << 20;
/// The kernel's bookkeeping in front of a frame: more than `TPACKET2_HDRLEN`, alignment and [`RESERVE`].
const OVERHEAD: usize = 128;
const SLOT_MAX: usize = 16 << 10;
const BLOCK: usize = 64 << 10;
/// More than any ring of ours has.
const SLOTS_MAX: usize = 1 << 20;

/// How a ring is to be.
#[derive(Debug, Clone)]
pub struct Shape {
    /// The interface, by number.
    pub interface: u32,
    /// Its MTU in bytes: slots hold that much.
    pub mtu: u32,
    /// Memory for slots, in bytes.
    pub memory: usize,
    /// Which frames are copied.
    pub filter: Program,
}

/// A VLAN tag as the kernel took it off (IEEE 802.1Q).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    /// 0x8100 or 0x88a8.
    pub kind: u16,
    /// Priority, drop eligible, and VLAN ID.
    pub control: u16,
}

/// A frame that was received.
#[derive(Debug)]
pub struct Received<'a> {
    /// From its Ethernet header on, without the tag.
    pub frame: &'a mut [u8],
    /// The tag that was on it.
    pub tag: Option<Tag>,
    /// Several packets in one (GRO): larger than the MTU, and yet to be passed on.
    pub merged: Option<Merged>,
    /// A checksum that the sender left to the hardware: where summing begins in the frame, and where from there
    /// the sum belongs.
    pub partial: Option<(u16, u16)>,
}

/// How several packets stand in one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merged {
    /// Bytes of payload of each.
    pub size: u16,
    /// They are segments of TCP or whole datagrams of UDP, which can be told apart again; else fragments.
    pub separable: bool,
}

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Nothing.
    Release,
    /// Sent on this interface with this tag.
    Send(u32, Option<Tag>),
}

/// Who decides about frames.
pub trait Judge {
    /// Frames that wait, in the order in which they will be judged; an empty one stands for what cannot be shown
    /// yet. Not called for a single frame.
    fn foresee<'a>(&mut self, frames: impl Iterator<Item = &'a [u8]>);

    /// What becomes of the frame with this place among those that waited.
    fn judge(&mut self, place: usize, received: Received<'_>) -> Fate;
}

/// What a turn did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Turn {
    /// Frames taken out of the ring.
    pub taken: u32,
    /// Frames that were cut short by a full queue, and dropped.
    pub cut: u32,
    /// What became of those to be sent.
    pub sent: Sent,
}

/// Frames received and dropped since the last look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Passed the filter.
    pub packets: u32,
    /// Of these dropped, because no slot was free.
    pub drops: u32,
}

/// Where a ring stands, for a process that goes on with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The slot that is looked at next.
    pub head: usize,
    /// Slots it has.
    pub slots: usize,
    /// Bytes of a slot.
    pub slot: usize,
}

/// A receive ring on one interface.
pub struct Ring {
    fd: OwnedFd,
    map: Map,
    interface: u32,
    head: usize,
    /// Another process has taken frames out: `head` is where the next one shows up.
    lost: bool,
    large: Vec<Box<[u8; VNET + TAG + LARGEST]>>,
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("interface", &self.interface).finish_non_exhaustive()
    }
}

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Ring {
    /// Opens the ring; frames come from now on.
    ///
    /// # Errors
    /// EPERM without CAP_NET_RAW, ENODEV or ENETDOWN for the interface, ENOMEM.
    pub fn open(shape: &Shape) -> io::Result<Self> {
        let fd = socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
        set(&fd, libc::SOL_PACKET, libc::PACKET_VERSION, libc::tpacket_versions::TPACKET_V2)?;
        set(&fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1i32)?;
        set(&fd, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1i32)?;
        set(&fd, libc::SOL_PACKET, libc::PACKET_RESERVE, RESERVE)?;
        set(&fd, libc::SOL_PACKET, libc::PACKET_COPY_THRESH, 1i32)?;
        set_receive_buffer(&fd, QUEUE_BYTES);
        shape.filter.attach(&fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER)?;
        let slot = slot_size(shape.mtu);
        let blocks = (shape.memory / BLOCK).clamp(4, 4096);
        let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let request = libc::tpacket_req {
            tp_block_size: number(BLOCK),
            tp_block_nr: number(blocks),
            tp_frame_size: number(slot),
            tp_frame_nr: number(blocks * (BLOCK / slot)),
        };
        set(&fd, libc::SOL_PACKET, libc::PACKET_RX_RING, request)?;
        let map = Map::new(&fd, blocks * BLOCK, slot)?;
        let mut name: libc::sockaddr_ll = zeroed();
        name.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or_default();
        name.sll_protocol = u16::try_from(libc::ETH_P_ALL).unwrap_or_default().to_be();
        name.sll_ifindex = i32::try_from(shape.interface).unwrap_or_default();
        bind(&fd, name)?;
        let interface = shape.interface;
        Ok(Self { fd, map, interface, head: 0, lost: false, large: Vec::new() })
    }

    /// Goes on with the ring of another process, which no longer takes frames out of it: none is lost, and none is
    /// seen twice. `None` if it does not have this shape.
    ///
    /// # Errors
    /// EINVAL if the descriptor is no such ring.
    pub fn adopt(fd: OwnedFd, shape: &Shape, place: Place) -> io::Result<Option<Self>> {
        let Place { head, slots, slot } = place;
        if slot != slot_size(shape.mtu) || head >= slots || slots > SLOTS_MAX {
            return Ok(None);
        }
        // The kernel refuses another length than the ring's.
        let map = Map::new(&fd, slots * slot, slot)?;
        shape.filter.attach(&fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER)?;
        let interface = shape.interface;
        Ok(Some(Self { fd, map, interface, head, lost: false, large: Vec::new() }))
    }

    /// What another process needs to go on with it.
    ///
    /// # Errors
    /// EMFILE.
    pub fn share(&self) -> io::Result<(OwnedFd, Place)> {
        let place = Place { head: self.head, slots: self.map.slots(), slot: self.map.slot() };
        Ok((self.fd.try_clone()?, place))
    }

    /// Another process may have taken frames out in the meantime.
    pub fn resume(&mut self) {
        self.lost = true;
    }

    fn is_full(&self, slot: usize) -> bool {
        self.map.status(slot).load(Ordering::Acquire) & libc::TP_STATUS_USER != 0
    }

    /// Finds the oldest frame, if there is one.
    fn find(&mut self) {
        if let Some(oldest) = oldest(self.map.slots(), |slot| self.is_full(slot)) {
            (self.head, self.lost) = (oldest, false);
        }
    }

    /// The interface it receives on, by number.
    #[must_use]
    pub fn interface(&self) -> u32 {
        self.interface
    }

    /// Exchanges the filter. In between everything that comes passes one of the two.
    ///
    /// # Errors
    /// What setsockopt(2) says.
    pub fn filter(&self, filter: &Program) -> io::Result<()> {
        filter.attach(&self.fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER)
    }

    /// Shares the interface's frames with the other members of `group` (`None` makes one), by what
    /// `program` gives. Returns the group's number.
    ///
    /// # Errors
    /// What setsockopt(2) says.
    pub fn join(&self, group: Option<u16>, program: &Program) -> io::Result<u16> {
        let unique = libc::PACKET_FANOUT_FLAG_UNIQUEID;
        let kind = libc::PACKET_FANOUT_CBPF | libc::PACKET_FANOUT_FLAG_IGNORE_OUTGOING;
        let kind = kind | if group.is_none() { unique } else { 0 };
        let value = u32::from(group.unwrap_or_default()) | kind << 16;
        set(&self.fd, libc::SOL_PACKET, libc::PACKET_FANOUT, value)?;
        program.attach(&self.fd, libc::SOL_PACKET, libc::PACKET_FANOUT_DATA)?;
        if let Some(group) = group {
            return Ok(group);
        }
        let value: u32 = self.option(libc::PACKET_FANOUT)?;
        Ok(u16::try_from(value & 0xffff).unwrap_or_default())
    }

    /// Frames since this was last asked.
    ///
    /// # Errors
    /// What getsockopt(2) says.
    pub fn statistics(&self) -> io::Result<Statistics> {
        let stats: libc::tpacket_stats = self.option(libc::PACKET_STATISTICS)?;
        Ok(Statistics { packets: stats.tp_packets, drops: stats.tp_drops })
    }

    /// The error that waits on the socket, which poll(2) reports until it is taken: ENETDOWN when the
    /// interface went down or away.
    #[must_use]
    pub fn take_error(&self) -> Option<io::Error> {
        let mut value = 0i32;
        let mut len = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or_default();
        // SAFETY: the option value is the `len` bytes of `value`; both pointers are ours and outlive the call.
        let result = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ERROR,
                (&raw mut value).cast(),
                &raw mut len,
            )
        };
        check(result).err().or_else(|| (value != 0).then(|| io::Error::from_raw_os_error(value)))
    }

    fn option<T: Copy>(&self, name: i32) -> io::Result<T> {
        let mut value: T = zeroed();
        let mut len = libc::socklen_t::try_from(size_of::<T>()).unwrap_or_default();
        // SAFETY: the option value is the `len` bytes of `value`, of the type it is documented with; both
        // pointers are ours and outlive the call.
        check(unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                name,
                (&raw mut value).cast(),
                &raw mut len,
            )
        })?;
        Ok(value)
    }

    /// True when a frame waits.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        match self.lost {
            true => (0..self.map.slots()).any(|slot| self.is_full(slot)),
            false => self.is_full(self.head),
        }
    }

    /// Takes at most `most` frames, asks `judge` about each, sends what is to be sent, and gives the slots back.
    pub fn turn(&mut self, most: usize, sender: &mut Sender, judge: &mut impl Judge) -> Turn {
        let mut turn = Turn::default();
        if self.lost {
            self.find();
        }
        let first = self.head;
        let mut large = 0;
        let most = most.min(self.map.slots());
        let waiting = self.waiting(most);
        if waiting > 1 {
            let map = &self.map;
            judge.foresee((0..waiting).map(|place| shown(map, (first + place) % map.slots())));
        }
        while usize::try_from(turn.taken).is_ok_and(|taken| taken < most) && large < LARGE_MAX {
            // Acquire: what the kernel wrote before the status is seen after it.
            let status = self.map.status(self.head).load(Ordering::Acquire);
            if status & libc::TP_STATUS_USER == 0 {
                break;
            }
            let slot = self.head;
            self.head = if slot + 1 == self.map.slots() { 0 } else { slot + 1 };
            turn.taken += 1;
            let place = usize::try_from(turn.taken - 1).unwrap_or(usize::MAX);
            let tag = self.map.tag(slot);
            let Some(mut frame) = self.frame(slot, &mut large) else {
                turn.cut += 1;
                continue;
            };
            let (merged, partial) = (frame.merged(), frame.partial());
            if let Fate::Send(to, tag) =
                judge.judge(place, Received { frame: frame.bytes(), tag, merged, partial })
            {
                frame.put_tag(tag);
                sender.queue(frame.whole(), to, merged.is_some());
            }
        }
        turn.sent = sender.flush();
        let mut slot = first;
        for _ in 0..turn.taken {
            // Release: our accesses to the slot are over before the kernel sees it as its own.
            self.map.status(slot).store(libc::TP_STATUS_KERNEL, Ordering::Release);
            slot = if slot + 1 == self.map.slots() { 0 } else { slot + 1 };
        }
        turn
    }

    /// How many frames wait, up to `most`.
    fn waiting(&self, most: usize) -> usize {
        let mut slot = self.head;
        for count in 0..most {
            if self.map.status(slot).load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
                return count;
            }
            slot = if slot + 1 == self.map.slots() { 0 } else { slot + 1 };
        }
        most
    }

    /// The frame in a slot, or the whole one beside the ring if the slot is too small; `None` when the kernel had no
    /// room for that.
    fn frame(&mut self, slot: usize, large: &mut usize) -> Option<Frame<'_>> {
        let header = self.map.header(slot);
        if header.tp_status & libc::TP_STATUS_COPY != 0 {
            let place = *large;
            *large += 1;
            if self.large.len() <= place {
                self.large.push(Box::new([0; VNET + TAG + LARGEST]));
            }
            let buffer = self.large.get_mut(place)?;
            let len = receive(&self.fd, buffer.get_mut(TAG..)?).ok()?;
            return Frame::new(buffer.get_mut(..TAG + len)?, TAG);
        }
        if header.tp_snaplen < header.tp_len {
            return None;
        }
        let begin = usize::from(header.tp_mac).checked_sub(VNET + TAG)?;
        let len = VNET + TAG + usize::try_from(header.tp_snaplen).ok()?;
        Frame::new(self.map.bytes(slot, begin, len)?, TAG)
    }
}

/// The frame in a slot that is ours, or as much of it as is there.
fn shown(map: &Map, slot: usize) -> &[u8] {
    let header = map.header(slot);
    let len = usize::try_from(header.tp_snaplen).unwrap_or_default();
    map.shown(slot, header.tp_mac.into(), len).unwrap_or_default()
}

/// The slot that was filled first: the kernel fills them one after the other, and we empty them so.
fn oldest(slots: usize, is_full: impl Fn(usize) -> bool) -> Option<usize> {
    let before = |slot: usize| slot.checked_sub(1).unwrap_or_else(|| slots.saturating_sub(1));
    let begins = (0..slots).find(|slot| is_full(*slot) && !is_full(before(*slot)));
    // Without a gap it is full, and nobody knows where it began.
    begins.or_else(|| (0..slots).find(|slot| is_full(*slot)))
}

/// The size of slots that hold frames of this MTU: a power of two, so that blocks hold them without rest.
fn slot_size(mtu: u32) -> usize {
    let frame = usize::try_from(mtu).unwrap_or(SLOT_MAX).saturating_add(14 + TAG + OVERHEAD);
    frame.checked_next_power_of_two().unwrap_or(SLOT_MAX).clamp(2048, SLOT_MAX)
}

fn receive(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is `buffer.len()` writable bytes that nobody else uses during the call.
    let len = unsafe {
        libc::recv(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT)
    };
    check_len(len)
}

/// Room for a tag, the `virtio_net_hdr`, and the frame.
struct Frame<'a> {
    buffer: &'a mut [u8],
    begin: usize,
}

const NEEDS_CHECKSUM: u8 = 1;

impl<'a> Frame<'a> {
    /// `begin` is where the `virtio_net_hdr` stands; in front of it there is room for a tag.
    fn new(buffer: &'a mut [u8], begin: usize) -> Option<Self> {
        (buffer.len() >= begin + VNET + 14).then_some(Self { buffer, begin })
    }

    /// Several segments (struct virtio_net_hdr, linux/virtio_net.h).
    fn merged(&self) -> Option<Merged> {
        const FRAGMENTS: u8 = 3;
        const WITH_ECN: u8 = 0x80;
        let header: &[u8; VNET] = self.buffer.get(self.begin..)?.first_chunk()?;
        let [_, kind, _, _, a, b, ..] = *header;
        let separable = kind & !WITH_ECN != FRAGMENTS;
        (kind != 0).then_some(Merged { size: u16::from_ne_bytes([a, b]), separable })
    }

    fn partial(&self) -> Option<(u16, u16)> {
        let header: &[u8; VNET] = self.buffer.get(self.begin..)?.first_chunk()?;
        let [flags, _, _, _, _, _, a, b, c, d] = *header;
        let places = (u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]));
        (flags & NEEDS_CHECKSUM != 0).then_some(places)
    }

    fn bytes(&mut self) -> &mut [u8] {
        self.buffer.get_mut(self.begin + VNET..).unwrap_or_default()
    }

    fn whole(&mut self) -> &mut [u8] {
        self.buffer.get_mut(self.begin..).unwrap_or_default()
    }

    /// Puts a tag behind the addresses: what stands before it moves to the front.
    fn put_tag(&mut self, tag: Option<Tag>) {
        let Some(tag) = tag else { return };
        let Some(begin) = self.begin.checked_sub(TAG) else { return };
        self.buffer.copy_within(self.begin..self.begin + VNET + 12, begin);
        self.begin = begin;
        let at = begin + VNET + 12;
        let [a, b] = tag.kind.to_be_bytes();
        let [c, d] = tag.control.to_be_bytes();
        if let Some(room) = self.buffer.get_mut(at..at + TAG) {
            room.copy_from_slice(&[a, b, c, d]);
        }
        let Some(header) = self.whole().first_chunk_mut::<VNET>() else { return };
        shift(header);
    }
}

/// What a `virtio_net_hdr` says about places in the frame, [`TAG`] bytes on.
fn shift(header: &mut [u8; VNET]) {
    let moved = |low: u8, high: u8| {
        u16::from_ne_bytes([low, high])
            .saturating_add(u16::try_from(TAG).unwrap_or_default())
            .to_ne_bytes()
    };
    let [flags, kind, length_low, length_high, _, _, start_low, start_high, _, _] = *header;
    if kind != 0 {
        [header[2], header[3]] = moved(length_low, length_high);
    }
    if flags & NEEDS_CHECKSUM != 0 {
        [header[6], header[7]] = moved(start_low, start_high);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_fit_the_mtu() {
        for (mtu, size) in
            [(0, 2048), (1500, 2048), (9000, 16384), (65536, 16384), (u32::MAX, 16384)]
        {
            assert_eq!(slot_size(mtu), size, "{mtu}");
            assert_eq!(BLOCK % slot_size(mtu), 0);
        }
        assert!(OVERHEAD >= libc::TPACKET2_HDRLEN + 16 + 16 + RESERVE as usize + VNET);
    }

    #[test]
    fn the_oldest_frame_is_where_the_row_begins() {
        let at = |full: &str| oldest(full.len(), |slot| full.as_bytes()[slot] == b'x');
        for (ring, begins) in [
            ("....", None),
            ("x...", Some(0)),
            (".xx.", Some(1)),
            ("x..x", Some(3)),
            ("xx.x", Some(3)),
            ("xxxx", Some(0)),
            ("", None),
        ] {
            assert_eq!(at(ring), begins, "{ring}");
        }
    }

    #[test]
    fn a_tag_is_put_behind_the_addresses() {
        let mut buffer = vec![0xee; TAG];
        buffer.extend([NEEDS_CHECKSUM, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0]);
        buffer.extend((0..14).chain([0x45, 0x46]));
        let mut frame = Frame::new(&mut buffer, TAG).expect("long enough");
        assert_eq!(frame.merged(), Some(Merged { size: 0x5b4, separable: true }));
        frame.put_tag(Some(Tag { kind: 0x8100, control: 0x2005 }));
        let expected: Vec<u8> = [NEEDS_CHECKSUM, 1, 58, 0, 0xb4, 5, 38, 0, 16, 0]
            .into_iter()
            .chain(0..12)
            .chain([0x81, 0, 0x20, 5, 12, 13, 0x45, 0x46])
            .collect();
        assert_eq!(frame.whole(), expected);
        assert!(Frame::new(&mut [0; 20], TAG).is_none());
    }
}
