//! What will be touched soon is asked for before it is needed.
//!
//! With hundreds of connections a request's memory has left the cache by the time its response comes. Touched line by
//! line, each waits for the one before it; asked for together, they come together.

use std::task::Waker;

/// Bytes of a task that a wake-up asks for: those of a connection's task, header included.
const TASK_LEN: usize = 704;

/// Asks for a value's memory. Nothing is read, so the pointer need not be valid.
#[inline]
pub(super) fn prefetch<T>(value: *const T) {
    prefetch_bytes(value.cast(), size_of::<T>());
}

/// Asks for the task that this waker will wake: what a task's waker points to, in glommio.
#[inline]
pub(super) fn prefetch_task(waker: &Waker) {
    prefetch_bytes(waker.data().cast(), TASK_LEN);
}

#[inline]
fn prefetch_bytes(start: *const u8, len: usize) {
    const LINE: usize = 64;
    for offset in (0..len).step_by(LINE) {
        prefetch_line(start.wrapping_add(offset));
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn prefetch_line(at: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: PREFETCHT0 is part of every x86-64 and a hint, which faults at no address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
}

/// Elsewhere there is no stable intrinsic.
#[cfg(not(target_arch = "x86_64"))]
fn prefetch_line(_at: *const u8) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_nobodys_may_be_asked_for() {
        prefetch(std::ptr::null::<[u8; 4096]>());
        prefetch(std::ptr::without_provenance::<[u8; 4096]>(usize::MAX - 64));
        prefetch_task(Waker::noop());
    }
}
