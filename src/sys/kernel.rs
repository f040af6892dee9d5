//! What kernel this is.

use std::ffi::CStr;

/// Major and minor version of the running kernel (uname(2)); `None` when it cannot be read.
#[must_use]
pub fn version() -> Option<(u32, u32)> {
    // SAFETY: utsname is plain arrays of bytes, for which all zeroes is a valid value.
    let mut name: libc::utsname = unsafe { std::mem::zeroed() };
    // SAFETY: `name` is a valid utsname for the call to fill.
    if unsafe { libc::uname(&raw mut name) } != 0 {
        return None;
    }
    // SAFETY: uname(2) NUL-terminates every field, and `release` lives as long as `name`.
    let release = unsafe { CStr::from_ptr(name.release.as_ptr()) };
    parse_release(release.to_str().ok()?)
}

fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_distributions_are_read() {
        assert_eq!(parse_release("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(parse_release("6.18.44-fc-v657"), Some((6, 18)));
        assert_eq!(parse_release("5.15"), Some((5, 15)));
        assert_eq!(parse_release("linux"), None);
    }

    #[test]
    fn the_running_kernel_has_a_version() {
        assert!(version().is_some_and(|(major, _)| major >= 3));
    }
}
