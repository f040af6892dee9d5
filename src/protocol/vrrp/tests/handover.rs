//! Asking the active router to hand over, and being asked.

use super::*;

fn advert(priority: u8) -> Action {
    Action::Advertise { priority }
}

fn tell(news: HandOver, peer: u8) -> Action {
    Action::Tell { news, peer: address(peer) }
}

fn answer(accepted: bool) -> Action {
    Action::Answer { path: Path::PRIMARY, peer: address(60), accepted }
}

/// A backup of priority 100, not preempting, that hears router 60 of priority 200 and is preferred at 60 ms.
fn asking() -> VirtualRouter {
    let mut router = backup(Config { preempt: false, announce: silent(), ..Config::new(100) });
    hear(&mut router, 50, 200);
    let mut out = Vec::new();
    assert_eq!(router.prefer(at(60), &mut out), Ok(()));
    assert_eq!(out, [tell(HandOver::Asked, 60), Action::Ask]);
    assert_eq!(router.asking(), Some(false));
    assert_eq!(router.active_ways().collect::<Vec<_>>(), [(Path::PRIMARY, address(60))]);
    router
}

fn hear(router: &mut VirtualRouter, ms: u64, priority: u8) -> Vec<Action> {
    run(|out| router.on_advert(at(ms), &heard(ms, 60, priority), out))
}

fn accept(router: &mut VirtualRouter, ms: u64) -> Vec<Action> {
    run(|out| router.on_answer(at(ms), address(60), true, out))
}

/// Hears the active router every 100 ms until `ms`, and what that brings about besides.
fn watch(
    router: &mut VirtualRouter,
    from: u64,
    to: u64,
    mut each: impl FnMut(&mut VirtualRouter, u64),
) -> Vec<Action> {
    let mut out = Vec::new();
    for ms in (from..=to).step_by(10) {
        if ms % 100 == 50 && router.state() == State::Backup {
            out.extend(hear(router, ms, 200));
        }
        each(router, ms);
        router.on_timer(at(ms), &mut out);
    }
    out
}

fn claimed(reason: Reason, out: Vec<Action>) {
    let (actions, why) = split(out);
    assert_eq!(actions, [advert(254), Action::Claim, Action::Announce]);
    assert_eq!(why, Some(reason));
}

#[test]
fn an_active_router_that_resigns_after_accepting_is_followed_after_the_shortest_skew() {
    let mut router = asking();
    assert_eq!(accept(&mut router, 61), [tell(HandOver::Accepted, 60)]);
    assert_eq!(router.asking(), Some(true));
    assert_eq!(accept(&mut router, 62), [], "told once");
    // It is asked on, every 100 ms, and nothing is taken from it while it answers: for seconds.
    let out = watch(&mut router, 70, 4_000, |router, ms| {
        if ms % 100 == 0 {
            accept(router, ms);
        }
    });
    assert_eq!(out, vec![Action::Ask; 39]);
    hear(&mut router, 4_050, 0);
    assert_eq!(run(|out| router.on_timer(at(4_050), out)), []);
    let out = run(|out| router.on_timer(at(4_051), out)); // (256 - 254) / 256 of 100 ms
    claimed(Reason::Resigned { peer: address(60) }, out);
    assert_eq!(router.asking(), None);
    assert!(router.is_preferred());
}

#[test]
fn one_that_does_not_answer_is_preempted_after_three_requests() {
    let mut router = asking();
    let out = watch(&mut router, 70, 350, |_, _| ());
    assert_eq!(out, [Action::Ask, Action::Ask]);
    let mut out = run(|out| router.on_timer(at(360), out));
    assert_eq!(out.remove(0), tell(HandOver::Unanswered, 60));
    claimed(Reason::Preferred, out);
}

#[test]
fn one_that_refuses_is_preempted_at_once() {
    let mut router = asking();
    // Not the active router's word.
    assert_eq!(run(|out| router.on_answer(at(69), address(61), false, out)), []);
    let mut out = run(|out| router.on_answer(at(70), address(60), false, out));
    assert_eq!(out.remove(0), tell(HandOver::Refused, 60));
    claimed(Reason::Preferred, out);
    assert_eq!(run(|out| router.on_answer(at(71), address(60), false, out)), []);
}

#[test]
fn one_that_accepted_and_falls_silent_or_takes_for_ever_is_preempted() {
    let mut router = asking();
    accept(&mut router, 61);
    watch(&mut router, 70, 1_050, |_, _| ());
    let mut out = run(|out| router.on_timer(at(1_061), out));
    assert_eq!(out.remove(0), tell(HandOver::Overdue, 60));
    claimed(Reason::Preferred, out);

    let mut router = asking();
    let out = watch(&mut router, 70, 20_000, |router, ms| drop(accept(router, ms)));
    assert!(out.contains(&tell(HandOver::Overdue, 60)));
    assert_eq!(router.last_transition().at, at(15_060), "15 s after it was asked");
}

#[test]
fn an_active_router_that_dies_while_asked_is_followed_as_ever() {
    let mut router = asking();
    accept(&mut router, 61);
    let out = run(|out| {
        while router.state() == State::Backup {
            let deadline = router.deadline().unwrap();
            router.on_timer(deadline, out);
        }
    });
    assert!(!out.iter().any(|action| matches!(action, Action::Tell { .. })), "{out:?}");
    assert_eq!(router.last_transition().reason, Reason::Silence);
    let after = router.last_transition().at.since(at(50)).as_micros();
    assert!((300_781..=310_781).contains(&after), "{after}");
}

