//! Child processes: as another user, in a group of their own, awaited with a deadline.

use std::ffi::CString;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

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

/// Looks a group up (getgrnam_r(3)); `None` when there is none of this name.
#[must_use]
pub fn group(name: &str) -> Option<u32> {
    let text = CString::new(name).ok()?;
    // SAFETY: group is integers and pointers, for which all zeroes is a valid value.
    let mut entry: libc::group = unsafe { mem::zeroed() };
    let mut buffer = vec![0; 64 << 10];
    let mut found = std::ptr::null_mut();
    // SAFETY: the name ends in a zero byte; entry, buffer (of the length given) and result pointer are ours
    // and outlive the call.
    let errno = unsafe {
        libc::getgrnam_r(
            text.as_ptr(),
            &raw mut entry,
            buffer.as_mut_ptr(),
            buffer.len(),
            &raw mut found,
        )
    };
    (errno == 0 && !found.is_null()).then_some(entry.gr_gid)
}

/// Starts `command` (program and arguments) in a process group of its own, with no signal blocked,
/// nothing to read and its output thrown away.
///
/// # Errors
/// What fork(2) and execve(2) say.
pub fn start(command: &[String], user: Option<&User>) -> io::Result<Child> {
    spawn(&mut prepared(command, user)?)
}

/// As [`start`], with variables added to the environment; the command is killed when the calling thread ends
/// (`PR_SET_PDEATHSIG` of prctl(2)), by whatever that may be. Processes that the command has started are not, nor
/// is a program with capabilities of its own: whoever ends in an orderly way kills the group.
///
/// # Errors
/// What fork(2) and execve(2) say.
pub fn start_bound(
    command: &[String],
    user: Option<&User>,
    variables: &[(&str, String)],
) -> io::Result<Child> {
    let mut process = prepared(command, user)?;
    process.envs(variables.iter().map(|(name, value)| (name, value)));
    let parent = std::process::id();
    // SAFETY: between fork and exec only prctl and getppid run, which are async-signal-safe and allocate nothing.
    unsafe { process.pre_exec(move || die_with(parent)) };
    spawn(&mut process)
}

/// The child's side. A parent that is gone already would never be heard of.
fn die_with(parent: u32) -> io::Result<()> {
    // SAFETY: no pointers are passed.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) })?;
    // SAFETY: no pointers are passed.
    let now = unsafe { libc::getppid() };
    if u32::try_from(now) == Ok(parent) {
        return Ok(());
    }
    Err(io::Error::from_raw_os_error(libc::ESRCH))
}

fn prepared(command: &[String], user: Option<&User>) -> io::Result<Command> {
    let (program, arguments) =
        command.split_first().ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
    let mut process = Command::new(program);
    process.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    process.process_group(0);
    if let Some(user) = user {
        process.uid(user.uid).gid(user.gid);
    }
    Ok(process)
}

fn spawn(process: &mut Command) -> io::Result<Child> {
    // SAFETY: between fork and exec only sigemptyset, sigprocmask and prctl run, which are async-signal-safe
    // and allocate nothing.
    unsafe { process.pre_exec(unblock_signals) };
    process.spawn()
}

/// Threads here block signals, and a child inherits that.
fn unblock_signals() -> io::Result<()> {
    // Capabilities are for this program and its successors.
    super::privileges::clear_ambient();
    // SAFETY: sigset_t is plain integers and initialised by sigemptyset before its use.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        check(libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()))?;
    }
    Ok(())
}

/// How long a killed child may take to end.
const KILL_GRACE: Duration = Duration::from_millis(100);
/// How often that is looked at.
const KILL_LOOK: Duration = Duration::from_millis(5);

/// What became of a child.
#[derive(Debug)]
pub enum Waited {
    /// It ended by itself.
    Ended(ExitStatus),
    /// It did not end in time and was killed.
    Killed,
    /// It could not be waited for and was killed.
    Failed(io::Error),
    /// Killed, and not gone even so: it sits in the kernel. The owner has to ask for its end with
    /// [`Child::try_wait`] now and then, or it stays a zombie.
    Stuck(Child),
}

/// Waits for the child to end; after `timeout`, or when waiting fails, its whole group is killed. This
/// takes at most 100 ms longer than `timeout`, whatever the child does.
pub fn wait(child: Child, timeout: Duration) -> Waited {
    let ended = await_end(&child, timeout);
    finish(child, ended, KILL_GRACE)
}

