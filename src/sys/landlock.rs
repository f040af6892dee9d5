//! Which files a process may use from now on (landlock(7), Linux 5.13).

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::check;

const EXECUTE: u64 = 1;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
/// Everything of the first version: the above, removing, and making of every kind.
const ALL_V1: u64 = (1 << 13) - 1;
const REFER: u64 = 1 << 13;
const TRUNCATE: u64 = 1 << 14;
/// What makes sense for a file that is no directory.
const OF_FILES: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE;

const CREATE_RULESET_VERSION: u32 = 1;
const RULE_PATH_BENEATH: u32 = 1;

/// Bits 32 and up of `path_beneath` are the descriptor: the kernel's structure is packed.
#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: i32,
}

/// What may be used.
#[derive(Debug, Default)]
pub struct Files<'a> {
    /// Read and executed, with everything below.
    pub read: Vec<&'a Path>,
    /// Read and changed, with everything below.
    pub write: Vec<&'a Path>,
}

/// Restricts the calling thread, and the threads and processes it starts, to these files. Paths that do not
/// exist are left out. Returns the version of the kernel's interface. `no_new_privs` has to be set.
///
/// # Errors
/// ENOSYS or EOPNOTSUPP on kernels without, E2BIG after sixteen restrictions.
pub fn restrict(files: &Files<'_>) -> io::Result<u32> {
    // SAFETY: with this flag the kernel takes no attributes.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, 0usize, 0usize, CREATE_RULESET_VERSION)
    };
    let version = check(libc::c_int::try_from(version).unwrap_or(-1))?;
    let version = u32::try_from(version).unwrap_or_default();
    let refer = if version >= 2 { REFER } else { 0 };
    let truncate = if version >= 3 { TRUNCATE } else { 0 };
    let handled = ALL_V1 | refer | truncate;
    // SAFETY: the kernel reads the 8 bytes of `handled`, the first member of its structure, which is all
    // the length says there is.
    let ruleset = unsafe {
        let attributes = &raw const handled;
        libc::syscall(libc::SYS_landlock_create_ruleset, attributes, size_of::<u64>(), 0u32)
    };
    let ruleset = check(libc::c_int::try_from(ruleset).unwrap_or(-1))?;
    // SAFETY: the call above returned this descriptor, and nobody else owns it.
    let ruleset = unsafe { OwnedFd::from_raw_fd(ruleset) };
    for path in &files.read {
        allow(&ruleset, path, EXECUTE | READ_FILE | READ_DIR)?;
    }
    for path in &files.write {
        allow(&ruleset, path, handled)?;
    }
    // SAFETY: no pointers are passed.
    let result =
        unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0u32) };
    check(libc::c_int::try_from(result).unwrap_or(-1))?;
    Ok(version)
}

fn allow(ruleset: &OwnedFd, path: &Path, access: u64) -> io::Result<()> {
    let Ok(file) = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path) else {
        return Ok(());
    };
    let is_directory = file.metadata()?.is_dir();
    let allowed = if is_directory { access } else { access & OF_FILES };
    let rule = PathBeneath { allowed, parent: file.as_raw_fd() };
    // SAFETY: the kernel reads one rule of this kind, which is laid out as it defines and lives across the
    // call.
    let result = unsafe {
        let (ruleset, rule) = (ruleset.as_raw_fd(), &raw const rule);
        libc::syscall(libc::SYS_landlock_add_rule, ruleset, RULE_PATH_BENEATH, rule, 0u32)
    };
    check(libc::c_int::try_from(result).unwrap_or(-1)).map(drop)
}