#[test]
fn release_and_resume_take_the_request_back() {
    for undo in [VirtualRouter::release, VirtualRouter::resume] {
        let mut router = asking();
        undo(&mut router, at(70), &mut Vec::new());
        assert_eq!(router.asking(), None);
        let out = watch(&mut router, 80, 2_000, |_, _| ());
        assert_eq!((out, router.state()), (vec![], State::Backup));
        assert_eq!(run(|out| router.on_answer(at(2_001), address(60), false, out)), []);
    }
}

#[test]
fn one_that_became_unbeatable_meanwhile_stays_active() {
    let mut router = asking();
    hear(&mut router, 100, 255);
    let out = run(|out| router.on_answer(at(101), address(60), false, out));
    assert_eq!(out, [tell(HandOver::Unbeaten, 60)]);
    assert_eq!((router.state(), router.is_preferred()), (State::Backup, false));
}

#[test]
fn a_router_that_is_preferred_itself_can_be_asked_but_not_always_preempted() {
    for (own, unbeaten) in [(50, true), (70, false)] {
        let mut router = backup(Config { announce: silent(), ..Config::new(100) });
        router.set_source(Path::PRIMARY, Some(address(own)));
        hear(&mut router, 50, 254);
        assert_eq!(router.prefer(at(60), &mut Vec::new()), Ok(()));
        let out = advance(&mut router, 339);
        assert_eq!(out, [Action::Ask, Action::Ask]);
        hear(&mut router, 340, 254);
        let out = advance(&mut router, 360);
        let news = if unbeaten { HandOver::Unbeaten } else { HandOver::Unanswered };
        assert_eq!(out[0], tell(news, 60));
        assert_eq!(router.state() == State::Backup, unbeaten);
        assert_eq!(router.is_preferred(), !unbeaten);
    }
    // One that heeds a request gives its preference up.
    let mut router = active(Config::new(100));
    router.prefer(at(400), &mut Vec::new()).unwrap();
    run(|out| router.on_asked(at(401), Path::PRIMARY, address(60), out));
    run(|out| assert!(router.hand_over(at(410), out)));
    assert_eq!((router.is_preferred(), router.priority()), (false, 100));
}

#[test]
fn an_active_router_finishes_and_offers_once() {
    let mut router = active(Config::new(200));
    let ask = |router: &mut VirtualRouter, ms| {
        run(|out| router.on_asked(at(ms), Path::PRIMARY, address(60), out))
    };
    let heeded = [Action::Finish { peer: address(60) }, tell(HandOver::Heeded, 60), answer(true)];
    assert_eq!(ask(&mut router, 401), heeded);
    assert_eq!(router.finishing_for(), Some(address(60)));
    assert_eq!(ask(&mut router, 402), [], "not more than a hundred answers a second");
    assert_eq!(ask(&mut router, 501), [answer(true)]);
    // It is active all the while.
    assert_eq!(advance(&mut router, 620), [advert(200); 2]);
    assert_eq!(run(|out| assert!(router.hand_over(at(630), out))), [advert(0)]);
    assert_eq!(ask(&mut router, 640), [answer(true)]);
    let out = run(|out| router.on_advert(at(650), &heard(650, 60, 254), out));
    let reason = Reason::HandedOver { peer: address(60) };
    assert_eq!(split(out), (vec![Action::Release], Some(reason)));
    assert_eq!((router.priority(), router.is_released()), (200, false), "it takes part as before");
    assert!(run(|out| assert!(!router.hand_over(at(660), out))).is_empty());
    assert_eq!(ask(&mut router, 670), [], "only the active router answers");
}

#[test]
fn an_offer_that_nobody_takes_up_is_not_repeated_for_a_while() {
    let mut router = active(Config::new(200));
    let ask = |router: &mut VirtualRouter, ms| {
        run(|out| router.on_asked(at(ms), Path::PRIMARY, address(60), out))
    };
    ask(&mut router, 401);
    run(|out| assert!(router.hand_over(at(410), out)));
    assert_eq!(advance(&mut router, 1_000)[0], advert(200), "its own priority again");
    assert_eq!(ask(&mut router, 1_010), [tell(HandOver::Declined, 60), answer(false)]);
    assert_eq!(ask(&mut router, 10_400), [tell(HandOver::Declined, 60), answer(false)]);
    assert_eq!(ask(&mut router, 10_411).last(), Some(&answer(true)));
    // Nor after one that could not be finished.
    router.cannot_finish();
    assert_eq!(ask(&mut router, 10_500).last(), Some(&answer(false)));
}

#[test]
fn owners_and_those_that_are_not_active_do_not_hand_over() {
    let mut owner = router(Config::new(255));
    owner.startup(at(0), &mut Vec::new());
    let out = run(|out| owner.on_asked(at(10), Path::PRIMARY, address(60), out));
    assert_eq!(out, [tell(HandOver::Declined, 60), answer(false)]);
    assert!(run(|out| assert!(!owner.hand_over(at(20), out))).is_empty());
    let mut backup = backup(Config::new(100));
    assert_eq!(run(|out| backup.on_asked(at(10), Path::PRIMARY, address(60), out)), []);
    assert!(run(|out| assert!(!backup.hand_over(at(20), out))).is_empty());
}