/// A file that has input once the child has ended (pidfd_open(2)).
///
/// # Errors
/// What pidfd_open(2) says, EMFILE for one.
pub fn watch(child: &Child) -> io::Result<OwnedFd> {
    let pid = libc::pid_t::try_from(child.id()).unwrap_or(libc::pid_t::MAX);
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = check(libc::c_int::try_from(fd).unwrap_or(-1))?;
    // SAFETY: the call above returned this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Kills the child's whole group. The child must not have been waited for: its number could be another's.
pub fn kill_group(child: &Child) {
    let pid = libc::pid_t::try_from(child.id()).unwrap_or(libc::pid_t::MAX);
    // SAFETY: no pointers are passed. The child has not been waited for, so the number is still its group's.
    unsafe { libc::kill(-pid, libc::SIGKILL) };
}

/// True when it has ended; false after the timeout.
fn await_end(child: &Child, timeout: Duration) -> io::Result<bool> {
    let began = Instant::now();
    let fd = watch(child)?;
    let mut ready = Vec::new();
    loop {
        let left = timeout.saturating_sub(began.elapsed());
        poll::readable(&[fd.as_raw_fd()], Some(left), &mut ready, &mut Vec::new())?;
        // A signal ends the wait early too.
        if !ready.is_empty() || left.is_zero() {
            return Ok(!ready.is_empty());
        }
    }
}

/// Reaps a child that has ended, and kills one that has not, for whose end it waits so long.
fn finish(mut child: Child, ended: io::Result<bool>, grace: Duration) -> Waited {
    if let Ok(Some(status)) = child.try_wait() {
        return Waited::Ended(status);
    }
    kill_group(&child);
    let until = Instant::now() + grace;
    loop {
        match (child.try_wait(), &ended) {
            (Ok(None), _) if Instant::now() < until => std::thread::sleep(KILL_LOOK),
            (Ok(None), _) => return Waited::Stuck(child),
            (Err(error), _) => return Waited::Failed(error),
            (Ok(Some(_)), Ok(_)) => return Waited::Killed,
            (Ok(Some(_)), Err(_)) => break,
        }
    }
    ended.map_or_else(Waited::Failed, |_| Waited::Killed)
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
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    /// For a kill or a shell on a busy machine.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn sh(text: &str) -> Vec<String> {
        ["/bin/sh", "-c", text].map(str::to_owned).to_vec()
    }

    #[test]
    fn exit_codes_come_back_and_hangers_are_killed() {
        let child = start(&sh("exit 3"), None).expect("a shell");
        let waited = wait(child, PATIENCE);
        assert!(matches!(&waited, Waited::Ended(status) if status.code() == Some(3)), "{waited:?}");
        let child = start(&sh("sleep 100; true"), None).expect("a shell");
        let ended = await_end(&child, Duration::from_millis(20));
        assert!(matches!(finish(child, ended, PATIENCE), Waited::Killed));
        assert!(start(&["/nonexistent".into()], None).is_err());
        assert!(start(&[], None).is_err());
    }

    #[test]
    fn one_that_cannot_be_waited_for_is_killed_and_reaped() {
        let child = start(&sh("sleep 100; true"), None).expect("a shell");
        let pid = child.id();
        let waited = finish(child, Err(io::Error::from_raw_os_error(libc::EMFILE)), PATIENCE);
        assert!(
            matches!(&waited, Waited::Failed(error) if error.raw_os_error() == Some(libc::EMFILE))
        );
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "not reaped");
    }

    #[test]
    fn a_bound_command_ends_with_its_thread() {
        let starter = std::thread::spawn(|| {
            start_bound(&sh("exec sleep 1000"), None, &[("A", "b".to_owned())]).expect("a shell")
        });
        let mut child = starter.join().expect("no panic");
        // The thread is gone: without that, this would take 1,000 s.
        let status = child.wait().expect("it is ours");
        assert_eq!(status.signal(), Some(libc::SIGKILL));
        assert_eq!(
            die_with(u32::MAX).map_err(|error| error.raw_os_error()),
            Err(Some(libc::ESRCH))
        );
    }

    #[test]
    fn root_is_a_user() {
        assert_eq!(user("root").map(|user| (user.uid, user.gid)), Some((0, 0)));
        assert_eq!(user("no such user"), None);
        assert_eq!(user("a\0b"), None);
    }
}
