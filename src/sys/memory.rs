//! Hints about memory, which change nothing but time: what will be read soon, and what large pages are worth for.

/// Starts to load the cache line in which `value` begins, without waiting for it. Nothing on CPUs other than x86-64.
#[inline]
pub fn prefetch<T>(value: &T) {
    prefetch_line(std::ptr::from_ref(value).cast());
}

/// The same for each line of the `len` bytes from `start`, together, where touching them one by one would wait for each.
/// Nothing is read: the pointer need not be valid.
#[inline]
pub fn prefetch_all(start: *const u8, len: usize) {
    const LINE: usize = 64;
    for offset in (0..len).step_by(LINE) {
        prefetch_line(start.wrapping_add(offset));
    }
}

#[inline]
fn prefetch_line(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing as far as a program can see and faults at no address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Which of 16 words are not zero and have the bits of `tag` outside `mask`, whose own bits do not count: bit n for word n.
/// `tag` has no bits within `mask`.
#[must_use]
#[inline]
pub fn alike(words: &[u32; 16], tag: u32, mask: u32) -> u32 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{
            _mm_and_si128, _mm_andnot_si128, _mm_castsi128_ps, _mm_cmpeq_epi32, _mm_movemask_ps,
            _mm_set_epi32, _mm_set1_epi32, _mm_setzero_si128,
        };
        let mut found = 0;
        for (place, four) in words.as_chunks::<4>().0.iter().enumerate() {
            let [a, b, c, d] = four.map(u32::cast_signed);
            // SAFETY: these are SSE2, which every x86-64 has; they touch no memory.
            let hits = unsafe {
                let four = _mm_set_epi32(d, c, b, a);
                let kept = _mm_and_si128(four, _mm_set1_epi32((!mask).cast_signed()));
                let same = _mm_cmpeq_epi32(kept, _mm_set1_epi32(tag.cast_signed()));
                let empty = _mm_cmpeq_epi32(four, _mm_setzero_si128());
                _mm_movemask_ps(_mm_castsi128_ps(_mm_andnot_si128(empty, same)))
            };
            found |= hits.cast_unsigned() << (4 * place);
        }
        found
    }
    #[cfg(not(target_arch = "x86_64"))]
    alike_by_one(words, tag, mask)
}

#[cfg(any(test, not(target_arch = "x86_64")))]
fn alike_by_one(words: &[u32; 16], tag: u32, mask: u32) -> u32 {
    let is = |word: &u32| u32::from(word & !mask == tag && *word != 0);
    words.iter().enumerate().fold(0, |found, (place, word)| found | is(word) << place)
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
    fn words_are_compared_without_what_is_masked() {
        let mut state = 7_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 9
        };
        let mut hits = 0;
        for round in 0..20_000_u32 {
            let mask = 1_u32.unbounded_shl(round % 33).wrapping_sub(1);
            let tag = (next() << 28) & !mask;
            let words = std::array::from_fn(|_| match next() % 3 {
                0 => 0,
                1 => tag | (next() & mask),
                _ => (next() << 28) | (next() & mask),
            });
            let found = alike(&words, tag, mask);
            assert_eq!(found, alike_by_one(&words, tag, mask), "{words:x?} {tag:x} {mask:x}");
            hits += found.count_ones();
        }
        assert!(hits > 10_000);
    }

    #[test]
    fn hints_leave_memory_as_it_is() {
        let memory: Vec<u32> = (0..1 << 20).collect();
        prefer_huge_pages(&memory);
        prefer_huge_pages(&memory[..7]);
        prefer_huge_pages::<u32>(&[]);
        memory.iter().step_by(1000).for_each(prefetch);
        prefetch_all(memory.as_ptr().cast(), 4096);
        prefetch_all(std::ptr::null(), 4096);
        prefetch_all(std::ptr::without_provenance(usize::MAX - 64), 4096);
        assert!(memory.iter().zip(0..).all(|(value, n)| *value == n));
    }
}
