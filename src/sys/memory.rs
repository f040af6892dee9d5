//! Hints about memory, which change nothing but time: what will be read soon, and what large pages are worth for.

/// Starts to load the cache line in which `value` begins, without waiting for it. Nothing on CPUs other than x86-64.
#[inline]
pub fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing as far as a program can see and never faults; the address is that of
        // a reference.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

/// Asks the kernel to use huge pages for this memory, which is read at random and would need an entry of the TLB for
/// every 4 KiB (madvise(2), MADV_HUGEPAGE). A kernel that has none says no, and nothing is lost.
pub fn prefer_huge_pages<T>(memory: &[T]) {
    const PAGE: usize = 4096;
    let begin = memory.as_ptr().addr();
    let end = begin.saturating_add(size_of_val(memory));
    let (first, last) = (begin.next_multiple_of(PAGE), end - end % PAGE);
    let Some(len) = last.checked_sub(first).filter(|len| *len > 0) else { return };
    let first = memory.as_ptr().cast::<u8>().wrapping_add(first - begin);
    // SAFETY: the pages lie within `memory`, which is borrowed; the advice changes neither contents nor
    // permissions.
    let _ = unsafe { libc::madvise(first.cast_mut().cast(), len, libc::MADV_HUGEPAGE) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_leave_memory_as_it_is() {
        let memory: Vec<u32> = (0..1 << 20).collect();
        prefer_huge_pages(&memory);
        prefer_huge_pages(&memory[..7]);
        prefer_huge_pages::<u32>(&[]);
        memory.iter().step_by(1000).for_each(prefetch);
        assert!(memory.iter().zip(0..).all(|(value, n)| *value == n));
    }
}
