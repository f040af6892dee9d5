//! Sync groups.

use super::*;

fn member(priority: u8) -> VirtualRouter {
    router(Config { sync_group: true, announce: silent(), ..Config::new(priority) })
}

/// Two routers in a group; each input is followed by settling.
struct Pair {
    members: [VirtualRouter; 2],
    actions: Vec<(usize, Action)>,
}

impl Pair {
    fn started(first: u8, second: u8) -> Self {
        let mut pair = Self { members: [member(first), member(second)], actions: Vec::new() };
        for place in 0..2 {
            pair.input(0, place, |router, now, out| router.startup(now, out));
        }
        pair
    }

    fn input(
        &mut self,
        ms: u64,
        place: usize,
        input: impl FnOnce(&mut VirtualRouter, Moment, &mut Vec<Action>),
    ) {
        let mut out = Vec::new();
        input(&mut self.members[place], at(ms), &mut out);
        self.actions.extend(out.into_iter().map(|action| (place, action)));
        let [first, second] = &mut self.members;
        super::super::group::settle(at(ms), &mut [first, second], |place, action| {
            self.actions.push((place, action));
        });
    }

    fn hear(&mut self, ms: u64, place: usize, priority: u8) {
        let heard = heard(ms, 60, priority);
        self.input(ms, place, |router, now, out| router.on_advert(now, &heard, out));
    }

    fn until(&mut self, from: u64, to: u64) {
        for ms in from..=to {
            for place in 0..2 {
                self.input(ms, place, VirtualRouter::on_timer);
            }
        }
    }

    fn states(&self) -> [State; 2] {
        [self.members[0].state(), self.members[1].state()]
    }

    fn reasons(&self) -> Vec<(usize, &'static str)> {
        let reason = |(place, action): &(usize, Action)| match action {
            Action::Transition(transition) => Some((*place, transition.reason.name())),
            _ => None,
        };
        self.actions.iter().filter_map(reason).collect()
    }
}

const BOTH_ACTIVE: [State; 2] = [State::Active; 2];
const BOTH_BACKUP: [State; 2] = [State::Backup; 2];

#[test]
fn members_claim_together_when_the_last_one_would() {
    let mut pair = Pair::started(200, 100);
    pair.until(1, 340);
    assert_eq!(pair.states(), BOTH_BACKUP, "the first one's timer has fired, not the second's");
    pair.until(341, 361);
    assert_eq!(pair.states(), BOTH_ACTIVE);
}

#[test]
fn one_that_hears_an_active_router_keeps_all_back() {
    let mut pair = Pair::started(100, 100);
    for ms in 1..1_000 {
        if ms % 100 == 0 {
            pair.hear(ms, 1, 200);
        }
        pair.until(ms, ms);
        assert_eq!(pair.states(), BOTH_BACKUP);
    }
}

#[test]
fn a_demoted_member_takes_the_others_with_it() {
    let mut pair = Pair::started(100, 100);
    pair.until(1, 400);
    assert_eq!(pair.states(), BOTH_ACTIVE);
    pair.actions.clear();
    pair.hear(410, 0, 200);
    assert_eq!(pair.states(), BOTH_BACKUP);
    assert_eq!(pair.reasons(), [(0, "superior"), (1, "group")]);
    // The other's peers are told to take over at once.
    assert!(pair.actions.contains(&(1, Action::Advertise { priority: RESIGN })));
    assert!(pair.actions.contains(&(1, Action::Release)));
    // No flapping: the one that hears nobody waits for the one that does.
    for ms in 411..2_000 {
        if ms % 100 == 0 {
            pair.hear(ms, 0, 200);
        }
        pair.until(ms, ms);
        assert_eq!(pair.states(), BOTH_BACKUP);
    }
}

#[test]
fn an_unfit_member_keeps_the_group_down() {
    let mut pair = Pair::started(100, 100);
    pair.until(1, 400);
    pair.actions.clear();
    pair.input(410, 1, |router, now, out| router.set_healthy(now, false, out));
    assert_eq!(pair.states(), [State::Initialize; 2]);
    assert_eq!(pair.reasons(), [(1, "unhealthy"), (0, "group")]);
    pair.until(411, 1_000);
    assert_eq!(pair.states(), [State::Initialize; 2]);
    pair.input(1_001, 1, |router, now, out| router.set_healthy(now, true, out));
    assert_eq!(pair.states(), BOTH_BACKUP);
    pair.until(1_002, 1_400);
    assert_eq!(pair.states(), BOTH_ACTIVE);
}

#[test]
fn prefer_needs_all_members() {
    let mut pair = Pair::started(100, 100);
    pair.input(20, 0, |router, now, out| assert_eq!(router.prefer(now, out), Ok(())));
    assert_eq!(pair.states(), BOTH_BACKUP);
    pair.input(20, 1, |router, now, out| assert_eq!(router.prefer(now, out), Ok(())));
    assert_eq!(pair.states(), BOTH_ACTIVE);
}

#[test]
fn owners_claim_once_all_are_started() {
    let mut pair = Pair { members: [member(255), member(255)], actions: Vec::new() };
    pair.input(0, 0, |router, now, out| router.startup(now, out));
    assert_eq!(pair.members[0].state(), State::Initialize);
    pair.input(1, 1, |router, now, out| router.startup(now, out));
    pair.until(2, 3);
    assert_eq!(pair.states(), BOTH_ACTIVE);
}
