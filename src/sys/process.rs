//! Processes and sessions (setsid(2)).

/// Leaves the session and its terminal, whose hang-up would end the process. Nothing happens when the
/// process leads its group.
pub fn new_session() {
    // SAFETY: no pointers are passed.
    unsafe {
        libc::setsid();
    }
}
