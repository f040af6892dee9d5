//! An array's values as memory that is shared with the kernel and its programs.

use std::io;
use std::ops::Deref;
use std::os::fd::AsFd as _;
use std::os::fd::AsRawFd as _;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use super::map::{Kind, Map};

/// All values of a [`Kind::MappedArray`], end to end, in words. Programs change them at any time, so each is an atomic.
#[derive(Debug)]
pub struct Mapping {
    words: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: what it points to is atomics, mapped until it is dropped.
unsafe impl Send for Mapping {}
// SAFETY: as for `Send`; a shared reference gives out shared references to atomics only.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the values of an array.
    ///
    /// # Errors
    /// EINVAL when it is not a [`Kind::MappedArray`] of whole words, ENOMEM.
    pub fn new(map: &Map) -> io::Result<Self> {
        let bytes = map.value_size().checked_mul(map.entries());
        let whole = bytes.filter(|bytes| *bytes > 0 && map.value_size().is_multiple_of(8));
        let Some(bytes) = whole.filter(|_| map.kind() == Kind::MappedArray) else {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        };
        let address = {
            // SAFETY: a new mapping at a place that the kernel chooses; the array has so many bytes, and the kernel
            // rounds up to pages, which are the array's too.
            unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    bytes,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED,
                    map.as_fd().as_raw_fd(),
                    0,
                )
            }
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let words = NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(Self { words, count: bytes / 8 })
    }
}

impl Deref for Mapping {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: `count` words are mapped there, aligned to a page, for as long as `self` lives; every bit pattern is a
        // word, and whoever else writes them writes them as the atomics they are.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.count) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, and nobody has a reference any more.
        unsafe { libc::munmap(self.words.as_ptr().cast(), self.count * 8) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;
    use crate::sys::bpf::Spec;

    #[test]
    fn both_sides_see_the_same() {
        let spec = Spec {
            kind: Kind::MappedArray,
            key_size: 4,
            value_size: 24,
            entries: 1000,
            name: "test",
        };
        let map = match Map::create(&spec) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => return,
            map => map.expect("a map"),
        };
        let words = Mapping::new(&map).expect("mapped");
        assert_eq!(words.len(), 3000);
        words[3 * 999 + 1].store(0x0102_0304_0506_0708, Relaxed);
        let mut value = [0; 24];
        assert!(map.lookup(&999_u32.to_ne_bytes(), &mut value).expect("a lookup"));
        assert_eq!(value[8..16], 0x0102_0304_0506_0708_u64.to_ne_bytes());
        map.update(&7_u32.to_ne_bytes(), &[1; 24]).expect("an update");
        assert_eq!(words[7 * 3].load(Relaxed), 0x0101_0101_0101_0101);
        // The memory stays with the mapping.
        drop(map);
        assert_eq!(words[7 * 3 + 2].load(Relaxed), 0x0101_0101_0101_0101);
    }

    #[test]
    fn only_such_arrays_are_mapped() {
        for (kind, value_size) in [(Kind::Array, 8), (Kind::Hash, 8), (Kind::MappedArray, 12)] {
            let spec = Spec { kind, key_size: 4, value_size, entries: 4, name: "test" };
            match Map::create(&spec) {
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => return,
                map => assert!(Mapping::new(&map.expect("a map")).is_err(), "{kind:?}"),
            }
        }
    }
}
