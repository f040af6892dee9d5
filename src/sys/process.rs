//! Child processes: as another user, in a group of their own, awaited with a deadline.

use std::ffi::CString;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::{check, poll};

/// A user to run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// As given.
    pub name: String,
    /// User number.
    pub uid: u32,
    /// Number of the user's first group; the child is in no other.
    pub gid: u32,
}

/// Looks a user up (getpwnam_r(3)); `None` when there is none of this name.
#[must_use]
pub fn user(name: &str) -> Option<User> {
    let text = CString::new(name).ok()?;
    // SAFETY: passwd is integers and pointers, for which all zeroes is a valid value.
    let mut entry: libc::passwd = unsafe { mem::zeroed() };
    let mut buffer = vec![0; 16 << 10];
    let mut found = std::ptr::null_mut();
    // SAFETY: the name ends in a zero byte; entry, buffer (of the length given) and result pointer are ours
    // and outlive the call.
    let errno = unsafe {
        libc::getpwnam_r(
            text.as_ptr(),
            &raw mut entry,
            buffer.as_mut_ptr(),
            buffer.len(),
            &raw mut found,
        )
    };
    if errno != 0 || found.is_null() {
        return None;
    }
    Some(User { name: name.to_owned(), uid: entry.pw_uid, gid: entry.pw_gid })
}

/// Starts `command` (program and arguments) in a process group of its own, with no signal blocked,
/// nothing to read and its output thrown away.
///
/// # Errors
/// What fork(2) and execve(2) say.
pub fn start(command: &[String], user: Option<&User>) -> io::Result<Child> {
    let (program, arguments) =
        command.split_first().ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
    let mut process = Command::new(program);
    process.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    process.process_group(0);
    if let Some(user) = user {
        process.uid(user.uid).gid(user.gid);
    }
    // SAFETY: between fork and exec only sigemptyset and sigprocmask run, which are async-signal-safe and
    // allocate nothing.
    unsafe { process.pre_exec(unblock_signals) };
    process.spawn()
}

/// Threads here block signals, and a child inherits that.
fn unblock_signals() -> io::Result<()> {
    // SAFETY: sigset_t is plain integers and initialised by sigemptyset before its use.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        check(libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()))?;
    }
    Ok(())
}

/// Waits for the child to end; after `timeout` its whole group is killed, and there is no status.
///
/// # Errors
/// What pidfd_open(2) and waitpid(2) say.
pub fn wait(child: &mut Child, timeout: Duration) -> io::Result<Option<ExitStatus>> {
    let pid = libc::pid_t::try_from(child.id()).unwrap_or(libc::pid_t::MAX);
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = check(libc::c_int::try_from(fd).unwrap_or(-1))?;
    // SAFETY: the call above returned this descriptor, and nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut ready = Vec::new();
    poll::readable(&[fd.as_raw_fd()], Some(timeout), &mut ready, &mut Vec::new())?;
    if !ready.is_empty() {
        return child.wait().map(Some);
    }
    // SAFETY: no pointers are passed. The child has not been waited for, so the number is still its group's.
    unsafe { libc::kill(-pid, libc::SIGKILL) };
    child.wait()?;
    Ok(None)
}

/// Leaves the session and its terminal, whose hang-up would end the process. Nothing happens when the
/// process leads its group (setsid(2)).
pub fn new_session() {
    // SAFETY: no pointers are passed.
    unsafe {
        libc::setsid();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(text: &str) -> Vec<String> {
        ["/bin/sh", "-c", text].map(str::to_owned).to_vec()
    }

    #[test]
    fn exit_codes_come_back_and_hangers_are_killed() {
        let mut child = start(&sh("exit 3"), None).expect("a shell");
        let status = wait(&mut child, Duration::from_secs(10)).expect("a status");
        assert_eq!(status.and_then(|status| status.code()), Some(3));
        let mut child = start(&sh("sleep 100; true"), None).expect("a shell");
        assert!(wait(&mut child, Duration::from_millis(20)).expect("killed").is_none());
        assert!(start(&["/nonexistent".into()], None).is_err());
        assert!(start(&[], None).is_err());
    }

    #[test]
    fn root_is_a_user() {
        assert_eq!(user("root").map(|user| (user.uid, user.gid)), Some((0, 0)));
        assert_eq!(user("no such user"), None);
        assert_eq!(user("a\0b"), None);
    }
}
