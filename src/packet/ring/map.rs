//! The memory that a ring shares with the kernel, as slots.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

use super::Tag;

/// mmap(2)ed slots of equal size. The kernel writes a slot while its status is `TP_STATUS_KERNEL`; we own it
/// from the moment the status says `TP_STATUS_USER` until we write it back.
#[derive(Debug)]
pub(super) struct Map {
    base: NonNull<u8>,
    len: usize,
    slot: usize,
}

// SAFETY: the memory belongs to this value alone on our side, and is reached only through it.
unsafe impl Send for Map {}

impl Map {
    /// Maps `len` bytes of the socket's ring, which consist of slots of `slot` bytes. `slot` is a multiple of 16, so
    /// that every slot's header is aligned.
    pub(super) fn new(fd: &OwnedFd, len: usize, slot: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice; nothing of ours is touched.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base =
            NonNull::new(base.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Self { base, len, slot })
    }

    /// Bytes of a slot.
    pub(super) fn slot(&self) -> usize {
        self.slot
    }

    pub(super) fn slots(&self) -> usize {
        self.len / self.slot
    }

    /// Where slot number `slot` begins; the caller's numbers stay below [`Map::slots`].
    fn at(&self, slot: usize) -> NonNull<u8> {
        let offset = slot.min(self.slots().saturating_sub(1)) * self.slot;
        // SAFETY: the offset is that of a slot inside the mapping of `len` bytes.
        unsafe { self.base.add(offset) }
    }

    /// The first word of a slot, which both sides read and write.
    pub(super) fn status(&self, slot: usize) -> &AtomicU32 {
        // SAFETY: the word is inside the mapping, aligned to 16 bytes, lives as long as `self`, and is
        // only accessed as an atomic by us.
        unsafe { AtomicU32::from_ptr(self.at(slot).as_ptr().cast()) }
    }

    /// A copy of the kernel's header of a slot that is ours.
    pub(super) fn header(&self, slot: usize) -> libc::tpacket2_hdr {
        // SAFETY: a slot is larger than this header, which consists of integers; the slot is ours, so the kernel
        // does not write it.
        unsafe { self.at(slot).cast().read_volatile() }
    }

    /// The tag that was taken off the frame in a slot that is ours.
    pub(super) fn tag(&self, slot: usize) -> Option<Tag> {
        let header = self.header(slot);
        (header.tp_status & libc::TP_STATUS_VLAN_VALID != 0).then(|| {
            let known = header.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
            let kind = if known { header.tp_vlan_tpid } else { 0x8100 };
            Tag { kind, control: header.tp_vlan_tci }
        })
    }

    /// Bytes of a slot that is ours, to look at; `None` if they do not all lie in it, behind the header.
    pub(super) fn shown(&self, slot: usize, begin: usize, len: usize) -> Option<&[u8]> {
        let end = begin.checked_add(len)?;
        if begin < size_of::<libc::tpacket2_hdr>() || end > self.slot {
            return None;
        }
        // SAFETY: the bytes lie inside the slot and behind its status word; the slot is ours, so the kernel does not
        // write it, and our own writes need `self` mutably.
        Some(unsafe { std::slice::from_raw_parts(self.at(slot).add(begin).as_ptr(), len) })
    }

    /// Bytes of a slot that is ours; `None` if they do not all lie in it, behind the header.
    pub(super) fn bytes(&mut self, slot: usize, begin: usize, len: usize) -> Option<&mut [u8]> {
        let end = begin.checked_add(len)?;
        if begin < size_of::<libc::tpacket2_hdr>() || end > self.slot {
            return None;
        }
        // SAFETY: the bytes lie inside the slot and behind its status word; the slot is ours until its status is
        // written back, which needs `self` again.
        Some(unsafe { std::slice::from_raw_parts_mut(self.at(slot).add(begin).as_ptr(), len) })
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `new` made, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
