//! Every transition of RFC 9568 section 6.4 and RFC 3768 section 6.4.

use super::*;

const ADVERT: fn(u8) -> Action = |priority| Action::Advertise { priority };

fn claimed(priority: u8) -> Vec<Action> {
    vec![ADVERT(priority), Action::Claim, Action::Announce]
}

/// Microseconds from the start to the time the timer in force fires, wake-ups in between aside.
fn fires_after(router: &VirtualRouter) -> u64 {
    let mut router = router.clone();
    let start = at(0);
    loop {
        let deadline = router.deadline().unwrap();
        let before = router.state();
        let mut out = Vec::new();
        router.on_timer(deadline, &mut out);
        if router.state() != before || out.iter().any(|a| matches!(a, Action::Advertise { .. })) {
            return u64::try_from(deadline.since(start).as_micros()).unwrap();
        }
    }
}

enum Given {
    Initialize,
    Backup,
    /// Active since 360,937 us (priority 100): the next advertisement is due at 460,937 us.
    Active,
}

enum Input {
    Startup,
    Shutdown,
    Timer,
    Advert { from: u8, priority: u8, centiseconds: u16 },
}

struct Case {
    rfc: &'static str,
    version: Version,
    priority: u8,
    preempt: bool,
    given: Given,
    /// Milliseconds.
    when: u64,
    input: Input,
    actions: Vec<Action>,
    reason: Option<Reason>,
    state: State,
    /// When the timer in force fires then, in microseconds; `None` if there is none.
    fires: Option<u64>,
}

impl Case {
    /// Priority 100, version 3, preempting.
    fn new(rfc: &'static str, given: Given, when: u64, input: Input) -> Self {
        let (state, fires) = match given {
            Given::Initialize => (State::Initialize, None),
            Given::Backup => (State::Backup, Some(360_937)),
            Given::Active => (State::Active, Some(460_937)),
        };
        let (version, priority, preempt) = (Version::V3, 100, true);
        let (actions, reason) = (Vec::new(), None);
        Self { rfc, version, priority, preempt, given, when, input, actions, reason, state, fires }
    }

    fn run(self) {
        let config = Config {
            version: self.version,
            preempt: self.preempt,
            announce: silent(),
            ..Config::new(self.priority)
        };
        let config = match self.version {
            Version::V2 => Config { interval: Interval::SECOND, ..config },
            Version::V3 => config,
        };
        let mut router = match self.given {
            Given::Initialize => router(config),
            Given::Backup => backup(config),
            Given::Active if self.version == Version::V2 => {
                let mut router = backup(config);
                advance(&mut router, 3_700);
                router
            }
            Given::Active => active(config),
        };
        if self.when > 0 {
            advance(&mut router, self.when - 1);
        }
        let now = at(self.when);
        let out = run(|out| match self.input {
            Input::Startup => router.startup(now, out),
            Input::Shutdown => router.shutdown(now, out),
            Input::Timer => {
                let deadline = router.deadline().unwrap();
                router.on_timer(deadline, out);
            }
            Input::Advert { from, priority, centiseconds } => {
                let interval = Interval::from_centiseconds(centiseconds).unwrap();
                router.on_advert(now, &Heard { interval, ..heard(self.when, from, priority) }, out);
            }
        });
        assert_eq!(split(out), (self.actions, self.reason), "{}", self.rfc);
        assert_eq!(router.state(), self.state, "{}", self.rfc);
        let fires = (self.state != State::Initialize).then(|| fires_after(&router));
        assert_eq!(fires, self.fires, "{}", self.rfc);
    }
}

const fn advert(from: u8, priority: u8) -> Input {
    Input::Advert { from, priority, centiseconds: 10 }
}

#[test]
fn initialize() {
    use Given::Initialize;
    let cases = [
        Case {
            priority: 255,
            actions: claimed(255),
            reason: Some(Reason::Owner),
            state: State::Active,
            fires: Some(100_000),
            ..Case::new("(105) startup, owner", Initialize, 0, Input::Startup)
        },
        Case {
            reason: Some(Reason::Startup),
            state: State::Backup,
            fires: Some(360_937),
            ..Case::new("(155) startup, not owner", Initialize, 0, Input::Startup)
        },
        Case::new("shutdown is nothing new", Initialize, 0, Input::Shutdown),
        Case::new("adverts are not for it", Initialize, 10, advert(60, 200)),
        Case {
            version: Version::V2,
            reason: Some(Reason::Startup),
            state: State::Backup,
            fires: Some(3_609_375),
            ..Case::new("RFC 3768: skew in seconds", Initialize, 0, Input::Startup)
        },
    ];
    cases.into_iter().for_each(Case::run);
}

