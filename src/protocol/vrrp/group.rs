//! Sync groups: routers that are active together or not at all (keepalived's `vrrp_sync_group`).
//!
//! Members claim only here: each waits, its timer fired, until all of them would claim. One that
//! is demoted or unfit takes the others with it.

use super::{Action, Moment, State, VirtualRouter};

/// Brings the members of a group into one state. To be called after every input to any of them,
/// with the actions handed to `emit` together with the member's place in `members`.
pub fn settle(
    now: Moment,
    members: &mut [&mut VirtualRouter],
    mut emit: impl FnMut(usize, Action),
) {
    let mut out = Vec::new();
    let up = members.iter().all(|member| member.is_fit());
    for (place, member) in members.iter_mut().enumerate() {
        member.set_group_up(now, up, &mut out);
        out.drain(..).for_each(|action| emit(place, action));
    }
    if members.iter().all(|member| member.wants_to_claim()) {
        for (place, member) in members.iter_mut().enumerate() {
            member.claim_for_group(now, &mut out);
            out.drain(..).for_each(|action| emit(place, action));
        }
    } else if members.iter().any(|member| member.state() != State::Active) {
        for (place, member) in members.iter_mut().enumerate() {
            member.yield_for_group(now, &mut out);
            out.drain(..).for_each(|action| emit(place, action));
        }
    }
}