#[test]
fn backup_state() {
    use Given::Backup;
    let superior = |centiseconds| Input::Advert { from: 60, priority: 200, centiseconds };
    let cases = [
        Case {
            reason: Some(Reason::Shutdown),
            state: State::Initialize,
            fires: None,
            ..Case::new("(345) shutdown", Backup, 10, Input::Shutdown)
        },
        Case::new("startup again changes nothing", Backup, 10, Input::Startup),
        Case {
            actions: claimed(100),
            reason: Some(Reason::Silence),
            state: State::Active,
            fires: Some(460_937),
            ..Case::new("(360) Active_Down_Timer", Backup, 350, Input::Timer)
        },
        Case {
            fires: Some(50_000 + 60_937),
            ..Case::new("(420) priority 0: Skew_Time", Backup, 50, advert(60, 0))
        },
        Case {
            fires: Some(50_000 + 360_937),
            ..Case::new("(445) higher priority", Backup, 50, superior(10))
        },
        Case {
            fires: Some(50_000 + 36_093),
            ..Case::new("(450) the interval is learned", Backup, 50, superior(1))
        },
        Case {
            fires: Some(50_000 + 360_937),
            ..Case::new("(445) same priority, lower address", Backup, 50, advert(40, 100))
        },
        Case::new("(475) lower priority, preempt: discarded", Backup, 50, advert(60, 99)),
        Case {
            preempt: false,
            fires: Some(50_000 + 360_937),
            ..Case::new("(445) lower priority, nopreempt", Backup, 50, advert(60, 99))
        },
        Case {
            version: Version::V2,
            fires: Some(50_000 + 3_609_375),
            ..Case::new("RFC 3768: its own interval", Backup, 50, superior(1))
        },
        Case {
            version: Version::V2,
            fires: Some(50_000 + 609_375),
            ..Case::new("RFC 3768: Skew_Time", Backup, 50, advert(60, 0))
        },
    ];
    cases.into_iter().for_each(Case::run);
}

#[test]
fn active_state() {
    use Given::Active;
    let to_backup = |rfc, reason, input| Case {
        actions: vec![Action::Release],
        reason: Some(reason),
        state: State::Backup,
        fires: Some(430_000 + 360_937),
        ..Case::new(rfc, Active, 430, input)
    };
    let asserted = |rfc, input| Case {
        actions: vec![ADVERT(100)],
        fires: Some(530_000),
        ..Case::new(rfc, Active, 430, input)
    };
    let peer = address(60);
    let cases = [
        Case {
            actions: vec![ADVERT(0), Action::Release],
            reason: Some(Reason::Shutdown),
            state: State::Initialize,
            fires: None,
            ..Case::new("(635) shutdown", Active, 430, Input::Shutdown)
        },
        Case {
            actions: vec![ADVERT(100)],
            fires: Some(560_937),
            ..Case::new("(655) Adver_Timer", Active, 430, Input::Timer)
        },
        asserted("(675) priority 0", advert(60, 0)),
        to_backup("(695) higher", Reason::Superior { peer, priority: 101 }, advert(60, 101)),
        to_backup("(695) higher address", Reason::HigherAddress { peer }, advert(60, 100)),
        Case {
            fires: Some(430_000 + 36_093),
            ..to_backup(
                "(705) the interval is learned",
                Reason::Superior { peer, priority: 101 },
                Input::Advert { from: 60, priority: 101, centiseconds: 1 },
            )
        },
        Case {
            actions: vec![Action::Announce, ADVERT(100)],
            ..asserted("(730) lower priority", advert(60, 99))
        },
        Case {
            actions: vec![Action::Announce, ADVERT(100)],
            ..asserted("(730) same priority, lower address", advert(40, 100))
        },
        Case {
            priority: 255,
            actions: vec![Action::Announce],
            fires: Some(500_000),
            ..Case::new("section 7.1: an owner discards", Active, 430, advert(60, 255))
        },
        Case {
            version: Version::V2,
            actions: vec![Action::Announce],
            fires: Some(4_609_375),
            ..Case::new("RFC 3768: lower is discarded", Active, 4_000, advert(60, 99))
        },
    ];
    cases.into_iter().for_each(Case::run);
}
